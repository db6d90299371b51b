"""Which run a job goes on with when its scheduler or launcher starts it again: its own, and only if that is certain."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas
import pytest
from mlflow import MlflowClient
from mlflow_reading import only_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
from lightning_loggers.delivery.discover import find_runs
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.journal import read
from lightning_loggers.loggers import ending, identity, versions
from lightning_loggers.ranks import current_rank

SLURM = {"SLURM_JOB_ID": "4711", "SLURM_PROCID": "0"}
AGAIN = {**SLURM, "SLURM_RESTART_COUNT": "1"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_MAX_RESTARTS": "2", "TORCHELASTIC_RESTART_COUNT": "0"}


def start(
    program: Callable[[], Any], environment: Mapping[str, str], *, arguments: str = "--lr=0.1", launcher: bool = False
) -> Any:
    """What a program returns in a process of its own, which is SIGKILLed then.

    Args:
        program: The program.
        environment: Its environment variables.
        arguments: Its command's arguments.
        launcher: Whether a launcher of its own starts it, instead of this process.
    """
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            if launcher and (started := os.fork()):
                os.waitpid(started, 0)
                os._exit(0)
            os.environ.update(environment)
            sys.argv[:] = ["train.py", *arguments.split()]
            identity._made.clear()
            os.write(writing, json.dumps(program()).encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(process, 0)
    return json.loads(said)


def begins(folder: Path, *, loggers: int = 1, end: str | None = None) -> Callable[[], list[str]]:
    """A program that logs to runs of one name and tells which they are."""

    def program() -> list[str]:
        found = [MLFlowLogger("e", save_dir=str(folder), delivery="offline") for _ in range(loggers)]
        for logger in found:
            logger.log_metrics({"loss": 1.0}, 0)
            if end is not None:
                logger.finalize(end)
        return [str(logger.version) for logger in found]

    return program


def deliver(folder: str) -> StepKind:
    """Deliver a run, and close it if it is dead; returns what came of that."""
    worker = Worker(Path(folder))
    while worker.step().kind is StepKind.PROGRESS:
        pass
    kind = worker.finish_dead().kind
    worker.close()
    return kind


def test_each_logger_of_a_job_goes_on_with_its_own_run(tmp_path: Path) -> None:
    """Of several loggers of one name the n-th takes up the n-th's run; one more begins a new one."""
    first = start(begins(tmp_path, loggers=2), SLURM)
    again = start(begins(tmp_path, loggers=3), AGAIN)
    assert again[:2] == first
    assert again[2] not in first
    assert start(begins(tmp_path, loggers=3), {**AGAIN, "SLURM_RESTART_COUNT": "2"}) == again


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        (SLURM, "the job was not started again"),
        ({**AGAIN, "SLURM_JOB_ID": "4712"}, "another job"),
        ({**AGAIN, "SLURM_PROCID": "1"}, "another task"),
        ({**AGAIN, "SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3"}, "a task of an array"),
        ({**AGAIN, "SLURM_CLUSTER_NAME": "other"}, "another cluster"),
        ({}, "no job"),
    ],
)
def test_another_job_begins_a_run_of_its_own(tmp_path: Path, environment: dict[str, str], why: str) -> None:
    """Nothing but the same job, started again, takes up a run."""
    first = start(begins(tmp_path), SLURM)
    assert start(begins(tmp_path), environment) != first, why


def test_run_that_finished_is_not_taken_up(tmp_path: Path) -> None:
    """A run that failed goes on when its job is started again; one that finished does not."""
    failed = start(begins(tmp_path / "a", end="failed"), SLURM)
    assert start(begins(tmp_path / "a"), AGAIN) == failed
    finished = start(begins(tmp_path / "b", end="success"), SLURM)
    assert start(begins(tmp_path / "b"), AGAIN) != finished


