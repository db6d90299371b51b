"""Values as text for people, and names made from where a run is."""

import os
import string
import time
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from typing_extensions import override

from lightning_loggers.errors import ConfigurationError
from lightning_loggers.ranks import current_rank, world_size
from lightning_loggers.values.metrics import as_number, safe_str

NAME_FIELDS = (
    "run_name", "rank", "local_rank", "world_size", "local_world_size", "node_rank", "epoch", "batch",
    "batch_in_epoch", "step", "mode", "date", "time",
)  # fmt: skip
"""What :func:`format_name` knows. ``batch`` counts the batches of the run, ``batch_in_epoch`` those of the epoch."""

_MAX_DEPTH = 32


def format_log_data_value(data: Any) -> str:
    """Write any value as a short text: numbers with four significant digits, arrays as their shape.

    Args:
        data: Anything; mappings and iterables are gone through.

    Returns:
        One line, unless a text within has several.

    >>> format_log_data_value({"loss": 0.123456, "note": "good", "sizes": [1, 2], "none": None})
    '{loss: 0.1235, note: "good", sizes: [1, 2], none: None}'
    """
    return _format(data, 0)


def _format(data: Any, depth: int) -> str:
    if data is None or isinstance(data, bool):
        return str(data)
    if isinstance(data, str):
        return f'"{safe_str(data)}"'
    if depth > _MAX_DEPTH:
        return "..."
    if isinstance(data, Mapping):
        return "{" + ", ".join(f"{safe_str(key)}: {_format(value, depth + 1)}" for key, value in data.items()) + "}"
    number = as_number(data)
    if number is not None:
        return str(number) if isinstance(number, int) else f"{number:.4g}"
    shape = getattr(data, "shape", None)
    if shape is not None:
        return f"{type(data).__name__} of shape {safe_str(tuple(shape))}"
    if isinstance(data, Iterable) and not isinstance(data, bytes):
        return "[" + ", ".join(_format(value, depth + 1) for value in data) + "]"
    return safe_str(data)


def process_fields() -> dict[str, int]:
    """Ranks and sizes of this process, as torch.distributed or the launcher's environment say; asked now."""
    return {
        "rank": current_rank(),
        "world_size": world_size() or _environment(("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"), 1),
        "local_rank": _environment(("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK"), 0),
        "local_world_size": _environment(("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"), 1),
        "node_rank": _environment(("NODE_RANK", "GROUP_RANK", "SLURM_NODEID"), 0),
    }


def _environment(names: tuple[str, ...], otherwise: int) -> int:
    for name in names:
        value = os.environ.get(name, "")
        if value.isdecimal():
            return int(value)
    return otherwise


class _Names(string.Formatter):
    """Plain names only: a template comes from a configuration and may look into no object."""

    def __init__(self, template: str) -> None:
        self.template = template

    @override
    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        if field_name not in kwargs:
            raise unknown_field(self.template, field_name)
        return kwargs[field_name], field_name

    @override
    def format_field(self, value: Any, format_spec: str) -> str:
        try:
            return str(super().format_field(value, format_spec))
        except ValueError as error:
            raise ConfigurationError(f"{self.template!r}: {error}.") from None


def unknown_field(template: str, field: str) -> ConfigurationError:
    """The error for a field that nobody knows."""
    close = get_close_matches(field, NAME_FIELDS, 1)
    hint = f"did you mean {{{close[0]}}}? " if close else ""
    known = ", ".join(f"{{{name}}}" for name in NAME_FIELDS)
    return ConfigurationError(f"{template!r}: {{{field}}} is no field; {hint}There are {known}.")


def format_name(template: str, **fields: Any) -> str:
    """Fill in a format string such as ``"{run_name}/ep{epoch:03d}-rank{rank}.pt"``.

    Args:
        template: The format string, with fields of :data:`NAME_FIELDS`; ``{{`` is a brace.
        **fields: Their values; ranks, sizes, date and time are known without.

    Returns:
        The name.

    Raises:
        ConfigurationError: For an unknown field (the message lists the known ones) or a format that does not fit.

    >>> format_name("{run_name}/ep{epoch:03d}-rank{rank}.pt", run_name="blue", epoch=7)
    'blue/ep007-rank0.pt'
    """
    now = time.localtime()
    known = {
        "run_name": "run", "epoch": 0, "batch": 0, "batch_in_epoch": 0, "step": 0, "mode": "default",
        "date": time.strftime("%Y-%m-%d", now), "time": time.strftime("%H-%M-%S", now),
        **process_fields(), **fields,
    }  # fmt: skip
    try:
        return _Names(template).vformat(template, (), known)
    except (ValueError, IndexError, KeyError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{template!r} is no format string: {error}.") from None
