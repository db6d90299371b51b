"""Naming runs without a network, and finding again the run of a job that was started again.

A run that is begun inside a job (see :mod:`lightning_loggers.jobs`) leaves a note in ``.requeue/<job>`` of its
experiment's folder: which logger of which process of which program writes it. When the job is started again, the same
logger finds the note and goes on with the run, if that was not finished and nobody else writes it.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import sys
import time
from pathlib import Path

import msgspec

from lightning_loggers import jobs
from lightning_loggers.delivery.discover import writer_alive
from lightning_loggers.journal.layout import is_journal, list_segments, segment_path
from lightning_loggers.records import DamagedLineError, Header, Kind, RunStatus, decode_line

_REQUEUE_FOLDER = ".requeue"
_MAX_NOTE_BYTES = 2**16
_TAIL_BYTES = 2**18


class _Note(msgspec.Struct):
    """What is noted of a run.

    Attributes:
        version: Its folder below the experiment's.
        logger: Which of a program's loggers writes it.
        task: Which of the job's processes.
        program: A short digest of the command, which tells the programs of one job apart.
        attempt: How often the job had been started again.
        time_s: When this was noted, seconds since the epoch.
        journal: The journal's folder, from the experiment's.
        preempted: Whether it was left open for the job that goes on with it.
    """

    version: str
    logger: str
    task: str
    program: str
    attempt: int
    time_s: float
    journal: str
    preempted: bool = False


_decode_note = msgspec.json.Decoder(_Note).decode


def folder_name(name: str) -> str:
    """A run's or experiment's name as one folder name.

    >>> folder_name("team/digits: lr=0.1"), folder_name(".."), folder_name("")
    ('team_digits_ lr=0.1', '_', '_')
    """
    cleaned = re.sub(r'[\x00-\x1f/\\<>:"|?*]', "_", name).strip()
    while len(cleaned.encode()) > 200:
        cleaned = cleaned[:-1]
    return "_" if cleaned.strip(".") == "" else cleaned


def new_version(experiment_dir: Path, logger: str) -> str:
    """A name for a new run that no other process picks: the local time and four random characters.

    In a job that was started again, the name of the run that the same logger left open, so that the run goes on.

    Args:
        experiment_dir: The experiment's folder.
        logger: Which of the program's loggers asks.
    """
    left = left_open(experiment_dir, logger)
    if left is not None:
        return left
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def note_run(experiment_dir: Path, version: str, logger: str, journal: Path, *, preempted: bool = False) -> None:
    """Note that this process writes a run, for the same logger of the job should that be started again.

    Args:
        experiment_dir: The experiment's folder.
        version: The run's folder below it.
        logger: Which of the program's loggers writes it.
        journal: The journal's folder.
        preempted: Whether the run is left open now for the job that goes on with it.
    """
    for job in jobs.current():
        place = os.path.relpath(journal, experiment_dir)
        note = _Note(version, logger, job.task, _program(), job.attempt, time.time(), place, preempted)
        folder = experiment_dir / _REQUEUE_FOLDER / job.key
        with contextlib.suppress(OSError, ValueError):  # then the job that is started again begins another run
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / folder_name(version)
            partial = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}")
            partial.write_bytes(msgspec.json.encode(note))
            partial.replace(path)


def left_open(experiment_dir: Path, logger: str) -> str | None:
    """The run that this logger's job left open before it was started again, if it is certain which one that is.

    Args:
        experiment_dir: The experiment's folder.
        logger: Which of the program's loggers asks.
    """
    for job in jobs.current():
        notes = [
            note
            for note in _notes(experiment_dir / _REQUEUE_FOLDER / job.key)
            if (note.logger, note.task) == (logger, job.task)
            and (note.attempt < job.attempt or note.preempted)
            and note.time_s >= job.since_s
        ]
        last = max((note.attempt for note in notes), default=0)
        notes = [note for note in notes if note.attempt == last]
        # One program of a job may have other arguments when it goes on (a checkpoint's path); of several that ran one
        # after the other only the very same command goes on.
        same = [note for note in notes if note.program == _program()]
        chosen = same or (notes if len(notes) == 1 else [])
        found = [note for note in chosen if _goes_on(experiment_dir, note)]
        if len(found) == 1:
            return found[0].version
    return None


def _notes(folder: Path) -> list[_Note]:
    notes = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            with contextlib.suppress(OSError, msgspec.DecodeError, RecursionError):
                if path.name.startswith(".") or path.is_symlink() or path.stat().st_size > _MAX_NOTE_BYTES:
                    continue
                notes.append(_decode_note(path.read_bytes()))
    return notes


def _goes_on(experiment_dir: Path, note: _Note) -> bool:
    """Whether a run's processes are dead, and its last word was not that it had finished."""
    if not all(_is_below(place) for place in (note.journal, note.version)):
        return False
    folder = experiment_dir / note.journal
    return is_journal(folder) and not writer_alive(folder) and _last_word(folder) != RunStatus.FINISHED


def _is_below(place: str) -> bool:
    """Whether a place that a note names is in the experiment's folder: the note may be a stranger's."""
    path = Path(place)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _last_word(folder: Path) -> str | None:
    """How the run ended, if that is the last that rank 0 said of it."""
    for segment in reversed(list_segments(folder).get("rank0", [])):
        with contextlib.suppress(OSError), segment_path(folder, "rank0", segment).open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _TAIL_BYTES, 0))
            for line in reversed(file.read().splitlines()):
                with contextlib.suppress(DamagedLineError):  # torn when its process died
                    found = decode_line(line)
                    if not isinstance(found, Header):
                        return str(found.value) if found.kind == Kind.STATUS else None
    return None


def _program() -> str:
    """Tells commands of one job apart, and is too short to find out from it what a command held."""
    return hashlib.sha256(json.dumps(sys.argv).encode(errors="replace")).hexdigest()[:6]
