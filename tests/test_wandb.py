"""WandbLogger through the real SDK: online against a stand-in of W&B's endpoints, offline read by ``wandb sync``."""

import inspect
import io
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import wait_until
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger as LightningsLogger
from PIL import Image
from test_kinds_values import frames_of_mp4
from wandb_reading import QUIET, OfflineRun
from wandb_running import OWN, answering, deliver, fit, isolated, logged, make, run_dir, sync
from wandb_standin import API_KEY, StandInRun, WandbStandIn

from lightning_loggers import WandbLogger
from lightning_loggers.adapters import wandb_file
from lightning_loggers.adapters.wandb_file import MARK, RunFile
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.errors import ConfigurationError, MissingDependencyError, TrackerUnavailableError
from lightning_loggers.journal import read
from lightning_loggers.loggers.wandb_options import _INIT_ARGUMENTS
from lightning_loggers.records import Kind


@pytest.fixture(autouse=True)
def wandb_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The SDK on its own."""
    yield from isolated(tmp_path, monkeypatch)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbStandIn]:
    """W&B's endpoints."""
    yield from answering(monkeypatch)


# ---------------------------------------------------------------------- the public surface


@pytest.mark.parametrize(
    "name", ["watch", "log_table", "log_image", "log_audio", "log_video", "use_artifact", "download_artifact"]
)
def test_methods_are_lightnings(name: str) -> None:
    """Names, order and defaults of the parameters are those of Lightning's logger; ours adds some by keyword only."""
    want = inspect.signature(getattr(LightningsLogger, name)).parameters.values()
    got = inspect.signature(getattr(WandbLogger, name)).parameters.values()
    assert [(p.name, p.default) for p in got if p.kind != p.KEYWORD_ONLY] == [(p.name, p.default) for p in want]


