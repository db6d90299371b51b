"""Values of every family: what is accepted, what it becomes, and what is said of what is not accepted."""

import functools
import io
import sys
import threading
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars
import pyarrow.parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from kinds_content import FPS, RATE, moving_square, photograph, tone, torus, trained_model
from PIL import Image

from lightning_loggers.errors import MissingDependencyError, UnsuitableValueError
from lightning_loggers.records import Record
from lightning_loggers.values import (
    arrays,
    audio,
    datasets,
    figures,
    histograms,
    images,
    models,
    point_clouds,
    snapshots,
    tables,
    video,
)
from lightning_loggers.values.lazy import Once, is_lazy, shared
from lightning_loggers.values.metrics import normalise
from lightning_loggers.values.snapshots import Encoded


def files(encoded: Encoded, folder: Path) -> dict[str, bytes]:
    """The files of an encoded value by name."""
    made = {}
    for name, content in encoded.files:
        if not isinstance(content, bytes):
            content(folder / name)
            content = (folder / name).read_bytes()  # noqa: PLW2901
        made[name] = content
    return made


def only(encoded: Encoded) -> bytes:
    """The single file of an encoded value."""
    [(_, content)] = encoded.files
    assert isinstance(content, bytes)
    return content


def pixels(content: bytes) -> np.ndarray:
    """A PNG's pixels, by Pillow."""
    return np.asarray(Image.open(io.BytesIO(content)))


# ---------------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int64, torch.bool]
)
def test_a_tensor_of_any_type_becomes_an_array_of_its_own(dtype: torch.dtype) -> None:
    """Tensors of every dtype, bfloat16 included, are copied: changing them afterwards changes nothing."""
    tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    taken = arrays.snapshot(tensor)
    tensor.fill_(1)
    assert taken.tolist() == [[0, 1], [1, 0]]


def test_tensors_that_numpy_cannot_view_are_copied_all_the_same() -> None:
    """Tensors with gradients, conjugated and negated views, sparse, transposed and expanded ones are read."""
    base = torch.arange(6.0).reshape(2, 3)
    assert arrays.snapshot(base.clone().requires_grad_()).tolist() == base.tolist()
    assert arrays.snapshot(torch.nn.Parameter(base)).tolist() == base.tolist()
    assert arrays.snapshot(torch.complex(base, base).conj().imag).tolist() == (-base).tolist()
    assert arrays.snapshot(base.to_sparse()).tolist() == base.tolist()
    assert arrays.snapshot(base.T).tolist() == base.T.tolist()
    assert arrays.snapshot(base[0].expand(2, 3)).tolist() == [base[0].tolist()] * 2


def test_one_copy_is_made_of_an_array_and_none_of_a_list() -> None:
    """A snapshot shares no memory with what it was taken of; only what lent its memory is copied."""
    array = np.zeros(4)
    assert not np.shares_memory(arrays.snapshot(array), array)
    lent, own = arrays.view(array)
    assert np.shares_memory(lent, array)
    assert not own
    assert arrays.view([1.0, 2.0])[1]
    assert not np.shares_memory(arrays.snapshot(memoryview(array)), array)


def test_lists_of_tensors_and_foreign_arrays_are_read() -> None:
    """A list of tensors, and anything with ``__array__``, are arrays."""

    class Foreign:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return np.array([1, 2])

    assert arrays.snapshot([torch.ones(2), torch.zeros(2)]).tolist() == [[1, 1], [0, 0]]
    assert arrays.snapshot(Foreign()).tolist() == [1, 2]


@pytest.mark.parametrize("value", ["text", object(), [[1, 2], [3]], np.array([1j]), np.array(["a"])])
def test_what_holds_no_real_numbers_is_refused(value: Any) -> None:
    """Texts, objects, ragged lists and complex numbers are no arrays."""
    with pytest.raises(UnsuitableValueError):
        arrays.snapshot(value)


# ---------------------------------------------------------------------- images


