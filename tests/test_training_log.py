"""TrainingLog: a loop that is no Trainer, read back from real loggers."""

import json
import logging
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as lightnings
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_loggers import CSVLogger, InMemoryLogger, LoggerCollection
from lightning_loggers.base import LightningLoggerBase
from lightning_loggers.config import CSVLoggerConfig, LoggerConfig
from lightning_loggers.errors import ConfigurationError, NonFiniteError
from lightning_loggers.formatting import NAME_FIELDS, format_log_data_value, format_name
from lightning_loggers.policies import LogLevel, LogPolicy
from lightning_loggers.records import Kind
from lightning_loggers.training import LOGGER, TrainingLog


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class HostTransfers(TorchFunctionMode):
    """Counts what moves a tensor's values to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in {"item", "cpu", "tolist", "numpy", "__float__", "__int__", "__bool__", "__index__", "__array__"}:
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


class Listener(LightningLoggerBase):
    """Another's logger, with nothing but what Lightning asks for."""

    experiment, name, version = None, "listener", "v7"

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.calls.append(("metrics", metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.calls.append(("params", params))

    def finalize(self, status: str) -> None:
        self.calls.append(("finalize", status))


@pytest.fixture
def memory(tmp_path: Path) -> InMemoryLogger:
    """A logger that can be asked."""
    return InMemoryLogger(save_dir=tmp_path / "memory")


def lines_of(logger: Any) -> list[dict[str, Any]]:
    """All lines of a journal."""
    found = []
    for file in sorted(Path(logger._run_dir).glob("journal/rank0*.jsonl")):
        found += [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in found if "kind" in line]


# ---------------------------------------------------------------------- phases


def test_a_validation_inside_training_returns_to_training(memory: InMemoryLogger) -> None:
    """Modes are a stack: after the inner epoch the outer one goes on, and records have the phase of their time."""
    log = TrainingLog(memory)
    assert log.mode == "default"
    log.start_epoch(epoch=3, step=10)
    log.log_step({"loss": 1.0}, 11)
    log.start_epoch(epoch=3, step=11, mode="val")
    assert (log.mode, log.mode_stack, len(log.epoch_start_time_stack)) == ("val", ["train", "val"], 2)
    log.log_step({"loss": 4.0}, 11)
    log.log_step({"loss": 2.0}, 11)
    returned = log.end_epoch({"accuracy": 0.5}, 11)
    assert (returned["loss"], returned["accuracy"]) == (3.0, 0.5)
    assert (log.mode, log.epoch) == ("train", 3)
    log.log_step({"loss": 2.0}, 12)
    log.end_epoch({"loss": 1.5}, 12)
    assert log.mode == "default"
    log.finalize("success")
    placed = {
        (line["phase"], line["epoch"], line["meta"]["level"], line["step"]): line["data"]
        for line in lines_of(memory)
        if line["kind"] == "metric"
    }
    assert placed["train", 3, "batch", 11]["train/loss"] == 1.0
    assert placed["validate", 3, "epoch", 11]["val/loss"] == 3.0
    assert placed["train", 3, "batch", 12]["train/loss"] == 2.0
    assert placed["train", 3, "epoch", 12]["train_epoch/loss"] == 1.5
    assert memory.status == "finished"


def test_a_mode_that_is_none_is_refused() -> None:
    """The error names the nearest mode; ending what has not begun says what to call."""
    log = TrainingLog()
    with pytest.raises(ConfigurationError, match="did you mean 'train'"):
        log.start_epoch(0, 0, mode="trian")
    with pytest.raises(ConfigurationError, match="start_epoch"):
        log.end_epoch({}, 0)


def test_times_of_steps_and_epochs_leave_out_what_runs_in_between(memory: InMemoryLogger) -> None:
    """A step's time is the mean over the logged ones, without validations inside; an epoch's is its own."""
    clock = Clock()
    log = TrainingLog(memory, log_every_n_steps=2, clock=clock)
    log.start_epoch(0, 0)
    clock.now_s += 60  # setting up
    log.on_training_start()
    clock.now_s += 1
    log.log_step({"loss": 1.0}, 1)
    log.start_epoch(0, 1, mode="val")
    clock.now_s += 30
    log.end_epoch({}, 1)
    clock.now_s += 3
    log.log_step({"loss": 1.0}, 2)
    assert (log.last_step, log.last_step_time) == (2, 2.0)
    log.end_epoch({}, 2)
    assert memory.most_recent("train/step_time_s") == 2.0
    assert memory.most_recent("val/epoch_time_s") == 30.0
    assert memory.most_recent("train_epoch/epoch_time_s") == 94.0


# ---------------------------------------------------------------------- accumulation


def test_one_host_transfer_per_logged_step_and_none_on_the_others(memory: InMemoryLogger) -> None:
    """Of ten steps with four tensor metrics, logged every fifth, two transfers take all values to the host."""
    log = TrainingLog(memory, log_every_n_steps=5)
    log.start_epoch(0, 0)
    weight = torch.ones((), requires_grad=True)
    per_step = []
    for step in range(1, 11):
        metrics = {
            "loss": weight * step,
            "half": torch.tensor(step, dtype=torch.bfloat16),
            "many": torch.full((2, 3), float(step)),
            "pair": {"value": torch.tensor(6.0 * step), "count": torch.tensor(2)},
        }
        with HostTransfers() as transfers:
            log.log_step(metrics, step)
        per_step.append(sum(transfers.count.values()))
    assert per_step == [0, 0, 0, 0, 1, 0, 0, 0, 0, 1]
    for key, factor in (("loss", 1), ("half", 1), ("many", 1), ("pair", 3)):
        assert list(memory.timeseries(f"train/{key}")["value"]) == [3.0 * factor, 8.0 * factor]


def test_an_epoch_of_validation_is_one_transfer(memory: InMemoryLogger) -> None:
    """In validation nothing is moved before the epoch's end, and then once, with the epoch's own metrics."""
    log = TrainingLog(memory)
    log.start_epoch(0, 7, mode="val")
    with HostTransfers() as transfers:
        for value in (1.0, 2.0, 6.0):
            log.log_step({"loss": torch.tensor(value)}, 7)
        assert not transfers.count
        log.end_epoch({}, 7)
    assert sum(transfers.count.values()) == 1
    assert memory.most_recent("val/loss") == 3.0


def test_what_a_loop_does_to_its_tensors_afterwards_changes_nothing(memory: InMemoryLogger) -> None:
    """Values are taken at the call: a buffer that is written to again keeps its earlier values in the mean."""
    log = TrainingLog(memory, log_every_n_steps=3)
    log.start_epoch(0, 0)
    buffer = torch.zeros((), dtype=torch.float64)
    for step in (1, 2, 3):
        buffer.fill_(step)
        log.log_step({"loss": buffer}, step)
    assert memory.most_recent("train/loss") == 2.0


def test_torchmetrics_add_up_themselves(memory: InMemoryLogger) -> None:
    """An object with ``compute`` is computed and reset at each logged step, and only computed at an epoch's end."""
    log = TrainingLog(memory, log_every_n_steps=2)
    mean, accuracy = MeanMetric(), MulticlassAccuracy(3)
    log.start_epoch(0, 0)
    for step, value in enumerate((1.0, 3.0, 5.0, 9.0), 1):
        mean.update(value)
        log.log_step({"loss": mean}, step)
    assert list(memory.timeseries("train/loss")["value"]) == [2.0, 7.0]
    accuracy.update(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]))
    log.end_epoch({"accuracy": accuracy}, 4)
    assert memory.most_recent("train_epoch/accuracy") == pytest.approx(float(accuracy.compute()))


