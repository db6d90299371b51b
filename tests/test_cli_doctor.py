"""``lightning-loggers doctor``: what it finds, and that each complaint comes with a cure."""

import importlib.metadata
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port
from journals_by_hand import tree

from lightning_loggers.cli import console, main


@pytest.fixture(autouse=True)
def own_console(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the process's logging and the masks of other tests alone."""
    monkeypatch.setattr(console, "take_over_logging", lambda: None)
    monkeypatch.setattr(console, "_secrets", set())


Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that answer every request with a given status and clock; returns their addresses."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int = 200, clock_s: float = 0.0, password: str | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                import base64

                wanted = "Basic " + base64.b64encode(f"user:{password}".encode()).decode()
                refused = password is not None and self.headers.get("Authorization") != wanted
                self.send_response(401 if refused else status)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def date_time_string(self, timestamp: float | None = None) -> str:
                return formatdate(time.time() + clock_s, usegmt=True)

            def log_message(self, *args: Any) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def doctor(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    """The exit code and the complaints, each with its cure; fails if one has none."""
    capsys.readouterr()
    code = main(["doctor", *map(str, arguments)])
    lines = capsys.readouterr().out.splitlines()
    complaints = []
    for number, line in enumerate(lines):
        if line.startswith("ATTENTION"):
            assert lines[number + 1].strip().startswith("cure: ")
            complaints.append(line + lines[number + 1])
        else:
            assert line.startswith(("ok ", "     "))
    assert code == int(bool(complaints))
    return code, complaints


def test_all_is_well(mlflow_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a real server, a writable folder and working locks there is nothing to mend, and nothing is left behind."""
    before = tree(tmp_path)
    assert main(["doctor", str(tmp_path), "--tracking-uri", mlflow_server]) == 0
    out = capsys.readouterr().out
    assert tree(tmp_path) == before
    for package in ("mlflow", "lightning", "torch"):
        assert f"{package}" in out
        assert importlib.metadata.version(package) in out
    assert f"{mlflow_server} answers in" in out
    assert "of the tracker's" in out
    assert "free in" in out
    assert "locks: work in" in out


def test_imports_no_sdk(tmp_path: Path) -> None:
    """Versions are told without importing what they belong to."""
    code = (
        "import sys, lightning_loggers.cli as cli; cli.main(['doctor', sys.argv[1]]);"
        "print([name for name in ('torch', 'lightning', 'mlflow', 'numpy') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_address_from_the_environment(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLFLOW_TRACKING_URI is asked, with its password, which is shown nowhere."""
    host = serve(password="secretpw")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secretpw@{host}")
    assert main(["doctor", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert f"http://{host} answers" in captured.out
    assert "secretpw" not in captured.out + captured.err


def test_wrong_password(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that lets us not in is told from one that does not answer."""
    host = serve(password="right")
    code, complaints = doctor(capsys, tmp_path, "--tracking-uri", f"http://user:secretpw@{host}")
    assert code == 1
    assert "does not let us in (HTTP 401)" in complaints[0]
    assert "MLFLOW_TRACKING_PASSWORD" in complaints[0]
    assert "secretpw" not in complaints[0]


def test_dead_tracker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A port on which nothing listens is a complaint, its password masked."""
    _, complaints = doctor(capsys, tmp_path, "--tracking-uri", f"http://user:secretpw@127.0.0.1:{free_port()}")
    (only,) = complaints
    assert "does not answer" in only
    assert "refused" in only
    assert "secretpw" not in only


def test_silent_tracker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tracker that accepts and never answers is given up after seconds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        _, complaints = doctor(capsys, tmp_path, "--tracking-uri", f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert "does not answer" in complaints[0]


def test_not_a_tracker(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server that is no MLflow server is told with its HTTP status."""
    _, complaints = doctor(capsys, tmp_path, "--tracking-uri", f"http://{serve(status=404)}")
    assert "HTTP 404" in complaints[0]


@pytest.mark.parametrize(("clock_s", "direction"), [(3600, "3600 s behind"), (-90, "90 s ahead of")])
def test_clock(
    clock_s: float, direction: str, serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A clock that differs from the tracker's by more than seconds is a complaint that says by how much."""
    _, complaints = doctor(capsys, tmp_path, "--tracking-uri", f"http://{serve(clock_s=clock_s)}")
    (only,) = complaints
    number, _, rest = direction.partition(" ")
    told = int(only.partition("clock: ")[2].partition(" ")[0])
    assert abs(told - int(number)) <= 2
    assert rest in only


def test_sqlite(mlflow_sqlite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A store in a file is opened, may be missing, and is a complaint if it is something else."""
    before = tree(tmp_path)
    assert main(["doctor", str(tmp_path), "--tracking-uri", mlflow_sqlite]) == 0
    assert "mlflow.db opens, 0 runs" in capsys.readouterr().out
    assert doctor(capsys, tmp_path, "--tracking-uri", f"sqlite:///{tmp_path}/new/other.db") == (0, [])
    assert tree(tmp_path) == before
    (tmp_path / "wrong.db").write_bytes(b"no database, but long enough to be looked at" * 100)
    _, complaints = doctor(capsys, tmp_path, "--tracking-uri", f"sqlite:///{tmp_path}/wrong.db")
    assert "cannot be read as MLflow's database" in complaints[0]


def test_missing_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there comes with the command that makes it, and is not made."""
    _, complaints = doctor(capsys, tmp_path / "new place")
    assert f"mkdir -p '{tmp_path / 'new place'}'" in complaints[0]
    assert not (tmp_path / "new place").exists()


def test_unwritable_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that takes no files is a complaint."""
    _, complaints = doctor(capsys, "/proc")
    assert any("/proc cannot be written" in complaint for complaint in complaints)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Less than a gigabyte of space is a complaint."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 10**6, 10**6))
    _, complaints = doctor(capsys, tmp_path)
    assert "0.0 GB" in complaints[0]
    assert f"df -h {tmp_path}" in complaints[0]


def test_broken_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A file system that does not show locks between processes is a complaint."""
    from lightning_loggers.journal import lock

    monkeypatch.setattr(lock, "is_locked", lambda path: False)
    _, complaints = doctor(capsys, tmp_path)
    assert "does not show one process the locks of another" in complaints[0]


@pytest.mark.parametrize(
    ("package", "version", "complaint"),
    [
        ("lightning", "2.6.3", "lightning: 2.6.3, but lightning"),
        ("lightning", None, "lightning: not installed"),
        ("mlflow", "2.9.0", "mlflow 2.9.0, but mlflow>=3.1 is needed"),
        ("mlflow", None, "no tracker's SDK is usable"),
    ],
)
def test_packages(
    package: str,
    version: str | None,
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A package that is missing or of a version that does not fit comes with the command that installs it."""
    real = importlib.metadata.version

    def pretend(name: str) -> str:
        if name != package:
            return real(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", pretend)
    from lightning_loggers.adapters import registry

    monkeypatch.setattr(registry, "KNOWN", {"mlflow": registry.KNOWN["mlflow"]})
    _, complaints = doctor(capsys, tmp_path)
    assert any(complaint in line and "pip install '" in line for line in complaints)
