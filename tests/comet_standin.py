"""A stand-in of Comet's endpoints, on loopback, that the real SDK and its own uploader talk to.

It answers in Comet's words and keeps what it is sent the way Comet shows it: points as they come, the last value of a
parameter or other fact, an asset by its id.
"""

import gzip
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from requests_toolbelt.multipart.decoder import MultipartDecoder

API_KEY = "AbCdEfGhIjKlMnOpQrStUvWxY"


@dataclass
class StandInAsset:
    """A file that was uploaded."""

    name: str
    type: str
    content: bytes
    params: dict[str, Any]
    metadata: dict[str, Any]
    items: dict[str, bytes] = field(default_factory=dict)
    thumbnail: bytes | None = None


@dataclass
class StandInExperiment:
    """What Comet knows of an experiment."""

    key: str
    project: str | None = None
    workspace: str | None = None
    offline: bool = False
    points: list[dict[str, Any]] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    param_times: dict[str, int] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    assets: dict[str, StandInAsset] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    state: str = "running"
    error: str | None = None
    graph: str | None = None
    start_ms: int | None = None
    end_ms: int | None = None
    sessions: int = 0

    def series(self, name: str) -> list[tuple[Any, Any]]:
        """(step, value) of a metric, in the order of steps."""
        found = [(point["step"], point["metricValue"]) for point in self.points if point["metricName"] == name]
        return sorted(found, key=lambda pair: (pair[0] is None, pair[0]))

    def assets_of(self, kind: str) -> list[StandInAsset]:
        """Assets of one type."""
        return [asset for asset in self.assets.values() if asset.type == kind]

    def asset(self, name: str) -> StandInAsset:
        """The one asset of a name."""
        (asset,) = [asset for asset in self.assets.values() if asset.name == name]
        return asset


