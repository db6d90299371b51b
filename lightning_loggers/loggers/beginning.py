"""The beginning of a run: who delivers it, what joins its ranks, and who waits for its name at the tracker."""

import time
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_loggers.adapters.registry import adapter_class
from lightning_loggers.delivery.hosts import Host, Job
from lightning_loggers.delivery.moving import make_host
from lightning_loggers.delivery.relay import Relay
from lightning_loggers.delivery.state import TrackerState
from lightning_loggers.errors import TrackerUnavailableError
from lightning_loggers.notices import logger as log
from lightning_loggers.ranks import rank_by_variable, world_size
from lightning_loggers.records import Kind, RunStatus

if TYPE_CHECKING:
    from lightning_loggers.loggers.journaled import JournaledLogger

_POLL_S = 0.02


def host_of(logger: "JournaledLogger") -> Host:
    """What delivers a logger's run, not started; on other ranks than 0 nothing does: rank 0 delivers for all."""
    job = Job(
        run_dir=logger._run_dir,
        save_dir=logger._root,
        tracker=logger.tracker,
        options=logger._options,
        destination=adapter_class(logger.tracker).destination(logger._options),
        deliver_leftovers=logger._deliver_leftovers,
        notices=logger._notices,
    )
    return make_host(logger._delivery if logger.worker_rank == 0 else "offline", job)


def relay_of(logger: "JournaledLogger", rank: int) -> Relay | None:
    """What brings the other ranks' journals to rank 0, not started; ``None`` where only rank 0 logs."""
    policy, me = logger._policy, weakref.ref(logger)
    if policy is None or policy.rank_rules(None) is None:
        return None

    def job() -> str | None:
        logger = me()
        return None if logger is None or not logger._attempt else f"{logger._uid}/{logger._attempt}"

    def ranks() -> Sequence[int]:
        rules = policy.rank_rules(world_size())
        return () if rules is None else rules.ranks

    return Relay(logger._run_dir, rank, job=job, ranks=ranks, notices=logger._notices)


def tell_of_refusal(logger: "JournaledLogger") -> None:
    """Tell if nothing but a variable of the environment says that this process is another rank."""
    told = rank_by_variable()
    if told is not None and told[1] == logger.worker_rank and world_size() is None:
        variable, rank = told
        log.info(
            "%s records nothing in this process, as %s=%d says that it is one of several, whose rank 0 logs. If it "
            "is a program of its own, start it without that variable: env -u %s ...",
            type(logger).__name__,
            variable,
            rank,
            variable,
        )


def wait_for_run(logger: "JournaledLogger", timeout_s: float) -> TrackerState:
    """Wait until the tracker knows the run.

    Raises:
        TrackerUnavailableError: If it did not answer in time, or delivery is offline.
    """
    writer, host = logger._start(), logger._host
    state = host.state() if host is not None else None
    if writer is not None and host is not None and logger._delivery != "offline":
        if not writer.recorded:
            logger._record(Kind.STATUS, value=RunStatus.RUNNING.value)
        deadline = time.monotonic() + timeout_s
        host.hasten(timeout_s)
        while (state is None or state.remote.id is None) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            state = host.state()
        host.relax()
    if state is None or state.remote.id is None:
        raise TrackerUnavailableError(
            f"{adapter_class(logger.tracker).destination(logger._options)} did not answer within {timeout_s:g} s, so "
            f"this run has no id there yet (delivery={logger._delivery!r}). What was logged is in {logger._run_dir}."
        )
    return state
