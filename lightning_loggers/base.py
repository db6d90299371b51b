"""The interface that Lightning sees: the names of PyTorch Lightning 1.5's ``loggers.base``, on today's ``Logger``."""

import contextlib
import functools
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from lightning.pytorch.loggers.logger import Logger
from typing_extensions import override

from lightning_loggers.aggregation import AggFunc, StepAggregator, merge_dicts
from lightning_loggers.notices import Notices
from lightning_loggers.ranks import current_rank

__all__ = [
    "DummyExperiment",
    "DummyLogger",
    "LightningLoggerBase",
    "LoggerCollection",
    "merge_dicts",
    "rank_zero_experiment",
]


class DummyExperiment:
    """Stands for a tracker's object where nothing is to be logged: whatever is done with it does nothing.

    >>> experiment = DummyExperiment()
    >>> experiment.log_metric("loss", 0.5) is None, experiment[0], list(experiment)
    (True, DummyExperiment(), [])
    """

    def __getattr__(self, name: str) -> "DummyCall":
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # copy, pickle and inspection look for what we do not define
        return DummyCall()

    def __getitem__(self, key: Any) -> "DummyExperiment":
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        return

    def __delitem__(self, key: Any) -> None:
        return

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True

    def __enter__(self) -> "DummyExperiment":
        return self

    def __exit__(self, *exc_info: object) -> None:
        return

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class DummyCall(DummyExperiment):
    """An attribute of a :class:`DummyExperiment`: calling it gives None, its own attributes are alike."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return


def rank_zero_experiment(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Give the real experiment on rank 0 and a :class:`DummyExperiment` on every other.

    The rank is asked at each call. An experiment of None becomes a dummy too; one that is merely falsy is kept.
    """

    @functools.wraps(fn)
    def experiment(self: Any) -> Any:
        if current_rank() > 0:
            return DummyExperiment()
        real = fn(self)
        return DummyExperiment() if real is None else real

    return experiment


