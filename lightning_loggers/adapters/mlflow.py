"""MLflow: a tracking server over REST, or its database (SQLite, PostgreSQL, ...) directly.

Points carry the time of their log call, and MLflow's SQL stores have (run, key, time, step, value) as primary key: a
batch that is sent twice is shown once, so delivery at least once is delivery exactly once here.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import logging
import os
import posixpath
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from typing_extensions import override

from lightning_loggers.adapters.base import Adapter, Capabilities, Context, Fault
from lightning_loggers.adapters.fitting import int64_step
from lightning_loggers.adapters.mlflow_faults import DeletedExperimentError, fault_of
from lightning_loggers.adapters.mlflow_media import MLflowMedia
from lightning_loggers.adapters.mlflow_rest import UnreachableError, bounded
from lightning_loggers.adapters.mlflow_sql import Point, PointWriter
from lightning_loggers.adapters.standard_files import STANDARD_FILES
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.journal.blobs import safe_name
from lightning_loggers.records import Kind, Record, RunStatus
from lightning_loggers.secrets import strip_uri
from lightning_loggers.values.metrics import as_number

RUN_UID_TAG = "lightning_loggers.run_uid"

_MAX_METRICS, _MAX_PARAMS, _MAX_TAGS = 1000, 100, 100
_MAX_REQUEST_BYTES = 900_000  # the server refuses 1e6
_PARAM_LIMITS = (6000, 500, 250)  # of current and older servers
_TAG_LIMIT = 8000
_ILLEGAL = re.compile(r"[^/\w.\- :]")
_UNSAFE_IN_PATH = re.compile(r"#|%(?=[0-9A-Fa-f]{2})")  # what MLflow's server refuses, or decodes to another name
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SCHEMES = (*_DATABASES, "http", "https", "file", "databricks", "databricks-uc", "uc")
_STATUS = {
    RunStatus.RUNNING: "RUNNING",
    RunStatus.PREEMPTED: "RUNNING",
    RunStatus.FINISHED: "FINISHED",
    RunStatus.FAILED: "FAILED",
    RunStatus.INTERRUPTED: "KILLED",
}


class MLflowAdapter(Adapter):
    """Delivers to MLflow.

    Options: ``tracking_uri``, ``experiment_name``, ``run_name``, ``tags``, ``artifact_location``, ``run_id``.

    Guarantees:
        - A batch delivered twice is shown once on SQL stores (metrics by primary key, params and tags by name).
        - A run is created once even if the host died while asking for it: it is looked up by its ``uid`` tag.
        - At most one request is under way, and none waits longer than 30 s for an answer; but artifacts are sent with
          MLflow's own time-outs and retries (``MLFLOW_HTTP_REQUEST_TIMEOUT``, ``MLFLOW_HTTP_REQUEST_MAX_RETRIES``).
        - Nothing is cut: what is longer than MLflow takes is stored whole as an artifact.
    """

    name = "mlflow"
    address_option = "tracking_uri"
    address_variable = "MLFLOW_TRACKING_URI"
    home_options = ("run_id", "artifact_location")
    max_key_length = 250
    capabilities: ClassVar[Capabilities] = Capabilities(
        kinds={
            **STANDARD_FILES,
            Kind.METRIC: "metric, at its step and time",
            Kind.PARAM: "param; over-long values whole in params/<name>.txt",
            Kind.IMAGE: "image, at its step and time; without a step media/<identifier>/no-step.png",
            Kind.TABLE: "table, media/<identifier>/<step>.json",
            Kind.DATASET: "dataset (input of the run)",
            Kind.MODEL: "media/<identifier>/<step>.pt; with pickle=True an MLflow model, <identifier>/",
            Kind.BEST_MODEL: "media/<identifier>/<step>.pt; with pickle=True an MLflow model, <identifier>/",
            Kind.ARTIFACT: "artifact",
            Kind.CHECKPOINT: "artifact folder with metadata.yaml and aliases.txt",
        },
        keeps_time=True,
        deduplicates=True,
    )

    may_move = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._client: Any = None
        self._store: Any = None
        self._write_points: Any = None
        self._param_limit = _PARAM_LIMITS[0]
        self._keys_told = 0
        self.media = MLflowMedia(context, lambda: (self._client, self._store), self._send_file)

    # ------------------------------------------------------------------ options

    @classmethod
    @override
    def check_options(cls, options: Mapping[str, Any]) -> None:
        uri = str(options.get("tracking_uri") or "")
        scheme = urlsplit(uri).scheme.partition("+")[0]
        shown = strip_uri(uri).rpartition("@")[2]  # also of "user:password@host", which is no URI
        if scheme == "file" or ("://" not in uri and scheme not in {"databricks", "databricks-uc", "uc"}):
            if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in {"1", "true"}:
                return
            raise ConfigurationError(
                f"tracking_uri={shown!r} means MLflow's file store, which mlflow >= 3.13 refuses. Leave "
                f"tracking_uri out for a SQLite store in save_dir, or give 'sqlite:///path/mlflow.db' or the "
                f"'http://host:port' of a server."
            )
        if scheme in _SCHEMES:
            return
        plugins = {point.name for point in importlib.metadata.entry_points(group="mlflow.tracking_store")}
        if scheme not in plugins:
            known = ", ".join(sorted({*_SCHEMES, *plugins} - {"file"}))
            raise ConfigurationError(f"tracking_uri={shown!r}: MLflow has no store for {scheme!r}; it knows {known}.")
        return

    @classmethod
    @override
    def load(cls, options: Mapping[str, Any]) -> None:
        for name in _modules(options):
            importlib.import_module(name)

    @classmethod
    @override
    def is_loaded(cls, options: Mapping[str, Any]) -> bool:
        return all(name in sys.modules for name in _modules(options))

    @classmethod
    @override
    def destination(cls, options: Mapping[str, Any]) -> str:
        return strip_uri(str(options.get("tracking_uri") or ""))

    @staticmethod
    @override
    def fit_key(key: str) -> str:
        r"""Metric, param and tag names: ``[/\w.\- :]``, at most 250 characters, a path that is its own normal form.

        >>> [MLflowAdapter.fit_key(key) for key in ("loss/val", "loss@k=5 ü", "", "/a//b/", "..")]
        ['loss/val', 'loss_k_5 ü', '_', 'a/b', '_']
        """
        parts = [part if part not in {".", ".."} else "_" for part in _ILLEGAL.sub("_", key).split("/") if part]
        name = "/".join(parts) or "_"
        return f"_{name}" if name.startswith("..") else name

    # ------------------------------------------------------------------ the run

    @override
    def open(self) -> None:
        if self._store is None:
            self._connect()
        remote, options = self.context.remote, self.context.options
        if remote.id is None and options.get("run_id"):
            info = self._store.get_run(str(options["run_id"])).info
            if info.status != "RUNNING":
                self._show_status(info.run_id, RunStatus.RUNNING)
            remote.id, remote.parent = str(info.run_id), str(info.experiment_id)
        if remote.parent is None:
            remote.parent = self._experiment(str(options.get("experiment_name") or self.context.run.name))
        if remote.id is None:
            # Written down before asking: a host that dies in between leaves a run that must be found, not made twice.
            found = self._find() if remote.opening else None
            remote.opening = True
            self.context.save_remote()
            remote.id = found or self._create()
        remote.opening = False
        self.context.save_remote()

    def _connect(self) -> None:
        from mlflow.store.tracking.rest_store import RestStore
        from mlflow.tracking import MlflowClient

        uri = str(self.context.options["tracking_uri"])
        if uri.startswith("sqlite:///"):
            path = uri.removeprefix("sqlite:///").partition("?")[0]
            if os.path.dirname(path):
                os.makedirs(os.path.dirname(path), exist_ok=True)
        with _tables_made_quietly():
            self._client = MlflowClient(tracking_uri=uri)
        store = self._client._tracking_client.store  # the documented plugin interface AbstractStore
        if type(store) is RestStore:
            self._store = bounded(store, self.context.acknowledged)
            self._write_points = self._store.log_points
        else:
            self._store = store
            self._write_points = PointWriter(store).write

    def _experiment(self, name: str) -> str:
        existing = self._store.get_experiment_by_name(name)
        if existing is None:
            location = self.context.options.get("artifact_location")
            try:
                return str(self._store.create_experiment(name, artifact_location=location, tags=[]))
            except Exception:
                existing = self._store.get_experiment_by_name(name)  # another process was first
                if existing is None:
                    raise
        if existing.lifecycle_stage == "deleted":
            raise DeletedExperimentError(
                f"The experiment {name!r} was deleted at {self.destination(self.context.options)}. Restore it: "
                f"mlflow experiments restore --experiment-id {existing.experiment_id}"
            )
        return str(existing.experiment_id)

    def _find(self) -> str | None:
        runs = self._store.search_runs(
            [self.context.remote.parent], f"tags.`{RUN_UID_TAG}` = '{self.context.run.uid}'", 1, 1, None, None
        )
        return str(runs[0].info.run_id) if runs else None

    def _create(self) -> str:
        from mlflow.entities import RunTag

        header, options = self.context.header, self.context.options
        environment = header.environment
        user = str(environment.get("user") or "unknown")
        known = {
            "mlflow.user": user,
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": environment.get("program"),
            "mlflow.source.git.commit": environment.get("git_commit"),
        }
        tags = {
            **{key: str(value) for key, value in known.items() if value},
            **{str(key): str(value) for key, value in (options.get("tags") or {}).items()},
            RUN_UID_TAG: self.context.run.uid,
            "lightning_loggers.version": self.context.run.version,
        }
        run_name = str(options.get("run_name") or tags.get("mlflow.runName") or self.context.run.version)
        tags["mlflow.runName"] = run_name
        fitted = {self._tag_key(key): value for key, value in tags.items()}
        entities = [RunTag(key, value[:_TAG_LIMIT]) for key, value in fitted.items()]
        run = self._store.create_run(
            self.context.remote.parent, user, header.time_ns // 1_000_000, entities[:_MAX_TAGS], run_name
        )
        run_id = str(run.info.run_id)
        for begin in range(_MAX_TAGS, len(entities), _MAX_TAGS):
            self._store.log_batch(run_id, metrics=[], params=[], tags=entities[begin : begin + _MAX_TAGS])
        for key, value in fitted.items():
            if len(value) > _TAG_LIMIT:
                self._client.log_text(run_id, value, f"tags/{_artifact_path(key)}.txt")
        return run_id

    def _tag_key(self, key: str) -> str:
        return key if key.startswith("mlflow.") else self.context.keys.fit(key)

    @override
    def set_status(self, status: RunStatus) -> None:
        self._show_status(self.context.remote.id, status)
        self._store_key_map()

    def _show_status(self, run_id: str | None, status: RunStatus) -> None:
        from mlflow.entities import RunStatus as TheirStatus

        ended = None if _STATUS[status] == "RUNNING" else int(time.time() * 1000)
        self._store.update_run_info(run_id, TheirStatus.from_string(_STATUS[status]), ended, None)

    def _store_key_map(self) -> None:
        """Keep with the run which of its names stand for which keys."""
        changed = self.context.keys.changed
        if changed and self._keys_told != self.context.keys.revision:
            names = {name: key for key, name in changed.items()}
            self._client.log_dict(self.context.remote.id, names, "lightning_loggers/names.json")
            self._keys_told = self.context.keys.revision

    # ------------------------------------------------------------------ records

    @override
    def send(self, records: Sequence[Record]) -> None:
        metrics = [record for record in records if record.kind == Kind.METRIC]
        for record in records:
            if record.kind == Kind.PARAM:
                self._send_params(record)
        if metrics:
            self._send_metrics(metrics)
        with self.media.batch():
            for record in records:
                if record.kind == Kind.ARTIFACT:
                    self._send_artifact(record)
                elif record.kind == Kind.CHECKPOINT:
                    self._send_checkpoint(record)
                elif record.kind in STANDARD_FILES:
                    self.media.send(record)

    def _send_metrics(self, records: Iterable[Record]) -> None:
        batch: list[Point] = []
        size = 0
        for point in self._points(records):
            size_bytes = 120 + len(point[0]) * (1 if point[0].isascii() else 6)
            if len(batch) == _MAX_METRICS or size + size_bytes > _MAX_REQUEST_BYTES:
                self._write_points(self.context.remote.id, batch)
                batch, size = [], 0
            batch.append(point)
            size += size_bytes
        if batch:
            self._write_points(self.context.remote.id, batch)

    def _points(self, records: Iterable[Record]) -> Iterator[Point]:
        fit = self.context.keys.fit
        for record in records:
            if record.data is None:
                continue
            milliseconds = max(record.time_ns // 1_000_000, 0)
            step = int64_step(record.step, "MLflow", self.context.notices)
            for key, value in record.data.items():
                number = as_number(value)
                if number is not None:
                    yield fit(key), float(number), milliseconds, step

    def _send_params(self, record: Record) -> None:
        from mlflow.entities import Param

        run_id = self.context.remote.id
        batch: list[Any] = []
        size = 0
        for key, value in (record.data or {}).items():
            name, text = self.context.keys.fit(key), str(value)
            if len(text) > self._param_limit:
                place = f"params/{_artifact_path(name)}.txt"
                self._client.log_text(run_id, text, place)
                self.context.notices.tell_once(
                    ("long param", key),
                    f"Parameter {key!r} has {len(text)} characters, MLflow takes {self._param_limit}: it is whole in "
                    f"the artifact {place}, and the parameter holds its beginning.",
                )
                mark = f"... [whole in {place}]"
                text = text[: self._param_limit - len(mark)] + mark
            cost = 60 + (len(name) + len(text)) * (1 if text.isascii() and name.isascii() else 6)
            if len(batch) == _MAX_PARAMS or (batch and size + cost > _MAX_REQUEST_BYTES):
                self._log_params(batch)
                batch, size = [], 0
            batch.append(Param(name, text))
            size += cost
        if batch:
            self._log_params(batch)

    def _log_params(self, params: list[Any]) -> None:
        try:
            self._store.log_batch(self.context.remote.id, metrics=[], params=params, tags=[])
        except Exception as error:
            shorter = [limit for limit in _PARAM_LIMITS if limit < self._param_limit]
            if shorter and "length" in str(error) and any(len(param.value) > shorter[-1] for param in params):
                self._param_limit = shorter[0]  # an older server: the batch is sent again, fitted to it
                raise UnreachableError(f"the server takes params of {shorter[0]} characters") from error
            raise

    def _send_artifact(self, record: Record) -> None:
        place = _artifact_path(record.id or "")
        for blob in record.blobs or []:
            path = self.context.blobs.locate(blob)
            if self.context.blobs.changed(blob):
                self.context.notices.tell_once(
                    ("changed", blob.name),
                    f"{blob.name} was written to again after it was logged; it is delivered as it is now. Save to a "
                    "new file, or log it when it is final.",
                )
            inner = _artifact_path(posixpath.dirname(blob.path))
            self._send_file(path, "/".join(part for part in (place, inner) if part) or None)

    def _send_file(self, path: Path, folder: str | None) -> None:
        run_id, name = self.context.remote.id, _artifact_path(path.name)
        if name == path.name:
            self._client.log_artifact(run_id, str(path), folder)
            return
        self.context.notices.tell_once(
            ("artifact name", path.name),
            f"MLflow does not take the file name {path.name!r}: the artifact is shown as {name!r}.",
        )
        with tempfile.TemporaryDirectory() as scratch:
            link = Path(scratch) / name
            link.symlink_to(path.absolute())
            self._client.log_artifact(run_id, str(link), folder)

    def _send_checkpoint(self, record: Record) -> None:
        import yaml  # type: ignore[import-untyped, unused-ignore]

        self._send_artifact(record)
        place = _artifact_path(record.id or "")
        meta = record.meta or {}
        run_id = self.context.remote.id
        self._client.log_text(
            run_id, yaml.safe_dump(meta.get("metadata", {}), default_flow_style=False), f"{place}/metadata.yaml"
        )
        self._client.log_text(run_id, str(meta.get("aliases", [])), f"{place}/aliases.txt")

    # ------------------------------------------------------------------ faults

    @override
    def classify(self, error: Exception) -> Fault:
        return fault_of(error, self.context.remote.id)

    @override
    def close(self) -> None:
        self._client = self._store = self._write_points = None


def _modules(options: Mapping[str, Any]) -> list[str]:
    """What takes seconds to import before a run can be opened."""
    names = ["mlflow.tracking", "mlflow.store.tracking.rest_store"]
    if urlsplit(str(options.get("tracking_uri") or "")).scheme not in {"http", "https"}:
        names.append("mlflow.store.tracking.sqlalchemy_store")
    return names


def _artifact_path(path: str) -> str:
    """A path that every artifact store of MLflow takes; a part that had to be changed carries a hash of what it was.

    >>> _artifact_path("plots//loss val.png"), _artifact_path("run #3.txt"), _artifact_path("")
    ('plots/loss val.png', 'run _3-fbc39ae2.txt', '')
    """
    parts = []
    for part in path.split("/"):
        fitted = _UNSAFE_IN_PATH.sub("_", safe_name(part))
        if part and fitted != part:
            stem, suffix = posixpath.splitext(fitted)
            fitted = f"{stem}-{hashlib.sha256(part.encode(errors='surrogatepass')).hexdigest()[:8]}{suffix}"
        if part:
            parts.append(fitted)
    return "/".join(parts)


@contextlib.contextmanager
def _tables_made_quietly() -> Iterator[None]:
    """MLflow tells a user at length how it makes the tables of a new database; warnings still come through."""
    chatty = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic.runtime.migration")]
    before = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(chatty, before, strict=True):
            logger.setLevel(level)
