"""Jobs of several processes: one run at the tracker under every launcher, whatever becomes of a rank or the server."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, wait_until
from faulty import FaultyProxy
from mlflow import MlflowClient
from mlflow_reading import assert_exactly_once, only_run, points
from test_faults_server import deliver
from warm_python import Program, WarmPython

from lightning_loggers.delivery.discover import find_runs
from lightning_loggers.journal import read

JOB = Path(__file__).with_name("distributed_job.py")
LIMIT_S = 150.0
"""A deadline against hanging for ever, not a bound on how fast anything is."""


@pytest.fixture(scope="module")
def warm_python() -> Iterator[WarmPython]:
    """Processes that need not import everything first."""
    with WarmPython() as python:
        yield python


class Job:
    """A distributed job on this machine.

    Args:
        folder: Where its runs and notes are kept.
        uri: Address of the tracker.
        launcher: Command and arguments before the script's name.
        orders: See ``distributed_job.py``.
    """

    def __init__(self, folder: Path, uri: str, *launcher: str, **orders: Any) -> None:
        self.notes_folder = folder / "notes"
        self.notes_folder.mkdir(exist_ok=True)
        self.save_dir = folder / "runs"
        logger = {"experiment_name": "e", "tracking_uri": uri, "save_dir": str(self.save_dir)}
        logger |= orders.pop("logger", {})
        self.orders = {"strategy": "ddp", "notes": str(self.notes_folder), "logger": logger, **orders}
        self.launcher = launcher or (sys.executable,)
        self.output = folder / "output.txt"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.programs: list[Program] = []

    def start_warm(self, python: WarmPython, **environment: str) -> None:
        """Start a process of the job as a fork of one that has imported everything."""
        with self.output.open("ab") as out:
            program = python.start(
                JOB.read_text(), json.dumps(self.orders), stdout=out.fileno(), stderr=out.fileno(),
                folder=self.output.parent, **environment,
            )  # fmt: skip
        self.programs.append(program)

    def start(self, *, more: tuple[str, ...] = (), **environment: str) -> None:
        """Start a process of the job with further arguments of its launcher."""
        with self.output.open("ab") as out:
            process = subprocess.Popen(
                [*self.launcher, *more, str(JOB), json.dumps(self.orders)],
                stdout=out, stderr=out, cwd=self.output.parent, env={**os.environ, **environment},
                start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)

    def finish(self) -> list[int]:
        """Wait for all that was started; their exit codes."""
        try:
            return [process.wait(LIMIT_S) for process in [*self.processes, *self.programs]]
        except subprocess.TimeoutExpired:
            pytest.fail(f"the job hangs: {self.said}")
        finally:
            self.kill()

    def kill(self) -> None:
        """End whatever is left of the job."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for program in self.programs:
            program.close()
        self.processes.clear()
        self.programs.clear()

    @property
    def said(self) -> str:
        """What its processes have written."""
        return self.output.read_text(errors="replace")[-6000:]

    @property
    def notes(self) -> list[dict[str, Any]]:
        """What its ranks have noted, in order of the ranks."""
        return [json.loads(note.read_text()) for note in sorted(self.notes_folder.glob("rank*.json"))]


def assert_one_run(job: Job, uri: str, ranks: int, steps: int = 8, status: str = "FINISHED") -> None:
    """One run on disk and at the tracker, all points of rank 0 once, and all ranks agree on its name."""
    notes = job.notes
    assert [note["rank"] for note in notes] == list(range(ranks)), job.said
    assert [note["steps"] for note in notes] == [steps] * ranks
    (run_dir,) = find_runs(job.save_dir)
    expected = {"name": "e", "version": run_dir.name, "log_dir": str(run_dir)}
    for note in notes:
        assert note["setup"] == expected
        assert note["end"] == expected
    assert [note["experiment"] for note in notes[1:]] == ["DummyExperiment"] * (ranks - 1)
    assert notes[0]["experiment"] != "DummyExperiment"
    run = only_run(uri, "e")
    assert run.info.status == status, job.said
    assert_exactly_once(uri, run.info.run_id, "rank", [(step, 0.0) for step in range(steps)])
    loss = [(r.step, r.data["loss"]) for r in read(run_dir) if r.data and "loss" in r.data]
    assert [step for step, _ in loss] == list(range(steps))
    assert_exactly_once(uri, run.info.run_id, "loss", loss)


