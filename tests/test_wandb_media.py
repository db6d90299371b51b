"""Media and histograms of WandbLogger through the real SDK: lists as Lightning's logger takes them, and ``watch``."""

import importlib.util
import io
import json
import math
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_kinds_values import frames_of_mp4
from wandb_reading import QUIET, OfflineRun
from wandb_running import Regression, answering, fit, isolated, make, run_dir
from wandb_standin import WandbStandIn

from lightning_loggers import WandbLogger
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.journal import read
from lightning_loggers.loggers import encoding, watching
from lightning_loggers.records import Kind, Record
from lightning_loggers.values.snapshots import Encoded

PIXELS = np.random.default_rng(0).integers(0, 255, (5, 7, 3), np.uint8)


@pytest.fixture(autouse=True)
def wandb_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The SDK on its own."""
    yield from isolated(tmp_path, monkeypatch)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbStandIn]:
    """W&B's endpoints."""
    yield from answering(monkeypatch)


def pixels_of(content: bytes) -> Any:
    """A picture's pixels."""
    return np.asarray(Image.open(io.BytesIO(content)))


def kept(logger: WandbLogger, key: str) -> tuple[Record, list[bytes]]:
    """The last record of an identifier in the journal, and the contents of its files."""
    assert encoding.drain(logger)
    record = [record for record in read(run_dir(logger)) if record.id == key][-1]
    folder = run_dir(logger) / "journal" / "blobs"
    return record, [(folder / blob.id / blob.name).read_bytes() for blob in record.blobs or []]


# ---------------------------------------------------------------------- lists


def test_media_arrive_as_lightnings_own_logger_sends_them(
    tmp_path: Path, standin: WandbStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Tables, images, overlays and videos are W&B's own, in their order; a list is a row, which tells what is lost."""
    logger = make(tmp_path, delivery="offline")
    Image.fromarray(255 - PIXELS).save(tmp_path / "a.png")
    (tmp_path / "b.gif").write_bytes(b"GIF89a")
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1) / 255
    logger.log_table("table", columns=["a", "b"], data=[[1, "x"], [None, 2.5], [math.nan, object]], step=1)
    logger.log_text("texts", columns=["t"], data=[["hello"]], step=2)
    images = [PIXELS, Image.fromarray(PIXELS), str(tmp_path / "a.png"), tensor]
    logger.log_image("images", images, step=3, caption=list("abcd"))
    mask = {"mask_data": np.ones((5, 7), np.uint8), "class_labels": {0: "no", 1: "yes"}}
    box = {"position": {"minX": 0.1, "maxX": 0.2, "minY": 0.3, "maxY": 0.4}, "class_id": 1}
    boxes = {"box_data": [box], "class_labels": {1: "cat"}}
    logger.log_image(
        "overlaid",
        [PIXELS, tmp_path / "a.png"],
        step=3,
        masks=[None, {"truth": mask}],
        boxes=[{"found": boxes}, None],
        classes=[[{"id": 7, "name": "dog"}], None],
    )
    logger.log_audio("sounds", [np.zeros(8), np.ones((4, 2))], step=4, sample_rate=[8000, 16000], caption=["u", "v"])
    videos = [np.zeros((3, 3, 16, 16), np.uint8), tmp_path / "b.gif", torch.ones(2, 2, 3, 16, 16)]
    logger.log_video("videos", videos, step=5, fps=[8, 4, None], format=["mp4"] * 3, caption=["x", "y", "z"])
    (tmp_path / "a.png").unlink()
    worker = Worker(run_dir(logger), {"settings": QUIET})
    assert encoding.drain(logger)
    while worker.step().kind is StepKind.PROGRESS:
        pass
    run = standin.only_run()
    files = dict(run.files)  # what is there when all of it counts as delivered, before the SDK ends the run
    assert (logger.stats.pending, logger.stats.rejected, logger.stats.dropped) == (0, 0, 0)
    worker.close()
    rows = {
        key: (row["trainer/global_step"], row[key])
        for row in run.history
        for key in row
        if isinstance(row[key], dict) and key != "sounds"
    }
    assert len(run.history) == 6
    assert {key: (step, value["_type"]) for key, (step, value) in rows.items()} == {
        "table": (1, "table-file"), "texts": (2, "table-file"), "images": (3, "images/separated"),
        "overlaid": (3, "images/separated"), "videos": (5, "videos"),
    }  # fmt: skip
    table = json.loads(files[rows["table"][1]["path"]])
    assert table["columns"] == ["a", "b"]
    assert table["data"][:2] == [[1, "x"], [None, 2.5]]
    assert math.isnan(table["data"][2][0])
    assert caplog.text.count("has a type in column 2, which is kept as its text") == 1
    for name, expected in zip(rows["images"][1]["filenames"], [PIXELS, PIXELS, 255 - PIXELS, PIXELS], strict=True):
        assert np.array_equal(pixels_of(files[name]), expected)
    assert rows["images"][1]["captions"] == list("abcd")
    overlaid = rows["overlaid"][1]
    assert [pixels_of(files[name])[0, 0, 0] for name in overlaid["filenames"]] == [
        PIXELS[0, 0, 0],
        255 - PIXELS[0, 0, 0],
    ]
    mask_file = files[overlaid["all_masks"][1]["truth"]["path"]]
    assert np.array_equal(pixels_of(mask_file), mask["mask_data"])
    assert json.loads(files[overlaid["all_boxes"][0]["found"]["path"]])["box_data"][0]["class_id"] == 1
    shown = [files[item["path"]] for item in rows["videos"][1]["videos"]]
    assert shown[1] == b"GIF89a"
    frames = {number: frames_of_mp4(shown[number]) for number in (0, 2, 3)}
    assert {number: (len(found), fps, found.mean() > 128) for number, (found, fps) in frames.items()} == {
        0: (3, 8, False), 2: (2, 4, True), 3: (2, 4, True)
    }  # fmt: skip
    assert rows["videos"][1]["captions"] == ["x", "y", "z", "z"]
    ((step, said),) = run.points("sounds")
    assert step == 4
    if importlib.util.find_spec("soundfile") is None:
        sounds = [content for a in standin.artifacts if a.collection in said for content in a.files.values()]
    else:
        sounds = [files[item["path"]] for item in said["audio"]]
    found = {}
    for content in sounds:
        with wave.open(io.BytesIO(content)) as sound:
            found[sound.getframerate()] = (sound.getnchannels(), sound.getnframes())
    assert found == {8000: (1, 8), 16000: (2, 4)}


