"""A thread that has journals on the disk about once a second, and notices when one was deleted.

It works on descriptors of its own, handed over by the writer: closing a number that another library has got meanwhile
would drop that library's POSIX locks (SQLite's, for one). It tells a writer about a vanished file by one attribute that
the next append trips over, and takes the lock of the log path only to write what a full disk refused before.
"""

import contextlib
import os
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Protocol

from lightning_loggers.background import kept_running

SYNC_EVERY_S = 1.0
_TOUCH_EVERY_S = 60.0
_MAX_FILES_TO_SYNC = 10_000


class _Kept(Protocol):
    def invalidate(self, device: int, inode: int) -> None: ...
    def touch(self) -> None: ...
    def retry(self) -> None: ...


class _Segment:
    """A descriptor of a segment that one writer appends to."""

    def __init__(self, writer: _Kept, fd: int, folder: Path) -> None:
        self.writer = weakref.ref(writer)
        self.fd = fd
        self.folder: Path | None = folder
        self.synced_size = -1

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class _Keeper:
    def __init__(self) -> None:
        self.handed: deque[_Segment] = deque()
        self.files: deque[Path] = deque(maxlen=_MAX_FILES_TO_SYNC)
        self.kept: list[_Segment] = []
        self.thread: threading.Thread | None = None

    def keep(self, writer: _Kept, fd: int, folder: Path) -> None:
        try:
            self.handed.append(_Segment(writer, os.dup(fd), folder))
        except OSError:  # no descriptor left: this segment is on the disk when it is closed
            return
        self.start()

    def start(self) -> None:
        self.thread = kept_running(self.thread, self.run, "journal")  # None at the interpreter's end: close() syncs

    def run(self) -> None:
        pause = threading.Event()
        touch_at = time.monotonic() + _TOUCH_EVERY_S
        while not pause.wait(SYNC_EVERY_S):
            with contextlib.suppress(OSError):  # the write that follows meets the same fault and tells it
                self.sync_files()
            touching = time.monotonic() >= touch_at
            if touching:
                touch_at = time.monotonic() + _TOUCH_EVERY_S
            self.take_over()
            for segment in self.kept:
                writer = segment.writer()
                with contextlib.suppress(OSError):
                    self.look_after(segment, writer)
                if writer is not None:
                    if touching:
                        writer.touch()
                    writer.retry()
                del writer

    def take_over(self) -> None:
        """Take what writers handed over; the segment that a writer had before is on the disk before it is closed."""
        while self.handed:
            self.kept.append(self.handed.popleft())
        pairs = [(segment, segment.writer()) for segment in self.kept]
        newest = {id(writer): segment for segment, writer in pairs}
        for segment, writer in pairs:
            if segment.fd >= 0 and (writer is None or newest[id(writer)] is not segment):
                with contextlib.suppress(OSError):
                    os.fdatasync(segment.fd)
                segment.close()
        self.kept = [segment for segment in self.kept if segment.fd >= 0]

    @staticmethod
    def look_after(segment: _Segment, writer: _Kept | None) -> None:
        status = os.fstat(segment.fd)
        if status.st_nlink == 0:
            if writer is not None:
                writer.invalidate(status.st_dev, status.st_ino)
            return
        if segment.synced_size == status.st_size:
            return
        os.fdatasync(segment.fd)
        segment.synced_size = status.st_size
        folder, segment.folder = segment.folder, None
        if folder is not None:  # the file's name, once
            _sync_path(folder, os.O_DIRECTORY)

    def sync_files(self) -> None:
        while self.files:
            path = self.files.popleft()
            with contextlib.suppress(OSError):
                _sync_path(path)
                _sync_path(path.parent, os.O_DIRECTORY)

    def forget(self) -> None:
        for segment in [*self.kept, *self.handed]:
            segment.close()
        self.__init__()  # type: ignore[misc]


def _sync_path(path: Path, flags: int = 0) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_keeper = _Keeper()
os.register_at_fork(after_in_child=_keeper.forget)


def keep(writer: _Kept, fd: int, folder: Path) -> None:
    """Look after the segment behind ``fd``, which ``writer`` appends to, until the next one is handed over.

    Args:
        writer: Told when the file has vanished.
        fd: Its descriptor; duplicated here.
        folder: The folder of the segment.
    """
    _keeper.keep(writer, fd, folder)


def let_go(writer: _Kept, folder: Path) -> None:
    """Look no longer after a writer that was closed."""
    _keeper.handed.append(_Segment(writer, -1, folder))


def sync_soon(path: Path) -> None:
    """Have a finished file on the disk about a second from now."""
    _keeper.files.append(path)
    _keeper.start()
