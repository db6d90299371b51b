"""Rows go to W&B's service process together: which, in what order, and in how many turns of the SDK's thread."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import wait_until
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
    """Where the interface has other names, nothing is put into its place."""
    with sent_together(SimpleNamespace()):
        pass
    interface = SimpleNamespace(_publish=print, _client=None)
    with sent_together(SimpleNamespace(_interface=interface)):
        assert interface._publish is print


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


@pytest.mark.parametrize("most", [3, 256])
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
def test_no_row_overtakes_those_that_another_thread_sends(run: Any, tmp_path: Path, *, ends: bool) -> None:
    """Neither one that is logged while they are on their way nor one behind the end of the batch."""
    interface, taken = run._interface, threading.Event()
    assign = interface._assign

    def slowly(record: Any) -> None:
        if threading.current_thread() is thread and not taken.is_set():
            taken.set()
            time.sleep(0.5)
        assign(record)

    def fill() -> None:
        for number in range(MOST_TOGETHER - 1):
            run.log({"theirs": number})

    thread = threading.Thread(target=fill)
    interface._assign = slowly
    with sent_together(run):
        run.log({"ours": 0})
        thread.start()
        assert taken.wait(30)
        if not ends:
            run.log({"ours": 1})
    run.log({"ours": 2})
    thread.join()
    interface._assign = assign
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
