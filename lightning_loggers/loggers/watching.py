"""Watching a model: hooks that copy its gradients and parameters while it trains, for histograms of them."""

import weakref
from typing import TYPE_CHECKING, Any

from lightning_loggers.loggers.recording import emit, stamped
from lightning_loggers.records import Kind
from lightning_loggers.values import histograms

if TYPE_CHECKING:
    from lightning_loggers.loggers.journaled import JournaledLogger

CHOICES = ("gradients", "parameters", "all", None)

_watches: "weakref.WeakKeyDictionary[JournaledLogger, list[_Watch]]" = weakref.WeakKeyDictionary()


def watch(logger: "JournaledLogger", model: Any, log: str | None, every: int) -> None:
    """Put hooks on a model; see :meth:`lightning_loggers.loggers.kinds.Kinds.watch`."""
    others = _watches.setdefault(logger, [])
    prefix = f"model{len(others)}/" if any(other.model() is not model for other in others) else ""
    others.append(_Watch(logger, model, log, every, prefix))


def unwatch(logger: "JournaledLogger", model: Any = None) -> None:
    """Take the hooks off a model, or off all of a logger's."""
    for found in [found for found in _watches.get(logger, []) if model is None or found.model() is model]:
        found.remove()
        _watches[logger].remove(found)


class _Watch:
    def __init__(self, logger: "JournaledLogger", model: Any, log: str | None, every: int, prefix: str) -> None:
        self.model = weakref.ref(model)
        self._logger = weakref.ref(logger)
        self._every = every
        self._prefix = prefix
        self._batches = 0
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
            if writer is not None:
                emit(logger, writer, stamped(logger, Kind.WATCH, id=key, step=step), histograms.snapshot(tensor, key))
        except Exception as error:  # noqa: BLE001 - seam: a hook that raises would end the training
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
