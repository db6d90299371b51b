"""WandbLogger: Lightning's constructor, our guarantees."""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from typing_extensions import override

from lightning_loggers.adapters import wandb as adapter
from lightning_loggers.aggregation import AggFunc
from lightning_loggers.base import rank_zero_experiment
from lightning_loggers.delivery import Delivery
from lightning_loggers.errors import ConfigurationError, TrackerUnavailableError
from lightning_loggers.loggers import ending, watching
from lightning_loggers.loggers.journaled import DEFAULT_FINALIZE_TIMEOUT_S
from lightning_loggers.loggers.proxy import NativeProxy
from lightning_loggers.loggers.wandb_media import WandbMedia
from lightning_loggers.loggers.wandb_options import (
    active_run,
    check_names,
    check_version,
    init_options,
    mode_of,
    without_secrets,
)
from lightning_loggers.policies import LogPolicy
from lightning_loggers.records import Kind, RunStatus, split_nonfinite
from lightning_loggers.values.params import contents, flatten
from lightning_loggers.values.plain import plain_json as plain

_STILL_TRUE = frozenset({"dir", "entity", "finish", "id", "name", "path", "project", "summary", "url"})
_LOG_NO_ROW = _STILL_TRUE | {
    "alert", "config", "define_metric", "disabled", "finish_artifact", "get_url", "group", "job_type", "link_artifact",
    "link_model", "log_artifact", "log_code", "log_model", "mark_preempting", "notes", "offline", "project_url",
    "resumed", "restore", "save", "settings", "start_time", "starting_step", "status", "step", "sweep_id", "sweep_url",
    "tags", "upsert_artifact", "use_artifact", "use_model",
}  # fmt: skip
_LONGEST_LIST_CHARS = 100_000


class _RunProxy(NativeProxy):
    """The SDK's run; a new session of it once it was finished and something is to be logged to it.

    Args:
        make: As of :class:`~lightning_loggers.loggers.proxy.NativeProxy`.
        kind: Likewise.
        label: Likewise.
        own: Attributes that are the logger's own.
        share: Called before an attribute is given out that may log rows.
    """

    __slots__ = ("_own", "_share")

    def __init__(
        self,
        make: Callable[[], Any],
        kind: Callable[[], type],
        label: str,
        *,
        own: Mapping[str, Any],
        share: Callable[[], None],
    ) -> None:
        super().__init__(make, kind, label)
        self._own = own
        self._share = share

    @override
    def __getattr__(self, name: str) -> Any:
        if name in self._own:
            return self._own[name]
        native = self._native
        if native is not None and native._is_finished and name not in _STILL_TRUE:
            self._native = None
        found = super().__getattr__(name)
        if name not in _LOG_NO_ROW:
            self._share()
        return found

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if name in NativeProxy.__slots__ or name in _RunProxy.__slots__:
            super().__setattr__(name, value)
        else:
            setattr(self._resolve(), name, value)  # run.name = ..., run.tags = ...


