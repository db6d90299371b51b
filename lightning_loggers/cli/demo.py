"""``lightning-loggers demo``: a real training run, logged to MLflow and read back from it."""

import contextlib
import importlib.util
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lightning_loggers.adapters.registry import adapter_class
from lightning_loggers.cli import console, tables
from lightning_loggers.errors import ConfigurationError, MissingDependencyError, TrackerUnavailableError
from lightning_loggers.progress import is_interactive
from lightning_loggers.secrets import secrets_of_uri, strip_uri

if TYPE_CHECKING:
    from lightning_loggers.demo.readback import ReadRun
    from lightning_loggers.demo.tally import Tally
    from lightning_loggers.loggers.mlflow import MLFlowLogger

_EXPERIMENT = "digits-demo"
_NEEDS = {"mlflow": "mlflow", "sklearn": "scikit-learn", "matplotlib": "matplotlib", "plotext": "plotext"}
_FINALIZE_TIMEOUT_S = 10.0
_LARGEST_SEED = 2**32 - 1
_CHATTER = ("lightning.pytorch", "lightning.fabric", "mlflow", "alembic")


def demo(
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            envvar="MLFLOW_TRACKING_URI",
            help="An MLflow server (http://...) or database (sqlite:///...). By default a SQLite file in the folder.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="How often to go through the training images.")] = 10,
    save_dir: Annotated[Path, typer.Option(help="Where everything is kept; made if need be.")] = Path(
        "lightning-loggers-demo"
    ),
    seed: Annotated[int, typer.Option(min=0, max=_LARGEST_SEED, help="For weights and the order of images.")] = 0,
) -> None:
    """Train a small network on handwritten digits, log it to MLflow and read it back.

    Takes less than a minute on two CPU cores and downloads nothing. Exit code 1 if MLflow has not taken the whole run.
    """
    _check(tracking_uri, save_dir)
    began = time.monotonic()
    with _quiet():
        with _busy("Loading PyTorch and MLflow"):
            import mlflow
            import torch

            from lightning_loggers.loggers.mlflow import MLFlowLogger

            _calm_loggers()
            torch.set_num_threads(1)  # on images this small, several threads mostly wait for one another
        logger = MLFlowLogger(
            _EXPERIMENT,
            tracking_uri=tracking_uri or None,
            save_dir=str(save_dir),
            log_model=True,
            finalize_timeout_s=_FINALIZE_TIMEOUT_S,
        )
        tally = _train(logger, epochs=epochs, seed=seed)
        trained_s = time.monotonic() - began
        console.show(_result(tally, epochs, trained_s))
        if not _delivered(logger):  # finalize has told where the records are and what delivers them
            logger.close()
            console.show("There is nothing to read back yet: MLflow has not taken the run.")
            raise typer.Exit(1)
        try:
            with _busy("Reading the run back from MLflow"):
                uri = logger.experiment.tracking_uri
                read = _read_back(mlflow, uri, logger)
        except (mlflow.exceptions.MlflowException, TrackerUnavailableError) as error:
            console.say(f"MLflow has taken the run, and does not answer now that it is to be read back: {error}")
            raise typer.Exit(1) from None
        finally:
            logger.close()
    complete = _report(read, tally, uri)
    console.show(f"\nThe journal, which anyone can read: {logger.log_dir}/journal")
    if not complete:
        raise typer.Exit(1)


# ---------------------------------------------------------------------- before


def _check(tracking_uri: str | None, save_dir: Path) -> None:
    """Refuse what cannot work, in a moment; the folder is made last, so that nothing is left behind.

    Raises:
        ConfigurationError: With the cure.
    """
    for module, requirement in _NEEDS.items():
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(
                f"`lightning-loggers demo` needs `{requirement}` (not installed). "
                "Install it: pip install 'lightning-loggers[demo]'"
            )
    if tracking_uri:
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


def _train(logger: "MLFlowLogger", *, epochs: int, seed: int) -> "Tally":
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


def _delivered(logger: "MLFlowLogger") -> bool:
    """Whether MLflow has the whole run; waits on while it takes more of it, as a slow machine's does."""
    stats = logger.stats
    deadline = time.monotonic() + (_FINALIZE_TIMEOUT_S if stats.delivered else 0)
    with _busy("Waiting for MLflow"):
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


def _read_back(mlflow: Any, uri: str, logger: "MLFlowLogger") -> "ReadRun":
    from lightning_loggers.demo.readback import read_run

    assert logger.run_id is not None
    return read_run(mlflow.MlflowClient(tracking_uri=uri), logger.run_id)


def _report(read: "ReadRun", tally: "Tally", uri: str) -> bool:
    """Show what MLflow has; returns whether that is what was logged."""
    from lightning_loggers.demo.readback import compare

    rows, complete = compare(tally.points, read.metrics)
    console.show(f"\nRead back from MLflow: run {read.name}, {read.status}")
    tables.show_table(("metric", "logged", "read back", "first", "last", "lowest", "highest"), rows)
    logged, got = (sum(map(len, points.values())) for points in (tally.points, read.metrics))
    same = "equal in step and value" if complete else "NOT all equal in step and value"
    console.show(f"{got:,} of {logged:,} points read back, {same}.")
    _curve(read.metrics)
    console.show(f"Parameters: {', '.join(f'{key}={value}' for key, value in sorted(read.params.items()))}")
    console.show(f"Files: {', '.join(read.artifacts)}")
    runs = f"{read.siblings} runs" if read.siblings > 1 else "its first run"
    console.show(f"The experiment {_EXPERIMENT!r} has {runs}.")
    public = strip_uri(uri)
    if uri.startswith(("http://", "https://")):
        console.show(f"\nSee it: {public.rstrip('/')}/#/experiments/{read.experiment_id}/runs/{read.run_id}")
    else:
        mlflow = "mlflow" if shutil.which("mlflow") else shlex.quote(str(Path(sys.executable).with_name("mlflow")))
        console.show(f"\nSee it:\n  {mlflow} ui --backend-store-uri {shlex.quote(public)}")
        console.show(f"and open http://127.0.0.1:5000/#/experiments/{read.experiment_id}/runs/{read.run_id}")
    return complete


def _curve(metrics: Mapping[str, Sequence[tuple[int, float]]]) -> None:
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
    figure.title("loss, as read back from MLflow")
    figure.label("step")
    colorless = not console.is_terminal() or bool(os.environ.get("NO_COLOR"))
    typer.echo(figure.build().string(colorless=colorless))
