"""The third host of delivery, beside the thread and the child process: the loop behind ``lightning-loggers sync``.

Every place that records go to has a lane, a thread of its own, so that one that is down or never answers holds up
nobody else. (Stores without a host in their address, such as SQLite files, share one: they answer or fail at once.)
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from lightning_loggers.adapters.registry import KNOWN, adapter_class, require_sdk
from lightning_loggers.delivery.discover import Target, find_runs, resolve
from lightning_loggers.delivery.lanes import Lane, Orders, Task, Tell
from lightning_loggers.delivery.overview import Overview, look
from lightning_loggers.delivery.pending import ends_of, remaining_bytes
from lightning_loggers.errors import ConfigurationError, LightningLoggersError
from lightning_loggers.secrets import mask, secrets_of_uri

_POLL_S = 0.1
_GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run stands after :meth:`Sync.run`.

    Attributes:
        run_dir: The run's folder.
        label: Its name and version.
        delivered: Records delivered by us.
        rejected: Records that the tracker refuses, from all times.
        pending: Whether anything has still to go to the tracker.
        reason: Why, or what else is worth saying.
    """

    run_dir: Path
    label: str
    delivered: int = 0
    rejected: int = 0
    pending: bool = False
    reason: str = ""


class Sync:
    """Delivers every run below some folders.

    Args:
        paths: Folders of runs, or anything above them.
        to: Another address than the journals' own.
        follow: Keep watching for new records and new runs until :attr:`stopping` is set.
        every_s: How often it looks, with ``follow``.
        give_up_after_s: Without ``follow``: how long a place may fail without any progress before it is left alone.
        tell: Says a sentence to the user.

    Guarantees:
        - Nothing is lost and the journal is never changed, wherever this process is killed: the worker's cursors move
          over what was acknowledged, and the kernel gives its locks back.
        - A run that a live process delivers is left to it. Of a live writer's files, only journals are read.
        - A place that does not answer, a damaged journal, or a missing SDK holds up no other run.

    Raises:
        ConfigurationError: If no tracker can be reached at ``to``, or a path does not exist.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        to: str | None = None,
        follow: bool = False,
        every_s: float = 2.0,
        give_up_after_s: float = 60.0,
        tell: Tell = lambda message: None,
    ) -> None:
        for path in paths:
            if not path.exists():
                raise ConfigurationError(f"{path} does not exist; give a run's folder or any folder above runs.")
        if to is not None:
            to = _absolute(to)
            _check_address(to)
        self.follow, self.every_s = follow, every_s
        self.stopping = threading.Event()
        self.secrets: set[str] = set(secrets_of_uri(to)) if to else set()
        self.problems: dict[Path, str] = {}
        self.found = 0
        self._paths, self._to = list(paths), to
        self._tell = tell
        self._orders = Orders(follow, every_s, give_up_after_s, self.tell, self.secrets, self.stopping)
        self._tasks: dict[Path, Task] = {}
        self._lanes: dict[tuple[str, str, str], Lane] = {}

    def tell(self, message: str) -> None:
        """Say a sentence to the user, secrets masked."""
        self._tell(mask(message, self.secrets))

    def run(self, on_poll: Callable[["Sync"], object] = lambda sync: None) -> list[Outcome]:
        """Deliver until all is done or given up, or with ``follow`` until :attr:`stopping` is set.

        Args:
            on_poll: Called some times a second in the calling thread, e.g. to move a progress bar.

        Returns:
            What became of every run that had something to deliver; empty if it was stopped.
        """
        self._scan()
        next_scan = time.monotonic() + self.every_s
        while not self.stopping.wait(_POLL_S):
            on_poll(self)
            if self.follow and time.monotonic() >= next_scan:
                begun = time.monotonic()
                self._scan()
                # A tree that takes long to walk is walked less often: the file system is other people's too.
                next_scan = time.monotonic() + max(self.every_s, 10 * (time.monotonic() - begun))
            if not self.follow and not self.is_busy():
                on_poll(self)
                return [self._outcome(task) for task in self._tasks.values()]
        self._stop()
        return []

    def plan(self) -> list[Overview]:
        """What :meth:`run` would deliver. Nothing on disk is touched."""
        planned = []
        for run_dir, target in self._targets():
            try:
                seen = look(target, pending_only=True)
            except Exception as error:  # noqa: BLE001 - seam, as in _targets
                self._problem(run_dir, _said(error))
                continue
            if seen.pending or seen.tracker_needs_status:
                planned.append(seen)
        return planned

    def is_busy(self) -> bool:
        """Whether a request is still under way."""
        return any(lane.is_alive() for lane in self._lanes.values())

    def remaining_bytes(self) -> int:
        """Bytes of journals that are not delivered yet."""
        total = 0
        for task in list(self._tasks.values()):
            worker = task.worker
            state = worker.state if worker is not None else None
            if state is not None:
                task.remaining = remaining_bytes(task.target.folder, dict(state.cursors))
            total += 0 if task.over else task.remaining
        return total

    # ---------------------------------------------------------------- finding

    def _targets(self) -> Iterable[tuple[Path, Target]]:
        found: set[Path] = set()
        for root in self._paths:
            for run_dir in find_runs(root, self._problem):
                real = run_dir.resolve()
                if real in found:
                    continue
                found.add(real)
                try:
                    target = resolve(run_dir, self._to)
                except Exception as error:  # noqa: BLE001 - seam: one damaged folder must not stop all others
                    self._problem(run_dir, _said(error))
                    continue
                if target is not None:
                    self.secrets.update(target.secrets)  # in place: the lanes look at the same
                    yield run_dir, target
        self.found = len(found)

    def _scan(self) -> None:
        for run_dir, target in self._targets():
            if self.stopping.is_set():
                return
            known = self._tasks.get(run_dir)
            ends = ends_of(target.folder)
            if known is not None:
                if known.over and known.seen != ends:
                    self._lane(target).add(known)
                continue
            try:
                state = target.load_state()
                remaining = remaining_bytes(target.folder, state.cursors)
                if not remaining and not target.needs_closing(state):
                    continue
                require_sdk(target.tracker, "lightning-loggers sync")
            except Exception as error:  # noqa: BLE001 - seam, as in _targets
                self._problem(run_dir, _said(error))
                continue
            if self.follow:
                self.tell(f"{target.label}: delivering {run_dir} to {target.destination}")
            task = self._tasks[run_dir] = Task(target, state.delivered, remaining, ends)
            self._lane(target).add(task)
        for lane in self._lanes.values():
            lane.begin()

    def _lane(self, target: Target) -> Lane:
        try:
            parts = urlsplit(target.destination)
            key = (target.tracker, parts.scheme, parts.netloc)
        except ValueError:
            key = (target.tracker, target.destination, "")
        if key not in self._lanes:
            self._lanes[key] = Lane(self._orders)
        return self._lanes[key]

    def _problem(self, path: Path, reason: str) -> None:
        reason = mask(reason, self.secrets)
        if self.problems.get(path) != reason:
            self.problems[path] = reason
            self.tell(f"{path} was left as it is: {reason}")

    # ---------------------------------------------------------------- ending

    def _outcome(self, task: Task) -> Outcome:
        target = task.target
        try:
            seen = look(target, pending_only=True)
        except Exception as error:  # noqa: BLE001 - seam, as in _targets
            return Outcome(target.run_dir, target.label, pending=True, reason=_said(error))
        pending = bool(seen.pending or seen.tracker_needs_status) and not (task.settled and seen.writer_alive)
        reason = ""
        if pending:
            left = "its process wrote more meanwhile" if seen.pending else "it could not be closed"
            what = f"{seen.pending} records are pending" if seen.pending else "the tracker has yet to be told its end"
            reason = f"{what}: {task.reason or left}"
        elif task.settled and seen.writer_alive:
            reason = "is still being written; what it had recorded is delivered"
        elif task.reason:
            reason = task.reason
        delivered = max(seen.delivered - task.delivered_before, 0)
        return Outcome(target.run_dir, target.label, delivered, seen.rejected, pending, reason)

    def _stop(self) -> None:
        for task in list(self._tasks.values()):
            if (worker := task.worker) is not None:
                worker.stopping.set()
        for lane in self._lanes.values():
            lane.wake.set()
        deadline = time.monotonic() + _GRACE_S
        for lane in self._lanes.values():
            if lane.is_alive():
                lane.join(max(deadline - time.monotonic(), 0.0))


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, LightningLoggersError) else f"{type(error).__name__}: {error}"


def _absolute(to: str) -> str:
    """An SQLite file named from here must be the same file when somebody comes back from elsewhere.

    >>> _absolute("sqlite:////runs/mlflow.db"), _absolute("http://host"), _absolute("sqlite:///x.db") == "sqlite:///x.db"
    ('sqlite:////runs/mlflow.db', 'http://host', False)
    """
    path = to.removeprefix("sqlite:///")
    return to if path in {to, ""} or path.startswith(("/", ":")) else f"sqlite:///{Path(path).absolute()}"


def _check_address(to: str) -> None:
    """Refuse an address that no adapter takes."""
    refusal: ConfigurationError | None = None
    for name in KNOWN:
        kind = adapter_class(name)
        if kind.address_option is None:
            continue
        try:
            kind.check_options({kind.address_option: to})
        except ConfigurationError as error:
            refusal = refusal or error
        else:
            return
    if refusal is not None:
        raise refusal
