"""Points written directly to the tables of MLflow are the rows of its own store, in any order, however often sent."""

import math
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from lightning_loggers.adapters import mlflow_sql
from lightning_loggers.adapters.base import FaultKind
from lightning_loggers.adapters.mlflow_faults import fault_of
from lightning_loggers.adapters.mlflow_sql import Point, PointWriter

VALUES = [0.0, -0.0, 0.1, 1e-320, -1.7976931348623157e308, math.nan, math.inf, -math.inf, 2.0**53, 3]
POINTS = st.lists(
    st.tuples(
        st.sampled_from(["loss", "val/loss", "größe", "k" * 250]),
        st.sampled_from(VALUES),
        st.integers(0, 3) | st.just(2**62),
        st.integers(-2, 3) | st.sampled_from([2**63 - 1, -(2**63)]),
    ),
    max_size=12,
)


def rows(store: Any, table: str, run_id: str) -> list[tuple[Any, ...]]:
    """All of a run, in some order; repr() tells -0.0 from 0.0 and 1 from 1.0."""
    query = f"SELECT key, value, timestamp, step, is_nan FROM {table} WHERE run_uuid = '{run_id}'"  # noqa: S608
    with store.engine.begin() as connection:
        return sorted(tuple(map(repr, row)) for row in connection.exec_driver_sql(query))


def assert_alike(store: Any, batches: Sequence[Sequence[Point]]) -> None:
    """Write to one run directly and to another by MLflow's store; every row is the same."""
    ours, theirs = new_run(store), new_run(store)
    writer = PointWriter(store)
    for batch in batches:
        writer.write(ours, batch)
        store.log_batch(theirs, metrics=[Metric(*point) for point in batch], params=[], tags=[])
        assert rows(store, "latest_metrics", ours) == rows(store, "latest_metrics", theirs)
    assert rows(store, "metrics", ours) == rows(store, "metrics", theirs)
    assert writer._proven
    assert store.get_run(ours).data.metrics.keys() == store.get_run(theirs).data.metrics.keys()


