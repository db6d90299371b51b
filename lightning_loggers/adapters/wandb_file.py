"""The files that W&B's SDK writes: ``wandb/*run-<time>-<id>/run-<id>.wandb``. Loading this imports no SDK."""

import contextlib
import glob
import json
import os
import shutil
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MARK = "lightning_loggers"
"""The key of a run's configuration under which we keep whose run it is, and which names stand for which keys."""

_BLOCK_BYTES = 32768
_READ_BYTES = 32 * _BLOCK_BYTES
_FILE_HEADER_BYTES = 7
_CHUNK_HEADER = struct.Struct("<IHB")
_WHOLE, _LAST = 1, 4
_NUMBER, _HISTORY, _SUMMARY = b"\x08", 0x12, 0x1A  # tags of protocol buffers: field 1, a number; 2 and 3, messages


_ended: dict[Path, "RunFile"] = {}
_MOST_REMEMBERED = 100


def remember_end(file: "RunFile") -> None:
    """Note that a file was read to its end, behind which nobody will write."""
    _ended[file.path] = file
    if len(_ended) > _MOST_REMEMBERED:
        del _ended[next(iter(_ended))]


def ended(path: Path) -> "RunFile | None":
    """A file whose end this process has seen, as it was read then; ``None`` if it was none, or is not as it was."""
    file = _ended.get(path)
    with contextlib.suppress(OSError):
        if file is not None and path.stat().st_size == file.whole_bytes:
            return file
    return None


def run_folders(settings: Any, run_id: str) -> list[Path]:
    """Folders of a run, oldest first."""
    found = [path.parent for path in Path(settings.wandb_dir).glob(f"*run-*/run-{glob.escape(run_id)}.wandb")]
    return sorted((path for path in found if not path.is_symlink()), key=lambda path: begun(path.name, run_id))


def begun(folder: str, run_id: str) -> tuple[str, int]:
    """When a folder of the SDK was begun, and which one of that second it is.

    >>> begun("offline-run-20260101_120000-ab12", "ab12") < begun("offline-run-20260101_120000-ab12-10", "ab12")
    True
    """
    stamp, _, number = folder.partition("run-")[2].partition(f"-{run_id}")
    return stamp, int(number[1:]) if number[1:].isdigit() else 0


def earlier_rows(settings: Any, extra: Mapping[str, Any], uid: str) -> tuple[int, bool]:
    """Rows of this run in the offline folders that earlier hosts have left.

    Returns:
        Their number, and whether they are said not to be one for each record.
    """
    folders = run_folders(settings, settings.run_id)
    base = 0
    if "file" in extra:  # and what was made after it by a host that died
        since = begun(Path(str(extra["file"])).parent.name, settings.run_id)
        folders = [folder for folder in folders if begun(folder.name, settings.run_id) >= since]
        base = int(extra.get("base", 0))
    paths = [folder / f"run-{settings.run_id}.wandb" for folder in folders]
    found = [ended(path) or RunFile(path) for path in paths]
    files = [file for file in found if str(file.path) != settings.sync_file and file.uid == uid]
    rows = base + sum(file.rows for file in files)
    return max(rows, int(extra.get("rows", 0))), any(file.foreign for file in files)


def is_open(path: Path) -> bool:
    """Whether a process of this user on this machine has a file open: the SDK's service outlives its program a little.

    Where there is no ``/proc``, whether it was written to in the last ten seconds.
    """
    try:
        status = path.stat()
    except OSError:
        return False
    if not Path("/proc/self/fd").is_dir():
        return time.time() - status.st_mtime < 10
    for descriptor in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            found = os.stat(descriptor)
            if (found.st_ino, found.st_dev) == (status.st_ino, status.st_dev):
                return True
    return False


