"""MLFlowLogger as Lightning and its user meet it: constructor, folders, run, checkpoints, status, copies."""

import copy
import inspect
import logging
import pickle
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as lightning_loggers_of_lightning
import pytest
import torch
import yaml
from conftest import free_port
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning_utilities.core.rank_zero import rank_zero_only
from mlflow import MlflowClient
from mlflow_reading import only_run, points
from torch.utils.data import DataLoader, TensorDataset

from lightning_loggers import DummyExperiment, MLFlowLogger
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.errors import ConfigurationError, MissingDependencyError, TrackerUnavailableError
from lightning_loggers.journal.reader import read_first_header

TheirMLFlowLogger = lightning_loggers_of_lightning.MLFlowLogger


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory of the test's own, and no address from outside (Lightning's logger sets one for good)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "to be restored")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture
def experiment() -> str:
    """A name that no other test uses: the server is shared."""
    return f"logger-{uuid.uuid4().hex[:12]}"


def tree(folder: Path) -> set[str]:
    """Everything below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def deliver(logger: MLFlowLogger) -> None:
    """Deliver an offline run, as the command line does."""
    logger.close()
    worker = Worker(Path(str(logger.log_dir)))
    while (step := worker.step()).kind is not StepKind.IDLE:
        assert step.kind is StepKind.PROGRESS, step
    worker.close()


def artifacts(uri: str, run_id: str) -> dict[str, bytes]:
    """Path and content of every artifact of a run."""
    client, found = MlflowClient(uri), {}
    folders: list[str | None] = [None]
    while folders:
        for item in client.list_artifacts(run_id, folders.pop()):
            if item.is_dir:
                folders.append(item.path)
            else:
                found[item.path] = Path(client.download_artifacts(run_id, item.path)).read_bytes()
    return found


class Regression(LightningModule):
    """A model of four weights; ``val`` gets better with every epoch."""

    def __init__(self, fail_at: int | None = None, error: type[BaseException] = RuntimeError) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(4, 1)
        self.fail_at, self.error = fail_at, error

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        if self.fail_at is not None and self.global_step == self.fail_at:
            raise self.error("as scripted")
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("val", 1.0 / (1 + self.current_epoch))

    def test_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("test", 3.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def data(batches: int = 4) -> DataLoader[Any]:
    """Batches of four rows."""
    return DataLoader(TensorDataset(torch.randn(4 * batches, 4)), batch_size=4)


def trainer(logger: Any, *, callbacks: list[Any] | None = None, max_epochs: int = 1) -> Trainer:
    """A quiet Trainer on the CPU that logs every step."""
    return Trainer(
        logger=logger, accelerator="cpu", log_every_n_steps=1, max_epochs=max_epochs, callbacks=callbacks,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=callbacks is not None,
    )  # fmt: skip


# ---------------------------------------------------------------------- the constructor


def test_the_constructor_is_lightnings_with_keyword_only_additions() -> None:
    """Names, order, kinds and defaults up to ``synchronous`` are those of Lightning's logger; more is keyword-only."""
    theirs = dict(inspect.signature(TheirMLFlowLogger).parameters)
    ours = dict(inspect.signature(MLFlowLogger).parameters)
    names = list(theirs)
    assert list(ours)[: len(names)] == names
    assert names[-1] == "synchronous"
    assert ours["tracking_uri"].default is None
    for name in names:
        assert ours[name].kind is theirs[name].kind
        assert name == "tracking_uri" or ours[name].default == theirs[name].default, name
    added = list(ours)[len(names) :]
    assert {ours[name].kind for name in added} == {inspect.Parameter.KEYWORD_ONLY}
    assert {"version", "delivery", "agg_key_funcs", "agg_default_func"} <= set(added)


def test_it_is_a_logger_of_lightning(tmp_path: Path) -> None:
    """The Trainer and users' code see a ``lightning.pytorch.loggers.Logger``."""
    assert isinstance(MLFlowLogger(save_dir=tmp_path), Logger)


