"""Many rows to W&B's service process in one turn of the SDK's thread.

For each row that it is given the SDK wakes its asyncio thread and waits until that has written the row to a socket: two
changes of thread a row, which a training loop beside them pays for. Here the rows of a batch are made as ever, by the
SDK, and go to that thread together. The SDK also measures for its makers how long it takes to encode a row, which costs
about as much as encoding it: here it measures the first of a batch.

Written against wandb 0.31, whose interface to its service is private: where it looks different, rows go one by one.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

MOST_TOGETHER = 256
"""Rows that wait to be sent; each is some hundred bytes, or the names of the files that belong to it."""


@contextlib.contextmanager
def sent_together(run: Any) -> Iterator[None]:
    """What the SDK publishes for a run in this block is sent in few turns; all of it is sent when the block ends.

    Guarantees:
        - Everything is sent in the order in which it was published, by whichever thread.
        - A question to the service (the end of a run, a summary) comes after what was published before it.

    Args:
        run: The SDK's run.

    Raises:
        Exception: What the SDK raises if its service is gone; a part may have been sent.
    """
    interface = getattr(run, "_interface", None)
    if not _is_as_known(interface):
        yield
        return
    batch = _Batch(interface)
    ours = {"_publish": batch.publish, "_deliver": batch.deliver, "_record_client_encode": batch.measure}
    vars(interface).update(ours)
    try:
        yield
    finally:
        try:
            batch.close()  # first: what another thread publishes next would overtake what waits
        finally:
            for name in ours:
                del vars(interface)[name]


def _is_as_known(interface: Any) -> bool:
    known = ("_publish", "_deliver", "_record_client_encode", "_assign", "_asyncer", "_client")
    return all(hasattr(interface, name) for name in known) and "_publish" not in vars(interface)


class _Batch:
    """What one interface was given to publish, until it is sent."""

    def __init__(self, interface: Any) -> None:
        self._interface = interface
        self._publish_now, self._deliver_now = interface._publish, interface._deliver
        self._measure: Callable[[float], object] | None = interface._record_client_encode
        self._waiting: list[Any] = []
        self._closed = False
        # Reentrant: a signal handler may log to the run while its own thread does.
        self._lock = threading.RLock()
        self._sending = threading.RLock()  # held from taking rows until they are sent: later ones come behind

    def publish(self, record: Any, *, nowait: bool = False) -> None:
        """In place of the interface's method."""
        if nowait:  # that is the console's output, from any thread, also from the SDK's own
            self._publish_now(record, nowait=True)
            return
        with self._lock:
            waits = not self._closed
            if waits:
                self._waiting.append(record)
                if len(self._waiting) < MOST_TOGETHER:
                    return
        with self._sending:
            if waits:
                self.send()
            else:
                self._publish_now(record)

    def measure(self, seconds: float) -> None:
        """In place of the interface's method."""
        measure, self._measure = self._measure, None
        if measure is not None:
            measure(seconds)

    def deliver(self, record: Any) -> Any:
        """In place of the interface's method."""
        self.send()
        return self._deliver_now(record)

    def close(self) -> None:
        """From here on everything goes at once."""
        with self._sending:
            with self._lock:
                self._closed = True
            self.send()

    def send(self) -> None:
        """Send what waits."""
        with self._sending:
            with self._lock:
                records, self._waiting = self._waiting, []
            if records:
                self._send(records)

    def _send(self, records: list[Any]) -> None:
        from wandb.proto import wandb_server_pb2 as server

        requests = []
        for record in records:
            self._interface._assign(record)
            request = server.ServerRequest()
            request.record_publish.CopyFrom(record)
            requests.append(request)
        client = self._interface._client

        async def publish() -> None:
            for request in requests:
                await client.publish(request)

        self._interface._asyncer.run(publish)
