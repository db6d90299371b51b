"""What all our loggers share: a log call becomes a record in the journal, a host delivers it.

A logger class on top of this names its adapter and turns its constructor's arguments into the adapter's options.
"""

import contextlib
import copy
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from lightning_loggers.adapters.base import unknown_option
from lightning_loggers.adapters.registry import adapter_class, require_sdk
from lightning_loggers.aggregation import AggFunc
from lightning_loggers.base import DummyExperiment, LightningLoggerBase, rank_zero_experiment
from lightning_loggers.delivery.hosts import Host
from lightning_loggers.delivery.moving import DELIVERY_MODES
from lightning_loggers.delivery.pending import pending_of
from lightning_loggers.delivery.relay import Relay
from lightning_loggers.delivery.state import TrackerState
from lightning_loggers.errors import ConfigurationError, NonFiniteError
from lightning_loggers.journal.layout import journal_dir
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.loggers import arriving, beginning, encoding, ending, environment, versions
from lightning_loggers.loggers.checkpoints import CheckpointScanner
from lightning_loggers.loggers.gate import Gate
from lightning_loggers.loggers.identity import RunIdentity, check_writable
from lightning_loggers.loggers.kinds import Kinds
from lightning_loggers.loggers.logging_context import LoggingContext
from lightning_loggers.loggers.proxy import NativeProxy
from lightning_loggers.loggers.stats import Stats
from lightning_loggers.loggers.trainer_context import Progress
from lightning_loggers.notices import Notices
from lightning_loggers.policies import LogLevel, LogPolicy
from lightning_loggers.ranks import stand_alone, world_size
from lightning_loggers.records import Blob, Kind, Place, Record, RunSpec, RunStatus, split_nonfinite
from lightning_loggers.secrets import has_secret, strip_uri
from lightning_loggers.values.metrics import normalise
from lightning_loggers.values.params import flatten

DEFAULT_FINALIZE_TIMEOUT_S = 30.0


