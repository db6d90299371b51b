"""What MLflow holds after a run is what was logged: points, hyperparameters, texts, files and everything odd."""

import dataclasses
import enum
import functools
import json
import logging
import math
import random
import sys
import threading
import time
import uuid
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from mlflow import MlflowClient
from mlflow.utils.validation import _validate_metric_name, _validate_param_name
from mlflow_reading import only_run
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, TensorDataset

from lightning_loggers import MLFlowLogger
from lightning_loggers.adapters.fitting import KeyMap
from lightning_loggers.adapters.mlflow import MLflowAdapter
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.journal import read

LARGEST = sys.float_info.max  # what MLflow's SQL stores hold for an infinity


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow puts artifacts of an explicit SQLite store below the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["sqlite", "server"])
def store(request: pytest.FixtureRequest) -> str:
    """Every store that must behave the same: a SQLite file, and a real server."""
    return str(request.getfixturevalue(f"mlflow_{request.param}"))


@pytest.fixture
def experiment() -> str:
    """A name that no other test uses: the server is shared."""
    return f"values-{uuid.uuid4().hex[:12]}"


def finished(logger: MLFlowLogger) -> MlflowClient:
    """Finalize, check that all of it went out, and give a reader."""
    logger.finalize("success")
    assert logger.stats.pending == 0, logger.stats
    return MlflowClient(logger._options["tracking_uri"])


def history(client: MlflowClient, run_id: str) -> dict[str, list[tuple[int, float, int]]]:
    """(step, value, time in ms) of every point of a run, by key."""
    return {
        key: [(point.step, point.value, point.timestamp) for point in client.get_metric_history(run_id, key)]
        for key in client.get_run(run_id).data.metrics
    }


def artifacts(client: MlflowClient, run_id: str) -> dict[str, bytes]:
    """Path and content of every artifact of a run."""
    found: dict[str, bytes] = {}
    folders: list[str | None] = [None]
    while folders:
        for item in client.list_artifacts(run_id, folders.pop()):
            if item.is_dir:
                folders.append(item.path)
            else:
                found[item.path] = Path(client.download_artifacts(run_id, item.path)).read_bytes()
    return found


def text_below(found: dict[str, bytes], folder: str) -> list[str]:
    """The texts of a folder's artifacts, in the order of their names."""
    return [found[path].decode() for path in sorted(found) if path.startswith(f"{folder}/")]


def rejected(logger: MLFlowLogger) -> list[dict[str, Any]]:
    """The lines of ``journal/rejected.jsonl``."""
    path = Path(str(logger.log_dir)) / "journal" / "rejected.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def deliver(logger: MLFlowLogger) -> None:
    """Deliver an offline run, as the command line does."""
    logger.close()
    worker = Worker(Path(str(logger.log_dir)))
    while (step := worker.step()).kind is not StepKind.IDLE:
        assert step.kind is StepKind.PROGRESS, step
    worker.close()


def told(caplog: pytest.LogCaptureFixture, *words: str) -> int:
    """How many messages of ours hold all of the words."""
    return sum(
        record.name == "lightning_loggers" and all(word in record.getMessage() for word in words)
        for record in caplog.records
    )


def as_stored(value: float) -> str:
    """A value as MLflow's SQL stores hold it (SQLite has no -0.0), comparable although NaN equals nothing."""
    return repr(math.copysign(LARGEST, value) if math.isinf(value) else float(value) + 0.0)


def comparable(point: tuple[int, float, int]) -> tuple[int, str, int]:
    """A point of :func:`history` that can be compared and hashed."""
    step, value, at = point
    return step, as_stored(value), at


class Regression(LightningModule):
    """A model of four weights that logs as models do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self.layer(batch[0]).pow(2).mean()
        self.log_dict({"train/loss": loss, "train/nan_at_3": torch.nan if index == 3 else 1.0}, on_step=True)
        self.log("train/epoch_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("val/loss", self.layer(batch[0]).pow(2).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def data(batches: int) -> DataLoader[Any]:
    """Batches of four rows."""
    return DataLoader(TensorDataset(torch.randn(4 * batches, 4)), batch_size=4)


def trainer(logger: Any, **arguments: Any) -> Trainer:
    """A quiet Trainer on the CPU that logs every step."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(logger=logger, accelerator="cpu", log_every_n_steps=1, **{"max_epochs": 1, **quiet, **arguments})


