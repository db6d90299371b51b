"""NeptuneLogger through the real SDK: its offline folders, and a stand-in of a server's endpoints."""

import copy
import importlib.metadata
import inspect
import io
import json
import logging
import math
import os
import pickle
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import free_port, wait_until
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_utilities.core.rank_zero import rank_zero_only
from neptune_reading import NeptuneCase, OfflineRun, no_settings, operations
from neptune_standin import NeptuneStandIn, StandInRun, token_for
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from lightning_loggers import NeptuneLogger
from lightning_loggers.adapters import neptune_images, neptune_records
from lightning_loggers.adapters.base import Capabilities
from lightning_loggers.adapters.neptune import NeptuneAdapter, run_id_of
from lightning_loggers.adapters.neptune_sinks import with_token
from lightning_loggers.base import DummyExperiment
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.errors import ConfigurationError, MissingDependencyError, TrackerUnavailableError
from lightning_loggers.journal import read
from lightning_loggers.journal.layout import journal_dir
from lightning_loggers.journal.reader import read_first_header
from lightning_loggers.records import Kind, Record
from lightning_loggers.testing import Point, RunUnderTest

HOSTED = token_for("https://app.neptune.ai")
QUIET = dict.fromkeys([f"capture_{what}" for what in ("stdout", "stderr", "traceback", "hardware_metrics")], False)


@pytest.fixture(autouse=True)
def neptune_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of this machine; the SDK's authentication allows plain HTTP, which loopback is."""
    no_settings(monkeypatch)
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")


@pytest.fixture
def standin() -> Iterator[NeptuneStandIn]:
    """A server."""
    with NeptuneStandIn() as server:
        yield server
        unknown = [path for path in server.unknown if "/notifications/" not in path]  # the SDK's own run listens
        assert not unknown, f"the stand-in was asked for what it has not: {unknown[:3]}"


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """Everything that was told."""
    caplog.set_level(logging.INFO, "lightning_loggers")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def make(folder: Path, **given: Any) -> NeptuneLogger:
    """An offline logger, unless a token is given, that waits longer at the end than a slow machine needs."""
    if "api_key" in given:
        given.setdefault("project", "team/digits")
    elif "run" not in given:
        given.setdefault("mode", "offline")
    return NeptuneLogger(save_dir=folder, finalize_timeout_s=60, **given)


def run_dir(logger: NeptuneLogger) -> Path:
    """The folder of a logger's run."""
    assert logger.log_dir is not None
    return Path(logger.log_dir)


def offline(folder: Path) -> OfflineRun:
    """What the SDK's folders of a run hold."""
    header = read_first_header(journal_dir(folder))
    assert header is not None
    return OfflineRun(folder / ".neptune", run_id_of(header.run.uid))


def deliver(folder: Path, options: dict[str, Any] | None = None, timeout_s: float = 60.0) -> Worker:
    """Deliver what is left of a run, as the command line does."""
    worker = Worker(folder, options)
    deadline = time.monotonic() + timeout_s
    while (step := worker.step()).kind is not StepKind.IDLE or worker.finish_dead().kind is not StepKind.IDLE:
        assert time.monotonic() < deadline, f"not all delivered: {worker.last_fault}"
        if step.kind is not StepKind.PROGRESS:
            time.sleep(min(step.wait_s, 0.2))
    worker.close()
    return worker