def test_sums_that_the_loop_carries_are_returned_as_zero(memory: InMemoryLogger) -> None:
    """A loop that adds up into what ``log_step`` returns, as JAX's do, logs each step once."""
    log = TrainingLog(memory, log_every_n_steps=3)
    log.start_epoch(0, 0)
    metrics: dict[str, Any] = {"loss": {"value": 0.0, "count": 0}, "deep": {"hits": (0.0, 0)}}
    for step in range(1, 7):
        metrics = {
            "loss": {"value": metrics["loss"]["value"] + np.float32(step), "count": metrics["loss"]["count"] + 1},
            "deep": {"hits": (metrics["deep"]["hits"][0] + step, metrics["deep"]["hits"][1] + 2)},
        }
        metrics = log.log_step(metrics, step)
    assert metrics["loss"] == {"value": 0.0, "count": 0}
    assert list(memory.timeseries("train/loss")["value"]) == [2.0, 5.0]
    assert list(memory.timeseries("train/deep/hits")["value"]) == [1.0, 2.5]


def test_steps_left_over_are_logged_at_the_end_of_the_epoch_and_of_the_run(memory: InMemoryLogger) -> None:
    """Seven steps by three leave one for the end of the epoch; a run that ends inside an epoch leaves none."""
    log = TrainingLog(memory, log_every_n_steps=3)
    log.start_epoch(0, 0)
    for step in range(1, 8):
        log.log_step({"loss": float(step)}, step)
    log.end_epoch({}, 7)
    log.start_epoch(1, 7)
    log.log_step({"loss": 10.0}, 8)
    log.start_epoch(1, 8, mode="val")
    log.log_step({"loss": 20.0}, 8)
    log.finalize("failed")
    assert list(memory.timeseries("train/loss")["value"]) == [2.0, 5.0, 7.0, 10.0]
    assert memory.most_recent("val/loss") == 20.0
    assert memory.status == "failed"


