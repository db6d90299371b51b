"""One process of a distributed training job: ``python distributed_job.py ORDERS-AS-JSON``, under any launcher.

Each process leaves a note in ``orders["notes"]``: what its logger said of itself before and after the launch, and how
many steps it has done. A note is written under a name of its own and renamed, so that whoever sees it reads it whole.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_loggers import LogPolicy, MLFlowLogger


class TaskEnvironment(ClusterEnvironment):
    """A launcher that says which task this is in variables of its own, as ``mpirun`` does."""

    creates_processes_externally = True
    main_address = property(lambda self: "127.0.0.1")
    main_port = property(lambda self: int(os.environ["TASK_PORT"]))

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return int(os.environ["TASK_COUNT"])

    def set_world_size(self, size: int) -> None:
        return

    def global_rank(self) -> int:
        return int(os.environ["TASK_NUMBER"])

    def set_global_rank(self, rank: int) -> None:
        return

    def local_rank(self) -> int:
        return self.global_rank()

    def node_rank(self) -> int:
        return 0


def said(logger: MLFlowLogger) -> dict[str, Any]:
    """What a logger says of its run."""
    return {"name": logger.name, "version": logger.version, "log_dir": logger.log_dir}


class Module(LightningModule):
    """A line through a cloud of points, and a diary of its training."""

    def __init__(self, orders: dict[str, Any], before: dict[str, Any]) -> None:
        super().__init__()
        self.orders, self.before = orders, before
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        self.attempt = float(orders.get("attempt", restarts + 1))
        self.layer = torch.nn.Linear(4, 1)
        self.diary: dict[str, Any] = {}
        self.ended: list[float] = []

    def setup(self, stage: str) -> None:
        logger = self.trainer.loggers[0]
        # Read in the first hook that a user has: later ones have the Trainer's own collectives behind them.
        self.diary = {"before": self.before, "setup": said(logger), "experiment": type(logger.experiment).__name__}

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self.layer(batch[0]).pow(2).mean()
        self.die(index, "before")
        # The log call itself on every rank, as users make it, besides what the Trainer makes of self.log.
        self.trainer.loggers[0].log_metrics(
            {"rank": float(self.global_rank), "attempt": self.attempt, "own": float(self.global_rank)}, self.global_step
        )
        self.log("loss", loss)
        self.die(index, "at")
        if index == self.orders.get("die_at") and self.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.orders.get("wait_at"):
            deadline = time.monotonic() + 120
            while not Path(self.orders["wait_for"]).exists() and time.monotonic() < deadline:
                time.sleep(0.02)
        return loss

    def die(self, index: int, when: str) -> None:
        """Die as ordered, in the first attempt: at the batch that is named, before or after its log call."""
        if index != self.orders.get(when) or self.global_rank not in self.orders["on_ranks"] or self.attempt > 1:
            return
        if self.orders["signal"] == "raise":
            raise RuntimeError("the training fails")
        os.kill(os.getpid(), getattr(signal, self.orders["signal"]))

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        self.ended.append(time.time())
        self.diary |= {"rank": self.global_rank, "steps": self.global_step, "end": said(self.trainer.loggers[0])}
        self.diary["ended"] = self.ended
        note = Path(self.orders["notes"]) / f"rank{self.global_rank}.json"
        writing = note.with_suffix(f".{os.getpid()}")
        writing.write_text(json.dumps(self.diary))
        writing.rename(note)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def main() -> None:
    """Train as ordered."""
    orders = json.loads(sys.argv[1])
    steps, world = orders.get("steps", 8), orders.get("devices", 1) * orders.get("nodes", 1)
    policy = LogPolicy(**orders["policy"]) if "policy" in orders else None
    logger = MLFlowLogger(**orders["logger"], policy=policy)
    before = said(logger) if orders.get("ask_before") else {}
    every = orders.get("checkpoint_every")
    callbacks = [ModelCheckpoint(orders["notes"], every_n_train_steps=every, save_last=True)] if every else []
    trainer = Trainer(
        logger=logger,
        accelerator="cpu",
        strategy=orders["strategy"],
        devices=orders.get("devices", 1),
        num_nodes=orders.get("nodes", 1),
        plugins=[TaskEnvironment()] if "TASK_NUMBER" in os.environ else None,
        default_root_dir=orders["logger"]["save_dir"],
        callbacks=callbacks,
        enable_checkpointing=bool(callbacks),
        max_epochs=1,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Module(orders, before)
    data = DataLoader(TensorDataset(torch.randn(steps * 2 * world, 4)), batch_size=2)
    checkpoint = orders.get("checkpoint")
    trainer.fit(module, data, ckpt_path=checkpoint if checkpoint and Path(checkpoint).exists() else None)


if __name__ == "__main__":
    main()
