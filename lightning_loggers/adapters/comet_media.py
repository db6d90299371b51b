"""Images, sounds, videos, tables, point clouds and models as Comet's own charts, panels and lists show them.

Comet puts what has one name and several steps behind one slider: these are called by their identifiers, and the step is
beside them. What such a form cannot hold is in the standard file as well.
"""

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

from lightning_loggers.adapters.base import Context
from lightning_loggers.adapters.comet_forms import annotations, csv_of, dataset_info, graph_text, histograms
from lightning_loggers.adapters.comet_sdk import IMAGE, MODEL, Destination, asset_name, group_name
from lightning_loggers.adapters.image_details import details_of, number_of, png_size
from lightning_loggers.adapters.standard_files import StandardFile, StandardFiles, inline_value
from lightning_loggers.records import Kind, Record

_HISTOGRAM, _TABLE = "histogram3d", "dataframe"
_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp"})
_SHOWN: dict[str, tuple[str, frozenset[str]]] = {
    Kind.IMAGE: (IMAGE, _IMAGES),
    Kind.FIGURE: (IMAGE, _IMAGES | {".svg"}),
    Kind.AUDIO: ("audio", frozenset({".wav", ".mp3", ".ogg", ".flac"})),
    Kind.VIDEO: ("video", frozenset({".mp4", ".gif", ".webm", ".mpeg"})),
}
_MODELS = frozenset({Kind.MODEL, Kind.BEST_MODEL})
_PLACE = "media/<identifier>/<step>"

OWN_FORMS = {
    Kind.TABLE: f"dataframe <identifier>.csv, at its step; with its types in asset {_PLACE}.parquet (.json without "
    "pyarrow)",
    Kind.IMAGE: "image <identifier>, at its step, boxes as its annotations; one of several: <identifier>/<number>; "
    f"masks: asset {_PLACE}.npy",
    Kind.FIGURE: f"image <identifier>, at its step; plotly: asset {_PLACE}.html and .json",
    Kind.AUDIO: "audio <identifier>.wav, at its step",
    Kind.VIDEO: "video <identifier>.mp4 (.gif without PyAV), at its step",
    Kind.HISTOGRAM: f"3D histogram <identifier>, in Comet's bins; exactly in asset {_PLACE}.json",
    Kind.POINT_CLOUD: "3D scene <identifier>, at its step; one of several: <identifier>/<number>; all of it in asset "
    f"{_PLACE}.ply",
    Kind.MODEL: f"file {_PLACE}.pt of model <identifier>",
    Kind.BEST_MODEL: f"file {_PLACE}.pt of model <identifier>",
    Kind.DATASET: f"dataset_info, that of the last one; each in asset {_PLACE}.json",
    Kind.GRAPH: f"model graph, that of the last one; each in asset {_PLACE}.json",
    Kind.WATCH: f"3D histogram <identifier>, in Comet's bins; exactly in asset {_PLACE}.json",
}
"""What this module is for, in words."""


class Uploading(Protocol):
    """Sends a file of a record."""

    def __call__(self, record: Record, content: bytes | Path, name: str, **fields: Any) -> None:
        """Send it under this name; further arguments are those of :class:`~.comet_sdk.Upload`."""


