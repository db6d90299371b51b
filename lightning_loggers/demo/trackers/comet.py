"""Comet's offline archive, read back as its own uploader reads it."""

import json
import shlex
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_loggers.demo.readback import EXPERIMENT, DemoTracker, ReadRun
from lightning_loggers.demo.tally import Point


class _Comet(DemoTracker):
    name = "comet"
    label = "Comet's offline archive"

    @override
    def make(self, save_dir: Path, tracking_uri: str | None, finalize_timeout_s: float) -> Any:
        from lightning_loggers.loggers.comet import CometLogger

        return CometLogger(
            project=EXPERIMENT,
            online=False,
            offline_directory=str(save_dir),
            log_model=True,
            finalize_timeout_s=finalize_timeout_s,
        )

    @override
    def read(self, logger: Any) -> ReadRun:
        folder = Path(logger.save_dir)
        archive = folder / f"{logger.version}.zip"
        metrics: dict[str, list[Point]] = defaultdict(list)
        params: dict[str, str] = {}
        files: list[str] = []
        with zipfile.ZipFile(archive) as opened, opened.open("messages.json") as messages:
            for line in messages:
                message = json.loads(line)
                payload = message["payload"]
                if message["type"] == "metric_msg":
                    metric = payload["metric"]
                    metrics[metric["metricName"]].append((metric["step"], float(metric["metricValue"])))
                elif message["type"] == "parameter_msg":
                    params[payload["param"]["paramName"]] = str(payload["param"]["paramValue"])
                elif message["type"] == "file_upload":
                    described = payload["additional_params"]
                    files.append(str(described["fileName"] or described["type"]))
        return ReadRun(
            title=f"archive {archive.name}",
            params=params,
            metrics=dict(metrics),
            files=sorted(files),
            see=[f"Send it to Comet:\n  comet upload {shlex.quote(str(archive))}"],
            runs=len(list(folder.glob("*.zip"))),
        )


TRACKER = _Comet()
