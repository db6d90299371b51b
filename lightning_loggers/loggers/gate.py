"""What stands between a log call and the journal, where a logger has a policy or knows where the training is."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from lightning_loggers.cadence import UNKNOWN, Cadence, Held, MetricWindow, Where
from lightning_loggers.errors import NonFiniteError
from lightning_loggers.loggers import arriving
from lightning_loggers.loggers.trainer_context import LEVEL_NAMES, Progress, StepAxis, TrainerContext, located, place_of
from lightning_loggers.policies import LogLevel, LogPolicy, Phase, Window
from lightning_loggers.ranks import current_rank
from lightning_loggers.records import ONCE_A_RUN, Kind, Record, split_nonfinite
from lightning_loggers.values.device import is_on_device
from lightning_loggers.values.metrics import normalise, safe_str

if TYPE_CHECKING:
    from lightning_loggers.loggers.journaled import JournaledLogger

_BATCH, _FIT = int(LogLevel.BATCH), int(LogLevel.FIT)
_LARGE = 2.0**63
_METRIC = Kind.METRIC.value
_TRAIN = Phase.TRAIN.value


def _nowhere() -> Where:
    """Where a training is that nobody tells of."""
    return UNKNOWN


def placed_at(where: Where, kind: Kind, fields: dict[str, Any]) -> dict[str, Any]:
    """Add where the training was to the fields of a record of that kind."""
    level, phase, epoch, _ = where
    fields.setdefault("epoch", epoch)
    fields.setdefault("phase", phase)
    if level is not None and kind not in ONCE_A_RUN:
        fields["meta"] = {**(fields.get("meta") or {}), "level": LEVEL_NAMES[level]}
    return fields


def _admit_none(_step: Any) -> Where | None:
    return None


def refusing_training_batches(
    context: TrainerContext, cadence: Cadence, admit: Callable[[Any], Where | None]
) -> Callable[[Any], Where | None]:
    """A shorter way to refuse what is logged for a batch of a training, which is most of what is ever refused.

    Args:
        context: Knows the Trainer.
        cadence: Decides; not asked for the rank here.
        admit: The long way. It decides on all that is not refused here.

    Returns:
        What decides as ``admit`` does.
    """
    state, connector, epochs, batches = context.state, context.connector, context.epochs, context.batches
    passed, clock, refuses_batches = cadence.passed(_TRAIN), cadence.clock, cadence.refuses_batches

    def shorter(step: Any) -> Where | None:
        try:
            if state.stage is context.training and connector()._first_loop_iter is not None:
                if refuses_batches:
                    return None
                index = batches.ready - 1
                if passed.next_s:
                    if index != passed.index and clock() < passed.next_s:
                        return None
                elif index < passed.due and passed.index < index and passed.epoch == epochs.completed:
                    return None
        except Exception:  # noqa: BLE001, S110 - another version of Lightning, or a Trainer that is gone
            pass
        return admit(step)

    return shorter


class Gate:
    """Lets the log calls of one logger through, or not, by its policy; and tells records where they were made.

    Args:
        logger: The logger.
        policy: Its policy, if any.

    Attributes:
        now: Tells where the training is.
        admit: Decides on a call for metrics by its step: where the training is if it is let through, else ``None``.
            Itself ``None`` if all are let through.
        found_nonfinite: Whether a metric that was let through was NaN or infinite.
        dropped: How many values were left out, by reason.

    Guarantees:
        - A call that is refused has looked at no value.
        - What a window holds is recorded when the next one begins, before metrics of its whole epoch or of the run, and
          at the end of the run. Until then it is in memory only.
        - Nothing raises into training but what the user asked for by ``nonfinite="raise"``.
    """

    def __init__(self, logger: "JournaledLogger", policy: LogPolicy | None) -> None:
        self.policy = policy
        self.found_nonfinite = False
        self.dropped: dict[str, int] = {}
        self._may_raise = True
        self._logger = logger
        self._axis = StepAxis()
        self._progress: Progress | None = None
        self._cadence = None if policy is None else Cadence(policy)
        # With patterns of keys it is only asked at first: a call of which nothing is left is not to count.
        self._asks_twice = policy is not None and bool(policy.keys)
        # One of these is called for every log call, and so they are bound when that which they ask changes.
        self.now: Callable[[], Where] = _nowhere
        self.admit: Callable[[Any], Where | None] | None = None
        self._bind()
        # Merging values, or deciding by them, takes the values.
        self._may_arrive = policy is not None and policy.nonfinite == "log" and not isinstance(policy.window, Window)
        self._window: MetricWindow | None = None
        if policy is not None and isinstance(policy.window, Window):
            self._window = MetricWindow(policy.window)

    # ------------------------------------------------------------------ who tells where the training is

    def follow(self, progress: Progress | None) -> None:
        """Ask ``progress`` from now on; nobody if it is ``None``."""
        self._progress = progress
        self.now = _nowhere if progress is None else progress.now
        self._settle(None)

    def follow_trainer(self, trainer: Any) -> None:
        """Ask a Trainer from now on.

        Raises:
            TypeError: If it cannot be referred to weakly.
        """
        if not isinstance(self._progress, TrainerContext) or self._progress.trainer is not trainer:
            self.follow(TrainerContext(trainer, self._axis))
        self._settle(current_rank())  # its processes have been launched by now

    def _settle(self, rank: int | None) -> None:
        if self._cadence is not None:
            self._cadence.settle(rank)
            self._bind()

    def _bind(self) -> None:
        cadence, now = self._cadence, self.now
        if cadence is None:
            return
        is_due, logs_here = cadence.is_due, cadence.logs_here
        only_asked = self._asks_twice

        def admit(step: Any) -> Where | None:
            where = now()
            return where if is_due(where, step, only_asked) else None

        def admit_anywhere(step: Any) -> Where | None:
            return UNKNOWN if is_due(UNKNOWN, step, only_asked) else None

        if cadence.refuses_all:
            self.admit = _admit_none
            return
        chosen: Callable[[Any], Where | None] = admit
        if self._progress is None:
            chosen = admit_anywhere
        elif isinstance(self._progress, TrainerContext):
            chosen = refusing_training_batches(self._progress, cadence, admit)

        def admit_here(step: Any) -> Where | None:
            return chosen(step) if logs_here() else None

        self.admit = chosen if cadence.is_settled else admit_here

    # ------------------------------------------------------------------ decisions

    def log_metrics(self, metrics: Mapping[str, Any], step: Any, given_batch: int) -> None:
        """Record metrics of a batch that the user names, if the policy lets them through.

        Raises:
            NonFiniteError: If the policy asks for it.
        """
        _, phase, epoch, _ = self.now()
        where = _BATCH, phase, epoch, given_batch
        if self.should_log(given_batch, None) and (
            self._cadence is None or self._cadence.admits(where, step, self._asks_twice)
        ):
            self.record(metrics, step, where)

    def record(self, metrics: Mapping[str, Any], step: Any, where: Where) -> None:
        """Record metrics that :attr:`admit` has let through.

        Args:
            metrics: Metrics by key.
            step: Their step.
            where: Where the training is.

        Raises:
            NonFiniteError: If the policy asks for it.
        """
        if self.policy is None:
            self.log_as_it_is(metrics, step, where)
        else:
            self._log_admitted(metrics, step, where)

    def refuses(self, kind: Kind, identifier: Any = None, step: Any = None, batch_idx: int | None = None) -> bool:
        """Whether the policy holds back something other than metrics; what is let through counts as recorded.

        Args:
            kind: What it is.
            identifier: What it is called.
            step: Its step.
            batch_idx: Index of its batch; by default the one that the training is at.
        """
        cadence = self._cadence
        if cadence is None:
            return False
        if kind in ONCE_A_RUN:
            return self._logger.worker_rank != 0  # which the run belongs to, whichever ranks log
        if identifier is not None and not cadence.policy.selects(safe_str(identifier)):
            return True
        where = self.now()
        if batch_idx is not None:
            if not self.should_log(batch_idx, None):
                return True
            where = _BATCH, where[1], where[2], batch_idx
        return not cadence.admits(where, step)

    def should_log(self, batch_idx: int | None, level: LogLevel | str | int | None) -> bool:
        """What :meth:`LogPolicy.should_log` says for this process."""
        return self.policy is None or self.policy.should_log(batch_idx, level=level, rank=current_rank())

    def should_write(self, step: Any = None) -> bool:
        """Whether a call made now would be let through; asking changes nothing."""
        return self._cadence is None or self._cadence.admits(self.now(), step, peek=True)

    def placed(self, kind: Kind, fields: dict[str, Any]) -> dict[str, Any]:
        """Add where the training is to the fields of a record."""
        if self._progress is None or kind is Kind.STATUS:
            return fields
        return placed_at(self.now(), kind, fields)

    # ------------------------------------------------------------------ what was let through

    def log_as_it_is(self, metrics: Mapping[str, Any], step: Any, where: Where | None = None) -> None:
        """The short way, where nobody asked for anything: the journal's writer deals with whatever the values are.

        Args:
            metrics: Metrics by key.
            step: Their step.
            where: Where the training is, if not as :attr:`now` tells.
        """
        logger, progress = self._logger, self._progress
        if logger._prefix:
            metrics = {f"{logger._prefix}{key}": value for key, value in metrics.items()}
        elif type(metrics) is not dict:
            metrics = dict(metrics)
        if progress is None:
            logger._append(metrics, step)
            return
        step, place = progress.locate(step) if where is None else located(progress, step, where)
        logger._append(metrics, step, place)

    def _log_admitted(self, metrics: Mapping[str, Any], step: Any, where: Where) -> None:
        policy, window, phase = self.policy, self._window, where[1]
        if policy is not None and policy.keys:
            metrics = {key: value for key, value in metrics.items() if policy.selects(safe_str(key))}
            if not metrics or (self._cadence is not None and not self._cadence.admits(where, step)):
                return
        if self._progress is not None:
            step = self._progress.axis_step(step, where)
        plain = self._plain(metrics)
        if plain is None:
            self._log_arriving(metrics, step, where)
            return
        numbers, others, nonfinite = plain
        if nonfinite:
            nonfinite = self._treat(numbers, nonfinite, step)
        if window is not None:
            for_batch = where[0] is None or where[0] == _BATCH
            if for_batch and numbers:
                if self._logger._start() is None:  # so that the end of the process, and fork, know of this logger
                    return
                self._write_merged(window, window.add(numbers, step, where[1:3], where))
                numbers = {}
            elif not for_batch and (where[0] == _FIT or window.scope is None or window.scope[0] == phase):
                self.flush()  # but not a training's window because of a validation in the middle of its epoch
        if numbers or others:
            self._write(numbers, others, step, where, nonfinite)
        if nonfinite and policy is not None and policy.nonfinite == "raise" and self._may_raise:
            listed = ", ".join(f"{key}={name}" for key, name in nonfinite.items())
            raise NonFiniteError(
                f"At step {step} {'are' if len(nonfinite) > 1 else 'is'} not finite: {listed}. It was recorded; "
                'training is stopped because of LogPolicy(nonfinite="raise"). Use nonfinite="warn" to go on.'
            )

    def _plain(self, metrics: Mapping[str, Any]) -> tuple[dict[str, Any], list[Record], dict[str, str] | None] | None:
        """Numbers of the logger's own, records of other kinds, and which of the numbers are not finite.

        ``None`` if some are on a device and need not be waited for.
        """
        try:
            # As in the journal's writer: the sum of plain finite numbers is one.
            total = sum(metrics.values())
            if type(metrics) is dict and (type(total) is float or type(total) is int) and -_LARGE < total < _LARGE:
                return metrics.copy(), [], None
        except Exception:  # noqa: BLE001, S110 - whatever a value's own arithmetic raises, the slow way deals with it
            pass
        if self._may_arrive and any(map(is_on_device, metrics.values())):
            return None
        numbers, others = normalise(metrics, self._tell)
        return numbers, others, split_nonfinite(numbers)

    def _log_arriving(self, metrics: Mapping[str, Any], step: Any, where: Where) -> None:
        """Record metrics with values on a device."""
        logger = self._logger
        if logger._start() is None:
            return
        samples = None if self._progress is None else self._progress.samples()
        numbers = dict(metrics)
        if self.policy is not None and self.policy.axes:
            self._add_axes(numbers, where[2], samples)
        numbers = {f"{logger._prefix}{key}": value for key, value in numbers.items()}
        logger._append(numbers, step, place_of(where, samples))

    def _treat(self, numbers: dict[str, Any], nonfinite: dict[str, str], step: Any) -> dict[str, str] | None:
        """Do what the policy says; returns which of the numbers that are left are not finite."""
        self.found_nonfinite = True
        how = "log" if self.policy is None else self.policy.nonfinite
        if how not in {"warn", "drop"}:
            return nonfinite
        for key, name in nonfinite.items():
            fate = "is left out" if how == "drop" else "is recorded"
            self._tell(
                ("nonfinite", key), f"Metric {key!r} was {name} at step {step} and {fate} (nonfinite={how!r}); more of "
                "the same is only counted."
            )  # fmt: skip
            if how == "drop":
                del numbers[key]
                self._count("not finite")
        return None if how == "drop" else nonfinite

    def _write(
        self,
        numbers: dict[str, Any],
        others: Iterable[Record],
        step: Any,
        where: Where,
        nonfinite: dict[str, str] | None,
    ) -> None:
        writer = self._logger._start()
        if writer is None:
            return
        meta, epoch, phase = place_of(where, None)
        time_ns = time.time_ns()
        if numbers:
            samples = None if self._progress is None else self._progress.samples()
            if self.policy is not None and self.policy.axes:
                self._add_axes(numbers, epoch, samples)
            prefix = self._logger._prefix
            if prefix:
                numbers = {f"{prefix}{key}": value for key, value in numbers.items()}
                nonfinite = nonfinite and {f"{prefix}{key}": name for key, name in nonfinite.items()}
            if arriving.holds_up(self._logger, numbers):
                arriving.drain(self._logger)  # so that no series goes back
            if meta is None and phase is None and epoch is None:
                writer.append_metrics(numbers, step)
            else:
                place = place_of(where, samples)
                writer.append(Record(time_ns, _METRIC, step, numbers, nonfinite, None, None, None, *place))
        for record in others:
            writer.append(
                msgspec.structs.replace(record, time_ns=time_ns, step=step, epoch=epoch, phase=phase, meta=meta)
            )

    def _add_axes(self, numbers: dict[str, Any], epoch: int | None, samples: int | None) -> None:
        assert self.policy is not None
        for axis in self.policy.axes:
            value = epoch if axis == "epoch" else samples
            if value is not None:
                numbers.setdefault(axis, value)

    # ------------------------------------------------------------------ windows and the end

    @contextlib.contextmanager
    def at_the_end(self) -> Iterator[None]:
        """While a run ends nothing is raised, and afterwards a window holds nothing."""
        self._may_raise = False
        try:
            yield
        finally:
            self._may_raise = True
            self.flush()

    def flush(self) -> None:
        """Record what a window holds, complete or not."""
        if self._window is not None:
            self._write_merged(self._window, self._window.take())

    def start_over_in_child(self) -> None:
        """After ``fork``: what a window holds is the parent's to record, and the child may be given another rank."""
        self._settle(None)
        if self._window is not None:
            self._window.start_over_in_child()

    def _write_merged(self, window: MetricWindow, held: Held | None) -> None:
        if held is None:
            return
        aggregator = self._logger._step_aggregator()
        try:
            points = [window.merge(held.calls, aggregator._agg_key_funcs, aggregator._agg_default_func)]
        except Exception as error:  # noqa: BLE001 - a user's function on unexpected values must not stop training
            points = held.calls
            self._tell(
                ("window", type(error)),
                f"A window of {len(points)} calls up to step {held.step} could not be merged ({error!r}): they are "
                "recorded one by one. Check the functions of LogPolicy.window.",
            )
        for numbers in points:
            self._write(numbers, [], held.step, held.where, split_nonfinite(numbers))

    def _tell(self, cause: Any, message: str) -> None:
        self._logger._notices.tell_once(cause, message)

    def _count(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
