"""What every logger is: the base class, a collection of loggers, and stand-ins that do nothing.

The names are those of ``pytorch_lightning.loggers.base`` of Lightning 1.5, on top of the logger class of Lightning 2.
"""

import functools
import sys
from abc import abstractmethod
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Self, overload

import numpy as np
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from lightning_loggers.aggregation import AggFunc, StepAggregator, merge_dicts
from lightning_loggers.errors import ConfigurationError, NonFiniteError, UnsuitableValueError
from lightning_loggers.notices import Notices
from lightning_loggers.ranks import current_rank
from lightning_loggers.values.lazy import shared, shared_metrics

__all__ = [
    "DummyExperiment",
    "DummyLogger",
    "LightningLoggerBase",
    "LoggerCollection",
    "MemberFailure",
    "merge_dicts",
    "rank_zero_experiment",
]

# One for all loggers: a lock in each of them would forbid pickling loggers that launchers send to other processes.
_notices = Notices()


class DummyExperiment:
    """An experiment that takes everything and does nothing.

    Every attribute, item and chain of them can be used: called it returns None, iterated it is empty, entered with
    ``with`` it does nothing. Assignments are forgotten. It is true, and its copies and pickles are dummies again.

    Examples:
        >>> experiment = DummyExperiment()
        >>> experiment.add_image("sample", None)
        >>> experiment["train/loss"].append(0.5)
        >>> experiment.config.lr = 0.1
        >>> with experiment.train:
        ...     list(experiment)
        []
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Self:
        if name.startswith("__"):
            # Protocols that are probed by attribute (copying, pickling, numpy) must not find that we speak them.
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self

    def __setattr__(self, name: str, value: object) -> None:
        pass

    def __delattr__(self, name: str) -> None:
        pass

    def __getitem__(self, key: object) -> Self:
        return self

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __delitem__(self, key: object) -> None:
        pass

    def __call__(self, *args: object, **kwargs: object) -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def rank_zero_experiment(fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make an ``experiment`` getter answer with a dummy wherever nothing may be logged.

    The rank is asked at every call, so loggers that were made before the processes were launched do the right thing.

    Args:
        fn: The getter; it runs on rank 0 only.

    Returns:
        The getter to put under ``@property``. It gives what ``fn`` returns on rank 0, even if that is falsy, and a
        :class:`DummyExperiment` on other ranks or where ``fn`` returns None.

    Examples:
        >>> class Recorder:
        ...     @property
        ...     @rank_zero_experiment
        ...     def experiment(self):
        ...         return ["the real one"]
        >>> Recorder().experiment
        ['the real one']
    """

    @functools.wraps(fn)
    def experiment(self: Any) -> Any:
        if current_rank() > 0:
            return DummyExperiment()
        real = fn(self)
        return DummyExperiment() if real is None else real

    return experiment


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
                f"({_describe(error)}). They are logged one by one. Check agg_key_funcs and agg_default_func.",
            )
            portions = held
        for metrics in portions:
            if metrics:
                self._log_aggregated(metrics, step)

    def _log_aggregated(self, metrics: dict[str, Any], step: int | None) -> None:
        self.log_metrics(metrics, step)


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


class MemberFailure(NamedTuple):
    """What failed in a collection: the key of :attr:`LoggerCollection.failures`."""

    member: int
    """Index of the logger."""
    method: str
    """The method that was called or the property that was read."""
    error: str
    """Name of the exception's class."""


