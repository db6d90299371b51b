"""What delivery does when a tracker fails, played through by a scripted one: no server, no time, no chance."""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until

from lightning_loggers.adapters.base import Fault, FaultKind
from lightning_loggers.adapters.memory import MemoryRun, memory_of
from lightning_loggers.delivery.backoff import Backoff
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.journal.reader import read_first_header
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.records import Kind, Record, RunStatus
from lightning_loggers.testing import RunUnderTest, Script
from lightning_loggers.testing.scripted import authentication, bug, escaping, rejected, transient, unclassified

MakeRun = Callable[..., RunUnderTest]


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[MakeRun]:
    """Makes a run that is delivered to a scripted tracker."""
    runs: list[RunUnderTest] = []

    def make(script: Script, points: int = 0, **options: Any) -> RunUnderTest:
        run = RunUnderTest(tmp_path / str(len(runs)), "memory", options, script.adapter)
        for step in range(points):
            run.log_metrics({"loss": float(step)}, step)
        run.writer.flush()
        runs.append(run)
        return run

    yield make
    for run in runs:
        run.close()


def refusals(run: RunUnderTest) -> list[dict[str, Any]]:
    """What was set aside."""
    path = run.folder / "rejected.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps_of(script: Script) -> list[Any]:
    """The steps of all records that reached the tracker."""
    return [record.step for record in script.received]


def memory(run: RunUnderTest) -> MemoryRun:
    """What the tracker holds; ask before delivery begins, and keep it."""
    return memory_of(run.run_dir)


def poison(*steps: int, kind: FaultKind = FaultKind.REJECTED) -> Callable[[Record], Fault | None]:
    """Refuses the records of some steps."""
    return lambda record: Fault(kind, f"no step {record.step}") if record.step in steps else None


# ---------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("bad", [(0,), (63,), (17, 18), tuple(range(0, 64, 2)), tuple(range(64))], ids=len)
def test_refused_records_are_isolated_by_halving(make_run: MakeRun, bad: tuple[int, ...]) -> None:
    """Of a batch with poison in it exactly that is set aside, with its reason; all else is sent once, in order."""
    script = Script(refuse=poison(*bad))
    run = make_run(script, points=64)
    state = run.deliver()
    assert [line["record"]["step"] for line in refusals(run)] == list(bad)
    assert all(line["reason"] == f"no step {line['record']['step']}" for line in refusals(run))
    assert steps_of(script) == [step for step in range(64) if step not in bad]
    assert (state.delivered, state.rejected, run.pending) == (64 - len(bad), len(bad), 0)


def test_halving_takes_few_requests(make_run: MakeRun) -> None:
    """One poisoned record among 512 is found with some twenty requests, not 512."""
    script = Script(refuse=poison(300))
    make_run(script, points=512).deliver()
    assert len(script.calls) < 25


def test_only_the_refused_key_of_a_record_is_set_aside(make_run: MakeRun) -> None:
    """Of a record with a hundred keys, the one that is refused is set aside; the other ninety-nine arrive."""
    refused = Fault(FaultKind.REJECTED, "no 'bad'")
    script = Script(refuse=lambda record: refused if "bad" in (record.data or {}) else None)
    run = make_run(script)
    held = memory(run)
    run.log_metrics({**{f"key{number}": float(number) for number in range(99)}, "bad": float("nan")}, 5)
    run.deliver()
    assert held.most_recent_values == {f"key{number}": float(number) for number in range(99)}
    (line,) = refusals(run)
    assert (line["record"]["data"], line["record"]["nonfinite"]) == ({"bad": None}, {"bad": "nan"})


