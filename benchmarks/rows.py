"""What is measured: floors, the loggers a user would pick instead, and ours; each made in a process of its own."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLOOR, PEER, OURS = "floor", "peer", "ours"
FLOOR_ROW = "msgspec encode + `os.write`"


@dataclass(frozen=True)
class Row:
    """One logger.

    Attributes:
        name: For the tables.
        sort: ``FLOOR``, ``PEER`` or ``OURS``.
        make: Makes it, given a fresh folder and the address of an MLflow server.
        keeps: Whether what a call returned for survives SIGKILL; ``None`` where nothing is kept anyway.
        needs: What must be importable.
        server: Whether it talks to the server.
        calls: How many calls are measured at most.
    """

    name: str
    sort: str
    make: Callable[[Path, str], Any]
    keeps: bool | None
    needs: str = "lightning"
    server: bool = False
    calls: int = 4000


class _Base:
    """The part of a logger's interface that the Trainer uses while it trains."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Log."""

    def save(self) -> None:
        """Nothing."""

    def finalize(self, status: str) -> None:
        """End."""


class _List(_Base):
    def __init__(self) -> None:
        self.kept: list[Any] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.kept.append((step, metrics))


class _Write(_Base):
    def __init__(self, folder: Path) -> None:
        import msgspec

        from lightning_loggers.records import Record

        self._record, self._encode = Record, msgspec.json.Encoder().encode
        self._fd = os.open(folder / "floor.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        os.write(self._fd, self._encode(self._record(time.time_ns(), "metric", step, metrics)))


class _Sqlite(_Base):
    def __init__(self, folder: Path) -> None:
        self._db = sqlite3.connect(folder / "floor.db", isolation_level=None)
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=normal")
        self._db.execute("create table points (step integer, data text)")

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._db.execute("insert into points values (?, ?)", (step, json.dumps(metrics)))


_SENDER = """
import os, sys, time
from mlflow import MlflowClient
from mlflow.entities import Metric
client = MlflowClient(tracking_uri=sys.argv[1])
run = client.create_run(client.create_experiment(f"elsewhere-{time.time_ns()}")).info.run_id
os.write(1, b"ready")
os.set_blocking(0, False)
step = 0
while True:
    time.sleep(1)
    try:
        calls = os.read(0, 200)  # of five metrics: a full request
    except BlockingIOError:
        continue
    if not calls:
        break
    now = time.time_ns() // 1_000_000
    steps = range(step, step + len(calls))
    client.log_batch(run, metrics=[Metric(f"metric_{i}", at / 7, now, at) for at in steps for i in range(5)])
    step += len(calls)
"""


class _Elsewhere(_Base):
    """Has a process of its own send as many points, once a second, and does nothing else itself."""

    def __init__(self, uri: str) -> None:
        command = [sys.executable, "-c", _SENDER, uri]
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdout.read(len("ready"))
        self._fd = self._child.stdin.fileno()

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        os.write(self._fd, b".")

    def finalize(self, status: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait(60)


class _Comet(_Base):
    """The SDK's own offline experiment: Lightning 2.6's logger writes nothing offline."""

    def __init__(self, folder: Path) -> None:
        import comet_ml

        comet_ml.config.get_config()["comet.logging.console"] = "ERROR"
        self._run = comet_ml.OfflineExperiment(
            project_name="bench", workspace="bench", offline_directory=str(folder), log_code=False, log_graph=False,
            log_git_metadata=False, log_git_patch=False, log_env_details=False, auto_output_logging=None,
            display_summary_level=0,
        )  # fmt: skip

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._run.log_metrics(metrics, step=step)

    def finalize(self, status: str) -> None:
        self._run.end()


class _Neptune(_Base):
    def __init__(self, folder: Path) -> None:
        import neptune

        os.environ["NEPTUNE_DATA_DIRECTORY"] = str(folder / ".neptune")
        self._run = neptune.init_run(
            mode="offline", capture_stdout=False, capture_stderr=False, capture_hardware_metrics=False,
            capture_traceback=False, git_ref=False, source_files=[],
        )  # fmt: skip

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        for key, value in metrics.items():
            self._run[key].append(value, step=step)

    def finalize(self, status: str) -> None:
        self._run.stop()


class _Trackio(_Base):
    def __init__(self, folder: Path) -> None:
        os.environ["TRACKIO_DIR"] = str(folder)
        os.environ["HF_HUB_OFFLINE"] = "1"
        import trackio

        self._run = trackio.init(project="bench", embed=False)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._run.log(metrics, step=step)

    def finalize(self, status: str) -> None:
        self._run.finish()


class _DVCLive(_Base):
    def __init__(self, folder: Path) -> None:
        from dvclive import Live

        self._live = Live(dir=str(folder / "dvclive"), save_dvc_exp=False, report=None)

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self._live.step = step
        for key, value in metrics.items():
            self._live.log_metric(key, value)

    def save(self) -> None:
        self._live.sync()

    def finalize(self, status: str) -> None:
        self._live.end()


def _noop(folder: Path, uri: str) -> Any:
    return _Base()


def _theirs(name: str, **options: Any) -> Callable[[Path, str], Any]:
    def make(folder: Path, uri: str) -> Any:
        from lightning.pytorch import loggers

        filled = {
            key: value.format(folder=folder, uri=uri) if isinstance(value, str) else value
            for key, value in options.items()
        }
        if name == "WandbLogger":
            os.environ["WANDB_SILENT"] = "true"
        return getattr(loggers, name)(**filled)

    return make


def _ours(name: str, **options: Any) -> Callable[[Path, str], Any]:
    def make(folder: Path, uri: str) -> Any:
        import lightning_loggers

        filled = {
            key: value.format(folder=folder, uri=uri) if isinstance(value, str) else value
            for key, value in options.items()
        }
        return getattr(lightning_loggers, name)(**filled, finalize_timeout_s=300)

    return make


SQLITE = "sqlite:///{folder}/mlflow.db"

ROWS = [
    Row("no-op logger", FLOOR, _noop, None, calls=20_000),
    Row("list append", FLOOR, lambda folder, uri: _List(), False, calls=20_000),
    Row(FLOOR_ROW, FLOOR, lambda folder, uri: _Write(folder), True, "msgspec", calls=20_000),
    Row("SQLite, one WAL commit a call", FLOOR, lambda folder, uri: _Sqlite(folder), True, calls=10_000),
    Row("Lightning CSVLogger", PEER, _theirs("CSVLogger", save_dir="{folder}"), False),
    Row("Lightning TensorBoardLogger", PEER, _theirs("TensorBoardLogger", save_dir="{folder}"), False, "tensorboard"),
    Row(
        "Lightning MLFlowLogger, SQLite", PEER,
        _theirs("MLFlowLogger", tracking_uri=SQLITE, save_dir="{folder}"), True, "mlflow", calls=300,
    ),
    Row(
        "Lightning MLFlowLogger, server", PEER, _theirs("MLFlowLogger", tracking_uri="{uri}"), True, "mlflow", True, 200,
    ),
    Row(
        "Lightning MLFlowLogger, server, `synchronous=False`", PEER,
        _theirs("MLFlowLogger", tracking_uri="{uri}", synchronous=False), False, "mlflow", True, 1000,
    ),
    Row("comet_ml offline", PEER, lambda folder, uri: _Comet(folder), False, "comet_ml"),
    Row(
        "Lightning WandbLogger, offline", PEER, _theirs("WandbLogger", save_dir="{folder}", offline=True), False, "wandb",
    ),
    Row("neptune offline", PEER, lambda folder, uri: _Neptune(folder), False, "neptune"),
    Row("trackio", PEER, lambda folder, uri: _Trackio(folder), False, "trackio"),
    Row("dvclive", PEER, lambda folder, uri: _DVCLive(folder), True, "dvclive", calls=500),
    Row(
        "ours, journal only", OURS,
        _ours("MLFlowLogger", tracking_uri="http://127.0.0.1:9", save_dir="{folder}", delivery="offline"), True, calls=20_000,
    ),
    Row(
        "ours, MLFlowLogger, SQLite", OURS, _ours("MLFlowLogger", tracking_uri=SQLITE, save_dir="{folder}"), True, "mlflow",
    ),
    Row(
        "ours, MLFlowLogger, SQLite, `delivery=\"thread\"`", OURS,
        _ours("MLFlowLogger", tracking_uri=SQLITE, save_dir="{folder}", delivery="thread"), True, "mlflow",
    ),
    Row(
        "ours, MLFlowLogger, server", OURS,
        _ours("MLFlowLogger", tracking_uri="{uri}", save_dir="{folder}"), True, "mlflow", True,
    ),
    Row(
        "ours, MLFlowLogger, server, `delivery=\"process\"`", OURS,
        _ours("MLFlowLogger", tracking_uri="{uri}", save_dir="{folder}", delivery="process"), True, "mlflow", True,
    ),
    Row("ours, CSVLogger", OURS, _ours("CSVLogger", save_dir="{folder}"), True),
    Row("ours, TensorBoardLogger", OURS, _ours("TensorBoardLogger", save_dir="{folder}"), True, "tensorboard"),
    Row("ours, WandbLogger, offline", OURS, _ours("WandbLogger", save_dir="{folder}", offline=True), True, "wandb"),
    Row("ours, CometLogger, offline", OURS, _ours("CometLogger", offline_directory="{folder}", online=False), True, "comet_ml"),
    Row("ours, NeptuneLogger, offline", OURS, _ours("NeptuneLogger", save_dir="{folder}", mode="offline"), True, "neptune"),
    Row("ours, InMemoryLogger", OURS, _ours("InMemoryLogger", save_dir="{folder}"), True),
]  # fmt: skip

CONTROL = Row(
    "no logger, the points sent by another process", FLOOR, lambda folder, uri: _Elsewhere(uri), None, "mlflow", True
)
"""What a server on the same machine costs by itself."""

BY_NAME = {row.name: row for row in [*ROWS, CONTROL]}
