"""Many rows to W&B's service process in one turn of the SDK's thread.

For each row that it is given the SDK wakes its asyncio thread and waits until that has written the row to a socket:
changes of thread, which a training loop beside them pays for. Here the rows of a batch go to that thread together, and
to its socket in one write.

To make a row's message the SDK copies it twice and looks into each value several times, and it measures for its makers
how long that takes. Here it does so with the first row of numbers of a batch. Where its message is the same to the byte
as ours, we make the others, at a tenth of the cost.

Written against wandb 0.31, whose interface to its service is private: where it looks different, rows go one by one.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from lightning_loggers.adapters.wandb_wire import Encoded, RowEncoder

MOST_TOGETHER = 1024
"""Rows that wait to be sent."""

MOST_BYTES = 2**22
"""Size of these."""

_NUMBERS = {float, int}

Row = dict[str, Any]


@contextlib.contextmanager
def sent_together(run: Any) -> Iterator[Callable[[Row], object]]:
    """What the SDK publishes for a run in this block is sent in few turns; all of it is sent when the block ends.

    Guarantees:
        - Everything is sent in the order in which it was published, by whichever thread.
        - A question to the service (the end of a run, a summary) comes after what was published before it.

    Args:
        run: The SDK's run.

    Yields:
        Function that logs a row, as ``run.log`` does, at less cost if all of its values are numbers, the
        ``_timestamp`` among them.

    Raises:
        Exception: What the SDK raises if its service is gone; a part may have been sent.
    """
    batch = _batch_of(run)
    if batch is None:
        yield run.log
        return
    interface = run._interface
    ours = {"_publish": batch.publish, "_deliver": batch.deliver, "_record_client_encode": batch.measure}
    vars(interface).update(ours)
    try:
        yield batch.log
    finally:
        try:
            batch.close()  # first: what another thread publishes next would overtake what waits
        finally:
            for name in ours:
                del vars(interface)[name]


def _batch_of(run: Any) -> "_Batch | None":
    """A batch for what a run publishes; ``None`` where the SDK is another, or a batch is open."""
    interface = getattr(run, "_interface", None)
    known = ("_publish", "_deliver", "_record_client_encode", "_assign", "_asyncer", "_client")
    if not all(hasattr(interface, name) for name in known) or "_publish" in vars(interface):
        return None
    try:
        return _Batch(run)
    except (ImportError, AttributeError, KeyError):
        return None


def _is_plain(row: Row) -> bool:
    """Whether the SDK neither converts nor adds nor leaves out anything."""
    return "_timestamp" in row and "_step" not in row and _NUMBERS.issuperset(map(type, row.values()))


class _Batch:
    """What one run was given to publish, until it is sent."""

    def __init__(self, run: Any) -> None:
        from wandb.proto import wandb_internal_pb2 as internal
        from wandb.proto import wandb_server_pb2 as server

        self._run, self._interface = run, run._interface
        self._new_request = server.ServerRequest
        record = internal.Record()
        self._interface._assign(record)
        record.control.local = True
        self._encode = RowEncoder(record).encode
        self._publish_now, self._deliver_now = self._interface._publish, self._interface._deliver
        self._measure: Callable[[float], object] | None = self._interface._record_client_encode
        self._waiting: list[Any] = []
        self._waiting_bytes = 0
        self._closed = False
        # Reentrant: a signal handler may log to the run while its own thread does.
        self._lock = threading.RLock()
        self._sending = threading.RLock()  # held from taking rows until they are sent: later ones come behind
        self._makes_rows: bool | None = None  # unknown until one of the SDK's was seen
        self._made_by_sdk: tuple[int, Any] | None = None  # the thread whose row is looked at, and its message

    def log(self, row: Row) -> None:
        """In place of the run's method.

        Raises:
            Exception: As the run's method.
        """
        run = self._run
        if self._makes_rows is False or not _is_plain(row):
            run.log(row)
        elif self._makes_rows is None:
            self._compare(row)
        elif run._is_finished:
            run.log(row)  # which says so
        else:
            message = self._encode(row)
            self._put(Encoded(message), len(message))
            run._local_step += 1

    def _compare(self, row: Row) -> None:
        """Let the SDK log a row, and see whether we would have done the same."""
        run = self._run
        before: Any = getattr(run, "_local_step", None)
        self._made_by_sdk = threading.get_ident(), None
        try:
            run.log(row)
        finally:
            looked_at: Any = self._made_by_sdk
            self._made_by_sdk = None
        try:
            counted = run._local_step == before + 1 and not run._is_finished
            self._makes_rows = counted and looked_at[1].SerializeToString() == self._encode(row)
        except Exception:  # noqa: BLE001 - another SDK with other fields; the row has been logged
            self._makes_rows = False

    def publish(self, record: Any, *, nowait: bool = False) -> None:
        """In place of the interface's method."""
        if nowait:  # that is the console's output, from any thread, also from the SDK's own
            self._publish_now(record, nowait=True)
            return
        self._interface._assign(record)
        request = self._new_request()
        request.record_publish.CopyFrom(record)
        looked_at = self._made_by_sdk  # read once: it may be over before we know whose it is
        if looked_at is not None and looked_at[0] == threading.get_ident():
            self._made_by_sdk = looked_at[0], request
        self._put(request, request.ByteSize())

    def _put(self, request: Any, size_bytes: int) -> None:
        with self._lock:
            waits = not self._closed
            if waits:
                self._waiting.append(request)
                self._waiting_bytes += size_bytes
                if len(self._waiting) < MOST_TOGETHER and self._waiting_bytes < MOST_BYTES:
                    return
        with self._sending:
            if waits:
                self.send()
            else:
                self._send([request])

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
                requests, self._waiting, self._waiting_bytes = self._waiting, [], 0
            if requests:
                self._send(requests)

    def _send(self, requests: list[Any]) -> None:
        client = self._interface._client

        async def publish() -> None:
            with _written_at_once(client):
                for request in requests[:-1]:
                    await client.publish(request)
            await client.publish(requests[-1])  # and wait until the socket has taken all

        self._interface._asyncer.run(publish)


@contextlib.contextmanager
def _written_at_once(client: Any) -> Iterator[None]:
    """What the client writes in this block goes to its socket in one write, instead of two for each request."""
    writer = getattr(client, "_writer", None)
    if writer is None:
        yield
        return
    collected = _Collected(writer)
    client._writer = collected
    try:
        yield
    finally:
        client._writer = writer
        collected.flush()


class _Collected:
    """Takes what is written in place of an asyncio stream; whatever else is asked of that stream comes behind it.

    It is never full, so that nobody else's turn comes meanwhile.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._parts: list[bytes] = []
        self.write = self._parts.append

    async def drain(self) -> None:
        """Nothing to wait for."""

    def flush(self) -> None:
        """Write what there is."""
        self._writer.write(b"".join(self._parts))
        self._parts.clear()

    def __getattr__(self, name: str) -> Any:
        self.flush()
        return getattr(self._writer, name)
