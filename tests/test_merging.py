"""Merging ranks: in any order of arrival every value is in one point, and nobody is waited for for ever."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_loggers import LogPolicy
from lightning_loggers.adapters.memory import memory_of
from lightning_loggers.cli import console, main
from lightning_loggers.delivery import worker as worker_module
from lightning_loggers.delivery.merging import Merged, RankMerger
from lightning_loggers.delivery.stragglers import paces
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.journal.layout import journal_dir
from lightning_loggers.journal.reader import Entry, Position
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.records import Header, RankRules, Record, RunSpec


def header(attempt: int = 0) -> Header:
    """The first line of a session."""
    return Header(1, RunSpec("u", "e", "v", "memory", ranks=RankRules(attempt=attempt)), 0)


def metric(step: int | float | None, **data: float) -> Record:
    """A metric record."""
    return Record(1, "metric", step, data)


def status(word: str = "finished") -> Record:
    """A rank's word on the end."""
    return Record(1, "status", value=word)


class Stream:
    """One rank's stream, handed to a merger line by line."""

    def __init__(self, merger: RankMerger, rank: int) -> None:
        self.merger, self.name, self.offset = merger, f"rank{rank}", 0

    def say(self, *lines: Record | Header, now_s: float = 0.0, live: bool = True, unread: bool = False) -> None:
        """Have it logged, and read."""
        entries = []
        for line in lines:
            self.offset += 1
            entries.append(Entry(line, Position(0, self.offset)))
        self.merger.feed(self.name, entries, Position(0, self.offset), now_s, live=live, unread=unread)


def points(merged: Iterable[Merged]) -> list[tuple[Any, dict[str, Any]]]:
    """Step and data of what goes to the tracker as metrics."""
    return [(m.line.step, m.line.data or {}) for m in merged if isinstance(m.line, Record) and m.line.kind == "metric"]


def merger_of(ranks: int, **rules: Any) -> tuple[RankMerger, list[Stream], list[tuple[int, Any]]]:
    """A merger, its streams, and the list of what it told of missing ranks."""
    missing: list[tuple[int, Any]] = []
    merger = RankMerger(RankRules(tuple(range(ranks)), **rules), lambda rank, key: missing.append((rank, key[1])))
    return merger, [Stream(merger, rank) for rank in range(ranks)], missing


def test_values_of_a_step_become_one_point_by_their_functions() -> None:
    """Mean by default, a named function by key or pattern, and one series per rank where that is asked for."""
    how = {"lr": "max", "time/*": "sum", "own": "per_rank"}
    merger, streams, missing = merger_of(3, how=how)
    for rank, stream in enumerate(streams):
        stream.say(
            header(), metric(0, loss=rank, lr=rank, own=rank), metric(0, **{"time/step": 2.0}), metric(1, loss=9)
        )
    expected = {"loss": 1.0, "lr": 2, "time/step": 6.0, "own/rank0": 0, "own/rank1": 1, "own/rank2": 2}
    assert points(merger.take(0.0)) == [(0, expected)]
    assert not missing


def test_step_waits_for_a_late_rank_and_no_longer_than_told() -> None:
    """A step waits for a rank that has not logged it; after ``wait_s`` it is merged without it, which is told."""
    merger, streams, missing = merger_of(2, wait_s=10.0)
    streams[0].say(header(), metric(0, loss=1.0), metric(1, loss=1.0), now_s=0.0)
    streams[1].say(header(), now_s=0.0)
    assert points(merger.take(9.9)) == []
    assert points(merger.take(10.0)) == [(0, {"loss": 1.0}), (1, {"loss": 1.0})]
    assert missing == [(1, 0), (1, 1)]
    streams[1].say(metric(0, loss=5.0), metric(1, loss=6.0), metric(2, loss=3.0), now_s=11.0)
    streams[0].say(metric(2, loss=1.0), metric(3, loss=1.0), now_s=11.0)
    late = merger.take(11.0)
    assert points(late) == [(0, {"loss/rank1": 5.0}), (1, {"loss/rank1": 6.0})]
    assert all(item.straggles for item in late)
    streams[1].say(metric(3, loss=3.0), now_s=11.0)
    assert points(merger.take(11.0)) == [(2, {"loss": 2.0})]


def test_dead_rank_is_not_waited_for() -> None:
    """Once a rank's process is gone and all of its lines are read, the others' steps go on at once."""
    merger, streams, missing = merger_of(2, wait_s=1e6)
    streams[0].say(header(), metric(0, loss=1.0), metric(1, loss=1.0), metric(2, loss=1.0))
    streams[1].say(header(), metric(0, loss=3.0))
    assert points(merger.take(0.0)) == []
    streams[1].say(live=False)
    assert points(merger.take(0.0)) == [(0, {"loss": 2.0}), (1, {"loss": 1.0})]
    assert missing == [(1, 1)]


