"""Brings the records of nodes that share no file system to rank 0, in the background.

Every rank that logs writes a journal on its own node's disk, and rank 0 delivers what lies in its own folder. Where
that is the same folder there is nothing to do, and a rank that sees so does nothing. Otherwise its streams are copied
to rank 0's folder through the key-value store that brought the job's processes together: no collective operation and
no process group of its own, so that no rank waits for another, and a connection of its own, so that none of torch's
own requests waits behind a long message.
"""

import atexit
import contextlib
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from lightning_loggers.delivery.relay_line import (
    HERE,
    Connection,
    Hello,
    Line,
    Receiving,
    StoreGoneError,
    encode,
    window_bytes,
)
from lightning_loggers.delivery.relay_receive import Receiver
from lightning_loggers.delivery.relay_send import Sender, announce, left_behind, shares_file_system
from lightning_loggers.journal.layout import BLOBS_FOLDER, journal_dir, list_segments
from lightning_loggers.notices import Notices
from lightning_loggers.ranks import job_store, world_size

POLL_S = 1.0
_BUSY_POLL_S = 0.1
_WAITING_POLL_S = 0.02
_LOOK_AGAIN_S = 10.0
_AT_EXIT_S = 8.0
"""Longest wait for a relay's thread when the interpreter exits: longer than its longest request."""

_decode_receiving = msgspec.json.Decoder(Receiving).decode
_all_relays: "weakref.WeakSet[Relay]" = weakref.WeakSet()


class _Order:
    """What one thread of a relay is told."""

    __slots__ = ("end",)

    def __init__(self) -> None:
        self.end = False


