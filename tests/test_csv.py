"""CSVLogger: every number is in metrics.csv once and as it was, however often delivery died, and rows stay cheap."""

import copy
import csv
import inspect
import itertools
import json
import logging
import math
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pandas
import pytest
import torch
import yaml
from conftest import wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.core.saving import load_hparams_from_yaml
from lightning.pytorch.loggers import CSVLogger as TheirCSVLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_loggers import CSVLogger, TensorBoardLogger
from lightning_loggers.adapters.base import Context, Delivered, Fault, FaultKind, RemoteRun
from lightning_loggers.adapters.csv import CSVAdapter
from lightning_loggers.adapters.fitting import KeyMap
from lightning_loggers.delivery.discover import find_runs
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.journal import read
from lightning_loggers.journal.blobs import BlobStore
from lightning_loggers.loggers.csv import ExperimentWriter
from lightning_loggers.notices import Notices
from lightning_loggers.records import Header, Kind, Record, RunSpec, split_nonfinite

METRICS = "metrics.csv"


def context(run_dir: Path, extra: dict[str, Any] | None = None, keys: dict[str, str] | None = None) -> Context:
    """What a worker gives an adapter, with what the worker before it had saved."""
    run = RunSpec("0123456789abcdef", "lightning_logs", "version_0", "csv")
    return Context(
        run=run,
        header=Header(1, run, 1_700_000_000_000_000_000),
        remote=RemoteRun(extra=extra if extra is not None else {}),
        blobs=BlobStore(run_dir / "journal" / "blobs"),
        keys=KeyMap(CSVAdapter.fit_key, CSVAdapter.max_key_length, keys),
        notices=Notices(),
        run_dir=run_dir,
    )


def metric(step: int | float | None, data: dict[str, Any], time_ns: int = 1) -> Record:
    """A record as the journal's reader gives it."""
    return Record(time_ns, Kind.METRIC.value, step, data, split_nonfinite(data))


def sent(adapter: CSVAdapter, records: list[Record]) -> None:
    """Deliver records, which has to succeed."""
    assert adapter.write(records) == Delivered()


def rows(folder: str | Path) -> list[dict[str, str]]:
    """metrics.csv through csv.DictReader: of each row what is not empty."""
    with open(Path(folder) / METRICS, newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file, strict=True))
    assert all(None not in row for row in found), "a row has more fields than there are columns"
    return [{key: value.strip(" ") for key, value in row.items() if value} for row in found]


def numbers(folder: str | Path) -> list[tuple[float | None, dict[str, float]]]:
    """Step and values of each row."""
    return [
        (float(row["step"]) if "step" in row else None, {key: float(row[key]) for key in row if key != "step"})
        for row in rows(folder)
    ]


def journaled(folder: str | Path) -> list[tuple[Any, str, float]]:
    """(step, key, value) of every metric in the journal."""
    return [
        (record.step, key, value)
        for record in read(folder)
        if record.kind == "metric"
        for key, value in (record.data or {}).items()
    ]


def in_file(folder: str | Path) -> list[tuple[Any, str, float]]:
    """(step, key, value) of every number in metrics.csv."""
    return [(step, key, value) for step, cells in numbers(folder) for key, value in cells.items()]


