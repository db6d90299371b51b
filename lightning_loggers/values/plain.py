"""Values as JSON can say them."""

import enum
from collections.abc import Mapping
from typing import Any


def plain_json(value: Any) -> Any:
    """A value made of JSON's types; what JSON does not know becomes its text.

    >>> plain_json({"lr": (1e-3, None), 3: {2**70}, "nan": float("nan")})
    {'lr': [0.001, None], '3': ['1180591620717411303424'], 'nan': 'nan'}
    """
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_json(item) for item in value]
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)  # of a subclass too, which the journal's encoder does not know
    if isinstance(value, int):
        return int(value) if -(2**63) <= value < 2**63 else str(int(value))
    if isinstance(value, float):
        return float(value) if value - value == 0 else str(float(value))
    if hasattr(value, "tolist"):
        return plain_json(value.tolist())
    return str(value)
