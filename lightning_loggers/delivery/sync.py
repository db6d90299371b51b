"""The third host of delivery, beside the thread and the child process: the loop behind ``lightning-loggers sync``.

Every place that records go to has a lane, a thread of its own, so that one that is down or never answers holds up
nobody else. (Stores without a host in their address, such as SQLite files, share one: they answer or fail at once.)
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from typing_extensions import override

from lightning_loggers.adapters.base import FaultKind
from lightning_loggers.adapters.registry import KNOWN, adapter_class, require_sdk
from lightning_loggers.delivery.backoff import Backoff
from lightning_loggers.delivery.discover import Target, find_runs, resolve
from lightning_loggers.delivery.overview import Overview, look
from lightning_loggers.delivery.pending import ends_of, remaining_bytes
from lightning_loggers.delivery.worker import Step, StepKind, Worker
from lightning_loggers.errors import ConfigurationError, LightningLoggersError
from lightning_loggers.journal.reader import Position
from lightning_loggers.notices import Notices
from lightning_loggers.secrets import mask, secrets_of_uri

_TURN_S = 5.0
_TELL_OUTAGE_AFTER_S = 5.0
_BUSY_TRIES, _BUSY_RETRY_S = 3, 0.5
_MAX_OPEN = 16
_LONGEST_REASON = 400
_HOLD_WHILE_FAILING_S = 10.0
_BACKOFF = Backoff()
_POLL_S = 0.1
_GRACE_S = 2.0

Tell = Callable[[str], object]


class _SyncNotices(Notices):
    """Leaves out what :class:`Sync` says itself, in words that fit where no training runs."""

    @override
    def tell_once(self, cause: Any, message: str, **kwargs: Any) -> bool:
        what = cause[1] if isinstance(cause, tuple) and len(cause) == 2 else None
        if what in {"journal", "step"} or (isinstance(what, tuple) and what and isinstance(what[0], FaultKind)):
            return False
        return super().tell_once(cause, message, **kwargs)


@dataclass(slots=True, eq=False)
class Task:
    """One run to deliver.

    Attributes:
        target: The run and its place.
        worker: Delivers it; holds the run's lock while it exists.
        delivered_before: Records that had arrived when we came.
        remaining: Bytes that were not delivered when that was last looked at.
        snapshot: Ends of the streams when we came; a live run is delivered up to there, without ``follow``.
        seen: Ends of the streams at the last visit.
        next_at: When the next visit makes sense (monotonic seconds).
        failures: Visits in a row that failed.
        failing_since: Since when every visit failed.
        busy: How often another process was delivering.
        reason: Why it is not delivered.
        settled: Whether everything was delivered that was there.
        over: Whether no more visits are wanted for now.
    """

    target: Target
    delivered_before: int
    remaining: int
    snapshot: dict[str, Position]
    worker: Worker | None = None
    seen: dict[str, Position] = field(default_factory=dict)
    next_at: float = 0.0
    failures: int = 0
    failing_since: float | None = None
    busy: int = 0
    reason: str = ""
    settled: bool = False
    over: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run stands after :meth:`Sync.run`.

    Attributes:
        run_dir: The run's folder.
        label: Its name and version.
        delivered: Records delivered by us.
        rejected: Records that the tracker refuses, from all times.
        pending: Whether anything has still to go to the tracker.
        reason: Why, or what else is worth saying.
    """

    run_dir: Path
    label: str
    delivered: int = 0
    rejected: int = 0
    pending: bool = False
    reason: str = ""


@dataclass(slots=True)
class _Place:
    """How one destination behaves."""

    failures: int = 0
    failing_since: float | None = None
    next_at: float = 0.0
    reason: str = ""
    told: bool = False


