"""Progress bars: shown to a person at a terminal or notebook, silent in pipes and CI."""

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lightning_loggers.journal.reader import Position

if TYPE_CHECKING:
    from lightning_loggers.delivery.hosts import Host

_SHOW_AFTER_S = 0.5


def is_interactive() -> bool:
    """Whether somebody watches: standard error is a terminal or a notebook's, and this is no CI."""
    if os.environ.get("CI"):
        return False
    if "ipykernel" in sys.modules:
        return importlib.util.find_spec("ipywidgets") is not None  # which rich needs there
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False


@contextmanager
def delivery_bar(
    host: "Host", ends: Mapping[str, Position]
) -> Iterator[Callable[[Mapping[str, Position]], object] | None]:
    """A bar for the wait at the end of a run; appears only if the wait takes longer than half a second.

    Args:
        host: Who delivers.
        ends: What is to be reached.

    Yields:
        A function that takes the cursors, or ``None`` where nobody watches.
    """
    if not is_interactive():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    state = host.state()
    start = dict(state.cursors) if state is not None else {}
    total = _distance(start, ends)
    begun = time.monotonic()
    bar = Progress(
        TextColumn("Delivering the last records"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("deliver", total=max(total, 1))
    shown = False

    def update(cursors: Mapping[str, Position]) -> None:
        nonlocal shown
        if not shown and time.monotonic() - begun > _SHOW_AFTER_S:
            bar.start()
            shown = True
        bar.update(task, completed=total - _distance(cursors, ends))

    try:
        yield update
    finally:
        if shown:
            bar.stop()


def _distance(cursors: Mapping[str, Position], ends: Mapping[str, Position]) -> int:
    """Bytes to go; a whole segment counts as what its end says, which is near enough for a bar."""
    total = 0
    for stream, end in ends.items():
        at = cursors.get(stream, Position())
        total += end.offset if at.segment < end.segment else max(end.offset - at.offset, 0)
    return total
