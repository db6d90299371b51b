"""Loggers as data: dataclasses that build them, and that YAML or JSON can say.

Importing this imports neither torch nor an SDK; :meth:`LoggerConfig.create` imports what it builds. A file names
loggers of this package, by their names; it cannot make the program import anything else. Secrets are no part of a
configuration: trackers take them from their own environment variables.

    >>> config = LoggerConfig.from_dict(
    ...     {
    ...         "log_path": "runs",
    ...         "policy": {"log_freq": 10},
    ...         "loggers": [{"logger": "CSVLogger", "name": "digits"}, {"logger": "ConsoleLogger"}],
    ...     }
    ... )
    >>> config.loggers[0].name, LoggerConfig.from_dict(config.to_dict()) == config
    ('digits', True)
    >>> LoggerConfig.from_dict({"loggers": [{"logger": "CSVLogger", "nmae": "digits"}]})
    Traceback (most recent call last):
    lightning_loggers.errors.ConfigurationError: LoggerConfig.loggers[0]: 'nmae' is no option of CSVLogger; did you ...
"""

import dataclasses
import enum
import importlib
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import msgspec
from typing_extensions import override

from lightning_loggers.aggregation import REDUCTIONS
from lightning_loggers.delivery import Delivery
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.policies import LogPolicy, nearest, reduction

LogModel = Literal["all"] | bool

_TAG = "logger"


@dataclass(kw_only=True)
class Config:
    """A dataclass that becomes a dictionary of what JSON can say, and comes back from it equal."""

    def get(self, key: str, default: Any = None) -> Any:
        """An option by name, or ``default`` if there is none of that name."""
        return getattr(self, key, default)

    def to_dict(self) -> dict[str, Any]:
        """The options by name, nested configurations as dictionaries.

        Raises:
            ConfigurationError: For a value that a file cannot say, such as a function that has no name there.
        """
        found = _plain(self, type(self).__name__)
        assert isinstance(found, dict)
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from what :meth:`to_dict` returned, or from a YAML or JSON file.

        Args:
            data: Options by name; those left out have their defaults.

        Raises:
            ConfigurationError: For an unknown option, with the nearest known one; or a value of the wrong type.
        """
        built = _build(cls, data, cls.__name__)
        assert isinstance(built, cls)
        return built


@dataclass(kw_only=True)
class LoggerToolsConfig(Config):
    """What all loggers have in common. One subclass a logger; ``None`` leaves a thing to the logger's own default.

    Attributes:
        save_dir: Where runs are kept; by default :attr:`LoggerConfig.log_path`.
        version: The run; an existing one is continued.
        prefix: Put before metric keys.
        delivery: ``"auto"``, ``"thread"``, ``"process"`` or ``"offline"``.
        finalize_timeout_s: Longest wait at the end of a run, seconds.
        agg_key_funcs: Names of functions by key, for ``agg_and_log_metrics`` and windows: see
            :data:`~lightning_loggers.policies.REDUCTIONS`.
        agg_default_func: The function for other keys.
        policy: Which calls are recorded; by default :attr:`LoggerConfig.policy`.
    """

    logger: ClassVar[str] = ""
    """The logger's name in this package."""

    save_dir: str | None = None
    version: str | None = None
    prefix: str = ""
    delivery: Delivery = "auto"
    finalize_timeout_s: float = 30.0
    agg_key_funcs: dict[str, Any] | None = None
    agg_default_func: Any = "mean"
    policy: LogPolicy | None = None

    def create(self) -> Any:
        """Build the logger.

        Raises:
            ConfigurationError: For options that cannot work.
            MissingDependencyError: If the tracker's SDK is not installed.
        """
        package = importlib.import_module("lightning_loggers")  # which loads a logger when it is asked for it
        return getattr(package, self.logger)(**self._arguments())

    def _arguments(self) -> dict[str, Any]:
        given = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        given["agg_key_funcs"] = None if self.agg_key_funcs is None else reduction(self.agg_key_funcs)
        given["agg_default_func"] = reduction(self.agg_default_func)
        for name in ("save_dir", "policy"):
            if given[name] is None:
                del given[name]
        return given


@dataclass(kw_only=True)
class CSVLoggerConfig(LoggerToolsConfig):
    """:class:`~lightning_loggers.CSVLogger`."""

    logger: ClassVar[str] = "CSVLogger"

    name: str | None = "lightning_logs"
    version: int | str | None = None  # type: ignore[assignment] # Lightning's loggers of files count their versions
    flush_logs_every_n_steps: int = 100
    deliver_leftovers: bool = True

    @override
    def _arguments(self) -> dict[str, Any]:
        return {"save_dir": ".", **super()._arguments()}


