"""What must be true of every logger that the package exports: a new one is tested the moment it is exported."""

import copy
import dataclasses
import enum
import inspect
import json
import pickle
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import free_port
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch import loggers as theirs
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from torch.utils.data import DataLoader, TensorDataset
from wandb_reading import QUIET, quiet_home

import lightning_loggers
from lightning_loggers.journal import read
from lightning_loggers.loggers.journaled import JournaledLogger

MAKERS: dict[str, Callable[..., JournaledLogger]] = {
    "CSVLogger": lambda folder, uri, **more: lightning_loggers.CSVLogger(folder, **more),
    "CometLogger": lambda folder, uri, **more: lightning_loggers.CometLogger(
        online=False, offline_directory=str(folder), **more
    ),
    "ConsoleLogger": lambda folder, uri, **more: lightning_loggers.ConsoleLogger(
        save_dir=folder, style="lines", **more
    ),
    "InMemoryLogger": lambda folder, uri, **more: lightning_loggers.InMemoryLogger(save_dir=folder, **more),
    "MLFlowLogger": lambda folder, uri, **more: lightning_loggers.MLFlowLogger(
        "all", tracking_uri=uri, save_dir=str(folder), **more
    ),
    "NeptuneLogger": lambda folder, uri, **more: lightning_loggers.NeptuneLogger(
        project="all/loggers", mode="offline", save_dir=folder, prefix="", **more
    ),
    "TensorBoardLogger": lambda folder, uri, **more: lightning_loggers.TensorBoardLogger(folder, **more),
    "WandbLogger": lambda folder, uri, **more: lightning_loggers.WandbLogger(
        save_dir=folder, offline=True, settings=QUIET, **more
    ),
}
"""How each logger is made so that it needs no service."""

EXPORTED = sorted(
    name
    for name in lightning_loggers.__all__
    if isinstance(kind := getattr(lightning_loggers, name), type) and issubclass(kind, JournaledLogger)
)

every_logger = pytest.mark.parametrize("name", EXPORTED)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is read from or written to this machine's home; SDKs' services end with the test."""
    monkeypatch.chdir(tmp_path)
    quiet_home(tmp_path, monkeypatch)
    yield
    if (wandb := sys.modules.get("wandb")) is not None:
        wandb.teardown()


class Line(LightningModule):
    """A layer that is trained on random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(logger: Any, folder: Path, steps: int = 6) -> None:
    """Train for some steps, with a checkpoint at the end."""
    trainer = Trainer(
        logger=logger, max_steps=steps, log_every_n_steps=1, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, callbacks=[ModelCheckpoint(every_n_train_steps=steps)], default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(Line(), DataLoader(TensorDataset(torch.randn(2 * steps, 2)), batch_size=2))


def test_every_logger_has_a_maker() -> None:
    """A logger that is exported without an entry in this file fails here."""
    assert list(MAKERS) == EXPORTED


@every_logger
def test_constructor_is_lightnings(name: str) -> None:
    """Names, order, kinds and defaults of Lightning's logger come first; what is new is keyword-only."""
    if not hasattr(theirs, name):
        pytest.skip("Lightning has no logger of this name")
    expected = inspect.signature(getattr(theirs, name)).parameters.values()
    given = list(inspect.signature(getattr(lightning_loggers, name)).parameters.values())
    named = [p for p in expected if p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL}]
    shown = [(p.name, p.kind, p.default) for p in given]
    assert shown[: len(named)] == [(p.name, p.kind, p.default) for p in named]
    assert {p.kind for p in given[len(named) :]} <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


@every_logger
def test_common_parameters_are_there(name: str) -> None:
    """What all our loggers add is spelt alike and keyword-only."""
    parameters = inspect.signature(getattr(lightning_loggers, name)).parameters
    for common in ("delivery", "finalize_timeout_s", "agg_key_funcs", "agg_default_func"):
        assert parameters[common].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["finalize_timeout_s"].default == 30.0
    assert parameters["delivery"].default == "auto"


@every_logger
def test_trainer_fit_delivers_everything(name: str, tmp_path: Path, mlflow_sqlite: str) -> None:
    """A real training through the logger leaves nothing pending, rejected or dropped, and journals every step."""
    logger = MAKERS[name](tmp_path / "runs", mlflow_sqlite, finalize_timeout_s=120)
    fit(logger, tmp_path)
    stats = logger.stats
    logger.close()
    assert (stats.pending, stats.rejected, stats.dropped) == (0, 0, 0)
    steps = [r.step for r in read(logger._run_dir) if r.kind == "metric" and "train/loss" in (r.data or {})]
    assert steps == list(range(6))


class Colour(enum.Enum):
    """An enumeration among hyperparameters."""

    RED = 1


@dataclasses.dataclass
class Optimizer:
    """A dataclass among hyperparameters."""

    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)


