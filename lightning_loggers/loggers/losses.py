"""Values that are not recorded: told once, and counted by reason."""

import errno
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_loggers.errors import MissingDependencyError, UnsuitableValueError
from lightning_loggers.records import Kind
from lightning_loggers.values.metrics import safe_str

if TYPE_CHECKING:
    from lightning_loggers.loggers.journaled import JournaledLogger


class FailedFunctionError(Exception):
    """A user's function that was to make a value."""


class UnreadableFileError(Exception):
    """A user's file."""


class DiskRefusedError(Exception):
    """Where a file was to be kept."""


def not_kept(message: str, error: OSError, folder: Path) -> UnreadableFileError | DiskRefusedError:
    """What to raise where a user's file cannot be kept: it is to blame, or the disk under the journal is.

    Args:
        message: What could not be kept.
        error: Why.
        folder: Where it was to be kept.
    """
    if error.errno in _OF_THE_DISK:
        return DiskRefusedError(f"{message} {_cure(folder)}")
    return UnreadableFileError(message)


def reason_of(error: BaseException) -> str | None:
    """Under which reason a loss is counted for which the value itself, or what it needs, is to blame."""
    return next((reason for cause, reason in _REASONS.items() if isinstance(error, cause)), None)


def _cure(folder: Path) -> str:
    return f"Free some space, or make it writable (see `df -h {folder}`)."


_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
_REASONS: dict[type[Exception], str] = {
    MissingDependencyError: "missing library",
    UnsuitableValueError: "unsuitable value",
    FailedFunctionError: "failed function",
    UnreadableFileError: "unreadable file",
    DiskRefusedError: "disk refused",
    FileNotFoundError: "no such file",
}


def not_logged(logger: "JournaledLogger", kind: str, identifier: Any, error: Exception) -> None:
    """Tell and count a value that a log call did not record.

    Args:
        logger: Whose call it was.
        kind: What it is.
        identifier: What it is called.
        error: Why.
    """
    if not _told(logger, kind, identifier, error):
        logger._swallow(f"log_{kind}", error)


def not_encoded(logger: "JournaledLogger", kind: str, name: str | None, error: BaseException) -> None:
    """Tell and count a value of which no file could be made.

    Args:
        logger: Whose it was.
        kind: What would have been recorded.
        name: Its identifier.
        error: Why.
    """
    if not isinstance(error, OSError) and _told(logger, kind, name, error):
        return
    what, cure = "encoded", ""
    if isinstance(error, OSError):
        what, cure = f"written below {logger._run_dir}", f" {_cure(logger._run_dir)}"
    logger._count_lost("disk refused" if cure else "not encoded")
    logger._notices.tell_once(
        ("encoding", kind, name, type(error)),
        f"{kind} {name!r} could not be {what} and is not kept ({type(error).__name__}: {error}). Training "
        f"goes on.{cure}",
        level=logging.WARNING,
    )


def _told(logger: "JournaledLogger", kind: str, identifier: Any, error: BaseException) -> bool:
    """Whether the value itself or what it needs is to blame, which is told and counted."""
    reason = reason_of(error)
    if reason is None:
        return False
    logger._count_lost(reason)
    # A missing library is told once, and not for every identifier.
    cause = str(error).partition(":")[0] if reason == "missing library" else safe_str(identifier)
    start = "" if reason == "unsuitable value" else f"{Kind(kind).value} {safe_str(identifier)!r} is not logged: "
    logger._notices.tell_once((reason, kind, cause), f"{start}{error} Training goes on.")
    return True
