"""Records of nodes without a shared file system on their way to rank 0, through torch's own store on loopback."""

import contextlib
import gc
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port, wait_until
from torch.distributed import TCPStore
from warm_python import Program, WarmPython

from lightning_loggers.delivery import relay_receive, relay_send
from lightning_loggers.delivery.relay import Relay
from lightning_loggers.delivery.relay_line import (
    Ack,
    Bye,
    Connection,
    DamagedMessageError,
    Hello,
    Line,
    Lines,
    Receiving,
    encode,
    pack,
    unpack,
)
from lightning_loggers.delivery.relay_receive import Receiver
from lightning_loggers.delivery.relay_send import Sender, announce
from lightning_loggers.journal import read
from lightning_loggers.journal.layout import lock_path
from lightning_loggers.journal.lock import FileLock, is_locked
from lightning_loggers.journal.reader import Position
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.notices import Notices
from lightning_loggers.records import Blob, RankRules, Record, RunSpec
from lightning_loggers.values.metrics import normalise

LIMIT_S = 60.0
"""A deadline against hanging for ever, not a bound on how fast anything is."""


@pytest.fixture
def store() -> TCPStore:
    """The server of a job's store, as rank 0's process has it."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture(scope="module")
def warm_python() -> Iterator[WarmPython]:
    """Processes that need not import everything first."""
    with WarmPython() as python:
        yield python


class Node:
    """A node of its own: one rank's folder, writer and relay."""

    def __init__(self, run_dir: Path, rank: int, store: Any, **writing: Any) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / "journal"
        self.rank = rank
        self.by_hand: ByHand | None = None
        self.notices = Notices()
        run = RunSpec("u" * 32, "e", run_dir.name, "mlflow", {}, RankRules((0, 1)))
        self.writer = JournalWriter(
            self.folder, run, rank=rank, normalise_metrics=lambda metrics: normalise(metrics, print), **writing
        )
        self.relay = Relay(
            run_dir, rank, job=lambda: "run/1", ranks=lambda: (0, 1), notices=self.notices, find_store=lambda: store
        )

    def log(self, count: int, start: int = 0, **more: float) -> None:
        for step in range(start, start + count):
            self.writer.append_metrics({"loss": float(step), **more}, step)

    def content(self, name: str | None = None) -> bytes:
        path = self.folder / (name or f"rank{self.rank}.jsonl")
        return path.read_bytes() if path.exists() else b""

    def close(self) -> None:
        self.writer.close()
        self.relay.close()
        self.relay.join(LIMIT_S)
        if self.by_hand is not None:
            self.by_hand.close()


@pytest.fixture
def node(tmp_path: Path, store: TCPStore) -> Iterator[Callable[..., Node]]:
    """Makes nodes, closed at the end."""
    made: list[Node] = []

    def make(rank: int, folder: str | None = None, through: Any = None, **writing: Any) -> Node:
        place = tmp_path / (folder or f"node{rank}") / "e" / "v"
        made.append(Node(place, rank, through or store, **writing))
        return made[-1]

    yield make
    for one in made:
        one.close()


def arrives(there: Node, here: Node, name: str | None = None) -> None:
    """Wait until rank 0 has all that a rank has written, byte for byte."""
    own = f"rank{here.rank}.jsonl"
    wait_until(lambda: there.content(name or own) == here.content(own), LIMIT_S, f"{own} at rank 0")


class ByHand:
    """Both halves without threads, so that what is under way can be looked at."""

    def __init__(self, store: Any, there: Node, here: Node, *, window_bytes: int = 2**23) -> None:
        if there.by_hand is not None:
            there.by_hand.close()
        there.by_hand = self
        self.connection = Connection(store)
        self.line = Line(self.connection, f"by-hand-{id(self)}/")
        self.receiving = Receiving("b" * 32, "node0", str(there.folder), window_bytes)
        self.sender = Sender(self.line, here.folder, here.rank, self.receiving, here.notices)
        self.receiver = Receiver(self.line, there.folder, there.notices)

    def meet(self) -> None:
        self.sender.step()
        self.receiver.step()
        assert self.line.get(f"ack/{self.id}") is not None

    @property
    def id(self) -> str:
        """Of the last announcement."""
        return str(json.loads(self.line.get(f"hello/{self.line.count('hellos')}") or b"{}")["id"])

    def close(self) -> None:
        self.receiver.close()
        self.connection.close()

    def under_way(self) -> list[bytes]:
        messages = (self.line.get(f"mail/{self.id}/{number}") for number in range(200))
        return [message for message in messages if message is not None]

    def run(self) -> None:
        deadline = time.monotonic() + LIMIT_S
        self.sender.step()
        while not self.sender.shipped:
            self.receiver.step()
            self.sender.step()
            assert time.monotonic() < deadline, "the halves do not come to an end"


