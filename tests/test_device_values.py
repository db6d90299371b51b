"""Values on a device: no log call waits for them, and they are recorded in order, with the time of their call."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import wait_until
from PIL import Image
from typing_extensions import override

from lightning_loggers import LogPolicy, MLFlowLogger
from lightning_loggers.journal import read
from lightning_loggers.loggers import arriving, encoding, gate
from lightning_loggers.policies import Window
from lightning_loggers.records import Record
from lightning_loggers.values import device
from lightning_loggers.values.device import Arriving
from lightning_loggers.values.snapshots import Encoded, Snapshot


def make(folder: Path, **options: Any) -> MLFlowLogger:
    """A logger that only writes its journal."""
    return MLFlowLogger("e", save_dir=str(folder), delivery="offline", **options)


def recorded(logger: MLFlowLogger) -> list[Record]:
    """What is in its journal."""
    assert logger.log_dir is not None
    return list(read(logger.log_dir)) if (Path(logger.log_dir) / "journal").exists() else []


def points(logger: MLFlowLogger, key: str) -> list[tuple[Any, Any]]:
    """Step and value of a metric, in the journal's order."""
    return [(record.step, record.data[key]) for record in recorded(logger) if record.data and key in record.data]


class FarTensor(torch.Tensor):
    """Stands for a tensor on a device, where there is none."""


class Reached:
    """Stands for a device's event: it comes when the test says so."""

    def __init__(self) -> None:
        self.waited_for = threading.Event()
        self.come = threading.Event()
        self.error: Exception | None = None

    def synchronize(self) -> None:
        self.waited_for.set()
        assert self.come.wait(60)
        if self.error is not None:
            raise self.error


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Reached]]:
    """The events of a stand-in for a device, one for each log call with a :class:`FarTensor`."""
    made: list[Reached] = []

    def copied(tensors: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[Reached]]:
        made.append(Reached())
        return [tensor.as_subclass(torch.Tensor).clone() for tensor in tensors], [made[-1]]

    def is_far(value: object) -> bool:
        return isinstance(value, FarTensor)

    for module in (device, arriving, gate):
        monkeypatch.setattr(module, "is_on_device", is_far)
    monkeypatch.setattr(device, "copied", copied)
    yield made
    for event in made:
        event.come.set()


def far(value: float) -> torch.Tensor:
    """A number on the stand-in for a device."""
    return torch.tensor(value).as_subclass(FarTensor)


def test_a_series_is_recorded_in_order_and_nothing_else_waits(tmp_path: Path, events: list[Reached]) -> None:
    """Calls whose values arrive in another order are recorded in theirs, those of other names at once."""
    logger = make(tmp_path)
    value = far(0.0)
    logger.log_metrics({"loss": value, "n": 3}, 0)
    value += 100  # is no longer what was logged
    logger.log_metrics({"lr": 0.1}, 0)
    logger.log_metrics({"loss": 1.0}, 1)
    logger.log_metrics({"loss": far(2.0)}, 2)
    assert (points(logger, "loss"), points(logger, "lr")) == ([], [(0, 0.1)])
    assert logger.stats.pending == 4
    events[1].come.set()
    assert not events[1].waited_for.is_set()
    assert points(logger, "loss") == []
    events[0].come.set()
    wait_until(lambda: arriving.pending(logger) == 0)
    assert points(logger, "loss") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert points(logger, "n") == [(0, 3)]
    times = {(tuple(r.data or ()), r.step): r.time_ns for r in recorded(logger)}
    order = [(("loss", "n"), 0), (("lr",), 0), (("loss",), 1), (("loss",), 2)]
    assert [times[call] for call in order] == sorted(times.values())
    logger.log_metrics({"loss": 3.0}, 3)
    assert points(logger, "loss")[-1] == (3, 3.0)
    assert logger._writer is not None
    assert logger._append == logger._writer.append_metrics, "the short way is taken again"


def test_end_of_the_run_waits_for_what_is_on_its_way(tmp_path: Path, events: list[Reached]) -> None:
    """The run's status comes after the last value."""
    logger = make(tmp_path)
    logger.log_metrics({"loss": far(0.5)}, 0)
    ending = threading.Thread(target=logger.finalize, args=("success",))
    ending.start()
    assert events[0].waited_for.wait(60)
    assert recorded(logger) == []
    events[0].come.set()
    ending.join(60)
    assert [(r.kind, r.value or r.data) for r in recorded(logger)] == [
        ("metric", {"loss": 0.5}),
        ("status", "finished"),
    ]


def test_end_that_interrupts_a_log_call_waits_for_nothing(tmp_path: Path, events: list[Reached]) -> None:
    """A signal handler that ends the run just before a call has woken the thread has that call recorded itself."""
    logger = make(tmp_path)
    logger.log_metrics({"loss": far(0.0)}, 0)
    events[0].come.set()
    wait_until(lambda: arriving.pending(logger) == 0)
    assert logger._writer is not None
    call = arriving.Call(logger, logger._writer, logger._notices, {"loss": 1.0}, 1, 1, None)
    arriving._arrivals.under_way.append(call)  # as far as a call has come that is interrupted here
    assert arriving.drain(logger, 30.0)
    assert points(logger, "loss") == [(0, 0.0), (1, 1.0)]


