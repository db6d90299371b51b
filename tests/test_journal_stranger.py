"""A journal from a stranger: nothing outside its folder is touched, memory is bounded, errors are clear."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_journal_writer import open_writer

from lightning_loggers.errors import JournalError
from lightning_loggers.journal import Damage, read
from lightning_loggers.journal.blobs import BlobStore, UnsafeBlobError
from lightning_loggers.journal.layout import list_segments, lock_path, segment_path
from lightning_loggers.journal.lock import FileLock, is_locked
from lightning_loggers.journal.reader import read_first_header
from lightning_loggers.records import Blob, DamagedLineError, Record, decode_line, encode_line

GOOD = encode_line(Record(1, "metric", 1, {"loss": 0.5}))


def forged(body: bytes) -> bytes:
    """A line with the right checksum, whatever is in it."""
    return b'%s,"crc":%d}\n' % (body, crc32(body))


def read_all(folder: Path) -> tuple[list[Record], list[Damage]]:
    """Every record, and every damage."""
    damage: list[Damage] = []
    return list(read(folder, on_damage=damage.append)), damage


def read_in_a_process(folder: Path) -> dict[str, Any]:
    """What a process of its own finds, with the growth of its memory."""
    script = """
        import json, resource, sys, time
        from lightning_loggers.journal import read
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        steps, damages = [], []
        def note(damage):
            damages.append((damage.offset, damage.length))
            assert len(damages) < 100_000
        for record in read(sys.argv[1], on_damage=note):
            steps.append(record.step)
        del record
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(json.dumps({"steps": steps[:100], "count": len(steps), "damages": damages[:100], "grown": grown}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder)], check=True, stdout=subprocess.PIPE, timeout=60
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


# -------------------------------------------------------------------- size


def test_a_line_of_a_gigabyte_is_gone_over(tmp_path: Path) -> None:
    """A line of 1 GB is reported as damage in bounded memory, and the records around it are read."""
    path = segment_path(tmp_path, "rank0", 0)
    path.write_bytes(GOOD)
    os.truncate(path, 2**30)  # sparse
    with path.open("ab") as file:
        file.write(b"\n" + GOOD)
    found = read_in_a_process(tmp_path)
    assert found["steps"] == [1, 1]
    assert found["damages"] == [[len(GOOD), 2**30 - len(GOOD) + 1]] or found["damages"] == [
        [len(GOOD), 2**30 - len(GOOD)]
    ]
    assert found["grown"] < 100e6


