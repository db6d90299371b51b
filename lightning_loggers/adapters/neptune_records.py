"""What the SDK is asked to do for a record: its operations, on the fields that are the record's."""

import base64
import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_loggers.adapters.base import Context
from lightning_loggers.adapters.image_details import FACTS, details_files
from lightning_loggers.adapters.neptune_fields import OTHER, Fields, fit_path, is_regular_value, other_item
from lightning_loggers.adapters.neptune_images import FOLDERS, MAX_BYTES, MAX_SERIES, SUFFIXES, ImageOfFile, log_image
from lightning_loggers.adapters.standard_files import STANDARD_FILES, StandardFile, StandardFiles
from lightning_loggers.records import Blob, Kind, Record
from lightning_loggers.values.metrics import as_number

_MAX_ITEM = 1000  # of a string series
_MAX_STRING = 16_384
_POINTS_PER_OPERATION = 1000
_MAX_FOLDER = 300

MEDIA = "media"
"""Where files of kinds without a form of their own are; nothing else is put below it."""

_TAKEN = {
    "value": "finite numbers, and integers up to 2**53",
    "step": "steps that increase",
}


class Batch:
    """Operations of one batch, points of one series together."""

    def __init__(self) -> None:
        self._operations: list[Any] = []
        self._points: dict[tuple[str, str], list[Any]] = {}

    def add(self, operation: Any) -> None:
        """Add an operation."""
        self._operations.append(operation)

    def point(self, kind: str, series: str, value: float | str, step: float | None, time_s: float) -> None:
        """Add a point to a series of ``"floats"`` or ``"strings"``."""
        self._points.setdefault((kind, series), []).append((value, step, time_s))

    def operations(self) -> list[Any]:
        """All of them."""
        from neptune.internal import operation as ops

        found = list(self._operations)
        makers = {"floats": ops.LogFloats, "strings": ops.LogStrings}
        for (kind, series), points in self._points.items():
            values = [ops.LogSeriesValue(*point) for point in points]
            found.extend(
                makers[kind](series.split("/"), values[begin : begin + _POINTS_PER_OPERATION])
                for begin in range(0, len(values), _POINTS_PER_OPERATION)
            )
        return found


