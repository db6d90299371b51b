"""MLflow's server on PostgreSQL under many runs at once: all points are there, none twice."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import MLflowServer, free_port
from mlflow import MlflowClient
from mlflow_reading import assert_exactly_once
from warm_python import WarmPython

PROCESSES, RUNS_PER_PROCESS, STEPS = 4, 4, 250

_PROGRAM = r"""
import json, sys, threading
from lightning_loggers import MLFlowLogger

uri, save_dir, number, runs, steps = json.loads(sys.argv[1])

def train(run):
    name = f"{number}-{run}"
    logger = MLFlowLogger("crowd", name, tracking_uri=uri, save_dir=save_dir, finalize_timeout_s=150)
    logger.log_hyperparams({"process": number, "run": run})
    for step in range(steps):
        logger.log_metrics({"loss": number + run / 10 + step, "accuracy": -step * 0.5}, step)
    logger.finalize("success")
    logger.close()

threads = [threading.Thread(target=train, args=(run,)) for run in range(runs)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def binaries() -> Path | None:
    """Where PostgreSQL's programs are; Debian keeps them out of the path, by version."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return places[-1].parent if places else None


@pytest.fixture
def postgres() -> Iterator[str]:
    """The URI of a database server on loopback; it refuses to run as root, so it runs as its own user there."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg2", reason="psycopg2-binary is not installed: pip install 'lightning-loggers[dev]'")
    user = "postgres" if os.geteuid() == 0 else None
    # Not in tmp_path: the folders above that are root's alone.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    port = free_port()
    server = None
    try:
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"
        made = subprocess.run(
            [programs / "initdb", "-D", data, "-U", "tester", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"],
            check=False, user=user, cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"],
                user=user, cwd=folder, stdout=log, stderr=log,
            )  # fmt: skip
        connect(port, (folder / "log"))
        yield f"postgresql+psycopg2://tester@127.0.0.1:{port}/postgres"
    finally:
        if server is not None:
            server.send_signal(signal.SIGQUIT)  # at once, with all its processes
            with suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def connect(port: int, log: Path) -> None:
    """Wait until the database answers."""
    import psycopg2

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg2.connect(host="127.0.0.1", port=port, user="tester", dbname="postgres").close()
        except psycopg2.OperationalError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        else:
            return


def test_sixteen_runs_at_once(postgres: str, tmp_path: Path) -> None:
    """Sixteen runs of four processes log to one server at once: every point arrives, none twice, all are finished."""
    server = OnPostgres(tmp_path / "server", workers=2)
    server.database = postgres
    try:
        server.start(150)
        with WarmPython() as python, (tmp_path / "output.txt").open("wb") as out:
            began_s = time.monotonic()
            programs = [
                python.start(
                    _PROGRAM, json.dumps([server.uri, str(tmp_path / "runs"), number, RUNS_PER_PROCESS, STEPS]),
                    stdout=out.fileno(), stderr=out.fileno(), folder=tmp_path,
                )
                for number in range(PROCESSES)
            ]  # fmt: skip
            codes = [program.wait(200) for program in programs]
            took_s = time.monotonic() - began_s
            for program in programs:
                program.close()
        assert codes == [0] * PROCESSES, (tmp_path / "output.txt").read_text()
        print(
            f"{PROCESSES * RUNS_PER_PROCESS * STEPS * 2 / took_s:.0f} points a second, start included", file=sys.stderr
        )
        client = MlflowClient(server.uri)
        crowd = client.get_experiment_by_name("crowd")
        assert crowd is not None
        runs = client.search_runs([crowd.experiment_id])
        assert len(runs) == PROCESSES * RUNS_PER_PROCESS
        seen = set()
        for run in runs:
            number, of = int(run.data.params["process"]), int(run.data.params["run"])
            seen.add((number, of))
            assert run.info.status == "FINISHED"
            loss = [(step, number + of / 10 + step) for step in range(STEPS)]
            assert_exactly_once(server.uri, run.info.run_id, "loss", loss)
            accuracy = [(step, -step * 0.5) for step in range(STEPS)]
            assert_exactly_once(server.uri, run.info.run_id, "accuracy", accuracy)
        assert len(seen) == len(runs)
    finally:
        server.kill()


class OnPostgres(MLflowServer):
    """An MLflow server that keeps its tables in PostgreSQL."""

    database = ""

    @property
    def database_uri(self) -> str:
        return self.database
