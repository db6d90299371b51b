"""Several values under one identifier: one record with a file for each."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_loggers.values import arrays, images
from lightning_loggers.values.arrays import Array
from lightning_loggers.values.plain import plain_json
from lightning_loggers.values.snapshots import Content, Encoded, Ready, Snapshot, unsuitable


@dataclass(frozen=True, slots=True)
class Several:
    """Snapshots of values that become one file each.

    Attributes:
        parts: The values.
        details: What is said of each, besides what it says itself.
        overlays: Masks that details refer to; their files follow those of the values.
    """

    parts: Sequence[Snapshot]
    details: Sequence[Mapping[str, Any]]
    overlays: Sequence[Array] = ()

    @property
    def paths(self) -> Sequence[Path]:
        """Files of the user among them, to be the record's first ones."""
        return [path for part in self.parts if isinstance(part, Ready) for path in part.paths]

    @property
    def size_bytes(self) -> int:
        """What all of them hold in memory."""
        return sum(part.size_bytes for part in self.parts) + sum(overlay.nbytes for overlay in self.overlays)

    def encode(self) -> Encoded:
        """Make the files; ``order`` in ``meta`` says which of the record's files is whose, if they are in another."""
        files: list[tuple[str, Content]] = []
        notes: list[tuple[str, str]] = []
        details: list[dict[str, Any]] = []
        order: list[int] = []
        linked = len(self.paths)
        for part, said in zip(self.parts, self.details, strict=True):
            encoded = part.encode()
            before = len(order) - len(files)  # how many of the earlier ones are files of the user
            order.append(linked + len(files) if encoded.files else before)
            [own] = (encoded.meta or {}).get("details") or [{}]
            details.append({**said, **own})
            files += encoded.files
            notes += encoded.notes
        files += [("mask.npy", images.npy(overlay)) for overlay in self.overlays]
        meta: dict[str, Any] = {"details": plain_json(details)} if any(details) else {}
        if order != sorted(order):
            meta["order"] = order
        return Encoded(files, meta=meta or None, notes=notes)


def together(several: Several) -> Several | Ready:
    """The same, encoded at once if there is nothing that takes time."""
    if all(isinstance(part, Ready) for part in several.parts) and not several.overlays:
        return Ready(several.encode(), several.paths)
    return several


def is_list(value: Any, *dimensions: int) -> bool:
    """Whether a value is a list of files, of arrays with so many dimensions, or of pairs that begin with one."""
    if not isinstance(value, list) or not value:
        return False
    first = value[0][0] if isinstance(value[0], tuple) and value[0] else value[0]
    return isinstance(first, str | bytes | os.PathLike) or len(arrays.shape_of(first) or ()) in dimensions


def each(given: Any, count: int) -> Sequence[Any]:
    """An argument for each of several values: one for all of them, or a list; ``None`` where that ends.

    >>> each("a", 2), each(["a"], 2)
    (['a', 'a'], ['a', None])
    """
    return [*given, *[None] * count][:count] if isinstance(given, list | tuple) else [given] * count


def of_list(kind: str, identifier: str, parts: Sequence[Snapshot]) -> Several | Ready:
    """The snapshot of a list.

    Raises:
        UnsuitableValueError: If it mixes files with what becomes one.
    """
    made = together(Several(parts, [{}] * len(parts)))
    if isinstance(made, Several) and made.paths:
        raise unsuitable(kind, identifier, "a list of files and arrays", "a list of files, or one of arrays")
    return made
