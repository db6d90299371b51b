"""Images, sounds, videos, figures and point clouds as the SDK's own classes of media."""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_loggers.adapters.base import Context
from lightning_loggers.records import Blob, Kind, Record
from lightning_loggers.values.snapshots import is_installed

MEDIA = frozenset({Kind.IMAGE, Kind.AUDIO, Kind.VIDEO, Kind.FIGURE, Kind.POINT_CLOUD})
"""Kinds that :func:`media_of` knows."""


def media_of(context: Context, record: Record) -> Any:
    """What the SDK logs for a record with files.

    Raises:
        Exception: If the SDK does not take such a file, or a package is missing that it needs.
    """
    blobs = record.blobs or []
    if record.kind == Kind.FIGURE:
        return _figure([context.blobs.locate(blob) for blob in blobs])
    if record.kind == Kind.POINT_CLOUD:
        return [_point_cloud(context.blobs.locate(blob)) for blob in blobs]
    import wandb

    make = {Kind.IMAGE: wandb.Image, Kind.AUDIO: wandb.Audio, Kind.VIDEO: wandb.Video}[Kind(record.kind)]
    meta = record.meta or {}
    details = meta.get("details") or []
    files = blobs[: len(details)] if details else blobs  # the others belong to the details
    made = []
    for index, blob in enumerate([blobs[number] for number in meta.get("order") or ()] or files):
        arguments = _arguments(context, details[index], blobs) if details else {}
        if record.kind == Kind.VIDEO:  # the file says them, and the SDK warns if it is told
            arguments.pop("fps", None)
            arguments.pop("format", None)
        made.append(make(str(context.blobs.locate(blob)), **arguments))
    if record.kind == Kind.AUDIO and len(made) == 1 and not is_installed("soundfile"):
        return made[0]  # the SDK wants that package for lists only
    return made


def _arguments(context: Context, details: Mapping[str, Any], blobs: Sequence[Blob]) -> dict[str, Any]:
    """Arguments as the SDK wants them: JSON has no arrays, and no numbers as keys."""
    made = dict(details)
    for name in ("masks", "boxes"):
        if isinstance(made.get(name), Mapping):
            made[name] = {key: _overlay(context, overlay, blobs) for key, overlay in made[name].items()}
    return made


def _overlay(context: Context, overlay: Mapping[str, Any], blobs: Sequence[Blob]) -> dict[str, Any]:
    import numpy as np

    made = dict(overlay)
    if isinstance(made.get("class_labels"), Mapping):
        made["class_labels"] = {int(key): label for key, label in made["class_labels"].items()}
    if (number := made.pop("mask_blob", None)) is not None:
        made["mask_data"] = np.load(context.blobs.locate(blobs[int(number)]), allow_pickle=False)
    return made


def _figure(paths: Sequence[Path]) -> Any:
    import wandb

    page = next((path for path in paths if path.suffix == ".html"), None)
    if page is None:
        return wandb.Image(str(paths[0]))
    described = next((path for path in paths if path.suffix == ".json"), None)
    if described is None or not is_installed("plotly"):
        return wandb.Html(str(page), inject=False)
    import plotly.io

    figure = json.dumps(_with_lists(json.loads(described.read_bytes())))
    return wandb.Plotly(plotly.io.from_json(figure, skip_invalid=True))


def _with_lists(value: Any) -> Any:
    """Plotly's JSON with numbers as lists, which every version of plotly.js draws, instead of its packed arrays.

    >>> _with_lists({"y": {"dtype": "i2", "bdata": "AQACAA=="}, "x": ["a"]})
    {'y': [1, 2], 'x': ['a']}
    """
    if isinstance(value, list):
        return [_with_lists(item) for item in value]
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("bdata"), str) and isinstance(value.get("dtype"), str):
        import numpy as np

        numbers = np.frombuffer(base64.b64decode(value["bdata"]), f"<{value['dtype']}")
        shape = [int(part) for part in str(value.get("shape") or numbers.size).split(",")]
        return numbers.reshape(shape).tolist()
    return {key: _with_lists(item) for key, item in value.items()}


def _point_cloud(path: Path) -> Any:
    import numpy as np
    import wandb

    if path.suffix != ".ply":
        return wandb.Object3D(str(path))
    from lightning_loggers.values.point_clouds import read_ply

    points, colours = read_ply(path.read_bytes())
    return wandb.Object3D(points if colours is None else np.concatenate([points, colours], axis=1))
