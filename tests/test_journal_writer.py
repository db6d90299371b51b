"""The appending half of a journal: what a log call returned for is there, whatever happens next."""

import contextlib
import json
import math
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas
import pytest
import torch
from conftest import wait_until
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_loggers.errors import JournalFormatError
from lightning_loggers.journal import keeper, read
from lightning_loggers.journal.blobs import BlobStore, safe_name
from lightning_loggers.journal.layout import list_segments, lock_path, segment_path
from lightning_loggers.journal.lock import FileLock, is_locked
from lightning_loggers.journal.reader import Damage, Position, StreamReader, read_first_header
from lightning_loggers.journal.writer import BUFFER_BYTES, JournalWriter
from lightning_loggers.records import (
    FORMAT_VERSION,
    MAX_LINE_BYTES,
    Blob,
    Header,
    Kind,
    PlainMetrics,
    Record,
    RunSpec,
    decode_line,
    encode_line,
)
from lightning_loggers.values.metrics import normalise

PREAMBLE = """
import os, signal, sys, threading, time
from pathlib import Path
from lightning_loggers.journal import read
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.records import Record, RunSpec
from lightning_loggers.values.metrics import normalise

def open_writer(folder, **options):
    run = RunSpec("0" * 32, "name", "version", "mlflow")
    return JournalWriter(Path(folder), run, normalise_metrics=lambda m: normalise(m, lambda c, t: None), **options)
"""


def open_writer(folder: Path, uid: str = "0" * 32, **options: Any) -> JournalWriter:
    """A writer as the loggers make it."""
    run = RunSpec(uid, "name", "version", "mlflow")
    return JournalWriter(folder, run, normalise_metrics=lambda m: normalise(m, lambda cause, text: None), **options)


def start_script(script: str, *arguments: Any) -> "subprocess.Popen[str]":
    """A process of its own that runs ``script`` after the preamble."""
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run_script(script: str, *arguments: Any, timeout_s: float = 60) -> str:
    """What such a process prints; fails with its errors."""
    process = start_script(script, *arguments)
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, err
    return out


def all_of(folder: Path) -> tuple[list[Record], list[Damage]]:
    """Every record, and every damage."""
    damage: list[Damage] = []
    return list(read(folder, on_damage=damage.append)), damage


def steps_of(folder: Path) -> list[Any]:
    """The step of every record of an undamaged journal."""
    records, damage = all_of(folder)
    assert damage == []
    return [record.step for record in records]


def lines_of(folder: Path, stream: str = "rank0", segment: int = 0) -> list[dict[str, Any]]:
    """The lines of a segment by a JSON library that knows nothing of us."""
    return [json.loads(line) for line in segment_path(folder, stream, segment).read_text().splitlines()]


# -------------------------------------------------------------------- what is written


def test_a_journal_is_json_lines_with_the_header_first(tmp_path: Path) -> None:
    """Nothing is made before the first record; then the file is JSON Lines with the run's header before it."""
    folder = tmp_path / "run" / "journal"
    writer = open_writer(folder, rank=3, environment=lambda: {"host": "here"})
    assert not folder.exists()
    writer.append_metrics({"loss": 0.5, "n": 2}, 7)
    writer.append(Record(5, Kind.TEXT.value, id="note", value='say "hi"\n'))
    writer.close()
    header, metric, text = lines_of(folder, "rank3")
    assert header["lightning_loggers_journal"] == FORMAT_VERSION
    assert header["run"] == {"uid": "0" * 32, "name": "name", "version": "version", "tracker": "mlflow"}
    assert (header["rank"], header["environment"]) == (3, {"host": "here"})
    assert (metric["kind"], metric["step"], metric["data"]) == ("metric", 7, {"loss": 0.5, "n": 2})
    assert abs(metric["time_ns"] - time.time_ns()) < 60e9
    assert (text["kind"], text["id"], text["value"]) == ("text", "note", 'say "hi"\n')


def test_pandas_reads_a_journal_as_it_stands(tmp_path: Path) -> None:
    """``pandas.read_json(lines=True)`` gives the metrics with no help of ours."""
    writer = open_writer(tmp_path)
    for step in range(3):
        writer.append_metrics({"loss": step / 2}, step)
    writer.close()
    frame = pandas.read_json(segment_path(tmp_path, "rank0", 0), lines=True)
    assert [row["loss"] for row in frame[frame.kind == "metric"]["data"]] == [0.0, 0.5, 1.0]


