"""What a policy lets through in a sequence of calls: :class:`Cadence` decides, :class:`MetricWindow` merges."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from lightning_loggers.aggregation import Step, merge_dicts
from lightning_loggers.policies import LogLevel, LogPolicy, Phase, Window, reduction
from lightning_loggers.ranks import current_rank

_BATCH = int(LogLevel.BATCH)


Where = tuple[int | None, str | None, int | None, int | None]
"""Where a call was made: number of the :class:`LogLevel`, value of the :class:`Phase`, epoch and index of the batch
in it, from 0. ``None`` is unknown; so is the batch outside of batches."""

UNKNOWN: Where = (None, None, None, None)


class Passed:
    """The batch of a phase that was let through last.

    Attributes:
        phase: The phase.
        epoch: Epoch of the batch.
        index: Its index in the epoch; ``None`` for none.
        due: The batch from which on the next one is let through; 0 for any.
        next_s: The time from which on it is; 0 for any.
    """

    __slots__ = ("due", "epoch", "index", "next_s", "phase")

    def __init__(self, phase: str | None) -> None:
        self.phase = phase
        self.epoch: int | None = None
        self.index: Any = None
        self.due = 0.0
        self.next_s = 0.0


class Cadence:
    """Decides for a sequence of calls, by a policy and by what it let through before.

    Args:
        policy: The policy.
        clock: Seconds; only differences count.

    Attributes:
        policy: As given.
        clock: As given.

    Guarantees:
        - No call looks at a value, locks, or waits.
        - A call that is refused leaves nothing behind: the next one is decided as if it had not been made.
    """

    __slots__ = (
        "_epochs_only",
        "_every",
        "_here",
        "_intervals",
        "_last",
        "_level",
        "_passed",
        "_rank",
        "_rank_logs",
        "_ranked",
        "_rates",
        "clock",
        "policy",
    )

    def __init__(self, policy: LogPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self.policy = policy
        self.clock = clock
        self._level = int(cast(LogLevel, policy.level))
        freq = policy.log_freq
        self._every = freq if isinstance(freq, int) else 0 if freq == "epoch" else 1
        self._intervals: dict[str | None, float | None] = {
            None: policy.interval_s(None),
            **{phase.value: policy.interval_s(phase) for phase in Phase},
        }
        self._epochs_only = not self._every
        self._rates = self._every > 1 or (
            not self._epochs_only and any(seconds is not None for seconds in self._intervals.values())
        )
        # Rank 0 alone is the default and is seen to where the journal is begun.
        self._ranked = policy.log_on_workers != 0
        self._here: bool | None = None  # whether this rank records, where that cannot change
        self._rank: int | None = None  # that it was last
        self._rank_logs = False
        self._passed: dict[str | None, Passed] = {}
        self._last: Passed | None = None  # of these, the one asked for last

    def settle(self, rank: int | None) -> None:
        """Take the rank of this process as settled, for as long as a Trainer is asked; ``None``: ask at every call."""
        self._here = self.policy.logs_on(rank) if self._ranked and rank is not None else None

    @property
    def is_settled(self) -> bool:
        """Whether the rank of this process need not be asked for."""
        return self._here is not None or not self._ranked

    @property
    def refuses_all(self) -> bool:
        """Whether nothing is let through in this process, as far as is settled."""
        return self._here is False

    @property
    def refuses_batches(self) -> bool:
        """Whether nothing is let through that is known to belong to a batch."""
        return self._epochs_only or self._level < _BATCH

    def passed(self, phase: str | None) -> Passed:
        """What was let through last in a phase; the same object from now on."""
        passed = self._passed.get(phase)
        if passed is None:
            passed = self._passed[phase] = Passed(phase)
        return passed

    def admits(self, where: Where = UNKNOWN, step: Any = None, peek: bool = False) -> bool:
        """Decide on one call.

        Args:
            where: Its level, the value of its :class:`Phase`, its epoch, and the index of its batch in the epoch;
                ``None`` for each that is not known.
            step: Its step; stands in for the index of the batch where that is not known.
            peek: Only ask: what is let through does not count.

        Returns:
            Whether it is recorded.
        """
        return self.logs_here() and self.is_due(where, step, peek)

    def logs_here(self) -> bool:
        """Whether this process records; its rank is asked for unless it is settled."""
        if self._here is not None:
            return self._here
        if not self._ranked:
            return True
        rank = current_rank()
        if rank != self._rank:
            self._rank, self._rank_logs = rank, self.policy.logs_on(rank)
        return self._rank_logs

    def is_due(self, where: Where, step: Any, peek: bool = False) -> bool:
        """As :meth:`admits`, whatever the rank."""
        level, phase, epoch, index = where
        if level is not None:
            if level > self._level:
                return False
            if level < _BATCH:
                return True
        if not self._rates:
            return not self._epochs_only or (level is None and index is None)
        if index is None:
            index = step
        passed = self._last
        if passed is None or passed.phase != phase:
            passed = self._last = self._passed.get(phase)
        if passed is not None:
            if passed.index == index and passed.epoch == epoch and index is not None:
                return True  # a step is let through whole
            if passed.next_s and self.clock() < passed.next_s:
                return False
            try:
                # An index that goes back is a rewind: it is counted from there.
                if passed.due and passed.index < index < passed.due and passed.epoch == epoch:
                    return False
            except TypeError:  # none, or a step that is no number: told where it is recorded
                pass
        if not peek:
            self._pass(phase, epoch, index)
        return True

    def _pass(self, phase: str | None, epoch: int | None, index: Any) -> None:
        """Remember a batch that was let through, and from when on the next one is."""
        passed = self.passed(phase)
        passed.epoch, passed.index, passed.due = epoch, index, 0.0
        if self._every > 1 and index is not None:
            with contextlib.suppress(TypeError):  # a step that is no number
                passed.due = (index // self._every + 1) * self._every
        interval_s = self._intervals.get(phase)
        passed.next_s = 0.0 if interval_s is None else self.clock() + interval_s


# ---------------------------------------------------------------------- several steps to one point


class MetricWindow:
    """Holds the metrics of several steps until they are merged to one point.

    Args:
        window: How many.
        clock: Seconds.

    Guarantees:
        - What is held is handed out exactly once: by :meth:`add` when a window is complete, or by :meth:`take`.
        - A window never spans two scopes (phase and epoch).
        - A signal handler that takes what is held loses nothing of the call that it interrupts.
    """

    def __init__(self, window: Window, clock: Callable[[], float] = time.monotonic) -> None:
        self.window = window
        self._clock = clock
        self._lock = threading.RLock()
        self._held: list[dict[str, Any]] = []
        self._steps = 0
        self._step: Step = None
        self._where: Any = None
        self.scope: Any = None
        """What the window may not span, as given with the last call."""
        self._opened_s = 0.0

    def __len__(self) -> int:
        return len(self._held)

    def add(self, metrics: dict[str, Any], step: Step, scope: Any = None, where: Any = None) -> "Held | None":
        """Hold the metrics of a call.

        Args:
            metrics: Numbers by key; not copied.
            step: Their step; ``None`` is a step of its own at every call.
            scope: What a window may not span; compared by ``==``.
            where: Anything; that of the last call is handed out with the window.

        Returns:
            The window before, if this call does not belong to it any more.
        """
        with self._lock:
            same_step = step is not None and step == self._step
            finished = None
            if self._held and (scope != self.scope or (not same_step and self._is_complete())):
                finished = self.take()
            if not self._held:
                self._steps, self._opened_s, same_step = 0, self._clock(), False
            self._steps += not same_step
            self._step, self.scope, self._where = step, scope, where
            self._held.append(metrics)
            return finished

    def take(self) -> "Held | None":
        """What is held, complete or not; afterwards nothing is."""
        with self._lock:
            held, self._held = self._held, []
            return Held(held, self._step, self._where) if held else None

    def start_over_in_child(self) -> None:
        """After ``fork``: what is held is the parent's, and so may be the lock."""
        self._lock = threading.RLock()
        self._held = []

    def _is_complete(self) -> bool:
        """Whether all steps of the window have come; more metrics of its last step may still follow."""
        if self.window.steps is not None:
            return self._steps >= self.window.steps
        return self._clock() - self._opened_s >= cast(float, self.window.seconds)

    def merge(
        self,
        held: Sequence[Mapping[str, Any]],
        agg_key_funcs: Mapping[str, Any] | None = None,
        agg_default_func: Any = None,
    ) -> dict[str, Any]:
        """Merge by the window's functions.

        Args:
            held: Metrics, in order.
            agg_key_funcs: Functions for keys for which the window names none.
            agg_default_func: The function for all others, likewise; by default the mean.

        Raises:
            Exception: Whatever a user's function raises.
        """
        import numpy as np

        funcs = {**(agg_key_funcs or {}), **reduction(self.window.funcs)}
        default = self.window.default if self.window.default is not None else agg_default_func
        # A result of NaN or infinity says it all; numpy's warning about it could be an error in training.
        with np.errstate(all="ignore"):
            return merge_dicts(held, funcs, reduction("mean" if default is None else default))


class Held(NamedTuple):
    """What a window held.

    Attributes:
        calls: The metrics of its calls, in order.
        step: Step of the last one.
        where: What was given with the last one.
    """

    calls: list[dict[str, Any]]
    step: Step
    where: Any