class Encoder:
    """Turns records into operations.

    Args:
        context: Keys, files and notices of the run.
        fields: The run's fields.
        files: Names the files of records.
        prefix: Namespace, with a slash at its end; may be empty.
        keep: Has a file kept until it is uploaded; called with it and a name, gives arguments of ``UploadFile``.
    """

    def __init__(
        self,
        context: Context,
        fields: Fields,
        files: StandardFiles,
        prefix: str,
        keep: Callable[[Path, str], Mapping[str, Any]],
    ) -> None:
        self._context = context
        self._fields = fields
        self._files = files
        self._prefix = prefix
        self._keep = keep

    def operations(self, records: Sequence[Record]) -> list[Any]:
        """The operations of a batch, points of one series together; records of other kinds have none."""
        batch = Batch()
        for record in records:
            if record.kind in _ENCODERS:
                _ENCODERS[record.kind](self, record, batch)
        return batch.operations()

    def _encode_metrics(self, record: Record, batch: Batch) -> None:
        time_s, step = record.time_ns / 1e9, record.step
        for key, value in (record.data or {}).items():
            number = as_number(value)
            if number is None:
                continue
            name = self._context.keys.fit(key)
            series = self._fields.place("float", name)
            regular = is_regular_value(number)
            if regular and self._fields.is_regular(series, step):
                batch.point("floats", series, float(number), step, time_s)
                continue
            other = self._fields.place("other", series + OTHER)
            batch.point("strings", other, other_item(number, step), None, time_s)
            why = "value" if not regular else "step"
            self._context.notices.tell_once(
                ("other", why, self._context.run.uid),
                f"Neptune's series take {_TAKEN[why]}: other points of {key!r} (and of other metrics) are kept in the "
                f"string series {other!r}, with value and step.",
            )

    def _encode_text(self, record: Record, batch: Batch) -> None:
        text = str(self._value(record))
        if place := (record.meta or {}).get("file"):
            batch.add(text_file(self._fields.place("file", f"{self._prefix}{place}"), text, "txt"))
        else:
            self._encode_item(record, text, "text", batch)

    def _encode_dict(self, record: Record, batch: Batch) -> None:
        self._encode_item(record, json.dumps(self._value(record), ensure_ascii=False), "json", batch)

    def _encode_item(self, record: Record, text: str, what: str, batch: Batch) -> None:
        folder = "text" if what == "text" else "dict"
        series = self._fields.place(
            "string", f"{self._prefix}{folder}/{self._context.keys.fit(record.id or record.kind)}"
        )
        time_s, step = record.time_ns / 1e9, record.step
        if _length(text) <= _MAX_ITEM and self._fields.is_regular(series, step):
            batch.point("strings", series, text, step, time_s)
            return
        item = other_item(text, step)
        if _length(item) > _MAX_ITEM:
            suffix = "txt" if what == "text" else "json"
            field = self._fields.place("file", f"{series}__files/{record.time_ns}")
            batch.add(text_file(field, text, suffix))
            item = json.dumps({"file": field, "step": step})
            self._context.notices.tell_once(
                ("long", what, self._context.run.uid),
                f"Neptune's string series take {_MAX_ITEM} characters: a longer {folder} such as {record.id!r} is "
                f"whole in a file, {field}.",
            )
        batch.point("strings", self._fields.place("other", series + OTHER), item, None, time_s)

    def _encode_params(self, record: Record, batch: Batch) -> None:
        namespace = self._prefix + str((record.meta or {}).get("namespace") or "hyperparams")
        for key, value in (record.data or {}).items():
            self._assign(f"{namespace}/{self._context.keys.fit(key)}", value, batch)

    def _assign(self, path: str, value: Any, batch: Batch) -> None:
        """Give a field a value; one of another type takes the place of what was there."""
        from neptune.internal import operation as ops

        field = self._fields.place("value", path)
        parts = field.split("/")
        operation: Any
        if isinstance(value, bool):
            operation = ops.AssignBool(parts, value)
        elif isinstance(value, int) and -(2**31) <= value < 2**31:
            operation = ops.AssignInt(parts, value)
        elif isinstance(value, int | float) and is_regular_value(value):
            operation = ops.AssignFloat(parts, float(value))
        elif _length(text := str(value)) <= _MAX_STRING:
            operation = ops.AssignString(parts, text)
        else:
            operation = text_file(field, text, "txt")
            self._context.notices.tell_once(
                ("long param", path),
                f"{field!r} has {len(text)} characters, and Neptune's strings take {_MAX_STRING}: it is a file.",
            )
        kind = type(operation).__name__
        if isinstance(value, int | float) and not isinstance(operation, (ops.AssignBool, ops.AssignInt)):
            self._tell_changed(field, value, operation)
        before = self._fields.get("types", field)
        if before is not None and before != kind:
            batch.add(ops.DeleteAttribute(parts))
        self._fields.note("types", field, kind)
        batch.add(operation)

    def _tell_changed(self, field: str, value: float, operation: Any) -> None:
        if str(operation.value) != str(value) or isinstance(operation.value, str):
            self._context.notices.tell_once(
                ("number", self._context.run.uid),
                f"Neptune's integers have 32 bits and its floats are finite: {field!r} = {value} (and others like it) "
                f"is the {type(operation.value).__name__} {operation.value!r}.",
            )

    def _encode_artifact(self, record: Record, batch: Batch) -> None:
        folder = f"{self._prefix}artifacts/{record.id or ''}".rstrip("/")
        for index, blob in enumerate(record.blobs or []):
            self._encode_file(record, index, blob, f"{folder}/{blob.path or blob.name}", batch)

    def _encode_checkpoint(self, record: Record, batch: Batch) -> None:
        name = record.id or record.kind
        folder = f"{self._prefix}model/checkpoints/{name}"
        for index, blob in enumerate(record.blobs or []):
            self._encode_file(record, index, blob, f"{folder}/{blob.path}" if blob.path else folder, batch)
        meta = record.meta or {}
        facts = {"aliases": meta.get("aliases") or [], "metadata": meta.get("metadata") or {}}
        field = self._fields.place("file", f"{self._prefix}model/checkpoints_metadata/{name}")
        batch.add(text_file(field, json.dumps(facts, indent=1), "json"))

    def _encode_standard_files(self, record: Record, batch: Batch) -> None:
        files = self._files.of(record)
        self._add_files(record, [*files, *details_files(record, files, self._files.place)], batch)

    def _encode_images(self, record: Record, batch: Batch) -> None:
        """Each image to its series; what no series holds to a file."""
        files = self._files.of(record)
        count = sum(file.place.endswith(files[0].place.rpartition(".")[2]) for file in files)
        others = [file for number, file in enumerate(files) if not self._add_image(record, number, file, count, batch)]
        facts = FACTS if others else FACTS[1:]  # a series shows captions itself
        self._add_files(record, [*others, *details_files(record, files, self._files.place, facts)], batch)

    def _add_image(self, record: Record, number: int, file: StandardFile, count: int, batch: Batch) -> bool:
        """Add an image to its series, if that takes it."""
        if file.source is None or _suffix(file.place).lower() not in SUFFIXES:
            return False
        path = f"{self._prefix}{FOLDERS[record.kind]}/{record.id or record.kind}" + (f"/{number}" if count > 1 else "")
        details = (record.meta or {}).get("details") or []
        caption = (details[number] or {}).get("caption") if number < len(details) else None
        image = ImageOfFile(file.source, caption and str(caption))
        if why := self._why_in_no_series(record.step, path, image.size_bytes):
            self._context.notices.tell_once(
                ("image file", why, self._context.run.uid),
                f"Neptune's image series take images of up to {MAX_BYTES // 1024**2} MB at steps that increase: those "
                f"{why}, such as {record.id!r}, are files below {self._prefix}{MEDIA}, here {file.place}.",
            )
            return False
        assert record.step is not None
        self._tell_if_changed(file.blob)
        batch.add(log_image(self._fields.place("image", path), image, record.step, record.time_ns / 1e9))
        return True

    def _why_in_no_series(self, step: float | None, path: str, size_bytes: int) -> str:
        """What keeps an image out of its series; nothing if it is in it from now on."""
        if step is None:
            return "without a step"
        if size_bytes > MAX_BYTES:
            return f"beyond {MAX_BYTES // 1024**2} MB"
        if not self._fields.knows("image", path):
            begun = self._fields.get("count", "images") or 0
            if begun >= MAX_SERIES:
                return f"beyond {MAX_SERIES} series"
            self._fields.note("count", "images", begun + 1)
        if not self._fields.is_regular(self._fields.place("image", path), step):
            return "whose step is not above the last one"
        return ""

    def _add_files(self, record: Record, files: Sequence[StandardFile], batch: Batch) -> None:
        if not files:
            return
        # One field stands for all that is below it: a note for each of many files would be saved with every batch.
        media = self._fields.place("media", f"{self._prefix}{MEDIA}")
        for index, file in enumerate(files):
            field = f"{media}/{file.place.partition('/')[2]}"
            if file.blob is not None:
                self._upload(record, index, file.blob, field, batch)
            else:
                batch.add(content_file(field, file.content, _suffix(file.place)))

    def _encode_file(self, record: Record, index: int, blob: Blob, path: str, batch: Batch) -> None:
        self._upload(record, index, blob, self._fields.place("file", path), batch)

    def _upload(self, record: Record, index: int, blob: Blob, field: str, batch: Batch) -> None:
        from neptune.internal import operation as ops

        source = self._context.blobs.locate(blob)
        self._tell_if_changed(blob)
        kept = self._keep(source.absolute(), f"{record.time_ns}-{index}-{blob.name}")
        batch.add(ops.UploadFile(field.split("/"), _suffix(blob.name), **kept))

    def _tell_if_changed(self, blob: Blob | None) -> None:
        if blob is not None and self._context.blobs.changed(blob):
            self._context.notices.tell_once(
                ("changed", blob.name),
                f"{blob.name} was written to again after it was logged; it is delivered as it is now. Save to a new "
                "file, or log it when it is final.",
            )

    def _value(self, record: Record) -> Any:
        """The record's value; a large one is JSON in a blob."""
        if record.value is not None or not record.blobs:
            return record.value
        return json.loads(self._context.blobs.locate(record.blobs[0]).read_text(encoding="utf-8"))


