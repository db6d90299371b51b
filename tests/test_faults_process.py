"""How a run ends: the status at the tracker, and no acknowledged record lost, however the process goes."""

import contextlib
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_until
from mlflow import MlflowClient
from mlflow_reading import assert_exactly_once, only_run, points
from test_faults_server import deliver
from warm_python import WarmPython

from lightning_loggers import MLFlowLogger
from lightning_loggers.delivery.discover import find_runs
from lightning_loggers.journal import read
from lightning_loggers.journal.layout import lock_path
from lightning_loggers.journal.lock import is_locked

JOB = Path(__file__).with_name("training_job.py")


def start(
    kind: str, ending: str, steps: int, environment: dict[str, str] | None = None, **options: Any
) -> "subprocess.Popen[bytes]":
    """Start a job; its standard output is a pipe."""
    options["save_dir"] = str(options["save_dir"])
    return subprocess.Popen(
        [sys.executable, str(JOB), kind, ending, str(steps), json.dumps(options)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **(environment or {})},
    )  # fmt: skip


def finish(job: "subprocess.Popen[bytes]", timeout_s: float = 120) -> tuple[str, str]:
    """Wait for a job; its output and errors."""
    out, err = job.communicate(timeout=timeout_s)
    return out.decode(), err.decode()


def acknowledged(out: str) -> int:
    """How many log calls had returned."""
    return sum(line.startswith("step ") for line in out.splitlines())


def only_dir(save_dir: Path) -> Path:
    """The folder of the only run."""
    (run_dir,) = find_runs(save_dir)
    return run_dir


def journaled(run_dir: Path, key: str) -> list[tuple[Any, float]]:
    """(step, value) of a metric in the journal."""
    return [(r.step, r.data[key]) for r in read(run_dir) if r.kind == "metric" and r.data and key in r.data]


@pytest.mark.parametrize(
    ("kind", "ending", "delivery", "status"),
    [
        ("trained", "succeed", "thread", "FINISHED"),
        ("trained", "raise", "thread", "FAILED"),
        ("trained", "interrupt", "thread", "KILLED"),
        ("trained", "terminate", "thread", "KILLED"),
        ("trained", "interrupt", "process", "KILLED"),
        ("plain", "succeed", "thread", "FINISHED"),
        ("plain", "succeed", "process", "FINISHED"),
        ("plain", "raise", "thread", "FAILED"),
        ("plain", "interrupt", "thread", "KILLED"),
    ],
)
def test_status_at_the_tracker(
    mlflow_sqlite: str, tmp_path: Path, kind: str, ending: str, delivery: str, status: str
) -> None:
    """MLflow shows how the run ended, also where nobody called finalize, and every record is there."""
    job = start(
        kind, ending, 30, experiment_name="e", tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", delivery=delivery
    )
    out, err = finish(job)
    run = only_run(mlflow_sqlite, "e")
    assert run.info.status == status, err
    expected = journaled(only_dir(tmp_path / "runs"), "loss")
    assert len(expected) >= (30 if ending == "succeed" or kind == "plain" else 10), out
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", expected)


def test_killed_trainer_is_closed_as_failed_by_its_delivery_process(mlflow_sqlite: str, tmp_path: Path) -> None:
    """A delivery process outlives a SIGKILLed trainer, delivers the tail and closes the run as failed, unasked."""
    job = start(
        "trained",
        "kill",
        30,
        experiment_name="e",
        tracking_uri=mlflow_sqlite,
        save_dir=tmp_path / "runs",
        delivery="process",
    )
    finish(job)
    assert job.returncode == -signal.SIGKILL
    client = MlflowClient(mlflow_sqlite)

    def failed() -> bool:
        with contextlib.suppress(AssertionError):
            return only_run(mlflow_sqlite, "e").info.status == "FAILED"
        return False

    wait_until(failed, 60, "the run's closing")
    run_id = only_run(mlflow_sqlite, "e").info.run_id
    expected = journaled(only_dir(tmp_path / "runs"), "loss")
    assert len(expected) >= 10
    assert_exactly_once(mlflow_sqlite, run_id, "loss", expected)
    assert client.get_run(run_id).info.end_time is not None


