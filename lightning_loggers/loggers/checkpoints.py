"""Which checkpoints to keep: written once for all loggers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.loggers import recording
from lightning_loggers.loggers.losses import not_kept, reason_of
from lightning_loggers.notices import Notices
from lightning_loggers.records import Blob
from lightning_loggers.values.metrics import as_number

_TOLD_OF_CALLBACK = (
    "monitor",
    "mode",
    "save_last",
    "save_top_k",
    "save_weights_only",
    "_every_n_train_steps",
    "_every_n_val_epochs",
)


@dataclass(frozen=True, slots=True)
class FoundCheckpoint:
    """A checkpoint that was not kept yet.

    Attributes:
        path: The file, or the folder of a sharded checkpoint.
        aliases: ``latest``, and ``best`` for the best so far.
        metadata: Score, file name and the callback's settings.
    """

    path: Path
    aliases: list[str]
    metadata: dict[str, Any]

    def keep(self, writer: JournalWriter, tracker: str, notices: Notices) -> list[Blob] | None:
        """Put it beside the journal; ``None`` if it cannot be, which is counted and told.

        Args:
            writer: The journal's.
            tracker: Whom it is kept for.
            notices: Where it is told.
        """
        try:
            return recording.keep(writer, self.path)
        except OSError as error:
            message = f"The checkpoint {self.path} could not be kept for {tracker} ({error})."
            lost = not_kept(message, error, writer.folder)
            notices.tell_once(("checkpoint", str(self.path)), f"{lost} Training goes on.")
            writer.count_dropped(reason_of(lost) or "unreadable file")
            return None


class CheckpointScanner:
    """Finds a callback's new checkpoints, each version of a file once."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def scan(self, callback: Any) -> Iterator[FoundCheckpoint]:
        """Yield the checkpoints that the callback has written since the last scan, oldest first.

        Args:
            callback: Lightning's ``ModelCheckpoint`` (or a proxy of it, or another ``Checkpoint`` with some of its
                attributes).
        """
        scores: dict[str, Any] = {}
        if path := getattr(callback, "last_model_path", ""):
            scores[path] = getattr(callback, "current_score", None)
        scores.update(getattr(callback, "best_k_models", None) or {})
        if path := getattr(callback, "best_model_path", ""):
            scores[path] = getattr(callback, "best_model_score", None)
        found = []
        for path, score in scores.items():
            place = Path(path)
            if place.is_file() or place.is_dir():
                found.append((place.stat().st_mtime_ns, str(path), score))
        for mtime_ns, path, score in sorted(found, key=lambda item: item[:2]):
            if self._seen.get(path) == mtime_ns:
                continue
            self._seen[path] = mtime_ns
            best = path == getattr(callback, "best_model_path", "")
            yield FoundCheckpoint(
                path=Path(path),
                aliases=["latest", "best"] if best else ["latest"],
                metadata={
                    "score": None if score is None else as_number(score),
                    "original_filename": Path(path).name,
                    "Checkpoint": {
                        key: _plain(getattr(callback, key)) for key in _TOLD_OF_CALLBACK if hasattr(callback, key)
                    },
                },
            )


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
