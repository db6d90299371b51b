"""The calls that log a value of any kind, under a namespace or without one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from typing import Any, Self

from lightning_loggers.policies import LogLevel
from lightning_loggers.records import Kind

Path = tuple[str, ...]

# Per log: a program may have several at once.
active: ContextVar[Mapping[int, Path]] = ContextVar("lightning_loggers_namespace", default={})  # noqa: B039 - never changed


class DataCalls(ABC):
    """What a whole log and a namespace of it have in common.

    A value may be a function without arguments: it is called once, and only if some destination records it.
    """

    @abstractmethod
    def _route(self, level: Any, data: Mapping[str, Any], kind: Any, step: Any, *, with_mode: bool) -> None:
        """Send values to the destinations."""

    @abstractmethod
    def namespace(self, name: str) -> "Namespace":
        """A namespace inside this one."""

    def data(
        self,
        log_level: str | int | LogLevel,
        data: Mapping[str, Any],
        *,
        kind: Kind | str | None = None,
        step: int | None = None,
    ) -> None:
        """Log values to all destinations that record that level.

        Args:
            log_level: ``"FIT"``, ``"EPOCH"`` or ``"BATCH"``, a :class:`~lightning_loggers.policies.LogLevel`, a number.
            data: Values by name: numbers are metrics, strings texts, mappings dictionaries, paths artifacts.
            kind: What they are, where they do not show it, such as ``"image"``.
            step: Their step; by default the loop's.

        Raises:
            ConfigurationError: For an unknown level or kind.
        """
        self._route(log_level, data, kind, step, with_mode=False)

    def data_fit(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        """Log values that belong to the whole run; arguments as for :meth:`data`."""
        self.data(LogLevel.FIT, data, **kwargs)

    def data_epoch(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        """Log values of an epoch; arguments as for :meth:`data`."""
        self.data(LogLevel.EPOCH, data, **kwargs)

    def data_batch(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        """Log values of a batch; arguments as for :meth:`data`."""
        self.data(LogLevel.BATCH, data, **kwargs)

    def log_scalar(self, key: str, value: float | Callable[[], Any], **kwargs: Any) -> None:
        """Log a number of the current batch under ``<mode>/<namespace>/<key>``.

        Args:
            key: Its name.
            value: The number, a tensor of one element, or a function that returns one.
            kwargs: ``step``, ``level`` (by default ``"BATCH"``).
        """
        self._value(Kind.METRIC, key, value, **kwargs)

    def log_string(self, key: str, value: str | Callable[[], str], **kwargs: Any) -> None:
        """Log a text; arguments as for :meth:`log_scalar`."""
        self._value(Kind.TEXT, key, value, **kwargs)

    def log_image(self, key: str, value: Any, **kwargs: Any) -> None:
        """Log an image of shape (C, H, W); arguments as for :meth:`log_scalar`."""
        self._value(Kind.IMAGE, key, value, **kwargs)

    def log_audio(self, key: str, value: Any, **kwargs: Any) -> None:
        """Log a sound: samples of shape (T,) and their rate; arguments as for :meth:`log_scalar`."""
        self._value(Kind.AUDIO, key, value, **kwargs)

    def log_video(self, key: str, value: Any, **kwargs: Any) -> None:
        """Log a video of shape (T, C, H, W); arguments as for :meth:`log_scalar`."""
        self._value(Kind.VIDEO, key, value, **kwargs)

    def log_histogram(self, key: str, value: Any, **kwargs: Any) -> None:
        """Log values of any shape as a histogram; arguments as for :meth:`log_scalar`."""
        self._value(Kind.HISTOGRAM, key, value, **kwargs)

    def log_point_cloud(self, key: str, value: Any, **kwargs: Any) -> None:
        """Log points of shape (N, 3) or (B, N, 3); arguments as for :meth:`log_scalar`."""
        self._value(Kind.POINT_CLOUD, key, value, **kwargs)

    def _value(self, kind: Kind, key: str, value: Any, *, step: int | None = None, level: Any = LogLevel.BATCH) -> None:
        self._route(level, {key: value}, kind, step, with_mode=True)


class Namespace(DataCalls):
    """A part of a program that logs under its own name: keys become ``<name>/<key>``.

    As a context, everything that is logged through the log itself inside of it is under the name, too. As an object, it
    is what a component keeps and logs to.

    Args:
        log: The log, or the part of it around this.
        path: Its full name.
    """

    def __init__(self, log: Any, path: Path) -> None:
        self.path = path
        self._log = log
        self._tokens: list[Token[Mapping[int, Path]]] = []

    def namespace(self, name: str) -> "Namespace":
        """A namespace inside this one.

        Args:
            name: Its name; may have several parts, joined by ``/``.
        """
        return Namespace(self._log, (*self.path, name))

    def __enter__(self) -> Self:
        self._tokens.append(active.set({**active.get(), id(self._log): self.path}))
        return self

    def __exit__(self, *_: object) -> None:
        active.reset(self._tokens.pop())

    def _route(self, level: Any, data: Mapping[str, Any], kind: Any, step: Any, *, with_mode: bool) -> None:
        token = active.set({**active.get(), id(self._log): self.path})
        try:
            self._log._route(level, data, kind, step, with_mode=with_mode)
        finally:
            active.reset(token)