def test_all_arguments_of_wandb_init_are_taken() -> None:
    """What ``wandb.init`` takes, the constructor takes by name or as a further argument."""
    import wandb

    named = set(inspect.signature(WandbLogger.__init__).parameters)
    assert set(inspect.signature(wandb.init).parameters) <= named | _INIT_ARGUMENTS


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"project": "a/b"}, "project='a/b' holds /"),
        ({"id": "a:b"}, "id='a:b' holds :"),
        ({"tags": ["x" * 65]}, "has 65 characters"),
        ({"offline": True, "log_model": True}, "delivery='offline'"),
        ({"enttiy": "ann"}, "enttiy: no argument of WandbLogger or wandb.init"),
        ({"mode": "shared"}, "mode='shared' is not one of"),
        ({"config": 3}, "config=3 must be a mapping"),
        ({"add_file_policy": "copy"}, "neither 'mutable' nor 'immutable'"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    """The constructor says what is wrong and what would work."""
    with pytest.raises(ConfigurationError, match=said.replace("[", r"\[")):
        WandbLogger(save_dir=tmp_path, **given)


@pytest.mark.parametrize("found", [None, "0.17.9"])
def test_missing_or_old_sdk_is_told_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    """Without a wandb that can be used the constructor raises, unless only the journal is to be written."""
    import importlib.metadata

    def version(name: str) -> str:
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(MissingDependencyError, match=r"needs `wandb>=0.31`.*pip install 'lightning-loggers\[wandb\]'"):
        WandbLogger(save_dir=tmp_path)
    WandbLogger(save_dir=tmp_path, delivery="offline").log_metrics({"loss": 1.0}, 0)


# ---------------------------------------------------------------------- what is read back


ODD = {
    "plain": 0.25,
    "ünï/code @ 5": 1.0,
    "": 2.0,
    "_step": 3.0,
    "_timestamp": 4.0,
    "trainer/global_step": 5.0,
    "-dash-": 6.0,
    "k" * 10_000: 7.0,
    "nan": math.nan,
    "inf": math.inf,
    "ninf": -math.inf,
    "big": 2**60,
    "flag": True,
}
STEPS = [0, None, -3, 2.5, 2**62, 7]


def check_odd(run: StandInRun, folder: Path) -> None:
    """Everything of ODD is in every row, under a name of its own, at the step and time of its log call."""
    names = {key: name for name, key in run.values[MARK].get("names", {}).items()}
    rows = [row for row in run.history if "plain" in row]
    records = [record for record in read(folder) if record.kind == Kind.METRIC and "plain" in (record.data or {})]
    assert len(rows) == len(records) == len(STEPS)
    for row, record, step in zip(rows, records, STEPS, strict=True):
        for key, value in ODD.items():
            got = row[names.get(key, key)]
            assert got == value or (math.isnan(value) and math.isnan(got)), key
        assert row["_timestamp"] == pytest.approx(record.time_ns / 1e9, abs=1e-6)
        assert row["trainer/global_step"] == step
    assert len({names.get(key, key) for key in ODD}) == len(ODD)


def log_odd(logger: WandbLogger) -> None:
    """Log ODD at every one of STEPS."""
    for step in STEPS:
        logger.log_metrics(ODD, step)  # type: ignore[arg-type]


def test_online_what_was_logged_is_read_back(
    tmp_path: Path, standin: WandbStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Values, keys, steps and times of any sort, nested parameters, texts and metadata arrive as they were."""
    logger = make(
        tmp_path, name="first", tags=["a"], group="g", notes="n", job_type="j", config={"seed": 1, "opt": {"lr": 0.5}},
        checkpoint_name=None, entity="team",
    )  # fmt: skip
    params = {"opt": {"width": 4, "nan": math.nan, "betas": (0.9, 0.99)}, "a/b": 3, "-x": 1, "text": "t" * 150_000}
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        logger.log_hyperparams(params)
        log_odd(logger)
        logger.log_text("note", "hello", 3)
        logger.log_dict("matrix", {"rows": [1, 2], "_type": "none of W&B's"}, 4)
        logger.log_dict("empty", {"list": []}, 4)
        logger.log_metrics({"vector": np.arange(3)}, 5)  # type: ignore[dict-item]
        logger._record(Kind.SYSTEM, id="a kind that is not handled")
        logger.finalize("success")
    assert (logger.stats.pending, logger.stats.rejected, logger.stats.dropped) == (0, 0, 0)
    run = standin.only_run()
    assert (run.entity, run.project, run.name, run.display_name) == ("team", "digits", logger.version, "first")
    assert (run.tags, run.group, run.notes, run.job_type, run.state) == (["a"], "g", "n", "j", "finished")
    check_odd(run, run_dir(logger))
    values = run.values
    assert values["opt"] == {"lr": 0.5, "width": 4, "nan": "NaN", "betas": [0.9, 0.99]}
    assert (values["a/b"], values["_x"], values["seed"]) == (3, 1, 1)
    assert values["text"].startswith("t" * 1000)
    whole = next(a for a in standin.artifacts if a.collection in values["text"])
    assert whole.files["value.txt"] == b"t" * 150_000
    assert whole.state == "COMMITTED"
    assert run.points("note") == [(3, "hello")]
    assert [(step, json.loads(text)) for step, text in run.points("matrix")] == [
        (4, {"rows": [1, 2], "_type": "none of W&B's"})
    ]
    assert run.points("empty") == [(4, {"list": []})]
    assert run.points("vector") == [(5, [0, 1, 2])]
    axes = run.config["_wandb"]["value"]["m"]
    assert {axis.get("1") or axis.get("2") for axis in axes} == {"trainer/global_step", "*"}
    assert caplog.text.count("config would hold null") == 1
    assert caplog.text.count("has 150000 characters") == 1
    for path in tmp_path.rglob("*"):  # the SDK's own files and logs too
        assert not path.is_file() or API_KEY.encode() not in path.read_bytes(), path


def test_offline_what_was_logged_is_read_back_by_wandb_sync(tmp_path: Path, standin: WandbStandIn) -> None:
    """The SDK's own folders hold all of it, over two sessions, and its own command uploads them as one run."""
    logger = make(tmp_path, offline=True, config={"seed": 1})
    logger.log_hyperparams({"lr": 0.1})
    log_odd(logger)
    (tmp_path / "notes.txt").write_text("kept")
    logger.log_artifact(tmp_path / "notes.txt")
    logger.finalize("failed")
    logger.log_hyperparams({"lr": 0.2, "late": 1})
    logger.log_metrics({"after": 1.0}, 8)
    logger.finalize("success")
    assert logger.stats.pending == 0
    assert standin.requests == []
    run = sync(tmp_path, standin)
    check_odd(run, run_dir(logger))
    assert run.points("after") == [(8, 1.0)]
    assert run.values["lr"] == 0.2
    assert (run.values["late"], run.values["seed"]) == (1, 1)
    assert (run.name, run.state) == (logger.version, "finished")
    assert [a.files for a in standin.artifacts] == [{"notes.txt": b"kept"}]
    assert [row["_step"] for row in run.history] == list(range(len(STEPS) + 1))


@pytest.mark.parametrize("blocks", [1, 2, 32])
def test_the_sdks_file_is_read_as_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    """A file that ends anywhere in its records gives those before, and the others once they are there."""
    import wandb

    monkeypatch.setattr(wandb_file, "_READ_BYTES", blocks * wandb_file._BLOCK_BYTES)

    run = wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(**QUIET, **OWN))
    for step in range(200):
        run.log({"loss": float(step), "text": "x" * 500})  # over several blocks of the file
    run.log({"loss": -1.0}, step=1_000)
    run.finish()
    wandb.teardown()  # waits until the SDK's process has written the end
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    whole = path.read_bytes()
    growing = tmp_path / "growing.wandb"
    growing.write_bytes(whole[:7])
    file = RunFile(growing)
    assert (file.empty, file.rows) == (True, 0)
    seen = []
    for end in [*range(0, len(whole), 9_973), len(whole)]:
        growing.write_bytes(whole[:end])
        file.advance()
        seen.append(file.rows)
        assert file.whole_bytes <= max(end, 7)
        assert RunFile(growing).rows == file.rows
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert (file.rows, file.ended, file.whole_bytes) == (1_001, True, len(whole))


def test_kinds_without_a_form_of_their_own_are_artifacts_with_standard_names(
    tmp_path: Path, standin: WandbStandIn
) -> None:
    """Models, datasets, tensors, graphs and configurations: an artifact of that type each, a version a record."""
    logger = make(tmp_path)
    model = torch.nn.Linear(2, 1)
    logger.log_model("net", model, 1, strict=True)
    with torch.no_grad():
        model.weight += 1
    logger.log_model("net", model, 2, strict=True)
    logger.log_best_model("best", model, 2, strict=True)
    logger.log_dataset("digits", np.arange(6), context="test", strict=True)
    logger.log_torch("batch", torch.arange(3), strict=True)
    logger.log(model, "layers", kind="graph", strict=True)
    logger.log_config({"lr": 0.5}, strict=True)
    logger.finalize("success")
    assert (logger.stats.pending, logger.stats.rejected, logger.stats.dropped) == (0, 0, 0)
    found = {(a.collection.partition("-media-")[2], a.type, *sorted(a.files)): a for a in standin.artifacts}
    assert set(found) == {
        ("model-net", "model", "media/net/1.pt"), ("model-net", "model", "media/net/2.pt"),
        ("best_model-best", "model", "media/best/2.pt"), ("dataset-digits", "dataset", "media/digits/no-step.json"),
        ("torch-batch", "torch", "media/batch/no-step.pt"), ("graph-layers", "graph", "media/layers/no-step.json"),
        ("config-config", "config", "media/config/no-step.yaml"),
    }  # fmt: skip
    best = found["best_model-best", "model", "media/best/2.pt"]
    assert {"best", "latest"} <= set(best.aliases)
    state = torch.load(io.BytesIO(best.files["media/best/2.pt"]), weights_only=True)
    assert torch.equal(state["weight"], model.weight)
    described = found["dataset-digits", "dataset", "media/digits/no-step.json"].metadata
    assert (described["name"], described["context"]) == ("digits", "test")
    assert found["config-config", "config", "media/config/no-step.yaml"].files == {
        "media/config/no-step.yaml": b"lr: 0.5\n"
    }


def test_figures_and_overlays_of_one_call_are_native(
    tmp_path: Path, standin: WandbStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Figures of plotly are W&B's charts, pages its Html, masks its masks; what its SDK refuses is a standard file."""
    import plotly.graph_objects as go

    (tmp_path / "page.html").write_text("<b>page</b>")
    (tmp_path / "drawing.svg").write_text("<svg/>")
    logger = make(tmp_path)
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    mask = np.tile(np.arange(5, dtype=np.uint8), (4, 1))
    logger.log_figure("chart", go.Figure(go.Bar(y=np.array([1.0, 2.5]))), 1, strict=True)
    logger.log_figure("page", tmp_path / "page.html", 1, strict=True)
    logger.log_figure("drawing", tmp_path / "drawing.svg", 1, strict=True)
    logger.log_image("seen", pixels, 2, caption="one", masks={"truth": mask}, strict=True)
    logger.log_histogram("fine", np.arange(10.0), 3, bins=1000, strict=True)
    logger.log_point_cloud("clouds", np.arange(18.0).reshape(2, 3, 3), 4, strict=True)
    logger.log_video("moving", [np.zeros((3, 3, 16, 16), np.uint8)], 5, fps=[8], caption=["square"])
    logger.finalize("success")
    assert (logger.stats.pending, logger.stats.rejected, logger.stats.dropped) == (0, 0, 0)
    run = standin.only_run()
    rows = {key: value for row in run.history for key, value in row.items() if not key.startswith(("_", "trainer/"))}
    assert rows["chart"]["_type"] == "plotly-file"
    assert json.loads(run.files[rows["chart"]["path"]])["data"][0]["y"] == [1.0, 2.5]
    assert run.files[rows["page"]["path"]] == b"<b>page</b>"
    assert rows["seen"]["captions"] == ["one"]
    shown = run.files[rows["seen"]["all_masks"][0]["truth"]["path"]]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(shown))), mask)
    clouds = [json.loads(run.files[item["path"]]) for item in rows["clouds"]["objects"]]
    assert np.array_equal(clouds, np.arange(18.0).reshape(2, 3, 3))
    assert (rows["moving"]["_type"], rows["moving"]["captions"]) == ("videos", ["square"])
    assert len(frames_of_mp4(run.files[rows["moving"]["videos"][0]["path"]])[0]) == 3
    wholes = {name: content for a in standin.artifacts for name, content in a.files.items()}
    assert set(wholes) == {"media/drawing/1.svg", "media/fine/3.json"}
    assert sum(json.loads(wholes["media/fine/3.json"])["fine"]["counts"]) == 10
    assert "in the artifact" in rows["fine"]
    assert caplog.text.count("W&B's SDK does not take") == 2


