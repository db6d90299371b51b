"""What the commands print: secrets masked, and no control character of a stranger's journal reaches the terminal."""

import logging
import sys
import threading

import typer
from typing_extensions import override

from lightning_loggers.secrets import mask

_lock = threading.Lock()
_secrets: set[str] = set()


def keep_secret(secrets: set[str] | frozenset[str]) -> None:
    """Have these masked in everything that is printed from now on."""
    _secrets.update(secrets)


def printable(text: object) -> str:
    r"""The text, safe for a terminal.

    >>> printable("loss \x1b[31m of http://ann:pw@host")
    'loss ?[31m of http://***@host'
    """
    return "".join(
        character if character.isprintable() or character in "\n\t" else "?" for character in mask(str(text), _secrets)
    )


def say(message: object) -> None:
    """Print a line on standard error."""
    with _lock:
        typer.echo(printable(message), err=True)


def show(message: object = "") -> None:
    """Print a line on standard output."""
    with _lock:
        typer.echo(printable(message))


class _Handler(logging.Handler):
    """Log records of ours and of SDKs, as lines like any other."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(record.getMessage())
        except Exception:  # noqa: BLE001 - the contract of logging: a handler never raises
            self.handleError(record)


def take_over_logging() -> None:
    """Print warnings of all libraries by :func:`say`, so that none of them shows a secret."""
    root = logging.getLogger()
    if not any(isinstance(handler, _Handler) for handler in root.handlers):
        handler = _Handler(logging.WARNING)
        root.addHandler(handler)
    for chatty in ("mlflow.store", "alembic.runtime"):  # tells at length how it makes its tables
        logging.getLogger(chatty).setLevel(logging.WARNING)


def is_terminal() -> bool:
    """Whether standard output is one."""
    try:
        return sys.stdout.isatty()
    except (AttributeError, ValueError):
        return False
