"""Where the delivery loop runs while training does: a thread, a child process, or nowhere (offline)."""

import contextlib
import functools
import os
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import msgspec
from typing_extensions import override

from lightning_loggers import importing
from lightning_loggers.adapters.registry import adapter_class
from lightning_loggers.background import interrupt_nobody
from lightning_loggers.delivery.discover import siblings
from lightning_loggers.delivery.state import StateFile, TrackerState
from lightning_loggers.delivery.worker import Step, StepKind, Worker
from lightning_loggers.journal.layout import journal_dir
from lightning_loggers.journal.reader import Position
from lightning_loggers.notices import Notices

_DRAIN_POLL_S = 0.02
LONGEST_WAIT_WHILE_DRAINING_S = 1.0
_CHILD_LINGERS_S = 600.0
_LONGEST_HURRY_S = 1e6  # finalize_timeout_s may be infinite

Progress = Callable[[Mapping[str, Position]], object]


@dataclass(slots=True)
class Job:
    """What a host is to deliver.

    Attributes:
        run_dir: The run's folder.
        save_dir: Where other runs lie.
        tracker: The adapter's name.
        options: The tracker's options, secrets included.
        destination: Where that leads, without secrets.
        deliver_leftovers: Whether runs of dead processes in ``save_dir`` are delivered too.
        notices: Where faults are told.
    """

    run_dir: Path
    save_dir: Path
    tracker: str
    options: dict[str, Any]
    destination: str
    deliver_leftovers: bool = True
    notices: Notices = field(default_factory=Notices)


class Host(ABC):
    """Where the loop runs.

    Guarantees:
        - :meth:`start`, :meth:`hasten` and the waiting of :meth:`drain` take no lock that delivery holds, so they are
          safe in a signal handler that interrupted anything of ours.
        - :meth:`drain` waits no longer than it was told.
    """

    def __init__(self, job: Job) -> None:
        self.job = job

    def prepare(self) -> None:
        """Called before a training begins, before or after :meth:`start`: do what would slow it down."""

    @abstractmethod
    def start(self) -> None:
        """Begin to deliver; called with the first record, and again in a forked child."""

    @abstractmethod
    def hasten(self, seconds: float) -> None:
        """Have the loop look at the journal now, and for that long deliver what comes at once.

        After a failure it then waits a second at most.
        """

    @abstractmethod
    def relax(self) -> None:
        """Nobody waits any more: back to a look a second."""

    @abstractmethod
    def state(self) -> TrackerState | None:
        """The tracker's state as far as this process knows it."""

    def drain(self, ends: Mapping[str, Position], timeout_s: float, progress: Progress | None = None) -> bool:
        """Wait until everything before ``ends`` is delivered.

        Args:
            ends: Stream to the end of what must be delivered.
            timeout_s: Longest wait, seconds.
            progress: Called now and then with the cursors.

        Returns:
            Whether it is all delivered.
        """
        deadline = time.monotonic() + timeout_s
        self.hasten(timeout_s)
        try:
            while not self._reached(ends):
                if time.monotonic() >= deadline or not self.working():
                    return self._reached(ends)
                if progress is not None and (state := self.state()) is not None:
                    progress(state.cursors)
                time.sleep(_DRAIN_POLL_S)
        finally:
            self.relax()
        return True

    def working(self) -> bool:
        """Whether waiting for it makes sense."""
        return True

    @abstractmethod
    def stop(self) -> None:
        """End the loop after the batch under way; does not wait for it."""

    def _reached(self, ends: Mapping[str, Position]) -> bool:
        state = self.state()
        if state is None:
            return not ends
        return all(state.cursors.get(stream, Position()) >= end for stream, end in ends.items())


class OfflineHost(Host):
    """Journal only: ``lightning-loggers sync`` delivers, from any machine that sees the folder."""

    @override
    def start(self) -> None:
        return

    @override
    def hasten(self, seconds: float) -> None:
        return

    @override
    def relax(self) -> None:
        return

    @override
    def state(self) -> TrackerState | None:
        return StateFile(journal_dir(self.job.run_dir), self.job.tracker).load(self.job.tracker)

    @override
    def working(self) -> bool:
        return False

    @override
    def stop(self) -> None:
        return


