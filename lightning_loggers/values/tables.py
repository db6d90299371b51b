"""Tables: Parquet where pyarrow is installed, else JSON with ``columns`` and ``data`` (rows)."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_loggers.errors import UnsuitableValueError
from lightning_loggers.records import Record
from lightning_loggers.values.metrics import free_name
from lightning_loggers.values.plain import plain_json
from lightning_loggers.values.snapshots import (
    Content,
    Encoded,
    Snapshot,
    as_path,
    existing_file,
    is_installed,
    unsuitable,
)

SUFFIXES = (".csv", ".tsv", ".json", ".parquet")
ACCEPTED = (
    "a pandas, polars or pyarrow table, a mapping of columns, a list of mappings, a list of rows with columns=..., a "
    "2-D array, or a table file's path"
)

Columns = dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class _Table:
    columns: Columns | None
    arrow: Any
    size_bytes: int
    frame: Any = None

    def encode(self) -> Encoded:
        notes: list[tuple[str, str]] = []
        table, columns = self.arrow, self.columns
        if table is None and is_installed("pyarrow"):
            table = _arrow_of_frame(self.frame)
        if table is None and self.frame is not None:
            columns = _columns_of_frame(self.frame)
        if table is None and is_installed("pyarrow"):
            table = _arrow_of(columns or {}, notes)
        if table is not None:
            import pyarrow.parquet

            content = io.BytesIO()
            pyarrow.parquet.write_table(table, content)
            files: list[tuple[str, Content]] = [("table.parquet", content.getvalue())]
        else:
            files = [("table.json", json.dumps(as_json(columns or {})).encode())]
        return Encoded(files, notes=notes)


def snapshot(value: Any, identifier: str, *, columns: Sequence[Any] | None = None) -> Snapshot:
    """Check a table and copy it.

    Args:
        value: See :data:`ACCEPTED`.
        identifier: Its identifier, for messages.
        columns: Names of the columns, for a list of rows or an array.

    Raises:
        UnsuitableValueError: If it is none of what is accepted, or its rows differ in length.
    """
    path = as_path(value)
    if path is not None:
        return existing_file("table", identifier, path, SUFFIXES)
    if hasattr(value, "to_arrow") and hasattr(value, "estimated_size"):  # polars; Arrow tables never change
        return _Table(None, value.to_arrow(), int(value.estimated_size()))
    if hasattr(value, "schema") and hasattr(value, "column_names") and hasattr(value, "nbytes"):
        return _Table(None, value, 0)
    if hasattr(value, "iloc") and hasattr(value, "columns"):  # pandas
        return _Table(None, None, int(value.memory_usage(deep=False).sum()), value.copy())
    try:
        made = _columns(value, columns)
    except UnsuitableValueError as error:
        raise unsuitable("table", identifier, str(error), ACCEPTED) from None
    return _Table(made, None, sum(64 * len(column) for column in made.values()))


def _columns(value: Any, names: Sequence[Any] | None) -> Columns:
    if isinstance(value, Mapping):
        if "columns" in value and "data" in value and names is None:
            return _columns(value["data"], value["columns"])
        made = {str(name): _listed(column) for name, column in value.items()}
        lengths = {name: len(column) for name, column in made.items()}
        if len(set(lengths.values())) > 1:
            raise UnsuitableValueError(f"columns of different lengths, {lengths}")
        return made
    rows = _listed(value)
    if rows and all(isinstance(row, Mapping) for row in rows):
        keys = list(dict.fromkeys(key for row in rows for key in row))
        return {str(key): [row.get(key) for row in rows] for key in keys}
    widths = {len(row) for row in rows if isinstance(row, list | tuple)}
    if not all(isinstance(row, list | tuple) for row in rows) or len(widths) > 1:
        raise UnsuitableValueError(f"a {type(value).__name__} whose rows differ in length or are none")
    width = widths.pop() if widths else len(names or [])
    if names is not None and len(names) != width:
        raise UnsuitableValueError(f"rows of {width} and {len(names)} names of columns")
    titles = [str(name) for name in (names if names is not None else range(width))]
    return {title: [row[index] for row in rows] for index, title in enumerate(titles)}


def _listed(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [row.tolist() if getattr(row, "ndim", None) and hasattr(row, "tolist") else row for row in value]
    if hasattr(value, "tolist"):
        listed = value.tolist()
        if isinstance(listed, list):
            return listed
    raise UnsuitableValueError(f"a {type(value).__name__}")


# ---------------------------------------------------------------------- in the background, and when delivering


def _arrow_of_frame(frame: Any) -> Any:
    """A pandas frame as an Arrow table, with its index if that says anything; ``None`` where it does not go."""
    if frame is None:
        return None
    import pyarrow

    try:
        return pyarrow.Table.from_pandas(frame)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):  # columns of several types, or of one name
        return None


def _columns_of_frame(frame: Any) -> Columns:
    made: Columns = {}
    for index, name in enumerate(frame.columns):
        column = frame.iloc[:, index]
        cells = column.astype(object).where(column.notna(), None).tolist()
        made[free_name(str(name), made)] = cells
    return made


def _arrow_of(columns: Columns, notes: list[tuple[str, str]]) -> Any:
    """Columns as an Arrow table; one whose values are of several types becomes text."""
    import pyarrow

    made = {}
    for name, values in columns.items():
        try:
            made[name] = pyarrow.array([_scalar(value) for value in values])
        except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
            texts = [None if value is None else str(value) for value in values]
            made[name] = pyarrow.array(texts, pyarrow.string())
            notes.append((f"mixed {name}", f"Column {name!r} of a table holds values of several types: kept as text."))
    return pyarrow.table(made)


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) in {None, 0} else value


def as_json(columns: Columns) -> dict[str, Any]:
    """Columns as W&B, MLflow and pandas (``orient="split"``) say them."""
    names = list(columns)
    rows = zip(*columns.values(), strict=True) if names else ()
    return {"columns": names, "data": [[_plain_cell(cell) for cell in row] for row in rows]}


def _plain_cell(cell: Any) -> Any:
    if isinstance(cell, float) and cell != cell:  # noqa: PLR0124 - NaN
        return None
    if hasattr(cell, "isoformat"):
        return cell.isoformat()
    return plain_json(cell)


def table_of(record: Record, files: Sequence[Path]) -> dict[str, Any] | None:
    """A table record as ``{"columns": [...], "data": [[...]]}``, wherever its rows are.

    Args:
        record: A record of kind ``table``.
        files: Its files.

    Returns:
        The table; ``None`` for a file of the user that is neither Parquet nor of that JSON.

    Raises:
        ImportError: If the rows are in a Parquet file and pyarrow is not installed here.
    """
    value = record.value
    if value is None and len(files) == 1 and files[0].suffix == ".json":
        value = json.loads(files[0].read_bytes())
    elif value is None and len(files) == 1 and files[0].suffix == ".parquet":
        import pyarrow.parquet

        return as_json(pyarrow.parquet.read_table(files[0]).to_pydict())
    if isinstance(value, Mapping) and isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):
        return {"columns": value["columns"], "data": value["data"]}
    return None
