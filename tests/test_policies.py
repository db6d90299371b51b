"""When a call is recorded: policies against a slow, obvious model of them, and on real loggers."""

import itertools
import json
import logging
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.trainer.states import RunningStage

from lightning_loggers import InMemoryLogger, LoggerCollection, MLFlowLogger
from lightning_loggers.cadence import Cadence, MetricWindow
from lightning_loggers.errors import ConfigurationError, NonFiniteError
from lightning_loggers.loggers import ending
from lightning_loggers.loggers.gate import refusing_training_batches
from lightning_loggers.loggers.trainer_context import TrainerContext
from lightning_loggers.policies import LogLevel, LogPolicy, Phase, Window, reduction

BATCH, EPOCH, FIT = 3, 2, 1


def recorded(logger: Any) -> list[dict[str, Any]]:
    """The metric records of a journal, as anyone reads it."""
    lines = []
    for file in sorted(Path(logger._run_dir).glob("journal/rank0*.jsonl")):
        lines += [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if line.get("kind") == "metric"]


class Untouchable:
    """A value that must not be looked at."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"a refused call asked a value for {name!r}")


# ---------------------------------------------------------------------- the model


@dataclass
class Call:
    level: int | None
    phase: str | None
    epoch: int | None
    batch: int | None
    step: int | None
    after_s: int


@dataclass
class ObviousModel:
    """Keeps every call that it let through, and looks at all of them for the next one."""

    policy: LogPolicy
    passed: list[tuple[Call, int]] = field(default_factory=list)
    now_s: int = 0

    def admits(self, call: Call) -> bool:
        self.now_s += call.after_s
        if call.level is not None:
            if call.level > self.policy.level:  # type: ignore[operator]
                return False
            if call.level in {FIT, EPOCH}:
                return True
        index = call.step if call.batch is None else call.batch
        freq = self.policy.log_freq
        if freq == "epoch":
            return call.level is None and call.batch is None
        of_phase = [(other, at_s) for other, at_s in self.passed if other.phase == call.phase]
        if of_phase:
            last, at_s = of_phase[-1]
            last_index = last.step if last.batch is None else last.batch
            if last.epoch == call.epoch and last_index == index and index is not None:
                return True  # the same batch
            if isinstance(freq, int) and last.epoch == call.epoch and None not in {index, last_index}:
                went_back = index < last_index  # type: ignore[operator]
                between = range(last_index + 1, index + 1)  # type: ignore[operator]
                if not went_back and freq > 1 and not any(number % freq == 0 for number in between):
                    return False
            interval_s = self.policy.interval_s(call.phase)
            if interval_s is not None and self.now_s - at_s < interval_s:
                return False
        self.passed.append((call, self.now_s))
        return True


calls = st.builds(
    Call,
    level=st.sampled_from([None, FIT, EPOCH, BATCH, BATCH, BATCH, BATCH]),
    phase=st.sampled_from([None, "train", "train", "validate", "test"]),
    epoch=st.sampled_from([None, 0, 0, 1]),
    batch=st.none() | st.integers(0, 30),
    step=st.none() | st.integers(0, 100),
    after_s=st.integers(0, 4),
)
policies = st.builds(
    LogPolicy,
    level=st.sampled_from(["FIT", "epoch", LogLevel.BATCH, 3, "BATCH"]),
    log_freq=st.sampled_from(["epoch", "batch"]) | st.integers(1, 7),
    write_every_n_seconds=st.none() | st.integers(0, 6),
    write_train_every_n_seconds=st.none() | st.integers(0, 6),
    write_val_every_n_seconds=st.none() | st.integers(0, 6),
    write_test_every_n_seconds=st.none() | st.integers(0, 6),
)


@settings(max_examples=400, deadline=None)
@given(policies, st.lists(calls, max_size=40))
def test_cadence_decides_as_an_obvious_model_of_it(policy: LogPolicy, made: list[Call]) -> None:
    """Each of any calls is let through by any policy exactly if the model does; asking first changes nothing."""
    now_s = [0]
    cadence, model = Cadence(policy, lambda: now_s[0]), ObviousModel(policy)
    for call in made:
        now_s[0] += call.after_s
        place = (call.level, call.phase, call.epoch, call.batch)
        asked = cadence.admits(place, call.step, peek=True)
        assert asked == cadence.admits(place, call.step) == model.admits(call)


class FakeTrainer:
    """As much of a Trainer as is asked at a log call, moved by hand."""

    def __init__(self) -> None:
        self.state = SimpleNamespace(stage=None)
        self.batches, self.epochs = SimpleNamespace(ready=0), SimpleNamespace(completed=0)
        batch_progress = SimpleNamespace(current=self.batches, total=SimpleNamespace(ready=0))
        self.fit_loop = SimpleNamespace(
            epoch_progress=SimpleNamespace(current=self.epochs),
            epoch_loop=SimpleNamespace(batch_progress=batch_progress),
        )
        self._active_loop = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=3)))
        self._logger_connector = FakeConnector()
        self.lightning_module = SimpleNamespace(_current_fx_name=None)


class FakeConnector:
    _first_loop_iter: bool | None = None


STAGES = [None, RunningStage.TRAINING, RunningStage.TRAINING, RunningStage.TRAINING, RunningStage.VALIDATING]
trainings = st.tuples(
    st.sampled_from(STAGES), st.sampled_from([True, True, False, None]), st.integers(0, 1), st.integers(0, 12),
    st.integers(0, 3), st.none() | st.integers(0, 12),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(policies, st.lists(trainings, max_size=40))
def test_batches_of_a_training_are_refused_the_short_way_as_the_long_way(
    policy: LogPolicy, made: list[tuple[Any, ...]]
) -> None:
    """Whatever a Trainer is doing, a call is decided as by asking it where it is and then the policy."""
    now_s = [0]
    trainer, reference = FakeTrainer(), Cadence(policy, lambda: now_s[0])
    context, cadence = TrainerContext(trainer), Cadence(policy, lambda: now_s[0])
    asked_long: list[Any] = []

    def long_way(step: Any) -> Any:
        asked_long.append(step)
        place = context.now()
        return place if cadence.admits(place, step) else None

    admit = refusing_training_batches(context, cadence, long_way)
    for stage, first_batch, epoch, ready, after_s, named in made:
        now_s[0] += after_s
        trainer.state.stage, trainer._logger_connector._first_loop_iter = stage, first_batch
        trainer.epochs.completed, trainer.batches.ready = epoch, ready
        if named is not None:  # a batch that the user names passes by this way
            place = (BATCH, "train", epoch, named)
            assert cadence.admits(place) == reference.admits(place)
        place = context.now()
        assert admit(7) == (place if reference.admits(place, 7) else None)
    trainer.state.stage, trainer._logger_connector._first_loop_iter = RunningStage.TRAINING, False
    if policy.log_freq == "epoch" or policy.level < BATCH:  # type: ignore[operator]
        admit(7)  # has the context know the stage
        asked_long.clear()
        assert admit(7) is None
        assert not asked_long


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(1, 5), min_size=1, max_size=40))
def test_sparse_batches_are_logged_as_often_as_they_can_be(every: int, gaps: list[int]) -> None:
    """One is let through for each multiple of ``log_freq`` that was passed: so batches 49, 99, ... are for 50."""
    cadence = Cadence(LogPolicy(log_freq=every))
    index, due, found = -1, False, []
    expected = []
    for gap in gaps:
        for _ in range(gap):
            index += 1
            due = due or index % every == 0
        if due:
            expected.append(index)
        due = False
        if cadence.admits((BATCH, "train", 0, index)):
            found.append(index)
    assert found == expected


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["train", "validate"]), st.floats(-9, 9)), max_size=60),
)
def test_windows_hold_every_value_once_and_span_no_phase(steps: int, made: list[tuple[int, str, float]]) -> None:
    """Each value comes out in exactly one window, in order; a window has one phase and at most its number of steps."""
    window = MetricWindow(Window(steps=steps))
    out = []
    for number, (step, phase, value) in enumerate(made):
        held = window.add({"value": value, "number": number}, step, phase, phase)
        out += [held] if held else []
    last = window.take()
    out += [last] if last else []
    assert window.take() is None
    assert [call["number"] for held in out for call in held.calls] == list(range(len(made)))
    for held in out:
        mine = [made[call["number"]] for call in held.calls]
        assert {phase for _, phase, _ in mine} == {held.where}
        runs = sum(before[0] != after[0] for before, after in itertools.pairwise(mine)) + 1
        assert runs <= steps
        assert held.step == mine[-1][0]
        assert window.merge(held.calls)["value"] == np.mean([value for _, _, value in mine])


def test_a_window_of_seconds_closes_with_the_first_call_after_them() -> None:
    """What comes within the window's seconds is merged; the first call after them begins the next window."""
    now_s = [0.0]
    window = MetricWindow(Window(seconds=10), lambda: now_s[0])
    assert window.add({"loss": 1.0}, 1) is None
    now_s[0] = 9.9
    assert window.add({"loss": 3.0}, 2) is None
    now_s[0] = 10.0
    held = window.add({"loss": 5.0}, 3)
    assert held is not None
    assert (held.step, window.merge(held.calls)) == (2, {"loss": 2.0})