def test_a_photograph_is_kept_exactly_in_either_layout() -> None:
    """(H, W, C) and (C, H, W), numpy and torch, uint8 and float, give the very pixels."""
    channels_first = np.ascontiguousarray(photograph.transpose(2, 0, 1))
    for value in (
        photograph,
        channels_first,
        torch.from_numpy(channels_first),
        channels_first.astype(np.float32) / 255,
        torch.from_numpy(photograph / 255.0),
        Image.fromarray(photograph),
    ):
        assert np.array_equal(pixels(only(images.snapshot(value, "photo").encode())), photograph)


@settings(max_examples=60, deadline=None)
@given(
    arrays_of.arrays(np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 3, 4]))),
    st.booleans(),
)
def test_any_image_is_read_back_exactly(image: np.ndarray, first: bool) -> None:
    """With its layout said, an image of any size and 1, 3 or 4 channels is read back exactly."""
    given_as = np.moveaxis(image, -1, 0) if first else image
    content = only(images.snapshot(given_as, "x", layout="CHW" if first else "HWC").encode())
    assert np.array_equal(pixels(content).reshape(image.shape), image)


def test_a_shape_that_can_be_read_in_two_ways() -> None:
    """(3, 5, 3) is channels first for torch and channels last for numpy, and what ``layout`` says otherwise."""
    value = np.arange(45, dtype=np.uint8).reshape(3, 5, 3)
    assert pixels(only(images.snapshot(value, "x").encode())).shape == (3, 5, 3)
    assert pixels(only(images.snapshot(torch.from_numpy(value), "x").encode())).shape == (5, 3, 3)
    assert pixels(only(images.snapshot(value, "x", layout="CHW").encode())).shape == (5, 3, 3)


def test_a_batch_is_a_grid_or_several_images() -> None:
    """Five images (B, C, H, W) become one grid of 3 x 2, or five files; a list is always several."""
    batch = torch.stack([torch.full((3, 4, 6), value / 4) for value in range(5)])
    grid = pixels(only(images.snapshot(batch, "x").encode()))
    assert grid.shape == (4 * 2 + 2, 6 * 3 + 2 * 2, 3)
    assert grid[0, 0, 0] == 0
    assert grid[0, 8, 0] == 64
    assert grid[6, 8, 0] == 255
    for value in ({"value": batch, "grid": False}, {"value": list(batch)}):
        encoded = images.snapshot(identifier="x", **value).encode()  # type: ignore[arg-type]
        assert [pixels(content)[0, 0, 0] for _, content in encoded.files] == [0, 64, 128, 191, 255]


def test_floats_outside_of_zero_and_one_are_clipped_and_told() -> None:
    """A float image beyond 0..1 is clipped, or stretched if asked for; NaN is black; each is noted."""
    value = np.array([[-1.0, 0.0, 0.5, 3.0]])
    encoded = images.snapshot(value, "x").encode()
    assert pixels(only(encoded)).tolist() == [[0, 0, 128, 255]]
    assert any("-1 to 3" in message for _, message in encoded.notes)
    assert pixels(only(images.snapshot(value, "x", normalize=True).encode())).tolist() == [[0, 64, 96, 255]]
    encoded = images.snapshot(np.array([[np.nan, 1.0]]), "x").encode()
    assert pixels(only(encoded)).tolist() == [[0, 255]]
    assert encoded.notes


def test_captions_masks_and_boxes_go_with_their_image() -> None:
    """A caption and boxes are in the record, a mask is a file behind the images that the record names."""
    mask = np.eye(4, dtype=np.int64)
    boxes = {"found": {"box_data": [{"position": {"minX": 0.1}, "class_id": 1}]}}
    encoded = images.snapshot(
        [photograph, photograph], "x", caption=["a", "b"], masks=[None, {"truth": mask}], boxes=boxes
    ).encode()
    assert [name for name, _ in encoded.files] == ["image.png", "image.png", "mask.npy"]
    assert encoded.meta is not None
    details = encoded.meta["details"]
    assert [detail["caption"] for detail in details] == ["a", "b"]
    assert details[1]["masks"]["truth"]["mask_blob"] == 2
    assert details[0]["boxes"] == boxes
    assert np.array_equal(np.load(io.BytesIO(encoded.files[2][1])), mask)  # type: ignore[arg-type]