def test_a_loop_without_epochs_is_logged_too(memory: InMemoryLogger) -> None:
    """Without ``start_epoch`` the mode is "default" and keys have no prefix."""
    log = TrainingLog(memory, log_every_n_steps=2)
    for step in range(1, 5):
        log.log_step({"loss": step}, step)
    assert list(memory.timeseries("loss")["value"]) == [1.5, 3.5]


def test_a_metric_that_is_no_number_is_a_clear_error() -> None:
    """The message says what a metric can be."""
    with pytest.raises(TypeError, match="a metric must be a number"):
        TrainingLog().log_step({"loss": object()}, 0)


# ---------------------------------------------------------------------- numbers on the host


def test_metrics_are_postprocessed_before_they_are_logged(memory: InMemoryLogger) -> None:
    """What ``metric_postprocess_fn`` returns is logged; if it fails, the metrics are logged as they were."""
    log = TrainingLog(memory, lambda host: {**host, "perplexity": math.exp(host["loss"])})
    log.start_epoch(0, 0, mode="val")
    log.log_step({"loss": torch.tensor(2.0)}, 0)
    returned = log.end_epoch({}, 0)
    assert returned["perplexity"] == memory.most_recent("val/perplexity") == math.exp(2.0)
    log.metric_postprocess_fn = lambda host: host["missing"]
    log.log_step({"loss": 1.0}, 1)
    assert memory.most_recent("loss") == 1.0


def test_host_metrics_are_logged_at_once_under_their_mode(memory: InMemoryLogger) -> None:
    """``log_host_metrics`` takes the current mode or the given one."""
    log = TrainingLog(memory, log_every_n_steps=100)
    log.start_epoch(0, 0)
    log.log_host_metrics({"lr": 0.1}, 1)
    log.log_host_metrics({"lr": 0.2}, 1, mode="callback")
    assert memory.most_recent_values == {"train/lr": 0.1, "callback/lr": 0.2}


def test_nans_are_found_and_told(memory: InMemoryLogger, caplog: pytest.LogCaptureFixture) -> None:
    """``found_nans`` is set by the first NaN, which is logged and told once."""
    log = TrainingLog(memory)
    log.log_step({"loss": 1.0}, 0)
    assert not log.found_nans
    log.log_step({"loss": torch.tensor(float("nan"))}, 1)
    log.log_step({"loss": float("nan")}, 2)
    assert log.found_nans
    assert sum("'loss' was nan at step 1" in message for message in caplog.messages) == 1
    assert np.isnan(memory.timeseries("loss")["value"]).sum() == 2


def test_nonfinite_raise_stops_the_loop_and_not_its_end(tmp_path: Path) -> None:
    """A policy raises in ``log_step`` once all destinations have the value; ``finalize`` raises nothing."""
    strict = InMemoryLogger(save_dir=tmp_path / "a", policy=LogPolicy(nonfinite="raise"))
    lax = InMemoryLogger(save_dir=tmp_path / "b")
    log = TrainingLog([strict, lax], log_every_n_steps=2)
    log.start_epoch(0, 0)
    log.log_step({"loss": 1.0}, 1)
    with pytest.raises(NonFiniteError):
        log.log_step({"loss": float("nan")}, 2)
    log.log_step({"loss": float("nan")}, 3)
    log.finalize("failed")
    for logger in (strict, lax):
        assert list(logger.timeseries("train/loss")["step"]) == [2, 3]


