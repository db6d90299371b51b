"""MLflow's REST store with short requests: delivery does the waiting, and points need no message of protobuf's."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from lightning_loggers.adapters.mlflow_sql import Point

_REQUEST_TIMEOUT_S = 30.0
_JSON_NAMES = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}  # protobuf's JSON mapping
TRANSIENT_HTTP = {408, 425, 429, 500, 502, 503, 504}


class UnreachableError(Exception):
    """No answer came: nothing listening, connection reset, time-out."""


class StatusError(Exception):
    """The server answered with an HTTP error that says "not now" or "not you"."""

    def __init__(self, status: int, text: str, retry_after_s: float | None) -> None:
        super().__init__(f"HTTP {status}: {text[:500]}")
        self.status = status
        self.retry_after_s = retry_after_s


def bounded(store: Any, acknowledged: Callable[[], None]) -> Any:
    """MLflow's REST store, with one attempt of at most 30 s a request.

    The SDK's own retries (7, up to four minutes, set for a whole process by the environment) would hide an outage from
    delivery, which waits better: it ends its waits on shutdown and honours ``Retry-After``.
    """
    from mlflow.protos.service_pb2 import LogBatch
    from mlflow.store.tracking.rest_store import RestStore
    from mlflow.utils.proto_json_utils import parse_dict
    from mlflow.utils.rest_utils import http_request, verify_rest_response

    class BoundedRestStore(RestStore):  # type: ignore[misc, unused-ignore]
        def _call_endpoint(
            self,
            api: Any,
            json_body: Any = None,
            endpoint: Any = None,
            retry_timeout_seconds: Any = None,
            response_proto: Any = None,
        ) -> Any:
            known_endpoint, method = self._METHOD_TO_INFO[api]
            body = json.loads(json_body) if json_body else None
            fields = {"params": body} if method == "GET" else {"json": body}
            text = self._request(endpoint or known_endpoint, method, **fields)
            message = response_proto or api.Response()
            parse_dict(js_dict=json.loads(text), message=message)
            return message

        def log_points(self, run_id: str, points: Sequence[Point]) -> None:
            """``runs/log-batch`` of MLflow's REST API, without the detour over a protobuf message a point.

            That detour costs ten times the request's own work, all of it under the interpreter lock that a delivery
            thread shares with training.
            """
            metrics = [
                {
                    "key": key,
                    "value": value if math.isfinite(value) else _JSON_NAMES[str(value)],
                    "timestamp": at,
                    "step": step,
                }
                for key, value, at, step in points
            ]
            body = msgspec.json.encode({"run_id": run_id, "metrics": metrics})
            endpoint, method = self._METHOD_TO_INFO[LogBatch]
            self._request(endpoint, method, data=body, extra_headers={"Content-Type": "application/json"})

        def _request(self, endpoint: str, method: str, **fields: Any) -> str:
            try:
                response = http_request(
                    self.get_host_creds(),
                    endpoint,
                    method,
                    max_retries=0,
                    timeout=_REQUEST_TIMEOUT_S,
                    raise_on_status=False,
                    respect_retry_after_header=False,
                    **fields,
                )
            except Exception as error:
                raise UnreachableError(f"{type(error).__name__}: {error}") from error
            if response.status_code in TRANSIENT_HTTP or response.status_code in {401, 403}:
                raise StatusError(
                    response.status_code, response.text, _retry_after_s(response.headers.get("Retry-After"))
                )
            verify_rest_response(response, endpoint)
            acknowledged()
            return str(response.text)

    return BoundedRestStore(store.get_host_creds)


def _retry_after_s(value: str | None) -> float | None:
    """``Retry-After`` in seconds (RFC 9110, section 10.2.3), given as seconds or as a date."""
    if not value:
        return None
    with contextlib.suppress(ValueError):
        return max(float(value), 0.0)
    from email.utils import parsedate_to_datetime

    with contextlib.suppress(TypeError, ValueError):
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    return None