def test_files_and_bytes_of_images_are_kept_as_they_are(tmp_path: Path) -> None:
    """A path is kept for a hard link, bytes by their own format."""
    path = tmp_path / "photo.jpg"
    Image.fromarray(photograph).save(path)
    ready = images.snapshot(path, "x")
    assert isinstance(ready, snapshots.Ready)
    assert ready.paths == (path,)
    with pytest.raises(UnsuitableValueError, match=r"nowhere\.jpg"):
        images.snapshot(tmp_path / "nowhere.jpg", "x")
    [(name, content)] = images.snapshot(path.read_bytes(), "x").encode().files
    assert (name, content) == ("image.jpg", path.read_bytes())


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (np.zeros((7, 9, 11)), "(7, 9, 11)"),
        (np.zeros((2, 2, 2, 2, 2)), "(2, 2, 2, 2, 2)"),
        (np.zeros(5), "(5,)"),
        (np.zeros((0, 4)), "(0, 4)"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "int64"),
        ([[1, 300]], "300"),
        (b"not an image", "12 bytes"),
        (object(), "object"),
    ],
)
def test_what_is_no_image_is_named_with_its_shape(value: Any, seen: str) -> None:
    """The error names the identifier, the shape or type that was seen, and what is accepted."""
    with pytest.raises(UnsuitableValueError) as caught:
        images.snapshot(value, "val/sample").encode()
    assert "'val/sample'" in str(caught.value)
    assert seen in str(caught.value)
    assert "(C, H, W)" in str(caught.value)


