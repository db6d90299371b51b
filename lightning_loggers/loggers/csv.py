"""CSVLogger: Lightning's constructor, our guarantees."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from lightning_loggers.aggregation import AggFunc
from lightning_loggers.delivery import Delivery
from lightning_loggers.loggers.folder import FolderLogger
from lightning_loggers.loggers.journaled import DEFAULT_FINALIZE_TIMEOUT_S
from lightning_loggers.policies import LogPolicy


class CSVLogger(FolderLogger):
    """Logs to ``metrics.csv`` and ``hparams.yaml`` through a journal on disk.

    The parameters up to ``flush_logs_every_n_steps`` are those of Lightning's ``CSVLogger``, in its order and with its
    defaults.

    Args:
        save_dir: Where runs are kept.
        name: Folder of the experiment below it; ``None`` or ``""`` for none.
        version: The run: a folder's name, or the number in ``version_<n>``; by default the next free number. One that
            is there is continued: nothing in it is deleted.
        prefix: Put before metric keys, followed by ``-``.
        flush_logs_every_n_steps: Accepted for compatibility and without effect: rows are written in the background,
            about a second after the log call at the latest, and all of them before ``finalize`` returns.
        delivery: ``"auto"``, ``"thread"``, ``"process"`` or ``"offline"`` (``lightning-loggers sync`` writes the files
            later).
        finalize_timeout_s: Longest wait at the end of a run, seconds.
        deliver_leftovers: Whether files of earlier runs in ``save_dir`` whose process died are completed in the
            background.
        agg_key_funcs: Functions by key for :meth:`agg_and_log_metrics`.
        agg_default_func: The function for other keys; by default the mean.
        policy: Which log calls are recorded; by default all.

    Raises:
        ConfigurationError: For arguments that cannot work.

    Example:
        >>> import csv, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = CSVLogger(folder)
        ...     logger.log_metrics({"loss": 0.5}, step=0)
        ...     logger.log_metrics({"accuracy": 0.9}, step=0)
        ...     logger.log_metrics({"loss": 0.25}, step=1)
        ...     logger.finalize("success")
        ...     logger.close()
        ...     with open(f"{logger.log_dir}/metrics.csv") as file:
        ...         for row in csv.DictReader(file):
        ...             print(int(row["step"]), row["loss"], row["accuracy"])
        0 0.5 0.9
        1 0.25 None
    """

    tracker: ClassVar[str] = "csv"

    def __init__(
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
        *,
        delivery: Delivery = "auto",
        finalize_timeout_s: float = DEFAULT_FINALIZE_TIMEOUT_S,
        deliver_leftovers: bool = True,
        agg_key_funcs: Mapping[str, Any] | None = None,
        agg_default_func: AggFunc = np.mean,
        policy: LogPolicy | None = None,
    ) -> None:
        self._flush_logs_every_n_steps = flush_logs_every_n_steps
        super().__init__(
            save_dir=save_dir,
            name=name,
            version=version,
            options={},
            prefix=prefix,
            delivery=delivery,
            finalize_timeout_s=finalize_timeout_s,
            deliver_leftovers=deliver_leftovers,
            agg_key_funcs=agg_key_funcs,
            agg_default_func=agg_default_func,
            policy=policy,
        )

    @override
    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        """Record hyperparameters; they are kept nested in ``hparams.yaml``, beside those of earlier calls.

        Args:
            params: A mapping (OmegaConf's too), ``Namespace`` or dataclass instance.
            args: Ignored.
            kwargs: Ignored.
        """
        try:
            self._record_params(params)
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("log_hyperparams", error)

    @override
    def _native(self) -> Any:
        return ExperimentWriter(self)

    @override
    def _native_class(self) -> type:
        return ExperimentWriter


class ExperimentWriter:
    """``CSVLogger.experiment``: the methods of Lightning's object of that name, all through the journal.

    Args:
        logger: The logger.
    """

    NAME_HPARAMS_FILE = "hparams.yaml"
    NAME_METRICS_FILE = "metrics.csv"

    def __init__(self, logger: CSVLogger) -> None:
        self._logger = logger

    @property
    def log_dir(self) -> str:
        """The run's folder."""
        return self._logger.log_dir

    @property
    def metrics_file_path(self) -> str:
        """Where the rows are."""
        return os.path.join(self.log_dir, self.NAME_METRICS_FILE)

    def log_metrics(self, metrics_dict: dict[str, Any], step: int | None = None) -> None:
        """Record metrics, without the logger's prefix."""
        writer = self._logger._start()
        if writer is not None:
            writer.append_metrics(dict(metrics_dict), step)

    def log_hparams(self, params: dict[str, Any]) -> None:
        """Record hyperparameters."""
        self._logger.log_hyperparams(params)

    def save(self) -> None:
        """Nothing: rows are written in the background."""