@dataclass(kw_only=True)
class TensorBoardLoggerConfig(LoggerToolsConfig):
    """:class:`~lightning_loggers.TensorBoardLogger`; ``writer`` holds arguments of torch's ``SummaryWriter``."""

    logger: ClassVar[str] = "TensorBoardLogger"

    name: str | None = "lightning_logs"
    version: int | str | None = None  # type: ignore[assignment] # as above
    log_graph: bool = False
    default_hp_metric: bool = True
    sub_dir: str | None = None
    deliver_leftovers: bool = True
    writer: dict[str, Any] = field(default_factory=dict)

    @override
    def _arguments(self) -> dict[str, Any]:
        return _opened({"save_dir": ".", **super()._arguments()}, "writer")


@dataclass(kw_only=True)
class ConsoleLoggerConfig(LoggerToolsConfig):
    """:class:`~lightning_loggers.ConsoleLogger`."""

    logger: ClassVar[str] = "ConsoleLogger"

    name: str = "lightning_logs"
    style: Literal["auto", "lines", "table"] = "auto"
    stream: Literal["stdout", "stderr"] = "stdout"


@dataclass(kw_only=True)
class InMemoryLoggerConfig(LoggerToolsConfig):
    """:class:`~lightning_loggers.InMemoryLogger`."""

    logger: ClassVar[str] = "InMemoryLogger"

    name: str = "lightning_logs"


@dataclass(kw_only=True)
class MLFlowLoggerConfig(LoggerToolsConfig):
    """:class:`~lightning_loggers.MLFlowLogger`."""

    logger: ClassVar[str] = "MLFlowLogger"

    experiment_name: str = "lightning_logs"
    run_name: str | None = None
    tracking_uri: str | None = None
    tags: dict[str, Any] | None = None
    log_model: LogModel = False
    artifact_location: str | None = None
    run_id: str | None = None
    synchronous: bool | None = None
    deliver_leftovers: bool = True


@dataclass(kw_only=True)
class WandbLoggerConfig(LoggerToolsConfig):
    """:class:`~lightning_loggers.WandbLogger`; ``init`` holds further arguments of ``wandb.init``."""

    logger: ClassVar[str] = "WandbLogger"

    name: str | None = None
    offline: bool = False
    dir: str | None = None
    id: str | None = None
    anonymous: bool | None = None
    project: str | None = None
    log_model: LogModel = False
    checkpoint_name: str | None = None
    add_file_policy: Literal["mutable", "immutable"] = "mutable"
    deliver_leftovers: bool = True
    init: dict[str, Any] = field(default_factory=dict)

    @override
    def _arguments(self) -> dict[str, Any]:
        return _opened(super()._arguments(), "init")


@dataclass(kw_only=True)
class CometLoggerConfig(LoggerToolsConfig):
    """:class:`~lightning_loggers.CometLogger`; ``experiment`` holds arguments of ``comet_ml.ExperimentConfig``.

    The key comes from ``COMET_API_KEY``. ``save_dir`` is Comet's ``offline_directory``.
    """

    logger: ClassVar[str] = "CometLogger"

    workspace: str | None = None
    project: str | None = None
    experiment_key: str | None = None
    mode: Literal["get_or_create", "get", "create"] | None = None
    online: bool | None = None
    prefix: str | None = None  # type: ignore[assignment] # Lightning's default
    log_model: LogModel = False
    deliver_leftovers: bool = True
    experiment: dict[str, Any] = field(default_factory=dict)

    @override
    def _arguments(self) -> dict[str, Any]:
        given = _opened(super()._arguments(), "experiment")
        if "save_dir" in given:
            given.setdefault("offline_directory", given.pop("save_dir"))
        return given


@dataclass(kw_only=True)
class NeptuneLoggerConfig(LoggerToolsConfig):
    """:class:`~lightning_loggers.NeptuneLogger`; ``run`` holds further arguments of ``neptune.init_run``.

    The token comes from ``NEPTUNE_API_TOKEN``.
    """

    logger: ClassVar[str] = "NeptuneLogger"

    project: str | None = None
    name: str | None = None
    log_model_checkpoints: bool | None = True
    prefix: str = "training"
    deliver_leftovers: bool = True
    run: dict[str, Any] = field(default_factory=dict)

    @override
    def _arguments(self) -> dict[str, Any]:
        return _opened(super()._arguments(), "run")


CONFIGS: dict[str, type[LoggerToolsConfig]] = {
    config.logger: config
    for config in (
        CSVLoggerConfig,
        CometLoggerConfig,
        ConsoleLoggerConfig,
        InMemoryLoggerConfig,
        MLFlowLoggerConfig,
        NeptuneLoggerConfig,
        TensorBoardLoggerConfig,
        WandbLoggerConfig,
    )
}
"""The configuration of each logger, by the logger's name."""


