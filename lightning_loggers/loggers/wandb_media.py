"""Tables, images, sounds and videos: the methods of WandbLogger that record them, with Lightning's signatures."""

import io
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.loggers.journaled import JournaledLogger
from lightning_loggers.loggers.wandb_files import as_array, keep_file, keep_image, keep_sound
from lightning_loggers.records import Blob, Kind
from lightning_loggers.values.lazy import is_lazy
from lightning_loggers.values.plain import plain_json as plain
from lightning_loggers.values.snapshots import is_installed

Keep = Callable[[JournalWriter, Any, dict[str, Any]], Blob]


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
            images: File paths, PIL images, figures of matplotlib, numpy arrays (H, W), (H, W, C), or tensors (H, W),
                (C, H, W), (N, C, H, W).
            step: Step.
            **kwargs: Lists with one entry an image for ``wandb.Image``: ``caption``, ``boxes``, ``masks``, ``classes``.

        One image that is in no list is logged as by our other loggers, with their further arguments.

        Raises:
            ValueError: If a list has another length.
        """
        if not _in_lists(images, kwargs):
            super().log_image(key, images, step, **kwargs)
            return
        self._media(Kind.IMAGE, key, images, step, kwargs, keep_image)

    @override
    def log_audio(  # type: ignore[override]  # Lightning's signature
        self, key: str, audios: list[Any], step: int | None = None, **kwargs: Any
    ) -> None:
        """Record sounds.

        Args:
            key: The identifier.
            audios: File paths, or arrays (T,) or (T, C) with a ``sample_rate`` each.
            step: Step.
            **kwargs: Lists with one entry a sound: ``caption``, ``sample_rate``.

        One sound that is in no list is logged as by our other loggers, with their further arguments.

        Raises:
            ValueError: If a list has another length.
        """
        if not _in_lists(audios, kwargs):
            super().log_audio(key, audios, step, **kwargs)
            return
        self._media(Kind.AUDIO, key, audios, step, kwargs, keep_sound)

    @override
    def log_video(  # type: ignore[override]  # Lightning's signature
        self, key: str, videos: list[Any], step: int | None = None, **kwargs: Any
    ) -> None:
        """Record videos.

        Args:
            key: The identifier.
            videos: File paths; or one array (T, C, H, W) of bytes, which becomes MP4 at 4 frames a second unless
                ``fps`` says otherwise. Other arrays are kept whole as ``.npy`` artifacts, and told.
            step: Step.
            **kwargs: Lists with one entry a video: ``caption``, ``fps``, ``format``.

        One video that is in no list is logged as by our other loggers, with their further arguments.

        Raises:
            ValueError: If a list has another length.
        """
        if not _in_lists(videos, kwargs):
            super().log_video(key, videos, step, **kwargs)
            return
        _check_lists(Kind.VIDEO, videos, kwargs)
        if len(videos) == 1 and _is_encodable(videos[0], kwargs):
            said = {name: entries[0] for name, entries in kwargs.items() if entries[0] is not None}
            super().log_video(key, videos[0], step, **{"fps": 4, **said})
            return
        are_files = [isinstance(item, str | os.PathLike) for item in videos]
        if not all(are_files):
            self._keep_arrays(key, [item for item, is_file in zip(videos, are_files, strict=True) if not is_file], step)

        def of_files(entries: list[Any]) -> list[Any]:
            return [entry for entry, is_file in zip(entries, are_files, strict=True) if is_file]

        kwargs = {name: of_files(entries) for name, entries in kwargs.items()}
        self._media(Kind.VIDEO, key, of_files(videos), step, kwargs, keep_file)

    def _media(  # noqa: PLR0917 - private, and called in three places
        self, kind: Kind, key: str, items: list[Any], step: int | None, details: Mapping[str, Any], keep: Keep
    ) -> None:
        _check_lists(kind, items, details)
        try:
            writer = None if self._refuses(kind, key, step) else self._start()
            if writer is None or not items:
                return
            each = [{name: entries[index] for name, entries in details.items()} for index in range(len(items))]
            try:
                blobs = [keep(writer, item, detail) for item, detail in zip(items, each, strict=True)]
                blobs += _keep_masks(writer, each, len(blobs))
            except (OSError, ValueError) as error:
                self._tell_lost(writer, f"log_{kind}: {key!r} was not kept ({error}). Training goes on.")
                return
            meta = {"details": [plain(detail) for detail in each]} if any(each) else None
            self._record(kind, id=str(key), blobs=blobs, meta=meta, step=step)
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow(f"log_{kind}", error)

    def _keep_arrays(self, key: str, arrays: list[Any], step: int | None) -> None:
        try:
            writer = None if self._refuses(Kind.VIDEO, key, step) else self._start()
            if writer is None:
                return
            try:
                blobs = [_keep_array(writer, array, f"{index}.npy") for index, array in enumerate(arrays)]
            except (OSError, ValueError) as error:
                self._tell_lost(writer, f"log_video: {key!r} was not kept ({error}). Training goes on.")
                return
            self._record(Kind.ARTIFACT, id=f"{key}-{'no-step' if step is None else step}", blobs=blobs)
            self._notices.tell_once(
                ("video", key),
                f"Videos {key!r} were arrays: they are kept whole in an artifact. Log files to see them play.",
            )
        except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
            self._swallow("log_video", error)

    def _tell_lost(self, writer: JournalWriter, message: str) -> None:
        self._notices.tell_once(("media", message), message)
        writer.dropped["unreadable media"] = writer.dropped.get("unreadable media", 0) + 1


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


def _is_encodable(video: Any, details: Mapping[str, Any]) -> bool:
    """Whether an array is a video that a file is made of here, with what is said of it."""
    known = details.keys() <= {"fps", "format", "caption"} and details.get("format", ["mp4"])[0] in {"mp4", None}
    shape: tuple[int, ...] = tuple(getattr(video, "shape", ()))
    dtype = str(getattr(video, "dtype", ""))
    return known and len(shape) == 4 and shape[1] in {1, 3, 4} and dtype.endswith("uint8") and is_installed("av")


def _check_lists(kind: Kind, items: list[Any], details: Mapping[str, Any]) -> None:
    for name, entries in details.items():
        if len(entries) != len(items):
            raise ValueError(f"{len(items)} {kind}s and {len(entries)} of {name}: there must be one each")


def _keep_masks(writer: JournalWriter, details: list[dict[str, Any]], number: int) -> list[Blob]:
    """Keep the arrays of masks, which are as large as their image, beside the journal's line.

    Args:
        writer: The journal's.
        details: What is to be told of each image; a mask's array becomes the number of its blob.
        number: The number of the next blob.
    """
    blobs: list[Blob] = []
    for detail in details:
        if not isinstance(masks := detail.get("masks"), Mapping):
            continue
        detail["masks"] = {}
        for name, mask in masks.items():
            kept = dict(mask)
            if (pixels := kept.pop("mask_data", None)) is not None:
                kept["mask_blob"] = number + len(blobs)
                blobs.append(_keep_array(writer, pixels, "mask.npy"))
            detail["masks"][name] = kept
    return blobs


def _keep_array(writer: JournalWriter, array: Any, name: str) -> Blob:
    content = io.BytesIO()
    np.save(content, as_array(array), allow_pickle=False)
    return writer.blobs.put_bytes(content.getvalue(), name)
