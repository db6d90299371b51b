"""Values that are made only when they are needed."""

import functools
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial)


class Once:
    """A function without arguments that is called once, whoever asks for its value and however often.

    >>> calls = []
    >>> once = Once(lambda: calls.append("called") or 7)
    >>> once(), once(), calls
    (7, 7, ['called'])
    """

    __slots__ = ("_error", "_make", "_value")

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make: Callable[[], Any] | None = make
        self._value: Any = None
        self._error: Exception | None = None

    def __call__(self) -> Any:
        """The value.

        Raises:
            Exception: What the function raised, again at every call.
        """
        make, self._make = self._make, None
        if make is not None:
            try:
                self._value = make()
            except Exception as error:  # noqa: BLE001 - raised below, and to whoever asks next
                self._error = error
        if self._error is not None:
            raise self._error
        return self._value


_LAZY = (Once, *_FUNCTIONS)


def is_lazy(value: Any) -> bool:
    """Whether a value is a function to be called for the value; a model, which can be called too, is a value.

    >>> is_lazy(lambda: 1), is_lazy(functools.partial(int, "3")), is_lazy(int), is_lazy(3)
    (True, True, False, False)
    """
    return isinstance(value, _LAZY)


def shared(value: Any, depth: int = 2) -> Any:
    """The value such that functions in it are called once for all who are given it.

    Args:
        value: A function, a list or mapping with functions in it, or anything else.
        depth: How deep lists and mappings are looked into: 2 for the arguments of a call.
    """
    if is_lazy(value):
        return value if isinstance(value, Once) else Once(value)
    if depth and type(value) is dict:
        any_lazy = _any_lazy(value.values(), depth)
        return {key: shared(item, depth - 1) for key, item in value.items()} if any_lazy else value
    if depth and type(value) in {list, tuple} and _any_lazy(value, depth):
        return type(value)(shared(item, depth - 1) for item in value)
    return value


def _any_lazy(values: Iterable[Any], depth: int) -> bool:
    return any(
        is_lazy(item)
        or (depth > 1 and type(item) in {list, tuple} and any(map(is_lazy, item)))
        or (depth > 1 and type(item) is dict and any(map(is_lazy, item.values())))
        for item in values
    )


def shared_metrics(metrics: Any) -> Any:
    """Metrics as :func:`shared` has them; what is no mapping is returned as it is."""
    return shared(dict(metrics)) if isinstance(metrics, Mapping) else metrics