# ---------------------------------------------------------------------- what arrives


def test_stream_arrives_byte_for_byte(node: Callable[..., Node]) -> None:
    """What a rank on another node writes is in rank 0's folder, and counts as live there as long as it is."""
    here, there = node(1), node(0)
    there.log(1)
    here.log(50)
    there.relay.start()
    here.relay.start()
    arrives(there, here)
    here.log(50, 50)
    assert here.relay.finish(LIMIT_S)
    assert there.content("rank1.jsonl") == here.content()
    assert is_locked(lock_path(there.folder, "rank1"))
    here.close()
    wait_until(lambda: not is_locked(lock_path(there.folder, "rank1")), LIMIT_S, "the end of the stream")
    losses = [record.data["loss"] for record in read(there.folder / "rank1.jsonl") if record.data]
    assert losses == [float(step) for step in range(100)]


def test_rank_with_the_same_file_system_sends_nothing(node: Callable[..., Node]) -> None:
    """A rank that sees rank 0's folder ends its part of the relay, and its journal is what it wrote."""
    here, there = node(1, "shared"), node(0, "shared")
    there.log(1)
    here.log(10)
    written = here.content()
    here.relay.start()
    there.relay.start()
    assert here.relay.finish(LIMIT_S)
    here.relay.join(LIMIT_S)
    assert not here.relay._thread.is_alive()  # type: ignore[union-attr]
    assert there.relay.finish(LIMIT_S)
    assert here.content() == written
    assert {path.name for path in there.folder.glob("*.jsonl")} == {"rank0.jsonl", "rank1.jsonl"}


def test_rank_0_waits_for_what_others_have_not_sent(node: Callable[..., Node]) -> None:
    """Rank 0's waiting ends when the other rank has said how it ended, and not before; or in time."""
    here, there = node(1), node(0)
    there.log(1)
    here.log(10)
    there.relay.start()
    here.relay.start()
    arrives(there, here)
    assert not there.relay.finish(0.5)
    here.writer.append(Record(time.time_ns(), "status", value="finished"))
    assert there.relay.finish(LIMIT_S)
    assert there.content("rank1.jsonl") == here.content()


def test_segments_arrive_as_segments(node: Callable[..., Node], store: TCPStore) -> None:
    """Where the writer begins a next file, so does the copy."""
    here, there = node(1, segment_bytes=4_000), node(0)
    by_hand = ByHand(store, there, here)
    for start in range(0, 300, 100):
        here.log(100, start)
        by_hand.run()
    files = sorted(path.name for path in here.folder.glob("rank1*.jsonl"))
    assert len(files) >= 4
    for name in files:
        assert there.content(name) == here.content(name)
    assert len([record for record in read(there.folder / "rank1.jsonl") if record.data]) == 300


def test_streams_of_forked_processes_are_sent_too(node: Callable[..., Node], store: TCPStore) -> None:
    """A stream that a child process of the rank writes beside the rank's own arrives under its own name."""
    here, there = node(1), node(0)
    here.log(3)
    (here.folder / "rank1-abc123.jsonl").write_bytes(here.content())
    (here.folder / "rank12.jsonl").write_bytes(here.content())
    ByHand(store, there, here).run()
    assert there.content("rank1-abc123.jsonl") == there.content("rank1.jsonl") == here.content()
    assert not there.content("rank12.jsonl"), "another rank's stream"


