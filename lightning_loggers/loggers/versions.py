"""Naming runs without a network, and finding again the run that a preempted job left open."""

import os
import re
import secrets
import time
from pathlib import Path

from lightning_loggers.loggers.environment import slurm_job

_REQUEUE_FOLDER = ".requeue"
_claimed: set[Path] = set()


def folder_name(name: str) -> str:
    """A run's or experiment's name as one folder name.

    >>> folder_name("team/digits: lr=0.1"), folder_name(".."), folder_name("")
    ('team_digits_ lr=0.1', '_', '_')
    """
    cleaned = re.sub(r'[\x00-\x1f/\\<>:"|?*]', "_", name).strip()
    while len(cleaned.encode()) > 200:
        cleaned = cleaned[:-1]
    return "_" if cleaned.strip(".") == "" else cleaned


def new_version(experiment_dir: Path) -> str:
    """A name for a new run that no other process picks: the local time and four random characters.

    In a SLURM job that was requeued, the name of the run that it left open, so that the run goes on.
    """
    left = left_open(experiment_dir)
    if left is not None:
        return left
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def leave_open(experiment_dir: Path, version: str) -> None:
    """Note for the requeued job that it continues ``version``.

    Raises:
        OSError: If the note cannot be written.
    """
    job = slurm_job()
    if job is not None:
        folder = experiment_dir / _REQUEUE_FOLDER / job
        folder.mkdir(parents=True, exist_ok=True)
        (folder / version).touch()


def taken_up(experiment_dir: Path, version: str) -> None:
    """Remove the note: the run goes on here."""
    job = slurm_job()
    if job is not None:
        try:
            (experiment_dir / _REQUEUE_FOLDER / job / version).unlink(missing_ok=True)
        except OSError:
            return


def left_open(experiment_dir: Path) -> str | None:
    """The run that the preempted job before this one left open, if there is one. Each is given out once."""
    job = slurm_job()
    if job is None:
        return None
    folder = experiment_dir / _REQUEUE_FOLDER / job
    try:
        notes = sorted(folder.iterdir(), key=lambda note: (note.stat().st_mtime_ns, note.name))
    except OSError:
        return None
    for note in notes:
        if note not in _claimed and (experiment_dir / note.name).is_dir():
            _claimed.add(note)
            return note.name
    return None


def _forget_claims() -> None:
    _claimed.clear()


os.register_at_fork(after_in_child=_forget_claims)
