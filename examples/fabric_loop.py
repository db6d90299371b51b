"""A Lightning Fabric loop: ``fabric.log_dict`` and TrainingLog go to the same logger.

Run it: python examples/fabric_loop.py --save-dir runs --epochs 2
"""

import argparse

import torch
from lightning.fabric import Fabric
from torch import nn

from lightning_loggers import CSVLogger
from lightning_loggers.demo.digits import DigitsData, DigitsNet
from lightning_loggers.training import TrainingLog


def main(save_dir: str, epochs: int) -> float:
    """Train, and return the accuracy on the validation images."""
    logger = CSVLogger(save_dir, name="digits", version="fabric")
    fabric = Fabric(accelerator="cpu", devices=1, loggers=[logger])
    fabric.launch()
    fabric.seed_everything(0)
    data = DigitsData(batch_size=64)
    data.setup("fit")
    net = DigitsNet(width=8)
    model, optimizer = fabric.setup(net.layers, torch.optim.Adam(net.parameters(), lr=net.learning_rate))
    training, validation = fabric.setup_dataloaders(data.train_dataloader(), data.val_dataloader())

    log = TrainingLog(fabric.loggers, log_every_n_steps=4)
    step, accuracy = 0, 0.0
    for epoch in range(epochs):
        log.start_epoch(epoch, step)
        model.train()
        for images, labels in training:
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            step += 1
            log.log_step({"loss": loss}, step)
        fabric.log_dict({"learning_rate": optimizer.param_groups[0]["lr"]}, step)

        log.start_epoch(epoch, step, mode="val")
        model.eval()
        with torch.no_grad():
            for images, labels in validation:
                hits = (model(images).argmax(dim=1) == labels).sum()
                log.log_step({"accuracy": (hits, len(labels))}, step)
        accuracy = log.end_epoch({}, step)["accuracy"]
        log.end_epoch({}, step)
    log.finalize("success")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save-dir", default="runs")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    print(f"accuracy {main(arguments.save_dir, arguments.epochs):.3f}")  # noqa: T201 - a script
