"""Experiment loggers for PyTorch Lightning that never slow training, never stop training and never lose a point.

Importing this package imports neither torch, lightning nor any tracking SDK: names are loaded when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lightning_loggers.version import __version__

if TYPE_CHECKING:
    from lightning_loggers.aggregation import merge_dicts
    from lightning_loggers.base import (
        DummyExperiment,
        DummyLogger,
        LightningLoggerBase,
        LoggerCollection,
        rank_zero_experiment,
    )
    from lightning_loggers.config import LoggerConfig
    from lightning_loggers.loggers.comet import CometLogger
    from lightning_loggers.loggers.console import ConsoleLogger
    from lightning_loggers.loggers.csv import CSVLogger
    from lightning_loggers.loggers.memory import InMemoryLogger
    from lightning_loggers.loggers.mlflow import MLFlowLogger, get_mlflow_logger
    from lightning_loggers.loggers.neptune import NeptuneLogger
    from lightning_loggers.loggers.stats import Stats
    from lightning_loggers.loggers.tensorboard import TensorBoardLogger
    from lightning_loggers.loggers.wandb import WandbLogger
    from lightning_loggers.policies import LogLevel, LogPolicy
    from lightning_loggers.training.log import TrainingLog

__all__ = [
    "CSVLogger",
    "CometLogger",
    "ConsoleLogger",
    "DummyExperiment",
    "DummyLogger",
    "InMemoryLogger",
    "LightningLoggerBase",
    "LogLevel",
    "LogPolicy",
    "LoggerCollection",
    "LoggerConfig",
    "MLFlowLogger",
    "NeptuneLogger",
    "Stats",
    "TensorBoardLogger",
    "TrainingLog",
    "WandbLogger",
    "__version__",
    "get_mlflow_logger",
    "merge_dicts",
    "rank_zero_experiment",
]

_HOMES = {
    "CSVLogger": "loggers.csv",
    "CometLogger": "loggers.comet",
    "ConsoleLogger": "loggers.console",
    "DummyExperiment": "base",
    "DummyLogger": "base",
    "InMemoryLogger": "loggers.memory",
    "LightningLoggerBase": "base",
    "LogLevel": "policies",
    "LogPolicy": "policies",
    "LoggerCollection": "base",
    "LoggerConfig": "config",
    "MLFlowLogger": "loggers.mlflow",
    "NeptuneLogger": "loggers.neptune",
    "Stats": "loggers.stats",
    "TensorBoardLogger": "loggers.tensorboard",
    "TrainingLog": "training.log",
    "WandbLogger": "loggers.wandb",
    "get_mlflow_logger": "loggers.mlflow",
    "merge_dicts": "aggregation",
    "rank_zero_experiment": "base",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
