"""TensorBoardLogger: TensorBoard's own readers find every point once, at its step and time, however delivery died."""

import ctypes
import inspect
import io
import itertools
import json
import logging
import math
import os
import pickle
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import yaml
from conftest import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.loggers import TensorBoardLogger as TheirTensorBoardLogger
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context as HParamsContext
from tensorboard.plugins.hparams.list_session_groups import Handler
from tensorboard.summary.writer import record_writer
from tensorboard.summary.writer.record_writer import RecordWriter
from test_csv import Regression, deliver, kill, loader, metric, trainer
from torch.utils.tensorboard import SummaryWriter

from lightning_loggers import DummyExperiment, TensorBoardLogger
from lightning_loggers.adapters import tensorboard_files
from lightning_loggers.adapters.base import Context, Delivered, Fault, RemoteRun
from lightning_loggers.adapters.fitting import KeyMap
from lightning_loggers.adapters.tensorboard import TensorBoardAdapter
from lightning_loggers.delivery.discover import find_runs
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.errors import ConfigurationError, MissingDependencyError
from lightning_loggers.journal import read
from lightning_loggers.journal.blobs import BlobStore
from lightning_loggers.notices import Notices
from lightning_loggers.records import Header, Kind, Record, RunSpec, RunStatus

ALL = {"scalars": 0, "tensors": 0, "graph": 0}


def events(folder: str | Path) -> EventAccumulator:
    """A run, as TensorBoard's own reader has it, nothing sampled."""
    accumulator = EventAccumulator(str(folder), size_guidance=ALL)
    accumulator.Reload()
    return accumulator


def points(folder: str | Path, key: str) -> list[tuple[int, float]]:
    """(step, value) of a tag."""
    return [(event.step, event.value) for event in events(folder).Scalars(key)]


def texts(folder: str | Path, key: str) -> list[tuple[int, str]]:
    """(step, text) of a tag."""
    found = events(folder).Tensors(f"{key}/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]


def float32(value: float) -> float:
    """The nearest 32-bit float."""
    return ctypes.c_float(value).value


def tab(folder: str | Path) -> list[tuple[dict[str, Any], dict[str, float], str]]:
    """The hyperparameters tab, through the plugin behind it: hyperparameters, metrics and status of each session."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    board = TBContext(logdir=str(folder), data_provider=MultiplexerDataProvider(multiplexer, str(folder)))
    backend = HParamsContext(board)
    experiment = backend.experiment_from_metadata(
        RequestContext(), "", True, backend.hparams_metadata(RequestContext(), ""), []
    )
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=1000)
    request.allowed_statuses.extend(api_pb2.Status.values())
    request.col_params.extend(api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos)
    request.col_params.extend(api_pb2.ColParams(hparam=info.name) for info in experiment.hparam_infos)
    groups = Handler(RequestContext(), backend, "", request).run().session_groups
    return [
        (
            {name: getattr(value, value.WhichOneof("kind")) for name, value in group.hparams.items()},
            {value.name.tag: value.value for value in session.metric_values},
            api_pb2.Status.Name(session.status),
        )
        for group in groups
        for session in group.sessions
    ]


def context(run_dir: Path, extra: dict[str, Any] | None = None, keys: dict[str, str] | None = None) -> Context:
    """What a worker gives an adapter, with what the worker before it had saved."""
    run = RunSpec("0123456789abcdef", "lightning_logs", "version_0", "tensorboard")
    return Context(
        run=run,
        header=Header(1, run, 1_700_000_000_000_000_000, environment={"host": "here"}),
        remote=RemoteRun(extra=extra if extra is not None else {}),
        blobs=BlobStore(run_dir / "journal" / "blobs"),
        keys=KeyMap(TensorBoardAdapter.fit_key, TensorBoardAdapter.max_key_length, keys),
        notices=Notices(),
        run_dir=run_dir,
    )


def event_files(folder: str | Path) -> list[Path]:
    """What TensorBoard takes for event files."""
    return sorted(Path(folder).glob("*tfevents*"))


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What the user is told."""
    with caplog.at_level(logging.INFO, "lightning_loggers"):
        yield lambda: caplog.text


# ---------------------------------------------------------------------- values, keys, steps, times

VALUES = {
    "third": 1 / 3, "tiny": 1e-40, "max": 3.4028234663852886e38, "minus": -0.0, "count": 2**24, "flag": True,
    "nan": math.nan, "inf": math.inf, "-inf": -math.inf,
}  # fmt: skip


def test_values_and_times_read_back_equal(tmp_path: Path, told: Callable[[], str]) -> None:
    """Every value, NaN and infinities included, reads back as the nearest 32-bit float, at the time of its log call."""
    logger = TensorBoardLogger(tmp_path)
    logger.log_metrics(VALUES, 3)
    logger.finalize("success")
    (record,) = (record for record in read(logger.log_dir) if record.kind == "metric")
    found = events(logger.log_dir)
    for key, value in VALUES.items():
        (event,) = found.Scalars(key)
        assert repr(event.value) == repr(float32(value))
        assert event.step == 3
        assert abs(event.wall_time - record.time_ns / 1e9) < 1e-6
    assert "32-bit" not in told()


def test_what_32_bits_cannot_say_is_told(tmp_path: Path, told: Callable[[], str]) -> None:
    """A number that becomes infinite or zero, or an integer that changes, is told, once a metric; rounding is not."""
    logger = TensorBoardLogger(tmp_path)
    for step in range(3):
        logger.log_metrics({"huge": 1e300, "small": 1e-60, "tokens": 2**24 + 1, "loss": 0.1}, step)
    logger.finalize("success")
    found = {key: points(logger.log_dir, key)[0][1] for key in ("huge", "small", "tokens")}
    assert found == {"huge": math.inf, "small": 0.0, "tokens": 2.0**24}
    assert told().count("32-bit floats") == 3


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        (0, 0),
        (-3, -3),
        (2**40, 2**40),
        (2.0, 2),
        (2.5, 2),
        (-2.5, -3),
        (None, 0),
        (2**63, 2**63 - 1),
        (1e99, 2**63 - 1),
    ],
)
def test_steps(tmp_path: Path, told: Callable[[], str], step: Any, shown: int) -> None:
    """Whole steps of 64 bits are kept; others become the nearest one below, none becomes 0, and that is told once."""
    logger = TensorBoardLogger(tmp_path)
    for _ in range(3):
        logger.log_metrics({"loss": 1.0}, step)
    logger.finalize("success")
    assert points(logger.log_dir, "loss") == [(shown, 1.0)] * 3
    assert told().count("TensorBoard") - told().count("TensorBoardLogger") == (0 if step == shown else 1)


