"""How values of any kind reach one logger, ours or another's."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_loggers.loggers.journaled import JournaledLogger
from lightning_loggers.notices import Notices
from lightning_loggers.policies import LogLevel
from lightning_loggers.records import Kind
from lightning_loggers.values.lazy import is_lazy
from lightning_loggers.values.metrics import as_number, is_mapping, safe_str


def wants(destination: Any, level: LogLevel, step: Any) -> bool:
    """Whether a logger would record something now; one without a policy would."""
    if not isinstance(destination, JournaledLogger):
        return True
    return destination.should_log(level=level) and destination.should_write(step)


def named(data: Mapping[str, Any], mode: tuple[str, ...], namespace: tuple[str, ...]) -> dict[str, Any]:
    """Values by their full names.

    >>> named({"loss": 1}, ("train",), ("encoder", "layer1"))
    {'train/encoder/layer1/loss': 1}
    """
    prefix = "".join(f"{part}/" for part in (*mode, *namespace))
    return {f"{prefix}{safe_str(key)}": value for key, value in data.items()}


def called(values: Mapping[str, Any], notices: Notices) -> dict[str, Any]:
    """The values, with functions without arguments replaced by what they return."""
    found = {}
    for key, value in values.items():
        if is_lazy(value):
            try:
                found[key] = value()
            except Exception as error:  # noqa: BLE001 - the user's own function must not stop training
                notices.tell_once(
                    ("lazy", key, type(error)),
                    f"{key!r} is not logged: its function raised {error!r}. Training goes on.",
                )
        else:
            found[key] = value
    return found


def sorted_by_kind(values: Mapping[str, Any], kind: Kind | None) -> tuple[dict[str, Any], list[tuple[Kind, str, Any]]]:
    """Numbers, which are logged together, and everything else one by one.

    >>> sorted_by_kind({"loss": 0.5, "note": "good"}, None)
    ({'loss': 0.5}, [(<Kind.TEXT: 'text'>, 'note', 'good')])
    """
    numbers: dict[str, Any] = {}
    others: list[tuple[Kind, str, Any]] = []
    for key, value in values.items():
        found = kind or _kind_of(value)
        if found is Kind.METRIC and _is_one_number(value):
            numbers[key] = value
        else:
            others.append((found, key, value))
    return numbers, others


def _kind_of(value: Any) -> Kind:
    if isinstance(value, str):
        return Kind.TEXT
    if isinstance(value, os.PathLike):
        return Kind.ARTIFACT
    return Kind.DICT if is_mapping(value) else Kind.METRIC


def _is_one_number(value: Any) -> bool:
    """Whether a value is one number; asked without moving it from its device."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return all(int(length) == 1 for length in shape)
    return as_number(value) is not None


def send(destination: Any, kind: Kind, key: str, value: Any, *, step: Any, notices: Notices) -> None:
    """Log one value that is no number.

    Raises:
        Exception: Whatever the logger raises.
    """
    log = getattr(destination, "log", None)
    if kind is Kind.ARTIFACT:
        send_file(destination, Path(value), "", notices)
    elif callable(log):
        log(value, key, kind=kind.value, step=step)
    elif kind is Kind.PARAM:
        destination.log_hyperparams({key: value})
    elif kind is Kind.METRIC and isinstance(destination, JournaledLogger):
        destination.log_metrics({key: value}, step)  # kept whole, as a text or a list
    elif callable(method := getattr(destination, f"log_{kind.value}", None)):
        method(key, value, step=step)
    else:
        notices.tell_once(
            ("kind", type(destination), kind),
            f"{type(destination).__name__} takes no {kind.value}: {key!r} did not reach it. Training goes on.",
        )


def send_file(destination: Any, path: Path, folder: str, notices: Notices) -> None:
    """Log a file or folder.

    Raises:
        Exception: Whatever the logger raises.
    """
    if callable(method := getattr(destination, "log_artifact", None)):
        method(path, folder)
    else:
        notices.tell_once(
            ("kind", type(destination), Kind.ARTIFACT),
            f"{type(destination).__name__} takes no files: {path.name!r} did not reach it. Training goes on.",
        )


@contextmanager
def under_name(source: Path, name: str) -> Iterator[tuple[Path, str]]:
    """A file or folder whose own name is the last part of ``name``, and the folder that comes before it.

    Loggers keep a file under its own name, so one that is to have another is linked for as long as it takes to log it.
    """
    folder, _, last = name.rpartition("/")
    if not source.exists() or source.name == last:
        yield source, folder
        return
    with tempfile.TemporaryDirectory(prefix=".lightning-loggers-", dir=_beside(source)) as temporary:
        target = Path(temporary) / last
        if source.is_dir():
            shutil.copytree(source, target, copy_function=_link)
        else:
            _link(os.fspath(source), os.fspath(target))
        yield target, folder


def _beside(source: Path) -> Path | None:
    """A folder on the same file system, where a link costs nothing; ``None`` for the system's own."""
    parent = source.absolute().parent
    return parent if os.access(parent, os.W_OK) else None


def _link(source: str, target: str) -> None:
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def numbered(name: str, number: int) -> str:
    """A name with a number before its suffix.

    >>> numbered("models/last.ckpt", 2), numbered("notes", 3)
    ('models/last-2.ckpt', 'notes-3')
    """
    folder, slash, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return f"{folder}{slash}{stem}-{number}{dot}{suffix}" if stem else f"{name}-{number}"
