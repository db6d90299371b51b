"""Jobs of several processes: one run at the tracker under every launcher, whatever becomes of a rank or the server."""

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
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
from lightning_loggers.delivery.state import StateFile
from lightning_loggers.journal import read
from lightning_loggers.journal.reader import Position, StreamReader
from lightning_loggers.records import Record

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
        logger |= {"finalize_timeout_s": 100}  # starting MLflow may take the default of 30 s where tests compete
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


def statuses(uri: str) -> list[str]:
    """The status of every run in an SQLite store, as of now."""
    with contextlib.closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        return [status for (status,) in database.execute("SELECT status FROM runs")]


def last_words(uri: str, run_id: str) -> dict[int, float]:
    """What MLflow shows as the last point of each step: which attempt it is of."""
    history = MlflowClient(uri).get_metric_history(run_id, "attempt")
    return {point.step: point.value for point in sorted(history, key=lambda point: (point.step, point.timestamp))}


def read_stream(run_dir: Path, rank: int) -> list[Record]:
    """What one rank has recorded."""
    reader = StreamReader(run_dir / "journal", f"rank{rank}")
    entries = reader.read(Position(), 2**22, final=True).entries
    return [entry.line for entry in entries if isinstance(entry.line, Record)]


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
    """All four ranks log and do all their steps while the tracker answers nobody, none of them waiting for it.

    What a rank would wait for does not come before all of them have ended. When it does, the run is there whole.
    """
    hanging = True
    port = int(mlflow_server.rpartition(":")[2])
    name = f"distributed-{tmp_path.name}-{free_port()}"
    asked = tmp_path / "asked"
    with FaultyProxy(port, lambda: "hang" if hanging else "") as proxy:
        logger = {"experiment_name": name, "finalize_timeout_s": 0.5}
        policy = {"log_on_workers": -1}
        job = Job(tmp_path, proxy.uri, devices=4, logger=logger, wait_at=2, wait_for=str(asked), policy=policy)
        job.start()
        wait_until(lambda: proxy.requests, LIMIT_S, "delivery's first request")
        hangs_since = time.time()
        asked.touch()  # from here on delivery hangs, and all ranks have five steps to go
        assert job.finish() == [0], job.said
        assert proxy.faults == proxy.requests, "somebody was answered"
        hung_s = time.time() - hangs_since
        assert [note["steps"] for note in job.notes] == [8] * 4
        for note in job.notes:
            meanwhile = [ended for ended in note["ended"] if ended > hangs_since]
            assert len(meanwhile) >= 5, "steps that ended while delivery was hanging"
            longest_s = max(end - start for start, end in itertools.pairwise([hangs_since, *meanwhile]))
            assert longest_s < hung_s, f"rank {note['rank']} waited as long as the server did"
        hanging = False
        (run_dir,) = find_runs(job.save_dir)
        deliver(run_dir)
    run = only_run(mlflow_server, name)
    assert run.info.status == "FINISHED"
    assert_exactly_once(mlflow_server, run.info.run_id, "rank", [(step, 1.5) for step in range(8)])


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


def test_killed_rank_among_several_that_log(mlflow_sqlite: str, tmp_path: Path) -> None:
    """With rank 2 of 4 SIGKILLed while all log, the run is closed as failed and has what each rank had logged.

    That is rank 2's own until then and the others' to their end, and it is told that rank 2 was missing.
    """
    policy = {"log_on_workers": -1, "merge_ranks_by_key": {"rank": "max", "own": "per_rank"}, "rank_wait_s": 60}
    logger = {"delivery": "process"}
    job = Job(
        tmp_path, mlflow_sqlite, devices=4, logger=logger, policy=policy, before=5, on_ranks=[2], signal="SIGKILL"
    )
    job.start()
    assert job.finish() != [0]
    wait_until(lambda: statuses(mlflow_sqlite) == ["FAILED"], 60, "the run's closing")
    run = only_run(mlflow_sqlite, "e")
    (run_dir,) = find_runs(job.save_dir)
    assert not list((run_dir / "journal").glob("rejected*"))
    by_rank = {
        rank: [(r.step, r.data["own"]) for r in read_stream(run_dir, rank) if r.data and "own" in r.data]
        for rank in range(4)
    }
    assert by_rank[2] == [(step, 2.0) for step in range(5)]
    for rank, own in by_rank.items():
        assert own[:5] == [(step, float(rank)) for step in range(5)]
        assert_exactly_once(mlflow_sqlite, run.info.run_id, f"own/rank{rank}", own)
    merged = [(step, 3.0) for step in range(5)]
    lone = max((rank for rank in (0, 1, 3) if len(by_rank[rank]) > 5), default=None)
    assert lone is not None, "nobody had logged the step in which rank 2 died"
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "rank", [*merged, (5, float(lone))])
    assert "Rank 2 had logged nothing for step 5" in (run_dir / "journal" / "delivery.log").read_text()
    state = StateFile(run_dir / "journal", "mlflow").load("mlflow")
    assert state.reasons["step without rank 2"] >= 1


