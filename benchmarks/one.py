"""One measurement in a process of its own: ``python -m benchmarks.one NAME '{"row": ...}'`` prints its result as JSON."""

import contextlib
import io
import json
import logging
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.rows import BY_NAME, FLOOR, FLOOR_ROW

_FEW_S = 2.5
_UNIT = list(range(200))  # of work


def _metrics(count: int, step: int) -> dict[str, float]:
    return {f"metric_{index}": 0.123456789 * index + step for index in range(count)}


def calls(row: str, count: int, number: int, uri: str, folder: Path) -> dict[str, Any]:
    """(a) Seconds that the training thread spends in ``log_metrics`` and ``save``, call by call, and in the floor's."""
    chosen = BY_NAME[row]
    floor, floor_taken = BY_NAME[FLOOR_ROW].make(folder, uri), []
    logger = chosen.make(folder, uri)
    taken: list[float] = []
    number = min(number, chosen.calls)
    for step in range(50):
        logger.log_metrics(_metrics(count, step), step)
        logger.save()
    if hasattr(logger, "wait_for_run") and "journal only" not in row:
        logger.wait_for_run(120)  # the steady state of a long run
    ends = time.perf_counter() + _FEW_S
    pace_s = 0.001 if chosen.sort != FLOOR or "encode" in row else 0.0
    for step in range(50, 50 + number):
        metrics = _metrics(count, step)
        for one, times in ((logger, taken), (floor, floor_taken)):
            # A training step: what works in the background has its share of the machine, and the caches other things
            # to hold, before either call.
            paced = time.perf_counter() + pace_s
            while time.perf_counter() < paced:
                pass
            before = time.perf_counter()
            one.log_metrics(metrics, step)
            one.save()
            times.append(time.perf_counter() - before)
        if before > ends:
            break
    logger.finalize("success")
    return {"seconds": taken, "floor": floor_taken}


