"""A PostgreSQL server of one's own on loopback, from Debian's package, for as long as it is wanted."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


def binaries() -> Path | None:
    """Where PostgreSQL's programs are; Debian keeps them out of the path, by version."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return places[-1].parent if places else None


@contextlib.contextmanager
def postgres(programs: Path) -> Iterator[str]:
    """The URI of a new database.

    Args:
        programs: See :func:`binaries`. They refuse to run as root, so they run as the package's user there.

    Raises:
        RuntimeError: If it does not start.
    """
    user = "postgres" if os.geteuid() == 0 else None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # not in a folder that is root's alone
    server = None
    try:
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"
        made = subprocess.run(
            [programs / "initdb", "-D", data, "-U", "tester", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"],
            check=False, user=user, cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            raise RuntimeError(made.stderr)
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"],
                user=user, cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip
        _connect(port, folder / "log")
        yield f"postgresql+psycopg2://tester@127.0.0.1:{port}/postgres"
    finally:
        if server is not None:
            server.send_signal(signal.SIGQUIT)  # at once, with all its processes
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _connect(port: int, log: Path) -> None:
    import psycopg2

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg2.connect(host="127.0.0.1", port=port, user="tester", dbname="postgres").close()
        except psycopg2.OperationalError:
            if time.monotonic() > deadline:
                raise RuntimeError(log.read_text()) from None
            time.sleep(0.05)
        else:
            return
