"""A lost, hanging or failing MLflow server: training ends normally, and every point arrives once."""

import json
import logging
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import MLflowServer, free_port, wait_until
from faulty import FaultyProxy, at_random, until
from lightning.pytorch import LightningModule, Trainer
from mlflow_reading import assert_exactly_once, only_run, points
from torch.utils.data import DataLoader, TensorDataset

from lightning_loggers import MLFlowLogger
from lightning_loggers.delivery.worker import StepKind, Worker
from lightning_loggers.journal import read


class Regression(LightningModule):
    """A model of four weights: as little training as a Trainer can do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def fit(logger: MLFlowLogger, folder: Path, steps: int) -> None:
    """A real fit that logs every step."""
    data = DataLoader(TensorDataset(torch.randn(4 * steps, 4)), batch_size=4)
    Trainer(
        logger=logger, max_epochs=1, log_every_n_steps=1, accelerator="cpu", default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    ).fit(Regression(), data)  # fmt: skip


def deliver(run_dir: Path, timeout_s: float = 60.0, options: dict[str, str] | None = None) -> Worker:
    """Deliver what is left of a run, as the command line does."""
    worker = Worker(run_dir, options)
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        step = worker.step()
        if step.kind is StepKind.IDLE and worker.finish_dead().kind is StepKind.IDLE:
            break
        if step.kind is not StepKind.PROGRESS:
            threading.Event().wait(min(step.wait_s, 0.2))
    worker.close()
    return worker


def logged(logger: MLFlowLogger, key: str) -> list[tuple[int, float]]:
    """What the journal says was logged."""
    assert logger.log_dir is not None
    return [
        (record.step, record.data[key])  # type: ignore[misc]
        for record in read(logger.log_dir)
        if record.kind == "metric" and record.data and key in record.data
    ]


@pytest.mark.parametrize("delivery", ["thread", "process"])
def test_server_killed_in_mid_run_and_back_later(
    own_mlflow_server: MLflowServer, tmp_path: Path, delivery: str
) -> None:
    """A server that is SIGKILLed while a run logs and comes back costs no point and shows none twice."""
    server = own_mlflow_server.start()
    logger = MLFlowLogger(
        "outage", tracking_uri=server.uri, save_dir=tmp_path / "runs", delivery=delivery, finalize_timeout_s=60
    )
    for step in range(500):
        logger.log_metrics({"loss": 1.0 / (step + 1)}, step)
    wait_until(lambda: logger.stats.delivered > 0, 60, "first delivery")
    server.kill()
    for step in range(500, 3000):
        logger.log_metrics({"loss": 1.0 / (step + 1)}, step)
    wait_until(lambda: logger.stats.retried > 0, 60, "noticing the outage")
    assert logger.stats.pending > 0
    server.start()
    for step in range(3000, 3500):
        logger.log_metrics({"loss": 1.0 / (step + 1)}, step)
    logger.finalize("success")
    assert logger.stats.pending == 0
    logger.close()
    run = only_run(server.database_uri, "outage")
    assert run.info.status == "FINISHED"
    expected = [(step, 1.0 / (step + 1)) for step in range(3500)]
    assert_exactly_once(server.database_uri, run.info.run_id, "loss", expected)


@pytest.mark.parametrize("delivery", ["thread", "process"])
def test_a_program_that_logs_all_the_time_is_delivered_in_few_requests(
    mlflow_server: str, tmp_path: Path, delivery: str
) -> None:
    """What is logged is sent about once a second; whoever waits for it is served at once."""
    with FaultyProxy(int(mlflow_server.rpartition(":")[2]), lambda: "") as proxy:
        name = f"steadily-{delivery}"
        logger = MLFlowLogger(name, tracking_uri=proxy.uri, save_dir=tmp_path / "runs", delivery=delivery)
        logger.log_metrics({"loss": 0.0}, 0)
        assert logger.run_id  # somebody has waited for something, and waits no more
        wait_until(lambda: logger.stats.pending == 0, 60, "the first point")
        before, begun, steps = proxy.requests, time.monotonic(), 0
        while time.monotonic() < begun + 4:
            steps += 1
            logger.log_metrics({"loss": float(steps)}, steps)
            time.sleep(0.002)
        assert proxy.requests - before <= time.monotonic() - begun + 3
        logger.finalize("success")
        assert logger.stats.pending == 0
        logger.close()
    run = only_run(mlflow_server, name)
    expected = [(step, float(step)) for step in range(steps + 1)]
    assert_exactly_once(mlflow_server, run.info.run_id, "loss", expected)


def test_fit_with_nothing_listening_keeps_everything_for_later(
    own_mlflow_server: MLflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A fit whose server never answers ends; all is in the journal, the cure is told, later all is delivered."""
    server = own_mlflow_server
    logger = MLFlowLogger("down", tracking_uri=server.uri, save_dir=tmp_path / "runs", finalize_timeout_s=0.5)
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        fit(logger, tmp_path, 200)
    logger.close()
    expected = logged(logger, "loss")
    assert len(expected) == 200
    assert logger.stats.delivered == 0
    assert f"lightning-loggers sync {logger.log_dir}" in caplog.text
    assert caplog.text.count("cannot be reached") == 1
    server.start()
    assert logger.log_dir is not None
    worker = deliver(Path(logger.log_dir))
    assert worker.state is not None
    assert worker.state.delivered == logger.stats.recorded
    run = only_run(server.database_uri, "down")
    assert run.info.status == "FINISHED"
    assert_exactly_once(server.database_uri, run.info.run_id, "loss", expected)


