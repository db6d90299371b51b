"""The receiving half of the relay: other nodes' streams into rank 0's journal folder."""

import contextlib
import errno
import hashlib
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from lightning_loggers.delivery.relay_line import (
    Ack,
    Bye,
    DamagedMessageError,
    Head,
    Hello,
    Line,
    Lines,
    Piece,
    encode,
    first_line_digest,
    tail_checksum,
    unpack,
)
from lightning_loggers.delivery.relay_send import BEAT_EVERY_S, MAX_BLOB_BYTES
from lightning_loggers.journal import keeper, segments
from lightning_loggers.journal.blobs import BlobStore, UnsafeBlobError, safe_name
from lightning_loggers.journal.layout import BLOBS_FOLDER, list_segments, lock_path, segment_path
from lightning_loggers.journal.lock import FileLock, is_locked
from lightning_loggers.journal.reader import Position
from lightning_loggers.notices import Notices
from lightning_loggers.records import Blob, DamagedLineError, Kind, Record, RunStatus, decode_line

SILENT_AFTER_S = 120.0
"""A rank that was not heard for so long counts as dead, until it is."""

_RETRY_REFUSED_DISK_S = 5.0
_LOOKED_FOR_S = 60.0
_WAIT_FOR_LOCK_S = 0.1
_MOST_AT_ONCE = 16
_STREAM = re.compile(r"rank([1-9]\d{0,8})(?:-[0-9a-z]{1,40})?", re.ASCII)
_MARK = re.compile(r"[0-9a-f]{16}", re.ASCII)
_CONTENT_ID = re.compile(r"[0-9a-f]{40}", re.ASCII)
_decode_hello = msgspec.json.Decoder(Hello).decode


class _MisplacedError(Exception):
    """The stream on this disk does not end where the next bytes begin: somebody else changed it."""


class _Remote:
    """A stream of another node.

    Attributes:
        hello: What its rank said of it.
        name: The stream's name here.
        at: Where it ends.
        next: The number of the message that is waited for.
        done: Whether its last line says that the rank has ended, for now.
        gone: Whether nobody writes it any more, for now.
    """

    def __init__(self, hello: Hello, name: str, lock: FileLock, at: Position, tail: int) -> None:
        self.hello = hello
        self.name = name
        self.lock = lock
        self.at = at
        self.tail = tail
        self.next = 0
        self.done = False
        self.gone = False
        self.beats = -1
        self.heard_at = time.monotonic()
        self.rests_until = 0.0

    def ack(self) -> bytes:
        return encode(Ack(self.next, self.at, self.tail, self.name))


