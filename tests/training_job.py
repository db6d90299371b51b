"""A training job to be run as a process of its own, and killed: ``python training_job.py ENDING OPTIONS-AS-JSON``.

Prints one line per event: ``step N`` after the log call of step N has returned, ``ready`` once training runs.
"""

import json
import os
import signal
import sys
import threading
from typing import Any


def plain(ending: str, options: dict[str, Any], steps: int) -> None:
    """Log without a Trainer: as fast as a job can, each acknowledged call on standard output."""
    from lightning_loggers import MLFlowLogger

    logger = MLFlowLogger(**options)
    out = sys.stdout.fileno()
    for step in range(steps):
        logger.log_metrics({"loss": step * 0.5, "accuracy": 1.0 - step}, step)
        os.write(out, b"step %d\n" % step)
        if ending == "fork" and step == steps // 2:
            child = os.fork()
            if child == 0:
                logger.log_metrics({"child": 1.0}, 0)
                logger.log_metrics({"child": 2.0}, 1)
                logger.finalize("success")
                os._exit(0)
            os.waitpid(child, 0)
    if ending == "wait":
        threading.Event().wait(600)
    if ending == "raise":
        raise RuntimeError("the script ends badly")
    if ending == "interrupt":
        raise KeyboardInterrupt
    if ending == "in-handler":

        def handler(*_: object) -> None:
            logger.finalize("finished")
            logger.log_metrics({"in_handler": 1.0}, steps)

        signal.signal(signal.SIGUSR1, handler)
        signal.setitimer(signal.ITIMER_REAL, 0)
        threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start()
        last = steps
        while signal.getsignal(signal.SIGUSR1) is handler and last < steps + 60_000:
            logger.log_metrics({"loss": last * 0.5}, last)
            last += 1
        os.write(out, b"last %d\n" % last)
        logger.finalize("success")
        logger.close()


def trained(ending: str, options: dict[str, Any], steps: int) -> None:
    """A real Trainer.fit that ends as ``ending`` says."""
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_loggers import MLFlowLogger

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
            loss = self.layer(batch[0]).pow(2).mean()
            self.log("loss", loss)
            if index == 10:
                os.write(sys.stdout.fileno(), b"ready\n")
                if ending == "raise":
                    raise RuntimeError("training ends badly")
                if ending == "interrupt":
                    os.kill(os.getpid(), signal.SIGINT)
                if ending == "terminate":
                    os.kill(os.getpid(), signal.SIGTERM)
                if ending == "requeue":
                    os.kill(os.getpid(), signal.SIGUSR1)
            if index == 15 and ending in {"kill", "requeue"}:
                os.kill(os.getpid(), signal.SIGKILL)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.01)

    logger = MLFlowLogger(**options)
    data = DataLoader(TensorDataset(torch.randn(steps * 2, 4)), batch_size=2)
    trainer = Trainer(
        logger=logger, max_epochs=1, log_every_n_steps=1, accelerator="cpu", devices=1, num_nodes=1,
        default_root_dir=options["save_dir"], enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(Module(), data)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    kind, ending, steps, options = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
    {"plain": plain, "trained": trained}[kind](ending, options, steps)