class LightningLoggerBase(Logger):
    """Base class of experiment loggers.

    A subclass defines ``experiment``, ``name``, ``version``, ``log_metrics`` and ``log_hyperparams``; everything else
    has a default. It is a ``Logger`` for ``lightning.pytorch`` and, where that is loaded, for ``pytorch_lightning``.

    Args:
        agg_key_funcs: Function per metric, for :meth:`agg_and_log_metrics`.
        agg_default_func: Function for all other metrics.
    """

    _aggregator: StepAggregator | None = None

    def __init__(
        self, agg_key_funcs: Mapping[str, Any] | None = None, agg_default_func: AggFunc = np.mean
    ) -> None:
        super().__init__()
        _register_with_pytorch_lightning()
        if agg_key_funcs is not None or agg_default_func is not np.mean:
            self._aggregator = StepAggregator(agg_key_funcs, agg_default_func)

    @property
    @abstractmethod
    def experiment(self) -> Any:
        """The tracker's own object."""

    @property
    @override
    @abstractmethod
    def name(self) -> str | None:
        """The experiment's name."""

    @property
    @override
    @abstractmethod
    def version(self) -> int | str | None:
        """The run's version."""

    @abstractmethod
    @override
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record metrics at once; see :meth:`agg_and_log_metrics` for merging those of one step.

        Args:
            metrics: Key to number.
            step: Step.
        """

    @abstractmethod
    @override
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Record hyperparameters.

        Args:
            params: A mapping or ``Namespace``.
            args: For subclasses.
            kwargs: For subclasses.
        """

    def agg_and_log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Hold metrics until their step is over, then log them merged.

        Those of one step are merged with :func:`merge_dicts` and given to :meth:`log_metrics` when another step begins,
        or at :meth:`save`, :meth:`finalize` or :meth:`close`.

        Args:
            metrics: Key to number; nested mappings are merged as such.
            step: Step; ``None`` is a step of its own.
        """
        if self._aggregator is None:
            self._aggregator = StepAggregator(None, np.mean)
        finished = self._aggregator.add(metrics, step)
        if finished is not None:
            self.log_metrics(finished[1], finished[0])

    def update_agg_funcs(
        self, agg_key_funcs: Mapping[str, Any] | None = None, agg_default_func: AggFunc = np.mean
    ) -> None:
        """Replace the functions that merge the metrics of a step; what is held is logged first.

        Args:
            agg_key_funcs: Function per metric; ``None`` for none.
            agg_default_func: Function for all other metrics.
        """
        self._log_held()
        self._aggregator = StepAggregator(agg_key_funcs, agg_default_func)

    def _log_held(self) -> None:
        if self._aggregator is not None:
            held = self._aggregator.flush()
            if held is not None:
                self.log_metrics(held[1], held[0])

    @override
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Record the model's graph; nothing by default.

        Args:
            model: The module.
            input_array: Input for its ``forward``.
        """

    @override
    def save(self) -> None:
        """Log what is held. The Trainer calls this after every ``log_metrics``."""
        if self._aggregator is not None:
            self._log_held()

    @override
    def finalize(self, status: str) -> None:
        """Log what is held.

        Args:
            status: How the run ended: ``"success"``, ``"failed"``, ``"finished"``.
        """
        self.save()

    def close(self) -> None:
        """Log what is held and let go of resources."""
        self.save()

    @override
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Called when a checkpoint was written; nothing by default.

        Args:
            checkpoint_callback: The callback, or a weak proxy of it.
        """


class DummyLogger(LightningLoggerBase):
    """A logger that logs nothing and takes every call: for switching logging off without changing code.

    >>> logger = DummyLogger()
    >>> logger.log_metrics({"loss": 0.5}, step=0)
    >>> logger.log_image("anything", "at all"), list(logger)
    (None, [])
    """

    @property
    @override
    def experiment(self) -> DummyExperiment:
        """An object that takes every call."""
        return DummyExperiment()

    @property
    @override
    def name(self) -> str:
        """Empty."""
        return ""

    @property
    @override
    def version(self) -> str:
        """Empty."""
        return ""

    @override
    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def __getitem__(self, index: int) -> "DummyLogger":
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getattr__(self, name: str) -> DummyCall:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return DummyCall()


class LoggerCollection(LightningLoggerBase):
    """Several loggers that look like one.

    Every call goes to all members in order, also calls that only some of them know. A member that fails reaches neither
    training nor the other members: it is told once per cause and counted in :attr:`failures`.

    Args:
        logger_iterable: The members.
    """

    def __init__(self, logger_iterable: Iterable[Any]) -> None:
        super().__init__()
        self._loggers = list(logger_iterable)
        self._notices = Notices()
        self.failures: dict[str, int] = {}

    # No __iter__, __len__ or __bool__: the Trainer takes apart what is iterable and drops what is falsy, and with it
    # the isolation of the members.

    def __getitem__(self, index: int) -> Any:
        return self._loggers[index]

    def _each(self, method: str, *args: Any, **kwargs: Any) -> None:
        for index, member in enumerate(self._loggers):
            try:
                getattr(member, method)(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - seam: one member must not end training or the others
                self._failed(index, method, error)

    def _read(self, attribute: str, default: Any) -> list[Any]:
        values = []
        for index, member in enumerate(self._loggers):
            try:
                values.append(getattr(member, attribute))
            except Exception as error:  # noqa: BLE001 - seam, as above
                self._failed(index, attribute, error)
                values.append(default)
        return values

    def _failed(self, index: int, method: str, error: Exception) -> None:
        member = f"{type(self._loggers[index]).__name__}[{index}].{method}"
        self.failures[member] = self.failures.get(member, 0) + 1
        self._notices.tell_once(
            (index, method, type(error)),
            f"{member} failed: {error!r}. Training and the other loggers go on; further failures of this kind are "
            "counted in LoggerCollection.failures.",
        )

    @property
    @override
    def experiment(self) -> list[Any]:
        """The members' experiments, in order."""
        return self._read("experiment", DummyExperiment())

    @property
    @override
    def name(self) -> str:
        """The members' names, joined by ``_``."""
        return "_".join(str(name) for name in self._read("name", ""))

    @property
    @override
    def version(self) -> str:
        """The members' versions, joined by ``_``."""
        return "_".join(str(version) for version in self._read("version", ""))

    @property
    @override
    def save_dir(self) -> str | None:
        """None: with several loggers, checkpoints go to the Trainer's own folder."""
        return None

    @override
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Record metrics in every member."""
        self._each("log_metrics", metrics, step)

    @override
    def agg_and_log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Hold and merge metrics in every member."""
        self._each("agg_and_log_metrics", metrics, step)

    @override
    def update_agg_funcs(
        self, agg_key_funcs: Mapping[str, Any] | None = None, agg_default_func: AggFunc = np.mean
    ) -> None:
        """Replace the merging functions of every member."""
        self._each("update_agg_funcs", agg_key_funcs, agg_default_func)

    @override
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Record hyperparameters in every member."""
        self._each("log_hyperparams", params, *args, **kwargs)

    @override
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Record the graph in every member."""
        self._each("log_graph", model, input_array)

    @override
    def save(self) -> None:
        """Save every member."""
        self._each("save")

    @override
    def finalize(self, status: str) -> None:
        """Finalize every member."""
        self._each("finalize", status)

    @override
    def close(self) -> None:
        """Close every member that can be."""
        self._each("close")

    @override
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Tell every member about a checkpoint."""
        self._each("after_save_checkpoint", checkpoint_callback)

    def __getattr__(self, name: str) -> Callable[..., None]:
        members = self.__dict__.get("_loggers", ())
        if name.startswith("_") or not any(callable(getattr(type(member), name, None)) for member in members):
            raise AttributeError(f"neither LoggerCollection nor any of its loggers has {name!r}")

        def call(*args: Any, **kwargs: Any) -> None:
            for index, member in enumerate(members):
                if callable(getattr(type(member), name, None)):
                    try:
                        getattr(member, name)(*args, **kwargs)
                    except Exception as error:  # noqa: BLE001 - seam, as above
                        self._failed(index, name, error)

        return call


def _register_with_pytorch_lightning() -> None:
    """Be a ``Logger`` for the other distribution of Lightning too, if the program uses it."""
    module = sys.modules.get("pytorch_lightning.loggers.logger")
    theirs = getattr(module, "Logger", None)
    if theirs is not None and not issubclass(LightningLoggerBase, theirs):
        with contextlib.suppress(Exception):
            theirs.register(LightningLoggerBase)


_register_with_pytorch_lightning()
