"""Telling the user, once per cause.

A logger must not flood a week's output with one lost server, and must not stay silent about it either. Every notice has
a cause; a cause is told the first time and counted after that. Notices go through :mod:`logging` (logger
``lightning_loggers``), not :mod:`warnings`: a warning filter set to ``error`` would raise into the training step.
"""

import logging
import os
import threading
import weakref
from collections.abc import Hashable

logger = logging.getLogger("lightning_loggers")

_MAX_CAUSES = 4096
_OTHER_CAUSES = "causes past the first 4,096"

_all_notices: "weakref.WeakSet[Notices]" = weakref.WeakSet()


class Notices:
    """Remembers which causes were told.

    Guarantees:
        - Never raises, whatever handlers the application put on the logger.
        - Memory is bounded: past 4,096 different causes nothing new is told, only counted together.
    """

    def __init__(self) -> None:
        self._counts: dict[Hashable, int] = {}
        # Reentrant: a signal handler may tell something while its own thread is telling.
        self._lock = threading.RLock()
        _all_notices.add(self)

    def tell_once(self, cause: Hashable, message: str, *, level: int = logging.WARNING) -> bool:
        """Log ``message`` if nothing was told for ``cause`` yet; count it either way.

        Args:
            cause: What makes two notices the same, e.g. ``("fitted", "loss@k")``.
            message: What happened with the value, the cause or limit, and the cure.
            level: A :mod:`logging` level.

        Returns:
            Whether the message was logged now.
        """
        with self._lock:
            count = self._counts.get(cause)
            if count is not None:
                self._counts[cause] = count + 1
                return False
            if len(self._counts) >= _MAX_CAUSES:
                self._counts[_OTHER_CAUSES] = self._counts.get(_OTHER_CAUSES, 0) + 1
                return False
            self._counts[cause] = 1
        try:
            logger.log(level, message)
        except Exception:  # noqa: BLE001 - a broken handler of the application must not stop training
            return False
        return True

    def count(self, cause: Hashable) -> int:
        """How often ``cause`` was reported, told or not."""
        return self._counts.get(cause, 0)

    def _start_over_in_child(self) -> None:
        self._lock = threading.RLock()  # another thread of the parent may hold the old one for ever


def _start_over_in_child() -> None:
    for notices in list(_all_notices):
        notices._start_over_in_child()


os.register_at_fork(after_in_child=_start_over_in_child)
