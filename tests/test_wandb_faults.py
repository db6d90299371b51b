"""WandbLogger when things go wrong: W&B away, the trainer or the SDK's process killed, no credentials, no disk."""

import contextlib
import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, wait_until
from faulty import FaultyProxy
from wandb_reading import QUIET, OfflineRun
from wandb_running import answering, deliver, fit, isolated, logged, make, run_dir, sync
from wandb_standin import WandbStandIn
from warm_python import Done, WarmPython

from lightning_loggers.adapters import wandb as adapter
from lightning_loggers.adapters import wandb_session
from lightning_loggers.adapters.wandb_begin import settings_of
from lightning_loggers.delivery.state import StateFile
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.errors import TrackerUnavailableError
from lightning_loggers.records import Kind, Record
from lightning_loggers.testing import RunUnderTest

pytestmark = pytest.mark.filterwarnings(  # in threads of the SDK's own, whose service these tests kill
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)

SOON = {"x_file_stream_retry_wait_max_seconds": 1.0, "x_graphql_retry_wait_max_seconds": 1.0}
"""Settings with which the SDK tries again soon."""


@pytest.fixture(autouse=True)
def wandb_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The SDK on its own."""
    yield from isolated(tmp_path, monkeypatch)


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbStandIn]:
    """W&B's endpoints."""
    yield from answering(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython]:
    """Runs programs in processes of their own; gets ready while the first tests wait for W&B."""
    with WarmPython(TMPDIR=str(tmp_path_factory.mktemp("tmp"))) as python:
        yield python


def environment() -> dict[str, str]:
    """What a program has to know of this test's isolation."""
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_") or name in {"HOME", "NETRC"}}


class Talking:
    """A program that runs while the test does; it is killed at the end of a ``with`` if it still runs.

    Args:
        python: Runs it.
        code: The program; its second argument is ``argument``.
        folder: Its first argument, and where it runs.
        argument: See there.
    """

    def __init__(self, python: WarmPython, code: str, folder: Path, argument: object) -> None:
        folder.mkdir(exist_ok=True)
        self.errors = ""
        """What it wrote there, once it has ended."""
        self._errors = os.memfd_create("errors")
        read_end, write_end = os.pipe()
        self._said = os.fdopen(read_end)
        self._program = python.start(
            code, folder, argument, stdout=write_end, stderr=self._errors, folder=folder, **environment()
        )
        os.close(write_end)

    def line(self) -> str:
        """What it says next."""
        return self._said.readline().strip()

    def wait(self) -> None:
        """Wait for its end."""
        self._program.wait(60)

    @property
    def returncode(self) -> int | None:
        """As of ``subprocess.Popen``."""
        return self._program.returncode

    def __enter__(self) -> "Talking":
        return self

    def __exit__(self, *error: object) -> None:
        self._program.close()
        self._said.close()
        self.errors = os.pread(self._errors, os.fstat(self._errors).st_size, 0).decode()
        os.close(self._errors)


# ---------------------------------------------------------------------- W&B goes away


