"""What Comet's service and its archive have in common: the SDK's parts, address and key, and what both take."""

import contextlib
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
    from comet_ml.config import get_config
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
    )


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
