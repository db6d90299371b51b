"""Where things lie in a run's folder.

::

    <save_dir>/<name>/<version>/
        journal/
            rank0.jsonl             first segment of rank 0's stream, then rank0.1.jsonl, rank0.2.jsonl ...
            rank0.lock              held by the stream's writer while it lives
            blobs/<id>/<file name>  files of records
            mlflow.state.json       how far the tracker was served: cursors, the tracker's id of the run
            mlflow.lock             held by whoever delivers
            rejected.jsonl          what the tracker refused, with the reason
"""

import os
import re
from pathlib import Path

JOURNAL_FOLDER = "journal"
BLOBS_FOLDER = "blobs"
REJECTED_FILE = "rejected.jsonl"
STATE_SUFFIX = ".state.json"

_SEGMENT = re.compile(r"(?P<stream>rank\d{1,9}(?:-[0-9a-z]{1,40})?)(?:\.(?P<segment>[1-9]\d{0,8}))?\.jsonl", re.ASCII)


def journal_dir(run_dir: Path) -> Path:
    """The journal's folder in a run's folder."""
    return run_dir / JOURNAL_FOLDER


def shared_run_dir(folder: Path, tracker: str) -> Path:
    """Where the journal of a run is kept if another tracker's is in the run's folder already.

    Two loggers with the same ``save_dir``, ``name`` and ``version`` keep their files side by side, as Lightning's do;
    their journals are kept apart.
    """
    return folder / f"{tracker}.run"


def run_folder(run_dir: Path, tracker: str) -> Path:
    """Where the files of a run belong: its own folder, or the one that it shares with another tracker's run."""
    shares = run_dir == shared_run_dir(run_dir.parent, tracker) and is_journal(journal_dir(run_dir.parent))
    return run_dir.parent if shares else run_dir


def segment_path(folder: Path, stream: str, segment: int) -> Path:
    """Path of one segment of a stream; the first one has no number, so that ``tail -f rank0.jsonl`` works."""
    return folder / (f"{stream}.jsonl" if segment == 0 else f"{stream}.{segment}.jsonl")


def lock_path(folder: Path, stream: str) -> Path:
    """The writer's lock of a stream."""
    return folder / f"{stream}.lock"


def delivery_lock_path(folder: Path, tracker: str) -> Path:
    """The lock of whoever delivers to ``tracker``."""
    return folder / f"{tracker}.lock"


def state_path(folder: Path, tracker: str) -> Path:
    """The cursors and the tracker's id of the run."""
    return folder / f"{tracker}{STATE_SUFFIX}"


def list_segments(folder: Path) -> dict[str, list[int]]:
    """Streams of a journal folder and their segment numbers, in order.

    Symbolic links and files of other names are not listed: a stranger's journal must not point out of its folder.
    """
    streams: dict[str, list[int]] = {}
    try:
        with os.scandir(folder) as entries:  # which knows what is a file without asking for each
            for entry in entries:
                match = _SEGMENT.fullmatch(entry.name)
                if match is not None and entry.is_file(follow_symlinks=False):
                    streams.setdefault(match["stream"], []).append(int(match["segment"] or 0))
    except OSError:
        return {}
    return {stream: sorted(streams[stream]) for stream in sorted(streams)}


def is_journal(folder: Path) -> bool:
    """Whether a folder holds at least one segment."""
    return bool(list_segments(folder))
