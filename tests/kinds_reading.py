"""Reading back what was logged of any kind, with each tracker's own reader or file."""

import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import pytest

from lightning_loggers import ConsoleLogger, CSVLogger, InMemoryLogger, MLFlowLogger, TensorBoardLogger
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
    name = "no-step" if step is None else str(step)
    found = [path for path in place.iterdir() if path.stem == name or path.stem.startswith(f"{name}-")]
    return [path.read_bytes() for path in sorted(found, key=lambda path: (len(path.stem), path.name))]


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


READINGS: dict[str, type[Reading]] = {
    "csv": CSVReading,
    "tensorboard": TensorBoardReading,
    "mlflow": MLflowReading,
    "memory": MemoryReading,
    "console": ConsoleReading,
}
