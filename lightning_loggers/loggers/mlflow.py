"""MLFlowLogger: Lightning's constructor, our guarantees."""

import inspect
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from typing_extensions import override

from lightning_loggers.aggregation import AggFunc
from lightning_loggers.base import LoggerCollection
from lightning_loggers.delivery import Delivery
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.loggers.journaled import DEFAULT_FINALIZE_TIMEOUT_S, JournaledLogger
from lightning_loggers.loggers.recording import keep
from lightning_loggers.policies import LogPolicy
from lightning_loggers.ranks import current_rank
from lightning_loggers.records import Blob

_SQLITE = "sqlite:///"


class MLFlowLogger(JournaledLogger):
    """Logs to MLflow through a journal on disk.

    The parameters up to ``synchronous`` are those of Lightning's ``MLFlowLogger``, in its order and with its defaults.

    Args:
        experiment_name: The experiment.
        run_name: The run's name in MLflow; by default its ``version``.
        tracking_uri: A server (``http://...``) or database (``sqlite:///...``). By default the environment variable
            ``MLFLOW_TRACKING_URI``, else the SQLite file ``<save_dir>/mlflow.db`` with its artifacts beside it (the
            ``file:`` store that Lightning's logger still takes is refused by mlflow >= 3.13).
        tags: Tags of the run.
        save_dir: Where journals (and the SQLite store) are kept.
        log_model: ``"all"``: every checkpoint, as it is written. ``True``: those that are left at the end (every one if
            ``save_top_k=-1``). ``False``: none.
        prefix: Put before metric keys, followed by ``-``.
        artifact_location: Where a new experiment keeps artifacts.
        run_id: An MLflow run to continue; its journal goes to a folder of that name.
        synchronous: Accepted for compatibility and without effect: no call ever waits for MLflow.
        version: The run's folder; an existing one is continued.
        delivery: ``"auto"`` (a process if nobody has imported MLflow in this one; otherwise a thread, and a process
            once that has taken more than 2 % of the time), ``"thread"``, ``"process"`` (outlives a killed trainer) or
            ``"offline"`` (the journal only, for ``lightning-loggers sync``).
        finalize_timeout_s: Longest wait for delivery at the end of a run, seconds.
        deliver_leftovers: Whether earlier runs in ``save_dir`` whose process died are delivered in the background.
        agg_key_funcs: Functions by key for :meth:`agg_and_log_metrics`.
        agg_default_func: The function for other keys; by default the mean.
        policy: Which log calls are recorded; by default all.

    Raises:
        ConfigurationError: For arguments that cannot work.
        MissingDependencyError: If mlflow is not installed (it need not be for ``delivery="offline"``).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = MLFlowLogger("digits", save_dir=folder, delivery="offline")
        ...     logger.log_metrics({"loss": 0.5}, step=0)
        ...     logger.finalize("success")
        ...     print(logger.stats)
        1 recorded, 0 delivered, 1 pending, 0 retried, 0 rejected, 0 dropped
    """

    tracker: ClassVar[str] = "mlflow"

    def __init__(  # noqa: PLR0917 - Lightning's own signature
        self,
        experiment_name: str = "lightning_logs",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, Any] | None = None,
        save_dir: str | None = "./mlruns",
        log_model: Literal[True, False, "all"] = False,
        prefix: str = "",
        artifact_location: str | None = None,
        run_id: str | None = None,
        synchronous: bool | None = None,
        *,
        version: str | None = None,
        delivery: Delivery = "auto",
        finalize_timeout_s: float = DEFAULT_FINALIZE_TIMEOUT_S,
        deliver_leftovers: bool = True,
        agg_key_funcs: Mapping[str, Any] | None = None,
        agg_default_func: AggFunc = np.mean,
        policy: LogPolicy | None = None,
    ) -> None:
        if not experiment_name or not isinstance(experiment_name, str):
            raise ConfigurationError(f"experiment_name={experiment_name!r} must be a name, such as 'lightning_logs'.")
        folder = Path("./mlruns" if save_dir is None else save_dir)
        tracking_uri = _absolute(tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "")
        if not tracking_uri:
            tracking_uri = f"{_SQLITE}{folder.absolute() / 'mlflow.db'}"
            artifact_location = artifact_location or (folder.absolute() / "artifacts").as_uri()
        self.tags = tags
        self._synchronous = synchronous
        super().__init__(
            name=experiment_name,
            save_dir=folder,
            options={
                "tracking_uri": tracking_uri,
                "experiment_name": experiment_name,
                "run_name": run_name,
                "tags": {str(key): str(value) for key, value in (tags or {}).items()},
                "artifact_location": artifact_location,
                "run_id": run_id,
            },
            version=version or run_id,
            prefix=prefix,
            log_model=log_model,
            delivery=delivery,
            finalize_timeout_s=finalize_timeout_s,
            deliver_leftovers=deliver_leftovers,
            agg_key_funcs=agg_key_funcs,
            agg_default_func=agg_default_func,
            policy=policy,
        )

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; ``None`` on ranks that do not log.

        Waits for MLflow to give it, at most ``finalize_timeout_s``.

        Raises:
            TrackerUnavailableError: If MLflow did not answer in that time.
        """
        if current_rank() != 0:
            return None
        return self._options["run_id"] or self.wait_for_run().remote.id

    @property
    def experiment_id(self) -> str | None:
        """MLflow's id of the experiment; waits, and is ``None``, as :attr:`run_id`."""
        return None if current_rank() != 0 else self.wait_for_run().remote.parent

    @override
    def create_logger_context(self, rank: int | None = None, **kwargs: Any) -> Any:
        """Begin the run.

        Args:
            rank: Global rank of this process, where it cannot know.
            **kwargs: ``run_name``; ``run_id`` of a run to continue; ``parent_run_id`` of one that this belongs to.

        Returns:
            An ``MlflowClient``, made when it is first used.
        """
        parent = kwargs.pop("parent_run_id", None)
        if parent is not None:
            kwargs["tags"] = {**self._options["tags"], "mlflow.parentRunId": str(parent)}
        return super().create_logger_context(rank, **kwargs)

    @override
    def _keep_pickled_model(self, writer: JournalWriter, model: Any) -> list[Blob]:
        """The folder that ``mlflow.pytorch.load_model`` reads, made in this call: the model is pickled in it."""
        import mlflow.pytorch
        import torch

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            # Requirements are said, since finding them out starts another Python and takes half a minute.
            versions = [f"torch=={torch.__version__.partition('+')[0]}", f"mlflow=={mlflow.__version__}"]
            known = inspect.signature(mlflow.pytorch.save_model).parameters
            form = {"serialization_format": "pickle"} if "serialization_format" in known else {}  # not in older ones
            mlflow.pytorch.save_model(model, folder, pip_requirements=versions, **form)
            return keep(writer, folder)

    @override
    def _native(self) -> Any:
        self.wait_for_run()  # bounded; the SDK's own calls try for minutes where nobody answers
        return self._native_class()(tracking_uri=self._options["tracking_uri"])

    @override
    def _native_class(self) -> type:
        from mlflow.tracking import MlflowClient

        return MlflowClient  # type: ignore[no-any-return, unused-ignore]


def get_mlflow_logger(logger: Any) -> MLFlowLogger | None:
    """The first :class:`MLFlowLogger` among what is given.

    Args:
        logger: A logger, a :class:`~lightning_loggers.LoggerCollection`, an iterable of loggers, or ``None``.

    >>> get_mlflow_logger(None)
    """
    if isinstance(logger, MLFlowLogger):
        return logger
    if isinstance(logger, LoggerCollection):
        logger = logger[:]
    if isinstance(logger, Iterable):
        return next(filter(None, map(get_mlflow_logger, logger)), None)
    return None


def _absolute(uri: str) -> str:
    """A SQLite URI whose file stays where it is when the program, or who delivers, is in another working directory.

    >>> _absolute("sqlite:////data/mlflow.db"), _absolute("http://host:5000")
    ('sqlite:////data/mlflow.db', 'http://host:5000')
    """
    path, mark, query = uri.removeprefix(_SQLITE).partition("?")
    if not uri.startswith(_SQLITE) or not path or path.startswith((":memory:", "file:")):
        return uri
    return f"{_SQLITE}{Path(path).absolute()}{mark}{query}"