# ---------------------------------------------------------------------- what a policy accepts


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"level": "EPOHC"}, "EPOCH"),
        ({"log_freq": 0}, "log_freq=0"),
        ({"log_freq": "epochs"}, "'epoch', 'batch'"),
        ({"log_freq": True}, "log_freq=True"),
        ({"write_every_n_seconds": -1}, "write_every_n_seconds=-1"),
        ({"write_val_every_n_seconds": math.nan}, "write_val_every_n_seconds=nan"),
        ({"log_on_workers": -2}, "log_on_workers=-2"),
        ({"nonfinite": "rise"}, "did you mean 'raise'"),
        ({"window": 0}, "Window(steps=0)"),
        ({"window": {"step": 3}}, "did you mean 'steps'"),
        ({"window": {"steps": 3, "funcs": {"loss": "maxx"}}}, "did you mean 'max'"),
        ({"axes": ["sample"]}, "did you mean 'samples'"),
    ],
)
def test_what_cannot_work_is_refused_and_the_message_says_what_would(arguments: dict[str, Any], said: str) -> None:
    """A wrong value of each option raises ConfigurationError, which quotes it or names the nearest right one."""
    with pytest.raises(ConfigurationError) as raised:
        LogPolicy(**arguments)
    assert said in str(raised.value)


