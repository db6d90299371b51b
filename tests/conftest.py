"""Shared fixtures: a real MLflow server for the run, stores ready at once, and nothing swallowed in silence."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a second thread of torch's crawls where tests share two cores
os.environ.pop("MLFLOW_TRACKING_URI", None)
for _name in [name for name in os.environ if name.startswith("SLURM_")]:
    os.environ.pop(_name)


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0, what: str = "condition") -> None:
    """Poll until ``condition`` is true, or fail the test."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} did not come true within {timeout_s:g} s")
        time.sleep(0.02)


_left_to_others: list["subprocess.Popen[bytes]"] = []
"""Servers that this worker started and another one may end: kept, so that nobody asks what became of them."""


@dataclass
class MLflowServer:
    """A real ``mlflow server`` process on loopback that a test may kill and start again."""

    folder: Path
    port: int = field(default_factory=free_port)
    workers: int = 1
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def database_uri(self) -> str:
        return f"sqlite:///{self.folder / 'server.db'}"

    def start(self, timeout_s: float = 90.0) -> "MLflowServer":
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                    "--backend-store-uri", self.database_uri, "--workers", str(self.workers),
                    "--artifacts-destination", str(self.folder / "artifacts"), "--serve-artifacts",
                ],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.wait_ready(timeout_s)
        return self

    def wait_ready(self, timeout_s: float = 90.0) -> None:
        def answers() -> bool:
            if self.process is not None and self.process.poll() is not None:
                pytest.fail(f"mlflow server ended: {(self.folder / 'server.log').read_text()[-2000:]}")
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return False

        wait_until(answers, timeout_s, "the mlflow server's health page")

    def kill(self) -> None:
        """SIGKILL the server and all its workers."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables made, once per test run: making them takes seconds."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    path = shared / "template.db"
    with (shared / "template.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            made = shared / "template-making.db"
            subprocess.run(
                [sys.executable, "-c", f"from mlflow import MlflowClient; MlflowClient('sqlite:///{made}').search_experiments()"],
                check=True, capture_output=True, cwd=shared,
            )  # fmt: skip
            made.rename(path)
    return path


@pytest.fixture
def mlflow_sqlite(tmp_path: Path, mlflow_template: Path) -> str:
    """The URI of a fresh SQLite store in the test's own folder."""
    path = tmp_path / "mlflow.db"
    shutil.copyfile(mlflow_template, path)
    return f"sqlite:///{path}"


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[str]:
    """The URI of one real MLflow server, shared by all workers of the test run. Do not kill it."""
    shared = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        shared = shared.parent
    note = shared / "server.uri"
    users = shared / "server.users"
    server = MLflowServer(shared / "server")
    with (shared / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not note.exists():
            if not server.folder.exists():  # else its last user had ended before this one came
                server.folder.mkdir()
                shutil.copyfile(mlflow_template, server.folder / "server.db")
            server.start()
            assert server.process is not None
            _left_to_others.append(server.process)
            note.write_text(f"{server.uri} {server.process.pid}")
        uri, pid = note.read_text().split()
        users.write_text(str(int(users.read_text()) + 1 if users.exists() else 1))
    yield uri
    with (shared / "server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        left = int(users.read_text()) - 1
        users.write_text(str(left))
        if left == 0:
            note.unlink()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGKILL)
            if server.process is not None:
                server.process.wait()


@pytest.fixture
def own_mlflow_server(tmp_path: Path, mlflow_template: Path) -> Iterator[MLflowServer]:
    """A server of the test's own, not started yet, that it may kill."""
    server = MLflowServer(tmp_path / "server")
    server.folder.mkdir()
    shutil.copyfile(mlflow_template, server.folder / "server.db")
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def nothing_swallowed(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which a logger swallowed an exception of its own: "never raises" must not hide defects."""
    from lightning_loggers.loggers.journaled import JournaledLogger

    swallowed: list[tuple[str, Exception]] = []
    original = JournaledLogger._swallow

    def keep(self: JournaledLogger, call: str, error: Exception) -> None:
        swallowed.append((call, error))
        original(self, call, error)

    monkeypatch.setattr(JournaledLogger, "_swallow", keep)
    yield
    if swallowed and request.node.get_closest_marker("may_swallow") is None:
        call, error = swallowed[0]
        raise AssertionError(f"{call} swallowed {error!r} in this test") from error


@pytest.fixture(autouse=True)
def loggers_closed() -> Iterator[None]:
    """Close what a test left open, so that no delivery thread outlives its folder."""
    yield
    from lightning_loggers.loggers import ending

    for logger in list(ending.live):
        logger._finalized_at = logger._writer.recorded if logger._writer else 0
        logger.close()
