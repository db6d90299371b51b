"""``metrics.csv``: a file with a header line that grows by rows and by columns without being written anew.

There is room behind the header: spaces before the first number, which readers of CSV skip. A new column's name is
written over some of them, together with the line break that it pushes on::

    step,loss                 0,0.5            step,loss,acc             0,0.5
    1,0.25                               ->    1,0.25
                                               2,0.125,0.9

(the line break after the header is not drawn). When the room is used up the file is written again, once, with twice as
much of it. Rows leave out trailing empty fields, so the rows before a column was known need not change.
"""

import contextlib
import csv
import errno
import io
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_loggers.adapters.folder import created, partial_of, set_aside
from lightning_loggers.journal.layout import journal_dir, state_path
from lightning_loggers.notices import Notices

STEP = "step"
"""The first column."""

_ROOM_BYTES = 256
_CHUNK_BYTES = 2**20
_MAX_HEADER_BYTES = 64 * 2**20


class MetricsFile:
    """``metrics.csv``: grows by rows and by columns.

    Args:
        path: The file.
        kept: Where its place is kept between processes: ``data_at`` and ``row_at``, the offsets of the first and of the
            last row, and ``row``, the last row itself, which values of the same step may still join. Changed only when
            all of an append is on disk.
        run_dir: The folder of the run's journal.
        notices: Where faults are told.
        save: Saves ``kept`` at once.
    """

    def __init__(
        self,
        path: Path,
        kept: dict[str, Any],
        *,
        run_dir: Path,
        notices: Notices,
        save: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self._run_dir = run_dir
        self.bytes_written = 0
        """All bytes written so far, rewriting included: for whoever wants to see that it stays in proportion."""
        self._kept = kept
        self._notices = notices
        self._save = save
        self._forget()

    def _forget(self) -> None:
        self._fd = -1
        self._columns: dict[str, int] = {STEP: 0}
        self._header_end = 0  # offset of the line break after the header
        self._data_at = 0
        self._row_at = 0
        self._row = b""
        self._step = ""  # of the last row; values of no step never join it
        self._cells: dict[int, str] = {}

    # ---------------------------------------------------------------- taking up

    def open(self, *, adopt: bool) -> None:
        """Take the file up as it was when its place was saved; none is made.

        Args:
            adopt: Whether a file of unknown origin is continued. Otherwise it is renamed.

        Raises:
            OSError: If it is there and cannot be opened, or is a symbolic link.
        """
        self.close()
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            if "row_at" in self._kept:
                self._notices.tell_once(
                    ("gone", str(self.path)),
                    f"{self.path} was deleted; a new one begins with the next row. To have all of it again when the "
                    f"run has ended, delete {state_path(journal_dir(self._run_dir), 'csv')}, then: "
                    f"lightning-loggers sync {self._run_dir}",
                )
            self._kept.clear()
            return
        if "row_at" in self._kept:
            if self._take_up():
                return
        elif "begun" in self._kept:  # ours, of a batch that was never acknowledged: it is replaced
            self.close()
            return
        elif adopt and self._adopt():
            return
        self.close()
        self._kept.clear()
        set_aside(self.path, self._notices)

    def close(self) -> None:
        """Let go of the file."""
        fd = self._fd
        self._forget()
        if fd >= 0:
            os.close(fd)

    def _take_up(self) -> bool:
        """Learn the columns from the header, and cut off what is behind the last row that was acknowledged."""
        header = b""
        while b"\n" not in header and len(header) < _MAX_HEADER_BYTES:
            chunk = os.pread(self._fd, 2**16, len(header))
            if not chunk:
                return False
            header += chunk
        header = header.partition(b"\n")[0]
        try:
            names = next(csv.reader([header.decode()]), [])
        except (csv.Error, UnicodeDecodeError):
            return False
        if names[:1] != [STEP] or len(set(names)) != len(names):
            return False
        at = self._header_end = len(header)
        while (pad := os.pread(self._fd, 2**16, at + 1)) and not pad.strip(b" \n"):
            at += len(pad)
        self._data_at = at + 1 + len(pad) - len(pad.lstrip(b" \n"))
        # The room may have been enlarged after the place was saved: rows keep their distance from the first one.
        self._row_at = self._kept["row_at"] - self._kept["data_at"] + self._data_at
        size = os.fstat(self._fd).st_size
        if not self._data_at <= self._row_at <= size:
            return False
        if self._row_at > self._data_at and os.pread(self._fd, 1, self._row_at - 1) != b"\n":
            return False
        self._columns = {name: index for index, name in enumerate(names)}
        self._keep_row(str(self._kept["row"]).encode())
        self._restore()
        return True

    def _keep_row(self, row: bytes) -> None:
        self._row = row
        text = row.decode()
        cells = [] if '"' in text else text.rstrip("\n").split(",")  # text of somebody else's row: not joined
        self._step = cells[0] if cells else ""
        self._cells = {index: cell for index, cell in enumerate(cells) if index and cell}

    def _restore(self) -> None:
        """Put back the last acknowledged row, and cut off what is behind it."""
        end = self._row_at + len(self._row)
        if os.pread(self._fd, len(self._row) + 1, self._row_at) != self._row or os.fstat(self._fd).st_size != end:
            self._write(self._row, self._row_at)
            os.ftruncate(self._fd, end)

    def _adopt(self) -> bool:
        """Go on with a file that another logger began: its rows stay, in a layout that can grow."""
        lines, last, names = 0, b"", [STEP]
        partial = partial_of(self.path)
        try:
            with open(os.dup(self._fd), encoding="utf-8", newline="") as theirs, created(partial) as ours:
                reader = csv.DictReader(theirs, restval="")
                found = list(reader.fieldnames or [])
                if STEP not in found or len(set(found)) != len(found):
                    return False
                names += [name for name in found if name != STEP]
                header = _line(names)
                for row in reader:
                    if None in row:
                        return False  # more fields than columns: not ours to understand
                    line = _line([row[name] for name in names])
                    if not lines:
                        line = line.lstrip(b" ")  # the room of a file of ours whose place was lost
                        ours.write(header + _room(header, line))
                    ours.write(line)
                    last, lines = line, lines + 1
                if not lines:
                    return False
                ours.flush()
                os.fsync(ours.fileno())
                size = ours.tell()
            partial.replace(self.path)
        except (csv.Error, UnicodeDecodeError):
            return False
        finally:
            partial.unlink(missing_ok=True)
        self.close()
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._kept.update(data_at=0, row_at=size - len(last), row=last.decode())
        first = len(header)  # offsets are kept in relation to the first row, which the room has moved
        while os.pread(self._fd, 1, first) in {b" ", b"\n"}:
            first += 1
        self._kept["data_at"] = first
        self._save()
        self._notices.tell_once(
            ("adopted", str(self.path)),
            f"{self.path} was there before; its {lines} rows are kept and new ones follow them.",
            level=20,
        )
        return self._take_up()

    # ---------------------------------------------------------------- growing

    def append(self, rows: Iterable[tuple[str, Mapping[str, str]]]) -> None:
        """Add rows; on any fault none of them is added.

        Args:
            rows: Step (or nothing) and column to number, as text.

        Raises:
            OSError: If the disk refuses.
        """
        self._look_for_it()
        columns = dict(self._columns)
        lines: list[bytes] = []
        step, cells = self._step, dict(self._cells)
        row = self._row
        for next_step, numbers in rows:
            if not numbers.keys() <= columns.keys():  # in the order in which Lightning has them
                columns |= {name: len(columns) + i for i, name in enumerate(sorted(numbers.keys() - columns.keys()))}
            added = {columns[name]: text for name, text in numbers.items()}
            if row and step and next_step == step and not added.keys() & cells.keys():
                cells |= added
            else:
                if row:
                    lines.append(row)
                step, cells = next_step, added
            row = _row(step, cells)
        if row == self._row and not lines:
            return
        body = b"".join(lines)
        if self._fd < 0:
            self._create(list(columns), body + row)
        else:
            try:
                if len(columns) > len(self._columns):
                    self._widen(list(columns)[len(self._columns) :])
                self._write(body + row, self._row_at)
                os.ftruncate(self._fd, self._row_at + len(body) + len(row))
                os.fdatasync(self._fd)
            except BaseException:  # Ctrl+C in `sync` too: all rows or none
                with contextlib.suppress(OSError):
                    self._restore()
                raise
        self._columns = columns
        self._row_at += len(body)
        self._row, self._step, self._cells = row, step, cells
        self._kept.pop("begun", None)
        self._kept.update(data_at=self._data_at, row_at=self._row_at, row=row.decode())

    def _look_for_it(self) -> None:
        """Somebody may have deleted or replaced the file under a live run, or have closed it."""
        if self._fd >= 0:
            mine = os.fstat(self._fd)
            with contextlib.suppress(FileNotFoundError):
                there = os.stat(self.path, follow_symlinks=False)
                if (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev):
                    return
        self.open(adopt=False)

    def _create(self, names: list[str], body: bytes) -> None:
        if not self._kept:
            self._kept["begun"] = True  # so that after a crash nobody takes it for somebody else's
            self._save()
        header = _line(names)
        room = _room(header, body)
        partial = partial_of(self.path)
        try:
            with created(partial) as file:
                file.write(header + room + body)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        self.bytes_written += len(header) + len(room) + len(body)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._header_end = len(header) - 1
        self._data_at = self._row_at = len(header) + len(room)

    def _widen(self, names: list[str]) -> None:
        """Name more columns: in the room behind the header, or else in a new file with more room."""
        addition = b"," + _line(names)[:-1]
        if self._header_end + len(addition) < self._data_at:
            self._write(addition + b"\n", self._header_end)
            self._header_end += len(addition)
        else:
            self._move(os.pread(self._fd, self._header_end, 0) + addition + b"\n")
        for name in names:
            self._columns[name] = len(self._columns)

    def _move(self, header: bytes) -> None:
        end = self._row_at + len(self._row)
        room = _room(header, os.pread(self._fd, 1, self._data_at))
        partial = partial_of(self.path)
        try:
            with created(partial) as file:
                file.write(header + room)
                at = self._data_at
                while at < end:
                    chunk = os.pread(self._fd, min(_CHUNK_BYTES, end - at), at)
                    if not chunk:
                        raise OSError(errno.EIO, "the file has become shorter", str(self.path))
                    file.write(chunk)
                    at += len(chunk)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)
        self.bytes_written += len(header) + len(room) + end - self._data_at
        old, self._fd = self._fd, os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        os.close(old)
        self._header_end = len(header) - 1
        self._row_at += len(header) + len(room) - self._data_at
        self._data_at = len(header) + len(room)

    def _write(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            self.bytes_written += written
            offset += written
            view = view[written:]


def _row(step: str, cells: Mapping[int, str]) -> bytes:
    row = [""] * (max(cells) + 1)
    row[0] = step
    for index, text in cells.items():
        row[index] = text
    return (",".join(row) + "\n").encode()


def _line(fields: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue().encode()


def _room(header: bytes, first_row: bytes) -> bytes:
    """What is written between the header and the first row: readers take spaces before a number for nothing.

    Before an empty field or a text they would not; there it is empty lines, which they skip as well.
    """
    return (b" " if first_row[:1].isdigit() or first_row[:1] == b"-" else b"\n") * max(_ROOM_BYTES, len(header))
