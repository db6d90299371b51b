"""Watching a model: hooks that copy its gradients and parameters while it trains, for histograms of them.

Each becomes a record. For a logger with ``_watches_in_groups`` those of one model and step become one together, once
the next step begins, the logger is saved or there are too many.
"""

import weakref
from typing import TYPE_CHECKING, Any

from lightning_loggers.loggers.encoding import MAX_WAITING_BYTES
from lightning_loggers.loggers.recording import emit, stamped
from lightning_loggers.records import Kind, Record
from lightning_loggers.values import arrays, histograms

if TYPE_CHECKING:
    from lightning_loggers.loggers.journaled import JournaledLogger

_MOST_TOGETHER = 500
"""Histograms in a record: about a megabyte. W&B's SDK leaves out rows of more than ten."""

_MOST_BYTES_TOGETHER = MAX_WAITING_BYTES // 2
"""Of copies in a record: a large model is not to be in memory twice."""

CHOICES = ("gradients", "parameters", "all", None)

_watches: "weakref.WeakKeyDictionary[JournaledLogger, list[_Watch]]" = weakref.WeakKeyDictionary()


def watch(logger: "JournaledLogger", model: Any, log: str | None, every: int) -> None:
    """Put hooks on a model; see :meth:`lightning_loggers.loggers.kinds.Kinds.watch`."""
    others = _watches.setdefault(logger, [])
    logger._watched = True
    prefix = f"model{len(others)}/" if any(other.model() is not model for other in others) else ""
    others.append(_Watch(logger, model, log, every, prefix))


def unwatch(logger: "JournaledLogger", model: Any = None) -> None:
    """Take the hooks off a model, or off all of a logger's."""
    for found in [found for found in _watches.get(logger, []) if model is None or found.model() is model]:
        found.remove()
        found.log_held()
        _watches[logger].remove(found)


def log_held(logger: "JournaledLogger") -> None:
    """Log the histograms of the last step that a logger still holds, where it logs them in groups."""
    for found in _watches.get(logger, ()):
        found.log_held()


class _Watch:
    def __init__(self, logger: "JournaledLogger", model: Any, log: str | None, every: int, prefix: str) -> None:
        self.model = weakref.ref(model)
        self._logger = weakref.ref(logger)
        self._every = every
        self._prefix = prefix
        self._held: tuple[Record, histograms.Values] | None = None
        self._held_bytes = 0
        self._hooks: list[Any] = []
        if log in {"gradients", "all"}:
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    self._hooks.append(parameter.register_hook(_Hook(self, name)))
        if log in {"parameters", "all"}:
            # A LightningModule is not called itself: its training_step is. The first module with weights is.
            first = next((module for module in model.modules() if module._parameters), model)
            self._hooks.append(first.register_forward_hook(_Hook(self, None)))

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def on_gradient(self, name: str, number: int, gradient: Any) -> None:
        if number % self._every == 0:
            self._log(f"gradients/{self._prefix}{name}", gradient, number)

    def on_forward(self, module: Any, number: int) -> None:
        model = self.model()
        if module.training and model is not None and number % self._every == 0:
            for name, parameter in model.named_parameters():
                self._log(f"parameters/{self._prefix}{name}", parameter, number)

    def _log(self, key: str, tensor: Any, number: int) -> None:
        logger = self._logger()
        if logger is None or tensor is None or not tensor.numel():
            return
        step = getattr(logger._trainer(), "global_step", None)
        step = step if isinstance(step, int) else number
        try:
            if logger._refuses(Kind.WATCH, key, step):
                return
            writer = logger._start()
            if writer is None:
                return
            values = histograms.Values({key: arrays.snapshot(tensor)})
            if not getattr(logger, "_watches_in_groups", False):
                emit(logger, writer, stamped(logger, Kind.WATCH, id=key, step=step), values)
                return
            if self._held is not None:
                record, others = self._held
                room = len(others.values) < _MOST_TOGETHER and self._held_bytes < _MOST_BYTES_TOGETHER
                if record.step == step and key not in others.values and room:
                    others.values.update(values.values)
                    self._held_bytes += values.size_bytes
                    return
                self.log_held()
            self._held, self._held_bytes = (stamped(logger, Kind.WATCH, step=step), values), values.size_bytes
        except Exception as error:  # noqa: BLE001 - seam: a hook that raises would end the training
            logger._swallow("watch", error)

    def log_held(self) -> None:
        logger, held = self._logger(), self._held
        if logger is None or held is None:
            return
        self._held = None
        try:
            writer = logger._start()
            if writer is not None:
                emit(logger, writer, *held)
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            logger._swallow("watch", error)


class _Hook:
    """What a tensor or module calls; a copy of it, or what is unpickled of it, does nothing."""

    def __init__(self, watch: _Watch | None = None, name: str | None = None) -> None:
        self._watch = watch
        self._name = name
        self._calls = 0

    def __call__(self, *args: Any) -> None:
        if self._watch is None:
            return
        number, self._calls = self._calls, self._calls + 1
        if self._name is None:
            self._watch.on_forward(args[0], number)
        else:
            self._watch.on_gradient(self._name, number, args[0])

    def __reduce__(self) -> tuple[type["_Hook"], tuple[()]]:
        return _Hook, ()
