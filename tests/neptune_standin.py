"""A stand-in of the endpoints of a Neptune server, on loopback: as much as the real SDK asks for.

It keeps the rules that matter here: steps of a series strictly increase, points without a step are numbered, a field
has one type, a run is found again by its custom id, and only one token is let in.
"""

import base64
import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt

_STRING = {"type": "string"}
_PATHS = {
    "backend": {
        "getClientConfig": ("get", "/api/backend/clients/config", {"X-Neptune-Api-Token": "header", "alpha": "query"}),
        "exchangeApiToken": ("get", "/api/backend/oauth-token", {"X-Neptune-Api-Token": "header"}),
        "getProject": ("get", "/api/backend/projects/get", {"projectIdentifier": "query"}),
        "listOrganizations": ("get", "/api/backend/organizations", {}),
        "listProjects": (
            "get",
            "/api/backend/projects/list",
            dict.fromkeys(
                (
                    "limit", "organizationIdentifier", "searchTerm", "sortBy", "sortDirection", "userRelation"
                ), "query"
            ),
        ),
    },
    "leaderboard": {
        "createExperiment": (
            "post",
            "/api/leaderboard/experiments",
            {"experimentCreationParams": "body", "X-Neptune-CliVersion": "header"},
        ),
        "getExperiment": ("get", "/api/leaderboard/experiment", {"experimentId": "query"}),
        "executeOperations": (
            "post",
            "/api/leaderboard/operations",
            {"experimentId": "query", "operations": "body"},
        ),
        "getExperimentAttributes": ("get", "/api/leaderboard/attributes", {"experimentId": "query"}),
        "getImageSeriesValues": (
            "get",
            "/api/leaderboard/attributes/series/image/list",
            dict.fromkeys(("experimentId", "attribute", "limit", "offset"), "query"),
        ),
        "getImageSeriesValue": (
            "get",
            "/api/leaderboard/attributes/series/image",
            dict.fromkeys(("experimentId", "attribute", "index"), "query"),
        ),
        "ping": ("post", "/api/leaderboard/ping", {"experimentId": "query"}),
        **{
            name: (
                "post",
                f"/api/leaderboard/{name}",
                dict.fromkeys(("experimentIdentifier", "attribute", "ext", "totalLength", "uploadId"), "query"),
            )
            for name in (
                "fileAtomUpload",
                "fileAtomMultipartUploadStart",
                "fileAtomMultipartUploadFinish",
                "fileAtomMultipartUploadPart",
            )
        },
    },
}  # fmt: skip
_MODELS: dict[str, dict[str, Any]] = {
    "getClientConfig": {"apiUrl": _STRING, "applicationUrl": _STRING, "pyLibVersions": {"$ref": "#/definitions/Libs"}},
    "exchangeApiToken": {"accessToken": _STRING, "refreshToken": _STRING},
    "getProject": {
        "id": _STRING,
        "name": _STRING,
        "organizationName": _STRING,
        "projectKey": _STRING,
        "version": {"type": "integer"},
    },
    "createExperiment": {
        "id": _STRING,
        "type": _STRING,
        "shortId": _STRING,
        "organizationName": _STRING,
        "projectName": _STRING,
        "trashed": {"type": "boolean"},
    },
    "executeOperations": {"errorDescription": _STRING},
    "getExperimentAttributes": {"attributes": {"type": "array", "items": {"$ref": "#/definitions/Attribute"}}},
    "getImageSeriesValues": {"totalItemCount": {"type": "integer"}},
    "listProjects": {"entries": {"type": "array", "items": {"type": "object"}}},
    "Libs": dict.fromkeys(("minRecommendedVersion", "minCompatibleVersion", "maxCompatibleVersion"), _STRING),
    "Attribute": {"name": _STRING, "type": _STRING},
}
_MODELS["getExperiment"] = _MODELS["createExperiment"]
_LISTS = {"executeOperations", "listOrganizations"}


