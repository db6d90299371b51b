"""The base class of loggers."""

import sys
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from lightning_loggers.aggregation import AggFunc, StepAggregator
from lightning_loggers.notices import Notices

# One for all loggers: a lock in each of them would forbid pickling loggers that launchers send to other processes.
_notices = Notices()


def _adopt_by_pytorch_lightning() -> None:
    """Make our loggers instances of pytorch_lightning's own Logger class, where the program uses that package."""
    module = sys.modules.get("pytorch_lightning.loggers.logger")
    foreign = getattr(module, "Logger", None)  # missing while that module is being imported
    if foreign is not None and not issubclass(LightningLoggerBase, foreign):
        foreign.register(LightningLoggerBase)


class LightningLoggerBase(Logger):
    """Base class of experiment loggers, for ``Trainer(logger=...)`` of Lightning and of ``pytorch_lightning``.

    A subclass defines ``experiment``, ``name``, ``version``, :meth:`log_metrics` and :meth:`log_hyperparams`; all else
    has a default. It need not call ``super().__init__()``.

    Args:
        agg_key_funcs: How :meth:`agg_and_log_metrics` joins the values of a step, per key: see
            :func:`~lightning_loggers.aggregation.merge_dicts`.
        agg_default_func: The same for all other keys.

    Examples:
        >>> class PrintLogger(LightningLoggerBase):
        ...     experiment, name, version = None, "demo", 0
        ...
        ...     def log_metrics(self, metrics, step=None):
        ...         print(step, metrics)
        ...
        ...     def log_hyperparams(self, params, *args, **kwargs):
        ...         print(params)
        >>> logger = PrintLogger(agg_key_funcs={"peak": max})
        >>> logger.agg_and_log_metrics({"loss": 1.0, "peak": 3}, step=0)
        >>> logger.agg_and_log_metrics({"loss": 2.0, "peak": 5}, step=0)
        >>> logger.agg_and_log_metrics({"loss": 4.0}, step=1)
        0 {'loss': 1.5, 'peak': 5}
        >>> logger.save()
        1 {'loss': 4.0}
    """

    # On the class: a subclass may forget super().__init__().
    _aggregator: StepAggregator | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:  # noqa: D102 - nothing a caller sees
        _adopt_by_pytorch_lightning()
        return super().__new__(cls)

    def __init__(self, agg_key_funcs: Mapping[str, Any] | None = None, agg_default_func: AggFunc = np.mean) -> None:
        super().__init__()
        self._aggregator = StepAggregator(agg_key_funcs, agg_default_func)

    @property
    @abstractmethod
    def experiment(self) -> Any:
        """The tracker's own object, for all that goes beyond this interface."""

    @property
    @abstractmethod
    @override
    def name(self) -> str | None:
        """Name of the experiment."""

    @property
    @abstractmethod
    @override
    def version(self) -> int | str | None:
        """Version of the experiment: what tells this run from the others of the same name."""

    @property
    @override
    def save_dir(self) -> str | None:
        """Folder that holds the logs of all experiments; None for a logger that keeps nothing on disk."""
        return None

    @property
    @override
    def root_dir(self) -> str | None:
        """Folder that holds all versions of this experiment; None for a logger that keeps nothing on disk."""
        return None

    @property
    @override
    def log_dir(self) -> str | None:
        """Folder of this version of the experiment; None for a logger that keeps nothing on disk."""
        return None

    @property
    @override
    def group_separator(self) -> str:
        """What Lightning puts between the parts of a metric's key to group it."""
        return "/"

    @abstractmethod
    @override
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log metrics as they are, at once.

        Args:
            metrics: Values by key.
            step: The step that they belong to.
        """

    @abstractmethod
    @override
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log hyperparameters.

        Args:
            params: Values by name.
            *args: Whatever else a logger takes.
            **kwargs: Whatever else a logger takes.
        """

    def agg_and_log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics that come in several portions per step, joined to one value per key.

        They are held until metrics of another step come or :meth:`save`, :meth:`finalize` or :meth:`close` is called.
        ``Trainer`` calls ``save`` after each of its own logging, so a step is complete by then at the latest.

        Guarantees:
            - Functions that fail on the values do not raise into training: the portions are then logged one by one.

        Args:
            metrics: Values by key, copied now. Dictionaries within are joined as such.
            step: The step that they belong to; None is a step of its own.
        """
        finished = self._step_aggregator().hold(metrics, step)
        if finished is not None:
            self._log_held(*finished)

    def update_agg_funcs(
        self, agg_key_funcs: Mapping[str, Any] | None = None, agg_default_func: AggFunc = np.mean
    ) -> None:
        """Change how :meth:`agg_and_log_metrics` joins values.

        Args:
            agg_key_funcs: Functions per key, added to or replacing the present ones.
            agg_default_func: The function for all other keys. It is set by every call, to the mean unless given.
        """
        self._step_aggregator().update(agg_key_funcs, agg_default_func)

    @override
    def log_graph(self, model: Module, input_array: Tensor | None = None) -> None:
        """Log the graph of a model; nothing unless a subclass does something.

        Args:
            model: The model.
            input_array: What to call its ``forward`` with.
        """

    @override
    def save(self) -> None:
        """Log what :meth:`agg_and_log_metrics` holds. ``Trainer`` calls this after all it logs: keep it cheap."""
        aggregator = self._aggregator
        if aggregator is not None and aggregator.held:
            self._log_all_held()

    @override
    def finalize(self, status: str) -> None:
        """End of a fit, validate or test; more may be logged afterwards.

        Args:
            status: How it ended: "success", "failed" or "finished" (the job is about to be requeued).
        """
        # Not left to save(): a subclass may have its own, without super().save().
        self._log_all_held()
        self.save()

    def close(self) -> None:
        """Release what the logger holds open, after logging the last metrics."""
        self._log_all_held()
        self.save()

    @override
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """A checkpoint was written; nothing unless a subclass does something.

        Args:
            checkpoint_callback: The callback that wrote it (a weak proxy: take what is needed before returning).
        """

    def _step_aggregator(self) -> StepAggregator:
        if self._aggregator is None:
            self._aggregator = StepAggregator()
        return self._aggregator

    def _log_all_held(self) -> None:
        held = None if self._aggregator is None else self._aggregator.take()
        if held is not None:
            self._log_held(*held)

    def _log_held(self, step: int | None, held: Sequence[dict[str, Any]]) -> None:
        try:
            portions: Sequence[dict[str, Any]] = [self._step_aggregator().merge(held)]
        except Exception as error:  # noqa: BLE001 - a user's function on unexpected values must not stop training
            _notices.tell_once(
                ("merge", type(self), type(error)),
                f"{type(self).__name__} could not merge {len(held)} portions of metrics of step {step} "
                f"({described(error)}). They are logged one by one. Check agg_key_funcs and agg_default_func.",
            )
            portions = held
        for metrics in portions:
            if metrics:
                self._log_aggregated(metrics, step)

    def _log_aggregated(self, metrics: dict[str, Any], step: int | None) -> None:
        self.log_metrics(metrics, step)


def described(error: Exception) -> str:
    """An exception's class and text, in words for a person."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception that cannot be printed is still only an exception
        text = "(it cannot be printed)"
    return f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__
