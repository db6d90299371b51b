"""What many runs and many ranks cost: one server under 16 runs, a follower over many folders, merging over ranks."""

import contextlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import suite
from benchmarks.postgres import binaries, postgres
from lightning_loggers.delivery.merging import RankMerger
from lightning_loggers.delivery.relay import Relay
from lightning_loggers.journal.reader import Entry, Position
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.notices import Notices
from lightning_loggers.records import RankRules, Record, RunSpec, encode_line

_TRAIN = """
import json, sys, threading
from lightning_loggers import MLFlowLogger
uri, save_dir, number, runs, steps = json.loads(sys.argv[1])

def train(run):
    logger = MLFlowLogger("crowd", f"{number}-{run}", tracking_uri=uri, save_dir=save_dir, finalize_timeout_s=300)
    for step in range(steps):
        logger.log_metrics({f"metric_{key}": key + step / 7 for key in range(5)}, step)
    logger.finalize("success")
    assert not logger.stats.pending, logger.stats
    logger.close()

threads = [threading.Thread(target=train, args=(run,)) for run in range(runs)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def table(*, quick: bool) -> list[str]:
    """What is measured, a line each."""
    lines = ["| what | figure |", "| --- | --- |"]
    for label, points_s, points, runs in crowds(quick=quick):
        lines.append(
            f"| {runs} runs at once, {points:,} points, MLflow's server on {label} | {points_s:,.0f} points a second |"
        )
    number = 10 if quick else 1000
    share, mib = follower(number, 2.0 if quick else 20.0)
    lines.append(
        f"| `sync --follow`, {number:,} runs with nothing new, a look every 2 s | {share:.1%} of a core, {mib:.0f} MiB |"
    )
    lines += [
        f"| merging steps of 5 metrics over {ranks} ranks | {merging(ranks, 200 if quick else 2000):,.0f} records a second |"
        for ranks in (8, 64)
    ]
    records_s, mib_s = relayed(500 if quick else 100_000)
    lines.append(
        f"| a rank's journal sent to rank 0 through the job's store (loopback, both ends in one process) "
        f"| {records_s:,.0f} records, {mib_s:,.1f} MiB a second |"
    )
    metrics = {f"metric_{key}": key + 1 / 7 for key in range(5)}
    lines.append(
        f"| a record of 5 metrics in the journal | {len(encode_line(Record(time.time_ns(), 'metric', 1000, metrics)))} bytes |"
    )
    return lines


def crowds(*, quick: bool) -> Iterator[tuple[str, float, int, int]]:
    """Store, points a second, points and runs: from the first process's start until all are delivered."""
    programs = binaries() if importlib.util.find_spec("psycopg2") else None
    processes, runs, steps = (1, 2, 20) if quick else (4, 4, 2000)
    stores = [("SQLite, 2 workers", "", 2)]
    if programs is not None and not quick:
        stores += [("PostgreSQL, 2 workers", "postgres", 2), ("PostgreSQL, 4 workers", "postgres", 4)]
    for label, store, workers in stores:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            database = stack.enter_context(postgres(programs)) if store and programs else None
            uri = stack.enter_context(suite.mlflow_server(workers, database))
            begun = time.perf_counter()
            jobs = [
                subprocess.Popen([sys.executable, "-c", _TRAIN, json.dumps([uri, folder, number, runs, steps])])
                for number in range(processes)
            ]
            codes = [job.wait(600) for job in jobs]
            if any(codes):
                continue
            points = processes * runs * steps * 5
            yield label, points / (time.perf_counter() - begun), points, processes * runs


def follower(runs: int, seconds: float) -> tuple[float, float]:
    """The share of a core and the memory, MiB, of a follower that has nothing to do."""
    from lightning_loggers import CSVLogger

    with tempfile.TemporaryDirectory() as folder:
        for number in range(runs):
            logger = CSVLogger(folder, name=f"study-{number // 100}", delivery="offline")
            for step in range(20):
                logger.log_metrics({"loss": 1 / (step + 1)}, step)
            logger.finalize("success")
            logger.close()
        command = [sys.executable, "-m", "lightning_loggers", "sync", folder]
        subprocess.run(command, check=True, capture_output=True)
        process = subprocess.Popen([*command, "--follow"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(5)  # it has started
            before = _cpu_s(process.pid)
            time.sleep(seconds)
            used = _cpu_s(process.pid) - before
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        finally:
            process.kill()
            process.wait()
    return used / seconds, pages * resource.getpagesize() / 2**20


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def merging(ranks: int, steps: int) -> float:
    """Records a second that become points over all ranks, on one core."""
    merger = RankMerger(RankRules(tuple(range(ranks)), {}, "mean", 10.0))
    feeds = {
        f"rank{rank}": [
            Entry(
                Record(step, "metric", step, {f"metric_{key}": key + step / 7 + rank for key in range(5)}),
                Position(0, step + 1),
            )
            for step in range(steps)
        ]
        for rank in range(ranks)
    }
    begun = time.perf_counter()
    given = 0
    for start in range(0, steps, 100):
        for stream, entries in feeds.items():
            part = entries[start : start + 100]
            merger.feed(stream, part, part[-1].end, 0.0, live=True)
        given += len(merger.take(0.0))
    assert given >= steps - 100
    return ranks * steps / (time.perf_counter() - begun)


def relayed(records: int) -> tuple[float, float]:
    """Records of 5 metrics, and MiB, a second that come from another node's rank to rank 0."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as folder:
        notices, run_dirs = Notices(), [Path(folder) / node / "e" / "v" for node in ("node0", "node1")]
        run = RunSpec("u" * 32, "e", "v", "memory", {}, RankRules((0, 1)))
        writers, relays = [], []
        for rank, run_dir in enumerate(run_dirs):
            writers.append(
                JournalWriter(run_dir / "journal", run, rank=rank, normalise_metrics=lambda found: (found, []))
            )
            relays.append(
                Relay(
                    run_dir, rank, job=lambda: "run/1", ranks=lambda: (0, 1), notices=notices, find_store=lambda: store
                )
            )
        writers[0].append_metrics({"loss": 1.0}, 0)
        for step in range(records):
            writers[1].append_metrics({f"metric_{key}": key + step / 7 for key in range(5)}, step)
        writers[1].flush()
        sent, copied = (run_dir / "journal" / "rank1.jsonl" for run_dir in reversed(run_dirs))
        begun = time.perf_counter()
        for relay in relays:
            relay.start()
        size = sent.stat().st_size
        while not copied.exists() or copied.stat().st_size < size:
            if time.perf_counter() - begun > 300:
                raise RuntimeError("The ranks' journals did not come together.")
            time.sleep(0.01)
        seconds = time.perf_counter() - begun
        relays[1].finish(10.0)
        for writer, relay in zip(writers, relays, strict=True):
            writer.close()
            relay.close()
            relay.join(10.0)
    return records / seconds, size / 2**20 / seconds