_ENCODERS: dict[str, Callable[[Encoder, Record, Batch], None]] = {
    **dict.fromkeys(STANDARD_FILES, Encoder._encode_standard_files),
    **dict.fromkeys(FOLDERS, Encoder._encode_images),
    Kind.METRIC: Encoder._encode_metrics,
    Kind.PARAM: Encoder._encode_params,
    Kind.TEXT: Encoder._encode_text,
    Kind.DICT: Encoder._encode_dict,
    Kind.ARTIFACT: Encoder._encode_artifact,
    Kind.CHECKPOINT: Encoder._encode_checkpoint,
}


def text_file(field: str, text: str, suffix: str) -> Any:
    """The operation that makes a field a file with this text."""
    return content_file(field, text.encode(errors="backslashreplace"), suffix)


def fit_folder(identifier: str) -> str:
    """An identifier as a path of fields; one that is changed here gets a hash from its caller.

    >>> fit_folder("val/photo"), len(fit_folder("k" * 1000))
    ('val/photo', 300)
    """
    return fit_path(identifier)[:_MAX_FOLDER].rstrip("/")


def content_file(field: str, content: bytes, suffix: str) -> Any:
    """The operation that makes a field a file with this content."""
    from neptune.internal import operation as ops

    return ops.UploadFileContent(field.split("/"), suffix, base64.b64encode(content).decode())


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lstrip(".")


def _length(text: str) -> int:
    """What a limit counts: bytes, to be on the safe side of whoever counts characters."""
    return len(text.encode(errors="backslashreplace"))
