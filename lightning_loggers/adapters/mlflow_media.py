"""What MLflow keeps besides metrics and params: images, tables and datasets in its own form, all else as files.

MLflow's own client makes up a name for each image and adds rows to a table that is there. What is sent twice would be
shown twice: names are made of the record here, and a table is written as a whole.
"""

import contextlib
import json
import re
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning_loggers.adapters.base import Context
from lightning_loggers.adapters.fitting import int64_step
from lightning_loggers.adapters.image_details import details_files
from lightning_loggers.adapters.standard_files import StandardFile, StandardFiles, inline_value
from lightning_loggers.journal.blobs import safe_name
from lightning_loggers.records import Kind, Record

_UNSAFE_IN_PATH = re.compile(r"#|%(?=[0-9A-Fa-f]{2})")  # what MLflow's server refuses, or decodes to another name
_UNSAFE_IN_IMAGE_KEY = re.compile(r"[^a-zA-Z0-9_\-./ ]")
_TAG_LIMIT = 5000  # of all servers
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp")
_MAX_NAME, _MAX_DIGEST, _MAX_TEXT = 500, 36, 65_535


class MLflowMedia:
    """Sends records that are neither metrics nor params.

    Args:
        context: Of the run.
        connection: Gives MLflow's client and store, once they are open.
        send_file: Sends a file to a folder of the run.

    Guarantees:
        - A record that is sent twice is shown once.
    """

    def __init__(
        self,
        context: Context,
        connection: Callable[[], tuple[Any, Any]],
        send_file: Callable[[Path, str | None], None],
    ) -> None:
        self._context = context
        self._connection = connection
        self._send_file = send_file
        self._files = StandardFiles(context, _fit_folder)

    def batch(self) -> contextlib.AbstractContextManager[None]:
        """Around the sending of a batch."""
        return self._files.batch()

    def send(self, record: Record) -> None:
        """Send one record of a kind that has a standard file.

        Raises:
            Exception: What the adapter's ``classify`` knows.
        """
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            if record.kind == Kind.DATASET:
                self._send_dataset(record, scratch)
            elif record.kind == Kind.IMAGE and record.step is not None:
                self._send_images(record, scratch)
            elif not (record.kind == Kind.TABLE and self._send_table(record, scratch)):
                self._send_standard(record, scratch)

    def _send_files(self, files: list[StandardFile], scratch: Path) -> None:
        for file in files:
            self._send_file(file.path_in(scratch), file.place.rpartition("/")[0])

    def _send_standard(self, record: Record, scratch: Path, numbers: Sequence[int] | None = None) -> None:
        """Send a record's files, or some of them, and what is known of its images."""
        files = self._files.of(record)
        wanted = files if numbers is None else [files[number] for number in numbers]
        self._send_files([*wanted, *details_files(record, files, self._files.place)], scratch)

    # ------------------------------------------------------------------ MLflow's own forms

    def _send_images(self, record: Record, scratch: Path) -> None:
        """Images as MLflow's own charts read them: a file, a small copy, and all else in their names."""
        blobs = record.blobs or []
        paths = [self._context.blobs.locate(blob) for blob in blobs]
        try:
            from mlflow.tracking.multimedia import compress_image_size
            from PIL import Image
        except ImportError:
            self._send_standard(record, scratch)
            return
        key = record.id or record.kind
        fitted = _UNSAFE_IN_IMAGE_KEY.sub("_", key)
        if fitted != key or not 0 < len(fitted) <= 100:
            fitted = f"{fitted[:90]}-{uuid.uuid5(uuid.NAMESPACE_OID, key).hex[:8]}"
            message = (
                f"Image {key!r} is called {fitted!r} at MLflow, which takes no other characters, and no long names."
            )
            self._context.notices.tell_once(("image key", key), message)
        step = int64_step(record.step, "MLflow", self._context.notices)
        at_ms = max(record.time_ns // 1_000_000, 0)
        others = []
        for number, path in enumerate(paths):
            if path.suffix.lower() not in _IMAGE_SUFFIXES:
                others.append(number)
                continue
            own = fitted if len(paths) == 1 or not number else f"{fitted}/{number}"
            unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{self._context.run.uid} {record.time_ns} {number}")
            name = f"{own.replace('/', '~')}+step+{step}+timestamp+{at_ms}+{unique}"
            with Image.open(path) as image:
                image.load()
                full, small = scratch / f"{name}.png", scratch / f"{name}+compressed.webp"
                if path.suffix == ".png":
                    full.symlink_to(path.absolute())
                else:
                    image.save(full)
                compress_image_size(image if image.mode in {"RGB", "RGBA"} else image.convert("RGB")).save(small)
            self._send_file(full, "images")
            self._send_file(small, "images")
        if len(others) < len(paths):
            self._tag("mlflow.loggedImages", "True")
        if others or (record.meta or {}).get("details"):
            self._send_standard(record, scratch, others)

    def _send_table(self, record: Record, scratch: Path) -> bool:
        """A table as MLflow's own reader takes it; whether it is one."""
        from lightning_loggers.values.tables import table_of

        try:
            table = table_of(record, [self._context.blobs.locate(blob) for blob in record.blobs or []])
        except ImportError:
            return False
        if table is None:
            return False
        place = self._files.place(record, "json")
        self._send_files([StandardFile(place, content=json.dumps(table).encode())], scratch)
        _, store = self._connection()
        tags = store.get_run(self._context.remote.id).data.tags
        known = json.loads(tags.get("mlflow.loggedArtifacts", "[]"))
        entry = {"path": place, "type": "table"}
        if entry not in known:
            text = json.dumps([*known, entry])
            if len(text) <= _TAG_LIMIT:
                self._tag("mlflow.loggedArtifacts", text)
            else:
                self._context.notices.tell_once(
                    ("tables", self._context.run.uid),
                    f"MLflow lists {len(known)} tables of this run and takes no more in its list: {place} and later "
                    "ones are artifacts that it does not list as tables.",
                )
        return True

    def _send_dataset(self, record: Record, scratch: Path) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        value = dict(inline_value(record, self._context) or {})
        texts = {
            name: value[name] if isinstance(value.get(name), str) else json.dumps(value.get(name))
            for name in ("source", "schema", "profile")
        }
        name = str(value.get("name") or record.id or "dataset")
        if len(name) > _MAX_NAME or any(len(text) > _MAX_TEXT for text in texts.values()):
            files = self._files.of(record)
            self._send_files(files, scratch)
            self._context.notices.tell_once(
                ("dataset", name),
                f"The description of dataset {name[:100]!r} is longer than MLflow takes: it is whole in "
                f"{files[0].place}.",
            )
            texts = {key: text if len(text) <= _MAX_TEXT else "{}" for key, text in texts.items()}
        source_type = str(value.get("source_type") or ("local" if value.get("source") else "code"))
        if not value.get("source_type"):
            known = {"uri": value["source"]} if value.get("source") else {"tags": {}}
            texts["source"] = json.dumps(known)
        dataset = Dataset(
            name[:_MAX_NAME],
            str(value.get("digest") or "")[:_MAX_DIGEST],
            source_type,
            texts["source"],
            _schema(value, texts["schema"]),
            texts["profile"],
        )
        tag = InputTag("mlflow.data.context", str(value.get("context") or "training"))
        _, store = self._connection()
        store.log_inputs(self._context.remote.id, [DatasetInput(dataset, [tag])])

    def _tag(self, key: str, value: str) -> None:
        from mlflow.entities import RunTag

        _, store = self._connection()
        store.log_batch(self._context.remote.id, metrics=[], params=[], tags=[RunTag(key, value)])


def _schema(value: dict[str, Any], text: str) -> str | None:
    return text if value.get("schema") is not None else None


def _fit_folder(identifier: str) -> str:
    """The closest folder that every artifact store of MLflow takes."""
    return "/".join(_UNSAFE_IN_PATH.sub("_", safe_name(part)) for part in identifier.split("/") if part)
