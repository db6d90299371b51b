"""Images, sounds, videos and histograms as Comet's own charts and galleries show them.

Comet puts what has one name and several steps behind one slider: these are called by their identifiers, and the step is
beside them. Point clouds are files: Comet's own form of them takes several requests, and what is sent twice would be
shown twice.
"""

import itertools
import json
import posixpath
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from lightning_loggers.adapters.comet_sdk import IMAGE
from lightning_loggers.adapters.standard_files import StandardFile
from lightning_loggers.records import Kind, Record

_HISTOGRAM = "histogram3d"
_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp"})
_SHOWN: dict[str, tuple[str, frozenset[str]]] = {
    Kind.IMAGE: (IMAGE, _IMAGES),
    Kind.FIGURE: (IMAGE, _IMAGES),
    Kind.AUDIO: ("audio", frozenset({".wav", ".mp3", ".ogg", ".flac"})),
    Kind.VIDEO: ("video", frozenset({".mp4", ".gif", ".webm", ".mpeg"})),
}

OWN_FORMS = {
    Kind.IMAGE: "image <identifier>, at its step; one of several: <identifier>/<number>",
    Kind.FIGURE: "image <identifier>, at its step; plotly: asset media/<identifier>/<step>.html and .json",
    Kind.AUDIO: "audio <identifier>.wav, at its step",
    Kind.VIDEO: "video <identifier>.mp4 (.gif without PyAV), at its step",
    Kind.HISTOGRAM: "3D histogram <identifier>, in Comet's bins; exactly in asset media/<identifier>/<step>.json",
    Kind.WATCH: "3D histogram <identifier>, in Comet's bins; exactly in asset media/<identifier>/<step>.json",
}
"""What this module is for, in words."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a file is at Comet.

    Attributes:
        kind: Comet's type of asset.
        name: Its name, one for all steps.
        metadata: Shown beside it.
    """

    kind: str
    name: str
    metadata: dict[str, Any] = field(default_factory=dict)


def form_of(record: Record, number: int, file: StandardFile) -> Form | None:
    """Comet's own form of one of a record's files; ``None`` where it has none.

    Args:
        record: The record.
        number: Which of its files.
        file: The file.
    """
    suffix = _suffix(file.place)
    kind, suffixes = _SHOWN.get(record.kind, ("", frozenset()))
    if file.source is None or suffix not in suffixes:
        return None
    meta = record.meta or {}
    details = meta.get("details") or []
    metadata = {**(meta.get("sound") or {}), **((details[number] or {}) if number < len(details) else {})}
    name = record.id or record.kind
    if sum(_suffix(blob.name) in suffixes for blob in record.blobs or []) > 1:
        name = f"{name}/{number}"
    return Form(kind, name if kind == IMAGE else f"{name}{suffix}", metadata)


def histograms(value: Any, sdk: SimpleNamespace) -> list[tuple[Form, bytes]]:
    """The histograms of a record as Comet draws them: the middle of each bin counts as often as the bin.

    Args:
        value: Of the record: ``counts`` and ``bins`` by name.
        sdk: comet_ml's parts.
    """
    made = []
    for name, bins in (value or {}).items():
        edges, counts = bins.get("bins") or [], bins.get("counts") or []
        middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
        pairs = [(middle, count) for middle, count in zip(middles, counts, strict=False) if count]
        if pairs:
            histogram = sdk.Histogram()
            histogram.add([middle for middle, _ in pairs], counts=[count for _, count in pairs])
            content = json.dumps(histogram.to_json()).encode()
            made.append((Form(_HISTOGRAM, name), content))
    return made


def _suffix(name: str) -> str:
    return posixpath.splitext(name)[1].lower()
