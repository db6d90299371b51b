"""NeptuneLogger: the constructor that Lightning's had until 2.5, our guarantees."""

import base64
import contextlib
import importlib
import json
import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from lightning_loggers.adapters import neptune as adapter
from lightning_loggers.adapters.neptune_sinks import data_directory, full_address, load_sdk, native_run, with_token
from lightning_loggers.aggregation import AggFunc
from lightning_loggers.base import rank_zero_experiment
from lightning_loggers.delivery import Delivery
from lightning_loggers.errors import ConfigurationError, MissingDependencyError
from lightning_loggers.loggers.journaled import DEFAULT_FINALIZE_TIMEOUT_S, JournaledLogger
from lightning_loggers.loggers.proxy import NativeProxy
from lightning_loggers.policies import LogPolicy
from lightning_loggers.ranks import current_rank
from lightning_loggers.records import Kind, split_nonfinite
from lightning_loggers.secrets import strip_uri
from lightning_loggers.values.metrics import as_number

MINIMUM_NEPTUNE = (1, 14)

_DELIVERED = frozenset({"custom_run_id", "description", "mode", "proxies", "tags", "with_id"})
_NATIVE_ONLY = frozenset(
    {
        "async_lag_callback", "async_lag_threshold", "async_no_progress_callback", "async_no_progress_threshold",
        "capture_hardware_metrics", "capture_stderr", "capture_stdout", "capture_traceback", "dependencies",
        "fail_on_exception", "flush_period", "git_ref", "monitoring_namespace", "source_files",
    }
)  # fmt: skip
_SDKS_OWN_FOLDERS = frozenset({"async", "offline", "sync"})