def test_what_is_on_disk_is_not_late() -> None:
    """A rank whose lines are there but not read yet is not missing, however long reading takes."""
    merger, streams, missing = merger_of(2, wait_s=1.0)
    streams[0].say(header(), metric(0, loss=1.0), metric(1, loss=1.0))
    streams[1].say(header(), unread=True)
    assert points(merger.take(100.0)) == []
    streams[1].say(metric(0, loss=3.0), metric(1, loss=1.0))
    assert points(merger.take(100.0))[0] == (0, {"loss": 2.0})
    assert not missing


def test_rank_that_is_far_ahead_is_waited_for_at_leisure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as much is read ahead as may be, delivery looks for the late rank now and then, and does not spin."""
    monkeypatch.setattr(worker_module, "_MOST_READ_AHEAD", 3)
    run = RunSpec("u", "e", "v", "memory", ranks=RankRules((0, 1), wait_s=3600.0))
    early, late = (JournalWriter(journal_dir(tmp_path), run, rank=rank, normalise_metrics=dict) for rank in range(2))
    for step in range(6):
        early.append_metrics({"loss": 1.0}, step)
    late.append_metrics({"loss": 3.0}, 0)
    worker = Worker(tmp_path)
    steps = [worker.step() for _ in range(6)]
    assert [(step.kind, step.wait_s) for step in steps[-3:]] == [(StepKind.IDLE, worker_module.POLL_S)] * 3
    for step in range(1, 6):
        late.append_metrics({"loss": 3.0}, step)
    while worker.step().kind is StepKind.PROGRESS:
        pass
    assert memory_of(tmp_path).points("loss")[-1][2] == 2.0
    for held in (early, late, worker):
        held.close()


def test_another_host_goes_on_behind_the_headers_of_some_ranks(tmp_path: Path) -> None:
    """A rank whose header another host has counted as delivered is of the same start of the job as the others.

    So it is where a host ends before the last rank has begun: the tracker hangs, the trainer is killed, delivery moves.
    """
    run = RunSpec("u", "e", "v", "memory", ranks=RankRules((0, 1, 2), attempt=7))

    def rank(number: int) -> JournalWriter:
        writer = JournalWriter(journal_dir(tmp_path), run, rank=number, normalise_metrics=dict)
        writer.append_metrics({"loss": float(number)}, 0)
        return writer

    writers = [rank(0), rank(1)]
    first = Worker(tmp_path)
    first.step()
    first.close()
    assert first.state is not None
    assert set(first.state.cursors) == {"rank0", "rank1"}
    for writer in (*writers, rank(2)):
        writer.close()
    second = Worker(tmp_path)
    while second.step().kind is StepKind.PROGRESS:
        pass
    assert [(step, value) for _, step, value, _ in memory_of(tmp_path).points("loss")] == [(0, 1.0)]
    second.close()


def test_end_of_the_run_comes_last() -> None:
    """Rank 0's word on the end waits for what the others still log, as long as they live and ``wait_s`` is not over."""
    merger, streams, _ = merger_of(2, wait_s=10.0)
    streams[0].say(header(), metric(0, loss=1.0), status())
    streams[1].say(header(), metric(0, loss=3.0))
    assert points(merger.take(0.0)) == []
    assert merger.ending
    streams[1].say(metric(1, loss=7.0), status(), now_s=1.0)
    taken = [*merger.take(1.0), *merger.take(1.0)]
    kinds = [(m.line.kind, m.line.data) for m in taken if isinstance(m.line, Record) and m.line.kind]
    assert kinds == [("metric", {"loss": 2.0}), ("metric", {"loss": 7.0}), ("status", None)]
    assert not merger.ending
    hung, others, _ = merger_of(2, wait_s=10.0)
    others[0].say(header(), status())
    others[1].say(header())
    for now_s, words in ((9.0, []), (10.0, ["finished"])):
        assert [m.line.value for m in hung.take(now_s) if isinstance(m.line, Record) and m.line.kind] == words


def test_steps_of_a_job_that_was_started_again_do_not_mix() -> None:
    """A rank that is still read in the first attempt does not lend its steps to the second one of the others."""
    merger, streams, _ = merger_of(2)
    for stream, value in zip(streams, (1.0, 3.0), strict=True):
        stream.say(header(1), metric(5, loss=value), metric(6, loss=value))
    streams[0].say(header(2), metric(5, loss=10.0), metric(6, loss=10.0), status())
    streams[1].say(metric(7, loss=3.0), header(2), metric(5, loss=30.0), metric(6, loss=30.0), status())
    assert [(step, data["loss"]) for step, data in points(merger.take(0.0))] == [
        (5, 2.0), (6, 2.0), (7, 3.0), (5, 20.0), (6, 20.0),
    ]  # fmt: skip