def test_server_that_accepts_and_never_answers(mlflow_server: str, tmp_path: Path) -> None:
    """A server that takes connections and says nothing delays no log call; finalize ends; later all is delivered."""
    port = int(mlflow_server.rpartition(":")[2])
    silent = threading.Event()
    with FaultyProxy(port, lambda: "" if silent.is_set() else "hang") as proxy:
        logger = MLFlowLogger("hanging", tracking_uri=proxy.uri, save_dir=tmp_path / "runs", finalize_timeout_s=0.3)
        fit(logger, tmp_path, 100)
        assert logger.stats.delivered == 0
        assert proxy.requests >= 1
        logger.close()
        silent.set()
        proxy.released.set()  # the hanging requests are cut off; the same address answers from here on
        assert logger.log_dir is not None
        host = logger._host
        wait_until(lambda: host is not None and not host.working(), 60, "the end of the delivery thread")
        deliver(Path(logger.log_dir))
    run = only_run(mlflow_server, "hanging")
    assert_exactly_once(mlflow_server, run.info.run_id, "loss", logged(logger, "loss"))


@pytest.mark.parametrize(
    ("name", "share", "faults"),
    [("flaky", 0.3, ["429", "500", "reset", "lost", "503"]), ("slow", 0.5, ["slow"])],
)
def test_flaky_and_slow_answers(mlflow_server: str, tmp_path: Path, name: str, share: float, faults: list[str]) -> None:
    """Answers that are refused, reset, lost after the fact, or two seconds late cost no point and double none."""
    port = int(mlflow_server.rpartition(":")[2])
    with FaultyProxy(port, at_random(share, faults)) as proxy:
        logger = MLFlowLogger(name, tracking_uri=proxy.uri, save_dir=tmp_path / "runs", finalize_timeout_s=90)
        for step in range(2000):
            logger.log_metrics({"loss": step * 0.5, "nan": float("nan") if step % 2 else 1.0}, step)
            if step % 400 == 0:
                wait_until(lambda step=step: logger.stats.delivered >= step - 400, 60, "some delivery")  # type: ignore[misc]
        logger.finalize("success")
        assert logger.stats.pending == 0
        assert logger.stats.rejected == 0
        logger.close()
        assert proxy.faults > 0
    run = only_run(mlflow_server, name)
    assert run.info.status == "FINISHED"
    assert_exactly_once(mlflow_server, run.info.run_id, "loss", [(step, step * 0.5) for step in range(2000)])
    assert len(points(mlflow_server, run.info.run_id, "nan")) == 2000


def test_retry_after_is_honoured(mlflow_server: str, tmp_path: Path) -> None:
    """A 429 with Retry-After keeps delivery away for that long: one refused request, not a dozen."""
    port = int(mlflow_server.rpartition(":")[2])
    moment = time.monotonic() + 4
    with FaultyProxy(port, until(moment, "429")) as proxy:
        proxy.headers_sent["Retry-After"] = "5"
        logger = MLFlowLogger("retry-after", tracking_uri=proxy.uri, save_dir=tmp_path / "runs")
        logger.log_metrics({"loss": 1.0}, 0)
        wait_until(lambda: logger.stats.delivered == 1, 60, "delivery")
        assert proxy.faults == 1
        logger.close()