def sync(folder: Path, server: NeptuneStandIn) -> StandInRun:
    """What ``neptune sync`` makes of the folders of a run."""
    from click.testing import CliRunner
    from neptune.cli.commands import sync as command

    arguments = ["--offline-only", "--path", str(folder), "--project", "team/digits"]
    done = CliRunner().invoke(command, arguments, env={"NEPTUNE_API_TOKEN": server.token}, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return server.only_run()


class Regression(LightningModule):
    """A model of four weights: as little training as a Trainer can do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(logger: Any, folder: Path, steps: int, callbacks: list[Any] | None = None) -> Trainer:
    """A real fit that logs every step."""
    data = DataLoader(TensorDataset(torch.randn(4 * steps, 4)), batch_size=4)
    trainer = Trainer(
        logger=logger, max_epochs=1, log_every_n_steps=1, accelerator="cpu", default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=bool(callbacks),
        callbacks=callbacks,
    )  # fmt: skip
    trainer.fit(Regression(), data)
    return trainer


# ---------------------------------------------------------------------- the suite


class TestNeptune(NeptuneCase):
    """Neptune, offline."""


class TestNeptuneServer(NeptuneCase):
    """Neptune's endpoints: the same records, asked for at the server."""

    once_after_crash = False
    time_resolution_s = 0.001

    @pytest.fixture
    def options(self, standin: NeptuneStandIn) -> dict[str, Any]:
        """The stand-in."""
        self.standin = standin
        return {"mode": "async", "server": with_token(standin.uri, standin.token), "project": "team/digits"}

    def offline(self, run: RunUnderTest) -> OfflineRun:
        """What the server has; the points that it numbered without their numbers, as the run says."""
        found = self.standin.only_run()
        read = OfflineRun(run.run_dir, "none")
        unnumbered = run.remote.extra["fields"].get("unnumbered", {})
        read.values, read.files = found.values, found.files
        for path, points in found.series.items():
            count = unnumbered.get(path, 0)
            read.series[path] = [
                (value, None if index < count else step, at) for index, (value, step, at) in enumerate(points)
            ]
        return read

    def points(self, run: RunUnderTest) -> list[Point]:
        """JSON has one kind of zero."""
        return [point._replace(value=float(point.value)) for point in super().points(run)]


# ---------------------------------------------------------------------- the constructor


def test_constructor_is_that_of_lightning_2_5() -> None:
    """Names, defaults and kinds are those of pytorch-lightning 2.5.6, the last line of versions with this logger."""
    # Lightning 2.6.4 removed it, so its signature is held here as it was.
    theirs = {
        "api_key": None,
        "project": None,
        "name": None,
        "run": None,
        "log_model_checkpoints": True,
        "prefix": "training",
    }
    ours = list(inspect.signature(NeptuneLogger.__init__).parameters.values())[1:]
    assert [(p.name, p.default) for p in ours[: len(theirs)]] == list(theirs.items())
    assert {p.kind for p in ours[:-1]} == {inspect.Parameter.KEYWORD_ONLY}
    assert (ours[-1].name, ours[-1].kind) == ("neptune_run_kwargs", inspect.Parameter.VAR_KEYWORD)
    summary = inspect.signature(NeptuneLogger.log_model_summary).parameters.values()
    assert [(p.name, p.default) for p in summary][2:] == [("max_depth", -1)]
    assert [getattr(NeptuneLogger, name) for name in ("LOGGER_JOIN_CHAR", "PARAMETERS_KEY")] == ["/", "hyperparams"]


@pytest.mark.parametrize(
    ("given", "environment"),
    [
        ({}, {}),
        ({"project": "team/digits", "mode": "sync"}, {}),
        ({"project": "team/digits", "api_key": HOSTED}, {}),
        ({"project": "team/digits", "api_key": "ANONYMOUS"}, {}),
        ({"project": "team/digits"}, {"NEPTUNE_API_TOKEN": HOSTED}),
        ({"mode": "offline"}, {"NEPTUNE_MODE": "offline"}),
        ({}, {"NEPTUNE_MODE": "async"}),
        ({"delivery": "offline"}, {}),
    ],
)
def test_the_hosted_service_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], environment: dict[str, str]
) -> None:
    """Whatever leads to the service that ended raises in the constructor, naming the ways out; offline does not."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if given.get("mode") == "offline":
        NeptuneLogger(save_dir=tmp_path, **given)
        return
    with pytest.raises(ConfigurationError, match="ended on 2026-03-05") as caught:
        NeptuneLogger(save_dir=tmp_path, **given)
    for way_out in ("mode='offline'", "NEPTUNE_API_TOKEN", "TensorBoardLogger("):
        assert way_out in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "read-only"}, "mode='read-only' takes no data"),
        ({"mode": "fast"}, "mode='fast' is not one of"),
        ({"mode": "offline", "tag": "a"}, "tag: no argument of NeptuneLogger or neptune.init_run"),
        ({"mode": "offline", "with_id": "DIG-1"}, "cannot continue a run by with_id='DIG-1'"),
        ({"mode": "offline", "custom_run_id": "x" * 37}, "more than 36 characters"),
        ({"mode": "offline", "name": "offline"}, "a folder of the SDK's own"),
        ({"api_key": "s3cr3t"}, "is none of Neptune's"),
        ({"api_key": token_for("https://neptune.example.com")}, "project=None"),
        ({"run": 3}, "run=3 is neither"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    """The constructor says what is wrong and what would work, and repeats no token."""
    with pytest.raises(ConfigurationError) as caught:
        NeptuneLogger(save_dir=tmp_path, **given)
    assert said in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, r"needs `neptune>=1.14` \(not installed\).*pip install 'lightning-loggers\[neptune\]'"),
        ({"neptune": "1.2.0"}, r"needs `neptune>=1.14` \(found 1.2.0\)"),
        ({"neptune": "1.14.0", "neptune-client": "1.14.0"}, r"both installed.*pip uninstall -y neptune neptune-client"),
    ],
)
def test_an_sdk_that_cannot_be_used_is_told_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, str], said: str
) -> None:
    """Without the SDK, with an old one, or with its two packages at once, the constructor says what to run."""

    def version(name: str) -> str:
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(MissingDependencyError, match=said):
        make(tmp_path)
    logger = make(tmp_path, delivery="offline")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.close()
    if len(found) == 2:  # whoever delivers is told the same
        worker = Worker(run_dir(logger))
        step = next(step for step in iter(worker.step, None) if step.kind is StepKind.FAILED)
        assert "both installed" in step.reason
        worker.close()


def test_the_environment_says_what_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Project, mode, custom id and data directory come from the SDK's own variables; arguments go first."""
    data = tmp_path / "data" / ".neptune"
    for name, value in {
        "PROJECT": "team/digits", "MODE": "offline", "CUSTOM_RUN_ID": "mine", "DATA_DIRECTORY": str(data),
    }.items():  # fmt: skip
        monkeypatch.setenv(f"NEPTUNE_{name}", value)
    logger = NeptuneLogger()
    assert (logger.name, logger.save_dir) == ("team/digits", str(data))
    assert logger._options["custom_run_id"] == "mine"
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    (folder,) = (data / "offline").iterdir()
    assert (folder / "data-1.log").stat().st_size > 0
    assert NeptuneLogger(name="other", save_dir=tmp_path).name == "other"


# ---------------------------------------------------------------------- offline


