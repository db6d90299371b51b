"""Adapters by name. Importing this imports no SDK; another package adds one by the entry point group below."""

import importlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass

from lightning_loggers.adapters.base import Adapter
from lightning_loggers.errors import ConfigurationError, MissingDependencyError

ENTRY_POINT_GROUP = "lightning_loggers.adapters"


@dataclass(frozen=True, slots=True)
class Known:
    """Where an adapter is, and what it needs.

    Attributes:
        path: ``module:Class``.
        module: The SDK's import name, or ``None`` if it needs none.
        requirement: The SDK as pip takes it.
        extra: Our extra that installs it.
    """

    path: str
    module: str | None = None
    requirement: str | None = None
    extra: str | None = None


KNOWN: dict[str, Known] = {
    "comet": Known("lightning_loggers.adapters.comet:CometAdapter", "comet_ml", "comet-ml>=3.58", "comet"),
    "csv": Known("lightning_loggers.adapters.csv:CSVAdapter"),
    "tensorboard": Known(
        "lightning_loggers.adapters.tensorboard:TensorBoardAdapter", "tensorboard", "tensorboard>=2.16", "tensorboard"
    ),
    "console": Known("lightning_loggers.adapters.console:ConsoleAdapter"),
    "memory": Known("lightning_loggers.adapters.memory:MemoryAdapter"),
    "mlflow": Known("lightning_loggers.adapters.mlflow:MLflowAdapter", "mlflow", "mlflow>=3.1", "mlflow"),
    "neptune": Known("lightning_loggers.adapters.neptune:NeptuneAdapter", "neptune", "neptune>=1.14,<2", "neptune"),
    "wandb": Known("lightning_loggers.adapters.wandb:WandbAdapter", "wandb", "wandb>=0.31", "wandb"),
}


def adapter_names() -> list[str]:
    """All adapters that can be named, ours and other packages'."""
    theirs = {point.name for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)}
    return sorted(KNOWN.keys() | theirs)


def adapter_class(name: str) -> type[Adapter]:
    """The adapter class of that name; its SDK is not imported.

    Raises:
        ConfigurationError: If there is none.
    """
    known = KNOWN.get(name)
    if known is not None:
        module, _, attribute = known.path.partition(":")
        found = getattr(importlib.import_module(module), attribute)
    else:
        points = list(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name))
        if not points:
            raise ConfigurationError(f"There is no adapter {name!r}; installed are {', '.join(adapter_names())}.")
        found = points[0].load()
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise ConfigurationError(f"The entry point {name!r} of group {ENTRY_POINT_GROUP} is no Adapter: {found!r}.")
    return found


def require_sdk(name: str, user: str) -> None:
    """Check that an adapter's SDK is installed, without importing it.

    Args:
        name: The adapter.
        user: Who asks, for the message, e.g. ``MLFlowLogger``.

    Raises:
        MissingDependencyError: With the command that installs it.
    """
    known = KNOWN.get(name)
    if known is None or known.module is None or importlib.util.find_spec(known.module) is not None:
        return
    raise MissingDependencyError(
        f"`{user}` needs `{known.requirement}` (not installed). "
        f"Install it: pip install 'lightning-loggers[{known.extra}]'"
    )
