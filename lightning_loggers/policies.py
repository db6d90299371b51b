"""When something is logged: what a user asks for, without the values, the clock or the training.

:class:`LogPolicy` never changes; :mod:`lightning_loggers.cadence` keeps what was let through so far. Both are the same
inside the Trainer, in Fabric and in any other loop: who drives them tells level, phase, epoch and batch.
"""

import dataclasses
import enum
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import translate
from typing import Any, Literal, cast

from typing_extensions import override

from lightning_loggers.aggregation import REDUCTIONS, named_reduction
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.records import PER_RANK, RankRules

NONFINITE = ("log", "warn", "drop", "raise")
AXES = ("epoch", "samples")

_MAX_REMEMBERED_KEYS = 10_000


class LogLevel(enum.IntEnum):
    """How often a thing happens: once a run, once an epoch, once a batch.

    >>> LogLevel("epoch"), LogLevel(3), LogLevel.FIT < LogLevel.EPOCH < LogLevel.BATCH
    (<LogLevel.EPOCH: 2>, <LogLevel.BATCH: 3>, True)
    """

    FIT = 1
    EPOCH = 2
    BATCH = 3

    @classmethod
    @override
    def _missing_(cls, value: object) -> "LogLevel | None":
        return cls.__members__.get(value.upper()) if isinstance(value, str) else None


class Phase(enum.StrEnum):
    """What a training program is doing. ``Phase("val")`` and other usual words are understood.

    >>> Phase("val"), Phase("train") == "train"
    (<Phase.VALIDATE: 'validate'>, True)
    """

    TRAIN = "train"
    VALIDATE = "validate"
    TEST = "test"
    PREDICT = "predict"
    SANITY_CHECK = "sanity_check"

    @classmethod
    @override
    def _missing_(cls, value: object) -> "Phase | None":
        name = _PHASE_ALIASES.get(value.lower()) if isinstance(value, str) else None
        return None if name is None else cls(name)


