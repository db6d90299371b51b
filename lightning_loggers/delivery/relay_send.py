"""The sending half of the relay: a rank's streams from its own node's disk to rank 0.

What is on its way is known by where it lies on this disk, and read again if it must be sent again: nothing is held in
memory but the message under way.
"""

import math
import os
import secrets
import socket
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import msgspec

from lightning_loggers.delivery.relay_line import (
    CHUNK_BYTES,
    HERE,
    Ack,
    Bye,
    Head,
    Hello,
    Line,
    Lines,
    Piece,
    Receiving,
    digest,
    encode,
    first_line_digest,
    open_to_read,
    pack,
    tail_checksum,
)
from lightning_loggers.journal.blobs import BlobStore, UnsafeBlobError
from lightning_loggers.journal.layout import BLOBS_FOLDER, list_segments, lock_path, segment_path
from lightning_loggers.journal.lock import is_locked
from lightning_loggers.journal.reader import Position
from lightning_loggers.notices import Notices
from lightning_loggers.records import MAX_LINE_BYTES, ONCE_A_RUN, Blob, DamagedLineError, Record, decode_line

MAX_BLOB_BYTES = 64 * 2**20
"""A larger file of a record stays on its node."""

BEAT_EVERY_S = 15.0
_ANNOUNCE_EVERY_S = 1.0
_REMEMBERED_BLOBS = 10_000
_decode_ack = msgspec.json.Decoder(Ack).decode


def shares_file_system(folder: Path, receiving: Receiving) -> bool:
    """Whether the folder is the one that rank 0 writes its journal to, seen from here."""
    try:
        fd = open_to_read(folder / HERE)
    except OSError:
        return False
    try:
        return os.pread(fd, 256, 0) == receiving.beginning.encode()
    except OSError:
        return False
    finally:
        os.close(fd)


def announce(line: Line, hello: Hello) -> None:
    """Have rank 0 look at what is said here.

    Raises:
        StoreGoneError: If the store does not answer.
    """
    line.put(f"hello/{line.count('hellos', 1)}", encode(hello))


@dataclass(frozen=True, slots=True)
class _Message:
    """A message, by where its content lies on disk."""

    head: Head
    path: Path | None = None
    offset: int = 0
    length: int = 0

    def packed(self) -> bytes:
        """The message with its content.

        Raises:
            OSError: If that cannot be read any more.
        """
        if self.path is None:
            return pack(self.head, b"")
        fd = open_to_read(self.path)
        try:
            content = os.pread(fd, self.length, self.offset)
        finally:
            os.close(fd)
        if len(content) < self.length and isinstance(self.head, Lines):
            raise OSError(f"{self.path} has become shorter")
        return pack(self.head, content)


class Sender:
    """Sends what one rank writes.

    Args:
        line: To the job's store.
        folder: The rank's journal folder.
        rank: The rank.
        receiving: Where rank 0 is.
        notices: Where it is told what is not sent.

    Guarantees:
        - Streams arrive byte for byte, whole lines at a time, files before the records that name them.
        - At most ``receiving.window_bytes`` are in the store and not dealt with, whatever rank 0 does.
        - A stream goes on where rank 0's copy of it ends, also in a job that was started again.

    Raises:
        StoreGoneError: From :meth:`step`.
    """

    def __init__(self, line: Line, folder: Path, rank: int, receiving: Receiving, notices: Notices) -> None:
        self.line = line
        self.folder = folder
        self.rank = rank
        self.receiving = receiving
        self.notices = notices
        self.shipped = False
        self._streams: dict[str, _Stream] = {}
        self._beat_at = 0.0

    @property
    def heard(self) -> bool:
        """Whether rank 0 has answered."""
        return any(stream.heard for stream in self._streams.values())

    def step(self, *, ending: bool = False) -> bool:
        """Send what has come and fits.

        Args:
            ending: Whether this rank will write no more.

        Returns:
            Whether anything moved, so that the next step may find more to do.
        """
        for name in own_streams(self.folder, self.rank):
            if name not in self._streams:
                self._streams[name] = _Stream(self, name)
        moved = False
        for stream in self._streams.values():
            moved = stream.step(ending) or moved
        self.shipped = all(stream.shipped for stream in self._streams.values())
        self._beat()
        return moved

    def withdraw(self) -> None:
        """Take out of the store what rank 0 has not dealt with: nobody will."""
        for stream in self._streams.values():
            stream.withdraw()

    def copies(self) -> dict[str, tuple[str, Position]]:
        """What each stream is called at rank 0, and how far it goes there."""
        return {name: (stream.name_there, stream.acked) for name, stream in self._streams.items()}

    def _beat(self) -> None:
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat_at = now + BEAT_EVERY_S
            for stream in self._streams.values():
                stream.beat()