def test_wandb_not_there_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fit without W&B ends, all of it is in the journal and the cure is told; later all of it is delivered."""
    port = free_port()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    logger = make(tmp_path, finalize_timeout_s=0.2)
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        fit(logger, tmp_path, 20)
        with pytest.raises(TrackerUnavailableError, match="did not answer within"):
            logger.experiment.log({"mine": 1.0})
    logger.close()
    assert logger._host is not None
    wait_until(lambda: not logger._host.working(), 60, "the delivery thread's end")
    assert logger.stats.pending > 0
    assert "lightning-loggers sync" in caplog.text
    assert not (tmp_path / "wandb").is_dir() or not list((tmp_path / "wandb").glob("run-*"))
    expected = logged(run_dir(logger), "loss")
    assert len(expected) == 20
    with WandbStandIn() as service:
        monkeypatch.setenv("WANDB_BASE_URL", service.uri)
        deliver(run_dir(logger), {"base_url": service.uri})
        run = service.only_run()
        assert run.points("loss") == expected
        assert run.state == "finished"


def test_outage_in_mid_run_costs_nothing(tmp_path: Path, standin: WandbStandIn) -> None:
    """W&B goes away while a run logs and comes back: every row is there once."""
    logger = make(tmp_path, settings=SOON)
    for step in range(100):
        logger.log_metrics({"loss": float(step)}, step)
    wait_until(lambda: logger.stats.delivered > 0, 60, "first delivery")
    standin.stop()
    for step in range(100, 400):
        logger.log_metrics({"loss": float(step)}, step)
    wait_until(lambda: logger.stats.retried > 0, 60, "noticing the outage")
    assert logger.stats.pending > 0
    standin.start()
    logger.finalize("success")
    assert logger.stats.pending == 0
    run = standin.only_run()
    assert run.points("loss") == [(step, float(step)) for step in range(400)]
    assert run.state == "finished"


def test_outage_at_the_end_keeps_nobody(tmp_path: Path, standin: WandbStandIn, python: WarmPython) -> None:
    """A program whose W&B is gone ends well and says once what to do; what is left is delivered later."""
    code = (
        "import os, sys, time\nfrom lightning_loggers import WandbLogger\n"
        f"settings = { {**QUIET, 'finish_timeout': 1.0}!r}\n"
        "logger = WandbLogger(project='digits', save_dir=sys.argv[1], settings=settings, finalize_timeout_s=10)\n"
        "logger.log_metrics({'loss': 0.0}, 0)\n"
        "logger.experiment.id\n"
        "logger._finalize_timeout_s = 0.5\n"
        "os.write(1, logger.log_dir.encode() + b'\\n')\n"
        "while not os.path.exists(sys.argv[2]): time.sleep(0.01)\n"
        "logger.log_metrics({'loss': 1.0}, 1)\n"
    )
    with Talking(python, code, tmp_path, tmp_path / "gone") as program:
        folder = Path(program.line())
        standin.stop()
        (tmp_path / "gone").touch()
        program.wait()
    assert program.returncode == 0, program.errors
    assert program.errors.count("lightning-loggers sync") == 1
    assert "Training goes on" not in program.errors
    assert "Traceback" not in program.errors
    standin.start()
    deliver(folder)
    run = standin.only_run()
    assert (run.points("loss"), run.state) == ([(0, 0.0), (1, 1.0)], "finished")


def test_a_service_that_fails_now_and_then_gets_every_row_once(
    tmp_path: Path, standin: WandbStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost answers, resets and 503s: nothing is missing and nothing is there twice."""
    script = iter(["", "", "", "", "lost", "", "reset", "", "", "503"])
    with FaultyProxy(standin.port, lambda: next(script, "")) as proxy:
        monkeypatch.setenv("WANDB_BASE_URL", proxy.uri)
        logger = make(tmp_path, settings=SOON)
        logger.log_hyperparams({"lr": 0.1})
        for step in range(300):
            logger.log_metrics({"loss": float(step)}, step)
        logger.finalize("success")
        assert proxy.faults == 3
        assert logger.stats.pending == 0
        logger.close()
    run = standin.only_run()
    assert run.points("loss") == [(step, float(step)) for step in range(300)]
    assert run.values["lr"] == 0.1