def test_a_misspelt_option_is_a_type_error_that_names_it(tmp_path: Path) -> None:
    """An unknown keyword is refused by name, not swallowed."""
    with pytest.raises(TypeError, match="agg_key_func'"):
        MLFlowLogger(save_dir=tmp_path, agg_key_func={})  # type: ignore[call-arg]


def test_the_environment_is_read_when_a_logger_is_made(
    mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str
) -> None:
    """``MLFLOW_TRACKING_URI`` set after the import decides where a run goes, and an argument overrides it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_sqlite)
    logger = MLFlowLogger(experiment, save_dir=tmp_path / "runs")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert only_run(mlflow_sqlite, experiment).data.metrics == {"loss": 1.0}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert logger.stats.pending == 0


def test_by_default_the_store_is_a_database_in_save_dir(
    tmp_path: Path, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an address, runs and artifacts are below ``save_dir``, also when the program changes its directory."""
    logger = MLFlowLogger(experiment, save_dir="runs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_text("note", "hello", step=0)
    logger.finalize("success")
    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    run = only_run(uri, experiment)
    assert run.data.metrics == {"loss": 1.0}
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path / "runs" / "artifacts")
    assert list(artifacts(uri, run.info.run_id).values()) == [b"hello"]
    assert tree(tmp_path / "elsewhere") == set()


