"""Journals written without a Trainer, for the tests of the command line."""

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.records import Record, RunSpec
from lightning_loggers.values.metrics import normalise


def open_run(run_dir: Path, uri: str, **options: Any) -> JournalWriter:
    """A live run: its writer's lock is held until the writer is closed."""
    run = RunSpec(
        secrets.token_hex(16),
        run_dir.parent.name,
        run_dir.name,
        "mlflow",
        {"tracking_uri": uri, "experiment_name": run_dir.parent.name, **options},
    )
    return JournalWriter(run_dir / "journal", run, normalise_metrics=lambda metrics: normalise(metrics, print))


def append_points(writer: JournalWriter, count: int, start: int = 0) -> list[tuple[int, float]]:
    """Log a metric ``loss``; returns what MLflow must show."""
    points = []
    for step in range(start, start + count):
        writer.append_metrics({"loss": step / 8}, step)
        points.append((step, step / 8))
    return points


def end_run(writer: JournalWriter, status: str | None = None) -> None:
    """Close a run with a status, or without a word, as when its process was killed."""
    if status is not None:
        writer.append(Record(time.time_ns(), "status", value=status))
    writer.close()


def write_run(
    run_dir: Path, uri: str, count: int = 20, status: str | None = "finished", **options: Any
) -> list[tuple[int, float]]:
    """A run whose process is gone."""
    writer = open_run(run_dir, uri, **options)
    points = append_points(writer, count)
    end_run(writer, status)
    return points


def tree(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Everything below a folder: mode, size, modification time and content."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(root))] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


def environment(**extra: str) -> dict[str, str]:
    """The environment for a command that is to behave as in a user's shell."""
    return {**{key: value for key, value in os.environ.items() if key not in {"CI", "MLFLOW_TRACKING_URI"}}, **extra}


@contextlib.contextmanager
def running(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """``lightning-loggers`` in a process of its own, killed at the end if it still runs."""
    with subprocess.Popen(
        [sys.executable, "-m", "lightning_loggers", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as command:
        try:
            yield command
        finally:
            command.kill()