def test_a_window_needs_steps_or_seconds() -> None:
    """Neither, and both, are refused."""
    for arguments in ({}, {"steps": 2, "seconds": 3.0}):
        with pytest.raises(ConfigurationError, match="either"):
            Window(**arguments)  # type: ignore[arg-type]


def test_levels_are_known_by_name_number_and_member() -> None:
    """The three spellings of a level are the same policy, and levels are ordered as Composer's."""
    assert LogPolicy(level="EPOCH") == LogPolicy(level=2) == LogPolicy(level=LogLevel.EPOCH)
    assert list(LogLevel) == [LogLevel.FIT, LogLevel.EPOCH, LogLevel.BATCH]
    assert LogLevel.FIT < LogLevel.EPOCH < LogLevel.BATCH


@pytest.mark.parametrize(
    ("freq", "expected"),
    [("epoch", [None]), ("batch", [None, *range(7)]), (3, [None, 0, 3, 6]), (1, [None, *range(7)])],
)
def test_should_log_follows_log_freq(freq: Any, expected: list[int | None]) -> None:
    """``"epoch"`` lets through what has no batch, n every n-th batch and what has none, ``"batch"`` everything."""
    policy = LogPolicy(log_freq=freq)
    assert [batch for batch in [None, *range(7)] if policy.should_log(batch)] == expected


@pytest.mark.parametrize(("workers", "expected"), [(0, [0]), (-1, [0, 1, 2, 3]), (2, [2]), ([1, 3], [1, 3])])
def test_should_log_follows_log_on_workers(workers: Any, expected: list[int]) -> None:
    """A rank, a list of ranks, or -1 for all of them."""
    policy = LogPolicy(log_on_workers=workers)
    assert [rank for rank in range(4) if policy.should_log(rank=rank)] == expected


