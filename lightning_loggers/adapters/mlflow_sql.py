"""MLflow's database without an object for each point: the rows of its own store, in a tenth of its time.

MLflow's store makes an object of SQLAlchemy's for each point, compares it with others and forgets it: 50 to 80 us a
point, most of it under the interpreter lock that a delivery thread shares with training. Here a batch is one
transaction of a few statements: 7 us a point.
"""

import contextlib
import functools
import inspect
import logging
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

Point = tuple[str, float, int, int]
"""Name, value, time in milliseconds, step."""

_COLUMNS = ("run_uuid", "key", "value", "timestamp", "step", "is_nan")
_LATER = ("step", "timestamp", "value")  # what MLflow compares to know which of two points is the latest
_ROWS = 150  # of a statement: older SQLite takes 999 values
_MARKS = {"qmark": "?", "format": "%s", "pyformat": "%s"}  # by the driver's paramstyle (PEP 249)
_DIALECTS = {"sqlite", "postgresql"}  # that know ON CONFLICT
_OLDEST_SQLITE = (3, 24)


class PointWriter:
    """Writes points where MLflow's store writes them.

    Args:
        store: MLflow's tracking store.

    Guarantees:
        - On SQLite and PostgreSQL the rows are those that the store's ``log_batch`` makes of the same points, the
          latest point of each metric included, however often and in whatever order batches are sent.
        - A batch is there as a whole or not at all.
        - Whatever is not as it is known here (other tables, another database, a run that was deleted) is left to
          ``log_batch``: what it does or says of it, holds.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._mark = _mark_of(store)
        self._proven = False
        self._session_options = {"read_only": False} if self._mark and _takes_read_only(store) else {}

    def write(self, run_id: str, points: Sequence[Point]) -> None:
        """Write points of one run, at most MLflow's thousand."""
        with _said_once():
            refused = False
            if self._mark:
                try:
                    if self._written(run_id, points):
                        return
                except Exception:
                    if self._proven:
                        raise
                    refused = True  # it can be anything: MLflow's store says what, or does it
            from mlflow.entities import Metric

            self._store.log_batch(run_id, metrics=[Metric(*point) for point in points], params=[], tags=[])
            if refused:
                self._mark = ""  # what is here does not suit this database; had it been out of order, both had failed

    def _written(self, run_id: str, points: Sequence[Point]) -> bool:
        """Write them directly, unless the run is not there to be written to."""
        rows, latest = self._rows(run_id, points)
        with self._store.ManagedSessionMaker(**self._session_options) as session:
            if not _is_active(session, run_id):
                return False
            connection = session.connection()
            for statement, all_rows in ((_insert, rows), (_upsert_latest, latest)):
                for begin in range(0, len(all_rows), _ROWS):
                    part = all_rows[begin : begin + _ROWS]
                    values = tuple(value for row in part for value in row)
                    connection.exec_driver_sql(statement(len(part), self._mark), values)
        self._proven = True
        return True

    def _rows(self, run_id: str, points: Sequence[Point]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """The rows of all points, and of the latest of each metric; those in the order in which MLflow locks them."""
        rows: list[tuple[Any, ...]] = []
        latest: dict[str, tuple[Any, ...]] = {}
        order: dict[str, tuple[int, int, float]] = {}
        for key, value, at, step in points:
            is_nan, stored = (False, value) if math.isfinite(value) else self._store.sanitize_metric_value(value)
            row = (run_id, key, stored, at, step, is_nan)
            rows.append(row)
            if key not in order or (step, at, stored) > order[key]:
                order[key], latest[key] = (step, at, stored), row
        return rows, [latest[key] for key in sorted(latest)]


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """MLflow's session logs each fault of a database with its statement, besides raising it: delivery tells it once."""
    logger, thread = logging.getLogger("mlflow.store.db.utils"), threading.get_ident()

    def is_not_of_here(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(is_not_of_here)
    try:
        yield
    finally:
        logger.removeFilter(is_not_of_here)


def _mark_of(store: Any) -> str:
    """How the driver of the store's database marks a value in a statement; empty where that is not known here."""
    if "mlflow.store.tracking.sqlalchemy_store" not in sys.modules:
        return ""  # a store of another kind; with mlflow-skinny there may be no SQLAlchemy
    try:
        from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlRun
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        kind, dialect = type(store), store.engine.dialect
        known = (
            all(
                getattr(kind, name) is getattr(SqlAlchemyStore, name)
                for name in ("log_batch", "_log_metrics", "sanitize_metric_value")
            )
            and all(
                table.name == name and {column.name for column in table.columns} == set(_COLUMNS)
                for table, name in ((SqlMetric.__table__, "metrics"), (SqlLatestMetric.__table__, "latest_metrics"))
            )
            and {column.name for column in SqlLatestMetric.__table__.primary_key} == {"key", "run_uuid"}
            and hasattr(SqlRun, "lifecycle_stage")
            and dialect.name in _DIALECTS
            and (dialect.name != "sqlite" or dialect.dbapi.sqlite_version_info >= _OLDEST_SQLITE)
        )
        return _MARKS.get(dialect.paramstyle, "") if known else ""
    except Exception:  # noqa: BLE001 - seam: another version of MLflow or SQLAlchemy, or another store
        return ""


def _takes_read_only(store: Any) -> bool:
    return "read_only" in inspect.signature(store.ManagedSessionMaker).parameters


def _is_active(session: Any, run_id: str) -> bool:
    from mlflow.store.tracking.dbmodels.models import SqlRun

    found = session.query(SqlRun.lifecycle_stage).filter(SqlRun.run_uuid == run_id).scalar()
    return bool(found == "active")


@functools.cache
def _insert(rows: int, mark: str) -> str:
    return f"{_insert_into('metrics', rows, mark)} ON CONFLICT DO NOTHING"


@functools.cache
def _upsert_latest(rows: int, mark: str) -> str:
    new = ", ".join(f"{column} = excluded.{column}" for column in _COLUMNS[2:])
    ours, theirs = (", ".join(f"{table}.{column}" for column in _LATER) for table in ("excluded", "latest_metrics"))
    conflict = f"ON CONFLICT (key, run_uuid) DO UPDATE SET {new} WHERE ({ours}) > ({theirs})"
    return f"{_insert_into('latest_metrics', rows, mark)} {conflict}"


def _insert_into(table: str, rows: int, mark: str) -> str:
    row = f"({', '.join([mark] * len(_COLUMNS))})"
    return f"INSERT INTO {table} ({', '.join(_COLUMNS)}) VALUES {', '.join([row] * rows)}"  # noqa: S608 - no values
