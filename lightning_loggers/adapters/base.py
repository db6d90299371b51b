"""The contract between delivery and the one file that talks to one SDK."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from lightning_loggers.adapters.fitting import KeyMap
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.journal.blobs import BlobStore
from lightning_loggers.notices import Notices
from lightning_loggers.records import Header, Kind, Record, RunSpec, RunStatus


class FaultKind(enum.StrEnum):
    """What a failed attempt means for the records of its batch.

    ================  ================================================================================
    TRANSIENT         the tracker could not be reached or asked to wait; the same batch may pass later
    REJECTED          the tracker will never take this batch as it stands; delivery finds the culprit
    AUTHENTICATION    nothing passes until the user mends credentials; told with the cure, tried slowly
    BUG               anything else: a defect of the adapter or the SDK
    ================  ================================================================================
    """

    TRANSIENT = "transient"
    REJECTED = "rejected"
    AUTHENTICATION = "authentication"
    BUG = "bug"


@dataclass(frozen=True, slots=True)
class Fault:
    """An attempt failed.

    Attributes:
        kind: What that means.
        reason: The cause in words, secrets masked by delivery before anybody sees it.
        retry_after_s: How long the tracker asked to wait, seconds.
    """

    kind: FaultKind
    reason: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """The tracker has acknowledged the whole batch."""


Outcome = Delivered | Fault


UNWATCHED_S = 3.0
"""A pause between two deliveries to files that only an SDK's own command reads, after the run."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a tracker takes, as data.

    Attributes:
        kinds: How each kind is stored, in words for the documentation. What is not in it is kept in the journal only.
        keeps_time: Whether a point keeps the time of its log call when it is delivered later.
        deduplicates: Whether delivering the same record twice shows it once.
        second_handle: Whether the training process may hold the SDK's object while another process delivers.
        integer_steps: Whether a step is cut to an integer.
        local: Whether it writes into the run's own folder rather than to a service.
    """

    kinds: Mapping[Kind, str]
    keeps_time: bool = False
    deduplicates: bool = False
    second_handle: bool = True
    integer_steps: bool = True
    local: bool = False


class RemoteRun(msgspec.Struct):
    """What the tracker calls our run. Saved beside the cursors, so that any host continues the same one.

    Attributes:
        id: The tracker's id, once known.
        opening: Set before the tracker is asked to create the run: a host that died in between must look for it first.
        parent: The tracker's id of the experiment or project, where it has one.
        url: A page that shows the run, where there is one.
        extra: What the adapter needs besides; saved together with the cursors, so an adapter that owns a file keeps its
            length here and cuts off what a crash left behind it.
    """

    id: str | None = None
    opening: bool = False
    parent: str | None = None
    url: str | None = None
    extra: dict[str, Any] = {}


@dataclass(slots=True)
class Context:
    """What an adapter is given besides records.

    Attributes:
        run: The run.
        header: The first header line of its journal.
        remote: The tracker's side of it; the adapter fills it in, delivery saves it.
        blobs: Files of records.
        keys: The run's map from keys to names that the tracker takes.
        notices: For what the user should know once.
        run_dir: The run's folder.
        options: The tracker's options, secrets included where this host has them.
        save_remote: Saves :attr:`remote` at once, for what must be on disk before the tracker is asked.
        acknowledged: To be called after each request of several that the tracker has answered: waits begin anew.
    """

    run: RunSpec
    header: Header
    remote: RemoteRun
    blobs: BlobStore
    keys: KeyMap
    notices: Notices
    run_dir: Path
    options: dict[str, Any] = field(default_factory=dict)
    save_remote: Callable[[], None] = lambda: None
    acknowledged: Callable[[], None] = lambda: None


class Adapter(ABC):
    """Talks to one SDK. Lives in a delivery host and is used by one thread.

    Methods that end in nothing special raise whatever the SDK raises; :meth:`classify` says what it means, and
    :meth:`open_run`, :meth:`write` and :meth:`set_status` return that as a value.

    Guarantees that an implementation gives:
        - Constructing it costs nothing and touches neither the SDK nor a network.
        - :meth:`send` may be called again with records that were sent before, alone or among others.
        - No call waits for ever; a dead tracker costs seconds, not minutes.
    """

    name: ClassVar[str]
    """Of the registry; part of file names: lower case letters and digits."""

    capabilities: ClassVar[Capabilities]

    max_key_length: ClassVar[int] = 250

    address_option: ClassVar[str | None] = None
    """The option that says where it delivers to, if ``sync --to`` may give another one."""

    address_variable: ClassVar[str | None] = None
    """The environment variable with the same address, for its user and password."""

    home_options: ClassVar[tuple[str, ...]] = ()
    """Options that only mean something at the journal's own address."""

    may_move: ClassVar[bool] = False
    """Whether delivery may go on in another process in the middle of a run: the SDK has nothing in the training process
    that users rely on, and closing and opening the run leaves no trace."""

    pause_s: float = 1.0
    """Seconds to the next look at the journal of a run that goes on; :data:`UNWATCHED_S` where nobody can see
    what arrives, since a look costs as much as hundreds of records."""

    def __init__(self, context: Context) -> None:
        self.context = context

    # ------------------------------------------------------- what delivery calls

    def open_run(self) -> Outcome:
        """Have the run at the tracker, made or found."""
        return self._attempt(self.open)

    def write(self, records: Sequence[Record]) -> Outcome:
        """Deliver records that were logged in this order."""
        return self._attempt(self.send, records)

    def update_status(self, status: RunStatus) -> Outcome:
        """Show the run's state at the tracker."""
        return self._attempt(self.set_status, status)

    def _attempt(self, call: Any, *args: Any) -> Outcome:
        try:
            call(*args)
        except Exception as error:  # noqa: BLE001 - seam: an SDK may raise anything, and none of it ends delivery
            try:
                return self.classify(error)
            except Exception as second:  # noqa: BLE001 - a broken classification is a bug, not the end of delivery
                return Fault(FaultKind.BUG, f"{error!r} (and classifying it failed: {second!r})")
        return Delivered()

    # ------------------------------------------------------- what an adapter defines

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that cannot work, without SDK and network. Called by constructors and the command line.

        Raises:
            ConfigurationError: With what is wrong, and what would work.
        """

    @classmethod
    def load(cls, options: Mapping[str, Any]) -> None:
        """Import what :meth:`open` will need, if that takes long: beside training it would take several times as long.

        Called in any thread, perhaps by two at once; what it raises is left to :meth:`open` to tell.
        """

    @classmethod
    def is_loaded(cls, options: Mapping[str, Any]) -> bool:
        """Whether :meth:`load` would have nothing to do; for an adapter that :attr:`may_move`."""
        return True

    @staticmethod
    @abstractmethod
    def fit_key(key: str) -> str:
        """The closest name that the tracker takes for ``key``, length aside; what is fine is returned unchanged."""

    @abstractmethod
    def open(self) -> None:
        """Import the SDK, connect, and find or make the run (``context.remote``)."""

    @abstractmethod
    def send(self, records: Sequence[Record]) -> None:
        """Deliver records; returns when the tracker has acknowledged all of them."""

    @abstractmethod
    def set_status(self, status: RunStatus) -> None:
        """Show the run's state at the tracker."""

    @abstractmethod
    def classify(self, error: Exception) -> Fault:
        """Say what an exception of this SDK means."""

    def close(self) -> None:
        """Let go of the SDK's resources; the run's status is not touched."""

    @classmethod
    def destination(cls, options: Mapping[str, Any]) -> str:
        """Where options lead, without secrets: two runs with the same destination can be delivered alike."""
        return cls.name


def unknown_option(name: str, value: object, valid: Sequence[str]) -> ConfigurationError:
    """The error for an option with a few valid values."""
    return ConfigurationError(f"{name}={value!r} is not known; use one of {', '.join(map(repr, valid))}.")
