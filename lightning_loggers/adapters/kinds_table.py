"""The table of kinds by tracker in docs/kinds.md, made of the adapters' own tables.

``python -m lightning_loggers.adapters.kinds_table docs/kinds.md`` writes it anew.
"""

import sys
from pathlib import Path

from lightning_loggers.adapters.registry import KNOWN, adapter_class
from lightning_loggers.records import Kind

BEGIN = "<!-- table of kinds: begin -->"
END = "<!-- table of kinds: end -->"
_TITLES = {
    "mlflow": "MLflow",
    "tensorboard": "TensorBoard",
    "csv": "CSV",
    "console": "Console",
    "memory": "Memory",
    "wandb": "W&B",
    "comet": "Comet",
    "neptune": "Neptune",
}
_RESERVED = {
    Kind.STATUS,
    Kind.SYSTEM,
    Kind.FLOPS_PB,
    Kind.FLOPS_PE,
    Kind.EXECUTION_TIME,
    Kind.CARBON,
    Kind.PROV_DOCUMENTS,
}


def kinds_table() -> str:
    """The table, as Markdown: a section a tracker, a row a kind."""
    sections = []
    for name in sorted(KNOWN, key=lambda name: list(_TITLES).index(name) if name in _TITLES else len(_TITLES)):
        kinds = adapter_class(name).capabilities.kinds
        rows = [
            f"| {kind.value} | {_cell(kinds.get(kind, 'kept in the journal only'))} |"
            for kind in Kind
            if kind not in _RESERVED
        ]
        sections.append(
            "\n".join([f"### {_TITLES.get(name, name)}", "", "| kind | stored as |", "| --- | --- |", *rows])
        )
    return "\n\n".join(sections)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def write(path: Path) -> None:
    """Put the table between the marks of a page."""
    page = path.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n\n{kinds_table()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
