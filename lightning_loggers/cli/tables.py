"""Tables of runs, for people."""

from collections.abc import Iterable, Sequence

from lightning_loggers.cli import console


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; in a pipe it is as wide as it needs to be."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    cells = [[console.printable(cell) for cell in row] for row in rows]
    for number, column in enumerate(columns):
        numeric = all(row[number].replace(",", "").isdigit() for row in cells) and bool(cells)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    width = None if console.is_terminal() else 1000
    Console(width=width, highlight=False).print(table)


def age(seconds: float | None) -> str:
    """A duration as a person says it.

    >>> age(None), age(42.4), age(7260), age(200000)
    ('', '42 s', '2.0 h', '2.3 d')
    """
    if seconds is None:
        return ""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}" if size == 1 else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.1f} d"
