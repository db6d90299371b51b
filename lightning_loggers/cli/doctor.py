"""``lightning-loggers doctor``."""

import base64
import contextlib
import importlib.metadata
import os
import platform
import secrets
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer

from lightning_loggers.cli import console
from lightning_loggers.secrets import secrets_of_uri, strip_uri
from lightning_loggers.version import __version__

_TIMEOUT_S = 3.0
_CLOCK_TOLERANCE_S = 5.0
_LITTLE_SPACE_BYTES = 2**30
_API = "/api/2.0/mlflow/experiments/search?max_results=1"
_EARLIEST = 1_735_689_600  # 2025-01-01: a clock that is before it was never set
_HOLD_LOCK = (
    "import fcntl,sys; f=open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        subject: What was looked at.
        text: What was found.
        cure: A command that mends it; ``None`` where nothing needs mending.
    """

    subject: str
    text: str
    cure: str | None = None


def doctor(
    path: Annotated[Path, typer.Argument(help="Where journals are to be kept.")] = Path(),
    tracking_uri: Annotated[
        str | None, typer.Option(help="Tracker to ask; by default the environment's MLFLOW_TRACKING_URI.")
    ] = None,
) -> None:
    """Check what is installed, whether the tracker answers, the clock, and disk and locks in PATH.

    Exit code: 0 if all is fine, 1 if something needs attention; each such line comes with the command that mends it.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        console.keep_secret(secrets_of_uri(uri))
    attention = 0
    for finding in (*installed(), *tracker(uri), *folder(path)):
        console.show(f"{'ok       ' if finding.cure is None else 'ATTENTION'}  {finding.subject}: {finding.text}")
        if finding.cure is not None:
            attention += 1
            console.show(f"           cure: {finding.cure}")
    raise typer.Exit(int(attention > 0))


# -------------------------------------------------------------------- what is installed


def installed() -> Iterator[Finding]:
    """Versions of what we need and of the trackers' SDKs; nothing of it is imported."""
    yield Finding(
        "lightning-loggers",
        f"{__version__}, Python {platform.python_version()}, {platform.system()} {os.uname().release}",
    )
    try:
        needed = importlib.metadata.requires("lightning-loggers") or []
    except importlib.metadata.PackageNotFoundError:
        needed = []
    for requirement in needed:
        if "extra ==" not in requirement:
            yield _package(requirement)
    yield from _adapters()


def _package(requirement: str) -> Finding:
    name, version, fits = _installed(requirement)
    if version is None:
        return Finding(name, "not installed", f"pip install '{requirement}'")
    if not fits:
        return Finding(name, f"{version}, but {requirement} is needed", f"pip install '{requirement}'")
    return Finding(name, version)


def _adapters() -> Iterator[Finding]:
    from lightning_loggers.adapters.registry import KNOWN

    any_sdk = False
    absent = []
    for tracker_name, known in KNOWN.items():
        if known.requirement is None:
            continue
        name, version, fits = _installed(known.requirement)
        install = f"pip install 'lightning-loggers[{known.extra}]'"
        if version is None:
            absent.append(Finding(f"tracker {tracker_name}", f"{name} is not installed (wanted? {install})"))
            continue
        any_sdk = any_sdk or fits
        yield Finding(
            f"tracker {tracker_name}",
            f"{name} {version}" + ("" if fits else f", but {known.requirement} is needed"),
            None if fits else install,
        )
    yield from absent
    if not any_sdk and KNOWN:
        first = next(iter(KNOWN.values()))
        yield Finding("trackers", "no tracker's SDK is usable", f"pip install 'lightning-loggers[{first.extra}]'")


def _installed(requirement: str) -> tuple[str, str | None, bool]:
    """Name, installed version, and whether that satisfies the requirement."""
    from packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        version = importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return wanted.name, None, False
    return wanted.name, version, wanted.specifier.contains(version, prereleases=True)


# -------------------------------------------------------------------- tracker and clock


def tracker(uri: str | None) -> Iterator[Finding]:
    """Whether the tracker answers, and how its clock differs from ours."""
    compared = False
    if not uri:
        yield Finding("tracker", "no address given (MLFLOW_TRACKING_URI or --tracking-uri): none was asked")
    elif urlsplit(uri).scheme in {"http", "https"}:
        for finding in _server(uri):
            compared = compared or finding.subject == "clock"
            yield finding
    elif urlsplit(uri).scheme == "sqlite":
        yield _database(uri)
    else:
        yield Finding("tracker", f"{strip_uri(uri)} cannot be asked from here; only http, https and sqlite can")
    if not compared:
        now = time.time()
        yield Finding(
            "clock",
            time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)) + ", compared with no server",
            None if now > _EARLIEST else "sudo timedatectl set-ntp true",
        )


