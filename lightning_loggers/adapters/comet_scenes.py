"""Point clouds as scenes of Comet's 3D panel: what the SDK's ``log_points_3d`` makes of points.

Coordinates are exact; colours are within 0 and 255. As the SDK does, points are put into a random order (here always
the same one), so that the beginning of the file, which Comet reads first, shows all of the scene. So the order is not
kept, nor are points that are no numbers, nor more points than Comet takes: the PLY file beside the scene has all that.
"""

import hashlib
import io
import json
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np

from lightning_loggers.adapters.comet_sdk import Scene
from lightning_loggers.values.arrays import Array
from lightning_loggers.values.snapshots import is_installed

_DRAWN = 20_000
"""Points in the small picture, which the SDK draws one by one."""

_ANGLES = (45, 0, 45)
"""From which the SDK draws it."""

_AT_ONCE = 2_000  # held at a time by the encoder of JSON, which lets no other thread run meanwhile

_AXES = ("xRange", "yRange", "zRange")


def scene_of(
    points: Array, colours: Array | None, *, name: str, asset_id: str, step: int | None, limit: int
) -> Scene | None:
    """A scene of points, or ``None`` where there is nothing to see.

    Args:
        points: Coordinates (N, 3).
        colours: Red, green and blue (N, 3), 0 to 255.
        name: Its name.
        asset_id: Ours.
        step: Its step.
        limit: How many points Comet takes.
    """
    order = np.random.default_rng(_seed(asset_id)).permutation(len(points))
    order = order[np.isfinite(points[order]).all(axis=1)][:limit]
    if not len(order):
        return None
    shown = points[order].astype(np.float64)
    lines = _lines(shown, None if colours is None else colours[order])
    ranges = [[float(axis.min()), float(axis.max())] for axis in shown.T]
    return Scene(name, asset_id, step, lines, _thumbnail(lines, ranges), dict(zip(_AXES, ranges, strict=True)))


def _seed(asset_id: str) -> int:
    return int.from_bytes(hashlib.sha256(asset_id.encode()).digest()[:8])


def _lines(points: Array, colours: Array | None) -> bytes:
    written = io.BytesIO()
    for begin in range(0, len(points), _AT_ONCE):
        rows = points[begin : begin + _AT_ONCE].tolist()
        if colours is not None:
            rows = [[*row, *more] for row, more in zip(rows, colours[begin : begin + _AT_ONCE].tolist(), strict=True)]
        written.write(json.dumps(rows)[1:-1].replace("], [", "]\n[").encode() + b"\n")
    return written.getvalue()


def _thumbnail(lines: bytes, ranges: list[list[float]]) -> bytes:
    """The picture that the SDK draws of the first points; nothing without Pillow."""
    if not is_installed("PIL"):
        return b""
    from comet_ml.experiment_loggers.points_3d.thumbnail import create_thumbnail

    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        file.writelines(islice(io.BytesIO(lines), _DRAWN))
        file.flush()
        drawn = create_thumbnail(file.name, None, *_ANGLES, *ranges)
    if drawn is None:
        return b""
    path = Path(drawn)  # the SDK leaves it where temporary files are
    try:
        return path.read_bytes()
    finally:
        path.unlink()
