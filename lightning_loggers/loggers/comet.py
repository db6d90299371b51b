"""CometLogger: Lightning's constructor, our guarantees."""

import os
import secrets
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from typing_extensions import override

from lightning_loggers.adapters.comet_sdk import load_sdk, server_and_key, server_option
from lightning_loggers.aggregation import AggFunc
from lightning_loggers.delivery import Delivery
from lightning_loggers.errors import ConfigurationError, TrackerUnavailableError
from lightning_loggers.loggers.journaled import DEFAULT_FINALIZE_TIMEOUT_S, JournaledLogger
from lightning_loggers.notices import logger as log
from lightning_loggers.policies import LogPolicy
from lightning_loggers.records import Kind

_CONFIG_ARGUMENTS = frozenset(
    {
        "auto_histogram_activation_logging", "auto_histogram_epoch_rate", "auto_histogram_gradient_logging",
        "auto_histogram_tensorboard_logging", "auto_histogram_weight_logging", "auto_log_co2", "auto_metric_logging",
        "auto_metric_step_rate", "auto_output_logging", "auto_param_logging", "disabled", "display_summary_level",
        "distributed_node_identifier", "log_code", "log_env_cpu", "log_env_details", "log_env_disk", "log_env_gpu",
        "log_env_host", "log_env_network", "log_git_metadata", "log_git_patch", "log_graph", "name",
        "offline_directory", "parse_args", "tags",
    }
)  # fmt: skip
_OURS = frozenset({"disabled", "distributed_node_identifier", "name", "offline_directory", "tags"})
_OLD_NAMES = {"experiment_name": "name", "project_name": "project", "save_dir": "offline_directory"}


