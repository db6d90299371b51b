"""What a log call takes of a value, and what is made of it afterwards.

A family of values (images, sounds, ...) has a function that checks a value and takes a :class:`Snapshot` of it: that is
what the training thread pays for. The snapshot's ``encode`` makes files of it, in the background.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from lightning_loggers.errors import MissingDependencyError, UnsuitableValueError

Content = bytes | Callable[[Path], None]
"""A file's bytes, or what writes it, for one that would not fit into memory twice."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A value as a record holds it.

    Attributes:
        files: Name and content of each file. Values of one kind use one name, so that equal content is stored once.
        value: What JSON can say of it, where that is all or better than a file.
        meta: Further facts: of each of the first files a dictionary in ``details``.
        notes: Causes and messages of what was changed on the way, each to be told once.
    """

    files: Sequence[tuple[str, Content]] = ()
    value: Any = None
    meta: dict[str, Any] | None = None
    notes: Sequence[tuple[str, str]] = ()


class Snapshot(Protocol):
    """A value that can no longer change under our hands."""

    @property
    def size_bytes(self) -> int:
        """What it holds in memory, bytes."""

    def encode(self) -> Encoded:
        """Make files of it; may take its time, and runs in any thread."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A value that needed no encoding, or was encoded in the call.

    Attributes:
        encoded: What it became.
        paths: Files of the user that belong to it, to be kept by hard links before the call returns.
    """

    encoded: Encoded = field(default_factory=Encoded)
    paths: Sequence[Path] = ()

    @property
    def size_bytes(self) -> int:
        """Nothing that would have to wait."""
        return 0

    def encode(self) -> Encoded:
        """What it is."""
        return self.encoded


class Later(msgspec.Struct, gc=False):
    """A copy of an array that is checked where it is encoded.

    Attributes:
        take: The family's function.
        identifier: Its identifier.
        known: Further arguments of ``take``.
        make: Makes an array of the copy.
        copied: What ``make`` is given.
        size_bytes: What it holds in memory, bytes.
    """

    take: Callable[..., Snapshot]
    identifier: str
    known: Mapping[str, Any]
    make: Callable[..., Any]
    copied: tuple[Any, ...]
    size_bytes: int

    def encode(self) -> Encoded:
        """Check it and make files of it.

        Raises:
            UnsuitableValueError: As ``take`` does, and so on.
        """
        return self.take(self.make(*self.copied), self.identifier, **self.known).encode()


def unsuitable(kind: str, identifier: str, seen: str, accepted: str) -> UnsuitableValueError:
    """The error for a value of the wrong shape, rate or type."""
    return UnsuitableValueError(f"{kind} {identifier!r} is not logged: it is {seen}; accepted is {accepted}.")


_found: set[str] = set()


def is_installed(module: str) -> bool:
    """Whether a library can be imported; looked for until it is found, since looking takes longer than a log call."""
    if module not in _found and importlib.util.find_spec(module) is not None:
        _found.add(module)
    return module in _found


def require(module: str, requirement: str, extra: str, what: str) -> None:
    """Check that a library is installed, without importing it.

    Raises:
        MissingDependencyError: With the command that installs it.
    """
    if not is_installed(module):
        raise MissingDependencyError(
            f"{what} needs `{requirement}` (not installed). Install it: pip install 'lightning-loggers[{extra}]'"
        )


def origins(value: Any) -> frozenset[str]:
    """The packages that a value's class and its bases come from: how a library's objects are known without it."""
    return origins_of(type(value))  # type: ignore[arg-type, unused-ignore]


@functools.lru_cache(maxsize=1024)
def origins_of(kind: type) -> frozenset[str]:
    """The same of a class."""
    return frozenset(base.__module__.partition(".")[0] for base in kind.__mro__)


def as_path(value: Any) -> Path | None:
    """The path that a value is, if it is one."""
    return Path(value) if isinstance(value, str | os.PathLike) else None


def existing_file(kind: str, identifier: str, path: Path, suffixes: Sequence[str]) -> Ready:
    """A file of the user, checked to be there and to be named as its kind is.

    Raises:
        UnsuitableValueError: If it is not.
    """
    if not path.is_file():
        raise unsuitable(kind, identifier, f"the path {str(path)!r}, where there is no file", "an existing file")
    if path.suffix.lower() not in suffixes:
        raise unsuitable(kind, identifier, f"the file {path.name!r}", f"a file named {', '.join(suffixes)}")
    return Ready(Encoded(), (path,))
