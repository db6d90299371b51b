"""What a journal holds: records, the run header, and how both become one line of JSON.

A line is a JSON object whose last field is the CRC-32 of everything before it, so that pandas, DuckDB or grep read the
file as it stands while a flipped byte is still told from a value::

    {"time_ns":1763700000000000000,"kind":"metric","step":7,"data":{"loss":0.25},"crc":2774182811}

JSON has no NaN and no infinity: such a value is ``null`` in ``data`` and named in ``nonfinite`` (``{"loss":"nan"}``).
"""

import enum
import math
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import msgspec

FORMAT_VERSION = 1
"""Raised when a reader of an older version could no longer understand what is written."""

HEADER_START = b'{"lightning_loggers_journal":'
RECORD_START = b'{"time_ns":'

MAX_LINE_BYTES = 4 * 2**20
"""Longer lines are never written (a larger value goes to a blob); a reader skips them as damage, so that its memory
stays bounded on any file: a line of JSON may take twenty times its length once it is decoded."""


class Kind(enum.StrEnum):
    """What is logged."""

    METRIC = "metric"
    PARAM = "param"
    TEXT = "text"
    DICT = "dict"
    TABLE = "table"
    IMAGE = "image"
    FIGURE = "figure"
    AUDIO = "audio"
    VIDEO = "video"
    HISTOGRAM = "histogram"
    POINT_CLOUD = "point_cloud"
    ARTIFACT = "artifact"
    MODEL = "model"
    BEST_MODEL = "best_model"
    CHECKPOINT = "checkpoint"
    DATASET = "dataset"
    TORCH = "torch"
    GRAPH = "graph"
    WATCH = "watch"
    CONFIG = "config"
    SYSTEM = "system"
    FLOPS_PB = "flops_pb"
    FLOPS_PE = "flops_pe"
    EXECUTION_TIME = "execution_time"
    CARBON = "carbon"
    PROV_DOCUMENTS = "prov_documents"
    STATUS = "status"
    """The run's own state; ``value`` is a :class:`RunStatus`. Written by ``finalize``, not by a user."""


ONCE_A_RUN = frozenset(
    {
        Kind.PARAM, Kind.ARTIFACT, Kind.CHECKPOINT, Kind.MODEL, Kind.BEST_MODEL, Kind.DATASET, Kind.CONFIG, Kind.SYSTEM,
        Kind.STATUS, Kind.PROV_DOCUMENTS, Kind.GRAPH,
    }
)  # fmt: skip
"""Kinds that belong to the run: levels, rates and patterns of keys do not hold them back, and only rank 0's count."""


class RunStatus(enum.StrEnum):
    """How a run stands. ``PREEMPTED`` is left open at the tracker: the requeued job continues the run."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    PREEMPTED = "preempted"


class Blob(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file kept beside the journal, in ``blobs/<id>/<name>``.

    Attributes:
        id: Folder of the blob below ``blobs/``.
        name: File name inside it, as the tracker will show it.
        size_bytes: Size when it was logged.
        mtime_ns: Modification time when it was logged; a later one means that a hard-linked file was changed in place.
        path: Where it belongs inside the artifact if that is a folder, with ``/`` between parts.
    """

    id: str
    name: str
    size_bytes: int
    mtime_ns: int = 0
    path: str = ""


class Record(msgspec.Struct, omit_defaults=True):
    """One thing logged.

    Attributes:
        time_ns: Wall time of the log call, nanoseconds since the epoch. A replay sends the same time.
        kind: What it is.
        step: The step as the user gave it; ``None`` where none was given (0 is a step).
        data: ``metric`` and ``param``: key to value.
        nonfinite: Keys of ``data`` whose value JSON cannot say: ``"nan"``, ``"inf"`` or ``"-inf"``.
        id: Identifier of everything that is no metric or param.
        value: The value of ``text``, ``dict`` and ``status``.
        blobs: Files of the record.
        meta: Adapter-independent extras, such as a checkpoint's aliases and score.
        epoch: Epoch, where known.
        phase: Phase (``train``, ``validate``, ...), where known.
        rank: Rank that logged it, where it is not the journal's own.
    """

    time_ns: int
    kind: str
    step: int | float | None = None
    data: dict[str, Any] | None = None
    nonfinite: dict[str, str] | None = None
    id: str | None = None
    value: Any = None
    blobs: list[Blob] | None = None
    meta: dict[str, Any] | None = None
    epoch: int | None = None
    phase: str | None = None
    rank: int | None = None


class PlainMetrics(msgspec.Struct, gc=False, omit_defaults=True):
    """What the log path encodes: byte for byte the line of a :class:`Record` of kind ``metric``, at less cost.

    It has four fields instead of twelve, and the garbage collector does not look after it: it lives for one call.
    """

    time_ns: int
    kind: str
    step: int | float | None = None
    data: Mapping[str, Any] | None = None


class PlacedMetrics(msgspec.Struct, gc=False, omit_defaults=True):
    """As :class:`PlainMetrics`, where it is known where the training is."""

    time_ns: int
    kind: str
    step: int | float | None = None
    data: Mapping[str, Any] | None = None
    meta: dict[str, Any] | None = None
    epoch: int | None = None
    phase: str | None = None


Place = tuple[dict[str, Any] | None, int | None, str | None]
"""The last three of these: what else is known, the epoch, the phase."""


PER_RANK = "per_rank"
"""Instead of a function's name in :class:`RankRules`: one series per rank."""


