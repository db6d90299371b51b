"""TensorBoard: event files in the run's own folder, written with TensorBoard's own messages and record format.

Two files: one that only grows, with everything that has a step, and a small one with the hyperparameters tab, which is
written anew whenever that changes. TensorBoard takes the first message that it finds for a tab, so in a file that grows
neither more hyperparameters nor the run's end could be shown. Neither needs torch or TensorFlow.

Readers take the files of a folder in the order of their names. A session that hides later steps (``purge_step``) begins
another file, which hides them in all files before it, those of torch's ``SummaryWriter`` included, and in none later.
"""

import ctypes
import math
import re
import textwrap
import time
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from typing_extensions import override

from lightning_loggers.adapters.base import Capabilities, Context
from lightning_loggers.adapters.fitting import int64_step
from lightning_loggers.adapters.folder import FolderAdapter
from lightning_loggers.adapters.standard_files import STANDARD_FILES
from lightning_loggers.adapters.tensorboard_files import EventFile, Events, HParamsFile
from lightning_loggers.adapters.tensorboard_media import MAX_ROWS, Media
from lightning_loggers.records import Kind, Record, RunStatus
from lightning_loggers.values.metrics import as_number

PURGE_STEP = "purge_step"
"""Kind of the record with which a session of :class:`~lightning_loggers.TensorBoardLogger` hides later steps."""

_TEXT_SUFFIX = "/text_summary"
_HPARAMS = "_hparams_/"
_UNSAFE_IN_TAG = re.compile("[\x00-\x1f\x7f]")