def test_a_real_fit_offline(tmp_path: Path, standin: NeptuneStandIn, told: Callable[[], str]) -> None:
    """All of a fit, its checkpoint and summary too, is in the SDK's folder, and ``neptune sync`` takes it whole."""
    logger = make(tmp_path, project="team/digits", name="first try", tags=["a", "b"], description="what for")
    logger.log_hyperparams({"lr": 0.1, "model": {"width": 64}, "none": None, "big": 2**40})
    logger.log_model_summary(Regression())
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "checkpoints", monitor="loss", save_top_k=1)
    fit(logger, tmp_path, 20, [checkpoint])
    logger.finalize("success")
    expected = {
        record.step: record.data["training/loss"]
        for record in read(run_dir(logger))
        if record.data and "training/loss" in record.data
    }
    assert len(expected) == 20

    found = offline(run_dir(logger))
    assert {step: value for value, step, _ in found.series["training/loss"]} == expected
    assert found.values["training/hyperparams/lr"] == 0.1
    assert found.values["training/hyperparams/model/width"] == 64
    assert (found.values["training/hyperparams/none"], found.values["training/hyperparams/big"]) == ("None", 2.0**40)
    assert (found.values["sys/name"], found.values["sys/tags"]) == ("first try", {"a", "b"})
    assert (found.values["sys/description"], found.values["sys/failed"]) == ("what for", False)
    assert found.values["training/status"] == "success"
    best = Path(checkpoint.best_model_path)
    assert found.files[f"training/model/checkpoints/{best.stem}"] == best.read_bytes()
    assert found.values["training/model/best_model_path"] == str(best)
    assert found.values["training/model/best_model_score"] == pytest.approx(float(checkpoint.best_model_score))
    assert "Linear" in found.files["training/model/summary"].decode()
    assert f"--path '{run_dir(logger)}/.neptune' --project team/digits" in told()
    assert told().count("integers have 32 bits") == 1

    best.unlink()  # as the callback does: the folder has its own
    run = sync(run_dir(logger), standin)
    assert {step: value for value, step, _ in run.series["training/loss"]} == expected
    assert run.values == found.values
    assert run.files == found.files


def test_points_that_neptune_would_drop_are_kept(tmp_path: Path, standin: NeptuneStandIn) -> None:
    """NaN, 64-bit integers, falling and missing steps are beside their series, with value and step; told once each."""
    logger = make(tmp_path)
    logged = [(1.0, 0), (math.nan, 1), (2.0, 2), (2.5, 2), (3.0, 1), (4.0, None), (2**63 - 1, 5), (5.0, 6), (-1, 2.5)]
    for value, step in logged:
        logger.log_metrics({"loss": value}, step)
    for value in range(3):
        logger.log_metrics({"unnumbered": value})
    logger.log_metrics({"unnumbered": 9.0}, 2)
    logger.log_metrics({"unnumbered": 10.0}, 4)
    logger.finalize("success")
    run = sync(run_dir(logger), standin)
    assert [(value, step) for value, step, _ in run.series["training/loss"]] == [(1.0, 0), (2.0, 2), (5.0, 6)]
    other = [json.loads(value) for value, _, _ in run.series["training/loss__other"]]
    assert [(item["value"], item["step"]) for item in other] == [
        ("nan", 1), (2.5, 2), (3.0, 1), (4.0, None), (2**63 - 1, 5), (-1, 2.5),
    ]  # fmt: skip
    assert [value for value, _, _ in run.series["training/unnumbered"]] == [0.0, 1.0, 2.0, 10.0]
    assert json.loads(run.files["lightning_loggers/fitted"])["unnumbered"] == {"training/unnumbered": 3}


def test_fields_that_exclude_each_other_are_both_there(
    tmp_path: Path, standin: NeptuneStandIn, told: Callable[[], str]
) -> None:
    """A field beside its own namespace, Neptune's own ``sys``, and types that change: all is there, and explained."""
    logger = make(tmp_path, prefix="")
    logger.log_metrics({"a": 1.0, "sys/id": 2.0}, 0)
    logger.log_metrics({"a/b": 3.0, "c/d": 4.0}, 0)
    logger.log_metrics({"c": 5.0, "hyperparams/lr": 6.0}, 0)
    logger.log_hyperparams({"lr": 0.1, "width": 3})
    logger.log_hyperparams({"lr": 0.2, "width": "wide", "wide/x": 1, "wide": "x" * 20_000})
    logger.finalize("success")
    run = sync(run_dir(logger), standin)
    points = {path: [value for value, _, _ in points] for path, points in run.series.items()}
    assert points == {"a": [1.0], "sys_/id": [2.0], "a_/b": [3.0], "c/d": [4.0], "c_": [5.0], "hyperparams/lr": [6.0]}
    params = {path: value for path, value in run.values.items() if path.startswith("hyperparams/")}
    assert params == {"hyperparams/lr_": 0.2, "hyperparams/width": "wide", "hyperparams/wide/x": 1}
    assert run.files["hyperparams/wide_"] == b"x" * 20_000
    fitted = json.loads(run.files["lightning_loggers/fitted"])
    assert fitted["names"] == {"sys_/id": "sys/id"}
    assert fitted["moved"] == {
        "a_/b": "a/b", "c_": "c", "hyperparams/lr_": "hyperparams/lr", "hyperparams/wide_": "hyperparams/wide",
    }  # fmt: skip
    assert told().count("no field 'a/b' beside") == 1


def test_files_whose_places_fit_to_one_are_two(tmp_path: Path) -> None:
    """Artifacts in folders that Neptune does not take, or too deep for a path, have a field each and their content."""
    logger = make(tmp_path / "logs", prefix="")
    folders = ["p\nq", "p_q", "deep/" * 200 + "1", "deep/" * 200 + "2"]
    for folder in folders:
        (tmp_path / "file.txt").write_text(folder)
        logger.log_artifact(tmp_path / "file.txt", folder)
        (tmp_path / "file.txt").unlink()
    logger.finalize("success")
    files = offline(run_dir(logger)).files
    artifacts = {path: content.decode() for path, content in files.items() if path.startswith("artifacts/")}
    assert sorted(artifacts.values()) == sorted(folders)
    assert all(len(path) <= 510 for path in artifacts)