def test_killed_trainer_is_closed_as_failed_by_sync(mlflow_sqlite: str, tmp_path: Path) -> None:
    """A run whose trainer was SIGKILLed is delivered and closed as failed by whoever comes next."""
    job = start("trained", "kill", 30, experiment_name="e", tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    finish(job)
    run_dir = only_dir(tmp_path / "runs")
    assert not is_locked(lock_path(run_dir / "journal", "rank0"))
    deliver(run_dir)
    run = only_run(mlflow_sqlite, "e")
    assert run.info.status == "FAILED"
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", journaled(run_dir, "loss"))


def kill_at_random(uri: str, save_dir: Path, name: str, rng: random.Random, delivery: str) -> tuple[int, Path]:
    """Start a job, SIGKILL it at a random moment of its logging; the acknowledged calls and the run's folder."""
    job = start("plain", "wait", 20_000, experiment_name=name, tracking_uri=uri, save_dir=save_dir, delivery=delivery)
    assert job.stdout is not None
    first = job.stdout.readline()
    assert first == b"step 0\n", finish(job)
    deadline = time.monotonic() + rng.random() * 1.2
    seen = [first]
    os.set_blocking(job.stdout.fileno(), True)
    while time.monotonic() < deadline and len(seen) < 20_000:
        seen.append(job.stdout.readline())
    job.kill()
    seen.extend(job.stdout.readlines())
    job.wait()
    assert job.stderr is not None
    job.stderr.close()
    job.stdout.close()
    count = sum(1 for line in seen if line.startswith(b"step ") and line.endswith(b"\n"))
    (run_dir,) = (run for run in find_runs(save_dir) if run.parent.name == name)
    return count, run_dir


@pytest.fixture(scope="module")
def python() -> Iterator[WarmPython]:
    """Programs in processes of their own."""
    with WarmPython() as python:
        yield python


@pytest.mark.parametrize("heals", [False, True])
@pytest.mark.parametrize("delivery", ["offline", "thread"])
def test_what_a_disk_refuses_to_the_end_is_told(
    python: WarmPython, tmp_path: Path, delivery: str, *, heals: bool
) -> None:
    """The run's end says how many records are in memory only; the process's end writes them, or says they are lost."""
    code = f"""
import logging, resource, sys
logging.getLogger("lightning_loggers").setLevel(logging.INFO)
from lightning_loggers import CSVLogger
logger = CSVLogger(sys.argv[1], delivery={delivery!r}, finalize_timeout_s=0.5)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
for step in range(2000):
    logger.log_metrics({{"loss": step / 7}}, step)
logger.finalize("success")
if {heals}:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""
    done = python.run(code, tmp_path).ok()
    run_dir = only_dir(tmp_path)
    kept = list(read(run_dir))
    (in_memory,) = re.findall(r"but for the last (\d+), which are in memory only", done.stderr)
    assert "Nothing is lost" not in done.stderr
    assert [record.step for record in kept if record.kind == "metric"] == list(range(2000))[: len(kept)]
    lost = re.findall(r"The last (\d+) records could not be written to (\S+) and are lost", done.stderr)
    if heals:
        assert len(kept) == 2001  # and the status
        assert not lost
    else:
        assert len(kept) == 2001 - int(in_memory)
        assert lost == [(in_memory, str(run_dir / "journal"))]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_the_end_waits_for_delivery(python: WarmPython, tmp_path: Path, number: signal.Signals) -> None:
    """Whoever waits no longer is told what is pending, where, and how it gets to the tracker."""
    code = f"""
import os, signal, sys, threading, time
from lightning_loggers import MLFlowLogger
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
logger = MLFlowLogger("e", tracking_uri="http://127.0.0.1:9", save_dir=sys.argv[1], delivery="thread")
logger.log_metrics({{"loss": 1.0}}, 0)
drain = logger._host.drain
def interrupted(*args):
    threading.Timer(0.2, os.kill, (os.getpid(), {int(number)})).start()
    return drain(*args)
logger._host.drain = interrupted
began = time.monotonic()
try:
    logger.finalize("success")
except (KeyboardInterrupt, SystemExit):
    print("interrupted", time.monotonic() - began < 25)
"""
    done = python.run(code, tmp_path).ok()
    assert done.stdout.split() == ["interrupted", "True"]
    assert "had not taken all records when it was interrupted (1 recorded, 0 delivered, 1 pending" in done.stderr
    run_dir = only_dir(tmp_path)
    assert f"Nothing is lost. The pending ones are in {run_dir}. Deliver them with" in done.stderr
    assert f"lightning-loggers sync {run_dir}" in done.stderr


@pytest.mark.parametrize("times", [3, pytest.param(200, marks=pytest.mark.soak)])
def test_trainer_killed_at_random_moments(mlflow_sqlite: str, tmp_path: Path, times: int) -> None:
    """Whatever had been acknowledged when the trainer was SIGKILLed arrives, once, and the run is shown as failed."""
    rng = random.Random(times)
    for attempt in range(times):
        count, run_dir = kill_at_random(mlflow_sqlite, tmp_path / "runs", f"e{attempt}", rng, "thread")
        deliver(run_dir)
        run = only_run(mlflow_sqlite, f"e{attempt}")
        assert run.info.status == "FAILED"
        got = points(mlflow_sqlite, run.info.run_id, "loss")
        assert len(got) in {count, count + 1}, "one more than acknowledged may be there: its line was written, not told"
        assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", [(s, s * 0.5) for s in range(len(got))])


@pytest.mark.parametrize("times", [5, pytest.param(100, marks=pytest.mark.soak)])
def test_delivery_killed_at_random_moments(mlflow_sqlite: str, tmp_path: Path, times: int) -> None:
    """A delivery process that is SIGKILLed again and again while it delivers loses nothing and doubles nothing."""
    logger = MLFlowLogger("e", tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", delivery="offline")
    for step in range(30_000):
        logger.log_metrics({"loss": step * 0.5}, step)
    logger.log_hyperparams({"lr": 0.1})
    logger.finalize("success")
    logger.close()
    run_dir = only_dir(tmp_path / "runs")
    order = {
        "run_dir": str(run_dir), "save_dir": str(tmp_path / "runs"), "tracker": "mlflow",
        "options": {"tracking_uri": mlflow_sqlite}, "destination": mlflow_sqlite, "deliver_leftovers": False,
        "linger_s": 60,
    }  # fmt: skip
    rng = random.Random(times)
    state = run_dir / "journal" / "mlflow.state.json"
    for _ in range(times):
        child = subprocess.Popen(
            [sys.executable, "-m", "lightning_loggers.delivery.child"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert child.stdin is not None
        child.stdin.write(json.dumps(order).encode() + b"\n")
        child.stdin.close()
        before = state.stat().st_mtime_ns if state.exists() else 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            # some are killed while they start, some once they have delivered something
            child.wait(timeout=rng.uniform(0.5, 3.5))
        if rng.random() < 0.5:
            wait_until(
                lambda child=child, before=before: (
                    child.poll() is not None  # type: ignore[misc]
                    or (state.exists() and state.stat().st_mtime_ns != before)
                ),
                60,
                "some delivery",
            )
        child.kill()
        child.wait()
    worker = deliver(run_dir)
    assert worker.state is not None
    assert worker.state.delivered + 0 >= 1
    run = only_run(mlflow_sqlite, "e")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "0.1"}
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", [(step, step * 0.5) for step in range(30_000)])


def test_requeued_slurm_job_continues_its_run(mlflow_sqlite: str, tmp_path: Path) -> None:
    """A job that SLURM preempts and starts again is one run, never shown as finished in between."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\nexit 0\n")
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IEXEC)
    slurm = {
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "1", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train", "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NODELIST": "localhost",
    }  # fmt: skip
    options = {"experiment_name": "e", "tracking_uri": mlflow_sqlite, "save_dir": tmp_path / "runs"}
    _, err = finish(start("trained", "requeue", 30, slurm, **options))
    run_dir = only_dir(tmp_path / "runs")
    assert any(r.kind == "status" and r.value == "preempted" for r in read(run_dir)), err
    deliver(run_dir)
    run = only_run(mlflow_sqlite, "e")
    assert run.info.status == "RUNNING"
    _, err = finish(start("trained", "succeed", 30, slurm, **options))
    assert only_dir(tmp_path / "runs") == run_dir, err
    again = only_run(mlflow_sqlite, "e")
    assert again.info.run_id == run.info.run_id
    assert again.info.status == "FINISHED"
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", journaled(run_dir, "loss"))
    _, err = finish(start("trained", "succeed", 30, slurm, **options))
    assert len(list(find_runs(tmp_path / "runs"))) == 2, "a run that ended is not continued by the same job"


