"""InMemoryLogger: everything that was logged is at hand, at once, and nothing is left behind."""

import copy
import gc
import inspect
import math
import pickle
import signal
import stat
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import wait_until
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger as TheirCSVLogger
from mlflow import MlflowClient
from torch.utils.data import DataLoader, TensorDataset
from warm_python import WarmPython

from lightning_loggers import InMemoryLogger, LoggerCollection, MLFlowLogger
from lightning_loggers.adapters.memory import MemoryRun, memory_of
from lightning_loggers.errors import ConfigurationError, TrackerUnavailableError
from lightning_loggers.journal import read
from lightning_loggers.records import Kind, Record, RunStatus


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython]:
    """Runs programs in processes of their own, whose temporary files go with the tests' own."""
    with WarmPython(TMPDIR=str(tmp_path_factory.mktemp("tmp"))) as python:
        yield python


# ---------------------------------------------------------------------- what it answers


def test_every_value_is_there_at_once() -> None:
    """Asked right after twenty thousand log calls, it holds every value, in order, with its step and time."""
    logger = InMemoryLogger()
    before = time.time_ns()
    for step in range(20_000):
        logger.log_metrics({"loss": step / 8}, step)
    after = time.time_ns()
    series = logger.timeseries("loss")
    assert series.keys() == {"value", "step", "timestamp", "epoch"}
    assert series["value"].tolist() == [step / 8 for step in range(20_000)]
    assert series["step"].tolist() == list(range(20_000))
    times = series["timestamp"].astype(np.int64)
    assert before <= times[0]
    assert times[-1] <= after
    assert (np.diff(times) >= 0).all()
    assert np.isnan(series["epoch"]).all()
    assert {array.shape for array in series.values()} == {(20_000,)}


def test_arrays_have_the_types_of_what_was_logged() -> None:
    """Integers stay integers of 64 bits, a missing step is NaN among the others, and non-finite values are kept."""
    logger = InMemoryLogger()
    logger.log_metrics({"count": 2**62 + 1, "odd": math.nan, "mixed": 1})
    logger.log_metrics({"count": -1, "odd": -math.inf, "mixed": 0.5}, 0)
    logger.log_metrics({"odd": math.inf}, 7)
    assert logger.timeseries("count")["value"].tolist() == [2**62 + 1, -1]
    assert logger.timeseries("count")["value"].dtype == np.int64
    np.testing.assert_array_equal(logger.timeseries("odd")["value"], [math.nan, -math.inf, math.inf])
    np.testing.assert_array_equal(logger.timeseries("odd")["step"], [math.nan, 0, 7])
    assert logger.timeseries("mixed")["value"].dtype == np.float64
    assert logger.timeseries("mixed")["timestamp"].dtype == np.dtype("datetime64[ns]")


def test_most_recent_is_what_was_logged_last() -> None:
    """The most recent value is that of the last call, whatever its step; each metric has its own."""
    logger = InMemoryLogger(prefix="run")
    logger.log_metrics({"loss": 3.0, "accuracy": 0.1}, 10)
    logger.log_metrics({"loss": 2.0}, 5)
    assert logger.most_recent("run-loss") == 2.0
    assert logger.most_recent_values == {"run-loss": 2.0, "run-accuracy": 0.1}
    logger.log_metrics({"loss": math.nan})
    assert math.isnan(logger.most_recent("run-loss"))
    assert logger.metric_names == ["run-loss", "run-accuracy"]


def test_streams_of_several_processes_are_one_series() -> None:
    """Records of two streams, delivered one stream after the other, are in the order of time, and each once."""
    run = MemoryRun()
    for _ in range(2):
        for time_ns in (10, 30, 20, 20):
            run.add(Record(time_ns, "metric", step=time_ns, data={"loss": float(time_ns), "odd": float("nan")}))
    assert run.timeseries("loss")["value"].tolist() == [10.0, 20.0, 30.0]
    assert len(run.points("odd")) == 3
    assert run.most_recent("loss") == 30.0


