"""Images and sounds as files: what ``log_image`` and ``log_audio`` of WandbLogger keep beside the journal.

Made in the training thread without W&B's SDK; an encoder here takes what the SDK's own class of media takes.
"""

import io
import os
import struct
import wave
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.records import Blob

Array = np.ndarray[Any, Any]


def as_array(value: Any) -> Array:
    """A tensor's or array's values; a tensor on a GPU is waited for."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float().numpy() if value.is_floating_point() else value.numpy()
    return np.asarray(value)


_MODES_OF_PNG = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})


def keep_file(writer: JournalWriter, item: Any, detail: dict[str, Any]) -> Blob:
    """Keep a file of the user."""
    return writer.blobs.link_file(Path(item))


def keep_image(writer: JournalWriter, item: Any, detail: dict[str, Any]) -> Blob:
    """Keep an image: a file as it is; a PIL image, figure, array (H, W[, C]) or tensor ([N,] [C,] H, W) as PNG.

    Raises:
        ValueError: For another shape.
        OSError: If the file cannot be read, or the journal not written.
    """
    if isinstance(item, str | os.PathLike):
        return writer.blobs.link_file(Path(item))
    if hasattr(item, "image") and hasattr(item, "to_json"):  # a wandb.Image
        if getattr(item, "_caption", None) is not None:
            detail.setdefault("caption", item._caption)
        item = item.image
    content = io.BytesIO()
    if hasattr(item, "savefig"):  # a figure of matplotlib
        item.savefig(content, format="png")
        return writer.blobs.put_bytes(content.getvalue(), "image.png")
    if hasattr(item, "save") and hasattr(item, "mode"):  # a PIL image
        (item if item.mode in _MODES_OF_PNG else item.convert("RGB")).save(content, format="PNG")
        return writer.blobs.put_bytes(content.getvalue(), "image.png")
    is_tensor = hasattr(item, "detach")
    pixels = as_array(item)
    if is_tensor and pixels.ndim == 4:
        pixels = np.concatenate(list(pixels), axis=-1)  # side by side
    if is_tensor and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    return writer.blobs.put_bytes(_png(_as_bytes(pixels)), "image.png")


def _as_bytes(pixels: Array) -> Array:
    """Pixels as bytes: integers stay, floats within 0 and 1 are times 255, floats that go below 0 are stretched.

    (W&B's SDK 0.31 cuts floats to integers: an image within 0 and 1 would be black.)
    """
    if pixels.dtype.kind in "iu":
        return np.clip(pixels, 0, 255).astype(np.uint8)
    values = np.nan_to_num(pixels.astype(np.float64))
    if values.size and values.min() < 0:
        values = (values - values.min()) / (np.ptp(values) or 1.0)
    if values.size and values.max() <= 1:
        values = values * 255
    return np.clip(values, 0, 255).astype(np.uint8)


def _png(pixels: Array) -> bytes:
    """A PNG file of (H, W) or (H, W, C) bytes with 1 to 4 channels (W3C, Portable Network Graphics, 2003).

    Raises:
        ValueError: For another shape.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim != 3 or pixels.shape[2] not in {1, 2, 3, 4}:
        raise ValueError(f"an image has shape (H, W) or (H, W, C) with 1 to 4 channels, not {pixels.shape}")
    height, width, channels = pixels.shape
    lines = np.zeros((height, 1 + width * channels), np.uint8)  # each line begins with its filter, 0 for none
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 4)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def keep_sound(writer: JournalWriter, item: Any, detail: dict[str, Any]) -> Blob:
    """Keep a sound: a file as it is; an array (T,) or (T, C), floats within -1 and 1, as 16-bit WAV.

    Args:
        writer: The journal's.
        item: The sound.
        detail: Its further arguments; ``sample_rate`` (Hz) is taken out, since the file says it.
    """
    if isinstance(item, str | os.PathLike):
        return writer.blobs.link_file(Path(item))
    samples = as_array(item)
    rate = int(detail.pop("sample_rate", None) or 32_000)
    if samples.dtype != np.int16:
        samples = (np.clip(np.nan_to_num(samples.astype(np.float64)), -1, 1) * 32767).astype(np.int16)
    samples = samples.reshape(len(samples), -1)
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return writer.blobs.put_bytes(content.getvalue(), "sound.wav")