def test_finalize_in_a_signal_handler_that_interrupts_logging(mlflow_sqlite: str, tmp_path: Path) -> None:
    """A SLURM-like handler that finalizes in the middle of a log call neither deadlocks nor loses a record."""
    job = start("plain", "in-handler", 10, experiment_name="e", tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    out, err = finish(job)
    assert job.returncode == 0, err
    last = int(out.split("last ")[1])
    run = only_run(mlflow_sqlite, "e")
    assert run.info.status == "FINISHED"
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", [(step, step * 0.5) for step in range(last)])
    assert points(mlflow_sqlite, run.info.run_id, "in_handler") == [(10, 1.0)]


@pytest.mark.parametrize("delivery", ["thread", "process"])
def test_forked_child_neither_writes_twice_nor_hangs(mlflow_sqlite: str, tmp_path: Path, delivery: str) -> None:
    """A forked child's records go to the same run from a stream of its own; the parent's are there once."""
    job = start(
        "plain",
        "fork",
        40,
        experiment_name="e",
        tracking_uri=mlflow_sqlite,
        save_dir=tmp_path / "runs",
        delivery=delivery,
    )
    _, err = finish(job)
    assert job.returncode == 0, err
    run_dir = only_dir(tmp_path / "runs")
    deliver(run_dir)
    run = only_run(mlflow_sqlite, "e")
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", [(step, step * 0.5) for step in range(40)])
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "child", [(0, 1.0), (1, 2.0)])
    assert len(list((run_dir / "journal").glob("rank0*.jsonl"))) == 2


