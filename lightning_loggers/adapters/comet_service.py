"""Comet itself, one bounded request at a time.

An ``Experiment`` of the SDK queues what it is given, stamps it with the time of sending, and retries behind the
caller's back. The classes beneath it, which its own ``comet upload`` uses, take a timestamp and return when Comet has
answered.
"""

import contextlib
import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning_loggers.adapters.base import Context
from lightning_loggers.adapters.comet_sdk import (
    SCENE,
    SCENE_ITEM,
    SCENE_POINTS,
    STATUS_OTHER,
    CometRefusedError,
    CometSetupError,
    CometStatusError,
    Scene,
    Upload,
    ending,
    find_address,
    opening_facts,
)
from lightning_loggers.records import RunStatus, is_terminal

_MAX_BATCH = 1000
_CONNECT_TIMEOUT_S, _ANSWER_TIMEOUT_S, _UPLOAD_ANSWER_TIMEOUT_S = 10.0, 30.0, 120.0
_HEARTBEAT_S = 10.0
_HANDSHAKES = ("logger/add/run", "logger/get/run")
_NEW_ASSET = "/asset"


class Service:
    """A run at Comet, by the requests that Comet's own uploader makes.

    Args:
        context: The adapter's.
        sdk: See :func:`load_sdk`.
        key: The experiment's key.
        api_key: Opens the door.
    """

    def __init__(self, context: Context, sdk: SimpleNamespace, key: str, api_key: str) -> None:
        self._context = context
        self._sdk = sdk
        self._key = key
        self._api_key = api_key
        self._address = find_address(sdk, context.options, api_key)
        self._connection: Any = None
        self._rest: Any = None
        self._beat_at = 0.0
        self._batch: Counter[Hashable] = Counter()
        self._answered: Counter[Hashable] = Counter()
        self._scenes: list[str] = []
        self._max_points: int | None = None

    def open(self) -> None:
        """Find the experiment, or make it."""
        if self._connection is None:
            self._connect()
        remote = self._context.remote
        mode = self._context.options.get("mode") or "get_or_create"
        if remote.id is not None or mode == "get":
            handshake, made = self._find(known=remote.id is not None), False
        else:
            died_while_asking, remote.opening = remote.opening, True
            self._context.save_remote()
            handshake, made = self._make(may_exist=died_while_asking or mode == "get_or_create")
            made = made or (died_while_asking and not self._context.options.get("experiment_key"))
        remote.parent = handshake.project_id
        remote.url = f"{handshake.focus_link}{self._key}" if handshake.focus_link else None
        if remote.id is None:
            self._introduce(made=made)
        remote.id, remote.opening = self._key, False

    def _connect(self) -> None:
        from comet_ml.config import get_check_tls_certificate
        from comet_ml.connection.connection_api import RestApiClient

        config = self._sdk.config
        verify = get_check_tls_certificate(config)
        client = _bounded_client(self._api_key, self._address, verify, config, self._context.acknowledged)
        self._connection = _connection(client, self._api_key, self._key, self._address)
        root = self._address.rstrip("/").removesuffix("/clientlib")
        self._rest = RestApiClient(f"{root}/", "v2", client, self._api_key, config, check_version=False)

    def _find(self, *, known: bool) -> Any:
        from comet_ml.exceptions import ExperimentNotFound

        try:
            return self._connection.get_run(self._key)
        except ExperimentNotFound as error:
            wanted = "this run was there before" if known else "mode='get' continues one"
            raise CometSetupError(
                f"Comet has no experiment {self._key} that this API key may write to, and {wanted} ({error})."
            ) from error

    def _make(self, *, may_exist: bool) -> tuple[Any, bool]:
        from comet_ml.config import get_project_name, get_workspace  # type: ignore[attr-defined, unused-ignore]
        from comet_ml.exceptions import ExperimentAlreadyUploaded

        options, config = self._context.options, self._sdk.config
        project, workspace = options.get("project"), options.get("workspace")
        try:
            return self._connection.add_run(get_project_name(project, config), get_workspace(workspace, config)), True
        except ExperimentAlreadyUploaded as error:
            if may_exist:
                return self._connection.get_run(self._key), False
            raise CometSetupError(
                f"mode='create' makes a new experiment, but Comet has {self._key} already. Leave experiment_key out, "
                "or continue it with mode='get_or_create'."
            ) from error

    def _introduce(self, *, made: bool) -> None:
        options = self._context.options
        if made:  # at the time of the first log call, not of this delivery
            self._rest.set_experiment_start_end(self._key, self._context.header.time_ns // 1_000_000, None)
        for name, value in opening_facts(self._context).items():
            self.other(name, value)
        if options.get("tags"):
            self._connection.add_tags(list(options["tags"]))
        self._rest.set_experiment_state(self._key, "running")

    def begin(self) -> None:
        """Tell Comet now and then that the run is alive."""
        self._batch, self._scenes = Counter(), []
        if time.monotonic() - self._beat_at > _HEARTBEAT_S:
            with contextlib.suppress(ValueError, CometStatusError):  # no reason to refuse records
                self._connection.heartbeat()
            self._beat_at = time.monotonic()

    def metrics(self, messages: Iterable[Any]) -> None:
        """Send metrics, a thousand at a time; not again what Comet took before the rest of its batch failed."""
        for batch in self._batches(message for message in messages if self._is_news(message)):
            self._connection.log_metrics_batch(batch)
            for item in batch:
                self._answered[_identity(item.message)] += 1

    def _is_news(self, message: Any) -> bool:
        identity = _identity(message)
        self._batch[identity] += 1
        return self._batch[identity] > self._answered[identity]

    def params(self, messages: Iterable[Any]) -> None:
        """Send hyperparameters, a thousand at a time."""
        for batch in self._batches(messages):
            self._connection.log_parameters_batch(batch)

    def _batches(self, messages: Iterable[Any]) -> Iterator[list[Any]]:
        item = self._sdk.batch_utils.MessageBatchItem
        rest = iter(messages)
        while batch := [item(message) for message in islice(rest, _MAX_BATCH)]:
            yield batch

    def other(self, key: str, value: Any) -> None:
        """Send a fact about the run."""
        self._rest.log_experiment_other(self._key, key, value)

    def upload(self, upload: Upload) -> None:
        """Send a file. One that Comet has under the same id already is there, and that is all that is asked."""
        from comet_ml.connection.connection_helpers import (
            get_api_key_header,
            get_clientlib_headers,
            get_clientlib_params,
        )
        from comet_ml.connection.connection_upload import send_file, send_file_like

        where = {
            "post_endpoint": self._connection.get_upload_url(upload.kind or "asset"),
            "params": {
                **get_clientlib_params(self._key, self._connection.project_id),
                **upload.params(),
                "runId": self._connection.run_id,
            },
            "headers": {**get_clientlib_headers(self._key), **get_api_key_header(self._api_key)},
            "timeout": (_CONNECT_TIMEOUT_S, _UPLOAD_ANSWER_TIMEOUT_S),
            "session": self._rest.low_level_api_client.session,
            "metadata": upload.metadata,
        }
        if isinstance(upload.content, bytes):
            self._take(send_file_like(file_like=io.BytesIO(upload.content), **where))
        else:
            self._take(send_file(file_path=str(upload.content), **where))

    def _take(self, response: Any) -> None:
        """Take Comet's answer to an upload."""
        if response.status_code >= 400:
            _check_refusal(response)
        self._context.acknowledged()

    def scene(self, scene: Scene) -> None:
        """Send points in space: first Comet makes an asset, then it is given the points and a picture.

        Comet gives the asset its id. That is saved at once, and kept until the batch is through: what has to be sent
        again goes to the same asset.
        """
        from comet_ml.connection.connection_upload import send_asset_item, send_thumbnail
        from comet_ml.connection.connection_url_helpers import upload_thumbnail_url

        connection, known = self._connection, self._context.remote.extra.setdefault("scenes", {})
        self._scenes.append(scene.asset_id)
        if scene.asset_id not in known:
            known[scene.asset_id] = connection.create_asset(self._key, scene.name, SCENE, scene.metadata, scene.step)
            self._context.save_remote()
        asset_id = known[scene.asset_id]
        said = {"apiKey": self._api_key, "experimentKey": self._key}
        how: dict[str, Any] = {
            "timeout": (_CONNECT_TIMEOUT_S, _UPLOAD_ANSWER_TIMEOUT_S),
            "session": self._rest.low_level_api_client.session,
        }
        with tempfile.TemporaryDirectory() as folder:
            points, thumbnail = Path(folder) / SCENE_POINTS, Path(folder) / "thumbnail.png"
            points.write_bytes(scene.points)
            thumbnail.write_bytes(scene.thumbnail)
            item = {"assetId": asset_id, "userFileName": SCENE_POINTS, "assetItemType": "points"}
            self._take(send_asset_item(connection.get_upload_url(SCENE_ITEM), str(points), {**said, **item}, **how))
            if scene.thumbnail:
                url = upload_thumbnail_url(connection.server_address, asset_id)
                try:
                    self._take(send_thumbnail(url, str(thumbnail), {**said, "thumbnailExtension": ".png"}, **how))
                except CometStatusError as error:  # an installation that takes none: the points are there
                    if error.transient:
                        raise

    def max_points(self) -> int:
        """Comet's own limit, asked for once; what the SDK takes where Comet does not say."""
        if self._max_points is None:
            limits = self._connection.get_points_3d_upload_limits() or {}
            self._max_points = limits.get("maxPoints")
        return int(self._max_points or self._sdk.max_points)

    def graph(self, text: str) -> None:
        """Send what the model is made of."""
        self._rest.set_experiment_model_graph(self._key, text)

    def commit(self, last_ms: int) -> None:
        """Everything was answered for when it was sent, and will not come again."""
        self._answered -= self._batch
        extra = self._context.remote.extra
        for asset_id in self._scenes:
            extra["scenes"].pop(asset_id, None)
        if not extra.get("scenes", True):
            del extra["scenes"]
        extra["last_ms"] = max(int(extra.get("last_ms", 0)), last_ms)

    def set_status(self, status: RunStatus) -> None:
        """Comet knows running, finished and crashed; the word itself goes to the run's other facts."""
        self.other(STATUS_OTHER, status.value)
        if not is_terminal(status):
            self._rest.set_experiment_state(self._key, "running")
            return
        error = ending(status)
        self._rest.update_experiment_error_status(self._key, False, error, error is not None)
        end_ms = int(self._context.remote.extra.get("last_ms") or time.time_ns() // 1_000_000)
        self._rest.set_experiment_start_end(self._key, None, end_ms)

    def close(self) -> None:
        """Close the connections."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _identity(message: Any) -> Hashable:
    metric = message.metric
    return metric["metricName"], metric["metricValue"], metric["step"], message.local_timestamp


def _check_refusal(response: Any) -> None:
    """Raise what an upload's error means, unless it is that the file is there already.

    A full quota comes with the status of a wrong key: the SDK tells them apart by Comet's own code.
    """
    from comet_ml.connection.connection_upload import (
        check_asset_was_already_uploaded,
        raise_on_upload_from_backend_error_response,
    )
    from comet_ml.exceptions import CometException
    from comet_ml.file_upload_limits_guard import FileUploadLimitsGuard

    try:
        raise_on_upload_from_backend_error_response(response, FileUploadLimitsGuard())
    except CometException as error:
        raise CometRefusedError(f"{type(error).__name__}: {error} (HTTP {response.status_code})") from error
    if not check_asset_was_already_uploaded(response):
        raise _status_error(response)


def _status_error(response: Any) -> CometStatusError:
    wait_s = None
    for header in ("Retry-After-Custom", "Retry-After"):  # the first is Comet's own
        with contextlib.suppress(ValueError):
            wait_s = wait_s or min(max(float(response.headers.get(header, "")), 0.0), 3600.0)
    return CometStatusError(response.status_code, response.text, wait_s)


def _bounded_client(api_key: str, address: str, verify: bool, config: Any, acknowledged: Callable[[], None]) -> Any:
    """The SDK's HTTP client with one attempt of at most half a minute a request.

    Its own retries (ten for the first request, three for most others, with growing waits) would hide an outage from
    delivery, which waits better: it ends its waits on shutdown and honours ``Retry-After``.
    """
    from comet_ml.connection.connection_api import LowLevelHTTPClient

    class BoundedHTTPClient(LowLevelHTTPClient):  # type: ignore[misc, unused-ignore]
        def do(self, **request: Any) -> Any:
            request |= {"retry": False, "session": None, "timeout": (_CONNECT_TIMEOUT_S, _ANSWER_TIMEOUT_S)}
            return self._checked(super().do(**{**request, "check_status_code": False}))

        def get(self, url: str, **request: Any) -> Any:
            request |= {"retry": False, "timeout": (_CONNECT_TIMEOUT_S, _ANSWER_TIMEOUT_S)}
            return self._checked(super().get(url, **request))

        @staticmethod
        def _checked(response: Any) -> Any:
            status = response.status_code
            # What a handshake refuses the SDK reads itself: it knows Comet's codes for a wrong key, project, workspace.
            told = status in {400, 403} and response.url.endswith(_HANDSHAKES) and _is_json(response.text)
            if status >= 400 and response.url.endswith(_NEW_ASSET):  # a full quota, as at an upload
                _check_refusal(response)
            if status >= 400 and not told:
                raise _status_error(response)
            acknowledged()
            return response

    return BoundedHTTPClient(
        api_key, address, default_timeout=_ANSWER_TIMEOUT_S, verify_tls=verify, config=config, default_retry=False
    )


def _connection(client: Any, api_key: str, key: str, address: str) -> Any:
    """The SDK's connection of an experiment, on our client."""
    from comet_ml.connection.connection_api import RestServerConnection

    connection = RestServerConnection(api_key, key, address, _ANSWER_TIMEOUT_S, client.verify_tls)
    connection._low_level_http_client.close()
    connection._low_level_http_client = client
    return connection


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