class Relay:
    """One rank's part of the relay of one run: a daemon thread that sends, or on rank 0 receives.

    Args:
        run_dir: The run's folder on this node.
        rank: The rank.
        job: Tells what the run and this start of it are called on all ranks; ``None`` while they have not agreed.
        ranks: Tells which ranks log.
        notices: Where it is told what does not arrive.
        find_store: Finds the job's store; ``None`` if there is none yet.

    Guarantees:
        - Nothing raises into training, and nothing waits but :meth:`finish`, which ends.
        - What does not reach rank 0 stays in this node's journal; it is told once where, and how it gets there.
        - :meth:`hasten` and :meth:`finish` take no lock, so that a signal handler may call them.
        - A process that was forked off a rank of a job takes no part.
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        *,
        job: Callable[[], str | None],
        ranks: Callable[[], Sequence[int]],
        notices: Notices,
        find_store: Callable[[], Any] = job_store,
    ) -> None:
        self._run_dir = run_dir
        self._folder = journal_dir(run_dir)
        self._rank = rank
        self._job = job
        self._ranks = ranks
        self._notices = notices
        self._find_store = find_store
        self._pid = os.getpid()
        self._joined = False
        self._reset()

    def _reset(self) -> None:
        self._thread: threading.Thread | None = None
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._order = _Order()
        self._hurried_until = 0.0
        self._asked = self._answered = 0
        self._refused = False

    # ------------------------------------------------------------------ for the logger

    def start(self) -> None:
        """Begin, if it has not; called again after :meth:`close` and in a forked child."""
        if self._pid != os.getpid():
            if self._joined:  # the parent is a rank of a job, and so this process is none
                return
            self._pid = os.getpid()
            self._reset()
        before = self._thread
        if before is not None and not self._order.end:
            return  # it runs, or there was nothing to do for it
        self._order = order = _Order()
        self._refused = False
        self._thread = threading.Thread(
            target=self._run, args=(order, before), name="lightning-loggers-relay", daemon=True
        )
        _all_relays.add(self)
        with contextlib.suppress(RuntimeError):  # the interpreter is shutting down: what is left is on this disk
            self._thread.start()

    def hasten(self) -> None:
        """Have it look now; at the end of an epoch, for one."""
        if self._pid == os.getpid():
            self._wakes.put(None)

    def finish(self, timeout_s: float) -> bool:
        """Wait until rank 0 has what this rank has written, or on rank 0, what the others have.

        Args:
            timeout_s: Longest wait, seconds.

        Returns:
            Whether that is so, as far as it is known here.
        """
        if not self._may_answer():
            self.hasten()  # it may have to tell of what it cannot send
            return not self._refused
        deadline = time.monotonic() + timeout_s
        self._asked += 1
        asked = self._asked
        self._hurried_until = deadline
        self.hasten()
        while self._answered < asked and self._may_answer():
            if time.monotonic() >= deadline:
                return False
            time.sleep(_WAITING_POLL_S)
        self._hurried_until = 0.0
        return self._answered >= asked or not self._refused

    def close(self) -> None:
        """Have it end after what is there now; does not wait."""
        if self._pid == os.getpid():
            self._order.end = True
            self._wakes.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the thread's end, at most so long."""
        thread = self._thread
        if thread is not None and self._pid == os.getpid():
            thread.join(timeout_s)

    def _may_answer(self) -> bool:
        """Whether waiting for the thread makes sense."""
        alive = self._pid == os.getpid() and self._thread is not None and self._thread.is_alive()
        # Asked for the store as well: in a short run the thread may not have come to it yet.
        return alive and not self._refused and (self._joined or self._meets())

    def _meets(self) -> bool:
        return self._job() is not None and self._find_store() is not None

    # ------------------------------------------------------------------ the thread

    def _run(self, order: _Order, before: threading.Thread | None) -> None:
        try:
            if before is not None:
                before.join()
            connection = self._connect(order)
            if connection is None:
                return
            with contextlib.closing(connection):
                if self._rank == 0:
                    self._receive(order, connection)
                else:
                    self._send(order, connection)
        except Exception as error:  # noqa: BLE001 - seam: a defect here must not be lost in a thread
            self._notices.tell_once(
                ("relay", type(error)),
                f"Rank {self._rank} no longer takes part in the relay of records ({type(error).__name__}: {error}). "
                f"What it writes is kept in {self._folder} on {socket.gethostname()}.",
            )

    def _connect(self, order: _Order) -> Connection | None:
        """A connection to the job's store, once there is one."""
        while not order.end:
            if world_size() == 1:
                return None
            store = self._find_store() if self._job() is not None else None
            if store is not None:
                connection = Connection(store)
                self._joined = connection.useful
                return connection if connection.useful else None
            self._pause(POLL_S)
        return None

    def _line(self, connection: Connection) -> Line:
        return Line(connection, f"lightning_loggers/relay/{self._job()}/")

    def _pause(self, seconds: float) -> None:
        if time.monotonic() < self._hurried_until:
            seconds = min(seconds, _BUSY_POLL_S / 2)
        with contextlib.suppress(Empty):
            self._wakes.get(timeout=seconds)
            while True:
                self._wakes.get_nowait()

    # ------------------------------------------------------------------ rank 0

    def _receive(self, order: _Order, connection: Connection) -> None:
        line = self._line(connection)
        beginning = secrets.token_hex(16)
        window = window_bytes(len(self._ranks()))
        receiving = Receiving(beginning, socket.gethostname(), str(self._folder), window)
        self._show_file_system(beginning)
        line.put("rank0", encode(receiving))
        receiver = Receiver(line.below(beginning), self._folder, self._notices)
        began = time.monotonic()
        try:
            while True:
                connection.closing = ending = order.end
                asked = self._asked
                moved = receiver.step()
                if asked > self._answered and not receiver.missing(self._ranks()):
                    self._answered = asked
                if ending:
                    break
                meeting = time.monotonic() < began + 30
                self._pause(_BUSY_POLL_S if moved else 2 * _BUSY_POLL_S if meeting else POLL_S)
        except StoreGoneError:  # the job is over, for this process at least: each rank says what it has not sent
            self._refused = True
        finally:
            receiver.close()
        with contextlib.suppress(StoreGoneError):
            line.put("rank0", encode(msgspec.structs.replace(receiving, closed=True)))

    def _show_file_system(self, beginning: str) -> None:
        """Write the file by which a rank sees that it has the same file system; always the newest beginning's."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = self._folder / f".{HERE}.{beginning}"
            partial.write_text(beginning)
            partial.replace(self._folder / HERE)
        except OSError as error:
            self._notices.tell_once(
                ("relay", "here", error.errno), f"{self._folder / HERE} cannot be written ({error.strerror}); ranks on "
                "the same file system may wait at the end of the run for an answer that does not come."
            )  # fmt: skip

    # ------------------------------------------------------------------ the other ranks

    def _send(self, order: _Order, connection: Connection) -> None:
        line = self._line(connection)
        sender: Sender | None = None
        receiving: Receiving | None = None
        try:
            while True:
                connection.closing = ending = order.end
                asked = self._asked
                moved = False
                content = line.get("rank0")
                receiving = receiving if content is None else _decode_receiving(content)
                self._refused = receiving is not None and receiving.closed
                heard = sender is not None and sender.heard
                if receiving is not None and not heard and shares_file_system(self._folder, receiving):
                    hello = Hello(secrets.token_hex(8), self._rank, socket.gethostname())
                    announce(line.below(receiving.beginning), hello)
                    return
                if receiving is not None and not receiving.closed:
                    if sender is None or sender.receiving.beginning != receiving.beginning:
                        if sender is not None:
                            sender.withdraw()
                        below = line.below(receiving.beginning)
                        sender = Sender(below, self._folder, self._rank, receiving, self._notices)
                    moved = sender.step(ending=ending)
                    if sender.shipped:
                        self._answered = asked
                if ending:
                    break
                self._pause(_BUSY_POLL_S if moved else POLL_S if heard else 2 * _BUSY_POLL_S)
        except StoreGoneError as error:
            self._refused = True
            # The job is over, or soon will be: usually all has been sent. If more is written it is told.
            while not self._tell_left(sender, receiving, f"the store of the job is gone: {error}") and not order.end:
                self._pause(_LOOK_AGAIN_S)
            return
        self._tell_left(sender, receiving, "this process has ended")

    def _tell_left(self, sender: Sender | None, receiving: Receiving | None, reason: str) -> bool:
        """Tell what rank 0 has not acknowledged, if that is anything; returns whether it is."""
        left = left_behind(self._folder, self._rank, {} if sender is None else sender.copies())
        if not left:
            return False
        if receiving is None and "rank0" in list_segments(self._folder):
            return False  # rank 0 has the same file system, and had not begun
        node = socket.gethostname()
        if receiving is None:
            target, run = "NODE_OF_RANK_0:RUN/journal", "RUN"
        else:
            target, run = f"{receiving.host}:{receiving.folder}", str(Path(receiving.folder).parent)
        copies = [f"scp {node}:{path} {target}/{name}" for path, name, _ in left]
        if (self._folder / BLOBS_FOLDER).is_dir():
            copies.append(f"scp -r {node}:{self._folder / BLOBS_FOLDER} {target}/")
        self._notices.tell_once(
            ("relay", "left", str(self._folder)),
            f"{sum(size for _, _, size in left):,} bytes of rank {self._rank}'s records are not known to have "
            f"reached rank 0 ({reason}). They are kept in {self._folder} on {node}. Once the job has ended: "
            f"{' && '.join(copies)} ; then, where rank 0 ran: lightning-loggers sync {run}",
        )
        return True


def _stop_all() -> None:
    """Before the interpreter goes: a thread that comes back from the store after that would end the process badly."""
    relays = list(_all_relays)
    for relay in relays:
        relay.close()
    deadline = time.monotonic() + _AT_EXIT_S
    for relay in relays:
        relay.join(max(0.0, deadline - time.monotonic()))


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_all_relays.clear)
