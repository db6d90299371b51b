"""Hyperparameters as users pass them, made plain: one flat mapping of names to JSON's scalars."""

import dataclasses
import enum
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

from lightning_loggers.values.metrics import as_number, free_name, is_mapping, safe_str

Scalar = str | int | float | bool | None

_MAX_DEPTH = 32
_MAX_ITEMS = 10_000


def flatten(params: Any) -> dict[str, Scalar]:
    """Flatten hyperparameters, nested names joined by ``/``.

    Mappings (OmegaConf's too), ``Namespace``, ``SimpleNamespace`` and dataclass instances are opened, at the top any
    object with ``__dict__``, too; every other value becomes a scalar: by its own number where it is one that fits 64
    bits, else by its text. Nothing is cut and nothing raises.

    Args:
        params: A mapping, ``argparse.Namespace``, dataclass instance, or anything with ``__dict__``.

    Returns:
        Name to scalar, in the order given. Two names that become one keep both values, the second under ``name#2``.

    >>> flatten({"lr": 1e-3, "model": {"width": 64, "act": max}, "sizes": [1, 2]})
    {'lr': 0.001, 'model/width': 64, 'model/act': 'builtins.max', 'sizes': '[1, 2]'}
    """
    flat: dict[str, Scalar] = {}
    if params is None:
        return flat
    opened = contents(params, any_object=True)
    _collect("", {"params": params} if opened is None else opened, flat, () if opened is None else (id(params),))
    return flat


def _collect(prefix: str, params: Mapping[Any, Any], flat: dict[str, Scalar], parents: tuple[int, ...]) -> None:
    try:
        keys = list(params)
    except Exception as error:  # noqa: BLE001 - a foreign mapping's own methods
        flat[free_name(prefix.rstrip("/") or "params", flat)] = _unreadable(error)
        return
    for key in keys:
        name = prefix + safe_str(key)
        try:
            value = params[key]
        except Exception as error:  # noqa: BLE001 - e.g. an OmegaConf interpolation that does not resolve
            flat[free_name(name, flat)] = _unreadable(error)
            continue
        inside_itself = id(value) in parents
        inner = contents(value) if len(parents) <= _MAX_DEPTH and not inside_itself else None
        if inner:
            _collect(f"{name}/", inner, flat, (*parents, id(value)))
        elif inner is not None:
            flat[free_name(name, flat)] = "{}"
        else:
            flat[free_name(name, flat)] = "<itself>" if inside_itself else _scalar(value)


def _unreadable(error: Exception) -> str:
    return f"<unreadable: {type(error).__name__}: {safe_str(error)}>"


def contents(value: Any, *, any_object: bool = False) -> Mapping[Any, Any] | None:
    """What is inside a value as a mapping; ``None`` for a value that is not opened.

    Args:
        value: Anything.
        any_object: Whether an object with attributes of its own is opened, too.
    """
    try:
        if is_mapping(value):
            return cast(Mapping[Any, Any], value) if len(value) else {}
        if isinstance(value, Namespace | SimpleNamespace):
            return vars(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        if any_object and not isinstance(value, type) and not callable(value) and hasattr(value, "__dict__"):
            return dict(vars(value))
    except Exception:  # noqa: BLE001 - a foreign object's own attributes
        return None
    return None


def _scalar(value: Any) -> Scalar:
    kind = type(value)
    if value is None or kind is str or kind is bool or kind is float:
        return value  # type: ignore[no-any-return]
    try:
        if kind is int:
            # Python refuses to write more than 4,300 decimal digits.
            return value if -(2**63) <= value < 2**63 else str(value) if abs(value) < 10**4000 else hex(value)
        if isinstance(value, enum.Enum):
            return f"{kind.__name__}.{value.name}"
        if isinstance(value, os.PathLike):
            return os.fsdecode(value)
        if isinstance(value, str):
            return safe_str(value)
        number = as_number(value)
        if number is not None:
            return number
        if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
            return ".".join(part for part in (value.__module__, value.__qualname__) if part)
        if isinstance(value, bytes):
            return value.decode(errors="backslashreplace")
        if hasattr(value, "tolist"):
            return safe_str(value.tolist())
    except Exception:  # noqa: BLE001 - a foreign object's own conversions
        return safe_str(value)
    return safe_str(value)


def nested(value: Any, parents: tuple[int, ...] = ()) -> Any:
    """Hyperparameters as JSON has them, nested as they were; leaves as :func:`flatten` spells them.

    >>> nested({"model": Namespace(width=64, act=max), "sizes": (1, 2)})
    {'model': {'width': 64, 'act': 'builtins.max'}, 'sizes': [1, 2]}
    """
    if id(value) in parents:
        return "<itself>"
    inside = (*parents, id(value))
    if len(inside) <= _MAX_DEPTH:
        items = _items(value)
        if items is not None:
            return {str(key): nested(item, inside) for key, item in items.items()}
        if isinstance(value, Sequence) and not isinstance(value, str | bytes | range) and len(value) <= _MAX_ITEMS:
            return [nested(item, inside) for item in value]
    return flatten({"leaf": value}).get("leaf", "<nested too deep>")


def _items(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Namespace | SimpleNamespace):
        return vars(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    return None