def test_run_that_somebody_writes_is_not_taken_up(tmp_path: Path) -> None:
    """As long as a process of the run lives, it is that one's."""
    (version,) = start(begins(tmp_path), SLURM)
    other = MLFlowLogger("e", save_dir=str(tmp_path), version=version, delivery="offline")
    other.log_metrics({"loss": 1.0}, 1)
    assert start(begins(tmp_path), AGAIN) != [version]
    other.close()


def test_programs_of_one_job_keep_apart(tmp_path: Path) -> None:
    """Of programs that ran one after the other, only the same command goes on with the run that was not finished."""
    start(begins(tmp_path, end="success"), SLURM, arguments="--lr=0.1")
    second = start(begins(tmp_path), SLURM, arguments="--lr=0.2")
    assert start(begins(tmp_path), AGAIN, arguments="--lr=0.1") != second
    assert start(begins(tmp_path), AGAIN, arguments="--lr=0.3") != second
    assert start(begins(tmp_path), AGAIN, arguments="--lr=0.2") == second


def test_only_program_of_a_job_may_have_other_arguments(tmp_path: Path) -> None:
    """A job's single program goes on with its run though its command now names a checkpoint."""
    first = start(begins(tmp_path), SLURM)
    assert start(begins(tmp_path), AGAIN, arguments="--lr=0.1 --resume=last.ckpt") == first


def test_two_runs_of_one_command_are_not_guessed_at(tmp_path: Path) -> None:
    """Where two runs could be meant, a new one is begun."""
    both = [*start(begins(tmp_path), SLURM), *start(begins(tmp_path), SLURM)]
    assert start(begins(tmp_path), AGAIN)[0] not in both


def test_numbered_version_is_taken_up(tmp_path: Path) -> None:
    """A logger that numbers its runs goes on with its number."""

    def program() -> Any:
        logger = CSVLogger(tmp_path)
        logger.log_metrics({"loss": 1.0}, 0)
        return logger.version

    assert [start(program, environment) for environment in (SLURM, AGAIN, {**AGAIN, "SLURM_JOB_ID": "5"})] == [0, 0, 1]


def test_job_of_torchrun_is_known_by_its_launcher(tmp_path: Path) -> None:
    """Processes that the same ``torchrun`` starts again go on; those of another one do not, nor those of no restart."""
    again = {**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "1"}
    first = start(begins(tmp_path / "a"), TORCHRUN)
    assert start(begins(tmp_path / "a"), again, launcher=True) != first
    assert start(begins(tmp_path / "a"), again) == first
    first = start(begins(tmp_path / "b"), TORCHRUN)
    assert start(begins(tmp_path / "b"), TORCHRUN) != first
    named = {**again, "TORCHELASTIC_RUN_ID": "job7"}
    (before,) = start(begins(tmp_path / "c"), {**named, "TORCHELASTIC_RESTART_COUNT": "0"})
    assert start(begins(tmp_path / "c"), named) == [before]
    assert start(begins(tmp_path / "c"), {**named, "TORCHELASTIC_RUN_ID": "job8"}) != [before]


def test_note_of_a_stranger_leads_nowhere(tmp_path: Path) -> None:
    """A damaged note, or one that points out of the experiment's folder, is passed over."""
    (version,) = start(begins(tmp_path), SLURM)
    (note,) = (tmp_path / "e" / ".requeue").glob("*/*")
    content = json.loads(note.read_bytes())
    assert "lr" not in note.read_text()
    stray = [{"journal": place} for place in ("../e/" + content["journal"], str(tmp_path / "e" / content["journal"]))]
    stray += [{"version": place} for place in ("../elsewhere", str(tmp_path / "elsewhere"), "")]
    for wrong in stray:
        note.write_text(json.dumps({**content, **wrong}))
        [begun] = start(begins(tmp_path), AGAIN)
        assert begun not in {version, wrong.get("version")}
    assert not (tmp_path / "elsewhere").exists()
    note.write_bytes(b"\xff{")
    assert start(begins(tmp_path), AGAIN) != [version]


