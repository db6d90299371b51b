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
    from lightning_loggers.loggers.mlflow import MLFlowLogger
    from lightning_loggers.loggers.stats import Stats

__all__ = [
    "DummyExperiment",
    "DummyLogger",
    "LightningLoggerBase",
    "LoggerCollection",
    "MLFlowLogger",
    "Stats",
    "__version__",
    "merge_dicts",
    "rank_zero_experiment",
]

_HOMES = {
    "DummyExperiment": "base",
    "DummyLogger": "base",
    "LightningLoggerBase": "base",
    "LoggerCollection": "base",
    "MLFlowLogger": "loggers.mlflow",
    "Stats": "loggers.stats",
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
