"""Advisory locks that the kernel releases when their holder dies.

``flock`` belongs to the open file description: it goes with the process (a SIGKILL included), is inherited by ``fork``,
and does not suffer from POSIX locks' habit of vanishing when any descriptor of the file is closed. On NFS, Linux turns
it into a byte-range lock, so it also holds between nodes that share the file system.
"""

import contextlib
import errno
import fcntl
import os
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_STALE_AFTER_S = 900.0

_all_locks: "weakref.WeakSet[FileLock]" = weakref.WeakSet()

# Held for the instants in which a descriptor is open and nobody knows it. `fork` waits for it: a child that
# inherited such a descriptor could not close it, and would hold its parent's lock past the parent's death.
_opening = threading.RLock()


class FileLock:
    """An exclusive lock on a file of its own.

    Guarantees:
        - At most one live holder per file, between processes and, with a lock-aware network file system, between hosts.
        - Released by the kernel when the holder's last descriptor goes, however the process ended; a forked child
          keeps none.
        - Never blocks for longer than ``wait_s``, and follows no symbolic link.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._candidate = -1  # open, not locked yet
        self._unsupported = False
        with _opening:
            _all_locks.add(self)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd >= 0

    def acquire(self, wait_s: float = 0.0) -> bool:
        """Take the lock if it is free.

        Args:
            wait_s: Seconds to wait for it. Others test a lock by taking it for an instant (:func:`is_locked`), so a
                writer should wait some tenths of a second.

        Returns:
            Whether the lock is held now. True, too, on a file system without locks: there nothing can be excluded.

        Raises:
            OSError: If the lock's file cannot be made or opened, or is no regular file.
        """
        if self.held:
            return True
        deadline = time.monotonic() + wait_s
        try:
            while True:
                self._open()
                if self._flock() and self._is_at_path():  # a file deleted since it was opened locks nobody out
                    self._fd, self._candidate = self._candidate, -1
                    return True
                self._close_candidate()
                if time.monotonic() >= deadline:
                    return False
                time.sleep(0.01)
        finally:
            self._close_candidate()

    def touch(self) -> None:
        """Renew the file's time, by which a file system without locks tells a live holder from a dead one."""
        if self.held:
            self._set_time(None)

    def still_there(self) -> bool:
        """Whether the lock is held on the file that others find at the path."""
        try:
            there = self.path.stat(follow_symlinks=False)
            mine = os.fstat(self._fd)
        except OSError:
            return False
        return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev)

    def release(self) -> None:
        """Give the lock back. Safe to call twice."""
        if self.held and self._unsupported:
            self._set_time((0, 0))
        self._close()

    def forget(self) -> None:
        """Take the descriptor for lost: somebody closed it, and its number may be another file's by now."""
        if self.still_there():
            self._close()
        self._fd = -1

    def _set_time(self, times: tuple[int, int] | None) -> None:
        with contextlib.suppress(OSError):
            os.utime(self.path, times, follow_symlinks=False)

    def _open(self) -> None:
        with _opening:
            self._candidate = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644
            )
        if not stat.S_ISREG(os.fstat(self._candidate).st_mode):
            raise OSError(errno.EINVAL, "a lock's file must be a regular file", str(self.path))

    def _flock(self) -> bool:
        try:
            fcntl.flock(self._candidate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._unsupported = error.errno in _UNSUPPORTED
            return self._unsupported
        return True

    def _is_at_path(self) -> bool:
        return os.fstat(self._candidate).st_nlink > 0

    def _close_candidate(self) -> None:
        with _opening:
            fd, self._candidate = self._candidate, -1
            if fd >= 0 and fd != self._fd:
                os.close(fd)

    def _close(self) -> None:
        self._close_candidate()
        with _opening:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # A daemon thread that the interpreter's end stopped with `_opening` in hand never gives it back; the kernel
        # closes what is open in a moment.
        if not is_finalizing():
            self._close()


def _before_fork() -> None:
    _opening.acquire()


def _after_fork_in_parent() -> None:
    _opening.release()


def _after_fork_in_child() -> None:
    """Close what was inherited: a descriptor kept here would hold the parent's lock past the parent's death."""
    global _opening  # noqa: PLW0603 - a fresh lock
    _opening = threading.RLock()
    for lock in list(_all_locks):
        lock._close()  # release() might mark the parent's file as free


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock at ``path``.

    Where the file system has no locks, a file touched within the last 15 minutes counts as held.
    """
    with _opening:  # a child forked in this instant would keep the shared lock
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                return time.time() - os.fstat(fd).st_mtime < _STALE_AFTER_S
            return True
        finally:
            os.close(fd)
        return False
