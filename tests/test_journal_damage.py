"""Whatever happened to the bytes: every undamaged record is read, in order, and no wrong one."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_loggers.journal import Damage, read
from lightning_loggers.journal.layout import segment_path
from lightning_loggers.journal.reader import Position, StreamReader
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.records import (
    FORMAT_VERSION,
    HEADER_START,
    MAX_LINE_BYTES,
    Header,
    Kind,
    Record,
    RunSpec,
    decode_line,
    encode_line,
)

RUN = RunSpec("0" * 32, "name", "version", "mlflow")


def metric_line(step: int, data: dict[str, float], folder: Path) -> bytes:
    """A line as the log path writes it."""
    writer = JournalWriter(folder, RUN, normalise_metrics=lambda m: (dict(m), []))
    writer.append_metrics(data, step)
    writer.close()
    path = segment_path(folder, "rank0", 0)
    line = path.read_bytes().splitlines(keepends=True)[-1]
    path.unlink()
    return line


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A header and records of every shape, some of which look like records themselves."""
    folder = tmp_path_factory.mktemp("lines")
    inner = encode_line(Record(99, Kind.TEXT.value, 99, id="inner", value="a wrong one"))
    tricky = [
        metric_line(1000, {"time_ns": 1.0, "crc": 5.0}, folder),
        metric_line(1001, {"lightning_loggers_journal": 1}, folder),
        encode_line(Record(1002, Kind.TEXT.value, 1002, id="t", value=inner.decode())),
        encode_line(
            Record(1003, Kind.DICT.value, 1003, id="d", value=[{"time_ns": 1, "kind": "metric", "crc": 1}] * 3)
        ),
        encode_line(Record(1004, Kind.DICT.value, 1004, id="e", value={"crc": 12345})),
        encode_line(Record(1005, Kind.TEXT.value, 1005, id="u", value="é\n\r\u2028\0🎉")),
    ]
    plain = [metric_line(step, {"loss": step / 8, "acc": 0.5}, folder) for step in range(14)]
    header = encode_line(Header(FORMAT_VERSION, RUN, 1))
    return [header, *plain[:7], *tricky, header, *plain[7:]]


class Damaged:
    """Bytes, and for each line whether any of its own were touched (its newline apart)."""

    def __init__(self, lines: list[bytes]) -> None:
        # Each byte carries the number of its line; a changed or inserted one carries -1.
        self.content = bytearray()
        self.owner: list[int] = []
        for number, line in enumerate(lines):
            self.content += line
            self.owner += [number] * (len(line) - 1) + [-1]

    def replace(self, begin: int, end: int, new: bytes) -> None:
        self.content[begin:end] = new
        self.owner[begin:end] = [-1] * len(new)

    def duplicate(self, begin: int, end: int, at: int) -> None:
        content, owner = self.content[begin:end], self.owner[begin:end]
        self.content[at:at] = content
        self.owner[at:at] = owner

    def whole(self, lines: list[bytes]) -> list[int]:
        """Numbers of the lines that stand complete and unbroken in the bytes, in the order in which they do."""
        # Whatever its bytes were before: a line put together again from two copies is as good as it was.
        found = {}
        for number, line in enumerate(lines):
            body, at = line[:-1], -1
            while (at := self.content.find(body, at + 1)) >= 0:
                found.setdefault(at, number)
        return [number for _, number in sorted(found.items())]


KINDS = ["flip", "zero", "truncate", "insert newline", "delete newline", "insert", "delete", "duplicate"]