class Receiver:
    """Writes what other nodes' ranks send beside rank 0's own stream.

    Args:
        line: To the job's store.
        folder: Rank 0's journal folder.
        notices: Where faults are told.

    Guarantees:
        - Bytes are on the disk before they are acknowledged, and each is written once, whatever is sent twice.
        - A stream's lock is held as by a writer as long as its rank lives, so that delivery waits for it.
        - Nothing is written outside the folder, and nothing to rank 0's own stream.

    Raises:
        StoreGoneError: From :meth:`step`.
    """

    def __init__(self, line: Line, folder: Path, notices: Notices) -> None:
        self._line = line
        self._folder = folder
        self._notices = notices
        self._blobs = BlobStore(folder / BLOBS_FOLDER)
        self._remotes: dict[str, _Remote] = {}
        self._sharing: set[int] = set()
        self._hellos = 0
        self._looked_for: dict[int, float] = {}
        self._beats_at = 0.0

    def step(self) -> bool:
        """Take what has come; returns whether anything has."""
        moved = self._welcome_all()
        for remote in list(self._remotes.values()):
            if time.monotonic() >= remote.rests_until:
                moved = self._serve(remote) or moved
        self._listen()
        return moved

    def missing(self, ranks: Iterable[int]) -> list[int]:
        """Which of the ranks may still send something."""
        written = {
            stream.partition("-")[0]
            for stream in list_segments(self._folder)
            if is_locked(lock_path(self._folder, stream))
        }  # fmt: skip
        return [rank for rank in ranks if rank != 0 and self._may_send(rank, f"rank{rank}" in written)]

    def close(self) -> None:
        """Let go of all streams."""
        for remote in self._remotes.values():
            remote.lock.release()
        self._remotes.clear()

    def _may_send(self, rank: int, written_here: bool) -> bool:
        if rank in self._sharing:
            return False
        remotes = [remote for remote in self._remotes.values() if remote.hello.rank == rank]
        if remotes:
            return not any(remote.done or not remote.lock.held for remote in remotes)
        # Its stream lies here and somebody writes it: it shares the file system and may not have said so yet.
        return not written_here

    # ------------------------------------------------------------------ who is there

    def _welcome_all(self) -> bool:
        now = time.monotonic()
        count = self._line.count("hellos")
        for number in range(self._hellos + 1, count + 1):
            self._looked_for[number] = now + _LOOKED_FOR_S
        self._hellos = max(self._hellos, count)
        welcomed = False
        for number, until in list(self._looked_for.items()):
            content = self._line.get(f"hello/{number}")
            if content is None:  # its rank has counted and not written yet, or died in between
                if now > until:
                    del self._looked_for[number]
                continue
            try:
                hello = _decode_hello(content)
            except msgspec.DecodeError:
                del self._looked_for[number]
                continue
            try:
                settled = self._welcome(hello)
            except OSError as error:
                self._tell_refusal(error)
                continue  # with the next step
            if settled:
                del self._looked_for[number]
                welcomed = True
        return welcomed

    def _welcome(self, hello: Hello) -> bool:
        """Become the writer of a stream's copy, and say how far it goes; returns whether that is settled.

        Raises:
            OSError: If the folder cannot be written.
        """
        if not hello.stream:
            self._sharing.add(hello.rank)
            return True
        match = _STREAM.fullmatch(hello.stream)
        if (
            match is None
            or int(match[1]) != hello.rank
            or not all(_MARK.fullmatch(mark) for mark in (hello.id, hello.first, hello.apart or hello.first))
        ):
            return True  # no name inside this folder
        self._folder.mkdir(parents=True, exist_ok=True)
        name = self._name_for(hello)
        for former in [other for other in self._remotes.values() if other.name == name]:
            former.lock.release()
            del self._remotes[former.hello.id]
        lock = FileLock(lock_path(self._folder, name))
        if not lock.acquire(_WAIT_FOR_LOCK_S):
            self._notices.tell_once(
                ("relay", "locked", name),
                f"Rank {hello.rank} on {hello.host} sends its records, and another process writes {name}.jsonl in "
                f"{self._folder}. They wait on {hello.host} until that has ended.",
            )
            return False
        try:
            at, tail = _end_of(self._folder, name)
        except BaseException:
            lock.release()
            raise
        remote = _Remote(hello, name, lock, at, tail)
        self._line.put(f"ack/{hello.id}", remote.ack())
        self._remotes[hello.id] = remote
        self._notices.tell_once(
            ("relay", "node", hello.rank),
            f"Rank {hello.rank} on {hello.host} has no file system in common with rank 0: its records come through "
            f"torch.distributed to {self._folder / name}.jsonl.",
            level=20,
        )
        return True

    def _name_for(self, hello: Hello) -> str:
        """The stream's name here: its own, unless that is another stream's."""
        base = f"rank{hello.rank}"
        if hello.apart:
            return f"{base}-{hello.apart}"
        there = first_line_digest(self._folder, hello.stream)
        if there == hello.first:
            return hello.stream
        if there is None and not is_locked(lock_path(self._folder, hello.stream)):
            return hello.stream
        return f"{base}-{hello.first}"

    def _listen(self) -> None:
        """Let go of streams whose ranks are silent, so that nobody waits for them."""
        now = time.monotonic()
        if now < self._beats_at:
            return
        self._beats_at = now + BEAT_EVERY_S
        for remote in self._remotes.values():
            beats = self._line.count(f"beat/{remote.hello.id}")
            if beats != remote.beats:
                remote.beats, remote.heard_at = beats, now
            if now - remote.heard_at > SILENT_AFTER_S:
                remote.lock.release()
            elif not remote.gone:
                with contextlib.suppress(OSError):
                    remote.lock.acquire()
            remote.lock.touch()

    # ------------------------------------------------------------------ what they send

    def _serve(self, remote: _Remote) -> bool:
        taken = 0
        identity = remote.hello.id
        while taken < _MOST_AT_ONCE:
            key = f"mail/{identity}/{remote.next}"
            message = self._line.get(key)
            if message is None:
                break
            taken += 1
            try:
                self._apply(remote, *unpack(message))
            except DamagedMessageError as error:
                self._notices.tell_once(
                    ("relay", "damaged", remote.hello.rank),
                    f"Records of rank {remote.hello.rank} arrived damaged ({error}) and are asked for again.",
                )
                self._line.drop(key)
                break
            except _MisplacedError:
                self._dismiss(remote)
                break
            except OSError as error:
                self._tell_refusal(error)
                remote.rests_until = time.monotonic() + _RETRY_REFUSED_DISK_S
                break
            remote.next += 1
            remote.heard_at = time.monotonic()
            self._line.put(f"ack/{identity}", remote.ack())
            self._line.drop(key)
        return taken > 0

    def _dismiss(self, remote: _Remote) -> None:
        """Have a stream announced again: what it is here is to be looked at anew."""
        remote.lock.release()
        del self._remotes[remote.hello.id]
        self._line.put(f"ack/{remote.hello.id}", encode(Ack(-1)))
        self._line.drop(f"mail/{remote.hello.id}/{remote.next}")

    def _apply(self, remote: _Remote, head: Head, payload: bytes) -> None:
        """Do what a message says.

        Raises:
            OSError: If the disk refuses.
            _MisplacedError: If the stream does not end where it should.
        """
        remote.gone = isinstance(head, Bye)
        if isinstance(head, Bye):
            remote.lock.release()
        elif isinstance(head, Piece):
            self._keep_piece(remote, head, payload)
        else:
            if not remote.lock.acquire(_WAIT_FOR_LOCK_S):
                raise BlockingIOError(errno.EAGAIN, "another process writes the stream", str(remote.lock.path))
            self._append(remote, head, payload)

    def _append(self, remote: _Remote, head: Lines, payload: bytes) -> None:
        at = head.at
        if at.segment == remote.at.segment and at <= remote.at:
            payload = payload[remote.at.offset - at.offset :]  # acknowledging it had failed
            at = remote.at
        elif head.after != remote.at or at.offset != 0:
            raise _MisplacedError
        if not payload:
            return
        path = segment_path(self._folder, remote.name, at.segment)
        fd = _appended(path, at.offset, payload)
        try:
            os.fdatasync(fd)
            remote.at = Position(at.segment, at.offset + len(payload))
            remote.tail = tail_checksum(fd, remote.at.offset)
        finally:
            os.close(fd)
        remote.done = _says_it_has_ended(payload)

    def _keep_piece(self, remote: _Remote, piece: Piece, payload: bytes) -> None:
        """Keep the next bytes of a record's file; it gets its name when it is whole.

        Raises:
            OSError: If the disk refuses.
        """
        blob = Blob(piece.id, piece.name, piece.size_bytes)
        try:
            self._blobs.locate(blob)
        except UnsafeBlobError:
            return
        except FileNotFoundError:
            pass
        else:
            return  # it is there
        if piece.size_bytes > MAX_BLOB_BYTES or safe_name(piece.name) != piece.name:
            return
        target = self._blobs.folder / piece.id / piece.name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{remote.hello.id}.part")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_TRUNC if piece.offset == 0 else 0)
        fd = os.open(partial, flags, 0o644)
        try:
            if os.pwrite(fd, payload, piece.offset) != len(payload):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(partial))
            if piece.offset + len(payload) < piece.size_bytes:
                return
            if os.fstat(fd).st_size == piece.size_bytes and _is_whole(fd, piece):
                os.utime(fd, ns=(piece.mtime_ns, piece.mtime_ns))
                partial.replace(target)
                keeper.sync_soon(target)
            else:  # it was changed while it was sent: delivery tells that it is missing
                partial.unlink()
        finally:
            os.close(fd)

    def _tell_refusal(self, error: OSError) -> None:
        self._notices.tell_once(
            ("relay", "refused", error.errno),
            f"Records of other nodes cannot be written to {self._folder} ({error}). They wait on their nodes until "
            f"this is mended: free some space, or make the folder writable (see `df -h {self._folder}`).",
        )