def test_what_a_crash_left_is_cut_off(tmp_path: Path) -> None:
    """Operations behind the place that was saved, a torn one too, are cut off and sent again: each is there once."""
    logger = make(tmp_path, delivery="offline")
    for step in range(20):
        logger.log_metrics({"loss": float(step)}, step)
    logger.close()
    folder = run_dir(logger)
    worker = Worker(folder)
    assert worker.step().kind is StepKind.PROGRESS
    (queue,) = offline(folder).folders
    (kept,) = queue.glob("data-*.log")
    with kept.open("a") as file:
        file.write('{"obj": {"type": "LogFloats", "path": ["training", "loss"], "values": [{"value": 7.0, "st')
    (queue / "data-900.log").write_text('{"obj": {"type": "AssignInt", "path": ["x"], "value": 1}, "version": 900}\n')
    (queue / "last_put_version").write_text("901")
    worker.close()
    logger = make(tmp_path, delivery="offline", version=logger.version)
    logger.log_metrics({"loss": 20.0}, 20)
    logger.close()
    deliver(folder)
    found = offline(folder)
    assert [(value, step) for value, step, _ in found.series["training/loss"]] == [(float(s), s) for s in range(21)]
    assert "x" not in found.values


def test_a_lost_state_begins_the_folder_anew(tmp_path: Path) -> None:
    """Where the saved place is lost, everything is sent again into the same folder, and is there once."""
    logger = make(tmp_path, delivery="offline")
    for step in range(20):
        logger.log_metrics({"loss": float(step)}, step)
    logger.log_text("note", "good", 1)
    logger.close()
    deliver(run_dir(logger))
    (journal_dir(run_dir(logger)) / "neptune.state.json").write_bytes(b"\0" * 64)
    deliver(run_dir(logger))
    found = offline(run_dir(logger))
    assert len(found.folders) == 1
    assert [value for value, _, _ in found.series["training/loss"]] == [float(step) for step in range(20)]
    assert [value for value, _, _ in found.series["training/text/note"]] == ["good"]


@pytest.mark.parametrize("how", ["moved", "moved while open", "read in part"])
def test_a_folder_that_was_synced_is_left_alone(tmp_path: Path, told: Callable[[], str], how: str) -> None:
    """What is logged after a folder was synced goes to another one, told once; nothing goes to a deleted file."""
    logger = make(tmp_path, delivery="offline")
    logger.log_metrics({"loss": 1.0}, 0)
    worker = Worker(run_dir(logger))
    while worker.step().kind is StepKind.PROGRESS:
        pass
    (first,) = offline(run_dir(logger)).folders
    if how != "moved while open":
        worker.close()
    if how == "read in part":
        (first / "last_ack_version").write_text("1")
        before = (first / "data-1.log").read_bytes()
    else:
        shutil.rmtree(first)
    logger.log_metrics({"loss": 2.0}, 1)
    logger.close()
    worker.close() if how == "moved" else None
    deadline = time.monotonic() + 60
    while (step := worker.step()).kind is not StepKind.IDLE:
        assert time.monotonic() < deadline
        time.sleep(min(step.wait_s, 0.05))
    worker.close()
    second = next(folder for folder in offline(run_dir(logger)).folders if folder != first)
    assert second.name.endswith("__lightning__1")
    assert b"2.0" in (second / "data-1.log").read_bytes()
    if how == "read in part":
        assert (first / "data-1.log").read_bytes() == before
    assert told().count("is another run at Neptune") == 1


def test_a_killed_trainer_loses_nothing(tmp_path: Path) -> None:
    """After SIGKILL in the midst of logging and delivery, another host makes the folder whole: each point once."""
    code = (
        "import sys\n"
        "from lightning_loggers import NeptuneLogger\n"
        "import threading\n"
        "logger = NeptuneLogger(mode='offline', save_dir=sys.argv[1])\n"
        "for step in range(10**9):\n"
        "    threading.Event().wait(0.001)\n"
        "    logger.log_metrics({'loss': step * 0.5, f'key{step % 50}': 1.0}, step)\n"
        "    if step == 200: print('ready', flush=True)\n"
    )
    job = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=tmp_path)
    assert job.stdout is not None
    assert job.stdout.readline() == b"ready\n"
    wait_until(lambda: list(tmp_path.glob("*/*/.neptune/offline/*/data-*.log")), 60, "delivery's first file")
    job.kill()
    job.wait()
    job.stdout.close()
    (folder,) = tmp_path.glob("lightning_logs/*")
    logged = [(record.data["training/loss"], record.step) for record in read(folder) if record.data]
    assert len(logged) > 200
    deliver(folder)
    found = offline(folder)
    assert [(value, step) for value, step, _ in found.series["training/loss"]] == logged
    assert found.values["training/status"] == "failed"
    assert found.values["sys/failed"] is True


def test_a_full_disk(tmp_path: Path, told: Callable[[], str]) -> None:
    """While the disk refuses, the queue ends at an acknowledged point; when it accepts again all are there, once."""
    logger = make(tmp_path, delivery="offline")
    for step in range(4000):
        logger.log_metrics({"loss": step * 0.5}, step)
    logger.close()
    worker = Worker(run_dir(logger))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failed = 0
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
        for _ in range(10):
            failed += worker.step().kind is StepKind.FAILED
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed > 1
    assert told().count("does not take records now") == 1
    worker.close()
    deliver(run_dir(logger))
    found = offline(run_dir(logger)).series["training/loss"]
    assert [(value, step) for value, step, _ in found] == [(step * 0.5, step) for step in range(4000)]


def test_a_folder_that_cannot_be_written(tmp_path: Path, told: Callable[[], str]) -> None:
    """Training goes on, it is told, and everything arrives once the folder can be written."""
    logger = make(tmp_path)
    obstacle = run_dir(logger) / ".neptune"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("in the way")
    logger.log_metrics({"loss": 1.0}, 0)
    wait_until(lambda: "does not take records now" in told(), 60, "the fault")
    obstacle.unlink()
    logger.finalize("success")
    assert logger.stats.pending == 0
    assert [value for value, _, _ in offline(run_dir(logger)).series["training/loss"]] == [1.0]


