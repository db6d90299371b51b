"""The base class, the collection and the dummies, alone and under the Trainers of both Lightning packages."""

import collections.abc
import copy
import logging
import pickle
import subprocess
import sys
import timeit

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning_utilities.core.rank_zero import rank_zero_only
from torch.testing._internal.distributed.fake_pg import FakeStore

from lightning_loggers import base
from lightning_loggers.base import (
    DummyExperiment,
    DummyLogger,
    LightningLoggerBase,
    LoggerCollection,
    MemberFailure,
    merge_dicts,
    rank_zero_experiment,
)
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.ranks import current_rank

PACKAGES = [lightning.pytorch, pytorch_lightning]


class Recorder(LightningLoggerBase):
    """Only what is abstract, and a list of what was called; its __init__ forgets the one of the base class."""

    def __init__(self, name="recorder", version=0):
        self._name, self._version = name, version
        self.calls = []

    @property
    def experiment(self):
        """The list of calls."""
        return self.calls

    @property
    def name(self):
        """As given."""
        return self._name

    @property
    def version(self):
        """As given."""
        return self._version

    def log_metrics(self, metrics, step=None):
        """Recorded."""
        self.calls.append(("metrics", step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        """Recorded."""
        self.calls.append(("hyperparams", dict(params)))


class FullRecorder(Recorder):
    """Records every call of the interface and has a method of its own."""

    def agg_and_log_metrics(self, metrics, step=None):
        """Recorded."""
        self.calls.append(("agg", step, dict(metrics)))

    def update_agg_funcs(self, agg_key_funcs=None, agg_default_func=np.mean):
        """Recorded."""
        self.calls.append(("update", agg_key_funcs, agg_default_func))

    def log_graph(self, model, input_array=None):
        """Recorded."""
        self.calls.append(("graph", type(model).__name__, input_array))

    def save(self):
        """Recorded."""
        self.calls.append(("save",))

    def finalize(self, status):
        """Recorded."""
        self.calls.append(("finalize", status))

    def close(self):
        """Recorded."""
        self.calls.append(("close",))

    def after_save_checkpoint(self, checkpoint_callback):
        """Recorded."""
        self.calls.append(("checkpoint", checkpoint_callback))

    def log_image(self, key, images, step=None):
        """Recorded; not part of the interface."""
        self.calls.append(("image", key, images, step))
        return key


class BrokenError(Exception):
    """What a broken logger raises."""


class Broken(FullRecorder):
    """Raises from everything."""

    error = BrokenError("the server is gone")

    def _raise(self, *args, **kwargs):
        raise self.error

    log_metrics = log_hyperparams = agg_and_log_metrics = update_agg_funcs = log_graph = _raise
    save = finalize = close = after_save_checkpoint = log_image = _raise
    experiment = name = version = save_dir = log_dir = root_dir = group_separator = property(_raise)


def model_of(package):
    """A model of one parameter that logs twice per step and at the end of the epoch."""

    class Model(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.save_hyperparameters({"lr": 0.1})
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            loss = self.layer(batch).sum()
            self.log("loss", loss)
            self.log("batch_idx", float(batch_idx))
            self.logger.agg_and_log_metrics({"portion": 1.0}, step=self.global_step)
            self.logger.agg_and_log_metrics({"portion": 4.0}, step=self.global_step)
            return loss

        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.ones(8, 1))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Model()


def fit(package, logger, tmp_path, **kwargs):
    """Three real steps on the CPU."""
    options = {
        "max_steps": 3,
        "accelerator": "cpu",
        "devices": 1,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "default_root_dir": tmp_path,
    }
    trainer = package.Trainer(logger=logger, **(options | kwargs))
    trainer.fit(model_of(package))
    return trainer


# ---- LightningLoggerBase


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_a_minimal_logger_trains_under_either_package(package, tmp_path):
    """A subclass of the abstract members alone gets hyperparameters, metrics and joined portions from a real fit."""
    logger = Recorder()
    trainer = fit(package, logger, tmp_path)
    assert trainer.logger is logger
    assert ("hyperparams", {"lr": 0.1}) in logger.calls
    metrics = [call[1:] for call in logger.calls if call[0] == "metrics"]
    assert [(step, m["batch_idx"]) for step, m in metrics if "loss" in m] == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert [(step, m) for step, m in metrics if "portion" in m] == [(step, {"portion": 2.5}) for step in range(3)]


def test_one_logger_serves_both_trainers_in_turn(tmp_path):
    """The same object may be handed to a Trainer of one package and then of the other."""
    logger = Recorder()
    for package in PACKAGES:
        fit(package, logger, tmp_path)
    assert sum("loss" in call[-1] for call in logger.calls) == 6


@pytest.mark.parametrize("make", [Recorder, DummyLogger, lambda: LoggerCollection([])])
def test_loggers_are_instances_of_both_logger_classes(make):
    """Once pytorch_lightning is loaded, a new logger is an instance of its Logger as well as of lightning's."""
    logger = make()
    assert isinstance(logger, lightning.pytorch.loggers.Logger)
    assert isinstance(logger, pytorch_lightning.loggers.Logger)


def test_pytorch_lightning_is_not_imported_by_us():
    """Making a logger does not load the other package; loggers made after the user loaded it belong to it."""
    code = """
import sys
from lightning_loggers.base import DummyLogger
DummyLogger()
assert "pytorch_lightning" not in sys.modules
import pytorch_lightning
assert isinstance(DummyLogger(), pytorch_lightning.loggers.Logger)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("missing", ["experiment", "name", "version", "log_metrics", "log_hyperparams"])
def test_the_abstract_members_are_required(missing):
    """A subclass that lacks one of the five abstract members cannot be made."""
    members = {"experiment", "name", "version", "log_metrics", "log_hyperparams"} - {missing}
    with pytest.raises(TypeError, match=missing):
        type("Incomplete", (LightningLoggerBase,), dict.fromkeys(members))()


def test_defaults_of_the_base_class():
    """Nothing is kept on disk unless a subclass says so, and the hooks accept their calls."""
    logger = Recorder()
    assert (logger.save_dir, logger.root_dir, logger.log_dir, logger.group_separator) == (None, None, None, "/")
    logger.log_graph(torch.nn.Linear(1, 1), torch.ones(1))
    logger.after_save_checkpoint(None)
    assert logger.calls == []


@pytest.mark.parametrize("end", ["save", "close", "finalize", "next step"])
def test_portions_of_a_step_are_logged_as_one(end):
    """Portions of a step are joined and logged once, when the step changes or at save, close or finalize."""
    logger = Recorder()
    logger.agg_and_log_metrics({"loss": 1.0}, step=0)
    logger.agg_and_log_metrics({"loss": 2.0, "d": {"x": 1.0}}, step=0)
    assert logger.calls == []
    if end == "next step":
        logger.agg_and_log_metrics({"loss": 5.0}, step=1)
    elif end == "finalize":
        logger.finalize("success")
    else:
        getattr(logger, end)()
    assert logger.calls == [("metrics", 0, {"loss": 1.5, "d": {"x": 1.0}})]
    logger.save()
    assert logger.calls[1:] == ([("metrics", 1, {"loss": 5.0})] if end == "next step" else [])


@pytest.mark.parametrize("end", ["close", "finalize"])
def test_a_subclass_with_its_own_save_loses_no_portion(end):
    """Closing and finalizing log what is held, then call save, even where save was replaced without super()."""

    class OwnSave(Recorder):
        def save(self):
            self.calls.append("save")

    logger = OwnSave()
    logger.agg_and_log_metrics({"loss": 1.0})
    logger.close() if end == "close" else logger.finalize("failed")
    assert logger.calls == [("metrics", None, {"loss": 1.0}), "save"]


def test_aggregation_functions_of_the_constructor_and_later():
    """Functions come from the constructor, are added to by update_agg_funcs, and its default is the mean again."""

    class Aggregating(Recorder):
        def __init__(self, *args, **kwargs):
            LightningLoggerBase.__init__(self, *args, **kwargs)
            self.calls = []

    logger = Aggregating({"peak": max}, sum)
    for value in (1, 3):
        logger.agg_and_log_metrics({"peak": value, "low": value, "other": value}, step=0)
    logger.save()
    logger.update_agg_funcs({"low": min})
    for value in (1, 3):
        logger.agg_and_log_metrics({"peak": value, "low": value, "other": value}, step=1)
    logger.save()
    assert logger.calls == [
        ("metrics", 0, {"peak": 3, "low": 4, "other": 4}),
        ("metrics", 1, {"peak": 3, "low": 1, "other": 2.0}),
    ]


def test_portions_that_cannot_be_merged_are_logged_one_by_one(caplog):
    """A scalar meeting a dictionary does not raise into training: all portions are logged, and it is told once."""

    class Unmerged(Recorder):
        pass

    logger = Unmerged()
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        for step in (0, 1):
            logger.agg_and_log_metrics({"k": 1.0}, step=step)
            logger.agg_and_log_metrics({"k": {"x": 2.0}}, step=step)
            logger.save()
    assert logger.calls == [
        ("metrics", step, metrics) for step in (0, 1) for metrics in ({"k": 1.0}, {"k": {"x": 2.0}})
    ]
    (message,) = caplog.messages
    assert "Unmerged could not merge 2 portions of metrics of step 0" in message
    assert "key 'k'" in message


def test_save_costs_next_to_nothing_when_nothing_is_held():
    """Save is called after every log call of a Trainer: with nothing to log it takes well under a microsecond."""
    logger = Recorder()
    for _ in range(2):  # before the first portion and after it was logged
        assert min(timeit.repeat(logger.save, number=1000, repeat=20)) / 1000 < 0.5e-6
        logger.agg_and_log_metrics({"a": 1.0}, 0)
        logger.save()


def test_loggers_are_copied_and_pickled_with_what_they_hold():
    """Launchers pickle loggers: portions that are held travel along."""
    logger = Recorder()
    logger.agg_and_log_metrics({"a": 1.0}, 0)
    for twin in (copy.deepcopy(logger), pickle.loads(pickle.dumps(logger))):
        twin.save()
        assert twin.calls == [("metrics", 0, {"a": 1.0})]
    assert logger.calls == []


# ---- LoggerCollection


def test_every_call_reaches_every_member_in_order():
    """All calls of the interface, with their arguments, arrive at each member in the order of the collection."""
    order = []

    class Ordered(FullRecorder):
        def log_metrics(self, metrics, step=None):
            order.append(self.name)
            super().log_metrics(metrics, step)

    members = [Ordered("a"), Ordered("b"), Ordered("c")]
    collection = LoggerCollection(iter(members))
    model, callback = torch.nn.Linear(1, 1), object()
    collection.log_metrics({"loss": 1.0}, step=0)
    collection.log_metrics({"loss": 1.0})
    collection.agg_and_log_metrics({"loss": 2.0}, step=4)
    collection.update_agg_funcs({"a": max}, min)
    collection.log_hyperparams({"lr": 0.1})
    collection.log_graph(model, 3)
    collection.after_save_checkpoint(callback)
    collection.save()
    collection.finalize("success")
    collection.close()
    assert order == ["a", "b", "c"] * 2
    for member in members:
        assert member.calls == [
            ("metrics", 0, {"loss": 1.0}),
            ("metrics", None, {"loss": 1.0}),
            ("agg", 4, {"loss": 2.0}),
            ("update", {"a": max}, min),
            ("hyperparams", {"lr": 0.1}),
            ("graph", "Linear", 3),
            ("checkpoint", callback),
            ("save",),
            ("finalize", "success"),
            ("close",),
        ]
    assert collection.failures == {}


def test_properties_of_a_collection():
    """Members are reached by index, experiments are a list, names and versions are joined, and there is no folder."""
    a, b, c = Recorder("a", 1), Recorder("b", "two"), Recorder("a", None)
    collection = LoggerCollection([a, b, c])
    assert collection[0] is a
    assert collection[-1] is c
    assert collection[:2] == [a, b]
    with pytest.raises(IndexError):
        collection[3]
    assert all(got is member.calls for got, member in zip(collection.experiment, (a, b, c), strict=True))
    assert collection.name == "a_b_a"
    assert collection.version == "1_two_None"
    assert (collection.save_dir, collection.log_dir, collection.root_dir) == (None, None, None)
    assert repr(collection) == "LoggerCollection([Recorder, Recorder, Recorder])"


def test_a_method_of_some_members_is_fanned_out_to_them():
    """A public method that the collection does not define goes to the members that have it; private names never do."""
    first, second = FullRecorder("a"), FullRecorder("b")
    collection = LoggerCollection([first, Recorder(), second])
    assert collection.log_image("key", ["image"], step=0) == ["key", "key"]
    assert first.calls == second.calls == [("image", "key", ["image"], 0)]
    for name in ("log_video", "calls", "_raise", "__array__"):
        assert not hasattr(collection, name)
    with pytest.raises(AttributeError, match=r"'LoggerCollection' object has no attribute 'log_video'"):
        _ = collection.log_video


def test_a_broken_member_stops_nobody(caplog):
    """Whatever a member raises is kept from the caller and the others, counted every time and told once per cause."""
    healthy = [FullRecorder("a"), FullRecorder("b")]
    collection = LoggerCollection([healthy[0], Broken(), healthy[1]])
    with caplog.at_level(logging.WARNING, "lightning_loggers"):
        for step in range(3):
            collection.log_metrics({"loss": 1.0}, step=step)
        collection.agg_and_log_metrics({"loss": 1.0})
        collection.update_agg_funcs()
        collection.log_hyperparams({})
        collection.log_graph(None)
        collection.after_save_checkpoint(None)
        assert collection.log_image("key", []) == ["key", None, "key"]
        collection.save()
        collection.finalize("failed")
        collection.close()
        assert collection.name == "a_b"
        assert collection.version == "0_0"
        experiments = collection.experiment
    assert [type(experiment) for experiment in experiments] == [list, DummyExperiment, list]
    assert healthy[0].calls == healthy[1].calls
    assert len(healthy[0].calls) == 12
    once = {"agg_and_log_metrics", "update_agg_funcs", "log_hyperparams", "log_graph", "after_save_checkpoint"}
    once |= {"log_image", "save", "finalize", "close", "name", "version", "experiment"}
    expected = {MemberFailure(1, method, "BrokenError"): 1 for method in once}
    assert collection.failures == expected | {MemberFailure(1, "log_metrics", "BrokenError"): 3}
    assert len(caplog.messages) == len(collection.failures)
    assert "Broken (logger 1 of the collection) failed in `log_metrics`: BrokenError: the server is gone" in caplog.text


def test_each_cause_of_a_failure_is_told():
    """Another class of exception in the same method is another cause; the counts cannot be changed from outside."""
    broken = Broken()
    collection = LoggerCollection([broken])
    collection.save()
    broken.error = OSError()
    collection.save()
    collection.save()
    assert collection.failures == {(0, "save", "BrokenError"): 1, (0, "save", "OSError"): 2}
    with pytest.raises(TypeError):
        collection.failures[0, "save", "OSError"] = 0


def test_an_exception_that_cannot_be_printed_is_held_back_too(caplog):
    """A message that raises when it is made does not get through the isolation."""

    class UnprintableError(Exception):
        def __str__(self):
            raise RuntimeError

    broken = Broken()
    broken.error = UnprintableError()
    LoggerCollection([broken]).save()
    assert "UnprintableError: (it cannot be printed)" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_request_to_stop_is_not_held_back(error):
    """KeyboardInterrupt and SystemExit are the user's or the system's, and pass."""
    broken = Broken()
    broken.error = error()
    with pytest.raises(error):
        LoggerCollection([broken]).log_metrics({})


def test_a_member_that_changes_the_metrics_changes_them_for_itself():
    """Each member gets a dictionary of its own."""

    class Greedy(FullRecorder):
        def log_metrics(self, metrics, step=None):
            metrics.clear()

        agg_and_log_metrics = log_metrics

    greedy, last = Greedy(), FullRecorder()
    metrics = {"loss": 1.0}
    collection = LoggerCollection([greedy, last])
    collection.log_metrics(metrics, 0)
    collection.agg_and_log_metrics(metrics, 0)
    assert last.calls == [("metrics", 0, {"loss": 1.0}), ("agg", 0, {"loss": 1.0})]
    assert metrics == {"loss": 1.0}


@pytest.mark.parametrize("end", ["save", "close", "finalize"])
def test_portions_are_joined_for_loggers_that_cannot(end, tmp_path):
    """Lightning's own loggers know no agg_and_log_metrics: the collection joins the portions for them."""
    csv, ours = CSVLogger(tmp_path), Recorder()
    collection = LoggerCollection([csv, ours])
    collection.update_agg_funcs({"peak": max}, sum)
    for value in (1.0, 3.0):
        collection.agg_and_log_metrics({"loss": value, "peak": value}, step=7)
    collection.finalize("success") if end == "finalize" else getattr(collection, end)()
    csv.save()
    (row,) = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()[1:]
    assert sorted(row.split(",")) == ["3.0", "4.0", "7"]
    assert ours.calls == [("metrics", 7, {"loss": 4.0, "peak": 3.0})]
    assert collection.failures == {}


def test_an_empty_collection_is_a_logger():
    """No loggers at all is allowed: true, callable, and without any output."""
    collection = LoggerCollection([])
    collection.log_metrics({"loss": 1.0})
    collection.agg_and_log_metrics({"loss": 1.0})
    collection.finalize("success")
    assert collection
    assert (collection.experiment, collection.name, collection.version) == ([], "", "")


@pytest.mark.parametrize(
    ("loggers", "told"),
    [
        (DummyLogger(), r"LoggerCollection\(\[logger\]\)"),
        (Recorder(), r"LoggerCollection\(\[logger\]\)"),
        (None, "got None"),
        ([Recorder(), "wandb"], "item 1 is 'wandb'"),
        ([CSVLogger], "item 0 is <class"),
    ],
)
def test_what_is_no_list_of_loggers_is_refused(loggers, told):
    """The constructor says what is wrong and how it is done right."""
    with pytest.raises(ConfigurationError, match=told):
        LoggerCollection(loggers)


def test_the_trainer_does_not_see_a_collection_as_iterable():
    """It is no Iterable, has no length and is true, so a Trainer cannot take it apart or drop it."""
    collection = LoggerCollection([Recorder()])
    assert not isinstance(collection, collections.abc.Iterable)
    assert not isinstance(collection, collections.abc.Sized)
    assert collection


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
@pytest.mark.parametrize("members", ["broken and healthy", "empty"])
def test_a_collection_trains_in_one_piece(package, members, tmp_path):
    """A real Trainer keeps the collection whole, so a member that raises in every call does not end the fit."""
    healthy = Recorder()
    collection = LoggerCollection([] if members == "empty" else [Broken(), CSVLogger(tmp_path), healthy])
    trainer = fit(package, collection, tmp_path)
    assert trainer.loggers == [collection]
    assert trainer.global_step == 3
    if members == "empty":
        return
    assert [call[1] for call in healthy.calls if "loss" in call[-1]] == [0, 1, 2]
    assert [call[2] for call in healthy.calls if "portion" in call[-1]] == [{"portion": 2.5}] * 3
    written = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    assert written.splitlines()[0].split(",") == ["batch_idx", "epoch", "loss", "portion", "step"]
    assert written.count(",2.5,") == 3
    failed = {failure.method for failure in collection.failures if failure.member == 0}
    assert failed >= {"log_metrics", "agg_and_log_metrics", "log_hyperparams", "log_graph", "save", "finalize"}
    assert {failure.member for failure in collection.failures} == {0}


def test_checkpoints_of_a_collection_go_to_the_default_place(tmp_path):
    """ModelCheckpoint builds its folder from the joined names and versions, and tells each member of each file."""
    member = FullRecorder("a", 1)
    fit(
        lightning.pytorch,
        LoggerCollection([member, Broken(), FullRecorder("b", 2)]),
        tmp_path,
        enable_checkpointing=True,
    )
    (path,) = tmp_path.rglob("*.ckpt")
    assert path.parent == tmp_path / "a_b" / "1_2" / "checkpoints"
    assert any(call[0] == "checkpoint" for call in member.calls)


def test_a_collection_is_copied_and_pickled():
    """Copies are whole: members, counted failures, and telling anew; an object without its state has no attribute."""
    collection = LoggerCollection([Recorder("a"), Broken()])
    collection.save()
    for twin in (copy.deepcopy(collection), pickle.loads(pickle.dumps(collection)), copy.copy(collection)):
        assert twin.name == "a"
        twin.log_metrics({"loss": 1.0}, 0)
        assert twin[0].calls[-1] == ("metrics", 0, {"loss": 1.0})
        assert twin.failures[1, "save", "BrokenError"] == 1
    with pytest.raises(AttributeError, match="_loggers"):
        LoggerCollection.__new__(LoggerCollection).log_image  # noqa: B018


def test_collections_nest():
    """A collection is a member like any other, and methods are found through it."""
    inner = FullRecorder()
    outer = LoggerCollection([LoggerCollection([inner]), DummyLogger()])
    outer.log_metrics({"loss": 1.0}, 0)
    outer.log_image("key", [])
    assert inner.calls == [("metrics", 0, {"loss": 1.0}), ("image", "key", [], None)]


# ---- rank_zero_experiment and ranks


class Ranked:
    """Has an experiment, whatever it is set to."""

    real: object = None

    @property
    @rank_zero_experiment
    def experiment(self):
        """Documentation of the getter."""
        return self.real


def test_the_real_experiment_is_for_rank_zero(monkeypatch):
    """The rank is asked at each call: rank 0 gets the real experiment, any other a dummy and no call of the getter."""
    ranked = Ranked()
    ranked.real = real = object()
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    assert ranked.experiment is real
    monkeypatch.setattr(rank_zero_only, "rank", 3)
    assert isinstance(ranked.experiment, DummyExperiment)
    assert Ranked.experiment.__doc__ == "Documentation of the getter."


def test_only_none_is_replaced_by_the_dummy():
    """A falsy experiment is a real one; None is not."""
    ranked = Ranked()
    assert isinstance(ranked.experiment, DummyExperiment)
    for real in ([], {}, 0, ""):
        ranked.real = real
        assert ranked.experiment is real


def test_the_rank_comes_from_lightning(monkeypatch):
    """Without a process group it is what Lightning set, and 0 where nothing was set."""
    monkeypatch.setattr(rank_zero_only, "rank", 5)
    assert current_rank() == 5
    monkeypatch.setattr(rank_zero_only, "rank", None)
    assert current_rank() == 0
    monkeypatch.delattr(rank_zero_only, "rank")
    assert current_rank() == 0


def test_a_process_group_decides_the_rank(monkeypatch, tmp_path):
    """An initialised torch.distributed goes before what Lightning set, for as long as it is initialised."""
    monkeypatch.setattr(rank_zero_only, "rank", 5)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert [current_rank(), current_rank()] == [0, 0]
    finally:
        torch.distributed.destroy_process_group()
    assert current_rank() == 5
    # Another job's group in the same process, of which this is rank 1.
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    try:
        assert current_rank() == 1
    finally:
        torch.distributed.destroy_process_group()
    assert current_rank() == 5


# ---- DummyExperiment and DummyLogger


def test_a_dummy_experiment_takes_everything():
    """Calls give None; attributes, items, chains, assignments, with and for do nothing and raise nothing."""
    experiment = DummyExperiment()
    assert experiment.add_image("key", None, global_step=0) is None
    assert experiment.a.b.c() is None
    assert experiment["train/loss"].append(1.0) is None
    assert experiment[0][1].a["b"]("c") is None
    assert experiment() is None
    experiment["key"] = 1
    experiment.config.lr = 0.1
    assert isinstance(experiment["key"], DummyExperiment)
    assert isinstance(experiment.config.lr, DummyExperiment)
    del experiment["key"], experiment.config
    with experiment.train as entered:
        assert isinstance(entered, DummyExperiment)
    assert list(experiment) == list(experiment.runs) == []
    assert len(experiment) == 0
    assert experiment
    assert experiment.anything
    assert repr(experiment) == "DummyExperiment()"


def test_a_dummy_experiment_speaks_no_protocol():
    """Dunder attributes do not exist, so nothing mistakes it for an array or a copyable of its own kind."""
    for name in ("__array__", "__deepcopy__", "__fspath__", "__wrapped__"):
        with pytest.raises(AttributeError, match=name):
            getattr(DummyExperiment(), name)


class OwnDummy(DummyExperiment):
    """A subclass in user code."""


@pytest.mark.parametrize("make", [DummyExperiment, OwnDummy, DummyLogger])
def test_copies_of_dummies_are_dummies(make):
    """Copying and pickling give an object of the same class that still takes everything."""
    dummy = make()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert type(pickle.loads(pickle.dumps(dummy, protocol))) is make
    for twin in (copy.copy(dummy), copy.deepcopy(dummy), copy.deepcopy({"a": [dummy]})["a"][0]):
        assert type(twin) is make
        assert twin.log_image("key") is None


def test_a_dummy_logger_does_nothing():
    """Every public method can be called, indexes give the logger itself, and there is nothing to iterate."""
    logger = DummyLogger()
    assert logger.log_metrics({"loss": 1.0}, step=0) is None
    assert logger.log_hyperparams({"lr": 0.1}, "more", and_more=1) is None
    assert logger.agg_and_log_metrics({"loss": 1.0}, step=0) is None
    assert logger.agg_and_log_metrics({"loss": {}}, step=0) is None
    assert logger.log_image("key", [], step=0) is None
    assert logger.save() is logger.finalize("success") is logger.close() is None
    assert (logger.name, logger.version, logger.save_dir) == ("", "", None)
    assert logger[0] is logger[1] is logger
    assert isinstance(logger.experiment, DummyExperiment)
    assert list(logger) == []
    assert logger
    assert not hasattr(logger, "_private")
    assert not hasattr(logger, "__array__")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_dummy_logger_trains(package, wrapped, tmp_path):
    """Alone it means no logger to a Trainer; in a list it is one that does nothing."""
    logger = DummyLogger()
    trainer = package.Trainer(logger=[logger] if wrapped else logger, default_root_dir=tmp_path, accelerator="cpu")
    assert trainer.loggers == ([logger] if wrapped else [])
    if wrapped:
        assert fit(package, [logger], tmp_path).global_step == 3


def test_public_names_are_sorted_and_exist():
    """All names of Lightning 1.5's module are here, merge_dicts among them."""
    assert base.__all__ == sorted(base.__all__)
    assert all(hasattr(base, name) for name in base.__all__)
    assert base.merge_dicts is merge_dicts
    assert merge_dicts([{"a": 1}, {"a": 2}]) == {"a": 1.5}