class Media:
    """Sends records of kinds that have a standard file.

    Args:
        context: Of the run.
        files: Names their files.
        upload: Sends a file.
        asset_id: An id that only this has, and has again when it is sent again.
    """

    def __init__(self, context: Context, files: StandardFiles, upload: Uploading, asset_id: Callable[..., str]) -> None:
        self._context = context
        self._files = files
        self._upload = upload
        self._asset_id = asset_id

    def send(self, record: Record, destination: Destination, sdk: SimpleNamespace, step: int | None) -> None:
        """Send one record: its files, then what Comet shows of it besides.

        Args:
            record: The record.
            destination: Where to.
            sdk: comet_ml's parts.
            step: The record's step, as Comet has it.

        Raises:
            Exception: What the adapter's ``classify`` knows.
        """
        files = self._files.of(record)
        for number, file in enumerate(files):
            form = form_of(record, number, files)
            name, content = asset_name(file.place if form is None else form.name), file.source or file.content
            fields = {} if form is None else {"kind": form.kind, "group": form.group, "metadata": form.metadata}
            self._upload(record, content, name, **fields)
        if record.kind in {Kind.HISTOGRAM, Kind.WATCH}:
            self._send_histograms(record, sdk)
        elif record.kind == Kind.TABLE:
            self._send_table(record, files)
        elif record.kind == Kind.POINT_CLOUD:
            self._send_scenes(record, files, destination, step)
        elif record.kind == Kind.DATASET:
            destination.other("dataset_info", dataset_info(inline_value(record, self._context)))
        elif record.kind == Kind.GRAPH:
            described = [json.loads(file.read()) for file in files if _suffix(file.place) == ".json"]
            if text := graph_text(described[0] if described else None):
                destination.graph(text)

    def _send_histograms(self, record: Record, sdk: SimpleNamespace) -> None:
        if record.step is not None:  # Comet draws them along their steps
            for name, content in histograms(inline_value(record, self._context), sdk).items():
                self._upload(record, content, asset_name(name), kind=_HISTOGRAM)

    def _send_table(self, record: Record, files: Sequence[StandardFile]) -> None:
        from lightning_loggers.values.tables import table_of

        try:
            table = table_of(record, [file.source for file in files if file.source is not None])
        except ImportError:  # without pyarrow it is a file only
            return
        if table is not None:
            name = asset_name(f"{record.id or record.kind}.csv")
            self._upload(record, csv_of(table), name, kind=_TABLE)

    def _send_scenes(
        self, record: Record, files: Sequence[StandardFile], destination: Destination, step: int | None
    ) -> None:
        from lightning_loggers.adapters.comet_scenes import scene_of
        from lightning_loggers.values.point_clouds import read_ply

        for number, file in enumerate(files):
            try:
                points, colours = read_ply(file.read())
            except ValueError:  # a file of the user, in another format
                continue
            name = asset_name(_name_of(record, number, len(files)))
            asset_id = self._asset_id("scene", name, record.time_ns, record.id, number)
            limit = destination.max_points()
            scene = scene_of(points, colours, name=name, asset_id=asset_id, step=step, limit=limit)
            shown = 0 if scene is None else scene.points.count(b"\n")
            if shown < len(points):
                self._context.notices.tell_once(
                    ("points", record.id),
                    f"Comet's scene {name!r} has {shown} of {len(points)} points: it takes {limit}, and finite ones "
                    f"only. All of them are in the asset {asset_name(file.place)}.",
                )
            if scene is not None:
                destination.scene(scene)


@dataclass(frozen=True, slots=True)
class Form:
    """What a file is at Comet.

    Attributes:
        kind: Comet's type of asset.
        name: Its name, one for all steps.
        metadata: Shown beside it.
        group: The model that it belongs to.
    """

    kind: str
    name: str
    metadata: dict[str, Any] = field(default_factory=dict)
    group: str | None = None


def form_of(record: Record, number: int, files: Sequence[StandardFile]) -> Form | None:
    """Comet's own form of one of a record's files; ``None`` where it has none.

    Args:
        record: The record.
        number: Which of its files.
        files: All of them.
    """
    file = files[number]
    if file.source is None:
        return None
    if record.kind in _MODELS:
        return Form(MODEL, file.place, dict(record.meta or {}), group_name(record.id or record.kind))
    suffix = _suffix(file.place)
    kind, suffixes = _SHOWN.get(record.kind, ("", frozenset()))
    if suffix not in suffixes:
        return None
    name = _name_of(record, number, sum(_suffix(other.place) in suffixes for other in files))
    metadata = {**((record.meta or {}).get("sound") or {}), **_known_of(record, number, files)}
    return Form(kind, name if kind == IMAGE else f"{name}{suffix}", metadata)


def _name_of(record: Record, number: int, count: int) -> str:
    name = record.id or record.kind
    return f"{name}/{number}" if count > 1 else name


def _known_of(record: Record, number: int, files: Sequence[StandardFile]) -> dict[str, Any]:
    """What is known of one file: boxes as Comet's annotations, masks by the names of their assets."""
    listed = (record.meta or {}).get("details") or []
    if number >= len(listed):
        return {}
    known = dict(listed[number] or {})
    if "masks" in known:
        known.update(details_of(record, [asset_name(file.place) for file in files], ("masks",))[number])
    boxes, source = known.get("boxes"), files[number].source
    if isinstance(boxes, Mapping) and source is not None and (size := png_size(source)) is not None:
        layers = annotations(boxes, size)
        if layers:
            known["annotations"] = layers
        if sum(len(layer["data"]) for layer in layers) == number_of(boxes):
            del known["boxes"]
    return known


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()