def test_objects_of_the_sdk_are_logged_with_what_they_say(tmp_path: Path, standin: WandbStandIn) -> None:
    """The file that ``wandb.Image``, ``Audio`` or ``Video`` has made is kept, with its captions and overlays."""
    import wandb
    from matplotlib.figure import Figure

    (tmp_path / "a.wav").write_bytes(b"RIFF----WAVE")
    (tmp_path / "b.gif").write_bytes(b"GIF89a")
    mask = np.ones((5, 7), np.uint8)
    box = {"position": {"middle": [1, 2], "width": 3, "height": 4}, "domain": "pixel", "class_id": 1}
    picture = wandb.Image(
        PIXELS,
        caption="own",
        masks={"truth": {"mask_data": mask, "class_labels": {1: "yes"}}},
        boxes={"found": {"box_data": [box], "class_labels": {1: "cat"}}},
    )
    figure = Figure(figsize=(2, 1), dpi=50)
    logger = make(tmp_path)
    logger.log_image("images", [figure, picture, picture], 1, caption=["drawn", None, "given"])
    logger.log_audio("sound", [wandb.Audio(tmp_path / "a.wav", caption="tone")], 2)
    logger.log_video("video", [wandb.Video(tmp_path / "b.gif", caption="square")], 3)
    logger.finalize("success")
    assert (logger.stats.pending, logger.stats.rejected, logger.stats.dropped) == (0, 0, 0)
    run = standin.only_run()
    rows = {key: value for row in run.history for key, value in row.items() if isinstance(value, dict)}
    images = rows["images"]
    assert images["captions"] == ["drawn", "own", "given"]
    drawn, *others = [pixels_of(run.files[name]) for name in images["filenames"]]
    assert drawn.shape == (50, 100, 4)
    assert all(np.array_equal(other, PIXELS) for other in others)
    assert np.array_equal(pixels_of(run.files[images["all_masks"][1]["truth"]["path"]]), mask)
    assert json.loads(run.files[images["all_boxes"][2]["found"]["path"]])["box_data"][0]["class_id"] == 1
    sound = rows["sound"].get("audio", [rows["sound"]])[0]  # a list only with soundfile
    assert (sound["_type"], sound["caption"]) == ("audio-file", "tone")
    assert run.files[sound["path"]] == b"RIFF----WAVE"
    assert (rows["video"]["captions"], run.files[rows["video"]["videos"][0]["path"]]) == (["square"], b"GIF89a")


