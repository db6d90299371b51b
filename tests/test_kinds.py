"""Every kind of object on every tracker: real content is logged, delivered, read back with the tracker's own reader."""

import collections
import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
import yaml
from conftest import wait_until
from kinds_content import FPS, RATE, moving_square, photograph, tone, torus, trained_model
from kinds_reading import (
    READINGS,
    CometReading,
    ConsoleReading,
    MemoryReading,
    MLflowReading,
    NeptuneReading,
    Reading,
    TensorBoardReading,
    WandbReading,
)
from lightning_utilities.core.rank_zero import rank_zero_only
from PIL import Image
from test_kinds_values import frames_of_gif, frames_of_mp4, pixels, read_ply
from warm_python import WarmPython

from lightning_loggers import CSVLogger, InMemoryLogger, LoggerCollection, TensorBoardLogger
from lightning_loggers.adapters.image_details import rectangles
from lightning_loggers.adapters.kinds_table import kinds_table
from lightning_loggers.adapters.registry import adapter_class
from lightning_loggers.adapters.tensorboard_media import with_boxes
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.errors import ConfigurationError, MissingDependencyError, UnsuitableValueError
from lightning_loggers.journal import read
from lightning_loggers.loggers import encoding
from lightning_loggers.loggers.kinds import LOGGABLE
from lightning_loggers.loggers.recording import RESERVED
from lightning_loggers.policies import LogLevel, LogPolicy
from lightning_loggers.records import Kind, Record
from lightning_loggers.values.snapshots import Encoded

TABLE = {"class": ["cat", "dog"], "recall": [0.5, 0.75]}
CONFIG = {"model": {"width": 64, "act": "relu"}, "seeds": [1, 2]}
KINDS = [kind for kind in LOGGABLE if kind not in RESERVED]


def log_everything(logger: Any, folder: Path) -> None:
    """One of each kind, through ``log`` and its own method in turn."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(2, 1), dpi=50)
    axes.plot([1, 3, 2])
    model = trained_model()
    (folder / "notes.bin").write_bytes(bytes(range(256)))
    torch.save(model.state_dict(), folder / "epoch=1.ckpt")
    logger.log(0.25, "loss", step=3, strict=True)
    logger.log(1e-3, "lr", kind="param", strict=True)
    logger.log("a text\nof two lines", "note", kind="text", step=3, strict=True)
    logger.log({"a": [1, None]}, "facts", kind="dict", step=3, strict=True)
    logger.log_table("recalls", TABLE, 3, strict=True)
    logger.log_image("photo", photograph, 3, strict=True)
    logger.log([photograph[:8], torch.zeros(3, 4, 4)], "crops", kind="image", step=3, strict=True)
    logger.log_figure("curve", figure, 3, close=True, strict=True)
    logger.log_audio("tone", torch.from_numpy(tone(channels=2)), 3, sample_rate=RATE, strict=True)
    logger.log_video("square", moving_square(), 3, fps=FPS, strict=True)
    logger.log_histogram("weights", model[0].weight, 3, strict=True)
    logger.log_point_cloud("torus", torus(), 3, strict=True)
    logger.log(folder / "notes.bin", "files", kind="artifact", strict=True)
    logger.log_model("net", model, 3, strict=True)
    logger.log(model, "best", kind="best_model", step=3, strict=True)
    logger.log_checkpoint(folder / "epoch=1.ckpt", step=3, aliases=["best"], strict=True)
    logger.log_dataset("photos", photograph, context="test", strict=True)
    logger.log_torch("batch", torch.arange(3, dtype=torch.bfloat16), 3, strict=True)
    logger.log(model, "net", kind="graph", step=3, strict=True)
    logger.log_config(CONFIG, strict=True)
    logger.watch(model, log="all", log_freq=1, log_graph=False)
    model(torch.ones(2, 4)).sum().backward()
    logger.unwatch()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Callable[[str], Reading]]:
    """Runs that have one of each kind, one a tracker, made when first asked for."""
    made: dict[str, Reading] = {}

    def run(tracker: str) -> Reading:
        if tracker not in made:
            folder = tmp_path_factory.mktemp(tracker)
            reading = READINGS[tracker].begin(folder / "runs", mlflow_template, None)
            log_everything(reading.logger, folder)
            reading.end()
            reading.logger.close()
            made[tracker] = reading
        return made[tracker]

    yield run
    for reading in made.values():
        reading.logger.close()


FILES = ["csv", "tensorboard", "mlflow", "memory", "comet", "neptune", "wandb"]
files_and = pytest.mark.parametrize("tracker", FILES)


def sha(values: Any) -> dict[str, Any]:
    """A state's tensors as lists, to be compared."""
    return {key: tensor.tolist() for key, tensor in values.items()}


@files_and
def test_a_photograph_is_read_back_exactly(runs: Callable[[str], Reading], tracker: str) -> None:
    """The photograph comes back pixel by pixel; a list of images as as many."""
    [content] = runs(tracker).files(Kind.IMAGE, "photo", 3)
    assert np.array_equal(pixels(content), photograph)
    crops = [pixels(content) for content in runs(tracker).files(Kind.IMAGE, "crops", 3)]
    assert [crop.shape for crop in crops] == [(8, 640, 3), (4, 4, 3)]
    assert np.array_equal(crops[0], photograph[:8])


@files_and
def test_a_figure_is_read_back(runs: Callable[[str], Reading], tracker: str) -> None:
    """The figure comes back as the picture of its size, with something drawn."""
    [content] = runs(tracker).files(Kind.FIGURE, "curve", 3)
    picture = pixels(content)
    assert picture.shape == (50, 100, 4)
    assert len(np.unique(picture)) > 10


@files_and
def test_a_tone_is_read_back_within_sixteen_bits(runs: Callable[[str], Reading], tracker: str) -> None:
    """Both channels come back at their rate, within half a step of 1/32767."""
    [content] = runs(tracker).files(Kind.AUDIO, "tone", 3)
    with wave.open(io.BytesIO(content)) as sound:
        assert sound.getframerate() == RATE
        samples = np.frombuffer(sound.readframes(10**9), "<i2").reshape(-1, 2).T / 32767
    assert np.abs(samples - tone(channels=2)).max() < 0.51 / 32767


@files_and
def test_a_moving_square_is_read_back_within_the_codecs_loss(runs: Callable[[str], Reading], tracker: str) -> None:
    """All frames come back at their rate, within a few of 255 levels; at TensorBoard as a GIF, elsewhere as MP4."""
    [content] = runs(tracker).files(Kind.VIDEO, "square", 3)
    frames, fps = (frames_of_gif if tracker == "tensorboard" else frames_of_mp4)(content)
    expected = moving_square().transpose(0, 2, 3, 1).astype(float)
    assert frames.shape == expected.shape
    assert fps == pytest.approx(FPS, rel=0.02)
    assert np.abs(frames - expected).mean() < 4


@files_and
def test_a_histogram_is_read_back(runs: Callable[[str], Reading], tracker: str) -> None:
    """Counts and edges are numpy's for the weights, and their moments are the weights' own."""
    weights = trained_model()[0].weight.detach().double().numpy()  # type: ignore[index, union-attr]
    counts, edges = np.histogram(weights, 64)
    reading = runs(tracker)
    if isinstance(reading, TensorBoardReading):
        shown = reading.histogram("weights", 3)
        assert list(shown.bucket) == counts.tolist()
        assert list(shown.bucket_limit) == edges[1:].tolist()
        assert (shown.num, shown.min, shown.max) == (weights.size, weights.min(), weights.max())
        assert shown.sum_squares == pytest.approx(np.square(weights).sum())
        return
    if isinstance(reading, WandbReading):
        shown = reading.row("weights", 3)
        assert (shown["_type"], shown["values"], shown["bins"]) == ("histogram", counts.tolist(), edges.tolist())
        return
    if isinstance(reading, MemoryReading):
        made = reading.record(Kind.HISTOGRAM, "weights", 3).value["weights"]
    else:
        made = json.loads(reading.files(Kind.HISTOGRAM, "weights", 3)[0])["weights"]
    assert made["counts"] == counts.tolist()
    assert made["bins"] == edges.tolist()
    assert made["sum"] == pytest.approx(weights.sum())


@files_and
def test_gradients_and_parameters_are_watched(runs: Callable[[str], Reading], tracker: str) -> None:
    """Each parameter has a histogram of itself and of its gradient, of all its values."""
    reading = runs(tracker)
    for name, parameter in trained_model().named_parameters():
        for key in (f"gradients/{name}", f"parameters/{name}"):
            if isinstance(reading, TensorBoardReading):
                assert sum(reading.histogram(key, 0).bucket) == parameter.numel()
                continue
            if isinstance(reading, WandbReading):
                assert sum(reading.row(key, 0)["values"]) == parameter.numel()
                continue
            if isinstance(reading, MemoryReading):
                made = reading.record(Kind.WATCH, key, 0).value[key]
            else:
                made = json.loads(reading.files(Kind.WATCH, key, 0)[0])[key]
            assert sum(made["counts"]) == parameter.numel()