class NeptuneLogger(JournaledLogger):
    """Logs to Neptune through a journal on disk.

    The parameters up to ``prefix``, and ``**neptune_run_kwargs``, are those of the ``NeptuneLogger`` that Lightning had
    until 2.5. Neptune's hosted service ended on 2026-03-05, so ``mode="offline"`` or the API token of a server of one's
    own is needed.

    Args:
        api_key: API token of a server; by default the environment variable ``NEPTUNE_API_TOKEN``. It says the server's
            address.
        project: The project, ``"workspace/name"``; by default the environment variable ``NEPTUNE_PROJECT``.
        name: The run's name; by default its ``version``.
        run: A run of the SDK, or a namespace of one, to log into; it stays the user's to stop.
        log_model_checkpoints: Whether the checkpoints that are left at the end are kept at Neptune (each as it is
            written if ``save_top_k=-1``).
        prefix: Namespace of everything that is logged.
        save_dir: Where journals are kept; by default the environment variable ``NEPTUNE_DATA_DIRECTORY``, else
            ``.neptune``.
        version: The run's folder; an existing one is continued.
        delivery: ``"auto"``, ``"thread"``, ``"process"`` or ``"offline"`` (the journal only; ``mode="offline"`` has
            the SDK's own folder written).
        finalize_timeout_s: Longest wait for delivery at the end of a run, seconds.
        deliver_leftovers: Whether earlier runs in ``save_dir`` whose process died are delivered in the background.
        agg_key_funcs: Functions by key for :meth:`agg_and_log_metrics`.
        agg_default_func: The function for other keys; by default the mean.
        policy: Which log calls are recorded; by default all.
        **neptune_run_kwargs: Arguments of ``neptune.init_run``: ``mode``, ``tags``, ``description``, ``with_id`` ...
            Those for what the SDK records on its own (standard output, hardware, source code) take effect with
            :attr:`run`, when it is first used.

    Raises:
        ConfigurationError: For arguments that cannot work, such as those that lead to the hosted service.
        MissingDependencyError: If neptune is not installed or too old (neither matters for ``delivery="offline"``).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = NeptuneLogger(project="team/digits", mode="offline", save_dir=folder, delivery="offline")
        ...     logger.log_metrics({"loss": 0.5}, step=0)
        ...     logger.finalize("success")
        ...     print(logger.stats)
        1 recorded, 0 delivered, 1 pending, 0 retried, 0 rejected, 0 dropped
    """

    LOGGER_JOIN_CHAR: ClassVar[str] = "/"
    PARAMETERS_KEY: ClassVar[str] = "hyperparams"
    ARTIFACTS_KEY: ClassVar[str] = "artifacts"
    tracker: ClassVar[str] = "neptune"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        project: str | None = None,
        name: str | None = None,
        run: Any = None,
        log_model_checkpoints: bool | None = True,
        prefix: str = "training",
        save_dir: str | os.PathLike[str] | None = None,
        version: str | None = None,
        delivery: Delivery = "auto",
        finalize_timeout_s: float = DEFAULT_FINALIZE_TIMEOUT_S,
        deliver_leftovers: bool = True,
        agg_key_funcs: Mapping[str, Any] | None = None,
        agg_default_func: AggFunc = np.mean,
        policy: LogPolicy | None = None,
        **neptune_run_kwargs: Any,
    ) -> None:
        if unknown := sorted(neptune_run_kwargs.keys() - _DELIVERED - _NATIVE_ONLY):
            raise ConfigurationError(
                f"{', '.join(unknown)}: no argument of NeptuneLogger or neptune.init_run; known are "
                f"{', '.join(sorted(_DELIVERED | _NATIVE_ONLY))}."
            )
        if run is None:
            options = _options(api_key, project, name, neptune_run_kwargs)
        else:
            if any(argument is not None for argument in (api_key, project, name)) or neptune_run_kwargs:
                raise ConfigurationError(
                    "run=... is a run already: leave out api_key, project, name and what init_run takes."
                )
            options, namespace = _options_of(run)
            prefix = "/".join(part for part in (namespace, prefix) if part)
        folder = name or options["project"] or "lightning_logs"
        if folder in _SDKS_OWN_FOLDERS:
            raise ConfigurationError(f"name={folder!r} is the name of a folder of the SDK's own; choose another.")
        if delivery != "offline":
            _check_installed(type(self).__name__, load=delivery in {"auto", "thread"})
        if save_dir is None:
            save_dir = os.environ.get("NEPTUNE_DATA_DIRECTORY") or Path.cwd() / ".neptune"
        super().__init__(
            name=folder,
            save_dir=save_dir,
            options={**options, "prefix": prefix or ""},
            version=version or options.get("with_id"),
            prefix=prefix or "",
            log_model=bool(log_model_checkpoints),
            delivery=delivery,
            finalize_timeout_s=finalize_timeout_s,
            deliver_leftovers=deliver_leftovers,
            agg_key_funcs=agg_key_funcs,
            agg_default_func=agg_default_func,
            policy=policy,
        )
        self._given = run
        self._native_arguments = {key: neptune_run_kwargs[key] for key in neptune_run_kwargs.keys() & _NATIVE_ONLY}
        if self._native_arguments:
            self._notices.tell_once(
                "native arguments",
                f"NeptuneLogger({', '.join(f'{key}=...' for key in sorted(self._native_arguments))}) takes effect once "
                "logger.run is used: what the SDK records on its own needs its own object in this process.",
                level=20,
            )

    @override
    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_given"] = None  # of this process; a copy has a handle of its own on the same run
        return state

    @override
    def _public_options(self) -> dict[str, Any]:
        options = super()._public_options()
        if options.get("proxies"):
            options["proxies"] = {key: strip_uri(str(value)) for key, value in options["proxies"].items()}
        return options

    # ------------------------------------------------------------------ the SDK's own object

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The SDK's run, made on first use; a dummy on other ranks.

        It is a handle of its own on the run that delivery logs to. Offline it has its own folder beside delivery's;
        ``neptune sync`` makes one run of both.
        """
        _ = self.version  # told to the other ranks
        if self._given is not None:
            return self._given
        if self._proxy is None:
            self._proxy = NativeProxy(self._native, self._native_class, f"{type(self).__name__}.experiment")
        return self._proxy

    @property
    def run(self) -> Any:
        """The same as :attr:`experiment`."""
        return self.experiment

    @override
    def _native(self) -> Any:
        options = self._options
        base = adapter.data_base(options, self._run_dir)
        arguments = {
            "capture_stdout": False,
            "capture_stderr": False,
            "capture_hardware_metrics": False,
            "capture_traceback": False,
            "source_files": [],
            "git_ref": False,
            **self._native_arguments,
            "name": options["name"] or self.version,
        }
        mode, run_id = options["mode"], None
        if mode == "offline":
            run_id = options.get("run_id") or adapter.run_id_of(self._run_uid())
        elif mode != "debug":
            arguments |= {
                "with_id": self.wait_for_run().remote.extra["sys_id"],  # bounded; the SDK would try for a minute
                "project": options["project"],
                "proxies": options.get("proxies"),
                "api_token": adapter.token(options),
            }
        base.mkdir(parents=True, exist_ok=True)
        load_sdk()
        with data_directory(base):
            return native_run(run_id, mode=mode, **arguments)

    @override
    def _native_class(self) -> type:
        import neptune

        return neptune.Run  # type: ignore[no-any-return, unused-ignore]

    def _run_uid(self) -> str:
        from lightning_loggers.journal.layout import journal_dir
        from lightning_loggers.journal.reader import read_first_header

        self._start()  # the journal says which run this is
        header = read_first_header(journal_dir(self._run_dir))
        assert header is not None
        return header.run.uid

    @property
    def sys_id(self) -> str | None:
        """Neptune's short id of the run, such as ``"DIG-12"``; ``None`` offline and on ranks that do not log.

        Waits for the server to give it, at most ``finalize_timeout_s``.

        Raises:
            TrackerUnavailableError: If it did not answer in that time.
        """
        if current_rank() != 0 or self._options["mode"] in {"offline", "debug"}:
            return None
        return str(self.wait_for_run().remote.extra["sys_id"])

    # ------------------------------------------------------------------ what else is logged

    def log_model_summary(self, model: Any, max_depth: int = -1) -> None:
        """Record Lightning's summary of a model, as the file ``<prefix>/model/summary``.

        Args:
            model: A ``LightningModule``.
            max_depth: How deep modules are shown; -1 for all.
        """
        try:
            theirs = any(kind.__module__.startswith("pytorch_lightning") for kind in type(model).__mro__)
            package = "pytorch_lightning" if theirs else "lightning.pytorch"
            summary = importlib.import_module(f"{package}.utilities.model_summary").ModelSummary
            text = str(summary(model, max_depth=max_depth))
            self._record(Kind.TEXT, id="summary", value=text, meta={"file": "model/summary"})
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("log_model_summary", error)

    @override
    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Keep checkpoints as ``log_model_checkpoints`` says, and note which one is the best."""
        super().after_save_checkpoint(checkpoint_callback)
        try:
            path = getattr(checkpoint_callback, "best_model_path", "")
            if self._log_model and path:
                best: dict[str, Any] = {"best_model_path": os.fspath(path)}
                score = as_number(getattr(checkpoint_callback, "best_model_score", None))
                if score is not None:
                    best["best_model_score"] = float(score)
                self._record(Kind.PARAM, data=best, nonfinite=split_nonfinite(best), meta={"namespace": "model"})
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("after_save_checkpoint", error)

    @override
    def finalize(self, status: str = "success") -> None:
        """As in the base class; offline, says how the run gets to a server.

        Args:
            status: Lightning's word, or a :class:`~lightning_loggers.records.RunStatus`.
        """
        super().finalize(status)
        native = None if self._proxy is None else self._proxy._native
        for handle in (native, self._given):
            if handle is not None:
                with contextlib.suppress(Exception):  # what the user logged by hand; stopped by now, or a namespace
                    handle.wait(disk_only=True)
        if self._options["mode"] == "offline" and self._delivery != "offline" and self._writer is not None:
            base = adapter.data_base(self._options, self._run_dir)
            self._notices.tell_once(
                ("neptune sync", self.version),
                f"Neptune's offline data of this run are in {base}. Send them to a server of your own with: "
                f"neptune sync --offline-only --path {shlex.quote(str(base))} --project "
                f"{self._options['project'] or 'WORKSPACE/PROJECT'} (that command needs: pip install 'setuptools<81')",
                level=20,
            )