def test_one_write_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log call is one system call: one ``os.write`` of one whole line."""
    writer = open_writer(tmp_path)
    writer.append_metrics({"loss": 0.5}, 0)
    written: list[bytes] = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, line: (written.append(line), write(fd, line))[1])
    for step in range(100):
        writer.append_metrics({"loss": 0.5, "nan": math.nan}, step)
    writer.append(Record(0, Kind.TEXT.value, id="a", value="b"))
    monkeypatch.undo()
    assert len(written) == 101
    assert all(line.count(b"\n") == 1 and line.endswith(b"}\n") for line in written)


def test_a_returned_call_is_in_the_file(tmp_path: Path) -> None:
    """When a call has returned its line is in the file, where any other process sees it."""
    writer = open_writer(tmp_path)
    for step in range(20):
        writer.append_metrics({"loss": 0.5}, step)
        assert steps_of(tmp_path) == list(range(step + 1))
    assert writer.position == Position(0, segment_path(tmp_path, "rank0", 0).stat().st_size)


KEYS = st.one_of(st.text(max_size=20), st.sampled_from(["time_ns", "crc", '{"time_ns":', "lightning_loggers_journal"]))


@settings(max_examples=300, deadline=None)
@example([{"": 2**63 + 1, "0": -2}], None)
@given(
    st.lists(st.dictionaries(KEYS, st.one_of(st.floats(), st.integers(), st.booleans()), min_size=1), max_size=5),
    st.one_of(st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_numbers_survive_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, calls: list[dict[str, Any]], step: float | None
) -> None:
    """Every float (NaN, infinities and -0.0 too) comes back bit by bit, ints exact in 64 bits and nearest beyond."""
    folder = tmp_path_factory.mktemp("journal")
    writer = open_writer(folder)
    for metrics in calls:
        writer.append_metrics(metrics, step)
    writer.close()
    records = list(read(folder)) if calls else []
    assert len(records) == len(calls)
    assert writer.recorded == len(calls)
    for record, metrics in zip(records, calls, strict=True):
        assert record.data is not None
        assert list(record.data) == list(metrics)
        for key, value in metrics.items():
            back = record.data[key]
            if isinstance(value, float):
                assert struct.pack("d", back) == struct.pack("d", value) or (math.isnan(back) and math.isnan(value))
            elif -(2**63) <= value < 2**63:
                assert (type(back), back) == (type(value), value)
            else:
                assert back == float(value)
        assert record.step == step or (step is not None and abs(step) >= 2**63 and record.step == float(step))


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        (None, None), (0, 0), (-5, -5), (1.5, 1.5), (2.0, 2.0), (True, 1), (False, 0), (np.int64(3), 3),
        (np.float32(0.5), 0.5), (np.array(4), 4), (torch.tensor(5), 5), (torch.tensor([6]), 6), ("7", 7), ("7.5", 7.5),
        (2**70, 2.0**70), (math.nan, None), (math.inf, None), ("later", None), (object(), None),
        (torch.ones(2), None), ([1], None), ({}, None),
    ],
)  # fmt: skip
def test_any_step_keeps_the_record(tmp_path: Path, step: Any, kept: float | None) -> None:
    """A step of any numeric type is kept as its number (0 is a step); one that is none costs the step only."""
    writer = open_writer(tmp_path)
    writer.append_metrics({"loss": 0.5}, step)
    writer.append(Record(0, Kind.TEXT.value, step, id="a", value="b"))
    writer.close()
    records, damage = all_of(tmp_path)
    assert [record.step for record in records] == [kept, kept]
    assert all(type(record.step) is not bool for record in records)
    assert damage == []
    assert writer.dropped == {}


def test_clock_and_step_may_go_back(tmp_path: Path) -> None:
    """Records keep the order of their calls when the clock or the step goes back."""
    writer = open_writer(tmp_path)
    for number, (time_ns, step) in enumerate([(100, 5), (50, 4), (10, 5), (200, 0)]):
        writer.append(Record(time_ns, Kind.METRIC.value, step, {"n": number}))
    writer.close()
    records = list(read(tmp_path))
    assert [(r.time_ns, r.step, r.data) for r in records] == [
        (100, 5, {"n": 0}), (50, 4, {"n": 1}), (10, 5, {"n": 2}), (200, 0, {"n": 3}),
    ]  # fmt: skip


def test_odd_metrics_are_kept(tmp_path: Path) -> None:
    """Nested, foreign and textual values of one call are all found in the journal, with its time and step."""
    writer = open_writer(tmp_path)
    writer.append_metrics({"a": {"b": torch.tensor(1.5)}, "s": "text", "l": np.arange(2), 5: "6", "c": 1}, 3)
    writer.append_metrics("no mapping", 4)  # type: ignore[arg-type]
    writer.close()
    metric, text, listed = list(read(tmp_path))
    assert metric.data == {"a/b": 1.5, "5": 6.0, "c": 1}
    assert (text.id, text.value, listed.id, listed.value) == ("s", "text", "l", [0, 1])
    assert {(r.step, r.time_ns) for r in (metric, text, listed)} == {(3, metric.time_ns)}
    assert writer.dropped == {"unreadable metrics": 1}


def test_text_that_utf8_cannot_say_is_kept_escaped(tmp_path: Path) -> None:
    """Lone surrogates, as in file names of unknown encoding, are written as escapes anywhere in a record."""
    writer = open_writer(tmp_path, environment=lambda: {"argv": ["\udcff"]})
    writer.append_metrics({"k\udcff": 1.0})
    writer.append(Record(1, Kind.DICT.value, id="\udcff", value={"a": ["\udcff"]}, meta={"b": ("\udcff",)}))
    writer.append(Record(1, Kind.ARTIFACT.value, blobs=[Blob("a", "\udcff", 1)]))
    writer.close()
    metric, value, artifact = list(read(tmp_path))
    assert metric.data == {"k\\udcff": 1.0}
    assert (value.id, value.value, value.meta) == ("\\udcff", {"a": ["\\udcff"]}, {"b": ["\\udcff"]})
    assert artifact.blobs is not None
    assert artifact.blobs[0].name == "\\udcff"


def test_an_append_never_raises(tmp_path: Path) -> None:
    """What cannot be encoded is counted by reason; an environment or option that cannot be told costs no record."""

    def environment() -> dict[str, Any]:
        raise RuntimeError("no host name")

    run = RunSpec("1" * 32, "name", "version", "mlflow", {"odd": object()})
    writer = JournalWriter(
        tmp_path, run, environment=environment, normalise_metrics=lambda m: normalise(m, lambda c, t: None)
    )
    writer.append(Record(1, Kind.DICT.value, id="a", value={"x": object()}))
    writer.append(Record(1, Kind.DICT.value, id="a", value={("tuple",): 1}))
    writer.append_metrics({"loss": 1.0}, 1)
    writer.close()
    assert steps_of(tmp_path) == [1]
    assert writer.dropped == {"unencodable": 2}


def test_a_rank_that_is_not_known_yet_keeps_the_records(tmp_path: Path) -> None:
    """While the rank cannot be told the records wait in memory, and are written when it can."""
    ranks = iter([RuntimeError("not yet"), 2])

    def rank() -> int:
        answer = next(ranks)
        if isinstance(answer, Exception):
            raise answer
        return answer

    writer = open_writer(tmp_path, rank=rank)
    writer.append_metrics({"loss": 1.0}, 1)
    assert writer.pending_in_memory == 1
    assert writer.flush()
    writer.close()
    assert list(list_segments(tmp_path)) == ["rank2"]
    assert steps_of(tmp_path) == [1]


# -------------------------------------------------------------------- large records


def test_a_line_too_long_is_written_as_several(tmp_path: Path) -> None:
    """Metrics and folders of more than a line holds become several records that together have everything."""
    writer = open_writer(tmp_path)
    metrics = {f"{'k' * 100}{number}": number for number in range(100_000)}
    blobs = [Blob(f"link-{number:x}", "n" * 150, number) for number in range(40_000)]
    writer.append_metrics(metrics, 3)
    writer.append(Record(1, Kind.ARTIFACT.value, id="folder", blobs=blobs))
    writer.close()
    records, damage = all_of(tmp_path)
    assert damage == []
    back = [item for r in records for item in (r.data or {}).items()]
    assert dict(back) == metrics
    assert len(back) == len(metrics)
    assert [blob for r in records for blob in r.blobs or []] == blobs
    assert all(len(line) < MAX_LINE_BYTES for line in segment_path(tmp_path, "rank0", 0).read_bytes().splitlines())
    assert writer.dropped == {}


def test_a_value_too_long_is_kept_as_a_file(tmp_path: Path) -> None:
    """A text, dict or parameter of more than a line holds goes whole into a blob that the record names."""
    long = "é" * MAX_LINE_BYTES
    writer = open_writer(tmp_path)
    writer.append(Record(1, Kind.TEXT.value, 4, id="a/b" * 10_000, value=long))
    writer.append(Record(1, Kind.PARAM.value, data={"prompt": long, "lr": 1}))
    writer.append(Record(1, Kind.TEXT.value, id="i" * MAX_LINE_BYTES, value="x"))
    writer.close()
    records = list(read(tmp_path))
    assert [(r.kind, r.data) for r in records] == [("text", None), ("text", None), ("param", {"lr": 1})]
    for record in records[:2]:
        assert record.blobs is not None
        assert json.loads(BlobStore(tmp_path / "blobs").locate(record.blobs[0]).read_text()) == long
    assert records[1].id == "prompt"
    assert writer.dropped == {"too long": 1}


# -------------------------------------------------------------------- blobs


def test_the_same_bytes_are_stored_once(tmp_path: Path) -> None:
    """Content is kept under its hash: a second call with the same bytes and name writes nothing."""
    store = BlobStore(tmp_path / "blobs")
    first = store.put_bytes(b"content", "a.txt")
    inode = store.locate(first).stat().st_ino
    assert store.put_bytes(b"content", "a.txt") == first
    assert store.locate(first).stat().st_ino == inode
    assert store.put_bytes(b"other", "a.txt") != first
    assert store.locate(first).read_bytes() == b"content"
    assert sum(path.is_file() for path in (tmp_path / "blobs").rglob("*")) == 2


def test_a_cut_blob_is_not_taken_for_whole(tmp_path: Path) -> None:
    """Content that a power failure cut is missing to a reader, and written anew by the next call with it."""
    store = BlobStore(tmp_path / "blobs")
    blob = store.put_bytes(b"content", "a.txt")
    os.truncate(store.locate(blob), 3)
    with pytest.raises(FileNotFoundError, match="3 of 7 bytes"):
        store.locate(blob)
    store.put_bytes(b"content", "a.txt")
    assert store.locate(blob).read_bytes() == b"content"


def test_a_linked_file_outlives_its_deletion(tmp_path: Path) -> None:
    """A checkpoint is linked without a copy, and is still there when the callback has deleted its own name."""
    source = tmp_path / "epoch=3.ckpt"
    source.write_bytes(b"weights")
    store = BlobStore(tmp_path / "blobs")
    blob = store.link_file(source)
    assert os.path.samefile(source, store.locate(blob))
    assert not store.changed(blob)
    source.unlink()
    assert store.locate(blob).read_bytes() == b"weights"
    assert blob.name == "epoch=3.ckpt"


def test_a_change_in_place_is_noticed(tmp_path: Path) -> None:
    """A linked file that is written to after it was logged is told as changed."""
    source = tmp_path / "log.txt"
    source.write_text("a")
    store = BlobStore(tmp_path / "blobs")
    blob = store.link_file(source)
    with source.open("a") as file:
        file.write("b")
    assert store.changed(blob)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs /dev/shm as a second file system")
def test_a_file_of_another_file_system_is_copied(tmp_path: Path) -> None:
    """Where a link cannot be made the file is copied, and a later change of the user's file is not one of the copy."""
    source = Path("/dev/shm") / f"lightning-loggers-{os.getpid()}.bin"
    if source.parent.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("/dev/shm is the file system of the test's own folder")
    try:
        source.write_bytes(b"weights")
        store = BlobStore(tmp_path / "blobs")
        blob = store.link_file(source)
        source.write_bytes(b"changed!")
        assert store.locate(blob).read_bytes() == b"weights"
        assert not store.changed(blob)
    finally:
        source.unlink()