def test_many_operations_are_several_files(tmp_path: Path) -> None:
    """The SDK begins another file after 64 MiB; the place that is saved is in the last one."""
    logger = make(tmp_path, delivery="offline")
    logger.log_hyperparams({"a": "x" * 3_000_000})
    for number in range(20):
        logger.log_dict("big", {"x": "y" * 3_000_000, "number": number}, number)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.close()
    worker = deliver(run_dir(logger))
    assert worker.state is not None
    place = worker.state.remote.extra["queue"]
    (folder,) = offline(run_dir(logger)).folders
    assert place["file"] != "data-1.log"
    assert (folder / place["file"]).stat().st_size == place["bytes"]
    found = offline(run_dir(logger))
    assert sorted(json.loads(text)["number"] for text in found.texts("training/dict")) == list(range(20))


# ---------------------------------------------------------------------- the SDK's own run


def test_the_sdks_own_run_offline_is_the_same_run(tmp_path: Path, standin: NeptuneStandIn) -> None:
    """What is logged with ``logger.run`` is beside what the logger delivers: ``neptune sync`` makes one run of both."""
    import neptune

    before = dict(os.environ)
    logger = make(tmp_path, prefix="train")
    assert isinstance(logger.experiment, neptune.Run)
    assert not (run_dir(logger) / ".neptune").exists()  # asking for its class makes nothing
    logger.log_metrics({"loss": 1.0}, 0)
    logger.run["by hand/score"].append(3.0)
    logger.experiment["by hand/note"] = "ü"
    logger.finalize("failed")
    logger.run.stop()
    assert dict(os.environ) == before
    assert not (Path.cwd() / ".neptune").exists()
    run = sync(run_dir(logger), standin)
    assert [value for value, _, _ in run.series["by hand/score"]] == [3.0]
    assert [value for value, _, _ in run.series["train/loss"]] == [1.0]
    assert run.values["by hand/note"] == "ü"
    assert (run.values["sys/name"], run.values["sys/failed"]) == (logger.version, True)


@pytest.mark.parametrize("namespace", [False, True])
def test_a_run_of_the_users_own_offline(
    tmp_path: Path, standin: NeptuneStandIn, monkeypatch: pytest.MonkeyPatch, namespace: bool
) -> None:
    """An offline run of the SDK, or a namespace of it, is logged into: ``neptune sync`` makes one run of it."""
    import neptune

    monkeypatch.chdir(tmp_path)
    theirs = neptune.init_run(mode="offline", source_files=[], git_ref=False, name="theirs", **QUIET)
    logger = make(tmp_path / "logs", run=theirs["fold 1"] if namespace else theirs)
    assert logger.run is logger.experiment
    theirs["by hand"] = 1
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_hyperparams({"lr": 0.1})
    logger.finalize("success")
    theirs.stop()
    run = sync(tmp_path, standin)
    place = "fold 1/training" if namespace else "training"
    assert [value for value, _, _ in run.series[f"{place}/loss"]] == [1.0]
    assert (run.values[f"{place}/hyperparams/lr"], run.values["by hand"]) == (0.1, 1)
    with pytest.raises(ConfigurationError, match="leave out"):
        NeptuneLogger(run=theirs, project="team/digits", save_dir=tmp_path)


def test_debug_mode_keeps_nothing(tmp_path: Path) -> None:
    """``mode="debug"`` is as Neptune means it: everything is taken and nothing kept, but in the journal."""
    logger = make(tmp_path, mode="debug")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.run["by hand"] = 3
    assert logger.run["by hand"].fetch() == 3
    logger.finalize("success")
    logger.run.stop()
    assert (logger.stats.delivered, logger.stats.pending, logger.sys_id) == (1, 0, None)
    assert not list(tmp_path.glob("**/offline"))


def test_copies_and_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickled or copied logger logs to the same run; other ranks log nothing and have a dummy for a run."""
    logger = make(tmp_path)
    for other in (pickle.loads(pickle.dumps(logger)), copy.deepcopy(logger)):
        assert (other.version, other.name) == (logger.version, logger.name)
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    logger.log_metrics({"loss": 1.0}, 0)
    assert isinstance(logger.run, DummyExperiment)
    assert logger.sys_id is None
    assert not run_dir(logger).exists()


# ---------------------------------------------------------------------- a server


def test_a_real_fit_at_a_server(tmp_path: Path, standin: NeptuneStandIn, told: Callable[[], str]) -> None:
    """A fit arrives whole at a server of one's own, which the token names; the token is nowhere on disk or told."""
    logger = make(tmp_path, api_key=standin.token, tags=["a"])
    checkpoint = ModelCheckpoint(dirpath=tmp_path / "checkpoints", monitor="loss", save_top_k=1)
    logger.log_hyperparams({"lr": 0.1})
    fit(logger, tmp_path, 10, [checkpoint])
    logger.finalize("success")
    run = standin.only_run()
    assert logger.sys_id == run.sys_id == "DIG-1"
    assert [step for _, step, _ in run.series["training/loss"]] == list(range(10))
    assert run.values["training/hyperparams/lr"] == 0.1
    best = Path(checkpoint.best_model_path)
    assert run.files[f"training/model/checkpoints/{best.stem}"] == best.read_bytes()
    assert (run.values["training/status"], run.values["sys/tags"]) == ("success", {"a"})
    assert f"{standin.uri}/team/digits/e/DIG-1" in told()
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert standin.token.encode() not in written
    assert standin.token not in told()

    continued = make(tmp_path, api_key=standin.token, with_id="DIG-1")
    continued.log_metrics({"later": 1.0}, 0)
    continued.finalize("success")
    assert continued.version == "DIG-1"
    assert [value for value, _, _ in standin.only_run().series["training/later"]] == [1.0]