class Unspeakable:
    """Nothing can be said of it."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


HYPERPARAMETERS = {
    "nested": {"optimizer": {"lr": 0.1}}, "namespace": Namespace(a=1), "dataclass": Optimizer(),
    "omegaconf": OmegaConf.create({"x": {"y": [1, 2]}}), "enum": Colour.RED, "path": Path("/data/x"),
    "callable": len, "lambda": lambda: None, "numpy": np.float32(0.5), "array": np.arange(3),
    "torch": torch.tensor(2.5), "tensor": torch.zeros(2, 2), "object": object(), "unspeakable": Unspeakable(),
    "long": "x" * 1_000_000,
    "a@b": 1, "a_b": 2, "a b": 3, "": 4, "none": None, "nan": float("nan"), "big": 2**70, 7: "key of another type",
}  # fmt: skip


@every_logger
def test_hyperparameters_of_every_sort(name: str, tmp_path: Path, mlflow_sqlite: str) -> None:
    """Whatever is given as a hyperparameter is never fatal; the journal has all of it, and the tracker takes it."""
    logger = MAKERS[name](tmp_path / "runs", mlflow_sqlite, finalize_timeout_s=120)
    logger.log_hyperparams(HYPERPARAMETERS)
    logger.log_hyperparams(Namespace(plain=1))
    logger.finalize("success")
    stats = logger.stats
    logger.close()
    assert (stats.pending, stats.rejected, stats.dropped) == (0, 0, 0), stats
    params: dict[str, Any] = {}
    for record in read(logger._run_dir):
        if record.kind == "param":
            params |= record.data or {}
    assert params["nested/optimizer/lr"] == 0.1
    assert params["long"] == "x" * 1_000_000
    assert {key: params[key] for key in ("a@b", "a_b", "a b")} == {"a@b": 1, "a_b": 2, "a b": 3}
    assert params["plain"] == 1
    roots = {key.split("/")[0] for key in params}
    assert {str(key) for key in HYPERPARAMETERS} <= roots


@every_logger
def test_changed_hyperparameters_on_resume(name: str, tmp_path: Path, mlflow_sqlite: str) -> None:
    """A run that is continued with another value of a hyperparameter goes on; both values are in the journal."""
    for value in (0.1, 0.2):
        logger = MAKERS[name](tmp_path / "runs", mlflow_sqlite, finalize_timeout_s=120, version="again")
        logger.log_hyperparams({"lr": value})
        logger.log_metrics({"loss": value}, int(value * 10))
        logger.finalize("success")
        assert logger.stats.pending == 0
        logger.close()
    records = list(read(logger._run_dir))
    assert [r.data["lr"] for r in records if r.kind == "param" and r.data] == [0.1, 0.2]
    assert [r.data["loss"] for r in records if r.kind == "metric" and r.data] == [0.1, 0.2]


def copied(logger: JournaledLogger) -> JournaledLogger:
    """By pickle, as strategies that spawn processes do."""
    return pickle.loads(pickle.dumps(logger))


@every_logger
@pytest.mark.parametrize("duplicate", [copied, copy.deepcopy])
def test_making_and_copying_opens_nothing(
    name: str, tmp_path: Path, mlflow_sqlite: str, duplicate: Callable[[JournaledLogger], JournaledLogger]
) -> None:
    """A logger that has not logged can be copied, leaves no journal, and the copy stands for the same run."""
    logger = MAKERS[name](tmp_path / "runs", mlflow_sqlite)
    other = duplicate(logger)
    assert (other.name, other.version, other.log_dir) == (logger.name, logger.version, logger.log_dir)
    logger.finalize("success")
    logger.close()
    assert not list((tmp_path / "runs").rglob("*.jsonl"))


@every_logger
def test_save_logs_what_is_held_for_its_step(name: str, tmp_path: Path, mlflow_sqlite: str) -> None:
    """A Trainer saves after each log call: metrics of a step that are still to be merged are logged then, once."""
    logger = MAKERS[name](tmp_path / "runs", mlflow_sqlite, delivery="offline")
    logger.save()
    for value in (1.0, 3.0):
        logger.agg_and_log_metrics({"held": value}, 0)
    assert not list((tmp_path / "runs").rglob("*.jsonl"))
    logger.save()
    logger.save()
    [journal] = (tmp_path / "runs").rglob("rank0*.jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line["data"] for line in lines if line.get("kind") == "metric"] == [{"held": 2.0}]
    logger.close()


def test_all_loggers_at_once_each_with_its_own_fate(tmp_path: Path, mlflow_sqlite: str) -> None:
    """In one training every logger delivers all of its records, although the tracker of one of them is down."""
    loggers = {name: MAKERS[name](tmp_path / name, mlflow_sqlite, finalize_timeout_s=120) for name in EXPORTED}
    down = lightning_loggers.MLFlowLogger(
        "down", tracking_uri=f"http://127.0.0.1:{free_port()}", save_dir=str(tmp_path / "down"), finalize_timeout_s=0
    )
    fit([down, *loggers.values()], tmp_path)
    for name, logger in loggers.items():
        assert logger.stats.pending == 0, name
        assert logger.stats.rejected == 0, name
        logger.close()
    assert down.stats.pending >= 6
    down.close()
    for logger in [down, *loggers.values()]:
        found = [r.data["train/loss"] for r in read(logger._run_dir) if r.data and "train/loss" in r.data]
        assert len(found) == 6
