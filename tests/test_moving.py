"""Delivery by a thread of the trainer or a process of its own, and how it moves between them."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from mlflow import MlflowClient
from mlflow_reading import assert_exactly_once, only_run
from warm_python import WarmPython

from lightning_loggers import CSVLogger, LogPolicy, MLFlowLogger, TensorBoardLogger
from lightning_loggers.adapters.base import Fault, FaultKind
from lightning_loggers.adapters.mlflow import MLflowAdapter
from lightning_loggers.delivery import moving
from lightning_loggers.delivery.discover import find_runs
from lightning_loggers.delivery.moving import Allowance, MovingHost
from lightning_loggers.delivery.pending import pending_of
from lightning_loggers.delivery.state import StateFile
from lightning_loggers.journal.layout import journal_dir

Make = Callable[..., MLFlowLogger]


@pytest.fixture(autouse=True)
def _sdk_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are begun by the thread, where a test does not say otherwise: the process has made others before."""
    monkeypatch.setattr(moving, "_has_begun", True)


@pytest.fixture
def sdk_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not imported the SDK and makes its first run."""
    monkeypatch.setattr(moving, "_has_begun", False)
    monkeypatch.setattr(MLflowAdapter, "is_loaded", classmethod(lambda _cls, _options: False))


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is begun never gets ready."""
    program = tmp_path / "stuck"
    program.write_text("#!/bin/sh\nexec cat\n")  # until its standard input is closed
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))