KEYS = [
    "loss", "val/loss", "mAP@0.5", "mAP_0.5", "a b", "a_b", "a@b", "/a", "a", "é 损失 🙂", "a\nb", "", "k" * 10_000,
    "k" * 9_999 + "K", "note", "note/text_summary", "_hparams_/experiment",
]  # fmt: skip


def test_tags_are_never_merged(tmp_path: Path, told: Callable[[], str]) -> None:
    """Any key has a tag that no other key shares; what had to be changed is told, and nothing else is changed."""
    logger = TensorBoardLogger(tmp_path)
    for number, key in enumerate(KEYS):
        logger.log_metrics({key: float(number)}, number)
    logger.log_text("note", "a text", 1)
    logger.finalize("success")
    names = json.loads((Path(logger.log_dir) / "journal" / "tensorboard.keys.json").read_text())
    found = events(logger.log_dir)
    assert sorted(found.Tags()["scalars"]) == sorted(names[key] for key in KEYS)
    for number, key in enumerate(KEYS):
        assert [(event.step, event.value) for event in found.Scalars(names[key])] == [(number, float(number))]
    changed = {key for key in KEYS if names[key] != key}
    assert changed == {"a\nb", "", "k" * 10_000, "k" * 9_999 + "K", "note/text_summary", "_hparams_/experiment"}
    assert told().count("does not take the name") == len(changed)
    assert texts(logger.log_dir, "note") == [(1, "a text")]


def test_texts_and_dicts(tmp_path: Path) -> None:
    """Texts of any length and dictionaries are texts in TensorBoard, at their steps."""
    long = "lang 🙂 " * 100_000
    logger = TensorBoardLogger(tmp_path)
    logger.log_text("notes/a", "*one*", 1)
    logger.log_text("notes/a", long, 2)
    logger.log_dict("config", {"a": [1, None, "x"]}, 3)
    logger.log_metrics({"loss": 0.5, "remark": "so far so good"}, 4)  # type: ignore[dict-item]
    logger.finalize("success")
    assert texts(logger.log_dir, "notes/a") == [(1, "*one*"), (2, long)]
    ((step, text),) = texts(logger.log_dir, "config")
    assert (step, json.loads(text)) == (3, {"a": [1, None, "x"]})
    assert all(line.startswith("    ") for line in text.splitlines())
    assert texts(logger.log_dir, "remark") == [(4, "so far so good")]
    assert points(logger.log_dir, "loss") == [(4, 0.5)]


