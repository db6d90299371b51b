"""Whose turn it is where several runs are delivered to one host: the threads of ``lightning-loggers sync``."""

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from typing_extensions import override

from lightning_loggers.adapters.base import FaultKind
from lightning_loggers.delivery.backoff import Backoff
from lightning_loggers.delivery.discover import Target
from lightning_loggers.delivery.pending import ends_of
from lightning_loggers.delivery.worker import Step, StepKind, Worker
from lightning_loggers.journal.reader import Position
from lightning_loggers.notices import Notices
from lightning_loggers.secrets import mask

_TURN_S = 5.0
_TELL_OUTAGE_AFTER_S = 5.0
_BUSY_TRIES, _BUSY_RETRY_S = 3, 0.5
_MAX_OPEN = 16
_LONGEST_REASON = 400
_HOLD_WHILE_FAILING_S = 10.0
_BACKOFF = Backoff()

Tell = Callable[[str], object]


class _LaneNotices(Notices):
    """Leaves out what a :class:`Lane` says itself, in words that fit where no training runs."""

    @override
    def tell_once(self, cause: Any, message: str, **kwargs: Any) -> bool:
        what = cause[1] if isinstance(cause, tuple) and len(cause) == 2 else None
        if what in {"journal", "step"} or (isinstance(what, tuple) and what and isinstance(what[0], FaultKind)):
            return False
        return super().tell_once(cause, message, **kwargs)


@dataclass(frozen=True, slots=True)
class Orders:
    """What all lanes go by.

    Attributes:
        follow: Whether runs are watched for what is written meanwhile.
        every_s: How often, with ``follow``.
        give_up_after_s: Without ``follow``: how long a place may fail without any progress before it is left alone.
        tell: Says a sentence to the user.
        secrets: What no message may show; grows as runs are found.
        stopping: Ends the lanes once it is set.
        notices: Where faults of runs are told.
    """

    follow: bool
    every_s: float
    give_up_after_s: float
    tell: Tell
    secrets: set[str]
    stopping: threading.Event
    notices: Notices = field(default_factory=_LaneNotices)


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


@dataclass(slots=True)
class _Place:
    """How one destination behaves."""

    failures: int = 0
    failing_since: float | None = None
    next_at: float = 0.0
    reason: str = ""
    told: bool = False


class Lane(threading.Thread):
    """Serves the runs that go to one host, in turns.

    Args:
        orders: What it goes by.
    """

    def __init__(self, orders: Orders) -> None:
        super().__init__(name="lightning-loggers-sync", daemon=True)
        self.wake = threading.Event()
        self._orders = orders
        self._tasks: list[Task] = []
        self._places: dict[str, _Place] = {}

    def add(self, task: Task) -> None:
        """Have a run served, anew if it was served before; any thread may ask."""
        task.over, task.settled, task.next_at = False, False, 0.0
        if task not in self._tasks:
            self._tasks.append(task)
        self.wake.set()

    def begin(self) -> None:
        """Start, unless it has been."""
        if self.ident is None:
            self.start()

    @override
    def run(self) -> None:
        while not self._orders.stopping.is_set():
            task, wait_s = self._next()
            if task is not None:
                self._visit(task)
            elif wait_s is None and not self._orders.follow:
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
            if since is not None and not self._orders.follow:
                until = since + self._orders.give_up_after_s
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
            step = Step(StepKind.FAILED, 1.0, mask(f"{type(error).__name__}: {error}", self._orders.secrets))
        if step is None or self._orders.stopping.is_set():
            return
        now = time.monotonic()
        if step.kind is StepKind.IDLE:
            self._settle(task, now)
        elif step.kind is StepKind.BUSY:
            task.busy += 1
            task.reason = "another process delivers it now"
            task.next_at = now + (_BUSY_RETRY_S if not self._orders.follow else max(step.wait_s, self._orders.every_s))
            if task.busy >= _BUSY_TRIES and not self._orders.follow:
                self._leave(task)
        else:
            self._failed(task, step, now)

    def _deliver(self, task: Task) -> Step | None:
        """Deliver until there is nothing more, something fails, or others have waited long enough (then ``None``)."""
        if task.worker is None:
            task.worker = Worker(task.target.run_dir, task.target.options, notices=self._orders.notices)
        worker = task.worker
        turn_ends = time.monotonic() + _TURN_S
        while True:
            step = worker.step()
            if step.kind is StepKind.IDLE:
                step = worker.finish_dead()
                if step.kind is StepKind.PROGRESS:
                    self._orders.tell(f"{task.target.label}: its process died without a word; closed as failed")
            if step.kind is not StepKind.PROGRESS:
                return step
            self._progressed(task)
            if self._orders.stopping.is_set():
                return None
            # A follower comes back for what a live run logs meanwhile; anybody else does what there was at the start.
            for_now = bool(step.wait_s) if self._orders.follow else worker.caught_up(task.snapshot)
            if for_now and worker.writer_alive():
                return Step(StepKind.IDLE)
            if time.monotonic() >= turn_ends and self._others_wait(task):
                self._close_some(task)
                return None

    def _progressed(self, task: Task) -> None:
        place = self._place(task)
        if place.told:
            self._orders.tell(f"{task.target.destination} takes records again")
        place.failures, place.failing_since, place.next_at, place.told = 0, None, 0.0, False
        task.failures, task.failing_since, task.reason, task.busy = 0, None, "", 0

    def _settle(self, task: Task, now: float) -> None:
        """Everything is delivered for now."""
        task.settled, task.failing_since, task.reason = True, None, ""
        if self._orders.follow and task.target.writer_alive():
            task.next_at = now + self._orders.every_s
            self._close_some(task)
        else:
            self._leave(task)

    def _failed(self, task: Task, step: Step, now: float) -> None:
        place = self._place(task)
        fault = task.worker.last_fault if task.worker is not None else None
        task.reason = place.reason = _short(step.reason)
        for_good = fault is None or fault.kind is FaultKind.AUTHENTICATION
        if for_good and not self._orders.follow:
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
            rest = "" if self._orders.follow else f" (for up to {self._orders.give_up_after_s:g} s)"
            self._orders.tell(
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


def _short(reason: str) -> str:
    """An SDK's message without its thirty lines."""
    line = " ".join(reason.split())
    return (
        line if len(line) <= _LONGEST_REASON else f"{line[: _LONGEST_REASON // 2]} ... {line[-_LONGEST_REASON // 2 :]}"
    )
