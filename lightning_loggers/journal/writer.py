"""The appending half of a journal: what a log call pays for.

One log call is one line is one ``os.write`` to a file opened with ``O_APPEND``. What can go wrong with it (nothing open
yet, a forked process, a full disk, a deleted folder) is found by that write failing, so that the path on which nothing
goes wrong asks about none of it.
"""

import contextlib
import errno
import math
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from lightning_loggers.errors import JournalError
from lightning_loggers.journal import keeper, segments
from lightning_loggers.journal.blobs import BlobStore, safe_name
from lightning_loggers.journal.layout import BLOBS_FOLDER, list_segments, segment_path
from lightning_loggers.journal.lock import FileLock
from lightning_loggers.journal.reader import Position, read_first_header
from lightning_loggers.notices import Notices
from lightning_loggers.records import (
    FORMAT_VERSION,
    MAX_LINE_BYTES,
    Header,
    Kind,
    Place,
    PlacedMetrics,
    PlainMetrics,
    Record,
    RunSpec,
    encode_json,
    encode_line,
    split_nonfinite,
)

DEFAULT_SEGMENT_BYTES = 64 * 2**20
BUFFER_BYTES = 4 * 2**20
"""What is kept in memory while the disk refuses; older lines are dropped, counted and told."""

_RETRY_WRITE_EVERY_S = 1.0
_LONG = f"a line of the journal holds {MAX_LINE_BYTES // 2**20} MiB"

_encode = msgspec.json.Encoder().encode
_METRIC = Kind.METRIC.value
_PLAIN = 2.0**63
"""Integers from here on are no 64-bit ones: pandas and every tracker refuse them, so they are kept as floats."""

NormaliseMetrics = Callable[[Mapping[Any, Any]], tuple[dict[str, Any], list[Record]]]
DeferMetrics = Callable[[Mapping[Any, Any], Any, int, Place | None], bool]

_all_writers: "weakref.WeakSet[JournalWriter]" = weakref.WeakSet()


