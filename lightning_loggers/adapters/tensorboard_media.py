"""What TensorBoard shows besides curves and texts: images, sounds, histograms and point clouds."""

import io
import itertools
import struct
import wave
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning_loggers.adapters.image_details import Rectangle, details_files, rectangles
from lightning_loggers.adapters.standard_files import StandardFile, inline_value
from lightning_loggers.adapters.tensorboard_files import Events
from lightning_loggers.records import Kind, Record
from lightning_loggers.values.snapshots import is_installed

if TYPE_CHECKING:
    from lightning_loggers.adapters.folder import FolderAdapter

MAX_ROWS = 100
"""Of a table that are shown as text."""

_MARK = "_media_/"
_PLUGINS = ("image", "audio", "histogram", "mesh")
_LONGEST_MARK = 900
_COLOURS = ("red", "lime", "blue", "yellow", "magenta", "cyan")  # of CSS, as Pillow knows them


class Media:
    """Adds records to events in TensorBoard's own form, or keeps them as standard files where it has none.

    Args:
        adapter: Whose files and names they are.
    """

    def __init__(self, adapter: "FolderAdapter") -> None:
        self._adapter = adapter
        self._any_marked = any(key.startswith(_MARK) for key in adapter.context.keys.names)

    def add(self, events: Events, record: Record, step_of: Callable[[Any], int]) -> None:
        """Add one record.

        Args:
            events: Where to.
            record: Of a kind that has a standard file.
            step_of: Makes a step one of TensorBoard's; asked only where one is shown.

        Raises:
            Exception: What the adapter's ``classify`` knows.
        """
        if record.kind in {Kind.HISTOGRAM, Kind.WATCH}:
            step = step_of(record.step)
            for key, histogram in dict(inline_value(record, self._adapter.context) or {}).items():
                events.add_histogram(record.time_ns, step, self._tag(key, "histogram"), histogram)
            return
        if record.kind == Kind.TABLE:
            self._add_table(events, record, step_of)
        if record.kind not in _NATIVE:
            self._adapter.send_standard(record)
            return
        others: list[StandardFile] = []
        shown = self._adapter.files_of(record)
        tag, step = self._tag(record.id or record.kind, _NATIVE[record.kind]), step_of(record.step)
        if record.kind == Kind.POINT_CLOUD:
            others = [] if self._add_clouds(events, record, step, tag, shown) else shown
            shown = []
        for number, file in enumerate(shown):
            own_tag = f"{tag}/{number}" if len(shown) > 1 and number else tag
            add = self._add_sound if record.kind == Kind.AUDIO else self._add_image
            if not add(events, record, step, own_tag, file):
                others.append(file)
            elif record.kind == Kind.IMAGE:
                self._add_boxes(events, record, step, number, file)
        self._adapter.put([*others, *details_files(record, shown, self._adapter.files.place)])

    def scalar_tag(self, key: str) -> str:
        """The tag of a metric; one whose name an image or the like has already gets an addition."""
        keys = self._adapter.context.keys
        taken = self._any_marked and any(_mark(key, plugin) in keys.names for plugin in _PLUGINS)
        return keys.fit(f"{key}/scalar" if taken else key)

    def _tag(self, identifier: str, plugin: str) -> str:
        """The tag of an identifier; TensorBoard shows under one tag what came first only, so no two kinds share one.

        Who has a tag is noted in the map of keys itself, which is saved as a whole: after a crash each gets its own.
        """
        keys = self._adapter.context.keys
        mark = _mark(identifier, plugin)
        if len(mark) > _LONGEST_MARK or (mark not in keys.names and identifier in keys.names):
            return keys.fit(f"{identifier}/{plugin}")
        keys.fit(mark)
        self._any_marked = True
        return keys.fit(identifier)

    # ------------------------------------------------------------------ forms

    @staticmethod
    def _add_image(events: Events, record: Record, step: int, tag: str, file: StandardFile) -> bool:
        content = file.read()
        size = image_size(content)
        if size is None:
            return False
        events.add_image(record.time_ns, step, tag, content, size)
        return True

    def _add_boxes(self, events: Events, record: Record, step: int, number: int, file: StandardFile) -> None:
        """Show the image again with its boxes drawn on it, as ``add_image_with_boxes`` does."""
        listed = (record.meta or {}).get("details") or []
        boxes = (listed[number] or {}).get("boxes") if number < len(listed) else None
        if not isinstance(boxes, Mapping) or not is_installed("PIL"):
            return
        content = file.read()
        size = image_size(content)
        layers = rectangles(boxes, size) if size is not None else {}
        if size is not None and layers:
            identifier = f"{record.id or record.kind}/boxes" + (f"/{number}" if number else "")
            drawn = with_boxes(content, layers)
            events.add_image(record.time_ns, step, self._tag(identifier, "image"), drawn, size)

    @staticmethod
    def _add_sound(events: Events, record: Record, step: int, tag: str, file: StandardFile) -> bool:
        content = file.read()
        try:
            with wave.open(io.BytesIO(content)) as sound:
                facts = (sound.getframerate(), sound.getnchannels(), sound.getnframes())
        except (wave.Error, EOFError):
            return False
        events.add_audio(record.time_ns, step, tag, content, facts)
        return True

    @staticmethod
    def _add_clouds(events: Events, record: Record, step: int, tag: str, files: list[StandardFile]) -> bool:
        from lightning_loggers.values.point_clouds import read_ply

        try:
            clouds = [read_ply(file.read()) for file in files]
        except ValueError:  # a file of the user
            return False
        if not clouds or len({len(points) for points, _ in clouds}) != 1:
            return False
        events.add_mesh(record.time_ns, step, tag, clouds)
        return True

    def _add_table(self, events: Events, record: Record, step_of: Callable[[Any], int]) -> None:
        """Its first rows, as Markdown."""
        from lightning_loggers.values.tables import table_of

        try:
            table = table_of(record, [file for file, _ in self._adapter.located(record)])
        except ImportError:  # without pyarrow it is a file only
            return
        if table is None:
            return
        tag = self._adapter.context.keys.fit(record.id or record.kind) + "/text_summary"
        events.add_text(record.time_ns, step_of(record.step), tag, _markdown(table))


