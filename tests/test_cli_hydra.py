"""Loggers by configuration of others: Lightning's command line, and Hydra."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_loggers import CSVLogger, MLFlowLogger
from lightning_loggers.policies import LogLevel, LogPolicy

pytest.importorskip("jsonargparse", reason="LightningCLI needs it")

PROGRAM = """
from lightning.pytorch.cli import LightningCLI
from lightning_loggers.demo.digits import DigitsData, DigitsNet

if __name__ == "__main__":
    LightningCLI(DigitsNet, DigitsData)
"""
TRAINER = [
    "--trainer.max_epochs=1", "--trainer.limit_train_batches=6", "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false",
    "--trainer.enable_checkpointing=false", "--trainer.enable_model_summary=false",
]  # fmt: skip


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does."""
    (folder / "program.py").write_text(PROGRAM)
    return subprocess.run(
        [sys.executable, "program.py", *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def steps_of(folder: Path, key: str) -> list[int]:
    """The steps of a metric in the one journal below a folder."""
    [file] = folder.glob("**/journal/rank0*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [line["step"] for line in lines if key in (line.get("data") or {})]


def test_lightnings_command_line_builds_a_logger_and_its_policy(tmp_path: Path) -> None:
    """``--trainer.logger=lightning_loggers.MLFlowLogger`` with options, one of them a policy, trains and records."""
    done = run(
        tmp_path, "fit", *TRAINER,
        "--trainer.logger=lightning_loggers.MLFlowLogger", "--trainer.logger.experiment_name=cli",
        f"--trainer.logger.save_dir={tmp_path / 'runs'}", "--trainer.logger.delivery=offline",
        "--trainer.logger.policy.log_freq=3", "--trainer.logger.policy.level=BATCH",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "runs" / "cli").is_dir()
    assert steps_of(tmp_path / "runs", "train/loss") == [0, 3]
    assert steps_of(tmp_path / "runs", "val/loss") == [5]


def test_lightnings_configuration_file_is_written_and_read(tmp_path: Path) -> None:
    """A YAML file with a list of our loggers trains; ``--print_config`` says what was understood."""
    config = {
        "trainer": {
            "logger": [
                {
                    "class_path": "lightning_loggers.CSVLogger",
                    "init_args": {"save_dir": str(tmp_path / "runs"), "policy": {"keys": ["val/*"], "window": 4}},
                }
            ]
        }
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    shown = run(tmp_path, "fit", "--config=config.yaml", "--print_config")
    assert shown.returncode == 0, shown.stderr[-2000:]
    [logger] = yaml.safe_load(shown.stdout)["trainer"]["logger"]
    assert logger["init_args"]["policy"]["keys"] == ["val/*"]
    done = run(tmp_path, "fit", "--config=config.yaml", *TRAINER)
    assert done.returncode == 0, done.stderr[-2000:]
    assert steps_of(tmp_path / "runs", "train/loss") == []
    assert steps_of(tmp_path / "runs", "val/loss") == [5]


def test_hydra_instantiates_loggers_policies_and_configurations(tmp_path: Path) -> None:
    """``_target_`` with the public names builds them, nested, from a composed configuration."""
    pytest.importorskip("hydra")
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(
            {
                "folder": str(tmp_path / "runs"),
                "loggers": [
                    {
                        "_target_": "lightning_loggers.MLFlowLogger",
                        "experiment_name": "hydra",
                        "save_dir": "${folder}",
                        "delivery": "offline",
                        "tags": {"team": "vision"},
                        "policy": {
                            "_target_": "lightning_loggers.LogPolicy",
                            "level": "EPOCH",
                            "window": {"_target_": "lightning_loggers.policies.Window", "steps": 5},
                        },
                    },
                    {"_target_": "lightning_loggers.CSVLogger", "save_dir": "${folder}"},
                ],
                "config": {
                    "_target_": "lightning_loggers.config.LoggerConfig",
                    "log_path": "${folder}",
                    "loggers": [{"_target_": "lightning_loggers.config.CSVLoggerConfig", "name": "made"}],
                },
            }
        )
    )
    with initialize_config_dir(config_dir=str(tmp_path), version_base=None):
        composed: Any = compose("config", overrides=["loggers.0.experiment_name=blue", "loggers.0.policy.level=BATCH"])
    mlflow, files = instantiate(composed.loggers)
    assert isinstance(mlflow, MLFlowLogger)
    assert isinstance(files, CSVLogger)
    assert mlflow.name == "blue"
    assert isinstance(mlflow._policy, LogPolicy)
    assert mlflow._policy.level is LogLevel.BATCH
    for step in range(7):
        mlflow.log_metrics({"loss": float(step)}, step)
    mlflow.close()
    assert steps_of(tmp_path / "runs" / "blue", "loss") == [4, 6]
    [made] = instantiate(composed.config, _convert_="object").create()
    assert (type(made), made.name, made.save_dir) == (CSVLogger, "made", str(tmp_path / "runs"))
