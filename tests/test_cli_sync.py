"""``lightning-loggers sync``: what it delivers, survives, leaves alone and says."""

import importlib.util
import json
import logging
import os
import pty
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, wait_until
from journals_by_hand import append_points, end_run, environment, open_run, running, tree, write_run
from mlflow import MlflowClient
from mlflow_reading import assert_exactly_once, only_run

from lightning_loggers.cli import console, main
from lightning_loggers.delivery.sync import Sync
from lightning_loggers.journal.layout import delivery_lock_path
from lightning_loggers.journal.lock import FileLock
from lightning_loggers.records import FORMAT_VERSION, encode_line
from lightning_loggers.secrets import strip_uri

_SECRET = "secretpw"


@pytest.fixture(autouse=True)
def own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what the command does to the process's logging."""
    monkeypatch.setattr(console, "_secrets", set())
    before = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = before


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder to keep runs in."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield int(listener.getsockname()[1])


class _Refusing(BaseHTTPRequestHandler):
    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(self.headers.get("Authorization", ""))
        self.send_response(401)
        self.end_headers()
        self.wfile.write(b"who are you?")

    do_POST = do_GET

    def log_message(self, *args: Any) -> None:
        return


@pytest.fixture
def refusing_server() -> Iterator[tuple[str, list[str]]]:
    """A server that lets nobody in, and the Authorization headers it was shown."""
    seen: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Refusing,), {"seen": seen}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def runs_by_name(uri: str, experiment: str) -> dict[str, Any]:
    """The experiment's runs by their names; fails if two have one name."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    made = client.search_runs([found.experiment_id])
    assert len({run.info.run_name for run in made}) == len(made)
    return {run.info.run_name: run for run in made}


# -------------------------------------------------------------------- the command itself


def test_command_imports_nothing_heavy() -> None:
    """The command line starts without torch, lightning, numpy or mlflow."""
    code = (
        "import sys, lightning_loggers.cli as cli; cli.main(['status', '/proc/self/fdinfo']); cli.main(['--help']);"
        "import lightning_loggers.delivery.sync;"
        "print([name for name in ('torch', 'lightning', 'mlflow', 'numpy') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    "launcher", [["-m", "lightning_loggers"], ["-c", "import lightning_loggers.cli as c; c.main()"]]
)
def test_version(launcher: list[str]) -> None:
    """``--version`` prints the version that the package states."""
    ended = subprocess.run([sys.executable, *launcher, "--version"], capture_output=True, text=True, check=True)
    from lightning_loggers import __version__

    assert ended.stdout == f"lightning-loggers {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["sync"], ["sync", ".", "--nonsense"], ["nonsense"], ["status", "--nonsense"], ["sync", ".", "--every", "0"]],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown commands, options and values end with 2."""
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["sync", "/no/such/folder"], ["status", "/no/such/folder"]])
def test_errors_are_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """An error of ours is one line on standard error, exit code 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "/no/such/folder does not exist" in captured.err


# -------------------------------------------------------------------- delivering


def test_delivers_all_runs_below(runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every run below the path arrives whole, with the status it ended with; a second sync has nothing to do."""
    wanted = {
        "done": (write_run(runs / "exp/done", mlflow_sqlite, 30, "finished"), "FINISHED"),
        "stopped": (write_run(runs / "deep/er/exp/stopped", mlflow_sqlite, 20, "interrupted"), "KILLED"),
        "failed": (write_run(runs / "exp/failed", mlflow_sqlite, 10, "failed"), "FAILED"),
        "died": (write_run(runs / "exp/died", mlflow_sqlite, 10, None), "FAILED"),
        "requeued": (write_run(runs / "exp/requeued", mlflow_sqlite, 10, "preempted"), "RUNNING"),
    }
    assert main(["sync", str(runs)]) == 0
    assert "80 records delivered, 0 of 5 runs pending." in capsys.readouterr().out
    made = runs_by_name(mlflow_sqlite, "exp")
    assert made.keys() == wanted.keys()
    for name, (points, status) in wanted.items():
        assert made[name].info.status == status
        assert_exactly_once(mlflow_sqlite, made[name].info.run_id, "loss", points)
    before = tree(runs)
    assert main(["sync", str(runs)]) == 0
    assert "Nothing is pending in 5 runs." in capsys.readouterr().out
    assert tree(runs) == before


