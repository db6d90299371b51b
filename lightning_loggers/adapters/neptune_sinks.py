"""Where the SDK's operations go: its own offline folder, or a server.

These use modules of the SDK that it does not document. Its development ended with the hosted service, so they stay as
they are; the public functions give neither the folder, nor the time of a flush, nor a server's answer.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from lightning_loggers.adapters.neptune_images import requests as by_request
from lightning_loggers.secrets import strip_uri

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0

_DATA_FILE = re.compile(r"data-(\d+)\.log")
_TRANSIENT_HTTP = frozenset({408, 425, 429, 500, 502, 503, 504})
_THERE_ALREADY = re.compile(r"strictly increasing", re.IGNORECASE)


class UnreachableError(Exception):
    """No answer, "not now", or a folder that cannot be written now."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class LockedOutError(Exception):
    """Nothing passes until the user mends the token, the address or the installation."""


class RefusedError(Exception):
    """The server does not take these operations."""


def load_sdk() -> None:
    """Import the SDK as a whole, before any part of it.

    Its modules import one another: two threads that begin with different parts of it end in a deadlock, which Python
    turns into an exception for one of them.
    """
    import neptune  # noqa: F401 - that is the point


# ---------------------------------------------------------------------- the offline folder


class OfflineFolder:
    """The SDK's folder of one offline run, ``<base>/offline/run__<id>__lightning__<n>``, as ``neptune sync`` takes it.

    Args:
        base: What the SDK calls its data directory.
        run_id: The run's id, a UUID; folders with the same one become one run.
        place: How far the folder is ours, saved together with the cursors.
        on_new_run: Called when an earlier folder was taken away: what is written now becomes another run.

    Guarantees:
        - What :meth:`put` returned for is on disk, and at the place that :attr:`place` says.
        - What lies behind that place, left by a host that died, is cut off by :meth:`open`: it is sent again.
        - Nothing of a folder that ``neptune sync`` has begun to read is changed.
    """

    def __init__(self, base: Path, run_id: str, place: dict[str, Any], on_new_run: Callable[[], object]) -> None:
        self._base = base / "offline"
        self._run_id = run_id
        self._on_new_run = on_new_run
        self._queue: Any = None
        self._place = place

    @property
    def folder(self) -> Path:
        """The folder that is written to."""
        return self._base / f"run__{self._run_id}__lightning__{self._place.get('number', 0)}"

    def open(self) -> None:
        """Cut back what a dead host left, and go on behind it."""
        if self._queue is not None:
            return
        from neptune.core.components.metadata_file import MetadataFile
        from neptune.core.components.operation_storage import OperationStorage
        from neptune.core.components.queue.disk_queue import DiskQueue
        from neptune.internal.container_type import ContainerType
        from neptune.internal.operation import Operation
        from neptune.internal.operation_processors.utils import common_metadata

        self._find()
        self._cut()
        metadata = common_metadata("offline", self._run_id, ContainerType.RUN)
        MetadataFile(self.folder, None if (self.folder / "metadata.json").exists() else metadata)
        OperationStorage(self.folder)
        self._queue = DiskQueue(self.folder, lambda op: op.to_dict(), Operation.from_dict, threading.RLock())

    def _find(self) -> None:
        """Go on in the folder as we know it; where it was synced, in a new one."""
        if "file" in self._place and not self.folder.is_dir():
            self._place.update(number=self._place["number"] + 1)
            self._forget_place()
            self._on_new_run()
        while self._is_being_read():
            self._place["number"] = self._place.get("number", 0) + 1
            self._forget_place()
            self._on_new_run()
        self.folder.mkdir(parents=True, exist_ok=True)

    def _forget_place(self) -> None:
        for name in ("file", "bytes", "version"):
            self._place.pop(name, None)

    def _is_being_read(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return int((self.folder / "last_ack_version").read_text() or 0) > 0
        return False

    def _cut(self) -> None:
        """Make the queue end where :attr:`_place` says; without one it is ours from its beginning."""
        kept = int(_DATA_FILE.fullmatch(self._place["file"])[1]) if "file" in self._place else 0  # type: ignore[index]
        for number, path in self._data_files():
            if number > kept:
                path.unlink()
            elif number == kept and path.stat().st_size > self._place["bytes"]:
                os.truncate(path, self._place["bytes"])
        (self.folder / "last_put_version").write_text(str(self._place.get("version", 0)))

    def _data_files(self) -> Iterator[tuple[int, Path]]:
        for path in self.folder.glob("data-*.log"):
            if match := _DATA_FILE.fullmatch(path.name):
                yield int(match[1]), path

    def put(self, operations: Sequence[Any]) -> list[str]:
        """Append operations.

        Returns:
            Nothing that was refused: a folder takes everything.

        Raises:
            OSError: If the disk does not take them. The next call begins where this one did.
            UnreachableError: If the folder was taken away meanwhile.
        """
        self.open()
        try:
            version = self._place.get("version", 0)
            for operation in operations:
                version = self._queue.put(operation)
            self._queue.flush()
            number, size = self._on_disk()
        except BaseException:  # Ctrl+C in `sync` too: opened anew, the queue is cut back
            self.close()
            raise
        self._place.update(number=self._place.get("number", 0), file=f"data-{number}.log", bytes=size, version=version)
        return []

    def _on_disk(self) -> tuple[int, int]:
        """Number and size in bytes of the last data file, once the disk has it."""
        number, path = max(self._data_files(), default=(0, None))
        if path is None:
            raise UnreachableError(f"{self.folder} was taken away while it was written (by `neptune sync`?)")
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
            return number, os.fstat(fd).st_size
        finally:
            os.close(fd)

    def keep(self, source: Path, name: str) -> Any:
        """Keep a file beside the queue until it is uploaded; the same one again takes its place.

        Returns:
            Further arguments of the SDK's ``UploadFile``.
        """
        from lightning_loggers.journal.blobs import safe_name

        self.open()
        kept = self.folder / "upload_path" / safe_name(name)
        kept.unlink(missing_ok=True)
        try:
            os.link(source, kept)
        except OSError:  # another file system
            import shutil

            shutil.copyfile(source, kept)
        return {"tmp_file_name": kept.name}

    def close(self) -> None:
        """Let go of the files."""
        queue, self._queue = self._queue, None
        if queue is not None:
            queue._reader.close()
            for resource in queue.resources:
                with contextlib.suppress(OSError, ValueError):
                    resource.close()


# ---------------------------------------------------------------------- a server


def with_token(address: str, token: str) -> str:
    """The address with the token as its password, which is how options carry it: journals and messages leave it out.

    >>> with_token("https://neptune.example.com", "ey==")
    'https://token:ey%3D%3D@neptune.example.com'
    """
    scheme, _, rest = address.rpartition("://")
    return f"{scheme or 'https'}://token:{quote(token, safe='')}@{rest}"


def token_of(server: str) -> str | None:
    """The token that an address carries.

    >>> token_of("https://token:ey%3D%3D@neptune.example.com"), token_of("https://neptune.example.com")
    ('ey==', None)
    """
    password = urlsplit(server).password
    return None if password is None else unquote(password)


class Server:
    """A server that runs Neptune, asked directly: an operation is delivered when the server has answered for it.

    Args:
        address: Where it is.
        token: The API token; it says the address, too.
        proxies: As ``requests`` takes them.
        acknowledged: Called after every answer.

    Guarantees:
        - No request waits longer than 30 s for an answer, and none is repeated behind delivery's back (the SDK would,
          for a minute).
    """

    def __init__(
        self, address: str, token: str, proxies: dict[str, str] | None, acknowledged: Callable[[], object]
    ) -> None:
        self._address = address
        self._token = token
        self._proxies = proxies
        self._acknowledged = acknowledged
        self._backend: Any = None
        self._run_id = ""

    def connect(self) -> None:
        """Log in.

        Raises:
            UnreachableError: If nobody answers.
            LockedOutError: If the token is for another address.
        """
        if self._backend is not None:
            return
        from neptune.internal.backends.hosted_neptune_backend import HostedNeptuneBackend
        from neptune.internal.credentials import Credentials

        credentials = Credentials.from_token(self._token)
        if strip_uri(full_address(credentials.token_origin_address)) != self._address:
            raise LockedOutError(
                f"the API token is for {strip_uri(credentials.token_origin_address)}, and the run goes to "
                f"{self._address}; set NEPTUNE_API_TOKEN to a token of that server"
            )
        self._knock(credentials.api_url_opt or self._address)
        # The SDK shares its connections between all that have the same credentials and proxies: one proxy that nothing
        # matches keeps ours apart from those of the user's own runs.
        backend = HostedNeptuneBackend(credentials, {**(self._proxies or {}), "lightning-loggers": "apart"})
        for session in (backend._http_client.session, backend._http_client.authenticator.auth.session):
            for scheme in ("http://", "https://"):
                session.mount(scheme, _one_attempt())
        self._backend = backend
        self._acknowledged()

    def _knock(self, address: str) -> None:
        """Have the server answer before the SDK asks it: that tries for a minute."""
        import requests
        from neptune.internal.backends.hosted_client import BACKEND_SWAGGER_PATH
        from neptune.internal.backends.utils import build_operation_url, ssl_verify

        url = build_operation_url(address, BACKEND_SWAGGER_PATH)
        try:
            with requests.Session() as session:
                timeouts = (CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S)
                answer = session.get(url, timeout=timeouts, proxies=self._proxies, verify=ssl_verify())
        except requests.RequestException as error:
            raise UnreachableError(f"{type(error).__name__}: {error}") from error
        _check_status(answer)
        if answer.status_code != 200:
            raise LockedOutError(f"{url} answers with HTTP {answer.status_code}: is it a Neptune server?")

    def find_run(self, project: str, sys_id: str | None, custom_id: str) -> Any:
        """The run with ``sys_id``; without one, the run of our own id, made if need be.

        Returns:
            The SDK's description of it.
        """
        from neptune.internal.container_type import ContainerType
        from neptune.internal.id_formats import QualifiedName

        found = self._backend.get_project(QualifiedName(project))
        self._acknowledged()
        if sys_id is not None:
            name = QualifiedName(f"{found.workspace}/{found.name}/{sys_id}")
            run = self._backend.get_metadata_container(name, ContainerType.RUN)
        else:
            run = self._backend.create_run(found.id, custom_run_id=custom_id)
        self._run_id = run.id
        self._acknowledged()
        return run

    def url(self, run: Any) -> str:
        """The run's page."""
        return str(self._backend.get_run_url(run.id, run.workspace, run.project_name, run.sys_id))

    def put(self, operations: Sequence[Any]) -> list[str]:
        """Have the server execute operations.

        Returns:
            Points that it refused because the series is further on: they were there, or somebody else logs to it.

        Raises:
            RefusedError: If it refused anything else. The other operations are executed.
        """
        from neptune.internal.container_type import ContainerType

        refused: list[str] = []
        behind: list[str] = []
        for request in by_request(operations):
            left = request
            while left:
                done, errors = self._backend.execute_operations(self._run_id, ContainerType.RUN, left, None)
                self._acknowledged()
                for error in errors:
                    (behind if _THERE_ALREADY.search(str(error)) else refused).append(str(error))
                left = left[done:]
        if refused:
            raise RefusedError("; ".join(refused[:5]))
        return behind

    @staticmethod
    def keep(source: Path, name: str) -> Any:
        """A file is uploaded from where it is."""
        return {"file_path": str(source)}

    def close(self) -> None:
        """Let go of the connection."""
        backend, self._backend = self._backend, None
        if backend is not None:
            with contextlib.suppress(Exception):
                backend._http_client.session.close()


def full_address(address: str) -> str:
    """An address as a token has it, with its scheme and without a slash at its end."""
    return (address if "://" in address else f"https://{address}").rstrip("/")


def _one_attempt() -> Any:
    """A transport that waits a bounded time, and tells what the SDK would retry in a way that it does not."""
    import requests
    from requests.adapters import HTTPAdapter

    class OneAttempt(HTTPAdapter):
        def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs["timeout"] = (CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S)
            try:
                answer = super().send(request, *args, **kwargs)
            except requests.RequestException as error:
                raise UnreachableError(f"{type(error).__name__}: {error}") from error
            _check_status(answer)
            return answer

    return OneAttempt()


def _check_status(answer: Any) -> None:
    if answer.status_code in _TRANSIENT_HTTP:
        retry_after_s = None
        with contextlib.suppress(ValueError):
            retry_after_s = float(answer.headers.get("Retry-After") or "")
        raise UnreachableError(f"HTTP {answer.status_code}: {answer.text[:500]}", retry_after_s)


# ---------------------------------------------------------------------- the SDK's own run


_making = threading.Lock()


@contextlib.contextmanager
def data_directory(base: Path) -> Iterator[None]:
    """Have runs that the SDK makes in the meantime keep their data in ``base``, unless the environment says where.

    The SDK knows the environment and a constant only; neither the environment nor the working directory is changed.
    A run that another thread makes at the same moment keeps its data here, too, whole.
    """
    from neptune.internal.operation_processors import utils

    with _making:
        before = utils.NEPTUNE_DATA_DIRECTORY
        utils.NEPTUNE_DATA_DIRECTORY = str(base)
        try:
            yield
        finally:
            utils.NEPTUNE_DATA_DIRECTORY = before


def native_run(offline_id: str | None = None, **arguments: Any) -> Any:
    """The SDK's own run, which leaves to delivery what is delivery's: the run's name, and whether it failed.

    Args:
        offline_id: Offline, the id that ``neptune sync`` goes by: it makes one run of all folders with the same one.
        **arguments: Of ``neptune.init_run``; ``name`` is the run's as it is.
    """
    import neptune
    from neptune.internal.backends.api_model import ApiExperiment
    from neptune.internal.container_type import ContainerType
    from neptune.internal.id_formats import SysId, UniqueId

    class Run(neptune.Run):  # type: ignore[misc, unused-ignore]
        def _get_or_create_api_object(self) -> Any:
            if offline_id is None:
                return super()._get_or_create_api_object()
            return ApiExperiment(
                UniqueId(offline_id), ContainerType.RUN, SysId("OFFLINE"), "offline", "project-placeholder"
            )

        def _write_initial_attributes(self) -> None:
            if any((self._capture_stdout, self._capture_stderr, self._capture_hardware_metrics, self._source_files)):
                super()._write_initial_attributes()

    return Run(**arguments)
