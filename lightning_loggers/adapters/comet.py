"""Comet: the service itself, or an offline archive for ``comet upload``.

Both take the same messages, each with the time of its log call. Comet has nothing to recognise a point by that was sent
before: online a batch whose answer was lost is shown twice. An archive is cut back to what is known to be in it.
"""

import functools
import hashlib
import json
import math
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

from typing_extensions import override

from lightning_loggers.adapters.base import (
    UNWATCHED_S,
    Adapter,
    Capabilities,
    Context,
    Fault,
    FaultKind,
    unknown_option,
)
from lightning_loggers.adapters.comet_archive import Archive
from lightning_loggers.adapters.comet_media import OWN_FORMS, Media
from lightning_loggers.adapters.comet_sdk import (
    MAX_VALUE,
    MODEL,
    CometRefusedError,
    CometSetupError,
    CometStatusError,
    Destination,
    Upload,
    asset_name,
    find_key,
    group_name,
    load_sdk,
    printable,
    server_and_key,
)
from lightning_loggers.adapters.comet_service import Service
from lightning_loggers.adapters.standard_files import STANDARD_FILES, StandardFiles
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.records import Kind, Record, RunStatus
from lightning_loggers.values.metrics import as_number

MODES = ("get_or_create", "get", "create")
EXPERIMENT_KEY = re.compile(r"[0-9A-Za-z]{32,50}")

_AUTHENTICATION = frozenset(
    {
        "BackendCustomError", "BackendVersionTooOld", "ExperimentAlreadyUploaded", "ExperimentNotFound",
        "InvalidURL", "InvalidWorkspace", "MaxExperimentNumberReachedException", "PaymentRequired",
        "ProjectConsideredLLM", "ProjectNameEmpty", "ProjectNameIsTooLong", "SDKVersionIsTooOldException",
        "ServiceAccountWorkspaceRestricted", "Unauthorized", "ViewOnlyAccessException",
    }
)  # fmt: skip
_CURE = "Give api_key=..., set COMET_API_KEY, or run: comet login"
_NAMES_FILE = "lightning_loggers/names.json"


