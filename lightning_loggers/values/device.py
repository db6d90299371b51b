"""Values on a GPU: copied to pinned memory without waiting, with an event that tells when they are there.

A kernel runs some time after the program has called it. Asking for its result waits for it and for everything before
it; a copy that is put into the same queue does not. torch is only touched where a value is torch's.
"""

import contextlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lightning_loggers.values.metrics import as_number
from lightning_loggers.values.snapshots import Encoded, Snapshot


class Arrival(Protocol):
    """Tells when copies are there: a ``torch.cuda.Event``."""

    def synchronize(self) -> None:
        """Wait until they are."""


@dataclass(frozen=True, slots=True)
class Arriving:
    """A snapshot whose arrays may be on their way.

    Attributes:
        snapshot: It.
        arrivals: When they are there.
    """

    snapshot: Snapshot
    arrivals: Sequence[Arrival]

    @property
    def size_bytes(self) -> int:
        """What it holds in memory, bytes."""
        return self.snapshot.size_bytes

    def encode(self) -> Encoded:
        """Wait for the values, and make files of them."""
        for arrival in self.arrivals:
            arrival.synchronize()
        return self.snapshot.encode()


def is_on_device(value: Any) -> bool:
    """Whether a value is a tensor on a CUDA or ROCm device."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor) and value.is_cuda


def metrics_on_their_way(metrics: Mapping[Any, Any]) -> tuple[dict[Any, Any], list[Arrival]] | None:
    """Metrics with each CUDA tensor as a tensor of the host that its value is being copied to.

    Args:
        metrics: Metrics by key.

    Returns:
        The metrics and when they are there. ``None`` if none is on a device, or another one is no plain number, which
        would have to be copied, too: the caller then waits.
    """
    found: dict[Any, Any] = {}
    keys = []
    for key, value in metrics.items():
        if is_on_device(value):
            if value.layout is not _torch().strided or value.is_quantized:
                return None
            keys.append(key)
            found[key] = value
        else:
            found[key] = as_number(value)
            if found[key] is None:
                return None
    if not keys:
        return None
    copies, arrivals = copied([found[key] for key in keys])
    found.update(zip(keys, copies, strict=True))
    return found, arrivals


def copied(tensors: Sequence[Any]) -> tuple[list[Any], list[Arrival]]:
    """Copies of CUDA tensors in pinned memory, one transfer for all of one element, a device and a type.

    Returns:
        Tensors of the host, which have the values once all of the events have come.
    """
    torch = _torch()
    copies: list[Any] = [None] * len(tensors)
    together: dict[tuple[Any, Any], list[int]] = {}
    for index, tensor in enumerate(tensors):
        if tensor.numel() == 1:
            together.setdefault((tensor.device, tensor.dtype), []).append(index)
        else:
            copies[index] = _pinned(tensor.detach())
    for indices in together.values():
        row = _pinned(torch.stack([tensors[index].detach().reshape(()) for index in indices]))
        for index, one in zip(indices, row.unbind(), strict=True):
            copies[index] = one
    return copies, [_arrival(device) for device in {tensor.device for tensor in tensors}]


def _arrival(device: Any) -> Arrival:
    """When all that was put into a device's queue until now is done."""
    event: Arrival = _torch().cuda.Event(blocking=True)  # whoever waits for it sleeps
    event.record(_torch().cuda.current_stream(device))  # type: ignore[attr-defined]
    return event


def _pinned(tensor: Any) -> Any:
    host = _torch().empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def _torch() -> Any:
    return sys.modules["torch"]  # the value is its own


# ---------------------------------------------------------------------- snapshots of larger tensors

_taking = threading.local()


def snapshot_of(take: Callable[..., Snapshot], value: Any, identifier: str, **known: Any) -> Snapshot:
    """Take a snapshot of a value, not waiting for a device that it is on.

    Args:
        take: The family's function, which looks at a tensor's shape and type and not at its values.
        value: The value.
        identifier: Its identifier.
        **known: Further arguments of ``take``.

    Raises:
        UnsuitableValueError: As ``take`` does, and so on.
    """
    if not is_on_device(value):
        return take(value, identifier, **known)
    arrivals: list[Arrival] = []
    _taking.tensor, _taking.arrivals = value, arrivals
    try:
        snapshot = take(value, identifier, **known)
    finally:
        _taking.tensor = _taking.arrivals = None
    return Arriving(snapshot, arrivals) if arrivals else snapshot


def host_copy(tensor: Any, *, of: Any) -> Any:
    """A tensor of the host with the values of a tensor on a device.

    Args:
        tensor: On the device.
        of: The value that was logged: if its snapshot is being taken by :func:`snapshot_of`, the copy is on its way.
    """
    if tensor.is_cuda and getattr(_taking, "tensor", None) is of:
        with contextlib.suppress(RuntimeError):  # there is no more pinned memory
            copy = _pinned(tensor)
            _taking.arrivals.append(_arrival(tensor.device))
            return copy
    return tensor.cpu()