class _ShortTurns:
    """While a delivery thread works, has CPython hand the interpreter lock over 25 times as often.

    A thread that wants the lock waits ``sys.getswitchinterval()`` (5 ms by default) before the holder is asked for it:
    with a busy delivery thread that is what a training step would wait after every operation that released the lock.
    The interval is the process's, so it is put back whenever no delivery thread works, and never made longer.
    """

    INTERVAL_S = 0.0002

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of delivery threads only
        self._working = 0
        self._before = 0.0

    def __enter__(self) -> None:
        with self._lock:
            self._working += 1
            if self._working == 1:
                self._before = sys.getswitchinterval()
                if self._before > self.INTERVAL_S:
                    sys.setswitchinterval(self.INTERVAL_S)

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._working -= 1
            if self._working == 0 and abs(sys.getswitchinterval() - self.INTERVAL_S) < 1e-6:
                sys.setswitchinterval(self._before)

    def forget(self) -> None:
        """In a forked child there is no delivery thread."""
        if self._working:
            sys.setswitchinterval(self._before)
        self._lock, self._working = threading.Lock(), 0


_short_turns = _ShortTurns()
os.register_at_fork(after_in_child=_short_turns.forget)


class ThreadHost(Host):
    """A daemon thread of the training process. It ends with the process; what is left is a leftover for the next."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._wakes: SimpleQueue[None] = SimpleQueue()  # put() is reentrant, also in a signal handler
        self._thread: threading.Thread | None = None
        self._worker: Worker | None = None
        self._hurried_until = 0.0
        self._pid = os.getpid()

    @override
    def prepare(self) -> None:
        with contextlib.suppress(Exception):  # told when the run is opened
            adapter_class(self.job.tracker).load(self.job.options)

    @override
    def start(self) -> None:
        if self._pid != os.getpid():  # forked: the thread stayed with the parent
            self._pid, self._thread, self._wakes = os.getpid(), None, SimpleQueue()
        ended = self._worker is not None and self._worker.stopping.is_set()  # closed: its thread is about to end
        if self._thread is None or not self._thread.is_alive() or ended:
            self._worker = Worker(self.job.run_dir, self.job.options, notices=self.job.notices)
            self._thread = threading.Thread(target=self._run, name="lightning-loggers-delivery", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter is shutting down: the run becomes a leftover
                self._thread.start()

    @override
    def hasten(self, seconds: float) -> None:
        self._hurried_until = time.monotonic() + seconds
        self._wakes.put(None)

    @override
    def relax(self) -> None:
        self._hurried_until = 0.0

    @override
    def state(self) -> TrackerState | None:
        worker = self._worker
        if worker is None or worker.delivers:
            return worker.state if worker is not None else None
        # Another host (of a copy of this logger, or of this process's parent) delivers the run: read what it has saved.
        return StateFile(journal_dir(self.job.run_dir), self.job.tracker).load(self.job.tracker)

    @override
    def working(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @override
    def stop(self) -> None:
        if self._worker is not None:
            self._worker.stopping.set()
        self._wakes.put(None)

    def _run(self) -> None:
        worker = self._worker
        assert worker is not None
        interrupt_nobody()
        with importing.beside_training():
            self._deliver(worker)

    def _deliver(self, worker: Worker) -> None:
        """Deliver as long as this thread is to."""
        leftovers = self._leftovers()
        while self._goes_on(worker):
            step = self._turn(worker, worker.step)
            hurried = self._hurried()
            if step.kind is StepKind.PROGRESS and (hurried or not step.wait_s):
                continue
            wait_s = step.wait_s
            if step.kind in {StepKind.IDLE, StepKind.PROGRESS} and leftovers and not hurried:
                other = leftovers[0]
                done = self._turn(other, functools.partial(_step_leftover, other))
                if done.kind is StepKind.PROGRESS:
                    wait_s = 0.0
                else:
                    other.close()
                    leftovers.pop(0)
            self._wait(worker, step, wait_s)
        for other in leftovers:  # first: whoever finds the run free goes on with them
            other.close()
        worker.close()

    def _goes_on(self, worker: Worker) -> bool:
        return not worker.stopping.is_set()

    def _hurried(self) -> bool:
        return time.monotonic() < self._hurried_until

    def _turn(self, worker: Worker, take_step: Callable[[], Step]) -> Step:
        """Have a worker, of the run or of a leftover, take one step."""
        with _short_turns:
            return take_step()

    def _wait(self, worker: Worker, step: Step, wait_s: float) -> None:
        fault = worker.last_fault
        asked = fault is not None and fault.retry_after_s is not None
        if self._hurried() and step.kind is not StepKind.IDLE and not asked:
            wait_s = min(wait_s, LONGEST_WAIT_WHILE_DRAINING_S)
        if wait_s <= 0:
            return
        with contextlib.suppress(Empty):
            self._wakes.get(timeout=wait_s)
            worker.hasten()
            while True:
                self._wakes.get_nowait()

    def _leftovers(self) -> list[Worker]:
        if not self.job.deliver_leftovers:
            return []
        return leftover_workers(self.job)


def leftover_workers(job: Job) -> list[Worker]:
    """Workers for runs of dead processes beside ``job``'s own that go to the same place and are not all delivered."""
    workers = []
    for run_dir in siblings(job.save_dir, job.run_dir):
        try:
            worker = Worker(run_dir, notices=job.notices)
            if worker.is_leftover(job.tracker, job.destination, job.options):
                workers.append(worker)
        except Exception as error:  # noqa: BLE001 - seam: somebody else's damaged folder must not stop our delivery
            job.notices.tell_once(("leftover", str(run_dir)), f"{run_dir} was left as it is: {error}")
    return workers