def test_trainer_fit_keeps_checkpoints_as_model_artifacts(tmp_path: Path, standin: WandbStandIn) -> None:
    """A real fit: every step's loss, one version of the model's artifact a checkpoint, with aliases and metadata."""
    logger = make(tmp_path, log_model="all")
    checkpoints = ModelCheckpoint(every_n_train_steps=5, save_top_k=-1, monitor="loss", filename="{step}")
    fit(logger, tmp_path, 10, checkpoints)
    assert logger.stats.pending == 0
    run = standin.only_run()
    assert run.points("loss") == logged(run_dir(logger), "loss")
    assert len(run.points("loss")) == 10
    models = [a for a in standin.artifacts if a.type == "model"]
    assert [a.collection for a in models] == [f"model-{logger.version}"] * 2
    kept = sorted(Path(str(checkpoints.dirpath)).glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    assert [a.files["model.ckpt"] for a in models] == [path.read_bytes() for path in kept]
    assert [a.metadata["original_filename"] for a in models] == [path.name for path in kept]
    assert "latest" in models[-1].aliases
    assert sum("best" in a.aliases for a in models) == 1
    assert str(checkpoints.dirpath) == str(tmp_path / "digits" / str(logger.version) / "checkpoints")


# ---------------------------------------------------------------------- the run


def test_a_run_goes_on_after_its_end_also_in_a_later_process(tmp_path: Path, standin: WandbStandIn) -> None:
    """The id is known at once and names the folder; a logger with it continues run and journal, to another end."""
    first = make(tmp_path)
    first.log_hyperparams({"lr": 0.1})
    first.log_metrics({"loss": 1.0}, 0)
    first.finalize("interrupted")
    assert (standin.only_run().state, standin.only_run().exit_code) == ("failed", 255)
    first.close()
    second = make(tmp_path, id=first.version)
    assert second.log_dir == first.log_dir
    second.log_hyperparams({"lr": 0.2})
    second.log_metrics({"loss": 2.0}, 1)
    second.finalize("success")
    second.close()
    second.close()
    run = standin.only_run()
    assert (run.name, run.points("loss"), run.values["lr"]) == (first.version, [(0, 1.0), (1, 2.0)], 0.2)
    assert (run.state, run.exit_code) == ("finished", 0)


def test_the_packages_are_listed_once_a_process(tmp_path: Path) -> None:
    """Not again with every fit: it takes longer than all else of a session's begin."""
    settings = {key: value for key, value in QUIET.items() if key != "x_save_requirements"}
    logger = WandbLogger(project="digits", save_dir=tmp_path, offline=True, settings=settings)
    for step in range(2):
        logger.log_metrics({"loss": 1.0}, step)
        logger.finalize("success")
    logger.close()
    sessions = list(tmp_path.glob("**/offline-run-*"))
    assert len(sessions) == 2
    listed = list(tmp_path.glob("**/requirements.txt"))
    assert len(listed) == 1
    assert "wandb==" in listed[0].read_text()


def test_rows_of_others_in_a_resumed_run_are_not_taken_for_ours(tmp_path: Path, standin: WandbStandIn) -> None:
    """Continuing a run that somebody else filled adds all of our rows to it, also by a host that has lost its notes."""
    first = make(tmp_path / "elsewhere", id="shared-id")
    for step in range(30):
        first.log_metrics({"theirs": float(step)}, step)
    first.finalize("success")
    first.close()
    second = make(tmp_path / "here", id="shared-id")
    for step in range(10):
        second.log_metrics({"ours": float(step)}, step)
    second.finalize("success")
    second.close()
    (run_dir(second) / "journal" / "wandb.state.json").unlink()
    deliver(run_dir(second))
    run = standin.only_run()
    assert len(run.points("theirs")) == 30
    assert run.points("ours") == [(step, float(step)) for step in range(10)]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_replay_from_the_beginning_shows_nothing_twice(tmp_path: Path, standin: WandbStandIn, mode: str) -> None:
    """A host that has lost cursors and notes delivers all of it again, and every row is there once."""
    logger = make(tmp_path, offline=mode == "offline")
    logger.log_hyperparams({"lr": 0.1})
    for step in range(300):
        logger.log_metrics({"loss": float(step)}, step)
    logger.finalize("success")
    logger.close()
    for path in (run_dir(logger) / "journal").glob("wandb.*.json"):
        path.unlink()
    worker = deliver(run_dir(logger))
    assert worker.state is not None
    assert worker.state.delivered == 301
    expected = [(step, float(step)) for step in range(300)]
    if mode == "online":
        assert (standin.only_run().points("loss"), standin.only_run().state) == (expected, "finished")
    else:
        run = OfflineRun(tmp_path, str(logger.version))
        assert [(row["trainer/global_step"], row["loss"]) for row in run.rows] == expected
        assert run.exit_code == 0


# ---------------------------------------------------------------------- beside the user's own runs


def test_loggers_and_the_users_own_run_go_on_side_by_side(tmp_path: Path) -> None:
    """Two loggers with ids and a run of the user's have a run each; ``wandb.run`` and the environment stay as is."""
    import wandb

    own = wandb.init(mode="offline", project="own", dir=tmp_path, settings=wandb.Settings(**QUIET, **OWN))
    before = dict(os.environ)
    loggers = [make(tmp_path, offline=True, id=f"run-{number}") for number in range(2)]
    for step in range(20):
        own.log({"loss": float(step)})
        for number, logger in enumerate(loggers):
            logger.log_metrics({"loss": float(step + 100 * number)}, step)
    for logger in loggers:
        logger.finalize("success")
    assert wandb.run is own
    assert dict(os.environ) == before
    own.finish()
    wandb.teardown()  # waits until the SDK's process has written the end
    assert [row["loss"] for row in OfflineRun(tmp_path, own.id).rows] == [float(step) for step in range(20)]
    for number in range(2):
        rows = [(row["trainer/global_step"], row["loss"]) for row in OfflineRun(tmp_path, f"run-{number}").rows]
        assert rows == [(step, float(step + 100 * number)) for step in range(20)]


def test_an_active_run_is_logged_into_and_left_open(
    tmp_path: Path, standin: WandbStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """As with Lightning's logger, the run of ``wandb.init()`` is used, which is told; finishing it stays the user's."""
    import wandb

    own = wandb.init(project="own", dir=tmp_path, settings=wandb.Settings(**QUIET, **OWN))
    own.log({"theirs": 1.0}, step=50)
    with pytest.raises(ConfigurationError, match="use delivery='thread'"):
        make(tmp_path, experiment=own, delivery="process")
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        logger = make(tmp_path)
    assert f"logs into the run {own.id}" in caplog.text
    assert (logger.version, logger.name) == (own.id, "own")
    for step in range(5):
        logger.log_metrics({"loss": float(step)}, step)
    logger.finalize("success")
    assert logger.stats.pending == 0
    assert logger.experiment.id == own.id
    assert standin.only_run().state == "running"
    own.log({"theirs": 2.0})
    own.finish()
    run = standin.only_run()
    assert run.points("loss") == [(step, float(step)) for step in range(5)]
    assert (run.state, len(run.points("theirs"))) == ("finished", 2)


def test_a_lent_run_is_not_opened_by_another_process(tmp_path: Path) -> None:
    """W&B takes one writer a run: what is left of one that a live process holds is delivered after its end."""
    logger = make(tmp_path, delivery="offline", offline=True, id="lent")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as owner:
        from lightning_loggers.adapters.wandb import lender

        lent = {"lender": {**lender(), "pid": owner.pid}}
        worker = Worker(run_dir(logger), {"settings": QUIET, **lent})
        step = worker.step()
        worker.close()
        assert (step.kind, f"belongs to the process {owner.pid}" in step.reason) == (StepKind.FAILED, True)
        assert not (tmp_path / "wandb").exists()
    deliver(run_dir(logger), lent)
    assert [row["loss"] for row in OfflineRun(tmp_path, "lent").rows] == [1.0]


def test_experiment_is_the_run_that_delivery_logs_to(tmp_path: Path) -> None:
    """What a user logs and sets by hand stands beside what the logger sends, also after the end of a fit."""
    import wandb

    logger = make(tmp_path, offline=True)
    assert isinstance(logger.experiment, wandb.Run)
    logger.log_metrics({"loss": 0.0}, 0)
    logger.experiment.config["extra"] = 5
    logger.experiment.notes = "by hand"
    assert logger.experiment.notes == "by hand"
    shared = run_dir(logger) / "journal" / "wandb.shared"
    assert not shared.exists()
    logger.experiment.log({"mine": 1.0}, step=70)
    assert shared.exists()
    logger.log_metrics({"loss": 1.0}, 1)
    logger.finalize("success")
    assert logger.experiment.id == logger.version
    logger.experiment.log({"mine": 2.0})
    logger.log_metrics({"loss": 2.0}, 2)
    logger.finalize("success")
    assert (logger.stats.pending, logger.stats.rejected) == (0, 0)
    run = OfflineRun(tmp_path, str(logger.version))
    rows = [(row["trainer/global_step"], row["loss"]) for row in run.rows if "loss" in row]
    assert rows == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert [row["mine"] for row in run.rows if "mine" in row] == [1.0, 2.0]
    assert (run.config["extra"], run.exit_code) == (5, 0)


def test_row_logged_by_hand_in_the_middle_of_a_delivery_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's row with a step of its own, between our row and the question for its number, is held by the SDK."""
    from lightning_loggers.adapters import wandb_session
    from lightning_loggers.adapters.wandb import only_live_run, share_run
    from lightning_loggers.adapters.wandb_records import Rows

    by_hand = [70, 200]
    log_row = Rows.log

    def log_and_be_joined(self: Rows, log: Any, record: Any) -> None:
        log_row(self, log, record)
        if by_hand:
            share_run(run_dir(logger))  # as logger.experiment does
            only_live_run().log({"mine": 1.0}, step=by_hand.pop(0))

    monkeypatch.setattr(Rows, "log", log_and_be_joined)
    monkeypatch.setattr(wandb_session, "PATIENCE_S", 5.0)
    logger = make(tmp_path, offline=True)
    for step in range(2):
        logger.log_metrics({"loss": float(step)}, step)
    logger.finalize("success")
    assert (logger.stats.pending, logger.stats.retried) == (0, 0)
    run = OfflineRun(tmp_path, str(logger.version))
    assert [row["loss"] for row in run.rows if "loss" in row] == [0.0, 1.0]
    assert sum(row.get("mine", 0) for row in run.rows) == 2.0


def test_the_sdk_is_asked_for_the_number_of_rows_only_where_others_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The question costs more than the rows; that ours are all there is seen from the file."""
    from lightning_loggers.adapters.wandb_session import Session

    asked: list[int] = []
    count = Session._count

    def counted(self: Session) -> int:
        asked.append(count(self))
        return asked[-1]

    monkeypatch.setattr(Session, "_count", counted)
    logger = make(tmp_path, offline=True)
    for step in range(3):
        logger.log_metrics({"loss": float(step)}, step)
        wait_until(lambda: logger.stats.pending == 0, 30, "delivery")
    assert asked == []
    logger.experiment.log({"mine": 1.0})
    logger.log_metrics({"loss": 3.0}, 3)
    wait_until(lambda: logger.stats.pending == 0, 30, "delivery")
    assert asked == [4, 5]
    logger.finalize("success")
    assert [row.get("loss") for row in OfflineRun(tmp_path, str(logger.version)).rows] == [0.0, 1.0, 2.0, None, 3.0]


def test_nobody_is_looked_for_who_still_writes_what_this_process_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search goes through the open files of all processes, and the file would be read again at every fit."""
    from lightning_loggers.adapters import wandb_begin

    monkeypatch.setattr(wandb_begin, "is_open", lambda path: pytest.fail(f"{path} was looked for"))
    logger = make(tmp_path, offline=True)
    for step in range(3):
        logger.log_metrics({"loss": float(step)}, step)
        logger.finalize("success")
        assert (logger.stats.pending, logger.stats.retried) == (0, 0)
    assert [row["loss"] for row in OfflineRun(tmp_path, str(logger.version)).rows] == [0.0, 1.0, 2.0]
    assert {file.rows for file in wandb_file._ended.values() if file.path.is_relative_to(tmp_path)} == {1}


def test_artifacts_are_used_and_downloaded(tmp_path: Path, standin: WandbStandIn) -> None:
    """Where this process delivers one run, that run is noted to use what is downloaded, as with Lightning's logger."""
    asked: list[tuple[str, Any]] = []

    class Artifact:
        def download(self, root: str | None = None) -> str:
            return root or "default"

    class Run:
        id = "one"

        def use_artifact(self, artifact: str, **given: Any) -> Artifact:
            asked.append((artifact, given["type"]))
            return Artifact()

    from lightning_loggers.adapters import wandb as adapter

    logger = make(tmp_path, delivery="offline")
    adapter._live[run_dir(logger)] = Run()
    try:
        assert logger.download_artifact("a:v0", tmp_path, "model") == str(tmp_path)
    finally:
        del adapter._live[run_dir(logger)]
    assert asked == [("a:v0", "model")]


def test_process_delivery_reaches_wandb_and_says_where_the_run_is(tmp_path: Path) -> None:
    """A child process delivers; using the run directly is refused with the reason, and logging it is not."""
    logger = make(tmp_path, delivery="process", offline=True)
    for step in range(10):
        logger.log_metrics({"loss": float(step)}, step)
    logger.finalize("success")
    with pytest.raises(TrackerUnavailableError, match="use delivery='thread'"):
        logger.experiment.log({"mine": 1.0})
    logger.close()
    run = OfflineRun(tmp_path, str(logger.version))
    assert (len(run.rows), run.exit_code) == (10, 0)


def test_disabled_mode_sends_nothing(tmp_path: Path, standin: WandbStandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """WANDB_MODE=disabled, as the SDK knows it, keeps the journal and tells W&B nothing."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = make(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert logger.stats.pending == 0
    assert standin.requests == []
