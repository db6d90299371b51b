"""The one delivery loop: reads a journal from its cursors, hands batches to an adapter, moves the cursors.

All hosts (a thread of the trainer, a child process, the command line) run this; they differ in when they call
:meth:`Worker.step` and when they stop.
"""

import contextlib
import enum
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_loggers import jobs
from lightning_loggers.adapters.base import Adapter, Context, Fault, FaultKind
from lightning_loggers.adapters.fitting import KeyMap
from lightning_loggers.adapters.registry import adapter_class
from lightning_loggers.delivery.backoff import Backoff
from lightning_loggers.delivery.discover import writer_alive
from lightning_loggers.delivery.pending import ends_of
from lightning_loggers.delivery.sending import Sender
from lightning_loggers.delivery.state import StateFile, TrackerState, state_name
from lightning_loggers.errors import JournalError
from lightning_loggers.journal.blobs import BlobStore
from lightning_loggers.journal.layout import (
    BLOBS_FOLDER,
    delivery_lock_path,
    journal_dir,
    list_segments,
    lock_path,
)
from lightning_loggers.journal.lock import FileLock, is_locked
from lightning_loggers.journal.reader import Position, StreamReader, header_before, read_first_header
from lightning_loggers.notices import Notices
from lightning_loggers.records import Header, RunStatus, is_terminal
from lightning_loggers.secrets import has_secret, mask, secrets_of_uri

if TYPE_CHECKING:
    from lightning_loggers.delivery.merging import GroupKey, Merged, RankMerger

POLL_S = Adapter.pause_s
_ENDING_POLL_S = 0.05
_MOST_READ_AHEAD = 5_000
"""Lines of a rank that wait for the others' in memory; it is read on when they have come."""
_AUTHENTICATION_RETRY_S = 60.0
_OTHER_DELIVERER_RETRY_S = 2.0
_LARGEST_READ_BYTES = 2**18
_SMALLEST_READ_BYTES = 2**14


class StepKind(enum.Enum):
    """What a step found."""

    PROGRESS = "progress"
    IDLE = "idle"
    FAILED = "failed"
    BUSY = "busy"


@dataclass(frozen=True, slots=True)
class Step:
    """What one step did.

    Attributes:
        kind: ``PROGRESS``: something was delivered. ``IDLE``: everything was delivered before. ``FAILED``: the tracker
            does not take it now. ``BUSY``: another host delivers this run.
        wait_s: Seconds after which the next step makes sense; after progress 0 if more is there already. Otherwise a
            program that logs all the time would be delivered in many small requests, one after the other.
        reason: Why it failed.
    """

    kind: StepKind
    wait_s: float = 0.0
    reason: str = ""


