"""Images: PNG, which loses nothing but what is said below.

======================  ==================================================================================
value                   becomes
======================  ==================================================================================
uint8, bool             the same pixels
float                   8 bits: within 0 and 1, rounded to 1/255; what lies outside is clipped, and told
PIL image               the same pixels in the same mode, where PNG has it, else RGB
batch (B, ...)          one image, a grid; or several, with ``grid=False``
======================  ==================================================================================
"""

import functools
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lightning_loggers.errors import UnsuitableValueError
from lightning_loggers.values import arrays
from lightning_loggers.values.arrays import Array
from lightning_loggers.values.plain import plain_json
from lightning_loggers.values.snapshots import (
    Content,
    Encoded,
    Ready,
    Snapshot,
    as_path,
    existing_file,
    origins,
    origins_of,
    require,
    unsuitable,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp")
ACCEPTED = (
    "(H, W), (C, H, W) or (H, W, C) with C of 1, 3 or 4, a batch (B, ...) of these, or a list of images; uint8, bool, "
    "or float within 0 and 1; a PIL image, an image file's path or its bytes"
)
_CHANNELS = (1, 3, 4)
_UINT8 = np.dtype(np.uint8)
_PADDING = 2
_COMPRESSION = 4  # of 9: half the time of Pillow's own choice, files a few percent longer
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp"}


@dataclass(slots=True)  # not frozen: that would cost a log call more than all the rest of it
class _Images:
    """Arrays in some layout, or PIL images, that nobody else can change."""

    pixels: Sequence[Array | Any]
    layouts: Sequence[str]
    grid: bool
    normalize: bool
    details: Sequence[dict[str, Any]]
    overlays: Sequence[Array] = field(default=())

    size_bytes: int = 0

    def encode(self) -> Encoded:
        notes: list[tuple[str, str]] = []
        images: list[Any] = []
        for pixels, layout in zip(self.pixels, self.layouts, strict=True):
            if isinstance(pixels, np.ndarray):
                bytes_ = to_bytes(pixels, notes, normalize=self.normalize)
                batch = channels_last(bytes_, layout)
                images.extend([grid_of(batch)] if self.grid else batch)
            else:
                images.append(pixels)
        files: list[tuple[str, Content]] = [("image.png", png(image)) for image in images]
        details = [*self.details, *({} for _ in images[len(self.details) :])]
        files += [("mask.npy", npy(mask)) for mask in self.overlays]
        meta = {"details": plain_json(details)} if any(details) else None
        return Encoded(files, meta=meta, notes=notes)


def snapshot(
    value: Any,
    identifier: str,
    *,
    caption: Any = None,
    layout: str | None = None,
    grid: bool = True,
    normalize: bool = False,
    masks: Any = None,
    boxes: Any = None,
) -> Snapshot:
    """Check an image and copy it.

    Args:
        value: See :data:`ACCEPTED`.
        identifier: Its identifier, for messages.
        caption: A text, or one for each image.
        layout: ``"CHW"`` or ``"HWC"``, for a shape that can be read as either; by default CHW for torch tensors.
        grid: Whether a batch becomes one image.
        normalize: Whether the smallest value becomes black and the largest white.
        masks: Name to an integer array (H, W), or to a mapping with ``mask_data`` and ``class_labels``; for a list of
            images a list of these.
        boxes: Name to a mapping with ``box_data`` and ``class_labels``, as W&B has them, or a list of these.

    Raises:
        UnsuitableValueError: If it is none of what is accepted.
        MissingDependencyError: If Pillow is not installed.
    """
    require("PIL", "pillow>=10", "media", "log_image")
    if hasattr(value, "shape") and caption is None and masks is None and boxes is None:  # the usual case, made short
        found = _checked_layout(value, identifier, layout)
        pixels = _copied(value, identifier)
        return _Images((pixels,), (found,), grid and found[0] == "B", normalize, (), (), _size_bytes(pixels))
    if isinstance(value, bytes):
        suffix = next((suffix for magic, suffix in _MAGIC.items() if value.startswith(magic)), None)
        if suffix is None:
            raise unsuitable("image", identifier, f"{len(value)} bytes of an unknown format", ACCEPTED)
        return _of_file([(f"image{suffix}", value)], (), identifier, caption=caption, masks=masks, boxes=boxes)
    path = as_path(value)
    if path is not None:
        existing = existing_file("image", identifier, path, SUFFIXES)
        return _of_file([], existing.paths, identifier, caption=caption, masks=masks, boxes=boxes)
    is_list = isinstance(value, list | tuple) and bool(value) and not isinstance(value[0], int | float | list | tuple)
    items = list(value) if is_list else [value]
    captions = caption if isinstance(caption, list | tuple) else [caption] * len(items)
    overlays: list[Array] = []
    details: list[dict[str, Any]] = []
    for index in range(len(items)):
        detail: dict[str, Any] = {}
        if index < len(captions) and captions[index] is not None:
            detail["caption"] = str(captions[index])
        details.append(detail)
    add_overlays(details, overlays, masks, boxes, identifier)
    layouts = [_checked_layout(item, identifier, layout) for item in items]
    pixels = [_copied(item, identifier) for item in items]
    batches = [kind for kind in layouts if kind.startswith("B")]
    grid = grid and bool(batches)
    for detail in details:
        for overlay in detail.get("masks", {}).values():
            overlay["mask_blob"] += len(items)  # behind the images
    size_bytes = sum(map(_size_bytes, (*pixels, *overlays)))
    return _Images(pixels, layouts, grid, normalize, details if not batches or grid else (), overlays, size_bytes)


def _of_file(
    files: list[tuple[str, Content]], paths: Sequence[Path], identifier: str, *, caption: Any, masks: Any, boxes: Any
) -> Ready:
    """An image that is a file already, and what is said of it."""
    detail: dict[str, Any] = {} if not caption else {"caption": str(caption)}
    overlays: list[Array] = []
    add_overlays([detail], overlays, masks, boxes, identifier)
    for mask in detail.get("masks", {}).values():
        mask["mask_blob"] += 1  # behind the image
    files = [*files, *(("mask.npy", npy(mask)) for mask in overlays)]
    return Ready(Encoded(files, meta={"details": plain_json([detail])} if detail else None), paths)


def add_overlays(details: list[dict[str, Any]], overlays: list[Array], masks: Any, boxes: Any, identifier: str) -> None:
    """Add masks and boxes to what is said of images.

    Args:
        details: What is said of each image; a mask is told as the number of its array.
        overlays: Gets the masks' arrays.
        masks: As for :func:`snapshot`; a list has one entry an image.
        boxes: Likewise.
        identifier: The images' identifier, for messages.

    Raises:
        UnsuitableValueError: For a mask that is none.
    """
    for index, detail in enumerate(details):
        own_masks = masks[index] if isinstance(masks, list | tuple) else masks
        own_boxes = boxes[index] if isinstance(boxes, list | tuple) else boxes
        if own_masks:
            detail["masks"] = {}
            for name, mask in dict(own_masks).items():
                made = dict(mask) if isinstance(mask, Mapping) else {"mask_data": mask}
                data = arrays.snapshot(made.pop("mask_data", None))
                if data.ndim != 2 or data.dtype.kind not in "biu":
                    seen = f"a mask {name!r} of shape {data.shape} and {data.dtype}"
                    raise unsuitable("image", identifier, seen, "masks (H, W) of integers")
                detail["masks"][str(name)] = {**made, "mask_blob": len(overlays)}
                overlays.append(data.astype(np.uint8) if data.dtype == bool else data)
        if own_boxes:
            detail["boxes"] = plain_json(own_boxes)


def _checked_layout(item: Any, identifier: str, layout: str | None) -> str:
    """The meaning of each dimension: HW, CHW, HWC, BHW, BCHW, BHWC, or PIL."""
    shape = item.shape if type(item) is np.ndarray else arrays.shape_of(item)
    if shape is None:
        if "PIL" in origins(item):
            return "PIL"
        try:
            shape = arrays.view(item)[0].shape
        except UnsuitableValueError as error:
            raise unsuitable("image", identifier, str(error), ACCEPTED) from None
    found = _known_layout(arrays.class_of(item), shape, getattr(item, "dtype", None), layout)  # type: ignore[arg-type, unused-ignore]
    if isinstance(found, str):
        return found
    raise unsuitable("image", identifier, *found)


@functools.lru_cache(maxsize=1024)
def _known_layout(kind: type, shape: tuple[int, ...], dtype_: Any, layout: str | None) -> str | tuple[str, str]:
    """The layout, or what is wrong and what is accepted; remembered: a program logs a few shapes again and again."""
    dtype = arrays.name_of(dtype_)
    if layout is not None and layout.upper() not in {"CHW", "HWC"}:
        return f"given with layout={layout!r}", "layout='CHW' or 'HWC'"
    wanted = layout.upper() if layout else "CHW" if "torch" in origins_of(kind) else "HWC"
    found = layout_of(shape, wanted, strict=layout is not None)
    wrong_type = dtype != "uint8" and ("int" in dtype or "complex" in dtype)
    if found is None or 0 in shape or wrong_type:
        cure = " (divide by its largest value, or convert to uint8)" if wrong_type else ""
        return f"of shape {shape}" + (f" and type {dtype}" if dtype else ""), ACCEPTED + cure
    return found


def layout_of(shape: Sequence[int], wanted: str, *, strict: bool = False) -> str | None:
    """What the dimensions of an image or batch are, or ``None`` if they are those of none.

    >>> layout_of((64, 64), "CHW"), layout_of((64, 64, 3), "CHW"), layout_of((8, 3, 32, 32), "HWC")
    ('HW', 'HWC', 'BCHW')
    """
    if len(shape) == 2:
        return "HW"
    if len(shape) not in {3, 4}:
        return None
    for layout in [wanted] if strict else [wanted, "HWC" if wanted == "CHW" else "CHW"]:
        if shape[-3 if layout == "CHW" else -1] in _CHANNELS:
            return layout if len(shape) == 3 else f"B{layout}"
    return None


def _copied(item: Any, identifier: str) -> Any:
    if type(item) is not np.ndarray and "PIL" in origins(item):
        return item.copy()
    try:
        pixels = arrays.snapshot(item)
    except UnsuitableValueError as error:
        raise unsuitable("image", identifier, str(error), ACCEPTED) from None
    if pixels.dtype is not _UINT8 and pixels.dtype.kind in "iu":  # a list of numbers has no type of its own
        if pixels.min() < 0 or pixels.max() > 255:
            raise unsuitable("image", identifier, f"integers from {pixels.min()} to {pixels.max()}", ACCEPTED)
        pixels = pixels.astype(np.uint8)
    return pixels


# ---------------------------------------------------------------------- in the background


def to_bytes(pixels: Array, notes: list[tuple[str, str]], *, normalize: bool = False) -> Array:
    """Pixels as 8 bits: float 0..1 becomes 0..255, rounded; what lies outside is clipped and noted."""
    if pixels.dtype == np.uint8 and not normalize:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * np.uint8(255)
    values = pixels.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, 0)
        notes.append(("not finite", "An image held NaN or infinities: those pixels are black."))
    if normalize:
        low, high = float(values.min()), float(values.max())
        values = (values - low) / ((high - low) or 1.0)
    elif values.size and (values.min() < 0 or values.max() > 1):
        notes.append((
            "range",
            f"A float image held values from {values.min():g} to {values.max():g}: it is clipped to 0..1. Scale it, or "
            "log it with normalize=True.",
        ))  # fmt: skip
    np.clip(values, 0, 1, out=values)
    values *= 255
    values += 0.5
    return values.astype(np.uint8)


