"""TrainingLog: what a ``Trainer`` does for its loggers, for any other loop."""

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_loggers.base import LoggerCollection
from lightning_loggers.config import LoggerConfig
from lightning_loggers.errors import ConfigurationError, NonFiniteError
from lightning_loggers.formatting import format_name
from lightning_loggers.policies import LogLevel, nearest
from lightning_loggers.records import Kind
from lightning_loggers.training import destinations as sending
from lightning_loggers.training.accumulate import Accumulator, on_host
from lightning_loggers.training.command_line import LOGGER, RankFile
from lightning_loggers.training.namespaces import DataCalls, Namespace, active
from lightning_loggers.training.phases import DEFAULT_MODE, LoopProgress, mode_of
from lightning_loggers.values.metrics import as_number

PostprocessFn = Callable[[dict[str, Any]], dict[str, Any]]


class TrainingLog(DataCalls):
    """Logs a training loop to any number of loggers.

    Args:
        destinations: The loggers, one or several, ours or Lightning's; or a
            :class:`~lightning_loggers.config.LoggerConfig`, whose loggers are built.
        metric_postprocess_fn: Called with the numbers of a step or epoch before they are logged; returns what is logged
            instead, for example with a perplexity added.
        config: Everything below, if not given by ``destinations``.
        log_every_n_steps: Steps that are added up on the device and logged as one.
        run_name: The run's name in format strings; by default the version of the first destination.
        log_path: Folder of the command-line log.
        cmd_logging_name: Name of the command-line log without ``.log``; by default none is written.
        clock: Seconds, for times and durations.

    Guarantees:
        - A fault of one destination reaches neither the loop nor the others; it is counted in :attr:`failures`.
        - :meth:`log_step` waits for no device, but at every ``log_every_n_steps``-th call, and then once per device.
        - Steps that were added up are logged at the end of their epoch and at :meth:`finalize` at the latest.

    Raises:
        ConfigurationError: For arguments that cannot work.

    Examples:
        >>> from lightning_loggers import InMemoryLogger
        >>> memory = InMemoryLogger()
        >>> log = TrainingLog(memory, log_every_n_steps=2)
        >>> log.start_epoch(epoch=0, step=0)
        >>> for step in range(1, 5):
        ...     _ = log.log_step({"loss": 1 / step}, step)
        >>> log.start_epoch(epoch=0, step=4, mode="val")  # inside of the training epoch
        >>> _ = log.end_epoch({"loss": 0.5}, step=4)
        >>> log.mode
        'train'
        >>> _ = log.end_epoch({}, step=4)
        >>> log.finalize("success")
        >>> memory.timeseries("train/loss")["value"].round(3), memory.most_recent("val/loss")
        (array([0.75 , 0.292]), 0.5)
    """

    def __init__(
        self,
        destinations: Any = None,
        metric_postprocess_fn: PostprocessFn | None = None,
        *,
        config: LoggerConfig | None = None,
        log_every_n_steps: int | None = None,
        run_name: str | None = None,
        log_path: str | os.PathLike[str] | None = None,
        cmd_logging_name: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(destinations, LoggerConfig):
            config, destinations = destinations, None
        if config is None:
            config = LoggerConfig(cmd_logging_name=None)
        elif destinations is None:
            destinations = config.create()
        self.config = config
        self.metric_postprocess_fn = metric_postprocess_fn
        self.log_every_n_steps = config.log_every_n_steps if log_every_n_steps is None else log_every_n_steps
        if not isinstance(self.log_every_n_steps, int) or self.log_every_n_steps < 1:
            raise ConfigurationError(
                f"log_every_n_steps={self.log_every_n_steps!r} must be a number of steps, 1 or more."
            )
        self._collection = LoggerCollection(_listed(destinations))
        chosen = log_path if log_path is not None else config.log_path
        self.log_path = None if chosen is None else Path(chosen)
        self.step = 0
        self.last_step = 0
        self.last_step_time: float | None = None
        """Seconds a step took, as last logged."""
        self.found_nans = False
        """Whether any metric was NaN or infinite."""
        self._run_name = run_name if run_name is not None else config.run_name
        self._progress = LoopProgress(clock)
        self._sums: list[Accumulator] = [Accumulator()]  # of the whole loop, then of each epoch that has begun
        self._artifacts: dict[str, int] = {}
        name = cmd_logging_name if cmd_logging_name is not None else config.cmd_logging_name
        self._file = None if name is None or self.log_path is None else RankFile(self.log_path, name)
        if self._file is not None:
            self._file.start()
        self._collection._fan_out("follow", self._progress)

    # ------------------------------------------------------------------ what it is and where it is

    @property
    def destinations(self) -> Sequence[Any]:
        """The loggers."""
        return tuple(self._collection._loggers)

    @property
    def failures(self) -> Mapping[Any, int]:
        """How often each destination failed: see :attr:`~lightning_loggers.LoggerCollection.failures`."""
        return self._collection.failures

    @property
    def mode(self) -> str:
        """``"default"``, ``"train"``, ``"val"`` or ``"test"``: that of the innermost epoch."""
        return self._progress.mode

    @property
    def mode_stack(self) -> list[str]:
        """The modes of all epochs that have begun and not ended, the innermost last."""
        return [epoch.mode for epoch in self._progress.stack]

    @property
    def epoch_start_time_stack(self) -> list[float]:
        """When these epochs began, by the clock."""
        return [epoch.began_s for epoch in self._progress.stack]

    @property
    def epoch(self) -> int:
        """The innermost epoch, or the last one that was trained."""
        return self._progress.stack[-1].epoch if self._progress.stack else self._progress.epoch

    @property
    def run_name(self) -> str:
        """The run's name in format strings."""
        if self._run_name is None:
            version = None
            for destination in self.destinations:
                version = version if version is not None else getattr(destination, "version", None)
            self._run_name = "run" if version is None else str(version)
        return self._run_name

    # ------------------------------------------------------------------ the loop

    def on_training_start(self) -> None:
        """The training begins: the clock of the first step starts."""
        self._progress.current.since_s = self._progress.clock()
        LOGGER.info("training starts (run %s)", self.run_name)

    def log_config(self, config: Any) -> None:
        """Log hyperparameters to all destinations.

        Args:
            config: A mapping, dataclass or ``Namespace``, an object with ``to_dict``; or a mapping of several of these.
        """
        if isinstance(config, Mapping):
            params: Any = {name: _as_params(value) for name, value in config.items()}
        else:
            params = _as_params(config)
        self._collection._fan_out("log_hyperparams", params)

    def start_epoch(self, epoch: int, step: int, mode: str = "train") -> None:
        """An epoch begins; inside of another one, that one goes on when this has ended.

        Args:
            epoch: Its number.
            step: The training's step.
            mode: ``"train"``, ``"val"`` or ``"test"``.

        Raises:
            ConfigurationError: For another mode.
        """
        self._progress.start(mode_of(mode), epoch)
        self._sums.append(Accumulator())
        self.step = step

    def log_step(self, metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Add up the metrics of a step on their device; log their means every ``log_every_n_steps`` steps.

        In validation and test the means over the whole epoch are logged at its end.

        Args:
            metrics: Metrics by name, as for :class:`~lightning_loggers.training.accumulate.Accumulator`: numbers,
                tensors, pairs of sum and count, torchmetrics-like objects.
            step: The training's step.

        Returns:
            The metrics with sums and counts set to zero, for a loop that adds up into them itself.

        Raises:
            TypeError: If a metric is none of these.
            NonFiniteError: If a destination's policy asks for it.
        """
        self.step = step
        self._progress.count_batch()
        sums = self._sums[-1]
        returned = sums.add(metrics)
        now = self._progress.current
        if now.mode in {"train", DEFAULT_MODE} and now.steps >= self.log_every_n_steps:
            self._log_steps()
        return returned

    def _log_steps(self) -> None:
        """Log what was added up since the last time."""
        sums = self._sums[-1]
        if not len(sums):
            return
        host: dict[str, Any] = sums.take()
        seconds = self._progress.step_time_s()
        if seconds is not None:
            self.last_step_time = seconds
        self.last_step = self.step
        self._log_numbers(
            host, self.step, self.mode, LogLevel.BATCH, {} if seconds is None else {"step_time_s": seconds}
        )

    def log_host_metrics(self, host_metrics: Mapping[str, Any], step: int, mode: str | None = None) -> None:
        """Log numbers that are on the host already, at once.

        Args:
            host_metrics: Numbers by name.
            step: The training's step.
            mode: Put before the names, with ``/``; by default the current mode.

        Raises:
            NonFiniteError: If a destination's policy asks for it.
        """
        mode = self.mode if mode is None else mode
        self._log_numbers(dict(host_metrics), step, mode, LogLevel.BATCH, {}, postprocess=False)

    def end_epoch(self, metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
        """The innermost epoch ends: log its metrics and how long it took.

        Those of a training epoch are named ``train_epoch/...``, since ``train/...`` are those of its steps.

        Args:
            metrics: Metrics of the epoch, as for :meth:`log_step`; they are not reset.
            step: The training's step.

        Returns:
            The metrics, and what was logged with them, as numbers.

        Raises:
            ConfigurationError: If no epoch has begun.
            NonFiniteError: If a destination's policy asks for it.
        """
        if not self._progress.stack:
            raise ConfigurationError("end_epoch: no epoch has begun. Call start_epoch(epoch, step, mode) first.")
        given = Accumulator()
        given.add(metrics)
        self.step = step
        mode = self.mode
        asked: NonFiniteError | None = None
        host: dict[str, Any] = {}
        try:
            if mode == "train":
                self._log_steps()
            else:
                host = self._sums[-1].take()
        except NonFiniteError as error:  # the epoch ends all the same
            asked = error
        host |= given.take(reset=False)
        took_s = self._progress.clock() - self._progress.stack[-1].began_s
        try:
            logged = self._log_numbers(
                host, step, "train_epoch" if mode == "train" else mode, LogLevel.EPOCH, {"epoch_time_s": took_s}
            )
        finally:
            self._sums.pop()
            epoch = self._progress.stack[-1].epoch
            self._progress.end()
        LOGGER.info("%s epoch %d ended at step %d after %.1f s", mode, epoch, step, took_s)
        if asked is not None:
            raise asked
        return {**metrics, **logged}

    def finalize(self, status: str = "success") -> None:
        """End the run: log what was added up, finalize all destinations, close the command-line log.

        Args:
            status: How it went: ``"success"``, ``"failed"``, or another of Lightning's words.
        """
        for _ in range(len(self._sums)):  # epochs that have not ended, the innermost first
            with suppress(NonFiniteError):  # recorded; there is no step left to stop
                self._log_steps()
            if self._progress.stack:
                self._sums.pop()
                self._progress.end()
        self._collection.finalize(status)
        LOGGER.info("run %s ended: %s", self.run_name, status)
        if self._file is not None:
            self._file.stop()

    def _log_numbers(
        self,
        host: dict[str, Any],
        step: int,
        mode: str,
        level: LogLevel,
        times: Mapping[str, float],
        *,
        postprocess: bool = True,
    ) -> dict[str, Any]:
        if postprocess and self.metric_postprocess_fn is not None and host:
            try:
                host = self.metric_postprocess_fn(host)
            except Exception as error:  # noqa: BLE001 - the user's own function must not stop training
                self._collection._notices.tell_once(
                    ("postprocess", type(error)),
                    f"metric_postprocess_fn failed ({error!r}): the metrics are logged as they were. Training goes on.",
                )
        self._check_for_nans(host, step)
        logged = {**host, **times}
        if logged:
            keys = sending.named(logged, () if mode == DEFAULT_MODE else (mode,), self._path())
            with self._progress.at(int(level)):
                self._collection.log_metrics(keys, step)
        return logged

    def _check_for_nans(self, host: Mapping[str, Any], step: int) -> None:
        for key, value in host.items():
            number = as_number(value)
            if number is not None and not math.isfinite(number):
                self.found_nans = True
                self._collection._notices.tell_once(
                    ("nonfinite", key), f"Metric {key!r} was {number} at step {step}; more of the same is not told."
                )

    # ------------------------------------------------------------------ values of any kind

    @override
    def namespace(self, name: str) -> Namespace:
        """A namespace: a context in which keys are ``<name>/<key>``, and an object for a component to log to.

        Args:
            name: Its name; may have several parts, joined by ``/``.
        """
        return Namespace(self, (*self._path(), name))

    @override
    def _route(self, level: Any, data: Mapping[str, Any], kind: Any, step: Any, *, with_mode: bool) -> None:
        level, kind = _level(level), None if kind is None else _kind(kind)
        step = self.step if step is None else step
        mode = (self.mode,) if with_mode and self.mode != DEFAULT_MODE else ()
        with self._progress.at(int(level)):
            wanting = [
                index for index, destination in enumerate(self.destinations) if sending.wants(destination, level, step)
            ]
            if not wanting:
                return
            values = sending.called(sending.named(data, mode, self._path()), self._collection._notices)
            numbers, others = sending.sorted_by_kind(values, kind)
            numbers = dict(zip(numbers, on_host(list(numbers.values())), strict=True))
            self._collection._each(lambda index: self._send(index, numbers, others, step) if index in wanting else None)

    def _send(self, index: int, numbers: dict[str, Any], others: list[tuple[Kind, str, Any]], step: Any) -> None:
        asked: NonFiniteError | None = None
        if numbers:
            try:
                self._collection._call(index, "log_metrics", dict(numbers), step)
            except NonFiniteError as error:
                asked = error
        for kind, key, value in others:
            try:
                sending.send(self.destinations[index], kind, key, value, step=step, notices=self._collection._notices)
            except Exception as error:  # noqa: BLE001 - isolation of the destinations from training and each other
                self._collection._failed(index, f"log {kind}", error)
        if asked is not None:
            raise asked

    def file_artifact(
        self,
        log_level: str | int | LogLevel,
        artifact_name: str,
        file_path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
    ) -> str:
        """Log a file or folder under a name.

        Args:
            log_level: As for :meth:`data`.
            artifact_name: Format string for its name, with ``/`` between folders; fields are
                :data:`~lightning_loggers.formatting.NAME_FIELDS`.
            file_path: Format string for the file's path.
            overwrite: Whether the file may replace one that was logged under the name. If not, it is logged under the
                name with a number added, and this is told: nothing that was logged is lost.

        Returns:
            The name it has.

        Raises:
            ConfigurationError: For an unknown level or field; the message lists the known ones.
        """
        level = _level(log_level)
        name = self.format_name(artifact_name).strip("/")
        source = Path(self.format_name(os.fspath(file_path)))
        taken = self._artifacts.get(name, 0)
        self._artifacts[name] = taken + 1
        if taken and not overwrite:
            wanted, name = name, sending.numbered(name, taken + 1)
            self._collection._notices.tell_once(
                ("artifact", wanted),
                f"An artifact {wanted!r} was logged before: {source} is logged as {name!r}. Use overwrite=True to "
                "replace it, or a field such as {epoch} in the name.",
            )
        with self._progress.at(int(level)), sending.under_name(source, name) as (path, folder):
            for index, destination in enumerate(self.destinations):
                if sending.wants(destination, level, self.step):
                    try:
                        sending.send_file(destination, path, folder, self._collection._notices)
                    except Exception as error:  # noqa: BLE001 - isolation, as above
                        self._collection._failed(index, "log_artifact", error)
        return name

    def format_name(self, template: str) -> str:
        """Fill in a format string by where the run is now.

        Args:
            template: With fields of :data:`~lightning_loggers.formatting.NAME_FIELDS`.

        Raises:
            ConfigurationError: For an unknown field; the message lists the known ones.
        """
        progress = self._progress
        return format_name(
            template,
            run_name=self.run_name,
            epoch=self.epoch,
            batch=progress.batches,
            batch_in_epoch=progress.current.batches,
            step=self.step,
            mode=self.mode,
        )

    # ------------------------------------------------------------------ inside

    def _path(self) -> tuple[str, ...]:
        return active.get().get(id(self), ())


def _listed(destinations: Any) -> list[Any]:
    if destinations is None:
        return []
    if isinstance(destinations, LoggerCollection):
        return list(destinations._loggers)
    if isinstance(destinations, Sequence) and not isinstance(destinations, str):
        return list(destinations)
    return [destinations]


def _as_params(config: Any) -> Any:
    to_dict = getattr(config, "to_dict", None)
    return to_dict() if callable(to_dict) and not isinstance(config, type) else config


def _level(level: Any) -> LogLevel:
    try:
        return LogLevel(level)
    except ValueError:
        raise ConfigurationError(f"log_level={level!r}: {nearest(str(level), list(LogLevel.__members__))}") from None


def _kind(kind: Any) -> Kind:
    try:
        return Kind(kind)
    except ValueError:
        known = [known.value for known in Kind if known is not Kind.STATUS]
        raise ConfigurationError(f"kind={kind!r}: {nearest(str(kind), known)}") from None
