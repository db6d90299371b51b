"""The interface of loggers that are begun and ended by hand, so that code written to it runs on ours.

``start_logging``, ``create_logger_context`` and so on have the names and meaning of itwinai's loggers. With a Trainer
none of it is needed.
"""

import contextlib
import json
import pickle as pickling
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning_loggers.adapters.base import unknown_option
from lightning_loggers.adapters.registry import adapter_class
from lightning_loggers.errors import ConfigurationError, UnsuitableValueError
from lightning_loggers.journal.blobs import safe_path
from lightning_loggers.loggers.recording import RESERVED
from lightning_loggers.ranks import current_rank
from lightning_loggers.records import Kind
from lightning_loggers.values import figures, images, models
from lightning_loggers.values.arrays import shape_of, snapshot
from lightning_loggers.values.plain import plain_json
from lightning_loggers.values.snapshots import Snapshot, origins

if TYPE_CHECKING:
    from lightning_loggers.loggers.journaled import JournaledLogger


class LoggingContext:
    """Beginning and ending a run by hand, and what belongs to it."""

    _context_rank: int | None = None

    @property
    def supported_kinds(self) -> tuple[str, ...]:
        """The kinds that the tracker stores, as its adapter's table says."""
        kinds = adapter_class(cast("JournaledLogger", self).tracker).capabilities.kinds
        return tuple(kind.value for kind in Kind if kind in kinds and kind not in RESERVED)

    @property
    def worker_rank(self) -> int:
        """Global rank of this process: as :meth:`create_logger_context` was told, else as the process knows."""
        return current_rank() if self._context_rank is None else self._context_rank

    @property
    def is_initialized(self) -> bool:
        """Whether the run has begun in this process."""
        return cast("JournaledLogger", self)._writer is not None

    @property
    def savedir(self) -> Path:
        """Where all runs are kept."""
        return cast("JournaledLogger", self)._root

    @property
    def log_freq(self) -> int | str:
        """How often batches are recorded, as the policy says: ``"epoch"``, ``"batch"`` or every so many."""
        policy = cast("JournaledLogger", self)._policy
        return "batch" if policy is None else policy.log_freq

    @property
    def log_on_workers(self) -> int | Sequence[int]:
        """The ranks that record, as the policy says."""
        policy = cast("JournaledLogger", self)._policy
        return 0 if policy is None else policy.log_on_workers

    @contextlib.contextmanager
    def start_logging(self, rank: int | None = None) -> Iterator[Any]:
        """A run from here to the end of the block; it fails if the block raises.

        Args:
            rank: Global rank of this process, where it cannot know.

        Yields:
            The logger.
        """
        logger = cast("JournaledLogger", self)
        self.create_logger_context(rank)
        try:
            yield logger
        except BaseException:
            logger.finalize("failed")
            raise
        finally:
            self.destroy_logger_context()

    def create_logger_context(self, rank: int | None = None, **kwargs: Any) -> Any:
        """Begin the run.

        Args:
            rank: Global rank of this process, where it cannot know; it does in a distributed strategy of Lightning's.
            **kwargs: What the tracker takes for a new run, such as ``run_name`` for MLflow.

        Returns:
            The tracker's own object, made when it is first used.

        Raises:
            ConfigurationError: For what the tracker does not take, or once the run has begun.
        """
        logger = cast("JournaledLogger", self)
        if kwargs:
            for key in kwargs:
                if key not in logger._options:
                    raise unknown_option("argument", key, sorted(logger._options))
            if logger._writer is not None:
                raise ConfigurationError(f"{sorted(kwargs)} cannot be changed: the run has begun already.")
            logger._options.update(kwargs)
        self._context_rank = rank
        with contextlib.suppress(Exception):  # what fails here is met, counted and told by the first log call
            logger._start()
        return logger.experiment

    def destroy_logger_context(self) -> None:
        """End the run, and let go of what it holds. Logging begins it again."""
        cast("JournaledLogger", self).close()

    def save_hyperparameters(self, params: Mapping[str, Any]) -> None:
        """Record hyperparameters; another name of ``log_hyperparams``."""
        cast("JournaledLogger", self).log_hyperparams(params)

    def serialize(self, obj: Any, identifier: str, *, pickle: bool = False) -> str:
        """Write an object to a file below the run's folder.

        Torch's objects become their state (``torch.load(path, weights_only=True)``), arrays ``.npy``, images and
        figures PNG, texts and what JSON can say themselves.

        Args:
            obj: The object.
            identifier: Path of the file below the run's folder ``serialized``; a suffix is added if it has none.
            pickle: Whether an object that is none of these is pickled.

        Returns:
            The file's path.

        Raises:
            UnsuitableValueError: If it is none of these and not to be pickled.
        """
        logger = cast("JournaledLogger", self)
        suffix, content = _serialized(obj, identifier, pickle=pickle)
        path = logger._run_dir / "serialized" / safe_path(identifier)
        if not path.suffix:
            path = path.with_name(f"{path.name}{suffix}")
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        return str(path)


def _serialized(obj: Any, identifier: str, *, pickle: bool) -> tuple[str, Any]:
    known = origins(obj)
    if isinstance(obj, bytes):
        return ".bin", obj
    if isinstance(obj, str):
        return ".txt", obj.encode(errors="backslashreplace")
    with contextlib.suppress(UnsuitableValueError):
        if "torch" in known or hasattr(obj, "state_dict"):
            return _first_file(models.snapshot(obj, identifier, kind="torch"), ".pt")
        if "PIL" in known:
            return _first_file(images.snapshot(obj, identifier), ".png")
        if "matplotlib" in known or "plotly" in known:
            return _first_file(figures.snapshot(obj, identifier), ".png" if "matplotlib" in known else ".html")
        if shape_of(obj) is not None and not hasattr(obj, "columns"):
            return ".npy", images.npy(snapshot(obj))
    if isinstance(obj, dict | list | tuple | int | float | bool) or obj is None:
        plain = plain_json(obj)
        return ".json", json.dumps(plain, indent=2).encode()
    if pickle:
        return ".pkl", pickling.dumps(obj)
    raise UnsuitableValueError(
        f"serialize({identifier!r}): a {type(obj).__module__}.{type(obj).__qualname__} has no form that any program "
        "could read; give pickle=True to have it pickled (whoever loads that file runs the code that it names)."
    )


def _first_file(taken: Snapshot, suffix: str) -> tuple[str, Any]:
    encoded = taken.encode()
    if not encoded.files:  # a description, of a data loader
        return ".json", json.dumps(encoded.value, indent=2).encode()
    return suffix, encoded.files[0][1]