# ---------------------------------------------------------------------- data of any kind


def test_data_goes_to_its_level_and_kind(memory: InMemoryLogger, tmp_path: Path) -> None:
    """Numbers, texts, mappings and paths become records of their kind, with the level that was given."""
    file = tmp_path / "notes.txt"
    file.write_text("x")
    log = TrainingLog(memory)
    log.start_epoch(2, 5)
    log.data_fit({"seed": 7, "note": "good"})
    log.data_epoch({"report": {"a": [1, 2]}, "tensor": torch.tensor(0.5)})
    log.data_batch({"file": file})
    log.data("BATCH", {"lr": 0.25}, step=9)
    log.data(2, {"width": 64}, kind="param")
    assert memory.most_recent_values == {"seed": 7, "tensor": 0.5, "lr": 0.25}
    assert memory.texts("note") == ["good"]
    assert memory.dicts("report") == [{"a": [1, 2]}]
    assert memory.hyperparams == {"width": 64}
    assert [record.kind for record in memory.records if record.blobs] == ["artifact"]
    levels = {
        key: line["meta"]["level"] for line in lines_of(memory) for key in line.get("data") or {} if "meta" in line
    }
    assert levels == {"seed": "fit", "tensor": "epoch", "lr": "batch"}
    assert list(memory.timeseries("lr")["step"]) == [9]


def test_a_level_or_kind_that_is_none_is_refused() -> None:
    """The errors name the nearest right one."""
    log = TrainingLog()
    with pytest.raises(ConfigurationError, match="did you mean 'EPOCH'"):
        log.data("EPOC", {"a": 1})
    with pytest.raises(ConfigurationError, match="did you mean 'image'"):
        log.data("FIT", {"a": 1}, kind="imagee")


def test_destinations_record_the_levels_of_their_policy(tmp_path: Path) -> None:
    """Each destination gets what its own policy lets through, texts and artifacts included."""
    epochs = InMemoryLogger(save_dir=tmp_path / "a", policy=LogPolicy(level=LogLevel.EPOCH))
    all_of_it = InMemoryLogger(save_dir=tmp_path / "b")
    file = tmp_path / "w.txt"
    file.write_text("x")
    log = TrainingLog([epochs, all_of_it])
    log.start_epoch(0, 0)
    log.log_step({"loss": 1.0}, 1)
    log.data_batch({"note": "batch", "grad": 2.0})
    log.data_epoch({"note": "epoch", "score": 3.0})
    log.file_artifact("BATCH", "batch.txt", file)
    log.file_artifact("EPOCH", "epoch.txt", file)
    log.end_epoch({}, 1)
    assert epochs.texts("note") == ["epoch"]
    assert set(epochs.metric_names) == {"score", "train_epoch/epoch_time_s"}
    assert all_of_it.texts("note") == ["batch", "epoch"]
    assert {"train/loss", "grad", "score"} <= set(all_of_it.metric_names)
    kept = [[record.blobs[0].name for record in logger.records if record.blobs] for logger in (epochs, all_of_it)]
    assert kept == [["epoch.txt"], ["batch.txt", "epoch.txt"]]


def test_functions_are_called_once_and_only_if_somebody_records_them(tmp_path: Path) -> None:
    """A function in place of a value is called once for several destinations, and not at all if all refuse it."""
    asked: list[str] = []

    def value(name: str) -> Any:
        return lambda: asked.append(name) or len(asked)

    loggers = [InMemoryLogger(save_dir=tmp_path / name, policy=LogPolicy(log_freq=2)) for name in ("a", "b")]
    log = TrainingLog(loggers)
    log.start_epoch(0, 0)
    for step in range(4):
        log.log_step({}, step)  # a batch goes by
        log.log_scalar("x", value(f"x{step}"))
        log.log_string("t", lambda step=step: f"text {step}")
    assert asked == ["x0", "x2"]
    for logger in loggers:
        assert list(logger.timeseries("train/x")["value"]) == [1, 2]
        assert logger.texts("train/t") == ["text 0", "text 2"]


def test_a_function_that_fails_is_told_and_costs_nothing_else(
    memory: InMemoryLogger, caplog: pytest.LogCaptureFixture
) -> None:
    """The other values of the call are logged."""
    TrainingLog(memory).data_fit({"bad": lambda: 1 / 0, "good": 1})
    assert memory.most_recent_values == {"good": 1}
    assert any("'bad'" in message for message in caplog.messages)