def channels_last(pixels: Array, layout: str) -> Array:
    """Any layout as a batch (B, H, W, C)."""
    if layout.endswith("CHW"):
        pixels = np.moveaxis(pixels, -3, -1)
    elif layout.endswith("HW"):
        pixels = pixels[..., None]
    return pixels if layout.startswith("B") else pixels[None]


def grid_of(batch: Array) -> Array:
    """A batch (B, H, W, C) as one image, nearly square, two black pixels between."""
    count, height, width, channels = batch.shape
    if count == 1:
        return batch[0]  # type: ignore[no-any-return]
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    step_y, step_x = height + _PADDING, width + _PADDING
    grid = np.zeros((rows * step_y - _PADDING, columns * step_x - _PADDING, channels), np.uint8)
    for index, image in enumerate(batch):
        top, left = index // columns * step_y, index % columns * step_x
        grid[top : top + height, left : left + width] = image
    return grid


def png(image: Any) -> bytes:
    """A PNG file of an array (H, W, C) of bytes, or of a PIL image."""
    from PIL import Image

    if isinstance(image, np.ndarray):
        image = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[-1] == 1 else image))
    elif image.mode not in _PNG_MODES:
        image = image.convert("RGB")
    content = io.BytesIO()
    image.save(content, format="PNG", compress_level=_COMPRESSION)
    return content.getvalue()


def npy(array: Array) -> bytes:
    """A file of numpy's own format, which holds no pickle."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def _size_bytes(pixels: Any) -> int:
    if isinstance(pixels, np.ndarray):
        return pixels.nbytes
    return int(pixels.width * pixels.height * len(pixels.getbands()))
