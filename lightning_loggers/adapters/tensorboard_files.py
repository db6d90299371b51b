"""TensorBoard's files: the one that grows, and the one of the hyperparameters tab, which is written anew.

Both are written with TensorBoard's own messages and record format; neither needs torch or TensorFlow.
"""

import contextlib
import functools
import itertools
import json
import math
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_loggers.adapters.base import Context
from lightning_loggers.adapters.folder import set_aside, write_whole
from lightning_loggers.journal.blobs import safe_name
from lightning_loggers.journal.layout import journal_dir, state_path
from lightning_loggers.notices import Notices
from lightning_loggers.records import RunStatus

_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")

_FLOAT, _UINT8 = 1, 4
"""TensorFlow's ``DT_FLOAT`` and ``DT_UINT8``."""


class Events:
    """Events, encoded as an event file has them."""

    def __init__(self) -> None:
        from tensorboard.compat.proto import event_pb2

        self._make = event_pb2.Event
        self._pb = event_pb2
        self._records: list[bytes] = []

    @property
    def data(self) -> bytes:
        """All of them."""
        return b"".join(self._records)

    def _add(self, event: Any) -> None:
        self._records.append(_record(event.SerializeToString()))

    def add_version(self, time_ns: int) -> None:
        """What an event file begins with."""
        self._add(self._make(wall_time=time_ns / 1e9, file_version="brain.Event:2"))

    def add_scalars(self, time_ns: int, step: int, scalars: Mapping[str, float]) -> None:
        """The metrics of one log call, as one event."""
        event = self._make(wall_time=time_ns / 1e9, step=step)
        for tag, value in scalars.items():
            event.summary.value.add(tag=tag, simple_value=value)
        self._add(event)

    def add_text(self, time_ns: int, step: int, tag: str, text: str) -> None:
        """A text, of any length."""
        event = self._make(wall_time=time_ns / 1e9, step=step)
        value = event.summary.value.add(tag=tag)
        value.metadata.plugin_data.plugin_name = "text"
        value.tensor.dtype = 7  # DT_STRING
        value.tensor.tensor_shape.SetInParent()
        value.tensor.string_val.append(text.encode(errors="backslashreplace"))
        self._add(event)

    def add_image(self, time_ns: int, step: int, tag: str, content: bytes, size: tuple[int, int]) -> None:
        """An image file (PNG, JPEG or GIF), width and height in pixels."""
        event = self._make(wall_time=time_ns / 1e9, step=step)
        image = event.summary.value.add(tag=tag).image
        image.width, image.height = size
        image.colorspace, image.encoded_image_string = 3, content
        self._add(event)

    def add_audio(self, time_ns: int, step: int, tag: str, content: bytes, sound: tuple[int, int, int]) -> None:
        """A WAV file; its rate in Hz, channels and frames."""
        event = self._make(wall_time=time_ns / 1e9, step=step)
        audio = event.summary.value.add(tag=tag).audio
        audio.sample_rate, audio.num_channels, audio.length_frames = sound
        audio.encoded_audio_string, audio.content_type = content, "audio/wav"
        self._add(event)

    def add_histogram(self, time_ns: int, step: int, tag: str, histogram: Mapping[str, Any]) -> None:
        """Counts and edges of bins, with their moments where these are known."""
        counts, edges = histogram["counts"], histogram["bins"]
        middles = [(low + high) / 2 for low, high in itertools.pairwise(edges)]
        weighed = list(zip(counts, middles, strict=True))
        event = self._make(wall_time=time_ns / 1e9, step=step)
        made = event.summary.value.add(tag=tag).histo
        made.min, made.max = histogram.get("min", edges[0]), histogram.get("max", edges[-1])
        made.num = histogram.get("count", sum(counts))
        made.sum = histogram.get("sum", sum(count * middle for count, middle in weighed))
        made.sum_squares = histogram.get("sum_squares", sum(count * middle**2 for count, middle in weighed))
        made.bucket_limit.extend(edges[1:])
        made.bucket.extend(counts)
        self._add(event)

    def add_mesh(self, time_ns: int, step: int, tag: str, clouds: Sequence[tuple[Any, Any]]) -> None:
        """Point clouds of one size: coordinates (N, 3), and colours (N, 3) or ``None``, of each."""
        from tensorboard.plugins.mesh import metadata, plugin_data_pb2

        content = plugin_data_pb2.MeshPluginData
        parts = [(content.VERTEX, _FLOAT, [points for points, _ in clouds])]
        if all(colours is not None for _, colours in clouds):
            parts.append((content.COLOR, _UINT8, [colours for _, colours in clouds]))
        shape = [len(clouds), len(clouds[0][0]), 3]
        components = metadata.get_components_bitmask([kind for kind, _, _ in parts])
        event = self._make(wall_time=time_ns / 1e9, step=step)
        for kind, dtype, arrays in parts:
            value = event.summary.value.add(tag=metadata.get_instance_name(tag, kind))
            made = metadata.create_summary_metadata(tag, None, kind, components, shape)
            value.metadata.CopyFrom(made)
            value.tensor.dtype = dtype
            for size in shape:
                value.tensor.tensor_shape.dim.add(size=size)
            value.tensor.tensor_content = b"".join(array.tobytes() for array in arrays)
        self._add(event)

    def add_graph(self, time_ns: int, graph: bytes, metadata: bytes | None) -> None:
        """A serialised ``GraphDef``, and its ``RunMetadata`` (shapes, times) if there is one."""
        self._add(self._make(wall_time=time_ns / 1e9, graph_def=graph))
        if metadata is not None:
            tagged = self._pb.TaggedRunMetadata(tag="step1", run_metadata=metadata)
            self._add(self._make(wall_time=time_ns / 1e9, tagged_run_metadata=tagged))

    def add_restart(self, time_ns: int, step: int) -> None:
        """A restart at ``step``: readers hide what came before with that step or a later one."""
        start = self._pb.SessionLog(status=self._pb.SessionLog.START)
        self._add(self._make(wall_time=time_ns / 1e9, step=step, session_log=start))


