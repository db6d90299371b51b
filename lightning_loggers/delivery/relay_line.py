"""How records travel between nodes: messages in the key-value store that brought a job's processes together.

Below a prefix of the job's own there is ``rank0`` (:class:`Receiving`: where rank 0 is, told anew whenever it begins),
and below a prefix of that beginning::

    hellos            how many streams were announced
    hello/<n>         the n-th of them: Hello
    mail/<id>/<n>     the n-th message of a stream, deleted by rank 0 when it has dealt with it
    ack/<id>          what rank 0 has of a stream: Ack
    beat/<id>         a counter that grows while the stream's rank lives

Every key has one writer, messages of a stream are dealt with in their order, and rank 0 acknowledges before it deletes:
a message that is gone and not acknowledged was refused, and is put there again.
"""

import hashlib
import os
import select
import socket
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from lightning_loggers.journal.layout import list_segments, segment_path
from lightning_loggers.journal.reader import Position
from lightning_loggers.ranks import own_connection
from lightning_loggers.records import MAX_LINE_BYTES

CONNECT_S = 5.0
"""Longest wait for the store's answer to a connection."""

CHUNK_BYTES = 2**20
WINDOW_BYTES = 8 * 2**20
_ALL_WINDOWS_BYTES = 256 * 2**20
_TAIL_BYTES = 2**16
_CHECKSUM_DIGITS = 10


class StoreGoneError(Exception):
    """The job's store does not answer any more."""


class DamagedMessageError(ValueError):
    """What came is not what was sent."""


class Receiving(msgspec.Struct, frozen=True):
    """Where rank 0 takes records.

    Attributes:
        beginning: Names this beginning; also what its file :data:`HERE` holds.
        host: The node.
        folder: Its journal folder.
        window_bytes: How much one rank may have on its way.
        closed: Whether it takes no more.
    """

    beginning: str
    host: str
    folder: str
    window_bytes: int = WINDOW_BYTES
    closed: bool = False


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stream is announced.

    Attributes:
        id: Of this announcement.
        rank: Whose it is.
        host: The node that it is on.
        stream: Its name; empty if the rank shares rank 0's file system, so that nothing will come.
        first: Digest of its first line, which tells it from any other stream of that name.
        apart: What to call it apart from what rank 0 has under that name and with that first line, if it is not that.
    """

    id: str
    rank: int
    host: str
    stream: str = ""
    first: str = ""
    apart: str = ""


class Ack(msgspec.Struct, frozen=True):
    """What rank 0 has.

    Attributes:
        next: The number of the message that it waits for; -1 if the stream must be announced again.
        at: Where the stream ends at rank 0.
        tail: Checksum of what is before that.
        stream: The stream's name at rank 0.
    """

    next: int
    at: Position = Position()
    tail: int = 0
    stream: str = ""


class Lines(msgspec.Struct, frozen=True, tag="lines"):
    """Bytes of a stream.

    Attributes:
        after: Where the bytes before them ended.
        at: Where they begin: there, or at the beginning of a later segment.
    """

    after: Position
    at: Position


class Piece(msgspec.Struct, frozen=True, tag="piece"):
    """Bytes of a file of a record (:class:`~lightning_loggers.records.Blob`); comes before the record's line."""

    id: str
    name: str
    size_bytes: int
    mtime_ns: int
    offset: int


class Bye(msgspec.Struct, frozen=True, tag="bye"):
    """Nobody writes the stream for now."""


Head = Lines | Piece | Bye

encode = msgspec.json.Encoder().encode
_decode_head = msgspec.json.Decoder(Head).decode

HERE = "rank0.here"
"""File in rank 0's journal folder by which another rank sees whether it has the same file system."""