@files_and
def test_a_torus_is_read_back(runs: Callable[[str], Reading], tracker: str) -> None:
    """All points come back as 32-bit floats with their colours; at TensorBoard as a mesh, at W&B as an Object3D."""
    cloud, reading = torus(), runs(tracker)
    if isinstance(reading, TensorBoardReading):
        xyz, colours = reading.mesh("torus_VERTEX", 3)[0], reading.mesh("torus_COLOR", 3)[0]
    elif isinstance(reading, WandbReading):
        points = np.array(json.loads(reading.files(Kind.POINT_CLOUD, "torus", 3)[0]))
        xyz, colours = points[:, :3], points[:, 3:]
    else:
        _, xyz, colours = read_ply(reading.files(Kind.POINT_CLOUD, "torus", 3)[0])
    assert np.array_equal(xyz, cloud[:, :3].astype(np.float32))
    assert np.array_equal(colours, cloud[:, 3:].astype(np.uint8))


@files_and
def test_a_table_is_read_back(runs: Callable[[str], Reading], tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns and rows come back: by MLflow's ``load_table``, elsewhere from Parquet, at TensorBoard as text, too."""
    reading = runs(tracker)
    if isinstance(reading, MLflowReading):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", reading.client.tracking_uri)  # load_table asks for it, not its client
        shown = reading.client.load_table(
            reading.run.info.experiment_id, "media/recalls/3.json", [reading.run.info.run_id]
        )
        assert shown.to_dict("list") == TABLE
        return
    [content] = reading.files(Kind.TABLE, "recalls", 3)
    if isinstance(reading, WandbReading):
        shown = json.loads(content)
        assert dict(zip(shown["columns"], map(list, zip(*shown["data"], strict=True)), strict=True)) == TABLE
        return
    assert pyarrow.parquet.read_table(io.BytesIO(content)).to_pydict() == TABLE
    if isinstance(reading, TensorBoardReading):
        assert "| dog | 0.75 |" in reading.text("recalls", 3)


@files_and
@pytest.mark.parametrize(("kind", "identifier"), [(Kind.MODEL, "net"), (Kind.BEST_MODEL, "best")])
def test_a_trained_model_is_read_back_without_running_code(
    runs: Callable[[str], Reading], tracker: str, kind: Kind, identifier: str
) -> None:
    """A model's state is read with ``weights_only=True``, and loads into a model of the same form."""
    contents = runs(tracker).files(kind, identifier, 3)
    states = [content for content in contents if content.startswith(b"PK")]  # the graph is JSON, of the same name
    state = torch.load(io.BytesIO(states[0]), weights_only=True)
    assert sha(state) == sha(trained_model().state_dict())


@files_and
def test_a_tensor_is_read_back(runs: Callable[[str], Reading], tracker: str) -> None:
    """A bfloat16 tensor comes back with its type."""
    [content] = runs(tracker).files(Kind.TORCH, "batch", 3)
    assert torch.equal(torch.load(io.BytesIO(content), weights_only=True), torch.arange(3, dtype=torch.bfloat16))


@files_and
def test_a_graph_is_read_back(runs: Callable[[str], Reading], tracker: str) -> None:
    """The modules of the model come back with their parameters' shapes."""
    reading = runs(tracker)
    if isinstance(reading, MemoryReading):
        described = reading.record(Kind.GRAPH, "net", 3).value
    else:
        [described] = [json.loads(c) for c in reading.files(Kind.GRAPH, "net", 3) if c.startswith(b"{")]
    assert [module["type"] for module in described["modules"]] == ["Sequential", "Linear", "ReLU", "Linear"]
    assert described["modules"][1]["parameters"] == {"weight": [8, 4], "bias": [8]}


@files_and
def test_files_and_checkpoints_are_read_back(runs: Callable[[str], Reading], tracker: str) -> None:
    """An artifact comes back byte by byte, a checkpoint as torch reads it."""
    reading = runs(tracker)
    assert reading.files(Kind.ARTIFACT, "files", None) == [bytes(range(256))]
    [content] = reading.files(Kind.CHECKPOINT, "epoch=1", 3)
    assert sha(torch.load(io.BytesIO(content), weights_only=True)) == sha(trained_model().state_dict())


@files_and
def test_a_dataset_is_read_back(runs: Callable[[str], Reading], tracker: str) -> None:
    """Name, digest and size come back: as the run's input at MLflow, elsewhere as JSON."""
    reading = runs(tracker)
    if isinstance(reading, MLflowReading):
        [found] = reading.run.inputs.dataset_inputs
        assert (found.dataset.name, len(found.dataset.digest)) == ("photos", 8)
        assert json.loads(found.dataset.profile) == {"num_rows": 427}
        assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "test")]
        return
    if isinstance(reading, MemoryReading):
        described = reading.record(Kind.DATASET, "photos", None).value
    else:
        described = json.loads(reading.files(Kind.DATASET, "photos", None)[0])
    assert (described["name"], described["profile"], described["context"]) == ("photos", {"num_rows": 427}, "test")


@files_and
def test_texts_dictionaries_and_the_configuration_are_read_back(runs: Callable[[str], Reading], tracker: str) -> None:
    """A text, a dictionary and a nested configuration come back equal."""
    reading = runs(tracker)
    assert reading.text("note", 3) == "a text\nof two lines"
    if isinstance(reading, MemoryReading):
        assert reading.record(Kind.DICT, "facts", 3).value == {"a": [1, None]}
        assert reading.record(Kind.CONFIG, "config", None).value == CONFIG
        return
    facts = reading.text("facts", 3) if tracker == "tensorboard" else reading.files(Kind.DICT, "facts", 3)[0]
    assert json.loads(facts) == {"a": [1, None]}
    assert yaml.safe_load(reading.files(Kind.CONFIG, "config", None)[0]) == CONFIG