@pytest.mark.parametrize("below", ["", "exp", "exp/v1", "exp/v1/journal"])
def test_path_may_be_anything_from_journal_up(below: str, runs: Path, mlflow_sqlite: str) -> None:
    """A journal, a run, an experiment or a tree of them may be named, several times over."""
    points = write_run(runs / "exp/v1", mlflow_sqlite)
    assert main(["sync", str(runs / below), str(runs), os.path.relpath(runs / below)]) == 0
    assert_exactly_once(mlflow_sqlite, only_run(mlflow_sqlite, "exp").info.run_id, "loss", points)


def test_dry_run_touches_nothing(runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--dry-run`` names what would be delivered, ends with 1 since that is pending, and leaves the tree as it was."""
    write_run(runs / "exp/v1", mlflow_sqlite, 17)
    write_run(runs / "exp/v2", mlflow_sqlite, 5, None)
    before = tree(runs.parent)
    assert main(["sync", "--dry-run", str(runs)]) == 1
    out = capsys.readouterr().out
    assert tree(runs.parent) == before
    assert [
        ("exp/v1" in line, " 17 " in line, "shown as finished" in line) for line in out.splitlines() if "v1" in line
    ]
    assert all(" 17 " in line and "shown as finished" in line for line in out.splitlines() if "exp/v1" in line)
    assert all(" 5 " in line and "closed as failed" in line for line in out.splitlines() if "exp/v2" in line)
    assert main(["sync", str(runs)]) == 0
    before = tree(runs.parent)
    capsys.readouterr()
    assert main(["sync", "--dry-run", str(runs)]) == 0
    assert "Nothing is pending in 2 runs." in capsys.readouterr().out
    assert tree(runs.parent) == before


def test_to_delivers_elsewhere(runs: Path, mlflow_sqlite: str, mlflow_server: str, tmp_path: Path) -> None:
    """``--to`` delivers to another tracker with cursors of its own; the journal's own stays pending."""
    name = f"exp-{tmp_path.name}"
    points = write_run(runs / name / "v1", mlflow_sqlite, run_id="only-there", artifact_location="file:///only/there")
    assert main(["sync", str(runs), "--to", mlflow_server]) == 0
    run = only_run(mlflow_server, name)
    assert run.info.status == "FINISHED"
    assert_exactly_once(mlflow_server, run.info.run_id, "loss", points)
    assert MlflowClient(mlflow_sqlite).get_experiment_by_name(name) is None
    assert main(["sync", "--dry-run", str(runs), "--to", mlflow_server + "/"]) == 1  # another spelling, another place
    assert main(["sync", "--dry-run", str(runs), "--to", mlflow_server]) == 0
    assert main(["sync", "--dry-run", str(runs)]) == 1


def test_to_a_file_named_from_here(runs: Path, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--to`` a relative SQLite file means that file, wherever the next command is started."""
    write_run(runs / "exp/v1", "http://127.0.0.1:9")
    monkeypatch.chdir(runs.parent)
    assert main(["sync", "runs", "--to", "sqlite:///mlflow.db"]) == 0
    monkeypatch.chdir(runs)
    assert main(["sync", ".", "--dry-run", "--to", mlflow_sqlite]) == 0
    assert only_run(mlflow_sqlite, "exp").info.status == "FINISHED"


def test_own_address_with_a_slash_is_the_own_address(runs: Path, mlflow_server: str, tmp_path: Path) -> None:
    """``--to`` the journal's own server, written with a slash at its end, makes no second run."""
    name = f"exp-{tmp_path.name}"
    write_run(runs / name / "v1", mlflow_server)
    assert main(["sync", str(runs), "--to", mlflow_server + "/"]) == 0
    assert main(["sync", str(runs)]) == 0
    only_run(mlflow_server, name)


def test_to_an_impossible_address(runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An address that no adapter takes is refused at once."""
    write_run(runs / "exp/v1", mlflow_sqlite)
    before = tree(runs)
    assert main(["sync", str(runs), "--to", "gopher://user:secretpw@there"]) == 2
    err = capsys.readouterr().err
    assert "gopher" in err
    assert _SECRET not in err
    assert tree(runs) == before


def test_refused_records_are_told(runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A record that the tracker will never take is kept and told; nothing is pending because of it."""
    from lightning_loggers.records import Record

    writer = open_run(runs / "exp/v1", mlflow_sqlite)
    writer.append(Record(time.time_ns(), "param", data={"lr": 1}))
    writer.append(Record(time.time_ns(), "param", data={"lr": 2}))
    points = append_points(writer, 10)
    end_run(writer, "finished")
    assert main(["sync", str(runs)]) == 0
    assert str(runs / "exp/v1/journal/rejected.jsonl") in capsys.readouterr().err
    run = only_run(mlflow_sqlite, "exp")
    assert run.data.params == {"lr": "1"}
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", points)


# -------------------------------------------------------------------- what does not work out


def test_dead_tracker_is_given_up(runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With a tracker that is down, sync ends with 1 and one reason per run; runs that go elsewhere are delivered."""
    dead = f"http://127.0.0.1:{free_port()}"
    for number in range(3):
        write_run(runs / f"lost/v{number}", dead)
    points = write_run(runs / "well/v1", mlflow_sqlite)
    assert main(["sync", str(runs), "--give-up-after", "1"]) == 1
    captured = capsys.readouterr()
    for number in range(3):
        told = [line for line in captured.err.splitlines() if line.startswith(f"lost/v{number} ")]
        assert len(told) == 1
        assert "20 records are pending" in told[0]
        assert "refused" in told[0]
    assert f"lightning-loggers sync {runs}" in captured.err
    assert "3 of 4 runs pending" in captured.out
    assert_exactly_once(mlflow_sqlite, only_run(mlflow_sqlite, "well").info.run_id, "loss", points)


def test_tracker_that_comes_back(runs: Path, own_mlflow_server: Any) -> None:
    """A tracker that answers again before sync gives up gets everything."""
    points = write_run(runs / "exp/v1", own_mlflow_server.uri)
    with running("sync", runs, "--give-up-after", 120) as command:
        wait_until((runs / "exp/v1/journal/mlflow.state.json").exists, what="the first try")
        own_mlflow_server.start()
        assert command.wait(120) == 0, command.communicate()
    assert_exactly_once(
        own_mlflow_server.database_uri, only_run(own_mlflow_server.database_uri, "exp").info.run_id, "loss", points
    )


def test_tracker_that_never_answers_holds_up_nobody(runs: Path, mlflow_sqlite: str, silent_port: int) -> None:
    """While one tracker keeps a request waiting, runs that go elsewhere are delivered."""
    write_run(runs / "a-first/v1", f"http://127.0.0.1:{silent_port}")
    points = write_run(runs / "b-second/v1", mlflow_sqlite)
    engine = Sync([runs])

    def arrived(sync: Sync) -> None:
        if not [plan for plan in sync.plan() if plan.name == "b-second"]:
            sync.stopping.set()

    assert engine.run(arrived) == []
    assert_exactly_once(mlflow_sqlite, only_run(mlflow_sqlite, "b-second").info.run_id, "loss", points)


def test_wrong_credentials_are_not_waited_for(
    runs: Path, refusing_server: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A tracker that lets nobody in is left at once, for no waiting mends that."""
    write_run(runs / "exp/v1", f"http://{refusing_server[0]}")
    assert main(["sync", str(runs), "--give-up-after", "100000"]) == 1
    assert "HTTP 401" in capsys.readouterr().err


def test_unreadable_journals_are_skipped(runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Foreign, damaged and newer journals are reported by name, exit code 1; the others are delivered."""
    points = write_run(runs / "exp/m", mlflow_sqlite)
    (runs / "exp/a/journal").mkdir(parents=True)
    (runs / "exp/a/journal/rank0.jsonl").write_bytes(b"not ours at all\n" * 10)
    write_run(runs / "exp/b", mlflow_sqlite)
    (runs / "exp/b/journal/rank0.jsonl").write_bytes(bytes(4096))
    write_run(runs / "exp/c", mlflow_sqlite)
    path = runs / "exp/c/journal/rank0.jsonl"
    first, _, rest = path.read_bytes().partition(b"\n")
    header = json.loads(first)
    from lightning_loggers.records import Header, RunSpec

    newer = Header(FORMAT_VERSION + 1, RunSpec(**header["run"]), header["time_ns"])
    path.write_bytes(encode_line(newer) + rest)
    writer = open_run(runs / "exp/d", mlflow_sqlite)
    writer._file.run = RunSpec("cd" * 16, "exp", "d", "nosuchtracker")
    append_points(writer, 1)
    end_run(writer)
    (runs / "exp/e").mkdir()
    (runs / "exp/e/journal").symlink_to(runs / "exp/m/journal")
    assert main(["sync", str(runs)]) == 1
    err = capsys.readouterr().err
    told = {name: [line for line in err.splitlines() if str(runs / "exp" / name) in line] for name in "abcde"}
    assert all(len(lines) == 1 for lines in told.values()), told
    assert "no header" in told["a"][0]
    assert "no header" in told["b"][0]
    assert "pip install --upgrade lightning-loggers" in told["c"][0]
    assert "nosuchtracker" in told["d"][0]
    assert "symbolic link" in told["e"][0]
    assert_exactly_once(mlflow_sqlite, only_run(mlflow_sqlite, "exp").info.run_id, "loss", points)


def test_damaged_lines_are_told(runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Damage within a journal is reported with its offset; what is whole around it is delivered."""
    points = write_run(runs / "exp/v1", mlflow_sqlite, 10)
    path = runs / "exp/v1/journal/rank0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[4] = b"#" * len(lines[4][:-1]) + b"\n"
    path.write_bytes(b"".join(lines))
    assert main(["sync", str(runs)]) == 0
    assert f"at offset {sum(map(len, lines[:4]))} are no record" in capsys.readouterr().err
    run = only_run(mlflow_sqlite, "exp")
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", points[:3] + points[4:])


def test_missing_sdk(
    runs: Path, mlflow_sqlite: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the tracker's SDK sync says how to install it, and loses nothing."""
    write_run(runs / "exp/v1", mlflow_sqlite)
    before = tree(runs)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "mlflow" else find(name, *rest)
    )
    assert main(["sync", str(runs)]) == 1
    assert "pip install 'lightning-loggers[mlflow]'" in capsys.readouterr().err
    assert tree(runs) == before


def test_empty_journals_are_no_problem(runs: Path) -> None:
    """A folder that says journal, and a journal to which nothing was written yet, are left alone without a word."""
    (runs / "exp/v1/journal").mkdir(parents=True)
    (runs / "exp/v2/journal").mkdir(parents=True)
    (runs / "exp/v2/journal/rank0.jsonl").touch()
    before = tree(runs)
    assert main(["sync", str(runs)]) == 0
    assert tree(runs) == before


# -------------------------------------------------------------------- others at work


def test_live_run_is_delivered_up_to_now(runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What a live run has recorded is delivered, and the run stays open until its process says how it ended."""
    writer = open_run(runs / "exp/v1", mlflow_sqlite)
    points = append_points(writer, 10)
    assert main(["sync", str(runs)]) == 0
    assert "is still being written" in capsys.readouterr().err
    run = only_run(mlflow_sqlite, "exp")
    assert run.info.status == "RUNNING"
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", points)
    points += append_points(writer, 10, 10)
    end_run(writer, "finished")
    assert main(["sync", str(runs)]) == 0
    run = only_run(mlflow_sqlite, "exp")
    assert run.info.status == "FINISHED"
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", points)


def test_dead_run_that_was_all_delivered_is_closed(runs: Path, mlflow_sqlite: str) -> None:
    """A run that was delivered live and then killed without a word is closed as failed, though no record is left."""
    writer = open_run(runs / "exp/v1", mlflow_sqlite)
    append_points(writer, 10)
    assert main(["sync", str(runs)]) == 0
    assert only_run(mlflow_sqlite, "exp").info.status == "RUNNING"
    end_run(writer)
    assert main(["sync", str(runs)]) == 0
    assert only_run(mlflow_sqlite, "exp").info.status == "FAILED"


def test_run_that_another_process_delivers_is_left_to_it(
    runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A held delivery lock is never taken: sync says so, and ends with 1 only if something is pending."""
    write_run(runs / "exp/v1", mlflow_sqlite)
    points = write_run(runs / "exp/v2", mlflow_sqlite)
    lock = FileLock(delivery_lock_path(runs / "exp/v1/journal", "mlflow"))
    assert lock.acquire()
    assert main(["sync", str(runs)]) == 1
    assert "another process delivers it now" in capsys.readouterr().err
    assert list(runs_by_name(mlflow_sqlite, "exp")) == ["v2"]
    assert_exactly_once(mlflow_sqlite, only_run(mlflow_sqlite, "exp").info.run_id, "loss", points)
    lock.release()
    assert main(["sync", str(runs)]) == 0
    assert lock.acquire()
    assert main(["sync", str(runs)]) == 0
    lock.release()


def test_two_syncs_at_once(runs: Path, mlflow_sqlite: str) -> None:
    """Two syncs of one folder deliver everything once between them."""
    wanted = {f"v{number}": write_run(runs / f"exp/v{number}", mlflow_sqlite, 200) for number in range(6)}
    with running("sync", runs) as one, running("sync", runs) as other:
        assert {one.wait(120), other.wait(120)} <= {0, 1}
    assert main(["sync", str(runs)]) == 0
    made = runs_by_name(mlflow_sqlite, "exp")
    assert made.keys() == wanted.keys()
    for name, points in wanted.items():
        assert_exactly_once(mlflow_sqlite, made[name].info.run_id, "loss", points)


# -------------------------------------------------------------------- killed and stopped


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.soak)])
def test_killed_sync_loses_and_doubles_nothing(kills: int, runs: Path, mlflow_sqlite: str) -> None:
    """Sync is SIGKILLed at random moments over and over; the one that ends finds all points to be there once."""
    chance = random.Random(kills)
    wanted = {
        f"v{number}": write_run(runs / f"exp/v{number}", mlflow_sqlite, 120 * kills, chance.choice(["finished", None]))
        for number in range(5)
    }
    states = [folder / "mlflow.state.json" for folder in runs.glob("*/*/journal")]

    def saved() -> list[int]:
        return [state.stat().st_mtime_ns for state in states if state.exists()]

    inside = 0
    for _ in range(kills):
        before = saved()
        with running("sync", runs) as command:
            if chance.random() < 0.8:  # most kills while it delivers, the rest while it starts
                wait_until(lambda: command.poll() is not None or saved() != before, what="the first batch")  # noqa: B023
            try:
                command.wait(chance.uniform(0, 0.6))
            except subprocess.TimeoutExpired:
                inside += 1
    assert inside > 0
    assert main(["sync", str(runs)]) == 0
    made = runs_by_name(mlflow_sqlite, "exp")
    assert made.keys() == wanted.keys()
    for name, points in wanted.items():
        assert_exactly_once(mlflow_sqlite, made[name].info.run_id, "loss", points)
        assert made[name].info.status in {"FINISHED", "FAILED"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stops_while_a_tracker_does_not_answer(number: int, code: int, runs: Path, silent_port: int) -> None:
    """Ctrl+C and SIGTERM end sync although a request is under way; the journal is as it was."""
    write_run(runs / "exp/v1", f"http://127.0.0.1:{silent_port}")
    journal = (runs / "exp/v1/journal/rank0.jsonl").read_bytes()
    with running("sync", runs) as command:
        wait_until((runs / "exp/v1/journal/mlflow.lock").exists, what="a try")
        command.send_signal(number)
        _, err = command.communicate(timeout=25)
    assert command.returncode == code, err
    assert "Traceback" not in err
    assert (runs / "exp/v1/journal/rank0.jsonl").read_bytes() == journal


_TRAIN = """
import sys, time
sys.path.insert(0, sys.argv[3])
from pathlib import Path
from journals_by_hand import append_points, open_run
writer = open_run(Path(sys.argv[1]), sys.argv[2])
append_points(writer, 25)
print("written", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_follow_delivers_live(number: int, code: int, runs: Path, mlflow_sqlite: str) -> None:
    """``--follow`` finds a run begun later by another process, delivers it live, and closes it when that is killed."""
    earlier = write_run(runs / "earlier/v1", mlflow_sqlite)
    client = MlflowClient(mlflow_sqlite)
    with running("sync", "--follow", "--every", "0.2", runs) as command:
        wait_until(lambda: client.get_experiment_by_name("earlier"), 60, "the first delivery")
        with subprocess.Popen(
            [sys.executable, "-c", _TRAIN, str(runs / "later/v1"), mlflow_sqlite, str(Path(__file__).parent)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as trainer:  # fmt: skip
            assert trainer.stdout is not None
            assert trainer.stdout.readline() == b"written\n"

            def arrived() -> bool:
                experiment = client.get_experiment_by_name("later")
                made = client.search_runs([experiment.experiment_id]) if experiment else []
                return bool(made) and len(client.get_metric_history(made[0].info.run_id, "loss")) == 25

            wait_until(arrived, 60, "live delivery")
            assert trainer.poll() is None
            assert only_run(mlflow_sqlite, "later").info.status == "RUNNING"
            trainer.kill()
        wait_until(lambda: only_run(mlflow_sqlite, "later").info.status == "FAILED", 60, "the closing of the dead run")
        assert command.poll() is None
        resumed = open_run(runs / "earlier/v1", mlflow_sqlite)
        earlier += append_points(resumed, 5, 100)
        end_run(resumed, "finished")
        run_id = only_run(mlflow_sqlite, "earlier").info.run_id
        wait_until(lambda: len(client.get_metric_history(run_id, "loss")) == len(earlier), 60, "the resumed run")
        command.send_signal(number)
        out, err = command.communicate(timeout=30)
    assert command.returncode == code, (out, err)
    assert "Traceback" not in err
    assert_exactly_once(
        mlflow_sqlite, only_run(mlflow_sqlite, "later").info.run_id, "loss", [(i, i / 8) for i in range(25)]
    )
    assert_exactly_once(mlflow_sqlite, run_id, "loss", earlier)


def test_follow_waits_for_a_dead_tracker(runs: Path, own_mlflow_server: Any) -> None:
    """``--follow`` never gives up: the tracker that comes up later gets everything."""
    points = write_run(runs / "exp/v1", own_mlflow_server.uri)
    with running("sync", "--follow", "--every", "0.2", "--give-up-after", "0", runs):
        wait_until((runs / "exp/v1/journal/mlflow.state.json").exists, 60, "the first try")
        own_mlflow_server.start()
        client = MlflowClient(own_mlflow_server.database_uri)

        def finished() -> bool:
            experiment = client.get_experiment_by_name("exp")
            made = client.search_runs([experiment.experiment_id]) if experiment else []
            return bool(made) and made[0].info.status == "FINISHED"

        wait_until(finished, 90, "delivery")
    assert_exactly_once(
        own_mlflow_server.database_uri, only_run(own_mlflow_server.database_uri, "exp").info.run_id, "loss", points
    )


# -------------------------------------------------------------------- secrets and the screen


def test_credentials_come_from_the_environment(
    runs: Path,
    refusing_server: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The environment's user and password are used for the journal's address, and shown nowhere."""
    host, seen = refusing_server
    write_run(runs / "exp/v1", f"http://{host}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{_SECRET}@{host}/")
    assert main(["sync", str(runs)]) == 1
    import base64

    assert base64.b64encode(f"user:{_SECRET}".encode()).decode() in seen[0]
    captured = capsys.readouterr()
    assert _SECRET not in captured.out + captured.err
    assert not [name for name, entry in tree(runs).items() if _SECRET.encode() in entry[3]]
    seen.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{_SECRET}@127.0.0.1:{free_port()}")
    assert main(["sync", str(runs)]) == 1
    assert set(seen) == {""}  # another place's password is not handed to this one


@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_secrets_are_never_shown_or_written(
    extra: list[str], runs: Path, mlflow_server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A password in ``--to`` is in no output, journal, state or log, whether it works out or not."""
    name = f"exp-{tmp_path.name}"
    write_run(runs / name / "v1", "http://127.0.0.1:9")
    for address in (mlflow_server, f"http://127.0.0.1:{free_port()}"):
        full = address.replace("http://", f"http://user:{_SECRET}@")
        main(["sync", str(runs), "--to", full, "--give-up-after", "0.5", *extra])
    assert strip_uri(full) == address
    main(["status", str(runs)])
    main(["status", str(runs), "--json"])
    captured = capfd.readouterr()
    assert captured.out
    assert _SECRET not in captured.out + captured.err
    assert not [path for path, entry in tree(runs).items() if _SECRET.encode() in entry[3] or _SECRET in path]
    if not extra:
        only_run(mlflow_server, name)


def test_control_characters_do_not_reach_the_terminal(
    runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stranger's journal cannot send escape sequences to the screen."""
    writer = open_run(runs / "exp/v1", mlflow_sqlite)
    from lightning_loggers.records import RunSpec

    writer._file.run = RunSpec("cd" * 16, "\x1b[31mred", "v\x07", "mlflow", {"tracking_uri": mlflow_sqlite})
    append_points(writer, 1)
    end_run(writer)
    for command in (["sync", "--dry-run"], ["status"], ["status", "--json"], ["sync"]):
        main([*command, str(runs)])
        captured = capsys.readouterr()
        assert captured.out
        assert not {"\x1b", "\x07"} & set(captured.out + captured.err), command


def test_bar_on_a_terminal_only(runs: Path, mlflow_sqlite: str) -> None:
    """A terminal gets a progress bar; a pipe gets the result alone."""
    write_run(runs / "exp/v1", mlflow_sqlite)
    with running("sync", runs) as command:
        out, err = command.communicate(timeout=60)
    assert (out, err) == ("20 records delivered, 0 of 1 run pending.\n", "")
    write_run(runs / "exp/v2", mlflow_sqlite)
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "lightning_loggers", "sync", str(runs)],
        stdout=subprocess.PIPE, stderr=theirs, env=environment(TERM="xterm-256color"),
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # the terminal's other end is closed: the command has ended
        assert process.wait(60) == 0
    os.close(ours)
    assert b"Delivering" in shown
