"""Sounds: WAV with 16 bits a sample, through the standard library.

Floats are clipped to -1..1 and rounded to 1/32767, which is the only loss; int16 samples are kept as they are.
"""

import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_loggers.errors import UnsuitableValueError
from lightning_loggers.values import arrays, several
from lightning_loggers.values.arrays import Array
from lightning_loggers.values.snapshots import Encoded, Ready, Snapshot, as_path, existing_file, unsuitable

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".m4a")
ACCEPTED = (
    "(T,) or (C, T) with at most 32 channels, float within -1 and 1 or int16, with its sample_rate in Hz; a pair of an "
    "array and its rate; a sound file's path or its bytes; a list of these, with a list of rates if they are (T,)"
)
MAX_CHANNELS = 32


@dataclass(frozen=True, slots=True)
class _Sound:
    samples: Array
    sample_rate: int
    caption: str | None

    @property
    def size_bytes(self) -> int:
        return self.samples.nbytes

    def encode(self) -> Encoded:
        notes: list[tuple[str, str]] = []
        samples = self.samples
        if samples.dtype != np.int16:
            values = np.nan_to_num(samples.astype(np.float64), posinf=1.0, neginf=-1.0)
            if values.size and np.abs(values).max() > 1:
                notes.append(("range", f"A sound went to {np.abs(values).max():g}: it is clipped to -1..1."))
            samples = np.rint(np.clip(values, -1, 1) * 32767).astype(np.int16)
        samples = samples.reshape(-1, samples.shape[-1])
        content = io.BytesIO()
        with wave.open(content, "wb") as file:
            file.setnchannels(samples.shape[0])
            file.setsampwidth(2)
            file.setframerate(self.sample_rate)
            file.writeframes(np.ascontiguousarray(samples.T).astype("<i2").tobytes())
        detail: dict[str, Any] = {} if self.caption is None else {"caption": self.caption}
        facts = {"sample_rate": self.sample_rate, "channels": samples.shape[0], "frames": samples.shape[1]}
        return Encoded([("sound.wav", content.getvalue())], meta={"details": [detail], "sound": facts}, notes=notes)


def snapshot(
    value: Any, identifier: str, *, sample_rate: Any = None, rate: Any = None, caption: Any = None
) -> Snapshot:
    """Check a sound and copy it.

    Args:
        value: See :data:`ACCEPTED`.
        identifier: Its identifier, for messages.
        sample_rate: Samples a second, or a list of these, one for each sound.
        rate: The same, by its other name.
        caption: A text, or one for each sound.

    Raises:
        UnsuitableValueError: If it is none of what is accepted.
    """
    sample_rate = rate if sample_rate is None else sample_rate
    listed = any(isinstance(given, list | tuple) for given in (sample_rate, caption))
    if several.is_list(value, *((1, 2) if listed else (2,))):  # else (T,) and (T,) are channels
        said = zip(value, several.each(sample_rate, len(value)), several.each(caption, len(value)), strict=True)
        parts = [snapshot(item, identifier, sample_rate=one, caption=text) for item, one, text in said]
        return several.of_list("audio", identifier, parts)
    meta = None if caption is None else {"details": [{"caption": str(caption)}]}
    if isinstance(value, bytes):
        if not (value.startswith(b"RIFF") and value[8:12] == b"WAVE"):
            raise unsuitable("audio", identifier, f"{len(value)} bytes that are no WAV file", ACCEPTED)
        return Ready(Encoded([("sound.wav", value)], meta=meta))
    path = as_path(value)
    if path is not None:
        return Ready(Encoded(meta=meta), existing_file("audio", identifier, path, SUFFIXES).paths)
    if isinstance(value, tuple) and len(value) == 2 and np.ndim(value[1]) == 0 and arrays.shape_of(value[0]) != ():
        value, sample_rate = value[0], value[1] if sample_rate is None else sample_rate
    if sample_rate is None or not float(sample_rate).is_integer() or not 1 <= int(sample_rate) < 2**31:
        seen = "without a sample_rate" if sample_rate is None else f"with sample_rate={sample_rate!r}"
        raise unsuitable("audio", identifier, f"given {seen}", ACCEPTED)
    shape = arrays.shape_of(value)
    if shape is not None:
        _check(shape, arrays.type_of(value), identifier)
    try:
        samples = arrays.snapshot(value)
    except UnsuitableValueError as error:
        raise unsuitable("audio", identifier, str(error), ACCEPTED) from None
    if shape is None:
        _check(samples.shape, "float", identifier)
    return _Sound(samples, int(sample_rate), caption)


def _check(shape: Sequence[int], dtype: str, identifier: str) -> None:
    channels = shape[0] if len(shape) == 2 else 1
    if (
        len(shape) not in {1, 2}
        or 0 in shape
        or channels > MAX_CHANNELS
        or not dtype.endswith(("16", "32", "64", "float"))
    ):
        cure = "; transpose it" if len(shape) == 2 and 0 < shape[1] <= MAX_CHANNELS < channels else ""
        raise unsuitable("audio", identifier, f"of shape {tuple(shape)} and type {dtype}{cure}", ACCEPTED)
    if "int" in dtype and dtype.rpartition(".")[2] != "int16":
        raise unsuitable("audio", identifier, f"of type {dtype}", ACCEPTED)