@dataclass(kw_only=True)
class LoggerConfig(Config):
    """All loggers of a program, and what they share.

    Attributes:
        loggers: The configuration of each logger.
        log_path: Where runs are kept, unless a logger says otherwise.
        policy: Which calls are recorded, unless a logger says otherwise.
        log_every_n_steps: Steps that :class:`~lightning_loggers.training.TrainingLog` adds up on the device before it
            logs them.
        cmd_logging_name: File, without its suffix ``.log``, that ``TrainingLog`` writes the program's own messages to,
            in ``log_path``; ``None`` for no file.
        run_name: The run's name in the names of artifacts; by default the first logger's version.
    """

    loggers: list[LoggerToolsConfig] = field(default_factory=list)
    log_path: str | None = None
    policy: LogPolicy | None = None
    log_every_n_steps: int = 1
    cmd_logging_name: str | None = "output"
    run_name: str | None = None

    def __post_init__(self) -> None:
        if self.log_path is not None:
            self.log_path = os.fspath(self.log_path)

    @property
    def log_tools(self) -> list[LoggerToolsConfig]:
        """Another name for :attr:`loggers`."""
        return self.loggers

    @property
    def log_dir(self) -> str:
        """Where runs are kept, as a string; empty if nowhere in particular."""
        return self.log_path or ""

    def create(self) -> list[Any]:
        """Build the loggers, in order; for ``Trainer(logger=...)``, ``Fabric(loggers=...)`` or ``TrainingLog``.

        Raises:
            ConfigurationError: For options that cannot work.
            MissingDependencyError: If a tracker's SDK is not installed.
        """
        return [
            dataclasses.replace(
                config,
                save_dir=config.save_dir if config.save_dir is not None else self.log_path,
                policy=config.policy if config.policy is not None else self.policy,
            ).create()
            for config in self.loggers
        ]


# ---------------------------------------------------------------------- to and from plain data


def _opened(given: dict[str, Any], name: str) -> dict[str, Any]:
    """Further arguments, among the others."""
    return {**given.pop(name), **given}


def _plain(value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        tagged = {_TAG: value.logger} if isinstance(value, LoggerToolsConfig) else {}
        return tagged | {
            item.name: _plain(getattr(value, item.name), f"{path}.{item.name}") for item in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if callable(value):
        for name in REDUCTIONS:
            if reduction(name) is value:
                return name
        raise ConfigurationError(f"{path}: a file cannot say {value!r}. Use one of {', '.join(REDUCTIONS)}.")
    raise ConfigurationError(f"{path}: a file cannot say {value!r} ({type(value).__name__}).")


def _build(cls: type[Any], data: Any, path: str) -> Any:
    if not isinstance(data, Mapping):
        raise ConfigurationError(f"{path}: options of {_shown(cls)} must be a mapping, not {data!r}.")
    if issubclass(cls, LoggerToolsConfig):
        tag = data.get(_TAG, cls.logger)
        if cls is not LoggerToolsConfig and tag != cls.logger:
            raise ConfigurationError(f"{path}: these are options of {tag}, not of {_shown(cls)}.")
        found = CONFIGS.get(str(tag))
        if found is None:
            said = f"{_TAG}: {tag!r}" if tag else f"no {_TAG!r} is named"
            raise ConfigurationError(f"{path}: {said}; {nearest(str(tag), sorted(CONFIGS))}")
        cls, data = found, {key: value for key, value in data.items() if key != _TAG}
    known = {item.name: item for item in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    given = {}
    for key, value in data.items():
        if key not in known:
            raise ConfigurationError(f"{path}: {key!r} is no option of {_shown(cls)}; {nearest(str(key), list(known))}")
        given[key] = _value(hints[key], value, f"{path}.{key}", checked=cls is not LogPolicy)
    try:
        return cls(**given)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _value(hint: Any, value: Any, path: str, *, checked: bool) -> Any:
    """A value as its field wants it."""
    options = typing.get_args(hint) if typing.get_origin(hint) in {types.UnionType, typing.Union} else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(option, type) and isinstance(value, Mapping):
            return _build(option, value, path)
        if typing.get_origin(option) is list and dataclasses.is_dataclass(inner := typing.get_args(option)[0]):
            if not isinstance(value, list | tuple):
                raise ConfigurationError(f"{path}: must be a list, not {value!r}.")
            return [_build(typing.cast(type, inner), item, f"{path}[{index}]") for index, item in enumerate(value)]
    if not checked:  # a policy checks its own values, and takes names for them
        return value
    if isinstance(value, Path):
        value = os.fspath(value)
    try:
        return msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path}={value!r}: {error}.") from None


def _shown(cls: type) -> str:
    return cls.logger if issubclass(cls, LoggerToolsConfig) and cls.logger else cls.__name__