def damage_at_random(damaged: Damaged, chance: random.Random, kinds: list[str]) -> None:
    """One act of damage of each of the kinds."""
    for kind in kinds:
        size = len(damaged.content)
        if not size:
            return
        begin = chance.randrange(size)
        end = min(size, begin + chance.randrange(1, 300))
        if kind == "flip":
            damaged.replace(begin, begin + 1, bytes([damaged.content[begin] ^ (1 << chance.randrange(8))]))
        elif kind == "zero":
            damaged.replace(begin, end, bytes(end - begin))
        elif kind == "truncate":
            damaged.replace(chance.randrange(size // 2, size), size, b"")
        elif kind == "insert newline":
            damaged.replace(begin, begin, b"\n" * chance.randrange(1, 3))
        elif kind == "delete newline":
            newline = damaged.content.find(b"\n", begin)
            if newline >= 0:
                damaged.replace(newline, newline + 1, b"")
        elif kind == "insert":
            damaged.replace(begin, begin, chance.randbytes(chance.randrange(1, 50)))
        elif kind == "delete":
            damaged.replace(begin, end, b"")
        else:
            damaged.duplicate(begin, end, chance.randrange(size))


def check(damaged: Damaged, lines: list[bytes], folder: Path) -> None:
    """Read it, and compare with what is undamaged."""
    path = segment_path(folder, "rank0", 0)
    path.write_bytes(damaged.content)
    originals = [decode_line(line[:-1]) for line in lines]
    wanted = [originals[number] for number in damaged.whole(lines)]
    reported: list[Damage] = []
    records = list(read(folder, on_damage=reported.append))
    assert records == [line for line in wanted if isinstance(line, Record)]
    # Every byte is a record's, a newline, or reported.
    explained = sum(len(line) - 1 for number in damaged.whole(lines) for line in [lines[number]])
    explained += sum(damage.length for damage in reported)
    assert explained >= len(damaged.content) - damaged.content.count(b"\n")
    assert all(0 <= d.offset <= d.offset + d.length <= len(damaged.content) for d in reported)
    # In pieces, as delivery reads: the same.
    reader, position, seen = StreamReader(folder, "rank0"), Position(), []
    while True:
        chunk = reader.read(position, 64, final=True)
        seen += [entry.line for entry in chunk.entries]
        if chunk.at_end:
            break
        assert chunk.end > position
        position = chunk.end
    assert seen == wanted


@settings(max_examples=600, deadline=None)
@given(st.integers(), st.lists(st.sampled_from(KINDS), min_size=1, max_size=6))
def test_every_undamaged_record_is_read_and_no_wrong_one(
    lines: list[bytes], tmp_path_factory: pytest.TempPathFactory, seed: int, kinds: list[str]
) -> None:
    """Bytes flipped, zeroed, cut, inserted or repeated cost only the records that they touch; damage is reported."""
    damaged = Damaged(lines)
    damage_at_random(damaged, random.Random(seed), kinds)
    check(damaged, lines, tmp_path_factory.mktemp("journal"))


@pytest.mark.parametrize("kind", KINDS)
def test_one_act_of_each_kind(lines: list[bytes], tmp_path: Path, kind: str) -> None:
    """Each kind of damage alone, at a hundred places."""
    for seed in range(100):
        damaged = Damaged(lines)
        damage_at_random(damaged, random.Random(seed), [kind])
        check(damaged, lines, tmp_path)


def test_every_single_newline_may_be_lost(lines: list[bytes], tmp_path: Path) -> None:
    """Without any one of the newlines, or without all of them, every record is read."""
    ends = [index for index, byte in enumerate(b"".join(lines)) if byte == 10]
    for end in ends:
        for new in (b"", b"\0", b"}", b"{", b"abc}"):
            damaged = Damaged(lines)
            damaged.replace(end, end + 1, new)
            check(damaged, lines, tmp_path)
    damaged = Damaged(lines)
    for end in reversed(ends):
        damaged.replace(end, end + 1, b"")
    check(damaged, lines, tmp_path)


def test_a_damaged_header_costs_no_record(lines: list[bytes], tmp_path: Path) -> None:
    """Records are read without the header before them."""
    for position in range(0, len(lines[0]), 7):
        damaged = Damaged(lines)
        damaged.replace(position, position + 1, b"#")
        check(damaged, lines, tmp_path)


@pytest.mark.parametrize("length", [0, 1, 20, 40])
def test_an_empty_or_torn_start_holds_nothing(lines: list[bytes], tmp_path: Path, length: int) -> None:
    """An empty file, or one with part of a header, gives no record and no exception."""
    segment_path(tmp_path, "rank0", 0).write_bytes(lines[0][:length])
    reported: list[Damage] = []
    assert list(read(tmp_path, on_damage=reported.append)) == []
    assert [(d.offset, d.length) for d in reported] == ([(0, length)] if length else [])


@pytest.mark.parametrize("before", [1, MAX_LINE_BYTES - 1, MAX_LINE_BYTES, 3 * MAX_LINE_BYTES + 17])
@pytest.mark.parametrize("filling", [b"\0", b"x", HEADER_START, b"}"])
def test_records_behind_a_large_hole_are_read(lines: list[bytes], tmp_path: Path, before: int, filling: bytes) -> None:
    """A stretch of any size without a newline, as a crash leaves it, hides none of the records that follow at once."""
    hole = (filling * (before // len(filling) + 1))[:before]
    if hole.startswith(b"}"):  # a record's end: the hole must not join the checksum before it
        hole = b"\n" + hole
    content = b"".join(lines[:5]) + hole + b"".join(lines[5:10])[:-1] + hole + b"".join(lines[10:])
    segment_path(tmp_path, "rank0", 0).write_bytes(content)
    reported: list[Damage] = []
    originals = [decode_line(line[:-1]) for line in lines]
    assert list(read(tmp_path, on_damage=reported.append)) == [line for line in originals if isinstance(line, Record)]
    assert sum(damage.length for damage in reported) >= 2 * before


def test_a_logged_journal_line_is_never_taken_for_a_record(tmp_path: Path) -> None:
    """Lines of a journal that a user logs as a value come back as that, and as nothing else from a damaged line."""
    inner = Record(5, Kind.METRIC.value, 5, {"loss": 666.0})
    value = [decode_line(encode_line(inner)[:-1])] * 3
    outer = encode_line(Record(1, Kind.DICT.value, 1, id="copy", value=[line_of(inner) for _ in value]))
    path = segment_path(tmp_path, "rank0", 0)
    path.write_bytes(outer)
    [record] = read(tmp_path)
    assert record.value == [line_of(inner)] * 3
    for position in range(len(outer)):
        path.write_bytes(outer[:position] + b"\n" + outer[position + 1 :])
        assert all(found.data is None for found in read(tmp_path, on_damage=lambda damage: None))


def line_of(record: Record) -> dict[str, object]:
    """A line of the journal as a JSON library gives it."""
    import json

    loaded: dict[str, object] = json.loads(encode_line(record))
    return loaded
