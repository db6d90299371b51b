"""What of a journal is not delivered yet: by its files, nothing is decoded. Loads no SDK."""

import contextlib
import os
import re
from pathlib import Path

from lightning_loggers.delivery.state import TrackerState
from lightning_loggers.journal.layout import journal_dir, list_segments, segment_path
from lightning_loggers.journal.reader import Position

_READ_BYTES = 2**18


def ends_of(folder: Path) -> dict[str, Position]:
    """Where each stream of a journal ends on disk."""
    ends = {}
    for stream, segments in list_segments(folder).items():
        with contextlib.suppress(OSError):
            size = segment_path(folder, stream, segments[-1]).stat().st_size
            ends[stream] = Position(segments[-1], size)
    return ends


def remaining_bytes(folder: Path, cursors: dict[str, Position]) -> int:
    """Bytes of a journal that lie behind the cursors, for a progress bar."""
    total = 0
    for stream, segments in list_segments(folder).items():
        at = cursors.get(stream, Position())
        for segment in segments:
            if segment >= at.segment:
                try:
                    size = segment_path(folder, stream, segment).stat().st_size
                except OSError:
                    continue
                total += max(size - at.offset, 0) if segment == at.segment else size
    return total


def pending_of(run_dir: Path, state: TrackerState | None) -> tuple[int, int | None]:
    """Records that are not delivered yet, counted by their lines' beginnings (nothing is decoded but the first).

    Args:
        run_dir: The run's folder.
        state: The tracker's state; without one everything is pending.

    Returns:
        Their number, and the time of the oldest one in nanoseconds since the epoch.
    """
    folder = journal_dir(run_dir)
    count, oldest = 0, None
    for stream, segments in list_segments(folder).items():
        position = state.cursors.get(stream, Position()) if state is not None else Position()
        for segment in segments:
            if segment < position.segment:
                continue
            offset = position.offset if segment == position.segment else 0
            found, first_ns = _count_records(segment_path(folder, stream, segment), offset)
            count += found
            if first_ns is not None:
                oldest = first_ns if oldest is None else min(oldest, first_ns)
    return count, oldest


_RECORD_LINE = re.compile(rb'^\{"time_ns":(\d{1,20}),"kind":"(?!status")', re.MULTILINE)
_LINE_START_BYTES = 64


def _count_records(path: Path, offset: int) -> tuple[int, int | None]:
    count, first_ns = 0, None
    tail = b""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return 0, None
    try:
        while data := os.pread(fd, _READ_BYTES, offset):
            offset += len(data)
            data = tail + data
            cut = data.rfind(b"\n") + 1  # a line's beginning may lie across two reads
            whole, tail = (data[:cut], data[cut:]) if cut else (b"", data)
            if len(tail) > _READ_BYTES:
                tail = tail[:_LINE_START_BYTES]  # one long line: its beginning is all that counts
            if first_ns is None and (match := _RECORD_LINE.search(whole)):
                first_ns = int(match[1])
            count += sum(1 for _ in _RECORD_LINE.finditer(whole))
    finally:
        os.close(fd)
    return count, first_ns
