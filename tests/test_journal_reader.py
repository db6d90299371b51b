"""The reading half of a journal: by any path that a person has, from any position, also while it is written."""

from pathlib import Path
from typing import Any

import pytest
from test_journal_writer import open_writer, steps_of

from lightning_loggers.errors import JournalError, JournalFormatError
from lightning_loggers.journal import Damage, read
from lightning_loggers.journal import reader as reader_module
from lightning_loggers.journal.layout import is_journal, list_segments, segment_path
from lightning_loggers.journal.reader import Position, StreamReader, header_before, read_first_header
from lightning_loggers.records import FORMAT_VERSION, Header, Record, RunSpec, encode_line


def a_run(run_dir: Path, count: int = 10, **options: Any) -> Path:
    """A closed run with that many records; returns its journal folder."""
    writer = open_writer(run_dir / "journal", **options)
    for step in range(count):
        writer.append_metrics({"loss": 0.5}, step)
    writer.close()
    return run_dir / "journal"


def lines(count: int, start: int = 0) -> list[bytes]:
    """Lines of records."""
    return [encode_line(Record(step, "metric", step, {"loss": 0.5})) for step in range(start, start + count)]


def test_a_journal_is_read_from_any_path_to_it(tmp_path: Path) -> None:
    """The run's folder, its journal folder and a segment, as path or text, all give the records."""
    folder = a_run(tmp_path / "run", segment_bytes=500)
    assert len(list_segments(folder)["rank0"]) > 1
    for path in (tmp_path / "run", folder, segment_path(folder, "rank0", 1), str(folder)):
        assert [record.step for record in read(path)] == list(range(10))


def test_streams_are_read_one_after_another(tmp_path: Path) -> None:
    """All ranks of a run are read, the records of each in their order; one segment's path gives its stream only."""
    folder = a_run(tmp_path / "run", 3)
    a_run(tmp_path / "run", 4, rank=1)
    assert steps_of(folder) == [0, 1, 2, 0, 1, 2, 3]
    assert len(list(read(segment_path(folder, "rank1", 0)))) == 4
    assert is_journal(folder)


def test_what_is_no_journal_is_told(tmp_path: Path) -> None:
    """A folder without a journal, a path that is not there, and a file that is no segment are errors with the path."""
    (tmp_path / "metrics.csv").write_text("a,b")
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(JournalError, match=str(path)):
            list(read(path))
        assert not is_journal(path)
    with pytest.raises(JournalFormatError, match=r"metrics\.csv is no segment"):
        list(read(tmp_path / "metrics.csv"))


def test_reading_goes_on_from_any_position(tmp_path: Path) -> None:
    """Whatever the size of a read and wherever it began, the positions of its entries lead to the same records."""
    folder = a_run(tmp_path / "run", 50, segment_bytes=1000)
    reader = StreamReader(folder, "rank0")
    whole: list[Position] = []
    for max_bytes in (1, 100, 10_000):
        position, seen = Position(), []
        while True:
            chunk = reader.read(position, max_bytes)
            seen += [entry for entry in chunk.entries if isinstance(entry.line, Record)]
            if chunk.at_end:
                break
            assert chunk.end > position
            position = chunk.end
        assert [entry.line.step for entry in seen if isinstance(entry.line, Record)] == list(range(50))
        whole = whole or [entry.end for entry in seen]
        assert [entry.end for entry in seen] == whole
    for number, position in enumerate(whole[:-1]):
        chunk = reader.read(position)
        while not any(isinstance(entry.line, Record) for entry in chunk.entries):
            chunk = reader.read(chunk.end)
        first = next(entry.line for entry in chunk.entries if isinstance(entry.line, Record))
        assert first.step == number + 1


def test_a_torn_last_line_waits_for_its_writer(tmp_path: Path) -> None:
    """A live reader leaves half a line unread, and reads it when it is whole; damage is not reported for it."""
    first, second = lines(2)
    path = segment_path(tmp_path, "rank0", 0)
    path.write_bytes(first + second[:20])
    reader = StreamReader(tmp_path, "rank0")
    chunk = reader.read(Position())
    assert len(chunk.entries) == 1
    assert not chunk.at_end
    waiting = reader.read(chunk.end)
    assert (waiting.entries, waiting.damage, waiting.at_end, waiting.torn_bytes) == ([], [], True, 20)
    path.write_bytes(first + second)
    assert len(reader.read(chunk.end).entries) == 1


def test_a_final_read_takes_what_is_whole_in_the_torn_tail(tmp_path: Path) -> None:
    """Where the writer is gone, a last record without its newline is read, and the rest of a tail is damage.

    The end is reached, and what a resuming writer then appends is read from there.
    """
    first, second, third = lines(3)
    path = segment_path(tmp_path, "rank0", 0)
    path.write_bytes(first + second[:-1])
    reader = StreamReader(tmp_path, "rank0")
    assert steps_of(tmp_path) == [0, 1]
    path.write_bytes(first + second[:-1] + third[:30])
    damage: list[Damage] = []
    assert [record.step for record in read(tmp_path, on_damage=damage.append)] == [0, 1]
    assert [(d.offset, d.length) for d in damage] == [(len(first + second) - 1, 30)]
    chunk = reader.read(Position())
    tail = reader.read(chunk.end, final=True)
    assert len(tail.entries) == 1
    assert tail.end == Position(0, path.stat().st_size)
    assert reader.read(tail.end, final=True).at_end
    with path.open("ab") as file:
        file.write(b"\n" + lines(1, 7)[0])
    after = reader.read(tail.end)
    assert [entry.line.step for entry in after.entries if isinstance(entry.line, Record)] == [7]
    assert after.damage == []