class CometAdapter(Adapter):
    """Delivers to Comet, or writes its offline archive.

    Options: ``server`` (address and API key as a URI; ``comet://`` leaves both to the SDK's configuration), ``online``,
    ``workspace``, ``project``, ``experiment_key``, ``mode``, ``name``, ``tags``, ``prefix``.

    Guarantees:
        - Points keep the time of their log call, online and in an archive.
        - Online, :meth:`send` returns when Comet has acknowledged every request; none waits longer than half a minute
          for an answer, an upload two minutes.
        - A run is one experiment however often its creation is tried: its key is made here.
        - Nothing is cut: what is longer than Comet takes is stored whole as an asset.
    """

    name = "comet"
    max_key_length = 100
    capabilities: ClassVar[Capabilities] = Capabilities(
        kinds={
            **{kind: f"asset {form}" for kind, form in STANDARD_FILES.items()},
            **OWN_FORMS,
            Kind.METRIC: "metric, at its step and time; NaN and infinities as Comet's words for them",
            Kind.PARAM: "parameter; over-long values whole in the asset params/<name>.txt",
            Kind.TEXT: "text sample",
            Kind.ARTIFACT: "asset",
            Kind.CHECKPOINT: "files of a model, with score and aliases as their metadata",
        },
        keeps_time=True,
    )

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._sdk: SimpleNamespace | None = None
        self._destination: Destination | None = None
        self._api_key: str | None = None
        self._keys_told = 0
        self._files = StandardFiles(context, asset_name)
        self._media = Media(context, self._files, self._upload, self._asset_id)

    @classmethod
    @override
    def check_options(cls, options: Mapping[str, Any]) -> None:
        mode, key = options.get("mode"), options.get("experiment_key")
        if mode not in {None, *MODES}:
            raise unknown_option("mode", mode, MODES)
        if options.get("online") not in {None, True, False}:
            raise unknown_option("online", options["online"], ("None", "True", "False"))
        if key is not None and not EXPERIMENT_KEY.fullmatch(str(key)):
            raise ConfigurationError(f"experiment_key={key!r} must be 32 to 50 letters and digits.")
        if mode == "get" and key is None:
            raise ConfigurationError("mode='get' continues an experiment: say which with experiment_key='...'.")

    @classmethod
    @override
    def destination(cls, options: Mapping[str, Any]) -> str:
        if options.get("online") is False:
            return "a Comet archive"
        return server_and_key(options)[0] or "Comet"

    @staticmethod
    @override
    def fit_key(key: str) -> str:
        r"""Anything printable, and not nothing.

        >>> [CometAdapter.fit_key(key) for key in ("loss/val@1 ü", "", "a\nb")]
        ['loss/val@1 ü', '_', 'a_b']
        """
        return printable(key)

    # ------------------------------------------------------------------ the run

    @classmethod
    @override
    def load(cls, options: Mapping[str, Any]) -> None:
        load_sdk()

    @override
    def open(self) -> None:
        if self._sdk is None:
            self._sdk = load_sdk()
        if self._destination is None:
            self._destination = self._choose(self._sdk)
            if isinstance(self._destination, Archive):
                self.pause_s = UNWATCHED_S
        self._destination.open()
        self.context.save_remote()

    def _choose(self, sdk: SimpleNamespace) -> Destination:
        options, remote = self.context.options, self.context.remote
        key = str(options.get("experiment_key") or self.own_key(self.context.run.version, self.context.run.uid))
        online = options.get("online")
        if online is False or "archive" in remote.extra:  # what was begun as an archive goes on as one
            return Archive(self.context, sdk, key)
        self._api_key = find_key(sdk, options)
        if self._api_key is not None:
            return Service(self.context, sdk, key, self._api_key)
        if online:
            raise CometSetupError(f"Comet needs an API key, and none was found. {_CURE}")
        archive = Archive(self.context, sdk, key)
        self.context.notices.tell_once(
            ("comet no key", self.context.run.uid),
            f"No Comet API key was found: this run goes to the archive {archive.path}, for `comet upload`. {_CURE}",
        )
        return archive

    @staticmethod
    def own_key(version: str, uid: str) -> str:
        """The key of a run that was given none: its version if that can be one, else its id in the journal."""
        return version if EXPERIMENT_KEY.fullmatch(version) else uid

    def _opened(self) -> Destination:
        if self._destination is None:
            self.open()
        assert self._destination is not None
        return self._destination

    @override
    def set_status(self, status: RunStatus) -> None:
        destination = self._opened()
        self._store_key_map(destination)
        destination.set_status(status)

    def _store_key_map(self, destination: Destination) -> None:
        """Keep with the run which of its names stand for which keys."""
        changed = self.context.keys.changed
        if changed and self._keys_told != self.context.keys.revision:
            names = json.dumps({name: key for key, name in changed.items()}).encode()
            at = self.context.header.time_ns // 1_000_000
            destination.begin()
            destination.upload(Upload(names, _NAMES_FILE, self._asset_id(_NAMES_FILE), at, overwrite=True))
            destination.commit(0)
            self._keys_told = self.context.keys.revision

    @override
    def close(self) -> None:
        destination, self._destination = self._destination, None
        if destination is not None:
            destination.close()

    # ------------------------------------------------------------------ records

    @override
    def send(self, records: Sequence[Record]) -> None:
        destination = self._opened()
        with self._files.batch():
            self._send(destination, records)

    def _send(self, destination: Destination, records: Sequence[Record]) -> None:
        destination.begin()
        for record in records:  # first what may be refused, and what is there once however often it is sent
            if record.kind in _SENDERS:
                _SENDERS[record.kind](self, record)
        for record in records:
            if record.kind == Kind.PARAM:
                destination.params(self._params(record))
        destination.metrics(
            message for record in records if record.kind == Kind.METRIC for message in self._metrics(record)
        )
        destination.commit(max((record.time_ns // 1_000_000 for record in records), default=0))

    def _metrics(self, record: Record) -> Iterator[Any]:
        assert self._sdk is not None
        message_class, fit = self._sdk.messages.MetricMessage, self.context.keys.fit
        data = record.data or {}
        at, step = max(record.time_ns // 1_000_000, 0), self._step(record.step)
        epoch = as_number(data.get(self._epoch_key))
        whole = int(epoch) if epoch is not None and math.isfinite(epoch) else record.epoch
        for key, value in data.items():
            number = as_number(value)
            if number is not None:
                message = message_class(timestamp=at)
                number = int(number) if isinstance(number, bool) else number
                message.set_metric(fit(key), number, step=step, epoch=whole)
                yield message

    @functools.cached_property
    def _epoch_key(self) -> str:
        """The metric whose value Comet also shows as the epoch of the others, as Lightning's logger has it."""
        return f"{self.context.options.get('prefix') or ''}epoch"

    def _step(self, step: int | float | None) -> int | None:
        if step is None:
            return None
        whole = math.floor(step) if math.isfinite(step) else 0
        fitted = min(max(whole, -(2**63)), 2**63 - 1)
        if fitted != step:
            self.context.notices.tell_once(
                ("step", self.name),
                f"Step {step} is kept as {fitted} in Comet, whose steps are 64-bit integers; the journal has it as it "
                "was.",
            )
        return fitted

    def _params(self, record: Record) -> Iterator[Any]:
        assert self._sdk is not None
        message_class = self._sdk.messages.ParameterMessage
        for key, value in (record.data or {}).items():
            name = self.context.keys.fit(key)
            plain = value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
            if isinstance(plain, str) and len(plain) > MAX_VALUE:
                plain = self._shortened(record, name, plain, "Parameter")
            message = message_class(timestamp=max(record.time_ns // 1_000_000, 0))
            message.set_param(name, plain, source=message_class.source_manual)
            yield message

    def _shortened(self, record: Record, name: str, text: str, what: str) -> str:
        place = f"params/{asset_name(name)}.txt"
        self._upload(record, _bytes(text), place)
        self.context.notices.tell_once(
            ("long param", name),
            f"{what} {name!r} has {len(text)} characters, Comet takes {MAX_VALUE}: it is whole in the asset {place}, "
            "and the value shown is its beginning.",
        )
        mark = f"... [whole in {place}]"
        return text[: MAX_VALUE - len(mark)] + mark

    def _send_text(self, record: Record) -> None:
        text = record.value if record.value is not None else json.loads(self._blob_text(record))
        # Comet names text samples itself; the identifier is shown beside the text.
        self._upload(
            record,
            _bytes(str(text)),
            "auto-generated-in-the-backend",
            kind="text-sample",
            metadata={"identifier": record.id or ""},
        )

    def _send_media(self, record: Record) -> None:
        assert self._sdk is not None
        self._media.send(record, self._opened(), self._sdk, self._step(record.step))

    def _blob_text(self, record: Record) -> str:
        return "".join(self.context.blobs.locate(blob).read_text(encoding="utf-8") for blob in record.blobs or [])

    def _send_artifact(self, record: Record) -> None:
        self._send_files(record)

    def _send_checkpoint(self, record: Record) -> None:
        meta = record.meta or {}
        metadata = {**dict(meta.get("metadata") or {}), "aliases": list(meta.get("aliases") or [])}
        self._send_files(record, kind=MODEL, group=group_name(record.id or "checkpoint"), metadata=metadata)

    def _send_files(self, record: Record, group: str | None = None, **fields: Any) -> None:
        for blob in record.blobs or []:
            path = self.context.blobs.locate(blob)
            if self.context.blobs.changed(blob):
                self.context.notices.tell_once(
                    ("changed", blob.name),
                    f"{blob.name} was written to again after it was logged; it is delivered as it is now. Save to a "
                    "new file, or log it when it is final.",
                )
            folder = "" if group is not None else record.id or ""
            place = asset_name("/".join(part for part in (folder, posixpath.dirname(blob.path), blob.name) if part))
            self._upload(record, path, place, group=group, **fields)

    def _upload(self, record: Record, content: bytes | Path, name: str, **fields: Any) -> None:
        step = record.step
        whole = math.floor(step) if step is not None and math.isfinite(step) else None
        blob = content.parent.name if isinstance(content, Path) else hashlib.sha256(content).hexdigest()
        asset_id = self._asset_id(name, record.time_ns, record.id, blob)
        upload = Upload(content, name, asset_id, max(record.time_ns // 1_000_000, 0), whole, **fields)
        self._opened().upload(upload)

    def _asset_id(self, *what: object) -> str:
        """An id that only this asset has, and has again when it is sent again."""
        said = json.dumps([self.context.run.uid, *map(str, what)])
        return hashlib.sha256(said.encode()).hexdigest()[:32]

    # ------------------------------------------------------------------ faults

    @override
    def classify(self, error: Exception) -> Fault:
        text = f"{type(error).__name__}: {error}"
        if self._api_key:
            text = text.replace(self._api_key, "***")  # the SDK quotes a key that is wrong
        if isinstance(error, CometRefusedError):
            return Fault(FaultKind.REJECTED, text.partition(": ")[2])
        if isinstance(error, CometSetupError):
            return Fault(FaultKind.AUTHENTICATION, text.partition(": ")[2])
        status = error.status if isinstance(error, CometStatusError) else _status_of(error)
        if status is not None:
            wait = error.retry_after_s if isinstance(error, CometStatusError) else None
            return Fault(_kind_of(status), text, wait)
        if type(error).__name__ == "InvalidAPIKey":
            return Fault(FaultKind.AUTHENTICATION, f"Comet does not know this API key ({text}). {_CURE}")
        if type(error).__name__ in _AUTHENTICATION:
            return Fault(FaultKind.AUTHENTICATION, text)
        if isinstance(error, ImportError):
            return Fault(FaultKind.AUTHENTICATION, f"{text} (Install it: pip install 'lightning-loggers[{self.name}]')")
        if isinstance(error, PermissionError):
            return Fault(FaultKind.AUTHENTICATION, f"{text} (make the folder writable)")
        if isinstance(error, FileNotFoundError):
            return Fault(FaultKind.REJECTED, text)
        if isinstance(error, OSError | json.JSONDecodeError):  # requests' errors are OSErrors; no JSON: a proxy's page
            return Fault(FaultKind.TRANSIENT, text)
        if isinstance(error, ValueError):
            return Fault(FaultKind.REJECTED, text)
        return Fault(FaultKind.BUG, text)


_SENDERS: dict[str, Callable[[CometAdapter, Record], None]] = {
    **dict.fromkeys(STANDARD_FILES, CometAdapter._send_media),
    Kind.TEXT: CometAdapter._send_text,
    Kind.ARTIFACT: CometAdapter._send_artifact,
    Kind.CHECKPOINT: CometAdapter._send_checkpoint,
}


def _status_of(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _kind_of(status: int) -> FaultKind:
    if status in {401, 402, 403}:
        return FaultKind.AUTHENTICATION
    refused = 400 <= status < 500 and not CometStatusError(status, "", None).transient
    return FaultKind.REJECTED if refused else FaultKind.TRANSIENT


def _bytes(text: str) -> bytes:
    return text.encode(errors="backslashreplace")