def test_files(tmp_path: Path) -> None:
    """Artifacts and checkpoints lie below artifacts/ in the run's folder."""
    logger = TensorBoardLogger(tmp_path / "logs")
    (tmp_path / "weights.bin").write_bytes(b"1234")
    logger.log_artifact(tmp_path / "weights.bin", "in/here")
    writer = logger._start()
    assert writer is not None
    blob = writer.blobs.link_file(tmp_path / "weights.bin")
    logger._record(Kind.CHECKPOINT, id="last", blobs=[blob], meta={"aliases": ["best"], "metadata": {"score": 0.5}})
    writer.append(Record(1, "a kind of the future", id="x", value=1))
    logger.finalize("success")
    top = Path(logger.log_dir) / "artifacts"
    files = {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}
    assert files == {
        "in/here/weights.bin": b"1234", "last/weights.bin": b"1234", "last/metadata.yaml": b"score: 0.5\n",
        "last/aliases.txt": b"['best']",
    }  # fmt: skip
    assert logger.stats.rejected == 0


@pytest.mark.parametrize("checksum", ["google-crc32c", "tensorboard"])
@settings(deadline=None)
@given(data=st.binary(max_size=2000))
def test_records_are_tensorboards_own(checksum: str, data: bytes) -> None:
    """By either checksum a record is, byte for byte, what TensorBoard's writer makes of the data."""
    buffer = io.BytesIO()
    RecordWriter(buffer).write(data)
    with pytest.MonkeyPatch.context() as patch:
        if checksum == "tensorboard":
            patch.setitem(sys.modules, "google_crc32c", None)  # as if it were not installed
        tensorboard_files._checksum.cache_clear()
        assert tensorboard_files._record(data) == buffer.getvalue()
        assert (tensorboard_files._checksum().__name__ == "masked_crc32c") is (checksum == "tensorboard")
    tensorboard_files._checksum.cache_clear()


def test_no_checksum_is_made_in_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's own checksum, 0.1 us a byte taken from training, is not asked for what a run logs."""
    monkeypatch.setattr(record_writer, "masked_crc32c", None)
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_metrics({"loss": 0.5}, 0)
    logger.log_image("noise", [np.zeros((64, 64, 3), np.uint8)], 0)
    logger.finalize("success")
    monkeypatch.undo()  # it is what reads them, too
    assert points(logger.log_dir, "loss") == [(0, 0.5)]
    assert logger.stats.rejected == 0


# ---------------------------------------------------------------------- hyperparameters

PARAMS: dict[str, Any] = {
    "lr": 1e-3, "layers": 3, "name": "mnist", "flag": True, "none": None, "nan": math.nan, "inf": -math.inf,
    "seed": 2**62 + 1, "model": {"sizes": [4, 1], "act": max}, "long": "x" * 100_000,
}  # fmt: skip
SHOWN: dict[str, Any] = {
    "lr": 1e-3, "layers": 3.0, "name": "mnist", "flag": True, "none": "None", "nan": "nan", "inf": "-inf",
    "seed": str(2**62 + 1),
    "model/sizes": "[4, 1]", "model/act": "builtins.max", "long": "x" * 100_000,
}  # fmt: skip


def test_the_tab_shows_hyperparameters_metrics_and_the_end(tmp_path: Path) -> None:
    """The plugin behind the hyperparameters tab finds values, metrics and status; hparams.yaml has the nested ones."""
    logger = TensorBoardLogger(tmp_path, default_hp_metric=False, prefix="p")
    logger.log_hyperparams(PARAMS, {"acc": 0.5, "val/loss": 2.0}, step=4)
    logger.log_metrics({"acc": 0.75}, 5)
    logger.finalize("success")
    assert tab(tmp_path) == [(SHOWN, {"p-acc": 0.75, "p-val/loss": 2.0}, "STATUS_SUCCESS")]
    assert points(logger.log_dir, "p-acc") == [(4, 0.5), (5, 0.75)]
    found = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
    assert math.isnan(found.pop("nan"))
    assert found == {
        **{key: value for key, value in PARAMS.items() if key != "nan"},
        "model": {"sizes": [4, 1], "act": "builtins.max"},
    }
    logger.log_hyperparams({"more": 1}, 0.25)
    logger.finalize("failed")
    ((params, metrics, status),) = tab(tmp_path)
    assert params == {**SHOWN, "more": 1.0}
    assert metrics == {"p-acc": 0.75, "p-val/loss": 2.0, "p-hp_metric": 0.25}
    assert status == "STATUS_FAILURE"


