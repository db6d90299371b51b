"""``lightning-loggers demo``: a real training run, logged to a tracker and read back from it."""

import contextlib
import importlib.util
import logging
import os
import shlex
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lightning_loggers.adapters.registry import KNOWN, adapter_class
from lightning_loggers.cli import console, tables
from lightning_loggers.demo.trackers import Tracker, demo_tracker
from lightning_loggers.errors import ConfigurationError, MissingDependencyError
from lightning_loggers.progress import is_interactive
from lightning_loggers.secrets import secrets_of_uri

if TYPE_CHECKING:
    from lightning_loggers.demo.readback import DemoTracker, ReadRun
    from lightning_loggers.demo.tally import Tally
    from lightning_loggers.loggers.journaled import JournaledLogger

_NEEDS = {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "plotext": "plotext"}
_FINALIZE_TIMEOUT_S = 10.0
_LARGEST_SEED = 2**32 - 1
_CHATTER = ("lightning.pytorch", "lightning.fabric", "mlflow", "alembic", "comet_ml", "neptune", "wandb")


def demo(
    logger: Annotated[
        Tracker,
        typer.Option(
            help="Where to log to. Comet, Neptune and W&B write their offline formats: no account is needed.",
        ),
    ] = Tracker.MLFLOW,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI",
            help="For mlflow: a server (http://...) or database (sqlite:///...). By default a SQLite file.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often to go through the training images.")] = 10,
    save_dir: Annotated[Path, typer.Option(help="Where everything is kept; made if need be.")] = Path(
        "lightning-loggers-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, max=_LARGEST_SEED, help="For weights and the order of images.")] = 0,
) -> None:
    """Train a small network on handwritten digits, log it to a tracker and read it back.

    Takes less than a minute on two CPU cores and downloads nothing. Exit code 1 if the tracker has not taken the whole
    run.
    """
    _check(logger, tracking_uri, save_dir)
    tracker = demo_tracker(logger)
    began = time.monotonic()
    with _quiet():
        with _busy(f"Loading PyTorch and {tracker.label}"):
            import torch

            made = tracker.make(save_dir, tracking_uri, _FINALIZE_TIMEOUT_S)
            _calm_loggers()
            torch.set_num_threads(1)  # on images this small, several threads mostly wait for one another
        tally = _train(made, epochs=epochs, seed=seed)
        trained_s = time.monotonic() - began
        console.show(_result(tally, epochs, trained_s))
        if not _delivered(made, tracker):  # finalize has told where the records are and what delivers them
            made.close()
            console.show(f"There is nothing to read back yet: {tracker.label} has not taken the run.")
            raise typer.Exit(1)
        try:
            with _busy(f"Reading the run back from {tracker.label}"):
                read = tracker.read(made)
        except Exception as error:  # noqa: BLE001 - whatever an SDK raises when its tracker has gone
            console.say(f"{tracker.label} has taken the run, and cannot be read now: {error}")
            raise typer.Exit(1) from None
        finally:
            made.close()
    complete = _report(read, tally, tracker)
    console.show(f"\nThe journal, which anyone can read: {made.log_dir}/journal")
    if not complete:
        raise typer.Exit(1)


# ---------------------------------------------------------------------- before


def _check(name: str, tracking_uri: str | None, save_dir: Path) -> None:
    """Refuse what cannot work, in a moment; the folder is made last, so that nothing is left behind.

    Raises:
        ConfigurationError: With the cure.
    """
    known = KNOWN[name]
    extras = "demo" if known.extra in {None, "mlflow"} else f"demo,{known.extra}"
    needs = _NEEDS if known.module is None else {known.module: str(known.extra), **_NEEDS}
    for module, requirement in needs.items():
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(
                f"`lightning-loggers demo` needs `{requirement}` (not installed). "
                f"Install it: pip install 'lightning-loggers[{extras}]'"
            )
    if tracking_uri and name == "mlflow":
        console.keep_secret(secrets_of_uri(tracking_uri))
        adapter_class("mlflow").check_options({"tracking_uri": tracking_uri})
    try:
        save_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=save_dir):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"--save-dir {shlex.quote(str(save_dir))} cannot be used: {_cause(error, save_dir)}. "
            "Give a folder that you may write, for example: --save-dir ~/lightning-loggers-demo"
        ) from error


