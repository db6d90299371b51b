"""Metrics whose values are still on their way from a device: a thread appends them when they are there.

Each record has the time of its log call. Calls with values on a device are recorded in the order in which they were
made. A call with plain numbers is recorded at once, as ever, unless one of its names is among those on their way: then
it waits for its turn, so that no series goes back.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_loggers.background import kept_running
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.notices import Notices
from lightning_loggers.records import Place
from lightning_loggers.values.device import Arrival, is_on_device, metrics_on_their_way
from lightning_loggers.values.metrics import as_number

DRAIN_TIMEOUT_S = 120.0
_POLL_S = 0.002


class Arrivals:
    """The calls under way, of all loggers of the process, and the thread that waits for them.

    Guarantees:
        - One call after the other, in the order of their submission.
        - What cannot be fetched (the device failed) is counted and told, and holds up nothing.
        - A forked child begins empty; what is under way is its parent's.
    """

    def __init__(self) -> None:
        self.under_way: deque[Call] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # a signal handler may use it
        self._recording = threading.Lock()  # never waited for
        self._thread: threading.Thread | None = None

    def submit(self, call: "Call") -> None:
        """Have a call recorded when its values are there."""
        self.under_way.append(call)
        self._wake()

    def of(self, owner: Hashable) -> list["Call"]:
        """An owner's calls under way."""
        return [call for call in list(self.under_way) if call.owner is owner]

    def drain(self, owner: Hashable, timeout_s: float) -> bool:
        """Wait until everything of an owner is recorded.

        Returns:
            Whether it is.
        """
        deadline = time.monotonic() + timeout_s
        if self.of(owner):
            self._wake()  # a signal handler may have come before a call's own
        while self.of(owner):
            if time.monotonic() > deadline or threading.current_thread() is self._thread:
                return False
            time.sleep(_POLL_S)
        return True

    def _wake(self) -> None:
        self._thread = kept_running(self._thread, self._work, "arrivals")
        if self._thread is None:
            self._record_all()
        else:
            self._bell.put(None)

    def _work(self) -> None:
        while True:
            self._bell.get()
            self._record_all()

    def _record_all(self) -> None:
        """Record what is under way, unless another thread is at it: that one looks again before it ends."""
        while self.under_way and self._recording.acquire(blocking=False):
            try:
                while self.under_way:
                    self.under_way[0].record()
                    self.under_way.popleft()  # only now: whoever drains must find it until it is recorded
            finally:
                self._recording.release()

    def start_over_in_child(self) -> None:
        """After ``fork``."""
        self.__init__()  # type: ignore[misc]


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One log call whose values are not all there.

    Attributes:
        owner: Who can :func:`drain` it.
        writer: The journal.
        notices: Where what goes wrong is told.
        metrics: Numbers, and tensors of the host that are being filled.
        step: Step.
        time_ns: When it was made.
        place: Where the training was.
        arrivals: When the values are there.
    """

    owner: Hashable
    writer: JournalWriter
    notices: Notices
    metrics: Mapping[str, Any]
    step: Any
    time_ns: int
    place: Place | None
    arrivals: Sequence[Arrival] = ()

    def record(self) -> None:
        """Wait for the values and append them; what cannot be fetched is counted and told."""
        try:
            for arrival in self.arrivals:
                arrival.synchronize()
            self.writer.append_arrived(self.metrics, self.step, self.time_ns, self.place)
        except Exception as error:  # noqa: BLE001 - seam: whatever a device that failed raises must end nothing else
            self.writer.count_dropped("not fetched")
            self.notices.tell_once(
                ("arrivals", type(error)),
                f"Metrics {', '.join(map(repr, self.metrics))[:200]} of step {self.step} could not be fetched from "
                f"their device and are not kept ({type(error).__name__}: {error}). Training goes on.",
                level=logging.WARNING,
            )


_arrivals = Arrivals()
os.register_at_fork(after_in_child=_arrivals.start_over_in_child)


def submit(call: Call) -> None:
    """Have metrics recorded when their values are there, after what was submitted before."""
    _arrivals.submit(call)


def defer(call: Call) -> bool:
    """Have a call recorded when its values have come from a device; returns whether it has such values.

    If it has none and an earlier value of one of its names is on its way, that is waited for.
    """
    found = None
    with contextlib.suppress(Exception):  # no pinned memory, or the device is lost: asking for the values tells
        found = None if is_on_device(call.step) else metrics_on_their_way(call.metrics)
    if found is None:
        if holds_up(call.owner, call.metrics):
            drain(call.owner)
        return False
    metrics, arrivals = found
    submit(replace(call, metrics=metrics, step=call.writer.plain_step(call.step), arrivals=arrivals))
    return True


def queue_up(call: Call) -> bool:
    """Have a call recorded behind those under way, one of whose names it shares; returns whether it will be.

    A call with values on a device is left to :func:`defer`. One with a value that its owner may change cannot wait: the
    others are waited for instead.
    """
    if any(map(is_on_device, call.metrics.values())):
        return False
    numbers = {key: as_number(value) for key, value in call.metrics.items()}
    if None not in numbers.values() and (call.step is None or type(call.step) is int):
        submit(replace(call, metrics=numbers))
        return True
    drain(call.owner)
    return False


def holds_up(owner: Hashable, metrics: Mapping[str, Any]) -> bool | None:
    """Whether an earlier value of one of these names is under way; ``None`` if nothing of the owner is."""
    if not _arrivals.under_way:  # asked at every log call
        return None
    calls = _arrivals.of(owner)
    if not calls:
        return None
    return any(not metrics.keys().isdisjoint(call.metrics) for call in calls)


def drain(owner: Hashable, timeout_s: float = DRAIN_TIMEOUT_S) -> bool:
    """Wait until everything of an owner is recorded; see :meth:`Arrivals.drain`."""
    return _arrivals.drain(owner, timeout_s)


def pending(owner: Hashable) -> int:
    """How many of an owner's calls are under way."""
    return len(_arrivals.of(owner))