@pytest.mark.parametrize("default_hp_metric", [True, False])
def test_the_placeholder_metric_is_lightnings(tmp_path: Path, default_hp_metric: bool) -> None:
    """Without metrics the tab has hp_metric of -1, or nothing at all, exactly as with Lightning's logger."""
    ours = TensorBoardLogger(tmp_path / "ours", default_hp_metric=default_hp_metric)
    theirs = TheirTensorBoardLogger(tmp_path / "theirs", default_hp_metric=default_hp_metric)
    for logger in (ours, theirs):
        logger.log_hyperparams({"lr": 0.1, "name": "x"})
        logger.finalize("success")
    assert tab(tmp_path / "ours") == tab(tmp_path / "theirs")
    expected = [({"lr": 0.1, "name": "x"}, {"hp_metric": -1.0}, "STATUS_SUCCESS")] if default_hp_metric else []
    assert tab(tmp_path / "ours") == expected
    assert (Path(ours.log_dir) / "hparams.yaml").read_text() == (Path(theirs.log_dir) / "hparams.yaml").read_text()
    ours.log_hyperparams({"lr": 0.1})
    ours.finalize("success")
    if default_hp_metric:
        assert points(ours.log_dir, "hp_metric") == [(0, -1.0)]


# ---------------------------------------------------------------------- exactly once

CALL = st.one_of(
    st.tuples(st.just("metric"), st.integers(-1, 3), st.dictionaries(st.sampled_from("abc"), st.floats(), min_size=1)),
    st.tuples(st.just("text"), st.integers(-1, 3), st.text(max_size=5)),
    st.tuples(st.just("param"), st.none(), st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9), min_size=1)),
    st.tuples(st.just("purge_step"), st.integers(0, 3), st.none()),
)
TURN = st.tuples(st.integers(1, 4), st.sampled_from(["go on", "go on", "die before the save", "die after it"]))


def as_record(number: int, kind: str, step: int | None, content: Any) -> Record:
    """A drawn log call as a record."""
    time_ns = 1_700_000_000_000_000_000 + number
    if kind == "metric":
        return metric(step, dict(content), time_ns)
    if kind == "purge_step":
        return Record(time_ns, kind, step)
    if kind == "text":
        return Record(time_ns, Kind.TEXT.value, step, id="t", value=content)
    return Record(time_ns, Kind.PARAM.value, data=dict(content), meta={"tab": {"placeholder": "hp_metric"}})


@settings(max_examples=60, deadline=None)
@given(st.lists(CALL, min_size=1, max_size=20), st.lists(TURN, min_size=1, max_size=10))
def test_any_history_of_crashes_gives_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, logged: list[Any], turns: list[tuple[int, str]]
) -> None:
    """In whatever batches records come, and wherever hosts die between writing and saving, the files are the same."""
    records = [as_record(number, *call) for number, call in enumerate(logged)]
    whole, folder = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")
    adapter = TensorBoardAdapter(context(whole))
    assert adapter.open_run() == Delivered()
    assert adapter.write(records) == Delivered()
    adapter.close()
    plan = itertools.chain(turns, itertools.repeat((3, "go on")))
    saved, names, at, open_now = b"{}", b"{}", 0, False
    while at < len(records):
        if not open_now:
            adapter = TensorBoardAdapter(context(folder, msgspec.json.decode(saved), msgspec.json.decode(names)))
            assert adapter.open_run() == Delivered()
            saved, open_now = msgspec.json.encode(adapter.context.remote.extra), True
        count, end = next(plan)
        assert adapter.write(records[at : at + count]) == Delivered()
        names = msgspec.json.encode(adapter.context.keys.names)
        if end == "die before the save":
            adapter.close()
            open_now = False
            continue
        at += count
        saved = msgspec.json.encode(adapter.context.remote.extra)
        if end == "die after it":
            adapter.close()
            open_now = False
    adapter.close()
    grown = [
        {path.name: path.read_bytes() for path in event_files(place) if ".000" not in path.name}
        for place in (whole, folder)
    ]
    assert grown[0] == grown[1]
    assert tab(whole) == tab(folder)


def test_lost_state_of_delivery_doubles_nothing(tmp_path: Path, told: Callable[[], str]) -> None:
    """A run whose cursors are lost is written again from its journal; earlier files are renamed, and that is told."""
    logger = TensorBoardLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1})
    for step in range(300):
        logger.log_metrics({"loss": step * 0.5}, step)
    logger.finalize("success")
    logger.close()
    folder = Path(logger.log_dir)
    before = {path.name: path.read_bytes() for path in event_files(folder)}
    (folder / "journal" / "tensorboard.state.json").unlink()
    deliver(folder)
    assert points(folder, "loss") == [(step, step * 0.5) for step in range(300)]
    assert tab(folder) == [({"lr": 0.1}, {"hp_metric": -1.0}, "STATUS_SUCCESS")]
    assert {path.name: path.read_bytes() for path in event_files(folder)}.keys() == before.keys()
    kept = {path.name.replace("earlier", "tfevents"): path.read_bytes() for path in folder.glob("*earlier*")}
    assert kept == before
    assert "is delivered again" in told()


