"""What a tracker without a form of its own for a kind stores: a standard file with a name that anybody can predict.

::

    media/<identifier>/<step>.<suffix>            the only file of its suffix in a record
    media/<identifier>/<step>-<number>.<suffix>   one of several
    media/<identifier>/<step>-<time in ns>.<suffix>   where a record of that identifier with that step or a later one
                                                  was before

An adapter needs little for that::

    class MyAdapter(Adapter):
        capabilities = Capabilities(kinds={**STANDARD_FILES, Kind.METRIC: ...})

        def __init__(self, context):
            super().__init__(context)
            self._files = StandardFiles(context)

        def send(self, records):
            with self._files.batch():
                for record in records:
                    if record.kind in STANDARD_FILES:
                        for file in self._files.of(record):
                            self._sdk.upload(file.path_in(scratch), file.place)
"""

import contextlib
import hashlib
import json
import posixpath
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_loggers.adapters.base import Context
from lightning_loggers.journal.blobs import safe_path
from lightning_loggers.records import Blob, Kind, Record

_PLACE = "media/<identifier>/<step>"

STANDARD_FILES: Mapping[Kind, str] = {
    Kind.TEXT: f"{_PLACE}.txt",
    Kind.DICT: f"{_PLACE}.json",
    Kind.TABLE: f"{_PLACE}.parquet (.json without pyarrow)",
    Kind.IMAGE: f"{_PLACE}.png",
    Kind.FIGURE: f"{_PLACE}.png; plotly: .html and .json",
    Kind.AUDIO: f"{_PLACE}.wav",
    Kind.VIDEO: f"{_PLACE}.mp4 (.gif without PyAV)",
    Kind.HISTOGRAM: f"{_PLACE}.json",
    Kind.POINT_CLOUD: f"{_PLACE}.ply",
    Kind.MODEL: f"{_PLACE}.pt",
    Kind.BEST_MODEL: f"{_PLACE}.pt",
    Kind.DATASET: f"{_PLACE}.json",
    Kind.TORCH: f"{_PLACE}.pt; data loaders: .json",
    Kind.GRAPH: f"{_PLACE}.json",
    Kind.WATCH: f"{_PLACE}.json",
    Kind.CONFIG: f"{_PLACE}.yaml",
}
"""How each kind is stored as a standard file, in words."""

IN_LINE = frozenset({Kind.TEXT, Kind.DICT, Kind.HISTOGRAM, Kind.WATCH, Kind.DATASET, Kind.CONFIG})
"""Kinds whose value is in the journal's line; in a JSON file only where that would have been too long."""

_REMEMBERED = 5_000
_MAX_FOLDER = 600  # characters, of at most 4 bytes; paths end at 4096


@dataclass(frozen=True, slots=True)
class StandardFile:
    """One file of a record.

    Attributes:
        place: Where it belongs, with ``/`` between parts.
        source: Where it is now; ``None`` if :attr:`content` is all there is.
        content: Its bytes, if it is no file.
        blob: What the journal says of it, if it is a file.
    """

    place: str
    source: Path | None = None
    content: bytes = b""
    blob: Blob | None = None

    def path_in(self, scratch: Path) -> Path:
        """A file to hand to an SDK: the one that is there, or one made in ``scratch``, under its own last name."""
        if self.source is not None and self.source.name == posixpath.basename(self.place):
            return self.source
        path = scratch / posixpath.basename(self.place)
        path.unlink(missing_ok=True)
        if self.source is not None:
            path.symlink_to(self.source.absolute())
        else:
            path.write_bytes(self.content)
        return path

    def read(self) -> bytes:
        """Its bytes."""
        return self.content if self.source is None else self.source.read_bytes()


