"""How far one tracker has been served from a journal: what any host needs to go on where another stopped."""

import hashlib
import secrets
from pathlib import Path
from typing import Any

import msgspec

from lightning_loggers import jobs
from lightning_loggers.adapters.base import RemoteRun
from lightning_loggers.journal.layout import state_path
from lightning_loggers.journal.reader import Position
from lightning_loggers.records import RunStatus, is_terminal

_encode = msgspec.json.Encoder().encode
_MAX_STATE_BYTES = 64 * 2**20


class TrackerState(msgspec.Struct):
    """Cursors and counts of one tracker.

    Attributes:
        tracker: The adapter's name.
        destination: Where it delivers to, without secrets.
        remote: The tracker's side of the run.
        cursors: Stream to the position that is delivered.
        delivered: Records acknowledged by the tracker.
        rejected: Records (or parts of one) that the tracker refused, kept in ``rejected.jsonl``.
        retried: Attempts that failed and were made again.
        damaged: Stretches of the journal that were no record.
        reasons: Counts of rejections and retries by cause.
        status: What the tracker shows of the run.
        wanted_status: The last status record, for whoever closes a run whose process died.
        job: What its processes' header said of the job they belong to (:func:`lightning_loggers.jobs.describe`).
    """

    tracker: str
    destination: str = ""
    remote: RemoteRun = msgspec.field(default_factory=RemoteRun)
    cursors: dict[str, Position] = {}
    delivered: int = 0
    rejected: int = 0
    retried: int = 0
    damaged: int = 0
    reasons: dict[str, int] = {}
    status: str | None = None
    wanted_status: str | None = None
    job: dict[str, Any] | None = None

    @property
    def closes_when_dead(self) -> bool:
        """Whether the tracker shows the run as running, and no job will go on with it, as far as is known."""
        if self.remote.id is None or is_terminal(self.status):
            return False
        return self.wanted_status != RunStatus.PREEMPTED or jobs.is_over(self.job)

    def count_reason(self, reason: str) -> None:
        """Count a cause; past 100 different ones they are counted together."""
        key = reason if reason in self.reasons or len(self.reasons) < 100 else "other"
        self.reasons[key] = self.reasons.get(key, 0) + 1


# Made once, here: msgspec looks at a class when it is first asked to decode one, and two threads that ask at the same
# time end the process.
_decode = msgspec.json.Decoder(TrackerState).decode


def state_name(tracker: str, destination: str, home: str) -> str:
    """Name of the state's files: the tracker's, with a mark where the run is delivered to another place than its own.

    >>> state_name("mlflow", "http://a", "http://a")
    'mlflow'
    >>> state_name("mlflow", "http://b", "http://a")
    'mlflow-513ede80'
    """
    if destination == home:
        return tracker
    return f"{tracker}-{hashlib.sha256(destination.encode()).hexdigest()[:8]}"


class StateFile:
    """Loads and saves a :class:`TrackerState`, and the map of keys to names beside it.

    Guarantees:
        - A reader sees the state before or after a save, never half of one.
        - A damaged state counts as none: everything is delivered again, from the journal, to the run that carries its
          ``uid`` at the tracker.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = state_path(folder, name)
        self.keys_path = folder / f"{name}.keys.json"
        self.damaged = False

    def load(self, tracker: str) -> TrackerState:
        """The saved state, or a fresh one."""
        content = _read_regular(self.path)
        if content is not None:
            try:
                return _decode(content)
            except (msgspec.DecodeError, RecursionError):
                self.damaged = True
        # The run may exist at the tracker although we do not know it: have it looked for before one is made.
        return TrackerState(tracker, remote=RemoteRun(opening=self.damaged))

    def save(self, state: TrackerState) -> None:
        """Replace the saved state.

        Raises:
            OSError: If the folder cannot be written.
        """
        _replace(self.path, _encode(state))

    def load_keys(self) -> dict[str, str]:
        """The saved map of keys to names."""
        content = _read_regular(self.keys_path)
        if content is None:
            return {}
        try:
            return msgspec.json.decode(content, type=dict[str, str])
        except (msgspec.DecodeError, RecursionError):
            return {}

    def save_keys(self, names: dict[str, str]) -> None:
        """Replace the saved map.

        Raises:
            OSError: If the folder cannot be written.
        """
        _replace(self.keys_path, _encode(names))


def _read_regular(path: Path) -> bytes | None:
    """The content of a regular file; None for nothing, a symbolic link, or something too large to be ours."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_STATE_BYTES:
            return None
        return path.read_bytes()
    except OSError:
        return None


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
