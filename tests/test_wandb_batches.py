"""Rows go to W&B's service process together: which, in what order, and in how many turns of the SDK's thread."""

import asyncio
import math
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wandb_reading import QUIET, OfflineRun
from wandb_running import OWN, isolated, make

from lightning_loggers.adapters import wandb_batches
from lightning_loggers.adapters.wandb_batches import MOST_TOGETHER, sent_together
from lightning_loggers.delivery.worker import StepKind, Worker


@pytest.fixture(autouse=True)
def wandb_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The SDK on its own."""
    yield from isolated(tmp_path, monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Any]:
    """A run of the SDK's own, offline."""
    import wandb

    own = wandb.Settings(**{**QUIET, **OWN})
    with wandb.init(dir=tmp_path, id="r", project="p", mode="offline", settings=own) as run:
        yield run


def rows(run: Any, tmp_path: Path) -> list[dict[str, Any]]:
    """What the SDK has written, once the run has ended."""
    run.finish()
    wait_until(lambda: OfflineRun(tmp_path, "r").exit_code is not None, 10, "the end of the SDK's file")
    return [{key: value for key, value in row.items() if key[0] != "_"} for row in OfflineRun(tmp_path, "r").rows]


class Turns:
    """Counts how often the SDK's thread was asked to do something."""

    def __init__(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        asyncer = run._interface._asyncer
        ask = asyncer.run

        def counted(function: Any) -> Any:
            self.count += 1
            return ask(function)

        monkeypatch.setattr(asyncer, "run", counted)


def test_a_batch_goes_in_few_turns(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows are there, in order, and the SDK's thread was asked once for many."""
    turns = Turns(run, monkeypatch)
    number = 2 * MOST_TOGETHER + 10
    with sent_together(run):
        for step in range(number):
            run.log({"a": step, "_timestamp": 1.5})
        assert turns.count == 2
    assert turns.count == 3
    run.log({"a": number})  # as ever
    assert turns.count == 4
    assert rows(run, tmp_path) == [{"a": step} for step in range(number + 1)]


def test_large_rows_do_not_pile_up(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sent as soon as there are some megabytes of them."""
    turns = Turns(run, monkeypatch)
    with sent_together(run) as log:
        for _ in range(10):
            log({"text": "x" * 1_000_000})
        assert turns.count == 2
    assert len(rows(run, tmp_path)) == 10


def test_the_installed_sdk_is_as_known(run: Any) -> None:
    """A new version of the SDK in which rows would go one by one does not pass unseen."""
    methods = {"_publish", "_deliver", "_record_client_encode"}
    own = vars(run._interface)
    with sent_together(run):
        assert methods <= own.keys()
        with sent_together(run):  # a second one changes nothing
            run.log({"a": 1})
        assert methods <= own.keys()
    assert not methods & own.keys()


def test_another_sdk_is_left_alone() -> None:
    """Where the interface has other names, nothing is put into its place, and rows are logged by the SDK."""
    with sent_together(SimpleNamespace(log=print)) as log:
        assert log is print
    interface = SimpleNamespace(_publish=print, _client=None)
    with sent_together(SimpleNamespace(_interface=interface, log=print)) as log:
        assert interface._publish is print
        assert log is print


T: dict[str, Any] = {"_timestamp": 1.5e9}


def makes_rows(log: Any) -> bool | None:
    """Whether the rows of a batch are made by us; ``None`` before the first."""
    made: bool | None = log.__self__._makes_rows
    return made


def test_rows_of_numbers_are_made_here(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the first of a batch, which the SDK makes; they are in order with what it makes, and are counted."""
    by_sdk: list[Any] = []
    publish = type(run._interface).publish_partial_history
    monkeypatch.setattr(
        type(run._interface),
        "publish_partial_history",
        lambda self, run, data, **given: (by_sdk.append(data), publish(self, run, data, **given)),
    )
    logged = [{"a": step, "b": step / 3} for step in range(10)]
    with sent_together(run) as log:
        for row in logged[:5]:
            log(row | T)
        assert makes_rows(log) is True
        assert len(by_sdk) == 1
        log({"text": "x", **T})
        run.log({"mine": 1})
        log({"a": True, **T})
        assert len(by_sdk) == 4
        assert run.step == 8
        for row in logged[5:]:
            log(row | T)
    with sent_together(run) as log:
        log({"a": 1, **T})
    assert len(by_sdk) == 5
    between: list[dict[str, Any]] = [{"text": "x"}, {"mine": 1}, {"a": True}]
    assert rows(run, tmp_path) == [*logged[:5], *between, *logged[5:], {"a": 1}]


def test_a_row_without_its_time_is_the_sdks(run: Any, tmp_path: Path) -> None:
    """Which notes the time at which it is logged, and counts what has another number."""
    with sent_together(run) as log:
        log({"a": 0, **T})
        log({"a": 1})
        log({"a": 2, "_step": 7, **T})
        log({"a": 3, **T})
    run.finish()
    wait_until(lambda: OfflineRun(tmp_path, "r").exit_code is not None, 10, "the end of the SDK's file")
    found = OfflineRun(tmp_path, "r").rows
    assert [(row["a"], row["_step"], row["_timestamp"] > T["_timestamp"]) for row in found] == [
        (0, 0, False), (1, 1, True), (2, 2, False), (3, 3, False)
    ]  # fmt: skip


def test_a_row_made_here_is_the_sdks(run: Any) -> None:
    """Byte for byte, whatever its names and numbers: only the first one of a batch is looked at."""
    from wandb.proto import wandb_server_pb2 as server

    made: list[Any] = []
    keys = st.text(st.characters(codec="utf-8"), min_size=1)
    ours = wandb_batches._Batch(run)
    run._interface._publish = made.append

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.dictionaries(keys, st.one_of(st.floats(), st.integers(-(2**63), 2**63 - 1)), max_size=5))
    def compare(row: dict[str, float]) -> None:
        row["_timestamp"] = 1.5e9
        run.log(row)
        run._interface._assign(made[-1])
        request = server.ServerRequest()
        request.record_publish.CopyFrom(made[-1])
        assert ours._encode(row) == request.SerializeToString()

    compare()
    for length in (1, 100, 127, 128, 20_000):  # whose lengths take one byte, two, three
        compare.hypothesis.inner_test({"k" * length: 10**length if length < 10**4 else 1, "b": 0.1})
    compare.hypothesis.inner_test({f"key_{number}": number / 3 for number in range(5_000)})
    del run._interface._publish


def test_rows_that_would_be_others_are_left_to_the_sdk(tmp_path: Path) -> None:
    """A setting of the SDK's, or a new version of it, changes what is in a row's message."""
    import wandb

    own = wandb.Settings(**{**QUIET, **OWN, "x_history_value_encoding": "json,typed"})
    with wandb.init(dir=tmp_path, id="r", project="p", mode="offline", settings=own) as run:
        with sent_together(run) as log:
            for step in range(3):
                log({"a": step, "b": math.nan, **T})
            assert makes_rows(log) is False
        assert [row["a"] for row in rows(run, tmp_path)] == [0, 1, 2]


def test_fields_of_another_sdk_are_left_to_it(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That ours cannot be made stops nothing, and no row is logged twice."""

    def unknown(encoder: object, row: object) -> None:
        raise AttributeError("partial_history")

    monkeypatch.setattr(wandb_batches.RowEncoder, "encode", unknown)
    with sent_together(run) as log:
        log({"a": 1, **T})
        log({"a": 2, **T})
        assert makes_rows(log) is False
    assert rows(run, tmp_path) == [{"a": 1}, {"a": 2}]


def test_an_sdk_without_what_is_needed_logs_by_itself(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does without another package some day."""
    monkeypatch.setitem(sys.modules, "pydantic_core", None)
    with sent_together(run) as log:
        assert log == run.log
        assert "_publish" not in vars(run._interface)


def test_another_threads_row_is_not_taken_for_ours(run: Any, tmp_path: Path) -> None:
    """One that comes while the SDK makes the row that is looked at."""
    interface = run._interface
    publish = interface._publish_partial_history

    def joined(history: Any) -> None:
        publish(history)
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=run.log, args=({"theirs": 1},))
            thread.start()
            thread.join()

    interface._publish_partial_history = joined
    with sent_together(run) as log:
        log({"a": 1, **T})
        assert makes_rows(log) is False  # since not one row more is there now, but two
        log({"a": 2, **T})
    del interface._publish_partial_history
    assert rows(run, tmp_path) == [{"a": 1}, {"theirs": 1}, {"a": 2}, {"theirs": 1}]


def test_a_finished_run_takes_no_rows(run: Any, tmp_path: Path) -> None:
    """The SDK's own error, though the row would have been made here."""
    import wandb

    with sent_together(run) as log:
        log({"a": 1, **T})
        run.finish()
        with pytest.raises(wandb.errors.UsageError, match="finished"):
            log({"a": 2, **T})
    assert rows(run, tmp_path) == [{"a": 1}]


def test_a_batch_is_one_write(run: Any, tmp_path: Path) -> None:
    """Each write to the socket gives up the interpreter; only the last request comes by itself, and waits."""
    writer = run._interface._client._writer
    written: list[int] = []
    write = writer.write
    writer.write = lambda data: (written.append(len(data)), write(data))
    with sent_together(run) as log:
        for step in range(100):
            log({"a": step, **T})
    del writer.write
    assert len(written) == 3
    assert [row["a"] for row in rows(run, tmp_path)] == list(range(100))


def test_a_client_with_another_stream_writes_for_itself() -> None:
    """Nothing is put into its place."""
    client = SimpleNamespace()
    with wandb_batches._written_at_once(client):
        assert not vars(client)


def test_what_was_collected_is_written_though_the_rest_fails() -> None:
    """As the client would have done."""
    written: list[bytes] = []
    client = SimpleNamespace(_writer=SimpleNamespace(write=written.append, other=lambda: written.append(b"-")))
    stream = client._writer

    def fail() -> None:
        with wandb_batches._written_at_once(client):
            client._writer.write(b"a")
            client._writer.write(b"b")
            asyncio.run(client._writer.drain())
            client._writer.other()  # of another version of the SDK, say
            client._writer.write(b"c")
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        fail()
    assert written == [b"ab", b"-", b"c"]
    assert client._writer is stream


def test_a_question_comes_after_what_was_logged_before_it(run: Any, tmp_path: Path) -> None:
    """The SDK's service answers with the rows of the block, though they were still waiting to be sent."""
    with sent_together(run):
        run.log({"a": 7})
        assert run.summary.get("a") == 7
        run.finish()  # by somebody else's thread, say
    assert rows(run, tmp_path) == [{"a": 7}]


def test_an_error_keeps_nothing_back(run: Any, tmp_path: Path) -> None:
    """What was logged before it is sent."""

    def log_badly() -> None:
        with sent_together(run):
            run.log({"a": 1})
            run.log({2: 2})

    with pytest.raises(TypeError, match="must be strings"):
        log_badly()
    assert rows(run, tmp_path) == [{"a": 1}]


@pytest.mark.parametrize("most", [3, 1024])
def test_rows_of_other_threads(run: Any, tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread that logs to the run while batches begin and end loses nothing, and its rows keep their order."""
    monkeypatch.setattr(wandb_batches, "MOST_TOGETHER", most)  # whichever thread makes them so many sends them
    ends = threading.Event()
    logged = 0

    def other() -> None:
        nonlocal logged
        while not ends.is_set():
            run.log({"theirs": logged})
            logged += 1

    thread = threading.Thread(target=other)
    thread.start()
    number = 0
    while logged < 300 or number < 60 * 20:
        with sent_together(run):
            for _ in range(20):
                run.log({"ours": number})
                number += 1
    ends.set()
    thread.join()
    found = rows(run, tmp_path)
    assert [row["ours"] for row in found if "ours" in row] == list(range(number))
    assert [row["theirs"] for row in found if "theirs" in row] == list(range(logged))


@pytest.mark.parametrize("ends", [False, True])
def test_no_row_overtakes_those_that_another_thread_sends(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ends: bool
) -> None:
    """Neither one that is logged while they are on their way nor one behind the end of the batch."""
    asyncer, taken, overtaken = run._interface._asyncer, threading.Event(), threading.Event()
    ask = asyncer.run

    def slowly(function: Any) -> Any:
        if threading.current_thread() is not thread:
            overtaken.set()  # at the latest when the batch ends, were it not to wait
        elif not taken.is_set():
            taken.set()
            overtaken.wait(0.5)
        return ask(function)

    def fill() -> None:
        for number in range(MOST_TOGETHER - 1):
            run.log({"theirs": number})

    thread = threading.Thread(target=fill)
    monkeypatch.setattr(asyncer, "run", slowly)
    with sent_together(run):
        run.log({"ours": 0})
        thread.start()
        assert taken.wait(30)
        assert not overtaken.is_set()
        if not ends:
            run.log({"ours": 1})
    run.log({"ours": 2})
    thread.join()
    assert [row["ours"] for row in rows(run, tmp_path) if "ours" in row] == ([0, 2] if ends else [0, 1, 2])


def test_a_thread_that_was_just_about_to_publish(run: Any, tmp_path: Path) -> None:
    """What it publishes when the block has ended is sent."""
    from wandb.proto import wandb_internal_pb2 as pb

    with sent_together(run):
        publish = run._interface._publish
    record = pb.Record()
    item = record.request.partial_history.item.add()
    item.key, item.value_json = "a", "1"
    publish(record)
    run.log({"b": 2})
    assert rows(run, tmp_path) == [{"a": 1}, {"b": 2}]


def test_a_dead_service_is_told(run: Any) -> None:
    """Rows that could not be sent raise where the block ends, as the SDK would have done for the first of them."""
    interface = run._interface

    class Gone:
        async def publish(self, request: object) -> None:
            raise ConnectionResetError("gone")

    client, interface._client = interface._client, Gone()
    with pytest.raises(ConnectionResetError), sent_together(run):
        run.log({"a": 1})
    interface._client = client


def test_its_own_measure_is_taken_once_a_batch(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK's measure of its encoding costs as much as the encoding."""
    measured: list[float] = []
    monkeypatch.setattr(type(run._interface), "_record_client_encode", lambda self, seconds: measured.append(seconds))
    for _ in range(2):
        with sent_together(run):
            for step in range(5):
                run.log({"a": step})
    assert len(measured) == 2


def test_a_loggers_rows_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Delivery of a logger's rows asks the SDK's thread far less often than there are rows."""
    from wandb.sdk.lib import asyncio_manager

    asked: list[object] = []
    ask = asyncio_manager.AsyncioManager.run

    def counted(self: Any, function: Any) -> Any:
        asked.append(function)
        return ask(self, function)

    monkeypatch.setattr(asyncio_manager.AsyncioManager, "run", counted)
    logger = make(tmp_path, offline=True, delivery="offline")
    for step in range(400):
        logger.log_metrics({"a": float(step)}, step)
    logger.finalize("success")
    worker = Worker(Path(logger.log_dir or ""))
    while worker.step().kind is StepKind.PROGRESS:
        pass
    worker.close()
    wait_until(lambda: OfflineRun(tmp_path, str(logger.version)).exit_code is not None, 10, "the end of the SDK's file")
    found = OfflineRun(tmp_path, str(logger.version)).rows
    assert [row["a"] for row in found if "a" in row] == [float(step) for step in range(400)]
    assert len(asked) < 100