def _end_of(folder: Path, stream: str) -> tuple[Position, int]:
    """Where a stream ends, once a torn last line is taken back, and the checksum of what is before that.

    Raises:
        OSError: If it cannot be read.
    """
    numbers = list_segments(folder).get(stream)
    if not numbers:
        return Position(), 0
    fd = os.open(segment_path(folder, stream, numbers[-1]), os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = segments.mend_torn_line(fd)
        return Position(numbers[-1], size), tail_checksum(fd, size)
    finally:
        os.close(fd)


def _appended(path: Path, offset: int, payload: bytes) -> int:
    """Append to a segment, or make it; returns its descriptor.

    Raises:
        OSError: If the disk refuses; then the file is as it was.
        _MisplacedError: If it does not end at ``offset``.
    """
    if offset == 0 and not path.exists():
        return segments.make_segment(path, lambda fd: segments.write_all(fd, payload))
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise _MisplacedError from None
    if os.fstat(fd).st_size != offset:
        os.close(fd)
        raise _MisplacedError
    try:
        segments.write_all(fd, payload)
    except OSError:
        os.ftruncate(fd, offset)
        os.close(fd)
        raise
    return fd


def _is_whole(fd: int, piece: Piece) -> bool:
    """Whether a file has the content that its name says, where that is one of content."""
    if not _CONTENT_ID.fullmatch(piece.id):
        return True
    digest = hashlib.sha256()
    offset = 0
    while chunk := os.pread(fd, 2**20, offset):
        digest.update(chunk)
        offset += len(chunk)
    return digest.hexdigest()[:40] == piece.id


def _says_it_has_ended(lines: bytes) -> bool:
    last = lines.rstrip(b"\n").rpartition(b"\n")[2]
    if b'"kind":"status"' not in last:
        return False
    with contextlib.suppress(DamagedLineError):
        line = decode_line(last)
        return isinstance(line, Record) and line.kind == Kind.STATUS and line.value != RunStatus.RUNNING
    return False
