"""Weights & Biases: a run at the service, or the SDK's own ``wandb/offline-run-*`` folders that ``wandb sync`` takes.

Every record that has a place in W&B's history is one row of it. The SDK acknowledges nothing, so the service is asked
how many rows it holds (offline: the SDK's file is read), and a batch counts as delivered once its last row is there.
The same number says after a crash which rows had arrived: they are not sent again. Where somebody else logs rows to the
same run (``logger.experiment.log``), rows can no longer be told apart by number, and what was under way when a host
died may be shown twice.
"""

import atexit
import contextlib
import importlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import override

from lightning_loggers.adapters.base import UNWATCHED_S, Adapter, Capabilities, Context, Fault
from lightning_loggers.adapters.standard_files import STANDARD_FILES
from lightning_loggers.adapters.wandb_begin import begin
from lightning_loggers.adapters.wandb_file import MARK
from lightning_loggers.adapters.wandb_records import AXIS, has_files, has_row
from lightning_loggers.adapters.wandb_sdk import (
    UnreachableError,
    fault_of,
    forget_dead_service,
    release,
    run_has_ended,
    service_has_died,
    service_is_lost,
    stop_status_checker,
)
from lightning_loggers.adapters.wandb_session import Session, StalledError, lend
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.journal.layout import journal_dir
from lightning_loggers.records import Kind, Record, RunStatus
from lightning_loggers.secrets import strip_uri

MODES = ("online", "offline", "disabled")
PROJECT_FORBIDS = "/\\#?%:"
RUN_ID_FORBIDS = ":;,#?/'"

_RESERVED = frozenset({"_step", "_runtime", "_timestamp", "_wandb", "wandb_version", MARK, AXIS})
_EXIT_CODES = {
    RunStatus.FINISHED: 0,
    RunStatus.FAILED: 1,
    RunStatus.INTERRUPTED: 255,  # the SDK's own code for Ctrl+C
    RunStatus.PREEMPTED: 1,  # of a run that was marked as preempting: W&B shows "preempted"
}
_LOG_ROWS_THEMSELVES = ("sync_tensorboard", "tensorboard", "monitor_gym")
_SHARED = "wandb.shared"
_ARTIFACTS = (Kind.MODEL, Kind.BEST_MODEL, Kind.DATASET, Kind.TORCH, Kind.GRAPH, Kind.CONFIG)

_IMPORTED_LATE = (
    "wandb.sdk.launch.inputs.internal",
    "requests",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
    "opentelemetry.exporter.otlp.proto.http._log_exporter",
)
"""What ``wandb.init()`` and a run's first row would import: it takes half as long again as the SDK itself."""

_live: dict[Path, Any] = {}
_given: dict[str, Any] = {}
before_sdk_exits: list[Callable[[], object]] = []
"""Called when the interpreter exits, before the SDK shuts its service down: exit hooks run last in, first out."""


def live_run(run_dir: Path) -> Any:
    """The SDK's run through which this process delivers the run in ``run_dir``, or ``None``."""
    return _live.get(run_dir)


def only_live_run() -> Any:
    """The SDK's run, if this process delivers through exactly one, or ``None``."""
    runs = list(_live.values())
    return runs[0] if len(runs) == 1 else None


def use_run(run: Any) -> None:
    """Deliver the run with the id of ``run`` through this object, which stays its owner's to finish."""
    _given[str(run.id)] = run