def test_values_outlive_delivery() -> None:
    """A logger that was closed before anybody asked answers all the same."""
    logger = InMemoryLogger()
    logger.log_metrics({"loss": 1.0}, 0)
    logger.close()
    host = logger._host
    assert host is not None
    wait_until(lambda: not host.working(), what="the delivery thread's end")
    gc.collect()
    assert logger.most_recent_values == {"loss": 1.0}
    assert logger.status == RunStatus.FINISHED


def test_a_metric_that_is_not_there_is_named_with_those_that_are() -> None:
    """Asking for an unknown metric raises a KeyError that lists the known ones."""
    logger = InMemoryLogger()
    logger.log_metrics({"loss": 1.0}, 0)
    for ask in (logger.most_recent, logger.timeseries):
        with pytest.raises(KeyError, match="no metric 'lss' was logged; there are 'loss'"):
            ask("lss")


def test_a_fresh_logger_is_empty_and_makes_nothing(tmp_path: Path) -> None:
    """Constructing and asking a logger that has logged nothing gives empty answers and makes no file."""
    logger = InMemoryLogger(save_dir=tmp_path)
    assert (logger.metric_names, logger.most_recent_values, logger.hyperparams, logger.records) == ([], {}, {}, [])
    assert logger.status is None
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []


def test_other_kinds_are_kept_whole(tmp_path: Path) -> None:
    """Hyperparameters, texts (also of five million characters), dictionaries, files and the status are there."""
    logger = InMemoryLogger()
    logger.log_hyperparams(Namespace(lr=0.1, model={"width": 64, "act": torch.relu}, seed=math.inf))
    logger.log_hyperparams({"lr": 0.2})
    logger.log_text("note", "first")
    logger.log_text("note", "ü" * 5_000_000, step=3)
    logger.log_dict("table", {"a": [1, 2.5, None]})
    (tmp_path / "file.bin").write_bytes(b"content")
    logger.log_artifact(tmp_path / "file.bin", "files")
    (tmp_path / "file.bin").unlink()
    params = logger.hyperparams
    assert (params["lr"], params["model/width"], params["seed"]) == (0.2, 64, math.inf)
    assert "relu" in params["model/act"]
    assert logger.texts("note") == ["first", "ü" * 5_000_000]
    assert logger.dicts("table") == [{"a": [1, 2.5, None]}]
    assert [record.kind for record in logger.records] == [Kind.TEXT, Kind.TEXT, Kind.DICT, Kind.ARTIFACT]
    assert [path.read_bytes() for path in logger.experiment.files["files"]] == [b"content"]
    assert logger.status == RunStatus.RUNNING
    logger.finalize("failed")
    assert logger.status == RunStatus.FAILED
    assert isinstance(logger.experiment, MemoryRun)


