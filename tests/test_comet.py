"""CometLogger through the real SDK: online against a stand-in of Comet's endpoints, offline by Comet's own uploader."""

import inspect
import io
import json
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comet_reading import CometOnlineCase, MediaStandIn, archives, points, quiet_home, upload
from comet_standin import API_KEY, CometStandIn, StandInAsset, StandInExperiment
from conftest import free_port, wait_until
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from lightning_loggers import CometLogger
from lightning_loggers.adapters import comet_archive, comet_scenes, comet_service
from lightning_loggers.adapters.base import Delivered
from lightning_loggers.adapters.comet import CometAdapter
from lightning_loggers.adapters.comet_forms import annotations
from lightning_loggers.adapters.comet_sdk import RUN_UID_OTHER, STATUS_OTHER, load_sdk, server_option
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.errors import ConfigurationError, MissingDependencyError, TrackerUnavailableError
from lightning_loggers.journal import read
from lightning_loggers.records import Kind, Record
from lightning_loggers.testing import RunUnderTest
from lightning_loggers.testing.harness import differences
from lightning_loggers.values.point_clouds import ply, read_ply

OLD_KEY = "0123456789abcdef" * 2


class TestOnline(CometOnlineCase):
    """The conformance suite on Comet itself."""


@pytest.fixture(autouse=True)
def comet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home and credentials of the test's own, and no delivery thread left behind."""
    home = tmp_path / "home"
    home.mkdir()
    quiet_home(home, monkeypatch)
    yield home
    from lightning_loggers.loggers import ending

    for logger in list(ending.live):
        logger._finalized_at = logger._writer.recorded if logger._writer else 0
        logger.close()
        host = logger._host
        wait_until(lambda host=host: host is None or not host.working(), 60, "the delivery thread's end")


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[CometStandIn]:
    """Comet's endpoints, answering, and a key that opens them."""
    with MediaStandIn() as service:
        monkeypatch.setenv("COMET_URL_OVERRIDE", service.uri)
        monkeypatch.setenv("COMET_API_KEY", API_KEY)
        yield service


def make(folder: Path, **given: Any) -> CometLogger:
    """A logger that waits longer at the end than a slow machine needs."""
    given.setdefault("project", "digits")
    given.setdefault("finalize_timeout_s", 90)
    return CometLogger(offline_directory=str(folder), **given)


def run_dir(logger: CometLogger) -> Path:
    """The folder of a logger's run."""
    assert logger.log_dir is not None
    return Path(logger.log_dir)


def deliver(folder: Path, options: Mapping[str, Any] | None = None, timeout_s: float = 90.0) -> Worker:
    """Deliver what is left of a run, as the command line does."""
    worker = Worker(folder, options)
    deadline = time.monotonic() + timeout_s
    while (step := worker.step()).kind is not StepKind.IDLE or worker.finish_dead().kind is not StepKind.IDLE:
        assert time.monotonic() < deadline, f"not all delivered: {worker.last_fault}"
        if step.kind is not StepKind.PROGRESS:
            time.sleep(min(step.wait_s, 0.05))
    worker.close()
    return worker