class Connection:
    """One rank's own connection to the job's store.

    Args:
        store: The job's store; kept, since in one process of the job it is the server.

    Attributes:
        closing: Whether a connection that is lost is not worth another one.

    Guarantees:
        - Unless ``closing``, a connection that was lost is made again once for every request.
        - Torch, which fills the screen with it, is not asked for a server that is gone: that every rank ends at a
          moment of its own is no fault. An idle connection beside torch's tells.

    Raises:
        StoreGoneError: If the store does not answer.
    """

    def __init__(self, store: Any) -> None:
        self.closing = False
        self._job_store = store
        self._store: Any = None
        self._idle: socket.socket | None = None
        self._connect()

    @property
    def useful(self) -> bool:
        """Whether the store is one that messages can be sent through."""
        return self._store is not None

    def ask(self, what: str, *arguments: Any) -> Any:
        """Call a method of the store."""
        if self._server_is_there():
            try:
                return getattr(self._store, what)(*arguments)
            except Exception as error:  # torch's own kinds are unknown here
                if self.closing:
                    raise StoreGoneError(_first_line(error)) from error
        elif self.closing:
            raise StoreGoneError("its process has ended")
        self._connect()
        try:
            return getattr(self._store, what)(*arguments)
        except Exception as error:
            raise StoreGoneError(_first_line(error)) from error

    def _server_is_there(self) -> bool:
        """Whether the server's end of the idle connection is open; nothing is ever sent there."""
        return self._idle is not None and not select.select([self._idle], [], [], 0)[0]

    def _connect(self) -> None:
        store, self._store = self._job_store, None
        self.close()
        if not hasattr(store, "host"):
            return
        try:
            self._idle = socket.create_connection((store.host, store.port), CONNECT_S)
            self._store = own_connection(store, CONNECT_S)
        except Exception as error:
            self.close()
            raise StoreGoneError(_first_line(error)) from error

    def close(self) -> None:
        """Let go of the idle connection; torch's goes with this object."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None


class Line:
    """The keys of one job, or of one beginning of its rank 0.

    Args:
        connection: To the job's store.
        prefix: Put before every key.

    Raises:
        StoreGoneError: From every method, if the store does not answer.
    """

    def __init__(self, connection: Connection, prefix: str) -> None:
        self._connection = connection
        self._prefix = prefix

    def below(self, beginning: str) -> "Line":
        """The keys of one beginning of rank 0."""
        return Line(self._connection, f"{self._prefix}{beginning}/")

    def put(self, key: str, content: bytes) -> None:
        """Set a key."""
        self._connection.ask("set", self._prefix + key, content)

    def get(self, key: str) -> bytes | None:
        """A key's content, ``None`` if it is not there."""
        return bytes(self._connection.ask("get", self._prefix + key)) if self.has(key) else None

    def has(self, key: str) -> bool:
        """Whether a key is there."""
        return bool(self._connection.ask("check", [self._prefix + key]))

    def drop(self, key: str) -> None:
        """Delete a key."""
        self._connection.ask("delete_key", self._prefix + key)

    def count(self, key: str, by: int = 0) -> int:
        """Add to a counter; returns what it is then."""
        return int(self._connection.ask("add", self._prefix + key, by))


def _first_line(error: Exception) -> str:
    """What an exception says, without torch's own stack."""
    return str(error).partition("\n")[0][:300]


def window_bytes(ranks: int) -> int:
    """How much one of so many ranks may have in the store: it all lies in the memory of one node."""
    return max(2**18, min(WINDOW_BYTES, _ALL_WINDOWS_BYTES // max(ranks, 1)))


def pack(head: Head, payload: bytes) -> bytes:
    """A message.

    >>> message = pack(Bye(), b"")
    >>> unpack(message)
    (Bye(), b'')
    """
    body = encode(head) + b"\n" + payload
    return b"%010d" % crc32(body) + body


def unpack(message: bytes) -> tuple[Head, bytes]:
    """What :func:`pack` packed.

    Raises:
        DamagedMessageError: If it was changed on its way.
    """
    checksum, body = message[:_CHECKSUM_DIGITS], message[_CHECKSUM_DIGITS:]
    if not checksum.isdigit() or int(checksum) != crc32(body):
        raise DamagedMessageError("checksum does not match")
    head, _, payload = body.partition(b"\n")
    try:
        return _decode_head(head), payload
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise DamagedMessageError(str(error)) from None


def open_to_read(path: Path) -> int:
    """A descriptor of a file that is no symbolic link.

    Raises:
        OSError: If there is none.
    """
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def first_line_digest(folder: Path, stream: str) -> str | None:
    """What tells a stream from any other of its name; ``None`` as long as it has no whole line."""
    segments = list_segments(folder).get(stream)
    if not segments:
        return None
    try:
        fd = open_to_read(segment_path(folder, stream, segments[0]))
    except OSError:
        return None
    try:
        line, newline, _ = os.pread(fd, MAX_LINE_BYTES, 0).partition(b"\n")
    finally:
        os.close(fd)
    return digest(line) if newline else None


def digest(content: bytes) -> str:
    """What tells content from other content."""
    return hashlib.sha256(content).hexdigest()[:16]


def tail_checksum(fd: int, offset: int) -> int:
    """Checksum of what a file holds just before ``offset``."""
    begin = max(0, offset - _TAIL_BYTES)
    return crc32(os.pread(fd, offset - begin, begin))
