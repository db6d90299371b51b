"""Videos: MP4 (H.264) through PyAV where that is installed, else GIF through Pillow.

Both lose something: H.264 of this quality (CRF 18, 4:2:0) stays within a few of 255 levels on average, and an odd
height or width is padded by one repeated line. GIF has 256 colours a frame, and its times are multiples of 1/100 s.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lightning_loggers.errors import UnsuitableValueError
from lightning_loggers.values import arrays, images, several
from lightning_loggers.values.arrays import Array
from lightning_loggers.values.snapshots import (
    Encoded,
    Ready,
    Snapshot,
    as_path,
    existing_file,
    is_installed,
    require,
    unsuitable,
)

SUFFIXES = (".mp4", ".gif", ".webm", ".mov", ".mkv", ".ogg", ".avi")
ACCEPTED = (
    "(T, C, H, W) or (T, H, W, C) with C of 1, 3 or 4, uint8 or float within 0 and 1, with its fps; a video file's "
    "path or bytes; a list of these"
)
_QUALITY = {"crf": "18", "preset": "veryfast"}


@dataclass(frozen=True, slots=True)
class _Video:
    frames: Array
    layout: str
    fps: float
    format: str
    caption: str | None

    @property
    def size_bytes(self) -> int:
        return self.frames.nbytes

    def encode(self) -> Encoded:
        notes: list[tuple[str, str]] = []
        frames = images.channels_last(images.to_bytes(self.frames, notes), self.layout)
        if frames.shape[-1] == 1:
            frames = np.repeat(frames, 3, axis=-1)
        content = mp4(frames[..., :3], self.fps) if self.format == "mp4" else gif(frames[..., :3], self.fps)
        detail: dict[str, Any] = {"fps": self.fps, "format": self.format}
        if self.caption is not None:
            detail["caption"] = self.caption
        return Encoded([(f"video.{self.format}", content)], meta={"details": [detail]}, notes=notes)


def snapshot(
    value: Any,
    identifier: str,
    *,
    fps: Any = None,
    format: Any = None,  # noqa: A002 - W&B's name for it
    caption: Any = None,
    layout: str | None = None,
) -> Snapshot:
    """Check a video and copy it.

    Args:
        value: See :data:`ACCEPTED`.
        identifier: Its identifier, for messages.
        fps: Frames a second; as the next two one for all videos of a list, or a list.
        format: ``"mp4"`` or ``"gif"``; by default MP4 where PyAV is installed.
        caption: A text.
        layout: ``"CHW"`` or ``"HWC"``, for a shape that can be read as either.

    Raises:
        UnsuitableValueError: If it is none of what is accepted.
        MissingDependencyError: If what writes the format is not installed.
    """
    if several.is_list(value, 4):
        said = zip(value, *(several.each(given, len(value)) for given in (fps, format, caption)), strict=True)
        parts = [
            snapshot(item, identifier, fps=rate, format=form, caption=text, layout=layout)
            for item, rate, form, text in said
        ]
        return several.of_list("video", identifier, parts)
    meta = None if caption is None else {"details": [{"caption": str(caption)}]}
    path = as_path(value)
    if path is not None:
        return Ready(Encoded(meta=meta), existing_file("video", identifier, path, SUFFIXES).paths)
    if isinstance(value, bytes):
        for magic, at, suffix in ((b"GIF8", 0, "gif"), (b"ftyp", 4, "mp4"), (b"\x1aE\xdf\xa3", 0, "webm")):
            if value[at : at + 4] == magic:
                return Ready(Encoded([(f"video.{suffix}", value)], meta=meta))
        raise unsuitable("video", identifier, f"{len(value)} bytes of an unknown format", ACCEPTED)
    if fps is None or not 0 < float(fps) <= 1000:
        raise unsuitable("video", identifier, f"given with fps={fps!r}", ACCEPTED)
    if format not in {None, "mp4", "gif"}:
        raise unsuitable("video", identifier, f"given with format={format!r}", "format='mp4' or 'gif'")
    format = format or ("mp4" if is_installed("av") else "gif")  # noqa: A001
    if format == "mp4":
        require("av", "av>=12", "media", f"log_video({identifier!r}, format='mp4')")
    else:
        require("PIL", "pillow>=10", "media", f"log_video({identifier!r})")
    shape = arrays.shape_of(value)
    if shape is None:
        value = arrays.view(value)[0]
        shape = value.shape
    dtype = arrays.type_of(value)
    wanted = (layout or "CHW").upper()
    found = images.layout_of(shape, wanted, strict=layout is not None) if len(shape) == 4 else None
    if found is None or 0 in shape or not dtype.endswith(("uint8", "float16", "float32", "float64")):
        raise unsuitable("video", identifier, f"of shape {tuple(shape)} and type {dtype}", ACCEPTED)
    try:
        frames = arrays.snapshot(value)
    except UnsuitableValueError as error:
        raise unsuitable("video", identifier, str(error), ACCEPTED) from None
    return _Video(frames, found, float(fps), format, caption)


def mp4(frames: Array, fps: float) -> bytes:
    """An MP4 file of frames (T, H, W, 3) of bytes."""
    import av

    height, width = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream: Any = container.add_stream(
            codec, rate=Fraction(fps).limit_denominator(1001), options=_QUALITY if codec == "libx264" else {}
        )
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))
    return content.getvalue()


def gif(frames: Array, fps: float) -> bytes:
    """A GIF file of frames (T, H, W, 3) of bytes, that is shown for ever."""
    from PIL import Image

    first, *others = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    content = io.BytesIO()
    first.save(
        content, format="GIF", save_all=True, append_images=others, duration=durations_ms(len(frames), fps), loop=0
    )
    return content.getvalue()


def durations_ms(count: int, fps: float) -> Sequence[int]:
    """How long each frame of a GIF is shown: multiples of 10 ms that add up to the video's own time.

    >>> durations_ms(4, 15)
    [70, 60, 70, 70]
    """
    ends = [round(100 * (index + 1) / fps) for index in range(count)]
    return [10 * max(end - start, 2) for start, end in zip([0, *ends], ends, strict=False)]
