"""A run as the conformance suite drives it: a real journal, delivered by the real worker."""

import math
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import override

from lightning_loggers.adapters.base import Adapter, Context, RemoteRun
from lightning_loggers.adapters.fitting import KeyMap
from lightning_loggers.adapters.registry import adapter_class
from lightning_loggers.delivery.backoff import Backoff
from lightning_loggers.delivery.pending import pending_of
from lightning_loggers.delivery.state import StateFile, TrackerState
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.journal.blobs import BlobStore
from lightning_loggers.journal.layout import BLOBS_FOLDER, journal_dir
from lightning_loggers.journal.reader import read_first_header
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.notices import Notices
from lightning_loggers.records import Kind, Record, RunSpec, RunStatus, split_nonfinite
from lightning_loggers.secrets import strip_uri
from lightning_loggers.values.metrics import normalise

_LOGGED_EVERY_NS = 1_000_000
"""Between two log calls: what a tracker that counts milliseconds can tell apart."""


class Point(NamedTuple):
    """One value of a metric.

    Attributes:
        key: The metric.
        value: Its value.
        step: Its step; ``None`` where there is none.
        time_s: When it was logged, seconds since the epoch; ``None`` where the tracker does not say.
    """

    key: str
    value: float
    step: int | float | None
    time_s: float | None


class _Heard(Notices):
    """Notices that can be read again."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    @override
    def tell_once(self, cause: Hashable, message: str, *, level: int = 30) -> bool:
        told = super().tell_once(cause, message, level=level)
        if told:
            self.messages.append(message)
        return told


class RunUnderTest:
    """Writes one run's journal and delivers it; what was logged is kept for comparison.

    Args:
        folder: Where to put the journal.
        tracker: The adapter's name.
        options: The tracker's options.
        make_adapter: Makes the adapter, if not the registry's.
    """

    def __init__(
        self,
        folder: Path,
        tracker: str,
        options: Mapping[str, Any] | None = None,
        make_adapter: Callable[[Context], Adapter] | None = None,
    ) -> None:
        self.tracker = tracker
        self.options = dict(options or {})
        self.make_adapter = make_adapter
        self.run_dir = folder / "conformance" / "run"
        self.folder = journal_dir(self.run_dir)
        self.notices = _Heard()
        self.logged: list[Point] = []
        """Every point, as it was logged."""
        public = {key: strip_uri(value) if isinstance(value, str) else value for key, value in self.options.items()}
        self.writer = JournalWriter(
            self.folder,
            RunSpec(f"{time.time_ns():032x}", "conformance", "run", tracker, public),
            normalise_metrics=lambda metrics: normalise(metrics, self.notices.tell_once),
            notices=self.notices,
        )
        self._time_ns = (time.time_ns() // _LOGGED_EVERY_NS - 3_600_000) * _LOGGED_EVERY_NS  # an hour ago

    # ------------------------------------------------------------------ logging

    def log_metrics(self, metrics: Mapping[str, float], step: int | float | None = None) -> None:
        """Log metrics, a millisecond after the last log call."""
        data = dict(metrics)
        record = self.log(Record(0, Kind.METRIC.value, step, data, split_nonfinite(data)))
        self.logged.extend(Point(key, value, step, record.time_ns / 1e9) for key, value in data.items())

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log hyperparameters (JSON's scalars)."""
        data = dict(params)
        self.log(Record(0, Kind.PARAM.value, data=data, nonfinite=split_nonfinite(data)))

    def log_text(self, identifier: str, text: str, step: int | None = None) -> None:
        """Log a text."""
        self.log(Record(0, Kind.TEXT.value, step, id=identifier, value=text))

    def log_dict(self, identifier: str, value: Any, step: int | None = None) -> None:
        """Log what JSON can say."""
        self.log(Record(0, Kind.DICT.value, step, id=identifier, value=value))

    def log_file(self, path: Path, identifier: str, kind: Kind = Kind.ARTIFACT, **fields: Any) -> None:
        """Log a file."""
        self.log(Record(0, kind.value, id=identifier, blobs=[self.writer.blobs.link_file(path)], **fields))

    def log_status(self, status: RunStatus) -> None:
        """Note a status, as ``finalize`` does."""
        self.log(Record(0, Kind.STATUS.value, value=status.value))

    def log(self, record: Record) -> Record:
        """Append a record, stamped with the run's own clock."""
        self._time_ns += _LOGGED_EVERY_NS
        record.time_ns = self._time_ns
        self.writer.append(record)
        return record

    # ------------------------------------------------------------------ delivery

    def worker(self) -> Worker:
        """A new host's worker for this run. Close it."""
        return Worker(
            self.run_dir,
            self.options,
            notices=self.notices,
            backoff=Backoff(initial_s=0.001, maximum_s=0.01),
            make_adapter=self.make_adapter,
        )

    def deliver(self, timeout_s: float = 120.0, *, faults: int = 0) -> TrackerState:
        """Deliver everything, as a new host does.

        Args:
            timeout_s: Longest time to try, seconds.
            faults: How many attempts may fail.

        Returns:
            The tracker's state afterwards.

        Raises:
            AssertionError: If more attempts failed, or time ran out.
        """
        self.writer.flush()
        deadline = time.monotonic() + timeout_s
        worker = self.worker()
        try:
            while (step := worker.step()).kind is not StepKind.IDLE:
                if step.kind is not StepKind.PROGRESS:
                    faults -= 1
                    if faults < 0:
                        raise AssertionError(f"delivery failed: {step.reason}")
                    time.sleep(min(step.wait_s, 0.01))
                if time.monotonic() > deadline:
                    raise AssertionError(f"not delivered within {timeout_s:g} s")
        finally:
            worker.close()
        return self.state

    @property
    def state(self) -> TrackerState:
        """What the last host left on disk."""
        return StateFile(self.folder, self.tracker).load(self.tracker)

    @property
    def remote(self) -> RemoteRun:
        """The tracker's side of the run."""
        return self.state.remote

    @property
    def keys(self) -> dict[str, str]:
        """Which key each of the tracker's names stands for, where they differ."""
        known = StateFile(self.folder, self.tracker).load_keys()
        return {name: key for key, name in known.items() if name != key}

    @property
    def pending(self) -> int:
        """Records that are not delivered."""
        return pending_of(self.run_dir, self.state)[0]

    def remember(self) -> Path:
        """Keep the state as it is now, for :meth:`forget`."""
        kept = self.run_dir / f"kept-{time.monotonic_ns()}"
        kept.mkdir()
        for path in self.folder.glob(f"{self.tracker}.*.json"):
            shutil.copyfile(path, kept / path.name)
        return kept

    def forget(self, kept: Path) -> None:
        """Put a state back: what a host that died left on disk, if it had not saved since."""
        for path in kept.iterdir():
            shutil.copyfile(path, self.folder / path.name)

    def damage_state(self) -> None:
        """Make the saved state unreadable, as a failing disk does."""
        StateFile(self.folder, self.tracker).path.write_bytes(b"\0" * 64)

    def context(self) -> Context:
        """What an adapter is given, for calls without a worker."""
        self.writer.flush()
        header = read_first_header(self.folder)
        assert header is not None, "log something first"
        kind = adapter_class(self.tracker)
        return Context(
            run=header.run,
            header=header,
            remote=RemoteRun(),
            blobs=BlobStore(self.folder / BLOBS_FOLDER),
            keys=KeyMap(kind.fit_key, kind.max_key_length),
            notices=self.notices,
            run_dir=self.run_dir,
            options=dict(self.options),
        )

    def adopt(self, context: Context) -> None:
        """Save what an adapter made of its context, as a worker does."""
        file = StateFile(self.folder, self.tracker)
        file.save(TrackerState(self.tracker, remote=context.remote))
        file.save_keys(context.keys.names)

    def close(self) -> None:
        """Let go of the journal."""
        self.writer.close()


