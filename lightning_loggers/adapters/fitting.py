"""Fitting keys and steps to what a tracker takes; two different keys never become one series."""

import hashlib
import math
import re
from collections.abc import Callable, Mapping

from lightning_loggers.notices import Notices

MAX_REMEMBERED = 20_000
"""Keys remembered one by one. A run with more of them (a mistake, or hostile) gets hashed names from there on."""

_DIGITS = (8, 16, 32, 64)
_LOOKS_HASHED = re.compile(r"-[0-9a-f]{16,64}$")


class KeyMap:
    """Maps every key of a run to a name of its own at the tracker.

    A key that the tracker takes is its own name. Any other is changed as little as possible; if the result is taken by
    another key, a hash of the key is added. The map is saved with the run and read again by the next host, so a key
    keeps its name for ever.

    Args:
        rule: Makes a key acceptable, length aside; returns acceptable keys unchanged.
        max_length: Longest name, in characters.
        known: The map as saved before. What cannot be right in it (a name twice, or too long) is left out.
        on_change: Called with key and name for each key that was changed, the first time.

    >>> keys = KeyMap(lambda key: key.replace("@", "_"), max_length=20)
    >>> keys.fit("loss"), keys.fit("a@b"), keys.fit("a_b"), keys.fit("a@b")
    ('loss', 'a_b', 'a_b-648fa9b3', 'a_b')
    >>> keys.changed
    {'a@b': 'a_b', 'a_b': 'a_b-648fa9b3'}
    """

    def __init__(
        self,
        rule: Callable[[str], str],
        max_length: int,
        known: Mapping[str, str] | None = None,
        on_change: Callable[[str, str], object] = lambda key, name: None,
    ) -> None:
        self._rule = rule
        self._max_length = max_length
        self._on_change = on_change
        self._names: dict[str, str] = {}
        self._taken: dict[str, str] = {}
        for key, name in (known or {}).items():
            if name not in self._taken and len(name) <= max_length and len(self._names) < MAX_REMEMBERED:
                self._names[key] = name
                self._taken[name] = key
        self.revision = 0
        """Goes up with every key that is remembered: whoever saves the map compares it."""

    @property
    def names(self) -> dict[str, str]:
        """The map, to be saved."""
        return self._names

    @property
    def changed(self) -> dict[str, str]:
        """Only the keys whose name differs."""
        return {key: name for key, name in self._names.items() if key != name}

    def fit(self, key: str) -> str:
        """The name of ``key`` at the tracker."""
        name = self._names.get(key)
        if name is not None:
            return name
        name = self._rule(key)
        full = len(self._names) >= MAX_REMEMBERED
        if len(name) > self._max_length or self._taken.get(name, key) != key:
            name = self._hashed(name, key, full=full)
        elif full and (name != key or _LOOKS_HASHED.search(name)):
            # Nothing more is remembered, so nothing could tell this name from another key's: a hash has to.
            name = self._hashed(name, key, full=True)
        if not full:
            self._names[key] = name
            self._taken[name] = key
            self.revision += 1
            if name != key:
                self._on_change(key, name)
        return name

    def _hashed(self, name: str, key: str, *, full: bool) -> str:
        digest = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
        for digits in _DIGITS[1:] if full else _DIGITS:
            room = max(self._max_length - digits - 1, 0)
            hashed = f"{name[:room].rstrip('/. ')}-{digest[:digits]}"[-self._max_length :]
            if self._taken.get(hashed, key) == key:
                break
        return hashed


def int64_step(step: int | float | None, tracker: str, notices: Notices) -> int:
    """The step for a tracker whose steps are 64-bit integers, where no step is 0.

    Args:
        step: As it was logged.
        tracker: What the tracker is called, for people.
        notices: Told once of a tracker whose steps had to be changed.

    >>> int64_step(7, "MLflow", Notices()), int64_step(None, "MLflow", Notices())
    (7, 0)
    """
    if step is None:
        return 0
    whole = math.floor(step) if math.isfinite(step) else 0
    fitted = min(max(whole, -(2**63)), 2**63 - 1)
    if fitted != step:
        notices.tell_once(
            ("step", tracker),
            f"Step {step} is kept as {fitted} in {tracker}, whose steps are 64-bit integers; the journal has it as it "
            "was.",
        )
    return fitted
