"""(d) within one fit: ``python -m benchmarks.within_fit ROW`` turns a logger off and on while a Trainer trains.

Machines that are shared change their speed from second to second; two fits are further apart than that. So steps whose
log call reaches the logger stand beside steps of the same fit whose call returns at once:

- by steps, each drawn by lot: tells a tenth of a per cent within a minute. Steps beside which another thread of the process
  computed are counted apart. What other processes of the logger's take from a training (a tracker's service or server on
  the same machine) is on both sides, and not in the result.
- by blocks in the order on, off, off, on (``--by blocks``): everything is in it, and a minute tells five per cent. What
  delivery has left over from one block is let go by before the next is timed; it pauses for up to 3 s
  (:data:`lightning_loggers.adapters.base.UNWATCHED_S`), so shorter blocks would have one's delivery in the other.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import BY_NAME

_ORDER = (True, False, False, True)
_EVERY = 4  # rounds are told together
_PIECES = 20
_COMPUTED_S = 20e-6  # by other threads, from which on a step counts as one beside them


class Switched:
    """A row's logger whose log calls can be turned off.

    Attributes:
        logger: The logger.
        on: Whether its calls do anything.
    """

    def __init__(self, row: str, uri: str) -> None:
        from lightning.pytorch.loggers.logger import DummyLogger, Logger

        made: Any = BY_NAME[row].make(Path.cwd(), uri)
        self.logger: Any = made if isinstance(made, Logger) else DummyLogger()
        self.on = True
        log_metrics, save = made.log_metrics, made.save

        def log_metrics_or_not(metrics: dict[str, float], step: int | None = None) -> None:
            if self.on:
                log_metrics(metrics=metrics, step=step)

        def save_or_not() -> None:
            if self.on:
                save()

        self.logger.log_metrics, self.logger.save = log_metrics_or_not, save_or_not


def main() -> None:
    """Measure, and tell as it goes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "row", choices=BY_NAME, metavar="ROW", help="such as 'ours, WandbLogger, offline', or a floor of the benchmarks"
    )
    parser.add_argument("--by", choices=("steps", "blocks"), default="steps")
    parser.add_argument("--seconds", type=float, help="how long to train; 60, or 600 by blocks")
    parser.add_argument(
        "--warm", type=float, default=8.0, help="seconds with the logger before the first that is timed"
    )
    parser.add_argument(
        "--skip",
        type=float,
        default=3.6,
        help="by blocks: seconds before each that are not timed, longer than delivery pauses",
    )
    parser.add_argument("--block", type=float, default=3.0, help="by blocks: seconds of one")
    parser.add_argument("--uri", default="", help="of an MLflow server, for the rows that need one")
    given = parser.parse_args()
    given.seconds = given.seconds or (60.0 if given.by == "steps" else 600.0)
    warnings.simplefilter("ignore")
    start = Path.cwd()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)  # SDKs leave folders where they are used
        try:
            told = by_steps(given) if given.by == "steps" else by_blocks(given)
        finally:
            os.chdir(start)
    print(f"{given.row}: {told}")


