"""Which run a logger writes: its experiment, its name within that, and its folders."""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning_loggers.errors import ConfigurationError, JournalError
from lightning_loggers.journal.layout import journal_dir, shared_run_dir
from lightning_loggers.journal.reader import read_first_header
from lightning_loggers.loggers import versions
from lightning_loggers.ranks import job_board

if TYPE_CHECKING:
    from lightning_loggers.loggers.journaled import JournaledLogger

_RANK_ZERO_TELLS_WITHIN_S = 10.0
"""How long another rank waits for the run's name; rank 0 tells it in the Trainer's setup, before the others need it."""

_made: dict[str, int] = {}


class RunIdentity:
    """What a run is called and where it is kept, made without asking a tracker.

    Guarantees:
        - All ranks of a job name one run, as rank 0 has named it.
        - The folders stay where they are when the program changes its working directory.
    """

    _place: Path | None
    """The folder of the run's journal, once that has begun."""

    def _identify(self, name: str, save_dir: str | os.PathLike[str], version: int | str | None) -> None:
        self._name = str(name)
        self._save_dir = os.fspath(save_dir)
        self._root = Path(save_dir).absolute()
        self._version: int | str | None = None if version is None else str(version)
        self._version_given = version is not None
        self._version_settled = False
        self._board_key = _next_board_key(cast("JournaledLogger", self).tracker)
        self._uid = os.urandom(16).hex()
        self._attempt = 0

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self._name

    @property
    def version(self) -> int | str:
        """The run's name within the experiment, made locally."""
        if not self._version_settled:
            with cast("JournaledLogger", self)._starting:
                self._settle_version()
        assert self._version is not None
        return self._version

    def _settle_version(self) -> None:
        """Name the run; in a distributed job as rank 0 has named it.

        Until the processes of a job have come together a process cannot know of the others (Lightning starts its script
        again for each; an MPI job sets nothing at all), so a name that was asked for before is given up for rank 0's.
        """
        logger = cast("JournaledLogger", self)
        several_log = logger._policy is not None and logger._policy.rank_rules(None) is not None
        if self._version_given and not several_log:
            self._version_settled = True
            return
        board = job_board()
        if board is not None and logger._writer is None and logger.worker_rank != 0:
            told = board.ask(self._board_key, _RANK_ZERO_TELLS_WITHIN_S)
            if told is not None:
                version, self._uid, self._attempt = json.loads(told)
                self._version = self._version if self._version_given else version
            elif self._version is None:
                self._version = self._new_version()
            self._version_settled = True  # asked once: rank 0 may not have this logger at all
            return
        if self._version is None:
            self._version = self._new_version()
        if board is not None and logger.worker_rank == 0:
            self._attempt = time.time_ns()
            board.tell(self._board_key, json.dumps([self._version, self._uid, self._attempt]))
        self._version_settled = board is not None

    def _new_version(self) -> int | str:
        return versions.new_version(self._experiment_dir, self._board_key)

    def _left_open(self) -> str | None:
        """The run that this logger left open before the job was started again."""
        return versions.left_open(self._experiment_dir, self._board_key)

    def _note_run(self, *, preempted: bool = False) -> None:
        """Note for the job, should it be started again, that this logger writes this run."""
        folder = journal_dir(self._run_dir)
        versions.note_run(self._experiment_dir, self._version_folder, self._board_key, folder, preempted=preempted)

    @property
    def save_dir(self) -> str | None:
        """Where all runs are kept."""
        return self._save_dir

    @property
    def root_dir(self) -> str | None:
        """The experiment's folder."""
        return str(self._experiment_dir)

    @property
    def log_dir(self) -> str | None:
        """The run's folder, which holds its journal."""
        return str(self._home)

    @property
    def _experiment_dir(self) -> Path:
        return self._root / versions.folder_name(self._name)

    @property
    def _version_folder(self) -> str:
        return str(self.version)

    @property
    def _home(self) -> Path:
        return self._experiment_dir / self._version_folder

    @property
    def _run_dir(self) -> Path:
        """The folder of the journal: the run's, or one in it if another tracker's journal is there."""
        if self._place is not None:
            return self._place
        home, tracker = self._home, cast("JournaledLogger", self).tracker
        with contextlib.suppress(JournalError):
            header = read_first_header(journal_dir(home))
            if header is not None and header.run.tracker != tracker:
                return shared_run_dir(home, tracker)
        return home


def _next_board_key(tracker: str) -> str:
    """What a logger is called between ranks: they run one program, so its n-th logger is the n-th everywhere."""
    _made[tracker] = number = _made.get(tracker, 0) + 1
    return f"version/{tracker}/{number}"


def check_writable(folder: Path) -> None:
    """Refuse a folder in which no run can be kept; makes nothing.

    Raises:
        ConfigurationError: If the folder, or the nearest one above it that exists, cannot be written.
    """
    place = folder.absolute()
    try:
        while not _exists(place) and place != place.parent:
            place = place.parent
    except (OSError, ValueError) as error:  # a name too long, a null character, a folder that may not be looked into
        raise ConfigurationError(
            f"save_dir={str(folder)[:200]!r} cannot be used ({error}), so no run can be kept there. Choose another "
            "folder with save_dir=..."
        ) from None
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = "is no folder" if not place.is_dir() else "cannot be written"
        raise ConfigurationError(
            f"save_dir={str(folder)!r}: {place} {what}, so no run can be kept there. Choose another folder with "
            "save_dir=..., or make it writable."
        )


def _exists(place: Path) -> bool:
    """As ``Path.exists``, which hides some errors and raises others, differently between versions of Python."""
    try:
        os.stat(place)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True