def test_killed_trainer(tmp_path: Path) -> None:
    """What a SIGKILLed process had logged is all there, once, and shown as failed, when the next logger has begun."""
    count = kill(tmp_path, "TensorBoardLogger", 10_000)
    (run_dir,) = find_runs(tmp_path)
    following = TensorBoardLogger(tmp_path)
    following.log_metrics({"loss": 1.0}, 0)
    wait_until(lambda: tab(run_dir) == [({"lr": 0.5}, {"hp_metric": -1.0}, "STATUS_FAILURE")], 60, "the run's end")
    following.close()
    found = points(run_dir, "loss")
    assert len(found) >= count
    assert found == [(step, step * 0.5) for step in range(len(found))]


def test_full_disk(tmp_path: Path, told: Callable[[], str]) -> None:
    """While the disk refuses, the file keeps its acknowledged points; when it accepts again all are there, once."""
    logger = TensorBoardLogger(tmp_path, delivery="offline")
    for step in range(5000):
        logger.log_metrics({"loss": step * 0.5, "accuracy": 1.0}, step)
    logger.close()
    worker = Worker(Path(logger.log_dir))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failed = 0
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        for _ in range(10):
            failed += worker.step().kind is StepKind.FAILED
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed > 1
    expected = [(step, step * 0.5) for step in range(5000)]
    found = points(logger.log_dir, "loss")
    assert 0 < len(found) < 5000
    assert found == expected[: len(found)]
    assert worker.state is not None
    (path,) = event_files(logger.log_dir)
    assert path.stat().st_size == worker.state.remote.extra["events"]["length"]
    assert told().count("does not take records now") == 1
    worker.close()
    deliver(logger.log_dir)
    assert points(logger.log_dir, "loss") == expected


@pytest.mark.parametrize("how", ["deleted", "deleted while open", "cut"])
def test_a_file_that_somebody_changed(tmp_path: Path, told: Callable[[], str], how: str) -> None:
    """Events that follow a deleted or shortened file go to another one, which readers take up after it; it is told."""
    adapter = TensorBoardAdapter(context(tmp_path))
    adapter.open_run()
    adapter.write([metric(step, {"loss": 1.0}) for step in range(10)])
    (path,) = event_files(tmp_path)
    if how == "deleted while open":
        path.unlink()
    else:
        adapter.close()
        if how == "cut":
            os.truncate(path, path.stat().st_size - 5)
        else:
            path.unlink()
        adapter = TensorBoardAdapter(context(tmp_path, adapter.context.remote.extra))
        adapter.open_run()
    for step in (10, 11):
        assert adapter.write([metric(step, {"loss": 2.0})]) == Delivered()
    adapter.close()
    kept = [(step, 1.0) for step in range(9)] if how == "cut" else []
    assert points(tmp_path, "loss") == [*kept, (10, 2.0), (11, 2.0)]
    assert "new events go to another file" in told()


def test_a_batch_that_fails_between_two_files_is_added_once(tmp_path: Path) -> None:
    """A fault in the second of two files takes back what went to the first; sent again, all of it is there once."""
    adapter = TensorBoardAdapter(context(tmp_path))
    adapter.open_run()
    batch = [metric(0, {"loss": 1.0}, 1), Record(2 * 10**18, "purge_step", 1), metric(1, {"loss": 2.0}, 2 * 10**18 + 1)]
    adapter.write([metric(0, {"other": 1.0})])
    first = adapter._events.path
    size = first.stat().st_size
    in_the_way = tmp_path / f"{first.name.replace('1700000000', '2000000000').removesuffix('001')}002"
    in_the_way.mkdir()
    assert isinstance(adapter.write(batch), Fault)
    in_the_way.rmdir()
    assert adapter.write(batch) == Delivered()
    adapter.close()
    assert in_the_way.is_file()
    assert first.stat().st_size > size
    assert points(tmp_path, "loss") == [(0, 1.0), (1, 2.0)]


def test_what_a_crash_left_is_cut_off(tmp_path: Path) -> None:
    """Events behind the saved length are gone as soon as the next host has opened the file, whole or torn."""
    adapter = TensorBoardAdapter(context(tmp_path))
    adapter.open_run()
    adapter.write([metric(step, {"loss": 1.0}) for step in range(10)])
    saved = msgspec.json.encode(adapter.context.remote.extra)
    adapter.write([metric(step, {"loss": 1.0}) for step in range(10, 20)])
    adapter.close()
    (path,) = event_files(tmp_path)
    path.write_bytes(path.read_bytes()[:-7])
    adapter = TensorBoardAdapter(context(tmp_path, msgspec.json.decode(saved)))
    assert adapter.open_run() == Delivered()
    assert points(tmp_path, "loss") == [(step, 1.0) for step in range(10)]
    assert path.stat().st_size == msgspec.json.decode(saved)["events"]["length"]
    adapter.close()