def test_two_deliverers_never_work_at_once(mlflow_sqlite: str, tmp_path: Path) -> None:
    """While one worker delivers a run another one finds it busy, and takes over when the first is gone."""
    from lightning_loggers.delivery.worker import StepKind, Worker

    logger = MLFlowLogger("e", tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", delivery="offline")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.close()
    run_dir = only_dir(tmp_path / "runs")
    first, second = Worker(run_dir), Worker(run_dir)
    assert first.step().kind is StepKind.PROGRESS
    assert second.step().kind is StepKind.BUSY
    first.close()
    assert second.step().kind is StepKind.IDLE
    second.close()
    run = only_run(mlflow_sqlite, "e")
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", [(0, 1.0)])


def test_torn_tail_of_a_dead_writer_does_not_stay_pending(mlflow_sqlite: str, tmp_path: Path) -> None:
    """Half a line that a killed process left is reported and passed over: the run counts as delivered and is closed."""
    from lightning_loggers.delivery.pending import ends_of
    from lightning_loggers.delivery.worker import Worker

    logger = MLFlowLogger("e", tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs", delivery="offline")
    logger.log_metrics({"loss": 1.0}, 0)
    assert logger._writer is not None
    logger._writer.close()  # the process is gone: no status was written
    logger._finalized_at = logger._writer.recorded
    run_dir = only_dir(tmp_path / "runs")
    segment = run_dir / "journal" / "rank0.jsonl"
    with segment.open("ab") as file:
        file.write(b'{"time_ns":17952441978,"kind":"met')
    worker = deliver(run_dir)
    assert worker.state is not None
    assert worker.state.damaged == 1
    assert worker.caught_up(ends_of(run_dir / "journal"))
    assert not Worker(run_dir).is_leftover("mlflow", mlflow_sqlite, {})
    run = only_run(mlflow_sqlite, "e")
    assert run.info.status == "FAILED"
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", [(0, 1.0)])
