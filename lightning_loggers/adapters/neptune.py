"""Neptune: the SDK's own offline folders, which ``neptune sync`` takes, or a server that one runs oneself.

Neptune's hosted service ended on 2026-03-05. What the SDK would drop or cut is kept, so that a reader can put it back:

- ``<key>`` is a float series: value, step and time of each point, as logged. Points that were logged without a step are
  its first ones; Neptune's server numbers them, and how many there are is in ``lightning_loggers/fitted``.
- ``<key>__other`` is a string series of what ``<key>`` cannot hold: NaN, infinities, integers beyond 2**53, and points
  whose step is not above the last one (or is missing later on). Each item is JSON, ``{"value": "nan", "step": 3}``, at
  the time of its log call. Both series together are the metric.
- Texts and dictionaries are string series below ``<prefix>/text`` and ``<prefix>/dict``, likewise with an ``__other``
  series; those of more than 1,000 characters are files below ``<name>__files``, named by an item ``{"file": ...}``.
- Hyperparameters are values of their own type below ``<prefix>/hyperparams``: integers beyond 32 bits are floats,
  beyond 2**53 text, as are NaN, infinities and ``None``; texts of more than 16,384 characters are files.
- Images and figures are image series, ``<prefix>/images/<identifier>`` and ``<prefix>/figures/<identifier>``; several
  images of one record have one each, ``<identifier>/<number>``. Those without a step, or with none above the last one,
  or of more than 32 MB, are files, as are sounds, tables and the like: ``<prefix>/media/<identifier>/<step>.<suffix>``;
  ``media`` is kept for them. Masks are files there, and ``<step>.json`` says what masks and boxes an image has.
- Neptune has no field ``a`` beside a field ``a/b``: the later one is moved aside, by an underscore, told once, and
  named in ``lightning_loggers/fitted``.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from typing_extensions import override

from lightning_loggers.adapters.base import UNWATCHED_S, Adapter, Capabilities, Context, Fault, FaultKind
from lightning_loggers.adapters.neptune_fields import Fields, fit_path
from lightning_loggers.adapters.neptune_records import Encoder, fit_folder, text_file
from lightning_loggers.adapters.neptune_sinks import (
    LockedOutError,
    OfflineFolder,
    RefusedError,
    Server,
    UnreachableError,
    load_sdk,
    token_of,
)
from lightning_loggers.adapters.standard_files import STANDARD_FILES, StandardFiles
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.records import Kind, Record, RunStatus
from lightning_loggers.secrets import strip_uri
from lightning_loggers.version import __version__

MODES = ("async", "sync", "offline", "debug")
FITTED_FIELD = "lightning_loggers/fitted"
HOSTED_ENDED = (
    "Neptune's hosted service ended on 2026-03-05, and {reason}. Use mode='offline', which keeps the run in Neptune's "
    "own format; or the API token of a server of your own (api_key=... or NEPTUNE_API_TOKEN: the token says the "
    "address); or another logger, by changing one line: `logger = TensorBoardLogger('logs')`."
)

_COLOUR = re.compile("\x1b\\[[0-9;]*m")
_STATUS = {
    RunStatus.RUNNING: "running",
    RunStatus.FINISHED: "success",  # Lightning's word, which its own logger wrote here
    RunStatus.FAILED: "failed",
    RunStatus.INTERRUPTED: "interrupted",
    RunStatus.PREEMPTED: "preempted",
}
_LOCKED_OUT = frozenset(
    {
        "Unauthorized", "Forbidden", "NeptuneInvalidApiTokenException", "NeptuneMissingApiTokenException",
        "ProjectNotFound", "NeptuneMissingProjectNameException", "AmbiguousProjectName", "ObjectNotFound",
        "MetadataContainerNotFound", "ContainerUUIDNotFound", "NeptuneClientUpgradeRequiredError",
        "NeptuneLegacyProjectException", "OAuth2Error",
        "NeptuneSSLVerificationError", "NeptuneLimitExceedException", "WritingToArchivedProjectException",
    }
)  # fmt: skip
_TRANSIENT = frozenset({"NeptuneConnectionLostException", "CannotResolveHostname", "InternalServerError"})
_ELSE_FILE = "without a step above the last one file <prefix>/media/<identifier>/<step>.png"
_REFUSED = frozenset({"NeptuneFieldCountLimitExceedException", "MetadataInconsistency", "FileUploadError"})


class NeptuneAdapter(Adapter):
    """Delivers to Neptune.

    Options: ``mode`` (one of :data:`MODES`), ``project``, ``server`` (an address that carries the token), ``proxies``,
    ``name``, ``description``, ``tags``, ``with_id``, ``custom_run_id``, ``prefix``, ``base`` (offline: the SDK's data
    directory, by default ``.neptune`` in the run's folder), ``run_id`` (offline: the UUID of a run that is there).

    Guarantees:
        - Offline, each record is in the SDK's queue exactly once, also after a crash: the queue's end is saved with the
          cursor, and what a crash left behind it is cut off.
        - Online, a batch is delivered when the server has answered for it. After a crash in between it is sent again:
          values and files are the same then, points that have steps are refused by the server, and points and texts
          without may be shown twice.
        - The run is made once, also if the host died while asking for it: it is found by an id of ours.
        - No request waits longer than 30 s for an answer.
    """

    name = "neptune"
    max_key_length = 250
    capabilities: ClassVar[Capabilities] = Capabilities(
        kinds={
            **{kind: f"file <prefix>/{form}" for kind, form in STANDARD_FILES.items()},
            Kind.IMAGE: f"image series <prefix>/images/<identifier>, at its step and time; {_ELSE_FILE}",
            Kind.FIGURE: f"image series <prefix>/figures/<identifier>, at its step and time; {_ELSE_FILE}; plotly: "
            "files .html and .json",
            Kind.METRIC: "float series, at its step and time; what that cannot hold in the string series <key>__other",
            Kind.PARAM: "value of its type in <prefix>/hyperparams (or where meta says); over-long texts as files",
            Kind.TEXT: "string series in <prefix>/text, or the file that meta names; over-long texts whole as files",
            Kind.DICT: "JSON in a string series in <prefix>/dict; over-long ones whole as files",
            Kind.ARTIFACT: "file in <prefix>/artifacts",
            Kind.CHECKPOINT: "file in <prefix>/model/checkpoints, with aliases and metadata beside it",
        },
        keeps_time=True,
        integer_steps=False,
    )

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        options = context.options
        self._mode = str(options.get("mode") or "async")
        if self._mode == "offline":
            self.pause_s = UNWATCHED_S
        self._prefix = fit_path(str(options["prefix"])) + "/" if options.get("prefix") else ""
        extra = context.remote.extra
        self._files = StandardFiles(context, fit_folder)
        self._fields = Fields(extra.setdefault("fields", {}), self._tell_moved)
        self._sink: OfflineFolder | Server | None = None
        self._fitted_told = ""

    # ------------------------------------------------------------------ options

    @classmethod
    @override
    def check_options(cls, options: Mapping[str, Any]) -> None:
        mode, server = options.get("mode") or "async", str(options.get("server") or "")
        if mode == "read-only":
            raise ConfigurationError("mode='read-only' takes no data; use mode='offline', 'async' or 'debug'.")
        if mode not in MODES:
            raise ConfigurationError(f"mode={mode!r} is not one of {', '.join(map(repr, MODES))}.")
        if options.get("with_id") and options.get("custom_run_id"):
            raise ConfigurationError("with_id=... and custom_run_id=... both name a run; give one of them.")
        if len(str(options.get("custom_run_id") or "")) > 36:
            raise ConfigurationError(f"custom_run_id={options['custom_run_id']!r} has more than 36 characters.")
        if mode in {"offline", "debug"}:
            if options.get("with_id"):
                raise ConfigurationError(
                    f"mode={mode!r} cannot continue a run by with_id={options['with_id']!r}: `neptune sync` makes a "
                    "new run. Continue one of this logger's by version=..."
                )
            return
        if not server:
            raise ConfigurationError(HOSTED_ENDED.format(reason=f"mode={mode!r} without a token asks for it"))
        host = urlsplit(server).hostname or ""
        if host == "neptune.ai" or host.endswith(".neptune.ai"):
            raise ConfigurationError(HOSTED_ENDED.format(reason=f"the API token leads to it ({host})"))
        if not options.get("project"):
            raise ConfigurationError(
                "project=None: a server needs a project, as 'workspace/name'; give it, or set NEPTUNE_PROJECT."
            )

    @classmethod
    @override
    def destination(cls, options: Mapping[str, Any]) -> str:
        mode = options.get("mode") or "async"
        if mode in {"offline", "debug"}:
            return f"Neptune {mode}"
        return f"Neptune {options.get('project') or ''} at {strip_uri(str(options.get('server') or ''))}"

    @staticmethod
    @override
    def fit_key(key: str) -> str:
        """See :func:`~lightning_loggers.adapters.neptune_fields.fit_path`."""
        return fit_path(key)

    # ------------------------------------------------------------------ the run

    @override
    def open(self) -> None:
        if self._mode == "debug":
            self.context.remote.id = self.context.remote.id or run_id_of(self.context.run.uid)
        else:
            self._opened()

    def _opened(self) -> OfflineFolder | Server:
        """Where operations go, the run's first ones sent."""
        if self._sink is None:
            _check_installation()
            load_sdk()
            sink = self._offline() if self._mode == "offline" else self._server()
            self._sink = sink
        if isinstance(self._sink, OfflineFolder):
            self._sink.open()
        if not self.context.remote.extra.get("begun"):
            self._put(self._first_operations())
            self.context.remote.extra["begun"] = True
            self.context.save_remote()
        return self._sink

    def _offline(self) -> OfflineFolder:
        options, remote = self.context.options, self.context.remote
        remote.id = remote.id or str(options.get("run_id") or run_id_of(self.context.run.uid))
        base = data_base(options, self.context.run_dir)
        place = remote.extra.setdefault("queue", {"number": 0})
        return OfflineFolder(base, remote.id, place, self._begin_anew)

    def _begin_anew(self) -> None:
        """The folder was synced: what comes now is another run at Neptune, with fields of its own."""
        self._fields.clear()
        self.context.remote.extra["begun"] = False
        self.context.notices.tell_once(
            ("synced", self.context.run.uid),
            "Neptune's offline folder of this run was synced while the run went on. What is logged from now on is "
            "another run at Neptune: sync a run when it is over.",
        )

    def _server(self) -> Server:
        options, remote = self.context.options, self.context.remote
        address = str(options.get("server") or "")
        secret = token(options)
        if not secret:
            raise LockedOutError(f"there is no API token for {address}; set NEPTUNE_API_TOKEN")
        server = Server(strip_uri(address), secret, options.get("proxies"), self.context.acknowledged)
        server.connect()
        sys_id = remote.extra.get("sys_id") or options.get("with_id")
        custom_id = str(options.get("custom_run_id") or self.context.run.uid[:36])
        run = server.find_run(str(options.get("project") or ""), sys_id, custom_id)
        remote.id, remote.extra["sys_id"] = str(run.id), str(run.sys_id)
        remote.parent, remote.url = f"{run.workspace}/{run.project_name}", server.url(run)
        self.context.save_remote()
        self.context.notices.tell_once(("url", remote.id), f"Neptune run: {remote.url}", level=20)
        return server

    def _first_operations(self) -> list[Any]:
        from neptune.internal import operation as ops

        options, first = self.context.options, []
        name = options.get("name")
        if not options.get("with_id"):
            first.append(ops.AssignBool(["sys", "failed"], False))
            name = name or self.context.run.version
        if name:
            first.append(ops.AssignString(["sys", "name"], str(name)))
        if options.get("description"):
            first.append(ops.AssignString(["sys", "description"], str(options["description"])))
        if options.get("tags"):
            first.append(ops.AddStrings(["sys", "tags"], {str(tag) for tag in options["tags"]}))
        for field, text in (
            ("source_code/integrations/lightning-loggers", __version__),
            ("lightning_loggers/run_uid", self.context.run.uid),
            (f"{self._prefix}status", _STATUS[RunStatus.RUNNING]),
        ):
            first.append(ops.AssignString(self._fields.place("own", field).split("/"), text))
        return first

    @override
    def set_status(self, status: RunStatus) -> None:
        if self._mode == "debug":
            return
        self._opened()
        from neptune.internal import operation as ops

        failed = status in {RunStatus.FAILED, RunStatus.INTERRUPTED}
        field = self._fields.place("own", f"{self._prefix}status")
        operations: list[Any] = [
            ops.AssignString(field.split("/"), _STATUS[status]),
            ops.AssignBool(["sys", "failed"], failed),
        ]
        fitted = self._fitted()
        if fitted and fitted != self._fitted_told:
            operations.append(text_file(FITTED_FIELD, fitted, "json"))
        self._put(operations)
        self._fitted_told = fitted

    def _fitted(self) -> str:
        """What a reader must know to put everything back, as JSON; empty if there is nothing."""
        saved = self.context.remote.extra.get("fields", {})
        names = {name: key for key, name in self.context.keys.changed.items()}
        facts = {"names": names, "moved": self._fields.moved(), "unnumbered": saved.get("unnumbered") or {}}
        return json.dumps(facts, indent=1, sort_keys=True) if any(facts.values()) else ""

    @override
    def close(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.close()

    # ------------------------------------------------------------------ records

    @override
    def send(self, records: Sequence[Record]) -> None:
        if self._mode == "debug":
            return
        self._opened()
        assert self._sink is not None
        encoder = Encoder(self.context, self._fields, self._files, self._prefix, self._sink.keep)
        try:
            with self._files.batch():
                self._put(encoder.operations(records))
        except BaseException:  # Ctrl+C in `sync` too: nothing of the batch counts as decided
            self._fields.discard()
            raise

    def _put(self, operations: list[Any]) -> None:
        """Have operations delivered, and keep what was decided about their fields."""
        assert self._sink is not None
        if operations:
            behind = self._sink.put(operations)
            if behind:
                self.context.notices.tell_once(
                    ("behind", self.context.run.uid),
                    "Neptune's server has refused points whose series is further on: it had them already, or somebody "
                    f"else logs to the same series ({behind[0]}).",
                )
        self._fields.commit()

    def _tell_moved(self, wanted: str, place: str) -> None:
        self.context.notices.tell_once(
            ("moved", self.context.run.uid, wanted),
            f"Neptune has no field {wanted[:100]!r} beside those that are there (a path is a field or has fields below "
            f"it, and one type), or not of that name: it is shown as {place[:100]!r}.",
        )

    # ------------------------------------------------------------------ faults

    @override
    def classify(self, error: Exception) -> Fault:
        text = f"{type(error).__name__}: {_in_a_line(error)}"
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if isinstance(error, UnreachableError):
            return Fault(FaultKind.TRANSIENT, str(error), error.retry_after_s)
        if isinstance(error, LockedOutError):
            return Fault(FaultKind.AUTHENTICATION, str(error))
        if isinstance(error, RefusedError) or kinds & _REFUSED:
            return Fault(FaultKind.REJECTED, text)
        if kinds & _TRANSIENT:
            return Fault(FaultKind.TRANSIENT, text)
        if kinds & _LOCKED_OUT:
            return Fault(FaultKind.AUTHENTICATION, f"{text} ({self.destination(self.context.options)})")
        if "ClientHttpError" in kinds:
            locked_out = getattr(error, "status", None) in {401, 403, 404}
            return Fault(FaultKind.AUTHENTICATION if locked_out else FaultKind.REJECTED, text)
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int) and 400 <= status < 500:  # of an upload
            return Fault(FaultKind.AUTHENTICATION if status in {401, 403} else FaultKind.REJECTED, text)
        if isinstance(error, FileNotFoundError | ValueError):
            return Fault(FaultKind.REJECTED, text)
        if isinstance(error, OSError):  # a full disk, a folder that cannot be written, a lost connection
            return Fault(FaultKind.TRANSIENT, text)
        return Fault(FaultKind.BUG, text)


def _in_a_line(error: Exception) -> str:
    """An exception's text; the SDK's own are pages, in colour."""
    return " ".join(_COLOUR.sub("", str(error)).replace("----", "").split())[:400]


def run_id_of(uid: str) -> str:
    """The UUID of an offline run.

    >>> run_id_of("0123456789abcdef0123456789abcdef")
    '01234567-89ab-cdef-0123-456789abcdef'
    """
    try:
        return str(uuid.UUID(hex=uid))
    except ValueError:
        return str(uuid.UUID(hex=hashlib.sha256(uid.encode()).hexdigest()[:32]))


def token(options: Mapping[str, Any]) -> str | None:
    """The API token that options carry, or the environment's."""
    return token_of(str(options.get("server") or "")) or os.environ.get("NEPTUNE_API_TOKEN")


def data_base(options: Mapping[str, Any], run_dir: Path) -> Path:
    """The SDK's data directory of an offline run."""
    return Path(options["base"]) if options.get("base") else run_dir.absolute() / ".neptune"


def _check_installation() -> None:
    """Say in words what the SDK says by a failing import.

    Raises:
        LockedOutError: If its old and its new package are both installed, or neither is.
    """
    found = installed_packages()
    if len(found) == 2:
        raise LockedOutError(both_installed())
    if not found:
        raise LockedOutError("the package neptune is not installed; run: pip install 'lightning-loggers[neptune]'")


def installed_packages() -> dict[str, str]:
    """Versions of the SDK's packages: ``neptune``, and ``neptune-client`` as it was called."""
    found = {}
    for package in ("neptune", "neptune-client"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def both_installed() -> str:
    """What is wrong, and the cure."""
    return (
        "the packages `neptune` and `neptune-client` are both installed, and the SDK refuses to be imported then. Run: "
        "pip uninstall -y neptune neptune-client && pip install 'lightning-loggers[neptune]'"
    )