def _server(uri: str) -> Iterator[Finding]:
    shown = strip_uri(uri).rstrip("/")
    status, reason, date, asked, answered = _get(uri, "/health")
    if status is None:
        yield Finding(
            "tracker", f"{shown} does not answer: {reason}", f"curl --max-time 3 {shlex.quote(shown + '/health')}"
        )
        return
    api_status, api_reason, *_ = _get(uri, _API)
    if api_status in {401, 403}:
        yield Finding(
            "tracker",
            f"{shown} answers but does not let us in (HTTP {api_status})",
            "export MLFLOW_TRACKING_USERNAME=<user> MLFLOW_TRACKING_PASSWORD=<password>",
        )
    elif api_status != 200:
        found = api_reason if api_status is None else f"HTTP {api_status}"
        yield Finding(
            "tracker",
            f"{shown} answers, but not as an MLflow server does ({found})",
            f"curl --max-time 3 {shlex.quote(shown + _API)}",
        )
    else:
        note = "" if status == 200 else f" (its /health says HTTP {status})"
        yield Finding("tracker", f"{shown} answers in {(answered - asked) * 1000:.0f} ms{note}")
    with contextlib.suppress(TypeError, ValueError):
        # The header is cut to whole seconds: on average its moment was half a second later.
        offset = parsedate_to_datetime(date or "").timestamp() + 0.5 - (asked + answered) / 2
        if abs(offset) <= _CLOCK_TOLERANCE_S:
            yield Finding("clock", f"within {max(abs(offset), 1.0):.0f} s of the tracker's")
        else:
            direction = "behind" if offset > 0 else "ahead of"
            yield Finding(
                "clock",
                f"{abs(offset):.0f} s {direction} the tracker's",
                "sudo timedatectl set-ntp true; timedatectl status",
            )


def _get(uri: str, page: str) -> tuple[int | None, str, str | None, float, float]:
    """HTTP status, the reason if there is none, the Date header, and when we asked and were answered."""
    request = urllib.request.Request(strip_uri(uri).rstrip("/") + page)  # noqa: S310 - http and https only, see above
    credentials = _credentials(uri)
    if credentials:
        request.add_header("Authorization", credentials)
    asked = time.time()
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            return answer.status, "", answer.headers.get("Date"), asked, time.time()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, "", error.headers.get("Date"), asked, time.time()
    except (OSError, ValueError) as error:
        cause = getattr(error, "reason", None) or error
        return None, f"{cause}" or type(error).__name__, None, asked, time.time()
    except Exception as error:  # noqa: BLE001 - http.client raises its own for what is no HTTP at all
        return None, f"{type(error).__name__}: {error}", None, asked, time.time()


def _credentials(uri: str) -> str | None:
    """What MLflow's own client would send."""
    parts = urlsplit(uri)
    user = unquote(parts.username or "") or os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    password = unquote(parts.password or "") or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if user:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return f"Bearer {token}" if token else None


def _database(uri: str) -> Finding:
    place = Path(strip_uri(uri).removeprefix("sqlite:///").partition("?")[0])
    if not place.exists():
        parent = next(folder for folder in (*place.absolute().parents, Path("/")) if folder.exists())
        if os.access(parent, os.W_OK):
            return Finding("tracker", f"{place} is not there yet; it is made with the first run")
        return Finding(
            "tracker", f"{place} is not there and {parent} is not writable", f"chmod u+w {shlex.quote(str(parent))}"
        )
    try:
        with contextlib.closing(
            sqlite3.connect(f"{place.absolute().as_uri()}?mode=ro", uri=True, timeout=_TIMEOUT_S)
        ) as store:
            runs = store.execute("SELECT count(*) FROM runs").fetchone()[0]
    except sqlite3.Error as error:
        return Finding(
            "tracker",
            f"{place} cannot be read as MLflow's database: {error}",
            f"mlflow db upgrade {shlex.quote(strip_uri(uri))}",
        )
    if not os.access(place, os.W_OK):
        return Finding("tracker", f"{place} is not writable", f"chmod u+w {shlex.quote(str(place))}")
    return Finding("tracker", f"{place} opens, {runs} runs")


# -------------------------------------------------------------------- disk and locks


def folder(path: Path) -> Iterator[Finding]:
    """Whether journals can be kept in ``path``."""
    quoted = shlex.quote(str(path))
    if not path.is_dir():
        yield Finding("folder", f"{path} is no folder", f"mkdir -p {quoted}")
        return
    usage = shutil.disk_usage(path)
    yield Finding(
        "disk",
        f"{usage.free / 1e9:.1f} GB of {usage.total / 1e9:.1f} GB are free in {path}",
        None if usage.free >= _LITTLE_SPACE_BYTES else f"df -h {quoted}",
    )
    probe = path / f".lightning-loggers-doctor-{secrets.token_hex(6)}"
    try:
        begun = time.perf_counter()
        with probe.open("xb") as file:
            file.write(b"probe\n")
            file.flush()
            os.fsync(file.fileno())
        took_ms = (time.perf_counter() - begun) * 1000
    except OSError as error:
        yield Finding("folder", f"{path} cannot be written: {error.strerror}", f"chmod u+w {quoted}")
        return
    try:
        yield Finding("folder", f"{path} is writable; a file is on the disk in {took_ms:.0f} ms")
        yield _locks(probe, path)
    finally:
        probe.unlink(missing_ok=True)


def _locks(probe: Path, path: Path) -> Finding:
    """Whether a child's lock is seen here, and gone when the child is killed."""
    from lightning_loggers.journal.lock import is_locked

    cure = (
        "lightning-loggers doctor <a folder on another file system>  # then use it as save_dir; Lustre: mount -o flock"
    )
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD_LOCK, str(probe)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as child:
        assert child.stdout is not None
        held = child.stdout.readline().strip() == b"held"
        seen = held and is_locked(probe)
        child.kill()
        child.wait()
    if not held:
        return Finding("locks", f"the file system of {path} has none: two processes could deliver one run twice", cure)
    if not seen:
        return Finding("locks", f"the file system of {path} does not show one process the locks of another", cure)
    if is_locked(probe):
        return Finding("locks", f"the file system of {path} keeps the lock of a killed process", cure)
    return Finding("locks", f"work in {path}, and go with a killed process")