@pytest.mark.parametrize(
    ("values", "expected", "told"),
    [
        (np.array([[0, 51, 255]], np.int64), [0, 51, 255], None),
        (np.array([[-9, 51, 300]], np.int32), [0, 51, 255], "from -9 to 300: they are clipped"),
        (np.array([[-1.0, 0.0, 1.0]]), [0, 128, 255], "-1 is shown black, and 1 white"),
        (np.array([[0.0, 51.0, 255.0]]), [0, 51, 255], None),
        (np.array([[0.0, 0.2, 1.0]]), [0, 51, 255], None),
        (np.array([[0.0, 0.2, 1.02]], np.float16), [0, 51, 255], "it is clipped to 0..1"),
        (torch.tensor([[-2.0, 0.0, 2.0]], dtype=torch.bfloat16), [0, 128, 255], "-2 is shown black"),
        (np.array([[math.nan, -1.0, 1.0]]), [0, 0, 255], "held NaN"),
        (np.array([[False, True, True]]), [0, 255, 255], None),
        (torch.tensor([[0, 51, 255]], dtype=torch.uint8), [0, 51, 255], None),
    ],
)
def test_pixels_are_what_wandbs_users_mean_by_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: Any, expected: list[int], told: str | None
) -> None:
    """Integers, floats to 255, to 1 and on both sides of 0 are recognisable pictures; what changes them is told."""
    logger = make(tmp_path, delivery="offline")
    logger.log_image("image", [values])
    _, [content] = kept(logger, "image")
    assert pixels_of(content).tolist() == [expected]
    assert (told is None and "image" not in caplog.text) or str(told) in caplog.text
    assert logger.stats.dropped == 0


def test_batches_of_a_list_are_grids(tmp_path: Path) -> None:
    """A tensor (N, C, H, W) in a list is one picture, beside the others."""
    logger = make(tmp_path, delivery="offline")
    logger.log_image("images", [torch.ones(4, 3, 8, 8), torch.zeros(1, 8, 8), torch.ones(8, 8, 3)], caption=list("abc"))
    record, contents = kept(logger, "images")
    assert [pixels_of(content).shape for content in contents] == [(18, 18, 3), (8, 8), (8, 8, 3)]
    assert record.meta == {"details": [{"caption": "a"}, {"caption": "b"}, {"caption": "c"}]}


def test_what_cannot_be_logged_is_told_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lists of different length raise as in Lightning's logger; wrong shapes and missing files do not."""
    logger = make(tmp_path, delivery="offline")
    with pytest.raises(ValueError, match="1 images and 2 of caption: there must be one each"):
        logger.log_image("images", [PIXELS], caption=["a", "b"])
    logger.log_image("shapeless", [np.zeros(3)], step=6)
    logger.log_image("objects", [np.array([[object()]])], step=6)
    logger.log_image("lost", [PIXELS, tmp_path / "none.png"], step=6)
    logger.log_audio("without", [np.zeros(8)], step=6)
    logger.log_video("flat", [np.zeros((3, 8, 8))], step=6)
    logger.log_image("empty", [])
    logger.log_image("image", [PIXELS], mode=["L"])
    assert encoding.drain(logger)
    for said in (
        "image 'shapeless' is not logged: it is of shape (3,)", "image 'objects' is not logged",
        "image 'lost' is not logged", "audio 'without' is not logged: it is given without a sample_rate",
        "video 'flat' is not logged: it is of shape (3, 8, 8)", "log_image('image') takes no 'mode' for a list",
    ):  # fmt: skip
        assert caplog.text.count(said) == 1, said
    assert logger.stats.dropped == 5
    assert [record.id for record in read(run_dir(logger))] == ["image"]


# ---------------------------------------------------------------------- off the training thread


