"""Metrics as users pass them, made plain: what is a number is kept as one, what is none is kept as what it is."""

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from lightning_loggers.records import Kind, Record

Tell = Callable[[Hashable, str], object]

_MAX_DEPTH = 16
_MAX_TEXT = 100_000


def normalise(metrics: Mapping[Any, Any], tell: Tell) -> tuple[dict[str, Any], list[Record]]:
    """Split metrics into plain numbers and records of other kinds.

    ===========================  ==========================================================
    value                        becomes
    ===========================  ==========================================================
    int, float, bool, numpy      the number
    scalar, tensor of one
    element, numeric string
    mapping                      its items, under ``key/inner``
    tensor or array of several   a ``dict`` record with its (nested) list
    any other string             a ``text`` record
    ``None``                     nothing; counted
    anything else                a ``text`` record of its ``str``
    ===========================  ==========================================================

    Args:
        metrics: Key to value, as given to ``log_metrics``.
        tell: Called with a cause and a message for everything that is not kept as a number.

    Returns:
        The numbers, and records (time and step still to be set) for the rest.

    >>> import numpy
    >>> normalise({"loss": numpy.float32(0.5), "n": "3", "note": "good"}, lambda cause, message: None)
    ({'loss': 0.5, 'n': 3.0}, [Record(time_ns=0, kind='text', step=None, data=None, nonfinite=None, id='note', \
value='good', blobs=None, meta=None, epoch=None, phase=None, rank=None)])
    """
    numbers: dict[str, Any] = {}
    others: list[Record] = []
    _collect("", metrics, numbers, others, tell, 0)
    return numbers, others


def _collect(
    prefix: str, metrics: Mapping[Any, Any], numbers: dict[str, Any], others: list[Record], tell: Tell, depth: int
) -> None:
    for raw_key, value in metrics.items():
        key = f"{prefix}{raw_key}"
        number = as_number(value)
        if number is not None:
            numbers[key] = number
        elif value is None:
            tell(("none", key), f"Metric {key!r} was None and is left out: a metric is a number.")
        elif isinstance(value, Mapping) and depth < _MAX_DEPTH:
            _collect(f"{key}/", value, numbers, others, tell, depth + 1)
        elif isinstance(value, str):
            others.append(Record(0, Kind.TEXT.value, id=key, value=value))
            tell(
                ("text", key),
                f"Metric {key!r} was a string ({_short(value)}), no number: it is kept as text under the same name. "
                f"Use `logger.log_text({key!r}, ...)` for text.",
            )
        elif (listed := _as_list(value)) is not None:
            others.append(Record(0, Kind.DICT.value, id=key, value=listed))
            tell(
                ("array", key),
                f"Metric {key!r} had several elements (shape {tuple(getattr(value, 'shape', ()))}), a metric has one: "
                "it is kept whole as a JSON list under the same name. Reduce it first, for example with `.mean()`.",
            )
        else:
            others.append(Record(0, Kind.TEXT.value, id=key, value=_safe_str(value)[:_MAX_TEXT]))
            tell(
                ("other", key),
                f"Metric {key!r} was a {type(value).__name__}, no number: its text is kept under the same name.",
            )


def as_number(value: Any) -> int | float | None:
    """The plain number that ``value`` is, or ``None`` if it is none.

    >>> as_number("1e-3"), as_number(True), as_number([1, 2]), as_number("n/a")
    (0.001, True, None, None)
    """
    if type(value) in {float, int, bool}:
        return _bounded(value)
    try:
        if isinstance(value, str):
            return float(value)
        if hasattr(value, "item"):
            if getattr(value, "size", 1) not in {0, 1} and not callable(value.size):
                return None
            plain = value.item()  # raises for several elements
            return _bounded(plain) if isinstance(plain, int | float) else None
        if isinstance(value, int | float) or hasattr(type(value), "__float__"):
            return _bounded(int(value) if isinstance(value, int) else float(value))
    except Exception:  # noqa: BLE001 - a foreign object's own conversion may raise anything; then it is no number
        return None
    return None


def _bounded(value: int | float) -> int | float:
    """Integers beyond 64 bits as floats: no tracker and few JSON readers take them."""
    if type(value) is int and not -(2**63) <= value < 2**63:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return value


def _as_list(value: Any) -> list[Any] | None:
    if isinstance(value, list | tuple) and all(as_number(item) is not None for item in value):
        return [_json_number(as_number(item)) for item in value]
    try:
        listed = value.tolist()
    except Exception:  # noqa: BLE001 - no array after all
        return None
    return _json_list(listed) if isinstance(listed, list) else None


def _json_list(value: Any) -> Any:
    return [_json_list(item) for item in value] if isinstance(value, list) else _json_number(value)


def _json_number(value: Any) -> Any:
    """JSON has no NaN: inside a list it is kept as its name."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float) else str(value)


def _safe_str(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a foreign object's own __str__
        return f"<{type(value).__name__}>"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