@pytest.mark.parametrize(("how", "ranks"), [("SIGKILL", 2), ("raise", 1)])
def test_workers_that_torchrun_starts_again(mlflow_sqlite: str, tmp_path: Path, how: str, ranks: int) -> None:
    """A job whose worker dies or fails, and that torchrun starts again, is one run that never ends in between."""
    checkpoint = str(tmp_path / "notes" / "last.ckpt")
    job = Job(
        tmp_path, mlflow_sqlite, sys.executable, "-m", "torch.distributed.run", devices=ranks, checkpoint_every=3,
        checkpoint=checkpoint, at=4, on_ranks=[0], signal=how, logger={"delivery": "process"},
    )  # fmt: skip
    # Where restarted workers share the launcher's store, those of torch 2.13 may look there for the dead ones.
    meeting = ("--standalone",) if ranks > 1 else ("--master_port", str(free_port()))
    more = (f"--nproc_per_node={ranks}", "--max-restarts=1", *meeting)
    job.start(more=more, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
    seen: set[str] = set()
    (torchrun,) = job.processes
    deadline = time.monotonic() + LIMIT_S
    while torchrun.poll() is None and time.monotonic() < deadline:
        seen.update(statuses(mlflow_sqlite))
        with contextlib.suppress(subprocess.TimeoutExpired):
            torchrun.wait(0.05)
    assert job.finish() == [0], job.said
    wait_until(lambda: statuses(mlflow_sqlite) == ["FINISHED"], 60, "the run's end")
    assert seen <= {"RUNNING", "FINISHED"}
    (run_dir,) = find_runs(job.save_dir)
    assert [note["end"]["version"] for note in job.notes] == [run_dir.name] * ranks
    run = only_run(mlflow_sqlite, "e")
    journaled = [(r.step, r.data["attempt"]) for r in read(run_dir) if r.data and "attempt" in r.data]
    assert journaled == [*((step, 1.0) for step in range(5)), *((step, 2.0) for step in range(3, 8))]
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "attempt", journaled)
    assert last_words(mlflow_sqlite, run.info.run_id) == {step: 1.0 if step < 3 else 2.0 for step in range(8)}


