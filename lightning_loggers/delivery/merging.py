"""Several ranks' records of one step into one point.

The journal of a run whose policy says ``log_on_workers`` has a stream per rank. :class:`RankMerger` takes what was read
from each and gives it out as one sequence: metrics of one step merged over the ranks, everything else as it is. It
touches no file and no clock, so that what it does can be proven for any order of arrival.
"""

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import numpy as np

from lightning_loggers.aggregation import merge_dicts, named_reduction
from lightning_loggers.journal.reader import Entry, Position
from lightning_loggers.records import ONCE_A_RUN, PER_RANK, Header, Kind, RankRules, Record, RunStatus, split_nonfinite

_REMEMBERED_GAPS = 10_000

GroupKey = tuple[int, float]
"""Attempt (a job that was started again counts up) and step."""

Tell = Callable[[int, GroupKey], None]


@dataclass(frozen=True, slots=True)
class Merged:
    """One record for the tracker.

    Attributes:
        line: The record, or a header.
        ends: Stream to the position that counts as delivered once the tracker has it.
        straggles: Whether only ranks other than 0 said it, so that it may come after the end of the run.
    """

    line: Record | Header
    ends: Mapping[str, Position]
    straggles: bool = False

    def is_behind(self, cursors: Mapping[str, Position]) -> bool:
        """Whether the cursors say that it was delivered."""
        return bool(self.ends) and all(cursors.get(stream, Position()) >= end for stream, end in self.ends.items())


@dataclass(slots=True)
class _Waiting:
    """A line that was read and not given out yet."""

    entry: Entry
    since_s: float
    key: GroupKey | None
    """What it is merged under; None for what is not merged."""


@dataclass(slots=True)
class _Stream:
    """What is known of one rank's stream."""

    name: str
    rank: int
    lines: "deque[_Waiting]" = field(default_factory=deque)
    read_to: Position | None = None
    attempt: int = 0
    done: bool = False
    """Whether its last line said that the rank had ended, for now."""
    live: bool = True
    """Whether its writer lives."""
    unread: bool = False
    """Whether more of it is on disk."""
    has_key: bool = False

    def passed(self, key: GroupKey) -> bool:
        """Whether nothing of that key can follow."""
        for line in self.lines:
            if line.key != key:
                return True
        return self.done or not (self.live or self.unread)


