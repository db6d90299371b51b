"""A progress bar for the person who watches."""

from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from typing_extensions import override

_SHOWN = (("loss", "train/loss", ".3f"), ("val accuracy", "val/accuracy", ".1%"))


class TrainingBar(pl.Callback):
    """One bar over all steps, on standard error; gone when training ends."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("Training"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  epoch {task.fields[epoch]}/{task.fields[epochs]}{task.fields[now]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, epoch=1, epochs=1, now="")

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show it."""
        self._bar.update(self._task, epochs=trainer.max_epochs)
        self._bar.start()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on, with the newest values."""
        newest = trainer.callback_metrics
        self._bar.update(
            self._task,
            completed=trainer.global_step,
            total=trainer.estimated_stepping_batches,
            epoch=trainer.current_epoch + 1,
            now="".join(f"  {name} {float(newest[key]):{style}}" for name, key, style in _SHOWN if key in newest),
        )

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove it."""
        self._bar.stop()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove it."""
        self._bar.stop()
