"""Logging from loops that are no ``Trainer``: Lightning Fabric, plain PyTorch, JAX, or anything else in Python."""

from lightning_loggers.config import LoggerConfig
from lightning_loggers.formatting import format_log_data_value, format_name
from lightning_loggers.policies import LogLevel
from lightning_loggers.training.command_line import LOGGER
from lightning_loggers.training.log import TrainingLog
from lightning_loggers.training.namespaces import Namespace

__all__ = ["LOGGER", "LogLevel", "LoggerConfig", "Namespace", "TrainingLog", "format_log_data_value", "format_name"]