def test_no_symbolic_link_is_followed(tmp_path: Path) -> None:
    """A run's folder from a stranger leads nobody's pen elsewhere: no file outside of it is made or changed."""
    outside = tmp_path / "precious"
    outside.write_text("untouched")
    folder = tmp_path / "run"
    folder.mkdir()
    names = {"tab": "tfevents.0", "file": "tfevents.1"}
    for name in names.values():
        (folder / name).symlink_to(outside)
    adapter = TensorBoardAdapter(context(folder, {"events": {**names, "number": 1, "length": 0}}))
    assert isinstance(adapter.open_run(), Fault)
    assert isinstance(adapter.write([metric(0, {"a": 1.0})]), Fault)
    assert isinstance(adapter.write([Record(1, Kind.PARAM.value, data={"a": 1})]), Fault)
    assert isinstance(adapter.update_status(RunStatus.FINISHED), Fault)
    assert outside.read_text() == "untouched"


def test_a_disk_that_hangs_stalls_no_log_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While writing an event file hangs, log calls, save and a bounded finalize return; afterwards all is there."""
    released, hanging = threading.Event(), threading.Event()
    pwrite = os.pwrite

    def hang(*args: Any) -> int:
        hanging.set()
        released.wait(120)
        return pwrite(*args)

    monkeypatch.setattr(os, "pwrite", hang)
    logger = TensorBoardLogger(tmp_path, finalize_timeout_s=0.1)
    logger.log_metrics({"loss": 0.0}, 0)
    wait_until(hanging.is_set, 60, "the hanging write")

    def log() -> None:
        for step in range(1, 5000):
            logger.log_metrics({"loss": step * 0.5}, step)
            logger.save()
        logger.finalize("success")

    thread = threading.Thread(target=log)
    thread.start()
    thread.join(60)
    stalled = thread.is_alive()
    released.set()
    thread.join(60)
    assert not stalled
    logger._finalize_timeout_s = 60.0
    logger.finalize("success")
    assert points(logger.log_dir, "loss") == [(step, step * 0.5) for step in range(5000)]


# ---------------------------------------------------------------------- resuming


def test_purge_step_hides_what_a_later_session_repeats(tmp_path: Path) -> None:
    """With purge_step an earlier session's points at that step and later are hidden, its experiment's, too."""
    sessions: list[tuple[str, dict[str, Any]]] = [("hides", {"purge_step": 6}), ("shows", {})]
    for version, options in sessions:
        first = TensorBoardLogger(tmp_path, version=version)
        for step in range(10):
            first.log_metrics({"loss": 1.0}, step)
            first.experiment.add_scalar("by hand", 1.0, step)
        first.finalize("failed")
        first.close()
        began = int(time.time())
        wait_until(lambda began=began: int(time.time()) > began, 5, "the next second")  # type: ignore[misc]
        second = TensorBoardLogger(tmp_path, version=version, **options)
        for step in range(6, 12):
            second.log_metrics({"loss": 2.0}, step)
            second.experiment.add_scalar("by hand", 2.0, step)
        second.finalize("success")
        second.close()
    early, late = [(step, 1.0) for step in range(10)], [(step, 2.0) for step in range(6, 12)]
    for key in ("loss", "by hand"):
        assert points(tmp_path / "lightning_logs" / "hides", key) == early[:6] + late
        assert points(tmp_path / "lightning_logs" / "shows", key) == early + late


def test_requeued_job_goes_on_with_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SLURM job that is preempted and requeued continues the version that it left open, below a sub_dir, too."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    for session in range(2):
        monkeypatch.setattr("lightning_loggers.loggers.identity._made", {})  # as in a process of its own
        logger = TensorBoardLogger(tmp_path, sub_dir="a/b")
        assert logger.version == 0
        logger.log_metrics({"loss": float(session)}, session)
        logger.finalize("finished" if session < 1 else "success")
        logger.close()
    assert points(tmp_path / "lightning_logs" / "version_0" / "a" / "b", "loss") == [(0, 0.0), (1, 1.0)]
    following = TensorBoardLogger(tmp_path, sub_dir="a/b")
    assert following.version == 1


def test_resume_goes_on_in_the_same_file(tmp_path: Path) -> None:
    """A second session of a version adds to the event file of the first one, which TensorBoard may be watching."""
    first = TensorBoardLogger(tmp_path)
    first.log_metrics({"loss": 1.0}, 0)
    first.finalize("success")
    first.close()
    watching = events(first.log_dir)
    second = TensorBoardLogger(tmp_path, version=0)
    second.log_metrics({"loss": 2.0}, 1)
    second.finalize("success")
    second.close()
    assert len(event_files(first.log_dir)) == 1
    watching.Reload()
    assert [event.value for event in watching.Scalars("loss")] == [1.0, 2.0]


# ---------------------------------------------------------------------- Lightning's names and folders

PLACES = [
    {}, {"name": None}, {"name": "exp"}, {"name": "tb/"}, {"version": 7}, {"version": "mine"}, {"version": ""},
    {"sub_dir": "sub"}, {"sub_dir": Path("a/b"), "version": 2}, {"name": "crowded"}, {"name": None, "version": ""},
    {"name": "$HERE", "version": "x"},
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_names_and_folders_are_lightnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: dict[str, Any]
) -> None:
    """All names and folders are what Lightning's logger says, and the events lie in log_dir."""
    monkeypatch.setenv("HERE", "there")
    for folder in ("version_3", "version_11_old", "version_x", "other_20"):
        (tmp_path / "crowded" / folder).mkdir(parents=True)
    theirs = TheirTensorBoardLogger(tmp_path, **place)
    names = ("name", "version", "sub_dir", "save_dir", "root_dir", "log_dir")
    expected = {name: getattr(theirs, name) for name in names}
    ours = TensorBoardLogger(tmp_path, **place)
    assert {name: getattr(ours, name) for name in names} == expected
    assert type(ours.version) is type(expected["version"])
    ours.log_metrics({"loss": 1.0}, 0)
    ours.finalize("success")
    assert points(expected["log_dir"], "loss") == [(0, 1.0)]
    assert list(find_runs(tmp_path)) == [Path(expected["log_dir"])]