def test_device_that_fails_costs_its_own_values_only(tmp_path: Path, events: list[Reached]) -> None:
    """What cannot be fetched is counted, and what comes after it is recorded."""
    logger = make(tmp_path)
    logger.log_metrics({"loss": far(0.0)}, 0)
    logger.log_metrics({"loss": far(1.0)}, 1)
    events[0].error = RuntimeError("device-side assert triggered")
    for event in events:
        event.come.set()
    logger.finalize("success")
    assert points(logger, "loss") == [(1, 1.0)]
    assert logger.stats.dropped_reasons == {"not fetched": 1}


def test_policy_that_needs_no_value_does_not_wait(tmp_path: Path, events: list[Reached]) -> None:
    """With a policy, too, values are waited for in the background, and found to be NaN there."""
    logger = make(tmp_path, policy=LogPolicy(log_freq=2), prefix="p")
    for step in range(3):
        logger.log_metrics({"loss": far(float("nan") if step == 2 else step)}, step)
    assert recorded(logger) == []
    assert len(events) == 2
    for event in events:
        event.come.set()
    logger.finalize("success")
    (first, second) = points(logger, "p-loss")
    assert first == (0, 0.0)
    assert second[0] == 2
    assert np.isnan(second[1])
    assert logger.found_nonfinite


def test_policy_that_needs_the_values_has_them_at_once(tmp_path: Path, events: list[Reached]) -> None:
    """Merging a window takes the values: they are fetched in the call."""
    logger = make(tmp_path, policy=LogPolicy(window=Window(steps=2)))
    for step in range(4):
        logger.log_metrics({"loss": far(step)}, step)
    logger.finalize("success")
    assert not events
    assert [value for _, value in points(logger, "loss")] == [0.5, 2.5]


def test_snapshot_on_its_way_is_encoded_when_it_is_there(tmp_path: Path) -> None:
    """A record whose array is being copied is written once that is done, and those after it follow."""
    logger = make(tmp_path)
    writer = logger._start()
    assert writer is not None
    reached, pixels = Reached(), np.zeros(2)

    class Taken(Snapshot):
        size_bytes = 16  # type: ignore[assignment]

        @override
        def encode(self) -> Encoded:
            return Encoded(value=pixels.tolist())

    encoding.submit(encoding.job_of(logger, writer, Record(1, "dict", id="a"), Arriving(Taken(), [reached])))
    assert reached.waited_for.wait(60)
    assert recorded(logger) == []
    pixels += 7
    reached.come.set()
    logger.finalize("success")
    assert [r.value for r in recorded(logger) if r.id == "a"] == [[7.0, 7.0]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device (CUDA_VISIBLE_DEVICES=0)")
@pytest.mark.parametrize("policy", [None, LogPolicy(log_freq=1)])
def test_no_log_call_waits_for_a_gpu(tmp_path: Path, policy: LogPolicy | None) -> None:
    """While the device is busy, log calls return, torch sees no synchronisation, and what was logged is what it was."""
    logger = make(tmp_path, policy=policy)
    losses = torch.arange(20, device="cuda", dtype=torch.bfloat16)
    counts = torch.arange(20, device="cuda")
    image = torch.rand(3, 8, 8, device="cuda")
    expected = (image.cpu().numpy() * 255).round()
    spread = torch.arange(100, device="cuda", dtype=torch.float32)
    logger.log_metrics({"warm": losses[0]}, 0)  # begins the journal and the device's own pools
    torch.cuda.synchronize()
    torch.cuda._sleep(2_000_000_000)  # about a second
    busy = torch.cuda.Event()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(20):
            logger.log_metrics({"loss": losses[step], "count": counts[step], "lr": 0.1}, step)
        logger.log_image("image", image, 0)
        logger.log_histogram("spread", spread, 0)
        for tensor in (losses, counts, image, spread):
            tensor.zero_()
        busy.record()
        assert not busy.query(), "the device was waited for"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    logger.finalize("success")
    assert points(logger, "loss") == [(step, float(step)) for step in range(20)]
    assert points(logger, "count") == [(step, step) for step in range(20)]
    assert all(type(value) is int for _, value in points(logger, "count"))
    metrics = [r for r in recorded(logger) if r.data and "loss" in r.data]
    assert [r.time_ns for r in metrics] == sorted(r.time_ns for r in metrics)
    (shown,) = [r for r in recorded(logger) if r.id == "image"]
    assert logger.log_dir is not None
    assert shown.blobs
    path = Path(logger.log_dir) / "journal" / "blobs" / shown.blobs[0].id / shown.blobs[0].name
    assert np.abs(np.asarray(Image.open(path)).transpose(2, 0, 1) - expected).max() <= 1
    (histogram,) = [r for r in recorded(logger) if r.id == "spread"]
    assert histogram.value["spread"]["sum"] == sum(range(100))