def test_a_folder_is_kept_with_its_places(tmp_path: Path) -> None:
    """Every file below a folder is linked with its path in it; a symbolic link keeps its own name."""
    source = tmp_path / "artifact"
    (source / "sub" / "deep").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "sub" / "deep" / "b.txt").write_text("b")
    (source / "last.txt").symlink_to("a.txt")
    (source / "gone").symlink_to("nowhere")
    store = BlobStore(tmp_path / "blobs")
    blobs = list(store.link_tree(source))
    assert {(blob.path, blob.name, store.locate(blob).read_text()) for blob in blobs} == {
        ("a.txt", "a.txt", "a"), ("sub/deep/b.txt", "b.txt", "b"), ("last.txt", "last.txt", "a"),
    }  # fmt: skip


def test_a_file_name_of_unknown_encoding_is_kept(tmp_path: Path) -> None:
    """A file whose name is no UTF-8 is linked, recorded and found again."""
    source = tmp_path / os.fsdecode(b"caf\xe9.txt")
    source.write_text("a")
    writer = open_writer(tmp_path / "journal")
    writer.append(Record(1, Kind.ARTIFACT.value, blobs=[writer.blobs.link_file(source, path=source.name)]))
    writer.close()
    [record] = read(tmp_path / "journal")
    assert record.blobs is not None
    assert writer.blobs.locate(record.blobs[0]).read_text() == "a"