class WandbLogger(WandbMedia):
    """Logs to Weights & Biases through a journal on disk.

    The parameters up to ``add_file_policy`` are those of Lightning's ``WandbLogger``, in its order, with its defaults.
    The console is not captured, since W&B's SDK would do that in the training thread; ``settings={"console": "wrap"}``
    has it do so.

    Args:
        name: The run's display name; W&B makes one up without.
        save_dir: Where journals, and the SDK's own ``wandb`` folder, are kept.
        version: The run's id at W&B, and its folder; an existing one is continued. By default the environment variable
            ``WANDB_RUN_ID``, else a new id.
        offline: Write the SDK's ``wandb/offline-run-*`` folders, for ``wandb sync``. (``delivery="offline"`` keeps the
            journal only, for ``lightning-loggers sync``.)
        dir: Used where ``save_dir`` is ``None``.
        id: The same as ``version``.
        anonymous: Accepted for compatibility; W&B has no anonymous runs any more.
        project: The project; by default the environment variable ``WANDB_PROJECT``, else ``"lightning_logs"``.
        log_model: ``"all"``: every checkpoint, as it is written. ``True``: those that are left at the end (every one if
            ``save_top_k=-1``). ``False``: none.
        experiment: A run of the user's own, to log into; it stays the user's to finish. By default the one that
            ``wandb.init()`` has begun in this process, if there is one, as with Lightning's logger and in sweeps.
        prefix: Put before metric keys, followed by ``-``.
        checkpoint_name: Name of the checkpoints' artifact; by default ``model-<id>``.
        add_file_policy: ``"mutable"`` has the SDK copy a checkpoint before it is uploaded, ``"immutable"`` does not.
        delivery: ``"auto"``, ``"thread"``, ``"process"`` or ``"offline"``.
        finalize_timeout_s: Longest wait for delivery at the end of a run, seconds.
        deliver_leftovers: Whether earlier runs in ``save_dir`` whose process died are delivered in the background.
        agg_key_funcs: Functions by key for :meth:`agg_and_log_metrics`.
        agg_default_func: The function for other keys; by default the mean.
        policy: Which log calls are recorded; by default all.
        **kwargs: Arguments of ``wandb.init`` such as ``entity``, ``group``, ``tags``, ``config``, ``settings``.

    Raises:
        ConfigurationError: For arguments that cannot work.
        MissingDependencyError: If wandb is not installed or too old (neither matters for ``delivery="offline"``).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = WandbLogger(project="digits", save_dir=folder, delivery="offline")
        ...     logger.log_metrics({"loss": 0.5}, step=0)
        ...     logger.finalize("success")
        ...     print(logger.stats)
        1 recorded, 0 delivered, 1 pending, 0 retried, 0 rejected, 0 dropped
    """

    tracker: ClassVar[str] = "wandb"
    _watches_in_groups: ClassVar[bool] = True
    """A row of W&B's history holds the histograms of all parameters, as the SDK's own ``watch`` has it."""

    def __init__(  # noqa: PLR0917 - Lightning's own signature
        self,
        name: str | None = None,
        save_dir: str | os.PathLike[str] | None = ".",
        version: str | None = None,
        offline: bool = False,
        dir: str | os.PathLike[str] | None = None,  # noqa: A002 - Lightning's name
        id: str | None = None,  # noqa: A002 - Lightning's name
        anonymous: bool | None = None,
        project: str | None = None,
        log_model: Literal["all"] | bool = False,
        experiment: Any = None,
        prefix: str = "",
        checkpoint_name: str | None = None,
        add_file_policy: Literal["mutable", "immutable"] = "mutable",
        *,
        delivery: Delivery = "auto",
        finalize_timeout_s: float = DEFAULT_FINALIZE_TIMEOUT_S,
        deliver_leftovers: bool = True,
        agg_key_funcs: Mapping[str, Any] | None = None,
        agg_default_func: AggFunc = np.mean,
        policy: LogPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        check_names(kwargs)
        run_id = version or id or os.environ.get("WANDB_RUN_ID") or None
        reused = experiment is None and delivery in {"auto", "thread"}
        if reused:
            experiment = active_run(run_id)
        mode = mode_of(offline, kwargs.get("mode"))
        lender = None
        if experiment is not None:
            mode = "disabled" if experiment.disabled else "offline" if experiment.offline else "online"
            run_id, project = str(experiment.id), experiment.project or project
            kwargs = {**kwargs, "entity": experiment.entity or None}
            lender = adapter.lender()
            if delivery == "process":
                raise ConfigurationError("experiment=... is an object of this process: use delivery='thread' with it.")
        if mode == "offline" and log_model:
            raise ConfigurationError(
                f"log_model={log_model!r} uploads checkpoints, and offline=True uploads nothing. Set log_model=False; "
                "or leave offline out and set delivery='offline', which keeps checkpoints too, for "
                "`lightning-loggers sync`."
            )
        if add_file_policy not in {"mutable", "immutable"}:
            raise ConfigurationError(f"add_file_policy={add_file_policy!r} is neither 'mutable' nor 'immutable'.")
        project = project or os.environ.get("WANDB_PROJECT") or "lightning_logs"
        folder = save_dir if save_dir is not None else dir if dir is not None else os.environ.get("WANDB_DIR") or "."
        options = {
            "project": project,
            "id": run_id,
            "name": name or os.environ.get("WANDB_NAME"),
            "mode": mode,
            "base_url": os.environ.get("WANDB_BASE_URL"),
            "checkpoint_name": checkpoint_name,
            "add_file_policy": add_file_policy,
            "lender": lender,
            **init_options(kwargs),
        }
        adapter.WandbAdapter.check_options(options)  # its messages say more than the base's of the same names
        super().__init__(
            name=project,
            save_dir=folder,
            options=options,
            version=run_id,
            prefix=prefix,
            log_model=log_model,
            delivery=delivery,
            finalize_timeout_s=finalize_timeout_s,
            deliver_leftovers=deliver_leftovers,
            agg_key_funcs=agg_key_funcs,
            agg_default_func=agg_default_func,
            policy=policy,
        )
        if delivery != "offline":
            check_version(type(self).__name__)
        if anonymous:
            self._notices.tell_once(
                "anonymous", "WandbLogger(anonymous=True) has no effect: W&B has no anonymous runs."
            )
        if kwargs.get("reinit") is not None:
            self._notices.tell_once(
                "reinit", "WandbLogger(reinit=...) has no effect: its run goes on beside any other run of the process."
            )
        if experiment is not None:
            adapter.use_run(experiment)
            if reused:
                self._notices.tell_once(
                    ("reused", run_id),
                    f"WandbLogger logs into the run {run_id}, which this process has begun with wandb.init(). For a "
                    "run of its own, call wandb.finish() before, or give it another id=...",
                )
        adapter.before_sdk_exits[:] = [_end_all]

    @override
    def save(self) -> None:
        """Log what is held back for its step. ``Trainer`` calls this after all it logs."""
        aggregator = self._aggregator
        if aggregator is not None and aggregator.held:  # mostly not: it is called after each log call of a Trainer
            super().save()
        if self._watched:
            watching.log_held(self)

    @override
    def _finish_encoding(self) -> None:
        watching.log_held(self)
        super()._finish_encoding()

    @override
    def _public_options(self) -> dict[str, Any]:
        options = super()._public_options()
        return {**options, "settings": without_secrets(options.get("settings") or {})}

    @override
    def _new_version(self) -> int | str:
        """The run's id at W&B, made locally: no two runs of a project may share one."""
        found = super()._new_version()
        continued = (self._experiment_dir / str(found)).is_dir()  # by a requeued job
        return found if continued else f"{found}{secrets.token_hex(2)}"

    # ------------------------------------------------------------------ the SDK's own object

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The SDK's run, resolved on first use; a dummy on other ranks.

        It is the very run that delivery logs to (W&B forbids two handles on one), so it exists with
        ``delivery="thread"`` only. After ``finalize`` it is finished; logging to it begins a new session of it.
        """
        _ = self.version  # told to the other ranks
        if self._proxy is None:
            self._proxy = _RunProxy(
                self._native,
                self._native_class,
                f"{type(self).__name__}.experiment",
                own={"unwatch": self.unwatch},
                share=lambda: adapter.share_run(self._run_dir),
            )
        return self._proxy

    @override
    def _native(self) -> Any:
        writer = self._start()
        if self._delivery != "thread" or writer is None or self._host is None:
            raise TrackerUnavailableError(
                f"With delivery={self._delivery!r} the W&B run is not in this process. Log by the logger's own "
                "methods, or use delivery='thread' for logger.experiment."
            )
        deadline = time.monotonic() + self._finalize_timeout_s
        run, asked = adapter.live_run(self._run_dir), False
        while (run is None or run._is_finished) and time.monotonic() < deadline:
            if not asked:
                self._record(Kind.STATUS, value=RunStatus.RUNNING.value)
                self._host.hasten(self._finalize_timeout_s)
                asked = True
            time.sleep(0.02)
            run = adapter.live_run(self._run_dir)
        if asked:
            self._host.relax()
        if run is None or run._is_finished:
            raise TrackerUnavailableError(
                f"{adapter.WandbAdapter.destination(self._options)} did not answer within "
                f"{self._finalize_timeout_s:g} s, so there is no run to use directly. What was logged by the logger's "
                f"own methods is in {self._run_dir}."
            )
        return run

    @override
    def _native_class(self) -> type:
        import wandb

        return wandb.Run  # type: ignore[no-any-return, unused-ignore]

    def use_artifact(self, artifact: str, artifact_type: str | None = None) -> Any:
        """Note at W&B that this run uses an artifact; asks W&B and waits for its answer.

        Args:
            artifact: Its path.
            artifact_type: Its type.

        Returns:
            The SDK's artifact.
        """
        return self.experiment.use_artifact(artifact, type=artifact_type)

    @staticmethod
    def download_artifact(
        artifact: str,
        save_dir: str | os.PathLike[str] | None = None,
        artifact_type: str | None = None,
        use_artifact: bool | None = True,
    ) -> str:
        """Download an artifact; asks W&B and waits for it.

        Args:
            artifact: Its path.
            save_dir: Where to; by default the SDK's ``artifacts`` folder.
            artifact_type: Its type.
            use_artifact: Whether the run of this process, if there is just one, is noted to use it.

        Returns:
            The folder it is in.
        """
        import wandb

        run = (wandb.run or adapter.only_live_run()) if use_artifact else None
        if run is not None:
            found = run.use_artifact(artifact, type=artifact_type)
        else:
            found = wandb.Api().artifact(artifact, type=artifact_type)
        return str(found.download(root=None if save_dir is None else os.fspath(save_dir)))

    # ------------------------------------------------------------------ hyperparameters

    @override
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Record hyperparameters; in W&B's config they are nested as they were, and lists are lists.

        Args:
            params: A mapping (OmegaConf's too), ``Namespace`` or dataclass.
            args: Ignored.
            kwargs: Ignored.
        """
        try:
            if self._refuses(Kind.PARAM, None):
                return
            flat = flatten(params)
            if flat:
                shape = {name: found for name, found in _shape_of(params).items() if found}
                self._record(Kind.PARAM, data=flat, nonfinite=split_nonfinite(flat), meta=shape or None)
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("log_hyperparams", error)


def _shape_of(params: Any) -> dict[str, Any]:
    """Which names of flattened hyperparameters were mappings (``nodes``), and which lists (``lists``: their items)."""
    nodes: list[str] = []
    lists: dict[str, Any] = {}

    def visit(prefix: str, value: Any, parents: tuple[int, ...]) -> None:
        inner = contents(value, any_object=not prefix)
        if inner is None or id(value) in parents:
            if (
                prefix
                and isinstance(value, list | tuple)
                and len(json.dumps(listed := plain(value))) < _LONGEST_LIST_CHARS
            ):
                lists[prefix[:-1]] = listed
            return
        if prefix:
            nodes.append(prefix[:-1])
        with contextlib.suppress(Exception):  # what cannot be read has no mappings inside
            for key in inner:
                with contextlib.suppress(Exception):
                    visit(f"{prefix}{key}/", inner[key], (*parents, id(value)))

    visit("", params, ())
    return {"nodes": nodes, "lists": lists}


def _end_all() -> None:
    """The interpreter exits, and the SDK's service is about to: end what was not ended, and deliver no more."""
    ending.end_all()
    for logger in list(ending.live):
        if isinstance(logger, WandbLogger) and logger._host is not None:
            logger._host.stop()