def test_long_lines_and_damaged_ones_arrive_as_they_are(node: Callable[..., Node], store: TCPStore) -> None:
    """A line longer than a message's usual size is sent whole, and what is no line at all byte for byte."""
    here, there = node(1), node(0)
    by_hand = ByHand(store, there, here)
    here.writer.append(Record(1, "text", id="long", value="x" * (3 * 2**20)))
    with (here.folder / "rank1.jsonl").open("ab") as file:
        file.write(b"\0" * (5 * 2**20))
        file.write(b"\n")
    here.log(3)
    by_hand.run()
    assert there.content("rank1.jsonl") == here.content()


def test_torn_last_line_waits_for_its_rest(node: Callable[..., Node], store: TCPStore) -> None:
    """Half a line is not sent: its writer may still be at it."""
    here, there = node(1), node(0)
    by_hand = ByHand(store, there, here)
    here.log(2)
    whole = here.content()
    with (here.folder / "rank1.jsonl").open("ab") as file:
        file.write(b'{"time_ns":17')
    by_hand.run()
    assert there.content("rank1.jsonl") == whole


# ---------------------------------------------------------------------- bounds


def test_no_more_than_a_window_is_under_way(node: Callable[..., Node], store: TCPStore) -> None:
    """With rank 0 not reading, the store holds a window of a stream of many; when it reads, all of it arrives."""
    here, there = node(1), node(0)
    window_bytes = 2**20
    by_hand = ByHand(store, there, here, window_bytes=window_bytes)
    for step in range(120):
        here.writer.append(Record(step, "text", step, id="t", value=os.urandom(50_000).hex()))
    assert len(here.content()) > 10 * window_bytes
    by_hand.meet()
    for _ in range(20):
        by_hand.sender.step()
    held = by_hand.under_way()
    assert sum(map(len, held)) < window_bytes + 1_000 * len(held)
    assert len(held) >= 2
    by_hand.run()
    assert there.content("rank1.jsonl") == here.content()
    assert not by_hand.under_way(), "messages are left in the store"


