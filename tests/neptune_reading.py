"""What a test reads back from the SDK's offline folders, and the conformance suite's case for Neptune on top of it."""

import base64
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_loggers.adapters.neptune_fields import OTHER
from lightning_loggers.records import RunStatus
from lightning_loggers.testing import AdapterConformance, Point, RunUnderTest


def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting or token of this machine."""
    for name in [name for name in os.environ if name.startswith("NEPTUNE")]:
        monkeypatch.delenv(name)


def operations(folder: Path) -> Iterator[Any]:
    """Every operation in the SDK's queue, read with the SDK's own classes."""
    from neptune.core.components.queue.disk_queue import DiskQueue
    from neptune.internal.operation import Operation

    queue = DiskQueue(folder, lambda op: op.to_dict(), Operation.from_dict, threading.RLock())
    try:
        while batch := queue.get_batch(1000):
            yield from (element.obj for element in batch)
    finally:
        queue.close()


class OfflineRun:
    """One run's offline folders (all that ``neptune sync`` would make one run of), with every operation done.

    Args:
        base: The SDK's data directory.
        run_id: The run's UUID.
    """

    def __init__(self, base: Path, run_id: str) -> None:
        self.series: dict[str, list[tuple[Any, Any, float]]] = {}
        self.values: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.images: dict[str, list[tuple[bytes, Any, float, str | None]]] = {}
        self.folders = sorted((base / "offline").glob(f"run__{run_id}__*"))
        for folder in self.folders:
            for operation in operations(folder):
                self._do(operation, folder)

    def _do(self, operation: Any, folder: Path) -> None:
        from neptune.core.components.operation_storage import OperationStorage

        path, kind = "/".join(operation.path), type(operation).__name__
        if kind in {"LogFloats", "LogStrings"}:
            self.series.setdefault(path, []).extend((item.value, item.step, item.ts) for item in operation.values)
        elif kind == "LogImages":
            self.images.setdefault(path, []).extend(
                (base64.b64decode(item.value.data, validate=True), item.step, item.ts, item.value.description)
                for item in operation.values
            )
        elif kind == "UploadFile":
            self.files[path] = Path(operation.get_absolute_path(OperationStorage(folder))).read_bytes()
        elif kind == "UploadFileContent":
            self.files[path] = base64.b64decode(operation.file_content)
        elif kind == "DeleteAttribute":
            assert self.values.pop(path, None) is not None or self.files.pop(path, None) is not None, path
        elif kind == "AddStrings":
            self.values.setdefault(path, set()).update(operation.values)
        else:
            self.values[path] = operation.value

    def fitted(self) -> dict[str, Any]:
        """What the run says of its own names."""
        content = self.files.get("lightning_loggers/fitted", b"{}")
        return {"names": {}, "moved": {}, "unnumbered": {}, **json.loads(content)}

    def points(self, moved: dict[str, str]) -> Iterator[Point]:
        """Every point of every metric, as the adapter's documentation says that they are to be put together."""
        for path, items in self.series.items():
            name = moved.get(path, path)
            if name.startswith(("text/", "dict/")):
                continue
            if all(isinstance(value, float) for value, _, _ in items):
                yield from (Point(name, value, step, at) for value, step, at in items)
                continue
            series = name.removesuffix(OTHER)
            for value, _, at in items:
                item = json.loads(value)
                yield Point(moved.get(series, series), float(item["value"]), item["step"], at)

    def texts(self, folder: str) -> Iterator[str]:
        """Every item of the string series below a folder, whole."""
        for path, items in self.series.items():
            if path.startswith(f"{folder}/"):
                for value, _, _ in items:
                    item = json.loads(value) if OTHER in path else {"value": value}
                    yield self.files[item["file"]].decode() if "file" in item else item["value"]


class NeptuneCase(AdapterConformance):
    """Neptune offline: the SDK's own folders."""

    tracker = "neptune"
    time_resolution_s = 1e-6
    once_after_crash = True
    statuses = {  # noqa: RUF012
        RunStatus.RUNNING: "running",
        RunStatus.FINISHED: "success",
        RunStatus.FAILED: "failed",
        RunStatus.INTERRUPTED: "interrupted",
        RunStatus.PREEMPTED: "preempted",
    }

    @pytest.fixture(autouse=True)
    def no_settings_of_this_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing of this machine."""
        no_settings(monkeypatch)

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        """Offline."""
        return {"mode": "offline"}

    def offline(self, run: RunUnderTest) -> OfflineRun:
        """What the SDK has written."""
        return OfflineRun(run.run_dir / ".neptune", str(run.remote.id))

    def moved(self, run: RunUnderTest) -> dict[str, str]:
        """Fields that are not where they were wanted."""
        fields = run.remote.extra["fields"].get("fields", {})
        return {place: owner.partition(":")[2] for owner, place in fields.items() if place}

    def points(self, run: RunUnderTest) -> list[Point]:
        """Both series of each metric."""
        return list(self.offline(run).points(self.moved(run)))

    def params(self, run: RunUnderTest) -> dict[str, str]:
        """Values below ``hyperparams``."""
        read, moved = self.offline(run), self.moved(run)
        found = read.values | {path: content.decode() for path, content in read.files.items()}
        return {
            name.removeprefix("hyperparams/"): str(value)
            for path, value in found.items()
            if (name := moved.get(path, path)).startswith("hyperparams/")
        }

    def texts(self, run: RunUnderTest) -> list[str]:
        """String series of texts."""
        return list(self.offline(run).texts("text"))

    def dicts(self, run: RunUnderTest) -> list[Any]:
        """String series of dictionaries."""
        return [json.loads(text) for text in self.offline(run).texts("dict")]

    def files(self, run: RunUnderTest) -> list[bytes]:
        """Contents of artifacts and checkpoints."""
        files = self.offline(run).files
        return [content for path, content in files.items() if path.startswith(("artifacts/", "model/checkpoints/"))]

    def status(self, run: RunUnderTest) -> str | None:
        """The run's own word."""
        read = self.offline(run)
        assert read.values["sys/failed"] == (read.values["status"] in {"failed", "interrupted"})
        return str(read.values["status"])
