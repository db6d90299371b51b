"""Records as what W&B's SDK logs: rows of the history, and entries of the configuration."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_loggers.adapters.base import Context
from lightning_loggers.adapters.wandb_artifacts import Artifacts
from lightning_loggers.adapters.wandb_media import MEDIA, media_of
from lightning_loggers.records import Kind, Record
from lightning_loggers.values.tables import table_of

AXIS = "trainer/global_step"
"""The x axis of every row, as Lightning's own logger has it; the SDK's ``step`` only counts rows."""

_LONG_TEXT = 1_000_000  # W&B's advice: less than 1 MB a value
_LONG_PARAM = 100_000
_NUMBERS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_OWN_FORM = MEDIA | {Kind.TABLE, Kind.HISTOGRAM, Kind.WATCH}


def has_row(record: Record) -> bool:
    """Whether a record becomes a row: the same on every delivery, since rows are told apart by their number."""
    if record.kind not in _ROWS:
        return False
    return bool(record.data) if record.kind == Kind.METRIC else record.value is not None or bool(record.blobs)


def has_files(record: Record) -> bool:
    """Whether a record's row comes with files that the SDK uploads beside it."""
    return record.kind == Kind.TABLE or record.kind in MEDIA


def value_of(context: Context, record: Record) -> Any:
    """The record's value; a large one is JSON in a blob."""
    if record.value is not None or not record.blobs:
        return record.value
    return json.loads(context.blobs.locate(record.blobs[0]).read_text(encoding="utf-8"))


class Rows:
    """Makes rows of records, and logs them.

    Args:
        context: The run's.
        artifacts: Keeps what a row is no place for.
    """

    def __init__(self, context: Context, artifacts: Artifacts) -> None:
        self._context = context
        self._artifacts = artifacts

    def log(self, log: Callable[[dict[str, Any]], object], record: Record) -> None:
        """Hand a record's row to the SDK's function."""
        values = _ROWS[record.kind]
        if record.kind not in _OWN_FORM:
            log(self._row(record, values(self, record)))
            return
        try:
            log(self._row(record, values(self, record)))
        except Exception as error:  # noqa: BLE001 - the SDK wants further packages for media, and has its own arguments
            name = self._artifacts.hand_standard(record)
            self._artifacts.wait([record])  # first: a row that is there is not made again after a crash
            self._context.notices.tell_once(
                ("media", record.kind, str(error)),
                f"W&B's SDK does not take {record.kind} {record.id!r} ({type(error).__name__}: {error}): it is whole "
                f"in the artifact {name}.",
            )
            log(self._row(record, {self._key(record): f"[in the artifact {name}]"}))

    def _row(self, record: Record, values: Mapping[str, Any]) -> dict[str, Any]:
        row = dict(values)
        if not (self._context.options.get("init") or {}).get("sync_tensorboard"):
            row[AXIS] = record.step  # also if there is none: W&B would repeat the last one
        row["_timestamp"] = record.time_ns / 1e9
        return row

    def _metrics(self, record: Record) -> dict[str, Any]:
        fit = self._context.keys.fit
        data = record.data or {}
        return {fit(key): int(value) if isinstance(value, bool) else value for key, value in data.items()}

    def _text(self, record: Record) -> dict[str, Any]:
        return {self._key(record): self._short(record, str(value_of(self._context, record)), "txt")}

    def _dictionary(self, record: Record) -> dict[str, Any]:
        value = value_of(self._context, record)
        text = json.dumps(value)
        # W&B would take what has a _type for media of its own, and leaves out what is empty.
        if len(text) > _LONG_TEXT or '"_type"' in text or "{}" in text:
            value = self._short(record, text, "json")
        return {self._key(record): value}

    def _table(self, record: Record) -> dict[str, Any]:
        import wandb

        blobs = record.blobs or []
        if blobs and not blobs[0].name.endswith(".json"):
            table = table_of(record, [self._context.blobs.locate(blob) for blob in blobs])
        else:
            table = value_of(self._context, record)
        if table is None:
            raise ValueError(f"{blobs[0].name} is no table that can be shown")
        for row, column, name in table.get("nonfinite") or []:
            table["data"][row][column] = _NUMBERS[name]
        return {self._key(record): wandb.Table(columns=table["columns"], data=table["data"], allow_mixed_types=True)}

    def _media(self, record: Record) -> dict[str, Any]:
        return {self._key(record): media_of(self._context, record)}

    def _histograms(self, record: Record) -> dict[str, Any]:
        import wandb

        fit = self._context.keys.fit
        return {
            fit(key): wandb.Histogram(np_histogram=(item["counts"], item["bins"]))
            for key, item in dict(value_of(self._context, record)).items()
        }

    def _key(self, record: Record) -> str:
        return self._context.keys.fit(record.id or record.kind)

    def _short(self, record: Record, text: str, suffix: str) -> str:
        """The text, or its beginning and where the whole of it is."""
        if len(text) <= _LONG_TEXT:
            return text
        name = self._artifacts.keep_text(f"{record.id or record.kind}-{record.time_ns}", text, suffix)
        self._context.notices.tell_once(
            ("long text", record.id),
            f"{record.kind} {record.id!r} has {len(text)} characters, and W&B advises less than a million: it is whole "
            f"in the artifact {name}, and the row holds its beginning.",
        )
        return f"{text[:1000]}... [whole in the artifact {name}]"