def test_asking_between_log_calls_of_other_threads() -> None:
    """Answers given while four threads log are beginnings of what was logged, and the last one is all of it."""
    logger = InMemoryLogger()
    logger.log_metrics({"begun": 1.0})

    def log(thread: int) -> None:
        for step in range(500):
            logger.log_metrics({f"thread{thread}": float(step)}, step)

    threads = [threading.Thread(target=log, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for name in logger.metric_names[1:]:
            values = logger.timeseries(name)["value"].tolist()
            assert values == list(range(len(values)))
    for thread in threads:
        thread.join()
    names = [f"thread{number}" for number in range(4)]
    assert {name: logger.most_recent(name) for name in names} == dict.fromkeys(names, 499.0)
    assert all(len(logger.timeseries(name)["value"]) == 500 for name in names)


def test_held_portions_are_counted_in() -> None:
    """Asking logs what ``agg_and_log_metrics`` still holds, so the answer is complete."""
    logger = InMemoryLogger(agg_key_funcs={"peak": max})
    logger.agg_and_log_metrics({"loss": 1.0, "peak": 1.0}, 0)
    logger.agg_and_log_metrics({"loss": 2.0, "peak": 5.0}, 0)
    assert logger.most_recent_values == {"loss": 1.5, "peak": 5.0}


def test_offline_has_nothing_to_ask(tmp_path: Path) -> None:
    """With delivery offline the journal is written, and asking says so instead of answering with nothing."""
    logger = InMemoryLogger(save_dir=tmp_path, delivery="offline")
    logger.log_metrics({"loss": 1.0}, 0)
    with pytest.raises(TrackerUnavailableError, match=r"delivery='offline'.*1 pending"):
        logger.most_recent("loss")
    assert [record.data for record in read(str(logger.log_dir))] == [{"loss": 1.0}]


def test_delivery_to_another_process_is_refused() -> None:
    """``delivery="process"`` would put the values where nobody can ask for them, and says so."""
    with pytest.raises(ConfigurationError, match="another process"):
        InMemoryLogger(delivery="process")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- with a Trainer


class Regression(LightningModule):
    """A model of four weights."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"lr": 0.01})
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        loss = self.layer(batch[0]).pow(2).mean()
        self.log("loss", loss)
        self.log("epoch_loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor], index: int) -> None:
        self.log("val_loss", self.layer(batch[0]).pow(2).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_a_fit_is_held_whole(tmp_path: Path) -> None:
    """After ``Trainer.fit`` every logged step and epoch is there, with hyperparameters and status."""
    logger = InMemoryLogger()
    trainer = Trainer(
        logger=logger, max_epochs=3, log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, accelerator="cpu",
    )  # fmt: skip
    data = DataLoader(TensorDataset(torch.randn(32, 4)), batch_size=4)
    trainer.fit(Regression(), data, data)
    assert logger.timeseries("loss")["step"].tolist() == list(range(24))
    assert len(logger.timeseries("val_loss")["value"]) == len(logger.timeseries("epoch_loss")["value"]) == 3
    assert logger.most_recent("epoch_loss") == pytest.approx(float(trainer.callback_metrics["epoch_loss"]))
    assert logger.timeseries("epoch")["value"][-1] == 2
    assert logger.hyperparams == {"lr": 0.01}
    assert logger.status == RunStatus.FINISHED


def test_checkpoints_do_not_go_to_the_temporary_folder(tmp_path: Path) -> None:
    """With its default folder the logger leaves the place of checkpoints to the Trainer: they outlive the process."""
    logger = InMemoryLogger("digits")
    trainer = Trainer(
        logger=logger, max_epochs=1, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Regression(), DataLoader(TensorDataset(torch.randn(4, 4))))
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert checkpoint.is_relative_to(tmp_path / "digits" / logger.version)
    assert logger.save_dir is None


def test_several_loggers_keep_apart() -> None:
    """Two loggers of the same name, in one collection, each hold their own, and one of them may be closed."""
    first, second = InMemoryLogger(), InMemoryLogger()
    both = LoggerCollection([first, second])
    both.log_metrics({"loss": 1.0}, 0)
    first.log_metrics({"loss": 2.0}, 1)
    host = second._host
    second.close()
    second.close()
    assert host is not None
    wait_until(lambda: not host.working(), what="the delivery thread's end")
    both.log_metrics({"loss": 3.0}, 2)
    both.finalize("success")
    assert first.timeseries("loss")["value"].tolist() == [1.0, 2.0, 3.0]
    assert second.timeseries("loss")["value"].tolist() == [1.0, 3.0]
    assert not both.failures


def test_logging_goes_on_right_after_close() -> None:
    """A log call right after ``close`` is delivered, although the earlier delivery thread has not ended yet."""
    logger = InMemoryLogger()
    for step in range(5):
        logger.log_metrics({"loss": float(step)}, step)
        logger.close()
    logger.log_metrics({"loss": 5.0}, 5)
    assert logger.timeseries("loss")["value"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_constructor_has_the_common_parameters() -> None:
    """Names and defaults that Lightning's own file logger has are the same; the rest is keyword-only."""
    ours, theirs = (inspect.signature(kind).parameters for kind in (InMemoryLogger, TheirCSVLogger))
    for name in ("name", "version", "prefix"):
        assert ours[name].default == theirs[name].default
    positional = [name for name, parameter in ours.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    assert positional == ["name", "save_dir"]
    assert {"delivery", "finalize_timeout_s", "agg_key_funcs", "agg_default_func"} <= ours.keys()


# ---------------------------------------------------------------------- copies, processes, files


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_logs_to_the_same_memory(duplicate: object) -> None:
    """A copied or pickled logger is another handle on the same run: both answer with what both have logged."""
    logger = InMemoryLogger()
    logger.log_metrics({"loss": 1.0}, 0)
    assert logger.most_recent("loss") == 1.0
    other = duplicate(logger)  # type: ignore[operator]
    assert other.most_recent("loss") == 1.0
    logger.close()
    other.log_metrics({"loss": 2.0}, 1)
    assert other.timeseries("loss")["value"].tolist() == [1.0, 2.0]
    assert logger.timeseries("loss")["value"].tolist() == [1.0, 2.0]


def test_memory_is_freed_with_the_logger() -> None:
    """What nobody holds any more is gone: a notebook that makes many loggers does not fill up."""
    logger = InMemoryLogger()
    logger.log_metrics({"loss": 1.0}, 0)
    assert logger.most_recent("loss") == 1.0
    run_dir, host = Path(str(logger.log_dir)), logger._host
    logger.close()
    del logger
    gc.collect()
    assert host is not None
    wait_until(lambda: not host.working(), what="the delivery thread's end")
    gc.collect()
    assert memory_of(run_dir).names == []


def test_the_temporary_folder_is_private_and_removed(python: WarmPython) -> None:
    """The default folder is made by the first log call, readable by its owner only, and gone with the process."""
    code = (
        "import os; from lightning_loggers import InMemoryLogger\n"
        "logger, closed = InMemoryLogger(), InMemoryLogger()\n"
        "root = os.path.dirname(os.path.dirname(logger.log_dir))\n"
        "assert not os.path.exists(root)\n"
        "logger.log_metrics({'loss': 1.0}, 0); closed.log_metrics({'loss': 1.0}, 0); closed.close()\n"
        "print(root, os.stat(root).st_mode, os.path.dirname(os.path.dirname(closed.log_dir)))"
    )
    root, mode, other = python.run(code).ok().stdout.split()
    assert stat.S_IMODE(int(mode)) == 0o700
    assert not Path(root).exists()
    assert not Path(other).exists()


def test_a_forked_child_leaves_the_parents_folder_alone(python: WarmPython) -> None:
    """A child process that ends does not remove the folder of the parent that goes on logging."""
    code = (
        "import os, sys; from lightning_loggers import InMemoryLogger\n"
        "logger = InMemoryLogger()\n"
        "logger.log_metrics({'loss': 1.0}, 0); logger.most_recent('loss')\n"
        "pid = os.fork()\n"
        "if not pid: logger.log_metrics({'child': 2.0}, 0); sys.exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert os.path.isdir(logger.log_dir)\n"
        "logger.log_metrics({'loss': 3.0}, 1)\n"
        "print(logger.timeseries('loss')['value'].tolist(), os.listdir(logger.log_dir))"
    )
    out = python.run(code).ok().stdout
    assert out.startswith("[1.0, 3.0]")


def test_a_named_folder_is_kept(python: WarmPython, tmp_path: Path) -> None:
    """With a ``save_dir`` the journal outlives the process, and ``save_dir`` says where."""
    code = (
        "import sys; from lightning_loggers import InMemoryLogger\n"
        "logger = InMemoryLogger('digits', sys.argv[1], version='one'); logger.log_metrics({'loss': 1.0}, 0)"
    )
    python.run(code, tmp_path).ok()
    assert next(record.data for record in read(tmp_path / "digits" / "one")) == {"loss": 1.0}
    assert InMemoryLogger(save_dir=tmp_path).save_dir == str(tmp_path)


def test_a_killed_run_is_continued_with_all_its_values(python: WarmPython, tmp_path: Path) -> None:
    """A run whose process was killed is continued by the next one, which holds all that the first had logged."""
    code = (
        "import os, sys; from lightning_loggers import InMemoryLogger\n"
        "logger = InMemoryLogger('digits', sys.argv[1], version='one')\n"
        "logger.log_hyperparams({'lr': 0.1}); logger.log_text('note', 'first')\n"
        "for step in range(500):\n"
        "    logger.log_metrics({'loss': float(step)}, step)\n"
        "    if step == 250: logger.most_recent('loss')\n"
        "os.kill(os.getpid(), 9)"
    )
    assert python.run(code, tmp_path).returncode == -signal.SIGKILL
    logger = InMemoryLogger("digits", tmp_path, version="one")
    logger.log_metrics({"loss": 500.0}, 500)
    assert logger.timeseries("loss")["value"].tolist() == [float(step) for step in range(501)]
    assert logger.hyperparams == {"lr": 0.1}
    assert logger.texts("note") == ["first"]


def test_another_run_in_the_same_folder_begins_empty(tmp_path: Path) -> None:
    """A folder that was deleted and used again does not show what its earlier run held."""
    logger = InMemoryLogger("digits", tmp_path, version="one")
    logger.log_metrics({"old": 1.0}, 0)
    assert logger.metric_names == ["old"]
    logger.close()
    (tmp_path / "digits").rename(tmp_path / "moved")
    other = InMemoryLogger("digits", tmp_path, version="one")
    other.log_metrics({"new": 1.0}, 0)
    assert other.metric_names == ["new"]


def test_a_full_disk_is_told_when_asked(python: WarmPython, tmp_path: Path) -> None:
    """While the disk refuses the journal, log calls go on and asking raises instead of answering with less."""
    code = (
        "import resource, sys; from lightning_loggers import InMemoryLogger\n"
        "from lightning_loggers.errors import TrackerUnavailableError\n"
        "logger = InMemoryLogger('digits', sys.argv[1], finalize_timeout_s=0.5)\n"
        "logger.log_metrics({'loss': 0.0}, 0); logger.most_recent('loss')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "for step in range(1000): logger.log_metrics({'loss': float(step)}, step)\n"
        "try: logger.most_recent('loss')\n"
        "except TrackerUnavailableError as error: print('refused:', error)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "print(len(logger.timeseries('loss')['value']))"
    )
    refused, count = python.run(code, tmp_path).ok().stdout.splitlines()
    assert refused.startswith("refused: InMemoryLogger does not hold all records")
    assert count == "1001"


def test_trackers_in_one_folder_keep_their_journals_apart(mlflow_sqlite: str, tmp_path: Path) -> None:
    """Loggers of two trackers with the same save_dir, name and version deliver their own records, and only those."""
    memory = InMemoryLogger("shared", save_dir=tmp_path, version="1")
    mlflow = MLFlowLogger("shared", tracking_uri=mlflow_sqlite, save_dir=tmp_path, version="1")
    memory.log_metrics({"here": 1.0}, 0)
    mlflow.log_metrics({"there": 2.0}, 0)
    for logger in (memory, mlflow):
        logger.finalize("success")
        assert logger.stats.pending == 0
    assert memory.metric_names == ["here"]
    assert MlflowClient(mlflow_sqlite).get_run(mlflow.run_id).data.metrics == {"there": 2.0}
    assert memory.log_dir == mlflow.log_dir
    for logger in (memory, mlflow):
        logger.close()
    again = MLFlowLogger("shared", tracking_uri=mlflow_sqlite, save_dir=tmp_path, version="1")
    again.log_metrics({"there": 3.0}, 1)
    again.finalize("success")
    again.close()
    assert MlflowClient(mlflow_sqlite).get_run(again.run_id).data.metrics == {"there": 3.0}
    assert again.run_id == mlflow.run_id