def test_conflicting_param_is_the_only_thing_rejected(mlflow_sqlite: str, tmp_path: Path) -> None:
    """A parameter that MLflow refuses to change is kept in rejected.jsonl with the reason; all else is delivered."""
    logger = MLFlowLogger("conflict", tracking_uri=mlflow_sqlite, save_dir=tmp_path / "runs")
    logger.log_hyperparams({"lr": 0.1, "width": 8})
    logger.log_hyperparams({"lr": 0.2, "width": 8, "depth": 3})
    for step in range(50):
        logger.log_metrics({"loss": float(step)}, step)
    logger.finalize("success")
    assert logger.log_dir is not None
    lines = (Path(logger.log_dir) / "journal" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line)["record"]["data"] for line in lines] == [{"lr": 0.2}]
    assert "lr" in json.loads(lines[0])["reason"]
    run = only_run(mlflow_sqlite, "conflict")
    assert run.data.params == {"lr": "0.1", "width": "8", "depth": "3"}
    assert_exactly_once(mlflow_sqlite, run.info.run_id, "loss", [(step, float(step)) for step in range(50)])
    assert logger.stats.rejected == 1
    assert logger.stats.pending == 0


def test_wrong_credentials_are_told_once_with_the_cure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server that answers 401 is told of once, with the command for later; the records stay pending."""
    with FaultyProxy(0, lambda: "401") as proxy, caplog.at_level(logging.WARNING, "lightning_loggers"):
        uri = proxy.uri.replace("http://", "http://ann:s3cr3tpassword@")
        logger = MLFlowLogger("locked", tracking_uri=uri, save_dir=tmp_path / "runs", finalize_timeout_s=0.5)
        logger.log_metrics({"loss": 1.0}, 0)
        wait_until(lambda: proxy.faults > 0, 30, "the first refusal")
        logger.finalize("success")
        logger.close()
    assert caplog.text.count("does not let this run in") == 1
    assert "lightning-loggers sync" in caplog.text
    assert logger.stats.pending == 1
    assert "s3cr3tpassword" not in caplog.text
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file():
            assert b"s3cr3tpassword" not in path.read_bytes(), path


def test_constructing_and_logging_contacts_nobody(tmp_path: Path) -> None:
    """The training thread itself makes no connection: with delivery offline, the port hears nothing."""
    with FaultyProxy(0, lambda: "500") as proxy:
        logger = MLFlowLogger("quiet", tracking_uri=proxy.uri, save_dir=tmp_path / "runs", delivery="offline")
        fit(logger, tmp_path, 20)
        assert proxy.requests == 0
    logger.close()
    assert len(logged(logger, "loss")) == 20


def test_leftovers_of_a_dead_run_are_delivered_by_the_next(own_mlflow_server: MLflowServer, tmp_path: Path) -> None:
    """A run left behind by an outage is delivered in the background by the next logger in the same folder, once."""
    server = own_mlflow_server
    first = MLFlowLogger("left", tracking_uri=server.uri, save_dir=tmp_path / "runs", finalize_timeout_s=0)
    for step in range(100):
        first.log_metrics({"loss": float(step)}, step)
    first.finalize("failed")
    first.close()
    wait_until(lambda: first._host is not None and not first._host.working(), 60, "the first delivery thread's end")
    server.start()
    second = MLFlowLogger("next", tracking_uri=server.uri, save_dir=tmp_path / "runs")
    second.log_metrics({"loss": 1.0}, 0)
    wait_until(lambda: first.stats.pending == 0 or _delivered(first), 60, "delivery of the leftover")
    second.close()
    run = only_run(server.database_uri, "left")
    assert run.info.status == "FAILED"
    assert_exactly_once(server.database_uri, run.info.run_id, "loss", [(step, float(step)) for step in range(100)])


def test_leftovers_can_be_left_alone(own_mlflow_server: MLflowServer, tmp_path: Path) -> None:
    """With deliver_leftovers=False the next logger does not touch an earlier run."""
    server = own_mlflow_server
    first = MLFlowLogger("left", tracking_uri=server.uri, save_dir=tmp_path / "runs", delivery="offline")
    first.log_metrics({"loss": 1.0}, 0)
    first.close()
    server.start()
    second = MLFlowLogger("next", tracking_uri=server.uri, save_dir=tmp_path / "runs", deliver_leftovers=False)
    second.log_metrics({"loss": 1.0}, 0)
    second.finalize("success")
    second.close()
    wait_until(lambda: second._host is not None and not second._host.working(), 60, "the delivery thread's end")
    assert not _delivered(first)


def _delivered(logger: MLFlowLogger) -> bool:
    assert logger.log_dir is not None
    worker = Worker(Path(logger.log_dir))
    state = worker._load_state()
    return state is not None and state.delivered > 0 and state.status == "failed"


def test_port_without_a_listener_is_free() -> None:
    """The helper that picks ports gives one on which nothing answers (or the outage tests would prove nothing)."""
    import socket

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", free_port()), timeout=2)