_ROWS: dict[str, Callable[[Rows, Record], dict[str, Any]]] = {
    Kind.METRIC: Rows._metrics,
    Kind.TEXT: Rows._text,
    Kind.DICT: Rows._dictionary,
    Kind.TABLE: Rows._table,
    Kind.IMAGE: Rows._media,
    Kind.AUDIO: Rows._media,
    Kind.VIDEO: Rows._media,
    Kind.FIGURE: Rows._media,
    Kind.POINT_CLOUD: Rows._media,
    Kind.HISTOGRAM: Rows._histograms,
    Kind.WATCH: Rows._histograms,
}


def nested_params(context: Context, artifacts: Artifacts, records: Sequence[Record]) -> dict[str, Any]:
    """Hyperparameters nested as they were in the user's mapping, with its lists, under W&B's names."""
    nested: dict[str, Any] = {}
    for record in records:
        meta = record.meta or {}
        nodes, lists = set(meta.get("nodes") or []), meta.get("lists") or {}
        for key, value in (record.data or {}).items():
            kept = lists[key] if key in lists else _param(context, artifacts, key, value)
            _put(nested, _path(context, key, nodes), kept)
    return nested


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings, the new one's values where they differ.

    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": 4})
    {'a': {'b': 1, 'c': 3}, 'd': 4}
    """
    both = dict(old)
    for key, value in new.items():
        present = both.get(key)
        inner = isinstance(value, Mapping) and isinstance(present, Mapping)
        both[key] = merged(present, value) if inner else value  # type: ignore[arg-type]
    return both


def _path(context: Context, key: str, nodes: set[str]) -> list[str]:
    """Where a flattened name was in the user's mapping: ``nodes`` are the names that were mappings there."""
    parts, begin = [], 0
    for end in [index for index, char in enumerate(key) if char == "/"]:
        if key[:end] in nodes:
            parts.append(key[begin:end])
            begin = end + 1
    parts.append(key[begin:])
    return [context.keys.fit(parts[0]), *parts[1:]]


def _put(nested: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for part in parents:
        inner = nested.get(part)
        if not isinstance(inner, dict):
            inner = nested[part] = {}
        nested = inner
    nested[last] = value


def _param(context: Context, artifacts: Artifacts, key: str, value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        name = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        context.notices.tell_once(
            ("nonfinite param", key),
            f"Parameter {key!r} is {value}: W&B's config would hold null, so it holds {name!r}.",
        )
        return name
    if isinstance(value, str) and len(value) > _LONG_PARAM:
        name = artifacts.keep_text(f"param-{key}", value, "txt")
        context.notices.tell_once(
            ("long param", key),
            f"Parameter {key!r} has {len(value)} characters: it is whole in the artifact {name}, and the config "
            "holds its beginning.",
        )
        return f"{value[:1000]}... [whole in the artifact {name}]"
    return value
