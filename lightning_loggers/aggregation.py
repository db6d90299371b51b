"""Many dictionaries of metrics into one.

:func:`merge_dicts` joins them key by key; :class:`StepAggregator` does it for one step after the other. Only numpy and
msgspec are needed: tensors are recognised by what they can do, so that a process without torch can merge the records of
ranks.
"""

import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from types import NoneType
from typing import Any

import msgspec
import numpy as np

AggFunc = Callable[[Sequence[Any]], Any]
Step = int | None
Held = tuple[Step, list[dict[str, Any]]]

_NUMBERS = frozenset({float, int})

REDUCTIONS = ("mean", "min", "max", "sum", "median", "std", "first", "last")
"""The functions that a configuration file, or a journal, can name."""

# Past this many values of one key numpy sums integers in pieces of its cast buffer (8,192), floats in one go: only
# below it is the sum of integers that were cast beforehand the same to the last bit.
_MAX_BATCHED = 4096


def named_reduction(name: str) -> AggFunc:
    """The function of a name in :data:`REDUCTIONS`.

    >>> named_reduction("max")([1, 3]), named_reduction("last")([1, 3])
    (3, 3)
    """
    simple: dict[str, AggFunc] = {"min": min, "max": max, "sum": sum, "first": itemgetter(0), "last": itemgetter(-1)}
    function: AggFunc = simple[name] if name in simple else getattr(np, name)
    return function


def merge_dicts(
    dicts: Iterable[Mapping[str, Any]],
    agg_key_funcs: Mapping[str, Any] | None = None,
    default_func: AggFunc = np.mean,
) -> dict[str, Any]:
    """Join dictionaries key by key, each key's values reduced to one by a function.

    Keys come out in the order in which they were first seen. A value of None counts as missing; a key without any
    other value is left out. Dictionaries within the dictionaries are joined in the same way, to any depth. The means
    of plain numbers are computed for all keys at once, with the same bits as ``numpy.mean`` gives for each.

    Args:
        dicts: What to join; any iterable. Leaves are numbers, numpy scalars, 0-d arrays, or 0-d tensors of any library
            whose tensors have ``ndim`` and ``item()`` (those are turned into Python numbers first).
        agg_key_funcs: The function per key, called with the list of that key's values. For a key that holds
            dictionaries: a mapping of its own keys to functions, or one function for all that is below it.
        default_func: The function for every key that ``agg_key_funcs`` does not name.

    Returns:
        A new dictionary. Results that are numpy scalars, 0-d arrays or 0-d tensors are turned into Python numbers, so
        the dictionary is ready for JSON; whatever else a function returns is kept.

    Raises:
        TypeError: A key holds a dictionary here and a scalar there, or a mapping of functions is given for a key of
            scalars. The message names the key, with dots for dictionaries within dictionaries.

    Examples:
        Three workers report the same step, and not all of them know everything:

        >>> d1 = {"a": 1.7, "b": 2.0, "c": 1, "d": {"d1": 1, "d3": 3}}
        >>> d2 = {"a": 1.1, "b": 2.2, "v": 1, "d": {"d1": 2, "d2": 3}}
        >>> d3 = {"a": 1.1, "v": 2.3, "d": {"d3": 3, "d4": {"d5": 1}}}
        >>> merge_dicts([d1, d2, d3], {"a": np.mean, "v": max, "d": {"d1": sum}}, min)
        {'a': 1.3, 'b': 2.0, 'c': 1, 'd': {'d1': 3, 'd3': 3, 'd2': 3, 'd4': {'d5': 1}}, 'v': 2.3}

        The mean is the default:

        >>> merge_dicts({"loss": loss} for loss in (1, 2, 6))
        {'loss': 3.0}
        >>> merge_dicts([])
        {}
    """
    rows = dicts if type(dicts) is list else list(dicts)
    if not agg_key_funcs and default_func is np.mean:
        merged = _means_of_equal_keys(rows)
        if merged is not None:
            return merged
    return _merge(rows, agg_key_funcs or {}, default_func, ())


