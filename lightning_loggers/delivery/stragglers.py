"""How long each rank takes for a step, from the times of its log calls: who holds the others up."""

import statistics
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from lightning_loggers.journal.layout import journal_dir, list_segments, segment_path
from lightning_loggers.journal.reader import Position, StreamReader
from lightning_loggers.records import Kind, Record

_LAST_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class RankPace:
    """The latest steps of one rank.

    Attributes:
        rank: Global rank.
        steps: How many steps that is.
        median_s: Time from one step's first log call to the next one's, median, seconds.
        slowest_s: The longest of these, seconds.
        last_step: The step that it logged last.
        last_ns: When, nanoseconds since the epoch, by that rank's own clock.
    """

    rank: int
    steps: int
    median_s: float
    slowest_s: float
    last_step: float
    last_ns: int


def paces(run_dir: Path) -> list[RankPace]:
    """The pace of each rank that has logged two steps or more, slowest first.

    Only the last megabyte of a stream is read, so that this is quick for a run of any length. In training where the
    ranks wait for each other in every step all are as slow as the slowest; then look at what each rank logs of its own
    parts of a step (``LogPolicy(merge_ranks_by_key={"time/*": "per_rank"})``).

    Args:
        run_dir: The run's folder.
    """
    found = [pace for stream in list_segments(journal_dir(run_dir)) if (pace := _pace(journal_dir(run_dir), stream))]
    return sorted(found, key=lambda pace: -pace.median_s)


def _pace(folder: Path, stream: str) -> RankPace | None:
    segment = list_segments(folder)[stream][-1]
    size = segment_path(folder, stream, segment).stat().st_size
    position = Position(segment, max(0, size - _LAST_BYTES))
    times: list[tuple[float, int]] = []
    while True:
        chunk = StreamReader(folder, stream).read(position, _LAST_BYTES)
        for entry in chunk.entries:
            line = entry.line
            if not isinstance(line, Record):
                times.clear()  # a process that was started again: the pause is no step
            elif line.kind == Kind.METRIC and line.step is not None and (not times or line.step > times[-1][0]):
                times.append((line.step, line.time_ns))
        if chunk.at_end or chunk.end == position:
            break
        position = chunk.end
    digits = stream.removeprefix("rank").partition("-")[0]
    rank = int(digits) if digits.isdigit() else 0
    if len(times) < 2:
        return None
    took = [(after[1] - before[1]) / 1e9 / (after[0] - before[0]) for before, after in pairwise(times)]
    return RankPace(rank, len(times), statistics.median(took), max(took), *times[-1])
