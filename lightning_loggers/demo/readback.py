"""What the demo needs of a tracker, and the comparison of what was logged with what is read back."""

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from lightning_loggers.demo.tally import Point

EXPERIMENT = "digits-demo"


@dataclass(frozen=True, slots=True)
class ReadRun:
    """A run as its tracker has it.

    Attributes:
        title: What it is there, such as ``"run x, FINISHED"``.
        params: Hyperparameters, as text.
        metrics: Metric to its points, step and value, in the order of the steps.
        files: Paths of all files.
        see: Lines that say how to see it there.
        runs: How many runs of the demo the tracker has; ``None`` where it does not say.
    """

    title: str
    params: dict[str, str]
    metrics: dict[str, list[Point]]
    files: list[str]
    see: list[str] = field(default_factory=list)
    runs: int | None = None


class DemoTracker(ABC):
    """A tracker as the demo uses it.

    Attributes:
        name: Of its adapter.
        label: What people call it.
        float32: Whether it stores 32-bit floats.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    float32: ClassVar[bool] = False

    @abstractmethod
    def make(self, save_dir: Path, tracking_uri: str | None, finalize_timeout_s: float) -> Any:
        """Make the logger.

        Args:
            save_dir: Where everything is kept.
            tracking_uri: Where the tracker is, for one that has an address.
            finalize_timeout_s: Longest wait at the end, seconds.
        """

    @abstractmethod
    def read(self, logger: Any) -> ReadRun:
        """Read the run back with the tracker's own reader, or that of its file format.

        Raises:
            Exception: Of the SDK, if the tracker does not answer.
        """


def compare(
    logged: Mapping[str, Sequence[Point]], read: Mapping[str, Sequence[Point]], *, float32: bool = False
) -> tuple[list[tuple[object, ...]], bool]:
    """Compare what was logged with what was read back, metric by metric.

    Args:
        logged: Metric to its points, step and value.
        read: The same, from the tracker.
        float32: Whether the tracker stores 32-bit floats, to which what was logged is rounded then.

    Returns:
        Rows for a table, and whether all points are equal.

    >>> compare({"loss": [(0, 0.5), (1, 0.25)]}, {"loss": [(0, 0.5)]})
    ([('loss', 2, 1, '0.5000', '0.5000', '0.5000', '0.5000')], False)
    """
    rows: list[tuple[object, ...]] = []
    complete = True
    for key in sorted(logged.keys() | read.keys()):
        points = read.get(key, ())
        values = [value for _, value in points]
        numbers = [values[0], values[-1], min(values), max(values)] if values else []
        texts = [f"{number:.4f}" for number in numbers] or ["", "", "", ""]
        rows.append((key, len(logged.get(key, ())), len(points), *texts))
        expected = [(step, ctypes.c_float(value).value if float32 else value) for step, value in logged.get(key, ())]
        complete = complete and sorted(expected) == sorted(points)
    return rows, complete


def files_below(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, the journal's left out."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] != "journal")