class RankMerger:
    """Merges the streams of one run.

    Args:
        rules: Which ranks log, and how their values become one.
        tell: Told of a rank whose values a point lacks, with the point's attempt and step.

    Guarantees:
        - Every line that is given in comes out in exactly one :class:`Merged` or is passed over as another rank's copy
          of what belongs to the run; a stream's lines come out in their order, so that a cursor per stream is enough.
        - Every metric of every rank is in exactly one record.
        - Nobody is waited for longer than ``rules.wait_s``; what comes later is given out as that rank's own series.
        - Rank 0's word on how the run ended comes out after everything that the other ranks logged before theirs.
    """

    def __init__(self, rules: RankRules, tell: Tell = lambda rank, key: None) -> None:
        self.rules = rules
        self._tell = tell
        self._streams: dict[str, _Stream] = {}
        self._gaps: dict[int, dict[GroupKey, None]] = {}
        """Per rank the steps that were given out without it."""

    def afresh(self) -> "RankMerger":
        """One with the same rules that has read nothing."""
        return RankMerger(self.rules, self._tell)

    # ------------------------------------------------------------------ what was read

    def read_to(self, stream: str) -> Position | None:
        """How far a stream was read; ``None`` if it never was."""
        known = self._streams.get(stream)
        return None if known is None else known.read_to

    def waiting(self, stream: str) -> int:
        """How many of its lines were read and not given out."""
        known = self._streams.get(stream)
        return 0 if known is None else len(known.lines)

    def feed(
        self,
        stream: str,
        entries: Iterable[Entry],
        read_to: Position,
        now_s: float,
        *,
        live: bool,
        unread: bool = False,
        header: Header | None = None,
    ) -> None:
        """Take what was read from a stream.

        Args:
            stream: Its name, ``rank<r>`` or ``rank<r>-<mark>``.
            entries: The next lines of it.
            read_to: Where reading goes on.
            now_s: The time, seconds; only differences count.
            live: Whether its writer lives.
            unread: Whether more of it is on disk.
            header: That which holds where reading began, if another host has read it.
        """
        known = self._streams.get(stream)
        if known is None:
            known = self._streams[stream] = _Stream(stream, _rank_of(stream))
            if header is not None and header.run.ranks is not None:
                known.attempt = header.run.ranks.attempt
        known.read_to, known.live, known.unread = read_to, live, unread
        for entry in entries:
            line = entry.line
            known.done = isinstance(line, Record) and line.kind == Kind.STATUS and line.value != RunStatus.RUNNING
            if isinstance(line, Header) and line.run.ranks is not None:
                known.attempt = line.run.ranks.attempt
            key = _key(known.attempt, line)
            known.has_key = known.has_key or key is not None
            known.lines.append(_Waiting(entry, now_s, key))

    @property
    def ending(self) -> bool:
        """Whether rank 0 has said how the run ended, and the others are waited for."""
        return any(s.rank == 0 and s.done and s.lines for s in self._streams.values())

    # ------------------------------------------------------------------ what goes to the tracker

    def take(self, now_s: float, limit: int = 2_000) -> list[Merged]:
        """What can be delivered now, at most about ``limit`` records."""
        taken: list[Merged] = []
        while len(taken) < limit:
            size = len(taken)
            for stream in self._streams.values():
                self._take_unmerged(stream, taken)
            keys = [s.lines[0].key for s in self._streams.values() if s.lines and s.lines[0].key is not None]
            if keys:
                taken += self._take_group(min(keys), now_s)
            elif not taken:
                self._take_ending(now_s, taken)
            if len(taken) == size:
                break
        return taken

    def _take_unmerged(self, stream: _Stream, taken: list[Merged]) -> None:
        """Give out what is at the head of a stream and concerns this rank alone."""
        while stream.lines and stream.lines[0].key is None:
            entry = stream.lines[0].entry
            line, ends = entry.line, {stream.name: entry.end}
            if isinstance(line, Record) and stream.rank == 0 and _ends_run(line):
                return
            stream.lines.popleft()
            if stream.rank == 0:
                taken.append(Merged(line, ends))
            elif isinstance(line, Header) or line.kind in ONCE_A_RUN:  # the others' stay in the journal
                _move_on(taken, ends)
            else:
                taken.append(Merged(_own(line, stream.rank), ends, straggles=True))

    def _take_group(self, key: GroupKey, now_s: float) -> list[Merged]:
        """Give out one step, if all ranks that log it are known or have been waited for."""
        at_head = [s for s in self._streams.values() if s.lines and s.lines[0].key == key]
        late = [s for s in at_head if key in self._gaps.get(s.rank, {})]
        if late:  # the others' point of this step is there already
            return [
                Merged(_own(line, s.rank), {s.name: end}, straggles=True)
                for s in late
                for line, end in _pop_group(s, key)
            ]  # fmt: skip
        if any(s.unread and all(line.key == key for line in s.lines) for s in self._streams.values()):
            return []  # what is on disk is not late
        waited_s = now_s - min(s.lines[0].since_s for s in at_head)
        missing = self._missing({s.rank for s in at_head})
        if waited_s < self.rules.wait_s:
            if any(not s.passed(key) for s in at_head):
                return []
            if any(self._may_come(rank, key) for rank in missing):
                return []
        for rank in missing:
            gaps = self._gaps.setdefault(rank, {})
            gaps[key] = None
            if len(gaps) > _REMEMBERED_GAPS:
                del gaps[next(iter(gaps))]
            self._tell(rank, key)
        ends: dict[str, Position] = {}
        parts: dict[Any, list[tuple[int, Record]]] = {}
        for stream in sorted(at_head, key=lambda s: (s.rank, s.name)):
            for line, end in _pop_group(stream, key):
                ends[stream.name] = end
                level = (line.meta or {}).get("level")
                parts.setdefault((line.phase, line.epoch, level), []).append((stream.rank, line))
        records = [self._merge(part) for part in parts.values()]
        # The cursors move with the last of them: until then all of this step counts as not delivered.
        straggles = all(s.rank != 0 for s in at_head)
        last = len(records) - 1
        return [Merged(record, ends if at == last else {}, straggles) for at, record in enumerate(records)]

    def _take_ending(self, now_s: float, taken: list[Merged]) -> None:
        """Give out rank 0's word on the end once the other ranks have said theirs, died, or been waited for."""
        for stream in self._streams.values():
            if stream.rank != 0 or not stream.lines:
                continue
            ending = stream.lines[0]
            others = [s for s in self._streams.values() if s.rank != 0]
            seen = {s.rank for s in others}
            if any(s.unread for s in others):
                continue
            open_ranks = {s.rank for s in others if s.live and not s.done}
            if stream.live:  # otherwise nobody of this job is there any more
                open_ranks |= {rank for rank in self.rules.ranks if rank != 0 and rank not in seen}
            if not open_ranks or now_s - ending.since_s >= self.rules.wait_s:
                stream.lines.popleft()
                taken.append(Merged(ending.entry.line, {stream.name: ending.entry.end}))

    def _missing(self, ranks: set[int]) -> list[int]:
        expected = set(self.rules.ranks) or {s.rank for s in self._streams.values() if s.has_key}
        return sorted(expected - ranks)

    def _may_come(self, rank: int, key: GroupKey) -> bool:
        """Whether values of a rank for this step may still arrive."""
        own = [s for s in self._streams.values() if s.rank == rank]
        if not own:
            return any(s.live for s in self._streams.values())
        # What waits at a head is of another step: the smallest was chosen, so it is a later one.
        return any(not s.lines and s.live and not s.done for s in own)

    # ------------------------------------------------------------------ merging

    def _merge(self, part: list[tuple[int, Record]]) -> Record:
        rows: list[dict[str, Any]] = []
        series: dict[str, Any] = {}
        for rank, record in part:
            row = {}
            for key, value in (record.data or {}).items():
                if self._how(key) == PER_RANK:
                    series[rank_key(key, rank)] = value
                else:
                    row[key] = value
            rows.append(row)
        keys = dict.fromkeys(key for row in rows for key in row)
        with np.errstate(all="ignore"):  # a NaN among the values says it all
            data = merge_dicts(rows, {key: named_reduction(self._how(key)) for key in keys})
        data |= series
        first = part[0][1]
        return msgspec.structs.replace(first, data=data, nonfinite=split_nonfinite(data))

    def _how(self, key: str) -> str:
        found = self.rules.how.get(key)
        if found is None:
            found = next((how for pattern, how in self.rules.how.items() if fnmatchcase(key, pattern)), None)
        return found or self.rules.default