def test_a_missing_library_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow an image names the extra that brings it."""
    monkeypatch.setattr(snapshots, "_found", set())
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lightning-loggers\[media\]'"):
        images.snapshot(photograph, "x")


# ---------------------------------------------------------------------- sounds and videos


@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_is_read_back_within_its_sixteen_bits(channels: int) -> None:
    """(T,) and (C, T), numpy and torch, come back with their rate, within half a step of 1/32767."""
    sound = tone(channels=channels)
    for value in (sound, torch.from_numpy(sound).to(torch.float32), *([sound[0]] if channels == 1 else [])):
        with wave.open(io.BytesIO(only(audio.snapshot(value, "tone", sample_rate=RATE).encode()))) as file:
            assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (RATE, channels, sound.shape[1])
            read = np.frombuffer(file.readframes(10**9), "<i2").reshape(-1, channels).T / 32767
        assert np.abs(read - sound).max() < 0.51 / 32767


def test_a_rate_may_come_with_the_sound() -> None:
    """A pair of an array and its rate, and ``rate=``, say the same; int16 samples are kept exactly."""
    samples = np.array([-32768, 0, 32767], np.int16)
    for snapshot in (audio.snapshot((samples, 8000), "x"), audio.snapshot(samples, "x", rate=8000)):
        with wave.open(io.BytesIO(only(snapshot.encode()))) as file:
            assert file.getframerate() == 8000
            assert np.frombuffer(file.readframes(9), "<i2").tolist() == samples.tolist()


def test_a_sound_that_is_too_loud_is_clipped_and_told() -> None:
    """Beyond -1..1 a sound is clipped, and the message says how far it went."""
    encoded = audio.snapshot(np.array([2.5, -1.0]), "x", sample_rate=8000).encode()
    assert any("2.5" in message for _, message in encoded.notes)


@pytest.mark.parametrize(
    ("value", "rate", "seen"),
    [
        (np.zeros((100, 2)), RATE, "transpose"),
        (np.zeros((2, 3, 4)), RATE, "(2, 3, 4)"),
        (np.zeros(8), None, "without a sample_rate"),
        (np.zeros(8), 0, "sample_rate=0"),
        (np.zeros(8), 44.1, "sample_rate=44.1"),
        (np.zeros(8, np.int64), RATE, "int64"),
    ],
)
def test_what_is_no_sound_is_named(value: Any, rate: Any, seen: str) -> None:
    """Wrong shapes, rates and types of sounds are told with what was seen."""
    with pytest.raises(UnsuitableValueError) as caught:
        audio.snapshot(value, "tone", sample_rate=rate)
    assert "'tone'" in str(caught.value)
    assert seen in str(caught.value)


def frames_of_mp4(content: bytes) -> tuple[np.ndarray, float]:
    """Frames and their rate, by PyAV."""
    import av

    with av.open(io.BytesIO(content)) as container:
        stream = container.streams.video[0]
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]), float(
            stream.average_rate or 0
        )


def frames_of_gif(content: bytes) -> tuple[np.ndarray, float]:
    """Frames and their mean rate, by Pillow."""
    with Image.open(io.BytesIO(content)) as image:
        frames, seconds = [], 0.0
        for index in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            seconds += image.info["duration"] / 1000
    return np.stack(frames), len(frames) / seconds


@pytest.mark.parametrize("form", ["mp4", "gif"])
def test_a_moving_square_is_read_back_within_its_codecs_loss(form: str) -> None:
    """All frames come back at their rate, within a few of 255 levels; layout and number type do not matter."""
    square = moving_square()
    expected = square.transpose(0, 2, 3, 1).astype(float)
    for value in (square, torch.from_numpy(square).float() / 255, square.transpose(0, 2, 3, 1)):
        content = only(video.snapshot(value, "square", fps=FPS, format=form).encode())
        frames, fps = (frames_of_mp4 if form == "mp4" else frames_of_gif)(content)
        assert frames.shape == expected.shape
        assert fps == pytest.approx(FPS, rel=0.02)
        assert np.abs(frames - expected).mean() < 4


def test_a_video_of_odd_size_is_padded() -> None:
    """H.264 has even sizes only: an odd one grows by a line, the picture itself is there."""
    odd = moving_square(4)[:, :, :47, :45]
    frames, _ = frames_of_mp4(only(video.snapshot(odd, "x", fps=5, format="mp4").encode()))
    assert frames.shape[1:] == (48, 46, 3)


def test_without_pyav_a_video_is_a_gif(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where PyAV is not installed a video becomes a GIF; asked for as MP4 it names what is missing."""
    monkeypatch.setattr(snapshots, "_found", {"PIL"})
    monkeypatch.setitem(sys.modules, "av", None)
    [(name, _)] = video.snapshot(moving_square(3), "x", fps=5).encode().files
    assert name == "video.gif"
    with pytest.raises(MissingDependencyError, match="av>="):
        video.snapshot(moving_square(3), "x", fps=5, format="mp4")


@pytest.mark.parametrize(
    ("value", "arguments", "seen"),
    [
        (np.zeros((3, 8, 8), np.uint8), {"fps": 8}, "(3, 8, 8)"),
        (np.zeros((4, 2, 8, 8), np.uint8), {"fps": 8}, "(4, 2, 8, 8)"),
        (np.zeros((4, 3, 8, 8), np.uint8), {}, "fps=None"),
        (np.zeros((4, 3, 8, 8), np.int32), {"fps": 8}, "int32"),
        (np.zeros((4, 3, 8, 8), np.uint8), {"fps": 8, "format": "avi"}, "avi"),
    ],
)
def test_what_is_no_video_is_named(value: Any, arguments: dict[str, Any], seen: str) -> None:
    """Wrong shapes, rates, types and formats of videos are told with what was seen."""
    with pytest.raises(UnsuitableValueError) as caught:
        video.snapshot(value, "clip", **arguments)
    assert "'clip'" in str(caught.value)
    assert seen in str(caught.value)


# ---------------------------------------------------------------------- figures