def test_should_write_knows_an_interval_per_phase() -> None:
    """A phase's own number of seconds goes before the common one; a phase that was never written is always due."""
    policy = LogPolicy(write_every_n_seconds=10, write_val_every_n_seconds=2)
    assert policy.should_write("train", None)
    assert not policy.should_write("train", 9.9)
    assert policy.should_write(Phase.TEST, 10)
    assert policy.should_write("val", 2)
    assert not policy.should_write("validate", 1.9)


def test_reductions_are_known_by_name() -> None:
    """Every name that a file may use is a function that reduces a list; others are refused with the nearest name."""
    found = {
        name: reduction(name)([3.0, 1.0, 5.0]) for name in ("mean", "min", "max", "sum", "median", "first", "last")
    }
    assert found == {"mean": 3.0, "min": 1.0, "max": 5.0, "sum": 9.0, "median": 3.0, "first": 3.0, "last": 5.0}
    with pytest.raises(ConfigurationError, match="'median'"):
        reduction("medain")


# ---------------------------------------------------------------------- on a logger


def test_a_refused_call_looks_at_no_value(tmp_path: Path) -> None:
    """Metrics, texts and dictionaries that the policy refuses are not touched, nor is a function called."""
    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline", prefix="p", policy=LogPolicy(log_freq=10))
    logger.log_metrics({"loss": 1.0}, step=0)

    def never() -> float:
        raise AssertionError("a refused call called a function")

    class NoMapping(dict[str, Any]):
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError("a refused call looked at its metrics")

    for step in range(1, 10):
        logger.log_metrics({"loss": Untouchable(), "lazy": never}, step=step)
        logger.log_metrics(NoMapping(), step=step)
        logger.log_text("note", Untouchable(), step=step)  # type: ignore[arg-type]
        logger.log_dict("report", Untouchable(), step=step)  # type: ignore[arg-type]
    logger.log_metrics({"loss": 2.0, "lazy": lambda: 7.0}, step=10)
    logger.log_text("note", "good", step=10)
    assert [(line["step"], line["data"]) for line in recorded(logger)] == [
        (0, {"p-loss": 1.0}),
        (10, {"p-loss": 2.0, "p-lazy": 7.0}),
    ]


def test_a_function_that_fails_costs_only_its_own_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The other metrics of the call are recorded, the failure is told, and nothing raises."""
    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline", policy=LogPolicy())
    logger.log_metrics({"bad": lambda: 1 / 0, "loss": 1.0}, step=0)
    assert recorded(logger)[0]["data"] == {"loss": 1.0}
    assert any("'bad'" in message and "ZeroDivisionError" in message for message in caplog.messages)


def test_keys_are_included_and_excluded_by_patterns(tmp_path: Path) -> None:
    """Only keys that match are recorded, ``!`` leaves out, and a call with no such key leaves no record."""
    logger = InMemoryLogger(
        save_dir=tmp_path, delivery="offline", prefix="run", policy=LogPolicy(keys=["val/*", "loss", "!*_step"])
    )
    logger.log_metrics({"val/a": 1, "val/a_step": 2, "loss": 3, "other": 4}, step=1)
    logger.log_metrics({"other": 4}, step=2)
    logger.log_text("other", "no", step=3)
    assert [line["data"] for line in recorded(logger)] == [{"run-val/a": 1, "run-loss": 3}]
    assert logger.stats.pending == 1


def test_a_call_without_a_wanted_key_does_not_count(tmp_path: Path) -> None:
    """If none of a call's keys is wanted, the next call is not held back by its interval."""
    policy = LogPolicy(keys="loss", write_every_n_seconds=1e6)
    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline", policy=policy)
    logger.log_metrics({"other": 1.0}, 0)
    logger.log_metrics({"loss": 1.0}, 1)
    logger.log_metrics({"loss": 1.0}, 2)
    assert [line["step"] for line in recorded(logger)] == [1]


def test_a_batch_that_the_user_names_goes_before_the_step(tmp_path: Path) -> None:
    """With ``batch_idx`` the multiples of ``log_freq`` are recorded, whatever the step is."""
    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline", policy=LogPolicy(log_freq=4))
    assert logger._gate is not None
    for step in range(20):
        logger._gate.log_metrics({"loss": 1.0}, 1000 + step, step % 10)
    assert [line["step"] for line in recorded(logger)] == [1000, 1004, 1008, 1010, 1014, 1018]


