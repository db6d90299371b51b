"""Console: readable lines, or a live table, on a terminal.

Lines look like this, one a log call, in local time::

    09:30:00  epoch 2  step 120  loss=0.25  val/acc=0.91
    09:30:07  params
              | lr = 0.001
    09:30:08  step 120  text sample
              | the first line
              | the second line
"""

import contextlib
import errno
import io
import json
import math
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, ClassVar, TextIO, cast

from typing_extensions import override

from lightning_loggers.adapters.base import Adapter, Capabilities, Context, Fault, FaultKind, unknown_option
from lightning_loggers.records import Kind, Record, RunStatus
from lightning_loggers.values.metrics import as_number

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

STYLES = ("auto", "lines", "table")
STREAMS = ("stdout", "stderr")

MAX_SHOWN_CHARS = 2_000
"""Of a text, dictionary or hyperparameter; the journal has it whole."""

_LINE_CHARS = 160
_STUCK_AFTER_S = 5.0
_PIECE_BYTES = 256  # what a terminal that says it is ready takes without waiting
_INDENT = " " * 10 + "| "


class ConsoleAdapter(Adapter):
    """Writes what was logged to standard output or standard error.

    Options: ``style`` (``"auto"``: lines on a terminal or in a notebook, nothing in a pipe or file; ``"lines"``: lines
    wherever it leads; ``"table"``: one row a metric, kept up to date, and lines for the rest, on a terminal only) and
    ``stream``.

    Guarantees:
        - Whatever a key or text holds, it cannot steer the terminal: control characters are shown as escapes.
        - Output that nobody reads any more ends in silence, not in an error.
        - A terminal that was stopped (Ctrl+S) or a full disk holds up no training; it goes on where it stopped.
    """

    name = "console"
    max_key_length = 80
    capabilities: ClassVar[Capabilities] = Capabilities(
        kinds={
            Kind.METRIC: "key=value with six digits, one line a log call",
            Kind.PARAM: f"name = value, up to {MAX_SHOWN_CHARS:,} characters",
            Kind.TEXT: f"up to {MAX_SHOWN_CHARS:,} characters",
            Kind.DICT: f"JSON, up to {MAX_SHOWN_CHARS:,} characters",
            **{
                kind: "one line: its identifier, names and sizes of its files, or a summary"
                for kind in Kind
                if kind not in {Kind.METRIC, Kind.PARAM, Kind.TEXT, Kind.DICT, Kind.STATUS}
            },
        },
        keeps_time=True,
        second_handle=False,
        integer_steps=False,
    )

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._shown = False
        self._board: _Board | None = None

    @classmethod
    @override
    def check_options(cls, options: Mapping[str, Any]) -> None:
        for name, valid in (("style", STYLES), ("stream", STREAMS)):
            if options.get(name, valid[0]) not in valid:
                raise unknown_option(name, options[name], valid)

    @staticmethod
    @override
    def fit_key(key: str) -> str:
        r"""One line of printable characters, without spaces at the ends or in a row.

        >>> [ConsoleAdapter.fit_key(key) for key in ("val/loss", "a \x1b[2J\n b", "")]
        ['val/loss', 'a �[2J b', '_']
        """
        return " ".join("".join(c if c.isprintable() or c.isspace() else "�" for c in key).split()) or "_"

    @override
    def open(self) -> None:
        options, remote = self.context.options, self.context.remote
        style, stream = options.get("style", "auto"), self._stream()
        self._shown = stream is not None and (style == "lines" or _is_watched(stream))
        if stream is not None and style == "table" and _is_terminal(stream) and self._board is None:
            self._board = _Board(stream, f"{self.context.run.name}/{self.context.run.version}")
        remote.id = self.context.run.uid

    @override
    def send(self, records: Sequence[Record]) -> None:
        if not self._shown:
            return
        lines: list[str] = []
        metrics: list[tuple[Record, list[tuple[str, int | float]]]] = []
        for record in records:
            if record.kind == Kind.METRIC and self._board is not None:
                metrics.append((record, self._metrics(record)))
            else:
                lines.extend(self._lines(record))
        if self._board is not None:
            for record, numbers in metrics:  # only now that nothing of the batch can be refused
                self._board.add(record, numbers)
        self._write(lines)

    @override
    def set_status(self, status: RunStatus) -> None:
        run = self.context.run
        if status is RunStatus.RUNNING or not self._shown:
            return
        if self._board is not None:
            self._board.end()
        line = f"{_clock(time.time_ns())}  run {_line(run.name)}/{_line(run.version)} {status}"
        self._write([line], table=False)

    def _stream(self) -> TextIO | None:
        """As it is now: progress bars put a stream of their own in its place for a while."""
        stream: TextIO | None = getattr(sys, self.context.options.get("stream", "stdout"))
        return stream

    # ------------------------------------------------------------------ lines

    def _lines(self, record: Record) -> Iterator[str]:
        where = [f"epoch {record.epoch}"] if record.epoch is not None else []
        where += [f"step {record.step}"] if record.step is not None else []
        head = "  ".join([_clock(record.time_ns), *where])
        if record.kind == Kind.METRIC:
            line = head
            for name, value in self._metrics(record):
                item = f"  {name}={_number(value)}"
                if len(line) + len(item) > _LINE_CHARS and line != head:
                    yield line
                    line = head
                line += item
            if line != head:
                yield line
        elif record.kind == Kind.PARAM:
            yield f"{head}  params"
            for key, value in (record.data or {}).items():
                yield f"{_INDENT}{self.context.keys.fit(key)} = {_line(self._cut(str(value)))}"
        elif record.kind in {Kind.TEXT, Kind.DICT}:
            yield f"{head}  {record.kind} {_line(record.id or '')}".rstrip()
            for line in self._cut(self._text(record)).splitlines():
                yield f"{_INDENT}{_line(line)}"
        else:
            what = f"{head}  {_line(record.kind)} {_line(record.id or '')}".rstrip()
            yield f"{what}{self._files(record) or self._summary(record)}"

    def _metrics(self, record: Record) -> list[tuple[str, int | float]]:
        numbers = ((key, as_number(value)) for key, value in (record.data or {}).items())
        return [(self.context.keys.fit(key), number) for key, number in numbers if number is not None]

    def _text(self, record: Record) -> str:
        value = record.value
        if value is None and record.blobs:
            value = json.loads(self.context.blobs.locate(record.blobs[0]).read_bytes())
        return str(value) if record.kind == Kind.TEXT else json.dumps(value, ensure_ascii=False)

    def _cut(self, text: str) -> str:
        if len(text) <= MAX_SHOWN_CHARS:
            return text
        return f"{text[:MAX_SHOWN_CHARS]} … [{len(text):,} characters, whole in the journal]"

    @staticmethod
    def _files(record: Record) -> str:
        shown = ", ".join(f"{_line(blob.path or blob.name)} ({blob.size_bytes:,} B)" for blob in record.blobs or [])
        return f": {shown}" if shown else ""

    @staticmethod
    def _summary(record: Record) -> str:
        """A line about a value that has no files."""
        if record.value is None:
            return ""
        if record.kind in {Kind.HISTOGRAM, Kind.WATCH} and isinstance(record.value, Mapping):
            made = [
                f"{sum(item['counts']):,.0f} values from {_number(item['bins'][0])} to {_number(item['bins'][-1])}"
                for item in record.value.values()
                if isinstance(item, Mapping) and item.get("counts") and item.get("bins")
            ]
            return f": {', '.join(made)}" if made else ""
        text = _line(json.dumps(record.value, ensure_ascii=False))
        return f": {text if len(text) <= _LINE_CHARS else text[:_LINE_CHARS] + ' …'}"

    def _write(self, lines: Sequence[str], *, table: bool = True) -> None:
        stream = self._stream()
        board = self._board if table else None
        if stream is None or not (lines or board is not None):
            return
        try:
            if board is not None:
                board.show(_encodable("\n".join(lines), stream))
            else:
                _write_text(stream, _encodable("".join(f"{line}\n" for line in lines), stream))
        except (OSError, ValueError) as error:
            gone = isinstance(error, OSError) and error.errno in {errno.EPIPE, errno.EBADF, errno.EIO}
            if not gone and not getattr(stream, "closed", False):
                raise
            self._shown, self._board = False, None
            self.context.notices.tell_once(
                ("console", "closed"),
                f"Nobody reads {self.context.options.get('stream', 'stdout')} any more ({error}): the console shows no "
                "more of this run. Everything is in its journal.",
            )

    # ------------------------------------------------------------------ the rest

    @override
    def classify(self, error: Exception) -> Fault:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, FileNotFoundError | ValueError):
            return Fault(FaultKind.REJECTED, reason)
        return Fault(FaultKind.TRANSIENT if isinstance(error, OSError) else FaultKind.BUG, reason)

    @override
    def close(self) -> None:
        if self._board is not None:
            self._board.end()
        self._shown, self._board = False, None


