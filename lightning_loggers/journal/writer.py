"""The appending half of a journal: what a log call pays for.

One log call is one line is one ``os.write`` to a file opened with ``O_APPEND``. What can go wrong with it (nothing open
yet, a forked process, a full disk, a deleted folder) is found by that write failing, so that the path on which nothing
goes wrong asks about none of it.
"""

import contextlib
import errno
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

from lightning_loggers.journal import keeper, segments
from lightning_loggers.journal.blobs import BlobStore
from lightning_loggers.journal.fitting import LONG, in_parts, plain_step
from lightning_loggers.journal.layout import BLOBS_FOLDER
from lightning_loggers.journal.reader import Position
from lightning_loggers.journal.stream import StreamFile
from lightning_loggers.notices import Notices
from lightning_loggers.records import (
    MAX_LINE_BYTES,
    Kind,
    Place,
    PlacedMetrics,
    PlainMetrics,
    Record,
    RunSpec,
    encode_line,
    split_nonfinite,
)

DEFAULT_SEGMENT_BYTES = 64 * 2**20
BUFFER_BYTES = 4 * 2**20
"""What is kept in memory while the disk refuses; older lines are dropped, counted and told."""

_RETRY_WRITE_EVERY_S = 1.0

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
        self.blobs = BlobStore(folder / BLOBS_FOLDER)
        self.recorded = 0
        self.found_nonfinite = False
        self.dropped: dict[str, int] = {}
        self._normalise = normalise_metrics
        self._defer = defer_metrics
        self._notices = notices or Notices()
        self._file = StreamFile(folder, run, rank, environment, self._notices)
        self._segment_bytes = segment_bytes
        self._fd = -1  # what appends write to: the file's descriptor, or -1, which sends them to _append_slowly
        self._size = 0  # of the whole lines; a line behind for an instant, see position
        self._roll_above = segment_bytes
        self._lock = threading.RLock()  # reentrant: a signal handler may append; never taken by delivery
        self._counting = threading.RLock()
        self._buffer: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._torn = False
        self._recovering = False
        self._retry_at = -math.inf
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
    def run(self) -> RunSpec:
        """What the header says of the run."""
        return self._file.run

    @property
    def stream(self) -> str | None:
        """Name of the stream; ``None`` before the first record."""
        return self._file.stream

    @property
    def segment(self) -> int:
        """Number of the segment that is being written."""
        return self._file.segment

    @property
    def position(self) -> Position:
        """Where the stream ends for now: as the file has it, since a signal handler may ask before an append counts."""
        with self._lock:
            size = self._size
            if not self._torn:  # else the disk lets nobody take half a line back, which no reader goes past
                with contextlib.suppress(OSError):  # not open, or closed by somebody
                    size = os.fstat(self._file.fd).st_size
            return Position(self.segment, size)

    @property
    def pending_in_memory(self) -> int:
        """Lines that wait in memory for a file system that refuses."""
        return len(self._buffer)

    def flush(self) -> bool:
        """Try now to write what waits in memory.

        Returns:
            Whether nothing waits any more.
        """
        with self._lock:
            if self._buffer or self._fd != self._file.fd:
                self._recover()
            return not self._buffer

    def close(self) -> None:
        """Write what waits, sync the file, and let go of the stream. A later append opens it again."""
        with self._lock:
            if not self.flush():
                lost = len(self._buffer)
                self.recorded -= lost
                self.count_dropped("disk refused", lost)
                self._notices.tell_once(
                    ("lost", str(self.folder)),
                    f"The last {lost} records could not be written to {self.folder} and are lost: it refused them to "
                    f"the end. {self.recorded} others are there.",
                )
                self._buffer.clear()
                self._buffered_bytes = 0
            if self._file.fd >= 0:
                with contextlib.suppress(OSError):
                    os.fdatasync(self._file.fd)
            self._let_go()

    # ---------------------------------------------------------------- called by the keeper, from its thread

    def invalidate(self, device: int, inode: int) -> None:
        """This file has vanished: the next append makes it again."""
        if self._file.is_file(device, inode):
            self._fd = -1

    def touch(self) -> None:
        """Show a file system without locks that the writer lives."""
        self._file.touch()

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
        return plain_step(step, self._notices)

    def _append_in_parts(self, record: Record) -> None:
        try:
            parts = list(in_parts(record, self.blobs, self._notices))
        except OSError as error:
            self._count_drop("disk refused", 1, f"A {record.kind} record ({record.id!r}) was not kept: {error}.")
            return
        if not parts:
            self._count_drop("too long", 1, f"A {record.kind} record was not kept: {LONG}.")
        for part in parts:
            self.append(part)

    def _append_slowly(self, line: bytes, error: OSError | None) -> None:
        """The write failed: nothing is open yet, the process was forked, or the file system refuses."""
        refused = self._file.fd >= 0 and self._fd == self._file.fd
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
            if self._file.fd >= 0:
                self._file.forget_if_closed()
            if self._file.fd < 0:
                size = self._file.open()
                self._torn = False
                self._begin_at(size)
            elif not self._file.still_there():
                self._begin_at(self._file.remake())
            if self._torn or os.fstat(self._file.fd).st_size != self._size:
                self._mend_torn_line()  # or this is a signal handler's append, just after the write that was cut short
            while True:
                self._write_what_waits()
                self._fd = self._file.fd
                if not self._buffer:
                    break
                self._fd = -1
            self._retry_at = -math.inf
        except Exception as error:  # noqa: BLE001 - seam: an append never raises
            self._fd = -1
            if self._torn and self._file.fd >= 0:
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
            written = os.write(self._file.fd, line)
            if written != length:
                self._torn = True
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._buffer.popleft()
            self._buffered_bytes -= length
            self._size += length
            if self._size > self._roll_above:
                self._begin_next_segment()

    def _begin_next_segment(self) -> None:
        """Begin the next segment; if that fails the current one goes on for a while."""
        try:
            size = self._file.begin_next_segment()
        except OSError:
            self._roll_above = self._size + self._segment_bytes // 16 + 1
        else:
            self._begin_at(size)

    def _begin_at(self, size: int) -> None:
        """Another file is written from now on, which has this size."""
        self._size = size
        self._roll_above = self._segment_bytes
        keeper.keep(self, self._file.fd, self.folder)

    def _mend_torn_line(self) -> None:
        accounted, self._size = self._size, segments.mend_torn_line(self._file.fd)
        self._torn = False
        if self._size > accounted:
            with contextlib.suppress(OSError):
                segments.blank_out_part(self._file.fd, self._size - accounted)

    def _let_go(self) -> None:
        self._fd = -1
        if self._file.fd >= 0:
            keeper.let_go(self, self.folder)
        self._file.close()

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
        self._fd = -1
        self._file.start_over_in_child()
        self._buffer.clear()  # the parent writes these
        self._buffered_bytes = 0
        self._torn = self._recovering = False
        self._retry_at = -math.inf
        self.recorded = self._size = 0
        self.dropped = {}


def _start_over_in_child() -> None:
    for writer in list(_all_writers):
        writer._start_over_in_child()


os.register_at_fork(after_in_child=_start_over_in_child)
