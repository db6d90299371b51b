"""Advisory locks that the kernel releases when their holder dies.

``flock`` belongs to the open file description: it goes with the process (a SIGKILL included), is inherited by ``fork``,
and does not suffer from POSIX locks' habit of vanishing when any descriptor of the file is closed. On NFS, Linux turns
it into a byte-range lock, so it also holds between nodes that share the file system.
"""

import errno
import fcntl
import os
import time
import weakref
from pathlib import Path

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_STALE_AFTER_S = 900.0

_all_locks: "weakref.WeakSet[FileLock]" = weakref.WeakSet()


class FileLock:
    """An exclusive lock on a file of its own.

    Guarantees:
        - At most one live holder per file, between processes and, with a lock-aware network file system, between hosts.
        - Released by the kernel when the holder's last descriptor goes, however the process ended.
        - Never blocks for longer than ``wait_s``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
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
        """
        if self.held:
            return True
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    break
                if time.monotonic() >= deadline:
                    os.close(fd)
                    return False
                time.sleep(0.01)
        self._fd = fd
        return True

    def touch(self) -> None:
        """Renew the file's time, by which a file system without locks tells a live holder from a dead one."""
        if self.held:
            try:
                os.utime(self._fd)
            except OSError:
                return

    def release(self) -> None:
        """Give the lock back. Safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _close_inherited_locks() -> None:
    """In a forked child: a descriptor kept here would hold the parent's lock past the parent's death."""
    for lock in list(_all_locks):
        lock.release()


os.register_at_fork(after_in_child=_close_inherited_locks)


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock at ``path``.

    Where the file system has no locks, a file touched within the last 15 minutes counts as held.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
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