def _cause(error: OSError, folder: Path) -> str:
    return "it is a file" if folder.is_file() else str(error.strerror or error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of other libraries: they are about choices that a user of the demo does not make."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _calm_loggers() -> None:
    """Once they are imported: importing them sets their levels."""
    for name in _CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def _busy(what: str) -> Iterator[None]:
    """Show a person that something is going on."""
    if not is_interactive():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{what} ..."):
        yield


# ---------------------------------------------------------------------- training


def _train(logger: "JournaledLogger", *, epochs: int, seed: int) -> "Tally":
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint

    from lightning_loggers.demo.bar import TrainingBar
    from lightning_loggers.demo.confusion import ConfusionMatrix
    from lightning_loggers.demo.digits import DigitsData, DigitsNet
    from lightning_loggers.demo.tally import Tally

    seed_everything(seed, verbose=False)
    logger.log_hyperparams({"seed": seed, "epochs": epochs})
    tally = Tally()
    best = ModelCheckpoint(
        monitor="val/accuracy", mode="max", filename="best-{epoch:02d}", auto_insert_metric_name=False
    )
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=[logger, tally],
        log_every_n_steps=1,
        callbacks=[best, ConfusionMatrix(logger), *([TrainingBar()] if is_interactive() else [])],
        default_root_dir=logger.save_dir,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(DigitsNet(), DigitsData())
    except SystemExit:  # how Lightning ends a program on Ctrl+C, once it has finalized the loggers
        console.say(f"Interrupted. What was logged is kept in {logger.log_dir}.")
        raise KeyboardInterrupt from None
    return tally


def _delivered(logger: "JournaledLogger", tracker: "DemoTracker") -> bool:
    """Whether the tracker has the whole run; waits on while it takes more of it, as a slow machine's does."""
    stats = logger.stats
    deadline = time.monotonic() + (_FINALIZE_TIMEOUT_S if stats.delivered else 0)
    with _busy(f"Waiting for {tracker.label}"):
        while stats.pending and time.monotonic() < deadline:
            time.sleep(0.1)
            before, stats = stats, logger.stats
            if stats.delivered > before.delivered:
                deadline = time.monotonic() + _FINALIZE_TIMEOUT_S
    return not stats.pending


def _result(tally: "Tally", epochs: int, seconds: float) -> str:
    accuracy = tally.points["val/accuracy"][-1][1]
    steps = len(tally.points["train/loss"])
    return (
        f"Trained {epochs} epoch{'s' if epochs > 1 else ''}, {steps} steps, in {seconds:.0f} s: {accuracy:.1%} of the "
        "validation images recognised."
    )


# ---------------------------------------------------------------------- afterwards


def _report(read: "ReadRun", tally: "Tally", tracker: "DemoTracker") -> bool:
    """Show what the tracker has; returns whether that is what was logged."""
    from lightning_loggers.demo.readback import EXPERIMENT, compare

    rows, complete = compare(tally.points, read.metrics, float32=tracker.float32)
    console.show(f"\nRead back from {tracker.label}: {read.title}")
    tables.show_table(("metric", "logged", "read back", "first", "last", "lowest", "highest"), rows)
    logged, got = (sum(map(len, points.values())) for points in (tally.points, read.metrics))
    same = "equal in step and value" if complete else "NOT all equal in step and value"
    rounding = " (as 32-bit floats, which it stores)" if tracker.float32 else ""
    console.show(f"{got:,} of {logged:,} points read back, {same}{rounding}.")
    _curve(read.metrics, tracker)
    console.show(f"Parameters: {', '.join(f'{key}={value}' for key, value in sorted(read.params.items()))}")
    console.show(f"Files: {', '.join(read.files)}")
    if read.runs is not None:
        runs = f"{read.runs} runs" if read.runs > 1 else "its first run"
        console.show(f"The experiment {EXPERIMENT!r} has {runs}.")
    console.show("")
    for line in read.see:
        console.show(line)
    return complete


def _curve(metrics: Mapping[str, Sequence[tuple[int, float]]], tracker: "DemoTracker") -> None:
    """Draw both losses over the steps."""
    import plotext

    training, validation = metrics.get("train/loss", ()), metrics.get("val/loss", ())
    if not training or not validation:
        return
    figure = plotext.figure
    figure.clear()
    figure.theme("simple")  # leaves the terminal's background as it is
    figure.plot_size(min(shutil.get_terminal_size().columns, 100), 18)
    for name, points, marker in (("train/loss", training, "braille"), ("val/loss", validation, "o")):
        steps, values = zip(*points, strict=True)
        signal = figure.signal(list(steps), list(values), marker=marker).label(name)
        figure.draw(signal.lines() if marker == "braille" else signal)
    last, highest = training[-1][0], max(value for _, value in training)
    figure.legend(x=last, y=highest, ha="right", va="top", relative=True)
    ticks = sorted({round(last * part / 5) for part in range(6)})
    figure.ruler("x").ticks(ticks, [str(tick) for tick in ticks])
    figure.title(f"loss, as read back from {tracker.label}")
    figure.label("step")
    colorless = not console.is_terminal() or bool(os.environ.get("NO_COLOR"))
    typer.echo(figure.build().string(colorless=colorless))