class Worker:
    """Delivers one run to one tracker.

    Args:
        run_dir: The run's folder.
        options: The tracker's options with secrets, where this host has them; the journal's own otherwise.
        notices: Where faults are told.
        backoff: How long to wait after a fault.
        make_adapter: Makes the adapter; by default the registry's class of the journal's tracker.

    Guarantees:
        - At least once, in order: a cursor moves only over records that the tracker acknowledged, or that were written
          to ``rejected.jsonl`` because it refused them.
        - Nothing is given up by count: what the tracker cannot take now is tried until the host ends.
        - One worker at a time serves a run and tracker, between processes and hosts (a lock held while it lives).
        - No step raises, and none waits except in the adapter.
    """

    def __init__(
        self,
        run_dir: Path,
        options: Mapping[str, Any] | None = None,
        *,
        notices: Notices | None = None,
        backoff: Backoff | None = None,
        make_adapter: Callable[[Context], Adapter] | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.folder = journal_dir(run_dir)
        self.state: TrackerState | None = None
        self.last_fault: Fault | None = None
        self._options = dict(options or {})
        self._notices = notices or Notices()
        self._backoff = backoff or Backoff()
        self._make_adapter = make_adapter
        self._header: Header | None = None
        self._file: StateFile | None = None
        self._lock: FileLock | None = None
        self._adapter: Adapter | None = None
        self._opened = False
        self._merger: RankMerger | None = None
        self._merged: list[Merged] = []
        """Records of several ranks that were merged and not acknowledged yet."""
        self._keys: KeyMap | None = None
        self._saved_keys = 0
        self._failures = 0
        self._read_bytes = _LARGEST_READ_BYTES
        self._secrets = frozenset[str]().union(
            *(secrets_of_uri(value) for value in self._options.values() if isinstance(value, str))
        )
        self.stopping = threading.Event()
        """Once set, the running step ends after the batch under way."""
        self._sender = Sender(
            self.folder,
            open_run=self._open,
            save=self._save,
            tell=self._tell,
            masked=self._masked,
            stopping=self.stopping,
        )

    # ---------------------------------------------------------------- for hosts

    def step(self) -> Step:
        """Deliver the next batch, if there is one and the tracker takes it."""
        try:
            return self._step()
        except JournalError as error:
            self._tell("journal", f"The run in {self.run_dir} cannot be delivered: {error}")
            return Step(StepKind.FAILED, _AUTHENTICATION_RETRY_S, str(error))
        except Exception as error:  # noqa: BLE001 - seam: a defect here must not end delivery for the rest of the run
            reason = self._masked(f"{type(error).__name__}: {error}")
            self._tell("step", f"Delivery of {self.run_dir} met a fault of its own and goes on: {reason}")
            return self._failed(Fault(FaultKind.BUG, reason))

    def caught_up(self, ends: Mapping[str, Position]) -> bool:
        """Whether everything before the given ends of streams is delivered (or rejected)."""
        state = self.state
        if state is None:
            return not ends
        return all(state.cursors.get(stream, Position()) >= end for stream, end in ends.items())

    def finish_dead(self) -> Step:
        """Close the run as failed if its processes have died without a word, once all of it is delivered.

        A run that ended with a status keeps it; one that was preempted is left open for the job that continues it, and
        so is one whose launcher will start its processes again.
        """
        if self._lock is None or not self._lock.held or not self.needs_closing():
            return Step(StepKind.IDLE, POLL_S)
        state = self.state
        assert state is not None
        if jobs.will_be_started_again(state.job):
            return Step(StepKind.BUSY, POLL_S, "the launcher of its job starts it again")
        adapter = self._open()
        if isinstance(adapter, Fault):
            return self._failed(adapter)
        outcome = adapter.update_status(RunStatus.FAILED)
        if isinstance(outcome, Fault):
            return self._failed(outcome)
        state.status = RunStatus.FAILED.value
        self._save()
        return Step(StepKind.PROGRESS)

    def finish_leftover(self) -> Step:
        """As :meth:`finish_dead`, for another run than the host's own.

        If an earlier start of this very job began it, it is left open: its logger may go on with it any moment.
        """
        if self.state is not None and jobs.began_before_restart(self.state.job):
            return Step(StepKind.IDLE, POLL_S)
        return self.finish_dead()

    @property
    def delivers(self) -> bool:
        """Whether this worker is the one that serves the run."""
        return self._lock is not None and self._lock.held

    @property
    def opened(self) -> bool:
        """Whether the tracker's run is at hand: the SDK is imported and connected."""
        return self._opened

    @property
    def may_be_handed_over(self) -> bool:
        """Whether another worker would go on just as this one does.

        Not while a batch has failed, which is to be sent again as it was, nor where ranks are merged: which of them
        were late is known here only.
        """
        return self.last_fault is None and not self.merges

    @property
    def ended(self) -> bool:
        """Whether the tracker shows the run as ended."""
        return self.state is not None and is_terminal(self.state.status)

    @property
    def merges(self) -> bool:
        """Whether it has begun to merge what several ranks log."""
        return self._merger is not None

    def writer_alive(self) -> bool:
        """Whether a live process writes any stream of the run."""
        return writer_alive(self.folder)

    def needs_closing(self) -> bool:
        """Whether the tracker still shows the run as running although nobody writes it and nobody will go on."""
        state = self.state or self._load_state()
        return state is not None and state.closes_when_dead and not self.writer_alive()

    def is_leftover(self, tracker: str, destination: str, options: Mapping[str, Any]) -> bool:
        """Whether this is a dead process's run for the given place, not all delivered; takes its options if so."""
        if not self._ready():
            return False
        assert self._header is not None
        run = self._header.run
        if run.tracker != tracker or adapter_class(tracker).destination(run.options) != destination:
            return False
        if self.writer_alive():
            return False
        state = self._load_state()
        assert state is not None
        behind = any(
            state.cursors.get(stream, Position()).offset == 0 or state.cursors[stream] < end
            for stream, end in ends_of(self.folder).items()
        )
        if not behind and not self.needs_closing():
            return False
        # Secrets were not written to that run's journal; where it leads to our own address, ours open the door.
        secret = {key: value for key, value in options.items() if isinstance(value, str) and has_secret(value)}
        self._options.update(secret)
        self._secrets |= frozenset[str]().union(*(secrets_of_uri(value) for value in secret.values()))
        return True

    def hasten(self) -> None:
        """Forget earlier failures: the next waits are short again (somebody waits for the end of the run)."""
        self._failures = min(self._failures, 1)

    def close(self) -> None:
        """Let go of the SDK and the lock. A later step takes them again."""
        adapter, self._adapter, self._opened = self._adapter, None, False
        if adapter is not None:
            with contextlib.suppress(Exception):
                adapter.close()
        if self._merger is not None:  # whoever delivers meanwhile moves the cursors
            self._merger, self._merged = self._merger.afresh(), []
        if self._lock is not None:
            self._lock.release()

    # ---------------------------------------------------------------- one step

    def _step(self) -> Step:
        if not self._ready():
            return Step(StepKind.IDLE, POLL_S)
        assert self._lock is not None
        if not self._lock.held:
            if not self._lock.acquire():
                return Step(StepKind.BUSY, _OTHER_DELIVERER_RETRY_S, "another process delivers this run")
            self.state = self._load_state()  # whoever had the lock may have moved the cursors
        state = self.state
        assert state is not None
        if self._merger is not None:
            return self._step_merged(self._merger, state)
        progressed = more = False
        for stream, segments in list_segments(self.folder).items():
            cursor = state.cursors.get(stream, Position())
            reader = StreamReader(self.folder, stream)
            chunk = reader.read(cursor, self._read_bytes, segments=segments)
            if chunk.at_end and chunk.torn_bytes and not is_locked(lock_path(self.folder, stream)):
                chunk = reader.read(cursor, self._read_bytes, final=True)  # nobody will complete that last line
            for damage in chunk.damage:
                state.damaged += 1
                self._tell(("damage", str(damage.path), damage.offset), f"Journal damage: {damage}")
            if chunk.at_end:
                continue
            outcome = self._sender.send(state, stream, chunk.entries)
            if isinstance(outcome, Fault):
                return self._failed(outcome)
            if state.cursors.get(stream, Position()) < chunk.end:
                state.cursors[stream] = chunk.end
                self._save()
            self._failures = 0
            self.last_fault = None
            self._read_bytes = min(self._read_bytes * 2, _LARGEST_READ_BYTES)
            progressed, more = True, more or chunk.more
        pause_s = POLL_S if self._adapter is None else self._adapter.pause_s
        return Step(StepKind.PROGRESS if progressed else StepKind.IDLE, 0.0 if more else pause_s)

    def _step_merged(self, merger: "RankMerger", state: TrackerState) -> Step:
        """As :meth:`_step`, for a run that several ranks log to."""
        read = more = False
        now_s = time.monotonic()
        for stream in list_segments(self.folder):
            if merger.waiting(stream) > _MOST_READ_AHEAD:
                more = True
                continue
            live = is_locked(lock_path(self.folder, stream))  # asked first: what a dead one wrote is there by now
            position, header = merger.read_to(stream), None
            if position is None:
                position = state.cursors.get(stream, Position())
                header = header_before(self.folder, stream, position)
            chunk = StreamReader(self.folder, stream).read(position, _LARGEST_READ_BYTES, final=not live)
            for damage in chunk.damage:
                state.damaged += 1
                self._tell(("damage", str(damage.path), damage.offset), f"Journal damage: {damage}")
            merger.feed(stream, chunk.entries, chunk.end, now_s, live=live, unread=not chunk.at_end, header=header)
            read, more = read or not chunk.at_end, more or chunk.more
        # What failed is sent again as it was: merged anew, with what has come since, it would be other points.
        self._merged = [item for item in self._merged if not item.is_behind(state.cursors)]
        if not self._merged:
            self._merged = merger.take(now_s)
        idle_s = _ENDING_POLL_S if merger.ending else POLL_S
        wait_s = 0.0 if more else idle_s
        if not self._merged:
            return Step(StepKind.PROGRESS, wait_s) if read else Step(StepKind.IDLE, idle_s)
        outcome = self._sender.send(state, "", self._merged)
        if isinstance(outcome, Fault):
            return self._failed(outcome)
        self._merged = []
        self._save()
        self._failures = 0
        self.last_fault = None
        return Step(StepKind.PROGRESS, wait_s)

    def _tell_missing(self, rank: int, key: "GroupKey") -> None:
        assert self.state is not None
        self.state.count_reason(f"step without rank {rank}")
        self._tell(
            ("missing", rank),
            f"Rank {rank} had logged nothing for step {key[1]} when it was merged: the point is of the others. What "
            f"it logs for such a step later is shown under names that end in /rank{rank}. More of the same is only "
            "counted.",
        )

    def _ready(self) -> bool:
        """Whether there is a journal; learns what its header says."""
        if self._header is not None:
            return True
        header = read_first_header(self.folder)
        if header is None:
            return False
        kind = adapter_class(header.run.tracker)
        home = kind.destination(header.run.options)
        options = {**header.run.options, **self._options}
        destination = kind.destination(options)
        name = state_name(header.run.tracker, destination, home)
        self._options = options
        self._file = StateFile(self.folder, name)
        self._lock = FileLock(delivery_lock_path(self.folder, name))
        self._header = header
        if header.run.ranks is not None:
            from lightning_loggers.delivery.merging import RankMerger

            self._merger = RankMerger(header.run.ranks, self._tell_missing)
        return True

    def _load_state(self) -> TrackerState | None:
        if not self._ready():
            return None
        assert self._header is not None
        assert self._file is not None
        state = self._file.load(self._header.run.tracker)
        state.destination = adapter_class(self._header.run.tracker).destination(self._options)
        if self._file.damaged:
            self._tell("state", f"{self._file.path} was damaged: the run is delivered again from its beginning.")
        return state

    def _open(self) -> Adapter | Fault:
        """The adapter, with the tracker's run open; or why it cannot be."""
        if self._adapter is not None and self._opened:
            return self._adapter
        assert self._header is not None
        assert self._file is not None
        assert self.state is not None
        if self._adapter is None:
            kind = adapter_class(self._header.run.tracker)
            self._keys = KeyMap(kind.fit_key, kind.max_key_length, self._file.load_keys(), self._tell_fitted)
            context = Context(
                run=self._header.run,
                header=self._header,
                remote=self.state.remote,
                blobs=BlobStore(self.folder / BLOBS_FOLDER),
                keys=self._keys,
                notices=self._notices,
                run_dir=self.run_dir,
                options=self._options,
                save_remote=self._save,
                acknowledged=self._forget_failures,
            )
            self._adapter = (self._make_adapter or kind)(context)
        outcome = self._adapter.open_run()
        if isinstance(outcome, Fault):
            return outcome
        self._opened = True
        if self.state.status is None:
            self.state.status = RunStatus.RUNNING.value
        self._save()
        return self._adapter

    def _failed(self, fault: Fault) -> Step:
        reason = self._masked(fault.reason)
        fault = Fault(fault.kind, reason, fault.retry_after_s)
        if self.stopping.is_set():
            return Step(StepKind.FAILED, 0.0, reason)
        self.last_fault = fault
        self._failures += 1
        # After an ambiguous failure a part of the batch may be there already: a small one is cheap to send again.
        self._read_bytes = max(self._read_bytes // 4, _SMALLEST_READ_BYTES)
        if self.state is not None:
            self.state.retried += 1
            self.state.count_reason(fault.kind.value)
            self._save()
        place = self.state.destination if self.state is not None else str(self.run_dir)
        if fault.kind is FaultKind.AUTHENTICATION:
            self._tell(
                (fault.kind, place),
                f"{place} does not let this run in: {reason}. Training goes on and everything is kept in "
                f"{self.folder}; mend the credentials or address, then: lightning-loggers sync {self.run_dir}",
            )
            return Step(StepKind.FAILED, max(_AUTHENTICATION_RETRY_S, fault.retry_after_s or 0.0), reason)
        wait_s = self._backoff.wait_s(self._failures, retry_after_s=fault.retry_after_s)
        self._tell(
            (fault.kind, place),
            f"{place or self.run_dir} cannot be reached or does not take records now: {reason}. Training goes on, "
            f"records are kept in {self.folder} and delivered when it answers again.",
        )
        return Step(StepKind.FAILED, wait_s, reason)

    # ---------------------------------------------------------------- small things

    def _forget_failures(self) -> None:
        self._failures = 0

    def _save(self) -> None:
        assert self._file is not None
        assert self.state is not None
        try:
            if self._keys is not None and self._keys.revision != self._saved_keys:
                self._file.save_keys(self._keys.names)
                self._saved_keys = self._keys.revision
            self._file.save(self.state)
        except OSError as error:
            self._tell(
                ("state", error.errno),
                f"{self._file.path} cannot be written ({error.strerror}): after a crash, delivery starts again from an "
                "earlier record.",
            )

    def _tell(self, cause: Any, message: str) -> None:
        self._notices.tell_once((str(self.run_dir), cause), message)

    def _tell_fitted(self, key: str, name: str) -> None:
        tracker = self._header.run.tracker if self._header is not None else "The tracker"
        self._tell(("fitted", key), f"{tracker} does not take the name {key[:200]!r}: it is shown as {name!r}.")

    def _masked(self, text: str) -> str:
        return mask(text, self._secrets)
