"""Loggers as data: what a file says is what is built, and what cannot be is an error that says what would."""

import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import lightning_loggers
from lightning_loggers import CSVLogger, InMemoryLogger, MLFlowLogger
from lightning_loggers.config import (
    CONFIGS,
    CometLoggerConfig,
    CSVLoggerConfig,
    InMemoryLoggerConfig,
    LoggerConfig,
    LoggerToolsConfig,
    MLFlowLoggerConfig,
    WandbLoggerConfig,
)
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.loggers.journaled import JournaledLogger
from lightning_loggers.policies import LogLevel, LogPolicy, Window

EXAMPLE = """
log_path: runs
run_name: blue
log_every_n_steps: 10
policy:
  level: EPOCH
  write_train_every_n_seconds: 2.5
  keys: [val/*, "!*_step"]
  window: {steps: 8, funcs: {peak: max}}
loggers:
  - logger: MLFlowLogger
    experiment_name: digits
    tags: {team: vision}
    log_model: all
    agg_key_funcs: {peak: max}
    policy: {log_freq: epoch}
  - logger: CSVLogger
    version: 3
  - logger: InMemoryLogger
    save_dir: elsewhere
"""


def test_every_logger_has_a_configuration_with_all_its_parameters() -> None:
    """Each exported logger has one; its fields are the constructor's parameters, but for secrets and objects."""
    left_out = {"api_key", "experiment", "run", "kwargs", "neptune_run_kwargs"}
    own = {"init", "writer", "experiment", "run", "save_dir"}  # a mapping of further arguments; the common folder
    exported = {
        name
        for name in lightning_loggers.__all__
        if inspect.isclass(value := getattr(lightning_loggers, name)) and issubclass(value, JournaledLogger)
    }
    assert set(CONFIGS) == exported
    for name, config in CONFIGS.items():
        parameters = inspect.signature(getattr(lightning_loggers, name)).parameters
        fields = {field.name: field for field in dataclasses.fields(config)}
        assert set(parameters) - left_out - {"save_dir"} == set(fields) - own, name
        for field in fields.values():
            if field.name in parameters and field.name not in {"save_dir", "agg_default_func", *own}:
                assert field.default == parameters[field.name].default, (name, field.name)


