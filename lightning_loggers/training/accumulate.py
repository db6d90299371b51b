"""Metrics that stay on their device until they are logged: sums and counts, and one transfer for all of them."""

import sys
from collections.abc import Mapping
from typing import Any

from lightning_loggers.values.metrics import as_number

_PAIRS = ({"value", "count"}, {"sum", "count"})


class Accumulator:
    """Means of metrics over steps, kept where the metrics are.

    A metric is a number; an array or tensor of any library (the mean of its elements counts, each element once); a pair
    ``(sum, count)``, or a mapping of ``value`` and ``count``; an object with ``compute`` and ``reset``, such as a
    torchmetrics metric, which adds up itself; or a mapping of further metrics.

    Guarantees:
        - :meth:`add` moves nothing to the host and waits for no device.
        - :meth:`take` makes one transfer per device, of one small array.
        - Tensors are copied and let go of their graph: what the program does to them afterwards changes nothing.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, Any] = {}
        self._objects: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._sums) + len(self._objects)

    def add(self, metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """Add the metrics of one step.

        Args:
            metrics: Metrics by name.
            prefix: Put before the names.

        Returns:
            The metrics with pairs set to zero, for a loop that adds up into them.
        """
        returned: dict[str, Any] = {}
        for name, value in metrics.items():
            key = f"{prefix}{name}"
            returned[name] = value
            if _is_object(value):
                self._objects[key] = value
            elif isinstance(value, Mapping):
                if set(value) in _PAIRS:
                    amount = "value" if "value" in value else "sum"
                    self._add(key, _total(value[amount])[0], value["count"])
                    returned[name] = {amount: 0.0, "count": 0}
                else:
                    returned[name] = self.add(value, f"{key}/")
            elif isinstance(value, tuple) and len(value) == 2:
                self._add(key, _total(value[0])[0], value[1])
                returned[name] = (0.0, 0)
            else:
                self._add(key, *_total(value))
        return returned

    def _add(self, key: str, total: Any, count: Any) -> None:
        count = _on_device(count)
        if key in self._sums:
            self._sums[key] = self._sums[key] + total
            self._counts[key] = self._counts[key] + count
        else:
            self._sums[key], self._counts[key] = total, count

    def take(self, *, reset: bool = True) -> dict[str, float]:
        """The means so far, on the host; afterwards everything begins anew.

        Args:
            reset: Whether objects with ``compute`` are reset.

        Returns:
            Numbers by key. What was counted zero times is left out.
        """
        found: dict[str, Any] = {}
        for key, value in self._objects.items():
            _open(key, value.compute(), found)
            if reset:
                value.reset()
        sums, counts = self._sums, self._counts
        self.__init__()  # type: ignore[misc] # as new
        host = on_host([*found.values(), *sums.values(), *counts.values()])
        computed = dict(zip(found, host, strict=False))
        totals = host[len(found) : len(found) + len(sums)]
        numbers = host[len(found) + len(sums) :]
        means = {key: total / count for key, total, count in zip(sums, totals, numbers, strict=True) if count}
        return {**means, **computed}


def _is_object(value: Any) -> bool:
    return callable(getattr(value, "compute", None)) and callable(getattr(value, "reset", None))


def _open(key: str, value: Any, found: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _open(f"{key}/{name}", inner, found)
    else:
        total, count = _total(value)
        found[key] = total if count == 1 else total / count


def _total(value: Any) -> tuple[Any, int]:
    """The sum of a value's elements as a number of sufficient precision on its device, and how many they are."""
    count = 1
    shape = getattr(value, "shape", ())
    for length in shape:
        count *= int(length)
    value = _on_device(value)
    return (value.sum() if len(shape) else value), count


def _on_device(value: Any) -> Any:
    """A copy of a tensor without its graph, wide enough to add up in; a plain number of anything else."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        # Apple's GPUs know no float64.
        wide = torch.float32 if value.device.type == "mps" else torch.float64
        return value.detach().to(wide, copy=True)
    jax = sys.modules.get("jax")
    if jax is not None and isinstance(value, jax.Array):
        return value.astype("float32") if value.dtype.itemsize < 4 or value.dtype.kind in "iub" else value
    if hasattr(value, "shape") and len(value.shape):
        import numpy as np

        return np.array(value, dtype=np.float64)
    number = as_number(value)
    if number is None:
        raise TypeError(f"a metric must be a number, an array, a pair (sum, count) or have compute(), not {value!r}")
    return number


def on_host(values: list[Any]) -> list[Any]:
    """Numbers of values with one element each, with one transfer per device.

    >>> on_host([1, 2.5])
    [1, 2.5]
    """
    host = list(values)
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    groups: dict[Any, list[int]] = {}
    for index, value in enumerate(values):
        if torch is not None and isinstance(value, torch.Tensor):
            groups.setdefault(value.device, []).append(index)
        elif jax is not None and isinstance(value, jax.Array):
            groups.setdefault("jax", []).append(index)
        elif hasattr(value, "item"):
            host[index] = value.item()
    for device, indices in groups.items():
        chosen = [values[index] for index in indices]
        if device == "jax":
            assert jax is not None
            moved = [array.item() for array in jax.device_get(chosen)]
        else:
            assert torch is not None
            wide = torch.float32 if device.type == "mps" else torch.float64
            moved = torch.stack([tensor.detach().reshape(()).to(wide) for tensor in chosen]).tolist()
        for index, number in zip(indices, moved, strict=True):
            host[index] = number
    return host
