"""Finding runs on disk."""

import os
from collections.abc import Iterator
from pathlib import Path

from lightning_loggers.journal.layout import JOURNAL_FOLDER, is_journal, journal_dir


def find_runs(root: Path) -> Iterator[Path]:
    """Every run's folder at or below ``root``, in the order of their names.

    Symbolic links are not followed: a link in a shared folder must not lead elsewhere.

    Args:
        root: A run's folder, its journal folder, a ``save_dir``, or anything above.
    """
    if root.name == JOURNAL_FOLDER and is_journal(root):
        yield root.parent
        return
    for folder, below, _ in os.walk(root):
        below.sort()
        if JOURNAL_FOLDER in below:
            path = Path(folder)
            if not journal_dir(path).is_symlink() and is_journal(journal_dir(path)):
                below.remove(JOURNAL_FOLDER)
                yield path


def siblings(save_dir: Path, own: Path) -> list[Path]:
    """The other runs of a ``save_dir``, laid out as ``<save_dir>/<name>/<version>``."""
    try:
        found = [place.parent for place in save_dir.glob(f"*/*/{JOURNAL_FOLDER}") if not place.is_symlink()]
    except OSError:
        return []
    return sorted(run for run in found if run != own)