class LoggerCollection(LightningLoggerBase):
    """Several loggers that act as one: every call goes to each of them, in their order.

    Methods that only some of the loggers have, such as ``log_image``, can be called on the collection too; they go to
    those that have them and return the list of what these returned.

    Guarantees:
        - An exception in one logger reaches neither the training nor the other loggers. It is counted in
          :attr:`failures` and told once per logger, method and class of exception. KeyboardInterrupt and SystemExit
          are not held back, nor is what the user asked for (:class:`~lightning_loggers.errors.NonFiniteError`,
          ``strict=True``) or an unknown kind: it is raised once all loggers had the call.
        - A function in place of a value is called once at most, however many loggers record it.
        - A logger that changes the dictionary of metrics that it is given does not change it for the others.
        - ``Trainer`` keeps the collection in one piece: it is not iterable for it, and is true even when empty.

    Args:
        logger_iterable: The loggers. Also any other object with a ``log_metrics``.

    Raises:
        ConfigurationError: ``logger_iterable`` is a single logger, or something in it is no logger.

    Examples:
        >>> collection = LoggerCollection([DummyLogger(), DummyLogger()])
        >>> collection.log_metrics({"loss": 1.0}, step=0)
        >>> collection[1].name
        ''
        >>> collection.experiment
        [DummyExperiment(), DummyExperiment()]
        >>> dict(collection.failures)
        {}
    """

    def __init__(self, logger_iterable: Iterable[Any]) -> None:
        super().__init__()
        if isinstance(logger_iterable, Logger) or not isinstance(logger_iterable, Iterable):
            raise ConfigurationError(
                f"LoggerCollection needs an iterable of loggers, got {logger_iterable!r}. Put a single logger into a "
                f"list: LoggerCollection([logger])"
            )
        self._loggers: list[Any] = list(logger_iterable)
        for index, member in enumerate(self._loggers):
            if isinstance(member, type) or not callable(getattr(member, "log_metrics", None)):
                raise ConfigurationError(
                    f"LoggerCollection needs loggers, but item {index} is {member!r}, which has no log_metrics to "
                    f"call. Pass instances, e.g. LoggerCollection([CSVLogger('logs')])"
                )
        self._failures: dict[MemberFailure, int] = {}
        self._notices = Notices()

    @property
    def failures(self) -> Mapping[MemberFailure, int]:
        """How often each logger failed, by logger, method and class of exception: a live view, empty if all is well."""
        return MappingProxyType(self._failures)

    @property
    @override
    def experiment(self) -> list[Any]:
        """The experiment of each logger, a dummy for one that failed to give it."""
        return self._read("experiment", DummyExperiment())

    @property
    @override
    def name(self) -> str:
        """The names of the loggers joined by underscores, without those of loggers that failed to give it."""
        return "_".join(str(name) for name in self._read("name", _MISSING) if name is not _MISSING)

    @property
    @override
    def version(self) -> str:
        """The versions of the loggers joined by underscores, without those of loggers that failed to give it."""
        return "_".join(str(version) for version in self._read("version", _MISSING) if version is not _MISSING)

    @property
    @override
    def save_dir(self) -> None:
        """None: with several loggers, checkpoints go to the Trainer's default place."""
        return

    @override
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log metrics to each logger.

        Args:
            metrics: Values by key.
            step: The step that they belong to.
        """
        metrics = shared_metrics(metrics)
        self._each(lambda index: self._call(index, "log_metrics", _own_copy(metrics), step))

    @override
    def agg_and_log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics that come in portions to each logger; joined here for those that cannot do it themselves.

        Args:
            metrics: Values by key.
            step: The step that they belong to.
        """
        self._each(
            lambda index: (
                self._call(index, "agg_and_log_metrics", _own_copy(metrics), step) if self._aggregates(index) else None
            )
        )
        if not all(map(self._aggregates, range(len(self._loggers)))):
            super().agg_and_log_metrics(metrics, step)

    @override
    def update_agg_funcs(
        self, agg_key_funcs: Mapping[str, Any] | None = None, agg_default_func: AggFunc = np.mean
    ) -> None:
        """Change how each logger joins the values of a step.

        Args:
            agg_key_funcs: Functions per key, added to or replacing the present ones.
            agg_default_func: The function for all other keys.
        """
        super().update_agg_funcs(agg_key_funcs, agg_default_func)
        self._fan_out("update_agg_funcs", agg_key_funcs, agg_default_func)

    @override
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log hyperparameters to each logger.

        Args:
            params: Values by name.
            *args: Handed on.
            **kwargs: Handed on.
        """
        self._fan_out("log_hyperparams", params, *args, **kwargs)

    @override
    def log_graph(self, model: Module, input_array: Tensor | None = None) -> None:
        """Log the graph of a model to each logger.

        Args:
            model: The model.
            input_array: What to call its ``forward`` with.
        """
        self._fan_out("log_graph", model, input_array)

    @override
    def save(self) -> None:
        """Save each logger."""
        super().save()
        self._fan_out("save")

    @override
    def finalize(self, status: str) -> None:
        """Finalize each logger.

        Args:
            status: How the run ended.
        """
        self._log_all_held()
        self._fan_out("finalize", status)

    @override
    def close(self) -> None:
        """Close each logger that can be closed."""
        self._log_all_held()
        self._fan_out("close")

    @override
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Tell each logger that a checkpoint was written.

        Args:
            checkpoint_callback: The callback that wrote it.
        """
        self._fan_out("after_save_checkpoint", checkpoint_callback)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._loggers[index]

    def __getattr__(self, name: str) -> Callable[..., list[Any]]:
        # Private names are never the members' business; this also ends the search for "_loggers" itself, which copy
        # and pickle cause on an object whose __init__ did not run.
        if not name.startswith("_"):
            having = [index for index in range(len(self._loggers)) if self._has_method(index, name)]
            if having:
                return functools.partial(self._to_those_that_have_it, name, having)
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute {name!r}, and none of its loggers has such a method"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}([{', '.join(type(member).__name__ for member in self._loggers)}])"

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_notices"}  # it holds a lock

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._notices = Notices()

    @override
    def _log_aggregated(self, metrics: dict[str, Any], step: int | None) -> None:
        for index in range(len(self._loggers)):
            if not self._aggregates(index):
                self._call(index, "log_metrics", metrics.copy(), step)

    def _aggregates(self, index: int) -> bool:
        # Asked of the class: a member with a catch-all __getattr__ would say yes and do nothing.
        return hasattr(type(self._loggers[index]), "agg_and_log_metrics")

    def _has_method(self, index: int, name: str) -> bool:
        try:
            return callable(getattr(self._loggers[index], name, None))
        except Exception as error:  # noqa: BLE001 - isolation of the members from training and each other
            self._failed(index, name, error)
            return False

    def _fan_out(self, method: str, *args: Any, **kwargs: Any) -> None:
        self._each(lambda index: self._call(index, method, *args, **kwargs))

    def _to_those_that_have_it(self, method: str, having: list[int], *args: Any, **kwargs: Any) -> list[Any]:
        if method.startswith("log"):
            args, kwargs = shared(args), shared(kwargs)
        answers: list[Any] = []
        self._each(lambda index: answers.append(self._call(index, method, *args, **kwargs)), having)
        return answers

    def _each(self, call: Callable[[int], Any], indices: Sequence[int] | None = None) -> None:
        """Call for every logger; what the user asked to be raised is raised when all had their turn."""
        asked: Exception | None = None
        for index in range(len(self._loggers)) if indices is None else indices:
            try:
                call(index)
            except _ASKED_FOR as error:
                asked = asked or error
        if asked is not None:
            raise asked

    def _call(self, index: int, method: str, *args: Any, **kwargs: Any) -> Any:
        try:
            call = getattr(self._loggers[index], method, None)
            # A logger need not have all methods: Lightning's own know no close().
            return None if call is None else call(*args, **kwargs)
        except _ASKED_FOR:
            raise
        except Exception as error:  # noqa: BLE001 - isolation of the members from training and each other
            self._failed(index, method, error)

    def _read(self, attribute: str, stand_in: object) -> list[Any]:
        values = []
        for index, member in enumerate(self._loggers):
            try:
                values.append(getattr(member, attribute))
            except Exception as error:  # noqa: BLE001 - isolation of the members from each other
                self._failed(index, attribute, error)
                values.append(stand_in)
        return values

    def _failed(self, index: int, method: str, error: Exception) -> None:
        failure = MemberFailure(index, method, type(error).__qualname__)
        self._failures[failure] = self._failures.get(failure, 0) + 1
        self._notices.tell_once(
            failure,
            f"{type(self._loggers[index]).__name__} (logger {index} of the collection) failed in `{method}`: "
            f"{_describe(error)}. Training and the other loggers go on; more of the same is only counted, in "
            f"`LoggerCollection.failures`.",
        )


_MISSING = object()
_ASKED_FOR = (NonFiniteError, UnsuitableValueError, ConfigurationError)


def _own_copy(metrics: Any) -> Any:
    return metrics.copy() if isinstance(metrics, dict) else metrics


def _describe(error: Exception) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception that cannot be printed is still only an exception
        text = "(it cannot be printed)"
    return f"{type(error).__qualname__}: {text}" if text else type(error).__qualname__
