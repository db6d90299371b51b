"""What a run has recorded and how much of it arrived: read from journal and saved cursors, changing neither."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lightning_loggers.delivery.discover import Target, find_runs, resolve
from lightning_loggers.delivery.state import StateFile
from lightning_loggers.errors import LightningLoggersError
from lightning_loggers.journal.layout import STATE_SUFFIX, list_segments
from lightning_loggers.journal.reader import Position, StreamReader
from lightning_loggers.records import Header, Kind, is_terminal


@dataclass(slots=True)
class Tally:
    """What a journal holds on both sides of the cursors.

    Attributes:
        recorded: Records, status records aside.
        pending: Those of them that are not delivered.
        oldest_ns: Time of the oldest pending one, nanoseconds since the epoch.
        damaged: Stretches that are no record.
        status: The last status record, if no process took the run up again after it.
        status_pending: Whether the tracker has yet to be told a status.
    """

    recorded: int = 0
    pending: int = 0
    oldest_ns: int | None = None
    damaged: int = 0
    status: str | None = None
    status_pending: bool = False


def tally(folder: Path, cursors: dict[str, Position], *, pending_only: bool = False) -> Tally:
    """Count a journal's records.

    Args:
        folder: The journal's folder.
        cursors: Stream to the position that is delivered.
        pending_only: Read only what lies behind the cursors.

    Raises:
        JournalFormatError: If a newer version of this package wrote a part of it.
    """
    count = Tally()
    newest_ns = -1
    for stream in list_segments(folder):
        reader = StreamReader(folder, stream)
        cursor = cursors.get(stream, Position())
        position = cursor if pending_only else Position()
        while True:
            chunk = reader.read(position)
            count.damaged += len(chunk.damage)
            for entry in chunk.entries:
                line = entry.line
                pending = entry.end > cursor
                if isinstance(line, Header) or line.kind == Kind.STATUS:
                    if line.time_ns >= newest_ns:
                        newest_ns = line.time_ns
                        count.status = None if isinstance(line, Header) else str(line.value)
                    count.status_pending |= pending and not isinstance(line, Header)
                    continue
                count.recorded += 1
                if pending:
                    count.pending += 1
                    if count.oldest_ns is None or line.time_ns < count.oldest_ns:
                        count.oldest_ns = line.time_ns
            if chunk.at_end:
                break
            position = chunk.end
    return count


@dataclass(frozen=True, slots=True)
class Overview:
    """One run at one place, as ``lightning-loggers status --json`` prints it.

    Attributes:
        run_dir: The run's folder.
        problem: Why nothing else is known; ``None`` where all is well.
        name: Experiment or project.
        version: The run's folder below ``name``.
        uid: Identifies the run everywhere.
        tracker: The adapter's name.
        destination: Where it delivers to, without secrets.
        writer_alive: Whether a live process writes the journal.
        being_delivered: Whether a live process delivers it to this place.
        recorded: Records in the journal.
        delivered: Records that the tracker has acknowledged.
        pending: Records that it has not.
        rejected: Records or parts of one that it refused (``journal/rejected.jsonl``).
        damaged: Stretches of the journal that are no record.
        oldest_pending: Time of the oldest pending record, ISO 8601 in UTC.
        oldest_pending_s: Its age, seconds.
        status: ``finished``, ``failed``, ``interrupted`` or ``preempted`` as the run said; ``running`` while a process
            writes it; ``died`` if none does and none said anything.
        tracker_status: What the tracker shows.
        tracker_needs_status: Whether the tracker has yet to be told the run's end.
        remote_id: The tracker's own id of the run.
        url: A page that shows it.
    """

    run_dir: str
    problem: str | None = None
    name: str | None = None
    version: str | None = None
    uid: str | None = None
    tracker: str | None = None
    destination: str | None = None
    writer_alive: bool = False
    being_delivered: bool = False
    recorded: int = 0
    delivered: int = 0
    pending: int = 0
    rejected: int = 0
    damaged: int = 0
    oldest_pending: str | None = None
    oldest_pending_s: float | None = None
    status: str | None = None
    tracker_status: str | None = None
    tracker_needs_status: bool = False
    remote_id: str | None = None
    url: str | None = None


def look(target: Target, *, pending_only: bool = False) -> Overview:
    """Look at a run and the place it goes to.

    Args:
        target: The run and its place.
        pending_only: Count only what is not delivered (``recorded`` is then what is known without reading the rest).

    Raises:
        JournalFormatError: If a newer version of this package wrote a part of the journal.
    """
    alive = target.writer_alive()  # first: a writer that dies while we read is reported as it was
    state = target.load_state()
    count = tally(target.folder, state.cursors, pending_only=pending_only)
    run = target.header.run
    oldest = count.oldest_ns
    return Overview(
        run_dir=str(target.run_dir),
        name=run.name,
        version=run.version,
        uid=run.uid,
        tracker=run.tracker,
        destination=target.destination,
        writer_alive=alive,
        being_delivered=target.being_delivered(),
        recorded=count.recorded + (state.delivered + state.rejected if pending_only else 0),
        delivered=state.delivered,
        pending=count.pending,
        rejected=state.rejected,
        damaged=count.damaged,
        oldest_pending=None if oldest is None else _iso(oldest),
        oldest_pending_s=None if oldest is None else max(round(time.time() - oldest / 1e9, 3), 0.0),
        status=(count.status or (state.wanted_status if pending_only else None)) or ("running" if alive else "died"),
        tracker_status=state.status,
        tracker_needs_status=count.status_pending or target.needs_closing(state) or _died_unseen(target, count, alive),
        remote_id=state.remote.id,
        url=state.remote.url,
    )


def _iso(time_ns: int) -> str | None:
    try:
        return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat()
    except (ValueError, OverflowError, OSError):  # a stranger's journal may say any time
        return None


def _died_unseen(target: Target, count: Tally, alive: bool) -> bool:
    """Whether a dead run has records at no tracker yet and said nothing: it will be closed once they are there."""
    return bool(count.pending) and not alive and not is_terminal(count.status) and count.status != "preempted"


def overviews(root: Path) -> Iterator[Overview]:
    """Every run at or below ``root``, once for each place it was delivered to."""
    problems: list[Overview] = []
    for run_dir in find_runs(root, lambda path, reason: problems.append(Overview(str(path), reason))):
        try:
            home = resolve(run_dir)
            if home is None:
                continue
            yield look(home)
            for other in _elsewhere(home):
                yield look(other)
        except LightningLoggersError as error:
            yield Overview(str(run_dir), str(error))
        except Exception as error:  # noqa: BLE001 - seam: one damaged folder must not hide all others
            yield Overview(str(run_dir), f"{type(error).__name__}: {error}")
    yield from problems


def _elsewhere(home: Target) -> Iterator[Target]:
    """Places other than its own that the run was delivered to (``sync --to``)."""
    for path in sorted(home.folder.glob(f"{home.tracker}-*{STATE_SUFFIX}")):
        destination = StateFile(home.folder, path.name.removesuffix(STATE_SUFFIX)).load(home.tracker).destination
        if not destination:
            continue
        other = resolve(home.run_dir, destination)
        if other is not None and other.name + STATE_SUFFIX == path.name:
            yield other
