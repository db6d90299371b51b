"""A misbehaving stand between a logger and a real MLflow server, on loopback."""

import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


class FaultyProxy:
    """Forwards requests to a real server, or does what ``fault`` says of one.

    Args:
        target_port: Port of the real server on loopback; 0 for none.
        fault: Called per request; returns ``""`` (forward), ``"hang"``, ``"slow"``, ``"reset"``, ``"lost"`` (forwarded,
            but the answer is lost), or an HTTP status such as ``"503"``.
    """

    def __init__(self, target_port: int, fault: Callable[[], str]) -> None:
        self.target_port = target_port
        self.fault = fault
        self.requests = 0
        self.faults = 0
        self.released = threading.Event()
        self.headers_sent: dict[str, str] = {}
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.requests += 1
                fault = proxy.fault()
                proxy.faults += bool(fault)
                if fault == "hang":
                    proxy.released.wait(600)
                    self.close_connection = True
                    return
                if fault == "slow":
                    proxy.released.wait(2.0)
                if fault == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    self.close_connection = True
                    self.connection.close()
                    return
                if fault.isdigit():
                    content = b'{"error_code": "X", "message": "scripted"}'
                    self.send_response(int(fault))
                    for key, value in proxy.headers_sent.items():
                        self.send_header(key, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", proxy.target_port, timeout=60)
                try:
                    headers = {k: v for k, v in self.headers.items() if k.lower() not in {"host", "connection"}}
                    upstream.request(self.command, self.path, body, {**headers, "Connection": "close"})
                    answer = upstream.getresponse()
                    content = answer.read()
                finally:
                    upstream.close()
                if fault == "lost":
                    self.close_connection = True
                    self.connection.close()
                    return
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in {"transfer-encoding", "content-length", "connection"}:
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

            def handle(self) -> None:
                with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                    super().handle()

            def finish(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    super().finish()

            def log_message(self, *args: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:
                return

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "FaultyProxy":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()


def at_random(share: float, faults: list[str], seed: int = 7) -> Callable[[], str]:
    """A fault function that lets ``1 - share`` of the requests through."""
    dice = random.Random(seed)
    return lambda: dice.choice(faults) if dice.random() < share else ""


def until(moment: float, fault: str) -> Callable[[], str]:
    """A fault function that ends at a time of the monotonic clock."""
    return lambda: fault if time.monotonic() < moment else ""
