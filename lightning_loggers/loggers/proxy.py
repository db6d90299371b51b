"""``logger.experiment``: the SDK's own object, made on first use."""

from collections.abc import Callable
from typing import Any


class NativeProxy:
    """Stands for the SDK's object until something is asked of it.

    Lightning reads ``logger.experiment`` on every rank when it sets up, so reading it must neither wait nor fail. The
    object behind it is made by its first use, an attribute or an index; ``isinstance`` only needs its class.

    Args:
        make: Makes the real object; may raise :class:`~lightning_loggers.errors.TrackerUnavailableError`.
        kind: Tells its class without making it.
        label: For ``repr`` before that.
    """

    __slots__ = ("__weakref__", "_kind", "_label", "_make", "_native")

    def __init__(self, make: Callable[[], Any], kind: Callable[[], type], label: str) -> None:
        self._make = make
        self._kind = kind
        self._label = label
        self._native: Any = None

    def _resolve(self) -> Any:
        if self._native is None:
            self._native = self._make()
        return self._native

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # copy, pickle and inspection must not contact a tracker
        return getattr(self._resolve(), name)

    def __getitem__(self, key: Any) -> Any:
        return self._resolve()[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._resolve()[key] = value

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        """The SDK's class, so that ``isinstance(logger.experiment, MlflowClient)`` holds."""
        return self._kind() if self._native is None else type(self._native)

    def __repr__(self) -> str:
        return f"<{self._label}, made on first use>" if self._native is None else repr(self._native)
