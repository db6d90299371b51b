"""Merging dictionaries of metrics, against numpy and against a slow model of the same rules."""

import statistics
import subprocess
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_loggers.aggregation import StepAggregator, merge_dicts


def as_numpy_would(dicts, funcs=None, default=np.mean):
    """The rules in the plainest words: one key, one list, one call."""
    funcs = funcs or {}
    out = {}
    for key in dict.fromkeys(key for d in dicts for key in d):
        values = [d[key] for d in dicts if d.get(key) is not None]
        if not values:
            continue
        if isinstance(values[0], Mapping):
            out[key] = as_numpy_would(values, funcs.get(key), default)
        else:
            result = funcs.get(key, default)(values)
            out[key] = result.item() if isinstance(result, np.generic | np.ndarray) else result
    return out


def exact(value):
    """A form that is equal only for the same keys in the same order, the same types and the same bits."""
    if isinstance(value, dict):
        return [(key, exact(item)) for key, item in value.items()]
    return (type(value).__name__, value.hex() if isinstance(value, float) else repr(value))


any_float = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)
number = st.one_of(
    any_float,
    st.sampled_from([0.0, -0.0, 1e308, -1e308]),
    st.integers(-(2**80), 2**80),
    st.integers(-5, 5),
    st.booleans(),
    any_float.map(np.float64),
    st.floats(width=32).map(np.float32),
    st.integers(-9, 9).map(np.int64),
    any_float.map(np.array),
)
mostly_plain = st.one_of(any_float, st.integers(-(2**60), 2**60), number, st.none())


@st.composite
def dictionaries(draw):
    """Flat or nested, with equal or missing keys, in one order or many, of one kind of value or all."""
    scalar = draw(st.sampled_from([any_float, st.one_of(any_float, st.integers(-9, 9)), mostly_plain]))
    leaf = dict.fromkeys(draw(st.sampled_from(["a", "ab", "abc", "abcde"])), scalar)
    nested = {"n": st.fixed_dictionaries({}, optional={**leaf, "m": st.fixed_dictionaries({}, optional=leaf)})}
    keys = {**leaf, **(nested if draw(st.booleans()) else {})}
    one = st.fixed_dictionaries(keys) if draw(st.booleans()) else st.fixed_dictionaries({}, optional=keys)
    dicts = draw(st.lists(one, max_size=12))
    if draw(st.booleans()):
        dicts = [dict(draw(st.permutations(list(d.items())))) for d in dicts]
    return dicts


def last(values):
    """Neither a mean nor numpy's."""
    return values[-1]


def outcome(merge, *args):
    """The exact result, or the class of what was raised: numpy refuses to add an int64 and an integer past 64 bits."""
    try:
        with np.errstate(all="ignore"):
            return exact(merge(*args))
    except Exception as error:
        return type(error)


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    dicts=dictionaries(),
    funcs=st.just({})
    | st.dictionaries(st.sampled_from("abc"), st.sampled_from([np.max, np.sum, last, np.mean]), max_size=2),
    nested_funcs=st.none() | st.dictionaries(st.sampled_from("abc"), st.sampled_from([np.min, last]), max_size=2),
    default=st.sampled_from([np.mean, np.mean, np.max, np.sum, last]),
)
def test_merging_equals_the_slow_model_to_the_last_bit(dicts, funcs, nested_funcs, default):
    """Whatever the shape of the dictionaries, keys, types and bits are those of one numpy call per key."""
    funcs = funcs if nested_funcs is None else {**funcs, "n": nested_funcs}
    assert outcome(merge_dicts, dicts, funcs, default) == outcome(as_numpy_would, dicts, funcs, default)


