"""Models, tensors and whatever else torch saves: the state only, which is read back without running any code.

A file is what ``torch.save`` writes of tensors and plain containers: ``torch.load(path, weights_only=True)`` reads it.
Objects as such are pickled only if the user asks for it with ``pickle=True``; nothing here ever unpickles one.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_loggers.values.plain import plain_json
from lightning_loggers.values.snapshots import Encoded, Ready, Snapshot, as_path, existing_file, origins, unsuitable

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".onnx", ".pkl", ".zip")
ACCEPTED = (
    "a torch module, a tensor, an object with `state_dict()`, containers of tensors and plain values, a data loader, "
    "or a file's path; any other object only with pickle=True"
)
_PLAIN = (str, bytes, int, float, bool, type(None))
_MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class _State:
    state: Any
    size_bytes: int
    meta: dict[str, Any]

    def encode(self) -> Encoded:
        def write(path: Path) -> None:
            import torch

            torch.save(self.state, path)

        return Encoded([("state.pt", write)], meta=self.meta)


def snapshot(value: Any, identifier: str, *, kind: str = "model", pickle: bool = False) -> Snapshot:
    """Copy the state of a model or any other object of torch to the CPU.

    Args:
        value: See :data:`ACCEPTED`.
        identifier: Its identifier, for messages.
        kind: Of the record, for messages.
        pickle: Whether an object that has no state of its own is pickled, in the call.

    Raises:
        UnsuitableValueError: If it is none of what is accepted.
    """
    path = as_path(value)
    if path is not None:
        return existing_file(kind, identifier, path, SUFFIXES)
    known = origins(value)
    if pickle:
        return _pickled(value)
    if hasattr(value, "dataset") and hasattr(value, "batch_size"):
        return Ready(Encoded(value=describe_loader(value)))
    meta = {"class": f"{type(value).__module__}.{type(value).__qualname__}", "load": _HOW_TO_LOAD}
    if hasattr(value, "state_dict"):
        value = value.state_dict()
    elif "torch" not in known and not isinstance(value, Mapping | list | tuple):
        raise unsuitable(kind, identifier, f"a {type(value).__module__}.{type(value).__qualname__}", ACCEPTED)
    sizes: list[int] = []
    try:
        state = _copied(value, sizes, 0)
    except TypeError as error:
        raise unsuitable(kind, identifier, f"holding {error}", ACCEPTED) from None
    return _State(state, sum(sizes), meta)


_HOW_TO_LOAD = "torch.load(path, weights_only=True)"


def _copied(value: Any, sizes: list[int], depth: int) -> Any:
    """Tensors copied once, to the CPU; containers made anew; anything else that is not plain is refused."""
    if hasattr(value, "detach") and "torch" in origins(value):
        tensor = value.detach()
        tensor = tensor.clone() if tensor.device.type == "cpu" else tensor.cpu()
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor
    if isinstance(value, _PLAIN):
        return value
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return {_copied(key, sizes, depth + 1): _copied(item, sizes, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [_copied(item, sizes, depth + 1) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if hasattr(value, "__array__") or hasattr(value, "tolist"):  # numpy's own types are no part of weights_only
            import torch

            return _copied(torch.as_tensor(value), sizes, depth + 1)
    raise TypeError(f"a {type(value).__module__}.{type(value).__qualname__}")


def _pickled(value: Any) -> Snapshot:
    import torch

    content = io.BytesIO()
    torch.save(value, content)
    meta = {
        "class": f"{type(value).__module__}.{type(value).__qualname__}",
        "load": "torch.load(path, weights_only=False)",
    }
    return Ready(Encoded([("pickled.pt", content.getvalue())], meta=meta))


def describe_loader(loader: Any) -> dict[str, Any]:
    """What a data loader loads and how, as JSON."""
    dataset = loader.dataset
    names = ("batch_size", "num_workers", "drop_last", "pin_memory", "prefetch_factor", "persistent_workers")
    described = {name: plain_json(getattr(loader, name)) for name in names if hasattr(loader, name)}
    sampler = getattr(loader, "sampler", None)
    return {
        "class": f"{type(loader).__module__}.{type(loader).__qualname__}",
        "dataset": {"class": f"{type(dataset).__module__}.{type(dataset).__qualname__}", "length": _length(dataset)},
        "sampler": None if sampler is None else type(sampler).__qualname__,
        "batches": _length(loader),
        **described,
    }


def describe_graph(model: Any) -> dict[str, Any]:
    """The modules of a model and the shapes of their parameters, as JSON.

    Raises:
        AttributeError: If it is no torch module.
    """
    modules = []
    for name, module in model.named_modules():
        own = {key: list(tensor.shape) for key, tensor in module.named_parameters(recurse=False)}
        entry: dict[str, Any] = {"name": name, "type": type(module).__qualname__, "parameters": own}
        if not list(module.children()):
            entry["settings"] = str(module.extra_repr())
        modules.append(entry)
    trainable = sum(tensor.numel() for tensor in model.parameters() if tensor.requires_grad)
    total = sum(tensor.numel() for tensor in model.parameters())
    return {"class": type(model).__qualname__, "parameters": total, "trainable": trainable, "modules": modules}


def _length(sized: Any) -> int | None:
    try:
        return len(sized)
    except TypeError:
        return None