def logged(folder: Path, key: str) -> list[tuple[Any, Any, int]]:
    """What the journal says was logged: step, value, time in milliseconds."""
    return [
        (record.step, record.data[key], record.time_ns // 1_000_000)
        for record in read(folder)
        if record.kind == Kind.METRIC and record.data and key in record.data
    ]


def shown(experiment: StandInExperiment, name: str) -> list[tuple[Any, Any, int]]:
    """What Comet shows of a metric: step, value, time in milliseconds, in the order of arrival."""
    return [
        (point["step"], point["metricValue"], point["timestamp"])
        for point in experiment.points
        if point["metricName"] == name
    ]


def everything_said(caplog: pytest.LogCaptureFixture, folder: Path) -> str:
    """All that was logged and all that is on disk below a folder."""
    files = (path.read_bytes().decode(errors="replace") for path in folder.rglob("*") if path.is_file())
    return caplog.text + "".join(files)


class Regression(LightningModule):
    """A model of four weights: as little training as a Trainer can do."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"width": 4})
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("loss", loss)
        return loss

    def test_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("test_loss", self.layer(batch[0]).pow(2).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def data(steps: int) -> DataLoader[Any]:
    """Batches for so many steps."""
    return DataLoader(TensorDataset(torch.randn(4 * steps, 4)), batch_size=4)


def trainer_of(logger: Any, folder: Path, **given: Any) -> Trainer:
    """A Trainer that logs every step."""
    return Trainer(
        logger=logger, max_epochs=1, log_every_n_steps=1, accelerator="cpu", default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False,
        **{"enable_checkpointing": bool(given.get("callbacks")), **given},
    )  # fmt: skip


# ---------------------------------------------------------------------- the constructor


def test_constructor_is_lightnings() -> None:
    """Names, order, defaults and kinds of Lightning's parameters are ours; what is new is keyword-only."""
    from lightning.pytorch.loggers import CometLogger as Theirs

    theirs = list(inspect.signature(Theirs.__init__).parameters.values())
    ours = list(inspect.signature(CometLogger.__init__).parameters.values())
    count = len(theirs) - 1
    assert [(p.name, p.default, p.kind) for p in [*ours[:count], ours[-1]]] == [
        (p.name, p.default, p.kind) for p in theirs
    ]
    assert {p.kind for p in ours[count:-1]} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(p.default is not p.empty for p in ours[count:-1])


def test_kwargs_are_those_of_the_sdk(tmp_path: Path) -> None:
    """Every argument of the installed SDK's ExperimentConfig is taken, and no other."""
    from comet_ml import ExperimentConfig

    from lightning_loggers.loggers import comet

    assert inspect.signature(ExperimentConfig).parameters.keys() == comet._CONFIG_ARGUMENTS
    with pytest.raises(ConfigurationError, match="log_kode: no argument of CometLogger"):
        make(tmp_path, log_kode=True)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mode": "resume"}, "mode='resume' is not known; use one of 'get_or_create', 'get', 'create'"),
        ({"mode": "get"}, "say which with experiment_key"),
        ({"experiment_key": "short"}, "experiment_key='short' must be 32 to 50 letters and digits"),
        ({"online": "yes"}, "online='yes' is not known"),
        ({"log_model": "best"}, "log_model='best' is not known"),
        ({"version": "a/b"}, "version='a/b' must be a plain folder name"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    """The constructor says what is wrong and what would work."""
    with pytest.raises(ConfigurationError, match=said):
        make(tmp_path, **given)


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    """A run that could not be kept is told before training, not after."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="no run can be kept there"):
        make(tmp_path / "file" / "runs")


def test_missing_sdk_is_told_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without comet-ml the constructor raises, unless only the journal is to be written."""
    monkeypatch.setitem(sys.modules, "comet_ml", None)
    with pytest.raises(MissingDependencyError, match=r"`CometLogger` needs.*pip install 'lightning-loggers\[comet\]'"):
        make(tmp_path)
    make(tmp_path, delivery="offline").log_metrics({"loss": 1.0}, 0)


def test_older_names_of_arguments_still_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Lightning's older names mean what they say, each told; a newer name beside one counts."""
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        logger = CometLogger(
            experiment_name="first", project_name="old", offline=True, save_dir=tmp_path, delivery="offline"
        )
    assert (logger.name, logger.save_dir, logger._options["name"], logger._options["online"]) == (
        "old", str(tmp_path), "first", False,
    )  # fmt: skip
    assert all(f"CometLogger({name}=...) is an old name" in caplog.text for name in ("experiment_name", "offline"))
    both = make(tmp_path, project_name="old", project="new", offline=True, online=True, delivery="offline")
    assert (both.name, both._options["online"]) == ("new", True)


def test_the_environment_fills_in_what_was_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comet's own variables are read when the logger is made, and arguments count more."""
    for name, value in {
        "PROJECT_NAME": "env", "WORKSPACE": "team", "EXPERIMENT_KEY": OLD_KEY, "START_MODE": "get",
        "START_ONLINE": "false", "OFFLINE_DIRECTORY": str(tmp_path / "env"), "EXPERIMENT_NAME": "named",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"COMET_{name}", value)
    logger = CometLogger(delivery="offline")
    assert (logger.name, logger.version, logger.save_dir) == ("env", OLD_KEY, str(tmp_path / "env"))
    kept = {key: logger._options[key] for key in ("workspace", "mode", "online", "name")}
    assert kept == {"workspace": "team", "mode": "get", "online": False, "name": "named"}
    logger = make(tmp_path, project="mine", online=True, mode="create", delivery="offline")
    assert (logger.name, logger._options["online"], logger._options["mode"]) == ("mine", True, "create")


def test_constructing_and_logging_contacts_nobody(tmp_path: Path, standin: CometStandIn) -> None:
    """With delivery offline Comet hears nothing, no two runs get one key, and a copy logs to the same run."""
    loggers = [make(tmp_path, delivery="offline") for _ in range(2)]
    for logger in loggers:
        pickle.loads(pickle.dumps(logger)).log_metrics({"loss": 2.0}, 1)
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("success")
        assert sorted(point[:2] for point in logged(run_dir(logger), "loss")) == [(0, 1.0), (1, 2.0)]
    assert loggers[0].version != loggers[1].version
    logger = make(tmp_path, disabled=True)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert (logger.stats.recorded, logger.stats.delivered) == (1, 0)
    assert standin.requests == []
    assert archives(tmp_path) == []


def test_a_requeued_job_continues_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A preempted SLURM job's run is gone on with by the next job's logger, under the same key."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr("lightning_loggers.loggers.identity._made", {})
    first = make(tmp_path, delivery="offline")
    first.log_metrics({"loss": 1.0}, 0)
    first.finalize("finished")
    first.close()
    monkeypatch.setattr("lightning_loggers.loggers.identity._made", {})  # as in a process of its own
    assert make(tmp_path, delivery="offline").version == first.version


# ---------------------------------------------------------------------- offline


def test_offline_fit_becomes_an_archive_that_comet_uploads(tmp_path: Path) -> None:
    """A real fit and test offline: values, steps and times of the log calls, parameters, name, tags and checkpoint."""
    logger = make(tmp_path, online=False, workspace="team", name="first", tags=["a", "b"], prefix="p", log_model=True)
    checkpoints = ModelCheckpoint(dirpath=tmp_path / "checkpoints", monitor="loss")
    trainer = trainer_of(logger, tmp_path, callbacks=[checkpoints])
    model = Regression()
    trainer.fit(model, data(20))
    trainer.test(model, data(2), verbose=False)
    assert (logger.stats.pending, logger.stats.rejected, logger.stats.dropped) == (0, 0, 0)
    (archive,) = archives(tmp_path)
    assert archive.name == f"{logger.version}.zip"
    experiment = upload(archive)
    expected = logged(run_dir(logger), "p_loss")
    assert len(expected) == 20
    assert shown(experiment, "p_loss") == expected
    assert shown(experiment, "p_test_loss") == logged(run_dir(logger), "p_test_loss") != []
    assert {point["epoch"] for point in experiment.points if point["metricName"] == "p_loss"} == {0}
    assert experiment.graph == str(model)
    assert (experiment.key, experiment.project, experiment.workspace) == (logger.version, "digits", "team")
    assert (experiment.others["Name"], experiment.others["Created from"]) == ("first", "pytorch-lightning")
    assert (experiment.tags, experiment.params["width"], experiment.error) == (["a", "b"], 4, None)
    assert (experiment.others[STATUS_OTHER], experiment.offline) == ("finished", True)
    assert experiment.start_ms is not None
    assert experiment.start_ms <= expected[0][2]
    assert experiment.end_ms == max(point["timestamp"] for point in experiment.points)
    (model_file,) = experiment.assets_of("model-element")
    assert model_file.content == Path(checkpoints.best_model_path).read_bytes()
    assert model_file.params["groupingName"] == Path(checkpoints.best_model_path).stem
    assert "latest" in model_file.metadata["aliases"]


CHILD = """
import sys
from lightning_loggers import CometLogger

logger = CometLogger(online=sys.argv[2] == "online", offline_directory=sys.argv[1], project="digits")
logger.log_hyperparams({"lr": 0.1})
logger.log_text("note", "before the end")
print(logger.log_dir, flush=True)
step = 0
while True:
    logger.log_metrics({"loss": float(step)}, step)
    step += 1
    if step == 2000:
        print("enough", flush=True)
        sys.stdin.read()
"""


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_killed_trainer_loses_nothing(tmp_path: Path, standin: CometStandIn, mode: str) -> None:
    """SIGKILL while records are on their way: whoever delivers the rest has all of it there, at its own time."""
    trainer = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), mode],
        stdout=subprocess.PIPE, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert trainer.stdout is not None
    folder = Path(trainer.stdout.readline().strip())
    assert trainer.stdout.readline().strip() == "enough"
    if mode == "online":
        wait_until(lambda: any(experiment.points for experiment in standin.experiments.values()), 60, "the first point")
    else:
        wait_until((folder / "comet" / "messages.json").exists, 60, "the first messages")
    os.killpg(trainer.pid, signal.SIGKILL)
    trainer.wait()
    for pipe in (trainer.stdout, trainer.stdin):
        assert pipe is not None
        pipe.close()
    expected = logged(folder, "loss")
    assert [point[0] for point in expected] == list(range(2000))
    deliver(folder)
    experiment = standin.only() if mode == "online" else upload(*archives(tmp_path))
    found = shown(experiment, "loss")
    assert sorted(set(found)) == expected
    if mode == "offline":
        assert len(found) == len(expected)
    assert (experiment.params["lr"], experiment.error) == (0.1, "The run failed.")
    assert [asset.content for asset in experiment.assets_of("text-sample")] == [b"before the end"]
    assert experiment.others[STATUS_OTHER] == "failed"
    assert experiment.end_ms == expected[-1][2]


def test_what_a_crash_left_behind_the_messages_is_cut_off(tmp_path: Path) -> None:
    """Half a line, or lines that were written but not noted, are gone when the next host goes on."""
    run = RunUnderTest(tmp_path, "comet", {"online": False})
    run.log_metrics({"loss": 1.0}, 0)
    run.deliver()
    messages = run.run_dir / "comet" / "messages.json"
    with messages.open("ab") as file:
        file.write(messages.read_bytes() + b'{"type":"metric_m')
    run.log_metrics({"loss": 2.0}, 1)
    run.deliver()
    run.close()
    assert upload(*archives(tmp_path)).series("loss") == [(0, 1.0), (1, 2.0)]