def test_the_sdks_own_run_at_a_server(tmp_path: Path, standin: NeptuneStandIn) -> None:
    """``logger.run`` is a handle on the run that delivery logs to, and a user's own run is logged into."""
    logger = make(tmp_path, api_key=standin.token)
    logger.run["by hand"] = 3
    logger.run.wait()
    given = make(tmp_path / "other", run=logger.run["fold"]._container)
    given.log_metrics({"loss": 1.0}, 0)
    given.finalize("success")
    logger.run.stop()
    run = standin.only_run()
    assert run.values["by hand"] == 3
    assert [value for value, _, _ in run.series["training/loss"]] == [1.0]
    assert run.values["sys/name"] == logger.version
    assert given.version == run.sys_id


def test_a_server_that_cannot_be_reached_at_the_start(tmp_path: Path, told: Callable[[], str]) -> None:
    """Training goes on, it is told, ``sys_id`` says so in time, and all arrives when the server is there."""
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    logger = NeptuneLogger(
        save_dir=tmp_path, api_key=token_for(uri), project="team/digits", finalize_timeout_s=0.5
    )  # fmt: skip
    for step in range(5):
        logger.log_metrics({"loss": float(step)}, step)
    with pytest.raises(TrackerUnavailableError, match="did not answer"):
        _ = logger.sys_id
    logger.finalize("success")
    wait_until(lambda: "cannot be reached" in told(), 60, "the fault")
    assert logger.stats.pending == 5
    with NeptuneStandIn(port=port) as standin:
        wait_until(lambda: logger.stats.pending == 0 and len(standin.runs) == 1, 60, "delivery")
        wait_until(lambda: standin.only_run().values.get("training/status") == "success", 60, "the status")
        assert [value for value, _, _ in standin.only_run().series["training/loss"]] == [0.0, 1.0, 2.0, 3.0, 4.0]
        logger.close()


def test_a_server_that_fails_now_and_then(tmp_path: Path) -> None:
    """Requests answered with 503, 429 and 500 are made again by delivery; all points and texts arrive, once."""
    faults = iter(["503", "503", "", "503", "429", "", "500"])

    def fault(path: str) -> str:
        return next(faults, "") if path == "/api/leaderboard/operations" else ""

    logger = make(tmp_path, api_key=token_for("http://127.0.0.1:1"), delivery="offline")
    for step in range(300):
        logger.log_metrics({"loss": float(step)}, step)
        if step % 100 == 0:
            logger.log_text("note", f"text {step}", step)
    logger.close()
    with NeptuneStandIn(fault) as standin:
        options = {"server": with_token(standin.uri, standin.token)}
        worker = deliver(run_dir(logger), options)
        run = standin.only_run()
        assert [(value, step) for value, step, _ in run.series["training/loss"]] == [(float(s), s) for s in range(300)]
        assert [value for value, _, _ in run.series["training/text/note"]] == ["text 0", "text 100", "text 200"]
        assert worker.state is not None
        assert worker.state.retried > 0
        assert worker.state.rejected == 0


@pytest.mark.parametrize("what", ["token", "project", "address", "no token"])
def test_what_locks_a_run_out_is_told_with_its_cure(tmp_path: Path, standin: NeptuneStandIn, what: str) -> None:
    """A wrong token, project or address is an authentication fault; the token goes to no server but its own."""
    logger = make(
        tmp_path,
        api_key=standin.token,
        project="team/wrong" if what == "project" else "team/digits",
        delivery="offline",
    )
    logger.log_metrics({"loss": 1.0}, 0)
    logger.close()
    token = {"token": token_for(standin.uri, "wrong-key-5"), "address": token_for("http://127.0.0.1:9")}.get(
        what, standin.token
    )
    worker = Worker(run_dir(logger), {} if what == "no token" else {"server": with_token(standin.uri, token)})
    step = worker.step()
    while step.kind is StepKind.PROGRESS:
        step = worker.step()
    assert worker.last_fault is not None
    assert worker.last_fault.kind.value == "authentication", worker.last_fault
    said = {"token": "token", "project": "team/wrong", "address": "NEPTUNE_API_TOKEN", "no token": "NEPTUNE_API_TOKEN"}
    assert said[what] in step.reason
    assert token not in step.reason
    if what == "address":
        assert not standin.requests
    worker.close()


def test_a_record_that_the_server_refuses_costs_only_itself(tmp_path: Path, standin: NeptuneStandIn) -> None:
    """An operation that clashes with what somebody else logged is set aside with the reason; the others arrive."""
    with_others = StandInRun("shared", "DIG-1")
    with_others.do({"path": "training/loss", "assignInt": {"value": 3}})
    standin.runs.append(with_others)
    logger = make(tmp_path, api_key=standin.token, custom_run_id="shared")
    for step in range(4):
        logger.log_metrics({"accuracy": float(step)}, step)
    logger.log_metrics({"loss": 1.0, "other": 2.0}, 4)
    logger.finalize("success")
    run = standin.only_run()
    assert [value for value, _, _ in run.series["training/accuracy"]] == [0.0, 1.0, 2.0, 3.0]
    assert [value for value, _, _ in run.series["training/other"]] == [2.0]
    assert logger.stats.rejected == 1
    rejected = (journal_dir(run_dir(logger)) / "rejected.jsonl").read_text()
    assert "training/loss" in rejected
    assert "training/accuracy" not in rejected


def test_capabilities_say_no_more_than_is_true() -> None:
    """Nothing is claimed to be deduplicated: a server shows texts again that were sent twice."""
    assert NeptuneAdapter.capabilities == Capabilities(
        kinds=NeptuneAdapter.capabilities.kinds, keeps_time=True, integer_steps=False
    )


