"""One call for every kind of object, and a method for each."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import Tensor

from lightning_loggers.adapters.base import unknown_option
from lightning_loggers.errors import ConfigurationError, NonFiniteError
from lightning_loggers.loggers import watching
from lightning_loggers.loggers.losses import FailedFunctionError, not_logged
from lightning_loggers.loggers.recording import HANDLERS, OF_ARRAYS, RESERVED, Call, log_array
from lightning_loggers.records import Kind
from lightning_loggers.values.lazy import Once, is_lazy
from lightning_loggers.values.metrics import safe_str

if TYPE_CHECKING:
    from lightning_loggers.loggers.journaled import JournaledLogger

_NOTHING: Mapping[str, Any] = {}

# Looking one up takes an enumeration's class a microsecond, and after a training step several.
_METRIC, _IMAGE, _AUDIO, _VIDEO = Kind.METRIC, Kind.IMAGE, Kind.AUDIO, Kind.VIDEO
_HISTOGRAM, _POINT_CLOUD = Kind.HISTOGRAM, Kind.POINT_CLOUD

LOGGABLE = tuple(kind for kind in Kind if kind is not Kind.STATUS)
"""What ``log(kind=...)`` knows."""


class Kinds:
    """The log calls of a journaled logger for everything but metrics and hyperparameters.

    Guarantees:
        - A value that is not recorded (rank, policy) is not touched: a function in its place is not called.
        - When a call has returned, the value may be changed or deleted: what is logged is what it was.
        - Nothing raises into training but an unknown kind, and with ``strict=True`` what is wrong with a value. What is
          not logged is told once and counted in ``stats``.
    """

    # ------------------------------------------------------------------ one call for all

    def log(
        self,
        item: Any,
        identifier: Any,
        kind: str = "metric",
        step: int | None = None,
        batch_idx: int | None = None,
        *,
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        """Log an object of any kind.

        Args:
            item: The object; or a function without arguments that makes it, called only if it is recorded; or, with a
                list of identifiers, a list of these.
            identifier: What it is called; or a list of names, one for each item.
            kind: What it is, one of :class:`~lightning_loggers.records.Kind`.
            step: Step.
            batch_idx: Index of its batch, where the policy is to decide by it.
            strict: Whether a value of the wrong shape, rate or type raises. By default it is told and counted.
            **kwargs: What the kind takes besides, as its own method does: ``sample_rate``, ``fps``, ``caption``, ...

        Raises:
            ConfigurationError: For an unknown kind, or lists of different lengths.
            UnsuitableValueError: With ``strict=True``: for a value of the wrong shape, rate or type.
            MissingDependencyError: With ``strict=True``: if what encodes the value is not installed.
        """
        known = (_KINDS.get(kind) if type(kind) is str else None) or as_kind(kind)
        if type(item) in _ARRAYS and known in OF_ARRAYS and not strict and type(identifier) is str:
            # As _log_kind would: a shorter way to it, for what is to cost no more than its copy.
            logger: JournaledLogger = self  # type: ignore[assignment]
            log_array(logger, known, identifier, item, step=step, batch_idx=batch_idx, given=kwargs)
        elif not isinstance(identifier, _LISTS):
            self._log_kind(known, identifier, item, step, batch_idx, strict=strict, given=kwargs)
        else:
            for name, value in _pairs(item, identifier):
                self._log_kind(known, name, value, step, batch_idx, strict=strict, given=kwargs)

    def log_param(self, key: str, value: Any) -> None:
        """Record one hyperparameter."""
        self._log_kind(Kind.PARAM, key, value)

    def log_text(self, key: str, text: Any, step: int | None = None) -> None:
        """Record a text.

        Args:
            key: Its identifier.
            text: The text, of any length.
            step: Step.
        """
        self._log_kind(Kind.TEXT, key, text, step)

    def log_dict(self, key: str, value: Any, step: int | None = None) -> None:
        """Record a dictionary as JSON.

        Args:
            key: Its identifier.
            value: What JSON can say; anything else in it becomes its text.
            step: Step.
        """
        self._log_kind(Kind.DICT, key, value, step)

    def log_table(self, key: str, table: Any, step: int | None = None, *, strict: bool = False, **kwargs: Any) -> None:
        """Record a table.

        Args:
            key: Its identifier.
            table: A pandas, polars or pyarrow table, a mapping of columns, a list of mappings, or rows.
            step: Step.
            strict: Whether what is wrong with it raises.
            **kwargs: ``columns``: names, for a list of rows or an array.
        """
        self._log_kind(Kind.TABLE, key, table, step, strict=strict, given=kwargs)

    def log_image(self, key: str, image: Any, step: int | None = None, *, strict: bool = False, **kwargs: Any) -> None:
        """Record an image, or several.

        Args:
            key: Its identifier.
            image: Shape (H, W), (C, H, W) or (H, W, C) with 1, 3 or 4 channels, uint8 or float within 0 and 1; a batch
                (B, ...), which becomes a grid; a list; a PIL image; a file's path or bytes.
            step: Step.
            strict: Whether what is wrong with it raises.
            **kwargs: ``caption``, ``layout`` (``"CHW"`` or ``"HWC"``), ``grid`` (of a batch, by default true),
                ``normalize``, ``masks``, ``boxes``: see :func:`lightning_loggers.values.images.snapshot`.
        """
        self._log_kind(_IMAGE, key, image, step, strict=strict, given=kwargs)

    def log_figure(
        self, key: str, figure: Any, step: int | None = None, *, strict: bool = False, **kwargs: Any
    ) -> None:
        """Record a figure of matplotlib (drawn now) or plotly.

        Args:
            key: Its identifier.
            figure: The figure.
            step: Step.
            strict: Whether what is wrong with it raises.
            **kwargs: ``dpi``, and ``close``: whether matplotlib's figure is closed afterwards.
        """
        self._log_kind(Kind.FIGURE, key, figure, step, strict=strict, given=kwargs)

    def log_audio(self, key: str, audio: Any, step: int | None = None, *, strict: bool = False, **kwargs: Any) -> None:
        """Record a sound.

        Args:
            key: Its identifier.
            audio: Shape (T,) or (C, T), float within -1 and 1 or int16; a pair of it and its rate; a file's path.
            step: Step.
            strict: Whether what is wrong with it raises.
            **kwargs: ``sample_rate`` in Hz, ``caption``.
        """
        self._log_kind(_AUDIO, key, audio, step, strict=strict, given=kwargs)

    def log_video(self, key: str, video: Any, step: int | None = None, *, strict: bool = False, **kwargs: Any) -> None:
        """Record a video.

        Args:
            key: Its identifier.
            video: Shape (T, C, H, W), uint8 or float within 0 and 1; a file's path.
            step: Step.
            strict: Whether what is wrong with it raises.
            **kwargs: ``fps``, ``format`` (``"mp4"`` or ``"gif"``), ``caption``.
        """
        self._log_kind(_VIDEO, key, video, step, strict=strict, given=kwargs)

    def log_histogram(
        self, key: str, values: Any, step: int | None = None, *, strict: bool = False, **kwargs: Any
    ) -> None:
        """Record a distribution.

        Args:
            key: Its identifier.
            values: Numbers of any shape, or ready-made bins: (counts, edges).
            step: Step.
            strict: Whether what is wrong with it raises.
            **kwargs: ``bins``: how many; 64 by default.
        """
        self._log_kind(_HISTOGRAM, key, values, step, strict=strict, given=kwargs)

    def log_point_cloud(self, key: str, points: Any, step: int | None = None, *, strict: bool = False) -> None:
        """Record a point cloud.

        Args:
            key: Its identifier.
            points: Shape (N, 3), (N, 6) with colours, or a batch (B, N, 3) or (B, N, 6); a file's path.
            step: Step.
            strict: Whether what is wrong with it raises.
        """
        self._log_kind(_POINT_CLOUD, key, points, step, strict=strict)

    def log_artifact(self, path: str | os.PathLike[str], artifact_path: str = "") -> None:
        """Record a file or folder as it is now.

        The file is kept by a hard link (a copy on another file system), so it may be deleted or replaced once the call
        has returned; writing into it afterwards changes what is delivered.

        Args:
            path: A file, or a folder whose files are all kept.
            artifact_path: Folder at the tracker to put it in.
        """
        self._log_kind(Kind.ARTIFACT, artifact_path, path)

    def log_model(self, key: str, model: Any, step: int | None = None, *, strict: bool = False, **kwargs: Any) -> None:
        """Record a model's state, to be read with ``torch.load(path, weights_only=True)``.

        Args:
            key: Its identifier.
            model: A torch module, or a file's path.
            step: Step.
            strict: Whether what is wrong with it raises.
            **kwargs: ``pickle``: whether the model itself is pickled, in the call. Its reader then needs its class, and
                runs whatever code the file names.
        """
        self._log_kind(Kind.MODEL, key, model, step, strict=strict, given=kwargs)

    def log_best_model(
        self, key: str, model: Any, step: int | None = None, *, strict: bool = False, **kwargs: Any
    ) -> None:
        """Record the state of the best model so far; as :meth:`log_model`."""
        self._log_kind(Kind.BEST_MODEL, key, model, step, strict=strict, given=kwargs)

    def log_checkpoint(
        self,
        path: str | os.PathLike[str],
        key: str | None = None,
        step: int | None = None,
        *,
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        """Record a checkpoint's file or folder; as :meth:`log_artifact`, it costs a hard link.

        Args:
            path: The file, or the folder of a sharded checkpoint.
            key: Its identifier; by default the file's name without its suffix.
            step: Step.
            strict: Whether what is wrong with it raises.
            **kwargs: ``aliases``: a list of names such as ``"best"``. ``metadata``: a mapping.
        """
        self._log_kind(
            Kind.CHECKPOINT, Path(path).stem if key is None else key, path, step, strict=strict, given=kwargs
        )

    def log_dataset(
        self, key: str, dataset: Any, step: int | None = None, *, strict: bool = False, **kwargs: Any
    ) -> None:
        """Record which dataset is used: its name, digest, source, schema and size, not its data.

        Args:
            key: Its name.
            dataset: An ``mlflow.data`` dataset, a torch or Hugging Face dataset, a data loader, a data frame, an array,
                a mapping that describes it, or the path or URI of its source.
            step: Step.
            strict: Whether what is wrong with it raises.
            **kwargs: ``context`` (``"training"`` by default), ``source``, ``digest``.
        """
        self._log_kind(Kind.DATASET, key, dataset, step, strict=strict, given=kwargs)

    def log_torch(self, key: str, value: Any, step: int | None = None, *, strict: bool = False, **kwargs: Any) -> None:
        """Record a tensor, the state of a module or optimizer, or what a data loader loads.

        Args:
            key: Its identifier.
            value: The object; containers of tensors and plain values, too.
            step: Step.
            strict: Whether what is wrong with it raises.
            **kwargs: ``pickle``: whether an object without a state is pickled, in the call.
        """
        self._log_kind(Kind.TORCH, key, value, step, strict=strict, given=kwargs)

    def log_config(self, config: Any, key: str = "config", *, strict: bool = False) -> None:
        """Record a configuration as a whole, nested as it is. Hyperparameters are :meth:`log_hyperparams`.

        Args:
            config: A mapping (OmegaConf's too), ``Namespace`` or dataclass instance.
            key: Its identifier.
            strict: Whether what is wrong with it raises.
        """
        self._log_kind(Kind.CONFIG, key, config, strict=strict)

    def watch(self, model: Any, log: str | None = "gradients", log_freq: int = 100, log_graph: bool = True) -> None:
        """Record histograms of a model's gradients and parameters while it trains.

        They are copied by hooks and made into histograms in the background. The hooks are no part of the model where
        that is copied, pickled or saved.

        Args:
            model: A ``torch.nn.Module``.
            log: ``"gradients"``, ``"parameters"``, ``"all"`` or ``None``.
            log_freq: Batches between two histograms.
            log_graph: Whether the model's modules are recorded, too.

        Raises:
            ConfigurationError: If ``log`` or ``log_freq`` is something else.
        """
        if log not in watching.CHOICES:
            raise unknown_option("log", log, [str(choice) for choice in watching.CHOICES])
        if not isinstance(log_freq, int) or log_freq < 1:
            raise ConfigurationError(f"log_freq={log_freq!r} must be a number of batches, 1 or more.")
        if log_graph:
            self._log_kind(Kind.GRAPH, "graph", model)
        watching.watch(cast("JournaledLogger", self), model, log, log_freq)

    def unwatch(self, model: Any = None) -> None:
        """Remove the hooks of :meth:`watch`.

        Args:
            model: The model; by default all that are watched.
        """
        watching.unwatch(cast("JournaledLogger", self), model)

    # ------------------------------------------------------------------ the way of every value

    def _log_kind(
        self,
        kind: Kind,
        identifier: Any,
        item: Any,
        step: Any = None,
        batch_idx: int | None = None,
        *,
        strict: bool = False,
        given: Mapping[str, Any] = _NOTHING,
    ) -> None:
        """What every method above comes to, whatever a subclass makes of that method."""
        logger: JournaledLogger = self  # type: ignore[assignment]
        if type(item) in _ARRAYS and kind in OF_ARRAYS and not strict and type(identifier) is str:
            log_array(logger, kind, identifier, item, step=step, batch_idx=batch_idx, given=given)
            return
        try:
            name = identifier if type(identifier) is str else safe_str(identifier)
            if kind is _METRIC:
                if batch_idx is None or logger._gate is None:
                    logger.log_metrics({name: item}, step)
                else:
                    logger._gate.log_metrics({name: item}, step, batch_idx)
                return
            if logger._gate is not None and logger._gate.refuses(kind, name, step, batch_idx):
                return
            writer = logger._open_writer or logger._start()
            if writer is None:
                return
            if is_lazy(item) and kind not in RESERVED:
                try:
                    item = item()
                except Exception as error:
                    raise FailedFunctionError(f"its function raised {error!r}") from error
            HANDLERS[kind](logger, writer, Call(kind, name, item, step, strict, given))
        except NonFiniteError:
            raise
        except Exception as error:
            if strict:
                raise
            not_logged(logger, kind, identifier, error)


_ARRAYS = frozenset({np.ndarray, Tensor})
_LISTS = (list, tuple)
_KINDS: dict[str, Kind] = {kind.value: kind for kind in LOGGABLE}


def as_kind(kind: str) -> Kind:
    """The kind of that name.

    Raises:
        ConfigurationError: If there is none; the message lists them.
    """
    known = _KINDS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise unknown_option("kind", kind, [one.value for one in LOGGABLE])
    return known


def _pairs(item: Any, identifier: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    if is_lazy(item):
        once = item if isinstance(item, Once) else Once(item)
        for index, name in enumerate(identifier):
            yield name, _part_of(once, index)
        return
    if not isinstance(item, list | tuple) or len(item) != len(identifier):
        got = f"{len(item)} items" if isinstance(item, list | tuple) else f"a {type(item).__name__}"
        raise ConfigurationError(f"{len(identifier)} identifiers need a list of as many items, got {got}.")
    yield from zip(identifier, item, strict=True)


def _part_of(once: Once, index: int) -> Once:
    return Once(lambda: once()[index])