def test_a_relative_database_stays_where_it_was_named(
    tmp_path: Path, mlflow_sqlite: str, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``sqlite:///mlflow.db`` means the file in the directory in which the logger was made."""
    assert mlflow_sqlite == f"sqlite:///{tmp_path}/mlflow.db"
    logger = MLFlowLogger(experiment, tracking_uri="sqlite:///mlflow.db", save_dir="runs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert only_run(mlflow_sqlite, experiment).data.metrics == {"loss": 1.0}


def test_run_name_tags_and_artifact_location_reach_mlflow(mlflow_sqlite: str, tmp_path: Path, experiment: str) -> None:
    """A run carries its name and all of its tags, long and odd ones too, and keeps artifacts where it was told."""
    place = tmp_path / "my artifacts"
    tags = {"team": "vision", "empty": "", "a@b": 1, "long": "x" * 9000} | {
        f"t{number}": number for number in range(150)
    }
    logger = MLFlowLogger(
        experiment, "my run", mlflow_sqlite, tags=tags, save_dir=tmp_path / "runs", artifact_location=place.as_uri()
    )
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    run = only_run(mlflow_sqlite, experiment)
    assert run.info.run_name == "my run"
    assert {key: run.data.tags[key] for key in ("team", "empty", "a_b", "t149")} == {
        "team": "vision", "empty": "", "a_b": "1", "t149": "149",
    }  # fmt: skip
    assert artifacts(mlflow_sqlite, run.info.run_id)["tags/long.txt"] == b"x" * 9000
    assert (place / run.info.run_id / "artifacts" / "tags" / "long.txt").is_file()
    assert logger.tags is tags


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"delivery": "carrier pigeon"}, ["delivery='carrier pigeon'", "'thread'", "'process'", "'offline'"]),
        ({"tracking_uri": "htp://ann:s3cr3t@host:5000"}, ["'htp'", "http", "sqlite"]),
        ({"tracking_uri": "ann:s3cr3t@host:5000"}, ["sqlite:///", "http://host:port"]),
        ({"tracking_uri": "localhost:5000"}, ["'localhost:5000'", "http://host:port"]),
        ({"tracking_uri": "file:///tmp/mlruns"}, ["file store", "sqlite:///"]),
        ({"tracking_uri": "./mlruns"}, ["file store", "sqlite:///"]),
        ({"save_dir": "a file/runs"}, ["save_dir='a file/runs'", "is no folder"]),
        ({"save_dir": "n" * 300}, ["save_dir=", "too long"]),
        ({"save_dir": "a\0b"}, ["save_dir=", "null"]),
        ({"log_model": "best"}, ["log_model='best'", "'all'"]),
        ({"finalize_timeout_s": -1}, ["finalize_timeout_s=-1", "seconds"]),
        ({"finalize_timeout_s": float("nan")}, ["finalize_timeout_s=nan", "seconds"]),
        ({"finalize_timeout_s": "30"}, ["finalize_timeout_s='30'", "seconds"]),
        ({"version": "../other"}, ["version='../other'", "folder"]),
        ({"experiment_name": ""}, ["experiment_name=''"]),
        ({"experiment_name": None}, ["experiment_name=None"]),
    ],
    ids=lambda value: next(iter(value.items()), "")[0] if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_work_are_refused_in_one_sentence(
    arguments: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    """A bad argument is a ``ConfigurationError`` that names value and cure, holds no secret and makes nothing."""
    (tmp_path / "a file").write_text("")
    before = tree(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        MLFlowLogger(**arguments)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "s3cr3t" not in message
    assert "\n" not in message
    assert tree(tmp_path) == before


def test_without_mlflow_the_constructor_says_how_to_install_it(tmp_path: Path) -> None:
    """In an interpreter without mlflow the constructor raises with pip's command; offline delivery needs no mlflow."""
    code = """
import sys

class Without:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, *args):
        return None if name.partition(".")[0] == "mlflow" else self.finder.find_spec(name, *args)
    def __getattr__(self, name): return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from lightning_loggers import MLFlowLogger
try:
    MLFlowLogger(save_dir="runs")
except Exception as error:
    print(type(error).__name__, "|", error)
offline = MLFlowLogger(save_dir="offline", delivery="offline")
offline.log_metrics({"loss": 1.0}, 0)
offline.finalize("success")
print(offline.stats.recorded)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    name, _, message = first.partition(" | ")
    assert name == MissingDependencyError.__name__
    assert message.startswith("`MLFlowLogger` needs `mlflow")
    assert "pip install 'lightning-loggers[mlflow]'" in message
    assert second == "1"
    assert not (tmp_path / "runs").exists()


def test_a_secret_in_the_address_stays_out_of_the_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """User, password and token of a URI are in no file of the run and no message, though no server answers."""
    uri = f"http://ann:s3cr3t-pw@127.0.0.1:{free_port()}/mlflow?token=t0ken-value"
    logger = MLFlowLogger("secret", tracking_uri=uri, save_dir=tmp_path / "runs", finalize_timeout_s=0.5)
    with caplog.at_level(logging.DEBUG, "lightning_loggers"):
        logger.log_metrics({"loss": 1.0}, 0)
        logger.finalize("success")
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert any(path.suffix == ".jsonl" for path in files)
    for text in (*(path.read_text() for path in files), caplog.text):
        assert "s3cr3t-pw" not in text
        assert "t0ken-value" not in text
    header = read_first_header(Path(str(logger.log_dir)) / "journal")
    assert header is not None
    assert header.run.options["tracking_uri"].startswith("http://127.0.0.1")


# ---------------------------------------------------------------------- folders, run, experiment


def test_constructing_and_reading_a_logger_makes_nothing(tmp_path: Path) -> None:
    """Name, version and folders are known without a network and without a file, although the server does not exist."""
    uri = f"http://127.0.0.1:{free_port()}"
    logger = MLFlowLogger("digits", tracking_uri=uri, save_dir=tmp_path / "runs")
    assert logger.name == "digits"
    assert logger.save_dir == str(tmp_path / "runs")
    assert logger.root_dir == str(tmp_path / "runs" / "digits")
    assert logger.log_dir == str(tmp_path / "runs" / "digits" / logger.version)
    assert logger.version == logger.version
    assert "made on first use" in repr(logger.experiment)
    assert isinstance(logger.experiment, MlflowClient)
    logger.finalize("success")
    logger.close()
    assert tree(tmp_path) == set()
    assert MLFlowLogger("digits", save_dir=tmp_path / "runs").version != logger.version


def test_checkpoints_lie_in_the_runs_folder(mlflow_sqlite: str, tmp_path: Path, experiment: str) -> None:
    """``ModelCheckpoint`` without a ``dirpath`` writes below ``log_dir``, beside the journal."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    callback = ModelCheckpoint()
    trainer(logger, callbacks=[callback]).fit(Regression(), data())
    assert logger.log_dir is not None
    assert Path(str(callback.dirpath)).is_relative_to(logger.log_dir)
    assert Path(callback.best_model_path).is_file()
    assert (Path(logger.log_dir) / "journal" / "rank0.jsonl").is_file()


def test_experiment_is_the_client_of_the_runs_store(mlflow_sqlite: str, tmp_path: Path, experiment: str) -> None:
    """``experiment`` is an ``MlflowClient`` on the run's store whose use makes the run, as in Lightning's logger."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    assert logger.run_id is not None
    logger.experiment.log_metric(logger.run_id, "by_hand", 1.0)
    logger.experiment.set_tag(logger.run_id, "mine", "yes")
    logger.log_metrics({"loss": 2.0}, 1)
    logger.finalize("success")
    run = only_run(mlflow_sqlite, experiment)
    assert run.info.run_id == logger.run_id
    assert run.info.experiment_id == logger.experiment_id
    assert run.data.metrics == {"by_hand": 1.0, "loss": 2.0}
    assert run.data.tags["mine"] == "yes"
    assert run.info.status == "FINISHED"


def test_experiment_works_before_the_store_exists(tmp_path: Path, experiment: str) -> None:
    """The client's first use makes folder, database and experiment where there were none."""
    logger = MLFlowLogger(experiment, save_dir=tmp_path / "new" / "runs")
    assert experiment in [found.name for found in logger.experiment.search_experiments()]


def test_experiment_of_a_server_that_is_down_fails_in_bounded_time(tmp_path: Path) -> None:
    """Where no tracker answers, using the client says so and what to do, instead of hanging in the SDK's retries."""
    uri = f"http://127.0.0.1:{free_port()}"
    logger = MLFlowLogger(tracking_uri=uri, save_dir=tmp_path / "runs", finalize_timeout_s=0.3)
    with pytest.raises(TrackerUnavailableError, match=uri):
        logger.experiment.search_experiments()
    with pytest.raises(TrackerUnavailableError, match="What was logged is in"):
        _ = logger.run_id


def test_run_id_continues_a_run_of_mlflow(mlflow_server: str, tmp_path: Path, experiment: str) -> None:
    """``run_id=`` of a run that somebody else made and ended logs to it, shows it running meanwhile, and ends it."""
    client = MlflowClient(mlflow_server)
    run = client.create_run(client.create_experiment(experiment))
    client.log_metric(run.info.run_id, "before", 1.0)
    client.set_terminated(run.info.run_id, "FAILED")
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_server, save_dir=tmp_path / "runs", run_id=run.info.run_id)
    logger.log_metrics({"after": 2.0}, 0)
    logger.wait_for_run()
    assert client.get_run(run.info.run_id).info.status == "RUNNING"
    logger.finalize("success")
    assert logger.run_id == run.info.run_id
    assert logger.experiment_id == run.info.experiment_id
    found = only_run(mlflow_server, experiment)
    assert found.data.metrics == {"before": 1.0, "after": 2.0}
    assert found.info.status == "FINISHED"


def test_version_continues_a_run_of_this_folder(mlflow_sqlite: str, tmp_path: Path, experiment: str) -> None:
    """A logger that is given the version of an earlier one logs to the same run of MLflow."""
    first = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    first.log_metrics({"loss": 1.0}, 0)
    first.finalize("success")
    first.close()
    second = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", version=first.version)
    second.log_metrics({"loss": 2.0}, 1)
    second.finalize("success")
    assert second.stats.pending == 0
    run = only_run(mlflow_sqlite, experiment)
    assert points(mlflow_sqlite, run.info.run_id, "loss") == [(0, 1.0), (1, 2.0)]
    assert run.info.status == "FINISHED"


def test_two_loggers_in_one_trainer_are_two_runs(mlflow_sqlite: str, tmp_path: Path, experiment: str) -> None:
    """Two loggers of one Trainer, on one store and folder, are a run each, and both hold every point."""
    loggers = [MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs") for _ in range(2)]
    trainer(loggers).fit(Regression(), data(30))
    assert loggers[0].run_id != loggers[1].run_id
    for logger in loggers:
        assert logger.stats.pending == logger.stats.rejected == 0
        assert [step for step, _ in points(mlflow_sqlite, str(logger.run_id), "loss")] == list(range(30))
        assert MlflowClient(mlflow_sqlite).get_run(str(logger.run_id)).info.status == "FINISHED"
    assert points(mlflow_sqlite, str(loggers[0].run_id), "loss") == points(
        mlflow_sqlite, str(loggers[1].run_id), "loss"
    )


# ---------------------------------------------------------------------- status


def test_fit_then_test_is_one_finished_run(mlflow_server: str, tmp_path: Path, experiment: str) -> None:
    """``fit``, ``validate`` and ``test`` of one Trainer are one run, FINISHED, with the model's hyperparameters."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_server, save_dir=tmp_path / "runs")
    model, runner = Regression(), trainer(logger, max_epochs=2)
    runner.fit(model, data(), data(1))
    assert only_run(mlflow_server, experiment).info.status == "FINISHED"
    runner.validate(model, data(1), verbose=False)
    runner.test(model, data(1), verbose=False)
    run = only_run(mlflow_server, experiment)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test"] == 3.0
    assert len(points(mlflow_server, run.info.run_id, "loss")) == 8
    assert run.data.params == {"fail_at": "None", "error": "builtins.RuntimeError"}


def test_a_validation_alone_is_a_finished_run(mlflow_sqlite: str, tmp_path: Path, experiment: str) -> None:
    """``validate`` without ``fit`` is a run of its own with its metrics."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    trainer(logger).validate(Regression(), data(1), verbose=False)
    run = only_run(mlflow_sqlite, experiment)
    assert run.data.metrics["val"] == 1.0
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "raised", "status"),
    [(RuntimeError, RuntimeError, "FAILED"), (KeyboardInterrupt, SystemExit, "KILLED")],
)
def test_a_training_that_ends_badly_says_so(
    error: type[BaseException], raised: type[BaseException], status: str,
    mlflow_sqlite: str, tmp_path: Path, experiment: str,
) -> None:  # fmt: skip
    """After an exception in a step the run is FAILED, after Ctrl+C KILLED, with every point up to then."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    with pytest.raises(raised):
        trainer(logger, max_epochs=3).fit(Regression(fail_at=6, error=error), data())
    run = only_run(mlflow_sqlite, experiment)
    assert run.info.status == status
    assert [step for step, _ in points(mlflow_sqlite, run.info.run_id, "loss")] == list(range(6))


@pytest.mark.parametrize(("word", "status"), [("success", "FINISHED"), ("failed", "FAILED"), ("finished", "FINISHED")])
def test_lightnings_status_words(word: str, status: str, mlflow_sqlite: str, tmp_path: Path, experiment: str) -> None:
    """Each word that Lightning passes to ``finalize`` is MLflow's status of the run."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize(word)
    run = only_run(mlflow_sqlite, experiment)
    assert run.info.status == status
    assert run.info.end_time is not None