class Sync:
    """Delivers every run below some folders.

    Args:
        paths: Folders of runs, or anything above them.
        to: Another address than the journals' own.
        follow: Keep watching for new records and new runs until :attr:`stopping` is set.
        every_s: How often it looks, with ``follow``.
        give_up_after_s: Without ``follow``: how long a place may fail without any progress before it is left alone.
        tell: Says a sentence to the user.

    Guarantees:
        - Nothing is lost and the journal is never changed, wherever this process is killed: the worker's cursors move
          over what was acknowledged, and the kernel gives its locks back.
        - A run that a live process delivers is left to it. Of a live writer's files, only journals are read.
        - A place that does not answer, a damaged journal, or a missing SDK holds up no other run.

    Raises:
        ConfigurationError: If no tracker can be reached at ``to``, or a path does not exist.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        to: str | None = None,
        follow: bool = False,
        every_s: float = 2.0,
        give_up_after_s: float = 60.0,
        tell: Tell = lambda message: None,
    ) -> None:
        for path in paths:
            if not path.exists():
                raise ConfigurationError(f"{path} does not exist; give a run's folder or any folder above runs.")
        if to is not None:
            to = _absolute(to)
            _check_address(to)
        self.follow, self.every_s, self.give_up_after_s = follow, every_s, give_up_after_s
        self.stopping = threading.Event()
        self.secrets: set[str] = set(secrets_of_uri(to)) if to else set()
        self.problems: dict[Path, str] = {}
        self.found = 0
        self._paths, self._to = list(paths), to
        self._tell = tell
        self.notices = _SyncNotices()
        self._tasks: dict[Path, Task] = {}
        self._lanes: dict[tuple[str, str, str], _Lane] = {}

    def tell(self, message: str) -> None:
        """Say a sentence to the user, secrets masked."""
        self._tell(mask(message, self.secrets))

    def run(self, on_poll: Callable[["Sync"], object] = lambda sync: None) -> list[Outcome]:
        """Deliver until all is done or given up, or with ``follow`` until :attr:`stopping` is set.

        Args:
            on_poll: Called some times a second in the calling thread, e.g. to move a progress bar.

        Returns:
            What became of every run that had something to deliver; empty if it was stopped.
        """
        self._scan()
        next_scan = time.monotonic() + self.every_s
        while not self.stopping.wait(_POLL_S):
            on_poll(self)
            if self.follow and time.monotonic() >= next_scan:
                begun = time.monotonic()
                self._scan()
                # A tree that takes long to walk is walked less often: the file system is other people's too.
                next_scan = time.monotonic() + max(self.every_s, 10 * (time.monotonic() - begun))
            if not self.follow and not self.is_busy():
                on_poll(self)
                return [self._outcome(task) for task in self._tasks.values()]
        self._stop()
        return []

    def plan(self) -> list[Overview]:
        """What :meth:`run` would deliver. Nothing on disk is touched."""
        planned = []
        for run_dir, target in self._targets():
            try:
                seen = look(target, pending_only=True)
            except Exception as error:  # noqa: BLE001 - seam, as in _targets
                self._problem(run_dir, _said(error))
                continue
            if seen.pending or seen.tracker_needs_status:
                planned.append(seen)
        return planned

    def is_busy(self) -> bool:
        """Whether a request is still under way."""
        return any(lane.is_alive() for lane in self._lanes.values())

    def remaining_bytes(self) -> int:
        """Bytes of journals that are not delivered yet."""
        total = 0
        for task in list(self._tasks.values()):
            worker = task.worker
            state = worker.state if worker is not None else None
            if state is not None:
                task.remaining = remaining_bytes(task.target.folder, dict(state.cursors))
            total += 0 if task.over else task.remaining
        return total

    # ---------------------------------------------------------------- finding

    def _targets(self) -> Iterable[tuple[Path, Target]]:
        found: set[Path] = set()
        for root in self._paths:
            for run_dir in find_runs(root, self._problem):
                real = run_dir.resolve()
                if real in found:
                    continue
                found.add(real)
                try:
                    target = resolve(run_dir, self._to)
                except Exception as error:  # noqa: BLE001 - seam: one damaged folder must not stop all others
                    self._problem(run_dir, _said(error))
                    continue
                if target is not None:
                    self.secrets |= target.secrets
                    yield run_dir, target
        self.found = len(found)

    def _scan(self) -> None:
        for run_dir, target in self._targets():
            if self.stopping.is_set():
                return
            known = self._tasks.get(run_dir)
            ends = ends_of(target.folder)
            if known is not None:
                if known.over and known.seen != ends:
                    self._lane(target).add(known)
                continue
            try:
                state = target.load_state()
                remaining = remaining_bytes(target.folder, state.cursors)
                if not remaining and not target.needs_closing(state):
                    continue
                require_sdk(target.tracker, "lightning-loggers sync")
            except Exception as error:  # noqa: BLE001 - seam, as in _targets
                self._problem(run_dir, _said(error))
                continue
            if self.follow:
                self.tell(f"{target.label}: delivering {run_dir} to {target.destination}")
            task = self._tasks[run_dir] = Task(target, state.delivered, remaining, ends)
            self._lane(target).add(task)
        for lane in self._lanes.values():
            lane.begin()

    def _lane(self, target: Target) -> "_Lane":
        try:
            parts = urlsplit(target.destination)
            key = (target.tracker, parts.scheme, parts.netloc)
        except ValueError:
            key = (target.tracker, target.destination, "")
        if key not in self._lanes:
            self._lanes[key] = _Lane(self)
        return self._lanes[key]

    def _problem(self, path: Path, reason: str) -> None:
        reason = mask(reason, self.secrets)
        if self.problems.get(path) != reason:
            self.problems[path] = reason
            self.tell(f"{path} was left as it is: {reason}")

    # ---------------------------------------------------------------- ending

    def _outcome(self, task: Task) -> Outcome:
        target = task.target
        try:
            seen = look(target, pending_only=True)
        except Exception as error:  # noqa: BLE001 - seam, as in _targets
            return Outcome(target.run_dir, target.label, pending=True, reason=_said(error))
        pending = bool(seen.pending or seen.tracker_needs_status) and not (task.settled and seen.writer_alive)
        reason = ""
        if pending:
            left = "its process wrote more meanwhile" if seen.pending else "it could not be closed"
            what = f"{seen.pending} records are pending" if seen.pending else "the tracker has yet to be told its end"
            reason = f"{what}: {task.reason or left}"
        elif task.settled and seen.writer_alive:
            reason = "is still being written; what it had recorded is delivered"
        elif task.reason:
            reason = task.reason
        delivered = max(seen.delivered - task.delivered_before, 0)
        return Outcome(target.run_dir, target.label, delivered, seen.rejected, pending, reason)

    def _stop(self) -> None:
        for task in list(self._tasks.values()):
            if (worker := task.worker) is not None:
                worker.stopping.set()
        for lane in self._lanes.values():
            lane.wake.set()
        deadline = time.monotonic() + _GRACE_S
        for lane in self._lanes.values():
            if lane.is_alive():
                lane.join(max(deadline - time.monotonic(), 0.0))


class _Lane(threading.Thread):
    """Serves the runs that go to one host, in turns."""

    def __init__(self, sync: Sync) -> None:
        super().__init__(name="lightning-loggers-sync", daemon=True)
        self.wake = threading.Event()
        self._sync = sync
        self._tasks: list[Task] = []
        self._places: dict[str, _Place] = {}

    def add(self, task: Task) -> None:
        task.over, task.settled, task.next_at = False, False, 0.0
        if task not in self._tasks:
            self._tasks.append(task)
        self.wake.set()

    def begin(self) -> None:
        if self.ident is None:
            self.start()

    @override
    def run(self) -> None:
        while not self._sync.stopping.is_set():
            task, wait_s = self._next()
            if task is not None:
                self._visit(task)
            elif wait_s is None and not self._sync.follow:
                break
            else:
                self.wake.wait(wait_s)
                self.wake.clear()
        for task in self._tasks:
            self._close(task)

    # ---------------------------------------------------------------- whose turn it is

    def _place(self, task: Task) -> _Place:
        return self._places.setdefault(task.target.destination, _Place())

    def _next(self) -> tuple[Task | None, float | None]:
        """The task whose turn it is, or how long to wait for one; neither if there is nothing left."""
        now = time.monotonic()
        soonest: float | None = None
        for task in list(self._tasks):
            if task.over:
                continue
            place = self._place(task)
            at = max(task.next_at, place.next_at)
            since = task.failing_since if task.failing_since is not None else place.failing_since
            if since is not None and not self._sync.follow:
                until = since + self._sync.give_up_after_s
                if now >= until:
                    task.reason = task.reason or place.reason
                    self._leave(task)
                    continue
                at = min(at, until)
            if at <= now:
                self._tasks.remove(task)
                self._tasks.append(task)
                return task, 0.0
            soonest = at if soonest is None else min(soonest, at)
        return None, None if soonest is None else max(soonest - now, 0.01)

    def _others_wait(self, task: Task) -> bool:
        return any(not other.over for other in self._tasks if other is not task)

    # ---------------------------------------------------------------- one turn

    def _visit(self, task: Task) -> None:
        task.seen = ends_of(task.target.folder)
        try:
            step = self._deliver(task)
        except Exception as error:  # noqa: BLE001 - seam: what one run does must not end its neighbours' delivery
            step = Step(StepKind.FAILED, 1.0, mask(f"{type(error).__name__}: {error}", self._sync.secrets))
        if step is None or self._sync.stopping.is_set():
            return
        now = time.monotonic()
        if step.kind is StepKind.IDLE:
            self._settle(task, now)
        elif step.kind is StepKind.BUSY:
            task.busy += 1
            task.reason = "another process delivers it now"
            task.next_at = now + (_BUSY_RETRY_S if not self._sync.follow else max(step.wait_s, self._sync.every_s))
            if task.busy >= _BUSY_TRIES and not self._sync.follow:
                self._leave(task)
        else:
            self._failed(task, step, now)

    def _deliver(self, task: Task) -> Step | None:
        """Deliver until there is nothing more, something fails, or others have waited long enough (then ``None``)."""
        if task.worker is None:
            task.worker = Worker(task.target.run_dir, task.target.options, notices=self._sync.notices)
        worker = task.worker
        turn_ends = time.monotonic() + _TURN_S
        while True:
            step = worker.step()
            if step.kind is StepKind.IDLE:
                step = worker.finish_dead()
                if step.kind is StepKind.PROGRESS:
                    self._sync.tell(f"{task.target.label}: its process died without a word; closed as failed")
            if step.kind is not StepKind.PROGRESS:
                return step
            self._progressed(task)
            if self._sync.stopping.is_set():
                return None
            # A follower comes back for what a live run logs meanwhile; anybody else does what there was at the start.
            for_now = bool(step.wait_s) if self._sync.follow else worker.caught_up(task.snapshot)
            if for_now and worker.writer_alive():
                return Step(StepKind.IDLE)
            if time.monotonic() >= turn_ends and self._others_wait(task):
                self._close_some(task)
                return None

    def _progressed(self, task: Task) -> None:
        place = self._place(task)
        if place.told:
            self._sync.tell(f"{task.target.destination} takes records again")
        place.failures, place.failing_since, place.next_at, place.told = 0, None, 0.0, False
        task.failures, task.failing_since, task.reason, task.busy = 0, None, "", 0

    def _settle(self, task: Task, now: float) -> None:
        """Everything is delivered for now."""
        task.settled, task.failing_since, task.reason = True, None, ""
        if self._sync.follow and task.target.writer_alive():
            task.next_at = now + self._sync.every_s
            self._close_some(task)
        else:
            self._leave(task)

    def _failed(self, task: Task, step: Step, now: float) -> None:
        place = self._place(task)
        fault = task.worker.last_fault if task.worker is not None else None
        task.reason = place.reason = _short(step.reason)
        for_good = fault is None or fault.kind is FaultKind.AUTHENTICATION
        if for_good and not self._sync.follow:
            self._leave(task)  # no waiting mends credentials, or a journal
            return
        task.failures += 1
        retry_after_s = fault.retry_after_s if fault is not None else None
        task.next_at = now + max(_BACKOFF.wait_s(task.failures, retry_after_s=retry_after_s), step.wait_s * for_good)
        task.failing_since = now if task.failing_since is None else task.failing_since
        if now - task.failing_since >= _HOLD_WHILE_FAILING_S:
            self._close(task)  # another host may reach the tracker where this one does not
        place.failing_since = now if place.failing_since is None else place.failing_since
        place.failures += 1
        if place.failures > 1:  # not this run's own trouble: one at a time asks whether the place is back
            place.next_at = task.next_at
        if not place.told and (for_good or now - place.failing_since >= _TELL_OUTAGE_AFTER_S):
            place.told = True
            rest = "" if self._sync.follow else f" (for up to {self._sync.give_up_after_s:g} s)"
            self._sync.tell(
                f"{task.target.destination} does not take records now, it is tried again{rest}: {task.reason}"
            )

    def _leave(self, task: Task) -> None:
        task.over = True
        self._close(task)

    def _close_some(self, task: Task) -> None:
        if sum(other.worker is not None for other in self._tasks) > _MAX_OPEN:
            self._close(task)

    @staticmethod
    def _close(task: Task) -> None:
        worker, task.worker = task.worker, None
        if worker is not None:
            with contextlib.suppress(Exception):
                worker.close()


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, LightningLoggersError) else f"{type(error).__name__}: {error}"


def _short(reason: str) -> str:
    """An SDK's message without its thirty lines."""
    line = " ".join(reason.split())
    return (
        line if len(line) <= _LONGEST_REASON else f"{line[: _LONGEST_REASON // 2]} ... {line[-_LONGEST_REASON // 2 :]}"
    )


def _absolute(to: str) -> str:
    """An SQLite file named from here must be the same file when somebody comes back from elsewhere.

    >>> _absolute("sqlite:////runs/mlflow.db"), _absolute("http://host"), _absolute("sqlite:///x.db") == "sqlite:///x.db"
    ('sqlite:////runs/mlflow.db', 'http://host', False)
    """
    path = to.removeprefix("sqlite:///")
    return to if path in {to, ""} or path.startswith(("/", ":")) else f"sqlite:///{Path(path).absolute()}"


def _check_address(to: str) -> None:
    """Refuse an address that no adapter takes."""
    refusal: ConfigurationError | None = None
    for name in KNOWN:
        kind = adapter_class(name)
        if kind.address_option is None:
            continue
        try:
            kind.check_options({kind.address_option: to})
        except ConfigurationError as error:
            refusal = refusal or error
        else:
            return
    if refusal is not None:
        raise refusal