def test_messages_that_were_removed_are_told_with_the_cure(tmp_path: Path) -> None:
    """Without its file of messages no archive is made from half a run, and what the message says brings it back."""
    run = RunUnderTest(tmp_path, "comet", {"online": False})
    for step in range(5):
        run.log_metrics({"loss": float(step), "a" * 200: 1.0}, step)
    run.deliver()
    (run.run_dir / "comet" / "messages.json").unlink()
    run.log_metrics({"loss": 5.0}, 5)
    worker = run.worker()
    assert worker.step().kind is StepKind.FAILED
    worker.close()
    (told,) = [message for message in run.notices.messages if "it was cut or removed" in message]
    assert f"remove the files {run.run_dir}/journal/comet.*.json" in told
    for path in (run.run_dir / "journal").glob("comet.*.json"):
        path.unlink()
    run.deliver()
    run.close()
    assert upload(*archives(tmp_path)).series("loss") == [(step, float(step)) for step in range(6)]


def test_sampling_by_the_upload_is_told_with_the_way_around_it(tmp_path: Path) -> None:
    """The archive has every value of a long metric; Comet's uploader samples, and the notice says how to send all."""
    run = RunUnderTest(tmp_path, "comet", {"online": False})
    for step in range(15_010):
        run.log_metrics({"loss": float(step)}, step)
    run.log_metrics({"short": 1.0}, 0)
    run.deliver()
    run.close()
    (archive,) = archives(tmp_path)
    (told,) = [message for message in run.notices.messages if "random sample" in message]
    assert told.startswith("1 metrics of this run have more than 15000 values (up to 15010)")
    assert told.endswith(f"COMET_OFFLINE_SAMPLING_SIZE=15010 comet upload {archive}")
    assert len(upload(archive, sampling_size=15_010).series("loss")) == 15_010
    sampled = upload(archive).series("loss")
    assert (len(sampled), sampled[0], sampled[-1]) == (15_000, (0, 0.0), (15_009, 15_009.0))


