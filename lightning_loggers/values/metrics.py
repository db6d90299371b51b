"""Metrics as users pass them, made plain: what is a number is kept as one, what is none is kept as what it is."""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_loggers.records import Kind, Record, bounded
from lightning_loggers.values.lazy import is_lazy

Tell = Callable[[Hashable, str], object]

_FAILED = object()

_MAX_DEPTH = 16


def normalise(metrics: Mapping[Any, Any], tell: Tell) -> tuple[dict[str, Any], list[Record]]:
    """Split metrics into plain numbers and records of other kinds.

    ===========================  ==========================================================
    value                        becomes
    ===========================  ==========================================================
    int, float, bool, numpy      the number
    scalar, tensor of one
    element, numeric string
    function without arguments   what it returns
    mapping                      its items, under ``key/inner``
    tensor or array of several   a ``dict`` record with its (nested) list
    any other string             a ``text`` record
    ``None``                     nothing; counted
    anything else                a ``text`` record of its ``str``
    ===========================  ==========================================================

    Two names that become one keep both values, the second under ``name#2``.

    Args:
        metrics: Key to value, as given to ``log_metrics``.
        tell: Called with a cause and a message for everything that is not kept as a number under its own name.

    Returns:
        The numbers, and records (time and step still to be set) for the rest.

    >>> import numpy
    >>> normalise({"loss": numpy.float32(0.5), "n": "3", "note": "good"}, lambda cause, message: None)
    ({'loss': 0.5, 'n': 3.0}, [Record(time_ns=0, kind='text', step=None, data=None, nonfinite=None, id='note', \
value='good', blobs=None, meta=None, epoch=None, phase=None, rank=None)])
    """
    split = _Split({}, [], tell)
    split.collect("", metrics, (id(metrics),))
    return split.numbers, split.others


@dataclass(slots=True)
class _Split:
    numbers: dict[str, Any]
    others: list[Record]
    tell: Tell

    def collect(self, prefix: str, metrics: Mapping[Any, Any], parents: tuple[int, ...]) -> None:
        for raw_key, value in list(metrics.items()):
            key = prefix + safe_str(raw_key)
            if is_lazy(value):
                value = self.called(key, value)  # noqa: PLW2901 - the value itself from here on
                if value is _FAILED:
                    continue
            number = as_number(value)
            if number is None:
                self.collect_other(key, value, parents)
            else:
                self.add(key, number)

    def called(self, key: str, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:  # noqa: BLE001 - the user's own function must not stop training
            self.tell(("lazy", key), f"Metric {key!r} is left out: its function raised {error!r}. Training goes on.")
            return _FAILED

    def add(self, key: str, number: float) -> None:
        name = free_name(key, self.numbers)
        if name != key:
            self.tell(("twice", key), f"Two metrics of one call are named {key!r}: the second is kept as {name!r}.")
        self.numbers[name] = number

    def collect_other(self, key: str, value: Any, parents: tuple[int, ...]) -> None:
        if value is None:
            self.tell(("none", key), f"Metric {key!r} was None and is left out: a metric is a number.")
        elif is_mapping(value) and len(parents) <= _MAX_DEPTH and id(value) not in parents:
            inner = _Split({}, [], self.tell)
            try:
                inner.collect(f"{key}/", value, (*parents, id(value)))
            except Exception:  # noqa: BLE001 - a foreign mapping that cannot be gone over is kept as its text
                self.keep_text(key, value)
            else:
                for name, number in inner.numbers.items():
                    self.add(name, number)
                self.others.extend(inner.others)
        elif issubclass(type(value), str):
            text = safe_str(value)
            self.others.append(Record(0, Kind.TEXT.value, id=key, value=text))
            self.tell(
                ("text", key),
                f"Metric {key!r} was a string ({_short(text)}), no number: it is kept as text under the same name. "
                f"Use `logger.log_text({key!r}, ...)` for text.",
            )
        elif (listed := _as_list(value)) is not None:
            self.others.append(Record(0, Kind.DICT.value, id=key, value=listed))
            self.tell(
                ("array", key),
                f"Metric {key!r} had several elements (shape {_shape(value)}), a metric has one: it is kept whole as a "
                "JSON list under the same name. Reduce it first, for example with `.mean()`.",
            )
        else:
            self.keep_text(key, value)

    def keep_text(self, key: str, value: Any) -> None:
        self.others.append(Record(0, Kind.TEXT.value, id=key, value=safe_str(value)))
        self.tell(
            ("other", key),
            f"Metric {key!r} was a {type(value).__name__}, no number: its text is kept under the same name.",
        )


def as_number(value: Any) -> int | float | None:
    """The plain number that ``value`` is, or ``None`` if it is none.

    >>> as_number("1e-3"), as_number(True), as_number([1, 2]), as_number("n/a")
    (0.001, True, None, None)
    """
    kind = type(value)
    if kind is float or kind is bool:
        return value  # type: ignore[no-any-return]
    try:
        if kind is int:
            return bounded(value)
        if isinstance(value, str):
            return float(value)
        if hasattr(value, "item"):
            if getattr(value, "size", 1) not in {0, 1} and not callable(value.size):
                return None
            return _plain(value.item())  # raises for several elements
        return _plain(value)
    except Exception:  # noqa: BLE001 - a foreign object's own conversion may raise anything; then it is no number
        return None


def _plain(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return bounded(int(value))
    if isinstance(value, float) or (hasattr(type(value), "__float__") and not isinstance(value, complex)):
        return float(value)
    return None


def safe_str(value: Any) -> str:
    """The text of any object, even one that cannot make it."""
    try:
        return str.__str__(value) if isinstance(value, str) else str(value)
    except Exception:  # noqa: BLE001 - a foreign object's own __str__
        return f"<{type(value).__name__}>"


def is_mapping(value: Any) -> bool:
    """Whether ``value`` is a mapping; an object that raises when asked for its class is none."""
    try:
        return isinstance(value, Mapping)
    except Exception:  # noqa: BLE001 - a foreign object's own __class__
        return False


def free_name(name: str, taken: Mapping[str, Any]) -> str:
    """``name``, with a number added if it is taken.

    >>> free_name("a", {"a": 1, "a#2": 1})
    'a#3'
    """
    if name not in taken:
        return name
    number = 2
    while f"{name}#{number}" in taken:
        number += 1
    return f"{name}#{number}"


def _as_list(value: Any) -> list[Any] | None:
    try:
        if isinstance(value, list | tuple):
            numbers = [as_number(item) for item in value]
            return None if None in numbers else [_json_number(number) for number in numbers]
        listed = value.tolist()
        return _json_list(listed) if isinstance(listed, list) else None
    except Exception:  # noqa: BLE001 - no array after all
        return None


def _json_list(value: Any) -> Any:
    return [_json_list(item) for item in value] if isinstance(value, list) else _json_number(value)


def _json_number(value: Any) -> Any:
    """JSON has no NaN: inside a list it is kept as its name."""
    if type(value) is float:
        return value if math.isfinite(value) else str(value)
    return value if type(value) is bool or (type(value) is int and abs(value) < 2**63) else safe_str(value)


def _shape(value: Any) -> str:
    try:
        return str(tuple(value.shape))
    except Exception:  # noqa: BLE001 - a list, or a foreign object's own attribute
        return f"({len(value)},)" if isinstance(value, list | tuple) else "unknown"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
