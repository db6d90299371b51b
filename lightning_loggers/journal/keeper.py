"""A thread that has journals on the disk about once a second, and notices when one was deleted.

It takes no lock of the log path: it works on a duplicate of the descriptor, and tells a writer about a vanished file
by one attribute that the next append trips over.
"""

import os
import threading
import weakref
from typing import Protocol

SYNC_EVERY_S = 1.0


class _Kept(Protocol):
    _open_fd: int

    def invalidate(self, fd: int) -> None: ...


class _Keeper:
    def __init__(self) -> None:
        self.writers: weakref.WeakSet[_Kept] = weakref.WeakSet()
        self.thread: threading.Thread | None = None

    def keep(self, writer: _Kept) -> None:
        self.writers.add(writer)
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self.run, name="lightning-loggers-journal", daemon=True)
            try:
                self.thread.start()
            except RuntimeError:  # the interpreter is shutting down: close() syncs
                self.thread = None

    def run(self) -> None:
        pause = threading.Event()
        synced: dict[int, tuple[int, int]] = {}
        while not pause.wait(SYNC_EVERY_S):
            for writer in list(self.writers):
                self.look_after(writer, synced)

    @staticmethod
    def look_after(writer: _Kept, synced: dict[int, tuple[int, int]]) -> None:
        fd = writer._open_fd  # noqa: SLF001 - writer and keeper are one mechanism
        if fd < 0:
            return
        try:
            duplicate = os.dup(fd)
        except OSError:
            return
        try:
            status = os.fstat(duplicate)
            if status.st_nlink == 0:
                writer.invalidate(fd)
                return
            seen = (status.st_ino, status.st_size)
            if synced.get(id(writer)) != seen:
                os.fdatasync(duplicate)
                synced[id(writer)] = seen
        except OSError:
            return  # the write that follows meets the same fault and tells it
        finally:
            os.close(duplicate)

    def forget(self) -> None:
        self.writers = weakref.WeakSet()
        self.thread = None


_keeper = _Keeper()
os.register_at_fork(after_in_child=_keeper.forget)


def keep(writer: _Kept) -> None:
    """Look after ``writer`` until it is collected."""
    _keeper.keep(writer)
