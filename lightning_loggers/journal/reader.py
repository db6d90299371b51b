"""The reading half of a journal: for delivery, for the command line, and for anybody's own analysis."""

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
        torn_bytes: Length of that torn last line.
    """

    entries: list[Entry] = field(default_factory=list)
    end: Position = Position()
    damage: list[Damage] = field(default_factory=list)
    at_end: bool = False
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

    def read(self, position: Position, max_bytes: int = _CHUNK_BYTES) -> Chunk:
        """Read the next chunk.

        Args:
            position: Where to go on, such as :attr:`Chunk.end` of the chunk before.
            max_bytes: About how much to read at once; a longer line is read whole.

        Returns:
            The chunk; its ``end`` always makes progress unless it is ``at_end``.

        Raises:
            JournalFormatError: If a header says that a newer version of this package wrote the stream.
        """
        segments = list_segments(self.folder).get(self.stream, [])
        if not segments or position.segment > segments[-1]:
            return Chunk(end=position, at_end=True)
        if position.segment not in segments:
            following = min(number for number in segments if number > position.segment)
            position = Position(following, 0)
        path = segment_path(self.folder, self.stream, position.segment)
        is_last = position.segment == segments[-1]
        chunk = Chunk(end=position)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            chunk.at_end = True
            return chunk
        try:
            data = os.pread(fd, max_bytes, position.offset)
            while data and b"\n" not in data and len(data) < MAX_LINE_BYTES:
                more = os.pread(fd, _CHUNK_BYTES, position.offset + len(data))
                if not more:
                    break
                data += more
            whole = data.rfind(b"\n") + 1
            if whole:
                self._split(path, position, memoryview(data)[:whole].tobytes(), chunk)
                chunk.end = Position(position.segment, position.offset + whole)
                chunk.at_end = False
            elif len(data) >= MAX_LINE_BYTES:
                self._skip_long_line(fd, path, position, len(data), chunk, is_last=is_last)
            elif is_last:
                chunk.at_end, chunk.torn_bytes = True, len(data)
            else:  # the segment is finished: its torn tail will never be completed
                if data:
                    chunk.damage.append(Damage(path, position.offset, len(data), "torn at the segment's end"))
                chunk.end = Position(position.segment + 1, 0)
        finally:
            os.close(fd)
        return chunk

    def _split(self, path: Path, start: Position, data: bytes, chunk: Chunk) -> None:
        offset = start.offset
        for line in data.split(b"\n")[:-1]:
            end = Position(start.segment, offset + len(line) + 1)
            if line:
                self._decode(path, line, offset, end, chunk)
            offset += len(line) + 1

    def _decode(self, path: Path, line: bytes, offset: int, end: Position, chunk: Chunk) -> None:
        if len(line) > MAX_LINE_BYTES:
            chunk.damage.append(Damage(path, offset, len(line), f"a line of over {MAX_LINE_BYTES} bytes"))
            return
        try:
            chunk.entries.append(Entry(_checked(decode_line(line), path), end))
        except DamagedLineError as error:
            # Where a newline was damaged, whole records stand in one line with the wreck: find them by their starts.
            found = [piece for piece in _pieces(line) if piece is not line]
            good = 0
            for piece in found:
                try:
                    chunk.entries.append(Entry(_checked(decode_line(piece), path), end))
                    good += len(piece)
                except DamagedLineError:
                    continue
            chunk.damage.append(Damage(path, offset, len(line) - good, str(error)))

    @staticmethod
    def _skip_long_line(fd: int, path: Path, position: Position, seen: int, chunk: Chunk, *, is_last: bool) -> None:
        offset = position.offset + seen
        while data := os.pread(fd, _CHUNK_BYTES, offset):
            newline = data.find(b"\n")
            if newline >= 0:
                offset += newline + 1
                break
            offset += len(data)
        else:
            if is_last:
                chunk.at_end, chunk.torn_bytes = True, offset - position.offset
                return
        chunk.damage.append(
            Damage(path, position.offset, offset - position.offset, f"a line of over {MAX_LINE_BYTES} bytes")
        )
        chunk.end = Position(position.segment, offset)


def _pieces(line: bytes) -> Iterator[bytes]:
    """Stretches of a damaged line that might be whole records, each ending where the next begins."""
    starts = []
    for start in (RECORD_START, HEADER_START):
        at = line.find(start)
        while at >= 0:
            starts.append(at)
            at = line.find(start, at + 1)
    starts.sort()
    for begin, end in zip(starts, [*starts[1:], len(line)], strict=True):
        piece = line[begin:end]
        yield piece
        last = piece.rfind(b"}")
        if last >= 0 and last + 1 != len(piece):
            yield piece[: last + 1]


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
        The header, or ``None`` if there is no segment yet or its first lines are damaged.

    Raises:
        JournalFormatError: If a newer version of this package wrote it.
    """
    streams = list_segments(folder)
    for name, segments in streams.items():
        if stream is not None and name != stream:
            continue
        for segment in segments:
            chunk = StreamReader(folder, name).read(Position(segment, 0), 2**16)
            for entry in chunk.entries:
                if isinstance(entry.line, Header):
                    return entry.line
    return None


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
        position = Position()
        while True:
            chunk = reader.read(position)
            for entry in chunk.entries:
                if isinstance(entry.line, Record):
                    yield entry.line
            for damage in chunk.damage:
                report(damage)
            if chunk.at_end:
                if chunk.torn_bytes:
                    where = segment_path(reader.folder, reader.stream, chunk.end.segment)
                    report(Damage(where, chunk.end.offset, chunk.torn_bytes, "torn at its end"))
                break
            position = chunk.end