@pytest.mark.parametrize("name", ["loss", 'größe/\u2028\n"', "half \ud800 of one"])
@pytest.mark.parametrize("value", [0.1, -0.0, 5e-324, 1.7976931348623157e308, 7, 10**30, math.nan, math.inf, -math.inf])
def test_metrics_are_written_as_the_sdk_would_write_them(name: str, value: float) -> None:
    """The lines of metrics, made by a faster encoder, say what the SDK's own encoder says of the same message."""
    message = load_sdk().messages.MetricMessage(timestamp=1_700_000_000_123)
    message.set_metric(name, value, step=2**63 - 1, epoch=None)
    line = comet_archive._metric_line(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert repr(json.loads(line)) == repr(json.loads(comet_archive._line(message)))


def test_a_place_that_cannot_be_written_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Something in the archive's place costs no record and no training; once it is gone the archive is made."""
    logger = make(tmp_path, online=False, finalize_timeout_s=0.5)
    place = tmp_path / f"{logger.version}.zip"
    place.mkdir()
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("success")
        wait_until(lambda: "Is a directory" in caplog.text, 60, "the notice")
    logger.close()
    wait_until(lambda: logger._host is None or not logger._host.working(), 60, "the delivery thread's end")
    place.rmdir()
    deliver(run_dir(logger))
    assert list(tmp_path.glob(".*.part")) == []
    experiment = upload(place)
    assert (experiment.series("loss"), experiment.others[STATUS_OTHER]) == ([(0, 1.0)], "finished")


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    """No space for messages or archive: half-written ones are taken back, and once there is space all is there once."""
    import resource

    run = RunUnderTest(tmp_path, "comet", {"online": False})
    run.log_text("note", "x" * 1000, 0)
    for step in range(1000):
        run.log_metrics({"loss": float(step)}, step)
    run.writer.flush()
    worker = run.worker()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        found = worker.step()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found.kind is StepKind.FAILED
    assert "File too large" in found.reason
    assert (run.run_dir / "comet" / "messages.json").stat().st_size < 2000
    worker.close()
    run.deliver()
    run.close()
    experiment = upload(*archives(tmp_path))
    assert experiment.series("loss") == [(step, float(step)) for step in range(1000)]
    assert len(experiment.assets_of("text-sample")) == 1


def test_an_archive_costs_no_memory_by_its_length(tmp_path: Path) -> None:
    """Making the archive of a long run holds a small part of it in memory."""
    import tracemalloc

    run = RunUnderTest(tmp_path, "comet", {"online": False})
    for step in range(8_000):
        run.log_metrics({f"metric{number}": 1.0 for number in range(5)}, step)
    run.deliver()
    context = run.context()
    context.remote = run.remote
    context.remote.extra["archive"]["archived"] = None
    run.close()
    adapter = CometAdapter(context)
    adapter.open()
    (archive,) = archives(tmp_path)
    archive.unlink()
    tracemalloc.start()
    adapter.close()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (run.run_dir / "comet" / "messages.json").stat().st_size
    assert archive.exists()
    assert peak < size / 4 > 1_000_000, (peak, size)


def test_without_a_key_the_run_becomes_an_archive_and_stays_one(
    tmp_path: Path, standin: CometStandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No API key anywhere and no wish: nothing is lost, it is told once with the cure, and the archive goes on."""
    monkeypatch.delenv("COMET_API_KEY")
    logger = make(tmp_path)
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("success")
        logger.close()
        monkeypatch.setenv("COMET_API_KEY", API_KEY)
        logger = make(tmp_path, version=logger.version)
        logger.log_metrics({"loss": 2.0}, 1)
        logger.finalize("success")
    assert caplog.text.count("No Comet API key was found") == 1
    assert "comet login" in caplog.text
    assert upload(*archives(tmp_path)).series("loss") == [(0, 1.0), (1, 2.0)]
    assert standin.requests == []


def test_archive_in_a_folder_of_another_name(tmp_path: Path) -> None:
    """A version of one's own leaves the experiment's key alone; two runs of one key do not share an archive."""
    for version in ("one", "two"):
        logger = make(tmp_path, online=False, version=version, experiment_key=OLD_KEY)
        logger.log_metrics({version: 1.0}, 0)
        logger.finalize("success")
    logger = make(tmp_path, online=False, version="three")
    logger.log_metrics({"three": 1.0}, 0)
    logger.finalize("success")
    *named, own = sorted(archives(tmp_path), key=lambda path: not path.name.startswith(OLD_KEY))
    assert sorted(path.name for path in named) == [f"{OLD_KEY}-one.zip", f"{OLD_KEY}-two.zip"]
    assert [upload(path).key for path in named] == [OLD_KEY, OLD_KEY]
    experiment = upload(own)
    assert experiment.key == experiment.others[RUN_UID_OTHER] == own.stem


def test_archive_says_how_it_is_resumed(tmp_path: Path) -> None:
    """A key that was given is continued where it exists; one that was made here is not uploaded twice."""
    for given, strategy in [({}, "create"), ({"experiment_key": OLD_KEY}, "get_or_create")]:
        logger = make(tmp_path / strategy, online=False, **given)
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("success")
        (archive,) = archives(tmp_path / strategy)
        meta = json.loads(zipfile.ZipFile(archive).read("experiment.json"))
        assert (meta["resume_strategy"], meta["comet_start_sourced"]) == (strategy, True)


def test_archive_of_the_messages_is_valid_for_the_sdk(tmp_path: Path) -> None:
    """Every line keeps to the SDK's own schema: its uploader drops all later metrics of a run at one that does not."""
    from comet_ml import schemas

    run = RunUnderTest(tmp_path, "comet", {"online": False})
    run.log_metrics({"a": float("nan"), "b": True, "c": 2**62, "epoch": 1.5}, None)
    run.log_params({"long": "x" * 2000, "none": None, "flag": True, "inf": float("inf")})
    run.log_text("note", "text")
    run.log_dict("table", {"a": 1}, 2)
    run.deliver()
    run.close()
    validators = {
        "metric_msg": schemas.get_metric_msg_validator(),
        "parameter_msg": schemas.get_parameter_msg_validator(),
        "file_upload": schemas.get_upload_msg_validator(),
        "log_other": schemas.get_log_other_msg_validator(),
    }
    with zipfile.ZipFile(archives(tmp_path)[0]) as archive:
        lines = [json.loads(line) for line in archive.read("messages.json").splitlines()]
    assert {line["type"] for line in lines} == validators.keys()
    for line in lines:
        validators[line["type"]].validate(line["payload"])


# ---------------------------------------------------------------------- online


def test_online_fit_is_read_back(tmp_path: Path, standin: CometStandIn) -> None:
    """A real fit and test online arrive as one experiment with the times of the log calls, and end as finished."""
    logger = make(tmp_path, workspace="team", name="first", tags=["a"], log_model="all")
    checkpoints = ModelCheckpoint(dirpath=tmp_path / "checkpoints", monitor="loss")
    trainer = trainer_of(logger, tmp_path, callbacks=[checkpoints])
    model = Regression()
    trainer.fit(model, data(20))
    assert standin.only().state == "finished"
    trainer.test(model, data(2), verbose=False)
    assert (logger.stats.pending, logger.stats.rejected, logger.stats.dropped) == (0, 0, 0)
    experiment = standin.only()
    assert shown(experiment, "loss") == logged(run_dir(logger), "loss")
    assert len(shown(experiment, "loss")) == 20
    assert len(shown(experiment, "test_loss")) == 1
    assert experiment.graph == str(model)
    assert (experiment.key, experiment.project, experiment.workspace) == (logger.version, "digits", "team")
    assert (experiment.others["Name"], experiment.others["Created from"]) == ("first", "pytorch-lightning")
    assert (experiment.tags, experiment.params["width"], experiment.state) == (["a"], 4, "finished")
    (model_file,) = experiment.assets_of("model-element")
    assert model_file.content == Path(checkpoints.best_model_path).read_bytes()
    assert "/clientlib/status-report/update" in standin.requests  # the heartbeat, without which Comet ends a run
    assert standin.unknown == []


def test_comet_not_there_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fit without Comet ends, it is all in the journal and told; once Comet is there it arrives, at its own time."""
    port = free_port()
    monkeypatch.setenv("COMET_URL_OVERRIDE", f"http://127.0.0.1:{port}/clientlib/")
    monkeypatch.setenv("COMET_API_KEY", API_KEY)
    logger = make(tmp_path, finalize_timeout_s=0.5)
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        trainer_of(logger, tmp_path).fit(Regression(), data(20))
        with pytest.raises(TrackerUnavailableError, match="did not answer within"):
            logger.experiment.log_metric("mine", 1.0)
        wait_until(lambda: "cannot be reached" in caplog.text, 60, "the notice")
    assert f"lightning-loggers sync {run_dir(logger)}" in caplog.text
    assert len(logged(run_dir(logger), "loss")) == 20
    with CometStandIn(port) as service:
        wait_until(lambda: logger.stats.pending == 0, 60, "delivery")
        logger._finalize_timeout_s = 60
        logger.finalize("success")
        assert shown(service.only(), "loss") == logged(run_dir(logger), "loss")
        assert service.only().state == "finished"


def test_faults_in_the_middle_lose_nothing(tmp_path: Path, standin: CometStandIn) -> None:
    """Errors, lost answers and a refused upload while a run is delivered: every point is there, at its own time."""
    faults = iter([0, 0, 503, 0, -1, 0, 429, -1, 502, 0, 0, -1, 504])
    standin.fault = lambda path: next(faults, 0) if "/batch/" in path or path.endswith("asset/upload") else 0
    logger = make(tmp_path)
    for step in range(4000):
        logger.log_metrics({"loss": float(step)}, step)
        if step % 1000 == 0:
            logger.log_text("note", f"text {step}", step)
    logger.log_hyperparams({"lr": 0.1})
    logger.finalize("success")
    assert (logger.stats.pending, logger.stats.rejected) == (0, 0)
    experiment = standin.only()
    assert sorted(set(shown(experiment, "loss"))) == logged(run_dir(logger), "loss")
    samples = experiment.assets_of("text-sample")
    assert {sample.params["overwrite"] for sample in samples} == {"False"}  # else Comet may keep one of one name
    texts = sorted(sample.content for sample in samples)
    assert texts == [f"text {step}".encode() for step in range(0, 4000, 1000)]
    assert next(faults, None) is None


def test_what_comet_took_before_a_fault_is_not_sent_again(tmp_path: Path, standin: CometStandIn) -> None:
    """A batch that fails halfway, or beside a file that is refused, is completed: no acknowledged point comes twice."""
    codes = iter([0, 503, 0, 0, 503])
    standin.fault = lambda path: 413 if path.endswith("asset/upload") else next(codes, 0) if "/metric" in path else 0
    run = RunUnderTest(tmp_path, "comet", {"server": server_option(standin.uri, API_KEY)})
    for step in range(2):
        run.log_metrics({f"metric{number}": float(number) for number in range(2500)}, step)
        run.log_text("refused", "too large", step)
    state = run.deliver(faults=4)
    run.close()
    assert (state.rejected, run.pending) == (2, 0)
    assert differences(run.logged, points(standin.only()), 0.001) == []


@pytest.mark.parametrize("known", [True, False])
def test_a_full_quota_of_files_stops_no_metrics(tmp_path: Path, standin: CometStandIn, known: bool) -> None:
    """Comet's refusal of one more text costs that text, not the run; a file that Comet has already is delivered."""
    from comet_ml.exceptions import ASSET_STATE_IMMUTABLE, TEXT_SAMPLES_LIMIT_REACHED

    standin.fault_answer = {"sdk_error_code": ASSET_STATE_IMMUTABLE if known else TEXT_SAMPLES_LIMIT_REACHED}
    standin.fault = lambda path: 403 if path.endswith("asset/upload") else 0
    run = RunUnderTest(tmp_path, "comet", {"server": server_option(standin.uri, API_KEY)})
    run.log_text("note", "text")
    run.log_metrics({"loss": 1.0}, 0)
    assert run.deliver().rejected == (0 if known else 1)
    run.close()
    assert standin.only().series("loss") == [(0, 1.0)]


def test_a_heartbeat_that_is_refused_costs_no_record(tmp_path: Path, standin: CometStandIn) -> None:
    """An installation without that endpoint takes records all the same."""
    standin.fault = lambda path: 404 if path.endswith("status-report/update") else 0
    run = RunUnderTest(tmp_path, "comet", {"server": server_option(standin.uri, API_KEY)})
    run.log_metrics({"loss": 1.0}, 0)
    assert run.deliver().rejected == 0
    run.close()
    assert standin.only().series("loss") == [(0, 1.0)]


@pytest.mark.parametrize("path", ["logger/add/run", "status-report/update", "experiment/metric", "asset/upload"])
def test_no_request_waits_for_ever(
    tmp_path: Path, standin: CometStandIn, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A Comet that takes a request and never answers costs the time-out, once, and is tried again."""
    monkeypatch.setattr(comet_service, "_ANSWER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(comet_service, "_UPLOAD_ANSWER_TIMEOUT_S", 0.3)
    asked: list[str] = []

    def fault(now: str) -> int:
        if now.endswith(path):
            asked.append(now)
        return -2 if asked == [now] and now.endswith(path) else 0

    standin.fault = fault
    run = RunUnderTest(tmp_path, "comet", {"server": server_option(standin.uri, API_KEY)})
    run.log_metrics({"loss": 1.0}, 0)
    run.log_text("note", "text")
    run.deliver(faults=1)
    run.close()
    assert len(asked) > 1
    assert set(standin.only().series("loss")) == {(0, 1.0)}
    assert len(standin.only().assets_of("text-sample")) == 1


def test_a_wait_that_comet_asks_for_is_kept(tmp_path: Path, standin: CometStandIn) -> None:
    """Comet's own ``Retry-After-Custom`` of a rate limit goes to delivery, which waits that long."""
    standin.fault = lambda path: 429
    standin.retry_after = "7"
    run = RunUnderTest(tmp_path, "comet", {"server": server_option(standin.uri, API_KEY)})
    run.log_metrics({"loss": 1.0}, 0)
    worker = run.worker()
    step = worker.step()
    worker.close()
    run.close()
    assert step.wait_s >= 7
    assert "429" in step.reason


def test_a_wrong_key_is_told_once_and_written_nowhere(
    tmp_path: Path, standin: CometStandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Training ends, the cure is told once, no key is in a file or message, and with the right one all is delivered."""
    monkeypatch.delenv("COMET_API_KEY")
    wrong = "WrongKeyWrongKeyWrongKey1"
    logger = make(tmp_path, api_key=wrong, finalize_timeout_s=0.5)
    with caplog.at_level(logging.DEBUG, "lightning_loggers"):
        trainer_of(logger, tmp_path).fit(Regression(), data(5))
        wait_until(lambda: "does not let this run in" in caplog.text, 60, "the notice")
        logger.finalize("success")
    logger.close()
    wait_until(lambda: logger._host is None or not logger._host.working(), 60, "the delivery thread's end")
    assert caplog.text.count("does not let this run in") == 1
    assert standin.experiments == {}
    right = make(tmp_path, api_key=API_KEY, deliver_leftovers=False, delivery="offline")
    worker = Worker(run_dir(logger))
    assert worker.is_leftover("comet", CometAdapter.destination(right._options), right._options)
    while worker.step().kind is StepKind.PROGRESS:
        pass
    worker.close()
    assert shown(standin.only(), "loss") == logged(run_dir(logger), "loss")
    said = everything_said(caplog, tmp_path)
    assert wrong not in said
    assert API_KEY not in said


def test_a_wrong_key_of_comets_own_configuration_is_not_repeated(
    tmp_path: Path, standin: CometStandIn, monkeypatch: pytest.MonkeyPatch, comet_home: Path
) -> None:
    """The SDK quotes a key that is wrong; one that only its own file knows is masked all the same."""
    monkeypatch.delenv("COMET_API_KEY")
    (comet_home / ".comet.config").write_text("[comet]\napi_key=KeyOfTheFileKeyOfTheFile1\n")
    run = RunUnderTest(tmp_path, "comet", {"online": True})
    run.log_metrics({"loss": 1.0}, 0)
    worker = run.worker()
    reason = worker.step().reason
    worker.close()
    run.close()
    assert "KeyOfTheFile" not in reason
    assert "Comet does not know this API key" in reason
    assert "run: comet login" in reason


def test_points_that_are_equal_in_all_are_all_shown(tmp_path: Path, standin: CometStandIn) -> None:
    """Two log calls of one millisecond with the same key, value and step are two points, in one batch or in two."""
    run = RunUnderTest(tmp_path, "comet", {"server": server_option(standin.uri, API_KEY)})
    run.log_metrics({"loss": 1.0}, 0)
    adapter = CometAdapter(run.context())
    (record,) = list(read(run.run_dir))
    for batch in ([record, record], [record]):
        assert adapter.write(batch) == Delivered()
    adapter.close()
    run.close()
    assert standin.only().series("loss") == [(0, 1.0)] * 3


def test_a_key_that_is_asked_for_and_missing_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``online=True`` without a key makes no archive behind the user's back: it says what to do."""
    logger = make(tmp_path, online=True, finalize_timeout_s=0.5)
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("success")
        wait_until(lambda: "Comet needs an API key" in caplog.text, 60, "the notice")
    assert "set COMET_API_KEY, or run: comet login" in caplog.text
    assert archives(tmp_path) == []


def test_an_experiment_is_continued_by_its_key(tmp_path: Path, standin: CometStandIn) -> None:
    """Another program, with folders of its own, appends to an experiment that is there already."""
    for number in range(2):
        logger = make(tmp_path / str(number), experiment_key=OLD_KEY, mode="get" if number else None)
        logger.log_metrics({"loss": float(number)}, number)
        logger.finalize("success")
        assert (logger.version, logger.stats.pending) == (OLD_KEY, 0)
    assert standin.only().series("loss") == [(0, 0.0), (1, 1.0)]
    assert standin.only().sessions == 2


@pytest.mark.parametrize(
    ("mode", "there", "said"),
    [("get", False, "mode='get' continues one"), ("create", True, "mode='create' makes a new experiment")],
)
def test_a_mode_that_does_not_fit_is_told(
    tmp_path: Path, standin: CometStandIn, mode: str, there: bool, said: str
) -> None:
    """An experiment that must be there and is not, or the other way round, waits for a person; nothing is made."""
    if there:
        standin.experiments[OLD_KEY] = StandInExperiment(OLD_KEY)
    options = {"server": server_option(standin.uri, API_KEY), "experiment_key": OLD_KEY, "mode": mode}
    run = RunUnderTest(tmp_path, "comet", options)
    run.log_metrics({"loss": 1.0}, 0)
    worker = run.worker()
    reason = worker.step().reason
    worker.close()
    assert said in reason
    assert [experiment.points for experiment in standin.experiments.values()] == [[]] * there
    run.close()


@pytest.mark.parametrize("mode", ["create", "get_or_create"])
def test_an_experiment_is_made_once_though_the_answer_was_lost(
    tmp_path: Path, standin: CometStandIn, mode: str
) -> None:
    """A host that never hears that its experiment was made finds it, in every mode."""
    answers = iter([-1])
    standin.fault = lambda path: next(answers, 0) if path.endswith("add/run") else 0
    options = {"server": server_option(standin.uri, API_KEY), "experiment_key": OLD_KEY, "mode": mode}
    run = RunUnderTest(tmp_path, "comet", options)
    run.log_metrics({"loss": 1.0}, 0)
    run.deliver(faults=1)
    run.close()
    assert standin.only().series("loss") == [(0, 1.0)]
    assert standin.only().others["Created from"] == "pytorch-lightning"


def test_delivery_by_a_process(tmp_path: Path, standin: CometStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child process is given the key by its pipe, not by a file, and delivers."""
    monkeypatch.delenv("COMET_API_KEY")
    logger = make(tmp_path, api_key=API_KEY, delivery="process")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert logger.stats.pending == 0
    logger.close()
    assert standin.only().series("loss") == [(0, 1.0)]
    assert API_KEY not in "".join(path.read_text() for path in tmp_path.rglob("*.js*"))


@pytest.mark.parametrize("online", [True, False])
def test_names_that_were_changed_are_kept_with_the_run(tmp_path: Path, standin: CometStandIn, online: bool) -> None:
    """Comet has beside the run which of its names stand for which keys; two long keys are two metrics."""
    logger = make(tmp_path, online=online)
    keys = ["k" * 100 + "a", "k" * 100 + "b", ""]
    logger.log_metrics(dict.fromkeys(keys, 1.0), 0)
    logger.finalize("success")
    experiment = standin.only() if online else upload(*archives(tmp_path))
    (names,) = [asset for asset in experiment.assets.values() if asset.name == "lightning_loggers/names.json"]
    kept = json.loads(names.content)
    assert sorted(kept.values()) == sorted(keys)
    assert kept.keys() == {point["metricName"] for point in experiment.points}
    assert max(map(len, kept)) <= 100


# ---------------------------------------------------------------------- the SDK


def test_experiment_is_the_sdks_own_online(tmp_path: Path, standin: CometStandIn) -> None:
    """What a user logs with the SDK's object goes to the same experiment; reading the property contacts nobody."""
    import comet_ml

    logger = make(tmp_path, api_key=API_KEY, auto_output_logging=False, log_env_details=False, parse_args=False)
    assert isinstance(logger.experiment, comet_ml.ExistingExperiment)
    assert standin.requests == []
    logger.log_metrics({"loss": 1.0}, 0)
    logger.experiment.log_metric("mine", 3.0, step=2)
    assert logger.experiment.get_key() == logger.version
    logger.experiment.end()
    logger.finalize("success")
    assert (standin.only().series("loss"), standin.only().series("mine")) == ([(0, 1.0)], [(2, 3.0)])


def test_experiment_is_the_sdks_own_offline(tmp_path: Path) -> None:
    """Offline the SDK's object writes an archive of its own that continues the same experiment."""
    import comet_ml

    logger = make(tmp_path, online=False, auto_output_logging=False, log_env_details=False, parse_args=False)
    assert isinstance(logger.experiment, comet_ml.ExistingOfflineExperiment)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.experiment.log_metric("mine", 3.0, step=2)
    logger.experiment.end()
    logger.finalize("success")
    ours, theirs = sorted(archives(tmp_path), key=lambda path: len(path.name))
    assert ours.name == f"{logger.version}.zip"
    assert theirs.name.startswith(f"{logger.version}-")
    assert json.loads(zipfile.ZipFile(theirs).read("experiment.json"))["resume_strategy"] == "get"
    assert b'"mine"' in zipfile.ZipFile(theirs).read("messages.json")


def test_loading_the_sdk_leaves_the_process_alone() -> None:
    """Delivery does not have Comet patch what the program imports later, nor write to the environment."""
    code = (
        "import os, sys\n"
        "before = dict(os.environ)\n"
        "from lightning_loggers.adapters.comet_sdk import load_sdk\n"
        "load_sdk()\n"
        "assert dict(os.environ) == before\n"
        "assert not [finder for finder in sys.meta_path if 'comet' in type(finder).__module__], sys.meta_path\n"
        "import comet_ml\n"
        "assert comet_ml.MODULE_FINDER is not None"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_the_address_in_a_key_is_used(tmp_path: Path, standin: CometStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comet's long keys carry the address of a private installation; the environment's counts more."""
    import base64

    from lightning_loggers.adapters.comet_sdk import find_address

    sdk = load_sdk()
    more = base64.b64encode(json.dumps({"baseUrl": "https://comet.example"}).encode()).decode()
    long_key = f"{API_KEY}*{more}"
    assert find_address(sdk, {}, long_key) == standin.uri
    monkeypatch.delenv("COMET_URL_OVERRIDE")
    sdk = load_sdk()
    assert find_address(sdk, {}, long_key) == "https://comet.example/clientlib/"
    assert find_address(sdk, {"server": server_option("http://other:1/x", long_key)}, long_key) == "http://other:1/x/"
    assert find_address(sdk, {}, API_KEY) == "https://www.comet.com/clientlib/"


# ---------------------------------------------------------------------- media


@pytest.mark.parametrize("online", [True, False])
def test_media_are_what_comet_shows_in_its_own_charts(tmp_path: Path, standin: CometStandIn, online: bool) -> None:
    """Images, sounds, videos and histograms are of Comet's types, by their identifier, with step and what is known."""
    from comet_ml.data_structure import Histogram

    logger = make(tmp_path / "runs", online=online)
    photo = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
    logger.log_image("val/photo", photo, 3, caption="a photo", strict=True)
    logger.log_image("crops", [photo, photo], 3, strict=True)
    logger.log_audio("tone", np.zeros(160, np.int16), 3, sample_rate=16_000, strict=True)
    logger.log_video("square", np.zeros((4, 3, 16, 16), np.uint8), 3, fps=4, format="gif", strict=True)
    logger.log_histogram("weights", [-1.0, 0.5, 0.5, 2.0], 3, strict=True)
    logger.log_histogram("without", [1.0, 2.0], strict=True)
    logger.finalize("success")
    assert (logger.stats.pending, logger.stats.rejected) == (0, 0)
    logger.close()
    experiment = standin.only() if online else upload(*archives(tmp_path / "runs"))
    shown = {asset.name: asset for asset in experiment.assets.values() if asset.type != "asset"}
    assert {name: asset.type for name, asset in shown.items()} == {
        "val/photo": "visualization",
        "crops/0": "visualization",
        "crops/1": "visualization",
        "tone.wav": "audio",
        "square.gif": "video",
        "weights": "histogram3d",
    }
    assert {asset.params["step"] for asset in shown.values()} == {"3"}
    assert shown["val/photo"].params["extension"] == "png"
    assert shown["val/photo"].metadata == {"caption": "a photo"}
    assert shown["tone.wav"].params["sampleRate"] == "16000"
    assert shown["square.gif"].metadata["fps"] == 4
    histogram = Histogram.from_json(json.loads(shown["weights"].content), verbose=False)
    assert sum(histogram.counts) == 4
    files = [asset.name for asset in experiment.assets_of("asset") if asset.name.startswith("media/")]
    assert sorted(files) == ["media/weights/3.json", "media/without/no-step.json"]


def test_an_image_of_several_steps_is_uploaded_for_each(tmp_path: Path) -> None:
    """Comet's uploader deletes what it has sent, so a file that the journal keeps once is in the archive for each."""
    logger = make(tmp_path / "runs", online=False)
    photo = np.zeros((8, 8, 3), np.uint8)
    for step in range(20):
        logger.log_image("photo", photo, step, strict=True)
    logger.log_text("note", "a text", 0)
    logger.finalize("success")
    logger.close()
    images = upload(*archives(tmp_path / "runs")).assets_of("visualization")
    assert sorted(int(image.params["step"]) for image in images) == list(range(20))
    assert len({image.content for image in images}) == 1


def test_media_that_are_delivered_again_are_there_once(tmp_path: Path, standin: CometStandIn) -> None:
    """A run whose delivery begins anew gives every file the id and the name that it had."""
    logger = make(tmp_path / "runs", online=True)
    for step in (0, 1, 1, None, None):
        logger.log_image("photo", np.zeros((8, 8, 3), np.uint8), step, strict=True)
        logger.log_dict("facts", {"step": step}, step)
    logger.finalize("success")
    logger.close()
    before = {asset_id: asset.name for asset_id, asset in standin.only().assets.items()}
    (run_dir(logger) / "journal" / "comet.state.json").unlink()
    deliver(run_dir(logger), {"experiment_key": next(iter(standin.experiments)), "mode": "get"})
    assert {asset_id: asset.name for asset_id, asset in standin.only().assets.items()} == before
    assert len(before) == 10


# ---------------------------------------------------------------------- as the SDK's own calls make it

TABLE = {"class": ["cat", "dog, wet"], "recall": [0.5, None], "n": [1, 2], "ok": [True, False]}
CLOUD = np.concatenate([
    np.random.default_rng(1).normal(size=(200, 3)).astype(np.float32),
    np.random.default_rng(2).integers(0, 256, (200, 3)),
], axis=1)  # fmt: skip
CORNERS = {"minX": 0.25, "maxX": 0.75, "minY": 0.0, "maxY": 0.5}
MIDDLE = {"middle": [8, 4], "width": 4, "height": 2}
BOXES = {
    "truth": {
        "box_data": [
            {"position": CORNERS, "class_id": 1, "scores": {"sure": 0.5}},
            {"position": MIDDLE, "domain": "pixel", "box_caption": "a dog"},
        ],
        "class_labels": {1: "cat"},
    }
}


class Net(torch.nn.Module):
    """A model with modules inside modules."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Dropout()))
        self.head = torch.nn.Linear(8, 2, bias=False)


def log_by_hand(logger: CometLogger, model: torch.nn.Module, file: Path) -> None:
    """What a user of Comet's SDK writes for the same objects."""
    import pandas
    from comet_ml.annotations import Box, Layer

    experiment: Any = logger.experiment
    experiment.set_step(3)
    experiment.log_points_3d("cloud", CLOUD.tolist(), step=3)
    experiment.log_table("recalls.csv", pandas.DataFrame(TABLE), index=False)
    cat = Box([4.0, 0.0, 8.0, 4.0], "cat", 0.5, metadata={"class_id": 1, "scores": {"sure": 0.5}})
    dog = Box([6.0, 3.0, 4.0, 2.0], "a dog")
    photo = Image.new("RGB", (16, 8))
    experiment.log_image(photo, "photo", step=3, annotations=[Layer([cat, dog], name="truth")])
    experiment.log_model("net", str(file), file_name="net.pt")
    experiment.set_model_graph(model)
    experiment.log_dataset_info("photos", "1f", "s3://bucket/photos")
    experiment.end()


@pytest.mark.parametrize("online", [True, False])
def test_each_kind_is_what_the_sdks_own_call_makes(tmp_path: Path, standin: CometStandIn, online: bool) -> None:
    """Scene, table, boxes, model, graph and data set are at Comet what the SDK's calls make of the same objects."""
    model = Net()
    torch.save(model.state_dict(), tmp_path / "net.pt")
    theirs = make(
        tmp_path / "theirs", api_key=API_KEY, auto_output_logging=False, log_env_details=False, parse_args=False
    )
    theirs.log_metrics({"loss": 1.0}, 0)
    log_by_hand(theirs, model, tmp_path / "net.pt")
    theirs.finalize("success")
    asked = {"/api/rest/v2/experiment/metadata", "/api/rest/v2/experiment/tags"}  # by the SDK's experiment, at its end
    assert set(standin.unknown) <= asked
    logger = make(tmp_path / "runs", online=online)
    logger.log_point_cloud("cloud", CLOUD, 3, strict=True)
    logger.log_table("recalls", TABLE, 3, strict=True)
    logger.log_image("photo", np.zeros((8, 16, 3), np.uint8), 3, boxes=BOXES, caption="two", strict=True)
    logger.log_model("net", tmp_path / "net.pt", 3, strict=True)
    logger.log(model, "net", kind="graph", strict=True)
    logger.log_dataset("photos", {"digest": "1f", "source": "s3://bucket/photos"}, strict=True)
    logger.finalize("success")
    assert (logger.stats.pending, logger.stats.rejected, logger.stats.dropped) == (0, 0, 0)
    logger.close()
    shown = standin.experiments[str(logger.version)] if online else upload(*archives(tmp_path / "runs"))
    by_hand = standin.experiments[str(theirs.version)]

    scene, other = shown.asset("cloud"), by_hand.asset("cloud")
    assert (scene.type, list(scene.items)) == (other.type, list(other.items)) == ("3d-image", ["points.jsonl"])
    assert points_of(scene) == points_of(other) == sorted(map(tuple, CLOUD.tolist()))
    assert pixels(scene.thumbnail) == pixels(other.thumbnail)
    assert scene.metadata == other.metadata | ({} if online else {"step": 3})
    assert scene.params == (other.params if online else {})  # Comet's uploader sends no step of a scene

    table, other = shown.asset("recalls.csv"), by_hand.asset("recalls.csv")
    assert (table.type, table.content) == (other.type, other.content)
    assert [table.params[name] for name in ("type", "step", "extension")] == ["dataframe", "3", "csv"]
    assert [other.params[name] for name in ("type", "step", "extension")] == ["dataframe", "3", "csv"]

    image, other = shown.asset("photo"), by_hand.asset("photo")
    assert image.metadata == {"caption": "two", **other.metadata}

    file, other = shown.asset("media/net/3.pt"), by_hand.asset("net.pt")
    assert (file.type, file.params["groupingName"]) == (other.type, other.params["groupingName"])
    assert file.content == other.content
    assert shown.graph == by_hand.graph == str(model)
    assert shown.others["dataset_info"] == by_hand.others["dataset_info"]


def points_of(scene: StandInAsset) -> list[tuple[float, ...]]:
    """The points of a scene, in some order that is always the same."""
    return sorted(tuple(json.loads(line)) for line in scene.items["points.jsonl"].splitlines())


def pixels(content: bytes | None) -> Any:
    """An image's."""
    assert content is not None
    return np.asarray(Image.open(io.BytesIO(content))).tolist()


def test_annotations_are_valid_for_the_sdk() -> None:
    """The SDK's own check, which drops an image at what it does not know, takes boxes of every form."""
    from comet_ml.validation.image.annotation_validator import ImageAnnotationValidator

    boxes: dict[str, Any] = {
        **BOXES,
        "": {"box_data": [{"position": CORNERS}]},
        "empty": {"box_data": []},
        "no boxes": {"box_data": [{"position": {"minX": 1}}, {}, None, {"position": {**CORNERS, "maxX": math.nan}}]},
        "nothing": None,
    }
    made = annotations(boxes, (16, 8))
    assert [layer["name"] for layer in made] == ["truth", "boxes"]
    assert not ImageAnnotationValidator(made).validate().failed()


def test_boxes_that_comet_cannot_show_are_kept(tmp_path: Path) -> None:
    """Where not all boxes are annotations, they are in the image's metadata as they were logged; masks are named."""
    logger = make(tmp_path, online=False)
    boxes = {"truth": {"box_data": [{"position": CORNERS}, {"position": {"minX": 1}}]}}
    mask = np.eye(8, 16, dtype=np.uint8)
    logger.log_image("photo", np.zeros((8, 16, 3), np.uint8), 3, boxes=boxes, masks={"truth": mask}, strict=True)
    logger.finalize("success")
    logger.close()
    experiment = upload(*archives(tmp_path))
    metadata = experiment.asset("photo").metadata
    assert [len(layer["data"]) for layer in metadata["annotations"]] == [1]
    assert metadata["boxes"] == boxes
    assert metadata["masks"] == {"truth": {"file": "media/photo/3.npy"}}
    assert np.array_equal(np.load(io.BytesIO(experiment.asset("media/photo/3.npy").content)), mask)


def test_scenes_and_graphs_of_an_archive_are_valid_for_the_sdk(tmp_path: Path) -> None:
    """Their lines keep to the SDK's own schema, and every file that they name is in the archive, once each."""
    from comet_ml import schemas

    logger = make(tmp_path, online=False)
    for step in range(2):
        logger.log_point_cloud("cloud", CLOUD, step, strict=True)
    logger.log(Net(), "net", kind="graph", strict=True)
    logger.finalize("success")
    logger.close()
    validators = {"3d-image": schemas.get_cloud_3d_msg_validator(), "graph": schemas.get_graph_msg_validator()}
    with zipfile.ZipFile(archives(tmp_path)[0]) as archive:
        lines = [json.loads(line) for line in archive.read("messages.json").splitlines()]
        inside = archive.namelist()
    found = sorted((line for line in lines if line["type"] in validators), key=lambda line: str(line["type"]))
    assert [line["type"] for line in found] == ["3d-image", "3d-image", "graph"]
    for line in found:
        validators[line["type"]].validate(line["payload"])
    named = [item["file_path"] for line in found[:2] for item in line["payload"]["items"]]
    named += [line["payload"]["thumbnail_path"] for line in found[:2]]
    assert len(set(named)) == 4
    assert set(named) < set(inside)
    assert len(inside) == len(set(inside))


@pytest.mark.parametrize("online", [True, False])
def test_what_a_scene_cannot_hold_is_told(tmp_path: Path, standin: CometStandIn, online: bool) -> None:
    """A batch is a scene each; points that are no numbers, or too many, are in the PLY file alone, and that is told."""
    standin.max_points = 150
    where = {"server": server_option(standin.uri, API_KEY)} if online else {"online": False}
    run = RunUnderTest(tmp_path, "comet", where)
    clouds = np.stack([CLOUD, CLOUD[::-1]])
    clouds[0, 7, 1] = np.nan
    log_clouds(run, "clouds", list(clouds))
    log_clouds(run, "nothing", [np.full((2, 3), np.inf)])
    run.deliver()
    run.close()
    experiment = standin.only() if online else upload(*archives(tmp_path))
    kept = [points_of(experiment.asset(f"clouds/{number}")) for number in range(2)]
    assert [len(scene) for scene in kept] == ([150, 150] if online else [199, 200])
    everything = set(map(tuple, CLOUD.tolist()))
    assert all(set(scene) <= everything for scene in kept)
    assert sum("199 of 200 points" in m or "150 of 200 points" in m for m in run.notices.messages) == 1
    assert any("'nothing' has 0 of 2 points" in message for message in run.notices.messages)
    assert [asset.name for asset in experiment.assets_of("3d-image")] == ["clouds/0", "clouds/1"]
    xyz, _ = read_ply(experiment.asset("media/clouds/3-0.ply").content)
    assert np.array_equal(xyz, clouds[0, :, :3].astype(np.float32), equal_nan=True)


def log_clouds(run: RunUnderTest, identifier: str, clouds: list[Any], step: int = 3) -> None:
    """Log point clouds as one record."""
    blobs = [run.writer.blobs.put_bytes(ply(cloud), "points.ply") for cloud in clouds]
    run.log(Record(0, Kind.POINT_CLOUD.value, step, id=identifier, blobs=blobs))


@pytest.mark.parametrize("code", [503, -1])
def test_a_scene_that_is_sent_again_goes_to_its_asset(tmp_path: Path, standin: CometStandIn, code: int) -> None:
    """The id that Comet gave is on disk before the points are sent: another host's second try makes no second scene."""
    run = RunUnderTest(tmp_path, "comet", {"server": server_option(standin.uri, API_KEY)})
    codes = iter([code])
    saved: list[Any] = []

    def fault(path: str) -> int:
        if not path.endswith("asset-item"):
            return 0
        saved.append(run.remote.extra.get("scenes"))
        return next(codes, 0)

    standin.fault = fault
    for step in range(2):
        log_clouds(run, "cloud", [CLOUD], step)
    worker = run.worker()
    assert worker.step().kind is StepKind.FAILED
    worker.close()
    run.deliver()
    run.close()
    scenes = standin.only().assets_of("3d-image")
    assert sorted(scene.params["step"] for scene in scenes) == ["0", "1"]
    assert all(points_of(scene) == sorted(map(tuple, CLOUD.tolist())) for scene in scenes)
    assert [len(ids) for ids in saved] == [1, 1, 2]
    assert "scenes" not in run.remote.extra


def test_a_full_quota_of_scenes_stops_no_metrics(tmp_path: Path, standin: CometStandIn) -> None:
    """Comet's refusal of one more asset costs that scene, told; its PLY file and the metrics are there."""
    from comet_ml.exceptions import IMAGE_UPLOAD_LIMIT_REACHED

    standin.fault_answer = {"sdk_error_code": IMAGE_UPLOAD_LIMIT_REACHED}
    standin.fault = lambda path: 403 if path.endswith("/asset") else 0
    run = RunUnderTest(tmp_path, "comet", {"server": server_option(standin.uri, API_KEY)})
    log_clouds(run, "cloud", [CLOUD])
    run.log_metrics({"loss": 1.0}, 0)
    assert run.deliver().rejected == 1
    run.close()
    assert standin.only().series("loss") == [(0, 1.0)]
    assert [asset.name for asset in standin.only().assets_of("asset")] == ["media/cloud/3.ply"]


def test_an_installation_without_thumbnails_has_scenes(tmp_path: Path, standin: CometStandIn) -> None:
    """A picture that is refused costs the scene nothing; one that Comet cannot take now is sent later."""
    codes = iter([503, 0, 404])
    standin.fault = lambda path: next(codes) if path.endswith("/thumbnail") else 0
    run = RunUnderTest(tmp_path, "comet", {"server": server_option(standin.uri, API_KEY)})
    for step in range(2):
        log_clouds(run, "cloud", [CLOUD], step)
    assert run.deliver(faults=1).rejected == 0
    run.close()
    first, second = standin.only().assets_of("3d-image")
    assert (first.thumbnail is None, second.thumbnail) == (False, None)
    assert points_of(second) == points_of(first)


def test_a_picture_of_a_scene_needs_pillow_and_the_scene_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without Pillow a scene has no thumbnail, and Comet's own uploader takes it all the same."""
    monkeypatch.setattr(comet_scenes, "is_installed", lambda name: False)
    run = RunUnderTest(tmp_path, "comet", {"online": False})
    log_clouds(run, "cloud", [CLOUD])
    run.deliver()
    run.close()
    scene = upload(*archives(tmp_path)).asset("cloud")
    assert (scene.thumbnail, len(points_of(scene))) == (None, 200)
