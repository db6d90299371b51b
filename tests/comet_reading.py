"""What a test reads back from Comet's endpoints, and the conformance suite's cases for Comet on top of it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comet_standin import API_KEY, CometStandIn, StandInExperiment

from lightning_loggers.adapters.comet_sdk import STATUS_OTHER
from lightning_loggers.records import RunStatus
from lightning_loggers.testing import AdapterConformance, Point, RunUnderTest

WORDS = {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}


class MediaStandIn(CometStandIn):
    """Comet's endpoints, and the one that takes images, in its own words."""

    def _answer(self, request: Any, path: str, body: bytes) -> tuple[int, Any]:
        if path != "/clientlib/visualizations/upload":
            return super()._answer(request, path, body)
        said = request.path.replace("figName=", "fileName=").replace("imageId=", "assetId=")
        request.path = f"{said}&type=visualization"
        return self._upload(request, body)


def quiet_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the SDK a home of the test's own, and no setting or credential of this machine."""
    for name in [name for name in os.environ if name.startswith("COMET_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("COMET_ERROR_TRACKING_ENABLE", "false")


def archives(folder: Path) -> list[Path]:
    """The archives in a ``save_dir``."""
    return sorted(folder.glob("*.zip"))


def upload(archive: Path, *, sampling_size: int | None = None) -> StandInExperiment:
    """What Comet's own uploader makes of an archive, at a Comet that has nothing yet."""
    from comet_ml.offline import main_upload

    with MediaStandIn() as service, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMET_URL_OVERRIDE", service.uri)
        patch.setenv("COMET_API_KEY", API_KEY)
        if sampling_size is not None:
            patch.setenv("COMET_OFFLINE_SAMPLING_SIZE", str(sampling_size))
        main_upload([str(archive)], force_upload=False)
        assert not service.unknown, f"the stand-in was asked for what it has not: {service.unknown[:3]}"
        return service.only()


def points(experiment: StandInExperiment) -> list[Point]:
    """Every point."""
    return [
        Point(
            point["metricName"],
            float(WORDS.get(point["metricValue"], point["metricValue"])),
            point["step"],
            point["timestamp"] / 1000,
        )
        for point in experiment.points
    ]


class CometOnlineCase(AdapterConformance):
    """Comet itself: the SDK's requests, answered by a stand-in of its endpoints."""

    tracker = "comet"
    statuses = {status: status.value for status in RunStatus}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def comet_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A home for the SDK."""
        quiet_home(tmp_path, monkeypatch)

    @pytest.fixture(autouse=True)
    def service(self) -> Iterator[CometStandIn]:
        """Comet's endpoints."""
        with CometStandIn() as self.comet:
            yield self.comet
            assert not self.comet.unknown

    @pytest.fixture
    def options(self, service: CometStandIn) -> dict[str, Any]:
        """Online, at the stand-in."""
        return {"server": service.uri.replace("http://", f"http://{API_KEY}@"), "project": "conformance"}

    def experiment(self, run: RunUnderTest) -> StandInExperiment:
        """What Comet has of the run."""
        return self.comet.experiments[str(run.remote.id)]

    def points(self, run: RunUnderTest) -> list[Point]:
        """Every point."""
        return points(self.experiment(run))

    def params(self, run: RunUnderTest) -> dict[str, str]:
        """Parameters; the whole of a long one from its asset."""
        experiment = self.experiment(run)
        wholes = {asset.name: asset.content.decode() for asset in experiment.assets.values()}
        shown = {}
        for name, value in experiment.params.items():
            text = str(value)
            whole = [content for place, content in wholes.items() if text.endswith(f"... [whole in {place}]")]
            shown[name] = whole[0] if whole else text
        return shown

    def texts(self, run: RunUnderTest) -> list[str]:
        """Text samples."""
        return [asset.content.decode() for asset in self.experiment(run).assets_of("text-sample")]

    def dicts(self, run: RunUnderTest) -> list[Any]:
        """JSON assets."""
        import json

        assets = self.experiment(run).assets_of("asset")
        return [json.loads(asset.content) for asset in assets if asset.name.startswith("media/table/")]

    def files(self, run: RunUnderTest) -> list[bytes]:
        """Assets and files of models."""
        experiment = self.experiment(run)
        assets = [*experiment.assets_of("asset"), *experiment.assets_of("model-element")]
        return [asset.content for asset in assets if not asset.name.startswith("lightning_loggers/")]

    def status(self, run: RunUnderTest) -> str | None:
        """The status among the other facts."""
        return str(self.experiment(run).others.get(STATUS_OTHER))

    def shown_param(self, value: Any) -> str:
        """Numbers that JSON cannot say are words."""
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(value), str(value))


class CometCase(CometOnlineCase):
    """Comet's offline archive, sent by Comet's own uploader."""

    once_after_crash = True

    @pytest.fixture
    def options(self, service: CometStandIn) -> dict[str, Any]:
        """Offline."""
        return {"online": False, "project": "conformance"}

    def experiment(self, run: RunUnderTest) -> StandInExperiment:
        """What ``comet upload`` makes of the run's archive."""
        (archive,) = archives(run.run_dir.parents[1])
        return upload(archive)
