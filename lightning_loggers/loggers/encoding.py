"""Encoding off the training thread: PNG, MP4 and the like are made by one daemon thread a process.

A log call hands over a snapshot and its record, which is stamped already. The record is appended to the journal when
its files are in the blob folder, and in the order of the log calls.
"""

import contextlib
import os
import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from lightning_loggers import importing
from lightning_loggers.background import kept_running
from lightning_loggers.journal.blobs import safe_name
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.loggers.losses import not_encoded
from lightning_loggers.records import Blob, Record
from lightning_loggers.values.buffers import BUFFERS
from lightning_loggers.values.snapshots import Encoded, Snapshot

if TYPE_CHECKING:
    from lightning_loggers.loggers.journaled import JournaledLogger

MAX_WAITING_BYTES = 256 * 2**20
"""What snapshots may hold in memory altogether. A log call that would exceed it encodes its own value itself."""

DRAIN_TIMEOUT_S = 120.0
_LINGER_S = 60.0
"""How long the thread looks for more by itself: waking it costs a log call as much as copying an image."""
_POLL_S = 0.005
_QUICK_POLLS_S = 0.2
"""How long it looks as often as that; then less often, since it takes the interpreter from training each time."""
_SLOW_POLL_S = 0.1


class Job(msgspec.Struct, eq=False):
    """One value on its way into the journal.

    Attributes:
        owner: Whose it is.
        writer: The journal.
        kind: What its record is.
        name: The record's identifier.
        size_bytes: What the value holds in memory until it is encoded.
        call: What is known of the log call, where the record is not made in it.
        copied: What the snapshot is made of, where that is not made in it.
        record: All but what encoding adds, until it is encoded; then all.
        snapshot: The value, until it is encoded.
        runner: The thread that encodes it now.
        ready: Whether it is encoded.
        lost: Whether it cannot be.
        taken: Whether somebody appends its record, or has.
        committed: Whether its record is in the journal.
    """

    owner: "JournaledLogger"
    writer: JournalWriter
    kind: str
    name: str | None
    size_bytes: int = 0
    call: tuple[Any, ...] = ()
    copied: tuple[Any, ...] = ()
    record: Record | None = None
    snapshot: Snapshot | None = None
    runner: int | None = None
    ready: bool = False
    lost: bool = False
    taken: bool = False
    committed: bool = False

    def is_in_series(self, other: "Job") -> bool:
        """Whether its record has the kind and identifier of another's, so that one comes behind the other."""
        return (self.kind, self.name) == (other.kind, other.name)

    def opened(self) -> tuple[Record, Snapshot]:
        """The record and the snapshot; called once, by whoever encodes."""
        assert self.record is not None
        assert self.snapshot is not None
        return self.record, self.snapshot

    def encode(self) -> None:
        """Make the files and put them into the blob folder; what cannot be is counted and told."""
        kind, name = self.kind, self.name
        try:
            record, snapshot = self.opened()
            encoded = snapshot.encode()
            for cause, message in encoded.notes:
                self.owner._notices.tell_once((kind, name, cause), f"{kind} {name!r}: {message}")
            self.record = completed(record, encoded, store(self.writer, encoded))
        except BaseException as error:  # seam: a value that cannot be encoded must end nothing else
            self.lost = True
            not_encoded(self.owner, kind, name, error)
            if not isinstance(error, Exception):  # Ctrl+C while the caller encodes: its record would have no file
                raise
        finally:
            self.snapshot = None

    def commit(self) -> None:
        """Append the record, unless that is done or under way: a signal handler may commit inside of this."""
        taken, self.taken = self.taken, True
        if not taken and not self.lost and self.record is not None:
            self.writer.append(self.record)
        self.committed = True


def job_of(owner: "JournaledLogger", writer: JournalWriter, record: Record, snapshot: Snapshot) -> Job:
    """The job of a value whose record is made."""
    return Job(owner, writer, record.kind, record.id, snapshot.size_bytes, record=record, snapshot=snapshot)


def completed(record: Record, encoded: Encoded, blobs: list[Blob]) -> Record:
    """A record with what encoding made of its value, behind the files that it has already."""
    blobs = [*(record.blobs or []), *blobs]
    meta = {**(encoded.meta or {}), **(record.meta or {})}
    value = encoded.value if encoded.value is not None else record.value
    return msgspec.structs.replace(record, value=value, blobs=blobs or None, meta=meta or None)


def store(writer: JournalWriter, encoded: Encoded) -> list[Blob]:
    """Put files into the blob folder.

    Raises:
        OSError: If the disk refuses.
    """
    blobs = []
    for name, content in encoded.files:
        if isinstance(content, bytes):
            blobs.append(writer.blobs.put_bytes(content, name))
        else:
            blobs.append(_written(writer, content, name))
    return blobs


def _written(writer: JournalWriter, write: Callable[[Path], None], name: str) -> Blob:
    """A file that is written once, in the blob folder itself."""
    writer.blobs.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".part", dir=writer.blobs.folder) as scratch:
        path = Path(scratch) / safe_name(name)
        write(path)
        return writer.blobs.link_file(path)