# ---------------------------------------------------------------------- media

PHOTO = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)


def log_media(logger: NeptuneLogger) -> None:
    """An image at three steps, one of them twice; two images at once; a figure; a histogram; a configuration."""
    steps: list[Any] = [0, 1, 1, 2.5]
    for step in steps:
        logger.log_image("val/photo", PHOTO + np.uint8(step), step, caption=f"at {step}", strict=True)
    logger.log_image("crops", [PHOTO, PHOTO[:4]], 5, strict=True)
    logger.log_figure("curve", png_of(Path(str(logger.save_dir)), PHOTO), 5, strict=True)
    logger.log_histogram("weights", [1.0, 2.0], 5, strict=True)
    logger.log_config({"lr": 0.1})


def png_of(folder: Path, image: Any) -> Path:
    """An image as a file."""
    folder.mkdir(exist_ok=True)
    path = folder / "image.png"
    Image.fromarray(image).save(path)
    return path


def check_media(run: OfflineRun | StandInRun) -> None:
    """Whether all of them are there: images in series, by step and time; what no series takes by its name."""
    begin = "training/images/"
    photos = run.images[f"{begin}val/photo"]
    assert [(step, caption) for _, step, _, caption in photos] == [(0, "at 0"), (1, "at 1"), (2.5, "at 2.5")]
    for content, step, at, _ in photos:
        assert np.array_equal(pixels(content), PHOTO + np.uint8(step))
        assert abs(at - time.time()) < 3600
    assert np.array_equal(pixels(run.images[f"{begin}crops/0"][0][0]), PHOTO)
    assert np.array_equal(pixels(run.images[f"{begin}crops/1"][0][0]), PHOTO[:4])
    assert np.array_equal(pixels(run.images["training/figures/curve"][0][0]), PHOTO)
    assert len(run.images) == 4
    media = {path: content for path, content in run.files.items() if "/media/" in path}
    [again] = [path for path in media if re.fullmatch(r"training/media/val/photo/1-\d+\.png", path)]
    [said] = [path for path in media if re.fullmatch(r"training/media/val/photo/1\.json", path)]
    assert np.array_equal(pixels(media[again]), PHOTO + np.uint8(1))
    assert json.loads(media[said]) == [{"file": again.rpartition("/")[2], "caption": "at 1"}]
    assert json.loads(media["training/media/weights/5.json"])["weights"]["sum"] == 3
    assert media["training/media/config/no-step.yaml"] == b"lr: 0.1\n"
    assert len(media) == 4


def pixels(content: bytes) -> Any:
    """An image's."""
    return np.asarray(Image.open(io.BytesIO(content)))


def test_a_server_has_images_in_series_and_other_media_as_files(tmp_path: Path, standin: NeptuneStandIn) -> None:
    """Online, images are in series by their identifier, all else is a file named by identifier and step."""
    logger = make(tmp_path, api_key=standin.token)
    log_media(logger)
    logger.finalize("success")
    assert (logger.stats.pending, logger.stats.rejected) == (0, 0)
    logger.close()
    check_media(standin.only_run())


def test_media_that_are_synced_are_the_same_at_the_server(tmp_path: Path, standin: NeptuneStandIn) -> None:
    """``neptune sync`` sends what the offline folder has kept."""
    logger = make(tmp_path)
    log_media(logger)
    logger.finalize("success")
    logger.close()
    check_media(offline(run_dir(logger)))
    check_media(sync(run_dir(logger) / ".neptune", standin))


@pytest.mark.parametrize("online", [True, False])
def test_media_that_are_delivered_again_are_there_once(
    tmp_path: Path, standin: NeptuneStandIn, monkeypatch: pytest.MonkeyPatch, online: bool
) -> None:
    """A run whose delivery begins anew has the same images in the same series, and the same files."""
    monkeypatch.setenv("NEPTUNE_API_TOKEN", standin.token)
    logger = make(tmp_path, **({"api_key": standin.token} if online else {}))
    log_media(logger)
    logger.finalize("success")
    logger.close()
    (journal_dir(run_dir(logger)) / "neptune.state.json").write_bytes(b"\0" * 64)
    worker = deliver(run_dir(logger))
    assert worker.state is not None
    assert worker.state.rejected == 0
    check_media(standin.only_run() if online else offline(run_dir(logger)))


def test_images_are_downloaded_by_the_sdks_own_reader(tmp_path: Path, standin: NeptuneStandIn) -> None:
    """``run[path].download()`` gives all images of a series, in the order of their steps."""
    import neptune

    logger = make(tmp_path, api_key=standin.token)
    for step in range(3):
        logger.log_image("val/photo", PHOTO + np.uint8(step), step, strict=True)
    logger.finalize("success")
    logger.close()
    run = neptune.init_run(
        with_id=standin.only_run().sys_id, project="team/digits", api_token=standin.token, mode="read-only"
    )
    run["training/images/val/photo"].download(str(tmp_path / "there"))
    run.stop()
    files = sorted((tmp_path / "there").iterdir())
    assert [path.name for path in files] == ["0.png", "1.png", "2.png"]
    for step, path in enumerate(files):
        assert np.array_equal(pixels(path.read_bytes()), PHOTO + np.uint8(step))


