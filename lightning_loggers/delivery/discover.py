"""Finding runs on disk, and where each of them is to be delivered."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_loggers.adapters.base import Adapter
from lightning_loggers.adapters.registry import adapter_class
from lightning_loggers.delivery.pending import remaining_bytes
from lightning_loggers.delivery.state import StateFile, TrackerState, state_name
from lightning_loggers.errors import ConfigurationError, JournalFormatError
from lightning_loggers.journal.layout import (
    JOURNAL_FOLDER,
    delivery_lock_path,
    is_journal,
    journal_dir,
    list_segments,
    lock_path,
)
from lightning_loggers.journal.lock import is_locked
from lightning_loggers.journal.reader import read_first_header
from lightning_loggers.records import Header
from lightning_loggers.secrets import secrets_of_uri, strip_uri

OnProblem = Callable[[Path, str], object]


def find_runs(root: Path, on_problem: OnProblem = lambda path, reason: None) -> Iterator[Path]:
    """Every run's folder at or below ``root``, in the order of their names.

    Symbolic links are not followed: a link in a shared folder must not lead elsewhere.

    Args:
        root: A run's folder, its journal folder, a ``save_dir``, or anything above.
        on_problem: Told of each folder that could not be looked into, with the reason.
    """
    real = root.resolve()
    if real.name == JOURNAL_FOLDER and is_journal(real):
        yield real.parent
        return

    def refused(error: OSError) -> None:
        on_problem(Path(error.filename or root), f"cannot be read: {error.strerror}")

    for folder, below, _ in os.walk(root, onerror=refused):
        below.sort()
        if JOURNAL_FOLDER not in below:
            continue
        path = Path(folder)
        if journal_dir(path).is_symlink():
            below.remove(JOURNAL_FOLDER)
            on_problem(path, "its journal folder is a symbolic link, which is not followed; give the real folder")
        elif not os.access(journal_dir(path), os.R_OK | os.X_OK):
            continue  # the walk itself meets and tells it
        elif is_journal(journal_dir(path)):
            below.remove(JOURNAL_FOLDER)
            yield path


def siblings(save_dir: Path, own: Path) -> list[Path]:
    """The other runs of a ``save_dir`` that lie as deep in it as ``own``, usually at ``<name>/<version>``."""
    home = own.parent if is_journal(journal_dir(own.parent)) else own  # that shares a folder with another tracker's
    try:
        deep = "*/" * len(home.relative_to(save_dir).parts)
        places = [*save_dir.glob(f"{deep}{JOURNAL_FOLDER}"), *save_dir.glob(f"{deep}*.run/{JOURNAL_FOLDER}")]
        found = [place.parent for place in places if not place.is_symlink()]
    except (OSError, ValueError):
        return []
    return sorted(run for run in found if run != own)


@dataclass(frozen=True, slots=True)
class Target:
    """A run and the place it is delivered to. Looking at it changes nothing on disk.

    Attributes:
        run_dir: The run's folder.
        header: The first header of its journal.
        options: What the journal does not say and this host knows (an address with its secrets, another address).
        destination: Where it leads, without secrets.
        name: Name of the state's files.
        secrets: What must not be shown.
    """

    run_dir: Path
    header: Header
    options: dict[str, Any]
    destination: str
    name: str
    secrets: frozenset[str]

    @property
    def folder(self) -> Path:
        """The journal's folder."""
        return journal_dir(self.run_dir)

    @property
    def label(self) -> str:
        """What a person calls the run."""
        return f"{self.header.run.name}/{self.header.run.version}"

    @property
    def tracker(self) -> str:
        """The adapter's name."""
        return self.header.run.tracker

    def load_state(self) -> TrackerState:
        """How far the place was served, as saved last."""
        return StateFile(self.folder, self.name).load(self.tracker)

    def being_delivered(self) -> bool:
        """Whether a live process delivers the run to this place."""
        return is_locked(delivery_lock_path(self.folder, self.name))

    def writer_alive(self) -> bool:
        """Whether a live process writes any stream of the run."""
        return writer_alive(self.folder)

    def needs_closing(self, state: TrackerState) -> bool:
        """Whether the tracker shows the run as running although its processes died without a word."""
        return state.closes_when_dead and not self.writer_alive()


def writer_alive(folder: Path) -> bool:
    """Whether a live process writes any stream of a journal folder."""
    return any(is_locked(lock_path(folder, stream)) for stream in list_segments(folder))


def resolve(run_dir: Path, to: str | None = None) -> Target | None:
    """Where a run is to be delivered from this host.

    A journal has addresses without user and password. Where the environment's address (for MLflow:
    ``MLFLOW_TRACKING_URI``) is the same but for those, the environment's opens the door.

    Args:
        run_dir: The run's folder.
        to: Another address than the journal's.

    Returns:
        The target, or ``None`` while nothing has been written to the journal.

    Raises:
        JournalFormatError: If a newer version wrote it, or no header can be read.
        ConfigurationError: If there is no adapter of the tracker's name, or the address cannot work.
    """
    folder = journal_dir(run_dir)
    header = read_first_header(folder)
    if header is None:
        if _is_empty(folder) or writer_alive(folder):
            return None
        raise JournalFormatError(
            "no header line can be read, so nobody knows where the records belong; they can still be read with "
            "`lightning_loggers.journal.read`"
        )
    kind = adapter_class(header.run.tracker)
    home = header.run.options
    options: dict[str, Any] = {}
    address, full = kind.address_option, ""
    if address is not None:
        own = str(home.get(address) or "")
        full = with_secrets(kind, own if to is None else _spelled_like(to, own))
        if full != home.get(address):
            options[address] = full
    elif to is not None:
        raise ConfigurationError(
            f"a {header.run.tracker} run goes where its journal says; --to is for trackers that have an address"
        )
    destination = kind.destination({**home, **options})
    if destination != kind.destination(home):
        options.update(dict.fromkeys(kind.home_options))
    kind.check_options({**home, **options})
    name = state_name(header.run.tracker, destination, kind.destination(home))
    return Target(run_dir, header, options, destination, name, frozenset(secrets_of_uri(full)))


def with_secrets(kind: type[Adapter], address: str) -> str:
    """``address`` with user and password if the adapter's environment variable has them for the same place."""
    known = os.environ.get(kind.address_variable or "", "")
    return _spelled_like(known, address) if known and address and _same_place(known, address) else address


def _same_place(one: str, other: str) -> bool:
    return strip_uri(one).rstrip("/") == other.rstrip("/")


def _spelled_like(address: str, model: str) -> str:
    """``address`` with or without a last slash, as ``model`` has it, if both lead to one place: it is one, not two."""
    if not _same_place(address, model):
        return address
    return address.rstrip("/") + model[len(model.rstrip("/")) :]


def _is_empty(folder: Path) -> bool:
    return not remaining_bytes(folder, {})