# ---------------------------------------------------------------------- arguments


def _options(api_key: str | None, project: str | None, name: str | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter's options; the environment's where none is given."""
    mode = str(kwargs.get("mode") or os.environ.get("NEPTUNE_MODE") or "async")
    tags = kwargs.get("tags")
    token = api_key or os.environ.get("NEPTUNE_API_TOKEN")
    base = os.environ.get("NEPTUNE_DATA_DIRECTORY")
    with_id = kwargs.get("with_id")
    return {
        "mode": mode,
        "project": project or os.environ.get("NEPTUNE_PROJECT"),
        "server": with_token(_address(token), token) if token and mode not in {"offline", "debug"} else None,
        "proxies": dict(kwargs["proxies"]) if kwargs.get("proxies") else None,
        "name": name,
        "description": kwargs.get("description"),
        "tags": [tags] if isinstance(tags, str) else [str(tag) for tag in tags or []],
        "with_id": with_id,
        "custom_run_id": kwargs.get("custom_run_id") or (None if with_id else os.environ.get("NEPTUNE_CUSTOM_RUN_ID")),
        "base": str(Path(base).absolute()) if base else None,
    }


def _options_of(run: Any) -> tuple[dict[str, Any], str]:
    """Options that lead to a run of the SDK, and the namespace if it is one.

    Raises:
        ConfigurationError: If it is neither.
    """
    neptune = sys.modules.get("neptune")
    handler = sys.modules.get("neptune.handler")
    namespace = ""
    if handler is not None and isinstance(run, handler.Handler):
        namespace, run = run._path, run.get_root_object()
    if neptune is None or not isinstance(run, neptune.Run):
        raise ConfigurationError(f"run={run!r} is neither a neptune.Run nor a namespace of one.")
    mode = str(run._mode.value)
    options = _options(None, None, None, {"mode": mode if mode in {"offline", "debug", "read-only"} else "debug"})
    if mode == "offline":
        folder = run._op_processor.data_path
        options |= {"run_id": str(run._id), "base": str(Path(folder).absolute().parents[1])}
    elif mode in {"async", "sync"}:
        credentials = run._backend.credentials
        options |= {
            "mode": mode,
            "server": with_token(_address(credentials.api_token), credentials.api_token),
            "project": f"{run._workspace}/{run._project_name}",
            "with_id": str(run._sys_id),
            "proxies": dict(run._backend.proxies) if run._backend.proxies else None,
        }
    return {**options, "custom_run_id": None}, namespace


def _address(token: str) -> str:
    """The address that an API token is for.

    Raises:
        ConfigurationError: If it is no token; it is not repeated.
    """
    if token == "ANONYMOUS":  # noqa: S105 - the SDK's own word for a token of the hosted service
        return "https://app.neptune.ai"
    with contextlib.suppress(ValueError, KeyError, TypeError):
        address = json.loads(base64.b64decode(token.strip().encode(), validate=False))["api_address"]
        if isinstance(address, str) and address:
            return full_address(address)
    raise ConfigurationError(
        "The API token (api_key=... or NEPTUNE_API_TOKEN) is none of Neptune's: those are base64 of JSON with an "
        "'api_address'. Copy it again from your server's user menu, or use mode='offline'."
    )


def _check_installed(user: str, *, load: bool) -> None:
    """Check that the SDK can be used; ``load`` it now, so that no thread does while the user's own code may."""
    found = adapter.installed_packages()
    if len(found) == 2:
        raise MissingDependencyError(f"`{user}` cannot be used: {adapter.both_installed()}")
    version = found.get("neptune", "")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < MINIMUM_NEPTUNE:
        needed = ".".join(map(str, MINIMUM_NEPTUNE))
        raise MissingDependencyError(
            f"`{user}` needs `neptune>={needed}` ({f'found {version}' if version else 'not installed'}). "
            f"Install it: pip install 'lightning-loggers[neptune]'"
        )
    if load:
        try:
            load_sdk()
        except Exception as error:
            raise MissingDependencyError(
                f"`{user}` needs `neptune`, which cannot be imported ({type(error).__name__}: {error}). "
                f"Install it anew: pip install --force-reinstall 'lightning-loggers[neptune]'"
            ) from error