def test_ddp_that_starts_the_script_again(mlflow_sqlite: str, tmp_path: Path) -> None:
    """Where Lightning starts the script once more for each further rank, there is one run, and all know its name."""
    job = Job(tmp_path, mlflow_sqlite, devices=2, ask_before=True)
    job.start()
    assert job.finish() == [0], job.said
    assert_one_run(job, mlflow_sqlite, 2)


def test_ddp_by_spawn(mlflow_sqlite: str, tmp_path: Path) -> None:
    """A logger that is pickled to spawned processes makes one run, and all know its name."""
    job = Job(tmp_path, mlflow_sqlite, devices=2, strategy="ddp_spawn")
    job.start()
    assert job.finish() == [0], job.said
    assert_one_run(job, mlflow_sqlite, 2)


def test_torchrun(mlflow_sqlite: str, tmp_path: Path) -> None:
    """Under torchrun there is one run, and all ranks know its name."""
    job = Job(tmp_path, mlflow_sqlite, sys.executable, "-m", "torch.distributed.run", devices=2, ask_before=True)
    job.start(more=("--nproc_per_node=2", "--master_port", str(free_port())))
    assert job.finish() == [0], job.said
    assert_one_run(job, mlflow_sqlite, 2)


def test_two_torchrun_nodes(mlflow_sqlite: str, tmp_path: Path) -> None:
    """Two nodes make one run, and both know its name."""
    job = Job(tmp_path, mlflow_sqlite, sys.executable, "-m", "torch.distributed.run", devices=1, nodes=2)
    meeting = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", "--master_port", str(free_port()))
    for node in "01":
        job.start(more=(*meeting, "--node_rank", node))
    assert job.finish() == [0, 0], job.said
    assert_one_run(job, mlflow_sqlite, 2)


def test_launcher_that_sets_none_of_lightnings_variables(
    mlflow_sqlite: str, tmp_path: Path, warm_python: WarmPython
) -> None:
    """Where no process can know its rank before the process group exists, there is one run all the same."""
    job = Job(tmp_path, mlflow_sqlite, devices=2, ask_before=True)
    port = str(free_port())
    for number in "01":
        job.start_warm(warm_python, TASK_NUMBER=number, TASK_COUNT="2", TASK_PORT=port)
    assert job.finish() == [0, 0], job.said
    assert_one_run(job, mlflow_sqlite, 2)
    before = {note["before"]["version"] for note in job.notes}
    assert len(before) == 2, "each process had named a run of its own before it could know of the other"


def test_hanging_server_holds_up_no_rank(mlflow_server: str, tmp_path: Path) -> None:
    """All four ranks do all their steps while the tracker answers nobody; when it does, the run is there whole."""
    hanging = True
    port = int(mlflow_server.rpartition(":")[2])
    name = f"distributed-{tmp_path.name}-{free_port()}"
    asked = tmp_path / "asked"
    with FaultyProxy(port, lambda: "hang" if hanging else "") as proxy:
        logger = {"experiment_name": name, "finalize_timeout_s": 0.5}
        job = Job(tmp_path, proxy.uri, devices=4, logger=logger, wait_at=2, wait_for=str(asked))
        job.start()
        wait_until(lambda: proxy.requests, LIMIT_S, "delivery's first request")
        asked.touch()  # from here on delivery hangs, and all ranks have five steps to go
        assert job.finish() == [0], job.said
        assert proxy.faults == proxy.requests, "somebody was answered"
        assert [note["steps"] for note in job.notes] == [8] * 4
        hanging = False
        (run_dir,) = find_runs(job.save_dir)
        deliver(run_dir)
    run = only_run(mlflow_server, name)
    assert run.info.status == "FINISHED"
    assert_exactly_once(mlflow_server, run.info.run_id, "rank", [(step, 0.0) for step in range(8)])


def test_rank_that_is_killed(mlflow_sqlite: str, tmp_path: Path) -> None:
    """With rank 2 of 4 SIGKILLed the run is closed as failed, with all that rank 0 had logged until then."""
    job = Job(tmp_path, mlflow_sqlite, devices=4, logger={"delivery": "process"}, at=5, on_ranks=[2], signal="SIGKILL")
    job.start()
    assert job.finish() != [0]

    def closed() -> bool:
        with contextlib.suppress(AssertionError):
            return only_run(mlflow_sqlite, "e").info.status in {"FAILED", "KILLED"}
        return False

    wait_until(closed, 60, "the run's closing")
    run = only_run(mlflow_sqlite, "e")
    assert run.info.status == "FAILED", job.said
    (run_dir,) = find_runs(job.save_dir)
    logged = [(r.step, r.data["rank"]) for r in read(run_dir) if r.data and "rank" in r.data]
    assert len(logged) >= 5
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "rank", logged)


