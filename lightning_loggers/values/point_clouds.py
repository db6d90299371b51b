"""Point clouds: binary PLY, coordinates as 32-bit floats, colours as bytes.

The format is G. Turk's, "The PLY Polygon File Format" (Stanford, 1994).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_loggers.errors import UnsuitableValueError
from lightning_loggers.values import arrays
from lightning_loggers.values.arrays import Array
from lightning_loggers.values.snapshots import Encoded, Snapshot, as_path, existing_file, unsuitable

SUFFIXES = (".ply", ".obj", ".pcd", ".xyz", ".npy")
ACCEPTED = (
    "(N, 3), (N, 6) with red, green and blue (0 to 255, or floats within 0 and 1), or a batch (B, N, 3) or (B, N, 6); "
    "a file's path"
)
_XYZ = ["float x", "float y", "float z"]
_RGB = ["uchar red", "uchar green", "uchar blue"]
_POINT = np.dtype([("xyz", "<f4", 3)])
_COLOURED = np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)])


@dataclass(frozen=True, slots=True)
class _Clouds:
    points: Array

    @property
    def size_bytes(self) -> int:
        return self.points.nbytes

    def encode(self) -> Encoded:
        clouds = self.points if self.points.ndim == 3 else self.points[None]
        notes = []
        if not np.isfinite(clouds).all():
            notes.append(("not finite", "A point cloud held NaN or infinities; they are kept, and may not be shown."))
        return Encoded([("points.ply", ply(cloud)) for cloud in clouds], notes=notes)


def snapshot(value: Any, identifier: str) -> Snapshot:
    """Check a point cloud and copy it.

    Args:
        value: See :data:`ACCEPTED`.
        identifier: Its identifier, for messages.

    Raises:
        UnsuitableValueError: If it is none of what is accepted.
    """
    path = as_path(value)
    if path is not None:
        return existing_file("point_cloud", identifier, path, SUFFIXES)
    shape = arrays.shape_of(value)
    if shape is not None:
        _check(shape, identifier)
    try:
        points = arrays.snapshot(value)
    except (UnsuitableValueError, ValueError) as error:
        raise unsuitable("point_cloud", identifier, str(error), ACCEPTED) from None
    _check(points.shape, identifier)
    return _Clouds(points)


def _check(shape: Sequence[int], identifier: str) -> None:
    if len(shape) not in {2, 3} or shape[-1] not in {3, 6} or 0 in shape:
        raise unsuitable("point_cloud", identifier, f"of shape {tuple(shape)}", ACCEPTED)


def ply(cloud: Array) -> bytes:
    """A PLY file of points (N, 3) or (N, 6)."""
    points = np.zeros(len(cloud), _COLOURED if cloud.shape[1] == 6 else _POINT)
    points["xyz"] = cloud[:, :3]
    properties = _XYZ
    if cloud.shape[1] == 6:
        colours = np.nan_to_num(cloud[:, 3:].astype(np.float64))
        if cloud.dtype.kind == "f" and colours.size and colours.max() <= 1:
            colours = np.rint(colours * 255)
        points["rgb"] = np.clip(colours, 0, 255)
        properties = _XYZ + _RGB
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    lines += [f"property {name}" for name in properties] + ["end_header", ""]
    return "\n".join(lines).encode() + points.tobytes()


def read_ply(content: bytes) -> tuple[Array, Array | None]:
    """What :func:`ply` wrote: coordinates (N, 3), and colours (N, 3) if it has any.

    Raises:
        ValueError: For any other file.

    >>> read_ply(ply(np.array([[1.0, 2.0, 3.0]])))
    (array([[1., 2., 3.]], dtype=float32), None)
    """
    header, found, data = content.partition(b"end_header\n")
    lines = header.decode("ascii", "replace").splitlines()
    properties = [line.removeprefix("property ") for line in lines if line.startswith("property ")]
    if not found or "format binary_little_endian 1.0" not in lines or properties not in (_XYZ, _XYZ + _RGB):
        raise ValueError("no binary little-endian PLY file of points and colours alone")
    dtype = _COLOURED if len(properties) > len(_XYZ) else _POINT
    points = np.frombuffer(data, dtype)
    return points["xyz"], points["rgb"] if dtype is _COLOURED else None
