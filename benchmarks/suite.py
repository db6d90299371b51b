"""Runs the measurements, each in a process of its own, in turn, and puts them into tables and a picture."""

import contextlib
import importlib.util
import itertools
import json
import math
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.measure import percentiles
from benchmarks.rows import BY_NAME, CONTROL, FLOOR, FLOOR_ROW, OURS, ROWS, Row

STORES: Sequence[tuple[str, int | None]] = (
    ("SQLite file", 0),
    ("server, one worker", 1),
    ("server, default workers", None),
)
MLFLOW = ("ours, MLFlowLogger, SQLite", "ours, MLFlowLogger, server")
NOTHING_LISTENS = "http://127.0.0.1:9"

_CALM = 0.03
_FEWEST_CALM = 4
_OF_CALM = (
    "The ratio is the median, with its standard error and the quartiles in brackets, of the turns in calm: those whose two "
    f"neighbours are at most {_CALM:.0%} apart (of all, where these are fewer than {_FEWEST_CALM})."
)


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    repeats: int = 5
    calls: int = 5_000
    points: int = 50_000
    epochs: int = 15
    turns: int = 8
    busy_s: float = 3.0  # the longest pause between two deliveries
    settle_s: float = 3.0
    records: int = 100_000
    images: int = 60
    burst: int = 32
    slow_points: int = 2_500
    stores: int = 3
    rows: Sequence[Row] = field(default_factory=lambda: ROWS)


QUICK = Size(
    repeats=1, calls=50, points=500, epochs=1, turns=1, busy_s=0.5, settle_s=0.1, records=2_000, images=2, burst=2, slow_points=100, stores=1,
    rows=[BY_NAME[name] for name in ("no-op logger", FLOOR_ROW, "Lightning CSVLogger", "ours, CSVLogger")],
)  # fmt: skip


def installed(rows: Sequence[Row]) -> list[Row]:
    """Those whose library is here."""
    return [row for row in rows if importlib.util.find_spec(row.needs) is not None]


def run_one(name: str, given: dict[str, Any]) -> dict[str, Any] | None:
    """One measurement; ``None`` if it failed, which is told."""
    # The answer goes to a file: a pipe would be full before anybody reads it, and services left behind would hold it.
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-c", _START.format(fd=answer.fileno()), name, json.dumps(given)],
            stdout=said, stderr=said, pass_fds=[answer.fileno()], start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])},
        )  # fmt: skip
        try:
            process.wait(600)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):  # services that an SDK left behind
            os.killpg(process.pid, signal.SIGKILL)
        answer.seek(0)
        text = answer.read()
        if not text:
            said.seek(0)
            print(f"{name} {given}: failed\n{said.read().decode()[-1500:]}", file=sys.stderr)
            return None
    found: dict[str, Any] = json.loads(text)
    return found


_START = "import os, sys; os.dup2({fd}, 3); from benchmarks.one import main; main()"