def test_figures_of_matplotlib_are_drawn_in_the_call() -> None:
    """A figure, its axes and pyplot itself give the same PNG, which later drawing does not change."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(2, 1), dpi=50)
    axes.plot([1, 3, 2])
    drawn = [only(figures.snapshot(value, "curve").encode()) for value in (figure, axes, pyplot)]
    assert pixels(drawn[0]).shape == (50, 100, 4)
    assert drawn[0] == drawn[1] == drawn[2]
    snapshot = figures.snapshot(figure, "curve", close=True)
    axes.plot([9, 9, 9])
    assert only(snapshot.encode()) == drawn[0]
    assert not pyplot.get_fignums()


def test_a_figure_of_plotly_is_its_json_and_a_page() -> None:
    """The JSON is read by plotly's own reader; the page holds the same figure."""
    import plotly.graph_objects
    import plotly.io

    figure = plotly.graph_objects.Figure(plotly.graph_objects.Scatter(y=[1, 3, 2]))
    encoded = figures.snapshot(figure, "curve").encode()
    content = dict(encoded.files)
    read = plotly.io.from_json(content["figure.json"].decode())  # type: ignore[union-attr]
    assert list(read.data[0].y) == [1, 3, 2]
    assert b"Plotly.newPlot" in content["figure.html"]  # type: ignore[operator]


def test_what_is_no_figure_is_named() -> None:
    """Anything else is refused with what a figure is."""
    with pytest.raises(UnsuitableValueError, match=r"'curve'.*matplotlib"):
        figures.snapshot(3, "curve")


# ---------------------------------------------------------------------- histograms


def test_a_histogram_counts_values_of_any_shape() -> None:
    """Counts and edges are numpy's, with the moments of all finite values; NaN and infinities are counted apart."""
    values = torch.randn(7, 5, 3)
    made = histograms.snapshot(values, "w", bins=10).encode().value["w"]
    counts, edges = np.histogram(values.numpy().astype(np.float64), 10)
    assert made["counts"] == counts.tolist()
    assert made["bins"] == edges.tolist()
    assert made["sum"] == pytest.approx(float(values.double().sum()))
    odd = histograms.summary(np.array([1.0, np.nan, np.inf, -np.inf]))
    assert (odd["nan"], odd["infinite"], sum(odd["counts"])) == (1, 2, 1)
    assert sum(histograms.summary(np.array([np.nan]))["counts"]) == 0


@pytest.mark.parametrize("value", [3, [2, 2, 2], True, np.array([1e308, -1e308])])
def test_a_histogram_of_hard_values(value: Any) -> None:
    """A single number, equal numbers, a boolean and the whole range of floats have a histogram."""
    made = histograms.snapshot(value, "w").encode().value["w"]
    assert sum(made["counts"]) == np.size(value)
    assert np.isfinite(made["bins"]).all()


def test_ready_made_bins_are_kept() -> None:
    """(counts, edges), as numpy and torch give them, and mappings are kept as they are."""
    for value in (
        np.histogram([1, 2, 2, 3], 3),
        ([1, 2, 1], [1, 5 / 3, 7 / 3, 3]),
        {"counts": torch.tensor([1, 2, 1]), "bins": [1, 5 / 3, 7 / 3, 3]},
    ):
        made = histograms.snapshot(value, "w").encode().value["w"]
        assert made["counts"] == [1, 2, 1]
        assert made["bins"] == pytest.approx([1, 5 / 3, 7 / 3, 3])


@pytest.mark.parametrize(
    "value", [([1, 2], [0, 1]), ([-1], [0, 1]), ([1, 1], [0, 2, 1]), {"a": 1}, [], "abc", np.zeros((0, 3))]
)
def test_what_is_no_histogram_is_named(value: Any) -> None:
    """Bins that do not fit together, no values at all and texts are refused."""
    with pytest.raises(UnsuitableValueError, match="'w'"):
        histograms.snapshot(value, "w")


# ---------------------------------------------------------------------- point clouds


def read_ply(content: bytes) -> tuple[int, np.ndarray, np.ndarray | None]:
    """A PLY file by its header, as its format says."""
    header, _, data = content.partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = int(lines[2].removeprefix("element vertex "))
    types = {"float": "<f4", "uchar": "u1"}
    fields = [(name, types[kind]) for _, kind, name in (line.split() for line in lines[3:])]
    points = np.frombuffer(data, fields, count)
    xyz = np.stack([points[name] for name in "xyz"], 1)
    named = points.dtype.names or ()
    return count, xyz, np.stack([points[name] for name in ("red", "green", "blue")], 1) if "red" in named else None


