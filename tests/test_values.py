"""What users pass becomes what a journal can hold, whatever it is."""

import dataclasses
import decimal
import enum
import functools
import math
from argparse import Namespace
from collections import OrderedDict
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lightning_loggers.records import Kind, Record, decode_line, encode_line, split_nonfinite
from lightning_loggers.values.metrics import as_number, normalise
from lightning_loggers.values.params import flatten


class Hostile:
    """An object whose every conversion raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __float__(self) -> float:
        raise RuntimeError("no number")

    def __len__(self) -> int:
        raise RuntimeError("no length")

    @property
    def item(self) -> Any:
        raise RuntimeError("no item")

    @property
    def shape(self) -> Any:
        raise RuntimeError("no shape")

    @property
    def tolist(self) -> Any:
        raise RuntimeError("no list")


class HostileMapping(dict[str, Any]):
    """A mapping that cannot be gone over."""

    def items(self) -> Any:
        raise RuntimeError("no items")

    def __iter__(self) -> Any:
        raise RuntimeError("no keys")


class FloatSubclass(float):
    pass


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Optimiser:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    inner: Any = None


class Told(dict[Any, str]):
    def __call__(self, cause: Any, message: str) -> None:
        assert cause not in self, "tell_once drops the second, so a test sees each cause once"
        self[cause] = message


def normalised(metrics: Any) -> tuple[dict[str, Any], list[Record], Told]:
    """What the metrics become, and what was told."""
    told = Told()
    numbers, others = normalise(metrics, told)
    return numbers, others, told


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (1, 1),
        (0, 0),
        (True, True),
        (0.25, 0.25),
        (-0.0, -0.0),
        ("3", 3.0),
        ("1e-3", 0.001),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.longdouble(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.array(2.5), 2.5),
        (np.array([2.5]), 2.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([[3]]), 3),
        (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (Fraction(1, 4), 0.25),
        (decimal.Decimal("0.5"), 0.5),
        (Level.HIGH, 3),
        (FloatSubclass(0.5), 0.5),
        (2**63 - 1, 2**63 - 1),
        (2**64, 2.0**64),
        (10**400, math.inf),
        (-(10**400), -math.inf),
    ],
)
def test_a_number_of_any_library_is_a_plain_number(value: Any, number: float) -> None:
    """Whatever is one number becomes a plain int, float or bool of the same value, which JSON takes."""
    plain = as_number(value)
    assert type(plain) in {int, float, bool}
    assert plain == number
    assert math.copysign(1, plain) == math.copysign(1, number)


@pytest.mark.parametrize(
    "value",
    [None, "n/a", b"1", [1], (1, 2), {}, np.array([1, 2]), torch.ones(2), 1j, np.complex64(1), object(), Hostile()],
)
def test_what_is_no_number_is_none(value: Any) -> None:
    """A value of several elements, of text or of a foreign kind is not taken for a number, and raises nothing."""
    assert as_number(value) is None


def test_nested_metrics_are_joined_by_slashes() -> None:
    """Mappings inside metrics are opened, to any usual depth, and their numbers kept under joined names."""
    numbers, others, told = normalised({"val": OrderedDict(loss=torch.tensor(0.5), deep={"k": {1: 2}}), "n": 1})
    assert numbers == {"val/loss": 0.5, "val/deep/k/1": 2, "n": 1}
    assert not others
    assert not told


def test_what_is_no_number_is_kept_whole_and_told() -> None:
    """Text, arrays and objects become records of their own kind with the whole value, each told with its name."""
    numbers, others, told = normalised(
        {
            "note": "x" * 200_000,
            "histogram": torch.arange(4).reshape(2, 2),
            "pair": [1, float("nan")],
            "object": Path("/a"),
            "nothing": None,
            "loss": 1.0,
        }
    )
    assert numbers == {"loss": 1.0}
    assert {(record.kind, record.id): record.value for record in others} == {
        (Kind.TEXT, "note"): "x" * 200_000,
        (Kind.DICT, "histogram"): [[0, 1], [2, 3]],
        (Kind.DICT, "pair"): [1, "nan"],
        (Kind.TEXT, "object"): "/a",
    }
    assert list(told) == [
        ("text", "note"), ("array", "histogram"), ("array", "pair"), ("other", "object"), ("none", "nothing"),
    ]  # fmt: skip
    assert "(2, 2)" in told["array", "histogram"]


def test_two_metrics_of_one_name_are_both_kept() -> None:
    """Names that become one only when joined keep both values, and the change of name is told."""
    numbers, _, told = normalised({"a": {"b": 1}, "a/b": 2, 1: 3, "1": 4})
    assert numbers == {"a/b": 1, "a/b#2": 2, "1": 3, "1#2": 4}
    assert set(told) == {("twice", "a/b"), ("twice", "1")}


def test_metrics_that_hold_themselves_end() -> None:
    """A mapping inside itself, many times over, is kept as text instead of being opened for ever."""
    metrics: dict[Any, Any] = {"loss": 1.0}
    for name in "abcdefghij":
        metrics[name] = metrics
    numbers, others, _ = normalised(metrics)
    assert numbers == {"loss": 1.0}
    assert len(others) == 10


def test_hostile_metrics_keep_the_good_ones() -> None:
    """An object, a key or a mapping that raises at every touch costs none of the other metrics of the call."""
    numbers, others, _ = normalised(
        {"loss": 1.0, "bad": Hostile(), Hostile(): 2.0, "map": HostileMapping(a=1), "text": Text("abc"), "end": 3}
    )
    assert numbers == {"loss": 1.0, "<Hostile>": 2.0, "end": 3}
    assert {(record.id, record.value) for record in others} == {
        ("bad", "<Hostile>"),
        ("map", "{'a': 1}"),
        ("text", "abc"),
    }


SCALARS: Any = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.complex_numbers(),
    st.decimals(), st.fractions(), st.datetimes(), st.uuids(), st.just(Hostile()), st.just(Colour.RED),
    st.just(np.float32("nan")), st.just(torch.ones(3)), st.just(Text("x")), st.just(HostileMapping(a=1)),
    st.characters(categories=["Cs"]), st.integers(min_value=2**62), st.builds(lambda: 10**5000),
)  # fmt: skip
VALUES: Any = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner), st.tuples(inner), st.dictionaries(st.one_of(st.text(), st.integers(), st.none()), inner)
    ),
    max_leaves=20,
)


def comes_back(record: Record) -> Record:
    """The record after a journal's line."""
    line = encode_line(record)
    assert line.count(b"\n") == 1
    decoded = decode_line(line[:-1])
    assert isinstance(decoded, Record)
    return decoded


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none()), VALUES))
def test_normalise_never_raises_and_all_of_it_can_be_written(metrics: dict[Any, Any]) -> None:
    """Any mapping of anything becomes numbers and records that the journal encodes and reads back."""
    numbers, others = normalise(metrics, lambda cause, message: None)
    back = comes_back(Record(1, Kind.METRIC.value, data=numbers, nonfinite=split_nonfinite(numbers)))
    assert back.data is not None
    assert len(back.data) == len(numbers)
    for record in others:
        assert comes_back(record).id is not None


