"""A small convolutional network on scikit-learn's digits: an ordinary Lightning script, which knows of no tracker."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

CLASSES = 10


class DigitsData(pl.LightningDataModule):
    """1,797 handwritten digits of 8 x 8 pixels, which come with scikit-learn: 1,437 to train on, 360 to validate.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998 (its test set).

    Args:
        batch_size: Images a batch.
        split_seed: Chooses which images are for validation; every class has its share.
    """

    def __init__(self, batch_size: int = 32, split_seed: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size
        self.split_seed = split_seed
        self._train: TensorDataset | None = None
        self._validation: TensorDataset | None = None

    @override
    def setup(self, stage: str) -> None:
        """Split the images; pixels become numbers from 0 to 1.

        Args:
            stage: Lightning's word for what follows.
        """
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
        labels = torch.from_numpy(digits.target).long()
        training, validation = train_test_split(
            range(len(labels)), test_size=0.2, random_state=self.split_seed, stratify=digits.target
        )
        self._train = TensorDataset(images[training], labels[training])
        self._validation = TensorDataset(images[validation], labels[validation])

    @override
    def train_dataloader(self) -> DataLoader[Any]:
        """Batches of images (N, 1, 8, 8) and labels (N,), in a new order every epoch."""
        assert self._train is not None
        return DataLoader(self._train, batch_size=self.batch_size, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[Any]:
        """Batches of the images kept for validation."""
        assert self._validation is not None
        return DataLoader(self._validation, batch_size=self.batch_size)


class DigitsNet(pl.LightningModule):
    """Two convolutions and a linear layer, about 10,000 weights.

    Args:
        width: Channels of the first convolution; the second has twice as many.
        dropout: Share of features left out while training.
        learning_rate: Adam's.
    """

    def __init__(self, width: int = 16, dropout: float = 0.25, learning_rate: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, kernel_size=3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, kernel_size=3, padding=1),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(2 * width * 4 * 4, CLASSES),
        )

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 8, 8)."""
        logits: Tensor = self.layers(images)
        return logits

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Log the loss and accuracy of every step."""
        loss, predicted = self._loss(batch)
        accuracy = (predicted == batch[1]).float().mean()
        self.log_dict({"train/loss": loss, "train/accuracy": accuracy})
        return loss

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Log the mean loss and accuracy over all images; returns the predicted digits (N,)."""
        loss, predicted = self._loss(batch)
        accuracy = (predicted == batch[1]).float().mean()
        self.log_dict({"val/loss": loss, "val/accuracy": accuracy}, batch_size=len(predicted))
        return predicted

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def _loss(self, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = batch
        logits = self(images)
        return nn.functional.cross_entropy(logits, labels), logits.argmax(dim=1)
