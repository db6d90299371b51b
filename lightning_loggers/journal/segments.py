"""What the writer does with files: becoming the writer of a stream, opening, beginning, mending a segment."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from lightning_loggers.errors import JournalError
from lightning_loggers.journal.layout import lock_path
from lightning_loggers.journal.lock import FileLock
from lightning_loggers.journal.reader import read_first_header
from lightning_loggers.records import FORMAT_VERSION, DamagedLineError, decode_line

_WAIT_FOR_LOCK_S = 0.3
_TAIL_BYTES = 2**16
_APPENDING = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def take_stream(folder: Path, stream: str) -> FileLock | None:
    """Become the writer of a stream, if no live process is and it has the format that this version writes."""
    lock = FileLock(lock_path(folder, stream))
    with contextlib.suppress(OSError, JournalError):
        if lock.acquire(wait_s=_WAIT_FOR_LOCK_S):
            header = read_first_header(folder, stream=stream)
            if header is None or header.lightning_loggers_journal == FORMAT_VERSION:
                return lock
    lock.release()
    return None


def take_own_stream(folder: Path, stream: str) -> FileLock:
    """Become the writer of a stream whose name nobody else makes up.

    Raises:
        OSError: If the folder cannot be written.
    """
    lock = FileLock(lock_path(folder, stream))
    if not lock.acquire(wait_s=_WAIT_FOR_LOCK_S):
        raise BlockingIOError(errno.EAGAIN, "another process holds the lock", str(lock.path))
    return lock


def open_segment(path: Path, header: bytes) -> tuple[int, int]:
    """Open a stream's last segment, or make its first one, and append a header line to it.

    Returns:
        The descriptor, and the size of the file.

    Raises:
        OSError: If it cannot be opened or there is no room; then it is as it was.
    """
    fd = os.open(path, _APPENDING, 0o644)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":  # a crash tore the last line
            header = b"\n" + header
        try:
            write_all(fd, header)
        except OSError:
            os.ftruncate(fd, size)
            raise
    except BaseException:
        os.close(fd)
        raise
    return fd, size + len(header)


def make_segment(path: Path, write: Callable[[int], object]) -> int:
    """Make a segment that has its content when it gets its name; returns its descriptor.

    Raises:
        OSError: If there is no room, or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.part")
    fd = os.open(partial, _APPENDING | os.O_TRUNC, 0o644)
    try:
        write(fd)
        partial.rename(path)
    except BaseException:
        os.close(fd)
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    return fd


def write_all(fd: int, content: bytes) -> None:
    """Write it at once.

    Raises:
        OSError: Also if only a part of it could be written.
    """
    if os.write(fd, content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def copy(source: int, target: int) -> None:
    """Append all of one open file to another.

    Raises:
        OSError: If there is no room.
    """
    offset = 0
    while chunk := os.pread(source, 2**20, offset):
        write_all(target, chunk)
        offset += len(chunk)


def mend_torn_line(fd: int) -> int:
    """Take the part of a line at a file's end back, or else end it, so that the next line stands alone.

    Returns:
        The size of the file.

    Raises:
        OSError: If it can be neither taken back nor ended.
    """
    size = end = os.fstat(fd).st_size
    while end:
        begin = max(0, end - _TAIL_BYTES)
        newline = os.pread(fd, end - begin, begin).rfind(b"\n")
        end = begin + newline + 1
        if newline >= 0:
            break
    if end < size:
        try:
            os.ftruncate(fd, end)
        except OSError:
            write_all(fd, b"\n")
    return os.fstat(fd).st_size


def blank_out_part(fd: int, length: int) -> None:
    """Blank the first ``length`` bytes of the last line that is whole only without them, if there is one.

    Such a line is left where a write was cut short and a signal handler appended before anybody knew. Blanks may stand
    before a value of JSON, nothing else has to move, and no reader's cursor becomes wrong.

    Raises:
        OSError: If it cannot be done. Readers find the whole line behind the part, too, but report the part.
    """
    size = os.fstat(fd).st_size
    begin = max(0, size - _TAIL_BYTES)
    tail = os.pread(fd, size - begin, begin)
    end = len(tail) - 1
    while end > length:
        start = tail.rfind(b"\n", 0, end) + 1
        if not _is_whole(tail[start:end]):
            if _is_whole(tail[start + length : end]):
                _overwrite(fd, b" " * length, begin + start)
            return
        end = start - 1


def _is_whole(line: bytes) -> bool:
    try:
        decode_line(line)
    except DamagedLineError:
        return False
    return True


def _overwrite(fd: int, content: bytes, offset: int) -> None:
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)  # with it, Linux appends whatever the offset
    try:
        os.pwrite(fd, content, offset)
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