@settings(max_examples=300, deadline=None)
@given(VALUES)
def test_flatten_never_raises_and_all_of_it_can_be_written(params: Any) -> None:
    """Any hyperparameters become scalars that the journal encodes and reads back, none lost."""
    flat = flatten(params)
    assert all(type(name) is str for name in flat)
    assert all(value is None or type(value) in {str, int, float, bool} for value in flat.values())
    back = comes_back(Record(1, Kind.PARAM.value, data=flat, nonfinite=split_nonfinite(flat)))
    assert back.data is not None
    assert len(back.data) == len(flat)


def test_every_usual_hyperparameter_is_kept_as_what_it_is() -> None:
    """Numbers stay numbers, and every other type is told by its usual name or text, nested names joined by slashes."""
    flat = flatten(
        Namespace(
            lr=1e-3,
            steps=10,
            amp=True,
            none=None,
            text="3",
            path=Path("/data"),
            colour=Colour.RED,
            act=torch.nn.ReLU,
            function=max,
            partial=functools.partial(int, base=2),
            array=np.array([1, 2]),
            tensor=torch.tensor([0.5, 1.0]),
            scalar=torch.tensor(2),
            data=b"\xff",
            seed=2**100,
            huge=16**5000,
            empty={},
            optimiser=Optimiser(inner={"w": SimpleNamespace(z=1)}),
            sizes=[1, 2],
            device=torch.device("cpu"),
        )
    )
    assert flat == {
        "lr": 1e-3,
        "steps": 10,
        "amp": True,
        "none": None,
        "text": "3",
        "path": "/data",
        "colour": "Colour.RED",
        "act": "torch.nn.modules.activation.ReLU",
        "function": "builtins.max",
        "partial": "functools.partial(<class 'int'>, base=2)",
        "array": "[1, 2]",
        "tensor": "[0.5, 1.0]",
        "scalar": 2,
        "data": "\\xff",
        "seed": str(2**100),
        "huge": "0x1" + "0" * 5000,
        "empty": "{}",
        "optimiser/lr": 0.1,
        "optimiser/betas": "(0.9, 0.99)",
        "optimiser/inner/w/z": 1,
        "sizes": "[1, 2]",
        "device": "cpu",
    }


