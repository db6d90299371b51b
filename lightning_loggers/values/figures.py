"""Figures: matplotlib's as PNG, drawn in the call; plotly's as its own JSON, and as a page that shows it.

A figure is a tree of objects that its owner goes on changing, and matplotlib draws in one thread only: a figure is the
one value that is encoded before the call returns.
"""

import io
import sys
from dataclasses import dataclass
from typing import Any

from lightning_loggers.values.snapshots import (
    Encoded,
    Ready,
    Snapshot,
    as_path,
    existing_file,
    origins,
    require,
    unsuitable,
)

SUFFIXES = (".png", ".jpg", ".jpeg", ".svg", ".pdf", ".html")
ACCEPTED = "a matplotlib figure or axes, `matplotlib.pyplot` itself, a plotly figure, or a figure file's path"


@dataclass(frozen=True, slots=True)
class _Plotly:
    json: str

    @property
    def size_bytes(self) -> int:
        return len(self.json)

    def encode(self) -> Encoded:
        import plotly.io

        page = plotly.io.from_json(self.json, skip_invalid=True).to_html(
            include_plotlyjs="cdn", div_id="figure", full_html=True
        )
        return Encoded([("figure.html", page.encode()), ("figure.json", self.json.encode())])


def snapshot(value: Any, identifier: str, *, dpi: float | str = "figure", close: bool = False) -> Snapshot:
    """Draw a matplotlib figure, or take a plotly figure's JSON.

    Args:
        value: See :data:`ACCEPTED`.
        identifier: Its identifier, for messages.
        dpi: Dots per inch, for matplotlib.
        close: Whether a matplotlib figure is closed afterwards, which frees its memory.

    Raises:
        UnsuitableValueError: If it is none of these.
    """
    path = as_path(value)
    if path is not None:
        return existing_file("figure", identifier, path, SUFFIXES)
    known = origins(value)
    if getattr(value, "__name__", "") in {"matplotlib.pyplot", "pylab"}:
        value, known = value.gcf(), frozenset({"matplotlib"})
    if "plotly" in known and hasattr(value, "to_json"):
        require("plotly", "plotly>=5", "media", f"log_figure({identifier!r})")
        return _Plotly(str(value.to_json()))
    if not hasattr(value, "savefig"):  # axes, and what wraps a figure, such as seaborn's grids
        inner = getattr(value, "figure", None)
        value = inner if hasattr(inner, "savefig") else getattr(value, "fig", None)
    if not hasattr(value, "savefig"):
        raise unsuitable("figure", identifier, f"a value of {', '.join(sorted(known))}", ACCEPTED)
    content = io.BytesIO()
    value.savefig(content, format="png", dpi=dpi)
    pyplot: Any = sys.modules.get("matplotlib.pyplot")
    if close and pyplot is not None:
        pyplot.close(value)
    return Ready(Encoded([("figure.png", content.getvalue())]))