def deliver(run_dir: str | Path, timeout_s: float = 60.0) -> Worker:
    """Deliver what is left of a run, as the command line does."""
    worker = Worker(Path(run_dir))
    deadline = time.monotonic() + timeout_s
    while True:
        step = worker.step()
        if step.kind is StepKind.IDLE and worker.finish_dead().kind is StepKind.IDLE:
            break
        assert time.monotonic() < deadline, step.reason
        if step.kind is not StepKind.PROGRESS:
            threading.Event().wait(min(step.wait_s, 0.05))
    worker.close()
    return worker


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What the user is told."""
    with caplog.at_level(logging.INFO, "lightning_loggers"):
        yield lambda: caplog.text


class Regression(LightningModule):
    """A model of four weights with a validation loss and hyperparameters."""

    def __init__(self, lr: float = 0.01, sizes: tuple[int, ...] = (4, 1)) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(*sizes)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("val/loss", self.layer(batch[0]).pow(2).mean())

    def test_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("test/loss", self.layer(batch[0]).abs().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(logger: Any, **options: Any) -> Trainer:
    """A real Trainer on the CPU that says nothing."""
    settings = {"enable_checkpointing": False, **options}
    return Trainer(
        logger=logger, max_epochs=2, log_every_n_steps=1, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, **settings,
    )  # fmt: skip


def loader(batches: int = 10) -> "DataLoader[Any]":
    """Batches of random numbers."""
    return DataLoader(TensorDataset(torch.randn(4 * batches, 4)), batch_size=4)


# ---------------------------------------------------------------------- values, keys, steps

VALUES = {
    "pi": math.pi, "tenth": 0.1, "tiny": 5e-324, "huge": 1.7976931348623157e308, "minus": -0.0, "count": 2**62 + 1,
    "flag": True, "nan": math.nan, "inf": math.inf, "-inf": -math.inf,
}  # fmt: skip


@pytest.mark.parametrize("step", [0, 7, -3, 2.5, None, 2**53 + 1, 2**63, 1e300])
def test_values_and_steps_read_back_equal(tmp_path: Path, step: Any) -> None:
    """Every number, NaN and infinities included, reads back as the very same one, at the step that was given."""
    logger = CSVLogger(tmp_path)
    logger.log_metrics(VALUES, step)
    logger.finalize("success")
    (row,) = rows(logger.log_dir)
    assert {key: repr(float(row[key])) for key in VALUES} == {key: repr(float(VALUES[key])) for key in VALUES}
    assert int(row["count"]) == 2**62 + 1
    assert row.get("step") == (None if step is None else repr(step))


KEYS = [
    "loss", "val/loss", "a,b", 'say "hi"', " spaced ", "mAP@0.5", "a_b", "a@b", "é 损失 🙂", "a\nb", "", "step",
    "k" * 10_000, "k" * 9_999 + "K", "=1+1", "\ufeffbom",
]  # fmt: skip


def test_keys_are_columns_of_their_own(tmp_path: Path, told: Callable[[], str]) -> None:
    """Any key has a column that no other key shares; what had to be changed is told, and nothing else is changed."""
    logger = CSVLogger(tmp_path)
    logger.log_metrics({key: float(number) for number, key in enumerate(KEYS)}, 0)
    for number, key in enumerate(KEYS):
        logger.log_metrics({key: number + 100.0}, 1)
    logger.finalize("success")
    names = json.loads((Path(logger.log_dir) / "journal" / "csv.keys.json").read_text())
    first, second = rows(logger.log_dir)
    assert {key: float(first[names[key]]) for key in KEYS} == {key: float(n) for n, key in enumerate(KEYS)}
    assert {key: float(second[names[key]]) for key in KEYS} == {key: n + 100.0 for n, key in enumerate(KEYS)}
    assert first["step"] == "0"
    changed = {key for key in KEYS if names[key] != key}
    assert changed == {"a\nb", "", "step", "k" * 10_000, "k" * 9_999 + "K"}
    assert told().count("does not take the name") == len(changed)


def test_one_row_a_step(tmp_path: Path) -> None:
    """Calls of one step share a row; a key that comes twice in a step begins another one; no step joins nothing."""
    logger = CSVLogger(tmp_path, prefix="p")
    calls: list[Any] = [
        (0, {"a": 1.0}), (0, {"b": 2.0}), (1, {"a": 3.0}), (1, {"a": 4.0}), (1, {"c": 5.0}), (None, {"a": 6.0}),
        (None, {"b": 7.0}), (0, {"c": 8.0}), (2.0, {"a": 9.0}), (2, {"b": 10.0}),
    ]  # fmt: skip
    for step, data in calls:
        logger.log_metrics(data, step)
    logger.finalize("success")
    assert numbers(logger.log_dir) == [
        (0, {"p-a": 1, "p-b": 2}), (1, {"p-a": 3}), (1, {"p-a": 4, "p-c": 5}), (None, {"p-a": 6}), (None, {"p-b": 7}),
        (0, {"p-c": 8}), (2, {"p-a": 9, "p-b": 10}),
    ]  # fmt: skip


def test_pandas_reads_numbers(tmp_path: Path) -> None:
    """Pandas finds integer steps and float values, also in the row with the room before it and in short rows."""
    logger = CSVLogger(tmp_path)
    for step in range(50):
        logger.log_metrics({"loss": step / 7, "epoch": step // 10}, step)
        if step >= 25:
            logger.log_metrics({"val": math.nan if step == 30 else step / 3}, step)
    logger.finalize("success")
    table = pandas.read_csv(Path(logger.log_dir) / METRICS, float_precision="round_trip")
    assert list(table.columns) == ["step", "epoch", "loss", "val"]
    assert table["step"].tolist() == list(range(50))
    assert table.dtypes.map(str).tolist() == ["int64", "int64", "float64", "float64"]
    assert table["loss"].tolist() == [step / 7 for step in range(50)]
    assert table["val"].isna().sum() == 26


def test_text_is_no_number(tmp_path: Path) -> None:
    """A string among metrics costs the numbers of its call nothing and is kept whole beside the file."""
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"loss": 0.5, "note": "good, so far"}, 3)  # type: ignore[dict-item]
    logger.finalize("success")
    assert numbers(logger.log_dir) == [(3, {"loss": 0.5})]
    (text,) = (Path(logger.log_dir) / "media" / "note").iterdir()
    assert text.name == "3.txt"
    assert text.read_text() == "good, so far"


# ---------------------------------------------------------------------- cost


def grown(folder: Path, steps: int, new_key_every: int) -> tuple[int, int]:
    """Log steps in batches, now and then a key that was not there; bytes written, and the file's size."""
    adapter = CSVAdapter(context(folder))
    assert adapter.open_run() == Delivered()
    for begin in range(0, steps, 1000):
        batch = [metric(step, {"loss": step * 0.5, "epoch": step // 100}) for step in range(begin, begin + 1000)]
        for record in batch:
            if record.step % new_key_every == 0:  # type: ignore[operator]
                assert record.data is not None
                record.data[f"key{record.step}"] = 1.0
        sent(adapter, batch)
    adapter.close()
    return adapter.metrics.bytes_written, (folder / METRICS).stat().st_size


@pytest.mark.parametrize("steps", [100_000, pytest.param(1_000_000, marks=pytest.mark.soak)])
def test_long_runs_stay_linear(tmp_path: Path, steps: int) -> None:
    """All that is ever written for a long run with few keys is its file, but for one row a batch."""
    written, size = grown(tmp_path, steps, steps)
    assert size > steps * 10
    assert size <= written <= size + steps // 1000 * 30
    assert len(rows(tmp_path)) == steps


def test_new_keys_at_any_time_stay_cheap(tmp_path: Path) -> None:
    """With a new key every hundred steps all writing is a small multiple of the file, however long the run is."""
    shares = []
    for steps in (10_000, 20_000, 40_000):
        written, size = grown(tmp_path / str(steps), steps, 100)
        shares.append(written / size)
    assert max(shares) < 3, shares
    last = rows(tmp_path / "40000")
    assert len(last) == 40_000
    assert last[39_900] == {"step": "39900", "loss": "19950.0", "epoch": "399", "key39900": "1.0"}


def test_the_file_can_be_read_at_any_moment(tmp_path: Path) -> None:
    """After every single write, new columns and the move to more room included, pandas and DictReader read it all."""
    adapter = CSVAdapter(context(tmp_path))
    adapter.open_run()
    expected: list[tuple[int, dict[str, float]]] = []
    for step in range(120):
        data = {"loss": step * 0.5, f"a rather long name of a metric {step // 3}": float(step)}
        sent(adapter, [metric(step, data)])
        expected.append((step, data))
        assert numbers(tmp_path) == expected
        table = pandas.read_csv(tmp_path / METRICS)
        assert table["step"].tolist() == list(range(step + 1))
        assert table["loss"].tolist() == [number * 0.5 for number in range(step + 1)]
        assert not [name for name in table.columns if "Unnamed" in name]
    adapter.close()


# ---------------------------------------------------------------------- exactly once

NAMES = ["a", "b", "c,d", "step", "", *(f"{'a rather long name ' * 5}{number}" for number in range(20))]
CALL = st.tuples(
    st.sampled_from([None, 0, 1, 2, 0.5]),
    st.dictionaries(st.sampled_from(NAMES), st.floats() | st.integers(-5, 5), min_size=1, max_size=3),
)
TURN = st.tuples(st.integers(1, 4), st.sampled_from(["go on", "go on", "die before the save", "die after it"]))


@settings(max_examples=100, deadline=None)
@given(st.lists(CALL, min_size=1, max_size=20), st.lists(TURN, min_size=1, max_size=10))
def test_any_history_of_crashes_gives_each_record_once(
    tmp_path_factory: pytest.TempPathFactory, logged: list[tuple[Any, dict[str, Any]]], turns: list[tuple[int, str]]
) -> None:
    """Whatever is logged, in whatever batches, wherever hosts die between writing and saving, the file says it once."""
    plan = itertools.chain(turns, itertools.repeat((3, "go on")))
    folder = tmp_path_factory.mktemp("run")
    records = [metric(step, data, number) for number, (step, data) in enumerate(logged)]
    saved, names, at = b"{}", b"{}", 0  # what the last host left on disk: the adapter's place, the key map, the cursor
    adapter = None
    while at < len(records):
        if adapter is None:
            adapter = CSVAdapter(context(folder, msgspec.json.decode(saved), msgspec.json.decode(names)))
            assert adapter.open_run() == Delivered()
            if (folder / METRICS).exists() and "row" in adapter.context.remote.extra["metrics"]:
                assert len(in_file(folder)) == sum(len(data) for _, data in logged[:at])
            saved = msgspec.json.encode(adapter.context.remote.extra)
        kept: list[bytes] = []
        remote = adapter.context.remote
        adapter.metrics._save = lambda kept=kept, remote=remote: kept.append(msgspec.json.encode(remote.extra))
        count, end = next(plan)
        sent(adapter, copy.deepcopy(records[at : at + count]))
        saved = kept[-1] if kept else saved
        names = msgspec.json.encode(adapter.context.keys.names)
        if end == "die before the save":
            adapter.close()
            adapter = None
            continue
        at += count
        saved = msgspec.json.encode(remote.extra)
        if end == "die after it":
            adapter.close()
            adapter = None
    if adapter is not None:
        adapter.close()
    known = msgspec.json.decode(names)
    want = [
        (None if step is None else float(step), known[key], repr(float(value)))
        for step, data in logged
        for key, value in data.items()
    ]
    got = [(step, name, repr(value)) for step, name, value in in_file(folder)]
    assert sorted(got, key=str) == sorted(want, key=str)
    assert not list(folder.glob("*before*"))
    assert not list(folder.glob(".*"))


def test_lost_state_of_delivery_doubles_nothing(tmp_path: Path, told: Callable[[], str]) -> None:
    """A run whose cursors are lost is written again from its journal; the earlier file is renamed, and that is told."""
    logger = CSVLogger(tmp_path)
    for step in range(300):
        logger.log_metrics({"loss": step * 0.5}, step)
    logger.finalize("success")
    logger.close()
    folder = Path(logger.log_dir)
    before = (folder / METRICS).read_bytes()
    (folder / "journal" / "csv.state.json").unlink()
    deliver(folder)
    assert numbers(folder) == [(step, {"loss": step * 0.5}) for step in range(300)]
    assert (folder / "metrics.before-1.csv").read_bytes() == before
    assert "renamed to metrics.before-1.csv" in told()


KILLED = """
import os, sys
from lightning_loggers import {name}
logger = {name}({save_dir!r}, finalize_timeout_s=0)
logger.log_hyperparams({{"lr": 0.5}})
for step in range(100_000):
    logger.log_metrics({{"loss": step * 0.5, f"k{{step // 5000}}": float(step)}}, step)
    os.write(1, b"%d\\n" % step)
"""


def kill(save_dir: Path, name: str, after: int) -> int:
    """Start a process that logs, SIGKILL it after that many steps; how many log calls had returned."""
    job = subprocess.Popen(
        [sys.executable, "-c", KILLED.format(name=name, save_dir=str(save_dir))], stdout=subprocess.PIPE
    )
    assert job.stdout is not None
    seen = b""
    while seen.count(b"\n") < after:
        seen += os.read(job.stdout.fileno(), 2**16)
    job.kill()
    while rest := os.read(job.stdout.fileno(), 2**16):
        seen += rest
    job.stdout.close()
    assert job.wait() == -signal.SIGKILL
    return seen.count(b"\n")


def test_killed_trainer(tmp_path: Path) -> None:
    """What a SIGKILLed process had logged is all in the file, once, when the next host has been; the run has failed."""
    count = kill(tmp_path, "CSVLogger", 20_000)
    (run_dir,) = find_runs(tmp_path)
    assert run_dir == tmp_path / "lightning_logs" / "version_0"
    worker = deliver(run_dir)
    assert worker.state is not None
    assert worker.state.status == "failed"
    found = numbers(run_dir)
    assert len(found) >= count
    assert found == [(step, {"loss": step * 0.5, f"k{step // 5000}": float(step)}) for step in range(len(found))]


@pytest.mark.parametrize("name", ["lightning_logs", "", "team/digits"])
@pytest.mark.parametrize("shared", [False, True])
def test_leftovers_are_completed_by_the_next_logger(tmp_path: Path, name: str, *, shared: bool) -> None:
    """A run that was left unfinished is completed in the background by the next logger, however deep it lies."""
    if shared:  # its journal lies one folder deeper, beside another tracker's
        other = TensorBoardLogger(tmp_path, name, version=0, delivery="offline")
        other.log_metrics({"loss": 0.5}, 0)
        other.close()
    first = CSVLogger(tmp_path, name, version=0, delivery="offline")
    for step in range(100):
        first.log_metrics({"loss": step * 0.5}, step)
    first.close()
    assert not (Path(first.log_dir) / METRICS).exists()
    second = CSVLogger(tmp_path, name)
    assert second.version == 1
    second.log_metrics({"loss": 1.0}, 0)
    target = Path(first.log_dir) / METRICS
    wait_until(lambda: target.exists() and len(rows(first.log_dir)) == 100, 60, "the leftover's file")
    second.close()
    assert numbers(second.log_dir) == [(0, {"loss": 1.0})]


def test_delivery_by_a_process_of_its_own(tmp_path: Path) -> None:
    """With delivery="process" the file is the same."""
    logger = CSVLogger(tmp_path, delivery="process")
    for step in range(200):
        logger.log_metrics({"loss": step * 0.5}, step)
    logger.finalize("success")
    logger.close()
    assert numbers(logger.log_dir) == [(step, {"loss": step * 0.5}) for step in range(200)]
    host = logger._host
    wait_until(lambda: host is not None and not host.working(), 60, "the delivery process's end")


# ---------------------------------------------------------------------- a disk that refuses


def test_full_disk(tmp_path: Path, told: Callable[[], str]) -> None:
    """While the disk refuses, the file keeps its acknowledged rows; when it accepts again all rows are there, once."""
    logger = CSVLogger(tmp_path, delivery="offline")
    for step in range(20_000):
        logger.log_metrics({"loss": step * 0.5, f"k{step // 2000}": 123456.78125}, step)
    logger.close()
    worker = Worker(Path(logger.log_dir))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failed = 0
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
        for _ in range(12):
            failed += worker.step().kind is StepKind.FAILED
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed > 1
    found = numbers(logger.log_dir)
    assert 0 < len(found) < 20_000
    expected = [(step, {"loss": step * 0.5, f"k{step // 2000}": 123456.78125}) for step in range(20_000)]
    assert found == expected[: len(found)]
    assert told().count("does not take records now") == 1
    worker.close()
    deliver(logger.log_dir)
    assert numbers(logger.log_dir) == expected


def test_a_file_that_cannot_be_opened(tmp_path: Path, told: Callable[[], str]) -> None:
    """Where something else has the file's name, training goes on, it is told, and all rows come when it has gone."""
    logger = CSVLogger(tmp_path, version=0, finalize_timeout_s=0.2)
    in_the_way = tmp_path / "lightning_logs" / "version_0" / METRICS
    in_the_way.mkdir(parents=True)
    for step in range(50):
        logger.log_metrics({"loss": step * 0.5}, step)
    wait_until(lambda: logger.stats.retried, 30, "the first attempt")
    logger.finalize("success")
    logger.close()
    host = logger._host
    wait_until(lambda: host is not None and not host.working(), 60, "the delivery thread's end")
    assert "Is a directory" in told()
    assert logger.stats.rejected == 0
    in_the_way.rmdir()
    deliver(logger.log_dir)
    assert numbers(logger.log_dir) == [(step, {"loss": step * 0.5}) for step in range(50)]


def test_faults_are_told_apart(tmp_path: Path) -> None:
    """A refusing disk is tried again, a symbolic link in the way waits for a person, a lost file is set apart."""
    adapter = CSVAdapter(context(tmp_path))
    kinds = {
        FaultKind.TRANSIENT: [OSError(28, "No space left"), PermissionError(13, "Not permitted"), OSError(5, "I/O")],
        FaultKind.AUTHENTICATION: [OSError(40, "Too many levels of symbolic links", "metrics.csv")],
        FaultKind.REJECTED: [ValueError("no"), OSError(36, "File name too long"), NotADirectoryError(20, "no")],
        FaultKind.BUG: [TypeError("no")],
    }  # fmt: skip
    for kind, errors in kinds.items():
        assert {adapter.classify(error).kind for error in errors} == {kind}
    lost = Record(1, Kind.ARTIFACT.value, id="x", blobs=[adapter.context.blobs.put_bytes(b"x", "x.txt")])
    assert lost.blobs
    adapter.context.blobs.locate(lost.blobs[0]).unlink()
    outcome = adapter.write([lost])
    assert isinstance(outcome, Fault)
    assert outcome.kind is FaultKind.REJECTED


def test_no_symbolic_link_is_followed(tmp_path: Path) -> None:
    """A run's folder from a stranger leads nobody's pen elsewhere: no file outside of it is made or changed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("untouched")
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("metrics.csv", "hparams.yaml"):
        (folder / name).symlink_to(outside / "precious")
    (folder / "artifacts").symlink_to(outside)
    (folder / "media").symlink_to(outside)
    adapter = CSVAdapter(context(folder))
    blob = adapter.context.blobs.put_bytes(b"x", "x.txt")
    assert isinstance(adapter.open_run(), Fault)
    for record in (
        metric(0, {"a": 1.0}),
        Record(1, Kind.PARAM.value, data={"a": 1}),
        Record(1, Kind.TEXT.value, id="t", value="x"),
        Record(1, Kind.ARTIFACT.value, id="x", blobs=[blob]),
        Record(1, Kind.ARTIFACT.value, id="../../x", blobs=[blob]),
    ):
        adapter.write([record])
    assert {path.name for path in outside.rglob("*")} == {"precious"}
    assert (outside / "precious").read_text() == "untouched"


@pytest.mark.parametrize("how", ["deleted", "emptied", "edited", "replaced"])
def test_a_file_that_somebody_changed(tmp_path: Path, told: Callable[[], str], how: str) -> None:
    """A file that is deleted or changed under a live run costs no later row, and no change is undone; it is told."""
    adapter = CSVAdapter(context(tmp_path))
    adapter.open_run()
    sent(adapter, [metric(step, {"loss": 1.0}) for step in range(10)])
    path = tmp_path / METRICS
    if how == "deleted":
        path.unlink()
    elif how == "emptied":
        adapter.close()
        path.write_bytes(b"")
        adapter = CSVAdapter(context(tmp_path, adapter.context.remote.extra))
        adapter.open_run()
    elif how == "edited":
        adapter.close()
        path.write_text("mine\n")
        adapter = CSVAdapter(context(tmp_path, adapter.context.remote.extra))
        adapter.open_run()
    else:
        (tmp_path / "new").write_text("mine\n")
        (tmp_path / "new").replace(path)
    sent(adapter, [metric(step, {"loss": 2.0}) for step in range(10, 20)])
    sent(adapter, [metric(20, {"loss": 3.0})])
    adapter.close()
    assert [step for step, _ in numbers(tmp_path)] == list(range(10, 21))
    aside = tmp_path / "metrics.before-1.csv"
    if how == "deleted":
        assert not aside.exists()
        assert "was deleted" in told()
    else:
        assert aside.read_text() == ("" if how == "emptied" else "mine\n")
        assert "metrics.before-1.csv" in told()


# ---------------------------------------------------------------------- resuming


def test_resume_appends_and_deletes_nothing(tmp_path: Path) -> None:
    """A second session of a version goes on in the same file, also in the row that the first one ended in."""
    first = CSVLogger(tmp_path, version=0)
    for step in range(20):
        first.log_metrics({"loss": float(step)}, step)
    first.log_hyperparams({"lr": 0.1, "model": {"width": 8}})
    first.finalize("failed")
    first.close()
    second = CSVLogger(tmp_path, version=0)
    second.log_metrics({"val": 0.5}, 19)
    second.log_metrics({"loss": 20.0}, 20)
    second.log_hyperparams({"model": {"depth": 2}})
    second.finalize("success")
    assert second.log_dir == first.log_dir
    expected: list[Any] = [(step, {"loss": float(step)}) for step in range(21)]
    expected[19][1]["val"] = 0.5
    assert numbers(second.log_dir) == expected
    assert yaml.safe_load((Path(second.log_dir) / "hparams.yaml").read_text()) == {
        "lr": 0.1,
        "model": {"width": 8, "depth": 2},
    }


def test_a_run_of_lightnings_own_logger_is_continued(tmp_path: Path) -> None:
    """Rows and hyperparameters that Lightning's logger wrote stay, and new rows follow in the same file."""
    theirs = TheirCSVLogger(tmp_path)
    theirs.log_hyperparams({"sizes": (1, 2)})
    for step in range(5):
        theirs.log_metrics({"loss": step * 0.5, "text": "a, b"}, step)
    theirs.log_metrics({"val": 1.0}, 5)
    theirs.save()
    theirs.experiment.log_hparams({})
    hparams = Path(theirs.log_dir) / "hparams.yaml"
    hparams.write_text("sizes: !!python/tuple\n- 1\n- 2\n")
    ours = CSVLogger(tmp_path, version=0)
    ours.log_metrics({"loss": 3.0}, 6)
    ours.log_metrics({"val": 0.5, "new": 9.0}, 6)
    ours.log_hyperparams({"lr": 0.1})
    ours.finalize("success")
    found = rows(ours.log_dir)
    assert found[:5] == [{"step": str(step), "loss": repr(step * 0.5), "text": "a, b"} for step in range(5)]
    assert found[5:] == [{"step": "5", "val": "1.0"}, {"step": "6", "loss": "3.0", "val": "0.5", "new": "9.0"}]
    assert list(pandas.read_csv(Path(ours.log_dir) / METRICS)["step"]) == [0, 1, 2, 3, 4, 5, 6]
    assert (Path(ours.log_dir) / "hparams.before-1.yaml").read_text() == "sizes: !!python/tuple\n- 1\n- 2\n"
    assert yaml.safe_load(hparams.read_text()) == {"lr": 0.1}


@pytest.mark.parametrize(
    "content", ["", "a,b\n1,2\n", "step,a\n", "step,a,a\n1,2,3\n", "step,a\n1,2,3\n", "step\n\xff\n"]
)
def test_a_file_of_another_kind_is_renamed(tmp_path: Path, content: str) -> None:
    """A metrics.csv that is no table of steps is kept as it is, under another name."""
    path = tmp_path / METRICS
    path.write_bytes(content.encode("latin-1"))
    adapter = CSVAdapter(context(tmp_path))
    assert adapter.open_run() == Delivered()
    sent(adapter, [metric(0, {"loss": 1.0})])
    adapter.close()
    assert numbers(tmp_path) == [(0, {"loss": 1.0})]
    assert (tmp_path / "metrics.before-1.csv").read_bytes() == content.encode("latin-1")


def test_requeued_job_goes_on_with_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A SLURM job that is preempted and requeued continues the version that it left open, and others do not."""
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr("lightning_loggers.loggers.identity._made", {})
    first = CSVLogger(tmp_path)
    first.log_metrics({"loss": 1.0}, 0)
    first.finalize("finished")
    first.close()
    other = CSVLogger(tmp_path, version="other")
    other.log_metrics({"loss": 1.0}, 0)
    monkeypatch.setattr("lightning_loggers.loggers.identity._made", {})  # as in a process of its own
    second = CSVLogger(tmp_path)
    assert second.version == 0
    second.log_metrics({"loss": 2.0}, 1)
    third = CSVLogger(tmp_path)
    assert third.version == 1
    second.finalize("success")
    assert numbers(second.log_dir) == [(0, {"loss": 1.0}), (1, {"loss": 2.0})]


# ---------------------------------------------------------------------- Lightning's names and folders

PLACES = [
    {}, {"name": None}, {"name": ""}, {"name": "exp"}, {"name": "csv/"}, {"name": "a/b"}, {"version": 7},
    {"version": "mine"}, {"version": ""}, {"name": None, "version": ""}, {"name": "exp", "version": "x/y"},
    {"name": "crowded"},
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_names_and_folders_are_lightnings(tmp_path: Path, place: dict[str, Any]) -> None:
    """name, version, save_dir, root_dir and log_dir are what Lightning's logger says, and the file lies in log_dir."""
    for folder in ("version_3", "version_11_old", "version_x", "other_20"):
        (tmp_path / "crowded" / folder).mkdir(parents=True)
    (tmp_path / "crowded" / "version_30").touch()
    theirs = TheirCSVLogger(tmp_path, **place)
    names = ("name", "version", "save_dir", "root_dir", "log_dir")
    expected = {name: getattr(theirs, name) for name in names}
    ours = CSVLogger(tmp_path, **place)
    assert {name: getattr(ours, name) for name in names} == expected
    assert type(ours.version) is type(expected["version"])
    ours.log_metrics({"loss": 1.0}, 0)
    ours.finalize("success")
    assert numbers(expected["log_dir"]) == [(0, {"loss": 1.0})]
    assert list(find_runs(tmp_path)) == [Path(expected["log_dir"])]


def test_the_constructor_is_lightnings_with_keyword_only_additions() -> None:
    """Names, order, kinds and defaults are those of Lightning's logger; what is added is keyword-only."""
    theirs = dict(inspect.signature(TheirCSVLogger).parameters)
    ours = dict(inspect.signature(CSVLogger).parameters)
    assert list(ours)[: len(theirs)] == list(theirs)
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


def test_numbers_are_taken_once(tmp_path: Path) -> None:
    """Loggers that look for a free number at the same moment get different ones."""
    barrier = threading.Barrier(8)
    found: list[Any] = []

    def take() -> None:
        logger = CSVLogger(tmp_path)
        barrier.wait(60)
        found.append(logger.version)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == list(range(8))


def test_threads_that_log_first_share_a_run(tmp_path: Path) -> None:
    """Several threads whose first log calls come at once begin one run, under Lightning's number for it."""
    for turn in range(5):
        logger = CSVLogger(tmp_path)
        barrier = threading.Barrier(8)

        def log(number: int, logger: CSVLogger = logger, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(60)
            logger.log_metrics({f"thread{number}": 1.0}, number)

        threads = [threading.Thread(target=log, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        logger.finalize("success")
        logger.close()
        assert logger.version == turn
        assert sorted(numbers(logger.log_dir)) == [(number, {f"thread{number}": 1.0}) for number in range(8)]


def test_constructing_makes_nothing(tmp_path: Path) -> None:
    """A logger that is only constructed leaves no trace on disk."""
    CSVLogger(tmp_path / "logs")
    TensorBoardLogger(tmp_path / "logs")
    assert not list(tmp_path.iterdir())


def test_a_copy_logs_to_the_same_run(tmp_path: Path) -> None:
    """A pickled or deep-copied logger has the version of the original."""
    logger = CSVLogger(tmp_path)
    for other in (pickle.loads(pickle.dumps(logger)), copy.deepcopy(logger)):
        assert other.version == logger.version == 0
        assert other.log_dir == logger.log_dir


def test_home_and_variables_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` in save_dir means the home folder, as where Lightning's logger writes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    logger = CSVLogger("~/logs")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    assert logger.save_dir == "~/logs"
    assert numbers(tmp_path / "logs" / "lightning_logs" / "version_0") == [(0, {"loss": 1.0})]


def test_a_remote_folder_is_refused(tmp_path: Path) -> None:
    """An address instead of a folder is refused at once, in words."""
    with pytest.raises(ConfigurationError, match=r"s3://bucket/logs.*local file system"):
        CSVLogger("s3://bucket/logs")


def test_two_loggers_in_one_folder(tmp_path: Path) -> None:
    """Loggers that share save_dir, name and version keep their files side by side; each has its own records only."""
    board = TensorBoardLogger(tmp_path, version=0)
    table = CSVLogger(tmp_path, version=0)
    again = CSVLogger(tmp_path, name="again", version=0)
    for step in range(30):
        board.log_metrics({"board": step * 0.5}, step)
        table.log_metrics({"table": step * 0.25}, step)
        again.log_metrics({"again": 1.0}, step)
    for logger in (board, table, again):
        logger.finalize("success")
        logger.close()
    assert table.log_dir == board.log_dir
    assert numbers(table.log_dir) == [(step, {"table": step * 0.25}) for step in range(30)]
    assert numbers(again.log_dir) == [(step, {"again": 1.0}) for step in range(30)]
    assert len(list(Path(board.log_dir).glob("*tfevents*"))) == 1
    assert len(list(find_runs(tmp_path))) == 3
    for run_dir in find_runs(tmp_path):  # what sync does changes nothing
        deliver(run_dir)
    assert len(rows(table.log_dir)) == 30
    resumed = CSVLogger(tmp_path, version=0)
    resumed.log_metrics({"table": 9.0}, 30)
    resumed.finalize("success")
    assert numbers(table.log_dir)[-1] == (30, {"table": 9.0})
    assert len(rows(table.log_dir)) == 31


# ---------------------------------------------------------------------- hyperparameters, texts, files


class Colour(Enum):
    """An enumeration among hyperparameters."""

    RED = 1


@dataclass
class Optimizer:
    """A dataclass among hyperparameters."""

    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)


def test_hyperparameters_are_kept_nested(tmp_path: Path) -> None:
    """hparams.yaml has hyperparameters in the shape and with the values that were given, and Lightning can load it."""
    from omegaconf import OmegaConf

    itself: dict[str, Any] = {"a": 1}
    itself["itself"] = itself
    long = "x" * 1_000_000
    logger = CSVLogger(tmp_path)
    logger.log_hyperparams(
        {
            "lr": 1e-3, "none": None, "flag": True, "nan": math.nan, "sizes": [4, 1], "opt": Optimizer(), "empty": {},
            "space": Namespace(depth=2), "colour": Colour.RED, "path": Path("a/b"), "f": max,
            "conf": OmegaConf.create({"x": [1]}), "tensor": torch.tensor(2.5), "a/b": 1, "a": {"b": 2}, 5: "five",
            "ü": "ü: #", "loop": itself,
        }
    )  # fmt: skip
    logger.log_hyperparams({"lr": 0.5, "long": long})
    logger.log_hyperparams()
    logger.finalize("success")
    path = Path(logger.log_dir) / "hparams.yaml"
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert math.isnan(found.pop("nan"))
    assert found == {
        "lr": 0.5, "none": None, "flag": True, "sizes": [4, 1], "opt": {"lr": 0.1, "betas": [0.9, 0.999]}, "empty": {},
        "space": {"depth": 2}, "colour": "Colour.RED", "path": "a/b", "f": "builtins.max", "conf": {"x": [1]},
        "tensor": 2.5, "a/b": 1, "a": {"b": 2}, "5": "five", "ü": "ü: #", "loop": {"a": 1, "itself": "<itself>"},
        "long": long,
    }  # fmt: skip
    assert dict(load_hparams_from_yaml(path))["sizes"] == [4, 1]


def test_hyperparameters_that_cannot_be_read_are_no_end(tmp_path: Path) -> None:
    """An object that raises when it is looked at costs the other hyperparameters nothing."""

    class Wicked(dict):  # type: ignore[type-arg]
        def items(self) -> Any:
            raise RuntimeError("no")

    logger = CSVLogger(tmp_path)
    logger.log_hyperparams({"lr": 0.1, "wicked": Wicked(a=1)})
    logger.finalize("success")
    found = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())
    assert found == {"lr": 0.1, "wicked/a": 1}


def test_texts_dicts_and_files(tmp_path: Path) -> None:
    """Texts, dictionaries, files, folders and checkpoints are there whole, once, and none overwrites another."""
    logger = CSVLogger(tmp_path / "logs", delivery="offline")
    long = "lang 🙂 " * 20_000
    for text in ("one", long):
        logger.log_text("notes/a", text, 3)
    logger.log_text("notes:a", "two", 3)
    logger.log_text("", "nameless")
    logger.log_dict("config", {"a": [1, None, "x"]}, 0)
    source = tmp_path / "weights.bin"
    source.write_bytes(b"1234")
    logger.log_artifact(source, "in/here")
    source.unlink()
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inner" / "file.txt").write_text("deep")
    logger.log_artifact(tmp_path / "folder")
    writer = logger._start()
    assert writer is not None
    (tmp_path / "last.ckpt").write_bytes(b"weights")
    blob = writer.blobs.link_file(tmp_path / "last.ckpt")
    logger._record(Kind.CHECKPOINT, id="last", blobs=[blob], meta={"aliases": ["best"], "metadata": {"score": 0.5}})
    writer.append(Record(1, "a kind of the future", id="x", value=1))
    logger.close()
    for _ in range(2):
        deliver(logger.log_dir)
        (Path(logger.log_dir) / "journal" / "csv.state.json").unlink()
    run = Path(logger.log_dir)
    assert sorted(path.read_text() for path in (run / "media" / "notes" / "a").iterdir()) == sorted(["one", long])
    media = [path for path in (run / "media").rglob("*") if path.is_file()]
    assert len(media) == 5
    assert {path.read_text() for path in media} >= {"two", "nameless"}
    (stored,) = (run / "media" / "config").iterdir()
    assert json.loads(stored.read_text()) == {"a": [1, None, "x"]}
    files = {
        str(path.relative_to(run / "artifacts")): path.read_bytes()
        for path in (run / "artifacts").rglob("*")
        if path.is_file()
    }
    assert files == {
        "in/here/weights.bin": b"1234", "folder/inner/file.txt": b"deep", "last/last.ckpt": b"weights",
        "last/metadata.yaml": b"score: 0.5\n", "last/aliases.txt": b"['best']",
    }  # fmt: skip


# ---------------------------------------------------------------------- with a Trainer


def test_fit_validate_and_test(tmp_path: Path) -> None:
    """A real fit and test leave in metrics.csv what they logged, and checkpoints where Lightning's logger has them."""
    logger = CSVLogger(tmp_path)
    runner = trainer(logger, enable_checkpointing=True, callbacks=[ModelCheckpoint()])
    model = Regression()
    runner.fit(model, loader(), loader(2))
    assert sorted(in_file(logger.log_dir)) == sorted(journaled(logger.log_dir))
    fitted = len(in_file(logger.log_dir))
    runner.test(model, loader(2))
    found = in_file(logger.log_dir)
    assert sorted(found) == sorted(journaled(logger.log_dir))
    assert len(found) > fitted
    assert {key for _, key, _ in found} == {"train/loss", "val/loss", "test/loss", "epoch"}
    steps = [step for step, _ in numbers(logger.log_dir)]
    assert len(steps) <= 20 + 2 + 1
    assert (tmp_path / "lightning_logs" / "version_0" / "checkpoints").is_dir()
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {"lr": 0.01, "sizes": [4, 1]}
    assert logger.stats.pending == 0


def test_the_same_numbers_as_lightnings_logger(tmp_path: Path) -> None:
    """What Lightning's own logger has in its file after a fit is in ours, at the same steps under the same names."""
    ours, theirs = CSVLogger(tmp_path / "ours"), TheirCSVLogger(tmp_path / "theirs")
    torch.manual_seed(0)
    trainer([ours, theirs]).fit(Regression(), loader(), loader(2))

    def triples(found: Iterable[dict[str, str]]) -> list[Any]:
        return sorted((row["step"], key, float(row[key])) for row in found for key in row if key != "step")

    assert triples(rows(ours.log_dir)) == triples(rows(theirs.log_dir))


def test_an_adapter_that_was_closed_or_never_opened_overwrites_nothing(tmp_path: Path) -> None:
    """Sending after close adds rows to the file; sending before open renames a file that was there."""
    adapter = CSVAdapter(context(tmp_path))
    adapter.open_run()
    sent(adapter, [metric(0, {"loss": 0.0})])
    adapter.close()
    sent(adapter, [metric(1, {"loss": 1.0})])
    adapter.close()
    assert numbers(tmp_path) == [(0, {"loss": 0.0}), (1, {"loss": 1.0})]
    other = CSVAdapter(context(tmp_path))
    sent(other, [metric(2, {"loss": 2.0})])
    other.close()
    assert numbers(tmp_path) == [(2, {"loss": 2.0})]
    assert (tmp_path / "metrics.before-1.csv").exists()


def test_closing_twice_and_logging_afterwards(tmp_path: Path) -> None:
    """Finalize and close may be called again, and what is logged after them is added."""
    logger = CSVLogger(tmp_path)
    logger.finalize("success")
    logger.close()
    for step in range(3):
        logger.log_metrics({"loss": 1.0}, step)
        logger.finalize("success")
        logger.finalize("success")
        logger.close()
        logger.close()
    assert numbers(logger.log_dir) == [(step, {"loss": 1.0}) for step in range(3)]


def test_experiment(tmp_path: Path) -> None:
    """The experiment object has Lightning's methods; what goes through it is in the same files."""
    logger = CSVLogger(tmp_path, prefix="p")
    assert isinstance(logger.experiment, ExperimentWriter)
    logger.experiment.log_metrics({"loss": 0.5}, 3)
    logger.experiment.log_hparams({"lr": 0.1})
    logger.experiment.save()
    logger.finalize("success")
    assert logger.experiment.log_dir == logger.log_dir
    with open(logger.experiment.metrics_file_path) as file:
        assert next(csv.DictReader(file))["loss"] == "0.5"
    assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == {"lr": 0.1}


def test_loading_the_adapter_is_light() -> None:
    """The adapters' modules load neither torch, Lightning, TensorBoard, YAML nor pandas."""
    code = (
        "import sys, lightning_loggers.adapters.csv, lightning_loggers.adapters.tensorboard;"
        "print(sorted({'torch', 'lightning', 'tensorboard', 'yaml', 'pandas', 'google'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
