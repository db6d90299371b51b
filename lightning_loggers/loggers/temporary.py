"""Loggers whose journal need not outlive the process: it lies in a temporary folder unless the user names one."""

import atexit
import contextlib
import os
import secrets
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_loggers.errors import ConfigurationError
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.loggers import ending
from lightning_loggers.loggers.journaled import JournaledLogger

_folders: set[Path] = set()
_loggers: "weakref.WeakSet[LoggerInProcess]" = weakref.WeakSet()


class LoggerInProcess(JournaledLogger):
    """Base of the loggers that show or keep their records in the training process itself.

    Args:
        save_dir: Where runs are kept; ``None`` for a temporary folder that only its owner can read. It is removed when
            the process that made it exits, unless records in it were not delivered, or the process is killed.
        delivery: ``"auto"`` or ``"thread"``, or ``"offline"``.
        **rest: As for the base.

    Raises:
        ConfigurationError: For ``delivery="process"``: another process would have the records.
    """

    def __init__(self, *, save_dir: str | os.PathLike[str] | None, delivery: str, **rest: Any) -> None:
        if delivery == "process":
            raise ConfigurationError(
                f"delivery='process' would give the records of {type(self).__name__} to another process. Use 'thread'."
            )
        self._temporary = save_dir is None
        if save_dir is None:
            save_dir = Path(tempfile.gettempdir()) / f"lightning-loggers-{secrets.token_hex(8)}"
        super().__init__(save_dir=save_dir, delivery=delivery, deliver_leftovers=False, **rest)

    @property
    @override
    def save_dir(self) -> str | None:
        """Where all runs are kept; ``None`` if that is temporary, so that checkpoints go elsewhere."""
        return None if self._temporary else super().save_dir

    @override
    def _start(self) -> JournalWriter | None:
        if self._temporary and self._writer is None:
            with contextlib.suppress(OSError):  # it is there (a copy of this logger made it), or the writer tells why
                self._root.mkdir(mode=0o700)
                _folders.add(self._root)
            _loggers.add(self)
        return super()._start()


def _remove_at_exit() -> None:
    """End what was not ended, then remove the folders of this process, but for what was told to be there still."""
    for logger in list(_loggers):
        ending.end_at_exit(logger)
        if logger.stats.pending:
            _folders.discard(logger._root)
        logger.close()
    for folder in _folders:
        shutil.rmtree(folder, ignore_errors=True)


atexit.register(_remove_at_exit)
os.register_at_fork(after_in_child=_folders.clear)  # they are the parent's
