"""``python -m benchmarks [PART ...] [--quick] [--write FILE]``: what logging costs on this machine, as Markdown."""

import argparse
import dataclasses
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import in_trainer, log_path, merging, outage, ranks, scaling, suite

_MARK = "<!-- below: written by `python -m benchmarks --write` -->"


def _above(path: Path) -> str:
    """What people have written into a file, which stays."""
    text = path.read_text() if path.is_file() else ""
    return text.partition(_MARK)[0] + _MARK


def main() -> None:
    """Measure and print."""
    began = time.monotonic()
    parts = (
        "calls",
        "trainer",
        "growth",
        "delivered",
        "fit",
        "busy",
        "startup",
        "recovery",
        "merging",
        "image",
        "outage",
        "ranks",
        "scaling",
    )
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; by default all")
    parser.add_argument("--quick", action="store_true", help="only see that everything runs")
    parser.add_argument("--write", type=Path, help="also write the tables to this file, with a picture beside it")
    parser.add_argument("--repeats", type=int, help="processes for each measurement, in turn; 5 by default")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only loggers whose names contain this")
    given = parser.parse_args()
    for part in given.parts:
        if part not in parts:
            parser.error(f"there is no part {part!r}; choose from {', '.join(parts)}")
    quick, chosen = given.quick, given.parts or parts
    size = suite.QUICK if quick else suite.Size()
    if given.repeats:
        size = dataclasses.replace(size, repeats=given.repeats)
    if given.only:
        rows = [row for row in size.rows if any(text in row.name for text in given.only)]
        size = dataclasses.replace(size, rows=rows)
    report = suite.Report()
    machine = (
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    )
    print(machine, flush=True)

    def paragraph(title: str, lines: list[str]) -> None:
        report.lines += [f"## {title}", "", *lines, ""]
        print("\n".join(report.lines[-len(lines) - 3 :]), flush=True)

    with suite.mlflow_server(1) as uri:
        runs: dict[str, Callable[[], None]] = {
            "calls": lambda: suite.calls(report, size, uri),
            "trainer": lambda: paragraph(
                "A call inside a Trainer", in_trainer.table(*((1, 50) if quick else (15, 20_000)))
            ),
            "growth": lambda: paragraph("Growth", log_path.growth(20_000 if quick else 1_000_000)),
            "delivered": lambda: suite.delivered(report, size),
            "fit": lambda: suite.fit(report, size, uri),
            "busy": lambda: suite.busy(report, size, uri),
            "startup": lambda: suite.startup(report, size, uri),
            "recovery": lambda: suite.recovery(report, size),
            "merging": lambda: paragraph(
                "merge_dicts: times faster than Lightning's", merging.table(3, 5) if quick else merging.table(15, 200)
            ),
            "image": lambda: suite.image(report, size, uri),
            "outage": lambda: paragraph(
                "A server that is killed", outage.table(*((3, 1, ["process"]) if quick else (60, 20)))
            ),
            "ranks": lambda: paragraph(
                "Ranks beside a server that hangs", ranks.table(uri, *((3, 1) if quick else (200, 8)))
            ),
            "scaling": lambda: paragraph("Many runs, many ranks", scaling.table(quick=quick)),
        }
        for part in chosen:
            runs[part]()
    if given.write:
        given.write.parent.mkdir(parents=True, exist_ok=True)
        drawing = given.write.with_suffix(".svg")
        head = [_above(given.write), "", f"Measured on {machine}.", ""]
        if report.bars:
            suite.picture(report, drawing)
            head += [f"![what a log call costs]({drawing.name})", ""]
        given.write.write_text("\n".join([*head, *report.lines]).rstrip() + "\n")
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