class JournaledLogger(Kinds, LoggingContext, RunIdentity, LightningLoggerBase):
    """Base of the loggers that write a journal.

    Args:
        name: Experiment or project; a folder below ``save_dir``.
        save_dir: Where runs are kept.
        options: The adapter's options; URIs in them may carry secrets, which do not reach the journal.
        version: The run's folder below ``name``; an existing one is continued. By default a new one.
        prefix: Put before every metric key, with ``LOGGER_JOIN_CHAR`` between.
        log_model: Which checkpoints the tracker keeps: ``"all"`` as they are written, ``True`` at the end, or none.
        delivery: ``"auto"`` (a thread; where its tracker allows it, a process if the SDK is not imported here or the
            thread takes more than 2 % of the time), ``"thread"``, ``"process"`` (outlives a killed trainer) or
            ``"offline"`` (journal only).
        finalize_timeout_s: Longest wait for delivery at the end of a run, seconds.
        deliver_leftovers: Whether runs of dead processes in ``save_dir`` are delivered in the background.
        agg_key_funcs: As in :class:`~lightning_loggers.base.LightningLoggerBase`.
        agg_default_func: Likewise.
        policy: Which log calls are recorded; by default all.

    Guarantees:
        - What a log call returned for is in the journal (see :class:`~lightning_loggers.journal.writer.JournalWriter`).
        - No log call waits for a tracker, imports an SDK or raises (but for :class:`NonFiniteError`, where the policy
          asks for it); ``finalize`` waits ``finalize_timeout_s`` at most.
        - Constructing, pickling and copying a logger opens nothing.

    Raises:
        ConfigurationError: For arguments that cannot work.
        MissingDependencyError: If the tracker's SDK is not installed and this process is to deliver.
    """

    LOGGER_JOIN_CHAR: ClassVar[str] = "-"
    tracker: ClassVar[str]
    _media_defaults: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {}
    """Arguments of kinds unless the user gives others, such as ``{Kind.VIDEO: {"format": "gif"}}``."""

    def __init__(
        self,
        *,
        name: str,
        save_dir: str | os.PathLike[str],
        options: Mapping[str, Any],
        version: str | None = None,
        prefix: str = "",
        log_model: Any = False,
        delivery: str = "auto",
        finalize_timeout_s: float = DEFAULT_FINALIZE_TIMEOUT_S,
        deliver_leftovers: bool = True,
        agg_key_funcs: Mapping[str, Any] | None = None,
        agg_default_func: AggFunc = np.mean,
        policy: LogPolicy | None = None,
    ) -> None:
        super().__init__(agg_key_funcs, agg_default_func)
        if policy is not None and not isinstance(policy, LogPolicy):
            raise ConfigurationError(f"policy={policy!r} must be a LogPolicy, such as LogPolicy(log_freq=10), or None.")
        if delivery not in DELIVERY_MODES:
            raise unknown_option("delivery", delivery, DELIVERY_MODES)
        if log_model not in (True, False, "all"):
            raise unknown_option("log_model", log_model, ("all", True, False))  # type: ignore[arg-type]
        if not isinstance(finalize_timeout_s, int | float) or not finalize_timeout_s >= 0:
            raise ConfigurationError(f"finalize_timeout_s={finalize_timeout_s!r} must be seconds, 0 or more.")
        if version is not None and versions.folder_name(str(version)) != str(version):
            raise ConfigurationError(f"version={version!r} must be a plain folder name.")
        if delivery != "offline":
            require_sdk(self.tracker, type(self).__name__)
        adapter = adapter_class(self.tracker)
        adapter.check_options(options)
        check_writable(Path(save_dir))
        self._identify(name, save_dir, version)
        self._options = dict(options)
        self._prefix = f"{prefix}{self.LOGGER_JOIN_CHAR}" if prefix else ""
        self._log_model = log_model
        self._delivery = "thread" if delivery == "auto" and not adapter.may_move else delivery
        self._finalize_timeout_s = float(finalize_timeout_s)
        self._deliver_leftovers = deliver_leftovers
        self._trainer: Callable[[], Any] = _nothing
        self._checkpoint_callback: Any = None
        self._scanner = CheckpointScanner()
        self._policy = policy
        self._reset()

    def _reset(self) -> None:
        """The state of a logger that has not logged: what a pickled or copied one begins with."""
        self._starting = threading.RLock()  # reentrant: a signal handler may log while its own thread begins the run
        self._writer: JournalWriter | None = None
        self._open_writer: JournalWriter | None = None  # the same, from a first record to close()
        self._host: Host | None = None
        self._relay: Relay | None = None
        self._notices = Notices()
        self._append: Callable[..., None] = self._append_first
        self._proxy: NativeProxy | None = None
        self._place = None
        self._finalized_at = 0
        self._lost_inside = 0
        self._waits_for_restart = False
        self._watched = False  # whether there was ever a model to watch: cheaper to ask than for the models
        self._told_of_refusal = False
        # None as long as there is nothing to decide and nobody who knows where the training is: the short way.
        self._gate: Gate | None = None if self._policy is None else Gate(self, self._policy)

    # ------------------------------------------------------------------ the log path

    @override
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record metrics; returns when they are in the journal.

        Args:
            metrics: Key to number. NaN and infinities are kept; what is no number is kept as text and told once.
            step: Step; ``None`` is kept as none.

        Raises:
            NonFiniteError: If the policy says ``nonfinite="raise"`` and a value is; it was recorded before.
        """
        try:
            gate = self._gate
            if gate is not None:
                admit = gate.admit
                if admit is None:
                    gate.log_as_it_is(metrics, step)
                    return
                place = admit(step)
                if place is not None:
                    gate.record(metrics, step, place)
                return
            if self._prefix:
                metrics = {f"{self._prefix}{key}": value for key, value in metrics.items()}
            elif type(metrics) is not dict:
                metrics = dict(metrics)
            self._append(metrics, step)
        except NonFiniteError:
            raise
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("log_metrics", error)

    def _append_first(self, metrics: Mapping[str, Any], step: int | None, place: Place | None = None) -> None:
        """The first record of this process: begin the journal and its delivery, unless this is another rank."""
        writer = self._start()
        if writer is not None:
            writer.append_metrics(metrics, step, place)

    def _start(self) -> JournalWriter | None:
        """The writer, begun if need be; ``None`` on ranks that do not log."""
        if self._open_writer is not None:
            return self._open_writer
        rank = self.worker_rank
        if rank != 0 and (self._policy is None or not self._policy.logs_on(rank)):
            if not self._told_of_refusal:
                self._told_of_refusal = True
                beginning.tell_of_refusal(self)
            return None
        with self._starting:  # of several threads that log first, one begins
            if self._writer is None:
                self._place = self._run_dir
                self._writer = self._make_writer()
            if self._host is None:
                self._host = beginning.host_of(self)
                if rank == 0:
                    self._note_run()
            ending.live.add(self)
            self._host.start()
            self._relay = self._relay or beginning.relay_of(self, rank)
            if self._relay is not None:
                self._relay.start()
            self._append = self._writer.append_metrics
            self._open_writer = self._writer
            return self._writer

    def _make_writer(self) -> JournalWriter:
        run = RunSpec(
            uid=self._uid,
            name=self._name,
            version=self._version_folder,
            tracker=self.tracker,
            options=self._public_options(),
            ranks=None if self._policy is None else self._policy.rank_rules(world_size(), self._attempt),
        )
        return JournalWriter(
            journal_dir(self._run_dir),
            run,
            rank=self.worker_rank,
            environment=environment.describe,
            normalise_metrics=lambda metrics: normalise(metrics, self._notices.tell_once),
            defer_metrics=self._append_when_arrived,
            notices=self._notices,
        )

    def _append_when_arrived(self, metrics: Mapping[Any, Any], step: Any, time_ns: int, place: Place | None) -> bool:
        """Have metrics with values on a device recorded when those are there; returns whether there are any."""
        writer = self._writer
        if writer is None:
            return False
        if not arriving.defer(arriving.Call(self, writer, self._notices, metrics, step, time_ns, place)):
            return False
        self._append = self._append_in_turn
        return True

    def _append_in_turn(self, metrics: Mapping[str, Any], step: int | None, place: Place | None = None) -> None:
        """Append metrics while values of earlier calls are on their way from a device."""
        writer = self._writer
        assert writer is not None
        held_up = arriving.holds_up(self, metrics)
        if held_up is None:
            self._append = writer.append_metrics  # the short way again
        elif held_up and arriving.queue_up(
            arriving.Call(self, writer, self._notices, metrics, step, time.time_ns(), place)
        ):
            return
        writer.append_metrics(metrics, step, place)

    def _record(self, kind: Kind, **fields: Any) -> None:
        writer = self._start()
        if writer is not None:
            if self._gate is not None:
                fields = self._gate.placed(kind, fields)
            writer.append(Record(time.time_ns(), kind.value, **fields))

    def _refuses(self, kind: Kind, identifier: Any, step: Any = None, batch_idx: int | None = None) -> bool:
        """Whether the policy holds back something other than metrics; asked before its value is touched."""
        return self._gate is not None and self._gate.refuses(kind, identifier, step, batch_idx)

    def _count_lost(self, reason: str) -> None:
        if self._writer is None:
            self._lost_inside += 1
        else:
            self._writer.count_dropped(reason)

    def _keep_pickled_model(self, writer: JournalWriter, model: Any) -> list[Blob]:
        """Keep a whole model in the tracker's own form, where it has one; empty where it has none."""
        return []

    def _trace_graph(self, model: Any, input_array: Any) -> bool:
        """Record a model's graph as the tracker shows it; returns whether it has such a form."""
        return False

    def _swallow(self, call: str, error: Exception) -> None:
        self._lost_inside += 1
        self._notices.tell_once(
            ("swallowed", call, type(error)),
            f"{type(self).__name__}.{call} failed and training goes on without this record: {error!r}. This is a "
            "defect of lightning-loggers; please report it.",
        )

    # ------------------------------------------------------------------ other kinds

    @override
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Record hyperparameters.

        Args:
            params: A mapping (OmegaConf's too), ``Namespace`` or dataclass; nested names are joined by ``/``.
            args: Ignored.
            kwargs: Ignored.
        """
        try:
            if self._refuses(Kind.PARAM, None):
                return
            flat = flatten(params)
            if flat:
                self._record(Kind.PARAM, data=flat, nonfinite=split_nonfinite(flat))
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("log_hyperparams", error)

    @override
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Called by the Trainer at the start of fit, validate and test; learns which Trainer this is."""
        trainer = getattr(model, "_trainer", None)
        if trainer is not None:
            with contextlib.suppress(TypeError):
                self._trainer = weakref.ref(trainer)
                self._gate = self._gate or Gate(self, None)
                self._gate.follow_trainer(trainer)
            if getattr(trainer, "world_size", None) == 1:
                stand_alone()
            with contextlib.suppress(Exception):  # it is told when delivery meets it
                if self.worker_rank == 0:
                    (self._host or beginning.host_of(self)).prepare()

    @override
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Keep checkpoints as ``log_model`` says: now (``"all"``, or all are saved anyway) or at the end."""
        if self._relay is not None:
            self._relay.hasten()  # an epoch has ended, or enough of it to be kept
        if self.worker_rank != 0:
            return
        try:
            if self._log_model == "all" or (
                self._log_model is True and getattr(checkpoint_callback, "save_top_k", None) == -1
            ):
                self._keep_checkpoints(checkpoint_callback)
            elif self._log_model is True:
                self._checkpoint_callback = checkpoint_callback
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("after_save_checkpoint", error)

    def _keep_checkpoints(self, callback: Any) -> None:
        writer = self._start()
        if writer is None:
            return
        for found in self._scanner.scan(callback):
            if (blobs := found.keep(writer, self.tracker, self._notices)) is not None:
                meta = {"aliases": found.aliases, "metadata": found.metadata}
                self._record(Kind.CHECKPOINT, id=found.path.stem, blobs=blobs, meta=meta)

    # ------------------------------------------------------------------ what is recorded, and where the training is

    def should_log(self, batch_idx: int | None = None, *, level: LogLevel | str | int | None = None) -> bool:
        """Whether the policy would record a call in this process, time and earlier calls aside.

        Args:
            batch_idx: Index of the batch in its epoch; ``None`` for what belongs to no batch.
            level: The call's level, where known.
        """
        return self._gate is None or self._gate.should_log(batch_idx, level)

    def should_write(self, step: Any = None) -> bool:
        """Whether the policy would record a call made now; asking changes nothing.

        Args:
            step: The call's step.
        """
        return self._gate is None or self._gate.should_write(step)

    @property
    def found_nonfinite(self) -> bool:
        """Whether a recorded metric was NaN or infinite; known with a policy, in a Trainer or a ``TrainingLog``."""
        gate, writer = self._gate, self._writer
        return (gate is not None and gate.found_nonfinite) or (writer is not None and writer.found_nonfinite)

    def follow(self, progress: Progress | None) -> None:
        """Take phase, epoch and batch from a loop that is no Trainer; ``TrainingLog`` calls this.

        Args:
            progress: Who knows; ``None`` for nobody.
        """
        self._gate = self._gate or Gate(self, None)
        self._gate.follow(progress)

    def _log_all_that_is_held(self, call: Callable[[], None]) -> None:
        if self._gate is None:
            call()
        else:
            with self._gate.at_the_end():
                call()

    # ------------------------------------------------------------------ the end

    @override
    def finalize(self, status: str = "success") -> None:
        """End the run for now: note its status, and wait for delivery, at most ``finalize_timeout_s``.

        Media that are still being encoded are waited for before that: what is not in the journal cannot be delivered.

        Logging may go on afterwards (``fit``, then ``test``): it continues the same run.

        Args:
            status: Lightning's word: ``"success"``, ``"failed"`` or ``"finished"``, or a
                :class:`~lightning_loggers.records.RunStatus`.
        """
        try:
            self._log_all_that_is_held(functools.partial(super().finalize, status))
            self._finish_encoding()
            elsewhere = self._policy is not None and not self._policy.logs_on(0)
            if self._writer is None and elsewhere and self.worker_rank == 0:
                self._start()  # rank 0 delivers what the others log
            if self._writer is None and self._checkpoint_callback is None:
                return
            if self._checkpoint_callback is not None:
                callback, self._checkpoint_callback = self._checkpoint_callback, None
                with contextlib.suppress(ReferenceError):  # a weak proxy: callback and Trainer are gone
                    self._keep_checkpoints(callback)
            ending.end(self, ending.run_status(status))
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("finalize", error)

    def _finish_encoding(self) -> None:
        ending.finish_encoding(self)

    @override
    def close(self) -> None:
        """End the run if :meth:`finalize` has not, stop delivery and let go of the journal. Logging opens it again."""
        try:
            self._log_all_that_is_held(super().close)
            self._finish_encoding()
            writer, host = self._writer, self._host
            if writer is None:
                return
            if writer.recorded != self._finalized_at:
                ending.end(self, RunStatus.FINISHED)
            writer.close()
            if host is not None:
                host.stop()
            if self._relay is not None:
                self._relay.close()
            self._append, self._open_writer = self._append_first, None
            ending.live.discard(self)
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("close", error)

    # ------------------------------------------------------------------ what Lightning and people read

    @property
    def stats(self) -> Stats:
        """What became of this run's records so far."""
        state = self._host.state() if self._host is not None else None
        pending, _ = pending_of(self._run_dir, state) if self._writer is not None else (0, None)
        waiting = self._writer.pending_in_memory if self._writer is not None else 0
        dropped = dict(self._writer.dropped) if self._writer is not None else {}
        if self._lost_inside:
            dropped["internal fault"] = self._lost_inside
        if self._gate is not None:
            dropped |= self._gate.dropped
        return Stats.of(state, pending + waiting + encoding.pending(self) + arriving.pending(self), dropped)

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The SDK's own object, made when it is first used; a dummy on other ranks."""
        _ = self.version  # Lightning reads this before the barrier of its setup: the other ranks learn the name here
        if self._proxy is None:
            self._proxy = NativeProxy(self._native, self._native_class, f"{type(self).__name__}.experiment")
        return self._proxy

    def _native(self) -> Any:
        """Make the SDK's object for a user's own calls; runs on the first use of :attr:`experiment`."""
        return DummyExperiment()

    def _native_class(self) -> type:
        """The class of the SDK's object, for ``isinstance``; contacts nobody."""
        return DummyExperiment

    def wait_for_run(self, timeout_s: float | None = None) -> TrackerState:
        """Wait until the tracker knows the run.

        Args:
            timeout_s: Longest wait, seconds; by default ``finalize_timeout_s``.

        Returns:
            The tracker's state, its ``remote.id`` set.

        Raises:
            TrackerUnavailableError: If it did not answer in time, or delivery is offline.
        """
        return beginning.wait_for_run(self, self._finalize_timeout_s if timeout_s is None else timeout_s)

    # ------------------------------------------------------------------ inside

    def _public_options(self) -> dict[str, Any]:
        return {key: strip_uri(value) if isinstance(value, str) else value for key, value in self._options.items()}

    def _has_secret_options(self) -> bool:
        return any(has_secret(value) for value in self._options.values() if isinstance(value, str))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_version"] = self.version  # a copy logs to the same run
        for key in (
            "_starting",
            "_writer",
            "_open_writer",
            "_host",
            "_relay",
            "_gate",
            "_append",
            "_proxy",
            "_place",
            "_notices",
            "_trainer",
            "_checkpoint_callback",
        ):
            state.pop(key, None)
        state["_aggregator"] = copy.copy(self._aggregator)
        if state["_aggregator"] is not None:
            state["_aggregator"].held = []  # the original logs what it holds
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._trainer = _nothing
        self._checkpoint_callback = None
        self._reset()

    def _start_over_in_child(self) -> None:
        """After ``fork``: the next record opens a stream and a host of this process."""
        self._starting = threading.RLock()  # another thread of the parent may have held it
        self._append, self._open_writer = self._append_first, None
        self._finalized_at = 0
        if self._gate is not None:
            self._gate.start_over_in_child()


def _nothing() -> None:
    return None


def _start_over_in_child() -> None:
    for logger in list(ending.live):
        logger._start_over_in_child()
    ending.live.clear()


os.register_at_fork(after_in_child=_start_over_in_child)