def _step_leftover(worker: Worker) -> Step:
    step = worker.step()
    if step.kind is StepKind.IDLE:
        return worker.finish_leftover()
    return step


_children: list["subprocess.Popen[bytes]"] = []

_BEGIN_CHILD = (
    "import sys; sys.path[:] = sys.argv[1:]; from lightning_loggers.delivery.child import main; sys.exit(main())"
)
"""With ``-m`` modules would be looked for in the working folder first, where the trainer need not find its own."""


class ProcessHost(Host):
    """A child process in a session of its own: it outlives a killed trainer, delivers its tail and closes the run."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._child: subprocess.Popen[bytes] | None = None
        self._pid = os.getpid()

    @override
    def start(self) -> None:
        if self._pid != os.getpid():
            self._pid, self._child = os.getpid(), None
        child = self._child
        if child is not None and child.poll() is None and child.stdin is not None and not child.stdin.closed:
            return  # closed, it would end after what there was then
        folder = journal_dir(self.job.run_dir)
        _children[:] = [child for child in _children if child.poll() is None]  # reap; the others stay referenced
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self.log_file(self.job).open("ab") as log:
                path = [entry for entry in sys.path if isinstance(entry, str)]
                self._child = self._popen([sys.executable, "-c", _BEGIN_CHILD, *path], stdout=log, stderr=log)
            _children.append(self._child)
            assert self._child.stdin is not None
            order = msgspec.json.encode(self._order())
            self._child.stdin.write(order + b"\n")  # secrets go by the pipe, not the command line
            self._child.stdin.flush()
        except OSError as error:
            self.job.notices.tell_once(
                ("child", error.errno),
                f"The delivery process could not be started ({error}); records are kept in {folder}. "
                f"Deliver them with: lightning-loggers sync {self.job.run_dir}",
            )

    @staticmethod
    def log_file(job: Job) -> Path:
        """What the child writes while it works."""
        return journal_dir(job.run_dir) / "delivery.log"

    def _order(self) -> dict[str, Any]:
        return {
            "run_dir": str(self.job.run_dir.resolve()),
            "save_dir": str(self.job.save_dir.resolve()),
            "tracker": self.job.tracker,
            "options": self.job.options,
            "destination": self.job.destination,
            "deliver_leftovers": self.job.deliver_leftovers,
            "linger_s": _CHILD_LINGERS_S,
        }

    def _popen(self, command: list[str], **given: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **given)

    @override
    def hasten(self, seconds: float) -> None:
        self._tell_child(max(int(min(seconds, _LONGEST_HURRY_S)), 1))

    @override
    def relax(self) -> None:
        self._tell_child(0)

    def _tell_child(self, hurried_s: int) -> None:
        if self._child is not None and self._child.stdin is not None:
            with contextlib.suppress(OSError, ValueError):
                os.write(self._child.stdin.fileno(), b"%d\n" % hurried_s)

    @override
    def state(self) -> TrackerState | None:
        return StateFile(journal_dir(self.job.run_dir), self.job.tracker).load(self.job.tracker)

    @override
    def working(self) -> bool:
        return self._child is not None and self._child.poll() is None

    @override
    def stop(self) -> None:
        child = self._child
        if child is not None and child.stdin is not None:
            with contextlib.suppress(OSError):
                child.stdin.close()