def test_namespaces_nest_and_components_keep_their_own(memory: InMemoryLogger) -> None:
    """A namespace is a context for what is logged inside, and an object that a component logs to."""
    log = TrainingLog(memory)
    component = log.namespace("encoder")
    log.start_epoch(0, 0)
    with log.namespace("outer"), log.namespace("inner"):
        log.data_batch({"a": 1})
        log.log_scalar("b", 2)
        log.log_host_metrics({"c": 3}, 0)
        component.data_batch({"d": 4})
    component.log_scalar("e", 5)
    component.namespace("layer1").data_epoch({"f": 6})
    log.data_batch({"g": 7})
    assert memory.most_recent_values == {
        "outer/inner/a": 1, "train/outer/inner/b": 2, "train/outer/inner/c": 3, "encoder/d": 4, "train/encoder/e": 5,
        "encoder/layer1/f": 6, "g": 7,
    }  # fmt: skip


def test_other_kinds_go_to_loggers_that_take_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A logger with ``log`` gets every kind by it, one with a method of the kind's name by that, others are told."""

    class Modern(Listener):
        def log(self, item: Any, identifier: str, kind: str = "metric", step: int | None = None) -> None:
            self.calls.append((kind, identifier, item, step))

    class WithImages(Listener):
        def log_image(self, key: str, image: Any, step: int | None = None) -> None:
            self.calls.append(("log_image", key, image, step))

    modern, images, plain = Modern(), WithImages(), Listener()
    log = TrainingLog([modern, images, plain])
    log.start_epoch(0, 4)
    log.log_image("sample", "pixels")
    log.log_audio("sound", lambda: ("samples", 16000))
    assert modern.calls == [("image", "train/sample", "pixels", 4), ("audio", "train/sound", ("samples", 16000), 4)]
    assert images.calls == [("log_image", "train/sample", "pixels", 4)]
    assert plain.calls == []
    assert any("Listener takes no image" in message for message in caplog.messages)


def test_every_typed_method_sends_its_kind() -> None:
    """``log_scalar`` and its sisters reach a logger's ``log`` with the kind of their name."""

    class Modern(Listener):
        def log(self, item: Any, identifier: str, kind: str = "metric", step: int | None = None) -> None:
            self.calls.append((kind, identifier))

    modern = Modern()
    log = TrainingLog(modern)
    for kind in ("image", "audio", "video", "histogram", "point_cloud"):
        getattr(log, f"log_{kind}")("x", object())
    log.log_string("x", "text")
    log.log_scalar("x", 1.0)
    assert modern.calls == [
        *((kind, "x") for kind in ("image", "audio", "video", "histogram", "point_cloud", "text")),
        ("metrics", {"x": 1.0}, 0),
    ]


def test_one_destinations_fault_reaches_nobody_else(memory: InMemoryLogger) -> None:
    """A destination that raises in every call costs neither the loop nor the other one anything, and is counted."""

    class Broken(Listener):
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            raise RuntimeError("broken")

        def log_text(self, key: str, text: str, step: Any = None) -> None:
            raise RuntimeError("broken")

        def finalize(self, status: str) -> None:
            raise RuntimeError("broken")

    log = TrainingLog(LoggerCollection([Broken(), memory]))
    log.log_step({"loss": 1.0}, 0)
    log.data_fit({"note": "x", "n": 1})
    log.finalize("success")
    assert memory.most_recent_values.items() >= {"loss": 1.0, "n": 1}.items()
    assert memory.texts("note") == ["x"]
    assert {failure.method for failure in log.failures} == {"log_metrics", "log text", "finalize"}


def test_lightnings_own_loggers_are_destinations(tmp_path: Path) -> None:
    """Lightning's CSVLogger beside ours gets the same metrics at the same steps."""
    theirs = lightnings.CSVLogger(tmp_path / "theirs")
    ours = CSVLogger(tmp_path / "ours")
    log = TrainingLog([theirs, ours], log_every_n_steps=2)
    log.log_config({"model": LoggerConfig(run_name="x"), "lr": 0.1})
    log.start_epoch(0, 0)
    for step in range(1, 5):
        log.log_step({"loss": torch.tensor(float(step))}, step)
    log.end_epoch({}, 4)
    log.finalize("success")
    ours.close()
    columns = []
    for logger in (theirs, ours):
        rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
        place = rows[0].split(",").index("train/loss"), rows[0].split(",").index("step")
        values = [(row.split(",")[place[1]], row.split(",")[place[0]]) for row in rows[1:]]
        columns.append([(int(step), float(loss)) for step, loss in values if loss])
    assert columns[0] == columns[1] == [(2, 1.5), (4, 3.5)]