class _Board:
    """A table of metrics that stays at the bottom of a terminal; lines go above it."""

    def __init__(self, stream: TextIO, title: str) -> None:
        from rich.console import Console

        self._console = Console(file=cast("IO[str]", _direct(stream)), force_terminal=True, highlight=False)
        self._title = _line(title)
        self._rows: dict[str, tuple[Any, Any, float, float, int]] = {}
        self._live: Live | None = None

    def add(self, record: Record, metrics: Sequence[tuple[str, int | float]]) -> None:
        for name, value in metrics:
            _, _, low, high, count = self._rows.get(name, (None, None, math.inf, -math.inf, 0))
            if not math.isnan(value):
                low, high = min(low, value), max(high, value)
            self._rows[name] = (value, record.step, low, high, count + 1)

    def show(self, above: str) -> None:
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            # Its thread, its hidden cursor and its hold on sys.stdout would outlive a killed run or get in its way.
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
            self._console.show_cursor(True)
        if above:
            self._console.print(Text(above), soft_wrap=True)
        self._live.update(self._table(), refresh=True)

    def end(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            with contextlib.suppress(OSError, ValueError):
                live.stop()

    def _table(self) -> "Table":
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self._title))
        for column in ("metric", "last", "step", "min", "max", "values"):
            table.add_column(column, justify="left" if column == "metric" else "right")
        for name, (value, step, low, high, count) in self._rows.items():
            extremes = (_number(low), _number(high)) if low <= high else ("", "")  # all were NaN
            table.add_row(Text(name), _number(value), "" if step is None else str(step), *extremes, str(count))
        return table