def test_rows_are_sent_again_after_the_sdk_has_given_up_its_stream(
    tmp_path: Path, standin: WandbStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK stops sending for good after some answers, and says so to nobody: delivery notices and begins anew."""
    monkeypatch.setattr(wandb_session, "PATIENCE_S", -0.5)  # and twice the SDK's interval of a second
    standin.refuse_stream = 400
    logger = make(tmp_path)
    logger.log_metrics({"loss": 0.0}, 0)
    wait_until(lambda: logger.stats.retried > 0, 60, "noticing that nothing arrives")
    standin.refuse_stream = None
    monkeypatch.setattr(wandb_session, "PATIENCE_S", 25.0)
    logger.log_metrics({"loss": 1.0}, 1)
    logger.finalize("success")
    assert (logger.stats.pending, logger.stats.rejected) == (0, 0)
    assert standin.only_run().points("loss") == [(0, 0.0), (1, 1.0)]


# ---------------------------------------------------------------------- the SDK's process dies


def test_a_killed_sdk_service_is_replaced(tmp_path: Path, standin: WandbStandIn) -> None:
    """The SDK's own process dies, with rows in hand or idle: all rows and the end arrive through another one."""
    logger = make(tmp_path)
    assert logger.experiment.id == logger.version
    for step in range(100):
        logger.log_metrics({"loss": float(step)}, step)
    wait_until(lambda: logger.experiment.step > 0, 60, "rows in the SDK's hand")
    process_of_the_sdk().kill()
    wait_until(lambda: logger.stats.delivered == 100, 60, "delivery through another service")
    process_of_the_sdk().kill()
    logger.finalize("success")
    assert logger.stats.pending == 0
    run = standin.only_run()
    assert run.points("loss") == [(step, float(step)) for step in range(100)]
    assert run.state == "finished"


def process_of_the_sdk() -> Any:
    """The SDK's service."""
    from wandb.sdk import wandb_setup

    return wandb_setup.singleton()._connection._proc._process


def test_a_service_that_hangs_does_not_hold_up_training(tmp_path: Path) -> None:
    """While the SDK's process is stopped, log calls and ``finalize`` return; afterwards all of it arrives."""
    logger = make(tmp_path, offline=True, finalize_timeout_s=0.5)
    logger.log_metrics({"loss": 0.0}, 0)
    wait_until(lambda: logger.stats.delivered == 1, 60, "first delivery")
    process = process_of_the_sdk()
    process.send_signal(signal.SIGSTOP)
    try:
        for step in range(1, 2_000):
            logger.log_metrics({"loss": float(step), "text": step / 7}, step)
        logger.finalize("success")
        assert logger.stats.pending > 0
    finally:
        process.send_signal(signal.SIGCONT)
    logger._finalize_timeout_s = 90.0
    logger.finalize("success")
    assert logger.stats.pending == 0
    rows = OfflineRun(tmp_path, str(logger.version)).rows
    assert [row["loss"] for row in rows] == [float(step) for step in range(2_000)]


def test_a_program_that_never_finalizes_delivers_before_the_sdk_shuts_down(tmp_path: Path, python: WarmPython) -> None:
    """At exit the SDK's own hook would run before ours; delivery still ends first, and the run is finished."""
    code = (
        "import sys\nfrom lightning_loggers import WandbLogger\n"
        f"logger = WandbLogger(project='digits', save_dir=sys.argv[1], offline=True, id='one', settings={QUIET!r})\n"
        "logger.log_metrics({'loss': 0.0}, 0)\n"
        "logger.experiment.id\n"
        "for step in range(1, 500): logger.log_metrics({'loss': float(step)}, step)\n"
    )
    done: Done = python.run(code, tmp_path, folder=tmp_path, **environment())
    assert "Traceback" not in done.ok().stderr
    run = OfflineRun(tmp_path, "one")
    assert [row["loss"] for row in run.rows] == [float(step) for step in range(500)]
    assert run.exit_code == 0


def test_constructing_and_logging_imports_no_sdk_and_asks_nobody(
    tmp_path: Path, standin: WandbStandIn, python: WarmPython
) -> None:
    """With delivery offline the SDK is not even imported, W&B hears nothing, and no two runs get one id."""
    code = (
        "import sys\nfrom lightning_loggers import WandbLogger\n"
        "loggers = [WandbLogger(project='digits', save_dir=sys.argv[1], delivery='offline') for _ in range(2)]\n"
        "for logger in loggers:\n"
        "    logger.log_hyperparams({'lr': 0.1})\n"
        "    logger.log_metrics({'loss': 1.0}, 0)\n"
        "    logger.log_table('t', ['a'], [[1]])\n"
        "    logger.finalize('success')\n"
        "assert loggers[0].version != loggers[1].version\n"
        "assert loggers[0].name == 'digits'\n"
        "assert 'wandb' not in sys.modules\n"
        "print(*[logger.log_dir for logger in loggers], sep='\\n')"
    )
    done = python.run(code, tmp_path, folder=tmp_path, **environment())
    for folder in done.ok().stdout.split():
        assert logged(Path(folder), "loss") == [(0, 1.0)]
    assert standin.requests == []
    assert not (tmp_path / "wandb").exists()


# ---------------------------------------------------------------------- the trainer dies, or ends


LOGS_UNTIL_KILLED = f"""
import itertools, os, sys, time
from lightning_loggers import WandbLogger
logger = WandbLogger(project="digits", save_dir=sys.argv[1], offline=sys.argv[2] != "online", settings={QUIET!r})
logger.log_hyperparams({{"lr": 0.1}})
for step in itertools.count():
    logger.log_metrics({{"loss": float(step)}}, step)
    if step == 0:
        os.write(1, logger.log_dir.encode() + b"\\n")
    if step == 100 and sys.argv[2] == "shared":
        logger.experiment.log({{"mine": 1.0}})
    time.sleep(0.002)
"""


def test_killed_trainers_lose_nothing(tmp_path: Path, standin: WandbStandIn, python: WarmPython) -> None:
    """SIGKILL while rows are on their way: the next host finds which arrived, and closes the run as failed.

    Where the user logs rows to the run himself, nobody can tell whose rows arrived: some of ours may be there twice.
    """
    modes = ("online", "offline", "shared")
    with contextlib.ExitStack() as programs:
        folders = {}
        running = {mode: Talking(python, LOGS_UNTIL_KILLED, tmp_path / mode, mode) for mode in modes}
        for program in running.values():
            programs.enter_context(program)
        for mode, program in running.items():
            folders[mode] = Path(program.line())
            state = StateFile(folders[mode] / "journal", "wandb")
            wait_until(lambda state=state: state.load("wandb").delivered > 100, 60, f"{mode}: the first rows")
        wait_until((folders["shared"] / "journal" / "wandb.shared").exists, 60, "a row of the user's")
    assert {program.returncode for program in running.values()} == {-signal.SIGKILL}
    expected = {mode: logged(folder, "loss") for mode, folder in folders.items()}
    for folder in folders.values():
        deliver(folder)
    online = standin.only_run()
    assert online.points("loss") == expected["online"]
    assert (online.state, online.values["lr"]) == ("failed", 0.1)
    shared = OfflineRun(tmp_path / "shared", folders["shared"].name)
    rows = {(row["trainer/global_step"], row["loss"]) for row in shared.rows if "loss" in row}
    assert (rows, shared.exit_code) == (set(expected["shared"]), 1)
    standin.runs.clear()
    offline = sync(tmp_path / "offline", standin)
    assert offline.points("loss") == expected["offline"]
    assert (offline.state, offline.values["lr"]) == ("failed", 0.1)


def test_parts_of_a_refused_record_are_not_counted_as_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that the SDK refuses is sent in parts, more rows than records: a host without notes loses nothing."""
    from lightning_loggers.adapters.wandb_records import Rows

    original = Rows.log

    def log(self: Rows, run: object, record: Record) -> None:
        if len(record.data or {}) > 1:
            raise ValueError("one at a time")
        original(self, run, record)

    run = RunUnderTest(tmp_path, "wandb", {"mode": "offline", "project": "p", "settings": QUIET})
    run.log_metrics({"a": 0.0}, 0)
    run.log_metrics({"a": 1.0, "b": 1.0, "c": 1.0}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Rows, "log", log)
        run.deliver()
    assert run.state.rejected == 0
    run.damage_state()
    for step in (2, 3):
        run.log_metrics({"a": float(step)}, step)
    run.deliver()
    run.close()
    rows = OfflineRun(tmp_path, str(run.remote.id)).rows
    assert {(key, row["trainer/global_step"]) for row in rows for key in "abc" if key in row} == {
        ("a", 0), ("a", 1), ("b", 1), ("c", 1), ("a", 2), ("a", 3),
    }  # fmt: skip


def test_a_host_that_died_in_the_sdks_file_leaves_one_that_wandb_takes(tmp_path: Path, standin: WandbStandIn) -> None:
    """Half a record at the end of the SDK's file is cut off before the run goes on, and an empty file goes away."""
    run = RunUnderTest(tmp_path, "wandb", {"mode": "offline", "project": "p", "settings": QUIET})
    run.log_metrics({"a": 0.0}, 0)
    run.deliver()
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    path.write_bytes(path.read_bytes()[:-5])
    run.log_metrics({"a": 1.0}, 1)
    run.deliver()
    newest = max(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda found: found.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:7])
    run.log_metrics({"a": 2.0}, 2)
    run.deliver()
    run.close()
    assert min(path.stat().st_size for path in tmp_path.glob("wandb/offline-run-*/*.wandb")) > 7
    assert [step for step, _ in sync(tmp_path, standin).points("a")] == [0, 2]  # what was destroyed is gone


