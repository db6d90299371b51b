"""Histograms: counts and edges of bins, which is what every tracker stores of a distribution."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_loggers.errors import UnsuitableValueError
from lightning_loggers.values import arrays
from lightning_loggers.values.arrays import Array
from lightning_loggers.values.snapshots import Encoded, Ready, Snapshot, unsuitable

ACCEPTED = (
    "numbers of any shape; or ready-made bins: a pair (counts, edges) with one edge more than counts, or a mapping "
    "with 'counts' and 'bins'"
)
DEFAULT_BINS = 64


@dataclass(frozen=True, slots=True)
class Values:
    """Copies of numbers whose distributions belong into one record.

    Attributes:
        values: By name.
        bins: Number of bins.
    """

    values: dict[str, Array]
    bins: int = DEFAULT_BINS

    @property
    def size_bytes(self) -> int:
        """What the copies hold in memory."""
        return sum(values.nbytes for values in self.values.values())

    def encode(self) -> Encoded:
        """Count them."""
        return Encoded(value={name: summary(values, self.bins) for name, values in self.values.items()})


def snapshot(value: Any, identifier: str, *, bins: int = DEFAULT_BINS) -> Snapshot:
    """Check the values of a distribution and copy them, or take bins that were made already.

    Args:
        value: See :data:`ACCEPTED`.
        identifier: Its identifier.
        bins: Number of bins.

    Raises:
        UnsuitableValueError: If it is none of what is accepted.
    """
    if not isinstance(bins, int) or not 1 <= bins <= 100_000:
        raise unsuitable("histogram", identifier, f"given with bins={bins!r}", "bins from 1 to 100,000")
    made = _ready_made(value, identifier)
    if made is not None:
        return Ready(Encoded(value={identifier: made}))
    try:
        values = arrays.snapshot(value)
    except UnsuitableValueError as error:
        raise unsuitable("histogram", identifier, str(error), ACCEPTED) from None
    if values.size == 0:
        raise unsuitable("histogram", identifier, f"of shape {values.shape}, without a value", ACCEPTED)
    return Values({identifier: values}, bins)


def _ready_made(value: Any, identifier: str) -> dict[str, Any] | None:
    if isinstance(value, Mapping):
        counts, edges = value.get("counts"), value.get("bins", value.get("edges", value.get("bin_edges")))
    elif isinstance(value, tuple) and len(value) == 2 and arrays.shape_of(value[0]) != () and np.ndim(value[1]) == 1:
        counts, edges = value
    else:
        return None
    try:
        listed = [float(count) for count in arrays.view(counts)[0]]
        borders = [float(edge) for edge in arrays.view(edges)[0]]
    except (UnsuitableValueError, TypeError, ValueError):
        raise unsuitable(
            "histogram", identifier, f"{type(value).__name__} without counts and edges", ACCEPTED
        ) from None
    if not listed or len(borders) != len(listed) + 1 or borders != sorted(borders) or min(listed) < 0:
        seen = f"{len(listed)} counts and {len(borders)} edges"
        raise unsuitable("histogram", identifier, seen, ACCEPTED + ", edges rising and counts not below 0")
    return {"counts": listed, "bins": borders}


def summary(values: Array, bins: int = DEFAULT_BINS) -> dict[str, Any]:
    """Counts, edges and moments of the finite values, and how many were NaN or infinite.

    >>> made = summary(np.array([0.0, 1.0, np.nan]), 2)
    >>> made["counts"], made["bins"], made["nan"], made["sum"]
    ([1.0, 1.0], [0.0, 0.5, 1.0], 1, 1.0)
    """
    flat = np.ravel(values).astype(np.float64)
    finite = flat[np.isfinite(flat)]
    made: dict[str, Any] = {}
    if finite.size < flat.size:
        made = {"nan": int(np.isnan(flat).sum()), "infinite": int(np.isinf(flat).sum())}
    if not finite.size:
        return {"counts": [0.0] * bins, "bins": [edge / bins for edge in range(bins + 1)], **made}
    low, high = float(finite.min()), float(finite.max())
    with np.errstate(over="ignore"):
        scale = 1.0 if np.isfinite(np.float64(high) - low) else 4.0  # a range that is no float itself
    counts, edges = np.histogram(finite / scale, bins)
    edges = np.clip(edges * scale, low - (low == high), high + (low == high))
    moments = {"min": low, "max": high, "count": int(finite.size), "sum": float(finite.sum())}
    with np.errstate(over="ignore"):
        moments["sum_squares"] = float(min(np.square(finite).sum(), np.finfo(np.float64).max))
    return {"counts": counts.astype(np.float64).tolist(), "bins": edges.tolist(), **moments, **made}
