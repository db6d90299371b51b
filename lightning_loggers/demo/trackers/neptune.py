"""Neptune's offline folder, read back with the SDK's own queue."""

import json
import shlex
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_loggers.adapters.neptune_fields import OTHER
from lightning_loggers.demo.readback import EXPERIMENT, DemoTracker, ReadRun
from lightning_loggers.demo.tally import Point

_PREFIX = "training/"
_HYPERPARAMS = f"{_PREFIX}hyperparams/"


class _Neptune(DemoTracker):
    name = "neptune"
    label = "Neptune's offline folder"

    @override
    def make(self, save_dir: Path, tracking_uri: str | None, finalize_timeout_s: float) -> Any:
        from lightning_loggers.loggers.neptune import NeptuneLogger

        return NeptuneLogger(
            project=f"demo/{EXPERIMENT}", mode="offline", save_dir=save_dir, finalize_timeout_s=finalize_timeout_s
        )

    @override
    def read(self, logger: Any) -> ReadRun:
        run_dir = Path(logger.log_dir)
        (folder,) = (run_dir / ".neptune" / "offline").iterdir()
        metrics: dict[str, list[Point]] = defaultdict(list)
        params: dict[str, str] = {}
        files = []
        status = ""
        for operation in _operations(folder):
            path, kind = "/".join(operation.path), type(operation).__name__
            if kind == "LogFloats":
                points = [(int(item.step), float(item.value)) for item in operation.values]
                metrics[path.removeprefix(_PREFIX)].extend(points)
            elif kind == "LogStrings" and path.endswith(OTHER):  # such as a second point at one step
                items = [json.loads(item.value) for item in operation.values]
                points = [(int(item["step"]), float(item["value"])) for item in items if "value" in item]
                metrics[path.removeprefix(_PREFIX).removesuffix(OTHER)].extend(points)
            elif kind.startswith("UploadFile"):
                files.append(path)
            elif path.startswith(_HYPERPARAMS):
                params[path.removeprefix(_HYPERPARAMS)] = str(operation.value)
            elif path == f"{_PREFIX}status":
                status = f", {operation.value}"
        return ReadRun(
            title=f"run {folder.name.split('__')[1]}{status}",
            params=params,
            metrics=dict(metrics),
            files=sorted(files),
            see=[f"Send it to a server of your own:\n  cd {shlex.quote(str(run_dir))} && neptune sync --offline-only"],
            runs=len([place for place in run_dir.parent.iterdir() if (place / ".neptune").is_dir()]),
        )


def _operations(folder: Path) -> list[Any]:
    from neptune.core.components.queue.disk_queue import DiskQueue
    from neptune.internal.operation import Operation

    queue = DiskQueue(folder, lambda operation: operation.to_dict(), Operation.from_dict, threading.RLock())
    found: list[Any] = []
    try:
        while batch := queue.get_batch(1000):
            found += [element.obj for element in batch]
    finally:
        queue.close()
    return found


TRACKER = _Neptune()