def test_run_of_a_job_that_goes_on_is_not_closed(mlflow_sqlite: str, tmp_path: Path) -> None:
    """While ``torchrun`` lives and has restarts left, a run whose processes died stays open; else it has failed."""

    def program() -> str:
        logger = MLFlowLogger("e", save_dir=str(tmp_path), tracking_uri=mlflow_sqlite, delivery="offline")
        logger.log_metrics({"loss": 1.0}, 0)
        return str(logger.log_dir)

    kept = start(program, TORCHRUN)
    assert deliver(kept) is StepKind.BUSY
    assert only_run(mlflow_sqlite, "e").info.status == "RUNNING"
    note = Path(kept) / "journal" / "mlflow.state.json"
    state = json.loads(note.read_bytes())
    state["job"]["launcher"]["started"] += "1"  # another process has that number by now
    note.write_text(json.dumps(state))
    assert deliver(kept) is StepKind.PROGRESS
    assert only_run(mlflow_sqlite, "e").info.status == "FAILED"


def test_own_runs_of_before_are_not_closed_as_leftovers(mlflow_sqlite: str, tmp_path: Path) -> None:
    """A logger that starts first leaves the other runs of its job open: their loggers may go on with them."""

    def program() -> list[str]:
        found = [
            MLFlowLogger("e", save_dir=str(tmp_path), tracking_uri=mlflow_sqlite, delivery="offline") for _ in range(2)
        ]
        for logger in found:
            logger.log_metrics({"loss": 1.0}, 0)
        return [str(logger.log_dir) for logger in found]

    def look(folder: str) -> Callable[[], str]:
        def program() -> str:
            worker = Worker(Path(folder))
            while worker.step().kind is StepKind.PROGRESS:
                pass
            return worker.finish_leftover().kind.value

        return program

    first, second = start(program, SLURM)
    assert start(look(first), AGAIN) == "idle"
    assert start(look(first), SLURM) == "progress", "a run that died in this very start of the job"
    assert start(look(second), {**AGAIN, "SLURM_JOB_ID": "1"}) == "progress"
    assert len(list(find_runs(tmp_path))) == 2


@pytest.mark.parametrize("tracker", ["mlflow", "csv", "tensorboard"])
def test_later_attempt_has_the_last_word(mlflow_sqlite: str, tmp_path: Path, tracker: str) -> None:
    """Of a step that was trained again after a rewind both points are shown, the later attempt's last."""

    def train(value: float, steps: range) -> Callable[[], str]:
        def program() -> str:
            logger: Any = {
                "mlflow": lambda: MLFlowLogger(
                    "e", save_dir=str(tmp_path), tracking_uri=mlflow_sqlite, delivery="offline"
                ),
                "csv": lambda: CSVLogger(tmp_path, delivery="offline"),
                "tensorboard": lambda: TensorBoardLogger(tmp_path, delivery="offline"),
            }[tracker]()
            for step in steps:
                logger.log_metrics({"attempt": value}, step)
            return str(logger.log_dir)

        return program

    def shown() -> list[tuple[int, float]]:
        if tracker == "mlflow":
            history = MlflowClient(mlflow_sqlite).get_metric_history(
                only_run(mlflow_sqlite, "e").info.run_id, "attempt"
            )
            return [(p.step, p.value) for p in sorted(history, key=lambda p: (p.step, p.timestamp))]
        if tracker == "csv":
            return list(pandas.read_csv(Path(folder) / "metrics.csv")[["step", "attempt"]].itertuples(index=False))
        return [(event.step, event.value) for event in EventAccumulator(folder).Reload().Scalars("attempt")]

    folder = start(train(1.0, range(5)), SLURM)
    deliver(folder)
    assert start(train(2.0, range(3, 7)), AGAIN) == folder
    deliver(folder)
    both = [*((step, 1.0) for step in range(5)), *((step, 2.0) for step in range(3, 7))]
    assert [(r.step, r.data["attempt"]) for r in read(folder) if r.data] == both
    assert Counter(map(tuple, shown())) == Counter(both)
    assert dict(map(tuple, shown())) == {step: 1.0 if step < 3 else 2.0 for step in range(7)}