def tidy(path: Path) -> None:
    """Make a file that a killed host has left one that ``wandb sync`` takes: without half a record at its end.

    A file without any record is removed with its folder, which nothing was logged to.
    """
    file = RunFile(path)
    if file.empty:
        shutil.rmtree(path.parent, ignore_errors=True)
    elif path.stat().st_size > file.whole_bytes:
        os.truncate(path, file.whole_bytes)


def _kind(payload: bytes) -> int | None:
    """Tag of what a record is, which comes behind its number; ``None`` if it has none.

    >>> hex(_kind(bytes.fromhex("08ac5e1ad401")))
    '0x1a'
    """
    if payload[:1] == _NUMBER:
        for place in range(1, min(len(payload) - 1, 11)):
            if payload[place] < 0x80:
                return payload[place + 1]
    return None


class RunFile:
    """Reads what the SDK has written to a ``.wandb`` file so far.

    The format is LevelDB's log (chunks with a header of checksum, length and type, in blocks of 32 KiB, none of which a
    chunk leaves) after a header of seven bytes; its records are the SDK's own protocol buffers.

    Args:
        path: The file; it may still grow, and it may end in the middle of a record.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        """The number that the next row would have."""
        self.artifacts = 0
        self.params_no = 0
        self.uid: str | None = None
        self.foreign = False
        self.ended = False
        self.whole_bytes = _FILE_HEADER_BYTES
        """Up to the end of the last record that is there whole."""
        self.advance()

    @property
    def empty(self) -> bool:
        """Whether there is no record."""
        return self.whole_bytes == _FILE_HEADER_BYTES

    def advance(self) -> None:
        """Read what was added."""
        with contextlib.suppress(OSError):
            if self.path.stat().st_size <= self.whole_bytes:
                return
        row: bytes | None = None
        for payload in self._payloads():
            kind = _kind(payload)
            if kind == _HISTORY:
                row = payload  # their numbers go up
            elif kind != _SUMMARY:  # there are two with every row
                self._note(_record(payload))
        if row is not None:
            # Not counted: what a user logs with a step of his own skips numbers.
            self.rows = max(self.rows, _record(row).history.step.num + 1)

    def _note(self, record: Any) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "artifact":
            self.artifacts += 1
        elif kind == "exit":
            self.ended = True
        elif kind in {"config", "run"}:
            config = record.config if kind == "config" else record.run.config
            for item in config.update:
                if item.key == MARK:
                    mark = json.loads(item.value_json)
                    self.uid = mark.get("run_uid", self.uid)
                    self.foreign = self.foreign or bool(mark.get("foreign"))
                    self.params_no = max(self.params_no, int(mark.get("params_no") or 0))

    def records(self) -> Iterator[Any]:
        """The SDK's records from :attr:`whole_bytes` on, which goes along."""
        yield from map(_record, self._payloads())

    def _payloads(self) -> Iterator[bytes]:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            place, parts = self.whole_bytes, b""
            while True:
                data, begin = os.pread(fd, _READ_BYTES - place % _BLOCK_BYTES, place), 0
                while begin < len(data):
                    limit = min(begin + _BLOCK_BYTES - (place + begin) % _BLOCK_BYTES, len(data))
                    while begin + _CHUNK_HEADER.size <= limit:
                        _, length, kind = _CHUNK_HEADER.unpack_from(data, begin)
                        end = begin + _CHUNK_HEADER.size + length
                        if kind == 0 or end > limit:
                            return  # not written yet
                        parts += data[begin + _CHUNK_HEADER.size : end]
                        begin = end
                        if kind in {_WHOLE, _LAST}:
                            self.whole_bytes = place + begin
                            yield parts
                            parts = b""
                    begin = limit  # what is left of a block is too short for a chunk
                place += len(data)
                if place % _BLOCK_BYTES or not data:
                    return
        finally:
            os.close(fd)


def _record(payload: bytes) -> Any:
    from wandb.proto import wandb_internal_pb2 as pb

    record = pb.Record()
    record.ParseFromString(payload)
    return record