def test_logging_after_close_continues_the_run(mlflow_sqlite: str, tmp_path: Path, experiment: str) -> None:
    """A closed logger that is logged to again opens its run again, and delivers it."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.close()
    assert only_run(mlflow_sqlite, experiment).info.status == "FINISHED"
    logger.log_metrics({"loss": 2.0}, 1)
    logger.close()
    run = only_run(mlflow_sqlite, experiment)
    assert points(mlflow_sqlite, run.info.run_id, "loss") == [(0, 1.0), (1, 2.0)]
    assert run.info.status == "FINISHED"


# ---------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("log_model", [True, "all"])
@pytest.mark.parametrize("save_top_k", [1, -1])
def test_checkpoints_are_laid_out_as_lightnings_logger_does(
    log_model: Any, save_top_k: int, mlflow_sqlite: str, tmp_path: Path, experiment: str
) -> None:
    """Beside Lightning's own logger in one Trainer, ours stores the same files of checkpoints, aliases and metadata."""
    ours = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", log_model=log_model)
    theirs = TheirMLFlowLogger(f"{experiment}-theirs", tracking_uri=mlflow_sqlite, log_model=log_model)
    callback = ModelCheckpoint(monitor="val", save_top_k=save_top_k, save_last=True, filename="{epoch}-{val:.2f}")
    trainer([ours, theirs], callbacks=[callback], max_epochs=3).fit(Regression(), data(), data(1))
    got = artifacts(mlflow_sqlite, only_run(mlflow_sqlite, experiment).info.run_id)
    want = artifacts(mlflow_sqlite, only_run(mlflow_sqlite, f"{experiment}-theirs").info.run_id)
    assert got.keys() == want.keys()
    assert len([name for name in want if name.endswith(".ckpt")]) == (2 if (save_top_k, log_model) == (1, True) else 4)
    for name in want:
        if name.endswith(".yaml"):
            assert yaml.safe_load(got[name]) == yaml.safe_load(want[name]), name
        else:
            assert got[name] == want[name], name