class CometStandIn:
    """Comet's endpoints; a context manager.

    Attributes:
        experiments: By key.
        requests: Paths of the requests so far.
        fault: Called with a request's path; an HTTP status to answer with instead, ``-1`` to drop the connection after
            the request was taken, ``-2`` to let it hang, or 0.
        port: Set it before entering to answer at a given port.
        unknown: Paths that it does not know, or could not answer.
    """

    def __init__(self, port: int = 0) -> None:
        self.experiments: dict[str, StandInExperiment] = {}
        self.requests: list[str] = []
        self.fault: Callable[[str], int] = lambda path: 0
        self.retry_after: str | None = None
        self.unknown: list[str] = []
        self.api_key = API_KEY
        self.max_points = 1_000_000
        self.fault_answer: dict[str, Any] = {"msg": "scripted"}
        self.released = threading.Event()
        self._lock = threading.Lock()
        standin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # head and body in one packet: else each answer waits 40 ms for an acknowledgement
            timeout = 60

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                path = urlsplit(self.path).path
                status = standin.fault(path)
                if status == -2:
                    standin.released.wait(120)
                    self.close_connection = True
                    return
                if status > 0:
                    answer: Any = standin.fault_answer
                else:
                    with standin._lock:
                        standin.requests.append(path)
                        try:
                            status_now, answer = standin._answer(self, path, body)
                        except Exception as error:
                            standin.unknown.append(f"{path}: {error!r}")
                            status_now, answer = 400, {"msg": repr(error)}
                    if status < 0:
                        self.close_connection = True
                        self.connection.close()
                        return
                    status = status_now
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                if standin.retry_after is not None and status == 429:
                    self.send_header("Retry-After-Custom", standin.retry_after)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = handle_one

            def log_message(self, *args: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *args: object) -> None:
                return

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = int(self.server.server_address[1])
        self.uri = f"http://127.0.0.1:{self.port}/clientlib/"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "CometStandIn":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def only(self) -> StandInExperiment:
        """The one experiment there is."""
        (experiment,) = self.experiments.values()
        return experiment

    # ------------------------------------------------------------------ answers

    def _answer(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> tuple[int, Any]:
        if path.endswith("/isAlive/ver"):
            return 200, {"version": "99.0.0"}
        if path.endswith("/health/ping"):
            return 200, {}
        if path == "/clientlib/asset/upload":
            return self._upload(request, body)
        if path == "/clientlib/asset/asset-item" or path.endswith("/thumbnail"):
            return self._upload_part(request, path, body)
        said = json.loads(body) if body else {}
        given = request.headers.get("Authorization") or said.get("apiKey")
        if given != self.api_key:
            from comet_ml.exceptions import API_KEY_NOT_REGISTERED

            code = {"sdk_error_code": API_KEY_NOT_REGISTERED, "msg": "not registered"}
            return (400 if path.startswith("/clientlib/logger/") else 401), code
        handler = _HANDLERS.get(path.removeprefix("/clientlib/").removeprefix("/api/rest/v2/"))
        if handler is None:
            self.unknown.append(path)
            return 200, {}
        return handler(self, said)

    def _upload(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, Any]:
        if request.headers.get("Authorization") != self.api_key:
            return 401, {}
        params = dict(parse_qsl(urlsplit(request.path).query, keep_blank_values=True))
        parts = {}
        for part in MultipartDecoder(body, request.headers["Content-Type"]).parts:
            disposition = part.headers[b"Content-Disposition"].decode()
            parts["metadata" if 'name="metadata"' in disposition else "file"] = part.content
        asset_id = params.get("assetId") or str(len(body))
        self.experiments[params["experimentId"]].assets[asset_id] = StandInAsset(
            params.get("fileName", ""),
            params.get("type", "asset"),
            parts["file"],
            params,
            json.loads(parts.get("metadata", b"{}")),
        )
        return 200, {"assetId": asset_id}

    def _upload_part(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> tuple[int, Any]:
        """A file of an asset that was made before: its thumbnail, or an item; the key is in what is said of it."""
        parts = {}
        for part in MultipartDecoder(body, request.headers["Content-Type"]).parts:
            disposition = part.headers[b"Content-Disposition"].decode()
            parts[disposition.partition('name="')[2].partition('"')[0]] = part.content
        said = json.loads(parts.pop("requestParams"))
        if said["apiKey"] != self.api_key:
            return 401, {}
        asset_id = said.get("assetId") or path.split("/")[-2]
        asset = self.experiments[said["experimentKey"]].assets[asset_id]
        if path.endswith("/thumbnail"):
            asset.thumbnail = parts["thumbnail"]
        else:
            assert said["assetItemType"] in {"points", "boxes"}, said
            asset.items[said["userFileName"]] = parts["assetItemContent"]
        return 200, {}

    def _new_asset(self, said: dict[str, Any]) -> tuple[int, Any]:
        assets = self._of(said).assets
        asset_id = f"made-here-{len(assets)}"
        step = {} if said["step"] is None else {"step": str(said["step"])}
        metadata = json.loads(said.get("metadata") or "{}")
        assets[asset_id] = StandInAsset(said["userFileName"], said["assetType"], b"", step, metadata)
        return 200, {"assetId": asset_id}

    def _limits(self, said: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"maxPoints": self.max_points, "maxBoxes": 250_000}

    def _graph(self, said: dict[str, Any]) -> tuple[int, Any]:
        self._of(said).graph = said["graph"]
        return 200, {}

    def _add_run(self, said: dict[str, Any]) -> tuple[int, Any]:
        from comet_ml.exceptions import EXPERIMENT_ALREADY_EXISTS

        key = said["experimentKey"]
        if key in self.experiments:
            return 400, {"sdk_error_code": EXPERIMENT_ALREADY_EXISTS, "msg": "exists"}
        self.experiments[key] = StandInExperiment(
            key, said["projectName"], said["teamName"], offline=said.get("offline", False), sessions=1
        )
        return 200, self._handshake(key)

    def _get_run(self, said: dict[str, Any]) -> tuple[int, Any]:
        from comet_ml.exceptions import NO_WRITE_ACCESS_TO_EXPERIMENT

        key = said["previousExperiment"]
        if key not in self.experiments:
            return 400, {"sdk_error_code": NO_WRITE_ACCESS_TO_EXPERIMENT, "msg": f"no experiment {key}"}
        self.experiments[key].sessions += 1
        return 200, self._handshake(key)

    def _handshake(self, key: str) -> dict[str, Any]:
        return {
            "runId": f"run-{key}",
            "project_id": "project-1",
            "focusUrl": f"http://127.0.0.1:{self.port}/ann/digits/",
            "lastOffset": 0,
            "name": "a_name_1",
        }

    def _of(self, said: dict[str, Any]) -> StandInExperiment:
        return self.experiments[said["experimentKey"]]

    def _status_report(self, said: dict[str, Any]) -> tuple[int, Any]:
        self._of(said).state = "running" if said["is_alive"] else "finished"
        return 200, {"is_alive_beat_duration_millis": 10_000, "gpu_monitor_interval_millis": 60_000}

    def _times(self, said: dict[str, Any]) -> tuple[int, Any]:
        experiment = self._of(said)
        start, end = said.get("startTimestamp"), said.get("endTimestamp")
        start, end = said.get("startTimeMillis", start), said.get("endTimeMillis", end)
        experiment.start_ms = start if start is not None else experiment.start_ms
        experiment.end_ms = end if end is not None else experiment.end_ms
        return 200, {}

    def _metrics(self, said: dict[str, Any]) -> tuple[int, Any]:
        self._of(said).points.extend(said["values"])
        return 200, {}

    def _params(self, said: dict[str, Any]) -> tuple[int, Any]:
        experiment = self._of(said)
        for item in said["values"]:
            experiment.params[item["parameterName"]] = item["parameterValue"]
            experiment.param_times[item["parameterName"]] = item["timestamp"]
        return 200, {}

    def _tags(self, said: dict[str, Any]) -> tuple[int, Any]:
        self._of(said).tags.extend(said["addedTags"])
        return 200, {}

    def _other(self, said: dict[str, Any]) -> tuple[int, Any]:
        self._of(said).others[said["key"]] = said["value"]
        return 200, {}

    def _state(self, said: dict[str, Any]) -> tuple[int, Any]:
        experiment = self._of(said)
        experiment.error = said["error"]
        experiment.state = "running" if said["isAlive"] else "crashed" if said["hasCrashed"] else "finished"
        return 200, {}


_HANDLERS: dict[str, Callable[[CometStandIn, dict[str, Any]], tuple[int, Any]]] = {
    "asset": CometStandIn._new_asset,
    "asset/3d-limits": CometStandIn._limits,
    "logger/add/run": CometStandIn._add_run,
    "logger/get/run": CometStandIn._get_run,
    "status-report/update": CometStandIn._status_report,
    "status-report/offline-metadata": CometStandIn._times,
    "batch/logger/experiment/metric": CometStandIn._metrics,
    "batch/logger/experiment/parameter": CometStandIn._params,
    "tags/add-tags-to-experiment": CometStandIn._tags,
    "write/experiment/graph": CometStandIn._graph,
    "write/experiment/log-other": CometStandIn._other,
    "write/experiment/update-status": CometStandIn._state,
    "write/experiment/set-start-end-time": CometStandIn._times,
}
