"""MLflow's server on PostgreSQL under many runs at once: all points are there, none twice."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MLflowServer
from mlflow import MlflowClient
from mlflow_reading import assert_exactly_once
from test_mlflow_sql import VALUES, assert_alike, many
from warm_python import WarmPython

from benchmarks.postgres import binaries, postgres

PROCESSES, RUNS_PER_PROCESS, STEPS = 16, 1, 250

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


@pytest.fixture
def database() -> Iterator[str]:
    """The URI of a database server on loopback."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg2", reason="psycopg2-binary is not installed: pip install 'lightning-loggers[dev]'")
    with postgres(programs) as uri:
        yield uri


def test_sixteen_runs_at_once(database: str, tmp_path: Path) -> None:
    """Sixteen runs of as many processes log to one server: every point arrives, none twice, all are finished."""
    server = OnPostgres(tmp_path / "server", workers=2)
    server.database = database
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


def test_rows_are_those_of_mlflows_store(database: str) -> None:
    """Written directly to the database, in any order and twice, all values included: the rows of MLflow's own store."""
    store = MlflowClient(database)._tracking_client.store
    odd = [[("loss", value, 1, step) for value in VALUES for step in (0, -1, 2**63 - 1)]]
    assert_alike(store, [*many(), *odd, *odd])
    store.engine.dispose()


class OnPostgres(MLflowServer):
    """An MLflow server that keeps its tables in PostgreSQL."""

    database = ""

    @property
    def database_uri(self) -> str:
        return self.database