def by_steps(given: argparse.Namespace) -> str:
    """Turn the logger off and on by lot, step by step."""
    switched = Switched(given.row, given.uri)
    lot = random.Random(0)
    begun = time.perf_counter()
    last: tuple[float, float] | None = None
    steps: list[tuple[float, bool, float]] = []  # seconds, whether it logged, what other threads computed

    def at_batch_end() -> bool:
        nonlocal last
        others, now = time.process_time() - time.thread_time(), time.perf_counter()
        if last is not None:
            steps.append((now - last[0], switched.on, others - last[1]))
        if now - begun > given.warm:
            switched.on = lot.random() < 0.5
            last = time.perf_counter(), others
        return now - begun > given.warm + given.seconds

    _train(switched.logger, at_batch_end)
    table = np.array(steps, float)
    pieces = [_costs(piece) for piece in np.array_split(table, max(2, min(_PIECES, len(table) // 100)))]
    calls, others = np.array(pieces).T
    median_s = float(np.median(table[:, 0]))
    return (
        f"{_with_error(1 + calls + others)} times as long without; the log call and what it leaves behind "
        f"{_with_error(calls * 100, '.2f')} % ({calls.mean() * median_s * 1e6:.0f} us), beside other threads "
        f"{_with_error(others * 100, '.2f')} %; {len(table):,} steps of {median_s * 1e3:.2f} ms"
    )


def _costs(steps: "np.ndarray[Any, np.dtype[np.float64]]") -> tuple[float, float]:
    """What log calls cost, and what other threads do, both as a part of a step.

    The first is the difference of the means of steps with and without a log call, a tenth left out at either end. The
    second is what steps beside which others computed took longer than those, and than all others did on the whole. Half
    of the steps log, so all of them would leave others twice as much to do.
    """
    seconds, logs, beside = steps[:, 0], steps[:, 1] > 0, steps[:, 2] > _COMPUTED_S
    with_call, without = _trimmed(seconds[logs & ~beside]), _trimmed(seconds[~logs & ~beside])
    longer = seconds - np.where(logs, with_call, without)
    of_others = (longer[beside] - longer[~beside].mean()).sum() / (without * len(steps))
    return (with_call - without) / without, 2 * float(of_others)


def _trimmed(values: "np.ndarray[Any, np.dtype[np.float64]]") -> float:
    cut = len(values) // 10
    return float(np.sort(values)[cut : len(values) - cut].mean())


def _with_error(values: "np.ndarray[Any, np.dtype[np.float64]]", form: str = ".4f") -> str:
    return f"{values.mean():{form}} +- {values.std(ddof=1) / len(values) ** 0.5:{form}}"


def by_blocks(given: argparse.Namespace) -> str:
    """Turn the logger off and on in blocks, and tell of every four rounds."""
    switched = Switched(given.row, given.uri)
    begun = time.perf_counter()
    timed_from, since, steps = begun + given.warm, 0.0, 0  # since: 0 while no block is being timed
    blocks: list[float] = []  # seconds a step
    ratios: list[float] = []

    def at_batch_end() -> bool:
        nonlocal timed_from, since, steps
        now = time.perf_counter()
        if now < timed_from:
            return False
        if not since:
            since, steps = now, 0
            return False
        steps += 1
        if now - since < given.block:
            return False
        blocks.append((now - since) / steps)
        since, timed_from = 0.0, now + given.skip
        switched.on = _ORDER[len(blocks) % len(_ORDER)]
        if len(blocks) % len(_ORDER):
            return False
        first, second, third, fourth = blocks[-len(_ORDER) :]
        ratios.append((first + fourth) / (second + third))
        if len(ratios) % _EVERY == 0:
            print(f"{given.row}: {_told(ratios)}; {statistics.median(blocks) * 1e3:.2f} ms a step", flush=True)
        return now - begun > given.seconds

    _train(switched.logger, at_batch_end)
    return _told(ratios)


def _told(ratios: list[float]) -> str:
    error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
    return (
        f"{statistics.fmean(ratios):.4f} +- {error:.4f}, median {statistics.median(ratios):.4f} of {len(ratios)} rounds"
    )


def _train(logger: Any, at_batch_end: Callable[[], bool]) -> None:
    """Fit the digits until ``at_batch_end``, called after each training batch and before its log call, is true."""
    import torch
    from lightning.pytorch import Callback, Trainer, seed_everything

    from lightning_loggers.demo.digits import DigitsData, DigitsNet

    class AtBatchEnd(Callback):
        """Asks."""

        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.should_stop = at_batch_end()

    torch.set_num_threads(1)
    seed_everything(0, verbose=False)
    Trainer(
        max_epochs=-1, logger=logger, log_every_n_steps=1, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0,
        callbacks=[AtBatchEnd()],
    ).fit(DigitsNet(), DigitsData())  # fmt: skip


if __name__ == "__main__":
    main()