@pytest.mark.parametrize("dump", [json.dumps, yaml.safe_dump])
def test_a_configuration_survives_a_file(dump: Any) -> None:
    """What YAML said, written as JSON and as YAML and read again, is equal, nested classes included."""
    config = LoggerConfig.from_dict(yaml.safe_load(EXAMPLE))
    assert [type(item) for item in config.loggers] == [MLFlowLoggerConfig, CSVLoggerConfig, InMemoryLoggerConfig]
    assert config.policy == LogPolicy(
        level=LogLevel.EPOCH,
        write_train_every_n_seconds=2.5,
        keys=("val/*", "!*_step"),
        window=Window(steps=8, funcs={"peak": "max"}),
    )
    assert LoggerConfig.from_dict(yaml.safe_load(dump(config.to_dict()))) == config
    for item in config.loggers:
        assert type(item).from_dict(item.to_dict()) == LoggerToolsConfig.from_dict(item.to_dict()) == item


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_defaults_of_every_logger_survive_a_file(name: str) -> None:
    """A configuration with nothing set is written and read again."""
    config = CONFIGS[name]()
    assert LoggerToolsConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"logers": []}, "LoggerConfig: 'logers' is no option of LoggerConfig; did you mean 'loggers'?"),
        ({"loggers": [{"logger": "MLflowLogger"}]}, "LoggerConfig.loggers[0]: logger: 'MLflowLogger'; did you mean"),
        ({"loggers": [{}]}, "LoggerConfig.loggers[0]: no 'logger' is named; there are: CSVLogger"),
        (
            {"loggers": [{"logger": "CSVLogger"}, {"logger": "CSVLogger", "save_dri": "x"}]},
            "LoggerConfig.loggers[1]: 'save_dri' is no option of CSVLogger; did you mean 'save_dir'?",
        ),
        (
            {"policy": {"log_frq": 3}},
            "LoggerConfig.policy: 'log_frq' is no option of LogPolicy; did you mean 'log_freq'?",
        ),
        ({"policy": {"level": "EPOHC"}}, "did you mean 'EPOCH'?"),
        ({"policy": {"window": {"step": 3}}}, "did you mean 'steps'?"),
        ({"loggers": [{"logger": "CSVLogger", "finalize_timeout_s": "long"}]}, "finalize_timeout_s='long'"),
        ({"loggers": [{"logger": "CSVLogger", "delivery": "post"}]}, "delivery='post'"),
        ({"loggers": {"logger": "CSVLogger"}}, "must be a list"),
        ({"loggers": ["CSVLogger"]}, "must be a mapping"),
        ({"log_every_n_steps": 2.5}, "log_every_n_steps=2.5"),
        ({"loggers": [{"logger": "os.system"}]}, "'os.system'"),
        ({"loggers": [{"logger": "DummyLogger"}]}, "'DummyLogger'"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_the_place_and_the_nearest(data: dict[str, Any], said: str) -> None:
    """Misspelt options and loggers, wrong types and values: the message says where, and what would do."""
    with pytest.raises(ConfigurationError) as raised:
        LoggerConfig.from_dict(data)
    assert said in str(raised.value)


def test_a_file_names_loggers_and_nothing_else(tmp_path: Path) -> None:
    """No name in a file imports a module: one that lies beside the program and is named is not run."""
    (tmp_path / "evil.py").write_text("open('run', 'w').close()\nclass Logger: pass\n")
    program = (
        "import json, sys\n"
        "from lightning_loggers.config import LoggerConfig\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules\n"
        "for name in ('evil.Logger', 'evil:Logger', '__main__', 'evil'):\n"
        "    for data in ({'loggers': [{'logger': name}]}, {'loggers': [{'_target_': name, 'class_path': name}]}):\n"
        "        try:\n"
        "            LoggerConfig.from_dict(data)\n"
        "        except ValueError:\n"
        "            continue\n"
        "        raise SystemExit(f'{data} was taken')\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    assert not (tmp_path / "run").exists()


def test_create_builds_what_was_said(tmp_path: Path) -> None:
    """Loggers come in order, with the shared folder and policy where they name none of their own."""
    config = LoggerConfig.from_dict(yaml.safe_load(EXAMPLE))
    config.log_path = str(tmp_path / "runs")
    config.loggers[2].save_dir = str(tmp_path / "elsewhere")
    mlflow, files, memory = config.create()
    assert (type(mlflow), type(files), type(memory)) == (MLFlowLogger, CSVLogger, InMemoryLogger)
    assert (mlflow.name, mlflow.save_dir, mlflow.tags) == ("digits", str(tmp_path / "runs"), {"team": "vision"})
    assert (files.version, files.log_dir) == (3, str(tmp_path / "runs" / "lightning_logs" / "version_3"))
    assert memory.save_dir == str(tmp_path / "elsewhere")
    assert mlflow._policy == LogPolicy(log_freq="epoch")
    assert files._policy == memory._policy == config.policy
    memory.agg_and_log_metrics({"val/x": 1.0}, 0)
    memory.agg_and_log_metrics({"val/x": 2.0}, 0)
    memory.finalize("success")
    assert memory.most_recent("val/x") == 1.5


def test_names_of_functions_become_functions(tmp_path: Path) -> None:
    """``agg_key_funcs`` and ``agg_default_func`` are names in a file, and functions in the logger."""
    logger = InMemoryLoggerConfig(
        save_dir=str(tmp_path), agg_key_funcs={"peak": "max"}, agg_default_func="last"
    ).create()
    for value in (3.0, 1.0):
        logger.agg_and_log_metrics({"peak": value, "other": value}, 0)
    assert logger.most_recent("peak") == 3.0
    assert logger.most_recent("other") == 1.0


def test_known_functions_are_written_by_name_and_others_refused() -> None:
    """``numpy.mean`` is "mean" in a file; a function of the program's own cannot be in one."""
    assert CSVLoggerConfig(agg_default_func=np.mean, agg_key_funcs={"a": max}).to_dict()["agg_key_funcs"] == {
        "a": "max"
    }
    with pytest.raises(ConfigurationError, match="agg_default_func"):
        CSVLoggerConfig(agg_default_func=lambda values: values[0]).to_dict()


def test_trackers_further_arguments_are_passed_on(tmp_path: Path) -> None:
    """``init`` of W&B's configuration, and the like, reach the constructor."""
    wandb = WandbLoggerConfig(project="digits", save_dir=str(tmp_path), init={"entity": "team"}, delivery="offline")
    assert wandb._arguments()["entity"] == "team"
    comet = CometLoggerConfig(save_dir=str(tmp_path), experiment={"tags": ["a"]})
    assert comet._arguments()["offline_directory"] == str(tmp_path)
    assert comet._arguments()["tags"] == ["a"]


def test_options_can_be_asked_for_by_name() -> None:
    """``get`` answers with the option, or the default; ``log_dir`` and ``log_tools`` are other names."""
    config = LoggerConfig(log_path="runs", loggers=[CSVLoggerConfig()])
    assert (config.get("log_every_n_steps"), config.get("missing", 7)) == (1, 7)
    assert (config.log_dir, config.log_tools) == ("runs", config.loggers)
    assert LoggerConfig(log_path=Path("runs")).to_dict()["log_path"] == "runs"  # type: ignore[arg-type]
