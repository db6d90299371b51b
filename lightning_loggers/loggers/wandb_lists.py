"""Lists of images, sounds and videos as Lightning's WandbLogger takes them: what W&B's users log becomes common values.

====================  =============================================================================================
value                 becomes
====================  =============================================================================================
file                  itself, whatever its format; likewise the file of a ``wandb.Image``, ``Audio`` or ``Video``
integer pixels        bytes; what lies outside 0..255 is clipped, and told
float pixels          stretched to black and white if any is below 0, and told; else taken as 0..255 if any is above 2;
                      else as 0..1
sound (T, C)          (C, T)
video (B, T, ...)     B videos
====================  =============================================================================================
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lightning_loggers.records import Kind
from lightning_loggers.values import arrays, audio, figures, images, video
from lightning_loggers.values.arrays import Array
from lightning_loggers.values.several import Several, together
from lightning_loggers.values.snapshots import Encoded, Ready, Snapshot, is_installed, origins, unsuitable

TAKEN: Mapping[Kind, frozenset[str]] = {
    Kind.IMAGE: frozenset({"caption", "boxes", "masks", "classes", "grouping"}),
    Kind.AUDIO: frozenset({"caption", "sample_rate"}),
    Kind.VIDEO: frozenset({"caption", "fps", "format"}),
}
"""What may be said of an item, by the names that W&B's SDK has for it."""

_DEFAULT_FPS = 4  # W&B's own
_UNIT_UP_TO = 2  # an image within 0 and 1 may go a little beyond; one within 0 and 255 would be black


def snapshot(
    kind: Kind, items: Sequence[Any], details: Sequence[Mapping[str, Any]], identifier: str
) -> Several | Ready:
    """Check the items of a list and copy them.

    Args:
        kind: What they are.
        items: The items.
        details: What is said of each, by the names in :data:`TAKEN`.
        identifier: Their identifier, for messages.

    Raises:
        UnsuitableValueError: If one of them is none of what is accepted.
        MissingDependencyError: If what encodes them is not installed.
    """
    parts: list[Snapshot] = []
    said: list[dict[str, Any]] = []
    overlays: list[Array] = []
    for one, given in zip(items, details, strict=True):
        item, detail = _opened(one, given)
        is_batch = kind is Kind.VIDEO and len(arrays.shape_of(item) or ()) == 5
        for piece in item if is_batch else [item]:
            is_file = isinstance(piece, str | os.PathLike)
            parts.append(Ready(paths=(Path(piece),)) if is_file else _TAKE[kind](piece, identifier, detail))
            overlaid = {name: detail[name] for name in detail.keys() - {"masks", "boxes"}}
            images.add_overlays([overlaid], overlays, detail.get("masks"), detail.get("boxes"), identifier)
            said.append(overlaid)
    for overlaid in said:
        for mask in overlaid.get("masks", {}).values():
            mask["mask_blob"] += len(parts)  # behind the files of the items
    return together(Several(parts, said, overlays))