def test_configurations_are_logged_as_hyperparameters(memory: InMemoryLogger) -> None:
    """A mapping of several configurations, dataclasses and objects with ``to_dict`` among them, is logged by name."""
    TrainingLog(memory).log_config({"logger": LoggerConfig(run_name="blue"), "optimizer": {"lr": 0.1}})
    assert memory.hyperparams["logger/run_name"] == "blue"
    assert memory.hyperparams["optimizer/lr"] == 0.1


# ---------------------------------------------------------------------- artifacts and names


def test_artifacts_are_named_by_format_strings(memory: InMemoryLogger, tmp_path: Path) -> None:
    """Name and path are filled in by where the run is, and the file arrives under its new name, content and all."""
    log = TrainingLog(memory, run_name="blue")
    log.start_epoch(4, 10)
    log.log_step({"loss": 1.0}, 11)
    (tmp_path / "ep4.bin").write_bytes(b"weights")
    name = log.file_artifact(
        LogLevel.EPOCH, "{run_name}/ep{epoch:03d}-ba{batch}-rank{rank}.bin", f"{tmp_path}/ep{{epoch}}.bin"
    )
    assert name == "blue/ep004-ba1-rank0.bin"
    memory.most_recent("train/loss")  # waits for delivery
    [record] = [record for record in memory.records if record.blobs]
    assert (record.id, record.blobs[0].name) == ("blue", "ep004-ba1-rank0.bin")
    assert memory.experiment.files["blue"][0].read_bytes() == b"weights"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ep4.bin", "memory"]


def test_an_artifact_never_replaces_another_unless_asked(memory: InMemoryLogger, tmp_path: Path) -> None:
    """The second file of a name gets a number, and is told; ``overwrite=True`` keeps the name; folders work, too."""
    log = TrainingLog(memory)
    file, folder = tmp_path / "a.txt", tmp_path / "folder"
    file.write_text("x")
    folder.mkdir()
    (folder / "inside.txt").write_text("y")
    names = [
        log.file_artifact("FIT", "notes.txt", file),
        log.file_artifact("FIT", "notes.txt", file),
        log.file_artifact("FIT", "notes.txt", file, overwrite=True),
        log.file_artifact("FIT", "models/best", folder),
    ]
    assert names == ["notes.txt", "notes-2.txt", "notes.txt", "models/best"]
    memory.most_recent_values  # noqa: B018 - waits for delivery
    kept = [(record.id, [blob.name for blob in record.blobs]) for record in memory.records if record.blobs]
    assert [names for _, names in kept] == [["notes.txt"], ["notes-2.txt"], ["notes.txt"], ["inside.txt"]]
    assert kept[3][0] == "models/best"


def test_an_unknown_field_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    """So are attributes and positions: a template looks into no object."""
    log = TrainingLog()
    with pytest.raises(ConfigurationError) as raised:
        log.file_artifact("FIT", "{epcoh}.pt", tmp_path)
    assert "did you mean {epoch}" in str(raised.value)
    assert all(f"{{{name}}}" in str(raised.value) for name in NAME_FIELDS)
    for template in ("{rank.__class__}", "{}", "{0}", "{epoch:zz}", "{epoch", "{rank[0]}"):
        with pytest.raises(ConfigurationError):
            format_name(template)


