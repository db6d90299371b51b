"""A plain PyTorch loop with TrainingLog: handwritten digits, two loggers, one policy.

Run it: python examples/plain_loop.py --save-dir runs --epochs 2
"""

import argparse

import torch
from torch import nn

from lightning_loggers import CSVLogger, TensorBoardLogger
from lightning_loggers.demo.digits import DigitsData, DigitsNet
from lightning_loggers.policies import LogPolicy
from lightning_loggers.training import TrainingLog


def main(save_dir: str, epochs: int) -> float:
    """Train, and return the accuracy on the validation images."""
    torch.manual_seed(0)
    data = DigitsData(batch_size=64)
    data.setup("fit")
    model = DigitsNet(width=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=model.learning_rate)

    log = TrainingLog(
        [
            CSVLogger(save_dir, name="digits", version="plain"),
            # One point for eight steps, with what all of them had.
            TensorBoardLogger(save_dir, name="digits-tb", version="plain", policy=LogPolicy(window=8)),
        ],
        log_every_n_steps=4,
        log_path=save_dir,
        cmd_logging_name="plain",
    )
    log.log_config({"width": 8, "learning_rate": model.learning_rate, "epochs": epochs})
    log.on_training_start()
    step, accuracy = 0, 0.0
    for epoch in range(epochs):
        log.start_epoch(epoch, step)
        model.train()
        for images, labels in data.train_dataloader():
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            log.log_step({"loss": loss}, step)  # stays on the device; every 4th step goes to the loggers

        log.start_epoch(epoch, step, mode="val")
        model.eval()
        with torch.no_grad():
            for images, labels in data.val_dataloader():
                logits = model(images)
                hits = (logits.argmax(dim=1) == labels).sum()
                log.log_step({"accuracy": (hits, len(labels)), "logit": logits}, step)
        accuracy = log.end_epoch({}, step)["accuracy"]
        log.end_epoch({}, step)  # of training
    with log.namespace("layers"):
        log.data_fit({name: lambda weight=weight: weight.norm().item() for name, weight in model.named_parameters()})
    log.finalize("success")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save-dir", default="runs")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    print(f"accuracy {main(arguments.save_dir, arguments.epochs):.3f}")  # noqa: T201 - a script