@contextlib.contextmanager
def mlflow_server(workers: int | None, database: str | None = None) -> Iterator[str]:
    """A real server on loopback, with the default number of workers if none is given, by default on SQLite."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        with (Path(folder) / "log").open("wb") as log:
            server = subprocess.Popen(
                [
                    sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
                    "--backend-store-uri", database or f"sqlite:///{folder}/server.db",
                    "--artifacts-destination", f"{folder}/artifacts", "--serve-artifacts",
                    *([] if workers is None else ["--workers", str(workers)]),
                ],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        uri = f"http://127.0.0.1:{port}"
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=1):
                break
            time.sleep(0.1)
        try:
            yield uri
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def in_turn(name: str, given: dict[str, dict[str, Any]], repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Every measurement ``repeats`` times, all of them in turn."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for _ in range(repeats):
        for label, arguments in given.items():
            result = run_one(name, arguments)
            if result is not None:
                found[label].append(result)
    return found


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _middle(values: Sequence[float], form: str) -> str:
    low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    error = math.sqrt(math.pi / 2) * (high - low) / 1.349 / math.sqrt(len(values))  # of a median, of normal errors
    return f"{statistics.median(values):{form}} ± {error:{form}} ({low:{form}} to {high:{form}})"


def _beside(off: Sequence[float], on: Sequence[float], where: Sequence[bool]) -> list[float]:
    """Each of ``on`` beside the mean of those before and after it."""
    pairs = zip(on, off, off[1:], where, strict=False)
    return [2 * value / (before + after) for value, before, after, chosen in pairs if chosen]


def _calm(off: Sequence[float]) -> list[bool]:
    """Whether the machine was the same before and after a turn, whatever the turn itself took."""
    return [abs(after - before) <= _CALM * (after + before) / 2 for before, after in itertools.pairwise(off)]


def _in_calm(silent: Sequence[Sequence[float]]) -> tuple[list[list[bool]], str]:
    """Which turns of each process count, all if too few were in calm; and how many were, for a table."""
    calm = [_calm(off) for off in silent]
    turns, number = sum(map(len, calm)), sum(map(sum, calm))
    if number < _FEWEST_CALM:
        calm = [[True] * len(flags) for flags in calm]
    return calm, f"{number} of {turns}"


@dataclass
class Report:
    """Tables so far, and what the picture shows."""

    lines: list[str] = field(default_factory=list)
    bars: dict[str, tuple[str, float]] = field(default_factory=dict)

    def table(self, title: str, text: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table."""
        self.lines += [f"## {title}", "", text, "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
        self.lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
        print("\n".join(self.lines[-len(rows) - 7 :]), flush=True)


def calls(report: Report, size: Size, uri: str) -> None:
    """(a)."""
    rows = installed(size.rows)
    for count in (5, 100):
        given = {row.name: {"row": row.name, "count": count, "number": size.calls, "uri": uri} for row in rows}
        found = in_turn("calls", given, size.repeats)
        medians = {
            name: [percentiles(r["seconds"])["median"] * 1e6 for r in results] for name, results in found.items()
        }
        lines = []
        for name, values in medians.items():
            every = [seconds * 1e6 for result in found[name] for seconds in result["seconds"]]
            tail = percentiles(every)
            keeps = {True: "yes", False: "no", None: ""}[BY_NAME[name].keeps]
            median = statistics.median(values)
            times = [
                percentiles(r["seconds"])["median"] / percentiles(r["floor"])["median"] for r in found[name]
            ]  # the floor is measured in turn with it, call by call
            lines.append(
                [name, keeps, _spread(values, ".1f"), f"{tail['p99']:,.0f}", f"{tail['longest']:,.0f}", _spread(times, ".1f")]
            )  # fmt: skip
            if count == 5:
                report.bars[name] = (BY_NAME[name].sort, median)
        report.table(
            f"A call of {count} metrics",
            f"`log_metrics` and `save`, microseconds in the training thread; medians of {size.repeats} processes each, in "
            "turn, with the lowest and highest; p99 and longest over all calls. A call every two milliseconds, and the floor's between two.",
            ["logger", "kept after SIGKILL", "median", "p99", "longest", "times the floor"],
            lines,
        )


def delivered(report: Report, size: Size) -> None:
    """(c)."""
    lines = []
    peers = ["Lightning MLFlowLogger, server"] if size.repeats > 1 else []
    for label, workers in STORES[: size.stores]:
        with (
            mlflow_server(workers) if workers != 0 else contextlib.nullcontext("") as uri,
            tempfile.TemporaryDirectory() as folder,
        ):
            where = uri or f"sqlite:///{folder}/bare.db"
            ours = MLFLOW[0 if workers == 0 else 1]
            given = {
                "bare": {"row": "bare log_batch", "points": size.points, "uri": where},
                "ours": {"row": ours, "points": size.points, "uri": where},
            }
            if workers != 0:
                given |= {name: {"row": name, "points": size.slow_points, "uri": where} for name in peers}
            found = in_turn("delivered", given, min(size.repeats, 3))
        speeds = {name: [given[name]["points"] / r["seconds"] for r in results] for name, results in found.items()}
        if not {"bare", "ours"} <= speeds.keys():
            continue
        ratio = statistics.median(speeds["bare"]) / statistics.median(speeds["ours"])
        complete = all(r["complete"] for results in found.values() for r in results)
        theirs = [_spread(speeds[name], ",.0f") for name in peers if name in speeds]
        lines.append(
            [label, _spread(speeds["bare"], ",.0f"), _spread(speeds["ours"], ",.0f"), f"{ratio:.2f}", *(theirs or [""]),
             "yes" if complete else "NO"]
        )  # fmt: skip
    report.table(
        "Delivered to MLflow",
        f"Points a second from the first log call until {size.points:,} points can be read from the tracker, five a call; "
        "bare: `MlflowClient.log_batch` with 1,000 metrics a call.",
        ["store", "bare", "ours", "bare over ours", "Lightning MLFlowLogger", "all there"],
        lines,
    )


def fit(report: Report, size: Size, uri: str) -> None:
    """(d)."""
    names = [
        "logger=False",
        *(row.name for row in installed(size.rows) if row.sort != FLOOR or row.name == "no-op logger"),
    ]
    given = {
        name: {"row": name, "epochs": size.epochs, "turns": size.turns, "settle": size.settle_s, "uri": uri}
        for name in names
    }
    found = in_turn("fit", given, size.repeats)
    lines = []
    for name, results in found.items():
        calm, of_all = _in_calm([r["loop"]["off"] for r in results])
        ratios = {
            part: [ratio for r, flags in zip(results, calm, strict=True) for ratio in _beside(r[part]["off"], r[part]["on"], flags)]
            for part in ("loop", "whole", "computed")
        }  # fmt: skip
        seconds = [taken for r in results for taken in r["loop"]["on"]]
        calls_, others = (
            [part / loop for r in results for part, loop in zip(r[what]["on"], r["loop"]["on"], strict=True)]
            for what in ("calls", "others")
        )
        starts = [r["whole"]["on"][0] - r["whole"]["off"][0] for r in results]
        cells = [_spread(seconds, ".2f"), *(_middle(values, ".3f") for values in ratios.values())]
        parts = [_middle(calls_, ".2%"), _middle(others, ".2%")]
        lines.append([name, *cells, of_all, *parts, _spread(starts, ".1f")])
    report.table(
        "A real training",
        f"`Trainer.fit` of the digits network, {size.epochs} epochs of 45 steps, every step logged "
        "(`log_every_n_steps=1`): seconds of the training loop; its ratio, that of the whole `fit` (with the end, which waits "
        "for delivery) and that of the processor time of all threads in the loop, to `logger=False`. In every process "
        f"{size.turns} fits with the logger, each beside the mean of the one before it and the one after it without. "
        f"{_OF_CALM} Then what the log calls take in the loop, and what other threads of the process compute, of the "
        "loop's time; and how many seconds more than the fit before it the process's first fit with the logger takes, which "
        "has the SDK's start in it.",
        [
            "logger",
            "loop, s",
            "loop, ratio",
            "whole fit, ratio",
            "processor, ratio",
            "calm",
            "log calls",
            "other threads",
            "first fit, s more",
        ],
        lines,
    )


def busy(report: Report, size: Size, uri: str) -> None:
    """(e)."""
    chosen = [
        row for row in installed([*size.rows, CONTROL])
        if row.name in {"no-op logger", CONTROL.name} or (row.sort == OURS and "Memory" not in row.name)
        or row.name in {"Lightning MLFlowLogger, server, `synchronous=False`", "Lightning CSVLogger", "Lightning TensorBoardLogger"}
    ]  # fmt: skip
    given = {
        row.name: {"row": row.name, "seconds": size.busy_s, "turns": size.turns, "settle": size.settle_s, "uri": uri}
        for row in chosen
    }
    found = in_turn("busy", given, size.repeats)
    lines = []
    for name, results in found.items():
        calm, of_all = _in_calm([r["off"] for r in results])
        ratios = [
            1 / ratio for r, flags in zip(results, calm, strict=True)
            for ratio in _beside(r["off"], [done for done, _, _ in r["on"]], flags)
        ]  # fmt: skip
        calls_, others = ([turn[at] for r in results for turn in r["on"]] for at in (1, 2))
        lines.append([name, _middle(ratios, ".3f"), of_all, _middle(calls_, ".2%"), _middle(others, ".2%")])
    report.table(
        "A busy Python loop beside delivery",
        "How much longer pure Python work takes while 1,000 points a second are logged and delivered (two cores, shared "
        f"with the MLflow server where there is one). In every process {size.turns} turns with logging, each beside the mean of "
        f"the one before it and the one after it without. {_OF_CALM} A pure Python loop stands still while another thread "
        "of its process computes in Python: the last two columns are the part of the time that the log calls take, and that other threads compute.",
        ["logger", "ratio", "calm", "log calls", "other threads' processor time"],
        lines,
    )


def startup(report: Report, size: Size, uri: str) -> None:
    """(f)."""
    plain, ours, torch = [], [], ""
    for _ in range(size.repeats * 2):
        for code, times in (("pass", plain), ("import lightning_loggers", ours)):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append((time.perf_counter() - begun) * 1e3)
    torch = subprocess.run(
        [sys.executable, "-c", "import sys, lightning_loggers; print('torch' in sys.modules)"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    lines = [
        ["Python's own start, ms", _spread(plain, ".0f")],
        ["with `import lightning_loggers`, ms", _spread(ours, ".0f")],
        ["torch imported by that", torch],
    ]
    for label, where in (("reachable server", uri), ("nothing listening", NOTHING_LISTENS)):
        given = {label: {"row": MLFLOW[1], "uri": where}}
        for result in in_turn("construction", given, size.repeats).values():
            for part, what in (("construct", "constructing `MLFlowLogger`"), ("first", "its first log call")):
                lines.append([f"{what}, {label}, ms", _spread([r[part] * 1e3 for r in result], ".1f")])
    report.table("Start", "Medians, with the lowest and highest.", ["what", "result"], lines)


def recovery(report: Report, size: Size) -> None:
    """(g)."""
    lines = []
    for label, workers in STORES[: min(size.stores, 2)]:
        with (
            mlflow_server(workers) if workers else contextlib.nullcontext("") as uri,
            tempfile.TemporaryDirectory() as folder,
        ):
            where = uri or f"sqlite:///{folder}/recovery.db"
            results = in_turn("recovery", {label: {"records": size.records, "uri": where}}, min(size.repeats, 3))[label]
        if not results:
            continue
        ratios = [(r["seconds"] - r["start"]) / r["bare"] for r in results]
        lines.append(
            [label, _spread([r["seconds"] for r in results], ".1f"), _spread([r["start"] for r in results], ".1f"),
             _spread([r["bare"] for r in results], ".1f"), _spread(ratios, ".2f")]
        )  # fmt: skip
    report.table(
        "Recovery",
        f"Seconds in which `lightning-loggers sync` delivers {size.records:,} records of one metric, of one record, and bare `log_batch` calls of 1,000 with the same points.",
        ["store", "`sync`, s", "of one record, s", "bare, s", "ratio without that of one record"],
        lines,
    )


def image(report: Report, size: Size, uri: str) -> None:
    """(i)."""
    wanted = {
        "Lightning TensorBoardLogger",
        "Lightning WandbLogger, offline",
        "Lightning MLFlowLogger, server",
        *MLFLOW,
    }
    wanted |= {"ours, journal only", "ours, CSVLogger", "ours, TensorBoardLogger", "ours, WandbLogger, offline"}
    rows = [row for row in installed(size.rows) if row.name in wanted]
    given = {row.name: {"row": row.name, "number": size.images, "burst": size.burst, "uri": uri} for row in rows}
    lines = []
    for name, results in in_turn("image", given, min(size.repeats, 3)).items():
        line = [name]
        for log, copies in (("log", ["copy"]), ("burst", ["copies", "kept"])):
            line.append(_spread([statistics.median(r[log]) * 1e6 for r in results], ",.0f"))
            for copy in copies:
                ratios = [statistics.median(r[log]) / statistics.median(r[copy]) for r in results]
                line.append(_spread(ratios, ".2f"))
        lines.append(line)
    report.table(
        "One image of 512 x 512",
        "Microseconds in the training thread, and the ratio to copying its array of 786,432 bytes: of single images, in "
        f"turn with copies, each after 50 ms of other work; and of {size.burst} one after the other, beside as many copies "
        "into the same memory, and beside copies that are kept, as those of images that wait for their encoding must be.",
        ["logger", "single", "times the copy", "one after the other", "times a copy", "times a copy that is kept"],
        lines,
    )


def picture(report: Report, path: Path) -> None:
    """Draw what a call costs."""
    from matplotlib.figure import Figure

    colours = {"floor": "#9aa5b1", "peer": "#d98c5f", "ours": "#2f7d6d"}
    bars = sorted(((cost, name, sort) for name, (sort, cost) in report.bars.items()), reverse=True)
    figure = Figure(figsize=(9, 0.32 * len(bars) + 1.2), layout="constrained")
    axes = figure.subplots()
    axes.barh([name.replace("`", "") for _, name, _ in bars], [cost for cost, _, _ in bars],
              color=[colours[sort] for _, _, sort in bars])  # fmt: skip
    for index, (cost, _, _) in enumerate(bars):
        axes.text(cost * 1.08, index, f"{cost:,.1f}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(right=max(cost for cost, _, _ in bars) * 4)
    axes.set_xlabel("microseconds of the training thread: log_metrics of 5 metrics, and save")
    axes.tick_params(axis="y", labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
