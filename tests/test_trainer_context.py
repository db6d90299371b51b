"""In a Trainer: phase, epoch, level, batch and steps are known without a callback."""

import copy
import csv
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_loggers import CSVLogger, InMemoryLogger, LoggerCollection
from lightning_loggers.errors import NonFiniteError
from lightning_loggers.loggers.trainer_context import StepAxis, TrainerContext, located
from lightning_loggers.policies import LogPolicy

SAMPLES, BATCH_SIZE, VAL_SAMPLES = 22, 4, 9  # 6 batches, the last of 2; 3 batches of validation


class Model(pl.LightningModule):
    def __init__(self, poison_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.poison_at = poison_at

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch[0]).pow(2).mean()
        logged = loss.detach()
        if self.poison_at is not None and self.global_step == self.poison_at:
            logged = logged * float("nan")
        self.log("train/loss", logged, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.layer(batch[0]).mean(), on_step=True, on_epoch=True)
        self.logger.log_metrics({"own/val": 1.0}, step=batch_idx)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.layer(batch[0]).mean(), on_step=True, on_epoch=True)

    def on_train_start(self) -> None:
        self.logger.log_metrics({"own/start": 1.0}, step=10**9)

    def on_train_epoch_end(self) -> None:
        self.logger.log_metrics({"own/epoch": 1.0}, step=self.current_epoch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def loader(samples: int) -> DataLoader[Any]:
    """Batches of equal samples."""
    return DataLoader(TensorDataset(torch.ones(samples, 4)), batch_size=BATCH_SIZE)


def trainer(logger: Any, folder: Path, **arguments: Any) -> pl.Trainer:
    """A quiet Trainer on the CPU that logs every step."""
    settings: dict[str, Any] = {
        "max_epochs": 2, "log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False,
        "enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": folder,
    }  # fmt: skip
    return pl.Trainer(logger=logger, **(settings | arguments))


def lines_of(logger: Any, key: str) -> list[dict[str, Any]]:
    """The journal's lines with a metric."""
    found = []
    for file in sorted(Path(logger._run_dir).glob("journal/rank0*.jsonl")):
        found += [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in found if key in (line.get("data") or {})]


def level(line: dict[str, Any]) -> str:
    """The level of a line of the journal."""
    return str(line["meta"]["level"])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of fit, validate and test, and a test by a fresh Trainer; each epoch is validated twice."""
    folder = tmp_path_factory.mktemp("fitted")
    logger = InMemoryLogger(save_dir=folder, delivery="offline")
    model = Model()
    first = trainer(logger, folder, val_check_interval=3)
    first.fit(model, loader(SAMPLES), loader(VAL_SAMPLES))
    first.validate(model, loader(VAL_SAMPLES), verbose=False)
    first.test(model, loader(VAL_SAMPLES), verbose=False)
    trainer(logger, folder).test(model, loader(VAL_SAMPLES), verbose=False)
    return logger


def test_phase_and_level_are_known_at_every_call(fitted: Any) -> None:
    """Records of steps, epochs and the run have their phase and level, and sanity checking is a phase of its own."""
    for key, phase, expected in (
        ("train/loss_step", "train", "batch"),
        ("train/loss_epoch", "train", "epoch"),
        ("val/loss_step", "validate", "batch"),
        ("val/loss_epoch", "validate", "epoch"),
        ("test/loss_step", "test", "batch"),
        ("test/loss_epoch", "test", "epoch"),
        ("own/start", "train", "fit"),
        ("own/epoch", "train", "epoch"),
    ):
        lines = lines_of(fitted, key)
        assert lines, key
        assert {(line["phase"], level(line)) for line in lines} == {(phase, expected)}, key
    own = lines_of(fitted, "own/val")
    assert [line["phase"] for line in own[:2]] == ["sanity_check", "sanity_check"]
    assert {line["phase"] for line in own[2:]} == {"validate"}


def test_the_epoch_of_a_record_is_lightnings(fitted: Any) -> None:
    """What Lightning logs as its metric ``epoch`` is the record's epoch, also at an epoch's end."""
    lines = lines_of(fitted, "epoch")
    assert len(lines) > 12
    assert [line["epoch"] for line in lines] == [int(line["data"]["epoch"]) for line in lines]


def test_the_step_axis_never_jumps_back(fitted: Any) -> None:
    """Each series goes forward only, over all validations and tests, and no validation or test begins at 0 again."""
    for key in ("train/loss_step", "val/loss_step", "val/loss_epoch", "test/loss_step", "test/loss_epoch"):
        steps = [line["step"] for line in lines_of(fitted, key)]
        assert steps == sorted(steps), key
        assert len(steps) == len(set(steps)) or key.endswith("epoch"), key
    assert [line["step"] for line in lines_of(fitted, "train/loss_step")] == list(range(12))
    assert [line["step"] for line in lines_of(fitted, "val/loss_step")][:6] == [2, 3, 4, 5, 6, 7]
    assert min(line["step"] for line in lines_of(fitted, "test/loss_step")) >= 11
    assert [line["step"] for line in lines_of(fitted, "test/loss_epoch")][1] >= 11  # the fresh Trainer's


def test_steps_that_the_user_chose_are_kept(fitted: Any) -> None:
    """What a hook logs with a step of its own has that step, in any phase."""
    assert [line["step"] for line in lines_of(fitted, "own/val")][:5] == [0, 1, 0, 1, 2]
    assert [line["step"] for line in lines_of(fitted, "own/epoch")] == [0, 1]


def test_samples_seen_are_counted(fitted: Any) -> None:
    """Records tell how many samples were trained on, with the last, smaller batch, and after the training, too."""
    samples = [line["meta"]["samples"] for line in lines_of(fitted, "train/loss_step")]
    assert samples == [4, 8, 12, 16, 20, 22, 26, 30, 34, 38, 42, 44]
    assert {line["meta"]["samples"] for line in lines_of(fitted, "test/loss_epoch")} == {44}


def test_log_freq_and_level_need_no_callback(tmp_path: Path) -> None:
    """``log_freq`` counts the batches of each epoch and validation; ``level="EPOCH"`` leaves the epochs' metrics."""
    every = InMemoryLogger(save_dir=tmp_path / "a", delivery="offline", policy=LogPolicy(log_freq=2))
    epochs = InMemoryLogger(save_dir=tmp_path / "b", delivery="offline", policy=LogPolicy(level="EPOCH"))
    trainer([every, epochs], tmp_path).fit(Model(), loader(SAMPLES), loader(VAL_SAMPLES))
    assert [line["step"] for line in lines_of(every, "train/loss_step")] == [0, 2, 4, 6, 8, 10]
    assert [line["step"] for line in lines_of(every, "val/loss_step")] == [5, 7, 11, 13]
    for logger in (every, epochs):
        assert len(lines_of(logger, "train/loss_epoch")) == 2
        assert len(lines_of(logger, "val/loss_epoch")) == 2
    assert not lines_of(epochs, "train/loss_step")
    assert not lines_of(epochs, "val/loss_step")


def test_lightnings_own_interval_and_log_freq_go_together(tmp_path: Path) -> None:
    """With ``Trainer(log_every_n_steps=2)``, which logs batches 1, 3, 5, a policy of every 2nd batch loses none."""
    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline", policy=LogPolicy(log_freq=2))
    trainer(logger, tmp_path, log_every_n_steps=2, max_epochs=1).fit(Model(), loader(SAMPLES))
    assert [line["step"] for line in lines_of(logger, "train/loss_step")] == [1, 3, 5]


def test_seconds_between_writes_are_per_phase(tmp_path: Path) -> None:
    """With an hour between batches that are written, each phase writes its first batch, and every epoch's metrics."""
    logger = InMemoryLogger(
        save_dir=tmp_path, delivery="offline", policy=LogPolicy(write_every_n_seconds=3600, write_val_every_n_seconds=0)
    )
    trainer(logger, tmp_path).fit(Model(), loader(SAMPLES), loader(VAL_SAMPLES))
    assert len(lines_of(logger, "train/loss_step")) == 1
    assert len(lines_of(logger, "val/loss_step")) == 6
    assert len(lines_of(logger, "train/loss_epoch")) == 2


def test_a_window_keeps_all_steps_and_ends_with_the_epoch(tmp_path: Path) -> None:
    """Six steps in windows of four are two points an epoch, whose means have every step; nothing is left over."""
    logger = InMemoryLogger(save_dir=tmp_path / "a", delivery="offline", policy=LogPolicy(window=4))
    every = InMemoryLogger(save_dir=tmp_path / "b", delivery="offline")
    trainer([logger, every], tmp_path).fit(Model(), loader(SAMPLES))
    values = [line["data"]["train/loss_step"] for line in lines_of(every, "train/loss_step")]
    means = [sum(part) / len(part) for part in (values[:4], values[4:6], values[6:10], values[10:])]
    lines = lines_of(logger, "train/loss_step")
    assert [line["data"]["train/loss_step"] for line in lines] == pytest.approx(means, rel=1e-12)
    assert [(line["step"], line["epoch"]) for line in lines] == [(3, 0), (5, 0), (9, 1), (11, 1)]


def test_nonfinite_raise_ends_a_fit(tmp_path: Path) -> None:
    """A NaN that is logged ends the fit with NonFiniteError, also through a collection, and is in the journal."""
    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline", policy=LogPolicy(nonfinite="raise"))
    with pytest.raises(NonFiniteError, match="train/loss_step"):
        trainer(LoggerCollection([logger]), tmp_path).fit(Model(poison_at=4), loader(SAMPLES))
    assert [line["step"] for line in lines_of(logger, "train/loss_step")] == [0, 1, 2, 3, 4]
    assert lines_of(logger, "train/loss_step")[-1]["nonfinite"] == {"train/loss_step": "nan"}


def test_axes_are_metrics_beside_all_others(tmp_path: Path) -> None:
    """``axes=["samples"]`` gives each record a metric that a tracker can draw over."""
    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline", policy=LogPolicy(axes=["samples", "epoch"]))
    trainer(logger, tmp_path, max_epochs=1).fit(Model(), loader(SAMPLES))
    assert [line["data"]["samples"] for line in lines_of(logger, "train/loss_step")] == [4, 8, 12, 16, 20, 22]


def test_a_csv_file_has_the_one_step_axis(tmp_path: Path) -> None:
    """The steps that a tracker shows are those of the journal."""
    logger = CSVLogger(tmp_path)
    trainer(logger, tmp_path, max_epochs=1).fit(Model(), loader(SAMPLES), loader(VAL_SAMPLES))
    logger.close()
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/loss_step"]]
    assert [int(row["step"]) for row in rows] == [5, 6, 7]


def test_the_trainer_is_not_kept_alive(tmp_path: Path) -> None:
    """A logger that served a Trainer lets go of it and of its module, and logs on without them."""
    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline")
    model, used = Model(), trainer(logger, tmp_path, max_epochs=1)
    used.fit(model, loader(SAMPLES))
    gone = weakref.ref(used), weakref.ref(model)
    del model, used
    gc.collect()
    assert [reference() for reference in gone] == [None, None]
    logger.log_metrics({"later": 1.0}, step=3)
    assert [line["step"] for line in lines_of(logger, "later")] == [3]


def test_a_copy_of_a_logger_in_use_logs_on_its_own(tmp_path: Path) -> None:
    """Deep-copying a logger that knows a Trainer copies neither the Trainer nor what it said."""
    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline")
    trainer(logger, tmp_path, max_epochs=1).fit(Model(), loader(SAMPLES))
    copied = copy.deepcopy(logger)
    copied.log_metrics({"later": 1.0}, step=3)
    assert [(line["step"], line.get("phase")) for line in lines_of(copied, "later")] == [(3, None)]


def test_data_without_a_length_counts_batches(tmp_path: Path) -> None:
    """An iterable data set has no length: full batches are counted."""

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter([(torch.ones(4),)] * SAMPLES)

    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline")
    trainer(logger, tmp_path, max_epochs=1).fit(Model(), DataLoader(Endless(), batch_size=BATCH_SIZE))
    assert [line["meta"]["samples"] for line in lines_of(logger, "train/loss_step")][:3] == [4, 8, 12]


def test_the_short_way_says_what_the_long_way_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of the training is located in one go: step, level, samples, epoch and phase are as when asked singly."""
    short, short_ways = TrainerContext.locate, 0

    def both(context: TrainerContext, step: Any) -> Any:
        nonlocal short_ways
        now, asked = context.now, []
        with monkeypatch.context() as patch:
            patch.setattr(context, "now", lambda: asked.append(1) or now())
            before = copy.deepcopy(vars(context._axis))
            found, after = short(context, step), copy.deepcopy(vars(context._axis))
            short_ways += not asked
        vars(context._axis).update(before)
        assert found == located(context, step, context.now())
        assert vars(context._axis) == after
        return found

    monkeypatch.setattr(TrainerContext, "locate", both)
    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline")
    with_validation = {"train_dataloaders": loader(SAMPLES), "val_dataloaders": loader(VAL_SAMPLES)}
    trainer(logger, tmp_path).fit(Model(), **with_validation)
    assert short_ways == 11  # 12 batches; the first is asked which stage is the training's
    assert logger.stats.dropped == 0


def test_another_lightning_costs_knowledge_and_nothing_else() -> None:
    """An object that has nothing of a Trainer's inside is asked in vain: unknown, and no exception."""

    class Strange:
        pass

    strange = Strange()
    context = TrainerContext(strange)
    assert context.now() == (None, None, None, None)
    assert context.samples() is None
    assert context.locate(5) == (5, (None, None, None))
    assert context.axis_step(5, context.now()) == 5
    assert context.axis_step(5, (3, "validate", 0, 2)) == 5


def test_a_step_axis_restarts_a_round_behind_the_last_one() -> None:
    """A second round of the same phase begins behind the first, or at the training's step if that is later."""
    axis = StepAxis()
    assert [axis.evaluated("validate", 2, batch) for batch in range(4)] == [2, 3, 4, 5]
    assert [axis.evaluated("validate", 3, batch) for batch in range(4)] == [6, 7, 8, 9]
    assert [axis.evaluated("validate", 100, batch) for batch in range(2)] == [100, 101]
    assert axis.evaluated("test", 0, 0) == 100
    axis.trained(150)
    assert axis.at_least(0) == 150