@pytest.mark.parametrize("how", ["log", "warn", "drop", "raise"])
def test_nonfinite_values_are_treated_as_asked(how: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are recorded, or recorded and told, or left out and counted, or recorded and then raised; each is found."""
    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline", policy=LogPolicy(nonfinite=how))
    logger.log_metrics({"loss": 0.5}, step=0)
    assert not logger.found_nonfinite
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        for step, value in ((1, math.nan), (2, np.float32("inf"))):
            if how == "raise":
                with pytest.raises(NonFiniteError, match="loss"):
                    logger.log_metrics({"loss": value, "good": 1.0}, step)
            else:
                logger.log_metrics({"loss": value, "good": 1.0}, step)
    assert logger.found_nonfinite
    lines = recorded(logger)
    assert [line["data"].get("good") for line in lines] == [None, 1.0, 1.0]
    if how == "drop":
        assert [line["data"].keys() for line in lines[1:]] == [{"good"}, {"good"}]
        assert logger.stats.dropped_reasons == {"not finite": 2}
    else:
        assert [line["nonfinite"] for line in lines[1:]] == [{"loss": "nan"}, {"loss": "inf"}]
    told = [message for message in caplog.messages if "'loss' was nan" in message]
    assert len(told) == (how in {"warn", "drop"})


def test_nonfinite_raise_reaches_training_through_a_collection(tmp_path: Path) -> None:
    """The error that the user asked for is let through, once every logger of the collection had the call."""
    first = InMemoryLogger(save_dir=tmp_path / "a", delivery="offline", policy=LogPolicy(nonfinite="raise"))
    second = InMemoryLogger(save_dir=tmp_path / "b", delivery="offline")
    collection = LoggerCollection([first, second])
    with pytest.raises(NonFiniteError):
        collection.log_metrics({"loss": math.nan}, step=3)
    assert [line["step"] for line in recorded(first) + recorded(second)] == [3, 3]
    assert not collection.failures


def test_the_end_of_a_run_raises_nothing(tmp_path: Path) -> None:
    """Metrics that were held until ``finalize`` are recorded though one is NaN, and the run's status follows them."""
    logger = InMemoryLogger(save_dir=tmp_path, policy=LogPolicy(nonfinite="raise"))
    logger.agg_and_log_metrics({"loss": math.nan}, step=3)
    logger.finalize("success")
    assert math.isnan(logger.most_recent("loss"))
    assert logger.status == "finished"
    logger.close()


def test_a_window_keeps_every_step_at_a_fraction_of_the_points(tmp_path: Path) -> None:
    """Ten steps become three points with each key's own function; the last, incomplete one is there after the end."""
    logger = InMemoryLogger(
        save_dir=tmp_path, policy=LogPolicy(window={"steps": 4, "funcs": {"peak": "max"}}), agg_key_funcs={"low": min}
    )
    for step in range(10):
        logger.log_metrics({"loss": float(step), "peak": step % 4}, step)
        logger.log_metrics({"low": -step}, step)
    logger.finalize("success")
    assert list(logger.timeseries("loss")["value"]) == [1.5, 5.5, 8.5]
    assert list(logger.timeseries("loss")["step"]) == [3, 7, 9]
    assert list(logger.timeseries("peak")["value"]) == [3, 3, 1]
    assert list(logger.timeseries("low")["value"]) == [-3, -7, -9]
    logger.close()


def test_close_and_the_end_of_the_process_record_a_windows_rest(tmp_path: Path) -> None:
    """``close`` alone, and the interpreter's exit alone, both record what a window holds."""
    closed = InMemoryLogger(save_dir=tmp_path / "a", delivery="offline", policy=LogPolicy(window=100))
    closed.log_metrics({"loss": 1.0}, 0)
    closed.close()
    exiting = InMemoryLogger(save_dir=tmp_path / "b", delivery="offline", policy=LogPolicy(window=100))
    exiting.log_metrics({"loss": 1.0}, 0)
    assert recorded(exiting) == []
    ending.end_at_exit(exiting)
    assert [line["data"] for line in recorded(closed) + recorded(exiting)] == [{"loss": 1.0}, {"loss": 1.0}]


def test_a_function_that_cannot_merge_costs_no_value(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If a user's function fails, the window's calls are recorded one by one, and this is told."""

    def broken(values: Sequence[float]) -> float:
        raise RuntimeError("no")

    logger = InMemoryLogger(
        save_dir=tmp_path, delivery="offline", policy=LogPolicy(window=Window(steps=2, default=broken))
    )
    for step in range(3):
        logger.log_metrics({"loss": float(step)}, step)
    logger.close()
    assert [line["data"]["loss"] for line in recorded(logger)] == [0.0, 1.0, 2.0]
    assert any("LogPolicy.window" in message for message in caplog.messages)


def test_a_policy_on_another_rank_records_nothing_here(tmp_path: Path) -> None:
    """``log_on_workers`` without this rank records nothing, and asking says so; but rank 0 says what the run is."""
    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline", policy=LogPolicy(log_on_workers=[1, 2]))
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_text("note", "x")
    assert not logger.should_log()
    assert logger.stats.pending == 0
    logger.log_hyperparams({"lr": 1})
    assert logger.stats.pending == 1


def test_should_log_and_should_write_are_public_on_loggers(tmp_path: Path) -> None:
    """A logger answers for its policy; without one it records everything. Asking changes nothing."""
    logger = InMemoryLogger(save_dir=tmp_path / "a", delivery="offline", policy=LogPolicy(log_freq=5, level="EPOCH"))
    assert [logger.should_log(batch) for batch in (None, 0, 4, 5)] == [True, True, False, True]
    assert not logger.should_log(0, level="BATCH")
    throttled = InMemoryLogger(save_dir=tmp_path / "b", delivery="offline", policy=LogPolicy(write_every_n_seconds=1e6))
    assert throttled.should_write(0)
    assert throttled.should_write(0)
    throttled.log_metrics({"loss": 1.0}, 0)
    assert throttled.should_write(0)  # more of the same step
    assert not throttled.should_write(1)
    plain = InMemoryLogger(save_dir=tmp_path / "c", delivery="offline")
    assert plain.should_log(3, level="BATCH")
    assert plain.should_write()


def test_loggers_with_a_policy_travel(tmp_path: Path) -> None:
    """A pickled copy of a logger has the policy, and what a window held stays with the original."""
    logger = InMemoryLogger(save_dir=tmp_path, policy=LogPolicy(window=10, log_freq=2))
    logger.log_metrics({"loss": 1.0}, 0)
    copied = pickle.loads(pickle.dumps(logger))
    for step, loss in enumerate((5.0, math.pi, 3.0)):
        copied.log_metrics({"loss": loss}, step)
    copied.close()
    logger.close()
    assert sorted(line["data"]["loss"] for line in recorded(logger)) == [1.0, 4.0]


def test_a_policy_that_is_none_is_refused(tmp_path: Path) -> None:
    """Anything but a LogPolicy is an error in the constructor that shows one."""
    with pytest.raises(ConfigurationError, match="LogPolicy\\(log_freq"):
        MLFlowLogger(save_dir=str(tmp_path), policy={"log_freq": 2})  # type: ignore[arg-type]


def test_metrics_that_are_no_dict_pass_a_policy_whole(tmp_path: Path) -> None:
    """Tensors, texts and nested mappings are kept under a policy as they are without one."""

    class Odd(Mapping[str, Any]):
        def __init__(self, items: dict[str, Any]) -> None:
            self._items = items

        def __getitem__(self, key: str) -> Any:
            return self._items[key]

        def __iter__(self) -> Any:
            return iter(self._items)

        def __len__(self) -> int:
            return len(self._items)

    metrics = Odd({"a": np.float32(0.5), "deep": {"b": 2}, "note": "x", "many": np.arange(3)})
    with_policy = InMemoryLogger(save_dir=tmp_path / "a", policy=LogPolicy())
    without = InMemoryLogger(save_dir=tmp_path / "b")
    for logger in (with_policy, without):
        logger.log_metrics(metrics, 1)  # type: ignore[arg-type]
        assert logger.most_recent_values == {"a": 0.5, "deep/b": 2}
        assert logger.texts("note") == ["x"]
        assert logger.dicts("many") == [[0, 1, 2]]
