"""Arguments of WandbLogger as options of its adapter: what JSON can say, the environment's where none is given."""

import importlib.metadata
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from lightning_loggers.errors import ConfigurationError, MissingDependencyError
from lightning_loggers.values.plain import plain_json as plain

MINIMUM_WANDB = (0, 31)

_INIT_ARGUMENTS = frozenset(
    {
        "allow_val_change", "config", "config_exclude_keys", "config_include_keys", "entity", "force", "fork_from",
        "group", "job_type", "mode", "monitor_gym", "notes", "reinit", "resume", "resume_from", "save_code", "settings",
        "sync_tensorboard", "tags", "tensorboard",
    }
)  # fmt: skip
_PASSED_ON = (
    "allow_val_change",
    "force",
    "fork_from",
    "monitor_gym",
    "resume_from",
    "save_code",
    "sync_tensorboard",
    "tensorboard",
)
_SECRET = re.compile(r"key|token|secret|password|header|proxy|proxies", re.IGNORECASE)


def check_names(kwargs: Mapping[str, Any]) -> None:
    """Refuse what ``wandb.init`` would not take.

    Raises:
        ConfigurationError: With the names that it takes.
    """
    if unknown := sorted(kwargs.keys() - _INIT_ARGUMENTS):
        raise ConfigurationError(
            f"{', '.join(unknown)}: no argument of WandbLogger or wandb.init; known are "
            f"{', '.join(sorted(_INIT_ARGUMENTS))}."
        )


def mode_of(offline: bool, asked: str | None) -> str:
    """The SDK's mode; its older words are still in use."""
    mode = "offline" if offline else asked or os.environ.get("WANDB_MODE") or "online"
    return {"dryrun": "offline", "run": "online"}.get(mode, mode)


def active_run(run_id: str | None) -> Any:
    """The run that this process has begun with ``wandb.init()``, or ``None``; also if another id is asked for.

    Lightning's logger logs into it: that is how a sweep's agent, and whoever calls ``wandb.init()`` first, is served.
    """
    run = getattr(sys.modules.get("wandb"), "run", None)
    return run if run is not None and run_id in {None, str(run.id)} else None


def check_version(user: str) -> None:
    """Check that a W&B SDK is installed that the adapter can work with, without importing it.

    Raises:
        MissingDependencyError: With the command that installs it.
    """
    try:
        found = importlib.metadata.version("wandb")
    except importlib.metadata.PackageNotFoundError:
        found = ""  # a folder called "wandb", as the SDK itself makes them, looks like an installed one
    numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
    if numbers < MINIMUM_WANDB:
        needed = ".".join(map(str, MINIMUM_WANDB))
        raise MissingDependencyError(
            f"`{user}` needs `wandb>={needed}` ({f'found {found}' if found else 'not installed'}). "
            f"Install it: pip install 'lightning-loggers[wandb]'"
        )


def init_options(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``wandb.init``.

    Raises:
        ConfigurationError: If ``config`` has no names.
    """
    config = kwargs.get("config")
    if config is not None and not isinstance(config, Mapping):
        config = vars(config) if hasattr(config, "__dict__") else config
        if not isinstance(config, Mapping):
            raise ConfigurationError(f"config={config!r} must be a mapping.")
    include, exclude = kwargs.get("config_include_keys"), kwargs.get("config_exclude_keys") or ()
    tags = kwargs.get("tags")
    if tags is None and (listed := os.environ.get("WANDB_TAGS")):
        tags = [tag for tag in listed.split(",") if tag]
    settings = kwargs.get("settings")
    if settings is not None and not isinstance(settings, Mapping):
        settings = {key: getattr(settings, key) for key in settings.model_fields_set}
    resume = kwargs.get("resume")
    return {
        "entity": kwargs.get("entity") or os.environ.get("WANDB_ENTITY"),
        "group": kwargs.get("group") or os.environ.get("WANDB_RUN_GROUP"),
        "job_type": kwargs.get("job_type") or os.environ.get("WANDB_JOB_TYPE"),
        "notes": kwargs.get("notes") or os.environ.get("WANDB_NOTES"),
        "tags": [tags] if isinstance(tags, str) else [str(tag) for tag in tags or []],
        "config": {
            str(key): plain(value)
            for key, value in (config or {}).items()
            if (include is None or key in include) and key not in exclude
        },
        "resume": resume if resume in {"must", "never"} else None,
        "settings": plain(dict(settings or {})),
        "init": {key: plain(kwargs[key]) for key in _PASSED_ON if kwargs.get(key) is not None},
    }


def without_secrets(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``wandb.Settings`` that a journal may hold."""
    return {key: value for key, value in settings.items() if not _SECRET.search(key)}
