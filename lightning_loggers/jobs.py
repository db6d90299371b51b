"""Which job this process is a part of, and whether that job was started again.

A scheduler (SLURM) or launcher (``torchrun``) that starts a job again says so in the environment. What it says is noted
in the header of a run's journal, so that a later start of the same job, and whoever delivers the run, can tell.
"""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NO_RUN_ID = "none"
"""What ``torchrun`` calls a job that was given no ``--rdzv-id``: the same for all of them."""

_CLOCKS_DIFFER_BY_S = 60.0


@dataclass(frozen=True, slots=True)
class Job:
    """A job, as whoever starts it again knows it.

    Attributes:
        key: The same before and after the job is started again; a plain file name.
        attempt: How often it was started again.
        task: Which of its processes this is.
        since_s: When it began, seconds since the epoch, where the key alone does not tell it from an earlier job.
    """

    key: str
    attempt: int
    task: str
    since_s: float = 0.0


def current() -> list[Job]:
    """The jobs that this process is a part of, the outermost first; empty outside of any."""
    return [job for job in (_slurm(), _torchrun()) if job is not None]


def slurm_job() -> str | None:
    """The SLURM job, the same before and after a requeue; ``None`` outside of one."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    return _plain(job) if job else None


def restarts_left() -> int:
    """How often ``torchrun`` will start this process again if it fails; 0 where nobody says that it will."""
    if os.environ.get("TORCHELASTIC_RUN_ID") is None:
        return 0
    return max(_count("TORCHELASTIC_MAX_RESTARTS") - _count("TORCHELASTIC_RESTART_COUNT"), 0)


# ---------------------------------------------------------------------- what a run's header says of it


def describe() -> dict[str, Any] | None:
    """What a run's header says of the jobs it is made by; ``None`` outside of any.

    Returns:
        ``attempts``: key to number of restarts so far. ``launcher``: host, process and start of the launcher, if that
        will start the processes again should they fail.
    """
    jobs = current()
    if not jobs:
        return None
    facts: dict[str, Any] = {"attempts": {job.key: job.attempt for job in jobs}}
    if restarts_left():
        pid = os.getppid()
        facts["launcher"] = {"host": socket.gethostname(), "pid": pid, "started": _started(pid)}
    return facts


def will_be_started_again(facts: Any) -> bool:
    """Whether the launcher of a run whose processes died is here, alive, and has restarts left."""
    return _launcher_lives(facts) is True


def is_over(facts: Any) -> bool:
    """Whether it is certain that nobody starts a run's job again: its launcher is dead, and no scheduler had it."""
    attempts = _mapping(_mapping(facts).get("attempts"))
    return _launcher_lives(facts) is False and not any(str(key).startswith("slurm") for key in attempts)


def began_before_restart(facts: Any) -> bool:
    """Whether a run was last written by an earlier start of the very job that this process is a part of."""
    attempts = _mapping(_mapping(facts).get("attempts"))
    for job in current():
        attempt = attempts.get(job.key)
        if isinstance(attempt, int) and attempt < job.attempt:
            return True
    return False


def _launcher_lives(facts: Any) -> bool | None:
    """``None`` where there is none, or it is on another machine."""
    launcher = _mapping(_mapping(facts).get("launcher"))
    pid, started = launcher.get("pid"), launcher.get("started")
    if launcher.get("host") != socket.gethostname() or not isinstance(pid, int) or not started:
        return None
    return bool(_started(pid) == started)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}  # a stranger's header may say anything


# ---------------------------------------------------------------------- who says it


def _slurm() -> Job | None:
    job = slurm_job()
    if job is None:
        return None
    cluster = _plain(os.environ.get("SLURM_CLUSTER_NAME", ""))
    key = f"slurm-{cluster}-{job}" if cluster else f"slurm-{job}"
    return Job(key, _count("SLURM_RESTART_COUNT"), os.environ.get("SLURM_PROCID", "0"))


def _torchrun() -> Job | None:
    """The job of ``torchrun``: by its rendezvous, or where that has no name by the launcher's process.

    A name may be used again by another job, which differs by when its launcher was started.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if not run_id:
        return None
    attempt, task = _count("TORCHELASTIC_RESTART_COUNT"), os.environ.get("RANK", "0")
    pid = os.getppid()
    started = _started(pid)
    if run_id == NO_RUN_ID:
        return Job(f"torchrun-{_plain(socket.gethostname())}-{pid}-{started}", attempt, task) if started else None
    since_s = _started_s(started)
    return None if since_s is None else Job(f"torchrun-{_plain(run_id)}", attempt, task, since_s - _CLOCKS_DIFFER_BY_S)


def _plain(name: str) -> str:
    return re.sub(r"[^0-9A-Za-z_]", "_", name)[:100]


def _count(variable: str) -> int:
    value = os.environ.get(variable, "")
    return int(value) if value.isascii() and value.isdigit() else 0


def _started(pid: int) -> str:
    """When a process was started, in the kernel's ticks since the machine was: with its number it is nobody else's.

    Returns:
        The ticks, ``""`` if there is no such process, or the system does not say.
    """
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = content.rpartition(")")[2].split()  # the name before it may hold anything
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def _started_s(ticks: str) -> float | None:
    """The same as seconds since the epoch."""
    try:
        content = Path("/proc/stat").read_text(encoding="ascii", errors="replace")
        booted = re.search(r"^btime (\d+)", content, re.MULTILINE)
        return None if booted is None else int(booted[1]) + int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