def _swagger(part: str, host: str) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for name, (method, path, parameters) in _PATHS[part].items():
        item: dict[str, Any] = {"$ref": f"#/definitions/{name}"} if name in _MODELS else {"type": "object"}
        schema = {"type": "array", "items": item} if name in _LISTS else item
        spec = [
            {"name": key, "in": place, "schema": {}} if place == "body" else {"name": key, "in": place, **_STRING}
            for key, place in parameters.items()
        ]
        for parameter in spec:
            if parameter["name"] in {"sortBy", "sortDirection"}:
                parameter |= {"type": "array", "items": _STRING}
        response = {"200": {"description": "fine", "schema": schema}}
        paths[path] = {method: {"operationId": name, "tags": ["api"], "parameters": spec, "responses": response}}
    definitions = {name: {"type": "object", "properties": fields} for name, fields in _MODELS.items()}
    return {
        "swagger": "2.0", "info": {"title": part, "version": "1"}, "host": host, "schemes": ["http"],
        "consumes": ["application/json"], "produces": ["application/json"], "paths": paths, "definitions": definitions,
    }  # fmt: skip


class StandInRun:
    """One run as the server has it.

    Attributes:
        series: Path to ``(value, step, time in s)``; points without a step have a number instead.
        values: Path to value.
        files: Path to content.
        images: Path to ``(content, step, time in s, description)``.
    """

    def __init__(self, custom_id: str | None, sys_id: str) -> None:
        self.id, self.custom_id, self.sys_id = str(uuid.uuid4()), custom_id, sys_id
        self.series: dict[str, list[tuple[Any, Any, float]]] = {}
        self.values: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.images: dict[str, list[tuple[bytes, Any, float, str | None]]] = {}
        self.types: dict[str, str] = {}

    def do(self, operation: dict[str, Any]) -> list[str]:
        """Execute one operation; says what is wrong with it."""
        path = operation.pop("path")
        ((name, given),) = operation.items()
        if name == "deleteAttribute":
            self.types.pop(path, None)
            known = self.values.pop(path, None) is not None or self.files.pop(path, None) is not None
            return [] if known else [f"{path} does not exist"]
        if clash := self.claim(path, name):
            return [clash]
        if name in {"logFloats", "logStrings"}:
            return self._log(path, given["entries"], self.series.setdefault(path, []))
        if name == "logImages":
            return self._log(path, given["entries"], self.images.setdefault(path, []))
        if name == "insertStrings":
            self.values.setdefault(path, set()).update(given["values"])
        else:
            self.values[path] = given["value"]
        return []

    def claim(self, path: str, kind: str) -> str:
        """Take a path for a type; says what is in the way."""
        if self.types.setdefault(path, kind) != kind:
            return f"{path} is a {self.types[path]}, no {kind}"
        if any(other.startswith(f"{path}/") or path.startswith(f"{other}/") for other in self.types):
            return f"{path} is a namespace, or below a field"
        return ""

    @staticmethod
    def _log(path: str, entries: list[dict[str, Any]], points: list[Any]) -> list[str]:
        errors = []
        for entry in entries:
            step = entry["step"]
            if step is None:
                step = points[-1][1] + 1 if points else 0
            if points and step <= points[-1][1]:
                errors.append(f"X-coordinates (step) must be strictly increasing: {path}. Invalid point: {step}")
            elif isinstance(value := entry["value"], dict):  # an image
                content = base64.b64decode(value["data"], validate=True)
                points.append((content, step, entry["timestampMilliseconds"] / 1000, value["description"]))
            else:
                points.append((value, step, entry["timestampMilliseconds"] / 1000))
        return errors


