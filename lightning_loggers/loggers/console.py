"""ConsoleLogger: what is logged, on the terminal."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from lightning_loggers.aggregation import AggFunc
from lightning_loggers.loggers.journaled import DEFAULT_FINALIZE_TIMEOUT_S
from lightning_loggers.loggers.temporary import LoggerInProcess
from lightning_loggers.policies import LogPolicy


class ConsoleLogger(LoggerInProcess):
    """Shows what is logged on the terminal: readable lines, or a table that is kept up to date.

    The training step does not wait for the terminal: what is logged goes through a journal, as to any other tracker,
    and is shown within a second.

    Args:
        name: Experiment name.
        save_dir: Where runs are kept; by default a temporary folder that is removed when the process exits.
        style: ``"auto"``: lines on a terminal or in a notebook, nothing in a pipe or file. ``"lines"``: lines wherever
            the stream leads. ``"table"``: one row a metric with its last, smallest and largest value, on a terminal
            only; give it the terminal for itself with ``Trainer(enable_progress_bar=False)``.
        stream: ``"stdout"`` or ``"stderr"``.
        version: The run's folder; an existing one is continued.
        prefix: Put before metric keys, followed by ``-``.
        delivery: ``"auto"`` or ``"thread"``, or ``"offline"``: journal only; ``lightning-loggers sync`` shows it.
        finalize_timeout_s: Longest wait at the end of a run, seconds.
        agg_key_funcs: Functions by key for :meth:`agg_and_log_metrics`.
        agg_default_func: The function for other keys; by default the mean.
        policy: Which log calls are recorded; by default all.

    Raises:
        ConfigurationError: For arguments that cannot work.

    Example:
        >>> logger = ConsoleLogger()
        >>> logger.log_metrics({"loss": 0.25}, step=3)  # on a terminal: 09:30:00  step 3  loss=0.25
    """

    tracker: ClassVar[str] = "console"

    def __init__(
        self,
        name: str = "lightning_logs",
        save_dir: str | os.PathLike[str] | None = None,
        *,
        style: Literal["auto", "lines", "table"] = "auto",
        stream: Literal["stdout", "stderr"] = "stdout",
        version: str | None = None,
        prefix: str = "",
        delivery: Literal["auto", "thread", "offline"] = "auto",
        finalize_timeout_s: float = DEFAULT_FINALIZE_TIMEOUT_S,
        agg_key_funcs: Mapping[str, Any] | None = None,
        agg_default_func: AggFunc = np.mean,
        policy: LogPolicy | None = None,
    ) -> None:
        super().__init__(
            name=name,
            save_dir=save_dir,
            options={"style": style, "stream": stream},
            version=version,
            prefix=prefix,
            delivery=delivery,
            finalize_timeout_s=finalize_timeout_s,
            agg_key_funcs=agg_key_funcs,
            agg_default_func=agg_default_func,
            policy=policy,
        )