def test_a_server_of_mlflow_takes_every_kind(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over REST, images, tables, datasets and files arrive as they do in a database."""
    from mlflow import MlflowClient

    from lightning_loggers import MLFlowLogger

    logger = MLFlowLogger("kinds", tracking_uri=mlflow_server, save_dir=str(tmp_path / "runs"))
    log_everything(logger, tmp_path)
    logger.finalize("success")
    assert (logger.stats.pending, logger.stats.rejected, logger.stats.dropped) == (0, 0, 0)
    reading = MLflowReading()
    reading.logger, reading.client = logger, MlflowClient(mlflow_server)
    reading.run = reading.client.get_run(str(logger.run_id))
    reading.folder = Path(reading.client.download_artifacts(reading.run.info.run_id, "", str(tmp_path)))
    for test in (
        test_a_photograph_is_read_back_exactly,
        test_a_tone_is_read_back_within_sixteen_bits,
        test_a_torus_is_read_back,
        test_a_tensor_is_read_back,
        test_a_dataset_is_read_back,
        test_files_and_checkpoints_are_read_back,
        test_texts_dictionaries_and_the_configuration_are_read_back,
    ):
        test(lambda tracker: reading, "mlflow")
    test_a_table_is_read_back(lambda tracker: reading, "mlflow", monkeypatch)


def test_metrics_and_params_go_the_usual_way(runs: Callable[[str], Reading]) -> None:
    """``log`` of a metric and a param is what their own methods do."""
    logger: Any = runs("memory").logger
    assert logger.timeseries("loss")["value"].tolist() == [0.25]
    assert logger.timeseries("loss")["step"].tolist() == [3]
    assert logger.hyperparams == {"lr": 1e-3}
    mlflow = runs("mlflow")
    assert isinstance(mlflow, MLflowReading)
    assert mlflow.run.data.metrics == {"loss": 0.25}
    assert mlflow.run.data.params == {"lr": "0.001"}


def test_the_console_has_a_line_for_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each kind is a line with its step, kind and identifier, and its files' sizes or what it is about."""
    reading = ConsoleReading.begin(tmp_path / "runs", tmp_path, capsys)
    log_everything(reading.logger, tmp_path)
    reading.end()
    lines = capsys.readouterr().out
    for expected in (
        "step 3  image photo: image.png (",
        "step 3  image crops: image.png (",
        "step 3  figure curve: figure.png (",
        "step 3  audio tone: sound.wav (16,044 B)",
        "step 3  video square: video.mp4 (",
        "step 3  histogram weights: 32 values from ",
        "step 3  point_cloud torus: points.ply (",
        "step 3  table recalls: table.parquet (",
        "artifact files: notes.bin (256 B)",
        "step 3  model net: state.pt (",
        "step 3  best_model best: state.pt (",
        "step 3  checkpoint epoch=1: epoch=1.ckpt (",
        'dataset photos: {"class": "numpy.ndarray"',
        "step 3  torch batch: state.pt (",
        'step 3  graph net: {"class": "Sequential"',
        'config config: {"model": {"width": 64',
        "watch gradients/0.weight: 32 values",
        "loss=0.25",
        "| lr = 0.001",
        "| of two lines",
    ):
        assert expected in lines, expected


@pytest.mark.parametrize("tracker", READINGS)
def test_no_kind_is_left_out(tracker: str) -> None:
    """Every kind that can be logged is in the table of every adapter, and so in ``supported_kinds``."""
    assert {kind for kind in KINDS if kind not in adapter_class(tracker).capabilities.kinds} == set()
    logger = InMemoryLogger()
    assert logger.supported_kinds == tuple(kind.value for kind in KINDS)


def test_the_table_in_the_documentation_is_up_to_date() -> None:
    """docs/kinds.md holds the table that the adapters' own tables make."""
    page = (Path(__file__).parent.parent / "docs" / "kinds.md").read_text(encoding="utf-8")
    assert kinds_table() in page, "write it anew: python -m lightning_loggers.adapters.kinds_table docs/kinds.md"


# ---------------------------------------------------------------------- what a tracker's own form holds, and what not

BOXES = {
    "truth": {
        "box_data": [
            {"position": {"minX": 0.25, "maxX": 0.75, "minY": 0.25, "maxY": 0.5}, "class_id": 1, "scores": {"p": 0.5}}
        ],
        "class_labels": {"1": "roof"},
    }
}


@pytest.mark.parametrize("tracker", ["tensorboard", "neptune", "comet", "csv", "mlflow"])
def test_boxes_and_masks_come_with_their_image(tracker: str, tmp_path: Path, mlflow_template: Path) -> None:
    """Boxes are Comet's annotations, TensorBoard draws them; where there is no form, both are files beside."""
    reading = READINGS[tracker].begin(tmp_path, mlflow_template, None)
    mask = (photograph[..., 2] > 200).astype(np.uint8)
    logger: Any = reading.logger
    logger.log_image("photo", photograph, 3, boxes=BOXES, masks={"sky": {"mask_data": mask}}, strict=True)
    reading.end()
    logger.close()
    height, width, _ = photograph.shape
    corner, size = [0.25 * width, 0.25 * height], [0.5 * width, 0.25 * height]
    if isinstance(reading, CometReading):
        [kept] = [asset.content for asset in reading.experiment.assets_of("asset") if asset.name.endswith(".npy")]
        [layer] = reading.experiment.asset("photo").metadata["annotations"]
        [box] = layer["data"]
        assert (layer["name"], box["label"], box["score"], box["boxes"]) == ("truth", "roof", 0.5, [corner + size])
    else:
        prefix = reading.prefix if isinstance(reading, NeptuneReading) else ""
        contents = (
            {path.removeprefix(prefix): content for path, content in reading.offline.files.items()}
            if isinstance(reading, NeptuneReading)
            else files_below(reading.folder if tracker == "mlflow" else Path(str(logger.log_dir)))
        )
        kept = contents["media/photo/3.npy"]
        [said] = json.loads(contents["media/photo/3.json"])
        assert said["boxes"] == BOXES
        assert said["masks"] == {"sky": {"file": "3.npy"}}
    assert np.array_equal(np.load(io.BytesIO(kept)), mask)
    shown = next(content for content in reading.files(Kind.IMAGE, "photo", 3) if content.startswith(b"\x89PNG"))
    assert np.array_equal(pixels(shown), photograph)
    if isinstance(reading, TensorBoardReading):
        [drawn] = [pixels(content) for content in reading.files(Kind.IMAGE, "photo/boxes", 3)]
        changed = np.argwhere((drawn != photograph).any(axis=2))
        assert np.abs(changed.min(axis=0) - corner[::-1]).max() <= 3
        assert np.abs(changed.max(axis=0) - np.add(corner, size)[::-1]).max() <= 3
        inside = np.s_[height // 4 + 20 : height // 2 - 5, width // 4 + 5 : 3 * width // 4 - 5]
        assert np.array_equal(drawn[inside], photograph[inside])


def test_boxes_of_any_numbers_are_drawn() -> None:
    """Boxes far outside, of no size, the wrong way round or with letters that the font has not stop nothing."""
    content = io.BytesIO()
    Image.new("L", (32, 16)).save(content, format="PNG")
    positions = [
        {"minX": -1e300, "maxX": 1e300, "minY": 0.2, "maxY": 1e9},
        {"minX": 0.9, "maxX": 0.1, "minY": 0.9, "maxY": 0.1},
        {"middle": [0.5, 0.5], "width": 0, "height": 0},
        {"minX": float("inf"), "maxX": 1, "minY": 0, "maxY": 1},
        {"minX": None, "maxX": 1, "minY": 0, "maxY": 1},
        {"middle": 3, "width": 1, "height": 1},
    ]
    boxes = [{"position": position, "box_caption": "größer 猫"} for position in positions]
    layers = rectangles({"layer": {"box_data": [*boxes, "none", {}]}}, (32, 16))
    assert [round(box.x + box.width, 3) for box in layers["layer"]][1:] == [28.8, 16.0]
    drawn = pixels(with_boxes(content.getvalue(), layers))
    assert drawn.shape == (16, 32, 3)
    assert drawn.any()


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_comet_has_scenes_tables_and_models(runs: Callable[[str], Reading]) -> None:
    """The torus is a scene of all its points, the table a CSV, the models have their files, and the graph is there."""
    reading = runs("comet")
    assert isinstance(reading, CometReading)
    experiment = reading.experiment
    cloud = torus().astype(np.float32).astype(float)
    cloud[:, 3:] = torus()[:, 3:]
    shown = reading.scene("torus")
    assert np.array_equal(shown[np.lexsort(shown.T)], cloud[np.lexsort(cloud.T)])
    assert experiment.asset("torus").type == "3d-image"
    assert experiment.asset("recalls.csv").content.decode() == "class,recall\ncat,0.5\ndog,0.75\n"
    models = {asset.params["groupingName"] for asset in experiment.assets_of("model-element")}
    assert models == {"net", "best", "epoch=1"}
    assert experiment.graph == str(trained_model())
    assert str(experiment.others["dataset_info"]).startswith("photos-")


def test_neptune_has_images_and_figures_in_series(runs: Callable[[str], Reading]) -> None:
    """What has a step is in a series, and in no file besides."""
    reading = runs("neptune")
    assert isinstance(reading, NeptuneReading)
    named = {path.removeprefix(reading.prefix) for path in reading.offline.images}
    assert named == {"images/photo", "images/crops/0", "images/crops/1", "figures/curve"}
    assert not [path for path in reading.offline.files if path.endswith(".png")]


# ---------------------------------------------------------------------- names


def media(logger: Any) -> list[str]:
    """Paths below the run's media folder."""
    folder = Path(logger.log_dir) / "media"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_names_are_predictable_and_given_once(tmp_path: Path) -> None:
    """``<step>.<suffix>``; with another record of that step or a later one before, the time is added; all are kept."""
    logger = CSVLogger(tmp_path)
    for step, text in [(0, "a"), (1, "b"), (1, "c"), (0, "d"), (2, "e"), (None, "f"), (None, "g")]:
        logger.log_text("note", text, step)
    logger.log_dict("note", {}, 1)
    logger.finalize("success")
    names = media(logger)
    assert {"note/0.txt", "note/1.txt", "note/1.json", "note/2.txt", "note/no-step.txt"} < set(names)
    folder = Path(str(logger.log_dir)) / "media" / "note"
    assert [(folder / f"{step}.txt").read_text() for step in (0, 1, 2, "no-step")] == ["a", "b", "e", "f"]
    assert sorted(path.read_text() for path in folder.glob("*-*[0-9].txt")) == ["c", "d", "g"]


def test_a_replay_gives_the_same_names(tmp_path: Path) -> None:
    """A run that is delivered again, from a place that was saved or from its beginning, has the same files once."""
    logger = CSVLogger(tmp_path)
    for step in (0, 1, 1, 0, None, None):
        logger.log_text("note", f"{step}", step)
    logger.finalize("success")
    state = Path(str(logger.log_dir)) / "journal" / "csv.state.json"
    kept, names = state.read_bytes(), media(logger)
    for step in (5, 5, 4):
        logger.log_text("note", f"{step}", step)
    logger.close()
    after = media(logger)
    for saved in (kept, b"\0" * 9):
        state.write_bytes(saved)
        deliver(logger.log_dir)
        assert media(logger) == after
    assert set(names) < set(after)


def test_a_curve_and_an_image_of_one_name_are_both_shown(tmp_path: Path) -> None:
    """TensorBoard shows one kind a tag: a metric, an image and a histogram of one name have a tag each."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, version="run")
    for step in range(2):
        logger.log_metrics({"first": 1.0}, step)
        for key in ("first", "second"):
            logger.log_image(key, np.zeros((4, 4), np.uint8), step)
            logger.log_histogram(key, [1, 2], step)
        assert encoding.drain(logger)  # a metric does not wait for what is encoded
        logger.log_metrics({"second": 1.0}, step)
        logger.close()
    tags = EventAccumulator(str(logger.log_dir)).Reload().Tags()
    assert sorted(tags["scalars"]) == ["first", "second/scalar"]
    assert sorted(tags["images"]) == ["first/image", "second"]
    assert sorted(tags["histograms"]) == ["first/histogram", "second/histogram"]


def test_files_of_others_are_not_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that is in the way of one of ours, and is another, is renamed and told of."""
    logger = CSVLogger(tmp_path, version="mine")
    place = Path(str(logger.log_dir)) / "media" / "note" / "0.txt"
    place.parent.mkdir(parents=True)
    place.write_text("the user's own")
    logger.log_text("note", "ours", 0)
    logger.finalize("success")
    assert place.read_text() == "ours"
    assert place.with_name("0.before-1.txt").read_text() == "the user's own"
    assert "0.before-1.txt" in caplog.text


def test_the_same_image_is_stored_once(tmp_path: Path) -> None:
    """Under whatever identifiers and steps an image is logged, the journal has one file of it."""
    logger = CSVLogger(tmp_path)
    for step in range(3):
        logger.log_image(f"photo{step}", photograph, step)
    logger.finalize("success")
    blobs = [path for path in (Path(str(logger.log_dir)) / "journal" / "blobs").rglob("*") if path.is_file()]
    assert len(blobs) == 1
    assert len(media(logger)) == 3


def test_a_large_checkpoint_costs_a_hard_link(tmp_path: Path) -> None:
    """A checkpoint of two gigabytes (sparse) is in the journal and in the run's folder as the same file."""
    path = tmp_path / "large.ckpt"
    with path.open("wb") as file:
        file.truncate(2 * 2**30)
    logger = CSVLogger(tmp_path / "runs")
    logger.log_checkpoint(path)
    assert path.stat().st_nlink == 2
    path_inode = path.stat().st_ino
    path.unlink()
    logger.finalize("success")
    [kept] = (Path(str(logger.log_dir)) / "artifacts" / "large").glob("*.ckpt")
    assert kept.stat().st_ino == path_inode


# ---------------------------------------------------------------------- killed, and offline


KILLED = """
import os, signal, sys, time
import numpy as np
from lightning_loggers import CometLogger, CSVLogger, MLFlowLogger, NeptuneLogger, TensorBoardLogger, WandbLogger
from lightning_loggers.loggers import encoding
loggers = [CometLogger(offline_directory="comet", online=False, delivery="offline"),
           NeptuneLogger(save_dir="neptune", mode="offline", version="run", delivery="offline"),
           CSVLogger("csv", version="run", delivery="offline"),
           TensorBoardLogger("tensorboard", version="run", delivery="offline"),
           MLFlowLogger(save_dir="mlflow", version="run", delivery="offline"),
           WandbLogger(save_dir="wandb", version="run", offline=True, delivery="offline")]
image = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
for step in range(5):
    for logger in loggers:
        logger.log_image("image", image + np.uint8(step), step)
        logger.log_video("video", np.stack([image.transpose(2, 0, 1)] * 2), step, fps=4)
for logger in loggers:
    encoding.drain(logger)
rng = np.random.default_rng(0)
for step in range(5, 60):
    for logger in loggers:
        logger.log_image("image", rng.integers(0, 256, (256, 256, 3), dtype=np.uint8), step)
os.kill(os.getpid(), signal.SIGKILL)
"""


def deliver(run_dir: Any) -> None:
    """As ``lightning-loggers sync`` does."""
    worker = Worker(Path(run_dir))
    deadline = time.monotonic() + 60
    while (step := worker.step()).kind is not StepKind.IDLE:
        assert step.kind in {StepKind.PROGRESS, StepKind.BUSY}, step
        assert time.monotonic() < deadline
        time.sleep(0.1 * (step.kind is StepKind.BUSY))  # the logger's own process is about to end
    worker.close()


@pytest.fixture(scope="module")
def python() -> Iterator[WarmPython]:
    """Programs that need not import Lightning first."""
    with WarmPython() as made:
        yield made


def test_media_of_a_killed_offline_run_are_delivered(python: WarmPython, tmp_path: Path, mlflow_template: Path) -> None:
    """What was encoded before SIGKILL is delivered from the journal to each tracker; only the newest may lack."""
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    done = python.run(KILLED, folder=tmp_path)
    assert done.returncode == -signal.SIGKILL, done
    image = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    for tracker in ("csv", "tensorboard", "mlflow", "comet", "neptune", "wandb"):
        [journal] = (tmp_path / tracker).glob("*/*/journal")
        run_dir = journal.parent
        steps = [record.step for record in read(run_dir) if record.kind == Kind.IMAGE]
        assert steps == list(range(len(steps)))  # a tail may lack, nothing before it
        assert len(steps) >= 5
        reading = READINGS[tracker].__new__(READINGS[tracker])
        if isinstance(reading, WandbReading):
            reading.deliver(run_dir)
        else:
            deliver(run_dir)
        reading.logger = SimpleNamespace(log_dir=run_dir)  # type: ignore[assignment]
        if isinstance(reading, MLflowReading):
            from mlflow import MlflowClient

            client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
            [experiment] = [found for found in client.search_experiments() if found.name == "lightning_logs"]
            [found] = client.search_runs([experiment.experiment_id])
            reading.folder = Path(client.download_artifacts(found.info.run_id, ""))
        if isinstance(reading, CometReading):
            reading.read(tmp_path / tracker)
        if isinstance(reading, NeptuneReading):
            reading.read(run_dir)
        if isinstance(reading, TensorBoardReading):
            from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

            reading.events = EventAccumulator(str(run_dir), {IMAGES: 0}).Reload()
        for step in range(5):
            [content] = reading.files(Kind.IMAGE, "image", step)
            assert np.array_equal(pixels(content), image + np.uint8(step))
            assert len(reading.files(Kind.VIDEO, "video", step)) == 1
        for step in steps[5:]:
            assert pixels(reading.files(Kind.IMAGE, "image", step)[0]).shape == (256, 256, 3)


# ---------------------------------------------------------------------- off the training thread


class Slow:
    """A value whose encoding waits until it is told to go on."""

    def __init__(self, size_bytes: int = 1, error: BaseException | None = None) -> None:
        self.size_bytes = size_bytes
        self.error = error
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.encoded_by = ""

    def encode(self) -> Encoded:
        """Wait, then make a file."""
        self.begun.set()
        assert self.go_on.wait(30)
        self.encoded_by = threading.current_thread().name
        if self.error is not None:
            raise self.error
        return Encoded([("value.txt", b"content")])


def submit(logger: Any, value: Slow, step: int) -> None:
    """Have a value encoded."""
    writer = logger._start()
    record = Record(time.time_ns(), Kind.IMAGE.value, step, id="x")
    encoding.submit(encoding.job_of(logger, writer, record, value))


def steps_of(logger: Any) -> list[int]:
    """The steps of a journal's records of images, in their order."""
    return [int(record.step or 0) for record in read(logger.log_dir) if record.kind == Kind.IMAGE]


def test_a_log_call_does_not_wait_for_the_encoding(tmp_path: Path) -> None:
    """The call returns while its value is encoded elsewhere; records are appended in the order of their calls."""
    logger = CSVLogger(tmp_path, delivery="offline")
    first, second = Slow(), Slow()
    second.go_on.set()
    submit(logger, first, 1)
    submit(logger, second, 2)
    assert encoding.pending(logger) == 2
    logger.log_metrics({"loss": 0.5}, 0)  # which does not wait either
    logger.log_text("note", "nor does a text")
    logger.log_image("x", b"\x89PNG", 3)  # ready as it is, but later than the others of its name
    assert [record.kind for record in read(logger.log_dir)] == ["metric", "text"]
    first.go_on.set()
    assert encoding.drain(logger)
    assert steps_of(logger) == [1, 2, 3]
    logger.close()


def test_nothing_overtakes_a_record_that_is_being_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that needs no encoding waits for an earlier one of its name also while that is written."""
    logger = CSVLogger(tmp_path, delivery="offline")
    writer = logger._start()
    assert writer is not None
    append, begun, go_on = writer.append, threading.Event(), threading.Event()

    def slowly(record: Record) -> None:
        if record.step == 1:
            begun.set()
            assert go_on.wait(60)
        append(record)

    monkeypatch.setattr(writer, "append", slowly)
    first = Slow()
    first.go_on.set()
    submit(logger, first, 1)
    assert begun.wait(60)
    logger.log_image("x", b"\x89PNG", 2)
    go_on.set()
    assert encoding.drain(logger)
    assert steps_of(logger) == [1, 2]
    logger.close()


def test_what_is_not_encoded_in_time_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The end of a run does not wait for an encoding for ever: what is not recorded then is told, and comes later."""
    monkeypatch.setattr(encoding, "DRAIN_TIMEOUT_S", 0.05)
    logger = CSVLogger(tmp_path, delivery="offline")
    logger.log_metrics({"loss": 0.5}, 0)
    slow = Slow()
    submit(logger, slow, 1)
    assert slow.begun.wait(30)  # by the thread: what nobody has begun, the end of the run encodes itself
    logger.finalize("success")
    assert "1 values (images, videos, ...) are still being encoded" in caplog.text
    slow.go_on.set()
    assert encoding.drain(logger)
    assert steps_of(logger) == [1]
    logger.close()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_a_disk_that_refuses_files_is_told_as_such(python: WarmPython, tmp_path: Path) -> None:
    """Images and files that do not fit are counted as refused by the disk, and told with what to do."""
    code = """
import resource, sys, tempfile, types
import numpy as np
from lightning_loggers import CSVLogger
logger = CSVLogger(sys.argv[1], delivery="offline")
logger.log_metrics({"loss": 1.0}, 0)
with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
    file.write(b"x" * 100_000)
    file.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    logger.log(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8), "noise", kind="image")
    logger.log(file.name, "big", kind="artifact")
    checkpoint = types.SimpleNamespace(last_model_path=file.name, save_top_k=-1)
    logger._keep_checkpoints(checkpoint)
logger.finalize("success")
print(logger.stats.dropped_reasons)
"""
    done = python.run(code, tmp_path).ok()
    assert done.stdout.strip() == "{'disk refused': 3}"
    for what in (
        "image 'noise' could not be written below",
        "artifact 'big' is not logged",
        "The checkpoint /dev/shm/",
    ):
        (told,) = (line for line in done.stderr.splitlines() if line.startswith(what))
        assert "Free some space, or make it writable (see `df -h " in told


def test_a_full_queue_makes_the_caller_encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit into the queue is encoded by the caller, and keeps its place in the order."""
    monkeypatch.setattr(encoding, "MAX_WAITING_BYTES", 100)
    logger = CSVLogger(tmp_path, delivery="offline")
    logger.log_metrics({"loss": 0.5}, 0)
    first, second = Slow(80), Slow(80)
    second.go_on.set()
    submit(logger, first, 1)
    submit(logger, second, 2)
    assert second.encoded_by == threading.current_thread().name
    assert steps_of(logger) == []
    first.go_on.set()
    assert encoding.drain(logger)
    assert steps_of(logger) == [1, 2]
    logger.close()


def test_where_no_thread_can_be_had_the_caller_encodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the interpreter ends."""
    monkeypatch.setattr(encoding, "kept_running", lambda *_: None)
    logger, encoder, value = CSVLogger(tmp_path, delivery="offline"), encoding.Encoder(), Slow()
    value.go_on.set()
    writer = logger._start()
    assert writer is not None
    encoder.submit(encoding.job_of(logger, writer, Record(1, Kind.IMAGE.value, 1, id="x"), value))
    assert value.encoded_by == threading.current_thread().name
    assert encoder.pending(logger) == 0
    assert steps_of(logger) == [1]
    logger.close()


def test_a_drain_inside_a_submission_waits_for_nothing(tmp_path: Path) -> None:
    """A signal handler that drains, between any two statements: it returns, and the value is recorded all the same."""
    logger, encoder = CSVLogger(tmp_path, delivery="offline"), encoding.Encoder()
    drained: list[bool] = []

    class Interrupted(collections.deque[encoding.Job]):
        def append(self, job: encoding.Job, /) -> None:
            drained.append(encoder.drain(logger, 5))
            super().append(job)
            drained.append(encoder.drain(logger, 5))

    encoder._waiting, encoder._order = Interrupted(), Interrupted()
    writer = logger._start()
    assert writer is not None
    for step in (1, 2):
        value = Slow()
        value.go_on.set()
        encoder.submit(encoding.job_of(logger, writer, Record(step, Kind.IMAGE.value, step, id="x"), value))
    assert drained == [True] * 8
    assert encoder.drain(logger)
    assert steps_of(logger) == [1, 2]
    logger.close()


def test_a_sum_of_what_waits_that_is_wrong_mends_itself(tmp_path: Path) -> None:
    """As after Ctrl+C between counting a value and handing it over: no later call has to encode for that."""
    logger, encoder, value = CSVLogger(tmp_path, delivery="offline"), encoding.Encoder(), Slow()
    encoder._bytes = 2 * encoding.MAX_WAITING_BYTES
    value.go_on.set()
    writer = logger._start()
    assert writer is not None
    encoder.submit(encoding.job_of(logger, writer, Record(1, Kind.IMAGE.value, 1, id="x"), value))
    wait_until(lambda: encoder._bytes == 0, 60, "nothing counted")
    assert value.encoded_by != threading.current_thread().name
    logger.close()


class Interrupting(Slow):
    """A value in whose encoding a signal arrives."""

    def encode(self) -> Encoded:
        """The handler runs here."""
        signal.raise_signal(signal.SIGUSR1)
        return super().encode()


def test_a_signal_handler_inside_an_encoding_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that interrupts the caller's own encoding may log and drain: it returns, and all is recorded."""
    monkeypatch.setattr(encoding, "MAX_WAITING_BYTES", 10)
    logger = CSVLogger(tmp_path, delivery="offline")
    outcome: list[bool] = []

    def handler(*args: object) -> None:
        logger.log_image("x", np.zeros((2, 2), np.uint8), 3)
        outcome.append(encoding.drain(logger))

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        first, second = Slow(8), Interrupting(8)
        first.go_on.set()
        second.go_on.set()
        submit(logger, first, 1)
        submit(logger, second, 2)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert encoding.drain(logger)
    assert outcome == [False]
    assert steps_of(logger) == [1, 2, 3]
    logger.close()


def test_a_value_that_cannot_be_encoded_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An exception in an encoder is told and counted; the values behind it are recorded."""
    logger = CSVLogger(tmp_path, delivery="offline")
    for step, error in ((1, None), (2, RuntimeError("no such codec")), (3, None)):
        value = Slow(error=error)
        value.go_on.set()
        submit(logger, value, step)
    assert encoding.drain(logger)
    assert steps_of(logger) == [1, 3]
    assert logger.stats.dropped_reasons == {"not encoded": 1}
    assert "no such codec" in caplog.text
    logger.close()


def test_an_encoder_that_exits_costs_only_its_value(tmp_path: Path) -> None:
    """Something that calls ``sys.exit`` in an encoder ends no thread: it is told, and what is behind it is encoded."""
    logger = CSVLogger(tmp_path, delivery="offline")
    first = Slow(encoding.MAX_WAITING_BYTES, error=SystemExit())
    second = Slow(encoding.MAX_WAITING_BYTES)
    for step, value in ((1, first), (2, second)):
        value.go_on.set()
        submit(logger, value, step)
        ends = time.monotonic() + 60
        while encoding._encoder._bytes and time.monotonic() < ends:
            time.sleep(0.01)
    assert first.encoded_by == second.encoded_by != threading.current_thread().name
    assert encoding.drain(logger)
    assert steps_of(logger) == [2]
    assert logger.stats.dropped_reasons == {"not encoded": 1}
    logger.close()


def test_ctrl_c_while_a_caller_encodes_leaves_no_record_without_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt reaches the program; the value that it hit is told and counted, and no half of it is recorded."""
    monkeypatch.setattr(encoding, "MAX_WAITING_BYTES", 10)
    logger = CSVLogger(tmp_path, delivery="offline")
    first, second = Slow(8), Slow(8, error=KeyboardInterrupt())
    second.go_on.set()
    submit(logger, first, 1)
    with pytest.raises(KeyboardInterrupt):
        submit(logger, second, 2)
    first.go_on.set()
    assert encoding.drain(logger)
    assert steps_of(logger) == [1]
    assert logger.stats.dropped_reasons == {"not encoded": 1}
    logger.close()


def test_a_forked_child_leaves_what_waits_to_its_parent(tmp_path: Path) -> None:
    """After ``fork`` the child records its own values and none of the parent's."""
    logger = CSVLogger(tmp_path, delivery="offline")
    value = Slow()
    submit(logger, value, 1)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            logger.log_image("x", np.zeros((4, 4), np.uint8), 2)
            code = 0 if encoding.drain(logger, 20) and encoding.pending(logger) == 0 else 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    value.go_on.set()
    assert encoding.drain(logger)
    assert sorted(steps_of(logger)) == [1, 2]
    logger.close()


def test_a_program_that_just_ends_loses_nothing(python: WarmPython, tmp_path: Path) -> None:
    """Without finalize or close, all images of a program are in the journal and delivered when it has ended."""
    code = """
import numpy as np
from lightning_loggers import CSVLogger
logger = CSVLogger(".", version="run")
for step in range(20):
    logger.log_image("image", np.random.default_rng(step).integers(0, 256, (128, 128, 3), dtype=np.uint8), step)
"""
    done = python.run(code, folder=tmp_path)
    assert done.returncode == 0, done
    names = sorted(path.name for path in (tmp_path / "lightning_logs" / "run" / "media" / "image").iterdir())
    assert names == sorted(f"{step}.png" for step in range(20))


def test_values_may_be_changed_when_the_call_has_returned(tmp_path: Path) -> None:
    """Array, tensor, model and list are logged as they were at the call."""
    logger = CSVLogger(tmp_path)
    array, tensor, rows = np.zeros((64, 64), np.uint8), torch.ones(64, 64), [[1]]
    logger.log_image("array", array, 0)
    logger.log_image("tensor", tensor, 0)
    logger.log_table("rows", rows, 0, columns=["a"])
    array[:], rows[0][0] = 255, 9
    tensor.zero_()
    logger.finalize("success")
    folder = Path(str(logger.log_dir)) / "media"
    assert not np.asarray(Image.open(folder / "array" / "0.png")).any()
    assert np.asarray(Image.open(folder / "tensor" / "0.png")).all()
    assert pyarrow.parquet.read_table(folder / "rows" / "0.parquet").to_pydict() == {"a": [1]}


# ---------------------------------------------------------------------- what is wrong, and what is not recorded


def test_an_unknown_kind_raises_and_lists_the_kinds() -> None:
    """A kind that does not exist is an error of the program; the message has all that do."""
    with pytest.raises(ConfigurationError, match=r"'hologram'.*'point_cloud'"):
        InMemoryLogger().log(1, "x", kind="hologram")
    with pytest.raises(ConfigurationError, match="'status'"):
        InMemoryLogger().log(1, "x", kind="status")


def test_unsuitable_values_are_told_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """By default nothing raises: the message names identifier, shape and what is accepted, and the loss is counted."""
    logger = InMemoryLogger()
    for _ in range(3):
        logger.log(np.zeros((7, 9, 11)), "val/sample", kind="image")
    logger.log_audio("tone", np.zeros(5))
    logger.log(1.5, "power", kind="carbon")
    logger.log_artifact("/nowhere/at/all")
    assert encoding.drain(logger)  # an array without further arguments is checked beside the training
    assert logger.stats.dropped_reasons == {"unsuitable value": 5, "no such file": 1}
    told = [message for message in caplog.messages if "val/sample" in message]
    assert len(told) == 1
    assert "(7, 9, 11)" in told[0]
    assert "(C, H, W)" in told[0]
    assert any("comes with another release" in message for message in caplog.messages)
    assert logger.records == []


ARRAYS: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], str]] = {
    "image": (np.zeros((4, 4, 3), np.uint8), np.zeros((7, 9, 11)), "(7, 9, 11)"),
    "audio": (np.zeros(8), np.zeros((2, 2, 2)), "sample_rate"),
    "video": (np.zeros((2, 3, 4, 4), np.uint8), np.zeros((2, 3)), "fps"),
    "histogram": (np.arange(9.0), np.zeros(0), "(0,)"),
    "point_cloud": (np.zeros((5, 3)), np.zeros((5, 4)), "(5, 4)"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_plain_array_costs_the_call_its_copy_and_no_check(
    kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The call of an array only copies it; what is wrong is told, counted and named when its turn comes."""
    good, bad, seen = ARRAYS[kind]
    defaults = {"audio": {"sample_rate": 8000}, "video": {"fps": 2}}
    logger, slow = InMemoryLogger(), Slow()
    monkeypatch.setattr(logger, "_media_defaults", {Kind(name): known for name, known in defaults.items()})
    submit(logger, slow, 0)  # type: ignore[arg-type]
    assert slow.begun.wait(60)  # the encoding thread is held up
    value = good.copy()
    logger.log(value, "good", kind=kind, step=1)
    value[:] = 1
    if kind in defaults:
        monkeypatch.setattr(logger, "_media_defaults", {})
    logger.log(bad, "bad", kind=kind, step=2)
    assert (logger.stats.dropped, encoding.pending(logger)) == (0, 3)
    assert not any("bad" in message for message in caplog.messages)
    slow.go_on.set()
    assert encoding.drain(logger)
    assert [record.id for record in logger.records] == ["x", "good"]
    assert logger.stats.dropped_reasons == {"unsuitable value": 1}
    told = [message for message in caplog.messages if "'bad' is not logged" in message]
    assert len(told) == 1
    assert seen in told[0]
    expected = InMemoryLogger()
    expected.log(good, "good", kind=kind, step=1, strict=True, **defaults.get(kind, {}))
    assert encoding.drain(expected)
    (same,) = expected.records
    assert logger.records[1].value == same.value
    assert [blob.id for blob in logger.records[1].blobs or []] == [blob.id for blob in same.blobs or []]


ARGUMENTS: dict[str, dict[str, Any]] = {
    "image": {"caption": "a", "grid": False},
    "audio": {"sample_rate": 8000},
    "video": {"fps": 2, "format": "gif"},
    "histogram": {"bins": 8},
}


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_numbers_and_texts_beside_an_array_leave_it_at_its_copy(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """As a sound's rate; another argument is told in the call, and what is wrong when its turn comes."""
    good, bad, _ = ARRAYS[kind]
    given = ARGUMENTS[kind]
    logger, slow = InMemoryLogger(), Slow()
    submit(logger, slow, 0)  # type: ignore[arg-type]
    assert slow.begun.wait(60)  # the encoding thread is held up
    value = good.copy()
    logger.log(value, "good", kind=kind, step=1, unknown=2, **given)
    value[:] = 1
    logger.log(bad, "bad", kind=kind, step=2, **given)
    assert (logger.stats.dropped, encoding.pending(logger)) == (0, 3)
    assert len([message for message in caplog.messages if "takes no 'unknown'" in message]) == 1
    slow.go_on.set()
    assert encoding.drain(logger)
    assert logger.stats.dropped_reasons == {"unsuitable value": 1}
    expected = InMemoryLogger()
    expected.log(good, "good", kind=kind, step=1, strict=True, **given)
    assert encoding.drain(expected)
    (same,) = expected.records
    assert logger.records[1].value == same.value
    assert logger.records[1].meta == same.meta
    assert [blob.id for blob in logger.records[1].blobs or []] == [blob.id for blob in same.blobs or []]


def test_what_can_change_beside_an_array_is_taken_in_the_call() -> None:
    """A list of captions and a mask may be changed as soon as the call has returned."""
    pixels, captions, mask = np.zeros((4, 4), np.uint8), ["before"], np.ones((4, 4), np.uint8)
    expected = InMemoryLogger()
    expected.log_image("listed", pixels, 1, caption=["before"])
    expected.log_image("masked", pixels, 1, masks={"mask": mask.copy()})
    assert encoding.drain(expected)
    logger, slow = InMemoryLogger(), Slow()
    submit(logger, slow, 0)  # type: ignore[arg-type]
    assert slow.begun.wait(60)  # the encoding thread is held up
    logger.log_image("listed", pixels, 1, caption=captions)
    logger.log_image("masked", pixels, 1, masks={"mask": mask})
    captions[0] = "after"
    mask[:] = 9
    slow.go_on.set()
    assert encoding.drain(logger)
    for record, same in zip(logger.records[1:], expected.records, strict=True):
        assert record.meta == same.meta
        assert [blob.id for blob in record.blobs or []] == [blob.id for blob in same.blobs or []]


def test_tensors_that_are_only_copied_are_what_they_would_be(tmp_path: Path) -> None:
    """A tensor is read as (C, H, W) where an array is (H, W, C), its copy too; other types go the longer way."""
    logger = CSVLogger(tmp_path)
    values = torch.arange(45, dtype=torch.uint8).reshape(3, 5, 3) * 5
    logger.log_image("tensor", values, 0)
    logger.log_image("gradient", (values / 255).requires_grad_(), 0)
    logger.log_image("bfloat16", (values > 100).to(torch.bfloat16), 0)
    logger.log_image("array", values.numpy(), 0)
    expected = values.clone().numpy()
    values.zero_()
    logger.finalize("success")
    media = Path(str(logger.log_dir)) / "media"
    seen = {name: pixels((media / name / "0.png").read_bytes()) for name in ("tensor", "gradient", "bfloat16", "array")}
    np.testing.assert_array_equal(seen["tensor"], expected.transpose(1, 2, 0))
    np.testing.assert_array_equal(seen["gradient"], expected.transpose(1, 2, 0))
    np.testing.assert_array_equal(seen["bfloat16"], (expected.transpose(1, 2, 0) > 100) * 255)
    np.testing.assert_array_equal(seen["array"], expected)


def test_an_array_of_no_numbers_is_told_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Objects, texts and dates in an array are no pixels; the message says what was seen."""
    logger = InMemoryLogger()
    for name, value in (
        ("objects", np.array([[None, 1]])),
        ("texts", np.array([["a"]])),
        ("complex", np.ones((2, 2), complex)),
    ):
        logger.log_image(name, value)
    assert encoding.drain(logger)
    assert logger.stats.dropped_reasons == {"unsuitable value": 3}
    assert logger.records == []
    for name in ("objects", "texts", "complex"):
        assert any(f"'{name}' is not logged" in message for message in caplog.messages)


def test_a_missing_library_is_told_once_for_all_arrays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What encodes a kind is not installed: the command that installs it is told once, every value is counted."""

    def missing(*args: object, **kwargs: object) -> None:
        raise MissingDependencyError("log_image needs `pillow>=10`. Install it: pip install pillow")

    monkeypatch.setattr("lightning_loggers.values.images.require", missing)
    logger = InMemoryLogger()
    for name in ("a", "b"):
        logger.log_image(name, np.zeros((4, 4), np.uint8))
    assert encoding.drain(logger)
    assert logger.stats.dropped_reasons == {"missing library": 2}
    assert len([message for message in caplog.messages if "pip install pillow" in message]) == 1


def test_losses_are_counted_by_all_threads_together(tmp_path: Path) -> None:
    """No count is lost where several threads find out at once that something cannot be kept."""
    logger = CSVLogger(tmp_path, delivery="offline")
    writer = logger._start()
    assert writer is not None
    threads = [threading.Thread(target=lambda: [writer.count_dropped("x") for _ in range(20_000)]) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert writer.dropped == {"x": 80_000}
    logger.close()


def test_strict_raises_what_is_wrong() -> None:
    """With ``strict=True`` the same is raised, by ``log`` and by the kind's own method, and nothing is counted."""
    logger = InMemoryLogger()
    with pytest.raises(UnsuitableValueError, match="val/sample"):
        logger.log(np.zeros((7, 9, 11)), "val/sample", kind="image", strict=True)
    with pytest.raises(UnsuitableValueError, match="sample_rate"):
        logger.log_audio("tone", np.zeros(5), strict=True)
    with pytest.raises(ConfigurationError, match="captoin"):
        logger.log_image("x", np.zeros((4, 4)), strict=True, captoin="typo")
    with pytest.raises(UnsuitableValueError, match="carbon"):
        logger.log(1.0, "x", kind="carbon", strict=True)
    assert logger.stats.dropped == 0
    both = LoggerCollection([logger, InMemoryLogger()])
    with pytest.raises(UnsuitableValueError, match="val/sample"):
        both.log(np.zeros((7, 9, 11)), "val/sample", kind="image", strict=True)
    with pytest.raises(ConfigurationError, match="hologram"):
        both.log(1, "x", kind="hologram")
    assert dict(both.failures) == {}


def test_an_unknown_argument_costs_the_value_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """An argument of another tracker's is told once, and the value is logged without it."""
    logger = InMemoryLogger()
    logger.log(np.zeros((4, 4), np.uint8), "x", kind="image", dataformats="HW")
    assert [record.id for record in logger.records] == ["x"]
    assert "dataformats" in caplog.text


def test_lists_of_items_and_identifiers() -> None:
    """Items go with identifiers in their order; lists of different lengths are an error of the program."""
    logger = InMemoryLogger()
    logger.log([0.5, 0.25], ["a", "b"], step=1)
    logger.log(["one", "two"], ["first", "second"], kind="text")
    logger.log(lambda: [1.0, 2.0], ["c", "d"], step=1)
    assert logger.most_recent_values == {"a": 0.5, "b": 0.25, "c": 1.0, "d": 2.0}
    assert (logger.texts("first"), logger.texts("second")) == (["one"], ["two"])
    with pytest.raises(ConfigurationError, match="2 identifiers"):
        logger.log([1, 2, 3], ["a", "b"])
    with pytest.raises(ConfigurationError, match="2 identifiers"):
        logger.log(1, ["a", "b"])


class Counted:
    """Counts how often its values are asked for."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def of(self, name: str, value: Any) -> Callable[[], Any]:
        """A function that makes the value."""

        def make() -> Any:
            self.calls.append(name)
            return value

        return make


VALUES: dict[str, tuple[Any, dict[str, Any]]] = {
    "metric": (0.5, {}),
    "param": (3, {}),
    "text": ("text", {}),
    "dict": ({"a": 1}, {}),
    "table": (TABLE, {}),
    "image": (np.zeros((4, 4), np.uint8), {}),
    "audio": (np.zeros(8), {"sample_rate": 8000}),
    "video": (np.zeros((2, 3, 4, 4), np.uint8), {"fps": 2}),
    "histogram": ([1, 2, 3], {}),
    "point_cloud": (np.zeros((3, 3)), {}),
    "torch": (torch.ones(2), {}),
    "dataset": ([1, 2], {}),
    "config": ({"a": 1}, {}),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_function_is_called_once_for_several_loggers(kind: str) -> None:
    """In place of any value, a function is called once for all loggers of a collection, and each has the value."""
    counted = Counted()
    members = [InMemoryLogger(), InMemoryLogger()]
    value, arguments = VALUES[kind]
    LoggerCollection(members).log(counted.of(kind, value), "x", kind=kind, step=1, **arguments)
    for member in members:
        assert encoding.drain(member)
        assert member.stats.recorded == 1
        assert member.stats.dropped == 0
    assert counted.calls == [kind]


def test_metrics_may_be_functions() -> None:
    """Functions among metrics are called once, also by several loggers; one that raises costs only itself."""

    def fails() -> float:
        raise ZeroDivisionError("mine")

    counted = Counted()
    members = [InMemoryLogger(), InMemoryLogger()]
    LoggerCollection(members).log_metrics({"a": counted.of("a", 0.5), "b": fails, "c": 1.0}, 3)  # type: ignore[dict-item]
    assert counted.calls == ["a"]
    for member in members:
        assert member.most_recent_values == {"a": 0.5, "c": 1.0}


def test_a_function_that_raises_is_told_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The user's own function must not stop training: what it raised is told, and the record is counted as lost."""

    def fails() -> Any:
        raise ZeroDivisionError("mine")

    logger = InMemoryLogger()
    logger.log(fails, "x", kind="image")
    logger.log_text("note", "after")
    assert logger.stats.dropped_reasons == {"failed function": 1}
    assert "mine" in caplog.text
    assert logger.texts("note") == ["after"]


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_that_is_not_recorded_is_not_touched(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the policy holds a call back, and on other ranks, the function in place of a value is not called."""
    counted = Counted()
    value, arguments = VALUES[kind]
    if kind not in {"param", "dataset", "config"}:  # these belong to the run and have no level
        refusing = InMemoryLogger(policy=LogPolicy(level="FIT"))
        refusing.follow(SimpleNamespace(now=lambda: (int(LogLevel.BATCH), "train", 0, 0), samples=lambda: None))  # type: ignore[arg-type]
        refusing.log(counted.of("policy", value), "x", kind=kind, step=1, **arguments)
    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    logger = InMemoryLogger()
    logger.log(counted.of("rank", value), "x", kind=kind, step=1, **arguments)
    monkeypatch.undo()
    assert counted.calls == []


def test_batches_are_held_back_by_the_policy(tmp_path: Path) -> None:
    """``batch_idx`` decides with ``log_freq``: of 10 batches every fourth is recorded, metrics and images alike."""
    logger = InMemoryLogger(policy=LogPolicy(log_freq=4))
    for batch in range(10):
        logger.log(np.zeros((4, 4), np.uint8), "image", kind="image", step=batch, batch_idx=batch)
        logger.log(float(batch), "loss", step=batch, batch_idx=batch)
    assert [record.step for record in logger.records] == [0, 4, 8]
    assert logger.timeseries("loss")["step"].tolist() == [0, 4, 8]


# ---------------------------------------------------------------------- watching


def test_hooks_are_no_part_of_the_model() -> None:
    """A watched model can be deep-copied and pickled; the copy logs nothing."""
    import copy
    import pickle

    logger = InMemoryLogger()
    model = torch.nn.Linear(2, 1)
    logger.watch(model, log="all", log_freq=1, log_graph=False)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other(torch.ones(1, 2)).sum().backward()
    assert logger.records == []
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()
    assert sorted((record.id, record.step) for record in logger.records) == sorted(
        (f"{what}/{name}", step)
        for what in ("gradients", "parameters")
        for name in ("weight", "bias")
        for step in (0, 1)
    )
    logger.unwatch(model)
    model(torch.ones(1, 2)).sum().backward()
    assert len(logger.records) == 8


def test_every_so_many_batches_are_watched() -> None:
    """``log_freq=3`` takes batches 0, 3 and 6; what is asked for wrongly raises."""
    logger = InMemoryLogger()
    model = torch.nn.Linear(2, 1)
    logger.watch(model, log="gradients", log_freq=3)
    for _ in range(7):
        model(torch.ones(1, 2)).sum().backward()
    assert [record.step for record in logger.records if record.id == "gradients/bias"] == [0, 3, 6]
    assert [record.id for record in logger.records if record.kind == Kind.GRAPH] == ["graph"]
    with pytest.raises(ConfigurationError, match="weights"):
        logger.watch(model, log="weights")


# ---------------------------------------------------------------------- lists of sounds and videos


def test_lists_of_sounds_and_videos_are_one_record(tmp_path: Path) -> None:
    """Each item is a file of its own, with its own rate and caption; what is said once is said of all."""
    logger = InMemoryLogger(save_dir=tmp_path)
    samples = np.array([0, 1, -1, 2], np.int16)
    logger.log_audio("tones", [samples, samples[:2]], 0, sample_rate=[8000, 16000], caption=["a", "b"], strict=True)
    logger.log_video("squares", [moving_square(2), moving_square(3)], 0, fps=4, format="gif", strict=True)
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    logger.log_audio("files", [tmp_path / "a.wav"] * 2, 0, caption="both", strict=True)
    logger.log_audio("channels", [samples, samples], 0, sample_rate=8000, strict=True)  # as an array of them
    (tmp_path / "a.gif").write_bytes(b"GIF89a")
    with pytest.raises(UnsuitableValueError, match="a list of files and arrays"):
        logger.log_video("mixed", [tmp_path / "a.gif", moving_square(2)], 0, fps=4, strict=True)
    found = {record.id: record for record in logger.records if record.blobs}
    folder = Path(str(logger.log_dir)) / "journal" / "blobs"
    files = {
        key: [(folder / blob.id / blob.name).read_bytes() for blob in record.blobs or []]
        for key, record in found.items()
    }
    for content, count, rate in zip(files["tones"], (4, 2), (8000, 16000), strict=True):
        with wave.open(io.BytesIO(content)) as sound:
            assert (sound.getframerate(), sound.getnframes()) == (rate, count)
    assert (found["tones"].meta or {})["details"] == [{"caption": "a"}, {"caption": "b"}]
    assert [len(frames_of_gif(content)[0]) for content in files["squares"]] == [2, 3]
    assert files["files"] == [b"RIFF"] * 2
    assert (found["files"].meta or {})["details"] == [{"caption": "both"}] * 2
    [content] = files["channels"]
    with wave.open(io.BytesIO(content)) as sound:
        assert sound.getnchannels() == 2


# ---------------------------------------------------------------------- the interface of contexts


def test_a_run_from_a_context_to_its_end(tmp_path: Path) -> None:
    """``start_logging`` begins a run and ends it; an exception in the block makes it a failed one."""
    logger = CSVLogger(tmp_path)
    assert not logger.is_initialized
    with logger.start_logging() as inside:
        assert logger.is_initialized
        inside.save_hyperparameters({"lr": 0.1})
        inside.log(123, "value", kind="metric", step=0)
    assert (Path(str(logger.log_dir)) / "metrics.csv").read_text().split() == ["step,value", "0,123"]
    failing = InMemoryLogger()
    with contextlib.suppress(KeyError), failing.start_logging():
        failing.log_text("note", "before")
        raise KeyError("mine")
    assert [record.value for record in read(failing.log_dir) if record.kind == Kind.STATUS] == ["failed"]


def test_contexts_of_mlflow_take_a_name(tmp_path: Path, mlflow_template: Path) -> None:
    """``create_logger_context(run_name=...)`` names MLflow's run; what it does not take is told with what it does."""
    from lightning_loggers.loggers.mlflow import get_mlflow_logger

    reading = MLflowReading.begin(tmp_path, mlflow_template, None)
    logger: Any = reading.logger
    with pytest.raises(ConfigurationError, match="run_name"):
        logger.create_logger_context(run_nmae="x")
    experiment = logger.create_logger_context(rank=0, run_name="named", parent_run_id="0" * 32)
    logger.log(1.0, "loss")
    run = experiment.get_run(logger.run_id)
    assert (run.info.run_name, run.data.tags["mlflow.parentRunId"]) == ("named", "0" * 32)
    logger.destroy_logger_context()
    assert get_mlflow_logger(LoggerCollection([InMemoryLogger(), logger])) is logger
    assert get_mlflow_logger(logger) is logger
    assert get_mlflow_logger(InMemoryLogger()) is None
    assert get_mlflow_logger(None) is None


def test_a_rank_that_is_told_logs_as_that_rank() -> None:
    """A process that is told to be rank 1 records nothing, as rank 0 everything."""
    logger = InMemoryLogger()
    logger.create_logger_context(rank=1)
    logger.log(1.0, "loss")
    logger.log_text("note", "text")
    assert logger.worker_rank == 1
    assert not logger.is_initialized
    logger.create_logger_context(rank=0)
    logger.log(2.0, "loss")
    assert logger.most_recent_values == {"loss": 2.0}


@pytest.mark.parametrize(
    ("value", "suffix"),
    [
        (torch.arange(3), ".pt"),
        (trained_model(), ".pt"),
        (np.arange(3), ".npy"),
        ({"a": [1, None]}, ".json"),
        ("text", ".txt"),
        (b"bytes", ".bin"),
        (Image.fromarray(photograph), ".png"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith(".") else type(value).__name__,
)
def test_serialize_writes_files_that_anything_reads(tmp_path: Path, value: Any, suffix: str) -> None:
    """Each object becomes a file of its own format below the run's folder."""
    logger = CSVLogger(tmp_path)
    path = Path(logger.serialize(value, "folder/thing"))
    assert path.name == f"thing{suffix}"
    assert path.is_relative_to(Path(str(logger.log_dir)).absolute())
    if suffix == ".pt":
        torch.load(path, weights_only=True)
    elif suffix == ".npy":
        assert np.array_equal(np.load(path, allow_pickle=False), value)
    elif suffix == ".json":
        assert json.loads(path.read_text()) == value
    elif suffix == ".png":
        assert np.array_equal(pixels(path.read_bytes()), photograph)


def test_serialize_never_pickles_without_being_asked(tmp_path: Path) -> None:
    """An object of its own class is pickled with ``pickle=True`` only, and no path leads out of the folder."""
    import pickle

    logger = CSVLogger(tmp_path)
    with pytest.raises(UnsuitableValueError, match="pickle=True"):
        logger.serialize(SimpleNamespace(a=1), "thing")
    path = Path(logger.serialize(SimpleNamespace(a=1), "../../thing", pickle=True))
    assert path.is_relative_to(tmp_path)
    assert pickle.loads(path.read_bytes()) == SimpleNamespace(a=1)


def test_a_whole_model_for_mlflow_is_pickled_only_if_asked(tmp_path: Path, mlflow_template: Path) -> None:
    """With ``pickle=True`` MLflow's own reader loads the model itself."""
    import mlflow

    reading = MLflowReading.begin(tmp_path, mlflow_template, None)
    model = trained_model()
    reading.logger.log_model("net", model, pickle=True, strict=True)
    reading.end()
    read_back: Any = mlflow.pytorch.load_model(str(reading.folder / "net"))
    assert torch.equal(read_back(torch.ones(1, 4)), model(torch.ones(1, 4)))
