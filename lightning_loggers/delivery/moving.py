"""Delivery by a thread or a process of its own, whichever takes less of training's time.

A thread computes with the interpreter that training needs. To import a large SDK there makes the first seconds of a
training last twice as long; so where the SDK is not imported yet, a child process imports it, and delivers. A process
that has it already, as one that makes many runs, delivers by its thread. That takes one part in a hundred of the
interpreter then, but ten where a store computes in Python for each point: what the thread computes is measured, and
paid from an allowance. Once that is used up, the thread stops and a child process goes on.

Whoever holds the run's lock delivers, from cursors that are on disk. The thread waits until the child is ready, then
for what it has to tell, and delivers itself if the child ends.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty
from typing import Any, get_args

from typing_extensions import override

from lightning_loggers.adapters.registry import adapter_class
from lightning_loggers.delivery import Delivery
from lightning_loggers.delivery.hosts import Host, Job, OfflineHost, ProcessHost, ThreadHost
from lightning_loggers.delivery.worker import Step, Worker

DELIVERY_MODES: tuple[str, ...] = get_args(Delivery)

SHARE = 0.02
"""What part of the time the thread may compute for good."""

AT_ONCE_S = 0.1
"""Processor time that it may use at once: some 12,000 points of a SQLite file, 30,000 of a server."""

READY_WITHIN_S = 300.0
"""How long the thread lets records wait for a child that imports the SDK."""

READY_WITHIN_HURRIED_S = 20.0
"""The same where somebody waits for their delivery."""

IDLE_S = 120.0
"""How long the child stays after the end of the run, which may be opened again, as by ``trainer.test``."""

_ENDS_WITHIN_S = 10.0
_LOOK_S = 5.0
_LOOK_FOR_CHILD_S = 0.05
_LONGEST_NOTICE_BYTES = 2**16

_has_begun = False
"""Whether a run of this process was begun by a child."""


class Allowance:
    """Processor time that may be spent: a share of the time that passes, and a sum that may be spent at once.

    This is the token bucket of network traffic shaping (RFC 2697 uses it).

    Args:
        share: Processor seconds a second.
        at_once_s: The sum, seconds.
        clock: Tells the time, seconds.

    >>> allowance = Allowance(0.1, 1.0, clock=iter([0.0, 1.0, 2.0, 12.0]).__next__)
    >>> allowance.pays_for(0.9), allowance.pays_for(0.3), allowance.pays_for(0.7)
    (True, False, True)
    """

    def __init__(self, share: float, at_once_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._share, self._at_once_s, self._clock = share, at_once_s, clock
        self._left_s, self._asked_at = at_once_s, clock()

    def pays_for(self, seconds: float) -> bool:
        """Spend; returns whether it was there. The sum does not become less than nothing."""
        now = self._clock()
        earned = (now - self._asked_at) * self._share
        self._asked_at = now
        left_s = min(self._left_s + earned, self._at_once_s) - seconds
        self._left_s = max(left_s, 0.0)
        return left_s >= 0


class MovingHost(ThreadHost):
    """A process of its own where the SDK would have to be imported here, or the thread takes more than its allowance.

    The second run of a process is begun by its thread: who makes many short ones would wait for a process each time.

    Guarantees:
        - What waits for the child is on disk. It waits :data:`READY_WITHIN_S` at most, then the thread delivers it, and
          so it does if the child ends or cannot be started.
        - Where the thread has opened the run it goes on while somebody waits for delivery or a batch fails, and always
          where several ranks log to the run.
        - What the child has to tell is told in this process, once.
        - As of :class:`~lightning_loggers.delivery.hosts.ProcessHost`, once moved: a killed trainer's tail is delivered
          and its run closed.
    """

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._allowance = Allowance(SHARE, AT_ONCE_S)
        self._child: _TellingChild | None = None
        self._moved = False
        self._begins = False
        # A frozen program would be started again in place of an interpreter.
        self._may_move = bool(sys.executable) and not getattr(sys, "frozen", False)

    @property
    def moved(self) -> bool:
        """Whether a process of its own delivers."""
        return self._moved

    @override
    def prepare(self) -> None:
        begins = self._begins if self._thread is not None else self._child_begins()
        if not begins:
            super().prepare()

    @override
    def start(self) -> None:
        global _has_begun  # noqa: PLW0603 - of the process, as its modules are
        if self._pid != os.getpid():  # forked: the child is the parent's
            self._child, self._moved, self._begins = None, False, False
        if self._thread is None and self._child_begins():
            _has_begun = self._begins = True
        super().start()

    @override
    def hasten(self, seconds: float) -> None:
        super().hasten(seconds)
        child = self._child
        if self._moved and child is not None:
            child.hasten(seconds)

    @override
    def relax(self) -> None:
        super().relax()
        child = self._child
        if self._moved and child is not None:
            child.relax()

    @override
    def stop(self) -> None:
        super().stop()
        self._stop_child()

    def _stop_child(self) -> None:
        child = self._child
        if child is not None:
            child.stop()

    @override
    def _turn(self, worker: Worker, take_step: Callable[[], Step]) -> Step:
        began, opened = time.thread_time(), worker.opened
        step = super()._turn(worker, take_step)
        if opened and not self._hurried():  # what every start costs is not what it costs to go on
            within, own = self._allowance.pays_for(time.thread_time() - began), self._worker
            if not within and self._may_move and self._child is None and own is not None and own.may_be_handed_over:
                self._begin_to_move()
        return step

    def _begin_to_move(self) -> None:
        try:
            self._child = _TellingChild(self.job)
        except OSError:  # no more files may be open
            self._may_move = False
        else:
            self._child.start()

    def _child_begins(self) -> bool:
        """Whether the run is to be begun by a child process, since nobody has imported the SDK here."""
        return self._may_move and not _has_begun and not adapter_class(self.job.tracker).is_loaded(self.job.options)

    @override
    def _goes_on(self, worker: Worker) -> bool:
        while not worker.stopping.is_set():
            child = self._child
            if child is None:
                return True
            if not child.working():
                self._stay(child)
                return True
            if worker.merges and worker.delivers:  # somebody could not wait for the child
                self._child, self._may_move = None, False
                child.let_go()
                return True
            in_use = worker.delivers and (not worker.may_be_handed_over or (worker.opened and self._hurried()))
            if child.is_ready() or in_use or child.age_s > self._child_may_take_s():
                return in_use or not child.is_ready()
            with suppress(Empty):
                self._wakes.get(timeout=_LOOK_FOR_CHILD_S)
        return False

    def _child_may_take_s(self) -> float:
        return READY_WITHIN_HURRIED_S if self._hurried() else READY_WITHIN_S

    @override
    def _deliver(self, worker: Worker) -> None:
        self._child, self._moved = None, False  # those of a run that was closed meanwhile end by themselves
        if self._begins and self._may_move:
            self._begin_to_move()
        while not worker.stopping.is_set():
            super()._deliver(worker)
            if not worker.stopping.is_set():
                self._guard(worker)
        if self._worker is worker:  # else a child is that of the next thread
            self._stop_child()  # it may have been begun while somebody stopped this

    def _guard(self, worker: Worker) -> None:
        """Let the child deliver until it ends."""
        child = self._child
        assert child is not None
        self._moved = True
        if worker.stopping.is_set():
            child.stop()
        child.hasten(max(self._hurried_until - time.monotonic(), 1.0))  # it has found the run taken, and waits
        for level, message in child.tells():
            self.job.notices.tell_once(("delivery process", message), message, level=level)
        if worker.stopping.is_set():
            return
        self._moved = False
        if child.ended_well():
            self._child, self._allowance = None, Allowance(SHARE, AT_ONCE_S)
        else:
            self._stay(child)

    def _stay(self, child: "_TellingChild") -> None:
        child.let_go()
        self._child, self._may_move = None, False
        self.job.notices.tell_once(
            "delivery process",
            f"The delivery process of {self.job.run_dir} has ended by itself. Nothing is lost: a thread of this "
            f"process delivers again. What happened is in {ProcessHost.log_file(self.job)}.",
        )


class _TellingChild(ProcessHost):
    """A child process that says when it is ready to deliver, and what its user should know."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._hears, self._says = os.pipe()
        os.set_blocking(self._hears, False)
        self._ready = False
        self._began_at = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since it was begun."""
        return time.monotonic() - self._began_at

    @override
    def _order(self) -> dict[str, Any]:
        return {**super()._order(), "says": self._says, "idle_s": IDLE_S}

    @override
    def _popen(self, command: list[str], **given: Any) -> "subprocess.Popen[bytes]":
        return super()._popen(command, pass_fds=(self._says,), **given)

    @override
    def start(self) -> None:
        super().start()
        os.close(self._says)

    def is_ready(self) -> bool:
        """Whether it has imported the SDK."""
        if not self._ready:
            with suppress(OSError):  # nothing said yet
                self._ready = os.read(self._hears, 1) == b"\n"
        return self._ready

    def tells(self) -> Iterator[tuple[int, str]]:
        """What it has to tell, until it ends: level and message."""
        begun, look = b"", select.poll()
        look.register(self._hears, select.POLLIN)
        while True:
            look.poll(_LOOK_S * 1000)
            try:
                said = os.read(self._hears, 65536)
            except BlockingIOError:
                if self.working():
                    continue
                break  # a process that was forked at the wrong moment has the other end, too
            if not said:
                break
            *lines, begun = (begun + said).split(b"\n")
            begun = begun[-_LONGEST_NOTICE_BYTES:]
            for line in lines:
                with suppress(ValueError, TypeError):
                    level, message = json.loads(line)
                    yield int(level), str(message)
        self.let_go()

    def let_go(self) -> None:
        """Have nothing to do with it any more."""
        self.stop()
        hears, self._hears = self._hears, -1
        if hears >= 0:
            os.close(hears)

    def ended_well(self) -> bool:
        """Whether it ended because there was nothing to do."""
        if self._child is None:
            return False
        try:
            return self._child.wait(_ENDS_WITHIN_S) == 0
        except subprocess.TimeoutExpired:
            return False


def make_host(mode: str, job: Job) -> Host:
    """The host of that name (one of :data:`DELIVERY_MODES`)."""
    hosts: dict[str, Callable[[Job], Host]] = {
        "auto": MovingHost,
        "thread": ThreadHost,
        "process": ProcessHost,
        "offline": OfflineHost,
    }
    return hosts[mode](job)