def _means_of_equal_keys(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The means of flat dictionaries of floats and integers with the same keys; None for anything else.

    Loops over single values are left to C (map, zip, msgspec): they are all that costs here.
    """
    if {*map(type, rows)} != _DICT:
        return None
    first, count = rows[0], len(rows)
    if count == 1:
        if not _NUMBERS.issuperset(map(type, first.values())):
            return None
        # Not just float(value): numpy starts its sum at zero, which turns -0.0 into 0.0.
        return {key: value + 0.0 for key, value in first.items()}
    width = len(first)
    # Per dictionary its values in the order of the first one's keys, which is mostly its own.
    values: list[Any]
    if [*_chained(rows)] == [*first] * count:  # no dictionary is longer, as it would repeat a key
        values = [*map(_values_of, rows)]
    elif width < 2:
        return None
    else:
        try:
            values = [*map(itemgetter(*first), rows)]
        except KeyError:
            return None
        if {*map(len, rows)} != {width}:
            return None
    if count in _MEANS and (count * width <= _FEW or count == 2) and {*map(type, _chained(values))} == _FLOAT:
        return dict(zip(first, map(_MEANS[count], *values)))  # noqa: B905 - as long as each other; to ask takes time
    table = _table([*zip(*values)], count) if width > 1 and count <= _MAX_BATCHED else None  # noqa: B905
    if table is None:
        return None
    return {key: total / count for key, total in zip(first, _row_sums(table), strict=True)}


_DICT, _FLOAT = {dict}, {float}
_chained = chain.from_iterable
_values_of: Callable[[Any], Any] = dict.values

# The means of few numbers, added up in the order in which numpy does it: eight at a time, the rest one by one, from
# zero. For few of them a call of numpy takes longer than all additions.
_FEW = 100
_MEANS: dict[int, Callable[..., float]] = {
    2: lambda a, b: (a + b + 0.0) / 2,
    3: lambda a, b, c: (a + b + c + 0.0) / 3,
    4: lambda a, b, c, d: (a + b + c + d + 0.0) / 4,
    5: lambda a, b, c, d, e: (a + b + c + d + e + 0.0) / 5,
    6: lambda a, b, c, d, e, f: (a + b + c + d + e + f + 0.0) / 6,
    7: lambda a, b, c, d, e, f, g: (a + b + c + d + e + f + g + 0.0) / 7,
    8: lambda a, b, c, d, e, f, g, h: (((a + b) + (c + d)) + ((e + f) + (g + h)) + 0.0) / 8,
    9: lambda a, b, c, d, e, f, g, h, i: (((a + b) + (c + d)) + ((e + f) + (g + h)) + i + 0.0) / 9,
    10: lambda a, b, c, d, e, f, g, h, i, j: (((a + b) + (c + d)) + ((e + f) + (g + h)) + i + j + 0.0) / 10,
}


def _table(columns: list[tuple[Any, ...]], count: int) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Columns of ``count`` floats and integers each as the rows of a table; None for anything else.

    MessagePack writes a float, and nothing else, as a tag and its eight bytes: no check and no conversion is cheaper.
    That each tag stands where floats alone put it says that all are floats.
    """
    width = len(columns)
    try:
        data = _encode(columns)
    except (TypeError, ValueError, OverflowError):  # what it does not know, or integers past 64 bits
        return None
    # A list's head, then each column's and its floats.
    head = _HEADS[count > _SHORT]
    tags, pitch = _HEADS[width > _SHORT] + head, head + 9 * count
    if len(data) == tags - head + width * pitch:
        strides = (pitch, 9)
        if np.ndarray((width, count), "S1", data, tags, strides).tobytes() == _FLOAT_TAG * (width * count):
            return np.ndarray((width, count), ">f8", data, tags + 1, strides).astype(np.float64)
    if not all(_NUMBERS.issuperset(map(type, column)) for column in columns):
        return None
    table = np.array(columns)
    return None if table.dtype.kind == "O" else table.astype(np.float64, copy=False)


_encode = msgspec.msgpack.Encoder().encode
_SHORT, _HEADS = 15, (1, 3)  # lists of up to 15, and of up to 65,535 (of keys: past them the lengths do not agree)
_FLOAT_TAG = b"\xcb"


def _row_sums(table: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """The sum of each row of a C-contiguous table: numpy adds a row up in the same order as a list of its own."""
    sums: list[float] = np.add.reduce(table, 1).tolist()
    return sums


def _merge(
    rows: Sequence[Mapping[str, Any]], agg_key_funcs: Mapping[str, Any], default_func: AggFunc, path: tuple[str, ...]
) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in row.items():
            try:
                columns[key].append(value)
            except KeyError:
                columns[key] = [value]

    merged: dict[str, Any] = {}
    means: dict[int, list[str]] = {}  # number of values -> the keys that wait for their mean
    for key, column in columns.items():
        types = set(map(type, column))
        if NoneType in types:
            column[:] = [value for value in column if value is not None]
            types.discard(NoneType)
            if not types:
                continue
        func = agg_key_funcs.get(key)
        numbers = types <= _NUMBERS
        if numbers and (default_func if func is None else func) is np.mean and len(column) <= _MAX_BATCHED:
            merged[key] = None  # keeps the place
            means.setdefault(len(column), []).append(key)
        elif not numbers and _holds_dicts(column, key, path):
            if func is None or isinstance(func, Mapping):
                merged[key] = _merge(column, func or {}, default_func, (*path, key))
            else:
                merged[key] = _merge(column, {}, func, (*path, key))
        else:
            merged[key] = _reduce(default_func if func is None else func, column, key, path)

    for count, keys in means.items():
        table = np.array([columns[key] for key in keys])
        if table.dtype.kind == "O":  # integers past 64 bits, which numpy adds up one by one
            merged.update({key: _reduce(np.mean, columns[key], key, path) for key in keys})
        else:
            table = table.astype(np.float64, copy=False).reshape(len(keys), count)
            merged.update({key: total / count for key, total in zip(keys, _row_sums(table), strict=True)})
    return merged


def _reduce(func: Any, column: list[Any], key: str, path: tuple[str, ...]) -> Any:
    if isinstance(func, Mapping):
        raise TypeError(
            f"key {_dotted(path, key)!r} holds scalars such as {reprlib.repr(column[0])}, but agg_key_funcs gives a "
            f"mapping of functions for it. Give one function."
        )
    try:
        return _to_python(func([_to_number(value) for value in column]))
    except Exception as error:
        error.add_note(f"while aggregating {len(column)} value(s) of key {_dotted(path, key)!r}")
        raise


def _holds_dicts(column: list[Any], key: str, path: tuple[str, ...]) -> bool:
    dicts = sum(isinstance(value, Mapping) for value in column)
    if 0 < dicts < len(column):
        scalar = next(value for value in column if not isinstance(value, Mapping))
        raise TypeError(
            f"key {_dotted(path, key)!r} holds a dictionary in some of the dictionaries and the scalar "
            f"{reprlib.repr(scalar)} ({type(scalar).__name__}) in others: these cannot be merged. Rename one of them."
        )
    return dicts > 0


def _dotted(path: tuple[str, ...], key: str) -> str:
    return ".".join(map(str, (*path, key)))


def _to_number(value: Any) -> Any:
    """A Python number for a 0-d tensor; numpy's own kinds stay, since functions know their precision."""
    if type(value) in _NUMBERS or isinstance(value, np.generic | np.ndarray):
        return value
    return _to_python(value)


def _to_python(value: Any) -> Any:
    if type(value) not in _NUMBERS and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


def _snapshot(value: Any) -> Any:
    """The value as it is now: what the caller does to it later must not change a metric that was handed over."""
    if isinstance(value, Mapping):
        return {key: _snapshot(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.copy()
    if hasattr(value, "detach") and hasattr(value, "clone"):
        # Stays on its device (no wait here) and lets go of the graph that computed it.
        return value.detach().clone()
    return value


class StepAggregator:
    """Holds the metrics of one step until another step begins, then merges them.

    None is a step like any other ("no step was given"), and so is 0.

    Args:
        agg_key_funcs: The function per key, see :func:`merge_dicts`.
        agg_default_func: The function for all other keys.

    Attributes:
        held: Copies of the metrics of the current step, not merged yet; empty when there is nothing to log.

    Examples:
        >>> aggregator = StepAggregator({"best": max})
        >>> aggregator.add({"loss": 1.0, "best": 1}, step=0)
        >>> aggregator.add({"loss": 2.0, "best": 3}, step=0)
        >>> aggregator.add({"loss": 8.0}, step=1)
        (0, {'loss': 1.5, 'best': 3})
        >>> aggregator.flush()
        (1, {'loss': 8.0})
        >>> aggregator.flush()
    """

    def __init__(self, agg_key_funcs: Mapping[str, Any] | None = None, agg_default_func: AggFunc = np.mean) -> None:
        self.held: list[dict[str, Any]] = []
        self._step: Step = None
        self._agg_key_funcs: dict[str, Any] = dict(agg_key_funcs or {})
        self._agg_default_func = agg_default_func

    def update(self, agg_key_funcs: Mapping[str, Any] | None = None, agg_default_func: AggFunc | None = None) -> None:
        """Change functions; what is held already is merged with the new ones.

        Args:
            agg_key_funcs: Functions to add or replace; other keys keep theirs.
            agg_default_func: The new function for all other keys; None keeps the present one.
        """
        if agg_key_funcs:
            self._agg_key_funcs = {**self._agg_key_funcs, **agg_key_funcs}
        if agg_default_func is not None:
            self._agg_default_func = agg_default_func

    def add(self, metrics: Mapping[str, Any], step: Step) -> tuple[Step, dict[str, Any]] | None:
        """Hold metrics; if they begin another step, hand out the step before, merged.

        Args:
            metrics: Values by key; copied, so the caller may change them afterwards.
            step: The step that they belong to.

        Returns:
            The finished step and its merged metrics, or None while the step goes on.

        Raises:
            TypeError: The finished step cannot be merged (see :func:`merge_dicts`); the new metrics are held all the
                same.
        """
        return self._merged(self.hold(metrics, step))

    def flush(self) -> tuple[Step, dict[str, Any]] | None:
        """Hand out what is held, merged.

        Returns:
            The current step and its merged metrics, or None if nothing is held.

        Raises:
            TypeError: The metrics cannot be merged (see :func:`merge_dicts`); they are held no longer.
        """
        return self._merged(self.take())

    def hold(self, metrics: Mapping[str, Any], step: Step) -> Held | None:
        """As :meth:`add`, with the metrics of the finished step not merged but listed."""
        copied: dict[str, Any] = _snapshot(metrics)
        # In this order a signal handler that flushes between two of these lines loses nothing.
        finished = None if not self.held or step == self._step else self.take()
        self._step = step
        self.held.append(copied)
        return finished

    def take(self) -> Held | None:
        """As :meth:`flush`, with the metrics not merged but listed."""
        held, self.held = self.held, []
        return (self._step, held) if held else None

    def merge(self, held: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Merge with the functions of this object.

        Raises:
            TypeError: See :func:`merge_dicts`.
        """
        # A result of NaN or infinity says it all; numpy's warning about it could be an error in training.
        with np.errstate(all="ignore"):
            return merge_dicts(held, self._agg_key_funcs, self._agg_default_func)

    def _merged(self, held: Held | None) -> tuple[Step, dict[str, Any]] | None:
        return None if held is None else (held[0], self.merge(held[1]))