def test_other_kinds_pass_under_names_that_say_whose_they_are() -> None:
    """A text of another rank is shown under its rank's name; what belongs to the run is rank 0's alone."""
    merger, streams, _ = merger_of(2)
    for stream in streams:
        stream.say(Record(1, "param", data={"lr": 0.1}), Record(1, "text", id="note", value="x"), metric(None, a=1.0))
    records = [m.line for m in merger.take(0.0) if isinstance(m.line, Record) and m.line.kind]
    assert [(r.kind, r.id, r.data) for r in records] == [
        ("param", None, {"lr": 0.1}), ("text", "note", None), ("metric", None, {"a": 1.0}),
        ("text", "note/rank1", None), ("metric", None, {"a/rank1": 1.0}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "wrong", [{"merge_ranks": "maen"}, {"merge_ranks_by_key": {"a": "x"}}, {"rank_wait_s": -1}]
)  # fmt: skip
def test_wrong_rules_are_refused(wrong: dict[str, Any]) -> None:
    """An unknown function or a negative wait raises where the policy is made."""
    with pytest.raises(ConfigurationError):
        LogPolicy(log_on_workers=-1, **wrong)


def test_rules_follow_from_the_policy() -> None:
    """Rank 0 alone needs no merging; a list of ranks is cut to those that there are."""
    assert LogPolicy().rank_rules(4) is None
    rules = LogPolicy(log_on_workers=-1).rank_rules(3, 7)
    assert rules is not None
    assert (rules.ranks, rules.attempt) == ((0, 1, 2), 7)
    chosen = LogPolicy(log_on_workers=[0, 2, 9]).rank_rules(4)
    assert chosen is not None
    assert chosen.ranks == (0, 2)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), ranks=st.integers(1, 4))
def test_every_value_is_in_exactly_one_point(data: st.DataObject, ranks: int) -> None:
    """In any interleaving, with skipped steps and dying ranks, values are neither lost nor doubled, cursors only grow.

    Every value is a power of two of its own, merged by ``sum``: what came out is the sum of all that went in.
    """
    merger, streams, _ = merger_of(ranks, default="sum", wait_s=5.0)
    lines: list[list[Record | Header]] = []
    total = 0
    for rank in range(ranks):
        steps = sorted(data.draw(st.lists(st.integers(0, 6), max_size=6)))
        own: list[Record | Header] = [header()]
        for step in steps:
            value = 2 ** (total := total + 1)
            own.append(metric(step, a=value))
        if rank == 0 or data.draw(st.booleans()):
            own.append(status())
        lines.append(own)
    given_in = sum((r.data or {}).get("a", 0) for own in lines for r in own if isinstance(r, Record))
    out: list[Merged] = []
    now_s = 0.0
    left = [list(own) for own in lines]
    while any(left):
        rank = data.draw(st.sampled_from([r for r in range(ranks) if left[r]]))
        count = data.draw(st.integers(1, len(left[rank])))
        streams[rank].say(*left[rank][:count], now_s=now_s, live=True, unread=data.draw(st.booleans()))
        del left[rank][:count]
        now_s += data.draw(st.sampled_from([0.0, 1.0, 6.0]))
        out += merger.take(now_s)
    for stream in streams:
        stream.say(now_s=now_s, live=False)
    for _ in range(sum(map(len, lines)) + 1):
        out += merger.take(now_s)
    assert sum(sum(found.values()) for _, found in points(out)) == given_in
    ends: Counter[str] = Counter()
    for item in out:
        for name, end in item.ends.items():
            assert end.offset > ends[name]
            ends[name] = end.offset
    assert ends == Counter({stream.name: stream.offset for stream in streams})
    assert [m.line.value for m in out if isinstance(m.line, Record) and m.line.kind == "status"] == ["finished"]


def test_pace_of_every_rank_comes_out_of_the_journal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time between a rank's steps is known without anybody having measured it, the slowest rank first."""
    for rank, step_s in ((0, 0.1), (1, 0.5)):
        writer = JournalWriter(
            tmp_path / "journal",
            RunSpec("u", "e", "v", "memory"),
            rank=rank,
            normalise_metrics=lambda data: (dict(data), []),
        )
        for step in range(20):
            time_ns = int(step * step_s * 1e9)
            writer.append(Record(time_ns, "metric", step, {"loss": 1.0}))
            writer.append(Record(time_ns + 1000, "metric", step, {"more": 1.0}))
        writer.close()
    slow, quick = paces(tmp_path)
    assert (slow.rank, slow.steps, slow.median_s, slow.last_step) == (1, 20, pytest.approx(0.5), 19)
    assert (quick.rank, quick.median_s, quick.slowest_s) == (0, pytest.approx(0.1), pytest.approx(0.1))
    monkeypatch.setattr(console, "take_over_logging", lambda: None)
    assert main(["status", str(tmp_path)]) == 0
    assert "rank 1 takes 0.5 s a step" in " ".join(capsys.readouterr().out.split())
