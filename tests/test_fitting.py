"""Names at the tracker: two keys never share one, and a key keeps its own for ever."""

import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_loggers.adapters import fitting
from lightning_loggers.adapters.fitting import KeyMap

MAX = 40
ALLOWED = re.compile(r"[A-Za-z0-9_\-./ ]*")


def rule(key: str) -> str:
    """As a tracker's: other characters become underscores."""
    return re.sub(r"[^A-Za-z0-9_\-./ ]", "_", key)


# Few letters, so that many different keys are made equal by the rule; hashed-looking ends, so that they are met by
# a name made with a hash; long ones, so that they are cut.
KEYS = st.one_of(
    st.text("ab@_é/", max_size=6),
    st.text("ab@_", min_size=MAX - 2, max_size=MAX + 5),
    st.text("ab", max_size=3).map(lambda start: f"{start}-0123456789abcdef"),
    st.text(),
    st.characters(categories=["Cs"]),
)


def adversarial(keys: list[str]) -> list[str]:
    """The keys, and after them keys that are spelt as the names that the map made."""
    names = KeyMap(rule, MAX)
    made = [names.fit(key) for key in keys]
    return [*keys, *made, *(f"{name}@" for name in made)]


@settings(max_examples=300, deadline=None)
@given(st.lists(KEYS, max_size=30), st.sampled_from([3, 10, 20_000]))
def test_two_keys_never_share_a_name(keys: list[str], remembered: int) -> None:
    """Different keys have different names of the allowed letters and length, also past what is remembered."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "MAX_REMEMBERED", remembered)
        names = KeyMap(rule, MAX)
        fitted: dict[str, str] = {}
        for key in adversarial(keys):
            name = names.fit(key)
            assert fitted.setdefault(name, key) == key
            assert len(name) <= MAX
            assert ALLOWED.fullmatch(name)
            assert names.fit(key) == name


@settings(max_examples=200, deadline=None)
@given(st.lists(KEYS, max_size=20), st.lists(KEYS, max_size=20), st.sampled_from([5, 20_000]))
def test_a_key_keeps_its_name_after_a_reload(first: list[str], later: list[str], remembered: int) -> None:
    """The next host, which starts from the saved map, gives every key the name that it had."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "MAX_REMEMBERED", remembered)
        before = KeyMap(rule, MAX)
        names = {key: before.fit(key) for key in first}
        after = KeyMap(rule, MAX, dict(before.names))
        for key in later:
            after.fit(key)
        assert {key: after.fit(key) for key in first} == names


def test_an_accepted_key_is_its_own_name() -> None:
    """A key that the tracker takes is not changed, nothing is told of it, and the longest one fits."""
    told: list[tuple[str, str]] = []
    names = KeyMap(rule, MAX, on_change=lambda key, name: told.append((key, name)))
    assert names.fit("val/loss") == "val/loss"
    assert names.fit("x" * MAX) == "x" * MAX
    assert names.fit("loss@5") == "loss_5"
    assert names.fit("loss@5") == "loss_5"
    assert told == [("loss@5", "loss_5")]
    assert names.changed == {"loss@5": "loss_5"}
    assert names.revision == 3


def test_equal_hashes_get_longer_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys whose short hashes are equal still have names of their own."""
    names = KeyMap(lambda key: "a", MAX)
    first, second = names.fit("k0"), names.fit("k1")
    taken = KeyMap(lambda key: "a", MAX, {"k0": first, "other": second})
    assert taken.fit("k1") not in {first, second}


def test_a_wrong_saved_map_cannot_join_two_keys() -> None:
    """A saved map, damaged or a stranger's, that gives two keys one name, or too long a name, is not believed."""
    names = KeyMap(rule, MAX, {"a": "same", "b": "same", "long": "x" * 1000})
    assert names.fit("a") == "same"
    assert names.fit("b") == "b"
    assert names.fit("long") == "long"


def test_a_million_keys_take_bounded_memory() -> None:
    """A run that makes up a key for every step costs a bounded map, and its names are still all different."""
    names = KeyMap(rule, MAX)
    for number in range(fitting.MAX_REMEMBERED):
        names.fit(f"fill@{number}")
    tracemalloc.start()
    try:
        for number in range(1_000_000):
            names.fit(f"k{number}")
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(names.names) == fitting.MAX_REMEMBERED
    assert grown < 1_000_000
    assert len({names.fit(f"k@{number}") for number in range(10_000)}) == 10_000
