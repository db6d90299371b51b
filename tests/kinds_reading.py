"""Reading back what was logged of any kind, with each tracker's own reader or file."""

import json
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb_reading
from comet_reading import archives, quiet_home, upload
from neptune_reading import OfflineRun, no_settings

from lightning_loggers import (
    CometLogger,
    ConsoleLogger,
    CSVLogger,
    InMemoryLogger,
    MLFlowLogger,
    NeptuneLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning_loggers.adapters.neptune import run_id_of
from lightning_loggers.adapters.wandb import AXIS
from lightning_loggers.journal.layout import journal_dir
from lightning_loggers.journal.reader import read_first_header
from lightning_loggers.loggers.journaled import JournaledLogger
from lightning_loggers.records import Kind


class Reading(ABC):
    """A run at its tracker."""

    logger: JournaledLogger

    @classmethod
    @abstractmethod
    def begin(
        cls, folder: Path, template: Path, capsys: pytest.CaptureFixture[str] | None, **options: Any
    ) -> "Reading":
        """A logger with a fresh place."""

    def end(self) -> None:
        """Deliver everything."""
        self.logger.finalize("success")
        assert self.logger.stats.pending == 0, self.logger.stats
        assert self.logger.stats.rejected == 0, self.logger.stats

    @abstractmethod
    def files(self, kind: Kind, identifier: str, step: int | None) -> list[bytes]:
        """The files of a record, in their order."""

    def text(self, identifier: str, step: int | None) -> str:
        """A text."""
        [content] = self.files(Kind.TEXT, identifier, step)
        return content.decode()


def in_media(folder: Path, identifier: str, step: int | None) -> list[bytes]:
    """The standard files of an identifier and step, in a folder."""
    place = folder / "media" / identifier
    return among({f"media/{identifier}/{path.name}": path.read_bytes() for path in place.iterdir()}, identifier, step)


def among(contents: Mapping[str, bytes], identifier: str, step: int | None) -> list[bytes]:
    """The standard files of an identifier and step, of contents by their names."""
    step_name = "no-step" if step is None else str(step)
    found = []
    for name, content in contents.items():
        folder, _, last = name.rpartition("/")
        stem = last.rpartition(".")[0]
        if folder == f"media/{identifier}" and (stem == step_name or stem.startswith(f"{step_name}-")):
            found.append((len(stem), last, content))
    return [content for _, _, content in sorted(found)]


class CSVReading(Reading):
    """Files in the run's folder."""

    @classmethod
    def begin(
        cls, folder: Path, template: Path, capsys: pytest.CaptureFixture[str] | None, **options: Any
    ) -> "CSVReading":
        made = cls()
        made.logger = CSVLogger(folder, **options)
        return made

    @property
    def folder(self) -> Path:
        """The run's."""
        return Path(str(self.logger.log_dir))

    def files(self, kind: Kind, identifier: str, step: int | None) -> list[bytes]:
        if kind in {Kind.ARTIFACT, Kind.CHECKPOINT}:
            noted = {"metadata.yaml", "aliases.txt"}
            return [
                path.read_bytes()
                for path in sorted((self.folder / "artifacts" / identifier).rglob("*"))
                if path.is_file() and path.name not in noted
            ]
        return in_media(self.folder, identifier, step)


class TensorBoardReading(CSVReading):
    """Event files by TensorBoard's own reader, and files in the run's folder."""

    @classmethod
    def begin(
        cls, folder: Path, template: Path, capsys: pytest.CaptureFixture[str] | None, **options: Any
    ) -> "TensorBoardReading":
        made = cls()
        made.logger = TensorBoardLogger(folder, default_hp_metric=False, **options)
        return made

    def end(self) -> None:
        from tensorboard.backend.event_processing import event_accumulator as accumulator

        super().end()
        kinds = ("IMAGES", "AUDIO", "HISTOGRAMS", "TENSORS", "SCALARS")
        self.events = accumulator.EventAccumulator(
            str(self.folder), {getattr(accumulator, kind): 0 for kind in kinds}, purge_orphaned_data=False
        ).Reload()

    def _at(self, events: Any, step: int | None) -> Any:
        return [event for event in events if event.step == (step or 0)]

    def files(self, kind: Kind, identifier: str, step: int | None) -> list[bytes]:
        tags = self.events.Tags()
        if kind == Kind.AUDIO:
            return [event.encoded_audio_string for event in self._at(self.events.Audio(identifier), step)]
        shown = [tag for tag in tags["images"] if tag == identifier or tag.rpartition("/")[0] == identifier]
        if kind in {Kind.IMAGE, Kind.FIGURE, Kind.VIDEO} and shown:
            return [event.encoded_image_string for tag in shown for event in self._at(self.events.Images(tag), step)]
        return super().files(kind, identifier, step)

    def text(self, identifier: str, step: int | None) -> str:
        [event] = self._at(self.events.Tensors(f"{identifier}/text_summary"), step)
        return str(event.tensor_proto.string_val[0].decode())

    def histogram(self, tag: str, step: int) -> Any:
        """A histogram."""
        [event] = self._at(self.events.Histograms(tag), step)
        return event.histogram_value

    def mesh(self, tag: str, step: int) -> Any:
        """A tensor of the mesh plugin."""
        from tensorboard.util import tensor_util

        [event] = self._at(self.events.Tensors(tag), step)
        return tensor_util.make_ndarray(event.tensor_proto)


class MLflowReading(Reading):
    """Artifacts, params, tags and inputs by MLflow's own client."""

    @classmethod
    def begin(
        cls, folder: Path, template: Path, capsys: pytest.CaptureFixture[str] | None, **options: Any
    ) -> "MLflowReading":
        made = cls()
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(template, folder / "mlflow.db")
        made.logger = MLFlowLogger(save_dir=str(folder), **options)
        return made

    def end(self) -> None:
        super().end()
        self.client = self.logger.experiment
        self.run = self.client.get_run(self.logger.run_id)  # type: ignore[attr-defined]
        self.folder = Path(self.client.download_artifacts(self.run.info.run_id, ""))

    def files(self, kind: Kind, identifier: str, step: int | None) -> list[bytes]:
        if kind in {Kind.ARTIFACT, Kind.CHECKPOINT}:
            noted = {"metadata.yaml", "aliases.txt"}
            found = sorted((self.folder / identifier).rglob("*"))
            return [path.read_bytes() for path in found if path.is_file() and path.name not in noted]
        if kind == Kind.IMAGE and step is not None:  # named as MLflow's own charts read them
            start = f"{identifier.replace('/', '~')}"
            images = [
                (name, path)
                for path in (self.folder / "images").glob("*.png")
                if (name := path.name.split("+step+")[0]).split("~")[0] == start
                and int(path.name.split("+step+")[1].split("+")[0]) == step
            ]
            return [path.read_bytes() for _, path in sorted(images)]
        return in_media(self.folder, identifier, step)


class MemoryReading(Reading):
    """Records held by this process."""

    @classmethod
    def begin(
        cls, folder: Path, template: Path, capsys: pytest.CaptureFixture[str] | None, **options: Any
    ) -> "MemoryReading":
        made = cls()
        made.logger = InMemoryLogger(save_dir=folder, **options)
        return made

    def record(self, kind: Kind, identifier: str, step: int | None) -> Any:
        """The last record."""
        records = self.logger.records  # type: ignore[attr-defined]
        return [item for item in records if (item.kind, item.id, item.step) == (kind, identifier, step)][-1]

    def files(self, kind: Kind, identifier: str, step: int | None) -> list[bytes]:
        blobs = Path(str(self.logger.log_dir)) / "journal" / "blobs"
        return [(blobs / blob.id / blob.name).read_bytes() for blob in self.record(kind, identifier, step).blobs or []]

    def text(self, identifier: str, step: int | None) -> str:
        return str(self.record(Kind.TEXT, identifier, step).value)


class ConsoleReading(Reading):
    """Lines, as a person reads them."""

    @classmethod
    def begin(
        cls, folder: Path, template: Path, capsys: pytest.CaptureFixture[str] | None, **options: Any
    ) -> "ConsoleReading":
        made = cls()
        made.logger = ConsoleLogger(save_dir=folder, style="lines", **options)
        return made

    def files(self, kind: Kind, identifier: str, step: int | None) -> list[bytes]:
        raise NotImplementedError


COMET_TYPES = {
    Kind.IMAGE: "visualization",
    Kind.FIGURE: "visualization",
    Kind.AUDIO: "audio",
    Kind.VIDEO: "video",
}


class CometReading(Reading):
    """Assets, as Comet's own uploader sends them from the archive."""

    @classmethod
    def begin(
        cls, folder: Path, template: Path, capsys: pytest.CaptureFixture[str] | None, **options: Any
    ) -> "CometReading":
        made = cls()
        with pytest.MonkeyPatch.context() as patch:
            quiet_home(folder, patch)
            made.logger = CometLogger(offline_directory=str(folder), online=False, project="kinds", **options)
        return made

    def end(self) -> None:
        super().end()
        self.logger.close()
        self.read(Path(str(self.logger.save_dir)))

    def read(self, folder: Path) -> None:
        """Have the archive in a folder uploaded."""
        [archive] = archives(folder)
        with pytest.MonkeyPatch.context() as patch:
            quiet_home(folder, patch)
            self.experiment = upload(archive)

    def files(self, kind: Kind, identifier: str, step: int | None) -> list[bytes]:
        assets = self.experiment.assets.values()
        if kind == Kind.ARTIFACT:
            return [asset.content for asset in assets if asset.name.startswith(f"{identifier}/")]
        if kind == Kind.CHECKPOINT:
            return [asset.content for asset in assets if asset.params.get("groupingName") == identifier]
        if kind in COMET_TYPES:
            named = re.compile(rf"{re.escape(identifier)}(/\d+)?(\.\w+)?")
            shown = [asset for asset in self.experiment.assets_of(COMET_TYPES[kind]) if named.fullmatch(asset.name)]
            at_step = [asset for asset in shown if asset.params.get("step") == (None if step is None else str(step))]
            return [asset.content for asset in sorted(at_step, key=lambda asset: (len(asset.name), asset.name))]
        return among({asset.name: asset.content for asset in assets}, identifier, step)

    def scene(self, name: str) -> np.ndarray:
        """The points of a scene, in the order of Comet's file."""
        lines = self.experiment.asset(name).items["points.jsonl"].splitlines()
        return np.array([json.loads(line) for line in lines])

    def text(self, identifier: str, step: int | None) -> str:
        [asset] = [
            asset
            for asset in self.experiment.assets_of("text-sample")
            if (asset.metadata["identifier"], asset.params.get("step")) == (identifier, str(step))
        ]
        return asset.content.decode()


class NeptuneReading(Reading):
    """What the SDK's own queue says, in its offline folder."""

    @classmethod
    def begin(
        cls, folder: Path, template: Path, capsys: pytest.CaptureFixture[str] | None, **options: Any
    ) -> "NeptuneReading":
        made = cls()
        with pytest.MonkeyPatch.context() as patch:
            no_settings(patch)
            made.logger = NeptuneLogger(save_dir=folder, mode="offline", **options)
        return made

    def end(self) -> None:
        super().end()
        self.logger.close()
        self.read(Path(str(self.logger.log_dir)))

    def read(self, run_dir: Path) -> None:
        """Do what the queue of a run says."""
        header = read_first_header(journal_dir(run_dir))
        assert header is not None
        self.offline = OfflineRun(run_dir / ".neptune", run_id_of(header.run.uid))
        self.prefix = f"{header.run.options['prefix']}/"

    def files(self, kind: Kind, identifier: str, step: int | None) -> list[bytes]:
        files = {
            path.removeprefix(self.prefix): content
            for path, content in self.offline.files.items()
            if path.startswith(self.prefix)
        }
        folders = {Kind.ARTIFACT: "artifacts", Kind.CHECKPOINT: "model/checkpoints"}
        if kind in folders:
            place = f"{folders[kind]}/{identifier}"
            return [content for path, content in files.items() if path == place or path.startswith(f"{place}/")]
        if kind == Kind.DICT:
            return [text.encode() for text in self._texts("dict", identifier, step)]
        series = {Kind.IMAGE: "images", Kind.FIGURE: "figures"}
        if kind in series:
            named = re.compile(rf"{re.escape(f'{self.prefix}{series[kind]}/{identifier}')}(/\d+)?")
            images = self.offline.images
            shown = sorted((path for path in images if named.fullmatch(path)), key=lambda path: (len(path), path))
            if found := [content for path in shown for content, at, *_ in images[path] if at == step]:
                return found
        return among(files, identifier, step)

    def text(self, identifier: str, step: int | None) -> str:
        [text] = self._texts("text", identifier, step)
        return text

    def _texts(self, folder: str, identifier: str, step: int | None) -> list[str]:
        series = self.offline.series[f"{self.prefix}{folder}/{identifier}"]
        return [value for value, at, _ in series if at == step]


class WandbReading(Reading):
    """Rows, their files, and artifacts, in the SDK's offline folder."""

    @classmethod
    def begin(
        cls, folder: Path, template: Path, capsys: pytest.CaptureFixture[str] | None, **options: Any
    ) -> "WandbReading":
        made = cls()
        made.logger = WandbLogger(save_dir=folder, offline=True, delivery="offline", **options)
        return made

    def end(self) -> None:
        self.logger.finalize("success")
        self.logger.close()
        self.deliver(Path(str(self.logger.log_dir)))
        super().end()

    def deliver(self, run_dir: Path) -> None:
        """Deliver a run's journal through the SDK, and read what that wrote."""
        import wandb
        from wandb_running import deliver

        with pytest.MonkeyPatch.context() as patch:
            wandb_reading.quiet_home(run_dir, patch)
            deliver(run_dir)
            wandb.teardown()
        self.run_id, home = run_dir.name, run_dir.parents[1]
        self.offline = wandb_reading.OfflineRun(home, self.run_id)
        self.folders = list(home.glob(f"wandb/offline-run-*-{self.run_id}/files"))

    def row(self, key: str, step: int | None) -> Any:
        """What the row with that key holds."""
        [value] = [row[key] for row in self.offline.rows if key in row and row[AXIS] == step]
        return value

    def files(self, kind: Kind, identifier: str, step: int | None) -> list[bytes]:
        if kind in {Kind.IMAGE, Kind.FIGURE, Kind.AUDIO, Kind.VIDEO, Kind.POINT_CLOUD, Kind.TABLE}:
            value = self.row(identifier, step)
            items = next((value[name] for name in ("objects", "videos", "audio") if name in value), [value])
            names = [item["path"] for item in items] if "path" in items[0] else value["filenames"]
            return [path.read_bytes() for name in names for folder in self.folders if (path := folder / name).exists()]
        if kind == Kind.DICT:
            return [json.dumps(self.row(identifier, step)).encode()]
        own = {Kind.ARTIFACT: f"run-{self.run_id}-{identifier}", Kind.CHECKPOINT: f"model-{self.run_id}"}
        name = own.get(kind, f"run-{self.run_id}-media-{kind}-{identifier}") + "/"
        found = {
            path.removeprefix(name): content
            for path, content in self.offline.artifacts.items()
            if path.startswith(name)
        }
        return list(found.values()) if kind in own else among(found, identifier, step)

    def text(self, identifier: str, step: int | None) -> str:
        return str(self.row(identifier, step))


READINGS: dict[str, type[Reading]] = {
    "csv": CSVReading,
    "tensorboard": TensorBoardReading,
    "mlflow": MLflowReading,
    "memory": MemoryReading,
    "console": ConsoleReading,
    "comet": CometReading,
    "neptune": NeptuneReading,
    "wandb": WandbReading,
}
