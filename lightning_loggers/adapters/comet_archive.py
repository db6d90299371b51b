"""A Comet offline archive: what ``comet upload`` takes, with the time of every log call in it.

The SDK's own offline experiment keeps its messages in a temporary folder and makes the archive when the process ends in
order; a killed one leaves nothing. Here the messages are appended to a file in the run's folder, and whoever delivers
the run (this process, or ``lightning-loggers sync`` after it was killed) makes the archive from it.
"""

import contextlib
import json
import os
import time
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import msgspec

from lightning_loggers.adapters.base import Context
from lightning_loggers.adapters.comet_sdk import (
    SCENE_ITEM,
    SCENE_POINTS,
    STATUS_OTHER,
    CometSetupError,
    Scene,
    Upload,
    ending,
    opening_facts,
)
from lightning_loggers.journal.layout import run_folder
from lightning_loggers.records import RunStatus

FOLDER = "comet"
MAX_UPLOADED_VALUES = 15_000

_MESSAGES = "messages.json"  # the names inside are the SDK's
_EXPERIMENT = "experiment.json"
_UPLOAD_START = b'{"type":"file_upload"'
_SCENE_START = b'{"type":"3d-image"'
_METRIC_NAME = b'"metricName":'


class Archive:
    """The archive of one run.

    Args:
        context: The adapter's.
        sdk: comet_ml's parts.
        key: The experiment's key.

    Guarantees:
        - What :meth:`commit` returned for is on disk; what a crash left behind it is cut off by the next :meth:`open`.
        - The archive is replaced as a whole, so that one that is there can be uploaded.
        - Memory does not grow with the run: the archive is streamed from the file of messages.
    """

    def __init__(self, context: Context, sdk: SimpleNamespace, key: str) -> None:
        self._context = context
        self._sdk = sdk
        self._key = key
        self._folder = context.run_dir / FOLDER
        self._messages = self._folder / _MESSAGES
        self._lines: list[bytes] = []
        version = context.run.version
        suffix = "" if key in {version, context.run.uid} else f"-{version}"
        self.path = run_folder(context.run_dir, context.run.tracker).parents[1] / f"{key}{suffix}.zip"

    @property
    def _kept(self) -> dict[str, Any]:
        kept: dict[str, Any] = self._context.remote.extra.setdefault("archive", {})
        return kept

    # ------------------------------------------------------------------ messages

    def open(self) -> None:
        """Go on behind the last message that is known to have been delivered."""
        self._folder.mkdir(parents=True, exist_ok=True)
        known = int(self._kept.get("bytes", 0))
        with self._messages.open("ab") as file:
            size = file.tell()
            if size < known:
                raise CometSetupError(
                    f"{self._messages} has {size} of {known} bytes: it was cut or removed, and the archive is made "
                    f"from it. Put it back; or remove the files {self._context.run_dir / 'journal'}/comet.*.json, and "
                    "the whole archive is made again from the journal."
                )
            file.truncate(known)
        self._context.remote.id = self._key
        if known == 0:
            self.begin()
            for name, value in opening_facts(self._context).items():
                self.other(name, value)
            self.commit(self._context.header.time_ns // 1_000_000)

    def begin(self) -> None:
        """Forget lines of a batch that failed."""
        self._lines = []

    def metrics(self, messages: Iterable[Any]) -> None:
        """Add metrics."""
        self._lines.extend(map(_metric_line, messages))

    def params(self, messages: Iterable[Any]) -> None:
        """Add hyperparameters."""
        self._lines.extend(map(_line, messages))

    def other(self, key: str, value: Any) -> None:
        """Add a fact about the run."""
        self._lines.append(_line(self._sdk.messages.LogOtherMessage(key, value)))

    def upload(self, upload: Upload) -> None:
        """Add a file: a journal's blob stays where it is until the archive is made."""
        if isinstance(upload.content, bytes):
            inside = self._keep(upload.asset_id, upload.content)
        else:
            # `comet upload` deletes each file when it was sent: what is in two messages is in the archive twice.
            inside = f"blobs/{upload.content.parent.name}/{upload.asset_id}/{upload.content.name}"
        message = self._sdk.messages.UploadFileMessage(
            inside, upload.kind or "asset", upload.params(), upload.metadata, size=0
        )
        message.local_timestamp = upload.time_ms
        self._lines.append(_line(message))

    def scene(self, scene: Scene) -> None:
        """Add points in space; `comet upload` sends no step of a scene, so that it is said beside it, too."""
        sdk = self._sdk
        points = self._keep(f"{scene.asset_id}.jsonl", scene.points)
        thumbnail = self._keep(f"{scene.asset_id}.png", scene.thumbnail) if scene.thumbnail else ""
        metadata = scene.metadata if scene.step is None else {**scene.metadata, "step": scene.step}
        items = [sdk.AssetItem(points, SCENE_POINTS, "points")]
        self._lines.append(
            _line(sdk.messages.Log3DCloudMessage(scene.name, SCENE_ITEM, items, thumbnail, metadata, scene.step))
        )

    def max_points(self) -> int:
        """What the SDK takes where it cannot ask Comet."""
        return int(self._sdk.max_points)

    def graph(self, text: str) -> None:
        """Add what the model is made of."""
        self._lines.append(_line(self._sdk.messages.ModelGraphMessage(text)))

    def _keep(self, name: str, content: bytes) -> str:
        """Keep a file for the archive; its path there."""
        inside = f"files/{name}"
        path = self._folder / inside
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_whole(path, content)
        return inside

    def commit(self, last_ms: int) -> None:
        """Append the batch; what cannot be appended whole is taken back."""
        kept = self._kept
        known = int(kept.get("bytes", 0))
        fd = os.open(self._messages, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            data = memoryview(b"".join(self._lines))
            written = 0
            try:
                while written < len(data):
                    written += os.pwrite(fd, data[written:], known + written)
                os.fsync(fd)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(fd, known)
                raise
        finally:
            os.close(fd)
        kept["bytes"] = known + written
        kept["last_ms"] = max(int(kept.get("last_ms", 0)), last_ms)
        self._lines = []

    # ------------------------------------------------------------------ the archive

    def set_status(self, status: RunStatus) -> None:
        """Note the state; unless the run goes on, make the archive."""
        self.begin()
        self.other(STATUS_OTHER, status.value)
        self.commit(0)
        self._kept["status"] = status.value
        if status is not RunStatus.RUNNING:
            self._make()

    def close(self) -> None:
        """Make the archive if there is more to put into it."""
        kept = self._kept
        if not kept.get("bytes") or kept.get("archived") == [kept["bytes"], kept.get("status")]:
            return
        try:
            self._make()
            self._context.save_remote()
        except OSError as error:
            self._context.notices.tell_once(
                ("comet archive", self._key),
                f"The Comet archive {self.path} could not be made ({error}). Nothing is lost: make it later with: "
                f"lightning-loggers sync {self._context.run_dir}",
            )

    def _make(self) -> None:
        kept = self._kept
        status = RunStatus(kept.get("status") or RunStatus.RUNNING)
        self._describe(status)
        partial = self.path.with_name(f".{self.path.name}.part")
        try:
            with zipfile.ZipFile(
                partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False
            ) as archive:
                archive.write(self._folder / _EXPERIMENT, _EXPERIMENT)
                with archive.open(_MESSAGES, "w", force_zip64=True) as target:
                    files, values = self._copy(target, int(kept["bytes"]))
                missing = 0
                for inside in files:
                    path = self._path_of(inside)
                    if path.is_file():
                        archive.write(path, inside, None if inside.endswith(".jsonl") else zipfile.ZIP_STORED)
                    else:
                        missing += 1
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self.path)
        except BaseException:  # Ctrl+C in `sync` too: no half an archive stays
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        kept["archived"] = [kept["bytes"], kept.get("status")]
        self._tell(values, missing)

    def _describe(self, status: RunStatus) -> None:
        """Write the archive's description, by the SDK's own function."""
        context, kept = self._context, self._kept
        options = context.options
        mode = options.get("mode") or ("get_or_create" if options.get("experiment_key") else "create")
        self._sdk.offline_utils.write_experiment_meta_file(
            tempdir=str(self._folder),
            experiment_key=self._key,
            workspace=options.get("workspace"),
            project_name=options.get("project"),
            start_time=context.header.time_ns // 1_000_000,
            stop_time=int(kept.get("last_ms") or time.time_ns() // 1_000_000),
            tags=[str(tag) for tag in options.get("tags") or []],
            resume_strategy=mode,
            customer_error_reported=ending(status) is not None,
            customer_error_message=ending(status),
            user_provided_experiment_key=bool(options.get("experiment_key")),
            comet_start_sourced=True,
        )

    def _copy(self, target: IO[bytes], length: int) -> tuple[dict[str, None], Counter[bytes]]:
        """Copy the messages line by line, and see which files they name and how many values each metric has."""
        files: dict[str, None] = {}
        values: Counter[bytes] = Counter()
        with self._messages.open("rb") as source:
            for line in source:
                if length <= 0:
                    break
                length -= len(line)
                target.write(line)
                if line.startswith(_UPLOAD_START):
                    files[json.loads(line)["payload"]["file_path"]] = None
                elif line.startswith(_SCENE_START):
                    payload = json.loads(line)["payload"]
                    files |= dict.fromkeys(item["file_path"] for item in payload["items"])
                    files |= {payload["thumbnail_path"]: None} if payload["thumbnail_path"] else {}
                else:
                    _, found, rest = line.partition(_METRIC_NAME)
                    if found:
                        values[rest.partition(b',"metricValue":')[0]] += 1
        return files, values

    def _path_of(self, inside: str) -> Path:
        kind, *parts = inside.split("/")
        if kind != "blobs":
            return self._folder / inside
        return self._context.blobs.folder / parts[0] / parts[-1]

    def _tell(self, values: Counter[bytes], missing: int) -> None:
        tell = self._context.notices.tell_once
        most = max(values.values(), default=0)
        if most > MAX_UPLOADED_VALUES:
            tell(
                ("comet sampling", self._key),
                f"{sum(count > MAX_UPLOADED_VALUES for count in values.values())} metrics of this run have more than "
                f"{MAX_UPLOADED_VALUES} values (up to {most}). All are in {self.path}, but `comet upload` sends a "
                f"random sample of {MAX_UPLOADED_VALUES} of each, with the first, last, smallest and largest. To send "
                f"all: COMET_OFFLINE_SAMPLING_SIZE={most} comet upload {self.path}",
            )
        if missing:
            tell(
                ("comet missing", self._key),
                f"{missing} files of this run are not beside its journal any more and are not in {self.path}.",
            )
        tell(("comet archive made", self.path), f"Upload this run to Comet with: comet upload {self.path}", level=20)


def _line(message: Any) -> bytes:
    """A message as the SDK writes it, less the number that it gives the messages of one process."""
    line = json.dumps({"type": message.type, "payload": message.filtered_message_dict()}, separators=(",", ":"))
    return line.encode() + b"\n"


_encode = msgspec.json.Encoder().encode


def _metric_line(message: Any) -> bytes:
    """As :func:`_line`, for what there is most of, in less than half the time: training waits meanwhile."""
    try:
        return _encode({"type": message.type, "payload": message.filtered_message_dict()}) + b"\n"
    except UnicodeEncodeError:  # half a character in a name
        return _line(message)


def _write_whole(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
