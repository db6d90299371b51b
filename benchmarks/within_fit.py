"""(d) within one fit: ``python -m benchmarks.within_fit ROW`` turns a logger off and on while a Trainer trains.

Machines that are shared change their speed from second to second; two fits are further apart than that. Here blocks of
steps whose log calls reach the logger stand beside blocks of the same fit whose calls return at once, in the order on, off,
off, on. What delivery has left over from one block is let go by before the next is timed; it pauses for up to 3 s
(:data:`lightning_loggers.adapters.base.UNWATCHED_S`), so shorter blocks would have one's delivery in the other.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.rows import BY_NAME

_ORDER = (True, False, False, True)
_EVERY = 4  # rounds are told together


def main() -> None:
    """Measure, and tell as it goes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "row",
        choices=[name for name in BY_NAME if "Logger" in name],
        metavar="ROW",
        help="such as 'ours, WandbLogger, offline'",
    )
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to train")
    parser.add_argument("--warm", type=float, default=8.0, help="seconds with the logger before the first block")
    parser.add_argument(
        "--skip",
        type=float,
        default=3.6,
        help="seconds before each block that are not timed: longer than delivery pauses",
    )
    parser.add_argument("--block", type=float, default=3.0, help="seconds of a block")
    parser.add_argument("--uri", default="", help="of an MLflow server, for the rows that need one")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    start = Path.cwd()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)  # SDKs leave folders where they are used
        try:
            found = measure(given)
        finally:
            os.chdir(start)
    print(f"{given.row}: {_told(found)}")


def measure(given: argparse.Namespace) -> list[float]:
    """Of each round, the seconds a step with the logger over those without."""
    import torch
    from lightning.pytorch import Callback, Trainer, seed_everything

    from lightning_loggers.demo.digits import DigitsData, DigitsNet

    torch.set_num_threads(1)
    logger: Any = BY_NAME[given.row].make(Path.cwd(), given.uri)
    log_metrics, save = logger.log_metrics, logger.save
    on = True

    def log_metrics_or_not(metrics: dict[str, float], step: int | None = None) -> None:
        if on:
            log_metrics(metrics=metrics, step=step)

    def save_or_not() -> None:
        if on:
            save()

    logger.log_metrics, logger.save = log_metrics_or_not, save_or_not
    blocks: list[float] = []  # seconds a step
    ratios: list[float] = []

    class Blocks(Callback):
        """Turns the logger off and on."""

        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            self._begun = time.perf_counter()
            self._timed_from = self._begun + given.warm
            self._since = 0.0  # no block is being timed
            self._steps = 0

        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            nonlocal on
            now = time.perf_counter()
            if now < self._timed_from:
                return
            if not self._since:
                self._since, self._steps = now, 0
                return
            self._steps += 1
            if now - self._since < given.block:
                return
            blocks.append((now - self._since) / self._steps)
            self._since, self._timed_from = 0.0, now + given.skip
            if len(blocks) % len(_ORDER) == 0:
                first, second, third, fourth = blocks[-len(_ORDER) :]
                ratios.append((first + fourth) / (second + third))
                if len(ratios) % _EVERY == 0:
                    print(f"{given.row}: {_told(ratios)}; {statistics.median(blocks) * 1e3:.2f} ms a step", flush=True)
                trainer.should_stop = now - self._begun > given.seconds
            on = _ORDER[len(blocks) % len(_ORDER)]

    seed_everything(0, verbose=False)
    Trainer(
        max_epochs=-1, logger=logger, log_every_n_steps=1, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0,
        callbacks=[Blocks()],
    ).fit(DigitsNet(), DigitsData())  # fmt: skip
    return ratios


def _told(ratios: list[float]) -> str:
    error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
    return (
        f"{statistics.fmean(ratios):.4f} +- {error:.4f}, median {statistics.median(ratios):.4f} of {len(ratios)} rounds"
    )


if __name__ == "__main__":
    main()
