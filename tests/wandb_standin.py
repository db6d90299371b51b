"""A stand-in of the W&B service's endpoints, on loopback, that the real SDK talks to.

It keeps what the SDK sends the way the service does (files of lines with offsets, runs that resume, artifacts with
versions and aliases), answers the SDK's own queries, and can be asked for what a run holds.
"""

import base64
import contextlib
import gzip
import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

API_KEY = "0123456789abcdef" * 2 + "01234567"
ENTITY = "ann"


@dataclass
class StandInRun:
    """What the service knows of a run."""

    entity: str
    project: str
    name: str
    storage_id: str
    display_name: str = ""
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    state: str = "running"
    exit_code: int | None = None
    preempting: bool = False
    sessions: int = 0
    resuming: bool = False
    lines: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows as the service got them."""
        return [json.loads(line) for line in self.lines.get("wandb-history.jsonl", [])]

    @property
    def values(self) -> dict[str, Any]:
        """The configuration without W&B's own entries."""
        return {key: item["value"] for key, item in self.config.items() if key != "_wandb"}

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.lines.get("wandb-summary.json", [])
        return dict(json.loads(lines[-1])) if lines else {}

    def points(self, key: str, axis: str = "trainer/global_step") -> list[tuple[Any, Any]]:
        """(step, value) of every row that has ``key``."""
        return [(row.get(axis), row[key]) for row in self.history if key in row]


@dataclass
class StandInArtifact:
    """One version of an artifact."""

    id: str
    type: str
    collection: str
    digest: str
    client_id: str
    sequence_client_id: str
    run: str | None
    metadata: dict[str, Any]
    description: str | None
    aliases: list[str]
    version: int = 0
    state: str = "PENDING"
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