class NeptuneStandIn:
    """The server.

    Args:
        fault: Called per request with its path; an HTTP status to answer with instead, or ``""``.
        port: Where to listen; by default a free port.
    """

    def __init__(self, fault: Callable[[str], str] = lambda path: "", port: int = 0) -> None:
        self.fault = fault
        self.runs: list[StandInRun] = []
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self._lock = threading.Lock()
        standin = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with standin._lock:
                    status, content = standin._answer(self, urlsplit(self.path), body)
                sent = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "image/png" if sent.startswith(b"\x89PNG") else "application/json")
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            do_GET = do_POST = answer

            def handle(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().handle()

            def log_message(self, *args: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                return

        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.token = token_for(self.uri)
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "NeptuneStandIn":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()

    def only_run(self) -> StandInRun:
        """The run, of which there is one."""
        (run,) = self.runs
        return run

    # ------------------------------------------------------------------ endpoints

    def _answer(self, request: BaseHTTPRequestHandler, url: Any, body: bytes) -> tuple[int, Any]:
        self.requests.append(url.path)
        if fault := self.fault(url.path):
            return int(fault), {"title": "scripted"}
        for part in _PATHS:
            if url.path == f"/api/{part}/swagger.json":
                return 200, _swagger(part, self.uri.partition("://")[2])
        query = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        if url.path == "/auth/protocol/openid-connect/token":
            access = self._access_token()
            return 200, {"access_token": access, "refresh_token": "r", "token_type": "bearer", "expires_in": 3600}
        name = next((name for part in _PATHS.values() for name, spec in part.items() if spec[1] == url.path), None)
        if name is None:
            self.unknown.append(url.path)
            return 404, {}
        if name in {"getClientConfig", "exchangeApiToken"}:
            allowed = request.headers.get("X-Neptune-Api-Token") == self.token
        else:
            allowed = str(request.headers.get("Authorization", "")).startswith("Bearer ")
        return getattr(self, f"_{name}")(query, body) if allowed else (401, {})

    def _access_token(self) -> str:
        claims = {"exp": int(time.time()) + 3600, "azp": "neptune-cli", "iss": f"{self.uri}/auth"}
        return jwt.encode(claims, "k" * 32, algorithm="HS256")

    def _getClientConfig(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        return 200, {"apiUrl": self.uri, "applicationUrl": self.uri, "pyLibVersions": {}}

    def _exchangeApiToken(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        return 200, {"accessToken": self._access_token(), "refreshToken": "r"}

    def _getProject(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        workspace, _, name = query["projectIdentifier"].partition("/")
        if name != "digits":
            return 404, {}
        return 200, {"id": "p1", "name": name, "organizationName": workspace, "projectKey": "DIG", "version": 2}

    def _listOrganizations(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        return 200, []

    def _listProjects(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        return 200, {"entries": []}

    def _createExperiment(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        custom_id = json.loads(body).get("customId")
        run = next((run for run in self.runs if custom_id and run.custom_id == custom_id), None)
        if run is None:
            run = StandInRun(custom_id, f"DIG-{len(self.runs) + 1}")
            self.runs.append(run)
        return 200, self._described(run)

    @staticmethod
    def _described(run: StandInRun) -> dict[str, Any]:
        return {
            "id": run.id, "type": "run", "shortId": run.sys_id, "organizationName": "team", "projectName": "digits",
            "trashed": False,
        }  # fmt: skip

    def _getExperiment(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        wanted = query["experimentId"]
        run = next((run for run in self.runs if wanted in {run.id, f"team/digits/{run.sys_id}"}), None)
        return (404, {"errorType": "EXPERIMENT_NOT_FOUND"}) if run is None else (200, self._described(run))

    def _run(self, query: dict[str, str]) -> StandInRun:
        wanted = query.get("experimentId") or query.get("experimentIdentifier")
        return next(run for run in self.runs if run.id == wanted)

    def _executeOperations(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        run = self._run(query)
        errors = [error for operation in json.loads(body) for error in run.do(operation)]
        return 200, [{"errorDescription": error} for error in errors]

    def _getExperimentAttributes(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        return 200, {"attributes": [{"name": path, "type": "imageSeries"} for path in self._run(query).images]}

    def _getImageSeriesValues(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        return 200, {"totalItemCount": len(self._run(query).images[query["attribute"]])}

    def _getImageSeriesValue(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        return 200, self._run(query).images[query["attribute"]][int(query["index"])][0]

    def _ping(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        return 200, {}

    def _fileAtomUpload(self, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        run = self._run(query)
        if clash := run.claim(query["attribute"], "file"):
            return 200, {"errors": [{"errorDescription": clash}]}
        run.files[query["attribute"]] = body
        return 200, b"null"


def token_for(uri: str, key: str = "s3cr3t-key") -> str:
    """An API token of the server at ``uri``."""
    return base64.b64encode(json.dumps({"api_address": uri, "api_url": uri, "api_key": key}).encode()).decode()