class JournalWriter:
    """Appends to one stream (one rank of one run) of a journal.

    Nothing is created or opened before the first record.

    Args:
        folder: The run's journal folder.
        run: What the header says of the run. If the folder already belongs to a run, that run's ``uid`` is kept.
        rank: Global rank, or a callable that tells it when the first record is written.
        environment: Called once, at the first record; told in the header, for a person.
        normalise_metrics: Turns metrics that JSON cannot take as they stand into plain ones, and into other records
            for what is no number (:func:`lightning_loggers.values.metrics.normalise`).
        defer_metrics: Asked before that, with metrics, step, time and place; returns whether it takes them, because
            their values are not there yet, and will call :meth:`append_arrived`.
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
        defer_metrics: DeferMetrics | None = None,
        notices: Notices | None = None,
        segment_bytes: int = DEFAULT_SEGMENT_BYTES,
    ) -> None:
        self.folder = folder
        self.run = run
        self.blobs = BlobStore(folder / BLOBS_FOLDER)
        self.recorded = 0
        self.found_nonfinite = False
        self.dropped: dict[str, int] = {}
        self.stream: str | None = None
        self.segment = 0
        self._rank = rank
        self._environment = environment
        self._normalise = normalise_metrics
        self._defer = defer_metrics
        self._notices = notices or Notices()
        self._segment_bytes = segment_bytes
        self._fd = -1  # what appends write to; -1 sends the next append to _append_slowly
        self._open_fd = -1  # the descriptor that is really open
        self._size = 0  # of the whole lines; a line behind for an instant, see position
        self._roll_above = segment_bytes
        self._header_rank = 0
        self._lock = threading.RLock()  # reentrant: a signal handler may append; never taken by delivery
        self._counting = threading.RLock()
        self._writer_lock: FileLock | None = None
        self._buffer: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._torn = False
        self._recovering = False
        self._retry_at = -math.inf
        self._told_environment: dict[str, Any] | None = None
        self._own_stream: str | None = None
        _all_writers.add(self)

    # ---------------------------------------------------------------- the log path

    def append_metrics(
        self, metrics: Mapping[str, Any], step: int | float | None = None, place: Place | None = None
    ) -> None:
        """Append the metrics of one call.

        Args:
            metrics: Key to number. Plain finite ``float`` and ``int`` values take the short way; anything else is
                normalised first.
            step: The step, or ``None``.
            place: Where the training is, if known.
        """
        time_ns = time.time_ns()
        try:
            # The sum of plain numbers is a plain number, and finite if they are. For everything else (a string, a
            # tensor, None, NaN, 2**80) this either raises or is seen from the result; no value is looked at singly.
            total = sum(metrics.values())
            kind = type(total)
            if (
                (kind is float or kind is int)
                and -_PLAIN < total < _PLAIN
                and (step is None or type(step) is int or type(step) is float)
            ):
                if place is None:
                    body = _encode(PlainMetrics(time_ns, _METRIC, step, metrics))[:-1]
                else:
                    body = _encode(PlacedMetrics(time_ns, _METRIC, step, metrics, *place))[:-1]
                # Neither "%" nor str(): the encoder's code is what the processor has at hand by now.
                line = body + (b',"crc":' + _encode(crc32(body)) + b"}\n")  # the body is copied once
            else:
                line = b""
        except Exception:  # noqa: BLE001 - whatever a value's own arithmetic raises, the slow way deals with it
            line = b""
        if not line or len(line) > MAX_LINE_BYTES:
            self._append_unusual_metrics(metrics, step, time_ns, place)
            return
        # What _append_line does, without the cost of calling it.
        with self._lock:
            try:
                written = os.write(self._fd, line)
            except OSError as error:
                self._append_slowly(line, error)
                return
            if written != len(line):
                self._torn = True
                self._fd = -1
                self._append_slowly(line, None)
                return
            self.recorded += 1
            self._size += written
            if self._size > self._roll_above:
                self._recover()

    def append(self, record: Record) -> None:
        """Append a record of any kind.

        A record that JSON cannot take is counted as dropped with its reason and told; values are made plain before
        (:mod:`lightning_loggers.values`), so this is a defect of the caller, not of the user. A step that is no number
        is left out and told.
        """
        try:
            step = self.plain_step(record.step)
            if step is not record.step:
                record = msgspec.structs.replace(record, step=step)
            line = encode_line(record)
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._count_drop("unencodable", 1, f"A {record.kind} record ({record.id!r}) was not kept: {error}.")
            return
        if len(line) > MAX_LINE_BYTES:
            self._append_in_parts(record)
        else:
            self._append_line(line)

    def _append_line(self, line: bytes) -> None:
        with self._lock:
            try:
                written = os.write(self._fd, line)
            except OSError as error:
                self._append_slowly(line, error)
                return
            if written != len(line):
                self._torn = True
                self._fd = -1
                self._append_slowly(line, None)
                return
            # A signal handler that appends runs after a call: after the write above, but not inside these statements.
            self.recorded += 1
            self._size += written
            if self._size > self._roll_above:
                self._recover()

    # ---------------------------------------------------------------- state that others read

    @property
    def position(self) -> Position:
        """Where the stream ends for now: as the file has it, since a signal handler may ask before an append counts."""
        with self._lock:
            size = self._size
            if not self._torn:  # else the disk lets nobody take half a line back, which no reader goes past
                with contextlib.suppress(OSError):  # not open, or closed by somebody
                    size = os.fstat(self._open_fd).st_size
            return Position(self.segment, size)

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

    # ---------------------------------------------------------------- called by the keeper, from its thread

    def invalidate(self, device: int, inode: int) -> None:
        """This file has vanished: the next append makes it again."""
        with contextlib.suppress(OSError):
            mine = os.fstat(self._open_fd)
            if (mine.st_dev, mine.st_ino) == (device, inode):
                self._fd = -1

    def touch(self) -> None:
        """Show a file system without locks that the writer lives."""
        lock = self._writer_lock
        if lock is not None:
            lock.touch()

    def retry(self) -> None:
        """Write what waits in memory, if anything does: the user may not log again for hours."""
        if self._buffer and self._lock.acquire(blocking=False):
            try:
                self.flush()
            finally:
                self._lock.release()

    # ---------------------------------------------------------------- everything unusual

    def _append_unusual_metrics(self, metrics: Mapping[Any, Any], step: Any, time_ns: int, place: Place | None) -> None:
        """Append metrics that are not all plain finite numbers, or whose step is none."""
        if self._defer is None or not self._defer(metrics, step, time_ns, place):
            self.append_arrived(metrics, step, time_ns, place)

    def append_arrived(self, metrics: Mapping[Any, Any], step: Any, time_ns: int, place: Place | None) -> None:
        """Append metrics of any sort, whose values are there, under the time at which they were logged.

        Args:
            metrics: Metrics by key.
            step: Step.
            time_ns: When they were logged, nanoseconds since the epoch.
            place: Where the training was then, if known.
        """
        try:
            data, others = self._normalise(metrics)
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._count_drop("unreadable metrics", 1, f"A call's metrics were not kept: {error!r}")
            return
        step = self.plain_step(step)
        meta, epoch, phase = place or (None, None, None)
        if data:
            nonfinite = split_nonfinite(data)
            self.found_nonfinite = self.found_nonfinite or nonfinite is not None
            self.append(Record(time_ns, _METRIC, step, data, nonfinite, meta=meta, epoch=epoch, phase=phase))
        for record in others:
            record.time_ns, record.step, record.epoch, record.phase = time_ns, step, epoch, phase
            record.meta = record.meta or meta
            self.append(record)

    def plain_step(self, step: Any) -> int | float | None:
        """The step as JSON takes it: numpy integers, tensors of one element and numeric strings are plain numbers."""
        if step is None or (type(step) is int and -(2**63) <= step < 2**63):
            return step
        number = _number(step)
        if number is None:
            self._notices.tell_once(
                ("step", type(step)), f"A step of type {type(step).__name__} is no finite number: kept without a step."
            )
        return number

    def _append_in_parts(self, record: Record) -> None:
        """Append a record whose line would be too long: as several of the same time and step, or with a blob."""
        if record.data is not None and len(record.data) > 1:
            items = list(record.data.items())
            for half in (dict(items[: len(items) // 2]), dict(items[len(items) // 2 :])):
                self.append(msgspec.structs.replace(record, data=half, nonfinite=split_nonfinite(half)))
        elif record.blobs is not None and len(record.blobs) > 1:
            middle = len(record.blobs) // 2
            for blobs in (record.blobs[:middle], record.blobs[middle:]):
                self.append(msgspec.structs.replace(record, blobs=blobs))
        elif record.data:
            [(key, value)] = record.data.items()
            self._notices.tell_once(
                ("long", record.kind, key[:200]), f"The value of {record.kind} {key[:200]!r} is kept as text: {_LONG}."
            )
            self.append(Record(record.time_ns, Kind.TEXT.value, record.step, id=key, value=value))
        elif record.value is not None:
            try:
                blob = self.blobs.put_bytes(encode_json(record.value), f"{safe_name(record.id or record.kind)}.json")
            except OSError as error:
                self._count_drop("disk refused", 1, f"A {record.kind} record ({record.id!r}) was not kept: {error}.")
                return
            self.append(msgspec.structs.replace(record, value=None, blobs=[blob, *(record.blobs or [])]))
        else:
            self._count_drop("too long", 1, f"A {record.kind} record was not kept: {_LONG}.")

    def _append_slowly(self, line: bytes, error: OSError | None) -> None:
        """The write failed: nothing is open yet, the process was forked, or the file system refuses."""
        refused = self._open_fd >= 0 and self._fd == self._open_fd
        length = len(line)
        self._buffer.append(line)
        self._buffered_bytes += length
        self.recorded += 1
        if self._recovering:  # a signal handler's append inside _recover, which writes this line, too
            return
        self._fd = -1  # with a line in the buffer nothing may be written past it
        if refused:
            self._tell_refusal(error)
            if error is not None and error.errno != errno.EBADF:
                self._retry_at = time.monotonic() + _RETRY_WRITE_EVERY_S
        while self._buffered_bytes > BUFFER_BYTES and len(self._buffer) > 1:
            length = len(self._buffer.popleft())
            self._buffered_bytes -= length
            self.recorded -= 1
            self._count_drop("disk refused", 1, f"The disk under {self.folder} still refuses: the oldest records go.")
        if time.monotonic() >= self._retry_at:
            self._recover()

    def _recover(self) -> None:
        """Open, mend or roll what has to be, then write what waits; on failure leave it all for a later try.

        While this runs, what a signal handler appends waits in the buffer, so that it keeps its place in the order.
        """
        if self._recovering:
            return
        self._recovering = True
        try:
            self._fd = -1
            if self._open_fd >= 0:
                self._check_descriptor()
            if self._open_fd < 0:
                self._open()
            elif not self._still_there():
                self._remake_deleted_file()
            if self._torn or os.fstat(self._open_fd).st_size != self._size:
                self._mend_torn_line()  # or this is a signal handler's append, just after the write that was cut short
            while True:
                self._write_what_waits()
                self._fd = self._open_fd
                if not self._buffer:
                    break
                self._fd = -1
            self._retry_at = -math.inf
        except Exception as error:  # noqa: BLE001 - seam: an append never raises
            self._fd = -1
            if self._torn and self._open_fd >= 0:
                with contextlib.suppress(OSError):
                    self._mend_torn_line()
            self._retry_at = time.monotonic() + _RETRY_WRITE_EVERY_S
            self._tell_refusal(error)
        finally:
            self._recovering = False

    def _write_what_waits(self) -> None:
        if self._size > self._roll_above:
            self._begin_next_segment()
        while self._buffer:
            line = self._buffer[0]
            length = len(line)
            written = os.write(self._open_fd, line)
            if written != length:
                self._torn = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._buffer.popleft()
            self._buffered_bytes -= length
            self._size += length
            if self._size > self._roll_above:
                self._begin_next_segment()

    def _open(self) -> None:
        """Open the stream: make the folder, become its writer, mend a torn tail, write a header line."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._header_rank = self.rank
        with contextlib.suppress(JournalError):
            known = read_first_header(self.folder)
            if known is not None:
                self.run = msgspec.structs.replace(self.run, uid=known.run.uid)
        stream, lock = self._take_stream(f"rank{self._header_rank}")
        try:
            segment = max(list_segments(self.folder).get(stream, [0]))
            fd, size = segments.open_segment(segment_path(self.folder, stream, segment), self._header_line())
        except BaseException:
            lock.release()
            raise
        self._writer_lock = lock
        self._torn = False
        self._write_to(fd, stream, segment, size)

    def _take_stream(self, stream: str) -> tuple[str, FileLock]:
        """Become the writer of a stream, or else of one of our own in the same run.

        Another live process (this one's parent after a fork, a second job given the same version) may write it, or
        another version of this package wrote it in its own format.
        """
        lock = segments.take_stream(self.folder, stream)
        if lock is not None:
            return stream, lock
        if self._own_stream is None:
            self._own_stream = f"{stream}-{os.getpid():x}{secrets.token_hex(4)}"
        return self._own_stream, segments.take_own_stream(self.folder, self._own_stream)

    def _begin_next_segment(self) -> None:
        """Begin the next segment; if that fails the current one goes on for a while.

        The new file gets its name when its header is in it: a reader that sees it takes the one before as finished, so
        nothing may be written to that any more.
        """
        stream = self.stream
        assert stream is not None
        segment = max([self.segment, *list_segments(self.folder).get(stream, [])]) + 1
        path = segment_path(self.folder, stream, segment)
        try:
            header = self._header_line()
            fd = segments.make_segment(path, lambda fd: segments.write_all(fd, header))
        except OSError:
            self._roll_above = self._size + self._segment_bytes // 16 + 1
            return
        self._write_to(fd, stream, segment, len(header))

    def _write_to(self, fd: int, stream: str, segment: int, size: int) -> None:
        """Append to this descriptor from now on."""
        old = self._open_fd
        self.stream, self.segment, self._size = stream, segment, size
        self._roll_above = self._segment_bytes
        self._open_fd = fd
        if old >= 0:
            os.close(old)
        keeper.keep(self, fd, self.folder)

    def _header_line(self) -> bytes:
        if self._told_environment is None:
            try:
                self._told_environment = self._environment()
            except Exception as error:  # noqa: BLE001 - it is for a person only
                self._told_environment = {"unreadable": f"{type(error).__name__}: {error}"}
        header = Header(FORMAT_VERSION, self.run, time.time_ns(), self._header_rank, self._told_environment)
        try:
            line = encode_line(header)
        except Exception:  # noqa: BLE001 - a value that JSON does not take
            options = {key: str(value) for key, value in self.run.options.items()}
            run = msgspec.structs.replace(self.run, options=options)
            line = encode_line(msgspec.structs.replace(header, run=run, environment={}))
        return line if len(line) <= MAX_LINE_BYTES else encode_line(msgspec.structs.replace(header, environment={}))

    def _check_descriptor(self) -> None:
        """Forget a descriptor that somebody else has closed, such as a library that closes all on becoming a daemon."""
        try:
            os.fstat(self._open_fd)
        except OSError:
            self._open_fd = -1
            if self._writer_lock is not None:
                self._writer_lock.forget()
                self._writer_lock = None

    def _still_there(self) -> bool:
        """Whether the open file still has a name; one that was moved is written on where it is now."""
        assert self.stream is not None
        mine = os.fstat(self._open_fd)
        if mine.st_nlink > 0:
            return True
        try:  # some network file systems count no links
            there = segment_path(self.folder, self.stream, self.segment).stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev)

    def _remake_deleted_file(self) -> None:
        """Somebody deleted the folder under a live run: write the open, nameless file's content to a new one."""
        assert self.stream is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        stream, lock, segment, old = self.stream, self._writer_lock, self.segment, self._open_fd
        if lock is None or not lock.still_there():
            stream, lock = self._take_stream(stream)
        if segment_path(self.folder, stream, segment).exists():  # put back by somebody, or another process's by now
            segment = max(list_segments(self.folder).get(stream, [0])) + 1
        try:
            path = segment_path(self.folder, stream, segment)
            fd = segments.make_segment(path, lambda fd: segments.copy(old, fd))
        except BaseException:
            if lock is not self._writer_lock:
                lock.release()
            raise
        self._write_to(fd, stream, segment, os.fstat(fd).st_size)
        if self._writer_lock is not None and lock is not self._writer_lock:
            self._writer_lock.release()
        self._writer_lock = lock
        self._notices.tell_once(
            ("remade", str(self.folder)),
            f"The journal folder {self.folder} was deleted while the run was writing to it; the current segment was "
            f"written again from memory of the kernel. Earlier segments and files that were not yet delivered are "
            f"gone. Keep the folder until `lightning-loggers status {self.folder}` says that nothing is pending.",
        )

    def _mend_torn_line(self) -> None:
        accounted, self._size = self._size, segments.mend_torn_line(self._open_fd)
        self._torn = False
        if self._size > accounted:
            with contextlib.suppress(OSError):
                segments.blank_out_part(self._open_fd, self._size - accounted)

    def _let_go(self) -> None:
        fd, self._open_fd, self._fd = self._open_fd, -1, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
            keeper.let_go(self, self.folder)
        if self._writer_lock is not None:
            self._writer_lock.release()
            self._writer_lock = None

    def count_dropped(self, reason: str, count: int = 1) -> None:
        """Count records that are not kept; any thread may."""
        with self._counting:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def _count_drop(self, reason: str, count: int, message: str) -> None:
        self.count_dropped(reason, count)
        self._notices.tell_once(("dropped", reason, str(self.folder)), f"{message} Training goes on.")

    def _tell_refusal(self, error: Exception | None) -> None:
        cause = getattr(error, "strerror", None) or str(error or "the write was cut short")
        self._notices.tell_once(
            ("refused", cause, str(self.folder)),
            f"The journal in {self.folder} cannot be written ({cause}). Training goes on; the newest "
            f"{BUFFER_BYTES // 2**20} MiB of records stay in memory and are written when this is mended: free some "
            f"space, or make the folder writable (see `df -h {self.folder}`).",
        )

    def _start_over_in_child(self) -> None:
        """After ``fork``: drop the parent's descriptors; the first append opens a stream of this process's own."""
        self._lock, self._counting = threading.RLock(), threading.RLock()
        fd, self._open_fd, self._fd = self._open_fd, -1, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._writer_lock = None
        self._buffer.clear()  # the parent writes these
        self._buffered_bytes = 0
        self._torn = self._recovering = False
        self._retry_at = -math.inf
        self._told_environment = None
        self._own_stream = None
        self.recorded = 0
        self.dropped = {}
        self.stream = None
        self.segment = self._size = 0


def _number(step: Any) -> int | float | None:
    with contextlib.suppress(Exception):  # whatever a foreign object's own conversion raises
        plain = step.item() if hasattr(step, "item") else step
        if isinstance(plain, int) and abs(plain) < 2**63:
            return int(plain)
        number = float(plain)
        if math.isfinite(number):
            return number if isinstance(plain, float | int) or not number.is_integer() else int(number)
    return None


def _start_over_in_child() -> None:
    for writer in list(_all_writers):
        writer._start_over_in_child()


os.register_at_fork(after_in_child=_start_over_in_child)