def _opened(item: Any, given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """An item and what is said of it; an object of W&B's SDK is the file that it has made, and says more itself."""
    detail = {name: value for name, value in given.items() if value is not None}
    if "wandb" in origins(item) and getattr(item, "_path", None):
        own = {"caption": item._caption, "sample_rate": getattr(item, "_sample_rate", None)}
        own["classes"], own["grouping"] = getattr(item, "_classes", None), getattr(item, "_grouping", None)
        boxes, masks = getattr(item, "_boxes", None) or {}, getattr(item, "_masks", None) or {}
        own["boxes"] = {name: {"box_data": box._val, "class_labels": box._class_labels} for name, box in boxes.items()}
        own["masks"] = {name: mask._val for name, mask in masks.items() if hasattr(mask, "_val")}
        detail = {**{name: value for name, value in own.items() if value not in (None, {})}, **detail}
        item = Path(item._path)
    if "classes" in detail:
        detail["classes"] = getattr(detail["classes"], "_class_set", detail["classes"])
    return item, detail


def _image(item: Any, identifier: str, detail: Mapping[str, Any]) -> Snapshot:
    if "matplotlib" in origins(item) or hasattr(item, "savefig"):
        return figures.snapshot(item, identifier)
    shape, found = arrays.shape_of(item), None
    if shape is not None:
        found = images.layout_of(shape, "CHW" if "torch" in origins(item) else "HWC")
        if found is None:
            raise unsuitable("image", identifier, f"of shape {shape}", images.ACCEPTED)
    layout = found[-3:] if found and found != "HW" else None
    return _pixels(item, functools.partial(images.snapshot, identifier=identifier, layout=layout))


def _sound(item: Any, identifier: str, detail: Mapping[str, Any]) -> Snapshot:
    shape = arrays.shape_of(item) or ()
    if len(shape) == 2 and shape[1] <= audio.MAX_CHANNELS:
        item = item.T
    return audio.snapshot(item, identifier, sample_rate=detail.get("sample_rate"))


def _video(item: Any, identifier: str, detail: Mapping[str, Any]) -> Snapshot:
    shape = arrays.shape_of(item)
    if shape is not None and (len(shape) != 4 or images.layout_of(shape, "CHW") is None):
        raise unsuitable("video", identifier, f"of shape {shape}", video.ACCEPTED)
    form = detail.get("format")
    if form != "gif" and not (form == "mp4" and is_installed("av")):
        form = None  # what can be made here; the file's name tells
    take = functools.partial(video.snapshot, identifier=identifier, fps=detail.get("fps") or _DEFAULT_FPS, format=form)
    return _pixels(item, take)


_TAKE: Mapping[Kind, Callable[[Any, str, Mapping[str, Any]], Snapshot]] = {
    Kind.IMAGE: _image,
    Kind.AUDIO: _sound,
    Kind.VIDEO: _video,
}


def _pixels(item: Any, take: Callable[[Any], Snapshot]) -> Snapshot:
    dtype = arrays.type_of(item)
    if dtype != "uint8" and dtype.rstrip("0123456789") in {"int", "uint", "float", "bfloat"}:
        return _Numbers(arrays.snapshot(item), take)
    return take(item)


@dataclasses.dataclass(frozen=True, slots=True)
class _Numbers:
    """Pixels that are no bytes yet; how they become some depends on their values, which are not looked at in a call."""

    values: Array
    take: Callable[[Any], Snapshot]

    @property
    def size_bytes(self) -> int:
        return self.values.nbytes

    def encode(self) -> Encoded:
        notes: list[tuple[str, str]] = []
        encoded = self.take(_as_common(self.values, notes)).encode()
        return dataclasses.replace(encoded, notes=[*notes, *encoded.notes])


def _as_common(values: Array, notes: list[tuple[str, str]]) -> Array:
    """Pixels as bytes, or as floats within 0 and 1; what is changed besides is noted.

    >>> _as_common(np.array([-1.0, 0.0, 1.0]), []).tolist(), _as_common(np.array([0, 51.0]), []).tolist()
    ([0.0, 0.5, 1.0], [0.0, 0.20000000298023224])
    """
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    if values.dtype.kind in "iu":
        if low < 0 or high > 255:
            notes.append(("range", f"Its integers go from {low} to {high}: they are clipped to 0..255."))
        return np.clip(values, 0, 255).astype(np.uint8)
    if low < 0:
        notes.append((
            "range",
            f"Its floats go from {low:g} to {high:g}: {low:g} is shown black, and {high:g} white. Scale them to 0..1 "
            "to have each picture like the others.",
        ))  # fmt: skip
        return (values.astype(np.float32) - np.float32(low)) / (np.float32(high - low) or np.float32(1))
    return values.astype(np.float32) / np.float32(255 if high > _UNIT_UP_TO else 1)
