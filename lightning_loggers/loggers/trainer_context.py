"""Where a training program is, as its Trainer knows it: no callback is needed, and the Trainer is not kept alive.

A logger learns which Trainer it serves at the start of every fit, validate and test (``log_graph``). From then on it
asks at each log call. Some of what is asked is not part of Lightning's interface; all of it is asked for such that
"unknown" comes out where another version of Lightning has it elsewhere.
"""

import weakref
from typing import Any, Protocol

from lightning_loggers.cadence import Where
from lightning_loggers.policies import LogLevel, Phase
from lightning_loggers.records import Place

LEVEL_NAMES = {int(level): level.name.lower() for level in LogLevel}
"""What records call the levels."""

_BATCH, _EPOCH, _FIT = int(LogLevel.BATCH), int(LogLevel.EPOCH), int(LogLevel.FIT)
_TRAIN = Phase.TRAIN.value
_BATCH_NAME = LEVEL_NAMES[_BATCH]
_UNSEEN = object()

_FIT_HOOKS = frozenset(
    {
        "prepare_data", "setup", "configure_model", "configure_optimizers", "on_fit_start", "on_fit_end",
        "on_train_start", "on_train_end", "on_validation_start", "on_validation_end", "on_test_start", "on_test_end",
        "on_predict_start", "on_predict_end", "on_sanity_check_start", "on_sanity_check_end", "on_exception",
        "teardown",
    }
)  # fmt: skip


class Progress(Protocol):
    """What can tell a logger where the training is: a Trainer's context, or a custom loop's front end."""

    def now(self) -> Where:
        """Level, phase, epoch and batch."""

    def samples(self) -> int | None:
        """Samples trained on so far by all ranks, where known."""

    def axis_step(self, step: Any, where: Where) -> Any:
        """The step of a call on the run's one axis."""

    def locate(self, step: Any) -> tuple[Any, Place]:
        """What a record of now says of a call with that step: see :func:`located`."""


def located(progress: Progress, step: Any, where: Where) -> tuple[Any, Place]:
    """The step on the run's one axis, and what a record says of where its call was made.

    Args:
        progress: Knows where the training is.
        step: As it was given.
        where: Where the call was made.
    """
    place = place_of(where, progress.samples())
    return progress.axis_step(step, where), place


def place_of(where: Where, samples: int | None) -> Place:
    """What a record says of where its call was made, and of the samples trained on so far.

    >>> place_of((3, "train", 1, 7), 64), place_of((None, None, None, None), None)
    (({'level': 'batch', 'samples': 64}, 1, 'train'), (None, None, None))
    """
    level, phase, epoch, _ = where
    meta: dict[str, Any] = {} if level is None else {"level": LEVEL_NAMES[level]}
    if samples is not None:
        meta["samples"] = samples
    return meta or None, epoch, phase