def differences(expected: Iterable[Point], shown: Iterable[Point], tolerance_s: float | None) -> list[str]:
    """What is missing and what is too much, in words; the order of points does not matter.

    Args:
        expected: Points as they should be.
        shown: Points as they are.
        tolerance_s: How far times may be apart, seconds; ``None`` if times do not matter.

    >>> differences([Point("a", 1.0, 0, 5.0)], [Point("a", 1.0, 0, 5.001)], 0.01)
    []
    >>> differences([Point("a", 1.0, 0, 5.0)], [Point("a", 1.0, 1, 5.0)], None)
    ["missing: 'a' = 1.0 at step 0", "too much: 'a' = 1.0 at step 1"]
    """
    wanted, found = _times(expected), _times(shown)
    problems = []
    for key, value, step in dict.fromkeys([*wanted, *found]):
        want, got = wanted.get((key, value, step), []), found.get((key, value, step), [])
        what = f"{key[:60]!r} = {value} at step {step}"
        if len(want) != len(got):
            times = f", {abs(len(want) - len(got))} times" if abs(len(want) - len(got)) > 1 else ""
            problems.append(f"{'missing' if len(want) > len(got) else 'too much'}: {what}{times}")
        elif tolerance_s is not None:
            late = [
                (a, b) for a, b in zip(want, got, strict=True) if b is None or a is None or abs(a - b) > tolerance_s
            ]
            problems.extend(f"wrong time: {what} was logged at {a}, shown at {b}" for a, b in late)
    return problems


def _times(points: Iterable[Point]) -> dict[tuple[str, str, Any], list[float | None]]:
    """Times by all the rest; NaN is equal to itself here, and 0.0 to -0.0."""
    times: dict[tuple[str, str, Any], list[float | None]] = defaultdict(list)
    for key, value, step, time_s in points:
        number = "nan" if math.isnan(value) else repr(float(value) + 0.0)
        times[key, number, step].append(time_s)
    for group in times.values():
        group.sort(key=lambda time_s: math.inf if time_s is None else time_s)
    return times
