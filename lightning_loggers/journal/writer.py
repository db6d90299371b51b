"""The appending half of a journal: what a log call pays for.

One log call is one line is one ``os.write`` to a file opened with ``O_APPEND``. What can go wrong with it (nothing open
yet, a forked process, a full disk, a deleted folder) is found by that write failing, so that the path on which nothing
goes wrong asks about none of it.
"""

import contextlib
import math
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from lightning_loggers.errors import JournalFormatError
from lightning_loggers.journal import keeper
from lightning_loggers.journal.blobs import BlobStore, safe_name
from lightning_loggers.journal.layout import BLOBS_FOLDER, list_segments, lock_path, segment_path
from lightning_loggers.journal.lock import FileLock
from lightning_loggers.journal.reader import Position, read_first_header
from lightning_loggers.notices import Notices
from lightning_loggers.records import (
    FORMAT_VERSION,
    MAX_LINE_BYTES,
    Header,
    Kind,
    Record,
    RunSpec,
    encode_line,
    split_nonfinite,
    without_surrogates,
)

DEFAULT_SEGMENT_BYTES = 64 * 2**20
BUFFER_BYTES = 4 * 2**20
"""What is kept in memory while the disk refuses; older lines are dropped, counted and told."""

_RETRY_WRITE_EVERY_S = 1.0

_encode = msgspec.json.Encoder().encode
_METRIC = Kind.METRIC.value

NormaliseMetrics = Callable[[Mapping[Any, Any]], tuple[dict[str, Any], list[Record]]]

_all_writers: "weakref.WeakSet[JournalWriter]" = weakref.WeakSet()