class TrainerContext:
    """What one Trainer is doing.

    Args:
        trainer: The Trainer; held weakly.
        axis: The run's step axis, which may have seen another Trainer before.

    Attributes:
        state: The Trainer's, whose ``stage`` is what it does.
        training: The stage of training, once it has been seen.
        epochs: Counts of the training's epochs.
        batches: Counts of the batches of its current epoch.
        connector: The Trainer's logger connector, which knows whether a batch is at work; referred to weakly.

    Guarantees:
        - Nothing raises: what cannot be told is ``None``.
        - The Trainer, its module and its data are not kept alive.

    Raises:
        TypeError: If the Trainer cannot be referred to weakly.
    """

    def __init__(self, trainer: Any, axis: "StepAxis | None" = None) -> None:
        self._trainer = weakref.ref(trainer)
        self._axis = StepAxis() if axis is None else axis
        # Plain objects that know nothing of the Trainer: they may be held, which saves walking to them at every call.
        self.state: Any = getattr(trainer, "state", None)
        self.training: Any = _UNSEEN  # its name takes longer to ask for than whether it is this
        loop = getattr(trainer, "fit_loop", None)
        self.epochs: Any = getattr(getattr(loop, "epoch_progress", None), "current", None)
        epoch_loop = getattr(loop, "epoch_loop", None)
        self.batches: Any = getattr(getattr(epoch_loop, "batch_progress", None), "current", None)
        connector = getattr(trainer, "_logger_connector", None)
        self.connector: Any = None if connector is None else weakref.ref(connector)
        self._total: Any = getattr(getattr(epoch_loop, "batch_progress", None), "total", None)
        self._sizes = (0, 1, 0, 1)
        self._sizes_of: tuple[Any, Any] = (None, None)  # the epoch and stage of these

    @property
    def trainer(self) -> Any:
        """The Trainer, or ``None`` once it is gone."""
        return self._trainer()

    def now(self) -> Where:
        """Level, phase, epoch and batch as of this moment; called for every log call, so it builds no objects."""
        try:
            stage = self.state.stage
            if stage is None:
                return _FIT, None, None, None
            if self.connector()._first_loop_iter is None:  # between epochs: what is logged is not a batch's
                return self._level_between(), stage._value_, self.epochs.completed, None
            if stage is self.training:
                return _BATCH, _TRAIN, self.epochs.completed, self.batches.ready - 1
            phase = stage._value_
            if phase == _TRAIN:
                self.training = stage
                return _BATCH, _TRAIN, self.epochs.completed, self.batches.ready - 1
            return _BATCH, phase, self.epochs.completed, self._evaluation_batch()
        except Exception:  # noqa: BLE001 - another version of Lightning, or a Trainer that is gone
            return None, None, None, None

    def locate(self, step: Any) -> tuple[Any, Place]:
        """Step and place of a record made now; of a training's batch, which most are, without looking twice."""
        try:
            if self.state.stage is self.training and self.connector()._first_loop_iter is not None:
                if type(step) is int and step <= self._total.ready:
                    self._axis.trained(step)
                samples = self.samples()
                meta = {"level": _BATCH_NAME} if samples is None else {"level": _BATCH_NAME, "samples": samples}
                return step, (meta, self.epochs.completed, _TRAIN)
        except Exception:  # noqa: BLE001, S110 - as in now(), which tells what can be told
            pass
        return located(self, step, self.now())

    def _level_between(self) -> int:
        return _FIT if self._hook() in _FIT_HOOKS else _EPOCH

    def _hook(self) -> str | None:
        """The hook of the user's or a callback's that is running; ``None`` while Lightning itself logs."""
        try:
            trainer: Any = self._trainer()
            name: str | None = trainer.lightning_module._current_fx_name
        except Exception:  # noqa: BLE001 - as above
            return None
        return name

    def _evaluation_batch(self) -> int | None:
        ready = getattr(self._evaluation_progress(), "ready", 0)
        return ready - 1 if ready else None

    def _evaluation_progress(self) -> Any:
        loop = getattr(self._trainer(), "_active_loop", None)
        return getattr(getattr(loop, "batch_progress", None), "current", None)

    def samples(self) -> int | None:
        """Samples trained on so far: of batches begun, as the data loader's batch size and sampler say, on all ranks.

        Returns:
            Their number, or ``None`` where the data loader does not tell. After the training it is what it was.
        """
        try:
            epoch, stage = self.epochs.completed, self.state.stage
            if epoch != self._sizes_of[0] or stage is not self._sizes_of[1]:
                self._sizes = self._look_at_data()
                self._sizes_of = epoch, stage
            batch_size, batches, in_epoch, ranks = self._sizes
            ready = self._total.ready
            epochs = ready // batches
            begun = (ready - epochs * batches) * batch_size
            # Not min(), which takes as long as all the rest.
            self._axis.samples = (epochs * in_epoch + (begun if begun < in_epoch else in_epoch)) * ranks  # noqa: FURB136
        except Exception:  # noqa: BLE001, S110 - as above; and several loaders at once have no one batch size
            pass
        return self._axis.samples

    def _look_at_data(self) -> tuple[int, int, int, int]:
        """Batch size, batches an epoch, samples an epoch on one rank, and ranks; asked once an epoch.

        Raises:
            Exception: If they cannot be told.
        """
        trainer: Any = self._trainer()
        batch_size, length = _sizes(trainer.train_dataloader)
        batches = trainer.num_training_batches
        if not isinstance(batches, int) or batches < 1:
            batches = 2**62  # endless: all of it is one epoch
        in_epoch = batches * batch_size
        return batch_size, batches, in_epoch if length is None else min(length, in_epoch), trainer.world_size

    def axis_step(self, step: Any, where: Where) -> Any:
        """The step of a call on the run's one axis, which never jumps back when validation or testing begins.

        Lightning counts the batches of every validation from 0, and gives step 0 to what a fresh Trainer validates or
        tests. Steps that the user chose are left as they are.

        Args:
            step: As it was given.
            where: What :meth:`now` said.

        Returns:
            The step to record.
        """
        level, phase, _, batch_idx = where
        if phase == _TRAIN or phase is None or type(step) is not int:
            # More steps than batches have begun are a step of the user's own making.
            if phase == _TRAIN and type(step) is int and step <= getattr(self._total, "ready", 0):
                self._axis.trained(step)
            return step
        if self._hook() is not None:  # logged from a hook, with a step of the user's
            return step
        try:
            trainer: Any = self._trainer()
            trained = trainer.fit_loop.epoch_loop._batches_that_stepped
            if level == _BATCH:
                # Lightning's count begins anew with every data loader, the loop's goes on.
                return self._axis.evaluated(phase, trained, step if batch_idx is None else batch_idx)
            if step == trained:  # its own choice
                return self._axis.at_least(max(step, trainer.global_step if not trained else 0))
        except Exception:  # noqa: BLE001 - as above
            return step
        return step