def test_every_field_has_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """All known fields can be used, and ranks and sizes come from the launcher's environment."""
    for name, value in {"WORLD_SIZE": "8", "LOCAL_RANK": "3", "NODE_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    text = format_name("|".join(f"{{{name}}}" for name in NAME_FIELDS), run_name="blue", epoch=2, batch=7)
    found = dict(zip(NAME_FIELDS, text.split("|"), strict=True))
    assert {name: found[name] for name in ("run_name", "world_size", "local_rank", "node_rank", "epoch", "batch")} == {
        "run_name": "blue", "world_size": "8", "local_rank": "3", "node_rank": "1", "epoch": "2", "batch": "7",
    }  # fmt: skip
    assert found["local_world_size"] == "4"


def test_the_runs_name_is_the_first_destinations_version() -> None:
    """Unless one is given."""
    assert TrainingLog([object_with_log(), Listener()]).run_name == "v7"
    assert TrainingLog(Listener(), run_name="blue").run_name == "blue"


def object_with_log() -> Any:
    """A destination without a version."""

    class Bare:
        def log_metrics(self, metrics: Any, step: Any = None) -> None:
            """Nothing."""

    return Bare()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ("good", '"good"'),
        (3, "3"),
        (True, "True"),
        (0.123456, "0.1235"),
        (torch.tensor(0.5), "0.5"),
        (torch.zeros(2, 3), "Tensor of shape (2, 3)"),
        ({"a": {"b": [1, "x"]}}, '{a: {b: [1, "x"]}}'),
        ((1.0, None), "[1, None]"),
    ],
)
def test_values_are_formatted_for_people(value: Any, text: str) -> None:
    """Each kind of value has one short spelling."""
    assert format_log_data_value(value) == text


def test_a_value_that_holds_itself_is_formatted() -> None:
    """A list inside itself ends in an ellipsis."""
    endless: list[Any] = []
    endless.append(endless)
    assert "..." in format_log_data_value(endless)


# ---------------------------------------------------------------------- configuration and the command line's log


def test_a_configuration_builds_log_and_loggers(tmp_path: Path) -> None:
    """``TrainingLog(LoggerConfig(...))`` makes the loggers, the interval, and the command-line log in ``log_path``."""
    config = LoggerConfig(loggers=[CSVLoggerConfig()], log_path=str(tmp_path), log_every_n_steps=3)
    log = TrainingLog(config)
    assert [type(destination) for destination in log.destinations] == [CSVLogger]
    assert (log.config, log.log_every_n_steps, log.log_path) == (config, 3, tmp_path)
    log.start_epoch(0, 0)
    LOGGER.info("hello from the loop")
    logging.getLogger("some.library").warning("a warning")
    log.end_epoch({}, 0)
    log.finalize("success")
    LOGGER.info("after the end")
    lines = (tmp_path / "output.log").read_text().splitlines()
    assert all(" rank 0 " in line for line in lines)
    assert any(line.endswith("hello from the loop") for line in lines)
    assert any("a warning" in line for line in lines)
    assert not any("after the end" in line for line in lines)
    assert (Path(log.destinations[0].log_dir) / "metrics.csv").is_file()


def test_each_process_has_a_command_line_log_of_its_own(tmp_path: Path) -> None:
    """Two processes of a job write two files, and each line has the rank."""
    program = (
        "import sys\n"
        "from lightning_utilities.core.rank_zero import rank_zero_only\n"
        "rank_zero_only.rank = int(sys.argv[1])\n"
        "from lightning_loggers.training import LOGGER, TrainingLog\n"
        "log = TrainingLog(log_path=sys.argv[2], cmd_logging_name='job')\n"
        "LOGGER.info('working')\n"
        "log.finalize('success')\n"
    )
    for rank in ("0", "3"):
        subprocess.run([sys.executable, "-c", program, rank, str(tmp_path)], check=True, capture_output=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.log", "job.rank3.log"]
    assert "rank 0 INFO" in (tmp_path / "job.log").read_text()
    assert "rank 3 INFO" in (tmp_path / "job.rank3.log").read_text()


def test_a_command_line_log_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: Any) -> None:
    """A folder that cannot be made is told by logging on stderr, and the loop goes on."""
    (tmp_path / "file").write_text("")
    log = TrainingLog(log_path=tmp_path / "file" / "below", cmd_logging_name="output")
    LOGGER.info("hello")
    log.finalize("success")
    assert "NotADirectoryError" in capsys.readouterr().err or not (tmp_path / "file" / "below").exists()


def test_every_kind_of_the_package_can_be_named() -> None:
    """``data(kind=...)`` takes each kind by its name."""
    listener = Listener()
    log = TrainingLog(listener)
    for kind in Kind:
        if kind not in {Kind.STATUS, Kind.ARTIFACT}:
            log.data("FIT", {"x": 1}, kind=kind.value)
    assert ("metrics", {"x": 1}, 0) in listener.calls
    assert ("params", {"x": 1}) in listener.calls