def delivered(row: str, points: int, uri: str, folder: Path) -> dict[str, Any]:
    """(c) Seconds from the first call until all points can be read from MLflow."""
    from mlflow import MlflowClient

    if row == "bare log_batch":
        return _bare(uri, points)
    logger = BY_NAME[row].make(folder, uri)
    if hasattr(logger, "wait_for_run"):
        logger.wait_for_run(120)
    else:
        _ = logger.run_id
    begun = time.perf_counter()
    for step in range(points // 5):
        logger.log_metrics(_metrics(5, step), step)
        logger.save()
    logger.finalize("success")
    seconds = time.perf_counter() - begun
    found = MlflowClient(tracking_uri=logger.experiment.tracking_uri).get_metric_history(logger.run_id, "metric_0")
    return {"seconds": seconds, "complete": len(found) == points // 5}


def _bare(uri: str, points: int) -> dict[str, Any]:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(tracking_uri=uri)
    run = client.create_run(client.create_experiment(f"bare-{time.time_ns()}")).info.run_id
    begun = time.perf_counter()
    for start in range(0, points // 5, 200):
        batch = [
            Metric(key, value, time.time_ns() // 1_000_000, step)
            for step in range(start, min(start + 200, points // 5))
            for key, value in _metrics(5, step).items()
        ]
        client.log_batch(run, metrics=batch)
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "complete": len(client.get_metric_history(run, "metric_0")) == points // 5}


def fit(row: str, epochs: int, turns: int, *, settle: float, uri: str, folder: Path) -> dict[str, Any]:
    """(d) Seconds of a real ``Trainer.fit``: its training loop, all of it, of the processor in the loop, in log calls.

    ``turns`` fits with the logger, each between two without. The first one is the first of its process: it has the SDK's
    start in it. Before each the processor computes for ``settle`` seconds, so that none has one that was idle
    (as while a fit's end waits for delivery) before it and another has not.
    """
    import torch
    from lightning.pytorch import Callback, Trainer, seed_everything

    from lightning_loggers.demo.digits import DigitsData, DigitsNet

    torch.set_num_threads(1)

    class Clock(Callback):
        """Seconds between the first step and the last, and what all threads and others than this one computed meanwhile."""

        seconds = computed = others = 0.0

        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            self._own, self._all = time.thread_time(), time.process_time()
            self._begun = time.perf_counter()

        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            self.seconds = time.perf_counter() - self._begun
            self.computed = time.process_time() - self._all
            self.others = self.computed - (time.thread_time() - self._own)

    inside = 0.0

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            begun = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                inside += time.perf_counter() - begun

        return wrapper

    def train(logger: Any, number: int) -> tuple[float, float, float, float, float]:
        _settle(settle)
        seed_everything(0, verbose=False)
        clock = Clock()
        trainer = Trainer(
            max_epochs=number, logger=logger, log_every_n_steps=1, accelerator="cpu", enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, num_sanity_val_steps=0, limit_val_batches=0,
            callbacks=[clock],
        )  # fmt: skip
        before, begun = inside, time.perf_counter()
        trainer.fit(DigitsNet(), DigitsData())
        return clock.seconds, time.perf_counter() - begun, clock.computed, clock.others, inside - before

    train(False, 1)
    logger: Any = False
    if row == "no-op logger":
        from lightning_loggers import DummyLogger

        logger = DummyLogger()
    elif row != "logger=False":
        logger = BY_NAME[row].make(folder, uri)
        if not hasattr(logger, "log_hyperparams"):
            logger = _as_lightnings(logger)
    if logger:
        logger.log_metrics, logger.save = timed(logger.log_metrics), timed(logger.save)
    # In turn within one process: machines change their speed from one minute to the next.
    off, on = [train(False, epochs)], []
    for _ in range(turns):
        on.append(train(logger, epochs))
        off.append(train(False, epochs))
    parts = enumerate(("loop", "whole", "computed", "others", "calls"))
    return {part: {"off": [taken[at] for taken in off], "on": [taken[at] for taken in on]} for at, part in parts}


def _settle(seconds: float) -> None:
    """Compute, so that no turn comes after an idle processor and another does not."""
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        sum(value * value for value in _UNIT)


def _used_heap() -> list[Any]:
    """10,000 objects of many sizes are made; a tenth of them, to be kept, leaves the heap as a program does in use.

    In the heap of an interpreter that has just begun, the loop of :func:`busy` was 3 to 5 % faster than after this; log
    calls would be charged with that.
    """
    chance, kept = random.Random(0), []
    for _ in range(50):
        made = [
            bytes(chance.randrange(8, 400)) if index % 3 else [index * 1_000_003] * chance.randrange(1, 40)
            for index in range(200)
        ]
        kept += made[::10]
    return kept


def _as_lightnings(sdk: Any) -> Any:
    """What a Trainer takes, for an SDK that comes without a logger of Lightning's kind."""
    from lightning.pytorch.loggers.logger import Logger

    class Adapted(Logger):
        """Hands metrics on."""

        name, version = "peer", 0

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            sdk.log_metrics(metrics, step)

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            """Nothing: the others' hyperparameters are outside of the loop that is measured."""

        def save(self) -> None:
            sdk.save()

    return Adapted()


def busy(row: str, seconds: float, turns: int, *, settle: float, uri: str, folder: Path) -> dict[str, Any]:
    """(e) How many units of pure Python work are done a second, with and without 1,000 points a second logged.

    ``turns`` times with logging, each between two without, and each after ``settle`` seconds of the same. The processor
    never idles, and the heap is that of a process that has done something before. What is left at the end of a
    turn is delivered before the silence that is measured. Besides, what part of the time the log calls took, and what part
    of a processor's the other threads.
    """
    kept = _used_heap()
    logger = BY_NAME[row].make(folder, uri)
    delivers = hasattr(logger, "wait_for_run") and "journal only" not in row
    if delivers:
        logger.log_metrics(_metrics(5, 0), 0)
        logger.wait_for_run(120)
    step = 0

    def work(logs: bool, lasts: float) -> tuple[float, float, float]:
        nonlocal step
        done, calls, inside = 0, 0, 0.0
        others = time.process_time() - time.thread_time()
        begun = now = time.perf_counter()
        while now - begun < lasts:
            for _ in range(20):
                sum(value * value for value in _UNIT)
            done += 1
            now = time.perf_counter()
            if now - begun > calls * 0.005:  # five metrics, 200 times a second
                calls += 1
                if logs:
                    step += 1
                    logger.log_metrics(_metrics(5, step), step)
                    logger.save()
                    inside += time.perf_counter() - now
        took = time.perf_counter() - begun
        return done / took, inside / took, (time.process_time() - time.thread_time() - others) / took

    def silence() -> float:
        work(False, settle)
        return work(False, seconds)[0]

    off, on = [silence()], []
    for _ in range(turns):
        work(True, settle)
        on.append(work(True, seconds))
        ends = time.monotonic() + 20
        while delivers and logger.stats.pending and time.monotonic() < ends:
            work(False, 0.05)
        off.append(silence())
    logger.finalize("success")
    del kept
    return {"off": off, "on": on}


def construction(row: str, uri: str, folder: Path) -> dict[str, Any]:
    """(f) Seconds to import, to construct, and to the return of the first log call."""
    begun = time.perf_counter()
    import lightning_loggers

    lightning_loggers.MLFlowLogger  # noqa: B018 - its module is loaded when it is asked for
    imported = time.perf_counter()
    logger = BY_NAME[row].make(folder, uri)
    made = time.perf_counter()
    logger.log_metrics(_metrics(5, 0), 0)
    logged = time.perf_counter()
    if hasattr(logger, "_finalize_timeout_s"):
        logger._finalize_timeout_s = 0.0
    os._exit(_say({"import": imported - begun, "construct": made - imported, "first": logged - made}))


def recovery(records: int, uri: str, folder: Path) -> dict[str, Any]:
    """(g) Seconds in which ``sync`` delivers a journal, beside bare ``log_batch`` calls with the same points."""
    import subprocess

    from lightning_loggers import MLFlowLogger

    taken = []
    for number in (1, records):  # the first one for what every start costs: the SDK's import, a store's tables
        runs = folder / f"runs-{number}"
        logger = MLFlowLogger("recovery", tracking_uri=uri, save_dir=runs, delivery="offline")
        for step in range(number):
            logger.log_metrics({"loss": 1 / (step + 1)}, step)
        logger.finalize("success")
        logger.close()
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "lightning_loggers", "sync", str(runs)], check=True, capture_output=True)
        taken.append(time.perf_counter() - begun)
    return {"start": taken[0], "seconds": taken[1], "bare": _bulk(uri, records)}


def _bulk(uri: str, points: int) -> float:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(tracking_uri=uri)
    run = client.create_run(client.create_experiment(f"bulk-{time.time_ns()}")).info.run_id
    begun = time.perf_counter()
    for start in range(0, points, 1000):
        now = time.time_ns() // 1_000_000
        client.log_batch(run, metrics=[Metric("loss", 1 / (s + 1), now, s) for s in range(start, start + 1000)])
    return time.perf_counter() - begun


def image(row: str, number: int, burst: int, uri: str, folder: Path) -> dict[str, Any]:
    """(i) Seconds that a 512 x 512 image costs the training thread, and its array's copy.

    ``log`` and ``copy`` come in turn, after 50 ms of other work each, of which the processor's caches are full.
    ``burst`` is one image after the other, as at the end of a validation, and ``copies`` one copy after the other, into
    the same memory; ``kept`` are copies that are kept, as those of images that wait for their encoding have to be.
    """
    import numpy as np

    picture = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    logger = BY_NAME[row].make(folder, uri)
    log: Callable[[Any, int], object]
    if row.startswith("ours"):

        def log(array: Any, step: int) -> object:
            return logger.log(array, "picture", kind="image", step=step)

    elif "TensorBoard" in row:

        def log(array: Any, step: int) -> object:
            return logger.experiment.add_image("picture", array, step, dataformats="HWC")

    elif "Wandb" in row:

        def log(array: Any, step: int) -> object:
            return logger.log_image("picture", [array], step=step)

    else:

        def log(array: Any, step: int) -> object:
            return logger.experiment.log_image(logger.run_id, array, key="picture", step=step)

    log(picture, 0)
    work = np.random.default_rng(0).random(50_000)

    def timed(call: Callable[[Any], object], step: int) -> float:
        fresh = picture + np.uint8(step % 250)
        before = time.perf_counter()
        kept = call(fresh)
        took = time.perf_counter() - before
        del kept
        return took

    found: dict[str, list[float]] = {"copy": [], "log": []}
    for step in range(1, 2 * number + 1):
        if step % 2:
            found["copy"].append(timed(lambda array: array.copy(), step))
        else:
            found["log"].append(timed(lambda array, step=step: log(array, step), step))  # type: ignore[misc]
        ends = time.perf_counter() + 0.05
        while time.perf_counter() < ends:  # a training step, which gives up the interpreter as torch's does
            np.sin(work, out=work)
    steps = range(2 * number + 1, 2 * number + 1 + burst)
    found["copies"] = [timed(lambda array: array.copy(), step) for step in steps]
    kept = []
    found["kept"] = [timed(lambda array: kept.append(array.copy()), step) for step in steps]
    del kept[:]
    found["burst"] = [timed(lambda array, step=step: log(array, step), step) for step in steps]  # type: ignore[misc]
    logger.finalize("success")
    return found


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "calls": calls, "delivered": delivered, "fit": fit, "busy": busy, "construction": construction,
    "recovery": recovery, "image": image,
}  # fmt: skip


def _say(result: dict[str, Any]) -> int:
    os.write(3, json.dumps(result).encode())
    return 0


def main() -> None:
    """Measure; the result goes to descriptor 3, so that nobody else's output gets in between."""
    warnings.simplefilter("ignore")
    for name in (
        "lightning.pytorch",
        "lightning.fabric",
        "mlflow",
        "alembic",
        "comet_ml",
        "neptune",
        "lightning_loggers",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)
    name, given = sys.argv[1], json.loads(sys.argv[2])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()):
            result = MEASURES[name](**given, folder=Path(folder))
        _say(result)
        sys.stdout = sys.stderr = io.StringIO()  # farewells of SDKs


if __name__ == "__main__":
    main()