class JournalWriter:
    """Appends to one stream (one rank of one run) of a journal.

    Nothing is created or opened before the first record.

    Args:
        folder: The run's journal folder.
        run: What the header says of the run. If the folder already belongs to a run, that run's ``uid`` is kept.
        rank: Global rank, or a callable that tells it when the first record is written.
        environment: Told in the header, for a person; a callable is called once, at the first record.
        normalise_metrics: Turns metrics that JSON cannot take as they stand into plain ones, and into other records
            for what is no number (:func:`lightning_loggers.values.metrics.normalise`).
        notices: Where losses are told.
        segment_bytes: Size at which the next segment begins.

    Guarantees:
        - When an append has returned, the line is in the kernel: it survives the death of the process by SIGKILL,
          ``os._exit``, exception or out-of-memory kill. :mod:`.keeper` has it on the disk about a second later.
        - Appends of one thread are in order; appends of several threads do not mix within a line.
        - An append never raises and never waits for anything but the file system; while that refuses, the newest 4 MiB
          of lines are kept in memory, written when it accepts again, and what had to go is counted in ``dropped``.
        - After ``fork`` the child appends to a stream of its own, never to its parent's.
        - May be called in a signal handler that interrupted another append of the same thread.
    """

    def __init__(
        self,
        folder: Path,
        run: RunSpec,
        *,
        rank: int | Callable[[], int] = 0,
        environment: Callable[[], dict[str, Any]] = dict,
        normalise_metrics: NormaliseMetrics,
        notices: Notices | None = None,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
    ) -> None:
        self.folder = folder
        self.run = run
        self.blobs = BlobStore(folder / BLOBS_FOLDER)
        self.recorded = 0
        self.dropped: dict[str, int] = {}
        self.stream: str | None = None
        self.segment = 0
        self._rank = rank
        self._environment = environment
        self._normalise = normalise_metrics
        self._notices = notices or Notices()
        self._segment_bytes = segment_bytes
        self._fd = -1  # what appends write to; -1 sends the next append to _append_slowly
        self._open_fd = -1  # the descriptor that is really open
        self._size = 0
        self._lock = threading.RLock()  # reentrant: a signal handler may append; never taken by delivery
        self._writer_lock: FileLock | None = None
        self._buffer: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._torn = False
        self._recovering = False
        self._retry_at = -math.inf
        _all_writers.add(self)

    # ---------------------------------------------------------------- the log path

    def append_metrics(self, metrics: Mapping[str, Any], step: int | float | None = None) -> None:
        """Append the metrics of one call.

        Args:
            metrics: Key to number. Plain finite ``float`` and ``int`` values take the short way; anything else is
                normalised first.
            step: The step, or ``None``.
        """
        time_ns = time.time_ns()
        try:
            # The sum of plain numbers is a plain number, and finite if they are. For everything else (a string, a
            # tensor, None, NaN) this either raises or is seen from the result; no value is looked at one by one.
            total = sum(metrics.values())
            kind = type(total)
            if (kind is float or kind is int) and total - total == 0:
                body = _encode(Record(time_ns, _METRIC, step, metrics))[:-1]  # type: ignore[arg-type]
                line = b'%s,"crc":%d}\n' % (body, crc32(body))
            else:
                line = b""
        except Exception:  # noqa: BLE001 - whatever a value's own arithmetic raises, the slow way deals with it
            line = b""
        if not line or len(line) > MAX_LINE_BYTES:
            self._append_unusual_metrics(metrics, step, time_ns)
            return
        with self._lock:
            try:
                if os.write(self._fd, line) == len(line):
                    self.recorded += 1
                    self._size += len(line)
                    if self._size > self._segment_bytes:
                        self._roll()
                    return
                self._torn = True
                self._fd = -1
            except OSError as error:
                self._append_slowly(line, error)
                return
            self._append_slowly(line, None)

    def append(self, record: Record) -> None:
        """Append a record of any kind.

        A record that JSON cannot take is counted as dropped with its reason and told; values are made plain before
        (:mod:`lightning_loggers.values`), so this is a defect of the caller, not of the user.
        """
        try:
            try:
                line = encode_line(record)
            except UnicodeEncodeError:
                line = encode_line(without_surrogates(record))
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._count_drop("unencodable", 1, f"A {record.kind} record ({record.id!r}) was not kept: {error}.")
            return
        if len(line) > MAX_LINE_BYTES:
            self._append_in_parts(record)
            return
        with self._lock:
            try:
                if os.write(self._fd, line) == len(line):
                    self.recorded += 1
                    self._size += len(line)
                    if self._size > self._segment_bytes:
                        self._roll()
                    return
                self._torn = True
                self._fd = -1
            except OSError as error:
                self._append_slowly(line, error)
                return
            self._append_slowly(line, None)

    # ---------------------------------------------------------------- state that others read

    @property
    def position(self) -> Position:
        """Where the stream ends for now."""
        return Position(self.segment, self._size)

    @property
    def pending_in_memory(self) -> int:
        """Lines that wait in memory for a file system that refuses."""
        return len(self._buffer)

    @property
    def rank(self) -> int:
        """The global rank, asked now."""
        return self._rank() if callable(self._rank) else self._rank

    def flush(self) -> bool:
        """Try now to write what waits in memory.

        Returns:
            Whether nothing waits any more.
        """
        with self._lock:
            if self._buffer or self._fd != self._open_fd:
                self._retry_at = -math.inf
                self._recover()
            return not self._buffer

    def close(self) -> None:
        """Write what waits, sync the file, and let go of the stream. A later append opens it again."""
        with self._lock:
            if not self.flush():
                lost = len(self._buffer)
                self.recorded -= lost
                self._count_drop("disk refused", lost, f"{lost} records could not be written to {self.folder}.")
                self._buffer.clear()
                self._buffered_bytes = 0
            if self._open_fd >= 0:
                with contextlib.suppress(OSError):
                    os.fdatasync(self._open_fd)
            self._let_go()

    def invalidate(self, fd: int) -> None:
        """Called by :mod:`.keeper` when the file behind ``fd`` has vanished: the next append makes it again."""
        if fd == self._open_fd:
            self._fd = -1

    # ---------------------------------------------------------------- everything unusual

    def _append_unusual_metrics(self, metrics: Mapping[Any, Any], step: int | float | None, time_ns: int) -> None:
        """Append metrics that are not all plain finite numbers."""
        try:
            data, others = self._normalise(metrics)
            if type(step) not in {int, float, type(None)}:
                step = _plain_step(step)
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._count_drop("unreadable metrics", 1, f"A call's metrics were not kept: {error!r}")
            return
        if data:
            self.append(Record(time_ns, _METRIC, step, data, split_nonfinite(data)))
        for record in others:
            record.time_ns, record.step = time_ns, step
            self.append(record)

    def _append_in_parts(self, record: Record) -> None:
        """Append a record whose line would be too long, as several with the same time and step."""
        if record.data is not None and len(record.data) > 1:
            items = list(record.data.items())
            for half in (items[: len(items) // 2], items[len(items) // 2 :]):
                part = msgspec.structs.replace(record, data=dict(half), nonfinite=split_nonfinite(dict(half)))
                self.append(part)
            return
        if record.value is not None:
            name = f"{safe_name(record.id or record.kind)}.json"
            try:
                blob = self.blobs.put_bytes(_encode(record.value), name)
            except OSError as error:
                self._count_drop("disk refused", 1, f"A {record.kind} record ({record.id!r}) was not kept: {error}.")
                return
            self.append(msgspec.structs.replace(record, value=None, blobs=[blob]))
            return
        self._count_drop("too long", 1, f"A {record.kind} record ({record.id!r}) of over {MAX_LINE_BYTES} bytes.")

    def _append_slowly(self, line: bytes, error: OSError | None) -> None:
        """The write failed: nothing is open yet, the process was forked, or the file system refuses."""
        if self._open_fd >= 0 and self._fd == self._open_fd:
            self._fd = -1
            self._tell_refusal(error)
            self._retry_at = time.monotonic() + _RETRY_WRITE_EVERY_S
        self._buffer.append(line)
        self._buffered_bytes += len(line)
        self.recorded += 1
        while self._buffered_bytes > BUFFER_BYTES and len(self._buffer) > 1:
            self._buffered_bytes -= len(self._buffer.popleft())
            self.recorded -= 1
            self._count_drop("disk refused", 1, f"The disk under {self.folder} still refuses: the oldest records go.")
        if time.monotonic() >= self._retry_at:
            self._recover()

    def _recover(self) -> None:
        """Open what has to be opened, then write what waits; on failure leave it all for a later try."""
        if self._recovering:  # a signal handler's append inside this very method: its line waits in the buffer
            return
        self._recovering = True
        try:
            if self._open_fd >= 0 and not self._still_there():
                self._remake_deleted_file()
            elif self._open_fd < 0:
                self._open()
            self._fd = self._open_fd
            if self._torn:
                self._mend_torn_line()
            while self._buffer:
                line = self._buffer[0]
                written = os.write(self._fd, line)
                if written != len(line):
                    self._torn = True
                    raise OSError("short write")
                self._size += written
                self._buffered_bytes -= written
                self._buffer.popleft()
                if self._size > self._segment_bytes:
                    self._roll()
            self._retry_at = -math.inf
        except OSError as error:
            self._fd = -1
            self._retry_at = time.monotonic() + _RETRY_WRITE_EVERY_S
            self._tell_refusal(error)
        finally:
            self._recovering = False

    def _open(self) -> None:
        """Open the stream: make the folder, become its writer, mend a torn tail, write a header line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        rank = self.rank
        stream = f"rank{rank}"
        with contextlib.suppress(JournalFormatError):
            known = read_first_header(self.folder)
            if known is not None:
                self.run = msgspec.structs.replace(self.run, uid=known.run.uid)
        lock = FileLock(lock_path(self.folder, stream))
        try:
            usable = lock.acquire(wait_s=0.3) and self._readable(stream)
        except OSError:
            usable = False
            if not self.folder.is_dir():
                raise
        if not usable:
            # Another live process (this one's parent after a fork, a second job given the same version) writes the
            # stream, or a newer version of this package wrote it: ours gets a name of its own in the same run.
            lock.release()
            stream = f"{stream}-{os.getpid():x}{time.time_ns() & 0xFFFFFF:x}"
            lock = FileLock(lock_path(self.folder, stream))
            lock.acquire()
        segments = list_segments(self.folder).get(stream, [])
        try:
            self._open_segment(stream, segments[-1] if segments else 0, rank)
        except OSError:
            lock.release()
            raise
        self._writer_lock = lock
        keeper.keep(self)

    def _readable(self, stream: str) -> bool:
        """Whether the stream's own segments are of a format that this version may append to."""
        try:
            read_first_header(self.folder, stream=stream)
        except JournalFormatError:
            return False
        return True

    def _open_segment(self, stream: str, segment: int, rank: int) -> None:
        fd = os.open(
            segment_path(self.folder, stream, segment),
            os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o644,
        )
        try:
            size = os.fstat(fd).st_size
            header = encode_line(Header(FORMAT_VERSION, self.run, time.time_ns(), rank, self._environment()))
            if size and os.pread(fd, 1, size - 1) != b"\n":
                header = b"\n" + header
            if os.write(fd, header) != len(header):
                os.ftruncate(fd, size)
                raise OSError("no space for the header line")
        except BaseException:
            os.close(fd)
            raise
        if self._open_fd >= 0:
            os.close(self._open_fd)
        self.stream, self.segment = stream, segment
        self._open_fd = self._fd = fd
        self._size = size + len(header)

    def _roll(self) -> None:
        """Begin the next segment; if that fails the current one goes on and the next append tries again."""
        if self.stream is None:
            return
        with contextlib.suppress(OSError):
            self._open_segment(self.stream, self.segment + 1, self.rank)

    def _still_there(self) -> bool:
        if self.stream is None:
            return False
        try:
            there = segment_path(self.folder, self.stream, self.segment).stat()
        except OSError:
            return False
        mine = os.fstat(self._open_fd)
        return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev)

    def _remake_deleted_file(self) -> None:
        """Somebody deleted the folder under a live run: write the open, nameless file's content to a new one."""
        assert self.stream is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_path(self.folder, self.stream))
        lock.acquire(wait_s=0.3)
        old = self._open_fd
        new = os.open(
            segment_path(self.folder, self.stream, self.segment),
            os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o644,
        )
        offset = 0
        try:
            while chunk := os.pread(old, 2**20, offset):
                if os.write(new, chunk) != len(chunk):
                    raise OSError("no space for the journal's own content")  # noqa: TRY301
                offset += len(chunk)
        except BaseException:
            os.close(new)
            with contextlib.suppress(OSError):
                segment_path(self.folder, self.stream, self.segment).unlink()
            lock.release()
            raise
        os.close(old)
        if self._writer_lock is not None:
            self._writer_lock.release()
        self._writer_lock = lock
        self._open_fd = self._fd = new
        self._size = offset
        self._notices.tell_once(
            ("remade", str(self.folder)),
            f"The journal folder {self.folder} was deleted while the run was writing to it; the current segment was "
            f"written again from memory of the kernel. Earlier segments and files that were not yet delivered are "
            f"gone. Keep the folder until `lightning-loggers status {self.folder}` says that nothing is pending.",
        )

    def _mend_torn_line(self) -> None:
        """A write was cut short: take its part of a line back, or else end it, so that the next line stands alone."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            os.write(self._fd, b"\n")
            self._size = os.fstat(self._fd).st_size
        self._torn = False

    def _let_go(self) -> None:
        fd, self._open_fd, self._fd = self._open_fd, -1, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
        if self._writer_lock is not None:
            self._writer_lock.release()
            self._writer_lock = None

    def _count_drop(self, reason: str, count: int, message: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        self._notices.tell_once(("dropped", reason, str(self.folder)), f"{message} Training goes on.")

    def _tell_refusal(self, error: OSError | None) -> None:
        cause = error.strerror or str(error) if error is not None else "the write was cut short"
        self._notices.tell_once(
            ("refused", cause, str(self.folder)),
            f"The journal in {self.folder} cannot be written ({cause}). Training goes on; the newest "
            f"{BUFFER_BYTES // 2**20} MiB of records stay in memory and are written when this is mended: free some "
            f"space, or make the folder writable (see `df -h {self.folder}`).",
        )

    def _start_over_in_child(self) -> None:
        """After ``fork``: drop the parent's descriptors; the first append opens a stream of this process's own."""
        self._lock = threading.RLock()
        fd, self._open_fd, self._fd = self._open_fd, -1, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._writer_lock = None
        self._buffer.clear()  # the parent writes these
        self._buffered_bytes = 0
        self._torn = self._recovering = False
        self._retry_at = -math.inf
        self.recorded = 0
        self.dropped = {}
        self.stream = None
        self.segment = self._size = 0


def _plain_step(step: Any) -> int | float | None:
    """A step as JSON takes it: numpy integers, 0-d tensors and numeric strings become plain numbers."""
    if hasattr(step, "item"):
        step = step.item()
    if isinstance(step, int | float):
        return step if math.isfinite(step) else None
    number = float(step)
    return int(number) if number.is_integer() else number


def _start_over_in_child() -> None:
    for writer in list(_all_writers):
        writer._start_over_in_child()  # noqa: SLF001 - same module


os.register_at_fork(after_in_child=_start_over_in_child)