def lender() -> dict[str, Any]:
    """This process, for the option ``lender`` of a run that is delivered through its object."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def share_run(run_dir: Path) -> None:
    """Note that somebody else may log rows to a run: for the session that lives, and for one after a crash.

    For the latter it is a file of its own: the user's thread, which is about to log, may not write what delivery keeps.

    Raises:
        OSError: If it cannot be written.
    """
    lend(run_dir)
    (journal_dir(run_dir) / _SHARED).touch()


class WandbAdapter(Adapter):
    """Delivers to Weights & Biases through the SDK.

    Options: ``project``, ``entity``, ``id``, ``name``, ``notes``, ``tags``, ``group``, ``job_type``, ``config``,
    ``mode`` (one of :data:`MODES`), ``base_url``, ``resume``, ``init`` (further arguments of ``wandb.init``),
    ``settings`` (fields of ``wandb.Settings``), ``checkpoint_name``, ``add_file_policy``, ``lender`` (see
    :func:`lender`).

    Guarantees:
        - A batch is delivered once W&B reports its last row (offline: once the row is in the SDK's file).
        - Rows that W&B has are not sent again, also by another host, as long as nobody else logs rows to the run.
        - Rows carry the time of their log call, whenever they are delivered.
        - ``os.environ`` and ``wandb.run`` are left alone (the SDK itself notes its service in ``WANDB_SERVICE``); other
          runs of the process go on beside this one.
        - No wait has no end: 8 s for an answer, 20 s for the start of a run, 10 s for its end, 25 s for rows to
          arrive at a service that answers, 60 s for a file before it is asked for again.
    """

    name = "wandb"
    max_key_length = 250
    capabilities: ClassVar[Capabilities] = Capabilities(
        kinds={
            **STANDARD_FILES,
            **{kind: f"artifact of type {kind}, with {STANDARD_FILES[kind]}" for kind in _ARTIFACTS},
            Kind.METRIC: "history row, at its step and time",
            Kind.PARAM: "config, nested; over-long values whole in an artifact",
            Kind.TEXT: "history row; over-long texts whole in an artifact",
            Kind.DICT: "history row",
            Kind.TABLE: "Table",
            Kind.IMAGE: "Image",
            Kind.FIGURE: "Image; plotly: Plotly",
            Kind.AUDIO: "Audio (several at once without soundfile: artifact)",
            Kind.VIDEO: "Video",
            Kind.HISTOGRAM: "Histogram",
            Kind.POINT_CLOUD: "Object3D",
            Kind.WATCH: "Histograms of gradients and parameters",
            Kind.BEST_MODEL: f"artifact of type model, alias best, with {STANDARD_FILES[Kind.MODEL]}",
            Kind.ARTIFACT: "artifact",
            Kind.CHECKPOINT: "artifact of type model, with aliases and metadata",
        },
        keeps_time=True,
        second_handle=False,
        integer_steps=False,
    )

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._mode = str(context.options.get("mode") or "online")
        if self._mode == "offline":
            self.pause_s = UNWATCHED_S
        self._session: Session | None = None

    # ------------------------------------------------------------------ options

    @classmethod
    @override
    def check_options(cls, options: Mapping[str, Any]) -> None:
        project, run_id, mode = str(options.get("project") or ""), options.get("id"), options.get("mode") or "online"
        if mode not in MODES:
            raise ConfigurationError(f"mode={mode!r} is not one of {', '.join(map(repr, MODES))}.")
        if found := sorted(set(project) & set(PROJECT_FORBIDS)):
            raise ConfigurationError(
                f"project={project!r} holds {' '.join(found)}, which W&B refuses. Use - or _ instead."
            )
        if len(project) > 128:
            raise ConfigurationError(f"project={project[:40]!r}... has {len(project)} characters; W&B takes 128.")
        if run_id is not None:
            if found := sorted(set(str(run_id)) & set(RUN_ID_FORBIDS)):
                raise ConfigurationError(
                    f"id={run_id!r} holds {' '.join(found)}, which W&B refuses. Use - or _ instead."
                )
            if not str(run_id) or str(run_id) != str(run_id).strip() or len(str(run_id)) > 128:
                raise ConfigurationError(f"id={run_id!r} must be 1 to 128 characters without blanks around them.")
        for tag in options.get("tags") or []:
            if not 1 <= len(tag) <= 64:
                raise ConfigurationError(f"The tag {tag!r} has {len(tag)} characters; W&B takes 1 to 64.")

    @classmethod
    @override
    def destination(cls, options: Mapping[str, Any]) -> str:
        if options.get("mode") in {"offline", "disabled"}:
            return f"W&B {options['mode']}"
        place = "/".join(part for part in (options.get("entity"), options.get("project")) if part)
        url = strip_uri(str(options.get("base_url") or ""))
        return f"W&B {place} at {url}" if url else f"W&B {place}"

    @staticmethod
    @override
    def fit_key(key: str) -> str:
        """W&B takes nearly any name; a few are its own, and in a configuration it drops dashes at either end.

        >>> [WandbAdapter.fit_key(key) for key in ("val/loss@k=5 ü", "", "_step", "-x-")]
        ['val/loss@k=5 ü', '_', '_step_', '_x_']
        """
        if not key or key in _RESERVED:
            return f"{key}_"
        inner = key.strip("-")
        left = len(key) - len(key.lstrip("-"))
        return f"{'_' * left}{inner}{'_' * (len(key) - len(inner) - left)}"

    # ------------------------------------------------------------------ the run

    @classmethod
    @override
    def load(cls, options: Mapping[str, Any]) -> None:
        if options.get("mode") != "disabled":
            import wandb  # noqa: F401 - only to have it in memory

            for name in _IMPORTED_LATE:
                with contextlib.suppress(ImportError):
                    importlib.import_module(name)

    @override
    def open(self) -> None:
        if self._mode != "disabled":
            self._opened()
        elif self.context.remote.id is None:
            self.context.remote.id = str(self.context.options.get("id") or self.context.run.version)

    def _opened(self) -> Session:
        """The session that lives, or a new one."""
        session = self._session
        if session is not None and service_has_died():
            self._abandon()
        elif session is not None and session.run._is_finished:  # the user has ended it
            self._forget_session()
        if self._session is None:
            self._session = self._begin()
            _live[self.context.run_dir.absolute()] = self._session.run
            atexit.unregister(_run_exit_hooks)
            atexit.register(_run_exit_hooks)  # the SDK has its own hook by now: ours is to run before that one
            try:
                self._session.introduce()
            except Exception:
                self._abandon()
                raise
        return self._session

    def _begin(self) -> Session:
        remote, options = self.context.remote, self.context.options
        if remote.id is None:
            remote.id = str(options.get("id") or self.context.run.version)
            self.context.save_remote()
        given = _given.get(remote.id)
        if given is not None and not given._is_finished:
            return Session(self.context, given, None, ours=False, api=None, shared=True)
        _wait_for_lender(options.get("lender"), remote.id)
        init = options.get("init") or {}
        shared = (journal_dir(self.context.run_dir) / _SHARED).exists() or any(map(init.get, _LOG_ROWS_THEMSELVES))
        return begin(self.context, offline=self._mode == "offline", shared=shared)

    @override
    def set_status(self, status: RunStatus) -> None:
        if self._mode == "disabled":
            return
        session = self._opened()
        if status is RunStatus.RUNNING or not session.ours:
            return
        session.tell_names()
        if status is RunStatus.PREEMPTED:
            session.run.mark_preempting()
        self._finish(session, _EXIT_CODES[status])

    def _finish(self, session: Session, exit_code: int) -> None:
        try:
            session.finish(exit_code)
        except UnreachableError:
            raise  # the SDK has let go of the run all the same
        except Exception:
            self._abandon()
            raise
        finally:
            self._forget_session()

    def _abandon(self) -> None:
        """Let the SDK's service forget a session that went wrong, or forget the service if that is what is wrong."""
        session = self._session
        if forget_dead_service():
            if session is not None:
                stop_status_checker(session.run)  # its thread would ask the dead service for ever
        elif session is not None and session.ours:
            release(str(self.context.remote.id))
        self._forget_session()

    def _forget_session(self) -> None:
        self._session = None
        _live.pop(self.context.run_dir.absolute(), None)

    @override
    def close(self) -> None:
        session = self._session
        if session is not None and session.ours and not session.run._is_finished:
            session.run.mark_preempting()  # not over: another host goes on
            self._finish(session, _EXIT_CODES[RunStatus.PREEMPTED])
        self._forget_session()

    # ------------------------------------------------------------------ records

    @override
    def send(self, records: Sequence[Record]) -> None:
        if self._mode == "disabled":
            return
        session = self._opened()
        with session.artifacts.files.batch():
            self._send(session, records)

    def _send(self, session: Session, records: Sequence[Record]) -> None:
        rows = [record for record in records if has_row(record)]
        if params := [record for record in records if record.kind == Kind.PARAM and record.data]:
            session.send_params(params)
        for record in records:
            if record.kind in {Kind.ARTIFACT, Kind.CHECKPOINT} and record.blobs:
                session.artifacts.hand(record)
            elif record.kind in _ARTIFACTS and (record.blobs or record.value is not None):
                session.artifacts.hand_standard(record)
        session.hand_rows(rows)
        session.tell_names()
        try:
            session.artifacts.wait(records)
            if rows:
                session.wait_for_rows(len(rows))
            else:
                session.wait_for_file()
            if any(has_files(record) for record in rows):
                session.wait_for_uploads()
        except StalledError:
            with contextlib.suppress(Exception):
                self.close()
            self._forget_session()
            raise
        session.artifacts.forget(records)
        if rows:
            session.acknowledge_rows(len(rows))

    # ------------------------------------------------------------------ faults

    @override
    def classify(self, error: Exception) -> Fault:
        if run_has_ended(error):
            self._forget_session()
        elif service_is_lost(error):
            self._abandon()
        return fault_of(error)


def _wait_for_lender(process: Mapping[str, Any] | None, run_id: str) -> None:
    """W&B takes one writer a run: while the process lives whose object a run is, it is not opened elsewhere."""
    if not process or process.get("host") != socket.gethostname() or process.get("pid") == os.getpid():
        return
    try:
        os.kill(int(process["pid"]), 0)
    except (OSError, ValueError, OverflowError):
        return
    raise UnreachableError(f"the run {run_id} belongs to the process {process['pid']}, and waits for its end")


def _run_exit_hooks() -> None:
    for hook in before_sdk_exits:
        with contextlib.suppress(Exception):
            hook()