def _mark(identifier: str, plugin: str) -> str:
    return f"{_MARK}{plugin}/{identifier}"


_NATIVE: Mapping[str, str] = {
    Kind.IMAGE: "image",
    Kind.FIGURE: "image",
    Kind.VIDEO: "image",
    Kind.AUDIO: "audio",
    Kind.POINT_CLOUD: "mesh",
}
"""What TensorBoard calls the form of each kind."""


def image_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG, GIF or JPEG file, which TensorBoard shows; ``None`` for any other.

    >>> image_size(b"GIF89a" + struct.pack("<HH", 4, 3)), image_size(b"RIFF")
    ((4, 3), None)
    """
    if content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) >= 24:
        return struct.unpack(">II", content[16:24])
    if content.startswith(b"GIF8") and len(content) >= 10:
        return struct.unpack("<HH", content[6:10])
    at = 2
    while content.startswith(b"\xff\xd8") and at + 9 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:  # the frame's header (ITU-T T.81, B.2.2)
            height, width = struct.unpack(">HH", content[at + 5 : at + 9])
            return width, height
        at += 2 + length
    return None


def with_boxes(content: bytes, layers: Mapping[str, Sequence[Rectangle]]) -> bytes:
    """An image as PNG with boxes drawn on it, those of each layer in a colour of their own.

    Args:
        content: An image file.
        layers: Its boxes, by their layer.
    """
    from PIL import Image, ImageDraw

    with Image.open(io.BytesIO(content)) as image:
        drawn = image.convert("RGB")
    pen = ImageDraw.Draw(drawn)
    for colour, boxes in zip(itertools.cycle(_COLOURS), layers.values(), strict=False):
        for box in boxes:
            # Pillow takes no numbers beyond 32 bits: what is outside of the image is cut to a little outside of it.
            left, right = (min(max(x, -9), drawn.width + 9) for x in (box.x, box.x + box.width))
            top, bottom = (min(max(y, -9), drawn.height + 9) for y in (box.y, box.y + box.height))
            pen.rectangle((left, top, right, bottom), outline=colour, width=1 + min(drawn.size) // 300)
            text = box.label if box.score is None else f"{box.label} {box.score:.2f}"
            pen.text((left + 2, top + 1), text.encode("ascii", "replace").decode(), fill=colour)
    written = io.BytesIO()
    drawn.save(written, format="PNG")
    return written.getvalue()


def _markdown(table: Mapping[str, Any]) -> str:
    rows = table["data"]
    lines = [_row(table["columns"]), _row("---" for _ in table["columns"]), *map(_row, rows[:MAX_ROWS])]
    if len(rows) > MAX_ROWS:
        lines.append(f"\n{MAX_ROWS} of {len(rows):,} rows; the file below media/ has all of them.")
    return "\n".join(lines)


def _row(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