@pytest.mark.parametrize(
    "dicts",
    [
        [{"a": -0.0, "b": -0.0}],
        [{"a": -0.0, "b": -0.0}] * 2,
        [{"a": -0.0, "b": -0.0}] * 3,
        [{"a": 2**70 + 1, "b": 1.0}, {"a": -(2**70), "b": 1.0}, {"a": 0, "b": 1.0}],
        [{"a": 2**70 + 1, "b": 1.0}, {"a": -(2**70)}, {"a": 0}],
        [{"a": 2**63 + 1, "b": 1.0}, {"a": 2**63 + 5, "b": 1.0}, {"a": -1, "b": 1.0}],
        [{"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0, "c": 3.0}, {"b": 4.0, "a": 5.0}],
        [{"a": True, "b": False}, {"a": True, "b": 1.0}, {"a": 2, "b": 1.0}],
        [{"a": np.float32(0.1), "b": 1.0}, {"a": np.float32(0.2), "b": 1.0}, {"a": np.float32(0.4), "b": 1.0}],
        [{"a": np.float32(0.1), "b": 1.0}],
        [{"a": float("nan"), "b": float("inf")}, {"a": 1.0, "b": float("-inf")}],
    ],
)
def test_means_at_the_edges_of_what_is_batched(dicts):
    """Negative zeros, integers past 64 bits, further keys and foreign scalars have the mean that numpy gives."""
    assert outcome(merge_dicts, dicts) == outcome(as_numpy_would, dicts)
    assert isinstance(outcome(merge_dicts, dicts), list)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 700),
    width=st.integers(1, 9),
    missing=st.booleans(),
    integers=st.sampled_from([0, 1, 9]),
)
def test_means_of_many_values_add_up_in_numpys_order(seed, count, width, missing, integers):
    """Sums of hundreds of values of very different size, where the order of addition shows, have numpy's bits."""
    rng = np.random.default_rng(seed)
    table = (rng.standard_normal((count, width)) * 10.0 ** rng.integers(-12, 12, (count, width))).tolist()
    dicts = [{f"m{i}": int(value * 1e6) if i < integers else value for i, value in enumerate(row)} for row in table]
    if missing:
        del dicts[count // 2]["m0"]
    assert exact(merge_dicts(dicts)) == exact(as_numpy_would(dicts))


@pytest.mark.parametrize(
    "other", ["eight by", b"seven b", 2**62, -(2**62), 2**63 + 2**62, None, True, [1.0] * 8, {"k": 0.5}]
)
@pytest.mark.parametrize("place", [0, 7, 35])
def test_what_is_as_long_as_a_float_is_no_float(other, place):
    """Where floats are told by how they are encoded: other values of nine bytes, first, in between and last."""
    count = 12
    rows = [[0.1 * row + column for column in range(3)] for row in range(count)]
    rows[place % count][place // count] = other
    dicts = [dict(zip("abc", row, strict=True)) for row in rows]
    assert outcome(merge_dicts, dicts) == outcome(as_numpy_would, dicts)


@pytest.mark.parametrize("count", [14, 15, 16, 17])
@pytest.mark.parametrize("width", [2, 14, 15, 16, 17, 300])
def test_lists_of_any_length_are_encoded_with_heads_of_their_own(count, width):
    """MessagePack's short lists end at 15 items: nothing of a head is taken for a number."""
    rng = np.random.default_rng(width)
    dicts = [{f"m{i}": value for i, value in enumerate(row)} for row in rng.standard_normal((count, width)).tolist()]
    assert exact(merge_dicts(dicts)) == exact(as_numpy_would(dicts))


@pytest.mark.parametrize("count", [4095, 4096, 4097, 20_000])
@pytest.mark.parametrize("missing", [False, True])
def test_means_of_thousands_of_integers_are_numpys(count, missing):
    """Past the size of numpy's cast buffer integers are added up in pieces, and ours with them."""
    rng = np.random.default_rng(count)
    dicts = [
        {"i": int(i), "f": float(f)} for i, f in zip(rng.integers(0, 2**62, count), rng.random(count), strict=True)
    ]
    if missing:
        dicts.append({"f": 1.0})
    assert exact(merge_dicts(dicts)) == exact(as_numpy_would(dicts))


def test_pytorch_lightnings_example_gives_its_result():
    """The example of Lightning 1.5's documentation has the documented result, now with keys as first seen."""
    d1 = {"a": 1.7, "b": 2.0, "c": 1, "d": {"d1": 1, "d3": 3}}
    d2 = {"a": 1.1, "b": 2.2, "v": 1, "d": {"d1": 2, "d2": 3}}
    d3 = {"a": 1.1, "v": 2.3, "d": {"d3": 3, "d4": {"d5": 1}}}
    merged = merge_dicts([d1, d2, d3], {"a": np.mean, "v": max, "d": {"d1": sum}}, min)
    assert repr(merged) == "{'a': 1.3, 'b': 2.0, 'c': 1, 'd': {'d1': 3, 'd3': 3, 'd2': 3, 'd4': {'d5': 1}}, 'v': 2.3}"


def test_nothing_merges_to_nothing():
    """No dictionaries and empty dictionaries give an empty dictionary."""
    assert merge_dicts([]) == merge_dicts(iter([])) == merge_dicts([{}]) == merge_dicts([{}, {}], {"a": max}) == {}


def test_a_key_that_is_none_everywhere_is_left_out():
    """None is a missing value, and a key of nothing else is not there."""
    assert merge_dicts([{"a": None, "b": None}, {"a": None, "b": 3.0}]) == {"b": 3.0}
    assert merge_dicts([{"a": None}]) == {}
    assert list(merge_dicts([{"a": None, "b": 1}, {"a": 1}])) == ["a", "b"]


def test_generators_and_other_mappings_are_taken():
    """Input may be any iterable of any mappings, and is not changed by merging."""
    frozen = MappingProxyType({"a": 1, "d": MappingProxyType({"x": 2})})
    assert merge_dicts(d for d in (frozen, OrderedDict(a=3, d={"x": 4}))) == {"a": 2.0, "d": {"x": 3.0}}
    growing = defaultdict(float, {"a": 1.0, "c": 1.0})
    assert merge_dicts([{"a": 3.0, "b": 5.0}, growing]) == {"a": 2.0, "b": 5.0, "c": 1.0}
    assert dict(growing) == {"a": 1.0, "c": 1.0}


@pytest.mark.parametrize("funcs", [None, {"other": max}])
@pytest.mark.parametrize(
    ("dicts", "name"),
    [
        ([{"k": {"a": 1}}, {"k": 2.5}], "'k'"),
        ([{"k": 2.5}, {"k": {"a": 1}}], "'k'"),
        ([{"d": {"e": {"k": 2.5}}}, {"d": {"e": {"k": {}}}}], "'d.e.k'"),
    ],
)
def test_a_scalar_that_meets_a_dictionary_is_named(dicts, name, funcs):
    """The error says which key cannot be merged, by its path, and quotes the scalar."""
    with pytest.raises(TypeError, match=rf"key {name} .*scalar 2\.5 \(float\)"):
        merge_dicts(dicts, funcs)


def test_functions_for_the_wrong_depth():
    """A mapping of functions for scalars is an error that names the key; a function for a dictionary holds below it."""
    with pytest.raises(TypeError, match=r"key 'd\.k' holds scalars such as 2\.5"):
        merge_dicts([{"d": {"k": 2.5}}], {"d": {"k": {"x": max}}})
    dicts = [{"d": {"a": 1, "e": {"b": 2}}, "f": 1}, {"d": {"a": 3, "e": {"b": 5}}, "f": 2}]
    assert merge_dicts(dicts, {"d": max}) == {"d": {"a": 3, "e": {"b": 5}}, "f": 1.5}


def test_a_function_that_fails_tells_the_key():
    """The exception of an aggregation function keeps its type and carries a note with the key's path."""
    with pytest.raises(statistics.StatisticsError) as caught:
        merge_dicts([{"d": {"k": -1.0}}], {"d": {"k": statistics.geometric_mean}})
    assert caught.value.__notes__ == ["while aggregating 1 value(s) of key 'd.k'"]


@pytest.mark.parametrize("func", [np.mean, np.max, np.sum, np.median, max, min, sum, statistics.fmean, last])
def test_any_function_of_a_sequence_works(func):
    """numpy's, the built-in ones and a user's own give a plain Python number equal to their result on the list."""
    values = [1.5, 4.0, 2.0]
    for merged in (
        merge_dicts([{"a": v} for v in values], None, func),
        merge_dicts([{"a": v} for v in values], {"a": func}),
    ):
        assert merged == {"a": func(values)}
        assert type(merged["a"]) is float


@pytest.mark.parametrize(
    "make",
    [np.float64, np.float32, np.array, torch.tensor, lambda v: torch.tensor(v, requires_grad=True)],
    ids=["float64", "float32", "0-d array", "0-d tensor", "tensor with gradient"],
)
@pytest.mark.parametrize("func", [np.mean, max, sum, last])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_scalars_of_libraries_become_python_numbers(make, func, count):
    """Scalars of numpy, 0-d arrays and 0-d tensors go in, Python floats come out."""
    values = [1.5, 4.0, 2.0][:count]
    merged = merge_dicts([{"a": make(v), "b": v} for v in values], None, func)
    assert merged == {"a": func(values), "b": func(values)}
    assert type(merged["a"]) is float


def test_tensors_that_numpy_cannot_hold_are_merged():
    """bfloat16 and boolean tensors have a mean too."""
    dicts = [{"b": torch.tensor(1.5, dtype=torch.bfloat16), "t": torch.tensor(True)} for _ in range(2)]
    assert merge_dicts(dicts) == {"b": 1.5, "t": 1.0}


def test_float32_keeps_its_own_arithmetic():
    """A mean of float32 scalars is rounded to float32, as numpy does, not silently computed in float64."""
    values = [np.float32(0.1), np.float32(0.2), np.float32(0.4)]
    merged = merge_dicts([{"a": v} for v in values])
    assert merged["a"] == float(np.mean(values)) != np.mean([float(v) for v in values])


def test_importing_needs_numpy_only():
    """A process that merges the records of ranks loads neither torch nor Lightning."""
    code = (
        "import sys, lightning_loggers.aggregation, lightning_loggers.ranks as r; r.current_rank(); print(*sys.modules)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "numpy" in loaded
    assert not {"torch", "lightning", "lightning_utilities", "pytorch_lightning"} & set(loaded)


def test_a_step_is_handed_out_when_another_begins():
    """Metrics of one step are merged; the first metrics of another step hand them out; flush hands out the last."""
    aggregator = StepAggregator({"peak": max}, np.sum)
    assert aggregator.add({"loss": 1.0, "peak": 7}, 3) is None
    assert aggregator.add({"loss": 2.0, "peak": 5}, 3) is None
    assert aggregator.add({"loss": 8.0}, 1) == (3, {"loss": 3.0, "peak": 7})
    assert aggregator.flush() == (1, {"loss": 8.0})
    assert aggregator.flush() is None


def test_no_step_and_step_zero_are_steps():
    """None and 0 each are a value of their own: neither is mistaken for the other or for nothing."""
    aggregator = StepAggregator()
    assert aggregator.add({"a": 1.0}, None) is None
    assert aggregator.add({"a": 3.0}, None) is None
    assert aggregator.add({"a": 5.0}, 0) == (None, {"a": 2.0})
    assert aggregator.add({"a": 6.0}, None) == (0, {"a": 5.0})
    assert aggregator.flush() == (None, {"a": 6.0})


def test_held_metrics_are_copies():
    """What the caller does to a dictionary, an array or a tensor after handing it over changes nothing."""
    weight = torch.tensor(2.0, requires_grad=True)
    metrics = {"a": 1.0, "d": {"x": 1.0}, "t": torch.tensor(4.0), "n": np.array(5.0), "g": weight * 3}
    aggregator = StepAggregator()
    aggregator.add(metrics, 0)
    metrics["a"] = metrics["d"]["x"] = 100.0
    metrics["t"].add_(100.0)
    metrics["n"] += 100.0
    assert not aggregator.held[0]["g"].requires_grad
    assert aggregator.flush() == (0, {"a": 1.0, "d": {"x": 1.0}, "t": 4.0, "n": 5.0, "g": 6.0})


def test_functions_can_be_changed_while_metrics_are_held():
    """New functions apply to what is held; keys that are not named keep theirs."""
    aggregator = StepAggregator({"a": max})
    aggregator.add({"a": 1, "b": 1, "c": 1}, 0)
    aggregator.add({"a": 3, "b": 3, "c": 3}, 0)
    aggregator.update({"b": min})
    aggregator.update(agg_default_func=sum)
    assert aggregator.flush() == (0, {"a": 3, "b": 1, "c": 4})


def test_metrics_that_cannot_be_merged_do_not_block_those_that_follow():
    """A step whose merge raises is let go, and the metrics that began the next step are held all the same."""
    aggregator = StepAggregator()
    aggregator.add({"k": 1.0}, 0)
    aggregator.add({"k": {"x": 1.0}}, 0)
    with pytest.raises(TypeError, match="'k'"):
        aggregator.add({"k": 2.0}, 1)
    assert aggregator.flush() == (1, {"k": 2.0})


def test_infinities_merge_without_a_warning():
    """The mean of inf and -inf is NaN in silence; numpy's warning would be an error in a strict training script."""
    aggregator = StepAggregator()
    for value in (float("inf"), float("-inf"), 1e308):
        aggregator.add({"a": value, "b": value}, 0)
    step, merged = aggregator.flush()
    assert step == 0
    assert np.isnan(merged["a"])