def test_images_are_what_append_makes_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operations in the offline folder are those of the SDK's own ``run[path].append(File(...), step=...)``."""
    import neptune

    logger = make(tmp_path)
    path = png_of(tmp_path, PHOTO)
    steps: list[Any] = [0, 2.5]
    for step in steps:
        logger.log_image("photo", path, step, caption="a photo", strict=True)
    logger.finalize("success")
    logger.close()
    monkeypatch.chdir(tmp_path)
    run = neptune.init_run(mode="offline", **QUIET)
    for step in steps:
        run["training/images/photo"].append(neptune.types.File(str(path)), step=step, description="a photo")
    run.stop()

    def series(base: Path) -> list[dict[str, Any]]:
        [folder] = (base / "offline").iterdir()
        found = [operation.to_dict() for operation in operations(folder) if type(operation).__name__ == "LogImages"]
        for operation in found:
            assert operation["values"][0].pop("ts") == pytest.approx(time.time(), abs=3600)
        return found

    made = series(run_dir(logger) / ".neptune")
    assert made == series(tmp_path / ".neptune")
    assert [operation["values"][0]["step"] for operation in made] == [0, 2.5]


@pytest.mark.parametrize(
    ("why", "steps"),
    [("without a step", [None, 0]), ("whose step is not above the last one", [4, 3]), ("beyond 32 MB", [1, 2])],
)
def test_what_no_series_takes_is_a_file_and_told_once(
    tmp_path: Path, told: Callable[[], str], why: str, steps: list[Any]
) -> None:
    """Images without a step, at a step that is not above the last one, or too large, are files by their usual names."""
    image = png_of(tmp_path, PHOTO)
    logger = make(tmp_path / "runs")
    if "MB" in why:
        logger.log_image("photo", image, 0, strict=True)
        image = tmp_path / "large.png"
        with image.open("wb") as file:
            file.truncate(32 * 1024**2 + 1)
    for step in steps:
        logger.log_image("photo", image, step, strict=True)
        logger.log_image("other", image, step, strict=True)
    logger.finalize("success")
    assert (logger.stats.pending, logger.stats.rejected) == (0, 0)
    logger.close()
    run = offline(run_dir(logger))
    in_series = [step for _, step, *_ in run.images["training/images/photo"]]
    names = [path.rpartition("/")[2] for path in run.files if path.startswith("training/media/photo/")]
    expected: dict[str, tuple[list[Any], str]] = {
        "without a step": ([0], r"no-step\.png"),
        "whose step is not above the last one": ([4], r"3-\d+\.png"),
        "beyond 32 MB": ([0], r"[12]\.png"),
    }
    assert in_series == expected[why][0]
    assert names
    assert all(re.fullmatch(expected[why][1], name) for name in names)
    assert told().count("Neptune's image series take") == 1
    assert f"those {why}, such as 'photo'" in told()


def test_series_of_images_are_not_without_number(
    tmp_path: Path, told: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of a series is saved with every batch: past a number of them images are files; none is lost."""
    monkeypatch.setattr(neptune_records, "MAX_SERIES", 3)
    logger = make(tmp_path)
    path = png_of(tmp_path, PHOTO)
    for step in range(2):
        for number in range(5):
            logger.log_image(f"photo{number}", path, step, strict=True)
    logger.finalize("success")
    logger.close()
    run = offline(run_dir(logger))
    assert {name: len(items) for name, items in run.images.items()} == {
        f"training/images/photo{number}": 2 for number in range(3)
    }
    files = sorted(path for path in run.files if path.startswith("training/media/photo"))
    assert files == [f"training/media/photo{number}/{step}.png" for number in (3, 4) for step in (0, 1)]
    assert told().count("beyond 3 series") == 1


def test_images_are_sent_a_few_megabytes_at_a_time(tmp_path: Path) -> None:
    """A request has at most a thousand operations and 10 MB of images, or one image; order is kept."""
    sizes = [1, 2**20, *[6 * 2**20] * 3, 11 * 2**20, *[1] * 1500]
    made = []
    for number, size in enumerate(sizes):
        path = tmp_path / str(number)
        with path.open("wb") as file:
            file.truncate(size)
        made.append(neptune_images.log_image(f"series{number}", neptune_images.ImageOfFile(path, None), 0, 0.0))
    split = list(neptune_images.requests(made))
    assert [operation for request in split for operation in request] == made
    assert [len(request) for request in split] == [3, 1, 1, 1, 1000, 500]


def test_a_large_batch_of_images_is_not_in_memory_at_once(tmp_path: Path) -> None:
    """Files are read one after another while the queue is written."""
    import tracemalloc

    run = RunUnderTest(tmp_path, "neptune", {"mode": "offline"})
    for step in range(24):
        blob = run.writer.blobs.put_bytes(np.random.default_rng(step).bytes(2**20), "photo.png")
        run.log(Record(0, Kind.IMAGE.value, step, id="photo", blobs=[blob]))
    run.log_metrics({"loss": 1.0}, 0)
    adapter = NeptuneAdapter(run.context())
    records = [record for record in read(run.run_dir) if record.kind == Kind.IMAGE]
    adapter.open()
    tracemalloc.start()
    adapter.send(records)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    adapter.close()
    run.close()
    assert len(records) == 24
    assert peak < 12 * 2**20, peak


def test_the_place_of_media_is_theirs(tmp_path: Path, told: Callable[[], str]) -> None:
    """A metric that wants a field below ``media`` is moved aside, and many files leave no note each in the state."""
    logger = make(tmp_path)
    for step in range(50):
        logger.log_dataset(f"set{step}", {"a": 1})
    logger.log_metrics({"media/set0/no-step.json": 1.0}, 0)
    logger.finalize("success")
    logger.close()
    run = offline(run_dir(logger))
    assert len([path for path in run.files if path.startswith("training/media/")]) == 50
    assert run.series["training/media_/set0/no-step.json"][0][0] == 1.0
    assert "media_" in told()
    state = json.loads((run_dir(logger) / "journal" / "neptune.state.json").read_bytes())
    assert len(state["remote"]["extra"]["fields"]["fields"]) < 10