class StepAxis:
    """Steps that go forward only, over all phases of a run.

    Examples:
        >>> axis = StepAxis()
        >>> axis.trained(100)
        >>> [axis.evaluated("validate", 100, batch) for batch in range(3)]
        [100, 101, 102]
        >>> axis.trained(101)
        >>> [axis.evaluated("validate", 101, batch) for batch in range(3)]  # behind the first validation
        [103, 104, 105]
        >>> axis.at_least(0)  # a fresh Trainer tests
        101
    """

    def __init__(self) -> None:
        self.samples: int | None = None
        """Samples trained on, as far as the last Trainer knew."""
        self._trained = 0
        self._phases: dict[str, tuple[int, int, int]] = {}  # phase -> start, last batch, next free step

    def trained(self, step: int) -> None:
        """A step of the training was logged."""
        if step > self._trained:  # noqa: PLR1730 - at every log call: max() takes as long as all the rest
            self._trained = step

    def at_least(self, step: int) -> int:
        """A step that does not lie before the training's last; the training is taken to have come that far."""
        self._trained = max(step, self._trained)
        return self._trained

    def evaluated(self, phase: str, trained: int, batch_idx: int) -> int:
        """The step of a batch of a validation or test: it goes on from the training's step, and never back.

        Args:
            phase: The phase.
            trained: Steps trained so far.
            batch_idx: The batch, from 0.
        """
        start, last, free = self._phases.get(phase, (-1, -1, 0))
        if start < 0 or batch_idx < last:  # another round of it
            start = max(self.at_least(trained), free)
        step = start + batch_idx
        self._phases[phase] = start, batch_idx, max(free, step + 1)
        return step


def _sizes(loader: Any) -> tuple[int, int | None]:
    """Batch size of a data loader, and samples an epoch on this rank where that is known."""
    sampler = getattr(loader, "batch_sampler", None)
    batch_size = getattr(sampler, "batch_size", None) or loader.batch_size
    length: int | None
    try:
        length = len(getattr(sampler, "sampler", None) or loader.sampler)
    except TypeError:  # an iterable dataset has no length
        length = None
    if not isinstance(batch_size, int):
        raise TypeError(f"no batch size: {batch_size!r}")
    return batch_size, length