@pytest.mark.parametrize(
    "filling",
    [b'{"time_ns":', b'{"time_ns":1,"crc":1}', b',"crc":1}', b"\n", b"{}\n", b"[" * 1000 + b"\n", b"\xff"],
)
def test_megabytes_of_anything_take_bounded_memory(tmp_path: Path, filling: bytes) -> None:
    """Megabytes of starts, ends, empty lines or nonsense cost bounded memory and time, and hide no record after."""
    path = segment_path(tmp_path, "rank0", 0)
    path.write_bytes(GOOD + filling * ((1_000_000 if b"\n" in filling else 9_000_000) // len(filling)) + b"\n" + GOOD)
    found = read_in_a_process(tmp_path)
    assert found["steps"] == [1, 1]
    assert found["grown"] < 150e6


def test_a_record_of_a_million_keys_takes_bounded_memory(tmp_path: Path) -> None:
    """A line with a million keys is longer than any that we write: it is damage, and no dictionary is made of it."""
    body = b'{"time_ns":1,"kind":"metric","data":{%s}' % b",".join(b'"k%d":1' % n for n in range(1_000_000))
    segment_path(tmp_path, "rank0", 0).write_bytes(forged(body) + GOOD)
    found = read_in_a_process(tmp_path)
    assert found["steps"] == [1]
    assert found["grown"] < 100e6


def test_a_line_of_nothing_but_lists_takes_bounded_memory(tmp_path: Path) -> None:
    """The densest JSON that fits into a line is decoded in bounded memory."""
    body = b'{"time_ns":1,"kind":"dict","step":2,"value":[%s]' % b",".join([b"[]"] * 1_300_000)
    segment_path(tmp_path, "rank0", 0).write_bytes(forged(body) + GOOD)
    found = read_in_a_process(tmp_path)
    assert found["steps"] == [2, 1]
    assert found["grown"] < 200e6


def test_many_files_and_large_numbers_take_no_time(tmp_path: Path) -> None:
    """Segment numbers of nine digits, and numbers spelt with zeros before, are neither counted through nor stuck at."""
    for name in ("rank0.jsonl", "rank0.999999999.jsonl", "rank0.01.jsonl", "rank0.00.jsonl", "rank0.5000.jsonl"):
        (tmp_path / name).write_bytes(GOOD)
    assert list_segments(tmp_path) == {"rank0": [0, 5000, 999999999]}
    assert len(read_all(tmp_path)[0]) == 3


# -------------------------------------------------------------------- content


@pytest.mark.parametrize(
    "line",
    [
        forged(b'{"time_ns":1,"kind":"dict","value":' + b"[" * 200_000 + b"]" * 200_000),
        forged(b'{"time_ns":1,"kind":"text","id":"a","value":"\xff\xfe"'),
        forged(b'{"time_ns":1e999,"kind":"metric"'),
        forged(b'{"time_ns":"1","kind":"metric"'),
        forged(b'{"time_ns":1,"kind":"metric","step":true'),
        forged(b'{"time_ns":1,"kind":"metric","step":"1"'),
        forged(b'{"time_ns":1,"kind":"metric","data":[1]'),
        forged(b'{"time_ns":1,"kind":"metric","blobs":["a"]'),
        forged(b'{"time_ns":1'),
        forged(b'{"lightning_loggers_journal":"1"'),
        forged(b'{"lightning_loggers_journal":1,"run":{"uid":5}'),
        forged(b'{"time_ns":' + b"1" * 10_000 + b',"kind":"metric"'),
        forged(b""),
        b'{"time_ns":1,"kind":"metric","crc":}\n',
        b'{"time_ns":1,"kind":"metric","crc":-5}\n',
        b'{"time_ns":1,"kind":"metric","crc":1e5}\n',
        b'{"time_ns":1,"kind":"metric","crc":' + b"9" * 1000 + b"}\n",
        b'{"time_ns":1,"kind":"metric","crc":\xd9\xa1}\n',
        GOOD[:-2] + b'0}\n',
        GOOD[:-2] + b',"step":5}\n',
        GOOD[:-2] + b'} \n',
        GOOD[:-1] + b"}\n",
        b'"crc":5}\n', b"null\n", b"[]\n", b"\0\n",
    ],
    ids=range(26),
)  # fmt: skip
def test_a_line_that_is_no_record_is_damage(tmp_path: Path, line: bytes) -> None:
    """Nested too deep, not UTF-8, of wrong types or with tricks in its checksum: damage, no exception, nothing else."""
    segment_path(tmp_path, "rank0", 0).write_bytes(GOOD + line + GOOD)
    records, damage = read_all(tmp_path)
    good = decode_line(GOOD[:-1])
    if GOOD[:-1] in line:  # a whole record with something after it
        assert records == [good] * 3
    else:
        assert records == [good] * 2
        assert damage[0].offset == len(GOOD)
    assert damage


def test_huge_integers_and_odd_names_are_harmless(tmp_path: Path) -> None:
    """Integers beyond 64 bits are read as such, and a ``nonfinite`` of other keys or names adds nothing."""
    body = b'{"time_ns":%d,"kind":"metric","step":%d,"data":{"a":1},"nonfinite":{"b":"nan","a":"evil"}' % (
        2**70,
        -(2**80),
    )
    segment_path(tmp_path, "rank0", 0).write_bytes(forged(body))
    [record], damage = read_all(tmp_path)
    assert (record.time_ns, record.step, record.data) == (2**70, -(2**80), {"a": 1})
    assert damage == []


@settings(max_examples=500)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_decoded_or_refused(content: bytes, with_checksum: bool) -> None:
    """A line of any bytes is a record or a ``DamagedLineError``, never another exception."""
    line = forged(content)[:-1] if with_checksum else content
    with contextlib.suppress(DamagedLineError):
        assert decode_line(line).time_ns >= 0


# -------------------------------------------------------------------- places


@pytest.mark.parametrize(
    "blob",
    [
        Blob("../..", "passwd", 1), Blob("/etc", "passwd", 1), Blob("a", "../../secret", 1),
        Blob("a", "/etc/passwd", 1),
        Blob("a", "..", 1), Blob("a", ".", 1), Blob("a", "", 1), Blob("", "a", 1), Blob(".", "a", 1),
        Blob("a/b", "c", 1),
        Blob("a", "b\0c", 1), Blob("a\n", "b", 1), Blob("A" * 100, "b", 1), Blob("a", "b", 1, path="../b"),
        Blob("a", "b", 1, path="/b"), Blob("a", "b", 1, path="c/../../b"), Blob("a", "b", 1, path="..\\b"),
        Blob("a", "b", 1, path="c\0/b"), Blob("a", "b", 1, path="c//b"), Blob("a", "b\\c", 1),
    ],
)  # fmt: skip
def test_a_blob_outside_its_folder_is_refused(tmp_path: Path, blob: Blob) -> None:
    """Names with ``../``, absolute ones and the like are refused before any file is looked at."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "blobs" / "a").mkdir(parents=True)
    with pytest.raises(UnsafeBlobError):
        BlobStore(tmp_path / "blobs").locate(blob)


@pytest.mark.parametrize("what", ["file", "blob folder", "blobs folder"])
def test_a_blob_behind_a_symbolic_link_is_refused(tmp_path: Path, what: str) -> None:
    """A link from the file, its folder, or the whole blob folder to another place is not followed."""
    outside = tmp_path / "outside" / "a"
    outside.mkdir(parents=True)
    (outside / "secret").write_text("secret")
    folder = tmp_path / "journal" / "blobs"
    if what == "file":
        (folder / "a").mkdir(parents=True)
        (folder / "a" / "secret").symlink_to(outside / "secret")
    elif what == "blob folder":
        folder.mkdir(parents=True)
        (folder / "a").symlink_to(outside)
    else:
        folder.parent.mkdir(parents=True)
        folder.symlink_to(outside.parent)
    with pytest.raises(UnsafeBlobError, match="symbolic link"):
        BlobStore(folder).locate(Blob("a", "secret", 6))


def test_a_blob_that_is_no_file_is_missing(tmp_path: Path) -> None:
    """A pipe or folder where a blob should be is not opened."""
    (tmp_path / "a" / "folder").mkdir(parents=True)
    os.mkfifo(tmp_path / "a" / "pipe")
    for name in ("folder", "pipe", "nothing"):
        with pytest.raises(FileNotFoundError):
            BlobStore(tmp_path).locate(Blob("a", name, 1))


def test_segments_that_are_links_or_pipes_are_not_opened(tmp_path: Path) -> None:
    """A symbolic link to another file, a dangling one, a pipe and a folder in a segment's place are not read."""
    outside = tmp_path / "outside.jsonl"
    outside.write_bytes(GOOD)
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / "rank0.jsonl").symlink_to(outside)
    (folder / "rank1.jsonl").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "rank2.jsonl")
    (folder / "rank3.jsonl").mkdir()
    assert list_segments(folder) == {}
    assert read_first_header(folder) is None
    with pytest.raises(JournalError, match="no journal"):
        list(read(folder))