def test_refusing_disk_is_told_and_waited_for(
    node: Callable[..., Node], store: TCPStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What rank 0's disk refuses stays where it is, and arrives when the disk takes it."""
    monkeypatch.setattr(relay_receive, "_RETRY_REFUSED_DISK_S", 0.0)
    here, there = node(1), node(0)
    by_hand = ByHand(store, there, here)
    here.log(5)
    obstacle = there.folder / ".rank1.jsonl.part"
    obstacle.mkdir(parents=True)
    by_hand.meet()
    for _ in range(5):
        by_hand.sender.step()
        by_hand.receiver.step()
    assert not there.content("rank1.jsonl")
    assert not by_hand.sender.shipped
    assert [r.message for r in caplog.records if "df -h" in r.message and str(there.folder) in r.message]
    obstacle.rmdir()
    by_hand.run()
    assert there.content("rank1.jsonl") == here.content()


# ---------------------------------------------------------------------- faults on the way


class Damaging(TCPStore):
    """A store whose every third message arrives with one byte changed."""

    messages = 0

    def set(self, key: str, value: Any) -> None:
        if "/mail/" in key:
            Damaging.messages += 1
            if Damaging.messages % 3 == 1:
                value = value[:-9] + bytes([value[-9] ^ 1]) + value[-8:]
        super().set(key, value)


def test_damaged_messages_are_sent_again(
    node: Callable[..., Node], store: TCPStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that arrives changed is refused, told, and sent again until it is what was written."""
    Damaging.messages = 0
    through = Damaging("127.0.0.1", store.port, None, False)
    here, there = node(1, through=through), node(0)
    for step in range(60):
        here.writer.append(Record(step, "text", step, id="t", value=os.urandom(60_000).hex()))
    there.relay.start()
    here.relay.start()
    arrives(there, here)
    assert Damaging.messages > 7
    assert any("arrived damaged" in record.message for record in caplog.records)


@pytest.mark.parametrize("at", [0, 5, 9, 12, 40, -1])
def test_changed_message_is_seen(at: int) -> None:
    """Whichever byte of a message is changed, it is no message."""
    message = bytearray(pack(Lines(Position(), Position()), b"content"))
    message[at] ^= 1
    with pytest.raises(DamagedMessageError):
        unpack(bytes(message))


def test_nothing_is_written_outside_the_folder_or_to_rank_0(
    node: Callable[..., Node], store: TCPStore, tmp_path: Path
) -> None:
    """Whatever names are announced or sent, only a stream's own files are written."""
    there = node(0)
    there.log(3)
    by_hand = ByHand(store, there, node(1))
    before = {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")}
    good, first = "0" * 16, "1" * 16
    for hello in (
        Hello(good, 1, "h", "../rank1", first),
        Hello(good, 0, "h", "rank0", first),
        Hello(good, 2, "h", "rank1", first),
        Hello("../../../x", 1, "h", "rank1", first),
        Hello(good, 1, "h", "rank1", "../../x"),
        Hello(good, 1, "h", "rank1", first, "../../x"),
    ):
        announce(by_hand.line, hello)
    by_hand.line.put(f"hello/{by_hand.line.count('hellos', 1)}", b"no hello")
    by_hand.receiver.step()
    assert {path: path.is_dir() or path.read_bytes() for path in tmp_path.rglob("*")} == before
    remote = Hello("2" * 16, 1, "h", "rank1", first)
    announce(by_hand.line, remote)
    mail = f"mail/{remote.id}/"
    for number, (name, of) in enumerate([("x", "../.."), ("../../x", "a" * 40), ("x", "link-../x")]):
        by_hand.line.put(f"{mail}{number}", pack(relay_send.Piece(of, name, 1, 0, 0), b"x"))
    by_hand.line.put(f"{mail}3", pack(Bye(), b""))
    by_hand.receiver.step()
    assert not by_hand.line.has(f"{mail}3")
    after = set(tmp_path.rglob("*")) - before.keys()
    assert after <= {there.folder / "rank1.lock"}


# ---------------------------------------------------------------------- files of records


def log_file(here: Node, kind: str, blob: Blob, step: int = 0) -> None:
    """Record a file."""
    here.writer.append(Record(time.time_ns(), kind, step, id="picture", blobs=[blob]))


def test_files_arrive_before_the_lines_that_name_them(
    node: Callable[..., Node], store: TCPStore, tmp_path: Path
) -> None:
    """A record's files are whole at rank 0, with the time that tells whether they were changed; none of the run's."""
    here, there = node(1), node(0)
    by_hand = ByHand(store, there, here)
    content = os.urandom(3 * 2**20)
    made = here.writer.blobs.put_bytes(content, "made.png")
    source = tmp_path / "own.wav"
    source.write_bytes(b"sound")
    linked = here.writer.blobs.link_file(source)
    empty = here.writer.blobs.put_bytes(b"", "empty.txt")
    weights = here.writer.blobs.put_bytes(b"weights", "model.ckpt")
    log_file(here, "image", made)
    log_file(here, "audio", linked)
    log_file(here, "text", empty)
    log_file(here, "checkpoint", weights)
    by_hand.meet()
    deadline = time.monotonic() + LIMIT_S
    while b"picture" not in there.content("rank1.jsonl"):
        assert not by_hand.sender.shipped
        by_hand.sender.step()
        by_hand.receiver.step()
        assert time.monotonic() < deadline
    blobs = there.writer.blobs
    assert blobs.locate(made).read_bytes() == content
    assert blobs.locate(linked).read_bytes() == b"sound"
    assert not blobs.changed(linked)
    assert blobs.locate(empty).read_bytes() == b""
    with pytest.raises(FileNotFoundError):
        blobs.locate(weights)  # rank 0's are the run's
    log_file(here, "image", made, 1)
    by_hand.sender.step()
    assert len(by_hand.under_way()) == 1, "the file was sent again"
    by_hand.run()
    assert not list(there.folder.rglob("*.part"))


def test_large_file_stays_and_is_told(
    node: Callable[..., Node],
    store: TCPStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A file over the limit is not sent; its record is, and the user is told once how to bring the file."""
    monkeypatch.setattr(relay_send, "MAX_BLOB_BYTES", 1_000)
    here, there = node(1), node(0)
    large = here.writer.blobs.put_bytes(b"x" * 1_001, "large.bin")
    log_file(here, "image", large)
    log_file(here, "image", large, 1)
    ByHand(store, there, here).run()
    assert there.content("rank1.jsonl") == here.content()
    assert not (there.folder / "blobs").exists()
    told = [record.message for record in caplog.records if "large.bin" in record.message]
    assert len(told) == 1
    assert "scp -r" in told[0]
    assert str(here.folder / "blobs" / large.id) in told[0]


# ---------------------------------------------------------------------- jobs that are started again


def test_requeued_job_goes_on_where_the_copy_ends(node: Callable[..., Node], store: TCPStore) -> None:
    """With a part of the stream at rank 0, torn in a line by a power failure, the rest is sent and nothing twice."""
    here, there = node(1), node(0)
    here.log(1_000)
    content = here.content()
    there.folder.mkdir(parents=True)
    (there.folder / "rank1.jsonl").write_bytes(content[: len(content) // 2] + b"\0" * 100)
    by_hand = ByHand(store, there, here)
    by_hand.meet()
    by_hand.sender.step()
    assert sum(map(len, by_hand.under_way())) < len(content) * 0.6
    by_hand.run()
    assert there.content("rank1.jsonl") == content
    assert not list(there.folder.glob("rank1-*.jsonl"))


def test_other_stream_of_that_name_is_left_alone(node: Callable[..., Node], store: TCPStore) -> None:
    """Where rank 0's folder has another rank 1's stream, of an attempt elsewhere, the copy has a name of its own."""
    here, there = node(1), node(0)
    other = node(1, "elsewhere")
    other.log(7)
    here.log(5)
    there.folder.mkdir(parents=True)
    (there.folder / "rank1.jsonl").write_bytes(other.content())
    writer_there = FileLock(lock_path(there.folder, "rank1"))
    assert writer_there.acquire()
    for start in (5, 10):  # the second start goes on with the first one's copy
        ByHand(store, there, here).run()
        here.log(5, start)
        by_hand = ByHand(store, there, here)
        by_hand.run()
    writer_there.release()
    assert there.content("rank1.jsonl") == other.content()
    (name,) = {path.name for path in there.folder.glob("rank1-*.jsonl")}
    assert there.content(name) == here.content()


def test_stream_that_lost_its_end_gets_a_name_of_its_own(node: Callable[..., Node], store: TCPStore) -> None:
    """After a power failure took lines back that rank 0 has, the stream is not joined to a beginning that is none."""
    here, there = node(1), node(0)
    here.log(10)
    ByHand(store, there, here).run()
    copied = there.content("rank1.jsonl")
    here.writer.close()
    path = here.folder / "rank1.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:6]))
    here.log(20, 6)
    for _ in range(2):  # the second start goes on with the first one's copy
        here.log(5)
        ByHand(store, there, here).run()
    assert there.content("rank1.jsonl") == copied
    (name,) = {path.name for path in there.folder.glob("rank1-*.jsonl")}
    assert there.content(name) == here.content()


def test_copy_that_somebody_changed_is_looked_at_anew(node: Callable[..., Node], store: TCPStore) -> None:
    """If rank 0's folder is deleted in mid-run, the stream is announced again and arrives whole."""
    here, there = node(1), node(0)
    by_hand = ByHand(store, there, here, window_bytes=2_000)
    here.log(10)
    by_hand.run()
    first = by_hand.id
    (there.folder / "rank1.jsonl").unlink()
    here.log(40, 10)
    deadline = time.monotonic() + LIMIT_S
    while there.content("rank1.jsonl") != here.content():
        by_hand.sender.step()
        by_hand.receiver.step()
        assert time.monotonic() < deadline
    assert by_hand.id != first
    assert not [number for number in range(100) if by_hand.line.has(f"mail/{first}/{number}")], "left in the store"


def test_both_sides_may_end_and_begin_again(node: Callable[..., Node]) -> None:
    """A logger that is closed and logs again goes on, on rank 0 and elsewhere."""
    here, there = node(1), node(0)
    there.log(1)
    for turn, again in enumerate((here, there, here)):
        there.relay.start()
        here.relay.start()
        here.log(5, 5 * turn)
        arrives(there, here)
        again.relay.close()
        here.log(1)
    there.relay.start()
    here.relay.start()
    arrives(there, here)


def test_what_an_earlier_rank_0_left_is_taken_out_of_the_store(node: Callable[..., Node], store: TCPStore) -> None:
    """When rank 0 begins again, what was under way to its earlier beginning does not stay in the store for ever."""
    here, there = node(1), node(0)
    with contextlib.closing(Connection(store)) as connection:
        line = Line(connection, "lightning_loggers/relay/run/1/")
        earlier = Receiving("a" * 32, "node0", str(there.folder))
        line.put("rank0", encode(earlier))
        here.log(5)
        here.relay.start()
        below = line.below(earlier.beginning)
        wait_until(lambda: below.has("hello/1"), LIMIT_S, "the announcement")
        announced = json.loads(below.get("hello/1") or b"")["id"]
        below.put(f"ack/{announced}", encode(Ack(0, stream="rank1")))
        wait_until(lambda: below.has(f"mail/{announced}/0"), LIMIT_S, "the first message")
        there.log(1)
        there.relay.start()
        arrives(there, here)
        assert not below.has(f"mail/{announced}/0")


# ---------------------------------------------------------------------- processes that die

RANK_1 = """
import sys, threading, time
from pathlib import Path
from torch.distributed import TCPStore
from lightning_loggers.delivery.relay import Relay
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.notices import Notices
from lightning_loggers.records import RankRules, RunSpec
from lightning_loggers.values.metrics import normalise

run_dir, port = Path(sys.argv[1]), int(sys.argv[2])
store = TCPStore("127.0.0.1", port, None, False)
run = RunSpec("u" * 32, "e", "v", "mlflow", {}, RankRules((0, 1)))
writer = JournalWriter(run_dir / "journal", run, rank=1, normalise_metrics=lambda metrics: normalise(metrics, print))
writer.append_metrics({"loss": 0.0}, 0)
relay = Relay(run_dir, 1, job=lambda: "run/1", ranks=lambda: (0, 1), notices=Notices(), find_store=lambda: store)
relay.start()
"""
LOGS_FOR_EVER = """
step = 0
while True:
    step += 1
    writer.append_metrics({"loss": float(step), "filling": 1 / 3}, step)
    time.sleep(0.0005)
"""
FORKS = """
import os
while not relay._joined:
    time.sleep(0.01)
child = os.fork()
if child == 0:
    before = threading.active_count()
    relay.start()
    threads = threading.active_count()
    relay.hasten()
    relay.close()
    os._exit(0 if relay.finish(60) and threads == before == 1 else 7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(relay.finish(60))
"""
LOGS = """
import logging, os, sys, time
from pathlib import Path
import torch.distributed
from lightning_loggers import CSVLogger, LogPolicy
from lightning_loggers.ranks import job_store

rank, port, flag = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
policy = LogPolicy(log_on_workers=-1, rank_wait_s=60)
logger = CSVLogger("runs", "e", version="v", policy=policy, delivery="offline")
logger.log_metrics({"loss": float(rank)}, 0)
if rank == 0:
    flag.touch()
while not flag.exists():
    time.sleep(0.01)
for step in range(1, 2_000 if rank else 2):
    logger.log_metrics({"loss": float(rank)}, step)
logger.finalize("success")
os._exit(0)
"""
SERVES = """
import sys, time
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def running(python: WarmPython, folder: Path, code: str, *arguments: object) -> Iterator[tuple[Program, Path]]:
    """A program, and what it says."""
    said = folder / "said.txt"
    with said.open("ab") as out:
        program = python.start(code, *arguments, stdout=out.fileno(), stderr=out.fileno(), folder=folder)
    try:
        yield program, said
    finally:
        program.close()


def test_killed_rank_leaves_whole_lines_and_its_next_start_goes_on(
    node: Callable[..., Node],
    store: TCPStore,
    warm_python: WarmPython,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a rank killed while it sends, rank 0 has a beginning in whole lines and does not wait; the rest follows."""
    monkeypatch.setattr(relay_receive, "SILENT_AFTER_S", 1.5)
    monkeypatch.setattr(relay_receive, "BEAT_EVERY_S", 0.5)
    here, there = node(1), node(0)
    there.log(1)
    there.relay.start()
    with running(warm_python, tmp_path, RANK_1 + LOGS_FOR_EVER, here.run_dir, store.port) as (program, _):
        wait_until(lambda: len(there.content("rank1.jsonl")) > 100_000, LIMIT_S, "what is sent")
        program.kill()
        program.wait()
    wait_until(lambda: not is_locked(lock_path(there.folder, "rank1")), LIMIT_S, "rank 0's giving it up")
    copied = there.content("rank1.jsonl")
    assert copied.endswith(b"\n")
    assert here.content().startswith(copied)
    here.relay.start()
    here.log(10)
    arrives(there, here)


def test_ends_of_loggers_wait_for_each_other(warm_python: WarmPython, tmp_path: Path) -> None:
    """After ``finalize`` on both, rank 0's journal has all of the other node's, though their processes end at once."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        programs = []
        for rank in (0, 1):
            folder = tmp_path / f"node{rank}"
            folder.mkdir()
            programs.append(
                stack.enter_context(running(warm_python, folder, LOGS, rank, port, tmp_path / "rank_0_ends"))
            )  # fmt: skip
        for program, said in programs:
            assert program.wait(LIMIT_S) == 0, said.read_text()
    there, here = (tmp_path / f"node{rank}" / "runs" / "e" / "v" / "journal" for rank in (0, 1))
    content = (here / "rank1.jsonl").read_bytes()
    assert b'"finished"' in content
    assert (there / "rank1.jsonl").read_bytes() == content
    assert not (here / "rank0.jsonl").exists()


def test_store_that_is_gone_is_told_with_the_cure(
    node: Callable[..., Node],
    warm_python: WarmPython,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """When the process with the store is killed, waiting ends, and one line tells where the rest is, and no stack."""
    with running(warm_python, tmp_path, SERVES) as (program, said):
        wait_until(lambda: said.read_text().endswith("\n"), LIMIT_S, "the store")
        client = TCPStore("127.0.0.1", int(said.read_text()), None, False)
        here, there = node(1, through=client), node(0, through=client)
        there.log(1)
        here.log(10)
        there.relay.start()
        here.relay.start()
        assert here.relay.finish(LIMIT_S)
        program.kill()
        program.wait()
    wait_until(lambda: here.relay._refused, LIMIT_S, "its being noticed")
    assert "have reached rank 0" not in caplog.text, "all had been sent"
    here.log(10, 10)
    assert not here.relay.finish(LIMIT_S)
    here.relay.join(LIMIT_S)
    there.relay.join(LIMIT_S)
    assert not is_locked(lock_path(there.folder, "rank1"))
    (told,) = [record.message for record in caplog.records if "have reached rank 0" in record.message]
    left = len(here.content()) - len(there.content("rank1.jsonl"))
    assert left > 0
    assert told.startswith(f"{left:,} bytes of rank 1's records")
    assert f"{here.folder}/rank1.jsonl " in told
    assert f"{there.folder}/rank1.jsonl" in told
    assert f"lightning-loggers sync {there.run_dir}" in told
    assert "failed to connect" not in capfd.readouterr().err


def test_forked_child_takes_no_part(
    node: Callable[..., Node], store: TCPStore, warm_python: WarmPython, tmp_path: Path
) -> None:
    """A process forked off a rank starts no thread and waits for none; the rank itself goes on."""
    there = node(0)
    there.log(1)
    there.relay.start()
    with running(warm_python, tmp_path, RANK_1 + FORKS, tmp_path / "node1" / "e" / "v", store.port) as (program, said):
        assert program.wait(LIMIT_S) == 0, said.read_text()
    assert said.read_text().splitlines()[-2:] == ["0", "True"]


def test_rank_0_that_never_begins_is_not_waited_for_long(
    node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    """Without a rank 0 waiting ends in time, and the records that are only here are told of."""
    here = node(1)
    here.log(5)
    here.relay.start()
    assert not here.relay.finish(0.5)
    here.close()
    assert [record.message for record in caplog.records if "have reached rank 0" in record.message]
    gc.collect()