def many() -> list[list[Point]]:
    """Batches of a thousand, more metrics than rows of a statement, in no order; some sent again."""
    points = [(f"m{7 * at % 199}", math.sin(at), 10**12 + at // 2, 13 * at % 97) for at in range(4000)]
    batches = [points[begin : begin + 1000] for begin in (3000, 0, 500)]
    return [*batches, batches[0], batches[1][::-1]]


def new_run(store: Any) -> str:
    """A run of the default experiment."""
    return str(store.create_run("0", "somebody", 0, [], "run").info.run_id)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """MLflow's store on a SQLite file."""
    store = MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('sql')}/mlflow.db")._tracking_client.store
    yield store
    store.engine.dispose()


@settings(deadline=None, max_examples=60)
@given(batches=st.lists(POINTS, min_size=1, max_size=4))
def test_rows_are_those_of_mlflows_store(store: Any, batches: list[list[Point]]) -> None:
    """Repeated points, values that SQL has no word for, steps in any order: the same rows, the latest ones included."""
    assert_alike(store, [*batches, batches[0]])


def test_many_rows(store: Any) -> None:
    """Thousands of points of two hundred metrics: several statements a batch, the same rows."""
    assert_alike(store, many())


def test_a_run_that_cannot_be_written_is_refused_as_mlflow_refuses_it(store: Any) -> None:
    """A deleted run and one that is not there: MLflow's own words, nothing written."""
    run_id = new_run(store)
    writer = PointWriter(store)
    writer.write(run_id, [("loss", 1.0, 1, 1)])
    store.delete_run(run_id)
    for refused in (run_id, "0" * 32):
        with pytest.raises(MlflowException) as theirs:
            store.log_batch(refused, metrics=[Metric("loss", 2.0, 2, 2)], params=[], tags=[])
        with pytest.raises(MlflowException) as ours:
            writer.write(refused, [("loss", 2.0, 2, 2)])
        assert str(ours.value) == str(theirs.value)
        assert ours.value.error_code == theirs.value.error_code
    assert len(rows(store, "metrics", run_id)) == 1


def test_other_tables_are_left_to_mlflow(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of MLflow with another column in its tables: its own store writes."""
    monkeypatch.setattr(mlflow_sql, "_COLUMNS", (*mlflow_sql._COLUMNS, "unit"))
    run_id = new_run(store)
    writer = PointWriter(store)
    writer.write(run_id, [("loss", 1.0, 1, 1)])
    assert not writer._proven
    assert len(rows(store, "metrics", run_id)) == 1


def test_a_store_with_a_log_batch_of_its_own_is_left_to_it(store: Any) -> None:
    """What a plugin's store does with a batch is done."""
    seen = []

    class Plugin(type(store)):  # type: ignore[misc]
        """A store that also does something else."""

        def log_batch(self, run_id: str, metrics: Any, params: Any, tags: Any) -> None:
            """Note what came."""
            seen.extend(metrics)

    plugin = Plugin.__new__(Plugin)
    plugin.__dict__.update(store.__dict__)
    PointWriter(plugin).write(new_run(store), [("loss", 1.0, 1, 1)])
    assert [metric.key for metric in seen] == ["loss"]


def test_no_database_layer_is_imported_for_another_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLAlchemy takes half a second to import, and mlflow-skinny comes without it."""
    name = "mlflow.store.tracking.sqlalchemy_store"
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert not PointWriter(object())._mark
    assert name not in sys.modules


def test_a_database_that_refuses_the_first_batch_is_left_to_mlflow(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQL that a database does not know costs nothing but speed."""
    monkeypatch.setattr(mlflow_sql, "_upsert_latest", lambda rows, mark: "INSERT PROPERLY")
    run_id = new_run(store)
    writer = PointWriter(store)
    for step in range(3):
        writer.write(run_id, [("loss", 1.0, 1, step)])
    assert len(rows(store, "metrics", run_id)) == 3
    assert len(rows(store, "latest_metrics", run_id)) == 1


def test_a_batch_is_there_as_a_whole_or_not_at_all(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in the last statement leaves nothing of the first; once it is gone the batch is taken."""
    run_id = new_run(store)
    writer = PointWriter(store)
    writer.write(run_id, [("loss", 1.0, 1, 1)])
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_sql, "_upsert_latest", lambda rows, mark: "INSERT PROPERLY")
        with pytest.raises(MlflowException):
            writer.write(run_id, [("loss", 2.0, 2, 2), ("accuracy", 2.0, 2, 2)])
    assert len(rows(store, "metrics", run_id)) == 1
    writer.write(run_id, [("loss", 2.0, 2, 2), ("accuracy", 2.0, 2, 2)])
    assert len(rows(store, "metrics", run_id)) == 3


@pytest.mark.parametrize("at_first", [True, False])
def test_a_locked_database_is_said_to_be_so(tmp_path: Path, caplog: pytest.LogCaptureFixture, at_first: bool) -> None:
    """Another program's lock is a fault that passes, told in a line, and not a reason to write in another way."""
    store = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")._tracking_client.store
    run_id = new_run(store)
    writer = PointWriter(store)
    if not at_first:
        writer.write(run_id, [("loss", 1.0, 1, 1)])

    @sqlalchemy.event.listens_for(store.engine, "before_cursor_execute", retval=True)
    def impatient(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> Any:
        return statement.replace("busy_timeout = 20000", "busy_timeout = 10"), parameters

    caplog.clear()
    with sqlite3.connect(tmp_path / "mlflow.db") as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(MlflowException, match="database is locked") as raised:
            writer.write(run_id, [("loss", 2.0, 2, 2)])
        other.rollback()
    fault = fault_of(raised.value, run_id)
    assert fault.kind is FaultKind.TRANSIENT
    assert len(fault.reason) < 100
    assert not caplog.messages
    writer.write(run_id, [("loss", 2.0, 2, 2)])
    assert writer._proven
    assert len(rows(store, "metrics", run_id)) == 1 + (not at_first)
    store.engine.dispose()