class TensorBoardAdapter(FolderAdapter):
    """Writes event files.

    Options: ``filename_suffix``.

    Guarantees:
        - A point has the time of its log call. Values are stored as 32-bit floats, as every TensorBoard writer does.
        - Each record is in the event file exactly once, also after a crash: the file's length is saved with the cursor,
          and what a crash left behind it is cut off. (Whoever feeds records again without that length doubles them.)
        - The file is the same, byte for byte, however delivery was interrupted, so a TensorBoard that shows the run
          meanwhile is not confused by what was cut off and written again.
        - Hyperparameters of all calls are in the hyperparameters tab, with the run's end.
    """

    name = "tensorboard"
    max_key_length = 1000
    capabilities: ClassVar[Capabilities] = Capabilities(
        kinds={
            **STANDARD_FILES,
            Kind.METRIC: "scalar, as 32-bit float, at its step and time",
            Kind.PARAM: "hparams.yaml, and the hyperparameters tab",
            Kind.TEXT: "text <identifier>/text_summary, at its step and time",
            Kind.DICT: "text <identifier>/text_summary, as JSON",
            Kind.GRAPH: "graph, where it was traced; else media/<identifier>/<step>.json",
            Kind.TABLE: f"text, its first {MAX_ROWS} rows; whole in media/<identifier>/<step>.parquet",
            Kind.IMAGE: "image; with its boxes drawn on it: image <identifier>/boxes",
            Kind.FIGURE: "image; plotly: media/<identifier>/<step>.html and .json",
            Kind.AUDIO: "audio",
            Kind.VIDEO: "image that moves (GIF); a file of another format: media/<identifier>/<step>.<suffix>",
            Kind.HISTOGRAM: "histogram",
            Kind.WATCH: "histograms",
            Kind.POINT_CLOUD: "mesh",
            Kind.ARTIFACT: "file below artifacts/",
            Kind.CHECKPOINT: "files below artifacts/<name>/, with metadata.yaml and aliases.txt",
        },
        keeps_time=True,
        local=True,
    )

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._kept: dict[str, Any] = context.remote.extra.setdefault("events", {})
        self._events = EventFile(self.folder, self._kept, context)
        self._hparams = HParamsFile(self._events.tab_path, context.header.time_ns / 1e9)
        self._media = Media(self)
        self._last_s = 0.0

    @staticmethod
    @override
    def fit_key(key: str) -> str:
        r"""Tags: anything but nothing, control characters, and what other kinds of messages are called.

        >>> [TensorBoardAdapter.fit_key(key) for key in ("mAP@0.5 (val)", "", "a\tb", "a/text_summary", "_hparams_/a")]
        ['mAP@0.5 (val)', '_', 'a_b', 'a/text_summary_', 'hparams_/a']
        """
        name = _UNSAFE_IN_TAG.sub("_", key) or "_"
        if name.endswith(_TEXT_SUFFIX):
            name += "_"
        return name[1:] if name.startswith(_HPARAMS) else name

    # ------------------------------------------------------------------ the run

    @override
    def open(self) -> None:
        super().open()
        Events()  # a missing SDK is found here, not in a batch
        self._events.open()

    @override
    def set_status(self, status: RunStatus) -> None:
        """Show the run's end in the hyperparameters tab, where there is one."""
        if self._hparams.load():
            self._hparams.status = status
            self._hparams.end_s = self._last_s or time.time()
            self._hparams.save()

    @override
    def close(self) -> None:
        self._events.close()

    # ------------------------------------------------------------------ records

    @override
    def send(self, records: Sequence[Record]) -> None:
        with self.files.batch():
            self._send(records)

    def _send(self, records: Sequence[Record]) -> None:
        kept = dict(self._kept)
        noted = {key: self._kept.get(key) for key in ("hp_metric", "graph")}
        parts = [_Part(0, Events())]  # as far as a session that hides something, then from there on
        for record in records:
            events = parts[-1].events
            self._last_s = record.time_ns / 1e9
            if record.kind == Kind.METRIC:
                self._add_metrics(events, record)
            elif record.kind == Kind.PARAM:
                self._add_params(events, record, noted)
            elif record.kind in {Kind.TEXT, Kind.DICT}:
                self._add_text(events, record)
            elif record.kind == Kind.GRAPH and record.value is None:
                self._add_graph(events, record, noted)
            elif record.kind == Kind.ARTIFACT:
                self.send_artifact(record)
            elif record.kind == Kind.CHECKPOINT:
                self.send_checkpoint(record)
            elif record.kind in STANDARD_FILES:
                self._media.add(events, record, self._step)
            elif record.kind == PURGE_STEP:
                parts.append(_Part(record.time_ns, Events()))
                parts[-1].events.add_restart(record.time_ns, self._step(record.step))
        if self._hparams.changed:
            self._hparams.save()
        # Last, since it is the only part that must not be done twice: a fault before it repeats the whole batch.
        try:
            for part in parts:
                if part.begins_ns:
                    self._events.begin(part.begins_ns)
                self._events.append(part.events.data)
        except BaseException:  # Ctrl+C in `sync` too: all events or none
            self._events.close()  # what was added is cut off when it is opened again
            self._kept.clear()
            self._kept.update(kept)
            raise
        self._kept.update({key: value for key, value in noted.items() if value is not None})

    def _add_metrics(self, events: Events, record: Record) -> None:
        scalars = {}
        for key, value in (record.data or {}).items():
            number = as_number(value)
            if number is not None:
                scalars[self._media.scalar_tag(key)] = self._float32(key, number)
        if scalars:
            events.add_scalars(record.time_ns, self._step(record.step), scalars)

    def _float32(self, key: str, number: int | float) -> float:
        stored = ctypes.c_float(number).value
        if stored != number and (isinstance(number, int) or stored == 0 or math.isinf(stored)):
            self.context.notices.tell_once(
                ("float32", key, "integer" if isinstance(number, int) else "range"),
                f"Metric {key!r} was {number!r}: TensorBoard stores 32-bit floats and shows {stored!r}. The journal "
                "has it as it was.",
            )
        return stored

    def _step(self, step: int | float | None) -> int:
        """TensorBoard's steps are 64-bit integers; no step is 0 there."""
        if step is None:
            self.context.notices.tell_once(
                ("no step", self.name),
                "Something was logged without a step: TensorBoard shows it at step 0. Give a step to see a curve: "
                "`log_metrics(metrics, step=...)`.",
            )
            return 0
        return int64_step(step, "TensorBoard", self.context.notices)

    def _add_params(self, events: Events, record: Record, noted: dict[str, Any]) -> None:
        self.send_hparams(record)
        tab = (record.meta or {}).get("tab", {})
        if tab is None:
            return  # the logger was told to show hyperparameters with metrics only
        self._hparams.load()
        metrics = [self.context.keys.fit(str(key)) for key in tab.get("metrics") or []]
        placeholder = tab.get("placeholder")
        if placeholder is not None:
            tag = self.context.keys.fit(str(placeholder))
            metrics.append(tag)
            if not noted["hp_metric"]:
                events.add_scalars(record.time_ns, 0, {tag: -1.0})
                noted["hp_metric"] = True
        self._hparams.update(record.data or {}, metrics, record.time_ns / 1e9)

    def _add_text(self, events: Events, record: Record) -> None:
        text = self.text_of(record)
        if record.kind == Kind.DICT:
            text = textwrap.indent(text, "    ")  # still JSON, and a block of code in the Markdown that is shown
        tag = self.context.keys.fit(record.id or record.kind) + _TEXT_SUFFIX
        events.add_text(record.time_ns, self._step(record.step), tag, text)

    def _add_graph(self, events: Events, record: Record, noted: dict[str, Any]) -> None:
        files = {name: path for path, name in self.located(record)}
        blob_id = record.blobs[0].id if record.blobs else None
        if "graph.pb" not in files or noted["graph"] == blob_id:
            return  # the Trainer logs it again at the start of each validate and test
        metadata = files["run_metadata.pb"].read_bytes() if "run_metadata.pb" in files else None
        events.add_graph(record.time_ns, files["graph.pb"].read_bytes(), metadata)
        noted["graph"] = blob_id


class _Part(NamedTuple):
    """Events for one file.

    Attributes:
        begins_ns: When the session began that begins a file with them; 0 for those that go to the present file.
        events: The events.
    """

    begins_ns: int
    events: Events