def test_a_linked_journal_folder_is_refused(tmp_path: Path) -> None:
    """A run whose journal folder is a link leads out of the run: the error names the place to read instead."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    segment_path(elsewhere, "rank0", 0).write_bytes(GOOD)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "journal").symlink_to(elsewhere)
    with pytest.raises(JournalError, match=f"symbolic link.*read {elsewhere} itself"):
        list(read(tmp_path / "run"))


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_a_lock_that_is_a_trap_is_not_touched(tmp_path: Path, kind: str) -> None:
    """Taking or testing a lock follows no link, makes no file outside, and does not wait at a pipe."""
    outside = tmp_path / "outside"
    path = lock_path(tmp_path, "rank0")
    if kind == "link":
        outside.write_text("precious")
        before = outside.stat().st_mtime_ns
        path.symlink_to(outside)
    elif kind == "dangling link":
        path.symlink_to(outside)
    else:
        os.mkfifo(path)
    lock = FileLock(path)
    with pytest.raises(OSError, match=str(path)):
        lock.acquire()
    assert not lock.held
    assert not is_locked(path)
    if kind == "link":
        assert outside.read_text() == "precious"
        assert outside.stat().st_mtime_ns == before
    else:
        assert not outside.exists()


def test_a_writer_in_a_strangers_folder_stays_in_it(tmp_path: Path) -> None:
    """Resuming in a folder full of links writes to none of their targets, and still keeps every record."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    folder = tmp_path / "journal"
    folder.mkdir()
    for name in ("rank0.jsonl", "rank0.lock", ".rank0.1.jsonl.part", "rank0.1.jsonl"):
        (folder / name).symlink_to(outside / "file")
    writer = open_writer(folder, segment_bytes=500)
    for step in range(20):
        writer.append_metrics({"n": 1}, step)
    writer.close()
    assert sorted(path.name for path in outside.iterdir()) == ["file"]
    assert (outside / "file").read_text() == "precious"
    assert [record.step for record in read_all(folder)[0]] == list(range(20))


def test_reading_writes_nothing(tmp_path: Path) -> None:
    """Reading a journal, damaged or not, leaves its folder as it was."""
    segment_path(tmp_path, "rank0", 0).write_bytes(GOOD + b"garbage\n" + GOOD[:20])
    os.chmod(segment_path(tmp_path, "rank0", 0), 0o444)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [tmp_path, *tmp_path.rglob("*")]}
    read_all(tmp_path)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [tmp_path, *tmp_path.rglob("*")]} == before
