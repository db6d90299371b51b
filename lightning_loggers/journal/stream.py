"""The file that a writer appends to: opened, begun anew, mended, made again, and let go of.

None of this is on the path of a log call on which nothing goes wrong.
"""

import contextlib
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from lightning_loggers.errors import JournalError
from lightning_loggers.journal import segments
from lightning_loggers.journal.layout import list_segments, segment_path
from lightning_loggers.journal.lock import FileLock
from lightning_loggers.journal.reader import read_first_header
from lightning_loggers.notices import Notices
from lightning_loggers.records import FORMAT_VERSION, MAX_LINE_BYTES, Header, RunSpec, encode_line


class StreamFile:
    """The last segment of one stream, open for appending, and the right to be the stream's writer.

    Args:
        folder: The run's journal folder.
        run: What the header says of the run. If the folder already belongs to a run, that run's ``uid`` is kept.
        rank: Global rank, or a callable that tells it when the stream is opened.
        environment: Called once, when the first header is written; told in it, for a person.
        notices: Where it is told that a file was deleted.

    Attributes:
        fd: The descriptor; -1 while nothing is open.
        stream: The stream's name; ``None`` before it was first opened.
        segment: Number of the segment.
        run: As in the next header.

    Guarantees:
        - A segment gets its name when its header is in it, and begins with that header.
        - No two live processes write one stream; whoever comes second writes one of its own in the same run.
        - What fails leaves the file that was open as it was, and open.
    """

    def __init__(
        self,
        folder: Path,
        run: RunSpec,
        rank: int | Callable[[], int],
        environment: Callable[[], dict[str, Any]],
        notices: Notices,
    ) -> None:
        self.fd = -1
        self.stream: str | None = None
        self.segment = 0
        self.run = run
        self._folder = folder
        self._rank = rank
        self._environment = environment
        self._notices = notices
        self._header_rank = 0
        self._told_environment: dict[str, Any] | None = None
        self._own_stream: str | None = None
        self._lock: FileLock | None = None

    def open(self) -> int:
        """Open the stream: make the folder, become its writer, mend a torn tail, write a header line.

        Returns:
            The size of the file.

        Raises:
            OSError: If the file system refuses.
            JournalError: If the journal there is not one.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._header_rank = self._rank() if callable(self._rank) else self._rank
        with contextlib.suppress(JournalError):
            known = read_first_header(self._folder)
            if known is not None:
                self.run = msgspec.structs.replace(self.run, uid=known.run.uid)
        stream, lock = self._take(f"rank{self._header_rank}")
        try:
            segment = max(list_segments(self._folder).get(stream, [0]))
            fd, size = segments.open_segment(segment_path(self._folder, stream, segment), self._header_line())
        except BaseException:
            lock.release()
            raise
        self._lock = lock
        self._change_to(fd, stream, segment)
        return size

    def begin_next_segment(self) -> int:
        """Begin the next segment.

        The new file gets its name when its header is in it: a reader that sees it takes the one before as finished, so
        nothing may be written to that any more.

        Returns:
            The size of the new file.

        Raises:
            OSError: If it cannot be begun.
        """
        stream = self.stream
        assert stream is not None
        segment = max([self.segment, *list_segments(self._folder).get(stream, [])]) + 1
        header = self._header_line()
        path = segment_path(self._folder, stream, segment)
        fd = segments.make_segment(path, lambda fd: segments.write_all(fd, header))
        self._change_to(fd, stream, segment)
        return len(header)

    def forget_if_closed(self) -> None:
        """Forget a descriptor that somebody else has closed, such as a library that closes all on becoming a daemon."""
        try:
            os.fstat(self.fd)
        except OSError:
            self.fd = -1
            if self._lock is not None:
                self._lock.forget()
                self._lock = None

    def still_there(self) -> bool:
        """Whether the open file still has a name; one that was moved is written on where it is now."""
        assert self.stream is not None
        mine = os.fstat(self.fd)
        if mine.st_nlink > 0:
            return True
        try:  # some network file systems count no links
            there = segment_path(self._folder, self.stream, self.segment).stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev)

    def is_file(self, device: int, inode: int) -> bool:
        """Whether the open file is this one; any thread may ask."""
        try:
            mine = os.fstat(self.fd)
        except OSError:
            return False
        return (mine.st_dev, mine.st_ino) == (device, inode)

    def remake(self) -> int:
        """Somebody deleted the folder under a live run: write the open, nameless file's content to a new one.

        Returns:
            The size of the new file.

        Raises:
            OSError: If it cannot be.
        """
        assert self.stream is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        stream, lock, segment, old = self.stream, self._lock, self.segment, self.fd
        if lock is None or not lock.still_there():
            stream, lock = self._take(stream)
        if segment_path(self._folder, stream, segment).exists():  # put back by somebody, or another process's by now
            segment = max(list_segments(self._folder).get(stream, [0])) + 1
        try:
            path = segment_path(self._folder, stream, segment)
            fd = segments.make_segment(path, lambda fd: segments.copy(old, fd))
        except BaseException:
            if lock is not self._lock:
                lock.release()
            raise
        self._change_to(fd, stream, segment)
        if self._lock is not None and lock is not self._lock:
            self._lock.release()
        self._lock = lock
        self._notices.tell_once(
            ("remade", str(self._folder)),
            f"The journal folder {self._folder} was deleted while the run was writing to it; the current segment was "
            f"written again from memory of the kernel. Earlier segments and files that were not yet delivered are "
            f"gone. Keep the folder until `lightning-loggers status {self._folder}` says that nothing is pending.",
        )
        return os.fstat(fd).st_size

    def touch(self) -> None:
        """Show a file system without locks that the writer lives."""
        lock = self._lock
        if lock is not None:
            lock.touch()

    def close(self) -> None:
        """Close the file and let others write the stream."""
        self._drop_descriptor()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def start_over_in_child(self) -> None:
        """After ``fork``: drop the parent's descriptor and lock; the next :meth:`open` is this process's own."""
        self._drop_descriptor()
        self._lock = None
        self._told_environment = None
        self._own_stream = None
        self.stream = None
        self.segment = 0

    def _drop_descriptor(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _change_to(self, fd: int, stream: str, segment: int) -> None:
        old = self.fd
        self.stream, self.segment, self.fd = stream, segment, fd
        if old >= 0:
            with contextlib.suppress(OSError):  # the descriptor is free again whatever a network file system says
                os.close(old)

    def _take(self, stream: str) -> tuple[str, FileLock]:
        """Become the writer of a stream, or else of one of our own in the same run.

        Another live process (this one's parent after a fork, a second job given the same version) may write it, or
        another version of this package wrote it in its own format.
        """
        lock = segments.take_stream(self._folder, stream)
        if lock is not None:
            return stream, lock
        if self._own_stream is None:
            self._own_stream = f"{stream}-{os.getpid():x}{secrets.token_hex(4)}"
        return self._own_stream, segments.take_own_stream(self._folder, self._own_stream)

    def _header_line(self) -> bytes:
        if self._told_environment is None:
            try:
                self._told_environment = self._environment()
            except Exception as error:  # noqa: BLE001 - it is for a person only
                self._told_environment = {"unreadable": f"{type(error).__name__}: {error}"}
        header = Header(FORMAT_VERSION, self.run, time.time_ns(), self._header_rank, self._told_environment)
        try:
            line = encode_line(header)
        except Exception:  # noqa: BLE001 - a value that JSON does not take
            options = {key: str(value) for key, value in self.run.options.items()}
            run = msgspec.structs.replace(self.run, options=options)
            line = encode_line(msgspec.structs.replace(header, run=run, environment={}))
        return line if len(line) <= MAX_LINE_BYTES else encode_line(msgspec.structs.replace(header, environment={}))
