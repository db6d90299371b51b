"""TensorBoardLogger: Lightning's constructor, our guarantees."""

import contextlib
import os
import time
import warnings
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from lightning_loggers.adapters.base import unknown_option
from lightning_loggers.adapters.registry import require_sdk
from lightning_loggers.adapters.tensorboard import PURGE_STEP
from lightning_loggers.aggregation import AggFunc
from lightning_loggers.delivery import Delivery
from lightning_loggers.errors import ConfigurationError, UnsuitableValueError
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.loggers.folder import FolderLogger
from lightning_loggers.loggers.journaled import DEFAULT_FINALIZE_TIMEOUT_S
from lightning_loggers.policies import LogPolicy
from lightning_loggers.ranks import current_rank
from lightning_loggers.records import Kind, Record
from lightning_loggers.values.metrics import as_number

_WRITER_OPTIONS = ("comment", "filename_suffix", "flush_secs", "max_queue", "purge_step")


class TensorBoardLogger(FolderLogger):
    """Logs to TensorBoard's event files through a journal on disk.

    The parameters up to ``sub_dir`` are those of Lightning's ``TensorBoardLogger``, in its order and with its defaults.

    Args:
        save_dir: Where runs are kept.
        name: Folder of the experiment below it; ``None`` or ``""`` for none.
        version: The run: a folder's name, or the number in ``version_<n>``; by default the next free number. One that
            is there is continued.
        log_graph: Whether the model's graph is kept, traced with its ``example_input_array`` when a fit starts.
        default_hp_metric: Whether hyperparameters that are logged without metrics get a placeholder, ``hp_metric``
            of -1, without which the hyperparameters tab does not show them.
        prefix: Put before metric keys, followed by ``-``.
        sub_dir: A folder below the run's for everything that is written.
        delivery: ``"auto"``, ``"thread"``, ``"process"`` or ``"offline"`` (``lightning-loggers sync`` writes the files
            later).
        finalize_timeout_s: Longest wait at the end of a run, seconds.
        deliver_leftovers: Whether files of earlier runs in ``save_dir`` whose process died are completed in the
            background.
        agg_key_funcs: Functions by key for :meth:`agg_and_log_metrics`.
        agg_default_func: The function for other keys; by default the mean.
        policy: Which log calls are recorded; by default all.
        kwargs: As torch's ``SummaryWriter`` takes them. ``purge_step``: hide what an earlier session of this run logged
            at that step and later ones. ``filename_suffix``: what event files' names end with. ``max_queue``,
            ``flush_secs`` and ``comment`` only reach the ``SummaryWriter`` of :attr:`experiment`: events are written in
            the background, about a second after the log call at the latest.

    Raises:
        ConfigurationError: For arguments that cannot work.
        MissingDependencyError: If tensorboard is not installed (it need not be for ``delivery="offline"``).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logger = TensorBoardLogger(folder, delivery="offline")
        ...     logger.log_metrics({"loss": 0.5}, step=0)
        ...     logger.finalize("success")
        ...     print(logger.version, logger.stats)
        ...     logger.close()
        0 1 recorded, 0 delivered, 1 pending, 0 retried, 0 rejected, 0 dropped
    """

    NAME_HPARAMS_FILE = "hparams.yaml"
    tracker: ClassVar[str] = "tensorboard"
    _media_defaults: ClassVar[Mapping[Kind, Mapping[str, Any]]] = {Kind.VIDEO: {"format": "gif"}}  # it plays no other

    def __init__(  # noqa: PLR0917 - Lightning's own signature
        self,
        save_dir: str | os.PathLike[str],
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        log_graph: bool = False,
        default_hp_metric: bool = True,
        prefix: str = "",
        sub_dir: str | os.PathLike[str] | None = None,
        *,
        delivery: Delivery = "auto",
        finalize_timeout_s: float = DEFAULT_FINALIZE_TIMEOUT_S,
        deliver_leftovers: bool = True,
        agg_key_funcs: Mapping[str, Any] | None = None,
        agg_default_func: AggFunc = np.mean,
        policy: LogPolicy | None = None,
        **kwargs: Any,
    ) -> None:
        for option in kwargs:
            if option not in _WRITER_OPTIONS:
                raise unknown_option("parameter", option, _WRITER_OPTIONS)
        purge_step = kwargs.get("purge_step")
        if purge_step is not None and not isinstance(purge_step, int):
            raise ConfigurationError(f"purge_step={purge_step!r} must be a step, such as 1000, or None.")
        suffix = kwargs.get("filename_suffix", "")
        if not isinstance(suffix, str) or "/" in suffix:
            raise ConfigurationError(f"filename_suffix={suffix!r} must be the end of a file name, such as '.mine'.")
        self._log_graph = log_graph
        self._default_hp_metric = default_hp_metric
        self._purge_step = purge_step
        self._kwargs = {key: value for key, value in kwargs.items() if key != "purge_step"}
        self.hparams: dict[str, Any] = {}
        super().__init__(
            save_dir=save_dir,
            name=name,
            version=version,
            sub_dir=sub_dir,
            options={"filename_suffix": suffix} if suffix else {},
            prefix=prefix,
            delivery=delivery,
            finalize_timeout_s=finalize_timeout_s,
            deliver_leftovers=deliver_leftovers,
            agg_key_funcs=agg_key_funcs,
            agg_default_func=agg_default_func,
            policy=policy,
        )

    @override
    def _reset(self) -> None:
        super()._reset()
        self._summary_writer: Any = None

    @override
    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_summary_writer", None)
        return state

    # ------------------------------------------------------------------ names and folders

    @property
    def sub_dir(self) -> str | None:
        """The folder below the run's, as it was given."""
        return self._sub_dir

    @property
    @override
    def log_dir(self) -> str:
        """The run's folder, ``~`` and ``$VARIABLES`` expanded."""
        return os.path.expanduser(os.path.expandvars(super().log_dir))

    # ------------------------------------------------------------------ what TensorBoard has besides

    @override
    def _make_writer(self) -> JournalWriter:
        writer = super()._make_writer()
        if self._purge_step is not None:  # before anything else of this session
            writer.append(Record(time.time_ns(), PURGE_STEP, step=self._purge_step))
        return writer

    @override
    def log_hyperparams(
        self, params: Any, metrics: Any = None, step: int | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Record hyperparameters, for ``hparams.yaml`` and the hyperparameters tab.

        Those of all calls are shown together.

        Args:
            params: A mapping (OmegaConf's too), ``Namespace`` or dataclass instance.
            metrics: Metrics to be shown beside them, which are logged, too; one number is logged as ``hp_metric``.
                Without any, see ``default_hp_metric``.
            step: Step of the metrics.
            args: Ignored.
            kwargs: Ignored.
        """
        try:
            with contextlib.suppress(Exception):  # Lightning's attribute of that name; nothing of ours reads it
                self.hparams.update(vars(params) if isinstance(params, Namespace) else params)
            tab: dict[str, Any] | None = None
            if metrics is None:
                if self._default_hp_metric:
                    tab = {"placeholder": f"{self._prefix}hp_metric"}
            else:
                metrics = dict(metrics) if isinstance(metrics, Mapping) else {"hp_metric": metrics}
                if metrics:
                    self.log_metrics(metrics, step)
                    shown = [key for key, value in metrics.items() if as_number(value) is not None]
                    tab = {"metrics": [f"{self._prefix}{key}" for key in shown]}
            self._record_params(params, tab=tab)
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("log_hyperparams", error)

    @override
    def log_graph(self, model: Any, input_array: Any = None) -> None:
        """Record the model's graph, if ``log_graph=True``.

        It is traced now, in this process: the one call of this logger that takes as long as a forward pass.

        Args:
            model: The model.
            input_array: What to call it with: a tensor, or a tuple of arguments. By default its
                ``example_input_array``.
        """
        super().log_graph(model, input_array)
        if not self._log_graph or current_rank() != 0:
            return
        try:
            if input_array is None:
                input_array = getattr(model, "example_input_array", None)
            if input_array is None:
                reason = "the model has no `example_input_array` and no `input_array` was given"
            else:
                reason = self._record_graph(model, input_array)
        except Exception as error:  # noqa: BLE001 - the model's own code, or the tracer's
            reason = f"{type(error).__name__}: {error}"
        if reason:
            self._notices.tell_once(
                ("graph", type(model)),
                f"The graph of {type(model).__name__} is not logged: {reason}. Training goes on.",
            )

    @override
    def _trace_graph(self, model: Any, input_array: Any) -> bool:
        reason = self._record_graph(model, input_array)
        if reason:
            raise UnsuitableValueError(f"The graph of {type(model).__name__} is not logged: {reason}.")
        return True

    def _record_graph(self, model: Any, input_array: Any) -> str:
        import torch
        from torch.utils.tensorboard._pytorch_graph import graph

        if not isinstance(input_array, torch.Tensor | tuple):
            return (
                f"a {type(input_array).__name__} cannot be traced; give a tensor, or a tuple of the arguments of "
                "`forward`"
            )
        before, to_device = (
            getattr(model, name, None) for name in ("_on_before_batch_transfer", "_apply_batch_transfer_handler")
        )
        if callable(before) and callable(to_device):
            input_array = to_device(before(input_array))
        with _scripting(type(model)), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's own advice
            definition, metadata = graph(model, input_array)  # type: ignore[no-untyped-call, unused-ignore]
        writer = self._start()
        if writer is None:
            return ""
        blobs = [
            writer.blobs.put_bytes(definition.SerializeToString(deterministic=True), "graph.pb"),
            writer.blobs.put_bytes(metadata.SerializeToString(deterministic=True), "run_metadata.pb"),
        ]
        self._record(Kind.GRAPH, id="graph", blobs=blobs)
        return ""

    # ------------------------------------------------------------------ torch's writer, for a user's own calls

    @override
    def _native(self) -> Any:
        require_sdk(self.tracker, f"{type(self).__name__}.experiment")
        from torch.utils.tensorboard import SummaryWriter

        # Not purge_step: it would hide what this logger has written to its own event file.
        self._summary_writer = SummaryWriter(log_dir=self.log_dir, **self._kwargs)
        return self._summary_writer

    @override
    def _native_class(self) -> type:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter

    @override
    def finalize(self, status: str = "success") -> None:
        """End the run for now, as every logger does, and have :attr:`experiment` write what it holds.

        Args:
            status: Lightning's word: ``"success"``, ``"failed"`` or ``"finished"``.
        """
        super().finalize(status)
        self._with_writer("flush")

    @override
    def close(self) -> None:
        """End the run if :meth:`finalize` has not, and close the files."""
        super().close()
        self._with_writer("close")

    def _with_writer(self, call: str) -> None:
        if self._summary_writer is None:
            return
        try:
            getattr(self._summary_writer, call)()
        except Exception as error:  # noqa: BLE001 - torch's writer raises what its own thread met, such as a full disk
            self._notices.tell_once(
                ("writer", call), f"{type(self).__name__}.experiment.{call}() failed: {error!r}. Training goes on."
            )


@contextlib.contextmanager
def _scripting(model: type) -> Iterator[None]:
    """Let a LightningModule be traced without its Trainer, as Lightning's own logger does."""
    owner: Any = next((kind for kind in model.__mro__ if "_jit_is_scripting" in vars(kind)), None)
    before = getattr(owner, "_jit_is_scripting", None)
    if owner is not None:
        owner._jit_is_scripting = True
    try:
        yield
    finally:
        if owner is not None:
            owner._jit_is_scripting = before
