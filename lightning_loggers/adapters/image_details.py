"""What was logged with an image besides its pixels: its caption, masks and boxes, in W&B's terms.

A box is ``{"position": {"minX": ..., "maxX": ..., "minY": ..., "maxY": ...}}``, or ``{"position": {"middle": [x, y],
"width": ..., "height": ...}}``, as fractions of the image or, with ``"domain": "pixel"``, in pixels; with ``class_id``,
``box_caption`` and ``scores`` where they are known. Masks are files beside the image.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_loggers.adapters.standard_files import StandardFile
from lightning_loggers.records import Record

FACTS = ("caption", "masks", "boxes")
"""What may be known of an image, a sound or a video."""

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A box on an image, in pixels from its upper left corner.

    Attributes:
        x: Its left side.
        y: Its upper side.
        width: How wide it is.
        height: How high it is.
        label: What it shows; never empty.
        score: How sure that is, if it was said.
        more: What else was said of it.
    """

    x: float
    y: float
    width: float
    height: float
    label: str
    score: float | None = None
    more: dict[str, Any] = field(default_factory=dict)


def rectangles(boxes: Mapping[str, Any], size: tuple[int, int]) -> dict[str, list[Rectangle]]:
    """The boxes of an image by their layer; what is no box of W&B's is left out, and so are layers without any.

    Args:
        boxes: Layer to ``{"box_data": [...], "class_labels": {...}}``.
        size: Width and height of the image, pixels.

    >>> middle = {"position": {"middle": [0.5, 0.5], "width": 0.5, "height": 1}, "class_id": 1}
    >>> found = rectangles({"truth": {"box_data": [middle], "class_labels": {"1": "cat"}}}, (200, 100))
    >>> found["truth"][0].x, found["truth"][0].y, found["truth"][0].width, found["truth"][0].label
    (50.0, 0.0, 100.0, 'cat')
    """
    layers: dict[str, list[Rectangle]] = {}
    for layer, given in boxes.items():
        data = given.get("box_data") if isinstance(given, Mapping) else None
        labels = (given.get("class_labels") if isinstance(given, Mapping) else None) or {}
        found = [_rectangle(box, labels, layer, size) for box in (data if isinstance(data, list) else ())]
        if kept := [box for box in found if box is not None]:
            layers[layer] = kept
    return layers


def number_of(boxes: Mapping[str, Any]) -> int:
    """How many boxes were given, whether they are any or not."""
    data = (given.get("box_data") if isinstance(given, Mapping) else None for given in boxes.values())
    return sum(len(found) if isinstance(found, list) else 1 for found in data)


def _rectangle(box: Any, labels: Mapping[str, Any], layer: str, size: tuple[int, int]) -> Rectangle | None:
    position = box.get("position") if isinstance(box, Mapping) else None
    if not isinstance(position, Mapping):
        return None
    try:
        if "middle" in position:
            width, height = float(position["width"]), float(position["height"])
            x, y = float(position["middle"][0]) - width / 2, float(position["middle"][1]) - height / 2
        else:
            x, y = float(position["minX"]), float(position["minY"])
            width, height = float(position["maxX"]) - x, float(position["maxY"]) - y
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    if not all(map(math.isfinite, (x, y, width, height))):
        return None
    if box.get("domain") != "pixel":
        x, width, y, height = x * size[0], width * size[0], y * size[1], height * size[1]
    x, y, width, height = min(x, x + width), min(y, y + height), abs(width), abs(height)
    class_id, caption = box.get("class_id"), box.get("box_caption")
    known = labels.get(str(class_id), labels.get(class_id)) if class_id is not None else None
    label = next((str(name) for name in (known, caption, class_id) if name not in {None, ""}), str(layer) or "box")
    scores = box.get("scores") if isinstance(box.get("scores"), Mapping) else {}
    score = next((float(value) for value in scores.values() if _is_number(value)), None)
    more = {key: value for key, value in box.items() if key not in {"position", "domain"}}
    return Rectangle(x, y, width, height, label, score, more)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def png_size(path: Path) -> tuple[int, int] | None:
    """Width and height of a PNG file, which is what images with boxes are; ``None`` for any other."""
    with path.open("rb") as file:
        head = file.read(24)
    if not head.startswith(_PNG) or len(head) < 24:
        return None
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def details_of(record: Record, names: Sequence[str], facts: Iterable[str] = FACTS) -> list[dict[str, Any]]:
    """What is known of each image of a record, where a mask is said by the name of its file.

    Args:
        record: The record.
        names: What its files are called at the tracker, in the order of its blobs.
        facts: Which of :data:`FACTS` are wanted.
    """
    found = []
    for details in (record.meta or {}).get("details") or []:
        said = {name: details[name] for name in facts if details.get(name)} if isinstance(details, Mapping) else {}
        if isinstance(said.get("masks"), Mapping):
            said["masks"] = {layer: _mask(mask, names) for layer, mask in said["masks"].items()}
        found.append(said)
    return found


def _mask(mask: Any, names: Sequence[str]) -> Any:
    number = mask.get("mask_blob") if isinstance(mask, Mapping) else None
    if not isinstance(number, int) or not 0 <= number < len(names):
        return mask
    return {"file": names[number], **{key: value for key, value in mask.items() if key != "mask_blob"}}


def details_files(
    record: Record,
    files: Sequence[StandardFile],
    place: Callable[[Record, str], str],
    facts: Iterable[str] = FACTS,
) -> list[StandardFile]:
    """The file that keeps what a tracker has no form for: ``media/<identifier>/<step>.json``.

    It is a list with one object an image: ``file``, its name, and what is known of it.

    Args:
        record: The record.
        files: Its own standard files.
        place: Says where a file of a record belongs, by the record and a suffix.
        facts: Which of :data:`FACTS` are wanted.

    Returns:
        The file; nothing where nothing was said.
    """
    names = [file.place.rpartition("/")[2] for file in files]
    details = details_of(record, names, facts)
    if not any(details):
        return []
    listed = [{"file": name, **said} for name, said in zip(names, details, strict=False)]
    return [StandardFile(place(record, "json"), content=json.dumps(listed, indent=2).encode(errors="backslashreplace"))]
