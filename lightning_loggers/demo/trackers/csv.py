"""CSV, read back with Python's own reader."""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_loggers.demo.readback import EXPERIMENT, DemoTracker, ReadRun, files_below
from lightning_loggers.demo.tally import Point


class _CSV(DemoTracker):
    name = "csv"
    label = "metrics.csv"

    @override
    def make(self, save_dir: Path, tracking_uri: str | None, finalize_timeout_s: float) -> Any:
        from lightning_loggers.loggers.csv import CSVLogger

        return CSVLogger(save_dir, name=EXPERIMENT, finalize_timeout_s=finalize_timeout_s)

    @override
    def read(self, logger: Any) -> ReadRun:
        import yaml

        folder = Path(logger.log_dir)
        metrics: dict[str, list[Point]] = defaultdict(list)
        with (folder / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                for key, value in row.items():
                    if key != "step" and value:
                        metrics[key].append((int(row["step"]), float(value)))
        params = yaml.safe_load((folder / "hparams.yaml").read_text())
        return ReadRun(
            title=f"{folder.name}",
            params={key: str(value) for key, value in params.items()},
            metrics=dict(metrics),
            files=files_below(folder),
            see=[f"See it: {folder / 'metrics.csv'}"],
            runs=len(list(folder.parent.glob("version_*"))),
        )


TRACKER = _CSV()