def test_an_object_is_opened_at_the_top() -> None:
    """An object of any class with attributes gives its attributes, as ``save_hyperparameters`` users expect."""

    class Config:
        def __init__(self) -> None:
            self.lr = 0.1
            self.inner = Optimiser()

    assert flatten(Config()) == {"lr": 0.1, "inner/lr": 0.1, "inner/betas": "(0.9, 0.99)", "inner/inner": None}
    assert flatten(None) == {}
    assert flatten(3) == {"params": 3}


def test_omegaconf_is_opened_and_one_bad_interpolation_costs_only_itself() -> None:
    """OmegaConf's own mappings are opened, interpolations resolved, and one that cannot be is named as unreadable."""
    flat = flatten(OmegaConf.create({"a": {"b": 1, "bad": "${nowhere}", "c": "${a.b}"}, "l": [1, 2], "m": "???"}))
    assert flat["a/b"] == 1
    assert flat["a/c"] == 1
    assert flat["l"] == "[1, 2]"
    assert str(flat["a/bad"]).startswith("<unreadable: InterpolationKeyError")
    assert str(flat["m"]).startswith("<unreadable: MissingMandatoryValue")


def test_parameters_of_one_name_are_all_kept() -> None:
    """Names that become one only when joined keep every value, the later ones under a number."""
    assert flatten({"a": {"b": 1}, "a/b": 2, 1: "x", "1": "y"}) == {"a/b": 1, "a/b#2": 2, "1": "x", "1#2": "y"}


def test_parameters_that_hold_themselves_end() -> None:
    """A mapping or object inside itself is named as such instead of being opened for ever."""
    params: dict[str, Any] = {"lr": 1}
    params["me"] = params
    loop = Namespace(a=params)
    loop.loop = loop
    assert flatten(params) == {"lr": 1, "me": "<itself>"}
    assert flatten(loop) == {"a/lr": 1, "a/me": "<itself>", "loop": "<itself>"}


def test_long_text_is_not_cut() -> None:
    """A parameter of a megabyte is kept to its last character."""
    text = "é" * 2**20
    assert flatten({"prompt": text}) == {"prompt": text}


def test_hostile_parameters_keep_the_good_ones() -> None:
    """An object, key or mapping that raises at every touch costs none of the other parameters."""
    flat = flatten({"lr": 1, "bad": Hostile(), Hostile(): 2, "text": Text("abc"), "map": {"in": HostileMapping(a=1)}})
    assert flat["lr"] == 1
    assert flat["bad"] == "<Hostile>"
    assert flat["<Hostile>"] == 2
    assert flat["text"] == "abc"
    assert str(flat["map/in"]).startswith("<unreadable: RuntimeError")
