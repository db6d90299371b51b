"""How long single log calls take while a real MLflow server is killed and comes back."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import percentiles
from lightning_loggers import MLFlowLogger


def _serve(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
                "--backend-store-uri", f"sqlite:///{folder / 'server.db'}",
            ],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            return process
        time.sleep(0.1)


def latencies(delivery: str, seconds: float, down_s: float) -> list[str]:
    """One log call a millisecond for ``seconds``; the server is killed after a third and back ``down_s`` later."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = _serve(folder, port)
        logger = MLFlowLogger(
            "outage", tracking_uri=f"http://127.0.0.1:{port}", save_dir=folder / "runs", delivery=delivery,  # type: ignore[arg-type]
            finalize_timeout_s=120,
        )  # fmt: skip
        logger.log_metrics({"warm": 1.0}, 0)
        logger.wait_for_run(120)  # the SDK is imported and the run made: the steady state of a long run
        taken: list[float] = []
        killed = back = False
        begun = time.perf_counter()
        step = 0
        while (now := time.perf_counter() - begun) < seconds:
            if not killed and now > seconds / 3:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
                killed = True
            if killed and not back and now > seconds / 3 + down_s:
                with (folder / "server.log").open("ab") as log:
                    server = subprocess.Popen(server.args, stdout=log, stderr=log, start_new_session=True)
                back = True
            before = time.perf_counter()
            logger.log_metrics({"loss": 1.0 / (step + 1), "accuracy": 0.5, "lr": 0.1, "norm": 2.0, "epoch": 0.0}, step)
            logger.save()
            taken.append((time.perf_counter() - before) * 1e3)
            step += 1
            while time.perf_counter() - before < 0.001:  # a training step that computes
                pass
        logger.finalize("success")
        stats = logger.stats
        logger.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    found = percentiles(taken)
    return [
        f"| {delivery} | {len(taken):,} | {found['median'] * 1e3:.1f} us | {found['p99'] * 1e3:.1f} us "
        f"| {found['p99.9']:.3f} ms | {found['longest']:.2f} ms | {stats.pending} | {stats.retried} |"
    ]


def table(seconds: float, down_s: float, hosts: Sequence[str] = ("thread", "process")) -> list[str]:
    """Each host."""
    head = [
        "| delivery | calls | median | p99 | p99.9 | longest | pending after finalize | retried |",
        "| --- " * 8 + "|",
    ]
    return [*head, *(line for host in hosts for line in latencies(host, seconds, down_s))]