def test_a_cursor_inside_a_line_loses_none(tmp_path: Path) -> None:
    """A segment that lost its tail in a power failure and grew past the cursor is read from a line's beginning."""
    written = lines(3)
    path = segment_path(tmp_path, "rank0", 0)
    path.write_bytes(b"".join(written))
    reader = StreamReader(tmp_path, "rank0")
    inside = len(written[0]) + 10
    chunk = reader.read(Position(0, inside))
    assert [entry.line.step for entry in chunk.entries if isinstance(entry.line, Record)] == [1, 2]
    assert chunk.damage == []
    beyond = reader.read(Position(0, 10**9))
    assert (beyond.entries, beyond.at_end) == ([], True)
    assert reader.read(Position(0, -5)).entries == reader.read(Position()).entries


def test_each_record_of_a_joined_line_has_its_own_end(tmp_path: Path) -> None:
    """Where a newline was lost, a cursor after the first of two records leads to the second, not past it."""
    first, second = lines(2)
    segment_path(tmp_path, "rank0", 0).write_bytes(first[:-1] + second)
    reader = StreamReader(tmp_path, "rank0")
    one, two = reader.read(Position()).entries
    assert one.end < two.end
    [again] = reader.read(one.end).entries
    assert again.line == two.line


def test_a_missing_segment_is_gone_over(tmp_path: Path) -> None:
    """A segment that was pruned does not keep those after it from being read."""
    folder = a_run(tmp_path / "run", 30, segment_bytes=500)
    segment_path(folder, "rank0", 1).unlink()
    steps = steps_of(folder)
    assert steps[0] == 0
    assert steps[-1] == 29
    assert 10 < len(steps) < 30


def test_the_first_header_is_found_behind_damage(tmp_path: Path) -> None:
    """A journal whose first line was destroyed is still known by the header of a later session or segment."""
    folder = a_run(tmp_path / "run", 2000)
    a_run(tmp_path / "run", 1)
    path = segment_path(folder, "rank0", 0)
    content = path.read_bytes()
    path.write_bytes(b"x" * 50 + content[50:])
    header = read_first_header(folder)
    assert header is not None
    assert header.run.uid == "0" * 32
    path.write_bytes(b"".join(lines(3)))
    assert read_first_header(folder) is None
    assert read_first_header(tmp_path / "nowhere") is None


def test_the_header_that_holds_at_a_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one before it in its segment, wherever it lies in what is read at once, and no metric of that name."""
    folder = tmp_path
    headers = [Header(FORMAT_VERSION, RunSpec("u", "e", str(number), "memory"), 1) for number in range(4)]
    named = encode_line(Record(1, "metric", 1, {"lightning_loggers_journal": 1.0}))
    encoded = [encode_line(header) for header in headers]
    damaged = encoded[3].replace(b'"u"', b'"x"')
    content = [encoded[0], *lines(3), named, encoded[1], named, *lines(2), b"    " + encoded[2], *lines(9), damaged]
    segment_path(folder, "rank0", 0).write_bytes(b"".join(content))
    ends = [sum(map(len, content[: number + 1])) for number in range(len(content))]
    for size in (60, 200, 500, 2**20):
        monkeypatch.setattr(reader_module, "_CHUNK_BYTES", size)
        assert header_before(folder, "rank0", Position()) is None
        for number, end in enumerate(ends):
            found = header_before(folder, "rank0", Position(0, end))
            last = max(at for at, line in enumerate(content[: number + 1]) if line.strip(b" ") in encoded)
            assert found == headers[encoded.index(content[last].strip(b" "))], (size, number)
    assert header_before(folder, "rank0", Position(1, 5)) is None
    assert header_before(folder, "rank7", Position(0, 5)) is None


def test_a_newer_header_anywhere_is_refused_with_the_cure(tmp_path: Path) -> None:
    """Records that a newer version may have written are not guessed at: the upgrade is named."""
    header = Header(FORMAT_VERSION + 1, RunSpec("9" * 32, "n", "v", "mlflow"), 1)
    segment_path(tmp_path, "rank0", 0).write_bytes(lines(1)[0] + encode_line(header))
    with pytest.raises(JournalFormatError, match=rf"format {FORMAT_VERSION + 1}.*pip install --upgrade"):
        list(read(tmp_path))


def test_damage_is_logged_where_nobody_asked_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By default ``read`` warns of each damaged stretch with file, offset and length, and goes on."""
    first, second, third = lines(3)
    path = segment_path(tmp_path, "rank0", 0)
    path.write_bytes(first + b"garbage" + second[7:] + third)
    assert [record.step for record in read(tmp_path)] == [0, 2]
    assert caplog.messages == [
        f"{path}: {len(second) - 1} bytes at offset {len(first)} are no record (checksum does not match); skipped"
    ]
