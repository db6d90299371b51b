"""What a test reads back from the SDK's offline folders, and the conformance suite's case for W&B on top of it."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_loggers.adapters.wandb import AXIS
from lightning_loggers.adapters.wandb_file import MARK, RunFile, begun
from lightning_loggers.records import RunStatus
from lightning_loggers.testing import AdapterConformance, Point, RunUnderTest

QUIET = {
    "x_disable_stats": True, "x_disable_machine_info": True, "x_save_requirements": False, "disable_git": True,
    "x_transaction_log_flush_interval": 0.1,
}  # fmt: skip
"""Settings with which the SDK tells nothing of this machine, and writes its file soon."""


def quiet_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the SDK a home and caches of the test's own, and no setting or credential of this machine."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(home / "netrc" if name == "NETRC" else home))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


class OfflineRun:
    """One run's offline folders, read with the SDK's own protocol buffers.

    Args:
        folder: Where the SDK's ``wandb`` folder is.
        run_id: The run.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.rows: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.artifacts: dict[str, bytes] = {}
        self.exit_code: int | None = None
        self.preempting = False
        files = folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb")
        for path in sorted(files, key=lambda path: begun(path.parent.name, run_id)):
            self.exit_code, self.preempting = None, False
            for record in self._records(path):
                self._take(record)

    @staticmethod
    def _records(path: Path) -> Iterator[Any]:
        file = RunFile(path)
        file.whole_bytes = 7
        return file.records()

    def _take(self, record: Any) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                *parents, last = list(item.nested_key) or [item.key]
                inner = row
                for part in parents:
                    inner = inner.setdefault(part, {})
                inner[last] = json.loads(item.value_json)
            self.rows.append(row)
        elif kind in {"config", "run"}:
            config = record.config if kind == "config" else record.run.config
            self.config |= {item.key: json.loads(item.value_json) for item in config.update}
        elif kind == "exit":
            self.exit_code = record.exit.exit_code
        elif kind == "preempting":
            self.preempting = True
        elif kind == "artifact":
            for entry in record.artifact.manifest.contents:
                self.artifacts[f"{record.artifact.name}/{entry.path}"] = Path(entry.local_path).read_bytes()


class WandbCase(AdapterConformance):
    """W&B offline: the same rows, configuration and artifacts that go to the service online."""

    tracker = "wandb"
    time_resolution_s = 1e-5
    once_after_crash = True
    statuses = {  # noqa: RUF012
        RunStatus.RUNNING: "preempted",  # for whom it is open: delivery has let go of it, and another host goes on
        RunStatus.FINISHED: "0",
        RunStatus.FAILED: "1",
        RunStatus.INTERRUPTED: "255",
        RunStatus.PREEMPTED: "preempted",
    }

    @pytest.fixture(autouse=True)
    def wandb_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """A home for the SDK; its service ends with the test."""
        quiet_home(tmp_path, monkeypatch)
        yield
        if (wandb := sys.modules.get("wandb")) is not None:
            wandb.teardown()

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        """Offline."""
        return {"mode": "offline", "project": "conformance", "settings": QUIET}

    def offline(self, run: RunUnderTest) -> OfflineRun:
        """What the SDK has written."""
        return OfflineRun(run.run_dir.parents[1], str(run.remote.id))

    def points(self, run: RunUnderTest) -> list[Point]:
        """Every number of every row."""
        return [
            Point(key, float(value), row.get(AXIS), row["_timestamp"])
            for row in self.offline(run).rows
            for key, value in row.items()
            if key not in {AXIS, "_timestamp", "_runtime", "_step"} and isinstance(value, int | float)
        ]

    def params(self, run: RunUnderTest) -> dict[str, str]:
        """The configuration."""
        config = {key: value for key, value in self.offline(run).config.items() if key not in {MARK, "_wandb"}}
        return {key: str(value) for key, value in config.items()}

    def texts(self, run: RunUnderTest) -> list[str]:
        """Rows with a text; the whole of it from its artifact where the row says so."""
        read = self.offline(run)
        texts = [row[key] for row in read.rows for key in row if isinstance(row[key], str) and key != "table"]
        wholes = {
            name.partition("/")[0]: content.decode() for name, content in read.artifacts.items() if "value." in name
        }
        return [next((whole for name, whole in wholes.items() if f"artifact {name}]" in text), text) for text in texts]

    def dicts(self, run: RunUnderTest) -> list[Any]:
        """Rows with a dictionary, or its JSON."""
        values = [row["table"] for row in self.offline(run).rows if "table" in row]
        return [json.loads(value) if isinstance(value, str) else value for value in values]

    def files(self, run: RunUnderTest) -> list[bytes]:
        """Contents of artifacts."""
        return list(self.offline(run).artifacts.values())

    def status(self, run: RunUnderTest) -> str | None:
        """The exit code of the last session."""
        read = self.offline(run)
        return "preempted" if read.preempting else None if read.exit_code is None else str(read.exit_code)

    def shown_param(self, value: Any) -> str:
        """Numbers that JSON cannot say are words."""
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(value), str(value))
