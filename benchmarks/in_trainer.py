"""(a) inside a real ``Trainer.fit``: what a recorded call costs beside the floor, and what one costs that is refused.

Refused calls are measured in a loop without a Trainer, too, where less is known and the rank is asked at every call.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.measure import Measured, interleaved
from lightning_loggers import LogPolicy, MLFlowLogger
from lightning_loggers.records import Record

_METRICS = {f"metric_{index}": 0.123456789 * index for index in range(5)}
_REFUSING = {
    'level="EPOCH"': {"level": "EPOCH"},
    'log_freq="epoch"': {"log_freq": "epoch"},
    "log_freq=100": {"log_freq": 100},
    "write_every_n_seconds=3600": {"write_every_n_seconds": 3600},
    "log_on_workers=3 (of one rank)": {"log_on_workers": 3},
}
_REFUSING_OUTSIDE = ("log_freq=100", "write_every_n_seconds=3600", "log_on_workers=3 (of one rank)")


class _Empty:
    """A method that does nothing."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Do nothing."""


def table(repeats: int, number: int) -> list[str]:
    """A table of the recorded and the refused calls."""
    encode = msgspec.json.Encoder().encode
    with tempfile.TemporaryDirectory() as folder:
        fd = os.open(Path(folder) / "floor.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

        def floor() -> None:
            os.write(fd, encode(Record(time.time_ns(), "metric", 5, _METRICS)))

        found = _within_fit(Path(folder) / "recorded", None, {"floor": floor}, repeats, number)
        os.close(fd)
        times = found["log_metrics"].median / found["floor"].median
        rows = [
            "| call inside a Trainer, or outside | microseconds a call, median (low to high) | beside |",
            "| --- | --- | --- |",
            f"| encode + `os.write` (floor) | {found['floor'].microseconds()} | |",
            f"| recorded, 5 metrics | {found['log_metrics'].microseconds()} | {times:.2f} times the floor |",
        ]
        empty = _Empty()
        calls = {"empty": lambda: empty.log_metrics(_METRICS, 5)}
        for name, policy in _REFUSING.items():
            found = _within_fit(Path(folder) / name, LogPolicy(**policy), calls, repeats, number)
            rows.append(_refused(f"refused by `{name}`", found))
        for name in _REFUSING_OUTSIDE:
            found = _outside(Path(folder) / f"outside {name}", LogPolicy(**_REFUSING[name]), calls, repeats, number)
            rows.append(_refused(f"refused by `{name}`, outside", found))
    return rows


def _refused(name: str, found: dict[str, Measured]) -> str:
    more = (found["log_metrics"].median - found["empty"].median) * 1e9
    return f"| {name} | {found['log_metrics'].microseconds()} | {more:.0f} ns more than an empty method |"


def _outside(
    folder: Path, policy: LogPolicy, calls: dict[str, Callable[[], None]], repeats: int, number: int
) -> dict[str, Measured]:
    logger = MLFlowLogger("calls", save_dir=folder, delivery="offline", policy=policy)
    logger.log_metrics(_METRICS, 0)
    found = interleaved({"log_metrics": lambda: logger.log_metrics(_METRICS, 5), **calls}, repeats, number)
    logger.close()
    return found


def _within_fit(
    folder: Path, policy: LogPolicy | None, calls: dict[str, Callable[[], None]], repeats: int, number: int
) -> dict[str, Measured]:
    import torch
    from lightning.pytorch import LightningModule, Trainer
    from torch.utils.data import DataLoader, TensorDataset

    logger = MLFlowLogger("calls", save_dir=folder, delivery="offline", policy=policy)
    found: dict[str, Measured] = {}

    class Module(LightningModule):
        """Measures in its sixth batch."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: list[torch.Tensor], index: int) -> Any:
            if index < 5:
                logger.log_metrics(_METRICS, index)
            elif index == 5:
                ours = {"log_metrics": lambda: logger.log_metrics(_METRICS, 5)}
                found.update(interleaved({**ours, **calls}, repeats, number))
            return self.layer(batch[0]).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = Trainer(
        max_epochs=1, logger=logger, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, log_every_n_steps=1000,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(TensorDataset(torch.randn(40, 2)), batch_size=4))
    logger.close()
    return found
