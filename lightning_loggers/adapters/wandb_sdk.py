"""What the W&B adapter does with the SDK behind its public interface: its service process, and what its errors mean.

Written against wandb 0.31; nothing is imported before it is used.
"""

import contextlib
import re
import sys
from pathlib import Path
from typing import Any

from lightning_loggers.adapters.base import Fault, FaultKind

ASK_TIMEOUT_S = 8.0
FINISH_TIMEOUT_S = 10.0

_AUTH = re.compile(
    r"permission denied|unauthorized|not authorized|forbidden|api key|not logged in|\b40[13]\b|deleted|no such run",
    re.IGNORECASE,
)
_SERVICE_GONE = {"MailboxClosedError", "HandleAbandonedError", "WandbServiceConnectionError", "AlreadyJoinedError"}
_TELLS_ITS_CAUSE = {"CommError", "WandbApiFailedError", "Error", "ServerResponseError"}
_FOR_THE_USER = {"AuthenticationError", "UsageError", "UnsupportedError"}


class UnreachableError(Exception):
    """No answer, or none in time."""


class LockedOutError(Exception):
    """W&B wants something from the user first: credentials, a newer SDK, a run that was not deleted."""


class RefusedError(Exception):
    """W&B does not take these records, though it answers."""


def fault_of(error: Exception) -> Fault:
    """What an exception of the SDK, or of ours above, means."""
    kind, text = type(error).__name__, f"{type(error).__name__}: {error}"
    if isinstance(error, UnreachableError):
        return Fault(FaultKind.TRANSIENT, str(error))
    if isinstance(error, LockedOutError):
        return Fault(FaultKind.AUTHENTICATION, str(error))
    if isinstance(error, RefusedError):
        return Fault(FaultKind.REJECTED, str(error))
    if kind in _TELLS_ITS_CAUSE:
        status = getattr(getattr(error, "response", None), "http_status", None)
        locked_out = status in {401, 403} or _AUTH.search(text)
        return Fault(FaultKind.AUTHENTICATION if locked_out else FaultKind.TRANSIENT, text)
    if run_has_ended(error):
        return Fault(FaultKind.TRANSIENT, text)  # the user ended it a moment ago: it is begun again
    if kind in _FOR_THE_USER:
        return Fault(FaultKind.AUTHENTICATION, text)
    if service_is_lost(error) or (isinstance(error, OSError) and not isinstance(error, FileNotFoundError)):
        return Fault(FaultKind.TRANSIENT, text)
    if isinstance(error, FileNotFoundError | ValueError):
        return Fault(FaultKind.REJECTED, text)
    return Fault(FaultKind.BUG, text)


def run_has_ended(error: Exception) -> bool:
    """Whether the SDK says that its run was finished."""
    return type(error).__name__ == "UsageError" and "is finished" in str(error).lower()


def service_is_lost(error: Exception) -> bool:
    """Whether the SDK cannot talk to its own process."""
    return type(error).__name__ in _SERVICE_GONE or isinstance(error, ConnectionError | TimeoutError)


def locked_out(text: str) -> bool:
    """Whether an error's text says that the user has no access."""
    return _AUTH.search(text) is not None


def release(run_id: str) -> None:
    """Have the SDK's service forget a run that could not be begun; it holds on to the id otherwise."""
    from wandb.sdk import wandb_setup
    from wandb.sdk.interface.interface_sock import InterfaceSock

    with contextlib.suppress(Exception):
        service = wandb_setup.singleton().assert_service()
        stream = InterfaceSock(service._asyncer, service._client, stream_id=run_id)
        stream.deliver_exit(1).wait_or(timeout=FINISH_TIMEOUT_S)
        service.inform_finish(run_id)


def service_has_died() -> bool:
    """Whether the SDK's service process, started by this one, is dead."""
    if "wandb" not in sys.modules:
        return False
    from wandb.sdk import wandb_setup

    with contextlib.suppress(AttributeError):  # there is no service, or another process has started it
        return wandb_setup.singleton()._connection._proc._process.poll() is not None
    return False


def forget_dead_service() -> bool:
    """If the SDK's service process has died, let the next run start another one."""
    if not service_has_died():
        return False
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib.service import service_token

    setup = wandb_setup.singleton()
    connection, setup._connection = setup._connection, None
    service_token.clear_service_in_env()
    # What the SDK does at its end, but for waiting for the process.
    with contextlib.suppress(Exception):
        connection._cleanup()
    with contextlib.suppress(Exception):
        connection._finalizer.close()
    with contextlib.suppress(Exception):
        setup.asyncer.run(connection._client.close)
    return True


def stop_status_checker(run: Any) -> None:
    """Stop the SDK's thread that prints a line every few seconds while W&B does not answer, or its service is dead."""
    with contextlib.suppress(Exception):
        run._run_status_checker.stop()


def media_files(run: Any) -> int:
    """How many files the SDK was given beside rows (images, tables, ...) in this session of a run: it keeps copies."""
    return sum(path.is_file() for path in Path(run.dir, "media").rglob("*"))


def are_sent(run: Any, number: int) -> bool:
    """Whether the SDK has sent so many media files, and the artifacts that go with them.

    Raises:
        TimeoutError: If its service does not say so in time.
    """
    from wandb.proto import wandb_internal_pb2 as pb

    # Files wait some seconds to be sent together, and are no operations until then: first it is asked what was begun.
    begun = run._interface.deliver_poll_exit().wait_or(timeout=ASK_TIMEOUT_S)
    if begun.response.poll_exit_response.file_counts.media_count < number:
        return False
    asked = pb.Record(request=pb.Request(operations=pb.OperationStatsRequest()))
    answer = run._interface._deliver(asked).wait_or(timeout=ASK_TIMEOUT_S)
    operations = answer.response.operations_response.operation_stats.operations
    return not any(operation.desc.startswith("uploading ") for operation in operations)


def service_api(settings: Any) -> Any:
    """What asks W&B with the credentials of some settings."""
    from wandb.apis.public.service_api import ServiceApi

    return ServiceApi(settings=settings, timeout=ASK_TIMEOUT_S)
