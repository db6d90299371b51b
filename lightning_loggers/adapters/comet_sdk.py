"""What Comet's service and its archive have in common: the SDK's parts, address and key, and what both take."""

import contextlib
import hashlib
import posixpath
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

from lightning_loggers.adapters.base import Context
from lightning_loggers.records import RunStatus
from lightning_loggers.secrets import strip_uri

CONFIGURED_SERVER = "comet://"
"""The option ``server`` where the address is left to the SDK's own configuration."""

STATUS_OTHER = "lightning_loggers.status"
RUN_UID_OTHER = "lightning_loggers.run_uid"
FRAMEWORK = "pytorch-lightning"

IMAGE = "visualization"
"""Comet's type of images; they have an address and words of their own."""

MODEL = "model-element"
"""Comet's type of a model's files."""

SCENE, SCENE_ITEM, SCENE_POINTS = "3d-image", "asset-item", "points.jsonl"
"""Comet's type of scenes, of the files that belong to one, and the name of the one with its points."""

MAX_VALUE = 1000
"""Longest value of a parameter or other fact, characters."""

_MAX_NAME = 200
_TRANSIENT_HTTP = {408, 425, 429, 500, 502, 503, 504}
_ENDINGS = {
    RunStatus.FINISHED: None,
    RunStatus.FAILED: "The run failed.",
    RunStatus.INTERRUPTED: "The run was interrupted.",
}


class CometStatusError(Exception):
    """Comet answered with an HTTP error."""

    def __init__(self, status: int, text: str, retry_after_s: float | None) -> None:
        super().__init__(f"HTTP {status}: {text[:500]}")
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def transient(self) -> bool:
        """Whether the same request may pass later."""
        return self.status in _TRANSIENT_HTTP


class CometRefusedError(Exception):
    """Comet will not take this file: a limit of the account, or a rule of the installation."""


class CometSetupError(Exception):
    """Only a person can mend it: no API key, an experiment that is not there or must not be, a damaged folder."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file on its way to Comet.

    Attributes:
        content: Its bytes, or where they are.
        name: Its name at Comet.
        asset_id: The same whenever the same thing is sent, so that Comet has it once.
        time_ms: When it was logged, milliseconds since the epoch.
        step: Its step.
        kind: Comet's type of asset; ``None`` for a plain one.
        group: The model that it belongs to.
        metadata: Shown beside it.
        overwrite: Whether it takes the place of another one of its name.
    """

    content: bytes | Path
    name: str
    asset_id: str
    time_ms: int
    step: int | None = None
    kind: str | None = None
    group: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    overwrite: bool = False

    def params(self) -> dict[str, Any]:
        """What Comet is told about it, in its words."""
        params: dict[str, Any] = {
            "assetId": self.asset_id,
            "context": None,
            "extension": self._extension(),
            "fileName": self.name,
            "overwrite": self.overwrite,
            "step": self.step,
            "epoch": None,
        }
        if self.kind == IMAGE:
            params["figName"], params["imageId"] = params.pop("fileName"), params.pop("assetId")
            return params
        if self.kind is not None:
            params["type"] = self.kind
        if self.kind == "audio":
            params["sampleRate"] = self.metadata.get("sample_rate")
        if self.group is not None:
            params["groupingName"] = self.group
        return params

    def _extension(self) -> str | None:
        """Of the file where there is one: images are called by their identifiers alone."""
        named = self.content.name if isinstance(self.content, Path) and self.kind == IMAGE else self.name
        return Path(named).suffix.removeprefix(".") or None


@dataclass(frozen=True, slots=True)
class Scene:
    """Points in space on their way to Comet's 3D panel.

    Attributes:
        name: Its name, one for all steps.
        asset_id: Ours, the same whenever the same points are sent; Comet's own is made by Comet.
        step: Its step.
        points: A line of JSON a point: ``[x, y, z]`` or ``[x, y, z, red, green, blue]``.
        thumbnail: A picture of it as PNG; may be empty.
        metadata: Shown beside it; how far it extends.
    """

    name: str
    asset_id: str
    step: int | None
    points: bytes
    thumbnail: bytes
    metadata: dict[str, Any]


class Destination(Protocol):
    """Where messages go: an archive on disk, or Comet itself."""

    def open(self) -> None:
        """Make or find the run."""

    def begin(self) -> None:
        """A batch begins; what an earlier one left unfinished is forgotten."""

    def metrics(self, messages: Iterable[Any]) -> None:
        """Take metrics."""

    def params(self, messages: Iterable[Any]) -> None:
        """Take hyperparameters."""

    def other(self, key: str, value: Any) -> None:
        """Take a fact about the run; the last one counts."""

    def upload(self, upload: Upload) -> None:
        """Take a file."""

    def scene(self, scene: Scene) -> None:
        """Take points in space."""

    def max_points(self) -> int:
        """How many points a scene may have."""

    def graph(self, text: str) -> None:
        """Take what the model is made of; the last one counts."""

    def commit(self, last_ms: int) -> None:
        """The batch ends: it must not be lost from here on."""

    def set_status(self, status: RunStatus) -> None:
        """Show the run's state."""

    def close(self) -> None:
        """Let go of everything."""