def test_a_checkpoint_deleted_by_the_callback_is_still_delivered(
    mlflow_server: str, tmp_path: Path, experiment: str
) -> None:
    """With ``log_model="all"`` every checkpoint reaches the server and loads, though only the best is left on disk."""
    logger = MLFlowLogger(
        experiment, tracking_uri=mlflow_server, save_dir=tmp_path / "runs", log_model="all", delivery="offline"
    )
    callback = ModelCheckpoint(monitor="val", save_top_k=1, filename="{epoch}")
    trainer(logger, callbacks=[callback], max_epochs=3).fit(Regression(), data(), data(1))
    assert [path.name for path in Path(str(callback.dirpath)).iterdir()] == ["epoch=2.ckpt"]
    deliver(logger)
    run = only_run(mlflow_server, experiment)
    found = artifacts(mlflow_server, run.info.run_id)
    assert sorted(name for name in found if name.endswith(".ckpt")) == [
        f"epoch={epoch}/epoch={epoch}.ckpt" for epoch in range(3)
    ]
    client = MlflowClient(mlflow_server)
    for epoch in range(3):
        path = client.download_artifacts(run.info.run_id, f"epoch={epoch}/epoch={epoch}.ckpt")
        assert torch.load(path, weights_only=False)["epoch"] == epoch
        model = Regression.load_from_checkpoint(path, weights_only=False)
        assert model.layer.weight.shape == (1, 4)
        assert yaml.safe_load(found[f"epoch={epoch}/metadata.yaml"])["score"] == pytest.approx(1 / (1 + epoch))
        assert found[f"epoch={epoch}/aliases.txt"] == b"['latest', 'best']"


