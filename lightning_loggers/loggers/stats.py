"""What became of a run's records."""

from dataclasses import dataclass, field

from lightning_loggers.delivery.state import TrackerState


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts of a run's records; ``recorded = delivered + pending + rejected`` but for parts of records.

    Attributes:
        recorded: In the journal (or, while the disk refuses, in memory).
        delivered: Acknowledged by the tracker.
        pending: Not delivered yet.
        retried: Attempts that failed and were made again.
        rejected: Refused by the tracker; in ``journal/rejected.jsonl``.
        dropped: Lost, and told; the sum over ``dropped_reasons``.
        damaged: Stretches of the journal that were no record.
        reasons: Rejections and retries by cause.
        dropped_reasons: Losses by cause.
    """

    recorded: int = 0
    delivered: int = 0
    pending: int = 0
    retried: int = 0
    rejected: int = 0
    dropped: int = 0
    damaged: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    dropped_reasons: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, state: TrackerState | None, pending: int, dropped: dict[str, int]) -> "Stats":
        """Put together what delivery and the writer know."""
        state = state or TrackerState("")
        return cls(
            recorded=state.delivered + state.rejected + pending,
            delivered=state.delivered,
            pending=pending,
            retried=state.retried,
            rejected=state.rejected,
            dropped=sum(dropped.values()),
            damaged=state.damaged,
            reasons=dict(state.reasons),
            dropped_reasons=dropped,
        )

    def __str__(self) -> str:
        """One line.

        >>> str(Stats(recorded=3, delivered=2, pending=1, retried=4, reasons={"transient": 4}))
        '3 recorded, 2 delivered, 1 pending, 4 retried (transient: 4), 0 rejected, 0 dropped'
        """
        reasons = ", ".join(f"{reason}: {count}" for reason, count in self.reasons.items())
        dropped = ", ".join(f"{reason}: {count}" for reason, count in self.dropped_reasons.items())
        return (
            f"{self.recorded} recorded, {self.delivered} delivered, {self.pending} pending, {self.retried} retried"
            f"{f' ({reasons})' if reasons else ''}, {self.rejected} rejected, {self.dropped} dropped"
            f"{f' ({dropped})' if dropped else ''}"
        )
