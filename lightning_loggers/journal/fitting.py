"""What a line of a journal cannot take as it stands: steps that are no numbers, and records that are too long."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import msgspec

from lightning_loggers.journal.blobs import BlobStore, safe_name
from lightning_loggers.notices import Notices
from lightning_loggers.records import MAX_LINE_BYTES, Kind, Record, encode_json, split_nonfinite

LONG = f"a line of the journal holds {MAX_LINE_BYTES // 2**20} MiB"
"""Why a record is not kept as it is."""


def plain_step(step: Any, notices: Notices) -> int | float | None:
    """The step as JSON takes it: numpy integers, tensors of one element and numeric strings are plain numbers.

    Args:
        step: As it was given.
        notices: Where it is told if it is no number.
    """
    if step is None or (type(step) is int and -(2**63) <= step < 2**63):
        return step
    number = _number(step)
    if number is None:
        notices.tell_once(
            ("step", type(step)), f"A step of type {type(step).__name__} is no finite number: kept without a step."
        )
    return number


def in_parts(record: Record, blobs: BlobStore, notices: Notices) -> Iterator[Record]:
    """A record whose line would be too long, as several of the same time and step, or with a blob; or nothing.

    Args:
        record: The record. Its parts may be too long again.
        blobs: Where a long value goes.
        notices: Where it is told that a value is kept as text.

    Raises:
        OSError: If the blob cannot be written.
    """
    if record.data is not None and len(record.data) > 1:
        items = list(record.data.items())
        for half in (dict(items[: len(items) // 2]), dict(items[len(items) // 2 :])):
            yield msgspec.structs.replace(record, data=half, nonfinite=split_nonfinite(half))
    elif record.blobs is not None and len(record.blobs) > 1:
        middle = len(record.blobs) // 2
        for some in (record.blobs[:middle], record.blobs[middle:]):
            yield msgspec.structs.replace(record, blobs=some)
    elif record.data:
        [(key, value)] = record.data.items()
        notices.tell_once(
            ("long", record.kind, key[:200]), f"The value of {record.kind} {key[:200]!r} is kept as text: {LONG}."
        )
        yield Record(record.time_ns, Kind.TEXT.value, record.step, id=key, value=value)
    elif record.value is not None:
        blob = blobs.put_bytes(encode_json(record.value), f"{safe_name(record.id or record.kind)}.json")
        yield msgspec.structs.replace(record, value=None, blobs=[blob, *(record.blobs or [])])


def _number(step: Any) -> int | float | None:
    with contextlib.suppress(Exception):  # whatever a foreign object's own conversion raises
        plain = step.item() if hasattr(step, "item") else step
        if isinstance(plain, int) and abs(plain) < 2**63:
            return int(plain)
        number = float(plain)
        if math.isfinite(number):
            return number if isinstance(plain, float | int) or not number.is_integer() else int(number)
    return None