@pytest.mark.parametrize("how", ["SIGUSR1", "SIGTERM"])
def test_preempted_job_goes_on_as_the_same_run(
    mlflow_sqlite: str, tmp_path: Path, warm_python: WarmPython, how: str
) -> None:
    """A job of two tasks that SLURM preempts and starts again is one run, never ended in between.

    Of a step that was trained twice, since the checkpoint is older than the last record, the tracker shows the later
    attempt as the last word; the earlier one stays in the journal.
    """
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text("#!/bin/sh\nexit 0\n")
    scontrol.chmod(0o755)
    slurm = {
        "PATH": f"{scontrol.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "localhost",
    }  # fmt: skip
    # SIGUSR1 comes a while before the end, and Lightning trains on after it has saved its checkpoint.
    order = {"die_at": 6} if how == "SIGUSR1" else {"checkpoint_every": 3}
    for attempt in (1, 2):
        job = Job(tmp_path, mlflow_sqlite, devices=2, attempt=attempt, at=4, on_ranks=[0, 1], signal=how, **order)
        if attempt == 2 and how == "SIGTERM":
            job.orders["checkpoint"] = str(job.notes_folder / "last.ckpt")
        port = str(free_port())
        for task in "01":
            job.start_warm(warm_python, **slurm, SLURM_PROCID=task, SLURM_LOCALID=task, MASTER_PORT=port)
        codes = job.finish()
        (run_dir,) = find_runs(job.save_dir)
        if attempt == 1:
            deliver(run_dir)
            between = only_run(mlflow_sqlite, "e")
            assert between.info.status == "RUNNING", job.said
            assert between.info.end_time is None
    assert codes == [0, 0], job.said
    run = only_run(mlflow_sqlite, "e")
    assert run.info.run_id == between.info.run_id
    assert run.info.status == "FINISHED"
    assert {note["end"]["version"] for note in job.notes} == {run_dir.name}
    assert [note["steps"] for note in job.notes] == [8, 8]
    history = MlflowClient(mlflow_sqlite).get_metric_history(run.info.run_id, "attempt")
    last_word = {point.step: point.value for point in sorted(history, key=lambda point: (point.step, point.timestamp))}
    twice = len(history) - len(last_word)
    assert twice >= 1, "no step was trained twice"
    assert sorted(last_word) == list(range(8))
    resumed = min(step for step, value in last_word.items() if value == 2)
    assert last_word == {step: 1.0 if step < resumed else 2.0 for step in range(8)}
    journaled = [(r.step, r.data["attempt"]) for r in read(run_dir) if r.data and "attempt" in r.data]
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "attempt", journaled)


def test_all_ranks_log(mlflow_sqlite: str, tmp_path: Path, warm_python: WarmPython) -> None:
    """With ``log_on_workers=-1`` a step's values of four ranks become one point, or one series per rank, as asked."""
    policy = {"log_on_workers": -1, "merge_ranks_by_key": {"rank": "max", "own": "per_rank"}, "rank_wait_s": 60}
    job = Job(tmp_path, mlflow_sqlite, devices=4, policy=policy, logger={"finalize_timeout_s": 100})
    port = str(free_port())
    for number in "0123":
        job.start_warm(warm_python, TASK_NUMBER=number, TASK_COUNT="4", TASK_PORT=port)
    assert job.finish() == [0] * 4, job.said
    (run_dir,) = find_runs(job.save_dir)
    run = only_run(mlflow_sqlite, "e")
    assert run.info.status == "FINISHED", job.said
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "rank", [(step, 3.0) for step in range(8)])
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "attempt", [(step, 1.0) for step in range(8)])
    for rank in range(4):
        own = [(step, float(rank)) for step in range(8)]
        assert_exactly_once(mlflow_sqlite, run.info.run_id, f"own/rank{rank}", own)
    losses: dict[Any, list[float]] = {}
    for record in read(run_dir):
        if record.data and "loss" in record.data:
            losses.setdefault(record.step, []).append(record.data["loss"])
    assert [len(of_ranks) for of_ranks in losses.values()] == [4] * 8
    got = points(mlflow_sqlite, run.info.run_id, "loss")
    assert [step for step, _ in got] == list(range(8))
    assert [value for _, value in got] == pytest.approx([sum(losses[step]) / 4 for step in range(8)])
    assert "had logged nothing" not in job.said
    assert {path.name for path in (run_dir / "journal").glob("*.jsonl")} == {f"rank{rank}.jsonl" for rank in range(4)}
