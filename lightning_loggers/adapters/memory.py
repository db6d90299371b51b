"""Memory: what was delivered is kept in the delivering process, for tests and notebooks."""

import contextlib
import json
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from typing_extensions import override

from lightning_loggers.adapters.base import Adapter, Capabilities, Context, Fault, FaultKind
from lightning_loggers.adapters.standard_files import IN_LINE
from lightning_loggers.journal.reader import read
from lightning_loggers.records import Kind, Record, RunStatus
from lightning_loggers.values.metrics import as_number

if TYPE_CHECKING:
    import numpy as np

Point = tuple[int, int | float | None, int | float, int | None]
"""Time in nanoseconds since the epoch, step, value, epoch."""


class _Series:
    """The points of one metric. Telling whether a point is there costs nothing as long as time goes forward."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.latest: Point | None = None
        self._known: set[Any] | None = None

    def add(self, point: Point) -> None:
        if self.latest is not None and point[0] <= self.latest[0]:
            if self._known is None:
                self._known = {_identity(other) for other in self.points}
            if _identity(point) in self._known:
                return
        if self._known is not None:
            self._known.add(_identity(point))
        self.points.append(point)
        if self.latest is None or point[0] >= self.latest[0]:
            self.latest = point


def _identity(point: Point) -> tuple[Any, ...]:
    time_ns, step, value, _ = point
    return time_ns, step, value if value == value else "nan"  # noqa: PLR0124 - NaN is not equal to itself


class MemoryRun:
    """What this process holds of one run.

    Guarantees:
        - A record that is delivered twice is held once.
        - One thread delivers; any thread may read meanwhile, without a lock.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self, uid: str = "") -> None:
        """Begin anew, for the run with that ``uid``."""
        self.uid = uid
        self.status: RunStatus | None = None
        """What the run's last status was."""
        self.hyperparams: dict[str, Any] = {}
        """Hyperparameters by name; a later value replaces an earlier one."""
        self.records: list[Record] = []
        """Everything that is neither metric nor hyperparameter, in the order of its log calls."""
        self.files: dict[str, list[Path]] = {}
        """Files of artifacts, checkpoints and so on, by identifier."""
        self.opened = False
        self._series: dict[str, _Series] = {}
        self._known: set[Any] = set()

    @property
    def names(self) -> list[str]:
        """The metrics, in the order in which they were first logged."""
        return list(self._series)

    def points(self, name: str) -> list[Point]:
        """All points of a metric: time in nanoseconds since the epoch, step, value, epoch.

        Raises:
            KeyError: If there is no such metric.
        """
        return list(self._find(name).points)

    def most_recent(self, name: str) -> int | float:
        """The value of a metric that was logged last.

        Raises:
            KeyError: If there is no such metric.
        """
        latest = self._find(name).latest
        assert latest is not None
        return latest[2]

    @property
    def most_recent_values(self) -> dict[str, int | float]:
        """The value of every metric that was logged last."""
        return {name: self.most_recent(name) for name in self.names}

    def timeseries(self, name: str) -> "dict[str, np.ndarray[Any, Any]]":
        """All values of a metric, in the order of their log calls.

        Args:
            name: The metric.

        Returns:
            Four arrays of shape ``(N,)``: ``"value"`` and ``"step"`` (integers if all of them are, else floats, a
            missing step as NaN), ``"timestamp"`` (``datetime64[ns]``, UTC), and ``"epoch"`` (as the step).

        Raises:
            KeyError: If there is no such metric.

        >>> run = MemoryRun()
        >>> run.add(Record(1_000, "metric", step=0, data={"loss": 0.5}))
        >>> run.add(Record(2_000, "metric", step=1, data={"loss": 0.25}))
        >>> run.timeseries("loss")["value"], run.timeseries("loss")["step"]
        (array([0.5 , 0.25]), array([0, 1]))
        """
        import numpy as np

        points = sorted(self.points(name), key=lambda point: point[0])
        return {
            "value": _array([value for _, _, value, _ in points]),
            "step": _array([step for _, step, _, _ in points]),
            "timestamp": np.array([time_ns for time_ns, _, _, _ in points], dtype="datetime64[ns]"),
            "epoch": _array([epoch for _, _, _, epoch in points]),
        }

    def values_of(self, kind: Kind, identifier: str) -> list[Any]:
        """The values of all records of a kind (texts, dictionaries) with an identifier, in order."""
        return [record.value for record in list(self.records) if record.kind == kind and record.id == identifier]

    def add(self, record: Record, files: Sequence[Path] = ()) -> None:
        """Hold a record, unless it is held already."""
        if record.kind == Kind.METRIC:
            for key, value in (record.data or {}).items():
                number = as_number(value)
                if number is not None:
                    series = self._series.get(key)
                    if series is None:
                        series = _Series()
                        series.add((record.time_ns, record.step, number, record.epoch))
                        self._series[key] = series  # only now, so that a reader never finds it empty
                    else:
                        series.add((record.time_ns, record.step, number, record.epoch))
        elif record.kind == Kind.PARAM:
            self.hyperparams.update(record.data or {})
        else:
            identity = (record.time_ns, record.kind, record.id, record.step)
            if identity not in self._known:
                self._known.add(identity)
                self.records.append(record)
                if files:
                    self.files.setdefault(record.id or "", []).extend(files)

    def _find(self, name: str) -> _Series:
        try:
            return self._series[name]
        except KeyError:
            raise KeyError(f"no metric {name!r} was logged; there are {', '.join(map(repr, self.names))}") from None


