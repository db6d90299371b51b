"""A tracker that fails as it is told, for tests of delivery itself."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from typing_extensions import override

from lightning_loggers.adapters.base import Capabilities, Context, Fault, FaultKind, Outcome
from lightning_loggers.adapters.memory import MemoryAdapter
from lightning_loggers.records import Record, RunStatus

_LONGEST_SLOW_S = 60.0


class ScriptedError(Exception):
    """What a scripted tracker raises.

    Args:
        fault: What :meth:`ScriptedAdapter.classify` says of it.
        after: Whether the tracker had done what was asked, and only its answer was lost.
        escapes: Whether it is raised out of the adapter, against the contract.
        unclassified: Whether classifying it raises, against the contract.
    """

    def __init__(self, fault: Fault, *, after: bool = False, escapes: bool = False, unclassified: bool = False) -> None:
        super().__init__(fault.reason)
        self.fault = fault
        self.after = after
        self.escapes = escapes
        self.unclassified = unclassified


Entry = Exception | threading.Event | None
"""What a script says of one call."""


def transient(reason: str = "503", retry_after_s: float | None = None, *, after: bool = False) -> ScriptedError:
    """The tracker cannot be reached now; with ``after``, it was, but its answer got lost."""
    return ScriptedError(Fault(FaultKind.TRANSIENT, reason, retry_after_s), after=after)


def rejected(reason: str = "refused") -> ScriptedError:
    """The tracker never takes this."""
    return ScriptedError(Fault(FaultKind.REJECTED, reason))


def authentication(reason: str = "401") -> ScriptedError:
    """The tracker does not let us in."""
    return ScriptedError(Fault(FaultKind.AUTHENTICATION, reason))


def bug(reason: str = "defect") -> ScriptedError:
    """The SDK or the adapter is broken."""
    return ScriptedError(Fault(FaultKind.BUG, reason))


def escaping(reason: str = "escaped") -> ScriptedError:
    """The adapter breaks its contract and raises."""
    return ScriptedError(Fault(FaultKind.BUG, reason), escapes=True)


def unclassified(reason: str = "unclassified") -> ScriptedError:
    """The adapter breaks its contract: classifying the error raises."""
    return ScriptedError(Fault(FaultKind.BUG, reason), unclassified=True)


class Script:
    """What the tracker does, call by call, whichever adapter object is asked. Calls past the end succeed.

    An entry is ``None`` (succeeds), an exception (raised; :func:`transient` and the others make them), or a
    :class:`threading.Event` (slow: succeeds once it is set, or after a minute).

    Args:
        open: Entries for opening the run.
        send: Entries for sending records.
        status: Entries for setting a status.
        refuse: Asked for every record that is sent: the fault that it causes, or ``None``. For poison.

    Attributes:
        calls: What was asked: ``("open", 0)``, ``("send", number of records)``, ``("status", 0)`` ...
        received: Every record that reached the tracker, as often as it did.
        statuses: Every status that was set.
    """

    def __init__(
        self,
        *,
        open: Iterable[Entry] = (),  # noqa: A002 - the method's name
        send: Iterable[Entry] = (),
        status: Iterable[Entry] = (),
        refuse: Callable[[Record], Fault | None] = lambda record: None,
    ) -> None:
        self._entries = {"open": deque(open), "send": deque(send), "status": deque(status)}
        self.refuse = refuse
        self.calls: list[tuple[str, int]] = []
        self.received: list[Record] = []
        self.statuses: list[RunStatus] = []

    def next(self, call: str, size: int = 0) -> ScriptedError | None:
        """Take the next entry for a call; raises, waits or does nothing, as it says.

        Returns:
            What to raise once the call has done its work.
        """
        self.calls.append((call, size))
        entries = self._entries[call]
        entry = entries.popleft() if entries else None
        if isinstance(entry, threading.Event):
            entry.wait(_LONGEST_SLOW_S)
        elif isinstance(entry, ScriptedError) and entry.after:
            return entry
        elif entry is not None:
            raise entry
        return None

    def adapter(self, context: Context) -> "ScriptedAdapter":
        """An adapter that plays this script: ``Worker(..., make_adapter=script.adapter)``."""
        return ScriptedAdapter(context, self)


class ScriptedAdapter(MemoryAdapter):
    """Keeps records in memory as :class:`~lightning_loggers.adapters.memory.MemoryAdapter` does, and fails as told.

    Its journal names the tracker ``"memory"``; a worker gets it through ``make_adapter``.

    Args:
        context: As for any adapter.
        script: What to do.

    >>> from lightning_loggers.testing.harness import RunUnderTest
    >>> import pathlib, tempfile
    >>> script = Script(send=[transient("no route to host")])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = RunUnderTest(pathlib.Path(folder), "memory", make_adapter=script.adapter)
    ...     run.log_metrics({"loss": 0.5}, step=0)
    ...     state = run.deliver(faults=1)
    ...     run.close()
    >>> state.delivered, state.retried, script.calls
    (1, 1, [('open', 0), ('send', 1), ('send', 1)])
    """

    capabilities: ClassVar[Capabilities] = MemoryAdapter.capabilities

    def __init__(self, context: Context, script: Script) -> None:
        super().__init__(context)
        self.script = script
        self._escaped: ScriptedError | None = None

    @override
    def open(self) -> None:
        late = self.script.next("open")
        super().open()
        _raise(late)

    @override
    def send(self, records: Sequence[Record]) -> None:
        late = self.script.next("send", len(records))
        for record in records:
            fault = self.script.refuse(record)
            if fault is not None:
                raise ScriptedError(fault)
        super().send(records)
        self.script.received.extend(records)
        _raise(late)

    @override
    def set_status(self, status: RunStatus) -> None:
        late = self.script.next("status")
        super().set_status(status)
        self.script.statuses.append(status)
        _raise(late)

    @override
    def write(self, records: Sequence[Record]) -> Outcome:
        self._escaped = None
        outcome = super().write(records)
        if self._escaped is not None:
            raise self._escaped
        return outcome

    @override
    def classify(self, error: Exception) -> Fault:
        if isinstance(error, ScriptedError):
            if error.escapes:
                self._escaped = error
            if error.unclassified:
                raise TypeError("classifying failed too")
            return error.fault
        return super().classify(error)

    def values(self, name: str) -> list[int | float]:
        """The values of a metric that are held."""
        return [value for _, _, value, _ in self._opened().points(name)]


def _raise(error: ScriptedError | None) -> None:
    if error is not None:
        raise error