def test_a_folder_or_device_is_no_file(tmp_path: Path) -> None:
    """What is no regular file is refused with its name instead of being read for ever."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match=str(path)):
            BlobStore(tmp_path / "blobs").link_file(path)


@settings(max_examples=300)
@given(st.one_of(st.text(), st.text().map(lambda text: text * 50), st.characters(categories=["Cs"])))
def test_a_safe_name_is_one_component_and_stays(name: str) -> None:
    """Any name becomes one short component of a path, and a safe one is left as it is."""
    safe = safe_name(name)
    assert 0 < len(safe.encode()) <= 200
    assert safe not in {".", ".."}
    assert "/" not in safe
    assert "\\" not in safe
    assert "\0" not in safe
    assert safe_name(safe) == safe


def test_a_very_long_name_is_cut_at_once_and_keeps_its_suffix() -> None:
    """A name of megabytes is cut without going over it letter by letter."""
    assert safe_name("é" * 5_000_000 + ".json").endswith("é.json")


# -------------------------------------------------------------------- one writer a stream


def test_a_second_writer_has_a_stream_of_its_own(tmp_path: Path) -> None:
    """Two live writers of one rank never share a file, and both belong to the same run."""
    first, second = open_writer(tmp_path, "a" * 32), open_writer(tmp_path, "b" * 32)
    first.append_metrics({"n": 1}, 1)
    second.append_metrics({"n": 2}, 2)
    first.append_metrics({"n": 3}, 3)
    assert first.stream == "rank0"
    assert second.stream != "rank0"
    assert second.run.uid == "a" * 32
    first.close()
    second.close()
    assert steps_of(tmp_path) == [1, 3, 2]
    third = open_writer(tmp_path, "c" * 32)
    third.append_metrics({"n": 4}, 4)
    third.close()
    assert third.stream == "rank0"


def test_a_killed_writer_frees_its_stream(tmp_path: Path) -> None:
    """The kernel releases the lock of a writer that was killed; the next one goes on with its stream."""
    script = start_script(
        """
        writer = open_writer(sys.argv[1])
        writer.append_metrics({"n": 1}, 1)
        print("ready", flush=True)
        time.sleep(60)
        """,
        tmp_path,
    )
    assert script.stdout is not None
    script.stdout.readline()
    assert is_locked(lock_path(tmp_path, "rank0"))
    script.kill()
    script.communicate()
    assert not is_locked(lock_path(tmp_path, "rank0"))
    writer = open_writer(tmp_path)
    writer.append_metrics({"n": 2}, 2)
    writer.close()
    assert writer.stream == "rank0"
    assert steps_of(tmp_path) == [1, 2]


def test_testing_a_lock_does_not_turn_a_writer_away(tmp_path: Path) -> None:
    """A writer that starts while others ask all the time whether its stream is locked still gets that stream."""
    path = lock_path(tmp_path, "rank0")
    path.touch()
    done = threading.Event()
    asking = threading.Thread(target=lambda: [is_locked(path) for _ in iter(done.is_set, True)])
    asking.start()
    try:
        for _ in range(20):
            writer = open_writer(tmp_path)
            writer.append_metrics({"n": 1}, 1)
            writer.close()
    finally:
        done.set()
        asking.join()
    assert list(list_segments(tmp_path)) == ["rank0"]


def test_a_lock_on_a_deleted_file_locks_nobody_out(tmp_path: Path) -> None:
    """Who takes the lock holds it on the file that others find, also when the folder was deleted and made again."""
    first, second = FileLock(tmp_path / "a.lock"), FileLock(tmp_path / "a.lock")
    assert first.acquire()
    assert not second.acquire()
    (tmp_path / "a.lock").unlink()
    assert not first.still_there()
    assert second.acquire()
    assert second.still_there()
    assert is_locked(tmp_path / "a.lock")
    second.release()
    assert not is_locked(tmp_path / "a.lock")


def test_a_forked_child_writes_to_a_stream_of_its_own(tmp_path: Path) -> None:
    """After fork the parent's file has each of its records once, the child's go elsewhere, and nobody hangs."""
    out = run_script(
        """
        writer = open_writer(sys.argv[1])
        stop = threading.Event()
        step = iter(range(10**9))
        def log():  # other threads hold the writer's lock and the notices' at the moment of the fork
            while not stop.is_set():
                writer.append_metrics({"parent": 1.0}, next(step))
                writer._notices.tell_once("again", "and again")
        threads = [threading.Thread(target=log) for _ in range(3)]
        for thread in threads:
            thread.start()
        children = []
        for number in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                assert writer.recorded == 0
                for count in range(5):
                    writer.append_metrics({"child": number}, count)
                writer._notices.tell_once("child", "speaks")
                assert writer.stream != "rank0", writer.stream
                os._exit(0)
            children.append(child)
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join()
        codes = [os.waitpid(child, 0)[1] for child in children]
        writer.close()
        assert codes == [0] * 20, codes
        print(writer.recorded)
        """,
        tmp_path,
    )
    records, damage = all_of(tmp_path)
    assert damage == []
    parent = [record for record in records if "parent" in (record.data or {})]
    assert sorted(record.step for record in parent) == list(range(int(out)))
    child = [(record.data["child"], record.step) for record in records if record.data and "child" in record.data]
    assert sorted(child) == [(number, count) for number in range(20) for count in range(5)]
    lines = lines_of(tmp_path)
    assert sum("child" in line.get("data", {}) for line in lines) == 0


def test_a_child_does_not_wait_for_a_thread_that_it_lacks(tmp_path: Path) -> None:
    """Locks that another thread of the parent held at the fork do not stop the child's appends and notices."""
    run_script(
        """
        writer = open_writer(sys.argv[1])
        writer.append_metrics({"n": 1}, 1)
        held = threading.Event()
        def hold():
            with writer._lock, writer._notices._lock:
                held.set()
                time.sleep(60)
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            writer._notices.tell_once("child", "speaks")
            writer.append_metrics({"n": 1}, 2)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
        tmp_path,
    )
    assert steps_of(tmp_path) == [1, 2]


def test_a_child_does_not_hold_its_dead_parents_lock(tmp_path: Path) -> None:
    """A worker process that outlives the trainer does not make it look alive."""
    script = start_script(
        """
        writer = open_writer(sys.argv[1])
        writer.append_metrics({"n": 1}, 1)
        child = os.fork()
        if child == 0:
            time.sleep(60)
        print(child, flush=True)
        time.sleep(60)
        """,
        tmp_path,
    )
    assert script.stdout is not None
    child = int(script.stdout.readline())
    try:
        assert is_locked(lock_path(tmp_path, "rank0"))
        script.kill()
        script.wait()
        wait_until(lambda: not is_locked(lock_path(tmp_path, "rank0")), 10, "the dead parent's lock being free")
    finally:
        os.kill(child, signal.SIGKILL)
        script.communicate()


def test_no_fork_in_any_instant_keeps_a_lock(tmp_path: Path) -> None:
    """Children forked while other threads take and test locks hold none of them, however long they live."""
    run_script(
        """
        from lightning_loggers.journal.lock import FileLock, is_locked
        paths = [Path(sys.argv[1]) / f"{n}.lock" for n in range(4)]
        stop = threading.Event()
        def take(path):
            while not stop.is_set():
                lock = FileLock(path)
                lock.acquire(wait_s=1)
                is_locked(path)
                lock.release()
        threads = [threading.Thread(target=take, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        children = []
        for _ in range(60):
            child = os.fork()
            if child == 0:
                time.sleep(60)
                os._exit(0)
            children.append(child)
        stop.set()
        for thread in threads:
            thread.join()
        try:
            # The last child may not have run at all yet.
            assert all(FileLock(path).acquire(wait_s=10) for path in paths)
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
        """,
        tmp_path,
    )


# -------------------------------------------------------------------- resuming and rolling


def test_a_torn_tail_is_mended_on_reopening(tmp_path: Path) -> None:
    """Records before and after a line that a crash tore are all read, and the torn piece is reported where it is."""
    writer = open_writer(tmp_path)
    for step in range(3):
        writer.append_metrics({"loss": 0.5}, step)
    writer.close()
    path = segment_path(tmp_path, "rank0", 0)
    lines = path.read_bytes().splitlines(keepends=True)
    os.truncate(path, path.stat().st_size - 10)
    again = open_writer(tmp_path)
    again.append_metrics({"loss": 0.5}, 3)
    again.close()
    records, damage = all_of(tmp_path)
    assert [record.step for record in records] == [0, 1, 3]
    assert [(d.offset, d.length) for d in damage] == [(sum(map(len, lines[:3])), len(lines[3]) - 10)]
    assert "offset" in str(damage[0])


def test_resuming_appends_a_header_of_the_same_run(tmp_path: Path) -> None:
    """Each session adds a header line with the uid of the first, and deletes nothing."""
    for session in range(3):
        writer = open_writer(tmp_path, str(session) * 32)
        writer.append_metrics({"n": session}, session)
        writer.append_metrics({"n": session}, session)
        writer.close()
        assert writer.run.uid == "0" * 32
    lines = lines_of(tmp_path)
    assert [line["run"]["uid"] for line in lines if "run" in line] == ["0" * 32] * 3
    assert steps_of(tmp_path) == [0, 0, 1, 1, 2, 2]


def test_a_closed_writer_opens_again(tmp_path: Path) -> None:
    """``fit`` then ``test``: an append after close goes on in the same stream."""
    writer = open_writer(tmp_path)
    for step in range(3):
        writer.append_metrics({"n": 1}, step)
        writer.close()
        assert not is_locked(lock_path(tmp_path, "rank0"))
    assert list(list_segments(tmp_path)) == ["rank0"]
    assert steps_of(tmp_path) == [0, 1, 2]


def test_segments_roll_at_a_size(tmp_path: Path) -> None:
    """A long run is several files of about the given size, each with its header, read as one stream."""
    calls = []
    writer = open_writer(tmp_path, segment_bytes=2000, environment=lambda: calls.append(1) or {"host": "here"})
    for step in range(200):
        writer.append_metrics({"loss": 0.5}, step)
    position = writer.position
    writer.close()
    segments = list_segments(tmp_path)["rank0"]
    assert segments == list(range(len(segments)))
    assert len(segments) > 5
    assert position == Position(segments[-1], segment_path(tmp_path, "rank0", segments[-1]).stat().st_size)
    for segment in segments:
        assert lines_of(tmp_path, segment=segment)[0]["environment"] == {"host": "here"}
        assert segment_path(tmp_path, "rank0", segment).stat().st_size < 2500
    assert steps_of(tmp_path) == list(range(200))
    assert len(calls) == 1


def test_a_reader_follows_a_writer_that_rolls(tmp_path: Path) -> None:
    """A reader that polls all the time sees every record once, in order, over all borders of segments."""
    writer = open_writer(tmp_path, segment_bytes=3000)
    seen: list[Any] = []
    done = threading.Event()

    def follow() -> None:
        reader, position = StreamReader(tmp_path, "rank0"), Position()
        while True:
            last = done.is_set()
            chunk = reader.read(position, 500)
            seen.extend(entry.line.step for entry in chunk.entries if isinstance(entry.line, Record))
            assert chunk.damage == []
            position = chunk.end
            if chunk.at_end and last:
                return

    thread = threading.Thread(target=follow)
    thread.start()
    for step in range(3000):
        writer.append_metrics({"loss": 0.5}, step)
    writer.close()
    done.set()
    thread.join()
    assert seen == list(range(3000))


def test_a_segment_that_cannot_be_begun_hides_no_record(tmp_path: Path) -> None:
    """While no next segment can be made the current one goes on, and a following reader sees every record."""
    writer = open_writer(tmp_path, segment_bytes=1000)
    in_the_way = tmp_path / ".rank0.1.jsonl.part"
    in_the_way.mkdir(parents=True)
    for step in range(100):
        writer.append_metrics({"loss": 0.5}, step)
    assert list_segments(tmp_path)["rank0"] == [0]
    reader = StreamReader(tmp_path, "rank0")
    chunk = reader.read(Position())
    in_the_way.rmdir()
    for step in range(100, 200):
        writer.append_metrics({"loss": 0.5}, step)
    writer.close()
    assert len(list_segments(tmp_path)["rank0"]) > 2
    seen = [entry.line for entry in chunk.entries]
    while not chunk.at_end:
        chunk = reader.read(chunk.end)
        seen += [entry.line for entry in chunk.entries]
    assert [line.step for line in seen if isinstance(line, Record)] == list(range(200))
    assert writer.dropped == {}


def test_a_newer_format_is_refused_with_the_cure_and_left_alone(tmp_path: Path) -> None:
    """``read`` names the upgrade that reads a newer journal; a writer goes to a stream of its own beside it."""
    header = Header(FORMAT_VERSION + 1, RunSpec("9" * 32, "n", "v", "mlflow"), 1)
    path = segment_path(tmp_path, "rank0", 0)
    path.write_bytes(encode_line(header))
    before = path.read_bytes()
    with pytest.raises(JournalFormatError, match="pip install --upgrade lightning-loggers"):
        list(read(tmp_path))
    writer = open_writer(tmp_path)
    writer.append_metrics({"n": 1}, 1)
    writer.close()
    assert writer.stream not in {None, "rank0"}
    assert path.read_bytes() == before
    assert writer.stream is not None
    found = read_first_header(tmp_path, stream=writer.stream)
    assert found is not None
    assert len(lines_of(tmp_path, writer.stream)) == 2


# -------------------------------------------------------------------- a disk that refuses


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if made.returncode != 0:
        pytest.skip(f"mounting a small tmpfs is not permitted here: {made.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_stops_nothing_and_heals(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a full disk appends do not raise, the newest wait in bounded memory, and what goes is counted and told once.

    When space returns they are written, with no torn line between and no further call.
    """
    filler = small_disk / "filler"
    writer = open_writer(small_disk / "journal")
    writer.append_metrics({"loss": 0.5}, 0)
    filler.write_bytes(b"x" * 1_500_000)
    count = 60_000
    for step in range(1, count):
        writer.append_metrics({f"metric_{number}": 0.123456789 for number in range(5)}, step)
    assert writer._buffered_bytes <= BUFFER_BYTES
    assert 0 < writer.pending_in_memory < count
    dropped = writer.dropped["disk refused"]
    assert writer.recorded + dropped == count
    on_disk = [record.step for record in all_of(small_disk / "journal")[0]]
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    wait_until(lambda: not writer.pending_in_memory, what="the keeper writing what waited")  # with no further append
    writer.append_metrics({"loss": 0.5}, count)
    writer.close()
    steps = steps_of(small_disk / "journal")
    assert steps == [*on_disk, *range(len(on_disk) + dropped, count + 1)]
    assert writer.recorded == len(steps)
    assert sum("cannot be written" in message for message in caplog.messages) == 1
    assert sum("the oldest records go" in message for message in caplog.messages) == 1
    assert "No space left on device" in caplog.text


def test_a_disk_full_from_the_start(small_disk: Path) -> None:
    """With no room even for the header the records wait, one stream's files are left, and all are written later."""
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb") as file:
        while True:
            file.write(b"x" * 4096)
    other = open_writer(small_disk / "journal")
    writer = open_writer(small_disk / "journal")
    for _ in range(3):
        for each in (other, writer):
            each.append_metrics({"n": 1}, 1)
            each.flush()
    assert len(list((small_disk / "journal").glob("*.lock"))) <= 2
    filler.unlink()
    other.close()
    writer.close()
    assert steps_of(small_disk / "journal") == [1] * 6


def test_a_checkpoint_that_does_not_fit_leaves_no_piece(small_disk: Path, tmp_path: Path) -> None:
    """A copy that fills the disk raises to its caller and gives the space back."""
    source = tmp_path / "large.bin"
    source.write_bytes(b"x" * 5_000_000)
    store = BlobStore(small_disk / "blobs")
    with pytest.raises(OSError, match="No space left"):
        store.link_file(source)
    with pytest.raises(OSError, match="No space left"):
        store.put_bytes(source.read_bytes(), "large.bin")
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    assert shutil.disk_usage(small_disk).used < 100_000


def test_a_read_only_folder_stops_nothing_and_heals(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a read-only file system the records wait in memory, told once, until it can be written."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    writer = open_writer(small_disk / "run" / "journal")
    for step in range(10):
        writer.append_metrics({"n": 1}, step)
    assert not writer.flush()
    assert writer.pending_in_memory == 10
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    writer.close()
    assert steps_of(small_disk / "run") == list(range(10))
    assert sum("Read-only file system" in message for message in caplog.messages) == 1


def test_a_folder_that_cannot_be_made_stops_nothing(tmp_path: Path) -> None:
    """Below a regular file no journal can be made: appends go on, and at close what is lost is counted."""
    (tmp_path / "file").touch()
    writer = open_writer(tmp_path / "file" / "journal")
    for step in range(10):
        writer.append_metrics({"n": 1}, step)
    writer.close()
    assert writer.dropped == {"disk refused": 10}
    assert writer.recorded == 0


def test_a_file_size_limit_cuts_no_line(tmp_path: Path) -> None:
    """At RLIMIT_FSIZE, which cuts a write short, no torn line remains, and what waits is written when it is lifted."""
    out = run_script(
        """
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))
        writer = open_writer(sys.argv[1])
        for step in range(100):
            writer.append_metrics({"loss": 0.5}, step)
        path = Path(sys.argv[1]) / "rank0.jsonl"
        assert path.read_bytes().endswith(b"}\\n")
        assert path.stat().st_size <= 5000
        print(writer.pending_in_memory, flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert writer.flush()
        for step in range(100, 110):
            writer.append_metrics({"loss": 0.5}, step)
        writer.close()
        """,
        tmp_path,
    )
    assert int(out) > 10
    assert steps_of(tmp_path) == list(range(110))


def test_a_deleted_folder_is_made_again_with_its_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``rm -rf`` of a live journal is noticed; the file comes back with all it had, later records follow."""
    folder = tmp_path / "run" / "journal"
    writer = open_writer(folder)
    step = 0
    for step in range(50):
        writer.append_metrics({"loss": 0.5}, step)
    shutil.rmtree(tmp_path / "run")

    def remade() -> bool:
        nonlocal step
        step += 1
        writer.append_metrics({"loss": 0.5}, step)
        return folder.exists()

    wait_until(remade, what="the journal being made again")
    assert is_locked(lock_path(folder, "rank0"))
    assert open_other_stream(folder) != "rank0"
    writer.append_metrics({"loss": 0.5}, step + 1)
    assert writer.position == Position(0, segment_path(folder, "rank0", 0).stat().st_size)
    writer.close()
    assert [s for s in steps_of(folder) if s >= 0] == list(range(step + 2))
    assert "was deleted while the run was writing" in caplog.text
    assert not is_locked(lock_path(folder, "rank0"))


def open_other_stream(folder: Path) -> str | None:
    """The stream that a second writer gets."""
    other = open_writer(folder)
    other.append_metrics({"n": 1}, -1)
    other.close()
    return other.stream


def test_a_deleted_segment_alone_is_made_again_under_the_same_lock(tmp_path: Path) -> None:
    """When only the segment was deleted, or replaced by another file, the writer keeps its lock and its records."""
    writer = open_writer(tmp_path)
    path = segment_path(tmp_path, "rank0", 0)
    for step in range(5):
        writer.append_metrics({"loss": 0.5}, step)
    path.unlink()
    writer.invalidate(os.fstat(writer._file.fd).st_dev, os.fstat(writer._file.fd).st_ino)
    writer.append_metrics({"loss": 0.5}, 5)
    assert is_locked(lock_path(tmp_path, "rank0"))
    assert steps_of(tmp_path) == list(range(6))
    path.unlink()
    path.write_bytes(b"")
    writer.invalidate(os.fstat(writer._file.fd).st_dev, os.fstat(writer._file.fd).st_ino)
    writer.append_metrics({"loss": 0.5}, 6)
    writer.close()
    assert steps_of(tmp_path) == list(range(7))
    assert list_segments(tmp_path) == {"rank0": [0, 1]}


def test_a_moved_folder_is_written_on_where_it_is(tmp_path: Path) -> None:
    """Renaming a live run's folder loses and repeats nothing."""
    writer = open_writer(tmp_path / "a")
    writer.append_metrics({"n": 1}, 1)
    (tmp_path / "a").rename(tmp_path / "b")
    writer._fd = -1  # as after a refusal
    writer.append_metrics({"n": 1}, 2)
    writer.close()
    assert steps_of(tmp_path / "b") == [1, 2]
    assert not (tmp_path / "a").exists()


def test_a_descriptor_that_somebody_closed_is_opened_again(tmp_path: Path) -> None:
    """A library that closes all descriptors, as on becoming a daemon, costs no record."""
    run_script(
        """
        writer = open_writer(sys.argv[1])
        for step in range(10):
            writer.append_metrics({"n": 1}, step)
            if step == 4:
                os.closerange(3, 100)
        writer.close()
        """,
        tmp_path,
    )
    assert steps_of(tmp_path) == list(range(10))


# -------------------------------------------------------------------- the keeper


def test_the_keeper_syncs_about_once_a_second_and_rests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was appended is synced soon after, not once a record, and nothing is synced while nothing is appended."""
    synced: list[tuple[int, int]] = []
    fdatasync = os.fdatasync

    def note(fd: int) -> None:
        status = os.fstat(fd)
        fdatasync(fd)
        synced.append((status.st_ino, status.st_size))

    monkeypatch.setattr(os, "fdatasync", note)
    writer = open_writer(tmp_path)
    for step in range(1000):
        writer.append_metrics({"n": 1}, step)
    status = segment_path(tmp_path, "rank0", 0).stat()

    def mine() -> list[int]:
        return [size for inode, size in synced if inode == status.st_ino]

    wait_until(lambda: status.st_size in mine(), 10, "fdatasync of all that was appended")
    assert len(mine()) <= 3
    before, started = len(mine()), time.process_time()
    looked = threading.Event()
    touch, writer.touch = writer.touch, looked.set  # type: ignore[method-assign]
    looks = []
    retry = writer.retry
    writer.retry = lambda: (looks.append(1), retry())[1]  # type: ignore[method-assign]
    wait_until(lambda: len(looks) >= 3, 15, "the keeper coming round three times")
    assert len(mine()) == before
    assert time.process_time() - started < 1.0
    writer.touch = touch  # type: ignore[method-assign]
    writer.close()
    assert len(mine()) == before + 1


def test_a_finished_segment_and_a_blob_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a segment that was rolled away from, and the content of blobs, reach the disk, too."""
    synced: set[tuple[int, int]] = set()
    for name in ("fdatasync", "fsync"):
        call = getattr(os, name)

        def note(fd: int, call: Any = call) -> None:
            status = os.fstat(fd)
            call(fd)
            synced.add((status.st_ino, status.st_size))

        monkeypatch.setattr(os, name, note)
    writer = open_writer(tmp_path, segment_bytes=1000)
    blob = writer.blobs.put_bytes(b"content", "a.txt")
    for step in range(50):
        writer.append_metrics({"n": 1}, step)
    paths = [segment_path(tmp_path, "rank0", segment) for segment in list_segments(tmp_path)["rank0"]]
    wanted = {(path.stat().st_ino, path.stat().st_size) for path in [*paths, writer.blobs.locate(blob)]}
    assert len(wanted) > 5
    wait_until(lambda: wanted <= synced, 10, "everything being synced")
    writer.close()


def test_the_keeper_gives_descriptors_back(tmp_path: Path) -> None:
    """A closed or collected writer leaves no descriptor open behind it."""
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        writer = open_writer(tmp_path / str(number))
        writer.append_metrics({"n": 1}, 1)
        if number % 2:
            writer.close()
    del writer
    # The writers that were not closed are collected with their descriptors.
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before + 10, 10, "descriptors being closed")
    assert len(keeper._keeper.kept) < 20


# -------------------------------------------------------------------- at once


def test_a_signal_handler_may_append(tmp_path: Path) -> None:
    """A handler that appends in the midst of appends neither deadlocks nor loses, doubles or tears a record.

    So it is also while segments roll and the disk refuses now and then or cuts a write short.
    """
    out = run_script(
        """
        writer = open_writer(sys.argv[1], segment_bytes=20_000)
        handled, handling = 0, False
        def handle(signum, frame):
            global handled, handling
            if not handling:  # a handler may be interrupted by the next signal
                handling = True
                writer.append_metrics({"handler": 1.0}, handled)
                handled += 1
                handling = False
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0002)
        write, calls = os.write, 0
        def refuse(fd, line):
            global calls
            calls += 1
            if calls % 499 == 0:
                raise OSError(28, "No space left on device")
            if calls % 613 == 0:
                return write(fd, line[: len(line) // 2])
            return write(fd, line)
        os.write = refuse
        import lightning_loggers.journal.writer as module
        module._RETRY_WRITE_EVERY_S = 0.001
        deadline = time.monotonic() + 60
        step = 0
        while (handled < 1000 or step < 20_000) and time.monotonic() < deadline:
            writer.append_metrics({"main": 1.0}, step)
            step += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write = write
        writer.close()
        assert writer.dropped == {}, writer.dropped
        print(step, handled, writer.recorded)
        """,
        tmp_path,
        timeout_s=100,
    )
    main, handled, recorded = map(int, out.split())
    records, damage = all_of(tmp_path)
    assert damage == []
    assert [r.step for r in records if "main" in (r.data or {})] == list(range(main))
    assert [r.step for r in records if "handler" in (r.data or {})] == list(range(handled))
    assert handled >= 1000
    assert recorded == main + handled


@pytest.mark.parametrize(
    ("results", "segment_bytes"),
    [
        (["whole"], 2**20),
        (["refused"], 2**20),
        (["half"], 2**20),
        (["whole", "whole", "half"], 2**20),
        (["whole"], 400),  # and begins the next segment
    ],
)
@pytest.mark.parametrize("way", ["append_metrics", "append"])
def test_a_signal_handler_may_append_just_after_a_write_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, results: list[str], segment_bytes: int, way: str
) -> None:
    """Its line comes behind half a line that nobody knows of yet: both are whole in the end, for any reader."""
    monkeypatch.setattr("lightning_loggers.journal.writer._RETRY_WRITE_EVERY_S", 0.0)
    writer = open_writer(tmp_path, segment_bytes=segment_bytes)
    for step in range(2):
        writer.append_metrics({"main": 1.0}, step)
    write = os.write
    handled = list(results)

    def handled_write(fd: int, line: bytes) -> int:
        result = handled.pop(0) if handled else "whole"
        if result == "refused":
            raise OSError(28, "No space left on device")
        return write(fd, line[: len(line) // 2] if result == "half" else line)

    def write_half(fd: int, line: bytes) -> int:
        monkeypatch.setattr(os, "write", handled_write)
        half = write(fd, line[: len(line) // 2])
        for step in range(len(results)):
            writer.append_metrics({"handler": 1.0}, step)  # as a signal handler does before the write returns
        return half

    monkeypatch.setattr(os, "write", write_half)
    if way == "append":
        writer.append(Record(0, "metric", 2, {"main": 1.0}))
    else:
        writer.append_metrics({"main": 1.0}, 2)
    monkeypatch.setattr(os, "write", write)
    writer.append_metrics({"main": 1.0}, 3)
    position = writer.position
    writer.close()
    records, damage = all_of(tmp_path)
    assert damage == []
    assert [r.step for r in records if "main" in (r.data or {})] == list(range(4))
    assert [r.step for r in records if "handler" in (r.data or {})] == list(range(len(results)))
    assert writer.recorded == 4 + len(results)
    lines = [line for segment in list_segments(tmp_path)["rank0"] for line in lines_of(tmp_path, segment=segment)]
    assert sum("kind" in line for line in lines) == writer.recorded  # nothing else is in the file
    assert position.offset == segment_path(tmp_path, "rank0", position.segment).stat().st_size


def test_where_a_stream_ends_is_known_to_a_signal_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that finalizes in the instant of another append waits for neither more nor less than is in the file."""
    writer = open_writer(tmp_path)
    writer.append_metrics({"a": 1.0}, 0)
    write, seen = os.write, list[tuple[int, int]]()

    def write_and_ask(fd: int, line: bytes) -> int:
        written = write(fd, line)
        seen.append((writer.position.offset, os.fstat(fd).st_size))
        return written

    monkeypatch.setattr(os, "write", write_and_ask)
    writer.append_metrics({"a": 1.0}, 1)
    assert [told == there for told, there in seen] == [True]


def test_half_a_line_that_stays_is_behind_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that took half a line, lets nobody take it back and takes no more: nobody waits for that half."""
    writer = open_writer(tmp_path)
    writer.append_metrics({"a": 1.0}, 0)
    end = writer.position
    write, takes = os.write, ["half"]

    def write_half(fd: int, line: bytes) -> int:
        if not takes:
            raise OSError(30, "Read-only file system")
        takes.pop()
        return write(fd, line[: len(line) // 2])

    def refuse(fd: int, length: int) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "write", write_half)
    monkeypatch.setattr(os, "ftruncate", refuse)
    writer.append_metrics({"a": 1.0}, 1)
    assert writer.position == end
    monkeypatch.undo()
    writer.close()
    assert steps_of(tmp_path) == [0, 1]


def test_two_threads_keep_their_order(tmp_path: Path) -> None:
    """Threads that append at once each keep their own order; nothing is lost and no line is torn."""
    writer = open_writer(tmp_path, segment_bytes=100_000)

    def log(name: str) -> None:
        for step in range(5000):
            writer.append_metrics({name: 0.5}, step)

    threads = [threading.Thread(target=log, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    records, damage = all_of(tmp_path)
    assert damage == []
    for name in "abc":
        assert [r.step for r in records if name in (r.data or {})] == list(range(5000))
    assert writer.recorded == 15_000


# -------------------------------------------------------------------- for long, and until killed


def peak_growth_bytes(count: int, tmp_path: Path) -> tuple[int, float, float]:
    """Memory growth of so many appends, and the seconds of their first and last tenth."""
    out = run_script(
        """
        import resource
        def resident():
            return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        count = int(sys.argv[2])
        writer = open_writer(sys.argv[1])
        metrics = {f"metric_{n}": 0.125 * n for n in range(5)}
        for step in range(1000):
            writer.append_metrics(metrics, step)
        before, tenth, times = resident(), count // 10, []
        for part in range(10):
            started = time.perf_counter()
            for step in range(tenth):
                writer.append_metrics(metrics, step)
            times.append(time.perf_counter() - started)
        print(resident() - before, times[0], times[-1])
        assert writer.recorded == tenth * 10 + 1000
        """,
        tmp_path,
        count,
        timeout_s=600,
    )
    grown, first, last = out.split()
    return int(grown), float(first), float(last)


def test_memory_does_not_grow_with_the_number_of_calls(tmp_path: Path) -> None:
    """Fifty thousand appends leave the process as large as it was."""
    grown, _, _ = peak_growth_bytes(50_000, tmp_path)
    assert grown < 20e6


@pytest.mark.soak
def test_a_million_appends(tmp_path: Path) -> None:
    """A million appends grow memory by under 20 MB, and the last tenth costs what the first did, within 1.1."""
    results = [peak_growth_bytes(1_000_000, tmp_path / str(number)) for number in range(3)]
    assert all(grown < 20e6 for grown, _, _ in results)
    assert min(last for _, _, last in results) < 1.1 * min(first for _, first, _ in results)


KILLED = """
import mmap
shared = mmap.mmap(os.open(sys.argv[2], os.O_RDWR), 8)
writer = open_writer(sys.argv[1], segment_bytes=200_000)
step = 0
while True:
    writer.append_metrics({"loss": 0.5, "nan": float("nan")} if step % 3 else {"loss": 0.5}, step)
    step += 1
    shared[:] = step.to_bytes(8, "little")  # acknowledged: the call has returned
"""


def kill_at_random(folder: Path, times: int) -> None:
    """Resume, kill at a random moment, and check, so many times in one journal."""
    folder.mkdir()
    counter = folder / "counter"
    counter.write_bytes(bytes(8))
    chance = random.Random(f"{times}")
    for number in range(times):
        journal = folder / f"journal{number // 5}"  # resumed after each of its kills
        before = len(all_of(journal)[0]) if journal.exists() else 0
        counter.write_bytes(bytes(8))
        script = start_script(KILLED, journal, counter)
        try:
            with counter.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:

                def acknowledged(shared: mmap.mmap = shared) -> int:
                    return int.from_bytes(shared[:], "little")

                enough = chance.randrange(1, 4000)
                wait_until(lambda: acknowledged() >= enough, what="the script appending")  # noqa: B023
                script.send_signal(signal.SIGKILL)
                script.communicate()
                returned = acknowledged()
        finally:
            script.kill()
        records, damage = all_of(journal)
        # SIGKILL may end a write between two pages of the file: that call has not returned.
        assert len(damage) <= number % 5 + 1
        assert all(piece.length < 100 for piece in damage)
        steps = [record.step for record in records[before:]]
        assert steps[:returned] == list(range(returned))
        assert len(steps) in {returned, returned + 1}


def test_no_acknowledged_record_is_lost_at_a_kill(tmp_path: Path) -> None:
    """After SIGKILL at random moments every record whose call had returned is in the journal, in order, once."""
    kill_at_random(tmp_path / "runs", 20)


@pytest.mark.soak
def test_no_acknowledged_record_is_lost_at_200_kills(tmp_path: Path) -> None:
    """The same, 200 times."""
    kill_at_random(tmp_path / "runs", 200)


@pytest.mark.parametrize("step", [None, 0, -1, 2.5])
@pytest.mark.parametrize("data", [{}, {"loss": 0.1, "n": 1, "ok": True}])
def test_the_log_path_writes_the_line_of_a_record(step: float | None, data: dict[str, Any]) -> None:
    """The log path's shorter way encodes byte for byte what a metric record is encoded as."""
    record = Record(1763700000000000000, Kind.METRIC.value, step, data)
    assert msgspec.json.encode(PlainMetrics(record.time_ns, record.kind, step, data)) == msgspec.json.encode(record)


def test_a_line_is_decoded_as_it_was_encoded() -> None:
    """Every field of a record comes back from its line."""
    record = Record(
        1, Kind.CHECKPOINT.value, 2, {"a": 1}, None, "id", {"v": [1, None]}, [Blob("a", "b", 3, 4, "c")], {"m": 1}, 5,
        "train", 6,
    )  # fmt: skip
    assert decode_line(encode_line(record)[:-1]) == record


EXIT_WITH_A_LOCK_IN_HAND = """
import gc, sys, threading
from pathlib import Path
from lightning_loggers.journal import lock

held = threading.Event()

def stopped_by_the_interpreters_end():
    with lock._opening:
        held.set()
        threading.Event().wait()

gc.disable()
kept = lock.FileLock(Path(sys.argv[1]))
assert kept.acquire()
kept.itself = kept
del kept  # for the interpreter's last collection of garbage
threading.Thread(target=stopped_by_the_interpreters_end, daemon=True).start()
held.wait()
"""


def test_interpreters_end_waits_for_no_thread_that_it_has_stopped(tmp_path: Path) -> None:
    """A delivery thread that was about to open a file when the program ended holds up nothing."""
    command = [sys.executable, "-c", EXIT_WITH_A_LOCK_IN_HAND, str(tmp_path / "lock")]
    subprocess.run(command, check=True, timeout=60)
    assert FileLock(tmp_path / "lock").acquire()