def test_exception_in_a_job_that_torchrun_starts_again_leaves_the_run_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With restarts left an exception is no end, unless the program gets over it; without them the run has failed."""

    def training() -> None:
        raise RuntimeError("the training fails")

    def program() -> None:
        try:
            training()
        except RuntimeError:
            logger = MLFlowLogger("e", save_dir=str(tmp_path), delivery="offline")
            logger.log_metrics({"loss": 1.0}, 0)
            logger.finalize("failed")
        said.append(versions._last_word(Path(str(logger.log_dir)) / "journal"))
        ending.end_at_exit(logger)
        said.append(versions._last_word(Path(str(logger.log_dir)) / "journal"))

    said: list[str | None] = []
    for variable, value in TORCHRUN.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.delattr(sys, "last_type", raising=False)
    program()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    program()
    assert said == ["preempted", "failed", "failed", "failed"]


LAUNCHED: list[tuple[dict[str, str], int]] = [
    ({"RANK": "2", "WORLD_SIZE": "4"}, 2),
    ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, 3),
    ({"PMIX_RANK": "1", "SLURM_STEP_NUM_TASKS": "2"}, 1),
    ({"PMI_RANK": "1", "PMI_SIZE": "2"}, 1),
    ({"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2"}, 1),
    ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, 1),
    ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, 0),  # a batch script, or a shell of srun --pty
    ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "1"}, 0),
    ({"PMI_RANK": "1"}, 0),
    ({"RANK": "none", "WORLD_SIZE": "4"}, 0),
    ({}, 0),
]


def python(code: str, environment: Mapping[str, str], *arguments: object) -> str:
    """What a program of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env={**os.environ, **environment}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("environment", "rank"), LAUNCHED)
def test_rank_that_only_the_launcher_tells(environment: dict[str, str], rank: int) -> None:
    """Where neither torch.distributed nor Lightning knows, it is the launcher's, if that says it is one of several."""
    code = "from lightning_loggers.ranks import current_rank; print(current_rank())"
    assert python(code, environment) == f"{rank}\n"


def test_records_before_the_processes_come_together_are_of_one_run(tmp_path: Path) -> None:
    """Of processes that ``mpirun`` started, only the first begins a run, though Lightning takes all for the first."""
    code = (
        "import sys; from lightning_loggers import CSVLogger, DummyExperiment\n"
        "from lightning_utilities.core.rank_zero import rank_zero_only\n"
        "logger = CSVLogger(sys.argv[1])\n"
        "logger.log_hyperparams({'lr': 0.1})\n"
        "logger.log_metrics({'loss': 1.0}, 0)\n"
        "print(rank_zero_only.rank, isinstance(logger.experiment, DummyExperiment))\n"
    )
    said = [
        python(code, {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2"}, tmp_path) for rank in range(2)
    ]
    assert said == ["0 False\n", "0 True\n"]
    assert len(list(find_runs(tmp_path))) == 1


def test_forked_process_reads_the_launchers_word_anew() -> None:
    """What a process forks may be told another rank."""
    code = (
        "import os; from lightning_loggers.ranks import current_rank\n"
        "assert current_rank() == 0\n"
        "os.environ.update(RANK='1', WORLD_SIZE='2')\n"
        "assert current_rank() == 0, 'read once'\n"
        "if os.fork() == 0:\n"
        "    print(current_rank(), flush=True); os._exit(0)\n"
        "os.wait()\n"
    )
    assert python(code, {}) == "1\n"
    assert current_rank() == 0