class WandbStandIn:
    """The service.

    Args:
        api_key: The key that is let in; every other one gets 401.
    """

    def __init__(self, api_key: str = API_KEY) -> None:
        self.api_key = api_key
        self.runs: dict[tuple[str, str, str], StandInRun] = {}
        self.artifacts: list[StandInArtifact] = []
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.refuse_stream: int | None = None
        """Answer file_stream requests with this HTTP status."""
        self._uploads: dict[str, Any] = {}
        self._pending_files: dict[str, StandInArtifact] = {}
        self._connections: set[socket.socket] = set()
        self._lock = threading.RLock()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                status, content, kind = stand_in.answer(self.command, self.path, dict(self.headers), body)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_HEAD = handle_one

            def handle(self) -> None:
                stand_in._connections.add(self.connection)
                with contextlib.suppress(OSError, ValueError):
                    super().handle()
                stand_in._connections.discard(self.connection)

            def finish(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().finish()

            def log_message(self, *args: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *args: object) -> None:
                return

        self._make_server = lambda port: Server(("127.0.0.1", port), Handler)
        self.server = self._make_server(0)
        self.port = self.server.server_address[1]
        self.uri = f"http://127.0.0.1:{self.port}"

    # ------------------------------------------------------------------ life

    def start(self) -> "WandbStandIn":
        """Answer requests; again after :meth:`stop`, on the same port."""
        if self.server is None:
            self.server = self._make_server(self.port)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Refuse connections, and end those there are."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            for connection in list(self._connections):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.server = None

    def __enter__(self) -> "WandbStandIn":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def only_run(self) -> StandInRun:
        """The single run; fails if there are none or several."""
        assert len(self.runs) == 1, f"{len(self.runs)} runs: {list(self.runs)}"
        return next(iter(self.runs.values()))

    def run(self, name: str) -> StandInRun:
        """The run with that id."""
        found = [run for key, run in self.runs.items() if key[2] == name]
        assert len(found) == 1, f"{len(found)} runs {name!r} among {list(self.runs)}"
        return found[0]

    # ------------------------------------------------------------------ requests

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, str]:
        host = headers.get("Host", f"127.0.0.1:{self.port}")
        with self._lock:
            if path.startswith("/upload/"):
                self.requests.append(f"{method} upload")
                self._uploaded(path.split("/")[2], body)
                return 200, b"", "text/plain"
            if path.startswith("/stored/"):
                return 200, base64.urlsafe_b64decode(path.rpartition("/")[2]), "application/octet-stream"
            if not self._let_in(headers):
                self.requests.append("refused")
                return 401, b'{"error": "invalid API key"}', "application/json"
            if path.startswith("/graphql"):
                asked = json.loads(body)
                name = asked.get("operationName") or asked["query"].split("{")[0].split("(")[0].split()[-1]
                self.requests.append(name)
                return (
                    200,
                    json.dumps(self._graphql(name, asked.get("variables") or {}, asked["query"], host)).encode(),
                    ("application/json"),
                )
            if path.endswith("/file_stream"):
                self.requests.append("file_stream")
                if self.refuse_stream is not None:
                    return self.refuse_stream, b'{"error": "scripted"}', "application/json"
                _, _, entity, project, run, _ = path.partition("?")[0].split("/")
                self._stream(self.runs[entity, project, run], json.loads(body))
                return 200, b'{"exitcode": null, "limits": {}}', "application/json"
            self.unknown.append(f"{method} {path}")
            return 404, b"{}", "application/json"

    def _let_in(self, headers: dict[str, str]) -> bool:
        kind, _, token = headers.get("Authorization", "").partition(" ")
        return kind == "Basic" and base64.b64decode(token).decode() == f"api:{self.api_key}"

    def _stream(self, run: StandInRun, said: dict[str, Any]) -> None:
        for name, part in (said.get("files") or {}).items():
            lines = run.lines.setdefault(name, [])
            offset, content = part["offset"], part["content"]
            if name == "wandb-summary.json":
                lines[:] = content
                continue
            while len(lines) < offset:
                lines.append("{}")
            lines[offset : offset + len(content)] = content
        if said.get("preempting"):
            run.preempting = True
        if said.get("complete"):
            run.exit_code = said.get("exitcode")
            run.state = "finished" if run.exit_code == 0 else "preempted" if run.preempting else "failed"

    # ------------------------------------------------------------------ GraphQL

    def _graphql(self, name: str, given: dict[str, Any], query: str, host: str) -> dict[str, Any]:
        answer = getattr(self, f"_q_{name}", None)
        if answer is None:
            self.unknown.append(f"{name}\n{query}")
            return {"errors": [{"message": f"the stand-in has no {name}"}]}
        return {"data": answer(given, host)}

    def _q_Viewer(self, given: dict[str, Any], host: str) -> Any:
        return {
            "viewer": {
                "id": "u1", "entity": ENTITY, "username": ENTITY, "email": "a@b.org", "flags": "{}", "admin": False,
                "teams": {"edges": [{"node": {"name": ENTITY}}]},
            }
        }  # fmt: skip

    def _q_ServerFeaturesQuery(self, given: dict[str, Any], host: str) -> Any:
        return {"serverInfo": {"features": []}}

    def _q_OrgFeatureFlags(self, given: dict[str, Any], host: str) -> Any:
        return {"organization": None}

    def _q_OrganizationCoreWeaveOrganizationID(self, given: dict[str, Any], host: str) -> Any:
        return {"entity": {"organization": None}}

    def _q_XXHashDigestsEnabled(self, given: dict[str, Any], host: str) -> Any:
        return {"entity": {"xxhashDigestsEnabled": False}}

    def _q_UpsertBucket(self, given: dict[str, Any], host: str) -> Any:
        entity, project = given.get("entity") or ENTITY, given.get("project") or "uncategorized"
        by_id = [run for run in self.runs.values() if given.get("id") and run.storage_id == given["id"]]
        run = by_id[0] if by_id else self.runs.get((entity, project, given["name"]))
        inserted = run is None
        if run is None:
            run = StandInRun(entity, project, given["name"], f"id-{len(self.runs)}")
            run.display_name = f"quiet-name-{len(self.runs) + 1}"
            self.runs[entity, project, given["name"]] = run
        if inserted or run.resuming:
            run.sessions += 1
            run.state, run.exit_code, run.preempting, run.resuming = "running", None, False, False
        for theirs, ours in (("displayName", "display_name"), ("groupName", "group"), ("jobType", "job_type")):
            if given.get(theirs):
                setattr(run, ours, given[theirs])
        run.notes = given.get("notes") or run.notes
        run.tags = given.get("tags") if given.get("tags") is not None else run.tags
        if given.get("config"):
            run.config = json.loads(given["config"])
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def _bucket(self, run: StandInRun) -> dict[str, Any]:
        history, events = run.lines.get("wandb-history.jsonl", []), run.lines.get("wandb-events.jsonl", [])
        return {
            "id": run.storage_id, "name": run.name, "displayName": run.display_name, "description": None,
            "config": json.dumps(run.config), "sweepName": None, "tags": run.tags, "notes": run.notes,
            "project": {"id": "p1", "name": run.project, "entity": {"id": "e1", "name": run.entity}},
            "historyLineCount": len(history), "eventsLineCount": len(events),
            "logLineCount": len(run.lines.get("output.log", [])),
            "historyTail": json.dumps(history[-1:]), "eventsTail": json.dumps(events[-1:]),
            "summaryMetrics": json.dumps(run.summary), "wandbConfig": json.dumps({"t": 1}),
            "state": run.state, "jobType": run.job_type, "group": run.group, "commit": None, "readOnly": False,
            "createdAt": "2026-01-01T00:00:00", "heartbeatAt": "2026-01-01T00:00:00", "user": None, "projectId": "1",
            "systemMetrics": "{}", "historyKeys": {"lastStep": len(history) - 1},
        }  # fmt: skip

    def _q_RunResumeStatus(self, given: dict[str, Any], host: str) -> Any:
        return self._resume_status(given, resumes=True)

    def _q_LightningLoggersRows(self, given: dict[str, Any], host: str) -> Any:
        return self._resume_status(given, resumes=False)

    def _resume_status(self, given: dict[str, Any], *, resumes: bool) -> Any:
        entity, project = given.get("entity") or ENTITY, given["project"]
        if not any(key[:2] == (entity, project) for key in self.runs):
            return {"model": None}
        run = self.runs.get((entity, project, given["name"]))
        if run is not None:
            run.resuming = run.resuming or resumes
        return {
            "model": {
                "id": "p1", "name": project, "entity": {"id": "e1", "name": entity},
                "bucket": None if run is None else self._bucket(run),
            }
        }  # fmt: skip

    def _q_Run(self, given: dict[str, Any], host: str) -> Any:
        run = self.runs.get((given["entity"], given["project"], given["name"]))
        return {"project": None if run is None else {"run": self._bucket(run)}}

    def _q_CreateRunFiles(self, given: dict[str, Any], host: str) -> Any:
        run = self.runs[given["entity"], given["project"], given["run"]]
        files = [
            {
                "name": name,
                "uploadUrl": self._upload_url(host, lambda body, name=name: run.files.__setitem__(name, body)),
            }
            for name in given["files"]
        ]
        return {"createRunFiles": {"runID": run.storage_id, "uploadHeaders": [], "files": files}}

    def _q_MarkRunFilesUploaded(self, given: dict[str, Any], host: str) -> Any:
        return {"markRunFilesUploaded": {"success": True}}

    def _upload_url(self, host: str, store: Any) -> str:
        token = f"t{len(self._uploads)}"
        self._uploads[token] = store
        return f"http://{host}/upload/{token}"

    def _uploaded(self, token: str, body: bytes) -> None:
        self._uploads[token](body)

    # ------------------------------------------------------------------ artifacts

    def _q_ArtifactType(self, given: dict[str, Any], host: str) -> Any:
        found = [a for a in self.artifacts if a.collection == given["name"].partition(":")[0]]
        return {"project": {"artifact": {"artifactType": {"name": found[0].type}} if found else None}}

    def _q_FetchArtifactDigestAlgorithm(self, given: dict[str, Any], host: str) -> Any:
        return {"project": None}

    def _q_CreateArtifact(self, given: dict[str, Any], host: str) -> Any:
        asked = given["input"]
        collection = asked["artifactCollectionName"]
        same = [a for a in self.artifacts if a.collection == collection]
        found = next((a for a in same if a.digest == asked["digest"]), None)
        if found is None:
            found = StandInArtifact(
                f"artifact-{len(self.artifacts)}", asked["artifactTypeName"], collection, asked["digest"],
                asked["clientID"], asked["sequenceClientID"], asked.get("runName"),
                json.loads(asked.get("metadata") or "{}"), asked.get("description"), [], len(same),
            )  # fmt: skip
            self.artifacts.append(found)
        for alias in asked.get("aliases") or []:
            for other in same:
                if alias["alias"] in other.aliases:
                    other.aliases.remove(alias["alias"])
            if alias["alias"] not in found.aliases:
                found.aliases.append(alias["alias"])
        latest = [{"id": same[-1].id, "versionIndex": same[-1].version}] if same else [None]
        return {
            "createArtifact": {
                "artifact": {
                    "id": found.id, "state": found.state,
                    "artifactSequence": {"id": f"sequence-{collection}", "latestArtifact": latest[0]},
                }
            }
        }  # fmt: skip

    def _artifact(self, artifact_id: str) -> StandInArtifact:
        return next(a for a in self.artifacts if a.id == artifact_id)

    def _q_CreateArtifactManifest(self, given: dict[str, Any], host: str) -> Any:
        artifact = self._artifact(given["artifactID"])

        def store(body: bytes) -> None:
            artifact.manifest = json.loads(body)

        manifest: dict[str, Any] = {"id": f"manifest-{artifact.id}", "file": {"id": "f1"}}
        if given.get("includeUpload"):
            manifest["file"] |= {"uploadUrl": self._upload_url(host, store), "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def _q_CreateArtifactFiles(self, given: dict[str, Any], host: str) -> Any:
        edges = []
        for spec in given["input"]["artifactFiles"]:
            artifact = self._artifact(spec["artifactID"])
            url = self._upload_url(host, lambda body, a=artifact, n=spec["name"]: a.files.__setitem__(n, body))
            edges.append(
                {
                    "node": {
                        "storagePath": f"store/{artifact.id}/{spec['name']}", "uploadUrl": url, "uploadHeaders": [],
                        "uploadMultipartUrls": None, "artifact": {"id": artifact.id},
                        "id": "f", "name": spec["name"], "displayName": spec["name"],
                    }
                }
            )  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _q_CommitArtifact(self, given: dict[str, Any], host: str) -> Any:
        artifact = self._artifact(given["artifactID"])
        artifact.state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def _q_ClientIDMapping(self, given: dict[str, Any], host: str) -> Any:
        found = [a for a in self.artifacts if a.client_id == given["clientID"]]
        return {"clientIDMapping": {"serverID": found[0].id} if found else None}

    def _q_ArtifactByID(self, given: dict[str, Any], host: str) -> Any:
        artifact = self._artifact(given["id"])
        entity = {"id": "e1", "name": ENTITY, "entityName": ENTITY}
        project = {"id": "p1", "internalId": "1", "name": "p", "entityName": ENTITY, "entity": entity}
        return {
            "artifact": {
                "__typename": "Artifact", "id": artifact.id, "versionIndex": artifact.version, "state": artifact.state,
                "artifactType": {"id": "t1", "name": artifact.type}, "description": artifact.description,
                "metadata": json.dumps(artifact.metadata), "ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [],
                "artifactSequence": {
                    "__typename": "ArtifactSequence", "id": "s1", "name": artifact.collection, "project": project,
                },
                "aliases": [
                    {"id": f"alias-{alias}", "alias": alias, "artifactCollectionName": artifact.collection,
                     "artifactCollection": {
                         "__typename": "ArtifactSequence", "id": "s1", "name": artifact.collection, "project": project,
                     }}
                    for alias in artifact.aliases
                ],
                "commitHash": hashlib.md5(artifact.id.encode(), usedforsecurity=False).hexdigest(),
                "digest": artifact.digest, "size": sum(map(len, artifact.files.values())),
                "fileCount": len(artifact.files),
                "createdAt": "2026-01-01T00:00:00", "updatedAt": None, "historyStep": None, "currentManifest": None,
                "storageBytes": 1, "createdBy": None, "isLink": False, "sourceCollection": None,
            }
        }  # fmt: skip