# ---------------------------------------------------------------------- points


def test_ten_thousand_steps_arrive_as_logged(store: str, experiment: str, tmp_path: Path) -> None:
    """Of 10,000 steps, negative ones, step 0, NaN and infinities among them, MLflow holds each point with its time."""
    logger = MLFlowLogger(experiment, tracking_uri=store, save_dir=tmp_path / "runs", finalize_timeout_s=110)
    dice = random.Random(3)
    odd = {1: math.nan, 2: math.inf, 3: -math.inf, 4: -0.0, 5: 5e-324, 6: 1e308, 7: 0.1 + 0.2}
    expected: dict[str, Counter[tuple[int, str]]] = {"loss": Counter(), "val/acc": Counter(), "n": Counter()}
    called: dict[int, tuple[int, int]] = {}
    for step in range(-50, 9950):
        metrics: dict[str, Any] = {"loss": odd.get(step % 50, dice.random())}
        if step % 10 == 0:
            metrics |= {"val/acc": math.nan if step % 100 == 0 else dice.gauss(), "n": step}
        before = time.time_ns()
        logger.log_metrics(metrics, step)
        called[step] = (before // 1_000_000, time.time_ns() // 1_000_000)
        for key, value in metrics.items():
            expected[key][step, as_stored(value)] += 1
    client = finished(logger)
    got = history(client, str(logger.run_id))
    assert {key: Counter((step, as_stored(value)) for step, value, _ in got[key]) for key in got} == expected
    assert all(called[step][0] <= at <= called[step][1] for points in got.values() for step, _, at in points)
    assert logger.stats.rejected == logger.stats.dropped == 0


class Recorder(Logger):
    """Keeps what the Trainer logs."""

    name = "recorder"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.points: Counter[tuple[str, int, str]] = Counter()

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.points.update((key, step, as_stored(value)) for key, value in metrics.items())

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        return


def test_a_fit_logs_to_mlflow_what_a_recorder_beside_it_sees(store: str, experiment: str, tmp_path: Path) -> None:
    """After ``Trainer.fit`` the points in MLflow equal those that another logger of the same Trainer was given.

    The Trainer logs `epoch` several times in a step; MLflow shows identical points of one millisecond once.
    """
    ours, recorder = MLFlowLogger(experiment, tracking_uri=store, save_dir=tmp_path / "runs"), Recorder()
    trainer([ours, recorder], max_epochs=3).fit(Regression(), data(40), data(4))
    client = MlflowClient(store)
    run = only_run(store, experiment)
    got = history(client, run.info.run_id)
    assert run.info.status == "FINISHED"
    assert {(key, step, as_stored(value)) for key in got for step, value, _ in got[key]} == set(recorder.points)
    journal = [record for record in read(str(ours.log_dir)) if record.kind == "metric"]
    assert Counter((key, *point) for key in got for point in map(comparable, got[key])) == Counter(
        {
            (key, record.step, as_stored(value), record.time_ns // 1_000_000)
            for record in journal
            for key, value in (record.data or {}).items()
        }
    )
    assert sum(len(record.data or {}) for record in journal) == sum(recorder.points.values())
    assert len(got["train/loss"]) == 120
    assert len(got["val/loss"]) == 3
    assert sum(math.isnan(value) for _, value, _ in got["train/nan_at_3"]) == 3


def test_the_same_value_twice_in_a_step_is_two_points(store: str, experiment: str, tmp_path: Path) -> None:
    """Two calls with the same step and value are two points, each at the time of its call."""
    logger = MLFlowLogger(experiment, tracking_uri=store, save_dir=tmp_path / "runs")
    logger.log_metrics({"loss": 0.5}, 7)
    first = time.time_ns() // 1_000_000
    wait_until(lambda: time.time_ns() // 1_000_000 > first, what="the next millisecond")
    logger.log_metrics({"loss": 0.5}, 7)
    client = finished(logger)
    journal = {record.time_ns // 1_000_000 for record in read(str(logger.log_dir)) if record.kind == "metric"}
    assert len(journal) == 2
    got = history(client, str(logger.run_id))["loss"]
    assert [(step, value) for step, value, _ in got] == [(7, 0.5)] * 2
    assert {at for _, _, at in got} == journal


def test_no_step_odd_steps_and_number_like_values(mlflow_sqlite: str, experiment: str, tmp_path: Path) -> None:
    """Steps become MLflow's integers, told once where that changes them; whatever is a number is stored as one."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    logger.log_metrics({"none": 1.0})
    logger.log_metrics({"half": 1.0}, 2.5)  # type: ignore[arg-type]
    logger.log_metrics({"tensor": torch.tensor([3.0], requires_grad=True), "bool": True}, torch.tensor(4))  # type: ignore[dict-item, arg-type]
    logger.log_metrics({"text": "1.5", "large": 10**400, "nested": {"a": 1, "b": {"c": 2}}}, 2**63 - 1)  # type: ignore[dict-item]
    got = history(finished(logger), str(logger.run_id))
    assert {key: [(step, value) for step, value, _ in points] for key, points in got.items()} == {
        "none": [(0, 1.0)],
        "half": [(2, 1.0)],
        "tensor": [(4, 3.0)],
        "bool": [(4, 1.0)],
        "text": [(2**63 - 1, 1.5)],
        "large": [(2**63 - 1, LARGEST)],
        "nested/a": [(2**63 - 1, 1.0)],
        "nested/b/c": [(2**63 - 1, 2.0)],
    }


def test_steps_that_are_numbers_in_disguise_are_steps(mlflow_sqlite: str, experiment: str, tmp_path: Path) -> None:
    """A step given as a string or a bool is the number it stands for, and its point is not lost."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    logger.log_metrics({"loss": 1.0}, "5")  # type: ignore[arg-type]
    logger.log_metrics({"loss": 2.0}, True)
    got = history(finished(logger), str(logger.run_id))
    assert sorted((step, value) for step, value, _ in got["loss"]) == [(1, 2.0), (5, 1.0)]


def test_a_prefix_is_put_before_metric_keys(mlflow_sqlite: str, experiment: str, tmp_path: Path) -> None:
    """``prefix="a"`` logs ``loss`` as ``a-loss``, as Lightning's logger does."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", prefix="fold1")
    logger.log_metrics({"loss": 1.0}, 0)
    assert list(history(finished(logger), str(logger.run_id))) == ["fold1-loss"]


def test_aggregated_metrics_arrive_merged(mlflow_sqlite: str, experiment: str, tmp_path: Path) -> None:
    """What ``agg_and_log_metrics`` was given for a step is one point per key, merged by the functions given."""
    logger = MLFlowLogger(
        experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", agg_key_funcs={"peak": max}
    )
    for step in range(3):
        for portion in range(4):
            logger.agg_and_log_metrics({"loss": step + portion, "peak": portion, "sub": {"x": portion}}, step)
    got = history(finished(logger), str(logger.run_id))
    assert [(step, value) for step, value, _ in got["loss"]] == [(0, 1.5), (1, 2.5), (2, 3.5)]
    assert [(step, value) for step, value, _ in got["peak"]] == [(0, 3.0), (1, 3.0), (2, 3.0)]
    assert [(step, value) for step, value, _ in got["sub/x"]] == [(0, 1.5), (1, 1.5), (2, 1.5)]


# ---------------------------------------------------------------------- keys


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=400) | st.text("./ -_:ab", max_size=12))
def test_every_key_is_fitted_to_a_name_that_mlflow_takes(key: str) -> None:
    """MLflow's own validation accepts what any key is fitted to, and a key that it accepts is left alone."""
    name = KeyMap(MLflowAdapter.fit_key, MLflowAdapter.max_key_length).fit(key)
    _validate_metric_name(name)
    _validate_param_name(name)
    assert len(name) <= 250
    try:
        _validate_metric_name(key)
    except Exception:
        assert name != key
    else:
        assert name == key or len(key) > 250 or key.endswith("\n")  # MLflow's check overlooks a newline at the end


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text("ab@#_/.", max_size=4), unique=True, max_size=40))
def test_two_keys_never_become_one_series(keys: list[str]) -> None:
    """Different keys have different names, in whatever order they come and whoever reads the map again."""
    first = KeyMap(MLflowAdapter.fit_key, MLflowAdapter.max_key_length)
    names = [first.fit(key) for key in keys]
    assert len(set(names)) == len(keys)
    again = KeyMap(MLflowAdapter.fit_key, MLflowAdapter.max_key_length, first.names)
    assert [again.fit(key) for key in reversed(keys)] == names[::-1]


class LogsBadly(Regression):
    """Logs in each step what no tracker takes as a metric."""

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        assert isinstance(self.logger, MLFlowLogger)
        bad = {
            "note": "fine so far",
            "nothing": None,
            "several": torch.arange(6.0).reshape(2, 3),
            "object": object,
            "loss@k=5 ü": 1.0,
            "": 2.0,
            "long" * 75: 3.0,
            "a@b": 4.0,
            "a_b": 5.0,
        }
        self.logger.log_metrics(bad, self.global_step)
        return loss


def test_training_goes_on_with_bad_metrics_and_keeps_what_can_be_kept(
    store: str, experiment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Metrics that are none and keys that MLflow refuses end no training, are kept under fitted names, told once."""
    logger = MLFlowLogger(experiment, tracking_uri=store, save_dir=tmp_path / "runs")
    fit = trainer(logger)
    with caplog.at_level(logging.INFO, "lightning_loggers"):
        fit.fit(LogsBadly(), data(5))
    assert fit.global_step == 5
    assert logger.stats.rejected == logger.stats.pending == 0
    client, run_id = MlflowClient(store), str(logger.run_id)
    got = history(client, run_id)
    found = artifacts(client, run_id)
    names = json.loads(found["lightning_loggers/names.json"])
    keys = {"loss@k=5 ü": 1.0, "": 2.0, "long" * 75: 3.0, "a@b": 4.0, "a_b": 5.0}
    shown = {names.get(name, name): [value for _, value, _ in points] for name, points in got.items()}
    assert {key: shown[key] for key in keys} == {key: [value] * 5 for key, value in keys.items()}
    assert [step for step, _, _ in got["loss_k_5 ü"]] == [0, 1, 2, 3, 4]
    assert set(names.values()) <= set(keys)
    assert text_below(found, "media/note") == ["fine so far"] * 5
    assert [json.loads(text) for text in text_below(found, "media/several")] == [[[0, 1, 2], [3, 4, 5]]] * 5
    assert len(text_below(found, "media/object")) == 5
    for words in ("'note'", "'nothing'", "'several'", "'object'", "'loss@k=5 ü'", "name ''", "longlong", "'a@b'"):
        assert told(caplog, words) == 1, words
    assert client.get_run(run_id).info.status == "FINISHED"


# ---------------------------------------------------------------------- hyperparameters


class Optimizer(enum.Enum):
    """As configurations have them."""

    ADAM = "adam"


@dataclasses.dataclass
class Config:
    """A dataclass within a dataclass is opened."""

    lr: float = 1e-3
    optimizer: Optimizer = Optimizer.ADAM
    inner: "Config | None" = None


@pytest.mark.parametrize(
    ("given_params", "expected"),
    [
        ({"lr": 1e-3, "model": {"width": 64, "sizes": [1, 2]}}, {"lr": "0.001", "model/width": "64"}),
        (Namespace(lr=0.1, nested=Namespace(deep=True)), {"lr": "0.1", "nested/deep": "True"}),
        (Config(inner=Config(lr=2.0)), {"lr": "0.001", "optimizer": "Optimizer.ADAM", "inner/lr": "2.0"}),
        (OmegaConf.create({"a": 1, "b": {"c": "${a}", "d": [1, 2]}}), {"a": "1", "b/c": "1", "b/d": "[1, 2]"}),
        ({"nan": math.nan, "inf": -math.inf, "none": None, "empty": ""}, {"nan": "nan", "inf": "-inf", "none": "None"}),
        ({"t": torch.tensor(2), "f": torch.nn.functional.relu, "p": Path("/data")}, {"t": "2", "p": "/data"}),
        ({1: "int key", None: "no key", ("a", 2): "tuple"}, {"1": "int key", "None": "no key"}),
        ({"seed": 2**70}, {"seed": str(2**70)}),
    ],
    ids=["dict", "Namespace", "dataclass", "OmegaConf", "nonfinite", "objects", "keys", "bigint"],
)
def test_hyperparameters_of_every_form_arrive(
    given_params: Any, expected: dict[str, str], mlflow_sqlite: str, experiment: str, tmp_path: Path
) -> None:
    """Dictionaries, namespaces, dataclasses and OmegaConf's containers become params, nested names joined by ``/``."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    logger.log_hyperparams(given_params)
    params = finished(logger).get_run(str(logger.run_id)).data.params
    assert {key: params.get(key) for key in expected} == expected
    assert rejected(logger) == []


def test_one_value_that_cannot_be_read_costs_no_other(mlflow_sqlite: str, experiment: str, tmp_path: Path) -> None:
    """An OmegaConf container with a missing value and a broken interpolation still logs everything else."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    logger.log_hyperparams(OmegaConf.create({"lr": 0.1, "missing": "???", "broken": "${nowhere}", "last": 3}))
    params = finished(logger).get_run(str(logger.run_id)).data.params
    assert (params["lr"], params["last"]) == ("0.1", "3")
    assert "unreadable" in params["missing"]
    assert "unreadable" in params["broken"]


def test_hyperparameters_beyond_every_limit_are_kept_whole(store: str, experiment: str, tmp_path: Path) -> None:
    """500 params, a value of 1 MB, keys that collide and keys that MLflow refuses: each can be read back whole."""
    logger = MLFlowLogger(experiment, tracking_uri=store, save_dir=tmp_path / "runs")
    long = "".join(random.Random(1).choices("abcdefghij ü\n", k=2**20))
    params: dict[str, Any] = {f"p{number}": number for number in range(500)}
    params |= {"long": long, "a": {"b": 1}, "a/b": 2, "a@b": 3, "a_b": 4, "": 5, "k" * 300: 6, "x:y": "z" * 7000}
    logger.log_hyperparams(params)
    client = finished(logger)
    run_id = str(logger.run_id)
    got, found = client.get_run(run_id).data.params, artifacts(client, run_id)
    names = json.loads(found["lightning_loggers/names.json"])
    shown = {names.get(name, name): value for name, value in got.items()}
    assert {key: shown[key] for key in params if key.startswith("p")} == {f"p{n}": str(n) for n in range(500)}
    assert [shown[key] for key in ("a/b", "a/b#2", "a@b", "a_b", "", "k" * 300)] == ["1", "2", "3", "4", "5", "6"]
    assert found["params/long.txt"].decode() == long
    assert got["long"].startswith(long[:5000])
    assert "params/long.txt" in got["long"]
    whole = [text.decode() for path, text in found.items() if path.startswith("params/x") and "params/" in path]
    assert whole == ["z" * 7000]
    assert rejected(logger) == []


def test_a_param_that_changes_is_rejected_alone(
    store: str, experiment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A changed value, which MLflow refuses, is told and kept in ``rejected.jsonl``; all beside and after it comes."""
    logger = MLFlowLogger(experiment, tracking_uri=store, save_dir=tmp_path / "runs")
    logger.log_hyperparams({"lr": 0.1, "width": 64})
    logger.log_metrics({"loss": 1.0}, 0)
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        logger.log_hyperparams({"lr": 0.2, "width": 64, "depth": 3})
        logger.log_metrics({"loss": 2.0}, 1)
        client = finished(logger)
    run = client.get_run(str(logger.run_id))
    assert run.data.params == {"lr": "0.1", "width": "64", "depth": "3"}
    assert [value for _, value, _ in history(client, run.info.run_id)["loss"]] == [1.0, 2.0]
    (line,) = rejected(logger)
    assert line["record"]["data"] == {"lr": 0.2}
    assert line["reason"]
    assert logger.stats.rejected == 1
    assert told(caplog, "'lr'", "rejected.jsonl") == 1
    assert run.info.status == "FINISHED"


# ---------------------------------------------------------------------- texts, dictionaries, files


def test_texts_and_dictionaries_are_read_back(store: str, experiment: str, tmp_path: Path) -> None:
    """Texts and dictionaries are artifacts of their own, also several of one name and step, and of odd names."""
    logger = MLFlowLogger(experiment, tracking_uri=store, save_dir=tmp_path / "runs")
    logger.log_text("sample", "first ü\n", step=3)
    logger.log_text("sample", "second", step=3)
    logger.log_text("sample", "no step")
    logger.log_text("50% #1/a?b", "odd")
    table = {"rows": [[1, 2.5], [None, "x"]], "nan": math.nan, "np": torch.ones(2).numpy(), "big": 2**70, 5: {1}}
    logger.log_dict("tables/confusion", table, step=0)
    logger.log_dict("numpy", {"a": torch.tensor(1.5).numpy()[()], "e": Optimizer.ADAM})
    client = finished(logger)
    found = artifacts(client, str(logger.run_id))
    assert sorted(text_below(found, "media/sample")) == ["first ü\n", "no step", "second"]
    assert "odd" in [text.decode() for text in found.values()]
    (text,) = text_below(found, "media/tables/confusion")
    assert json.loads(text) == {
        "rows": [[1, 2.5], [None, "x"]],
        "nan": "nan",
        "np": [1.0, 1.0],
        "big": str(2**70),
        "5": [1],
    }
    assert [json.loads(text) for text in text_below(found, "media/numpy")] == [{"a": 1.5, "e": "Optimizer.ADAM"}]
    assert logger.stats.dropped == logger.stats.rejected == 0


def test_a_text_longer_than_a_line_of_the_journal_arrives_whole(
    mlflow_sqlite: str, experiment: str, tmp_path: Path
) -> None:
    """A text of 17 million characters is one text at the end."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    text = 'ü"\\' + "x" * 17_000_000
    logger.log_text("huge", text)
    (got,) = text_below(artifacts(finished(logger), str(logger.run_id)), "media/huge")
    assert len(got) == len(text)
    assert got == text


def test_files_and_folders_are_delivered_as_they_were(store: str, experiment: str, tmp_path: Path) -> None:
    """Files (also of odd names), folders and links arrive with their content, although deleted right after the call."""
    logger = MLFlowLogger(experiment, tracking_uri=store, save_dir=tmp_path / "runs", delivery="offline")
    folder = tmp_path / "plots"
    (folder / "deep" / "er").mkdir(parents=True)
    contents = {"a.txt": b"a", "deep/b.bin": bytes(range(256)), "deep/er/ü c.txt": b"", "deep/.hidden": b"h"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "link.txt").symlink_to(folder / "a.txt")
    single = tmp_path / "report.txt"
    single.write_text("final")
    odd = tmp_path / "run #3 %41.txt"
    odd.write_text("odd")
    logger.log_artifact(single)
    logger.log_artifact(str(single), "reports/today")
    logger.log_artifact(odd)
    logger.log_artifact(folder)
    logger.log_artifact(folder, "sub")
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    single.unlink()
    odd.unlink()
    deliver(logger)
    run = only_run(store, experiment)
    found = artifacts(MlflowClient(store), run.info.run_id)
    assert found.pop("report.txt") == found.pop("reports/today/report.txt") == b"final"
    (odd_name,) = (path for path in found if path.startswith("run"))
    assert found.pop(odd_name) == b"odd"
    expected = contents | {"link.txt": b"a"}
    assert found == {f"{top}/{name}": text for top in ("plots", "sub/plots") for name, text in expected.items()}
    assert rejected(logger) == []


def test_a_file_that_cannot_be_kept_is_told_and_counted(
    mlflow_sqlite: str, experiment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing file, and one that is no file, raise nothing: each is told with its path and counted as dropped."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        logger.log_artifact(tmp_path / "nowhere.txt")
        logger.log_artifact(tmp_path / "nowhere.txt")
        logger.log_artifact("/dev/null")
    logger.log_metrics({"loss": 1.0}, 0)
    finished(logger)
    assert logger.stats.dropped_reasons == {"no such file": 2, "unreadable file": 1}
    assert told(caplog, "nowhere.txt") == 1
    assert told(caplog, "/dev/null") == 1


def test_an_artifact_that_the_store_refuses_holds_up_nothing(
    mlflow_server: str, experiment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that vanished from the journal is set aside with its reason, and every record behind it is delivered."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_server, save_dir=tmp_path / "runs", delivery="offline")
    (tmp_path / "file.txt").write_text("x")
    logger.log_artifact(tmp_path / "file.txt")
    logger.log_metrics({"loss": 1.0}, 0)
    for blob in (Path(str(logger.log_dir)) / "journal" / "blobs").rglob("file.txt"):
        blob.unlink()
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        deliver(logger)
    run = only_run(mlflow_server, experiment)
    assert run.data.metrics == {"loss": 1.0}
    (line,) = rejected(logger)
    assert "file.txt" in line["reason"]
    assert told(caplog, "file.txt", "rejected.jsonl") == 1


def test_a_run_deleted_by_mistake_loses_nothing_once_restored(
    mlflow_sqlite: str, experiment: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Records for a run in MLflow's bin wait for its restoration, told with the command, instead of being rejected."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", delivery="offline")
    logger.log_metrics({"loss": 1.0}, 0)
    deliver(logger)
    client = MlflowClient(mlflow_sqlite)
    run_id = only_run(mlflow_sqlite, experiment).info.run_id
    client.delete_run(run_id)
    logger.log_metrics({"loss": 2.0}, 1)
    logger.close()
    worker = Worker(Path(str(logger.log_dir)))
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        steps = [worker.step().kind for _ in range(4)]
    worker.close()
    assert StepKind.FAILED in steps
    assert rejected(logger) == []
    assert told(caplog, f"mlflow runs restore --run-id {run_id}") == 1
    client.restore_run(run_id)
    deliver(logger)
    assert [value for _, value, _ in history(client, run_id)["loss"]] == [1.0, 2.0]


def in_threads(calls: list[Callable[[], object]]) -> None:
    """Run calls at once, each in a thread of its own."""
    together = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        together.wait()
        call()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_metrics_of_several_threads_all_arrive(mlflow_sqlite: str, experiment: str, tmp_path: Path) -> None:
    """Four threads that log at once lose no point and mix no lines."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")

    def log(thread: int) -> None:
        for step in range(250):
            logger.log_metrics({f"thread{thread}": float(step)}, step)

    in_threads([functools.partial(log, number) for number in range(4)])
    got = history(finished(logger), str(logger.run_id))
    expected = [(step, float(step)) for step in range(250)]
    assert {key: [(step, value) for step, value, _ in points] for key, points in got.items()} == {
        f"thread{number}": expected for number in range(4)
    }


def test_of_threads_that_log_first_one_begins_the_run(tmp_path: Path) -> None:
    """However threads are switched, eight that log first in a run agree on its version and write one stream."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for attempt in range(40):
            logger = MLFlowLogger(f"first{attempt}", save_dir=tmp_path / "runs", delivery="offline")
            in_threads([functools.partial(logger.log_metrics, {"n": float(n)}, n) for n in range(8)])
            logger.close()
            files = [path.name for path in (tmp_path / "runs" / f"first{attempt}").glob("*/journal/*.jsonl")]
            assert files == ["rank0.jsonl"]
            records = [record.step for record in read(str(logger.log_dir)) if record.kind == "metric"]
            assert sorted(step for step in records if step is not None) == list(range(8))
    finally:
        sys.setswitchinterval(usual)