_PHASE_ALIASES = {
    "training": "train",
    "fit": "train",
    "val": "validate",
    "valid": "validate",
    "validation": "validate",
    "validating": "validate",
    "eval": "validate",
    "testing": "test",
    "prediction": "predict",
    "predicting": "predict",
    "sanity_checking": "sanity_check",
}


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name.

    >>> nearest("lvel", ["level", "keys"])
    "did you mean 'level'? There are: level, keys."
    """
    close = get_close_matches(name, known, 1)
    listed = f"There are: {', '.join(known)}."
    return f"did you mean {close[0]!r}? {listed}" if close else listed[0].lower() + listed[1:]


# ---------------------------------------------------------------------- reductions by name


def reduction(how: Any) -> Any:
    """The function that a name stands for; a function as it is, a mapping with all of its names replaced.

    Raises:
        ConfigurationError: If there is none of that name.

    >>> reduction("max")([1, 3]), reduction({"peak": "last"})["peak"]([1, 3])
    (3, 3)
    """
    if isinstance(how, Mapping):
        return {key: reduction(inner) for key, inner in how.items()}
    if callable(how):
        return how
    if how not in REDUCTIONS:
        raise ConfigurationError(f"{how!r} is no reduction: {nearest(str(how), REDUCTIONS)} Or give a function.")
    return named_reduction(how)


# ---------------------------------------------------------------------- what a user asks for


@dataclass(frozen=True, kw_only=True)
class Window:
    """How many steps become one point.

    Args:
        steps: Steps a window; or
        seconds: seconds a window, looked at when something is logged.
        funcs: Per key how its values become one: ``"mean"``, ``"min"``, ``"max"``, ``"sum"``, ``"median"``, ``"std"``,
            ``"first"``, ``"last"`` or a function of a list, as for :func:`~lightning_loggers.aggregation.merge_dicts`.
        default: The same for all other keys; by default the logger's ``agg_default_func``, which is the mean.

    Raises:
        ConfigurationError: If neither or both of ``steps`` and ``seconds`` are given, or a function's name is unknown.
    """

    steps: int | None = None
    seconds: float | None = None
    funcs: Mapping[str, Any] = field(default_factory=dict)
    default: Any = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.seconds is None):
            raise ConfigurationError(f"{self!r} needs either steps=... or seconds=...")
        if self.steps is not None and (not _is_int(self.steps) or self.steps < 1):
            raise ConfigurationError(f"Window(steps={self.steps!r}) must be a number of steps, 1 or more.")
        if self.seconds is not None:
            _check_seconds("Window.seconds", self.seconds)
        reduction(self.funcs)
        if self.default is not None:
            reduction(self.default)


@dataclass(frozen=True, kw_only=True)
class LogPolicy:
    """Which log calls are recorded. By default: all, on rank 0.

    Levels and rates are decided before any value is looked at. Rates (``log_freq``, ``write_every_n_seconds``) hold
    back what is logged for a batch; what is logged once an epoch or once a run is not held back by them. A step that is
    let through is let through whole, however many calls log it.

    Args:
        level: The finest level that is recorded: ``"FIT"``, ``"EPOCH"`` or ``"BATCH"``, a :class:`LogLevel`, or its
            number.
        log_freq: ``"batch"``: every batch. ``n``: batches 0, n, 2n, ... of an epoch; where only some batches are logged
            at all, the first one logged at or after each of these. ``"epoch"``: nothing that belongs to a batch.
            Outside the Trainer and :class:`~lightning_loggers.training.TrainingLog` the step counts as the batch, and
            since a call's level is not known there, ``level`` and ``"epoch"`` let it through.
        write_every_n_seconds: Shortest time between two batches of a phase that are recorded.
        write_train_every_n_seconds: The same for training only, and so on.
        write_val_every_n_seconds: For validation.
        write_test_every_n_seconds: For testing.
        log_on_workers: The rank that records, a list of ranks, or -1 for all. Each writes a journal of its own; what
            belongs to the run (hyperparameters, checkpoints, its status) is rank 0's, whatever is chosen here.
        merge_ranks: How the values of a step become one over the ranks: a function's name, as for :class:`Window`, or
            ``"per_rank"`` for one series per rank (``loss/rank3``).
        merge_ranks_by_key: The same for single keys or patterns of keys.
        rank_wait_s: Longest wait for a late rank before a step is merged without it, seconds. What then still comes is
            shown as that rank's own series.
        nonfinite: What becomes of a NaN or infinity: ``"log"``; ``"warn"``: recorded, and told; ``"drop"``: left out,
            told and counted; ``"raise"``: recorded, then :class:`~lightning_loggers.errors.NonFiniteError`.
        window: Steps that become one point: their number, a :class:`Window`, or a mapping of its arguments.
        keys: Patterns (``"val/*"``) of the keys of metrics, texts, media and so on that are recorded, before the
            logger's ``prefix``; those that begin with ``!`` leave out. By default all.
        axes: ``"samples"`` and ``"epoch"``: metrics of these names that are added to all others as further axes, with
            the number of samples trained on and the epoch.

    Raises:
        ConfigurationError: For a value that cannot work.

    Examples:
        >>> policy = LogPolicy(level="EPOCH", keys=["val/*", "!*_step"])
        >>> policy.level, policy.selects("val/loss"), policy.selects("val/loss_step")
        (<LogLevel.EPOCH: 2>, True, False)
        >>> [batch for batch in range(9) if LogPolicy(log_freq=4).should_log(batch)]
        [0, 4, 8]
    """

    level: LogLevel | str | int = LogLevel.BATCH
    log_freq: int | str = "batch"
    write_every_n_seconds: float | None = None
    write_train_every_n_seconds: float | None = None
    write_val_every_n_seconds: float | None = None
    write_test_every_n_seconds: float | None = None
    log_on_workers: int | Sequence[int] = 0
    merge_ranks: str = "mean"
    merge_ranks_by_key: Mapping[str, str] = field(default_factory=dict)
    rank_wait_s: float = 10.0
    nonfinite: Literal["log", "warn", "drop", "raise"] = "log"
    window: Window | int | Mapping[str, Any] | None = None
    keys: str | Sequence[str] = ()
    axes: Sequence[str] = ()

    def __post_init__(self) -> None:
        try:
            level = LogLevel(cast(int, self.level))  # names are found by _missing_
        except ValueError:
            raise ConfigurationError(
                f"level={self.level!r}: {nearest(str(self.level), list(LogLevel.__members__))}"
            ) from None
        self._set("level", level)
        if self.log_freq not in {"epoch", "batch"} and (not _is_int(self.log_freq) or cast(int, self.log_freq) < 1):
            raise ConfigurationError(f"log_freq={self.log_freq!r} must be 'epoch', 'batch' or a number of batches.")
        for name in ("", "train_", "val_", "test_"):
            seconds = getattr(self, f"write_{name}every_n_seconds")
            if seconds is not None:
                _check_seconds(f"write_{name}every_n_seconds", seconds)
        workers = self.log_on_workers
        if not _is_int(workers):
            self._set("log_on_workers", tuple(cast(Sequence[int], workers)))
        listed = cast("Sequence[int]", [workers] if _is_int(workers) else self.log_on_workers)
        if not all(_is_int(rank) and rank >= -1 for rank in listed):
            raise ConfigurationError(f"log_on_workers={workers!r} must be a rank, a list of ranks, or -1 for all.")
        for how in (self.merge_ranks, *self.merge_ranks_by_key.values()):
            if how != PER_RANK and how not in REDUCTIONS:
                raise ConfigurationError(
                    f"merge_ranks: {how!r} is unknown; {nearest(str(how), [*REDUCTIONS, PER_RANK])}"
                )
        _check_seconds("rank_wait_s", self.rank_wait_s)
        if self.nonfinite not in NONFINITE:
            raise ConfigurationError(f"nonfinite={self.nonfinite!r}: {nearest(str(self.nonfinite), NONFINITE)}")
        if isinstance(self.window, Mapping):
            known = [item.name for item in dataclasses.fields(Window)]
            for key in self.window:
                if key not in known:
                    raise ConfigurationError(f"window: {key!r} is no option of Window; {nearest(str(key), known)}")
            self._set("window", Window(**self.window))
        elif self.window is not None and not isinstance(self.window, Window):
            self._set("window", Window(steps=self.window))
        self._set("keys", (self.keys,) if isinstance(self.keys, str) else tuple(self.keys))
        self._set("axes", tuple(self.axes))
        for axis in self.axes:
            if axis not in AXES:
                raise ConfigurationError(f"axes={list(self.axes)!r}: {nearest(str(axis), AXES)}")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def should_log(
        self, batch_idx: int | None = None, *, level: LogLevel | str | int | None = None, rank: int = 0
    ) -> bool:
        """Whether a call is recorded, as far as that depends neither on time nor on earlier calls.

        Args:
            batch_idx: Index of the batch in its epoch that the call belongs to; ``None`` if it belongs to none.
            level: The call's level, where known.
            rank: Global rank of the process.

        Returns:
            True if the level, ``log_freq`` and the rank let it through.
        """
        if not self.logs_on(rank) or (level is not None and LogLevel(cast(int, level)) > cast(LogLevel, self.level)):
            return False
        if batch_idx is None or self.log_freq == "batch":
            return True
        return self.log_freq != "epoch" and batch_idx % cast(int, self.log_freq) == 0

    def should_write(self, phase: Phase | str | None, seconds_since_last: float | None) -> bool:
        """Whether enough time has gone by since a batch of the phase was recorded.

        Args:
            phase: The phase, where known.
            seconds_since_last: Seconds since the last one; ``None`` if there was none.
        """
        interval_s = self.interval_s(phase)
        return interval_s is None or seconds_since_last is None or seconds_since_last >= interval_s

    def interval_s(self, phase: Phase | str | None) -> float | None:
        """Seconds between two recorded batches of a phase, ``None`` for no limit."""
        own = {
            Phase.TRAIN: self.write_train_every_n_seconds,
            Phase.VALIDATE: self.write_val_every_n_seconds,
            Phase.TEST: self.write_test_every_n_seconds,
        }
        seconds = None if phase is None else own.get(Phase(phase))
        return self.write_every_n_seconds if seconds is None else seconds

    def logs_on(self, rank: int) -> bool:
        """Whether a process of that global rank records."""
        workers = self.log_on_workers
        if isinstance(workers, int):
            return workers in (-1, rank)
        return -1 in workers or rank in workers

    def rank_rules(self, world_size: int | None, attempt: int = 0) -> RankRules | None:
        """How delivery merges the ranks; ``None`` where rank 0 alone logs.

        Args:
            world_size: How many ranks there are, where that is known.
            attempt: See :class:`~lightning_loggers.records.RankRules`.
        """
        workers = (self.log_on_workers,) if isinstance(self.log_on_workers, int) else self.log_on_workers
        if tuple(workers) == (0,):
            return None
        ranks = range(world_size or 0) if -1 in workers else sorted(set(workers))
        if world_size is not None:
            ranks = [rank for rank in ranks if rank < world_size]
        return RankRules(tuple(ranks), dict(self.merge_ranks_by_key), self.merge_ranks, self.rank_wait_s, attempt)

    def selects(self, key: str) -> bool:
        """Whether the patterns let a key through."""
        return not self.keys or _selects(cast("tuple[str, ...]", self.keys), key)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_seconds(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < math.inf:
        raise ConfigurationError(f"{name}={value!r} must be seconds, 0 or more.")


@functools.lru_cache(maxsize=256)
def _compiled(patterns: tuple[str, ...]) -> tuple[Callable[[str], Any] | None, Callable[[str], Any] | None]:
    """What must match, and what must not; ``None`` where there is nothing of the sort."""
    found = []
    for wanted in (True, False):
        chosen = [pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!") is not wanted]
        found.append(re.compile("|".join(map(translate, chosen))).match if chosen else None)
    return found[0], found[1]


@functools.lru_cache(maxsize=_MAX_REMEMBERED_KEYS)
def _selects(patterns: tuple[str, ...], key: str) -> bool:
    include, exclude = _compiled(patterns)
    return (include is None or include(key) is not None) and (exclude is None or exclude(key) is None)