def rank_key(key: str, rank: int) -> str:
    """The name of one rank's own series.

    >>> rank_key("loss", 3)
    'loss/rank3'
    """
    return f"{key}/rank{rank}"


def _own(record: Record, rank: int) -> Record:
    """A record under names that say whose it is."""
    if record.data is not None:
        data = {rank_key(key, rank): value for key, value in record.data.items()}
        return msgspec.structs.replace(record, data=data, nonfinite=split_nonfinite(data))
    return msgspec.structs.replace(record, id=rank_key(record.id or record.kind, rank))


def _pop_group(stream: _Stream, key: GroupKey) -> Iterable[tuple[Record, Position]]:
    while stream.lines and stream.lines[0].key == key:
        entry = stream.lines.popleft().entry
        assert isinstance(entry.line, Record)
        yield entry.line, entry.end


def _key(attempt: int, line: Record | Header) -> GroupKey | None:
    if isinstance(line, Header) or line.kind != Kind.METRIC or not isinstance(line.step, int | float):
        return None
    return None if math.isnan(line.step) else (attempt, line.step)


def _ends_run(record: Record) -> bool:
    return record.kind == Kind.STATUS and record.value != RunStatus.RUNNING


def _move_on(taken: list[Merged], ends: dict[str, Position]) -> None:
    """Have a line count as delivered that the tracker does not get."""
    taken.append(Merged(_NOTHING, ends))


_NOTHING = Record(0, "")
"""Has no kind: the tracker does not get it."""


def _rank_of(stream: str) -> int:
    found = re.match(r"rank(\d+)", stream)
    return int(found[1]) if found else 0