class StandardFiles:
    """Names the files of records.

    A name is given out once: of an identifier, steps that rise get names without a suffix. What was given out last is
    kept in ``context.remote.extra``, which is saved with the cursors, so a replay after a crash gives the same names.

    Args:
        context: Of the run.
        fit_folder: Makes an identifier a folder that the tracker takes; what it changes gets a hash here.
    """

    def __init__(self, context: Context, fit_folder: Callable[[str], str] = safe_path) -> None:
        self._context = context
        self._fit_folder = fit_folder
        self._given: dict[str, Any] = context.remote.extra.setdefault("files", {})

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Around the sending of a batch: what it gives out counts, and is saved, when all of it was sent."""
        saved, self._given = self._given, dict(self._given)
        try:
            yield
            saved.update(self._given)
        finally:
            self._given = saved

    def of(self, record: Record) -> list[StandardFile]:
        """The files of a record, in the order of its blobs.

        Raises:
            FileNotFoundError: If one is missing.
            UnsafeBlobError: If one is not in the journal's blob folder.
        """
        blobs = record.blobs or []
        inline = inline_content(record, self._context)
        if inline is not None:
            suffix, content = inline
            return [StandardFile(self.place(record, suffix), content=content)]
        suffixes = [_suffix(blob) for blob in blobs]
        files = []
        for number, (blob, suffix) in enumerate(zip(blobs, suffixes, strict=True)):
            several = suffixes.count(suffix) > 1
            place = self.place(record, suffix, f"-{number}" if several else "")
            files.append(StandardFile(place, self._context.blobs.locate(blob), blob=blob))
        return files

    def place(self, record: Record, suffix: str, inside: str = "") -> str:
        """Where a file of a record belongs.

        Args:
            record: The record.
            suffix: Of the file, without its dot.
            inside: What follows the step, for one of several files.
        """
        folder = self.folder_of(record)
        step = "no-step" if record.step is None else str(record.step)
        if not self._is_free(f"{folder}.{suffix}", record):
            step = f"{step}-{record.time_ns}"
        return f"media/{folder}/{step}{inside}.{suffix}"

    def folder_of(self, record: Record) -> str:
        """The folder of an identifier below ``media/``; two identifiers never share one."""
        identifier = record.id or ""
        folder = self._fit_folder(identifier)
        if folder != identifier or not 0 < len(folder) <= _MAX_FOLDER:
            digest = hashlib.sha256(identifier.encode(errors="surrogatepass")).hexdigest()[:8]
            folder = f"{folder[:_MAX_FOLDER].rstrip('/') or record.kind}-{digest}"
        return folder

    def _is_free(self, series: str, record: Record) -> bool:
        """Whether no earlier record has the name that this one's step alone would give."""
        if record.step is None:
            series, order = f"{series}?", 0.0
        else:
            order = float(record.step)
        known = self._given.get(series)
        if known is not None and known[1] == record.time_ns:
            return bool(known[2])  # another file of the same record
        if known is None and len(self._given) >= _REMEMBERED:
            return False
        free = known is None or order > known[0]
        highest = order if known is None else max(order, known[0])
        self._given[series] = [highest, record.time_ns, free]
        return free


def _suffix(blob: Blob) -> str:
    name, dot, suffix = blob.name.rpartition(".")
    return suffix if dot and name and len(suffix) <= 12 else "bin"


def inline_value(record: Record, context: Context) -> Any:
    """The value of a record that is kept in its line, or in a JSON file if that would have been too long.

    Raises:
        FileNotFoundError: If the file is missing.
    """
    if record.value is not None or not record.blobs:
        return record.value
    return json.loads("".join(context.blobs.locate(blob).read_text(encoding="utf-8") for blob in record.blobs))


def inline_content(record: Record, context: Context) -> tuple[str, bytes] | None:
    """Suffix and content of the file of a record that has none of its own, or ``None`` if it has."""
    blobs = record.blobs or []
    in_line = record.kind in IN_LINE or record.value is not None
    if not in_line or (blobs and not (record.value is None and len(blobs) == 1 and blobs[0].name.endswith(".json"))):
        return None
    value = inline_value(record, context)
    if record.kind == Kind.TEXT:
        return "txt", str(value).encode(errors="backslashreplace")
    if record.kind == Kind.CONFIG:
        import yaml

        text = yaml.safe_dump(value, default_flow_style=False, allow_unicode=True, sort_keys=False, width=2**31)
        return "yaml", text.encode(errors="backslashreplace")
    return "json", json.dumps(value, indent=2).encode(errors="backslashreplace")
