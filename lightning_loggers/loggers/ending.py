"""The end of a run: what it was, what is waited for, and what becomes of one that nobody has ended."""

import atexit
import contextlib
import logging
import sys
import weakref
from typing import TYPE_CHECKING

from lightning_loggers import jobs
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.loggers import arriving, encoding
from lightning_loggers.notices import logger as log
from lightning_loggers.progress import delivery_bar
from lightning_loggers.records import Kind, RunStatus

if TYPE_CHECKING:
    from lightning_loggers.loggers.journaled import JournaledLogger

live: "weakref.WeakSet[JournaledLogger]" = weakref.WeakSet()
"""The loggers that have begun a run in this process, and are not closed."""


def run_status(status: str) -> RunStatus:
    """Lightning's status word, and the exception it does not tell apart, as a run's status."""
    if status == "success":
        return RunStatus.FINISHED
    if status == "finished":  # Lightning's SLURM handler says this just before it requeues the job
        return RunStatus.PREEMPTED if jobs.slurm_job() is not None else RunStatus.FINISHED
    if status in {"failed", "aborted"}:
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and jobs.restarts_left():
            return RunStatus.PREEMPTED  # torchrun starts its processes again when one fails
        # SIGTERM in a SLURM job: it is preempted. (scancel sends the same; nothing tells it apart.)
        if type(error).__name__ == "SIGTERMException" and jobs.slurm_job() is not None:
            return RunStatus.PREEMPTED
        return RunStatus.INTERRUPTED if isinstance(error, KeyboardInterrupt | SystemExit) else RunStatus.FAILED
    try:
        return RunStatus(status)
    except ValueError:
        return RunStatus.FINISHED


def end(logger: "JournaledLogger", status: RunStatus) -> None:
    """Note how the run has ended, and wait for delivery as long as the logger was told to at most."""
    writer, host = logger._writer, logger._host
    if writer is None or host is None:
        return
    if not writer.recorded and (logger._policy is None or logger._policy.logs_on(logger.worker_rank)):
        return
    if status is RunStatus.PREEMPTED and logger.worker_rank == 0:
        logger._note_run(preempted=True)
    failed = isinstance(sys.exc_info()[1], Exception)
    logger._waits_for_restart = status is RunStatus.PREEMPTED and failed and jobs.restarts_left() > 0
    logger._record(Kind.STATUS, value=status.value)
    logger._finalized_at = writer.recorded
    writer.flush()
    ends = {writer.stream: writer.position} if writer.stream is not None else {}
    if logger._relay is not None and (logger.worker_rank != 0 or logger._delivery == "offline"):
        assert logger._policy is not None
        logger._relay.finish(logger._policy.rank_wait_s)  # on rank 0 delivery itself waits for the others
    if logger.worker_rank != 0:
        return
    if logger._delivery == "offline":
        in_memory = writer.pending_in_memory
        logger._notices.tell_once(
            ("offline", logger.version, bool(in_memory)),
            f"{writer.recorded} records of this run {_are_kept(logger, in_memory)} Deliver them from a machine that "
            f"reaches the tracker: lightning-loggers sync {logger._run_dir}",
            level=logging.WARNING if in_memory else logging.INFO,
        )
        return
    try:
        with delivery_bar(host, ends) as progress:
            delivered = host.drain(ends, logger._finalize_timeout_s, progress)
    except (KeyboardInterrupt, SystemExit):  # the user, or the system, waits no longer
        with contextlib.suppress(Exception):  # what fails here must not take the interruption's place
            _tell_pending(logger, writer, "when it was interrupted")
        raise
    if delivered and not writer.pending_in_memory:
        log.info("%s: %s", type(logger).__name__, logger.stats)
    else:
        _tell_pending(logger, writer, f"within {logger._finalize_timeout_s:g} s")


def _tell_pending(logger: "JournaledLogger", writer: JournalWriter, when: str) -> None:
    in_memory, stats = writer.pending_in_memory, logger.stats
    log.warning(
        "%s: the tracker had not taken all records %s (%s). %sThe pending ones %s Deliver them with: lightning-loggers "
        "sync %s",
        type(logger).__name__,
        when,
        stats,
        "" if in_memory or stats.dropped else "Nothing is lost. ",
        _are_kept(logger, in_memory),
        logger._run_dir,
    )


def _are_kept(logger: "JournaledLogger", in_memory: int) -> str:
    """Where the records are: on the disk, but for those that it refuses."""
    if not in_memory:
        return f"are in {logger._run_dir}."
    return (
        f"are in {logger._run_dir}, but for the last {in_memory}, which are in memory only because nothing can be "
        f"written there. These are lost if the process ends before that is mended (see `df -h {logger._run_dir}`)."
    )


def finish_encoding(logger: "JournaledLogger") -> None:
    """Have what is being encoded in the journal; what does not get there in time is told."""
    if not arriving.drain(logger):
        logger._notices.tell_once(
            ("arriving", type(logger)),
            f"{type(logger).__name__}: {arriving.pending(logger)} calls of log_metrics wait for values from a device "
            "that does not answer. They are recorded as soon as it does, and lost if the process ends before.",
        )
    if not encoding.drain(logger, encoding.DRAIN_TIMEOUT_S):
        logger._notices.tell_once(
            ("encoding", type(logger)),
            f"{type(logger).__name__}: {encoding.pending(logger)} values (images, videos, ...) are still "
            "being encoded. They are recorded as soon as that is done, and lost if the process ends before. Log "
            "fewer or smaller ones: LogPolicy(log_freq=...).",
        )


def end_at_exit(logger: "JournaledLogger") -> None:
    """The interpreter exits: end what was not ended, as what it was."""
    if logger._gate is not None:
        with contextlib.suppress(Exception):
            logger._gate.flush()
    with contextlib.suppress(Exception):
        logger._finish_encoding()
    if logger._writer is None:
        return
    error = getattr(sys, "last_type", None)
    if logger._writer.recorded == logger._finalized_at:
        if logger._waits_for_restart and error is None:  # it failed, which the program got over
            with contextlib.suppress(Exception):
                end(logger, RunStatus.FAILED)
        return
    if error is None:
        status = RunStatus.FINISHED
    else:
        status = RunStatus.INTERRUPTED if issubclass(error, KeyboardInterrupt) else RunStatus.FAILED
    with contextlib.suppress(Exception):
        end(logger, status)


def end_all() -> None:
    """The interpreter exits: end what was not ended, and tell what the disk has refused to the last."""
    for logger in list(live):
        end_at_exit(logger)
        writer = logger._writer
        if writer is not None and writer.pending_in_memory:
            with contextlib.suppress(Exception):  # the others' turn comes all the same
                writer.close()


atexit.register(end_all)
