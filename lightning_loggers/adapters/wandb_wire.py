"""The message to W&B's service process that logs a row of numbers, as bytes.

Built as protocol buffers are encoded (https://protobuf.dev/programming-guides/encoding/), without an object of the
SDK's for each row: making one, measuring it and encoding it takes five times as long, and the memory of such objects is
given back to the system by a pass over all memory of the process, which training waits for.

Written against wandb 0.31, whose messages are private: whoever uses it compares what it makes with the SDK's own.
"""

from collections.abc import Mapping
from typing import Any

_SIZED = 2
"""Wire type of what is preceded by its length."""


class RowEncoder:
    """Encodes rows of one run.

    Args:
        record: A record of the SDK's that says which run it is for and how it is handled, and no more.

    Raises:
        ImportError: If the SDK is another.
        KeyError: If its messages have other fields.
    """

    def __init__(self, record: Any) -> None:
        from pydantic_core import to_json  # as the SDK
        from wandb.proto import wandb_internal_pb2 as internal
        from wandb.proto import wandb_server_pb2 as server

        self._to_json = to_json
        self._publish = _tag(server.ServerRequest, "record_publish")
        self._request = _tag(internal.Record, "request")
        self._history = _tag(internal.Request, "partial_history")
        self._item = _tag(internal.PartialHistoryRequest, "item")
        self._key, self._value = _tag(internal.HistoryItem, "key"), _tag(internal.HistoryItem, "value_json")
        number = internal.Record.DESCRIPTOR.fields_by_name["request"].number
        self._before = _only(record, lambda field: field < number)
        self._behind = _only(record, lambda field: field > number)
        self._keys: dict[str, bytes] = {}

    def encode(self, row: Mapping[str, float]) -> bytes:
        """The whole message.

        Args:
            row: Not empty; ``float`` and ``int`` only.
        """
        item, keys = self._item, self._keys
        parts: list[bytes] = []
        values = self._to_json([*row.values()], inf_nan_mode="constants")[1:-1].split(b",")
        for key, value in zip(row, values, strict=True):
            begin = keys.get(key)
            if begin is None:
                begin = keys[key] = _sized(self._key, key.encode()) + self._value
            length = len(begin) + 1 + len(value)
            if length < 0x80:  # then so is the value's: both lengths are one byte
                parts += (item, _BYTES[length], begin, _BYTES[len(value)], value)
            else:
                parts.append(_sized(item, begin + _varint(len(value)) + value))
        history = _sized(self._history, b"".join(parts))
        return _sized(self._publish, self._before + _sized(self._request, history) + self._behind)


class Encoded:
    """Has what the SDK's client asks of a message when it writes it to its socket."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    def ByteSize(self) -> int:  # noqa: N802 - the SDK's name
        """Length of the message."""
        return len(self._data)

    def SerializeToString(self) -> bytes:  # noqa: N802 - the SDK's name
        """The message."""
        return self._data


_BYTES = [bytes([value]) for value in range(0x80)]


def _varint(value: int) -> bytes:
    """A length in groups of seven bits, the last ones first.

    >>> _varint(1).hex(), _varint(300).hex()
    ('01', 'ac02')
    """
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def _sized(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _tag(message: Any, field: str) -> bytes:
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | _SIZED)


def _only(record: Any, wanted: Any) -> bytes:
    """The fields of a record whose number is wanted."""
    part = type(record)()
    part.CopyFrom(record)
    for field, _ in record.ListFields():
        if not wanted(field.number):
            part.ClearField(field.name)
    encoded: bytes = part.SerializeToString()
    return encoded
