"""(a) What a log call costs the training thread, beside encoding its record and one ``os.write``; (b) its growth."""

import os
import resource
import tempfile
import time
from pathlib import Path

import msgspec

from benchmarks.measure import interleaved
from lightning_loggers import MLFlowLogger
from lightning_loggers.records import Record


def cost(repeats: int, number: int) -> list[str]:
    """A table of ours beside the floor, 5 and 100 metrics."""
    encode = msgspec.json.Encoder().encode
    rows = [
        "| call | microseconds a call, median (low to high) | times the floor | times encoding |",
        "| --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for count in (5, 100):
            metrics = {f"metric_{index}": 0.123456789 * index for index in range(count)}
            fd = os.open(Path(folder) / "floor.jsonl", os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_TRUNC)
            logger = MLFlowLogger("cost", save_dir=folder, delivery="offline")

            def floor(fd: int = fd, metrics: dict[str, float] = metrics) -> None:
                os.write(fd, encode(Record(time.time_ns(), "metric", 5, metrics)))

            def encoding(metrics: dict[str, float] = metrics) -> None:
                encode(Record(time.time_ns(), "metric", 5, metrics))

            def ours(logger: MLFlowLogger = logger, metrics: dict[str, float] = metrics) -> None:
                logger.log_metrics(metrics, 5)

            calls = {"encode": encoding, "encode + os.write (floor)": floor, "log_metrics": ours, "save": logger.save}
            found = interleaved(calls, repeats, number)
            base, encoded = found["encode + os.write (floor)"].median, found["encode"].median
            for name, seconds in found.items():
                rows.append(
                    f"| {name}, {count} metrics | {seconds.microseconds()} | {seconds.median / base:.2f} "
                    f"| {seconds.median / encoded:.2f} |"
                )
            os.close(fd)
            logger._finalized_at = logger._writer.recorded if logger._writer else 0
            logger.close()
    return rows


def growth(calls: int) -> list[str]:
    """Cost of the last tenth of the calls over the first, and memory, with nothing listening."""
    with tempfile.TemporaryDirectory() as folder:
        logger = MLFlowLogger("growth", tracking_uri="http://127.0.0.1:9", save_dir=folder, finalize_timeout_s=0)
        metrics = {f"metric_{index}": 0.123456789 * index for index in range(5)}
        for step in range(2000):
            logger.log_metrics(metrics, step)
        time.sleep(8)  # the delivery thread has imported mlflow by now
        tenth = calls // 10
        seconds, before = [], _resident_bytes()
        for part in range(10):
            begun = time.perf_counter()
            for step in range(part * tenth, (part + 1) * tenth):
                logger.log_metrics(metrics, step)
            seconds.append(time.perf_counter() - begun)
        grown = _resident_bytes() - before
        logger.finalize("success")
        logger.close()
    first, last = seconds[0] / tenth * 1e6, seconds[-1] / tenth * 1e6
    return [
        f"{calls:,} calls of 5 metrics with the server down: first tenth {first:.2f} us a call, last tenth "
        f"{last:.2f} us (ratio {last / first:.2f}); resident memory grew by {grown / 2**20:.1f} MiB "
        f"(peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:.0f} MiB)."
    ]


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