def test_a_torus_is_read_back_with_its_colours() -> None:
    """(N, 6) comes back as 32-bit coordinates with the very colours, (N, 3) without, a batch as several files."""
    cloud = torus()
    count, xyz, colours = read_ply(only(point_clouds.snapshot(cloud, "torus").encode()))
    assert count == len(cloud)
    assert np.array_equal(xyz, cloud[:, :3].astype(np.float32))
    assert np.array_equal(colours, cloud[:, 3:].astype(np.uint8))
    fractions = np.concatenate([cloud[:, :3], cloud[:, 3:] / 255], 1)
    assert np.array_equal(read_ply(only(point_clouds.snapshot(fractions, "t").encode()))[2], colours)
    batch = torch.from_numpy(np.stack([cloud[:, :3]] * 2))
    encoded = point_clouds.snapshot(batch, "torus").encode()
    assert len(encoded.files) == 2
    assert read_ply(encoded.files[0][1])[2] is None  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(3,), (5, 4), (2, 5, 2), (0, 3), (1, 2, 5, 3)])
def test_what_is_no_point_cloud_is_named(shape: tuple[int, ...]) -> None:
    """Other shapes are refused with the shape."""
    with pytest.raises(UnsuitableValueError) as caught:
        point_clouds.snapshot(np.zeros(shape), "torus")
    assert str(shape) in str(caught.value)


# ---------------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("value", "arguments"),
    [
        (pd.DataFrame({"n": [1, 2], "text": ["ü", None]}), {}),
        ({"n": [1, 2], "text": ["ü", None]}, {}),
        ([{"n": 1, "text": "ü"}, {"n": 2}], {}),
        ([[1, "ü"], [2, None]], {"columns": ["n", "text"]}),
        ({"columns": ["n", "text"], "data": [[1, "ü"], [2, None]]}, {}),
        (pyarrow.table({"n": [1, 2], "text": ["ü", None]}), {}),
        (polars.DataFrame({"n": [1, 2], "text": ["ü", None]}), {}),
    ],
    ids=["pandas", "columns", "mappings", "rows", "split", "arrow", "polars"],
)
def test_tables_of_every_form_are_the_same_parquet(value: Any, arguments: dict[str, Any], tmp_path: Path) -> None:
    """pandas, Arrow, polars, columns, rows and mappings are read back by pyarrow with the same columns and values."""
    encoded = tables.snapshot(value, "t", **arguments).encode()
    [(name, content)] = encoded.files
    (tmp_path / name).write_bytes(content)  # type: ignore[arg-type]
    read = pyarrow.parquet.read_table(tmp_path / name).to_pydict()
    assert read == {"n": [1, 2], "text": ["ü", None]}
    assert tables.table_of(Record(0, "table"), [tmp_path / name]) == {
        "columns": ["n", "text"],
        "data": [[1, "ü"], [2, None]],
    }


def test_a_column_of_several_types_is_text_and_told() -> None:
    """Arrow has one type a column: a mixed one is kept as text, and noted."""
    encoded = tables.snapshot({"mixed": [1, "a", None], "fine": [1.5, 2.5, None]}, "t").encode()
    read = pyarrow.parquet.read_table(io.BytesIO(only(encoded))).to_pydict()
    assert read == {"mixed": ["1", "a", None], "fine": [1.5, 2.5, None]}
    assert any("'mixed'" in message for _, message in encoded.notes)
    frame = pd.DataFrame([[1, 2], ["a", 3]], columns=["same", "same"])
    read = pyarrow.parquet.read_table(io.BytesIO(only(tables.snapshot(frame, "t").encode()))).to_pydict()
    assert read == {"same": ["1", "a"], "same#2": [2, 3]}