def load_sdk() -> SimpleNamespace:
    """The parts of comet_ml that delivery uses.

    Importing comet_ml also has it patch other libraries as they are imported, to log by itself what they do. That is
    taken back unless the program had imported it before us: here, only what was logged is logged.
    """
    theirs = "comet_ml" in sys.modules
    import comet_ml
    from comet_ml import batch_utils, messages, offline_utils
    from comet_ml.api_key.comet_api_key import parse_api_key
    from comet_ml.assets.asset_item import AssetItem
    from comet_ml.config import DEFAULT_3D_CLOUD_UPLOAD_LIMITS, get_config  # type: ignore[attr-defined, unused-ignore]
    from comet_ml.data_structure import Histogram

    if not theirs:
        with contextlib.suppress(AttributeError, ValueError):
            sys.meta_path.remove(comet_ml.MODULE_FINDER)
    return SimpleNamespace(
        messages=messages,
        batch_utils=batch_utils,
        offline_utils=offline_utils,
        parse_api_key=parse_api_key,
        config=get_config(),
        Histogram=Histogram,
        AssetItem=AssetItem,
        max_points=int(DEFAULT_3D_CLOUD_UPLOAD_LIMITS["maxPoints"]),
    )


def printable(name: str) -> str:
    r"""A name with what cannot be printed replaced, and not empty.

    >>> [printable(name) for name in ("loss/val@1 ü", "", "a\nb")]
    ['loss/val@1 ü', '_', 'a_b']
    """
    return "".join(char if char.isprintable() else "_" for char in name) or "_"


def asset_name(path: str) -> str:
    """An asset's name: printable parts, none of them empty; one that is too long ends in a hash of what it was.

    >>> asset_name("plots//loss val.png"), asset_name("../x"), len(asset_name("k" * 1000))
    ('plots/loss val.png', '_/x', 200)
    """
    parts = [printable(part) for part in path.split("/") if part]
    name = "/".join("_" if part in {".", ".."} else part for part in parts) or "_"
    if len(name) > _MAX_NAME:
        stem, suffix = posixpath.splitext(name)
        suffix = suffix[:20]
        mark = f"-{hashlib.sha256(path.encode(errors='surrogatepass')).hexdigest()[:16]}{suffix}"
        name = stem[: _MAX_NAME - len(mark)] + mark
    return name


def group_name(identifier: str) -> str:
    """The name of a model, which is no path.

    >>> group_name("nets/first")
    'nets-first'
    """
    return asset_name(identifier).replace("/", "-")


def server_option(address: str | None, api_key: str | None) -> str:
    """Address and API key as one URI: all of this package keeps the user part of a URI out of files and messages.

    >>> server_option("https://comet.example/clientlib/", "k*y"), server_option(None, None)
    ('https://k%2Ay@comet.example/clientlib/', 'comet://')
    """
    scheme, mark, rest = (address or CONFIGURED_SERVER).partition("://")
    return f"{scheme}{mark}{quote(api_key, safe='')}@{rest}" if api_key else f"{scheme}{mark}{rest}"


def server_and_key(options: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Address and API key of the options; ``None`` for what is left to the SDK's configuration."""
    given = str(options.get("server") or CONFIGURED_SERVER)
    server = strip_uri(given)
    key = unquote(urlsplit(given).netloc.rpartition("@")[0].partition(":")[0])
    return (None if server.startswith(CONFIGURED_SERVER) else server), key or None


def find_key(sdk: SimpleNamespace, options: Mapping[str, Any]) -> str | None:
    """The API key: the logger's own, else the environment's or that of ``comet login``."""
    return server_and_key(options)[1] or sdk.config["comet.api_key"] or None


def find_address(sdk: SimpleNamespace, options: Mapping[str, Any], api_key: str) -> str:
    """Comet's address: of the options, the SDK's configuration, the API key itself, or the public service."""
    from comet_ml.config import DEFAULT_COMET_URL_OVERRIDE  # type: ignore[attr-defined, unused-ignore]

    server = server_and_key(options)[0] or sdk.config["comet.url_override"]
    if not server:
        parsed = sdk.parse_api_key(api_key)
        base = parsed.base_url if parsed is not None else None
        server = f"{base.rstrip('/')}/clientlib/" if base else DEFAULT_COMET_URL_OVERRIDE
    return f"{str(server).rstrip('/')}/"


def opening_facts(context: Context) -> dict[str, Any]:
    """What is said of a run when it begins: Lightning's own fact, its name, its id in the journal, its state."""
    name = context.options.get("name")
    return {
        "Created from": FRAMEWORK,
        RUN_UID_OTHER: context.run.uid,
        STATUS_OTHER: RunStatus.RUNNING.value,
        **({"Name": name} if name else {}),
    }


def ending(status: RunStatus) -> str | None:
    """Why a run ended badly, for Comet's list of runs; ``None`` if it did not."""
    return _ENDINGS.get(status)
