"""What a program says on the command line, in a file per process, with the rank in each line."""

import io
import logging
from pathlib import Path

from typing_extensions import override

from lightning_loggers.ranks import current_rank

LOGGER = logging.getLogger("lightning_loggers.training")
"""For messages of a training program; what goes here at level INFO or above is in the file."""


class RankFile(logging.FileHandler):
    """Writes log records to ``<folder>/<name>.log`` on rank 0 and ``<name>.rank<r>.log`` on the others.

    Args:
        folder: Where; made if need be, when the first line is written.
        name: The file's name without suffix.

    Guarantees:
        - A file that cannot be written stops nothing: :mod:`logging` tells on stderr.
        - The rank is asked at every line; the file's name is chosen at the first one.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._stem = folder, name
        super().__init__(folder / f"{name}.log", encoding="utf-8", delay=True)
        self.setLevel(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s rank %(rank)d %(levelname)s %(name)s: %(message)s"))

    @override
    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            record.rank = current_rank()
            super().emit(record)
        except Exception:  # noqa: BLE001 - opening the file is not guarded by logging itself
            self.handleError(record)

    @override
    def _open(self) -> io.TextIOWrapper:
        rank = current_rank()
        self._folder.mkdir(parents=True, exist_ok=True)
        self.baseFilename = str((self._folder / f"{self._stem}{f'.rank{rank}' if rank else ''}.log").absolute())
        return super()._open()

    def start(self) -> None:
        """Take what goes to the root logger from now on."""
        if LOGGER.level == logging.NOTSET:
            LOGGER.setLevel(logging.INFO)
        logging.getLogger().addHandler(self)

    def stop(self) -> None:
        """Take no more, and close the file."""
        logging.getLogger().removeHandler(self)
        self.close()
