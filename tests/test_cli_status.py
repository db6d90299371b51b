"""``lightning-loggers status``: what it counts, and that it only looks."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from journals_by_hand import append_points, end_run, open_run, tree, write_run
from mlflow_reading import only_run

from lightning_loggers.cli import console, main
from lightning_loggers.delivery.discover import find_runs
from lightning_loggers.delivery.overview import Overview
from lightning_loggers.journal.layout import delivery_lock_path
from lightning_loggers.journal.lock import FileLock
from lightning_loggers.records import Record


@pytest.fixture(autouse=True)
def own_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the process's logging alone."""
    monkeypatch.setattr(console, "take_over_logging", lambda: None)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder to keep runs in."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def status_of(path: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What ``status --json`` prints."""
    capsys.readouterr()
    assert main(["status", str(path), "--json"]) == 0
    return list(json.loads(capsys.readouterr().out))


def test_before_and_after_delivery(runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    """All is pending before a sync and all is delivered after it, in the run that the tracker has."""
    write_run(runs / "exp/v1", mlflow_sqlite, 12)
    (before,) = status_of(runs, capsys)
    expected = {
        "run_dir": str(runs / "exp/v1"),
        "problem": None,
        "name": "exp",
        "version": "v1",
        "tracker": "mlflow",
        "destination": mlflow_sqlite,
        "writer_alive": False,
        "being_delivered": False,
        "recorded": 12,
        "delivered": 0,
        "pending": 12,
        "rejected": 0,
        "damaged": 0,
        "status": "finished",
        "tracker_status": None,
        "tracker_needs_status": True,
        "remote_id": None,
    }
    assert {key: before[key] for key in expected} == expected
    assert 0 <= before["oldest_pending_s"] < 3600
    assert len(before["uid"]) == 32
    assert main(["sync", str(runs)]) == 0
    (after,) = status_of(runs, capsys)
    changed = {
        "delivered": 12,
        "pending": 0,
        "tracker_status": "finished",
        "tracker_needs_status": False,
        "remote_id": only_run(mlflow_sqlite, "exp").info.run_id,
        "oldest_pending": None,
        "oldest_pending_s": None,
    }
    assert after == {**before, **changed}


def test_json_keys_are_those_of_the_docstring(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON has exactly the keys that the command's help names."""
    write_run(runs / "exp/v1", "sqlite:////nowhere.db")
    (found,) = status_of(runs, capsys)
    from lightning_loggers.cli.status import status

    assert list(found) == [field.name for field in dataclasses.fields(Overview)]
    assert status.__doc__ is not None
    named = status.__doc__.partition("with the keys")[2]
    assert [key for key in found if key not in named.replace(",", " ").replace(".", " ").split()] == []


def test_only_looks(runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither form of status changes a byte or a time on disk."""
    write_run(runs / "exp/v1", mlflow_sqlite)
    writer = open_run(runs / "exp/v2", mlflow_sqlite)
    append_points(writer, 3)
    before = tree(runs.parent)
    assert main(["status", str(runs)]) == 0
    assert len(status_of(runs, capsys)) == 2
    assert tree(runs.parent) == before
    writer.close()


@pytest.mark.parametrize(
    ("said", "alive", "shown"),
    [
        (None, True, "running"),
        (None, False, "died"),
        ("finished", False, "finished"),
        ("failed", False, "failed"),
        ("interrupted", False, "interrupted"),
        ("preempted", False, "preempted"),
    ],
)
def test_run_status(said: str | None, alive: bool, shown: str, runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's status is what it said last; without a word it runs while its writer lives, and died after that."""
    writer = open_run(runs / "exp/v1", "http://127.0.0.1:9")
    append_points(writer, 2)
    if not alive:
        end_run(writer, said)
    (found,) = status_of(runs, capsys)
    assert (found["status"], found["writer_alive"]) == (shown, alive)
    writer.close()


def test_resumed_run_is_running_again(runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An earlier session's end is no longer the status once a process has taken the run up again."""
    write_run(runs / "exp/v1", mlflow_sqlite, 4)
    assert main(["sync", str(runs)]) == 0
    writer = open_run(runs / "exp/v1", mlflow_sqlite)
    append_points(writer, 3, 4)
    (found,) = status_of(runs, capsys)
    assert (found["status"], found["tracker_status"]) == ("running", "finished")
    assert (found["recorded"], found["delivered"], found["pending"]) == (7, 4, 3)
    writer.close()


def test_delivery_under_way(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A held delivery lock shows, and looking does not take it."""
    write_run(runs / "exp/v1", "http://127.0.0.1:9")
    lock = FileLock(delivery_lock_path(runs / "exp/v1/journal", "mlflow"))
    assert lock.acquire()
    assert status_of(runs, capsys)[0]["being_delivered"] is True
    lock.release()
    assert status_of(runs, capsys)[0]["being_delivered"] is False


def test_age_is_that_of_the_oldest(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The age shown is the oldest pending record's, also where a clock was set back."""
    writer = open_run(runs / "exp/v1", "http://127.0.0.1:9")
    now = time.time_ns()
    for hours in (1, 5, 2):
        writer.append(Record(now - hours * 3_600_000_000_000, "text", id="note", value="x"))
    end_run(writer, "finished")
    (found,) = status_of(runs, capsys)
    assert 5 * 3600 <= found["oldest_pending_s"] < 5 * 3600 + 600
    assert found["recorded"] == found["pending"] == 3
    assert main(["status", str(runs)]) == 0
    assert "5.0 h" in capsys.readouterr().out


def test_hostile_times(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record from the year 5000 or from before the epoch stops nothing."""
    writer = open_run(runs / "exp/v1", "http://127.0.0.1:9")
    writer.append(Record(2**62, "text", id="note", value="x"))
    writer.append(Record(-(2**62), "text", id="note", value="x"))
    end_run(writer, "finished")
    assert status_of(runs, capsys)[0]["pending"] == 2
    assert main(["status", str(runs)]) == 0


def test_rejected_and_damaged(runs: Path, mlflow_sqlite: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What the tracker refused and what the disk spoiled are counted apart."""
    writer = open_run(runs / "exp/v1", mlflow_sqlite)
    writer.append(Record(time.time_ns(), "param", data={"lr": 1}))
    writer.append(Record(time.time_ns(), "param", data={"lr": 2}))
    append_points(writer, 5)
    end_run(writer, "finished")
    path = runs / "exp/v1/journal/rank0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[-2] = lines[-2].replace(b"loss", b"lass")
    path.write_bytes(b"".join(lines))
    assert main(["sync", str(runs)]) == 0
    (found,) = status_of(runs, capsys)
    counts = {key: found[key] for key in ("recorded", "delivered", "pending", "rejected", "damaged")}
    assert counts == {"recorded": 6, "delivered": 5, "pending": 0, "rejected": 1, "damaged": 1}


def test_each_place_has_a_row(
    runs: Path, mlflow_sqlite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was delivered to another tracker shows once for each of the two."""
    write_run(runs / "exp/v1", "http://127.0.0.1:9", 6)
    assert main(["sync", str(runs), "--to", mlflow_sqlite]) == 0
    home, other = status_of(runs, capsys)
    assert (home["destination"], home["pending"]) == ("http://127.0.0.1:9", 6)
    assert (other["destination"], other["pending"], other["delivered"]) == (mlflow_sqlite, 0, 6)


def test_unreadable_journals_have_a_row(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A journal that cannot be read is shown with the reason, beside those that can."""
    write_run(runs / "exp/v1", "http://127.0.0.1:9")
    (runs / "exp/v2/journal").mkdir(parents=True)
    (runs / "exp/v2/journal/rank0.jsonl").write_bytes(b"something else\n")
    found = {item["run_dir"]: item for item in status_of(runs, capsys)}
    assert "no header" in found[str(runs / "exp/v2")]["problem"]
    assert found[str(runs / "exp/v1")]["problem"] is None
    assert main(["status", str(runs)]) == 0
    out = capsys.readouterr().out
    assert "exp/v1" in out
    assert f"{runs / 'exp/v2'} cannot be read" in out
    assert f"lightning-loggers sync {runs}" in out


def test_nothing_there(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty folder is no error."""
    assert main(["status", str(runs)]) == 0
    assert "no run below" in capsys.readouterr().out
    assert status_of(runs, capsys) == []


def test_links_are_not_followed(runs: Path, tmp_path: Path) -> None:
    """Runs behind symbolic links are not found: a link in a shared folder must not lead elsewhere."""
    write_run(tmp_path / "elsewhere/exp/v1", "http://127.0.0.1:9")
    write_run(runs / "exp/v1", "http://127.0.0.1:9")
    (runs / "linked").symlink_to(tmp_path / "elsewhere")
    (runs / "half").mkdir()
    (runs / "half/journal").symlink_to(tmp_path / "elsewhere/exp/v1/journal")
    told: list[Path] = []
    assert list(find_runs(runs, lambda path, reason: told.append(path))) == [runs / "exp/v1"]
    assert told == [runs / "half"]


def test_runs_within_runs_are_found(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run kept inside another run's folder is found too, also from inside a journal folder."""
    write_run(runs / "exp/v1", "http://127.0.0.1:9")
    write_run(runs / "exp/v1/children/v2", "http://127.0.0.1:9")
    assert list(find_runs(runs)) == [runs / "exp/v1", runs / "exp/v1/children/v2"]
    monkeypatch.chdir(runs / "exp/v1/journal")
    assert list(find_runs(Path())) == [(runs / "exp/v1").resolve()]
