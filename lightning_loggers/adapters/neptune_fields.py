"""Which field of a Neptune run holds which series or value, and which points a series can hold.

A field has one type for ever, a path below which there are fields is none itself, and the points of a series have
strictly increasing steps. Nothing here needs the SDK.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable
from typing import Any

MAX_EXACT = 2**53
"""Steps and values are doubles at Neptune: larger integers are not all there."""

MAX_PATH = 500
"""Longer paths, such as those of artifacts in deep folders, are cut and told apart by a hash."""

OTHER = "__other"
"""Ends the name of the string series that holds what a series itself cannot."""

_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def fit_path(key: str) -> str:
    r"""The closest path of a field: no empty part, no control character, and not in ``sys``, which is Neptune's own.

    >>> [fit_path(key) for key in ("val/loss@k=5 ü", "", "/a//b/", "a/../b", "sys/id", "a\nb")]
    ['val/loss@k=5 ü', '_', 'a/b', 'a/_/b', 'sys_/id', 'a_b']
    """
    parts = ["_" if part in {".", ".."} else part for part in _UNSAFE.sub("_", key).split("/") if part]
    if parts and parts[0] == "sys":
        parts[0] = "sys_"
    return "/".join(parts) or "_"


def _shortened(path: str) -> str:
    if len(path) <= MAX_PATH:
        return path
    return f"{path[: MAX_PATH - 20]}-{hashlib.sha256(path.encode()).hexdigest()[:16]}"


class Fields:
    """Gives every series and value of a run a field of its own, and says which points go into which series.

    What is decided is kept only by :meth:`commit`: a batch that failed is decided anew.

    Args:
        saved: What was committed, by this or an earlier host; :meth:`commit` adds to it.
        on_move: Called with the path that was wanted and the one that is used instead.

    >>> fields = Fields({})
    >>> fields.place("float", "a"), fields.place("float", "a/b"), fields.place("string", "a")
    ('a', 'a_/b', 'a__')
    >>> [fields.is_regular("a", step) for step in (0, 5, 5, 2.5, 7, None)]
    [True, True, False, False, True, False]
    """

    def __init__(
        self, saved: dict[str, Any], on_move: Callable[[str, str], object] = lambda wanted, place: None
    ) -> None:
        self._saved = saved
        self._on_move = on_move
        self.discard()

    def discard(self) -> None:
        """Forget what was decided since the last commit."""
        self._new: dict[str, dict[str, Any]] = {}
        self._leaves: set[str] = set()
        self._namespaces: set[str] = set()
        for owner, place in self._saved.get("fields", {}).items():
            self._occupy(place or owner.partition(":")[2])

    def commit(self) -> None:
        """Keep what was decided."""
        for name, values in self._new.items():
            self._saved.setdefault(name, {}).update(values)
        self._new = {}

    def clear(self) -> None:
        """Begin anew, for a new run."""
        self._saved.clear()
        self.discard()

    def get(self, name: str, key: str) -> Any:
        """A note of :meth:`note`, or ``None``."""
        found = self._new.get(name, {}).get(key)
        return self._saved.get(name, {}).get(key) if found is None else found

    def knows(self, what: str, path: str) -> bool:
        """Whether :meth:`place` has given a field to this already."""
        return self.get("fields", f"{what}:{path}") is not None

    def note(self, name: str, key: str, value: Any) -> None:
        """Note something that is committed with the rest."""
        self._new.setdefault(name, {})[key] = value

    def moved(self) -> dict[str, str]:
        """Committed fields that are not where they were wanted: place to wanted path."""
        return {place: owner.partition(":")[2] for owner, place in self._saved.get("fields", {}).items() if place}

    def place(self, what: str, path: str) -> str:
        """The field for ``path``, the same whenever it is asked for.

        Args:
            what: Kind of field: the same path may be wanted for several.
            path: Where it should be; whether it is a path that Neptune takes does not matter.
        """
        owner = f"{what}:{path}"
        known = self.get("fields", owner)
        if known is not None:
            return known or path
        place = self._free(_shortened(fit_path(path)))
        self._occupy(place)
        self.note("fields", owner, "" if place == path else place)
        if place != path:
            self._on_move(path, place)
        return place

    def _free(self, path: str) -> str:
        parts = path.split("/")
        for index in range(len(parts)):
            while True:
                begin = "/".join(parts[: index + 1])
                if begin not in self._leaves and not (index == len(parts) - 1 and begin in self._namespaces):
                    break
                parts[index] += "_"
        return "/".join(parts)

    def _occupy(self, place: str) -> None:
        self._leaves.add(place)
        while "/" in place:
            place = place.rpartition("/")[0]
            if place in self._namespaces:
                return
            self._namespaces.add(place)

    def is_regular(self, series: str, step: int | float | None) -> bool:
        """Whether the series at this field takes a point with this step; if so, it is its last one now.

        Neptune numbers points that have no step. So they stay in their series only before its first step, and steps go
        on above those numbers; how many there were is noted as ``unnumbered``.
        """
        last = self.get("last", series)
        if step is None:
            unnumbered = self.get("unnumbered", series) or 0
            if last is not None and last != unnumbered:
                return False
            self.note("unnumbered", series, unnumbered + 1)
            self.note("last", series, unnumbered + 1)
            return True
        if not math.isfinite(step) or (isinstance(step, int) and abs(step) > MAX_EXACT):
            return False
        if last is not None and step <= last:
            return False
        self.note("last", series, step)
        return True


def is_regular_value(value: int | float) -> bool:
    """Whether a float series shows this value as it is."""
    return math.isfinite(value) and (isinstance(value, float) or abs(value) <= MAX_EXACT)


def other_item(value: Any, step: int | float | None, **more: Any) -> str:
    """An item of the series :data:`OTHER`: JSON, numbers that it cannot say as their names.

    >>> other_item(float("nan"), 3), other_item(2**60, None)
    ('{"value": "nan", "step": 3}', '{"value": 1152921504606846976, "step": null}')
    """
    return json.dumps({"value": _sayable(value), "step": _sayable(step), **more}, ensure_ascii=False)


def _sayable(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
