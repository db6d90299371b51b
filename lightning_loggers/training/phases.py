"""Where a loop is that is no Trainer: a stack of epochs, since a validation may run inside a training epoch."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lightning_loggers.cadence import UNKNOWN, Where
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.loggers.trainer_context import located
from lightning_loggers.policies import LogLevel, Phase, nearest
from lightning_loggers.records import Place

MODES = ("train", "val", "test")
DEFAULT_MODE = "default"

_MODE_OF = {Phase.TRAIN: "train", Phase.VALIDATE: "val", Phase.TEST: "test"}
_PHASE_OF = {mode: phase.value for phase, mode in _MODE_OF.items()}


def mode_of(name: str) -> str:
    """The mode that a word means: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        ConfigurationError: If it means none of these.

    >>> mode_of("validate"), mode_of("train")
    ('val', 'train')
    """
    try:
        return _MODE_OF[Phase(name)]
    except (ValueError, KeyError):
        raise ConfigurationError(f"mode={name!r}: {nearest(str(name), MODES)}") from None


@dataclass(slots=True)
class Epoch:
    """An epoch that has begun.

    Attributes:
        mode: ``"train"``, ``"val"`` or ``"test"``.
        epoch: Its number.
        began_s: When, by the loop's clock.
        batches: Batches of it so far.
        steps: Batches since the last logged step.
        since_s: When the last logged step was, with time spent in other epochs taken out.
    """

    mode: str
    epoch: int
    began_s: float
    batches: int = 0
    steps: int = 0
    since_s: float = 0.0


class LoopProgress:
    """The phase, epoch and batch of a loop, for the loggers that follow it.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.stack: list[Epoch] = []
        self._outside = Epoch(DEFAULT_MODE, 0, clock(), since_s=clock())  # a loop that begins no epochs
        self.epoch = 0
        self.batches = 0
        self._level: int | None = None
        # Made anew when something changes, not whenever a log call asks.
        self._now: Where = UNKNOWN

    @property
    def current(self) -> Epoch:
        """The innermost epoch, or what stands for it outside of epochs."""
        return self.stack[-1] if self.stack else self._outside

    @property
    def mode(self) -> str:
        """The mode of the innermost epoch."""
        return self.current.mode

    def now(self) -> Where:
        """Level, phase, epoch and batch as of now."""
        return self._now

    @contextmanager
    def at(self, level: int) -> Iterator[None]:
        """While the front end itself logs something of that level."""
        before, self._level = self._level, level
        self._changed()
        try:
            yield
        finally:
            self._level = before
            self._changed()

    def _changed(self) -> None:
        if self.stack:
            top = self.stack[-1]
            # Without a level of its own, the user logs to a destination directly, between two batches.
            level = int(LogLevel.BATCH) if self._level is None else self._level
            self._now = level, _PHASE_OF[top.mode], top.epoch, max(top.batches - 1, 0)
        else:
            self._now = self._level, None, None, None

    def samples(self) -> int | None:
        """Unknown: a loop's batches can be anything."""
        return None

    def axis_step(self, step: Any, where: Any) -> Any:
        """The step as it is: the loop counts."""
        return step

    def locate(self, step: Any) -> tuple[Any, Place]:
        """Step and place of a record made now."""
        return located(self, step, self._now)

    def start(self, mode: str, epoch: int) -> None:
        """An epoch begins."""
        now_s = self.clock()
        self.stack.append(Epoch(mode, epoch, now_s, since_s=now_s))
        if mode == "train":
            self.epoch = epoch
        self._changed()

    def end(self) -> float:
        """The innermost epoch ends; the one around it goes on.

        Returns:
            How long it took, seconds.
        """
        took_s = self.clock() - self.stack.pop().began_s
        self.current.since_s += took_s
        self._changed()
        return took_s

    def count_batch(self) -> None:
        """A batch of the innermost epoch was done."""
        self.current.batches += 1
        self.current.steps += 1
        if self.mode in {"train", DEFAULT_MODE}:
            self.batches += 1
        self._changed()

    def step_time_s(self) -> float | None:
        """Mean seconds a batch since this was last asked; ``None`` if there was no batch."""
        top, now_s = self.current, self.clock()
        if not top.steps:
            return None
        mean_s = (now_s - top.since_s) / top.steps
        top.since_s, top.steps = now_s, 0
        return mean_s
