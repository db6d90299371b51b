"""Hyperparameters as users pass them, made plain: one flat mapping of names to JSON's scalars."""

import dataclasses
import enum
import os
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning_loggers.values.metrics import as_number

_MAX_DEPTH = 32


def flatten(params: Any) -> dict[str, str | int | float | bool | None]:
    """Flatten hyperparameters, nested names joined by ``/``.

    Mappings (OmegaConf's too), ``Namespace`` and dataclass instances are opened; every other value becomes a scalar,
    by its own number where it is one, else by its text. Nothing is cut and nothing raises.

    Args:
        params: A mapping, ``argparse.Namespace``, dataclass instance, or anything with ``__dict__``.

    Returns:
        Name to scalar, in the order given. Two names that become one keep both values, the second under ``name#2``.

    >>> flatten({"lr": 1e-3, "model": {"width": 64, "act": max}, "sizes": [1, 2]})
    {'lr': 0.001, 'model/width': 64, 'model/act': 'builtins.max', 'sizes': '[1, 2]'}
    """
    flat: dict[str, str | int | float | bool | None] = {}
    opened = _open(params)
    if opened is None:
        opened = {"params": params} if params is not None else {}
    _collect("", opened, flat, (), 0)
    return flat


def _collect(
    prefix: str, params: Mapping[Any, Any], flat: dict[str, Any], parents: tuple[int, ...], depth: int
) -> None:
    try:
        items = list(params.items())
    except Exception as error:  # noqa: BLE001 - e.g. an OmegaConf interpolation that does not resolve
        flat[_free(prefix.rstrip("/") or "params", flat)] = f"<unreadable: {type(error).__name__}: {error}>"
        return
    for key, value in items:
        name = f"{prefix}{key}"
        inner = _open(value)
        if inner is not None and depth < _MAX_DEPTH and id(value) not in parents:
            if inner:
                _collect(f"{name}/", inner, flat, (*parents, id(value)), depth + 1)
            else:
                flat[_free(name, flat)] = "{}"
        else:
            flat[_free(name, flat)] = _scalar(value) if id(value) not in parents else "<itself>"


def _open(value: Any) -> Mapping[Any, Any] | None:
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Namespace):
        return vars(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    return None


def _free(name: str, flat: Mapping[str, Any]) -> str:
    if name not in flat:
        return name
    number = 2
    while f"{name}#{number}" in flat:
        number += 1
    return f"{name}#{number}"


def _scalar(value: Any) -> str | int | float | bool | None:
    if value is None or isinstance(value, str) and type(value) is str:
        return value
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, os.PathLike):
        return os.fspath(value) if isinstance(os.fspath(value), str) else os.fsdecode(value)
    if isinstance(value, str):
        return str(value)
    number = as_number(value)
    if number is not None:
        return number
    try:
        if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, bytes):
            return value.decode(errors="backslashreplace")
        if hasattr(value, "tolist"):
            return str(value.tolist())
        return str(value)
    except Exception:  # noqa: BLE001 - a foreign object's own __str__
        return f"<{type(value).__name__}>"
