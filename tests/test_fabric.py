"""Loops without a Trainer, as users write them: Fabric, and the two examples."""

import csv
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric import Fabric

from lightning_loggers import CSVLogger, InMemoryLogger
from lightning_loggers.policies import LogPolicy

EXAMPLES = Path(__file__).parent.parent / "examples"


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def example(name: str) -> Any:
    """An example's module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fabric_logs_to_all_its_loggers(tmp_path: Path) -> None:
    """``Fabric(loggers=[...])`` takes ours; ``log`` and ``log_dict`` reach each, and a policy counts their steps."""
    memory = InMemoryLogger(save_dir=tmp_path / "memory", policy=LogPolicy(log_freq=2))
    files = CSVLogger(tmp_path / "csv")
    fabric = Fabric(accelerator="cpu", devices=1, loggers=[memory, files])
    assert fabric.logger is memory
    for step in range(4):
        fabric.log_dict({"loss": 1 / (step + 1), "step_squared": step**2}, step)
    fabric.log("last", 7.0, 4)
    for logger in fabric.loggers:
        logger.finalize("success")
    assert list(memory.timeseries("loss")["step"]) == [0, 2]
    assert memory.most_recent("last") == 7.0
    files.close()
    squares = [float(row["step_squared"]) for row in rows_of(Path(files.log_dir)) if row["step_squared"]]
    assert squares == [0, 1, 4, 9]


@pytest.mark.parametrize("name", ["plain", "fabric"])
def test_the_examples_learn_and_log(name: str, tmp_path: Path) -> None:
    """Each example recognises most digits after two epochs, and its files have every fourth step and each epoch."""
    accuracy = example(f"{name}_loop").main(str(tmp_path), epochs=2)
    assert accuracy > 0.5
    rows = rows_of(tmp_path / "digits" / name)
    steps = [int(row["step"]) for row in rows if row["train/loss"]]
    assert steps == [4, 8, 12, 16, 20, 23, 27, 31, 35, 39, 43, 46]
    assert float([row["val/accuracy"] for row in rows if row["val/accuracy"]][-1]) == accuracy
    if name == "plain":
        assert {key for row in rows for key, value in row.items() if value} >= {"layers/layers.0.weight"}
        assert " rank 0 INFO " in (tmp_path / "plain.log").read_text()
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(tmp_path / "digits-tb" / "plain"))
        events.Reload()
        # Six logged steps an epoch are one window, which ends with the epoch.
        assert [event.step for event in events.Scalars("train/loss")] == [23, 46]
    else:
        assert [int(row["step"]) for row in rows if row["learning_rate"]] == [23, 46]
