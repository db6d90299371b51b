"""What the steps of four ranks that all log cost, with a tracker that answers and with one that hangs."""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RANKS = 4
CASES = ("no logger", "server answers", "server hangs")
_WORK_S = 0.01


def table(uri: str, steps: int, rounds: int) -> list[str]:
    """Step times by case: rank 0's and the slowest rank's, from ``rounds`` blocks of ``steps`` steps a case, in turn."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # connections are made, and nobody reads or answers
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = {
            "folder": folder,
            "uris": [None, uri, f"http://127.0.0.1:{silent.getsockname()[1]}"],
            "steps": steps,
            "rounds": rounds,
        }
        variables = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(RANKS),
            "OMP_NUM_THREADS": "1",
        }
        jobs = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.ranks", json.dumps(given)],
                env={**os.environ, **variables, "RANK": str(rank)},
                stderr=subprocess.DEVNULL,
            )
            for rank in range(RANKS)
        ]
        codes = [job.wait(900) for job in jobs]
        if any(codes):
            raise RuntimeError(f"A rank of the benchmark failed: {codes}")
        times = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(RANKS)]
    lines = [
        f"| {RANKS} ranks (gloo), each step {_WORK_S * 1e3:.0f} ms of waiting, an all-reduce and `log_metrics` "
        "of 5 metrics on every rank | median | of the blocks | 99 % | longest | times no logger |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for case in CASES:
        blocks = [statistics.median(block) for rank in times for block in rank[case]]
        every = sorted(step for rank in times for block in rank[case] for step in block)
        ratios = [
            statistics.median(block) / statistics.median(plain)
            for rank in times
            for block, plain in zip(rank[case], rank[CASES[0]], strict=True)
        ]
        lines.append(
            f"| {case} | {statistics.median(every) * 1e3:.2f} ms | {min(blocks) * 1e3:.2f} to {max(blocks) * 1e3:.2f} "
            f"| {every[int(len(every) * 0.99)] * 1e3:.2f} ms | {every[-1] * 1e3:.1f} ms "
            f"| {statistics.median(ratios):.3f} |"
        )
    return lines


def _rank(given: dict[str, object]) -> None:
    """One of the processes: all cases in turn, so that what the machine does besides meets all of them."""
    import torch
    import torch.distributed as dist

    from lightning_loggers import LogPolicy, MLFlowLogger

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    folder, uris = Path(str(given["folder"])), given["uris"]
    assert isinstance(uris, list)
    loggers = [
        uri
        and MLFlowLogger(
            "ranks",
            tracking_uri=uri,
            save_dir=str(folder / str(number)),
            finalize_timeout_s=0.5,
            policy=LogPolicy(log_on_workers=-1),
        )
        for number, uri in enumerate(uris)
    ]
    value = torch.ones(1000)
    times: dict[str, list[list[float]]] = {case: [] for case in CASES}
    step = 0
    for turn in range(int(str(given["rounds"])) + 1):
        for case, logger in zip(CASES, loggers, strict=True):
            dist.barrier()
            block = []
            for _ in range(int(str(given["steps"]))):
                start = time.perf_counter()
                time.sleep(_WORK_S)
                dist.all_reduce(value)
                if logger:
                    logger.log_metrics({f"metric_{key}": key + step / 7 for key in range(5)}, step)
                step += 1
                block.append(time.perf_counter() - start)
            if turn:  # the first time round everything starts
                times[case].append(block)
    (folder / f"{rank}.json").write_text(json.dumps(times))
    dist.barrier()
    for logger in loggers:
        if logger:
            logger.finalize("success")
    dist.barrier()
    os._exit(0)  # the loggers' exit would wait for a server that hangs


if __name__ == "__main__":
    _rank(json.loads(sys.argv[1]))
