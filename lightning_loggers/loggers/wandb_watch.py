"""Watching a model: histograms of its gradients and parameters, made by hooks while it trains."""

from collections.abc import Callable
from typing import Any

from typing_extensions import override

from lightning_loggers.loggers.journaled import JournaledLogger
from lightning_loggers.records import Kind

_BINS = 64
_HISTOGRAMS_A_ROW = 500  # about a megabyte: W&B's SDK leaves out rows of more than ten


class WandbWatching(JournaledLogger):
    """What WandbLogger records of a model that it watches."""

    @override
    def _reset(self) -> None:
        super()._reset()
        self._watches: list[Watch] = []

    @override
    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_watches", None)
        return state

    def watch(self, model: Any, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = True) -> None:
        """Record histograms of a model's gradients and parameters as it trains.

        They are made by hooks in the training process and written to the journal: W&B need not be reached. A histogram
        of a tensor on a GPU waits for that GPU, once every ``log_freq`` batches.

        Args:
            model: A ``torch.nn.Module``.
            log: ``"gradients"``, ``"parameters"``, ``"all"`` or ``None``.
            log_freq: Batches between two histograms.
            log_graph: Whether the model's layers are recorded, as text.

        Raises:
            ValueError: If ``log`` is something else.
        """
        if log not in {"gradients", "parameters", "all", None}:
            raise ValueError(f"log={log!r} must be 'gradients', 'parameters', 'all' or None")
        try:
            if self._start() is None:
                return
            name = f"graph_{len(self._watches)}"
            if log_graph:
                self._record(Kind.GRAPH, id=name, value=str(model))
            self._watches.append(
                Watch(
                    model,
                    log,
                    max(int(log_freq), 1),
                    prefix=name if self._watches else "",
                    full=self._log_histograms,  # a loop that never calls save()
                    swallow=lambda error: self._swallow("watch", error),
                )
            )
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("watch", error)

    def unwatch(self, model: Any = None) -> None:
        """Remove the hooks of :meth:`watch`.

        Args:
            model: The model; by default all that are watched.
        """
        for watch in [watch for watch in self._watches if model is None or watch.model is model]:
            watch.remove()
            self._log_histograms(watch)
            self._watches.remove(watch)

    @override
    def save(self) -> None:
        """Log what is held back for its step. ``Trainer`` calls this after all it logs."""
        super().save()
        for watch in self._watches:
            if watch.found:
                self._log_histograms(watch)

    def _log_histograms(self, watch: "Watch") -> None:
        try:
            found = list(watch.take().items())
            step = getattr(self._trainer(), "global_step", None)
            if self._refuses(Kind.WATCH, None, step):
                return
            for begin in range(0, len(found), _HISTOGRAMS_A_ROW):
                part = dict(found[begin : begin + _HISTOGRAMS_A_ROW])
                self._record(Kind.WATCH, value=part, step=step if isinstance(step, int) else None)
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("watch", error)


class Watch:
    """Hooks on a model that keep histograms until they are taken.

    Args:
        model: A ``torch.nn.Module``.
        log: ``"gradients"``, ``"parameters"``, ``"all"`` or ``None``.
        every: Batches between two histograms.
        prefix: Put before the names, for a second model.
        full: Called when a histogram comes that is held already: nobody took the last ones.
        swallow: Called with what went wrong in a hook, which must not raise into the training.
    """

    def __init__(
        self,
        model: Any,
        log: str | None,
        every: int,
        *,
        prefix: str,
        full: Callable[["Watch"], None],
        swallow: Callable[[Exception], None],
    ) -> None:
        self.model = model
        self.found: dict[str, Any] = {}
        self._every = every
        self._prefix = f"{prefix}/" if prefix else ""
        self._full = full
        self._swallow = swallow
        self._hooks: list[Any] = []
        if log in {"gradients", "all"}:
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    self._hooks.append(parameter.register_hook(self._on_gradient(name)))
        if log in {"parameters", "all"}:
            # A LightningModule is not called itself: its training_step is. The first module with weights is.
            first = next((module for module in model.modules() if module._parameters), model)
            self._hooks.append(first.register_forward_hook(self._on_forward()))

    def take(self) -> dict[str, Any]:
        """What was found since the last time."""
        found, self.found = self.found, {}
        return found

    def remove(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _on_gradient(self, name: str) -> Callable[[Any], None]:
        calls = 0

        def hook(gradient: Any) -> None:
            nonlocal calls
            calls += 1
            if calls % self._every == 0:
                self._keep(f"gradients/{self._prefix}{name}", gradient)

        return hook

    def _on_forward(self) -> Callable[..., None]:
        calls = 0

        def hook(module: Any, *rest: Any) -> None:
            nonlocal calls
            if not module.training:
                return
            calls += 1
            if calls % self._every == 0:
                for name, parameter in self.model.named_parameters():
                    self._keep(f"parameters/{self._prefix}{name}", parameter)

        return hook

    def _keep(self, key: str, tensor: Any) -> None:
        try:
            if key in self.found:
                self._full(self)
            histogram = histogram_of(tensor)
            if histogram is not None:
                self.found[key] = histogram
        except Exception as error:  # noqa: BLE001 - seam: a hook that raises would end the training
            self._swallow(error)


def histogram_of(tensor: Any) -> dict[str, list[float]] | None:
    """Counts and edges of 64 bins over a tensor's finite values, or ``None`` if there are none.

    >>> import torch
    >>> made = histogram_of(torch.tensor([0.0, 1.0, float("nan")]))
    >>> made["counts"][0], made["counts"][-1], made["bins"][0], made["bins"][-1]
    (1.0, 1.0, 0.0, 1.0)
    """
    import torch

    values = tensor.detach()
    if values.is_sparse:
        values = values.coalesce().values()
    values = values.float().flatten()
    values = values[torch.isfinite(values)]
    if values.numel() == 0:
        return None
    low, high = float(values.min()), float(values.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(values, bins=_BINS, min=low, max=high).tolist()
    return {"counts": counts, "bins": [low + (high - low) * edge / _BINS for edge in range(_BINS + 1)]}
