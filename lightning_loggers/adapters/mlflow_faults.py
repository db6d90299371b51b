"""What MLflow's exceptions mean: wait, have a person mend it, set a record aside, or blame ourselves."""

import re
from collections.abc import Iterator

from lightning_loggers.adapters.base import Fault, FaultKind
from lightning_loggers.adapters.mlflow_rest import TRANSIENT_HTTP, StatusError, UnreachableError

_TRANSIENT_CODES = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "IO_ERROR"}
_AUTH_CODES = {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"}
_REJECT_CODES = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "ENDPOINT_NOT_FOUND",
    "NOT_FOUND",
}
_TRANSIENT_WORDS = ("database is locked", "could not connect", "connection refused", "server closed the connection")
_GONE = re.compile(r"must be in the 'active' state|Run with id=\S+ not found|Run '\S+' not found")
_TRANSIENT_CAUSES = {
    "InterfaceError",
    "TimeoutError",
    "DisconnectionError",
}  # of SQLAlchemy: the connection, not the data


class DeletedExperimentError(Exception):
    """The experiment is in the bin; only a person can say whether it comes back."""


def fault_of(error: Exception, run_id: str | None) -> Fault:
    """What delivery does about an exception of MLflow's, of its stores' or of a request's."""
    if isinstance(error, UnreachableError):
        return Fault(FaultKind.TRANSIENT, str(error))
    if isinstance(error, StatusError):
        kind = FaultKind.TRANSIENT if error.status in TRANSIENT_HTTP else FaultKind.AUTHENTICATION
        return Fault(kind, str(error), error.retry_after_s)
    if isinstance(error, DeletedExperimentError):
        return Fault(FaultKind.AUTHENTICATION, str(error))
    code = str(getattr(error, "error_code", ""))
    text = f"{type(error).__name__}: {error}".partition("\n[SQL: ")[0]  # the statement may have thousands of values
    if _GONE.search(text):
        return Fault(
            FaultKind.AUTHENTICATION,
            f"{text} (If the run was deleted by mistake: mlflow runs restore --run-id {run_id})",
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):  # of an artifact's transfer
        if status in {401, 403}:
            return Fault(FaultKind.AUTHENTICATION, text)
        refused = 400 <= status < 500 and status not in TRANSIENT_HTTP
        return Fault(FaultKind.REJECTED if refused else FaultKind.TRANSIENT, text)
    if any(words in text.lower() for words in _TRANSIENT_WORDS):
        return Fault(FaultKind.TRANSIENT, text)
    if code in _AUTH_CODES:
        return Fault(FaultKind.AUTHENTICATION, text)
    causes = list(_causes(error))
    if any(
        type(cause).__name__ in _TRANSIENT_CAUSES or getattr(cause, "connection_invalidated", False) for cause in causes
    ):
        return Fault(FaultKind.TRANSIENT, text)
    if code in _REJECT_CODES or "Invalid artifact path" in text:
        return Fault(FaultKind.REJECTED, text)
    if code in _TRANSIENT_CODES:
        return Fault(FaultKind.TRANSIENT, text)
    if any(isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError) for cause in causes):
        return Fault(FaultKind.TRANSIENT, text)  # requests' errors are OSErrors
    if isinstance(error, FileNotFoundError | ValueError | ImportError):
        return Fault(FaultKind.REJECTED, text)
    return Fault(FaultKind.BUG, text)  # among them MLflow's INTERNAL_ERROR: its code for all it has no code for


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception and those that led to it."""
    for _ in range(16):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