def test_the_constructor_is_lightnings_with_keyword_only_additions() -> None:
    """Names, order, kinds and defaults are those of Lightning's logger; what is added is keyword-only."""
    theirs = dict(inspect.signature(TheirTensorBoardLogger).parameters)
    ours = dict(inspect.signature(TensorBoardLogger).parameters)
    assert [name for name in ours if name in theirs] == list(theirs)
    assert list(ours)[: len(theirs) - 1] == list(theirs)[:-1]
    for name, parameter in theirs.items():
        assert ours[name].kind is parameter.kind
        assert ours[name].default == parameter.default
    added = {name: ours[name] for name in ours if name not in theirs}
    assert {parameter.kind for parameter in added.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert list(added) == [
        "delivery",
        "finalize_timeout_s",
        "deliver_leftovers",
        "agg_key_funcs",
        "agg_default_func",
        "policy",
    ]


def test_arguments_that_cannot_work_are_refused(tmp_path: Path) -> None:
    """Unknown or impossible arguments for the writer are refused in the constructor, in words."""
    with pytest.raises(ConfigurationError, match=r"flush_sec'.*flush_secs"):
        TensorBoardLogger(tmp_path, flush_sec=10)
    with pytest.raises(ConfigurationError, match="purge_step='5'"):
        TensorBoardLogger(tmp_path, purge_step="5")
    with pytest.raises(ConfigurationError, match="filename_suffix"):
        TensorBoardLogger(tmp_path, filename_suffix="../x")
    with pytest.raises(ConfigurationError, match="local file system"):
        TensorBoardLogger("gs://bucket/logs")


def test_without_tensorboard(tmp_path: Path) -> None:
    """Without the package the constructor says how to install it; an offline run needs none."""
    code = f"""
import sys

class Without:
    def __init__(self, finder): self.finder = finder
    def find_spec(self, name, *args):
        return None if name.partition(".")[0] == "tensorboard" else self.finder.find_spec(name, *args)
    def __getattr__(self, name): return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
from lightning_loggers import TensorBoardLogger
try:
    TensorBoardLogger({str(tmp_path / "runs")!r})
except Exception as error:
    print(type(error).__name__, "|", error)
offline = TensorBoardLogger({str(tmp_path / "offline")!r}, delivery="offline")
offline.log_metrics({{"loss": 1.0}}, 0)
offline.finalize("success")
print(offline.stats.recorded)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{MissingDependencyError.__name__} | `TensorBoardLogger` needs `tensorboard")
    assert "pip install 'lightning-loggers[tensorboard]'" in first
    assert second == "1"
    deliver(tmp_path / "offline" / "lightning_logs" / "version_0")
    assert points(tmp_path / "offline" / "lightning_logs" / "version_0", "loss") == [(0, 1.0)]


# ---------------------------------------------------------------------- graph, experiment, Trainer


class WithExample(Regression):
    """A model that says what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.randn(2, 4)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch).relu()