def test_a_last_checkpoint_that_is_a_link_is_delivered_as_the_file(
    mlflow_sqlite: str, tmp_path: Path, experiment: str
) -> None:
    """``save_last="link"`` stores the content under the link's own name, as Lightning's logger does."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", log_model=True)
    callback = ModelCheckpoint(monitor="val", save_last="link", filename="{epoch}")
    trainer(logger, callbacks=[callback], max_epochs=2).fit(Regression(), data(), data(1))
    found = artifacts(mlflow_sqlite, only_run(mlflow_sqlite, experiment).info.run_id)
    assert {name for name in found if name.endswith(".ckpt")} == {"epoch=1/epoch=1.ckpt", "last/last.ckpt"}
    assert found["last/last.ckpt"] == found["epoch=1/epoch=1.ckpt"]


def test_log_model_false_keeps_no_checkpoint(mlflow_sqlite: str, tmp_path: Path, experiment: str) -> None:
    """By default no checkpoint leaves its folder."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    callback = ModelCheckpoint(save_top_k=-1)
    trainer(logger, callbacks=[callback]).fit(Regression(), data())
    assert Path(callback.best_model_path).is_file()
    assert artifacts(mlflow_sqlite, only_run(mlflow_sqlite, experiment).info.run_id) == {}


def test_a_failed_training_still_keeps_its_checkpoints(mlflow_sqlite: str, tmp_path: Path, experiment: str) -> None:
    """``log_model=True`` stores what was saved before an exception ended the fit."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", log_model=True)
    callback = ModelCheckpoint(filename="{epoch}")
    with pytest.raises(RuntimeError, match="as scripted"):
        trainer(logger, callbacks=[callback], max_epochs=3).fit(Regression(fail_at=6), data())
    run = only_run(mlflow_sqlite, experiment)
    assert "epoch=0/epoch=0.ckpt" in artifacts(mlflow_sqlite, run.info.run_id)
    assert run.info.status == "FAILED"


# ---------------------------------------------------------------------- copies and ranks


def by_pickle(logger: MLFlowLogger) -> MLFlowLogger:
    """As a spawned process gets it."""
    copied = pickle.loads(pickle.dumps(logger))
    assert isinstance(copied, MLFlowLogger)
    return copied


@pytest.mark.parametrize("duplicate", [by_pickle, copy.deepcopy, copy.copy])
def test_copying_a_logger_opens_nothing_and_keeps_the_run(duplicate: Any, tmp_path: Path) -> None:
    """A copy of a logger that has not logged names the same run and has made no file; neither has the original."""
    logger = MLFlowLogger("copied", save_dir=tmp_path / "runs", agg_key_funcs={"peak": max})
    copied = duplicate(logger)
    assert (copied.name, copied.version, copied.log_dir) == (logger.name, logger.version, logger.log_dir)
    assert tree(tmp_path) == set()


@pytest.mark.parametrize("duplicate", [by_pickle, copy.deepcopy])
def test_a_copy_of_a_logger_that_has_logged_logs_to_the_same_run(
    duplicate: Any, mlflow_sqlite: str, tmp_path: Path, experiment: str
) -> None:
    """Original and copy, alive at once, share one run of MLflow; each point is there once, also those held back."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", finalize_timeout_s=10)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.agg_and_log_metrics({"held": 5.0}, 0)
    copied = duplicate(logger)
    copied.log_metrics({"loss": 2.0}, 1)
    copied.finalize("success")
    assert copied.stats.pending == 0
    logger.log_metrics({"loss": 3.0}, 2)
    logger.finalize("success")
    run = only_run(mlflow_sqlite, experiment)
    assert sorted(points(mlflow_sqlite, run.info.run_id, "loss")) == [(0, 1.0), (1, 2.0), (2, 3.0)]
    assert points(mlflow_sqlite, run.info.run_id, "held") == [(0, 5.0)]
    assert run.info.status == "FINISHED"


