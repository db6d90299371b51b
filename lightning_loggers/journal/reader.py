"""The reading half of a journal: for delivery, for the command line, and for anybody's own analysis."""

import contextlib
import logging
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import msgspec

from lightning_loggers.errors import JournalError, JournalFormatError
from lightning_loggers.journal.layout import JOURNAL_FOLDER, list_segments, segment_path
from lightning_loggers.records import (
    FORMAT_VERSION,
    HEADER_START,
    MAX_LINE_BYTES,
    RECORD_START,
    DamagedLineError,
    Header,
    Record,
    decode_line,
)

_CHUNK_BYTES = 2**20
_MAX_DAMAGES = 100
"""In one chunk; past that, stretches that touch are reported as one."""

_LINE_START = re.compile(b"|".join(re.escape(start) for start in (RECORD_START, HEADER_START)))
_HEADER_LINE = re.compile(rb"\n *" + re.escape(HEADER_START))
_FIRST_HEADER_LINE = re.compile(rb"(?:\A|\n) *" + re.escape(HEADER_START))
_LINE_END = re.compile(rb',"crc":(\d{1,10})\}')
_log = logging.getLogger("lightning_loggers")


class Position(msgspec.Struct, frozen=True, order=True):
    """A place in a stream: everything before ``offset`` in ``segment``, and all earlier segments, was read."""

    segment: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of a segment that is no record.

    Attributes:
        path: The segment.
        offset: Where the stretch begins, bytes.
        length: How long it is, bytes.
        reason: What is wrong with it.
    """

    path: Path
    offset: int
    length: int
    reason: str

    def __str__(self) -> str:
        """One sentence for a person."""
        return f"{self.path}: {self.length} bytes at offset {self.offset} are no record ({self.reason}); skipped"


@dataclass(frozen=True, slots=True)
class Entry:
    """A decoded line and the position after it."""

    line: Record | Header
    end: Position


@dataclass(slots=True)
class Chunk:
    """What one read gave.

    Attributes:
        entries: Records and headers, in order.
        end: Position after everything looked at.
        damage: What was skipped.
        at_end: Whether nothing whole follows for now. A torn last line stays unread: its writer may still be at it.
        more: Whether more was there than was read at once.
        torn_bytes: Length of that torn last line.
    """

    entries: list[Entry] = field(default_factory=list)
    end: Position = field(default_factory=Position)
    damage: list[Damage] = field(default_factory=list)
    at_end: bool = False
    more: bool = False
    torn_bytes: int = 0


class StreamReader:
    """Reads one stream of a journal from any position, also while it is written.

    Guarantees:
        - Every undamaged record is read, in order, whatever surrounds it.
        - Memory is bounded by about twice :data:`~lightning_loggers.records.MAX_LINE_BYTES`, whatever the file holds.
        - Runs no code of the file, follows no symbolic link, opens nothing but the stream's own segments.
    """

    def __init__(self, folder: Path, stream: str) -> None:
        self.folder = folder
        self.stream = stream

    def read(
        self,
        position: Position,
        max_bytes: int = _CHUNK_BYTES,
        *,
        final: bool = False,
        segments: Sequence[int] | None = None,
    ) -> Chunk:
        """Read the next chunk.

        Args:
            position: Where to go on, such as :attr:`Chunk.end` of the chunk before.
            max_bytes: About how much to read at once; a longer line is read whole.
            final: Whether the stream's writer is known to be gone: then its torn last line is read as it stands, what
                is whole in it is yielded, and the rest is damage.
            segments: Numbers of the stream's segments, for whoever has just listed them.

        Returns:
            The chunk; its ``end`` always makes progress unless it is ``at_end``.

        Raises:
            JournalError: If a segment may not be read.
            JournalFormatError: If a header says that a newer version of this package wrote the stream.
        """
        if segments is None:
            segments = list_segments(self.folder).get(self.stream, [])
        if not segments or position.segment > segments[-1]:
            return Chunk(end=position, at_end=True)
        if position.segment not in segments:
            position = Position(min(number for number in segments if number > position.segment), 0)
        path = segment_path(self.folder, self.stream, position.segment)
        is_last = position.segment == segments[-1]
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:  # deleted in this instant
            return Chunk(end=position, at_end=True)
        except OSError as error:
            raise JournalError(f"{path} cannot be read: {error.strerror}") from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise JournalError(f"{path} is no regular file")
            return self._read_segment(fd, path, status.st_size, position, max_bytes, is_last=is_last, final=final)
        finally:
            os.close(fd)

    def _read_segment(
        self, fd: int, path: Path, size: int, position: Position, max_bytes: int, *, is_last: bool, final: bool
    ) -> Chunk:
        chunk = Chunk(end=position)
        start = _line_around(fd, max(position.offset, 0), size)
        data = os.pread(fd, max_bytes, start)
        while b"\n" not in data and len(data) < MAX_LINE_BYTES:
            more = os.pread(fd, _CHUNK_BYTES, start + len(data))
            if not more:
                break
            data += more
        chunk.more = not is_last or start + len(data) < size
        whole = data.rfind(b"\n") + 1
        if whole:
            self._split(path, Position(position.segment, start), data[:whole], chunk)
            chunk.end = Position(position.segment, start + whole)
        elif len(data) >= MAX_LINE_BYTES:
            chunk.end = Position(position.segment, self._skip_long_line(fd, path, start, data, chunk))
        elif is_last and not final:
            chunk.at_end, chunk.torn_bytes = True, len(data)
        else:  # nobody will complete this torn tail
            if data:
                self._split(path, Position(position.segment, start), data + b"\n", chunk, torn="torn at its end")
            chunk.at_end = is_last and not data
            chunk.end = Position(position.segment, start + len(data)) if is_last else Position(position.segment + 1, 0)
        return chunk

    def _split(self, path: Path, start: Position, data: bytes, chunk: Chunk, torn: str | None = None) -> None:
        offset = start.offset
        for line in data.split(b"\n")[:-1]:
            if line:
                self._decode(path, line, Position(start.segment, offset), chunk, torn)
            offset += len(line) + 1

    def _decode(self, path: Path, line: bytes, start: Position, chunk: Chunk, torn: str | None = None) -> None:
        try:
            if len(line) > MAX_LINE_BYTES:
                raise DamagedLineError(f"a line of over {MAX_LINE_BYTES} bytes")  # noqa: TRY301
            decoded = _checked(decode_line(line), path)
            chunk.entries.append(Entry(decoded, Position(start.segment, start.offset + len(line) + (torn is None))))
        except DamagedLineError as error:
            reason = torn or str(error)
        else:
            return
        # Where a newline was damaged, whole records stand in one line with the wreck.
        wreck = 0
        intact = True
        for begin, end in _whole_lines(line):
            try:
                decoded = _checked(decode_line(line[begin:end]), path)
            except DamagedLineError:
                continue
            chunk.entries.append(Entry(decoded, Position(start.segment, start.offset + end)))
            if begin > wreck:
                _report(chunk, Damage(path, start.offset + wreck, begin - wreck, reason))
                intact = False
            wreck = end
        if wreck < len(line):
            _report(chunk, Damage(path, start.offset + wreck, len(line) - wreck, reason))
        elif intact:
            _report(chunk, Damage(path, start.offset, 0, "a line break is missing"))

    def _skip_long_line(self, fd: int, path: Path, start: int, data: bytes, chunk: Chunk) -> int:
        """Go over a line that is too long to be one, up to the next newline or anything that looks like a record.

        Returns:
            The offset to go on from.
        """
        data += os.pread(fd, 2 * MAX_LINE_BYTES - len(data), start + len(data))
        here = Position(chunk.end.segment, start)
        newline = data.find(b"\n")
        if newline >= 0:
            self._decode(path, data[:newline], here, chunk)
            return start + newline + 1
        done = max((end for _, end in _whole_lines(data)), default=0)
        if done:
            self._decode(path, data[:done], here, chunk)
        # What starts further than a line's greatest length before the end may be whole in the next window.
        undecided = max(done, len(data) - MAX_LINE_BYTES, 1)
        overlap = max(len(RECORD_START), len(HEADER_START)) - 1
        offset, window = start + undecided, data[undecided:]
        while True:
            stops = [window.find(b"\n") + 1 or -1, window.find(RECORD_START), window.find(HEADER_START)]
            stop = min((at for at in stops if at >= 0), default=None)
            offset += max(len(window) - overlap, 0) if stop is None else stop
            if stop is not None or len(window) <= overlap:
                break
            window = os.pread(fd, _CHUNK_BYTES, offset)
        length = offset - start - done
        if length:
            _report(chunk, Damage(path, start + done, length, f"a line of over {MAX_LINE_BYTES} bytes"))
        return offset


def _line_around(fd: int, offset: int, size: int) -> int:
    """Where reading goes on: at ``offset``, or at the start of the line around it if it lies inside one.

    That is so where a segment lost its tail in a power failure and has grown past the cursor since.
    """
    if offset == 0 or offset >= size:
        return offset
    around = os.pread(fd, 1 + max(len(RECORD_START), len(HEADER_START)), offset - 1)
    if around[:1] in {b"\n", b"}"} or around[1:].startswith((b"\n", RECORD_START, HEADER_START)):
        return offset
    begin = max(0, offset - MAX_LINE_BYTES)
    newline = os.pread(fd, offset - begin, begin).rfind(b"\n")
    return begin + newline + 1 if newline >= 0 or begin == 0 else offset


def _report(chunk: Chunk, damage: Damage) -> None:
    last = chunk.damage[-1] if len(chunk.damage) >= _MAX_DAMAGES else None
    if last is not None and last.offset + last.length + 1 >= damage.offset:
        length = damage.offset + damage.length - last.offset
        chunk.damage[-1] = Damage(last.path, last.offset, length, last.reason)
    else:
        chunk.damage.append(damage)


def _whole_lines(line: bytes) -> Iterator[tuple[int, int]]:
    """Begin and end of everything in the wreck of a line that starts like a record and has its checksum further on.

    A record holds at most one more such start (a metric of that name), so it ends before the second next one: that
    bounds the work on any file to twice its length.
    """
    view = memoryview(line)
    starts = [match.start() for match in _LINE_START.finditer(line)]
    done = 0
    for begin, limit in zip(starts, [*starts[2:], len(line), len(line)], strict=False):
        if begin < done:
            continue
        checksum, at = 0, begin
        for end in _LINE_END.finditer(line, begin, limit):
            checksum = crc32(view[at : end.start()], checksum)
            at = end.start()
            if checksum == int(end[1]):
                done = end.end()
                yield begin, done
                break


def _checked(line: Record | Header, path: Path) -> Record | Header:
    if isinstance(line, Header) and line.lightning_loggers_journal > FORMAT_VERSION:
        raise JournalFormatError(
            f"{path} was written in journal format {line.lightning_loggers_journal}; this version of lightning-loggers "
            f"reads up to format {FORMAT_VERSION}. Read it with a newer one: pip install --upgrade lightning-loggers"
        )
    return line


def read_first_header(folder: Path, *, stream: str | None = None) -> Header | None:
    """The first header line of a journal folder, or of one of its streams.

    Returns:
        The header, or ``None`` if there is none: no segment yet, or only damaged headers.

    Raises:
        JournalFormatError: If a newer version of this package wrote it.
    """
    streams = list_segments(folder)
    for name, segments in streams.items():
        if stream is not None and name != stream:
            continue
        reader = StreamReader(folder, name)
        for segment in segments:  # every segment begins with one: only where that is damaged, a later one is looked for
            chunk = reader.read(Position(segment, 0), 2**16)
            if (header := _first_header_of(chunk)) is not None:
                return header
        position = Position()
        while not chunk.at_end:
            chunk = reader.read(position)
            if (header := _first_header_of(chunk)) is not None:
                return header
            position = chunk.end
    return None


def header_before(folder: Path, stream: str, position: Position) -> Header | None:
    """The header that holds at a position of a stream: the last one before it in its segment, which begins with one.

    The segment is read backwards, to that header and no further.

    Returns:
        The header, or ``None`` if there is no whole one.

    Raises:
        JournalFormatError: If a newer version of this package wrote it.
    """
    path, end = segment_path(folder, stream, position.segment), position.offset
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        while end > 0 and stat.S_ISREG(os.fstat(fd).st_mode):
            begin = max(end - _CHUNK_BYTES, 0)
            before = min(begin, _CHUNK_BYTES)  # blanks and the newline before it
            data = os.pread(fd, end - begin + before + len(HEADER_START), begin - before)
            found = _HEADER_LINE if begin else _FIRST_HEADER_LINE
            for start in reversed([match.end() - len(HEADER_START) for match in found.finditer(data)]):
                if begin - before + start >= position.offset:
                    continue
                line = data[start:].partition(b"\n")[0]
                if start + len(line) == len(data):  # it goes on
                    line = os.pread(fd, MAX_LINE_BYTES, begin - before + start).partition(b"\n")[0]
                with contextlib.suppress(DamagedLineError):
                    header = _checked(decode_line(line), path)
                    if isinstance(header, Header):
                        return header
            end = begin
    finally:
        os.close(fd)
    return None


def _first_header_of(chunk: Chunk) -> Header | None:
    return next((entry.line for entry in chunk.entries if isinstance(entry.line, Header)), None)


def streams_of(path: str | Path) -> list[StreamReader]:
    """Readers of all streams under a run's folder, a journal's folder, or the folder of one segment.

    Raises:
        JournalError: If there is no journal.
    """
    place = Path(path)
    if place.is_file():
        for stream, segments in list_segments(place.parent).items():
            if place in {segment_path(place.parent, stream, number) for number in segments}:
                return [StreamReader(place.parent, stream)]
        raise JournalFormatError(f"{place} is no segment of a journal (such as journal/rank0.jsonl)")
    folder = place if list_segments(place) else place / JOURNAL_FOLDER
    if folder != place and folder.is_symlink():
        raise JournalError(f"{folder} is a symbolic link, which leads out of the run; read {folder.resolve()} itself")
    readers = [StreamReader(folder, stream) for stream in list_segments(folder)]
    if not readers:
        raise JournalError(f"There is no journal in {place} (looked for {JOURNAL_FOLDER}/rank0.jsonl and the like)")
    return readers


def read(path: str | Path, *, on_damage: Callable[[Damage], None] | None = None) -> Iterator[Record]:
    """Yield every record of a run, stream by stream, in the order of the log calls.

    Args:
        path: A run's folder, its ``journal`` folder, or one segment of a stream (then that whole stream).
        on_damage: Called for each stretch that is no record. By default it is logged as a warning.

    Yields:
        The records. Values that JSON cannot say (NaN and the infinities) are floats again.

    Raises:
        JournalError: If there is no journal at ``path``.
        JournalFormatError: If a newer version of this package wrote it.

    Example:
        >>> import tempfile, lightning_loggers
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = lightning_loggers.MLFlowLogger(save_dir=folder, delivery="offline")
        ...     logger.log_metrics({"loss": 0.5}, step=0)
        ...     logger.close()
        ...     [record.data for record in read(logger.log_dir) if record.kind == "metric"]
        [{'loss': 0.5}]
    """
    report = on_damage or (lambda damage: _log.warning("%s", damage))
    for reader in streams_of(path):
        position, at_end = Position(), False
        while not at_end:
            chunk = reader.read(position, final=True)
            for entry in chunk.entries:
                if isinstance(entry.line, Record):
                    yield entry.line
            for damage in chunk.damage:
                report(damage)
            position, at_end = chunk.end, chunk.at_end