class CometLogger(JournaledLogger):
    """Logs to Comet through a journal on disk.

    The parameters up to ``prefix``, and ``kwargs``, are those of Lightning's ``CometLogger``, with its defaults.

    With ``online=False``, or without any API key, the run becomes an archive ``<offline_directory>/<key>.zip`` for
    ``comet upload``, with the time of every log call; it is made when the run ends, also after the process was killed,
    by ``lightning-loggers sync`` or the next logger. It always holds the whole run: upload it once, when the run is
    over. Comet keeps 15,000 values a metric; ``comet upload`` sends a
    random sample of those that have more. A metric ``epoch`` is a series, and the epoch of the values of its call.

    Args:
        api_key: Comet's key. By default the environment variable ``COMET_API_KEY``, or that of ``comet login``. It is
            written to no file.
        workspace: The workspace; by default ``COMET_WORKSPACE``, else the account's own.
        project: The project; by default ``COMET_PROJECT_NAME``, else Comet's "Uncategorized".
        experiment_key: The experiment's key, 32 to 50 letters and digits; by default ``COMET_EXPERIMENT_KEY``, else a
            new one. Also the run's ``version`` and folder: an existing one is continued.
        mode: ``"get_or_create"``: continue the experiment if there is one of that key. ``"get"``: there must be one.
            ``"create"``: there must be none.
        online: ``True``: Comet itself. ``False``: an archive. By default an archive only if there is no API key.
        prefix: Put before metric keys, followed by ``_``.
        log_model: ``"all"``: every checkpoint, as it is written. ``True``: those that are left at the end (every one if
            ``save_top_k=-1``). ``False``: none.
        version: The run's folder, where it is to have another name than the experiment's key.
        delivery: ``"auto"``, ``"thread"``, ``"process"`` or ``"offline"`` (journal only, for ``lightning-loggers
            sync``).
        finalize_timeout_s: Longest wait for delivery at the end of a run, seconds.
        deliver_leftovers: Whether earlier runs in the folder whose process died are delivered in the background.
        agg_key_funcs: Functions by key for :meth:`agg_and_log_metrics`.
        agg_default_func: The function for other keys; by default the mean.
        policy: Which log calls are recorded; by default all.
        **kwargs: Arguments of ``comet_ml.ExperimentConfig``. ``name`` and ``tags`` are the run's;
            ``offline_directory`` (by default ``COMET_OFFLINE_DIRECTORY``, else ``./.cometml-runs``) is where journals
            and archives are kept; ``disabled=True`` delivers nothing; the others are about what the SDK logs by itself,
            and hold for :attr:`experiment`.

    Raises:
        ConfigurationError: For arguments that cannot work.
        MissingDependencyError: If comet-ml is not installed (it need not be for ``delivery="offline"``).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = CometLogger(project="digits", offline_directory=folder, delivery="offline")
        ...     logger.log_metrics({"loss": 0.5}, step=0)
        ...     logger.finalize("success")
        ...     print(logger.stats)
        1 recorded, 0 delivered, 1 pending, 0 retried, 0 rejected, 0 dropped
    """

    LOGGER_JOIN_CHAR: ClassVar[str] = "_"
    tracker: ClassVar[str] = "comet"

    def __init__(
        self,
        *,
        api_key: str | None = None,
        workspace: str | None = None,
        project: str | None = None,
        experiment_key: str | None = None,
        mode: Literal["get_or_create", "get", "create"] | None = None,
        online: bool | None = None,
        prefix: str | None = None,
        log_model: Literal["all"] | bool = False,
        version: str | None = None,
        delivery: Delivery = "auto",
        finalize_timeout_s: float = DEFAULT_FINALIZE_TIMEOUT_S,
        deliver_leftovers: bool = True,
        agg_key_funcs: Mapping[str, Any] | None = None,
        agg_default_func: AggFunc = np.mean,
        policy: LogPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        given = _with_new_names({**kwargs, "project": project, "online": online})
        project, online = given.pop("project"), given.pop("online")
        if unknown := sorted(given.keys() - _CONFIG_ARGUMENTS):
            raise ConfigurationError(
                f"{', '.join(unknown)}: no argument of CometLogger or comet_ml.ExperimentConfig; known are "
                f"{', '.join(sorted(_CONFIG_ARGUMENTS))}."
            )
        environment = os.environ
        experiment_key = experiment_key or environment.get("COMET_EXPERIMENT_KEY") or None
        project = project or environment.get("COMET_PROJECT_NAME") or None
        address = environment.get("COMET_URL_OVERRIDE") or None
        if address is not None and ("@" in address or "://" not in address):
            address = None  # the SDK reads it itself, wherever this run is delivered
        folder = given.get("offline_directory") or environment.get("COMET_OFFLINE_DIRECTORY") or "./.cometml-runs"
        self._config_arguments = given
        self._graph_recorded = False
        super().__init__(
            name=project or "uncategorized",
            save_dir=os.path.expanduser(folder),
            options={
                "server": server_option(address, api_key),
                "online": online if online is not None else _flag(environment.get("COMET_START_ONLINE")),
                "workspace": workspace or environment.get("COMET_WORKSPACE") or None,
                "project": project,
                "experiment_key": experiment_key,
                "mode": mode or environment.get("COMET_START_MODE") or None,
                "name": given.get("name") or environment.get("COMET_EXPERIMENT_NAME") or None,
                "tags": [str(tag) for tag in given.get("tags") or []],
                "prefix": f"{prefix}{self.LOGGER_JOIN_CHAR}" if prefix else "",
            },
            version=version or experiment_key,
            prefix=prefix or "",
            log_model=log_model,
            delivery="offline" if given.get("disabled") else delivery,
            finalize_timeout_s=finalize_timeout_s,
            deliver_leftovers=deliver_leftovers,
            agg_key_funcs=agg_key_funcs,
            agg_default_func=agg_default_func,
            policy=policy,
        )

    @override
    def _new_version(self) -> str:
        return self._left_open() or secrets.token_hex(16)  # which is the experiment's key

    @override
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Record what the model is made of, once: Comet shows it as the run's graph. ``log_graph=False`` leaves it out.

        Args:
            model: The model.
            input_array: Not needed; nothing is traced.
        """
        super().log_graph(model, input_array)
        if not self._graph_recorded and self._config_arguments.get("log_graph") is not False:
            self._graph_recorded = True
            self._log_kind(Kind.GRAPH, "graph", model)

    @override
    def _native(self) -> Any:
        state = self.wait_for_run()  # bounded; comet_ml.start tries for half a minute, and then hands out a dead object
        load_sdk()
        import comet_ml

        given = {key: value for key, value in self._config_arguments.items() if key not in _OURS}
        key = state.remote.id
        if "archive" in state.remote.extra:
            return comet_ml.ExistingOfflineExperiment(experiment_key=key, offline_directory=self._save_dir, **given)
        api_key = server_and_key(self._options)[1]
        experiment = comet_ml.ExistingExperiment(api_key=api_key, experiment_key=key, **given)
        if not experiment.alive:
            raise TrackerUnavailableError(
                f"Comet's SDK could not open experiment {key}: see what it logged. What was logged with this logger is "
                f"in {self._run_dir}."
            )
        return experiment

    @override
    def _native_class(self) -> type:
        load_sdk()
        import comet_ml

        offline = self._options["online"] is False
        return comet_ml.ExistingOfflineExperiment if offline else comet_ml.ExistingExperiment  # type: ignore[no-any-return, unused-ignore]


def _with_new_names(given: dict[str, Any]) -> dict[str, Any]:
    """Arguments that Lightning's logger still takes under older names; the new name counts where both are given."""
    for old, new in _OLD_NAMES.items():
        if old in given:
            value = given.pop(old)
            log.warning("CometLogger(%s=...) is an old name: use %s=...", old, new)
            if given.get(new) is None:
                given[new] = os.fspath(value) if old == "save_dir" and value is not None else value
    if "offline" in given:
        offline = given.pop("offline")
        log.warning("CometLogger(offline=...) is an old name: use online=..., which is its opposite")
        if given.get("online") is None and offline is not None:
            given["online"] = not offline
    return given


def _flag(text: str | None) -> bool | None:
    """A yes or no of the environment, as the SDK reads it."""
    return None if not text else text.strip().lower() in {"1", "t", "true", "y", "yes"}
