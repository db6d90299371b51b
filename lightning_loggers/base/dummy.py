"""A logger that does nothing."""

from collections.abc import Callable, Iterator
from typing import Any, Self

from typing_extensions import override

from lightning_loggers.base.experiment import DummyExperiment
from lightning_loggers.base.logger import LightningLoggerBase


def _nothing(*args: object, **kwargs: object) -> None:
    """Every public method that a DummyLogger does not have."""


class DummyLogger(LightningLoggerBase):
    """A logger that logs nothing, for code that needs one.

    Any public method can be called on it. It iterates as empty, so ``Trainer(logger=DummyLogger())`` has no logger.

    Examples:
        >>> logger = DummyLogger()
        >>> logger.log_metrics({"loss": 1.0}, step=0)
        >>> logger.log_image("sample", [])
        >>> logger[0].experiment.add_image("sample", None)
        >>> list(logger)
        []
    """

    @property
    @override
    def experiment(self) -> DummyExperiment:
        """An experiment that does nothing."""
        return DummyExperiment()

    @property
    @override
    def name(self) -> str:
        """The empty string."""
        return ""

    @property
    @override
    def version(self) -> str:
        """The empty string."""
        return ""

    @override
    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""

    @override
    def agg_and_log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing."""

    def __getitem__(self, index: object) -> Self:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return _nothing
