"""InMemoryLogger: every value at hand in this process."""

import os
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from typing_extensions import override

from lightning_loggers.adapters.memory import MemoryRun, memory_of
from lightning_loggers.aggregation import AggFunc
from lightning_loggers.errors import TrackerUnavailableError
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.loggers import encoding
from lightning_loggers.loggers.journaled import DEFAULT_FINALIZE_TIMEOUT_S
from lightning_loggers.loggers.temporary import LoggerInProcess
from lightning_loggers.policies import LogPolicy
from lightning_loggers.records import Kind, Record, RunStatus

_POLL_S = 0.02


class InMemoryLogger(LoggerInProcess):
    """Keeps every value in this process, for tests and notebooks.

    What was logged is delivered through a journal as to any other tracker. Whatever is asked of this logger first waits
    for that delivery, which takes milliseconds, so it answers with everything that was logged before the question.

    Args:
        name: Experiment name.
        save_dir: Where runs are kept; by default a temporary folder that is removed when the process exits.
        version: The run's folder; an existing one is continued, and with the first log call what it holds is known here
            too.
        prefix: Put before metric keys, followed by ``-``.
        delivery: ``"auto"`` or ``"thread"``, or ``"offline"``: journal only, and nothing can be asked.
        finalize_timeout_s: Longest wait for delivery, seconds.
        agg_key_funcs: Functions by key for :meth:`agg_and_log_metrics`.
        agg_default_func: The function for other keys; by default the mean.
        policy: Which log calls are recorded; by default all.

    Raises:
        ConfigurationError: For arguments that cannot work.

    Example:
        >>> logger = InMemoryLogger()
        >>> for step in range(3):
        ...     logger.log_metrics({"loss": 1 / (step + 1)}, step)
        >>> logger.most_recent("loss")
        0.3333333333333333
        >>> logger.timeseries("loss")["step"]
        array([0, 1, 2])
    """

    tracker: ClassVar[str] = "memory"

    def __init__(
        self,
        name: str = "lightning_logs",
        save_dir: str | os.PathLike[str] | None = None,
        *,
        version: str | None = None,
        prefix: str = "",
        delivery: Literal["auto", "thread", "offline"] = "auto",
        finalize_timeout_s: float = DEFAULT_FINALIZE_TIMEOUT_S,
        agg_key_funcs: Mapping[str, Any] | None = None,
        agg_default_func: AggFunc = np.mean,
        policy: LogPolicy | None = None,
    ) -> None:
        self._memory: MemoryRun | None = None
        super().__init__(
            name=name,
            save_dir=save_dir,
            options={},
            version=version,
            prefix=prefix,
            delivery=delivery,
            finalize_timeout_s=finalize_timeout_s,
            agg_key_funcs=agg_key_funcs,
            agg_default_func=agg_default_func,
            policy=policy,
        )

    # ------------------------------------------------------------------ what it holds

    @property
    def metric_names(self) -> list[str]:
        """The metrics, in the order in which they were first logged."""
        return self._delivered().names

    def most_recent(self, name: str) -> int | float:
        """The value of a metric that was logged last.

        Args:
            name: The metric, as it was logged (with the ``prefix``).

        Raises:
            KeyError: If there is no such metric.
            TrackerUnavailableError: If not all was delivered within ``finalize_timeout_s``.
        """
        return self._delivered().most_recent(name)

    @property
    def most_recent_values(self) -> dict[str, int | float]:
        """The value of every metric that was logged last."""
        return self._delivered().most_recent_values

    def timeseries(self, name: str) -> dict[str, "np.ndarray[Any, Any]"]:
        """All values of a metric, in the order of their log calls.

        Args:
            name: The metric, as it was logged (with the ``prefix``).

        Returns:
            Four arrays of shape ``(N,)``: ``"value"`` and ``"step"`` (integers if all of them are, else floats, a
            missing step as NaN), ``"timestamp"`` (``datetime64[ns]``, UTC), and ``"epoch"`` (as the step).

        Raises:
            KeyError: If there is no such metric.
            TrackerUnavailableError: If not all was delivered within ``finalize_timeout_s``.
        """
        return self._delivered().timeseries(name)

    @property
    def hyperparams(self) -> dict[str, Any]:
        """Hyperparameters by name, nested names joined by ``/``."""
        return dict(self._delivered().hyperparams)

    def texts(self, key: str) -> list[str]:
        """The texts logged under a key, in order."""
        return self._delivered().values_of(Kind.TEXT, key)

    def dicts(self, key: str) -> list[Any]:
        """The dictionaries logged under a key, in order."""
        return self._delivered().values_of(Kind.DICT, key)

    @property
    def records(self) -> list[Record]:
        """Everything that is neither metric nor hyperparameter, in order."""
        return list(self._delivered().records)

    @property
    def status(self) -> RunStatus | None:
        """The run's last status."""
        return self._delivered().status

    @override
    def _native(self) -> MemoryRun:
        return self._hold()

    @override
    def _native_class(self) -> type:
        return MemoryRun

    # ------------------------------------------------------------------ inside

    @override
    def _start(self) -> JournalWriter | None:
        self._hold()  # before delivery begins: what nobody holds is gone when delivery closes
        return super()._start()

    def _hold(self) -> MemoryRun:
        if self._memory is None:
            self._memory = memory_of(self._run_dir)
        return self._memory

    def _delivered(self) -> MemoryRun:
        """The memory, once everything that was logged so far is in it."""
        self._log_all_held()
        encoding.drain(self, self._finalize_timeout_s)
        writer, host = self._writer, self._host
        if writer is not None and host is not None:
            writer.flush()
            ends = {writer.stream: writer.position} if writer.stream is not None else {}
            deadline = time.monotonic() + self._finalize_timeout_s
            while not host.drain(ends, max(deadline - time.monotonic(), 0.0)) or writer.pending_in_memory:
                if self._delivery == "offline" or time.monotonic() >= deadline:
                    raise TrackerUnavailableError(
                        f"{type(self).__name__} does not hold all records of this run yet "
                        f"(delivery={self._delivery!r}, waited at most {self._finalize_timeout_s:g} s; {self.stats}). "
                        f"They are in {self._run_dir}."
                    )
                time.sleep(_POLL_S)  # another thread is about to start delivery, or the disk refuses for the moment
                writer.flush()
        return self._hold()

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_memory": None}
