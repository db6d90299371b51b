"""The delivery process: ``python -m lightning_loggers.delivery.child``, or :func:`main` of it.

Its order comes as one line of JSON on standard input; a further line wakes it and says for how many seconds somebody
waits; the end of standard input says that the
trainer has closed its logger or is dead. It then delivers what is left and closes the run, and gives up only after it
has made no progress for ``linger_s``: what is left then is a leftover for the next run or for ``sync``.

A trainer whose own thread may deliver gives ``says``, a descriptor: an empty line on it says that the SDK is imported,
and each further line is a notice, as JSON. It also gives ``idle_s``, after which a process that finds nothing to
deliver ends, unless the run goes on.
"""

import json
import logging
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import msgspec
from typing_extensions import override

from lightning_loggers.adapters.registry import adapter_class
from lightning_loggers.background import interrupt_nobody
from lightning_loggers.delivery.hosts import LONGEST_WAIT_WHILE_DRAINING_S, Job, leftover_workers
from lightning_loggers.delivery.worker import Step, StepKind, Worker
from lightning_loggers.notices import Notices
from lightning_loggers.notices import logger as log

_END = "end"


def _listen(wakes: "SimpleQueue[str]") -> None:
    while said := os.read(0, 4096):
        wakes.put(said.decode(errors="replace").split()[-1])
    wakes.put(_END)


class _Telling(logging.Handler):
    """Hands notices to the trainer, which may be gone, or not listening: then they are in the log only."""

    def __init__(self, says: int) -> None:
        super().__init__(logging.INFO)
        self._says = says
        os.set_blocking(says, False)

    @override
    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            os.write(self._says, json.dumps([record.levelno, record.getMessage()]).encode() + b"\n")


def main() -> int:
    """Deliver the run named on standard input until it has ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    line = bytearray()
    while not line.endswith(b"\n"):  # unbuffered: what follows belongs to the listening thread
        byte = os.read(0, 1)
        if not byte:
            return 2
        line += byte
    order: dict[str, Any] = msgspec.json.decode(bytes(line))
    notices = Notices()
    job = Job(
        run_dir=Path(order["run_dir"]),
        save_dir=Path(order["save_dir"]),
        tracker=order["tracker"],
        options=order["options"],
        destination=order["destination"],
        notices=notices,
    )
    interrupt_nobody()
    says, idle_s = order.get("says"), order.get("idle_s")
    if says is not None:
        adapter_class(job.tracker).load(job.options)
        with suppress(OSError):
            os.write(says, b"\n")
        log.addHandler(_Telling(says))
    wakes: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(wakes,), daemon=True).start()
    worker = Worker(job.run_dir, job.options, notices=notices)
    leftovers = leftover_workers(job) if order["deliver_leftovers"] else []
    ended = False
    hurried_until = 0.0
    progress_at = time.monotonic()
    while True:
        step = worker.step()
        if step.kind is StepKind.IDLE and ended:
            step = _finish(worker)
            if step.kind is StepKind.IDLE:
                break
        hurried = ended or time.monotonic() < hurried_until
        if step.kind in {StepKind.PROGRESS, StepKind.BUSY} and not ended:
            progress_at = time.monotonic()
        if step.kind is StepKind.PROGRESS:
            progress_at = time.monotonic()
            if hurried or not step.wait_s:
                continue
        quiet_s = time.monotonic() - progress_at
        if ended and quiet_s > order["linger_s"]:
            break
        if idle_s is not None and step.kind is StepKind.IDLE and quiet_s > idle_s and not leftovers and worker.ended:
            break
        wait_s = min(step.wait_s, LONGEST_WAIT_WHILE_DRAINING_S) if hurried else step.wait_s
        if step.kind in {StepKind.IDLE, StepKind.PROGRESS} and leftovers:
            other = leftovers[0]
            done = other.step()
            if done.kind is StepKind.IDLE:
                done = other.finish_leftover()
            if done.kind is StepKind.PROGRESS:
                wait_s = 0.0
            else:
                other.close()
                leftovers.pop(0)
        with suppress(Empty):
            while True:
                said = wakes.get(timeout=wait_s) if wait_s > 0 else wakes.get_nowait()
                ended = ended or said == _END
                if said.isdigit():
                    hurried_until = time.monotonic() + int(said)
                worker.hasten()
                wait_s = 0.0
    worker.close()
    return 0


def _finish(worker: Worker) -> Step:
    """After the trainer has gone: close the run if nobody else writes to it."""
    if worker.writer_alive():
        return Step(StepKind.FAILED, 0.5, "another process still writes the run")
    return worker.finish_dead()


if __name__ == "__main__":
    sys.exit(main())
