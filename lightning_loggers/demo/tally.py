"""A second logger beside the real one, to compare what was logged with what the tracker gives back."""

from collections import defaultdict
from typing import Any

from typing_extensions import override

from lightning_loggers.base import DummyExperiment, LightningLoggerBase

Point = tuple[int, float]


class Tally(LightningLoggerBase):
    """Keeps every metric in memory.

    Attributes:
        points: Metric to its points, step and value, in the order logged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.points: dict[str, list[Point]] = defaultdict(list)

    @override
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep them."""
        for key, value in metrics.items():
            self.points[key].append((step or 0, float(value)))

    @override
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Keep none."""

    @property
    @override
    def experiment(self) -> DummyExperiment:
        """A dummy."""
        return DummyExperiment()

    @property
    @override
    def name(self) -> str:
        """Its name."""
        return "tally"

    @property
    @override
    def version(self) -> str:
        """None to speak of."""
        return ""
