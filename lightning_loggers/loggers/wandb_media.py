"""Tables, images, sounds and videos: the methods of WandbLogger that record them, with Lightning's signatures."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from typing_extensions import override

from lightning_loggers.loggers import losses, recording, wandb_lists
from lightning_loggers.loggers.journaled import JournaledLogger
from lightning_loggers.records import Kind
from lightning_loggers.values.lazy import is_lazy
from lightning_loggers.values.metrics import safe_str
from lightning_loggers.values.plain import plain_json as plain
from lightning_loggers.values.several import Several


class WandbMedia(JournaledLogger):
    """What WandbLogger records besides numbers."""

    @override
    def log_table(  # type: ignore[override]  # Lightning's signature
        self,
        key: str,
        columns: Sequence[Any] | None = None,
        data: Iterable[Iterable[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
        *,
        strict: bool = False,
    ) -> None:
        """Record a table.

        Args:
            key: Its identifier.
            columns: Names of the columns; or the table itself, then followed by the step, as in our other loggers.
            data: Rows; what JSON cannot say becomes its text, and is told.
            dataframe: A data frame, instead of both.
            step: Step.
            strict: Whether what is wrong with the table itself raises.
        """
        if _is_table(columns) and dataframe is None and (data is None or isinstance(data, int)):
            super().log_table(key, columns, data if step is None else step, strict=strict)
            return
        try:
            if self._refuses(Kind.TABLE, key, step):
                return
            if dataframe is not None:
                columns, data = list(dataframe.columns), dataframe.to_numpy().tolist()
            rows = [list(row) for row in data or []]
            if columns is None:
                columns = [f"column {number}" for number in range(1, 1 + max(map(len, rows), default=0))]
            value: dict[str, Any] = {"columns": [str(column) for column in columns], "data": rows}
            value["nonfinite"] = self._make_plain(str(key), rows)
            self._record(Kind.TABLE, id=str(key), value=value, step=step)
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("log_table", error)

    def _make_plain(self, key: str, rows: list[list[Any]]) -> list[tuple[int, int, str]]:
        """Have every cell say itself in JSON.

        Returns:
            Row, column and name of each number that JSON has not.
        """
        nonfinite = []
        for number, row in enumerate(rows):
            for column, cell in enumerate(row):
                if isinstance(cell, float) and not math.isfinite(cell):
                    nonfinite.append((number, column, str(float(cell))))
                    row[column] = None
                    continue
                row[column] = plain(cell)
                if isinstance(row[column], str) and not isinstance(cell, str):
                    self._notices.tell_once(
                        ("cell", key, type(cell)),
                        f"The table {key!r} has a {type(cell).__name__} in column {column + 1}, which is kept as its "
                        "text. Log images and sounds with log_image and log_audio.",
                    )
        return nonfinite

    @override
    def log_text(  # type: ignore[override]
        self,
        key: str,
        columns: Sequence[Any] | str | None = None,
        data: Any = None,
        dataframe: Any = None,
        step: int | None = None,
        *,
        text: str | None = None,
    ) -> None:
        """Record texts as a table, as Lightning's logger does; or one text.

        Args:
            key: The identifier.
            columns: Names of the columns; or the text itself, then followed by the step, as in our other loggers.
            data: Rows of texts.
            dataframe: A data frame, instead of both.
            step: Step.
            text: One text, of any length.
        """
        if isinstance(columns, str):
            text, step = columns, data if step is None else step
        if text is not None:
            super().log_text(key, text, step)
        else:
            self.log_table(key, columns, data, dataframe, step)

    @override
    def log_image(  # type: ignore[override]  # Lightning's signature
        self, key: str, images: list[Any], step: int | None = None, **kwargs: Any
    ) -> None:
        """Record images.

        Args:
            key: The identifier.
            images: File paths, PIL images, figures of matplotlib, numpy arrays (H, W), (H, W, C), tensors (H, W),
                (C, H, W), or objects of W&B's SDK; a batch (N, ...) becomes a grid. Integers 0 to 255 or floats, see
                :mod:`lightning_loggers.loggers.wandb_lists`.
            step: Step.
            **kwargs: Lists with one entry an image for ``wandb.Image``: ``caption``, ``boxes``, ``masks``, ``classes``,
                ``grouping``.

        One image that is in no list is logged as by our other loggers, with their further arguments.

        Raises:
            ValueError: If a list has another length.
        """
        if _in_lists(images, kwargs):
            self._log_list(Kind.IMAGE, key, images, step, kwargs)
        else:
            super().log_image(key, images, step, **kwargs)

    @override
    def log_audio(  # type: ignore[override]  # Lightning's signature
        self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any
    ) -> None:
        """Record sounds.

        Args:
            key: The identifier.
            audios: File paths, arrays (T,) or (T, C) with a ``sample_rate`` each, or objects of W&B's SDK.
            step: Step.
            **kwargs: Lists with one entry a sound: ``caption``, ``sample_rate``.

        One sound that is in no list is logged as by our other loggers, with their further arguments.

        Raises:
            ValueError: If a list has another length.
        """
        if _in_lists(audios, kwargs):
            self._log_list(Kind.AUDIO, key, audios, step, kwargs)
        else:
            super().log_audio(key, audios, step, **kwargs)

    @override
    def log_video(  # type: ignore[override]  # Lightning's signature
        self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any
    ) -> None:
        """Record videos.

        Args:
            key: The identifier.
            videos: File paths, arrays (T, C, H, W), batches (B, T, C, H, W) of these, or objects of W&B's SDK. Arrays
                become MP4 where PyAV is installed, else GIF, with 4 frames a second unless ``fps`` says otherwise.
            step: Step.
            **kwargs: Lists with one entry a video: ``caption``, ``fps``, ``format``.

        One video that is in no list is logged as by our other loggers, with their further arguments.

        Raises:
            ValueError: If a list has another length.
        """
        if _in_lists(videos, kwargs):
            self._log_list(Kind.VIDEO, key, videos, step, kwargs)
        else:
            super().log_video(key, videos, step, **kwargs)

    def _log_list(self, kind: Kind, key: str, items: list[Any], step: int | None, kwargs: Mapping[str, Any]) -> None:
        for name, entries in kwargs.items():
            if len(entries) != len(items):
                raise ValueError(f"{len(items)} {kind}s and {len(entries)} of {name}: there must be one each")
        try:
            writer = None if not items or self._refuses(kind, key, step) else self._start()
            if writer is None:
                return
            for name in kwargs.keys() - (taken := wandb_lists.TAKEN[kind]):
                self._notices.tell_once(
                    ("argument", kind, name),
                    f"log_{kind}({key!r}) takes no {name!r} for a list; it takes {sorted(taken)}. The list is logged "
                    "without it.",
                )
            details = [{name: kwargs[name][index] for name in kwargs.keys() & taken} for index in range(len(items))]
            record = recording.stamped(self, kind, id=safe_str(key), step=step)
            snapshot = wandb_lists.snapshot(kind, items, details, safe_str(key))
            if isinstance(snapshot, Several):
                record.blobs = [recording.linked(writer, path) for path in snapshot.paths]
            recording.emit(self, writer, record, snapshot)
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            losses.not_logged(self, kind, key, error)


def _is_table(value: Any) -> bool:
    """Whether a value is a table rather than names of columns."""
    inside = isinstance(value, list | tuple) and bool(value) and isinstance(value[0], Mapping | list | tuple)
    path = isinstance(value, str | os.PathLike)
    return inside or path or isinstance(value, Mapping) or len(getattr(value, "shape", ())) == 2 or is_lazy(value)


def _in_lists(items: Any, details: Mapping[str, Any]) -> bool:
    """Whether items and all that is said of them come in lists, as Lightning's logger has them."""
    return isinstance(items, list) and not any(
        isinstance(entries, str | Mapping) or not hasattr(entries, "__len__") for entries in details.values()
    )
