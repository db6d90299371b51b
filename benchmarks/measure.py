"""Interleaved repeats, medians, spread."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """Seconds per call: the median over the repeats, and the lowest and highest repeat."""

    median: float
    low: float
    high: float

    def microseconds(self) -> str:
        """For a table."""
        return f"{self.median * 1e6:.2f} ({self.low * 1e6:.2f} to {self.high * 1e6:.2f})"


def interleaved(calls: dict[str, Callable[[], object]], repeats: int, number: int) -> dict[str, Measured]:
    """Time every call ``number`` times in a row, all of them in turn, ``repeats`` times over."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            begun = time.perf_counter()
            for _ in range(number):
                call()
            seconds[name].append((time.perf_counter() - begun) / number)
    return {name: Measured(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}


def percentiles(latencies: list[float]) -> dict[str, float]:
    """Median, p99, p99.9 and longest, in the unit given."""
    ordered = sorted(latencies)
    last = len(ordered) - 1
    return {
        "median": ordered[last // 2],
        "p99": ordered[int(last * 0.99)],
        "p99.9": ordered[int(last * 0.999)],
        "longest": ordered[last],
    }