def _array(values: list[Any]) -> "np.ndarray[Any, Any]":
    import numpy as np

    if all(isinstance(value, int) for value in values):
        return np.array(values, dtype=np.int64)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


_runs: "weakref.WeakValueDictionary[str, MemoryRun]" = weakref.WeakValueDictionary()
_lock = threading.Lock()


def memory_of(run_dir: Path) -> MemoryRun:
    """This process's memory of the run in a folder; it lasts as long as somebody holds it."""
    key = os.path.realpath(run_dir)
    with _lock:
        run = _runs.get(key)
        if run is None:
            run = _runs[key] = MemoryRun()
        return run


def _new_lock_in_child() -> None:
    global _lock  # noqa: PLW0603 - the parent's delivery thread may have held it
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_new_lock_in_child)


class MemoryAdapter(Adapter):
    """Keeps every record in this process.

    Guarantees:
        - A record that is sent twice is held once.
        - A batch that is refused (a file of it is missing) has left nothing behind.
        - When another process continues a run, it first learns from the journal what was delivered before.
    """

    name = "memory"
    max_key_length = 2**31
    capabilities: ClassVar[Capabilities] = Capabilities(
        kinds={kind: "as it was logged" for kind in Kind if kind is not Kind.STATUS},
        keeps_time=True,
        deduplicates=True,
        second_handle=False,
        integer_steps=False,
    )

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.run: MemoryRun | None = None

    @staticmethod
    @override
    def fit_key(key: str) -> str:
        """Every key is taken as it is."""
        return key

    @override
    def open(self) -> None:
        self.run = memory_of(self.context.run_dir)
        if self.run.uid != self.context.run.uid:
            self.run.forget(self.context.run.uid)  # another run had this folder before
        earlier, self.context.remote.id = self.context.remote.id, self.context.run.uid
        if earlier is not None and not self.run.opened:
            for record in read(self.context.run_dir):
                with contextlib.suppress(OSError, ValueError):  # what was refused before is refused again
                    if record.kind == Kind.STATUS:
                        self.run.status = RunStatus(str(record.value))
                    else:
                        self.run.add(*self._whole(record))
        self.run.status = self.run.status or RunStatus.RUNNING
        self.run.opened = True

    @override
    def send(self, records: Sequence[Record]) -> None:
        run = self._opened()
        for record, files in [self._whole(record) for record in records]:
            run.add(record, files)

    def _whole(self, record: Record) -> tuple[Record, list[Path]]:
        """The record with a value that was too long for the journal's line put back, and where its files are."""
        files = [self.context.blobs.locate(blob) for blob in record.blobs or []]
        if record.kind not in IN_LINE or record.value is not None or not files:
            return record, files
        return msgspec.structs.replace(record, value=json.loads(files[0].read_bytes()), blobs=None), []

    @override
    def set_status(self, status: RunStatus) -> None:
        self._opened().status = status

    def _opened(self) -> MemoryRun:
        if self.run is None:
            self.open()
        assert self.run is not None
        return self.run

    @override
    def classify(self, error: Exception) -> Fault:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, FileNotFoundError | ValueError):
            return Fault(FaultKind.REJECTED, reason)
        return Fault(FaultKind.TRANSIENT if isinstance(error, OSError) else FaultKind.BUG, reason)

    @override
    def close(self) -> None:
        self.run = None
