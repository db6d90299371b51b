"""What every logger is: the base class, a collection of loggers, and stand-ins that do nothing.

The names are those of ``pytorch_lightning.loggers.base`` of Lightning 1.5, on top of the logger class of Lightning 2.
"""

from lightning_loggers.aggregation import merge_dicts
from lightning_loggers.base.collection import LoggerCollection, MemberFailure
from lightning_loggers.base.dummy import DummyLogger
from lightning_loggers.base.experiment import DummyExperiment, rank_zero_experiment
from lightning_loggers.base.logger import LightningLoggerBase

__all__ = [
    "DummyExperiment",
    "DummyLogger",
    "LightningLoggerBase",
    "LoggerCollection",
    "MemberFailure",
    "merge_dicts",
    "rank_zero_experiment",
]