class EventFile:
    """The event file that grows. It is ours alone: its length is known, and what lies behind it is cut off.

    Args:
        folder: Where it lies.
        kept: Where its ``file`` name and ``length`` are kept between processes, besides ``tab``, the name of the
            hyperparameters' file, and the ``number`` of files so far. Changed only when an append is on disk.
        context: Of the run.
    """

    def __init__(self, folder: Path, kept: dict[str, Any], context: Context) -> None:
        self._folder = folder
        self._kept = kept
        self._context = context
        self._fd = -1
        host = safe_name(str(context.header.environment.get("host") or "host"))[:64]
        suffix = context.options.get("filename_suffix")
        # The hyphen puts it before a file that torch's SummaryWriter begins in the same second.
        self._owner = f"{host}-{safe_name(context.run.uid)[:12]}"
        self._suffix = safe_name(str(suffix)) if suffix else ""

    def _name(self, time_ns: int, number: int) -> str:
        return f"events.out.tfevents.{time_ns // 10**9:010d}.{self._owner}.{number:03d}{self._suffix}"

    @property
    def tab_path(self) -> Path:
        """The file of the hyperparameters tab: the first one."""
        return self._folder / safe_name(str(self._kept.get("tab") or self._name(self._context.header.time_ns, 0)))

    @property
    def path(self) -> Path:
        """The file that grows."""
        return self._folder / safe_name(str(self._kept.get("file") or self._name(self._context.header.time_ns, 1)))

    def open(self) -> None:
        """Take the file up as it was when its length was saved; none is made.

        Raises:
            OSError: If it is there and cannot be opened, or is a symbolic link.
        """
        self.close()
        if "length" not in self._kept:
            # Nothing is known of an event file, so all records are about to come: those of an earlier state of delivery
            # that was lost would show them twice.
            for path in sorted(self._folder.iterdir()):
                if path.name.startswith("events.out.tfevents.") and f".{self._owner}." in path.name:
                    _hide(path, self._context.notices)
            self._kept.update(tab=self.tab_path.name, file=self.path.name, number=1, length=0)
            return  # saved by the worker before anything is written
        length = self._kept["length"]
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            if length:
                self._replace(f"{self.path} was deleted")
            return
        size = os.fstat(self._fd).st_size
        if size < length:
            self._replace(f"{self.path} has {size} bytes where {length} were written")
        elif size > length:
            os.ftruncate(self._fd, length)

    def close(self) -> None:
        """Let go of the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def begin(self, time_ns: int) -> None:
        """Have what follows in another file, named for that time."""
        self.close()
        number = self._kept["number"] + 1
        self._kept.update(file=self._name(time_ns, number), number=number, length=0)

    def _replace(self, reason: str) -> None:
        """Begin another file: readers stop at a damaged record, so nothing is written behind one."""
        run_dir = self._context.run_dir
        self._context.notices.tell_once(
            ("events", str(self.path)),
            f"{reason}; new events go to another file. To have all of them again when the run has ended, delete "
            f"{state_path(journal_dir(run_dir), 'tensorboard')}, then: lightning-loggers sync {run_dir}",
        )
        self.begin(time.time_ns())

    def append(self, data: bytes) -> None:
        """Add events; on any fault none of them is added.

        Raises:
            OSError: If the disk refuses.
        """
        if not data:
            return
        self._look_for_it()
        if self._fd < 0:
            self.open()
        length: int = self._kept["length"]
        if self._fd < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self.path, flags, 0o644)
        if not length:
            events = Events()
            events.add_version(self._context.header.time_ns)
            data = events.data + data
        try:
            view, offset = memoryview(data), length
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written
            os.fdatasync(self._fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, length)
            raise
        self._kept["length"] = length + len(data)

    def _look_for_it(self) -> None:
        """Somebody may have deleted or replaced the file under a live run."""
        if self._fd < 0:
            return
        mine = os.fstat(self._fd)
        with contextlib.suppress(FileNotFoundError):
            there = os.stat(self.path, follow_symlinks=False)
            if (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev):
                return
        self._replace(f"{self.path} was deleted or replaced")


class HParamsFile:
    """The event file with the hyperparameters tab, always written as a whole. The file itself is the memory.

    Args:
        path: The file.
        begun_s: When the run began, seconds since the epoch.
    """

    def __init__(self, path: Path, begun_s: float) -> None:
        self.path = path
        self.begun_s = begun_s
        self.params: dict[str, str | float | bool] = {}
        self.metrics: list[str] = []
        self.status = RunStatus.RUNNING
        self.time_s = begun_s
        self.end_s = begun_s
        self.changed = False
        self._loaded = False

    def load(self) -> bool:
        """Read what is there, once.

        Returns:
            Whether there is anything.
        """
        if not self._loaded:
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                with open(fd, "rb") as file:
                    self._decode(file.read())
            self._loaded = True
        return bool(self.params or self.metrics)

    def _decode(self, content: bytes) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.plugins.hparams import (
            metadata,
            plugin_data_pb2,
        )

        for data in _records(content):
            event = event_pb2.Event.FromString(data)
            for value in event.summary.value:
                found = plugin_data_pb2.HParamsPluginData.FromString(value.metadata.plugin_data.content)
                if value.tag == metadata.EXPERIMENT_TAG:
                    self.metrics = [info.name.tag for info in found.experiment.metric_infos]
                    self.params = {info.name: "" for info in found.experiment.hparam_infos}  # for their order
                    self.time_s = event.wall_time
                elif value.tag == metadata.SESSION_START_INFO_TAG:
                    for name, param in found.session_start_info.hparams.items():
                        self.params[name] = getattr(param, param.WhichOneof("kind") or "string_value")

    def update(self, params: Mapping[str, Any], metrics: Iterable[str], time_s: float) -> None:
        """Add hyperparameters, and tags of metrics to be shown beside them."""
        self.params |= {name: _param(value) for name, value in params.items()}
        self.metrics += [tag for tag in metrics if tag not in self.metrics]
        self.time_s = time_s
        self.changed = True

    def save(self) -> None:
        """Put it on disk.

        Raises:
            OSError: If the disk refuses.
        """
        from tensorboard.compat.proto import event_pb2
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        experiment = api_pb2.Experiment(time_created_secs=self.begun_s)
        start = plugin_data_pb2.SessionStartInfo(start_time_secs=self.begun_s)
        for name, value in self.params.items():
            param = start.hparams[name]
            if isinstance(value, bool):
                param.bool_value, kind = value, api_pb2.DATA_TYPE_BOOL
            elif isinstance(value, str):
                param.string_value, kind = value, api_pb2.DATA_TYPE_STRING
            else:
                param.number_value, kind = value, api_pb2.DATA_TYPE_FLOAT64
            experiment.hparam_infos.add(name=name, type=kind)
        for tag in self.metrics:
            experiment.metric_infos.add(name=api_pb2.MetricName(tag=tag))
        messages = {
            metadata.EXPERIMENT_TAG: plugin_data_pb2.HParamsPluginData(experiment=experiment),
            metadata.SESSION_START_INFO_TAG: plugin_data_pb2.HParamsPluginData(session_start_info=start),
        }
        end = {
            RunStatus.FINISHED: api_pb2.STATUS_SUCCESS,
            RunStatus.FAILED: api_pb2.STATUS_FAILURE,
            RunStatus.INTERRUPTED: api_pb2.STATUS_FAILURE,
        }.get(self.status)
        if end is not None:
            info = plugin_data_pb2.SessionEndInfo(status=end, end_time_secs=self.end_s)
            messages[metadata.SESSION_END_INFO_TAG] = plugin_data_pb2.HParamsPluginData(session_end_info=info)
        events = [event_pb2.Event(wall_time=self.begun_s, file_version="brain.Event:2")]
        for tag, message in messages.items():
            message.version = metadata.PLUGIN_DATA_VERSION
            event = event_pb2.Event(wall_time=self.time_s)
            plugin_data = event.summary.value.add(tag=tag).metadata.plugin_data
            plugin_data.plugin_name, plugin_data.content = metadata.PLUGIN_NAME, message.SerializeToString()
            events.append(event)
        write_whole(self.path, b"".join(_record(event.SerializeToString()) for event in events))
        self.changed = False


def _param(value: Any) -> str | float | bool:
    """What the tab can say of a value: it has no NaN, no infinity, and no integer that is no double."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float) and math.isfinite(value) and float(value) == value:
        return float(value)
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


