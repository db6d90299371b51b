"""W&B's offline folder, read back with the SDK's own protocol buffers."""

import json
import shlex
from collections import defaultdict
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_loggers.adapters.wandb_file import RunFile
from lightning_loggers.adapters.wandb_records import AXIS
from lightning_loggers.demo.readback import EXPERIMENT, DemoTracker, ReadRun
from lightning_loggers.demo.tally import Point

_FILE_HEADER_BYTES = 7


class _Wandb(DemoTracker):
    name = "wandb"
    label = "W&B's offline folder"

    @override
    def make(self, save_dir: Path, tracking_uri: str | None, finalize_timeout_s: float) -> Any:
        from lightning_loggers.loggers.wandb import WandbLogger

        return WandbLogger(project=EXPERIMENT, save_dir=save_dir, offline=True, finalize_timeout_s=finalize_timeout_s)

    @override
    def read(self, logger: Any) -> ReadRun:
        folder = Path(logger.save_dir) / "wandb"
        (path,) = folder.glob(f"offline-run-*-{logger.version}/run-{logger.version}.wandb")
        metrics: dict[str, list[Point]] = defaultdict(list)
        config: dict[str, str] = {}
        files: list[str] = []
        ended = ""
        reader = RunFile(path)
        reader.whole_bytes = _FILE_HEADER_BYTES
        for record in reader.records():
            kind = record.WhichOneof("record_type")
            if kind == "history":
                row = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
                }
                step = row.get(AXIS)
                for key, value in row.items():
                    if key != AXIS and not key.startswith("_") and isinstance(value, int | float):
                        metrics[key].append((0 if step is None else int(step), float(value)))
            elif kind in {"config", "run"}:
                update = (record.config if kind == "config" else record.run.config).update
                config |= {item.key: item.value_json for item in update}
            elif kind == "artifact":
                files += [f"{record.artifact.name}/{entry.path}" for entry in record.artifact.manifest.contents]
            elif kind == "exit":
                ended = f", exit code {record.exit.exit_code}"
        return ReadRun(
            title=f"run {logger.version}{ended}",
            params={key: value for key, value in config.items() if not key.startswith(("_", "lightning_loggers"))},
            metrics=dict(metrics),
            files=sorted(files),
            see=[f"Send it to W&B:\n  wandb sync {shlex.quote(str(path.parent))}"],
            runs=len(list(folder.glob("offline-run-*"))),
        )


TRACKER = _Wandb()
