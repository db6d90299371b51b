"""How a session of a W&B run begins: with answers first, within bounds, and leaving nothing behind where it cannot."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_loggers.adapters.base import Context
from lightning_loggers.adapters.wandb_file import MARK, ended, is_open, run_folders, tidy
from lightning_loggers.adapters.wandb_sdk import (
    ASK_TIMEOUT_S,
    FINISH_TIMEOUT_S,
    LockedOutError,
    UnreachableError,
    release,
    service_api,
)
from lightning_loggers.adapters.wandb_session import Session, bucket_of, mark_of
from lightning_loggers.journal.layout import run_folder

INIT_TIMEOUT_S = 20.0

_TRANSMIT_EVERY_S = 1.0  # the SDK takes whole seconds only
_RETRY_WAIT_S = 5.0
_MANY = 1_000_000
_ONCE = frozenset({"fork_from", "resume_from"})

_listed: set[str] = set()
"""Runs for which W&B has this process's packages: listing them again is most of what a session's begin takes."""


def begin(context: Context, *, offline: bool, shared: bool) -> Session:
    """Begin a session of the run through the SDK, or resume it.

    Args:
        context: The run's.
        offline: Whether the SDK only writes its own folder.
        shared: Whether somebody else may have logged rows to it.

    Raises:
        UnreachableError: If W&B, or the folder for the SDK's files, cannot be reached.
        LockedOutError: If W&B has to be told first who this is.
        Exception: Whatever the SDK raises.
    """
    import wandb

    settings = wandb.Settings(**settings_of(context))
    # The SDK writes to the system's temporary folder where it cannot write here: rather try again later.
    folder = Path(settings.wandb_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UnreachableError(f"{folder} cannot be written")
    _wait_for_last_host(context, folder)
    mark: dict[str, Any] | None = {"run_uid": context.run.uid}
    api = None
    if not offline:
        api = _knock(context, settings)
        bucket = bucket_of(api, context.remote.parent, context.remote.id)
        mark = None if bucket is None else mark_of(bucket)
    run = _init(wandb, context, settings, mark, "offline" if offline else "online")
    _listed.add(context.run.uid)
    try:
        return Session(context, run, mark, ours=True, api=api, shared=shared)
    except Exception:
        release(str(run.id))
        raise


def settings_of(context: Context) -> dict[str, Any]:
    """Fields of ``wandb.Settings``: quiet, bounded, and telling nothing of a machine that only delivers."""
    options, facts = context.options, context.header.environment
    fields: dict[str, Any] = {
        "console": "off",
        "silent": True,
        "root_dir": str(run_folder(context.run_dir.absolute(), "wandb").parents[1]),
        "init_timeout": INIT_TIMEOUT_S,
        "finish_timeout": FINISH_TIMEOUT_S,
        "finish_timeout_raises": True,
        "stop_fn": _stop_teller(context),
        "x_file_stream_transmit_interval": _TRANSMIT_EVERY_S,
        "x_transaction_log_flush_interval": _TRANSMIT_EVERY_S / 2,
    }
    for client in ("file_stream", "graphql", "file_transfer"):  # the SDK's own retries, made to end an outage soon
        fields[f"x_{client}_retry_max"] = _MANY
        fields[f"x_{client}_retry_wait_min_seconds"] = 1.0
        fields[f"x_{client}_retry_wait_max_seconds"] = _RETRY_WAIT_S
    if options.get("base_url"):
        fields["base_url"] = options["base_url"]
    if facts.get("host") == socket.gethostname() and facts.get("pid") in {os.getpid(), os.getppid()}:
        fields["x_stats_pid"] = facts["pid"]
    else:
        fields |= dict.fromkeys(
            ("disable_git", "x_disable_stats", "x_disable_machine_info", "x_disable_meta", "disable_code"), True
        )
        fields["x_save_requirements"] = False
    if context.run.uid in _listed:
        fields["x_save_requirements"] = False
    return fields | dict(options.get("settings") or {})


def _stop_teller(context: Context) -> Callable[[], None]:
    """What to do when somebody presses "stop" on the run's page.

    The SDK would interrupt this process, which may train another run than the one that it delivers. The SDK copies its
    settings deeply: hence a plain function.
    """

    def tell() -> None:
        context.notices.tell_once(
            ("stop", context.remote.id),
            f"W&B was asked to stop the run {context.remote.id}. Training goes on: stop the process to end it.",
        )

    return tell


def _wait_for_last_host(context: Context, folder: Path) -> None:
    """Wait until the last host's service, which outlives a killed program by seconds, sends and writes no more."""
    extra = context.remote.extra
    if "file" not in extra:
        return
    last = folder / str(extra["file"])
    if ended(last) is not None:
        return
    deadline = time.monotonic() + INIT_TIMEOUT_S / 2
    while is_open(last):
        if time.monotonic() > deadline:
            raise UnreachableError(f"the SDK of another process still writes to {last}")
        time.sleep(0.2)
    if "base" in extra and last.is_file():
        tidy(last)


def _knock(context: Context, settings: Any) -> Any:
    """Have W&B answer before the SDK is started: that waits longer, and leaves a folder behind each time.

    Returns:
        What asks W&B.
    """
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    asking = wandb_setup.singleton().settings.model_copy()
    asking.update_from_settings(settings)
    if settings.api_key is None:
        auth = wbauth.authenticate_session(host=asking.base_url, source="lightning-loggers", prompt=False)
        if auth is None:
            raise LockedOutError(
                f"there are no credentials for {asking.base_url}; set WANDB_API_KEY, or run: wandb login"
            )
        wbauth.set_auth_settings(asking, auth)
    asking.x_graphql_retry_max, asking.x_graphql_timeout_seconds = 1, ASK_TIMEOUT_S / 2
    asking.x_graphql_retry_wait_min_seconds = asking.x_graphql_retry_wait_max_seconds = 1.0  # less counts as unset
    api = service_api(asking)
    account = api.authenticate()
    remote, options = context.remote, context.options
    if remote.parent is None:
        entity = options.get("entity") or account.default_entity
        remote.parent = f"{entity}/{options.get('project') or context.run.name}"
    context.acknowledged()
    return api


def _init(wandb: Any, context: Context, settings: Any, mark: Mapping[str, Any] | None, mode: str) -> Any:
    options, remote = context.options, context.remote
    fresh, uid = "rows" not in remote.extra, context.run.uid
    further = {key: value for key, value in (options.get("init") or {}).items() if fresh or key not in _ONCE}
    config = dict(options.get("config") or {})
    if mark is None or mark.get("run_uid") == uid:  # somebody else's run is marked once we know where it stands
        config[MARK] = {**(mark or {}), "run_uid": uid}
    before = set(run_folders(settings, str(remote.id)))
    try:
        return wandb.init(
            entity=options.get("entity"),
            project=options.get("project") or context.run.name,
            id=remote.id,
            name=options.get("name"),
            notes=options.get("notes"),
            tags=options.get("tags") or None,
            group=options.get("group"),
            job_type=options.get("job_type"),
            config=config if fresh else None,
            mode=mode,
            resume=(options.get("resume") or "allow") if fresh else "allow",
            reinit="create_new",
            settings=settings,
            **further,
        )
    except Exception as error:
        if "is in use" in str(error):  # by another run of this process, which is left alone
            raise
        release(str(remote.id))
        for folder in set(run_folders(settings, str(remote.id))) - before:
            shutil.rmtree(folder, ignore_errors=True)  # made a moment ago, and nothing was logged to it
        raise