def test_graph_is_lightnings(tmp_path: Path) -> None:
    """With log_graph=True the model's graph is what Lightning's logger has, once, though fit and test both log it."""
    ours = TensorBoardLogger(tmp_path / "ours", log_graph=True)
    theirs = TheirTensorBoardLogger(tmp_path / "theirs", log_graph=True)
    model = WithExample()
    for logger in (ours, theirs):
        trainer(logger).fit(model, loader(2))
    trainer(ours).test(model, loader(2), verbose=False)

    def nodes(folder: str) -> list[tuple[str, str]]:
        return sorted((node.name, node.op) for node in events(folder).Graph().node)

    found = nodes(ours.log_dir)
    assert found == nodes(theirs.log_dir)
    assert any("layer" in name for name, _ in found)
    assert events(ours.log_dir).Tags()["run_metadata"] == ["step1"]
    graphs = [record for record in read(ours.log_dir) if record.kind == "graph"]
    assert len(graphs) >= 2
    assert graphs[0].blobs is not None
    content = BlobStore(Path(ours.log_dir) / "journal" / "blobs").locate(graphs[0].blobs[0]).read_bytes()
    assert len(content) > 100
    assert event_files(ours.log_dir)[-1].read_bytes().count(content) == 1


def test_a_graph_that_cannot_be_traced_is_told(tmp_path: Path, told: Callable[[], str]) -> None:
    """A model without example, with an odd one, or whose forward raises, trains on; the reason is told once."""

    class Odd(WithExample):
        def __init__(self, example: Any) -> None:
            super().__init__()
            self.example_input_array = example

    cases = [
        (None, "has no `example_input_array`"),
        ({"x": 1}, "a dict cannot be traced"),
        (torch.randn(2, 5), "RuntimeError"),
    ]
    for number, (example, reason) in enumerate(cases):
        logger = TensorBoardLogger(tmp_path, log_graph=True)
        trainer(logger).fit(Odd(example), loader(1))
        assert told().count("The graph of Odd is not logged") == number + 1
        assert reason in told()
        assert not events(logger.log_dir).Tags()["graph"]
        assert points(logger.log_dir, "train/loss")


def test_experiment_is_torchs_writer(tmp_path: Path) -> None:
    """The experiment object is made on first use, writes a file of its own, and hides nothing of the logger's."""
    logger = TensorBoardLogger(tmp_path, purge_step=0, filename_suffix=".mine", max_queue=5)
    experiment = logger.experiment
    assert isinstance(experiment, SummaryWriter)
    assert not event_files(logger.log_dir)
    logger.log_metrics({"loss": 0.5}, 3)
    logger.finalize("success")
    experiment.add_scalar("by hand", 0.25, 7)
    experiment.add_histogram("weights", torch.randn(10), 7)
    logger.finalize("success")
    assert points(logger.log_dir, "by hand") == [(7, 0.25)]
    assert points(logger.log_dir, "loss") == [(3, 0.5)]
    assert len(event_files(logger.log_dir)) == 2
    assert all(path.name.endswith(".mine") for path in event_files(logger.log_dir))
    other = pickle.loads(pickle.dumps(logger))
    assert other.log_dir == logger.log_dir
    logger.close()
    logger.close()


def test_experiment_on_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank than 0 has a dummy for an experiment, and makes no file or folder."""
    from lightning_utilities.core.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1, raising=False)
    logger = TensorBoardLogger(tmp_path, log_graph=True)
    assert isinstance(logger.experiment, DummyExperiment)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_hyperparams({"lr": 0.1})
    logger.log_graph(WithExample())
    logger.finalize("success")
    assert logger.version == 0
    assert not list(tmp_path.iterdir())


def test_a_fit_shows_what_lightnings_logger_shows(tmp_path: Path) -> None:
    """After a real fit, scalars, steps and the hyperparameters tab are those of Lightning's own logger."""
    ours, theirs = TensorBoardLogger(tmp_path / "ours"), TheirTensorBoardLogger(tmp_path / "theirs")
    torch.manual_seed(0)
    trainer([ours, theirs]).fit(Regression(), loader(), loader(2))
    mine, others = events(ours.log_dir), events(theirs.log_dir)
    assert sorted(mine.Tags()["scalars"]) == sorted(others.Tags()["scalars"])
    for tag in others.Tags()["scalars"]:
        assert Counter((event.step, event.value) for event in mine.Scalars(tag)) == Counter(
            (event.step, event.value) for event in others.Scalars(tag)
        )
    (ours_tab,), (theirs_tab,) = tab(tmp_path / "ours"), tab(tmp_path / "theirs")
    assert ours_tab[0] == {"lr": 0.01, "sizes": "(4, 1)"} or ours_tab[0] == theirs_tab[0]
    assert ours_tab[1:] == theirs_tab[1:]
    assert ours.stats.pending == 0