def _number(value: int | float) -> str:
    """Six digits for people; integers whole.

    >>> _number(1 / 3), _number(12_345_678), _number(float("-inf"))
    ('0.333333', '12345678', '-inf')
    """
    return f"{value:.6g}" if isinstance(value, float) else str(int(value))


def _clock(time_ns: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(min(max(time_ns // 1_000_000_000, 0), 2**40)))


def _line(text: str) -> str:
    r"""Text that stays on its line and cannot steer a terminal.

    >>> _line("a\x1b[2J\tb\nü")
    'a\\x1b[2J\\tb\\nü'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, errors="backslashreplace").decode(encoding)


def _write_text(stream: TextIO, text: str) -> None:
    tqdm: Any = getattr(sys.modules.get("tqdm"), "tqdm", None)
    if getattr(tqdm, "_instances", None):  # its progress bars, the Trainer's by default, are moved out of the way
        tqdm.write(text, file=stream, end="")
        return
    out = _direct(stream)
    out.write(text)
    out.flush()


def _direct(stream: TextIO) -> "TextIO | _Direct":
    """The way to a terminal, pipe or file past the stream's buffer; what is no such thing is written to as it is."""
    if type(stream) is io.TextIOWrapper:
        with contextlib.suppress(OSError, ValueError):
            return _Direct(stream)
    return stream


class _Direct(io.TextIOBase):
    """Writes to a stream's descriptor, a little at a time and only when it takes something.

    The buffer of ``sys.stdout`` has a lock. A thread that a stopped terminal holds up must not hold it: the training
    thread may want to print, and an interpreter that cannot get it when it exits aborts.
    """

    def __init__(self, stream: TextIO) -> None:
        self._descriptor = stream.fileno()
        self._text: list[str] = []
        self._encoding = stream.encoding
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLOUT)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    @override
    def fileno(self) -> int:
        return self._descriptor

    @override
    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    @override
    def write(self, text: str) -> int:
        self._text.append(text)
        return len(text)

    @override
    def flush(self) -> None:
        """Write.

        Raises:
            TimeoutError: If nothing was taken for five seconds.
            OSError: If nothing ever will be.
        """
        data = memoryview("".join(self._text).encode(self._encoding, errors="backslashreplace"))
        self._text.clear()
        while data:
            if not self._poll.poll(_STUCK_AFTER_S * 1000):
                raise TimeoutError(f"the terminal took nothing for {_STUCK_AFTER_S:g} s")
            data = data[os.write(self._descriptor, data[:_PIECE_BYTES]) :]


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM", "") != "dumb"
    except (ValueError, AttributeError):
        return False


def _is_watched(stream: TextIO) -> bool:
    return _is_terminal(stream) or type(stream).__module__.startswith("ipykernel.")
