"""Several loggers that act as one."""

import functools
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, overload

import numpy as np
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from lightning_loggers.aggregation import AggFunc
from lightning_loggers.base.experiment import DummyExperiment
from lightning_loggers.base.logger import LightningLoggerBase, described
from lightning_loggers.errors import ConfigurationError, NonFiniteError, UnsuitableValueError
from lightning_loggers.notices import Notices
from lightning_loggers.values.lazy import shared, shared_metrics

_MISSING = object()
_ASKED_FOR = (NonFiniteError, UnsuitableValueError, ConfigurationError)


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
        >>> from lightning_loggers import DummyLogger
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
            f"{described(error)}. Training and the other loggers go on; more of the same is only counted, in "
            f"`LoggerCollection.failures`.",
        )


def _own_copy(metrics: Any) -> Any:
    return metrics.copy() if isinstance(metrics, dict) else metrics
