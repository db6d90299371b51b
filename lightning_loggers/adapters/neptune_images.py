"""Images as Neptune's image series, which its own charts show along their steps.

The SDK makes them of ``run[path].append(File(...), step=...)``: one operation an image, with the file in base64.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

SUFFIXES = frozenset({"png", "jpg", "jpeg", "gif", "webp", "bmp"})
"""Files that a series may hold; the SDK takes what Pillow can open."""

MAX_BYTES = 32 * 1024**2
"""Of one image; of a larger one the SDK sends nothing."""

MAX_SERIES = 5_000
"""Of one run: what is known of each series is saved with every batch."""

FOLDERS = {"image": "images", "figure": "figures"}
"""Where the series of each kind are, below the prefix."""

_PER_REQUEST = 1000  # as the SDK's own asynchronous mode
_BYTES_PER_REQUEST = 10 * 1024**2


class ImageOfFile:
    """What the SDK calls an ``ImageValue``, whose file is read when it is asked for.

    A batch may have hundreds of images: they are never in memory together.

    Args:
        path: The file.
        description: Shown with it.
    """

    name = None

    def __init__(self, path: Path, description: str | None) -> None:
        self._path = path
        self.description = description
        self.size_bytes = path.stat().st_size

    @property
    def data(self) -> str:
        """The file in base64."""
        return base64.b64encode(self._path.read_bytes()).decode()


def log_image(field: str, image: ImageOfFile, step: float, time_s: float) -> Any:
    """The operation that adds an image to a series."""
    from neptune.internal import operation as ops

    return ops.LogImages(field.split("/"), [ops.LogSeriesValue(image, step, time_s)])


def requests(operations: Sequence[Any]) -> Iterator[list[Any]]:
    """Operations by request: at most a thousand, and not many images."""
    begin, held = 0, 0
    for index, operation in enumerate(operations):
        size = sum(_sizes(operation))
        if index > begin and (index - begin >= _PER_REQUEST or (size and held + size > _BYTES_PER_REQUEST)):
            yield list(operations[begin:index])
            begin, held = index, 0
        held += size
    if begin < len(operations):
        yield list(operations[begin:])


def _sizes(operation: Any) -> Iterable[int]:
    if type(operation).__name__ != "LogImages":
        return ()
    return (item.value.size_bytes for item in operation.values)