class RankRules(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the records of several ranks become one run.

    Attributes:
        ranks: The ranks that log; empty where their number was not known when the first record was written.
        how: Key, or pattern of keys, to the name of the function that merges its values over the ranks, or
            :data:`PER_RANK`.
        default: The same for all other keys.
        wait_s: Longest wait for a late rank, seconds.
        attempt: Grows with every start of the job, the same on all ranks.
    """

    ranks: tuple[int, ...] = ()
    how: dict[str, str] = {}
    default: str = "mean"
    wait_s: float = 10.0
    attempt: int = 0


class RunSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which run a journal belongs to: all that is needed to deliver it from another machine, and no secret.

    Attributes:
        uid: Identifies the run everywhere, made when the journal was; trackers carry it as a tag.
        name: Experiment or project.
        version: The run's folder below ``name``.
        tracker: Name of the adapter that delivers it.
        options: The adapter's options, secrets removed.
        ranks: How several ranks' records are merged; ``None`` where rank 0 alone logs.
    """

    uid: str
    name: str
    version: str
    tracker: str
    options: dict[str, Any] = {}
    ranks: RankRules | None = None


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """First line of every segment, written again whenever a process resumes the run.

    Attributes:
        lightning_loggers_journal: Format version.
        run: The run.
        time_ns: When the line was written.
        rank: Global rank of the writer.
        environment: Host, process, versions and code state, for a person.
    """

    lightning_loggers_journal: int
    run: RunSpec
    time_ns: int
    rank: int = 0
    environment: dict[str, Any] = {}


class DamagedLineError(ValueError):
    """A line is no record: torn, flipped or foreign."""


_encode = msgspec.json.Encoder().encode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_header = msgspec.json.Decoder(Header).decode
_NONFINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def encode_line(record: Record | Header) -> bytes:
    r"""Encode one line, newline included.

    Lone surrogates (file names of unknown encoding) are written as escapes, since UTF-8 has none. What looks like the
    start of a line inside a value is spelt in another way that means the same, so that a reader that looks for whole
    records in the wreck of a line never takes a value for one.

    >>> line = encode_line(Record(time_ns=1, kind="metric", step=0, data={"loss": 0.5}))
    >>> line
    b'{"time_ns":1,"kind":"metric","step":0,"data":{"loss":0.5},"crc":999345931}\n'
    >>> decode_line(line.rstrip()).data
    {'loss': 0.5}
    >>> decode_line(encode_line(Record(0, "text", id="a", value="b" + chr(0xDC80))).rstrip()).value
    'b\\udc80'

    Raises:
        TypeError: If a value is none of JSON's types.
        OverflowError: If an integer has more than 64 bits.
        RecursionError: If a value is nested about a thousand deep.
    """
    body = encode_json(record)[:-1]
    for start in (RECORD_START, HEADER_START):
        if body.find(start, 1) > 0:
            body = body[:1] + body[1:].replace(start, b"{ " + start[1:])
    return b'%s,"crc":%d}\n' % (body, crc32(body))


def encode_json(value: Any) -> bytes:
    """Encode a value as JSON, lone surrogates as escapes.

    Raises:
        TypeError: As :func:`encode_line`, and so on.
    """
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return _encode(_without_surrogates(msgspec.to_builtins(value)))


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return [_without_surrogates(item) for item in value] if isinstance(value, list | tuple) else value


def split_nonfinite(data: dict[str, Any]) -> dict[str, str] | None:
    """Name the values of ``data`` that JSON cannot say, for :attr:`Record.nonfinite`.

    >>> split_nonfinite({"a": 1.0, "b": float("inf"), "c": float("nan")})
    {'b': 'inf', 'c': 'nan'}
    """
    named = {key: str(value) for key, value in data.items() if isinstance(value, float) and not math.isfinite(value)}
    return named or None


def decode_line(line: bytes) -> Record | Header:
    """Decode one line without its newline; blanks may stand before it.

    Raises:
        DamagedLineError: If the line is torn, was changed, or is no line of a journal.
    """
    if line.startswith(b" "):
        line = line.lstrip(b" ")
    body, found, checksum = line.rpartition(b',"crc":')
    if not found or not checksum.endswith(b"}") or not checksum[:-1].isdigit():
        raise DamagedLineError("no checksum at its end")
    if int(checksum[:-1][:11]) != crc32(body):
        raise DamagedLineError("checksum does not match")
    try:
        if line.startswith(HEADER_START):
            return _decode_header(line)
        record = _decode_record(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise DamagedLineError(f"not a record: {error}") from None
    if record.nonfinite and record.data is not None:
        for key, name in record.nonfinite.items():
            if name in _NONFINITE and key in record.data:
                record.data[key] = _NONFINITE[name]
    if record.kind == Kind.METRIC and record.data is not None and int in map(type, record.data.values()):
        _bound(record, record.data)
    return record


def _bound(record: Record, data: dict[str, Any]) -> None:
    """Mend what the log path lets through: it looks at a call's sum only, in which large integers may cancel out."""
    large = {key: bounded(value) for key, value in data.items() if type(value) is int and not -_LARGE <= value < _LARGE}
    if large:
        data.update(large)
        record.nonfinite = split_nonfinite(data)


_LARGE = 2**63


def bounded(value: int) -> int | float:
    """Integers beyond 64 bits as floats: no tracker and few JSON readers take them."""
    if -_LARGE <= value < _LARGE:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


_TERMINAL = frozenset({RunStatus.FINISHED, RunStatus.FAILED, RunStatus.INTERRUPTED})


def is_terminal(status: str | None) -> bool:
    """Whether a run with this status has ended at the tracker (``preempted`` has not: it will be continued)."""
    return status in _TERMINAL