# ---------------------------------------------------------------------- what only a person can mend


def test_wrong_credentials_are_told_once_and_kept_nowhere(
    tmp_path: Path, standin: WandbStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """A key that W&B refuses is told with the command for later; it is in no file, also of the SDK, and no message."""
    key = "f" * 40
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        logger = make(tmp_path, finalize_timeout_s=0.5, settings={"api_key": key})
        logger.log_metrics({"loss": 1.0}, 0)
        wait_until(lambda: logger.stats.retried > 0, 60, "the first refusal")
        logger.finalize("success")
    assert caplog.text.count("does not let this run in") == 1
    assert "lightning-loggers sync" in caplog.text
    assert logger.stats.pending == 1
    assert key not in caplog.text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path
    logger.close()


def test_without_credentials_nobody_is_asked_for_them(
    tmp_path: Path, standin: WandbStandIn, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No key anywhere: no prompt in the middle of a training, but a message with the command that helps."""
    monkeypatch.delenv("WANDB_API_KEY")
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        logger = make(tmp_path, finalize_timeout_s=0.1)
        logger.log_metrics({"loss": 1.0}, 0)
        wait_until(lambda: logger.stats.retried > 0, 60, "the refusal")
        logger.close()
    assert "wandb login" in caplog.text
    assert standin.requests == []


def test_a_run_that_was_deleted_is_told_and_kept(
    tmp_path: Path, standin: WandbStandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody deletes the run at W&B while it is logged to: nothing is rejected, and what to do is told."""
    logger = make(tmp_path, finalize_timeout_s=0.5, settings={"finish_timeout": 1.0})
    logger.log_metrics({"loss": 0.0}, 0)
    wait_until(lambda: logger.stats.delivered == 1, 60, "first delivery")
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        standin.refuse_stream = 404
        standin.runs.clear()
        logger.log_metrics({"loss": 1.0}, 1)
        wait_until(lambda: "was it deleted?" in caplog.text, 60, "noticing it")
    assert logger.stats.retried > 0
    assert (logger.stats.pending, logger.stats.rejected) == (1, 0)


def test_offline_folder_that_cannot_be_written_is_waited_for(tmp_path: Path) -> None:
    """Where the SDK would turn to the system's temporary folder, records stay pending until the place is free."""
    (tmp_path / "wandb").write_text("in the way")
    logger = make(tmp_path, offline=True)
    logger.log_metrics({"loss": 1.0}, 0)
    wait_until(lambda: logger.stats.retried > 0, 60, "the first failure")
    assert logger.stats.pending == 1
    (tmp_path / "wandb").unlink()
    logger.finalize("success")
    assert logger.stats.pending == 0
    assert [row["loss"] for row in OfflineRun(tmp_path, str(logger.version)).rows] == [1.0]


def test_the_stop_button_does_not_end_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The SDK interrupts the process when somebody presses stop; ours tells it, and training goes on."""
    logger = make(tmp_path, delivery="offline")
    logger.log_metrics({"loss": 1.0}, 0)
    worker = Worker(run_dir(logger), {"mode": "disabled"})
    assert worker.step().kind is StepKind.PROGRESS
    assert isinstance(worker._adapter, adapter.WandbAdapter)
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        settings_of(worker._adapter.context)["stop_fn"]()
    assert "was asked to stop" in caplog.text
    worker.close()


def test_a_file_that_is_gone_costs_only_its_record(tmp_path: Path) -> None:
    """An image whose file is missing is set aside; rows before and after it arrive."""
    run = RunUnderTest(tmp_path, "wandb", {"mode": "offline", "project": "p", "settings": QUIET})
    image = tmp_path / "a.png"
    image.write_bytes(b"no image at all")
    for step in range(3):
        run.log_metrics({"a": float(step)}, step)
        run.log_file(image, "image", Kind.IMAGE, step=step)
        if step == 1:
            for path in run.folder.glob("blobs/*/a.png"):
                path.unlink()
    run.deliver()
    run.close()
    assert run.state.rejected == 2
    read = OfflineRun(tmp_path, str(run.remote.id))
    assert [row["a"] for row in read.rows if "a" in row] == [0.0, 1.0, 2.0]
    assert list(read.artifacts.values()) == [b"no image at all"]
    refused = [json.loads(line) for line in (run.folder / "rejected.jsonl").read_text().splitlines()]
    assert ["is missing" in record["reason"] for record in refused] == [True, True]