class Encoder:
    """The queue and its thread.

    Guarantees:
        - Records that need encoding are appended in the order in which they were submitted, each when its files are
          whole; one that needs none waits for nothing but earlier ones of its kind and identifier.
        - Nothing is lost while the process lives: what the queue cannot hold is encoded by the caller.
        - A process that is SIGKILLed loses what is waiting or being encoded, 256 MiB of snapshots at most, and nothing
          else.
        - A forked child begins empty; what waits is its parent's.
        - Nothing waits for a lock that is held while a file is written: signal handlers may log and drain.
    """

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()  # unlike Queue, a signal handler may use it
        self._works = False  # whether the thread lives, as far as it knows
        self._asleep = False  # whether the thread waits for the bell
        self._order: deque[Job] = deque()
        self._lock = threading.RLock()
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._committer: int | None = None

    def submit(self, job: Job) -> None:
        """Have a value encoded and its record appended; returns at once unless the queue is full.

        It takes no lock, which after a training step costs as much as copying 50 KB: the interpreter changes threads at
        calls and loops only, of which there are none between looking at the sum and adding to it. Where it did, the
        sum would be wrong by one value until nothing waits.
        """
        waiting = self._bytes
        if not self._order or waiting + job.size_bytes <= MAX_WAITING_BYTES:
            self._bytes = waiting + job.size_bytes
            self._waiting.append(job)  # first: a signal handler that drains must not wait for what nobody can begin
            self._order.append(job)
            if job.ready:  # encoded in between
                self._commit()
            if self._asleep or not self._works:
                self._see_to_it()
        else:
            self._order.append(job)
            self._run(job)

    def add_ready(self, job: Job) -> None:
        """Append a record that needs no encoding: now, unless an earlier one of its kind and name is under way."""
        job.snapshot, job.ready = None, True
        if not any(other.owner is job.owner and other.is_in_series(job) for other in list(self._order)):
            job.commit()
            return
        with self._lock:
            self._order.append(job)
        self._commit()

    def pending(self, owner: "JournaledLogger") -> int:
        """How many of an owner's records are on their way."""
        return sum(job.owner is owner and not job.committed for job in list(self._order))

    def drain(self, owner: "JournaledLogger", timeout_s: float = DRAIN_TIMEOUT_S) -> bool:
        """Have everything of an owner in the journal; the caller helps encoding.

        Args:
            owner: Whose records.
            timeout_s: Longest wait for what another thread encodes, seconds.

        Returns:
            Whether all of it is there.
        """
        jobs = [job for job in list(self._order) if job.owner is owner]
        deadline = time.monotonic() + timeout_s
        me = threading.get_ident()
        while any(not job.committed for job in jobs):
            try:
                job = self._waiting.popleft()
            except IndexError:
                self._commit()
            else:
                self._take(job)
                continue
            left = [job for job in list(self._order) if job.owner is owner and not job.committed]
            if any(job.runner == me for job in left):  # this is a signal handler inside that very encoding
                return False
            if time.monotonic() > deadline:
                return False
            if left:
                time.sleep(_POLL_S)
        return True

    # ------------------------------------------------------------------ inside

    def _see_to_it(self) -> None:
        """Have somebody encode what waits."""
        if not self._runs():  # no thread can be had
            with contextlib.suppress(IndexError):
                while True:
                    self._take(self._waiting.popleft())
        elif self._asleep:
            self._asleep = False
            self._bell.put(None)

    def _runs(self) -> bool:
        self._thread = kept_running(self._thread, self._work_beside, "encoding")
        return self._thread is not None

    def _work_beside(self) -> None:
        self._works = True
        try:
            with importing.beside_training():
                self._work()
        finally:
            self._works = False

    def _work(self) -> None:
        last_s = -_LINGER_S
        while True:
            try:
                job = self._waiting.popleft()
            except IndexError:
                idle_s = time.monotonic() - last_s
                if idle_s < _LINGER_S:
                    time.sleep(_POLL_S if idle_s < _QUICK_POLLS_S else _SLOW_POLL_S)
                    continue
                self._asleep = True
                if not self._waiting:  # what came before the flag was set rings no bell
                    self._bell.get()
                self._asleep = False
            else:
                with contextlib.suppress(BaseException):  # seam: the job has told it; sys.exit is for its own thread
                    self._take(job)
                    BUFFERS.make_ready()
                last_s = time.monotonic()

    def _take(self, job: Job) -> None:
        try:
            self._run(job)
        finally:
            self._bytes = self._bytes - job.size_bytes if self._order else 0

    def _run(self, job: Job) -> None:
        job.runner = threading.get_ident()
        try:
            job.encode()
        finally:
            job.ready = True
            job.runner = None
            self._commit()

    def _commit(self) -> None:
        """Append all records whose turn it is; one thread at a time does that, outside of the lock."""
        me = threading.get_ident()
        with self._lock:
            if self._committer not in {None, me}:
                return  # it looks again before it ends
            outer, self._committer = self._committer, me
        try:
            while True:
                with self._lock:
                    if not self._order or not self._order[0].ready:
                        self._committer = outer
                        return
                    job = self._order[0]
                job.commit()
                with self._lock:  # only now: whoever drains must find it until it is appended
                    if self._order and self._order[0] is job:
                        self._order.popleft()
        except BaseException:
            self._committer = outer
            raise

    def start_over_in_child(self) -> None:
        """After ``fork``."""
        self.__init__()  # type: ignore[misc]


_encoder = Encoder()
os.register_at_fork(after_in_child=_encoder.start_over_in_child)


submit = _encoder.submit
add_ready = _encoder.add_ready


def drain(owner: "JournaledLogger", timeout_s: float = DRAIN_TIMEOUT_S) -> bool:
    """Have everything of an owner in the journal; see :meth:`Encoder.drain`."""
    return _encoder.drain(owner, timeout_s)


def pending(owner: "JournaledLogger") -> int:
    """How many of an owner's records are on their way."""
    return _encoder.pending(owner)