class Looks:
    """Counts how often a thread has looked for the process that it waits for, instead of delivering."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        is_ready = moving._TellingChild.is_ready

        def counted(child: Any) -> bool:
            self.count += 1
            return bool(is_ready(child))

        monkeypatch.setattr(moving._TellingChild, "is_ready", counted)

    def wait_for(self, number: int) -> None:
        """Wait until it has done so many more times."""
        enough = self.count + number
        wait_until(lambda: self.count >= enough, 60, "the thread's looks")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    """Counts them from here on."""
    return Looks(monkeypatch)


@pytest.fixture
def make(tmp_path: Path, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes a logger whose thread may compute nothing: it moves as soon as it can."""
    monkeypatch.setattr(moving, "SHARE", 0.0)
    monkeypatch.setattr(moving, "AT_ONCE_S", 0.0)
    made: list[MLFlowLogger] = []

    def make(**given: Any) -> MLFlowLogger:
        made.append(MLFlowLogger("e", tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", **given))
        return made[-1]

    yield make
    for logger in made:
        logger.close()
        if logger._host is not None:
            child = child_of(logger)._child
            wait_until(lambda child=child: child is None or not child.working(), 60, "the end of the child")


@pytest.fixture(scope="module")
def python() -> Iterator[WarmPython]:
    """Runs programs in processes of their own."""
    with WarmPython() as python:
        yield python


class Steady:
    """Logs ``loss`` step by step."""

    def __init__(self, logger: MLFlowLogger) -> None:
        self.logger = logger
        self.step = 0

    def log(self, number: int) -> None:
        """Log so many more."""
        for _ in range(number):
            self.logger.log_metrics({"loss": self.step * 0.5}, self.step)
            self.step += 1

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Log until something has come true."""

        def holds() -> bool:
            self.log(5)
            return condition()

        wait_until(holds, 60, what)

    def until_moved(self) -> None:
        """Log until a process delivers."""
        self.until(lambda: child_of(self.logger).moved, "the move")

    def assert_delivered(self, uri: str, status: str = "FINISHED") -> None:
        """All of it is at the tracker, once."""
        run = only_run(uri, "e")
        assert run.info.status == status
        assert_exactly_once(uri, run.info.run_id, "loss", [(step, step * 0.5) for step in range(self.step)])


def child_of(logger: MLFlowLogger) -> MovingHost:
    """The host, which knows the child."""
    assert isinstance(logger._host, MovingHost)
    return logger._host


def pid_of(logger: MLFlowLogger) -> int:
    """The process that delivers."""
    host, pids = child_of(logger), list[int]()

    def found() -> bool:
        child = host._child
        if child is not None and child._child is not None:
            pids.append(child._child.pid)
        return bool(pids)

    wait_until(found, 30, "its start")
    return pids[0]


def is_alive(pid: int) -> bool:
    """Whether there is such a process, that is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_delivered(run_dir: Path) -> bool:
    """Whether nothing of a run is pending."""
    state = StateFile(journal_dir(run_dir), "mlflow").load("mlflow")
    return pending_of(run_dir, state)[0] == 0


# ---------------------------------------------------------------------- when


def test_what_a_thread_may_compute() -> None:
    """A share of the time for good, and a sum at once that fills up again."""
    now = 0.0
    allowance = Allowance(0.02, 0.25, clock=lambda: now)
    assert allowance.pays_for(0.2)
    assert not allowance.pays_for(0.1)
    for _ in range(100):
        now += 1.0
        assert allowance.pays_for(0.02 - 1e-9)
    assert not allowance.pays_for(0.03)
    now += 1000.0
    assert allowance.pays_for(0.25)
    assert not allowance.pays_for(0.01), "no more is saved than may be spent at once"


def test_a_light_delivery_stays(mlflow_sqlite: str, tmp_path: Path) -> None:
    """What costs less than the allowance is delivered by the thread, with the defaults."""
    logger = MLFlowLogger("e", tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    steady = Steady(logger)
    logger.log_metrics({"other": 1.0}, 0)
    logger.wait_for_run(60)
    for _ in range(5):
        steady.log(20)
        time.sleep(0.2)
    logger.finalize("success")
    assert not child_of(logger).moved
    assert child_of(logger)._child is None
    logger.close()
    steady.assert_delivered(mlflow_sqlite)


def test_what_a_start_costs_is_not_counted(make: Make, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is only begun and ended starts no process."""
    monkeypatch.setattr(moving, "AT_ONCE_S", 0.02)  # which looking into the journal does not take
    logger = make()
    steady = Steady(logger)
    steady.log(1)
    logger.finalize("success")
    assert child_of(logger)._child is None
    steady.assert_delivered(mlflow_sqlite)


def test_a_run_of_several_ranks_stays(make: Make) -> None:
    """Which ranks were late for which step is known to the worker that merged them."""
    logger = make(policy=LogPolicy(log_on_workers=-1))
    for step in range(200):
        logger.log_metrics({"loss": 1.0}, step)
    logger.wait_for_run(60)
    host = child_of(logger)
    wait_until(lambda: not host._hurried(), 60, "nobody to wait")
    for step in range(200, 400):
        logger.log_metrics({"loss": 1.0}, step)
    wait_until(lambda: logger.stats.pending <= 1, 60, "delivery")  # the last step may still get more
    assert host._worker is not None
    assert host._worker.opened
    assert not host._worker.may_be_handed_over
    assert host._child is None


def test_nothing_moves_while_the_tracker_fails(make: Make, mlflow_sqlite: str) -> None:
    """What failed is sent again as it was, by the worker that has sent it."""
    logger = make()
    steady = Steady(logger)
    steady.until(lambda: child_of(logger)._child is not None, "the process")
    host = child_of(logger)
    worker, child = host._worker, host._child
    assert worker is not None
    assert child is not None
    fault = Fault(FaultKind.TRANSIENT, "away")

    class Failing:
        """In place of the worker's adapter."""

        asked = 0

        def write(self, records: object) -> Fault:
            self.asked += 1
            return fault

        def close(self) -> None:
            """Nothing."""

    adapter, failing = worker._adapter, Failing()
    worker._adapter = failing  # type: ignore[assignment]
    host.hasten(60)  # the thread waits for the process otherwise
    steady.until(lambda: worker.last_fault is not None, "the fault")
    host.relax()
    wait_until(child.is_ready, 60, "the process to be ready")
    before = failing.asked

    def asked_again() -> bool:
        host._wakes.put(None)
        return failing.asked >= before + 2 or host.moved

    wait_until(asked_again, 60, "two more attempts")
    assert not host.moved
    worker._adapter = adapter
    steady.until_moved()
    logger.close()
    steady.assert_delivered(mlflow_sqlite)


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_other_trackers_stay_in_the_thread(tmp_path: Path, kind: Any) -> None:
    """``delivery="auto"`` is a thread where the tracker's adapter does not say that it may move."""
    logger = kind(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    assert not isinstance(logger._host, MovingHost)
    logger.close()


# ---------------------------------------------------------------------- begun by a process

FIRST_RUNS = """
import os, sys, time
from lightning_loggers import MLFlowLogger
moved = []
for run in range(2):
    logger = MLFlowLogger("e", tracking_uri=sys.argv[2], save_dir=sys.argv[1], run_name=str(run))
    for step in range(300):
        logger.log_metrics({"loss": step * 0.5}, step)
    logger.finalize("success")
    moved.append((logger._host.moved, "mlflow" in sys.modules, logger.stats.pending))
    logger.close()
print(moved)
"""


def test_the_first_run_of_a_process_imports_no_sdk(mlflow_sqlite: str, tmp_path: Path, python: WarmPython) -> None:
    """A process of its own imports it, also where the run is soon over; the second run is begun by the thread."""
    done = python.run(FIRST_RUNS, tmp_path / "runs", mlflow_sqlite).ok()
    assert done.stdout == "[(True, False, 0), (False, True, 0)]\n", done.stderr
    runs = MlflowClient(mlflow_sqlite).search_runs(["1"])
    assert sorted(run.info.run_name or "" for run in runs) == ["0", "1"]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", [(step, step * 0.5) for step in range(300)])


@pytest.mark.usefixtures("sdk_is_elsewhere")
def test_a_process_that_cannot_begin(
    make: Make, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread delivers, and the user is told once where to look."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    logger = make()
    steady = Steady(logger)
    steady.log(100)
    logger.finalize("success")
    assert logger.stats.pending == 0
    assert not child_of(logger).moved
    logger.close()
    steady.assert_delivered(mlflow_sqlite)
    assert caplog.text.count("has ended by itself") == 1


@pytest.mark.usefixtures("sdk_is_elsewhere", "stuck")
def test_a_process_that_never_gets_ready(
    make: Make, looks: Looks, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records wait for it as long as nobody waits for them, but not for ever; then the thread delivers."""
    monkeypatch.setattr(moving, "READY_WITHIN_HURRIED_S", 0.5)
    logger = make()
    steady = Steady(logger)
    steady.log(10)
    pid = pid_of(logger)
    looks.wait_for(15)  # which takes longer than half a second
    worker = child_of(logger)._worker
    assert worker is not None
    assert not worker.delivers
    logger.finalize("success")
    assert logger.stats.pending == 0
    steady.assert_delivered(mlflow_sqlite)
    logger.close()
    wait_until(lambda: not is_alive(pid), 30, "the end of the process")


@pytest.mark.usefixtures("sdk_is_elsewhere", "stuck")
def test_waiting_for_a_process_ends(make: Make, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread delivers in the end, though nobody asks."""
    monkeypatch.setattr(moving, "READY_WITHIN_S", 0.5)
    logger = make()
    steady = Steady(logger)
    steady.log(10)
    wait_until(lambda: logger.stats.pending == 0, 60, "delivery")
    logger.close()
    steady.assert_delivered(mlflow_sqlite)


@pytest.mark.usefixtures("sdk_is_elsewhere", "stuck")
def test_ranks_that_could_not_wait_for_a_process(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the thread merges ranks it goes on, and the process is let go."""
    monkeypatch.setattr(moving, "READY_WITHIN_S", 0.5)
    logger = make(policy=LogPolicy(log_on_workers=-1))
    logger.log_metrics({"loss": 1.0}, 0)
    pid = pid_of(logger)
    wait_until(lambda: not is_alive(pid), 30, "the end of the process")
    assert child_of(logger)._child is None
    logger.finalize("success")
    assert logger.stats.pending == 0


@pytest.mark.usefixtures("sdk_is_elsewhere", "stuck")
def test_closing_while_a_process_is_begun(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not stay behind, whichever comes first."""
    begin = MovingHost._begin_to_move

    def stop_first(host: MovingHost) -> None:
        host.stop()
        begin(host)

    monkeypatch.setattr(MovingHost, "_begin_to_move", stop_first)
    logger = make()
    logger.log_metrics({"loss": 1.0}, 0)
    pid = pid_of(logger)
    wait_until(lambda: not is_alive(pid), 30, "the end of the process")


@pytest.mark.usefixtures("sdk_is_elsewhere")
def test_a_frozen_program_starts_no_process(make: Make, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its executable is the program itself."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    logger = make()
    steady = Steady(logger)
    steady.log(300)
    logger.finalize("success")
    assert child_of(logger)._child is None
    logger.close()
    steady.assert_delivered(mlflow_sqlite)


def test_modules_of_the_working_folder_are_not_taken(
    mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process finds what the trainer finds; the trainer's program lies elsewhere."""
    (tmp_path / "mlflow.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    logger = MLFlowLogger("e", tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", delivery="process")
    steady = Steady(logger)
    steady.log(10)
    logger.finalize("success")
    assert logger.stats.pending == 0
    logger.close()
    steady.assert_delivered(mlflow_sqlite)


# ---------------------------------------------------------------------- moving


@pytest.mark.usefixtures("stuck")
def test_the_thread_stops_where_it_may_compute_no_more(make: Make, looks: Looks, mlflow_sqlite: str) -> None:
    """It does not go on computing until the process is ready, but does when somebody waits."""
    logger = make()
    steady = Steady(logger)
    steady.until(lambda: child_of(logger)._child is not None, "the process")
    steady.log(100)
    looks.wait_for(2)  # what was under way has come to its end
    pending = logger.stats.pending
    steady.log(100)
    looks.wait_for(15)
    assert logger.stats.pending == pending + 100
    logger.finalize("success")
    assert logger.stats.pending == 0
    logger.close()
    steady.assert_delivered(mlflow_sqlite)


def test_a_heavy_delivery_moves(make: Make, mlflow_sqlite: str) -> None:
    """Records logged before, during and after the move are all there, once; the process ends with the logger."""
    logger = make()
    steady = Steady(logger)
    steady.until_moved()
    steady.log(500)
    pid = pid_of(logger)
    logger.finalize("success")
    assert is_alive(pid)
    assert logger.stats.pending == 0
    assert logger.stats.delivered == steady.step
    logger.close()
    wait_until(lambda: not is_alive(pid), 60, "the end of the process")
    steady.assert_delivered(mlflow_sqlite)


def test_the_defaults_move_a_backlog(mlflow_sqlite: str, tmp_path: Path) -> None:
    """A hundred thousand points for a database file are more than the thread may compute."""
    logger = MLFlowLogger("e", tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    for step in range(2_000):
        logger.log_metrics({f"m{i}": float(step) for i in range(50)}, step)
    wait_until(lambda: child_of(logger)._child is not None, 60, "the process")
    logger.close()


def test_what_leftovers_cost_is_counted(mlflow_sqlite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier run's backlog moves to a process, which delivers it, though the run itself logs next to nothing."""
    monkeypatch.setattr(moving, "SHARE", 1.0)
    monkeypatch.setattr(moving, "AT_ONCE_S", 0.05)
    earlier = MLFlowLogger("earlier", tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", delivery="offline")
    for step in range(3_000):
        earlier.log_metrics({f"m{i}": float(step) for i in range(10)}, step)
    earlier.close()
    logger = MLFlowLogger("e", tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    logger.log_metrics({"loss": 1.0}, 0)
    wait_until(lambda: child_of(logger).moved, 60, "the move")
    wait_until(lambda: is_delivered(Path(earlier.log_dir or "")), 60, "the leftover")
    assert child_of(logger).moved
    logger.close()
    run = only_run(mlflow_sqlite, "earlier")
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "m3", [(step, float(step)) for step in range(3_000)])


def test_nothing_moves_while_somebody_waits(make: Make, mlflow_sqlite: str) -> None:
    """``finalize`` is not held up by a move: the thread that delivers goes on."""
    logger = make()
    steady = Steady(logger)
    steady.until(lambda: child_of(logger)._child is not None, "the process")
    host = child_of(logger)
    host.hasten(60)
    child = host._child
    assert child is not None
    wait_until(child.is_ready, 60, "the process to be ready")
    steady.log(100)
    wait_until(lambda: logger.stats.pending == 0, 60, "delivery")
    assert not host.moved
    host.relax()
    steady.until_moved()
    logger.close()
    steady.assert_delivered(mlflow_sqlite)


def test_closing_before_the_process_is_ready(make: Make, mlflow_sqlite: str) -> None:
    """The thread delivers the rest, and the process ends by itself without touching the run."""
    logger = make()
    steady = Steady(logger)
    steady.until(lambda: child_of(logger)._child is not None, "the process")
    pid = pid_of(logger)
    logger.close()
    steady.assert_delivered(mlflow_sqlite)
    wait_until(lambda: not is_alive(pid), 60, "the end of the process")
    steady.assert_delivered(mlflow_sqlite)


def test_logging_after_close_begins_anew(make: Make, mlflow_sqlite: str) -> None:
    """Closed and opened again, the run goes on; the earlier process is not in its way."""
    logger = make()
    steady = Steady(logger)
    steady.until_moved()
    logger.close()
    steady.log(50)
    logger.finalize("success")
    assert logger.stats.pending == 0
    logger.close()
    steady.assert_delivered(mlflow_sqlite)


def test_what_the_process_has_to_tell_is_told_here(
    make: Make, mlflow_sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A name that MLflow does not take is told in the trainer, once, though another process found out."""
    logger = make()
    steady = Steady(logger)
    steady.until_moved()
    with caplog.at_level(logging.INFO, "lightning_loggers"):
        for step in range(3):
            logger.log_metrics({"hit@5": 1.0}, step)
        logger.finalize("success")
        wait_until(lambda: "hit@5" in caplog.text, 30, "the notice")
    logger.close()
    assert [record.getMessage() for record in caplog.records if "hit@5" in record.getMessage()] == [
        "mlflow does not take the name 'hit@5': it is shown as 'hit_5'."
    ]


# ---------------------------------------------------------------------- and back


def test_a_killed_process_is_replaced_by_the_thread(
    make: Make, mlflow_sqlite: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Delivery goes on in the trainer, which is told once, and does not move again."""
    logger = make()
    steady = Steady(logger)
    steady.until_moved()
    os.kill(pid_of(logger), signal.SIGKILL)
    steady.until(lambda: not child_of(logger).moved, "the thread")
    steady.log(200)
    logger.finalize("success")
    assert logger.stats.pending == 0
    assert child_of(logger)._child is None
    logger.close()
    steady.assert_delivered(mlflow_sqlite)
    assert caplog.text.count("has ended by itself") == 1


def test_a_process_that_cannot_start(
    make: Make, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread goes on as if nothing had been tried; the user is told once."""
    logger = make()
    steady = Steady(logger)
    steady.log(1)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    steady.until(lambda: "has ended by itself" in caplog.text, "the notice")
    steady.log(200)
    logger.finalize("success")
    logger.close()
    steady.assert_delivered(mlflow_sqlite)
    assert caplog.text.count("has ended by itself") == 1


def test_no_more_files_may_be_open(make: Make, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a pipe there is no process, and the thread delivers."""
    tried: list[int] = []

    def pipe() -> tuple[int, int]:
        tried.append(1)
        raise OSError(24, "Too many open files")

    logger = make()
    steady = Steady(logger)
    monkeypatch.setattr(moving.os, "pipe", pipe)
    steady.until(lambda: bool(tried), "the attempt")
    monkeypatch.undo()
    steady.log(100)
    logger.finalize("success")
    logger.close()
    assert len(tried) == 1
    steady.assert_delivered(mlflow_sqlite)


def test_an_idle_process_ends(make: Make, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """After the run's end the process ends; the thread delivers what comes later all the same, and may move again."""
    monkeypatch.setattr(moving, "IDLE_S", 0.5)
    logger = make()
    steady = Steady(logger)
    steady.until_moved()
    first = pid_of(logger)
    wait_until(lambda: logger.stats.pending == 0, 60, "delivery")
    child = child_of(logger)._child
    assert child is not None
    assert child._child is not None
    if hasattr(os, "SCHED_BATCH"):
        assert os.sched_getscheduler(child._child.pid) == os.SCHED_BATCH
    with pytest.raises(subprocess.TimeoutExpired):  # the run goes on
        child._child.wait(2.0)
    assert child_of(logger).moved
    logger.finalize("success")
    wait_until(lambda: not child_of(logger).moved, 60, "the thread")
    assert not is_alive(first)
    monkeypatch.setattr(moving, "IDLE_S", 60.0)
    steady.until_moved()
    assert pid_of(logger) != first
    logger.close()
    steady.assert_delivered(mlflow_sqlite)
    assert "has ended by itself" not in caplog.text


MOVED = """
import os, signal, sys, time
from lightning_loggers import MLFlowLogger
from lightning_loggers.delivery import moving
moving.SHARE = moving.AT_ONCE_S = 0.0
logger = MLFlowLogger("e", tracking_uri=sys.argv[2], save_dir=sys.argv[1])
step = 0
while logger._host is None or not logger._host.moved:
    logger.log_metrics({"loss": step * 0.5}, step)
    step += 1
    time.sleep(0.001)
"""

KILLED = """
print(step, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_trainer(mlflow_sqlite: str, tmp_path: Path, python: WarmPython) -> None:
    """The process delivers the tail, closes the run as failed and ends."""
    done = python.run(MOVED + KILLED, tmp_path / "runs", mlflow_sqlite)
    assert done.returncode == -signal.SIGKILL, done.stderr
    steps = int(done.stdout)
    client = MlflowClient(mlflow_sqlite)
    wait_until(lambda: [r.info.status for r in client.search_runs(["1"])] == ["FAILED"], 60, "the end of the run")
    run = only_run(mlflow_sqlite, "e")
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", [(step, step * 0.5) for step in range(steps)])
    assert len(list(find_runs(tmp_path / "runs"))) == 1


FORKED = """
child = os.fork()
if child == 0:
    logger.log_metrics({"child": 1.0}, 0)
    assert not logger._host.moved
    os._exit(0)
os.waitpid(child, 0)
logger.log_metrics({"loss": step * 0.5}, step)
logger.finalize("success")
assert logger._host.moved
print(step + 1, flush=True)
"""


def test_a_fork(mlflow_sqlite: str, tmp_path: Path, python: WarmPython) -> None:
    """A forked process does not take its parent's delivery process for its own; both processes' records arrive."""
    done = python.run(MOVED + FORKED, tmp_path / "runs", mlflow_sqlite)
    assert done.returncode == 0, done.stderr
    run = only_run(mlflow_sqlite, "e")
    steps = int(done.stdout)
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", [(step, step * 0.5) for step in range(steps)])
    wait_until(lambda: only_run(mlflow_sqlite, "e").data.metrics.get("child") == 1.0, 30, "the child's record")