def test_without_pyarrow_a_table_is_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without pyarrow the same table is JSON with columns and data."""
    monkeypatch.setattr(tables, "is_installed", lambda module: False)
    [(name, content)] = tables.snapshot({"a": [1, float("nan")], "b": ["x", "y"]}, "t").encode().files
    (tmp_path / name).write_bytes(content)  # type: ignore[arg-type]
    read = tables.table_of(Record(0, "table"), [tmp_path / name])
    assert read == {"columns": ["a", "b"], "data": [[1, "x"], [None, "y"]]}


@pytest.mark.parametrize("value", [{"a": [1], "b": [1, 2]}, [[1], [1, 2]], 5, [1, 2], object()])
def test_what_is_no_table_is_named(value: Any) -> None:
    """Columns and rows of different lengths, numbers and objects are refused."""
    with pytest.raises(UnsuitableValueError, match="'t'"):
        tables.snapshot(value, "t")


# ---------------------------------------------------------------------- models and datasets


def test_a_trained_model_is_read_back_without_running_code(tmp_path: Path) -> None:
    """The state is read with ``weights_only=True``, and is what it was at the call although training went on."""
    model = trained_model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    snapshot = models.snapshot(model, "net")
    assert snapshot.size_bytes == sum(tensor.numel() * 4 for tensor in before.values())
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(7)
    (tmp_path / "state.pt").write_bytes(files(snapshot.encode(), tmp_path)["state.pt"])
    read = torch.load(tmp_path / "state.pt", weights_only=True)
    assert read.keys() == before.keys()
    assert all(torch.equal(read[key], before[key]) for key in before)


def test_tensors_optimizers_and_containers_are_read_back(tmp_path: Path) -> None:
    """A bfloat16 tensor, an optimizer's state and nested containers come back with ``weights_only=True``."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.25)
    for value in (torch.ones(3, dtype=torch.bfloat16), optimizer, {"a": [torch.zeros(2), 1.5, None], "np": np.ones(2)}):
        files(models.snapshot(value, "x", kind="torch").encode(), tmp_path)
        read = torch.load(tmp_path / "state.pt", weights_only=True)
        if isinstance(value, torch.Tensor):
            assert torch.equal(read, value)
        elif value is optimizer:
            assert read["param_groups"][0]["lr"] == 0.25
        else:
            assert read["a"][1:] == [1.5, None]


def test_nothing_is_pickled_unless_asked() -> None:
    """An object of a class of its own is refused, also inside a container; ``pickle=True`` keeps it."""
    for value in (threading.Event(), {"inside": object()}, Exception("x")):
        with pytest.raises(UnsuitableValueError, match="pickle=True"):
            models.snapshot(value, "x", kind="torch")
    [(name, _)] = models.snapshot({1, 2}, "x", kind="torch", pickle=True).encode().files
    assert name == "pickled.pt"


def test_a_data_loader_is_described() -> None:
    """A data loader becomes what it loads and how."""
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(10, 2)), batch_size=4, shuffle=True)
    described = models.snapshot(loader, "train", kind="torch").encode().value
    assert described["dataset"] == {"class": "torch.utils.data.dataset.TensorDataset", "length": 10}
    assert (described["batch_size"], described["batches"], described["sampler"]) == (4, 3, "RandomSampler")


def test_a_graph_names_all_modules_and_shapes() -> None:
    """The description has every module with its parameters' shapes, and how many there are."""
    described = models.describe_graph(trained_model())
    assert described["parameters"] == described["trainable"] == 4 * 8 + 8 + 8 * 2 + 2
    assert {module["name"]: module["parameters"] for module in described["modules"]}["2"] == {
        "weight": [2, 8],
        "bias": [2],
    }


def test_datasets_are_described_with_a_digest_of_their_own() -> None:
    """Arrays, frames, torch datasets and paths have name, size and schema; other data has another digest."""
    array = np.arange(20.0).reshape(10, 2)
    one, same, other = (datasets.snapshot(value, "d").encode().value for value in (array, array.copy(), array + 1))
    assert one == same
    assert one["digest"] != other["digest"]
    assert one["profile"] == {"num_rows": 10}
    frame = datasets.snapshot(pd.DataFrame({"a": [1]}), "d", context="test", source="s3://bucket/a").encode().value
    assert (frame["schema"], frame["context"], frame["source"]) == ({"a": "int64"}, "test", "s3://bucket/a")
    described = datasets.snapshot(torch.utils.data.TensorDataset(torch.zeros(4, 1)), "d").encode().value
    assert described["profile"] == {"num_rows": 4}
    with pytest.raises(UnsuitableValueError, match="'d'"):
        datasets.snapshot(object(), "d")


