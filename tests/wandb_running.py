"""What the tests of WandbLogger share: the SDK on its own, loggers that tell nothing of this machine, a training."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import wait_until
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from wandb_reading import QUIET, quiet_home
from wandb_standin import API_KEY, StandInRun, WandbStandIn

from lightning_loggers import WandbLogger
from lightning_loggers.adapters import wandb_session
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.journal import read
from lightning_loggers.records import Kind

OWN = {"console": "off", "silent": True, "x_file_stream_transmit_interval": 1}
"""Settings of a run that a test begins by itself."""


def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home, working folder and credentials of the test's own, and no service of the SDK left behind."""
    home, folder = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    folder.mkdir()
    quiet_home(home, monkeypatch)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("WANDB_API_KEY", API_KEY)
    monkeypatch.setattr(wandb_session, "PAUSES_S", (0.05, 0.1))  # the stand-in may be asked often
    yield home
    from lightning_loggers.loggers import ending

    for logger in list(ending.live):
        logger._finalized_at = logger._writer.recorded if logger._writer else 0
        logger.close()
        host = logger._host
        wait_until(lambda host=host: host is None or not host.working(), 60, "the delivery thread's end")
    if "wandb" in sys.modules:
        import wandb
        from wandb.sdk.lib import wbauth

        wandb.teardown()
        wbauth.unauthenticate_session(update_settings=False)
    os.environ.pop("WANDB_SERVICE", None)
    assert not list(folder.iterdir()), "something was left in the working folder"


def answering(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbStandIn]:
    """W&B's endpoints, answering."""
    with WandbStandIn() as service:
        monkeypatch.setenv("WANDB_BASE_URL", service.uri)
        yield service
        assert not service.unknown, f"the stand-in was asked for what it has not: {service.unknown[:3]}"


def make(folder: Path, **given: Any) -> WandbLogger:
    """A logger that tells W&B nothing of this machine, and waits longer at the end than a slow machine needs."""
    given.setdefault("project", "digits")
    given.setdefault("finalize_timeout_s", 90)
    return WandbLogger(save_dir=folder, settings={**QUIET, **given.pop("settings", {})}, **given)


def run_dir(logger: WandbLogger) -> Path:
    """The folder of a logger's run."""
    assert logger.log_dir is not None
    return Path(logger.log_dir)


def deliver(folder: Path, options: Mapping[str, Any] | None = None, timeout_s: float = 90.0) -> Worker:
    """Deliver what is left of a run, as the command line does."""
    worker = Worker(folder, {"settings": QUIET, **(options or {})})
    deadline = time.monotonic() + timeout_s
    while (step := worker.step()).kind is not StepKind.IDLE or worker.finish_dead().kind is not StepKind.IDLE:
        assert time.monotonic() < deadline, f"not all delivered: {worker.last_fault}"
        if step.kind is not StepKind.PROGRESS:
            time.sleep(min(step.wait_s, 0.2))
    worker.close()
    return worker


def sync(folder: Path, service: WandbStandIn) -> StandInRun:
    """What ``wandb sync`` makes of the SDK's offline folders. It writes its own log where it runs."""
    folders = sorted(str(path) for path in (folder / "wandb").glob("offline-run-*"))
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", *folders],
        env={**os.environ, "WANDB_BASE_URL": service.uri}, cwd=folder, capture_output=True, text=True, check=True,
        timeout=120,
    )  # fmt: skip
    assert "ERROR" not in done.stderr, done.stderr
    return service.only_run()


def logged(folder: Path, key: str) -> list[tuple[Any, Any]]:
    """What the journal says was logged."""
    return [
        (record.step, record.data[key])
        for record in read(folder)
        if record.kind == Kind.METRIC and record.data and key in record.data
    ]


class Regression(LightningModule):
    """A model of five weights: as little training as a Trainer can do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(logger: Any, folder: Path, steps: int, *callbacks: Any, model: LightningModule | None = None) -> None:
    """A real fit that logs every step."""
    data = DataLoader(TensorDataset(torch.randn(4 * steps, 4)), batch_size=4)
    trainer = Trainer(
        logger=logger, max_epochs=1, log_every_n_steps=1, accelerator="cpu", default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(model or Regression(), data)
