"""The trackers that the demo can log to, one a module: how its logger is made, and how a run is read back from it."""

import enum
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_loggers.demo.readback import DemoTracker


class Tracker(enum.StrEnum):
    """What ``--logger`` takes."""

    MLFLOW = "mlflow"
    COMET = "comet"
    NEPTUNE = "neptune"
    WANDB = "wandb"
    TENSORBOARD = "tensorboard"
    CSV = "csv"


def demo_tracker(name: Tracker) -> "DemoTracker":
    """The tracker of that name; its SDK is not imported."""
    module = importlib.import_module(f"lightning_loggers.demo.trackers.{name}")
    found: DemoTracker = module.TRACKER
    return found