class _Stream:
    """One stream on its way."""

    def __init__(self, sender: Sender, name: str) -> None:
        self.name = self.name_there = name
        self.acked = Position()
        self.heard = False
        self.shipped = False
        self._sender = sender
        self._line = sender.line
        self._folder = sender.folder
        self._blobs = BlobStore(sender.folder / BLOBS_FOLDER)
        self._announced_at, self._first = -math.inf, ""
        self._start_over()

    def _start_over(self, apart: str = "") -> None:
        """Announce the stream anew with the next step."""
        self._id = ""
        self._apart = apart
        self._agreed = False
        self._read_to = Position()
        self._next = 0
        self._bye = False
        self._sent_blobs: dict[str, None] = {}
        self._ready: deque[_Message] = deque()
        self._on_their_way: deque[tuple[int, _Message]] = deque()

    def step(self, ending: bool) -> bool:
        self.shipped = False
        if not self._id and not self._announce():
            return False
        ack = self._ack()
        if ack is None:
            return False
        if ack.next < 0:
            self.withdraw()
            self._start_over()
            return True
        if not self._agreed:
            if not self._agrees(ack):
                self._start_over(apart=digest(f"{self._first} {ack.at} {ack.tail}".encode()))
                return True
            self._agreed = self.heard = True
            self._read_to = self.acked = ack.at
        try:
            moved = self._settle(ack)
            moved = self._send(ending) or moved
        except OSError:  # the journal's folder was deleted: the writer makes it again
            self.withdraw()
            self._start_over()
            return False
        self.shipped = not self._on_their_way and not self._ready
        return moved

    def withdraw(self) -> None:
        for number, _ in self._on_their_way:
            self._line.drop(self._mail(number))

    def beat(self) -> None:
        if self._agreed:
            self._line.count(f"beat/{self._id}", 1)

    def _announce(self) -> bool:
        first = first_line_digest(self._folder, self.name)
        now = time.monotonic()
        if first is None or now < self._announced_at + _ANNOUNCE_EVERY_S:
            return False
        self._announced_at, self._first = now, first
        self._id = secrets.token_hex(8)
        sender = self._sender
        announce(
            self._line, Hello(self._id, sender.rank, socket.gethostname(), self.name, first, apart=self._apart)
        )  # fmt: skip
        return True

    def _ack(self) -> Ack | None:
        content = self._line.get(f"ack/{self._id}")
        return None if content is None else _decode_ack(content)

    def _agrees(self, ack: Ack) -> bool:
        """Whether rank 0's copy is the beginning of this stream, as far as its end tells."""
        segments = list_segments(self._folder).get(self.name, [])
        if ack.at == Position() or (segments and segments[0] > ack.at.segment):
            return True
        try:
            fd = open_to_read(segment_path(self._folder, self.name, ack.at.segment))
        except OSError:
            return False
        try:
            return os.fstat(fd).st_size >= ack.at.offset and tail_checksum(fd, ack.at.offset) == ack.tail
        finally:
            os.close(fd)

    # ------------------------------------------------------------------ what is on its way

    def _settle(self, ack: Ack) -> bool:
        """Forget what rank 0 has, and send again what it refused."""
        before = len(self._on_their_way)
        self.acked, self.name_there = ack.at, ack.stream
        while self._on_their_way and self._on_their_way[0][0] < ack.next:
            self._on_their_way.popleft()
        if self._on_their_way and not self._line.has(self._mail(self._on_their_way[0][0])):
            number, message = self._on_their_way[0]
            later = self._ack()  # it is acknowledged before it is deleted
            if later is not None and later.next == number:
                self._line.put(self._mail(number), message.packed())
        return len(self._on_their_way) < before

    def _send(self, ending: bool) -> bool:
        """Put messages into the store as far as they fit.

        Raises:
            OSError: If the journal cannot be read.
        """
        moved = False
        under_way = sum(message.length for _, message in self._on_their_way)
        while self._ready or self._read_on(ending):
            message = self._ready[0]
            if self._on_their_way and under_way + message.length > self._sender.receiving.window_bytes:
                break
            self._line.put(self._mail(self._next), message.packed())
            self._ready.popleft()
            self._on_their_way.append((self._next, message))
            self._next += 1
            under_way += message.length
            moved = True
        return moved

    def _mail(self, number: int) -> str:
        return f"mail/{self._id}/{number}"

    # ------------------------------------------------------------------ what comes next

    def _read_on(self, ending: bool) -> bool:
        """Make messages of the next lines; returns whether there are any.

        Raises:
            OSError: If the journal cannot be read.
        """
        dead = ending or not is_locked(lock_path(self._folder, self.name))  # first: what it wrote is there by now
        found = self._next_lines()
        if found is None:
            if dead and not self._bye:
                self._bye = True
                self._ready.append(_Message(Bye()))
            return bool(self._ready)
        at, content = found
        self._bye = False
        if b'"blobs":[' in content:
            for blob in _blobs_of(content):
                self._ready.extend(self._pieces(blob))
        path = segment_path(self._folder, self.name, at.segment)
        self._ready.append(_Message(Lines(self._read_to, at), path, at.offset, len(content)))
        self._read_to = Position(at.segment, at.offset + len(content))
        return True

    def _next_lines(self) -> tuple[Position, bytes] | None:
        segments = list_segments(self._folder).get(self.name, [])
        limit = min(CHUNK_BYTES, self._sender.receiving.window_bytes // 2)
        for segment in segments:
            if segment >= self._read_to.segment:
                at = self._read_to if segment == self._read_to.segment else Position(segment, 0)
                path = segment_path(self._folder, self.name, segment)
                content = _whole_lines(path, at.offset, limit, grows=segment == segments[-1])
                if content:
                    return at, content
        return None

    def _pieces(self, blob: Blob) -> list[_Message]:
        place = f"{blob.id}/{blob.name}"
        if place in self._sent_blobs:
            return []
        try:
            path = self._blobs.locate(blob)
            status = path.stat()
        except (OSError, UnsafeBlobError):
            return []  # it is missing here as well; delivery tells of it
        self._sent_blobs[place] = None
        if len(self._sent_blobs) > _REMEMBERED_BLOBS:
            del self._sent_blobs[next(iter(self._sent_blobs))]
        size = status.st_size
        if size > MAX_BLOB_BYTES:
            receiving = self._sender.receiving
            self._sender.notices.tell_once(
                ("relay", "large file", blob.name),
                f"{blob.name!r} has {size / 2**20:.0f} MiB and stays in {path.parent} on {socket.gethostname()}: from "
                f"a node without a shared file system files of up to {MAX_BLOB_BYTES // 2**20} MiB are sent to rank "
                "0. Log a smaller one, or put save_dir on a shared file system. To bring this one before its record "
                f"is delivered: scp -r {path.parent} {receiving.host}:{receiving.folder}/{BLOBS_FOLDER}/",
            )
            return []
        step = min(CHUNK_BYTES, self._sender.receiving.window_bytes // 2)
        return [
            _Message(
                Piece(blob.id, blob.name, size, status.st_mtime_ns, offset), path, offset, min(step, size - offset)
            )
            for offset in range(0, max(size, 1), step)
        ]


def own_streams(folder: Path, rank: int) -> list[str]:
    """The streams of a journal that a rank writes: its own, and those of processes that it forked."""
    return [stream for stream in list_segments(folder) if stream.partition("-")[0] == f"rank{rank}"]


def left_behind(folder: Path, rank: int, copies: dict[str, tuple[str, Position]]) -> list[tuple[Path, str, int]]:
    """What rank 0 has not acknowledged.

    Args:
        folder: The rank's journal folder.
        rank: The rank.
        copies: As :meth:`Sender.copies` tells.

    Returns:
        Segments of its streams, their names at rank 0, and how many of their last bytes are missing there.
    """
    left = []
    segments = list_segments(folder)
    for stream in own_streams(folder, rank):
        name, at = copies.get(stream, (stream, Position()))
        for segment in segments[stream]:
            path = segment_path(folder, stream, segment)
            if segment < at.segment:
                continue
            try:
                size = path.stat().st_size
            except OSError:
                continue
            size -= at.offset if segment == at.segment else 0
            if size > 0:
                left.append((path, segment_path(folder, name, segment).name, size))
    return left


def _whole_lines(path: Path, offset: int, limit: int, *, grows: bool) -> bytes:
    """The next whole lines, about ``limit`` bytes; what is no line as it stands.

    Args:
        path: The segment.
        offset: Where to go on.
        limit: About how many bytes.
        grows: Whether more may be written to it; otherwise its torn last line is taken, too.

    Raises:
        OSError: If it cannot be read.
    """
    fd = open_to_read(path)
    try:
        data = os.pread(fd, limit, offset)
        end = data.rfind(b"\n") + 1
        if end:
            return data[:end]
        if len(data) == limit:  # a long line, or none at all
            data = os.pread(fd, MAX_LINE_BYTES, offset)
            end = data.find(b"\n") + 1
            if end:
                return data[:end]
        return data[:limit] if not grows or len(data) == MAX_LINE_BYTES else b""
    finally:
        os.close(fd)


def _blobs_of(lines: bytes) -> list[Blob]:
    """Files of the records that rank 0 delivers for another rank: what belongs to the run is rank 0's own."""
    blobs: list[Blob] = []
    for line in lines.split(b"\n"):
        if b'"blobs":[' not in line:
            continue
        try:
            record = decode_line(line)
        except DamagedLineError:
            continue
        if isinstance(record, Record) and record.kind not in ONCE_A_RUN:
            blobs += record.blobs or []
    return blobs
