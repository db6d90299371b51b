"""From what was read of a journal to what a tracker has acknowledged or refused."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lightning_loggers.adapters.base import Adapter, Delivered, Fault, FaultKind, Outcome
from lightning_loggers.delivery.state import TrackerState
from lightning_loggers.journal.layout import REJECTED_FILE
from lightning_loggers.journal.reader import Entry
from lightning_loggers.records import Header, Kind, Record, RunStatus, encode_line, is_terminal, split_nonfinite

if TYPE_CHECKING:
    from lightning_loggers.delivery.merging import Merged

    Lines = Sequence[Entry | Merged]


class Sender:
    """Sends lines of one run to its adapter, in their order.

    Args:
        folder: The journal's folder, where refused records are kept.
        open_run: Gives the adapter with the tracker's run open, or why it cannot be.
        save: Writes the state to disk.
        tell: Tells a person, once for each cause.
        masked: Takes secrets out of a text.
        stopping: Once it is set, nothing after the batch under way is sent.

    Guarantees:
        - Cursors move over lines that the tracker acknowledged, or that were written to ``rejected.jsonl`` because it
          refused them; over nothing else.
        - A batch that is refused is halved until the record, and in it the metric, is found that the tracker does not
          take. All others are delivered.
    """

    def __init__(
        self,
        folder: Path,
        *,
        open_run: Callable[[], Adapter | Fault],
        save: Callable[[], None],
        tell: Callable[[Any, str], None],
        masked: Callable[[str], str],
        stopping: threading.Event,
    ) -> None:
        self._folder = folder
        self._open_run = open_run
        self._save = save
        self._tell = tell
        self._masked = masked
        self._stopping = stopping
        self._ever_delivered = False

    def send(self, state: TrackerState, stream: str, entries: "Lines") -> Outcome:
        """Send lines, status records in their place between the others.

        Args:
            state: Whose cursors move.
            stream: Whose lines they are; of no meaning for merged ones.
            entries: The lines.

        Returns:
            The fault that ended it early, if one did.
        """
        for group in _groups(entries):
            if self._stopping.is_set():
                return Fault(FaultKind.TRANSIENT, "the host is stopping")
            outcome = self._send_group(state, stream, group)
            if isinstance(outcome, Fault):
                return outcome
        return Delivered()

    def _send_group(self, state: TrackerState, stream: str, group: "Lines") -> Outcome:
        lines = [entry.line for entry in group]
        if isinstance(lines[0], Header):
            state.wanted_status = None  # a new session of the run has begun
            if lines[0].rank == 0:
                job = lines[0].environment.get("job")
                state.job = job if isinstance(job, dict) else None
            _move(state, stream, group)
            return Delivered()
        if not lines[0].kind:  # a line that only counts as delivered
            _move(state, stream, group)
            return Delivered()
        adapter = self._open_run()
        if isinstance(adapter, Fault):
            if adapter.kind is FaultKind.REJECTED:  # of the run itself, not of a record: nothing to bisect
                return Fault(FaultKind.AUTHENTICATION, adapter.reason)
            return adapter
        if lines[0].kind == Kind.STATUS:
            return self._send_status(adapter, state, stream, group[-1])
        ended = state.status if is_terminal(state.status) else None
        if ended is not None:
            outcome = adapter.update_status(RunStatus.RUNNING)
            if isinstance(outcome, Fault):
                return outcome
            state.status = RunStatus.RUNNING.value
        outcome = self._send_records(adapter, state, stream, group)
        if ended is not None and isinstance(outcome, Delivered) and all(getattr(i, "straggles", False) for i in group):
            outcome = adapter.update_status(RunStatus(ended))  # rank 0 will not say it again
            if isinstance(outcome, Delivered):
                state.status = ended
        return outcome

    def _send_status(self, adapter: Adapter, state: TrackerState, stream: str, entry: "Entry | Merged") -> Outcome:
        assert isinstance(entry.line, Record)
        try:
            status = RunStatus(str(entry.line.value))
        except ValueError:
            status = RunStatus.FINISHED
        if state.status != status:
            outcome = adapter.update_status(status)
            if isinstance(outcome, Fault):
                if outcome.kind is not FaultKind.REJECTED:
                    return outcome
                self._quarantine(state, entry.line, outcome)
        state.status = status.value if status is not RunStatus.PREEMPTED else RunStatus.RUNNING.value
        state.wanted_status = status.value
        _move(state, stream, [entry])
        self._save()
        return Delivered()

    def _send_records(self, adapter: Adapter, state: TrackerState, stream: str, group: "Lines") -> Outcome:
        """Send records, halving the batch around what the tracker refuses."""
        records = [entry.line for entry in group if isinstance(entry.line, Record)]
        outcome = adapter.write(records)
        if isinstance(outcome, Delivered):
            self._ever_delivered = True
            state.delivered += len(records)
        elif outcome.kind in {FaultKind.TRANSIENT, FaultKind.AUTHENTICATION}:
            return outcome
        elif len(group) > 1:
            middle = len(group) // 2
            first = self._send_records(adapter, state, stream, group[:middle])
            if isinstance(first, Fault):
                if first.kind is not FaultKind.BUG or not isinstance(adapter.write(records[-1:]), Delivered):
                    return first
                self._ever_delivered = True  # others pass: the fault is the record's, and it can be set aside
                return self._send_records(adapter, state, stream, group)
            return self._send_records(adapter, state, stream, group[middle:])
        elif outcome.kind is FaultKind.BUG and not self._ever_delivered:
            return outcome  # nothing at all passes: no reason to blame this record
        else:
            refused = self._isolate(adapter, state, records[0], outcome)
            if isinstance(refused, Fault):
                return refused
            if not refused:
                state.delivered += 1
        _move(state, stream, group)
        self._save()
        return Delivered()

    def _isolate(self, adapter: Adapter, state: TrackerState, record: Record, fault: Fault) -> bool | Fault:
        """Deliver what can be of a refused record; quarantine the rest.

        Returns:
            Whether anything was quarantined, or the fault that interrupted it.
        """
        if record.data is None or len(record.data) <= 1:
            self._quarantine(state, record, fault)
            return True
        items = list(record.data.items())
        refused = False
        for half in (dict(items[: len(items) // 2]), dict(items[len(items) // 2 :])):
            part = msgspec.structs.replace(record, data=half, nonfinite=split_nonfinite(half))
            outcome = adapter.write([part])
            if isinstance(outcome, Delivered):
                continue
            if outcome.kind in {FaultKind.TRANSIENT, FaultKind.AUTHENTICATION}:
                return outcome
            inner = self._isolate(adapter, state, part, outcome)
            if isinstance(inner, Fault):
                return inner
            refused = refused or inner
        return refused

    def _quarantine(self, state: TrackerState, record: Record, fault: Fault) -> None:
        """Keep a refused record, with the reason, where a person finds it."""
        reason = self._masked(fault.reason)
        data = record.data
        line = json.dumps(
            {
                "reason": reason,
                "fault": fault.kind.value,
                "tracker": state.tracker,
                "destination": state.destination,
                "record": json.loads(encode_line(record)),
            }
        )
        path = self._folder / REJECTED_FILE
        if not path.is_symlink():
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        state.rejected += 1
        state.count_reason(f"{fault.kind.value}: {reason[:120]}")
        what = ", ".join(map(repr, data)) if data else repr(record.id or record.kind)
        self._tell(
            ("rejected", reason[:80]),
            f"{state.tracker} refused {record.kind} {what[:200]}: {reason}. It is kept in {path}; everything else is "
            "delivered.",
        )


def _move(state: TrackerState, stream: str, group: "Lines") -> None:
    """Count lines as delivered."""
    if isinstance(group[-1], Entry):
        state.cursors[stream] = group[-1].end
    else:
        for item in group:
            state.cursors.update(item.ends)  # type: ignore[union-attr]


def _groups(entries: "Lines") -> Iterator[list["Entry | Merged"]]:
    """Runs of data records; a header or status record is a group of its own."""
    group: list[Entry | Merged] = []
    for entry in entries:
        alone = isinstance(entry.line, Header) or entry.line.kind in {Kind.STATUS, ""}
        if alone and group:
            yield group
            group = []
        group.append(entry)
        if alone:
            yield group
            group = []
    if group:
        yield group