def test_refusal_is_told_with_the_place(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    """The first refusal of a cause is told with the record, the reason and the file; the others are only counted."""
    script = Script(refuse=lambda record: Fault(FaultKind.REJECTED, "too odd") if (record.step or 0) % 2 else None)
    run = make_run(script, points=20)
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        state = run.deliver()
    assert caplog.text.count("too odd") == 1
    assert str(run.folder / "rejected.jsonl") in caplog.text
    assert state.reasons == {"rejected: too odd": 10}


def test_a_fault_in_the_middle_of_halving_sends_nothing_twice(make_run: MakeRun) -> None:
    """If the tracker goes away while a batch is halved, what was acknowledged is not sent again; nothing is lost."""
    script = Script(send=[None, None, None, transient()], refuse=poison(40))
    run = make_run(script, points=64)
    state = run.deliver(faults=1)
    assert steps_of(script) == [step for step in range(64) if step != 40]
    assert (state.delivered, state.rejected, state.retried) == (63, 1, 1)


def test_secrets_of_options_are_masked_in_refusals(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    """A reason that repeats a password of the tracker's address reaches neither file nor log with it."""
    script = Script(open=[transient("http://ann:s3cr3tword@host: down")], send=[rejected("bad for s3cr3tword")])
    run = make_run(script, points=1, uri="http://ann:s3cr3tword@host")
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        run.deliver(faults=1)
    assert "down" in caplog.text
    assert refusals(run)[0]["reason"] == "bad for ***"
    assert "s3cr3tword" not in caplog.text
    for path in run.run_dir.rglob("*"):
        assert not path.is_file() or b"s3cr3tword" not in path.read_bytes(), path


def test_a_refused_status_holds_up_nothing(make_run: MakeRun) -> None:
    """A status that the tracker refuses is set aside; the records after it arrive."""
    script = Script(status=[rejected("no such status")])
    run = make_run(script, points=2)
    run.log_status(RunStatus.FINISHED)
    run.log_metrics({"loss": 9.0}, 9)
    run.deliver()
    assert steps_of(script) == [0, 1, 9]
    assert [line["record"]["kind"] for line in refusals(run)] == [Kind.STATUS]


# ---------------------------------------------------------------------- what may pass


def test_nothing_is_given_up_by_count(make_run: MakeRun) -> None:
    """After three hundred failures in a row every record is sent, each once."""
    script = Script(open=[transient()] * 100, send=[transient()] * 200)
    state = make_run(script, points=10).deliver(faults=300)
    assert steps_of(script) == list(range(10))
    assert (state.delivered, state.rejected, state.retried) == (10, 0, 300)
    assert state.reasons == {"transient": 300}


def test_a_lost_answer_means_sending_again(make_run: MakeRun) -> None:
    """Records whose acknowledgement was lost are sent again, and a tracker that deduplicates shows them once."""
    script = Script(send=[transient("answer lost", after=True)] * 3)
    run = make_run(script, points=5)
    held = memory(run)
    run.deliver(faults=3)
    assert Counter(steps_of(script)) == dict.fromkeys(range(5), 4)
    assert [value for _, _, value, _ in held.points("loss")] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_an_outage_is_told_once(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    """Fifty failures of one outage are one warning, which says where the records are."""
    run = make_run(Script(send=[transient("no route")] * 50), points=3)
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        run.deliver(faults=50)
    assert caplog.text.count("no route") == 1
    assert str(run.folder) in caplog.text


def test_waits_grow_to_the_longest_and_begin_anew(make_run: MakeRun) -> None:
    """The wait after a failure doubles, stays below the policy's longest, and is short again after a success."""
    run = make_run(Script(send=[transient()] * 10), points=1)
    backoff = Backoff(initial_s=1.0, factor=2.0, maximum_s=16.0)
    worker = Worker(run.run_dir, notices=run.notices, backoff=backoff, make_adapter=run.make_adapter)
    waits = [worker.step().wait_s for _ in range(10)]
    assert all(low / 2 <= wait <= low for wait, low in zip(waits, [1, 2, 4, 8, *[16] * 6], strict=True))
    assert worker.step().kind is StepKind.PROGRESS
    assert worker._failures == 0
    worker.close()


def test_hasten_makes_the_next_wait_short(make_run: MakeRun) -> None:
    """When somebody waits for the end, the waits of a long outage begin anew."""
    run = make_run(Script(send=[transient()] * 10), points=1)
    worker = Worker(run.run_dir, backoff=Backoff(1.0, 2.0, 60.0), make_adapter=run.make_adapter)
    before = [worker.step().wait_s for _ in range(6)]
    worker.hasten()
    assert before[-1] > 8
    assert worker.step().wait_s <= 2
    worker.close()


def test_what_the_tracker_asks_is_waited(make_run: MakeRun) -> None:
    """A Retry-After longer than the policy's wait is waited in full."""
    run = make_run(Script(send=[transient("429", retry_after_s=77.0)]), points=1)
    worker = run.worker()
    assert worker.step().wait_s >= 77.0
    worker.close()


def test_batches_shrink_after_a_fault_and_grow_again(make_run: MakeRun) -> None:
    """After a failure less is sent at once, so that sending it again is cheap; with success it grows to what it was."""
    script = Script(send=[transient(), transient()])
    make_run(script, points=20_000).deliver(faults=2)
    sizes = [size for call, size in script.calls if call == "send"]
    assert sizes[0] > sizes[1] > sizes[2]
    assert max(sizes[3:]) > sizes[2]
    assert max(sizes[3:]) == pytest.approx(sizes[0], rel=0.1)
    assert steps_of(script) == list(range(20_000))


# ---------------------------------------------------------------------- who is not let in


def test_wrong_credentials_are_told_once_and_cost_no_record(
    make_run: MakeRun, caplog: pytest.LogCaptureFixture
) -> None:
    """A tracker that does not let us in is told of once, with the command for later, and asked again each minute."""
    script = Script(open=[authentication("401")] * 3)
    run = make_run(script, points=4)
    worker = run.worker()
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        waits = [worker.step().wait_s for _ in range(3)]
    assert all(wait >= 60 for wait in waits)
    assert caplog.text.count("does not let this run in: 401") == 1
    assert f"lightning-loggers sync {run.run_dir}" in caplog.text
    worker.close()
    assert (run.deliver().delivered, refusals(run)) == (4, [])


def test_credentials_that_expire_cost_no_record(make_run: MakeRun) -> None:
    """Being locked out in the middle of a run, even record by record, refuses none of them."""
    script = Script(refuse=poison(7, kind=FaultKind.AUTHENTICATION))
    run = make_run(script, points=10)
    worker = run.worker()
    assert [worker.step().kind for _ in range(3)] == [StepKind.FAILED] * 3
    worker.close()
    script.refuse = lambda record: None
    assert (run.deliver().delivered, refusals(run)) == (10, [])


def test_a_refused_run_is_no_refused_record(make_run: MakeRun) -> None:
    """If the tracker refuses the run itself no record is blamed: delivery waits for a person, as for credentials."""
    script = Script(open=[rejected("no such experiment")])
    run = make_run(script, points=4)
    worker = run.worker()
    step = worker.step()
    assert (step.kind, step.reason) == (StepKind.FAILED, "no such experiment")
    assert step.wait_s >= 60
    worker.close()
    assert (run.deliver().delivered, refusals(run)) == (4, [])


# ---------------------------------------------------------------------- what is broken


def test_a_bug_before_anything_passed_blames_no_record(make_run: MakeRun) -> None:
    """As long as nothing at all passes, a defect is tried again; no record is set aside for it."""
    run = make_run(Script(send=[bug("broken SDK")] * 12), points=4)
    state = run.deliver(faults=100)
    assert (state.delivered, refusals(run)) == (4, [])


def test_a_bug_of_one_record_sets_only_it_aside(make_run: MakeRun) -> None:
    """Once records have passed, those that the adapter cannot bring over are set aside as bugs; the rest goes on."""
    script = Script(refuse=poison(5, 11, kind=FaultKind.BUG))
    run = make_run(script, points=20)
    state = run.deliver()
    assert steps_of(script) == [step for step in range(20) if step not in {5, 11}]
    assert [(line["fault"], line["record"]["step"]) for line in refusals(run)] == [("bug", 5), ("bug", 11)]
    assert (state.rejected, run.pending) == (2, 0)


@pytest.mark.parametrize("bad", [(0,), (0, 1, 2), (3, 7), (0, 19), tuple(range(19))], ids=len)
def test_a_bug_of_the_first_record_holds_up_nothing(make_run: MakeRun, bad: tuple[int, ...]) -> None:
    """Even if nothing has passed before, records that the adapter cannot bring over are told from a broken adapter."""
    script = Script(refuse=poison(*bad, kind=FaultKind.BUG))
    run = make_run(script, points=20)
    state = run.deliver()
    assert sorted(set(steps_of(script))) == [step for step in range(20) if step not in bad]
    assert [line["record"]["step"] for line in refusals(run)] == list(bad)
    assert (state.rejected, run.pending) == (len(bad), 0)


@pytest.mark.parametrize("error", [escaping("boom"), unclassified("boom"), ZeroDivisionError("boom")], ids=str)
def test_an_adapter_that_breaks_its_contract_ends_nothing(make_run: MakeRun, error: Exception) -> None:
    """An adapter that raises, cannot say what an error means, or meets one that it does not know, costs a retry."""
    script = Script(send=[error])
    run = make_run(script, points=1)
    worker = run.worker()
    step = worker.step()
    assert step.kind is StepKind.FAILED
    assert "boom" in step.reason
    worker.close()
    assert (run.deliver().delivered, refusals(run)) == (1, [])


# ---------------------------------------------------------------------- hosts


def test_the_cursor_moves_only_over_what_was_acknowledged(make_run: MakeRun) -> None:
    """A host that dies after any request leaves a cursor behind which everything was acknowledged, and nothing else."""
    script = Script()
    run = make_run(script, points=3_000)
    worker = run.worker()
    worker._read_bytes = 2**14
    acknowledged = []
    while worker.step().kind is StepKind.PROGRESS:
        assert worker.state is not None
        acknowledged.append(len(script.received))
        assert run.state.delivered == len(script.received)
        assert run.state.cursors == worker.state.cursors
        assert run.pending == 3_000 - len(script.received)
    worker.close()
    assert len(acknowledged) >= 5


def test_a_step_says_whether_more_is_there_already(make_run: MakeRun) -> None:
    """While a backlog is worked off there is no wait between steps; when it is done the next one is a second away."""
    run = make_run(Script(), points=3_000)
    worker = run.worker()
    worker._read_bytes = 2**14
    waits = []
    while (step := worker.step()).kind is StepKind.PROGRESS:
        waits.append(step.wait_s)
    worker.close()
    assert len(waits) >= 5
    assert waits == [0.0] * (len(waits) - 1) + [1.0]


def test_no_stream_waits_for_another_that_goes_on_growing(make_run: MakeRun) -> None:
    """Of a run with two streams each step delivers from both: one that is logged to all the time holds none up."""
    script = Script()
    run = make_run(script, points=3)
    header = read_first_header(run.folder)
    assert header is not None
    second = JournalWriter(run.folder, header.run, normalise_metrics=dict)
    for step in range(100, 103):
        second.append_metrics({"loss": float(step)}, step)
    second.flush()
    worker = run.worker()
    for _ in range(2):  # after its header's step
        run.log_metrics({"loss": 9.0}, 9)
        worker.step()
    assert {100, 101, 102} <= set(steps_of(script))
    worker.close()
    second.close()


def test_a_second_host_keeps_out(make_run: MakeRun) -> None:
    """While one worker serves a run another finds it busy; when the first lets go, the second goes on where it was."""
    script = Script()
    run = make_run(script, points=3)
    first, second = run.worker(), run.worker()
    assert first.step().kind is StepKind.PROGRESS
    run.log_metrics({"loss": 3.0}, 3)
    assert second.step().kind is StepKind.BUSY
    first.close()
    assert second.step().kind is StepKind.PROGRESS
    assert second.step().kind is StepKind.IDLE
    second.close()
    assert steps_of(script) == [0, 1, 2, 3]


def test_a_slow_tracker_does_not_hold_up_logging(make_run: MakeRun) -> None:
    """While a request hangs, log calls go on and the worker can be told to stop; then everything is there once."""
    answers = threading.Event()
    script = Script(send=[answers])
    run = make_run(script, points=5)
    worker = run.worker()
    thread = threading.Thread(target=worker.step)
    thread.start()
    wait_until(lambda: ("send", 5) in script.calls, what="the request")
    for step in range(5, 1_005):
        run.log_metrics({"loss": float(step)}, step)
    assert script.received == []
    worker.stopping.set()
    answers.set()
    thread.join(30)
    assert not thread.is_alive()
    worker.close()
    run.deliver()
    assert steps_of(script) == list(range(1_005))


def test_a_stopping_host_counts_no_failure(make_run: MakeRun) -> None:
    """A worker that is told to stop sends no further batch and blames nobody."""
    script = Script()
    run = make_run(script, points=3)
    worker = run.worker()
    worker.stopping.set()
    assert worker.step().kind is StepKind.FAILED
    assert worker.state is not None
    assert (worker.state.retried, worker.last_fault, script.calls) == (0, None, [])
    worker.close()


def test_a_dead_run_is_closed_as_failed_however_often_that_fails(make_run: MakeRun) -> None:
    """The run of a process that died without a word is shown as failed, as soon as the tracker takes that."""
    script = Script(status=[transient()] * 3)
    run = make_run(script, points=3)
    run.close()
    worker = run.worker()
    deadline = time.monotonic() + 60
    while script.statuses != [RunStatus.FAILED]:
        if worker.step().kind is StepKind.IDLE:
            worker.finish_dead()
        assert time.monotonic() < deadline
    assert steps_of(script) == [0, 1, 2]
    assert worker.finish_dead().kind is StepKind.IDLE
    worker.close()
    assert script.calls.count(("status", 0)) == 4


def test_statuses_stay_between_the_records_around_them(make_run: MakeRun) -> None:
    """A status is set after the records before it, before those behind it; a run that goes on is running again."""
    script = Script()
    run = make_run(script, points=2)
    run.log_status(RunStatus.FAILED)
    run.log_metrics({"loss": 2.0}, 2)
    run.log_status(RunStatus.FINISHED)
    run.deliver()
    assert script.statuses == [RunStatus.FAILED, RunStatus.RUNNING, RunStatus.FINISHED]
    assert [call for call, _ in script.calls] == ["open", "send", "status", "status", "send", "status"]