def test_datasets_of_mlflow_are_taken_whole() -> None:
    """An ``mlflow.data`` dataset keeps its own digest, source and profile."""
    import mlflow.data

    theirs = mlflow.data.from_numpy(np.zeros((4, 2)), source="data.npy", name="numbers")
    described = datasets.snapshot(theirs, "numbers").encode().value
    assert described["digest"] == theirs.digest
    assert described["source_type"] == "local"
    assert described["profile"]["features_shape"] == [4, 2]


# ---------------------------------------------------------------------- functions in place of values


def test_only_functions_are_called_for_their_value() -> None:
    """Functions, methods and partials are lazy; models, tensors and classes, which can be called too, are values."""
    assert is_lazy(lambda: 1)
    assert is_lazy([].copy)
    assert not is_lazy(torch.nn.Linear(1, 1))
    assert not is_lazy(int)
    assert not is_lazy(torch.zeros(1))


def test_a_function_that_raises_is_called_once_too() -> None:
    """Whoever asks for the value gets the same exception, and the function is called once."""
    calls = []

    def fails() -> None:
        calls.append(1)
        raise KeyError("mine")

    once = Once(fails)
    for _ in range(3):
        with pytest.raises(KeyError, match="mine"):
            once()
    assert calls == [1]


def test_functions_are_shared_wherever_they_stand() -> None:
    """In arguments, lists and mappings functions become ones that are called once; all else is left as it is."""
    plain = {"a": 1}
    assert shared(plain) is plain
    made = shared(([functools.partial(object)], {"x": functools.partial(object)}))
    assert made[0][0]() is made[0][0]()
    assert made[1]["x"]() is made[1]["x"]()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "uint8", "bool"])
def test_arrays_of_jax_are_taken_as_they_are(dtype: str) -> None:
    """An array of jax of any type is read to the same values as numpy's, and as an image to the same pixels."""
    import jax.numpy as jnp

    values = np.arange(12).reshape(3, 4) % 2
    array = jnp.asarray(values).astype(dtype)
    assert arrays.snapshot(array).tolist() == values.tolist()
    theirs = only(images.snapshot(array, "x").encode())
    assert theirs == only(images.snapshot(values.astype(np.float32 if "float" in dtype else dtype), "x").encode())


def test_numbers_of_jax_are_metrics() -> None:
    """Scalars of jax are plain numbers in a record, NaN and bfloat16 included."""
    import jax.numpy as jnp

    given = {"loss": jnp.float32(0.5), "n": jnp.int32(3), "half": jnp.bfloat16(1.5), "bad": jnp.float32("nan")}
    numbers, others = normalise(given, lambda *args, **kwargs: True)
    assert str(numbers) == "{'loss': 0.5, 'n': 3, 'half': 1.5, 'bad': nan}"
    assert others == []


def test_masks_and_boxes_of_an_image_file_are_kept(tmp_path: Path) -> None:
    """An image that is a file or its bytes brings its masks and boxes along, as an array does."""
    content = images.png(np.zeros((4, 4, 3), np.uint8))
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for value, before in ((content, 1), (path, 0)):
        said = {"masks": {"sky": np.ones((4, 4), np.uint8)}, "boxes": {"truth": {"box_data": []}}}
        encoded = images.snapshot(value, "x", caption="c", **said).encode()
        [detail] = (encoded.meta or {})["details"]
        assert detail == {"caption": "c", "masks": {"sky": {"mask_blob": 1}}, "boxes": {"truth": {"box_data": []}}}
        assert [name for name, _ in encoded.files[before:]] == ["mask.npy"]