@functools.cache
def _checksum() -> Callable[[bytes], int]:
    """CRC-32C as event files have it: turned by 15 bits, and a constant added.

    TensorBoard's own takes 0.1 us a byte in the interpreter, beside training: 15 us for an event of five metrics, 40 ms
    for an image of 400 kB. It is used where google-crc32c, which the extra ``tensorboard`` brings, is not installed.
    """
    try:
        from google_crc32c import value as crc32c
    except ImportError:
        from tensorboard.summary.writer.record_writer import masked_crc32c

        return masked_crc32c  # type: ignore[no-any-return]

    def masked(data: bytes) -> int:
        crc: int = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    return masked


def _record(data: bytes) -> bytes:
    """A record of an event file (TensorFlow's ``TFRecord``): length, its checksum, data, their checksum."""
    checksum = _checksum()
    length = _LENGTH.pack(len(data))
    return b"".join((length, _CHECKSUM.pack(checksum(length)), data, _CHECKSUM.pack(checksum(data))))


def _records(content: bytes) -> Iterator[bytes]:
    """The data of an event file's records."""
    at = 0
    while at + 12 <= len(content):
        (length,) = _LENGTH.unpack_from(content, at)
        yield content[at + 12 : at + 12 + length]
        at += 16 + length


def _hide(path: Path, notices: Notices) -> None:
    """Rename an event file so that TensorBoard does not read it."""
    hidden = path.with_name(path.name.replace("tfevents", "earlier"))
    if os.path.lexists(hidden):
        set_aside(hidden, notices)
    path.rename(hidden)
    notices.tell_once(
        ("hidden", str(path)),
        f"The state of delivery was lost and the run is delivered again: {path.name} was renamed to {hidden.name}.",
    )