def test_a_copy_takes_over_after_the_original_was_closed(mlflow_sqlite: str, tmp_path: Path, experiment: str) -> None:
    """What a copy logs after the original has gone continues the run."""
    logger = MLFlowLogger(experiment, tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    logger.log_metrics({"loss": 1.0}, 0)
    copied = by_pickle(logger)
    logger.close()
    copied.log_metrics({"loss": 2.0}, 1)
    copied.finalize("failed")
    run = only_run(mlflow_sqlite, experiment)
    assert points(mlflow_sqlite, run.info.run_id, "loss") == [(0, 1.0), (1, 2.0)]
    assert run.info.status == "FAILED"


def test_another_rank_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On rank 1 every call is taken, no file is made, ``experiment`` is a dummy and there is no run id."""
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    logger = MLFlowLogger(save_dir=tmp_path / "runs", log_model="all")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.agg_and_log_metrics({"loss": 1.0}, 0)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_text("note", "text")
    logger.log_dict("table", {})
    logger.log_artifact(__file__)
    callback = ModelCheckpoint(dirpath=tmp_path)
    callback.best_model_path = __file__
    logger.after_save_checkpoint(callback)
    logger.save()
    logger.finalize("success")
    logger.close()
    assert tree(tmp_path) == set()
    assert isinstance(logger.experiment, DummyExperiment)
    assert logger.experiment.log_metric("run", "loss", 1.0) is None
    assert logger.run_id is None
    assert logger.experiment_id is None
