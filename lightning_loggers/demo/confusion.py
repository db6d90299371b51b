"""Which digit is taken for which: counted over the last validation, logged as a picture and as numbers."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from lightning_loggers.demo.digits import CLASSES
from lightning_loggers.loggers.journaled import JournaledLogger


class ConfusionMatrix(pl.Callback):
    """Logs the confusion matrix of the last validation when training ends.

    The module's ``validation_step`` is to return the predicted classes (N,) of a batch of inputs and labels (N,).

    Args:
        logger: Takes the picture ``confusion_matrix.png`` and the dictionary ``confusion_matrix``.
    """

    def __init__(self, logger: JournaledLogger) -> None:
        self.logger = logger
        self.counts = torch.zeros(CLASSES, CLASSES, dtype=torch.long)

    @override
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self.counts.zero_()

    @override
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch."""
        self.counts += count_pairs(batch[1].cpu(), outputs.cpu())

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log it, before the Trainer finalizes its loggers."""
        counts = self.counts.tolist()
        self.logger.log_dict(
            "confusion_matrix",
            {"rows": "true digit", "columns": "predicted digit", "counts": counts},
            trainer.global_step,
        )
        picture = Path(self.logger.log_dir or ".") / "confusion_matrix.png"
        draw(counts, picture)
        self.logger.log_artifact(picture)


def count_pairs(labels: Tensor, predicted: Tensor) -> Tensor:
    """How often each label met each prediction.

    Args:
        labels: Classes (N,).
        predicted: Classes (N,).

    Returns:
        Counts (10, 10); a row for each label.

    >>> count_pairs(torch.tensor([7, 7, 1]), torch.tensor([7, 1, 1]))[7].tolist()
    [0, 1, 0, 0, 0, 0, 0, 1, 0, 0]
    """
    return torch.bincount(labels * CLASSES + predicted, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def draw(counts: list[list[int]], path: Path) -> None:
    """Draw a confusion matrix into a PNG file.

    Args:
        counts: A row for each true digit, a column for each predicted one.
        path: The file; its folder is made.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts, cmap="Blues")
    darkest = max(map(max, counts))
    for row, line in enumerate(counts):
        for column, count in enumerate(line):
            if count:
                color = "white" if count > darkest / 2 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color)
    axes.set(
        title=f"Digits: {sum(map(sum, counts))} validation images",
        xlabel="predicted digit",
        ylabel="true digit",
        xticks=range(len(counts)),
        yticks=range(len(counts)),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