class Slow:
    """A value whose encoding waits until it is told to go on."""

    size_bytes = 1

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def encode(self) -> Encoded:
        """Wait."""
        self.begun.set()
        assert self.go_on.wait(60)
        return Encoded(value="slow")


def test_nothing_is_encoded_in_a_log_call(tmp_path: Path) -> None:
    """Lists and histograms are copied in the call; files are made of the copies while training goes on."""
    logger, slow = make(tmp_path, delivery="offline"), Slow()
    logger.log_metrics({"loss": 1.0}, 0)
    writer = logger._start()
    assert writer is not None
    encoding.submit(encoding.job_of(logger, writer, Record(time.time_ns(), "text", id="slow"), slow))
    assert slow.begun.wait(60)
    image, floats, sound = PIXELS.copy(), PIXELS / 255, np.zeros((4, 2), np.int16)
    video, model = np.zeros((2, 3, 16, 16), np.uint8), torch.nn.Linear(2, 1)
    logger.log_image("images", [image, floats])
    logger.log_audio("sounds", [sound], sample_rate=[8000])
    logger.log_video("videos", [video])
    logger.watch(model, "parameters", 1, log_graph=False)
    with torch.no_grad():
        model.weight.zero_()
    model(torch.ones(1, 2))
    logger.unwatch(model)
    for changed in (image, floats, sound, video):
        changed[:] = 1
    with torch.no_grad():
        model.weight += 1
    assert [record.kind for record in read(run_dir(logger))] == ["metric"]
    slow.go_on.set()
    _, images = kept(logger, "images")
    assert all(np.array_equal(pixels_of(content), PIXELS) for content in images)
    with wave.open(io.BytesIO(kept(logger, "sounds")[1][0])) as file:
        assert not any(file.readframes(4))
    assert frames_of_mp4(kept(logger, "videos")[1][0])[0].max() < 16
    [watched] = [record for record in read(run_dir(logger)) if record.kind == Kind.WATCH]
    assert watched.value["parameters/weight"]["max"] == 0.0


# ---------------------------------------------------------------------- watching


def test_watch_records_histograms_of_gradients_and_parameters(tmp_path: Path) -> None:
    """A step's histograms are one row, every few batches; each counts every weight."""
    logger = make(tmp_path, offline=True)
    model = Regression()
    logger.watch(model, log="all", log_freq=2)
    fit(logger, tmp_path, 6, model=model)
    logger.experiment.unwatch(model)  # as Lightning's documentation has it
    assert not model.layer._forward_hooks
    assert logger.stats.pending == 0
    run = OfflineRun(tmp_path, str(logger.version))
    names = {f"{what}/layer.{name}" for what in ("gradients", "parameters") for name in ("weight", "bias")}
    rows = [row for row in run.rows if names & row.keys()]
    assert [row["trainer/global_step"] for row in rows] == [0, 2, 4]
    for row in rows:
        assert {key for key in row if isinstance(row[key], dict)} == names
        assert {row[name]["_type"] for name in names} == {"histogram"}
        assert sum(row["gradients/layer.weight"]["values"]) == 4
    assert any(b"Linear" in content for content in run.artifacts.values())


@pytest.mark.parametrize(("limit", "value"), [("_MOST_TOGETHER", 3), ("_MOST_BYTES_TOGETHER", 16)])
def test_histograms_come_in_rows_that_wandb_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """A loop that never saves has a row a step, too; a large model has several, of not too much each."""
    monkeypatch.setattr(watching, limit, value)
    logger = make(tmp_path, delivery="offline")
    models = [torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)]
    for model in models:
        logger.watch(model, "all", 1, log_graph=False)
    for _ in range(2):
        for model in models:
            model(torch.ones(1, 2)).sum().backward()
    logger.finalize("success")
    found = [(record.step, sorted(record.value)) for record in read(run_dir(logger)) if record.kind == Kind.WATCH]
    for prefix in ("", "model1/"):
        names = {f"{what}/{prefix}{name}" for what in ("gradients", "parameters") for name in ("weight", "bias")}
        own = [(step, of) for step, of in found if set(of) <= names]
        assert [(step, len(of)) for step, of in own] == [(0, 3), (0, 1), (1, 3), (1, 1)]
        assert {name for step, of in own if step == 1 for name in of} == names
    assert len(found) == 8