@pytest.mark.parametrize("how", ["SIGUSR1", "SIGTERM", "SIGKILL"])
def test_job_that_slurm_starts_again_goes_on_as_the_same_run(
    mlflow_sqlite: str, tmp_path: Path, warm_python: WarmPython, how: str
) -> None:
    """A job of two tasks that SLURM preempts, or kills, and starts again is one run.

    Preempted it is never ended in between. If its processes were killed, whoever delivers meanwhile cannot know that
    they will be back: the run is closed, and opened again. Of a step that was trained twice, since the checkpoint is
    older than the last record, the tracker shows the later attempt as the last word; the journal has both.
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
        if attempt == 2:
            slurm["SLURM_RESTART_COUNT"] = "1"
            if how != "SIGUSR1":
                job.orders["checkpoint"] = str(job.notes_folder / "last.ckpt")
        port = str(free_port())
        for task in "01":
            job.start_warm(warm_python, **slurm, SLURM_PROCID=task, SLURM_LOCALID=task, MASTER_PORT=port)
        codes = job.finish()
        (run_dir,) = find_runs(job.save_dir)
        if attempt == 1:
            deliver(run_dir)
            between = only_run(mlflow_sqlite, "e")
            assert between.info.status == ("RUNNING" if how != "SIGKILL" else "FAILED"), job.said
            assert (between.info.end_time is None) == (how != "SIGKILL")
    assert codes == [0, 0], job.said
    run = only_run(mlflow_sqlite, "e")
    assert run.info.run_id == between.info.run_id
    assert run.info.status == "FINISHED"
    assert {note["end"]["version"] for note in job.notes} == {run_dir.name}
    assert [note["steps"] for note in job.notes] == [8, 8]
    last_word = last_words(mlflow_sqlite, run.info.run_id)
    twice = len(points(mlflow_sqlite, run.info.run_id, "attempt")) - len(last_word)
    assert twice >= 1, "no step was trained twice"
    assert sorted(last_word) == list(range(8))
    resumed = min(step for step, value in last_word.items() if value == 2)
    assert last_word == {step: 1.0 if step < resumed else 2.0 for step in range(8)}
    journaled = [(r.step, r.data["attempt"]) for r in read(run_dir) if r.data and "attempt" in r.data]
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "attempt", journaled)


def assert_means_of_ranks(uri: str, run_id: str, journal: Path, ranks: int) -> None:
    """Each of eight steps has one point, the mean of what as many ranks journaled."""
    losses: dict[Any, list[float]] = {}
    for record in read(journal):
        if record.data and "loss" in record.data:
            losses.setdefault(record.step, []).append(record.data["loss"])
    assert [len(of_ranks) for of_ranks in losses.values()] == [ranks] * 8
    got = points(uri, run_id, "loss")
    assert [step for step, _ in got] == list(range(8))
    assert [value for _, value in got] == pytest.approx([sum(losses[step]) / ranks for step in range(8)])


def test_all_ranks_log(mlflow_sqlite: str, tmp_path: Path, warm_python: WarmPython) -> None:
    """With ``log_on_workers=-1`` a step's values of four ranks become one point, or one series per rank, as asked."""
    policy = {"log_on_workers": -1, "merge_ranks_by_key": {"rank": "max", "own": "per_rank"}, "rank_wait_s": 60}
    job = Job(tmp_path, mlflow_sqlite, devices=4, policy=policy)
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
    assert_means_of_ranks(mlflow_sqlite, run.info.run_id, run_dir, 4)
    assert "had logged nothing" not in job.said
    assert {path.name for path in (run_dir / "journal").glob("*.jsonl")} == {f"rank{rank}.jsonl" for rank in range(4)}


def test_two_nodes_without_a_shared_file_system(mlflow_sqlite: str, tmp_path: Path) -> None:
    """Where each node sees its own disk only, the other rank's records reach rank 0 and every step is merged."""
    policy = {"log_on_workers": -1, "merge_ranks_by_key": {"rank": "max", "own": "per_rank"}, "rank_wait_s": 60}
    meeting = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", "--master_port", str(free_port()))
    nodes = []
    for number in "01":
        folder = tmp_path / f"node{number}"
        folder.mkdir()
        logger = {"save_dir": "runs"}  # below each node's own working directory
        node = Job(
            folder, mlflow_sqlite, sys.executable, "-m", "torch.distributed.run",
            devices=1, nodes=2, policy=policy, logger=logger,
        )  # fmt: skip
        node.start(more=(*meeting, "--node_rank", number))
        nodes.append(node)
    assert [node.finish() for node in nodes] == [[0], [0]], "".join(node.said for node in nodes)
    here, there = (run_dir / "journal" for node in nodes for run_dir in find_runs(node.save_dir))
    assert here.parent.name == there.parent.name
    assert not (there / "rank0.jsonl").exists()
    assert (here / "rank1.jsonl").read_bytes() == (there / "rank1.jsonl").read_bytes()
    run = only_run(mlflow_sqlite, "e")
    assert run.info.status == "FINISHED", nodes[0].said
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "rank", [(step, 1.0) for step in range(8)])
    for rank in range(2):
        own = [(step, float(rank)) for step in range(8)]
        assert_exactly_once(mlflow_sqlite, run.info.run_id, f"own/rank{rank}", own)
    assert_means_of_ranks(mlflow_sqlite, run.info.run_id, here, 2)
    assert "had logged nothing" not in nodes[0].said
    assert "have reached rank 0" not in nodes[1].said
