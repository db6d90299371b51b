"""What becomes of each kind: a user's value becomes a record with its files.

The training thread checks a value and copies it; a plain array it only copies. The rest is done in the background
(:mod:`lightning_loggers.loggers.encoding`).
"""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from typing_extensions import override

from lightning_loggers.errors import ConfigurationError, UnsuitableValueError
from lightning_loggers.journal.writer import JournalWriter
from lightning_loggers.loggers import encoding
from lightning_loggers.loggers.gate import placed_at
from lightning_loggers.loggers.losses import not_kept, not_logged
from lightning_loggers.records import Blob, Kind, Record
from lightning_loggers.values import (
    arrays,
    audio,
    datasets,
    figures,
    histograms,
    images,
    models,
    point_clouds,
    tables,
    video,
)
from lightning_loggers.values.buffers import BUFFERS
from lightning_loggers.values.device import snapshot_of
from lightning_loggers.values.metrics import safe_str
from lightning_loggers.values.params import nested
from lightning_loggers.values.plain import plain_json
from lightning_loggers.values.snapshots import Encoded, Later, Ready, Snapshot, as_path, unsuitable

if TYPE_CHECKING:
    from lightning_loggers.loggers.journaled import JournaledLogger

RESERVED = frozenset({Kind.SYSTEM, Kind.FLOPS_PB, Kind.FLOPS_PE, Kind.EXECUTION_TIME, Kind.CARBON, Kind.PROV_DOCUMENTS})
"""Kinds whose names are taken and whose records come with another release."""

_NOTHING: Mapping[str, Any] = {}
_UNCHANGING = frozenset({str, int, float, bool, NoneType})
_last_ns = 0
_time_ns = time.time_ns


class Call(msgspec.Struct, gc=False):
    """One log call, once it is clear that it is recorded."""

    kind: Kind
    identifier: str
    value: Any
    step: Any
    strict: bool
    kwargs: Mapping[str, Any]


def stamped(logger: "JournaledLogger", kind: Kind, id: str | None = None, step: Any = None, **fields: Any) -> Record:  # noqa: A002
    """A record of this moment, told where the training is; no two have the same time."""
    global _last_ns  # noqa: PLW0603 - of the process, as time is
    now = time.time_ns()
    now += now == _last_ns
    _last_ns = now
    if logger._gate is not None:
        fields = logger._gate.placed(kind, fields)
    return Record(now, kind._value_, step, id=id, **fields)


def emit(logger: "JournaledLogger", writer: JournalWriter, record: Record, snapshot: Snapshot) -> None:
    """Have a record in the journal: at once if there is nothing to encode, else when that is done.

    Raises:
        OSError: If a file of the user cannot be kept, or the disk refuses.
    """
    if isinstance(snapshot, Ready):
        blobs = [linked(writer, path) for path in snapshot.paths]
        blobs += encoding.store(writer, snapshot.encoded)
        record = encoding.completed(record, snapshot.encoded, blobs)
        encoding.add_ready(encoding.job_of(logger, writer, record, snapshot))
    else:
        encoding.submit(encoding.job_of(logger, writer, record, snapshot))


def linked(writer: JournalWriter, path: Path) -> Blob:
    """Keep a user's file.

    Raises:
        UnreadableFileError: If it cannot be read.
        DiskRefusedError: If it cannot be written beside the journal.
    """
    try:
        return writer.blobs.link_file(path)
    except OSError as error:
        raise not_kept(f"{path} could not be kept ({error}).", error, writer.folder) from error


def _from_snapshot(
    take: Callable[..., Snapshot], *, names_kind: bool = False, may_arrive: bool = False
) -> Callable[..., None]:
    """The handler of a family of values.

    Args:
        take: Takes the snapshot.
        names_kind: Whether it is told the kind.
        may_arrive: Whether it looks at no element of a tensor, so that those may be on their way from a device.
    """
    taken = _arguments_of(take)

    def handle(logger: "JournaledLogger", writer: JournalWriter, call: Call) -> None:
        known = call.kwargs
        if known:
            known = _known_arguments(logger, call.kind, call.identifier, known, taken, strict=call.strict)
        defaults = logger._media_defaults.get(call.kind)
        if defaults:
            known = {**defaults, **known}
        if names_kind:
            known = {**known, "kind": call.kind.value}
        record = stamped(logger, call.kind, id=call.identifier, step=call.step)
        if may_arrive:
            emit(logger, writer, record, snapshot_of(take, call.value, call.identifier, **known))
        else:
            emit(logger, writer, record, take(call.value, call.identifier, **known))

    return handle


class ArrayJob(encoding.Job):
    """A copy of an array that nobody has looked at: its record, too, is made where it is encoded.

    Of the call it has time, step, where the training was, and further arguments; of the copy what
    :func:`arrays.own_array` is given.
    """

    @override
    def opened(self) -> tuple[Record, Snapshot]:
        now, step, where, known = self.call
        copied, self.copied = self.copied, ()
        kind, name = Kind(self.kind), str(self.name)
        fields = {} if where is None else placed_at(where, kind, {})
        later = Later(OF_ARRAYS[kind], name, known, arrays.own_array, copied, self.size_bytes)
        return Record(now, kind.value, step, id=name, **fields), later


def log_array(
    logger: "JournaledLogger",
    kind: Kind,
    name: str,
    value: Any,
    *,
    step: Any,
    batch_idx: int | None,
    given: Mapping[str, Any],
) -> None:
    """Log an array or tensor of a kind in :data:`OF_ARRAYS`: copy it; whether it suits is seen where it is encoded.

    What is not copied so is checked in the call: a tensor may be on a device or of a type that numpy has not, an array
    may hold no numbers, and what is given besides may be something that can change.

    All of it is one function, since after a training step each further one takes as long as copying 50 KB.
    """
    try:
        gate = logger._gate
        if gate is not None and gate.policy is not None and gate.refuses(kind, name, step, batch_idx):
            return
        writer = logger._open_writer or logger._start()
        if writer is None:
            return
        of, array = type(value), None
        if not given or _UNCHANGING.issuperset(map(type, given.values())):
            array = value if of is np.ndarray else arrays.memory_of(value)
        if array is None:
            HANDLERS[kind](logger, writer, Call(kind, name, value, step, False, given))
            return
        known = logger._media_defaults.get(kind, _NOTHING)
        if given:
            taken = _TAKEN_OF_ARRAYS[kind]
            known = {**known, **_known_arguments(logger, kind, name, given, taken, strict=False)}
        call = _time_ns(), step, None if gate is None else gate.now(), known
        size_bytes, memory = array.nbytes, None
        try:
            memory = BUFFERS.ready_for[size_bytes].pop()
            memory[0][:size_bytes] = array.data.cast("B")  # which takes nothing but numbers that are C-contiguous
        except (LookupError, TypeError, ValueError, NotImplementedError):
            if memory is not None:
                BUFFERS.give_back(memory)
            if array.dtype.kind in "biuf":
                made_of: tuple[Any, ...] = arrays.copied(array), array.shape, array.dtype, array.strides, of
                encoding.submit(ArrayJob(logger, writer, kind, name, size_bytes, call, made_of))
            else:
                HANDLERS[kind](logger, writer, Call(kind, name, value, step, False, given))
        else:
            made_of = memory, array.shape, array.dtype, None, of
            encoding.submit(ArrayJob(logger, writer, kind, name, size_bytes, call, made_of))
    except Exception as error:  # noqa: BLE001 - seam: nothing raises into training
        not_logged(logger, kind, name, error)


def _arguments_of(take: Callable[..., Snapshot]) -> frozenset[str]:
    return frozenset(inspect.signature(take).parameters) - {"value", "identifier", "kind"}


def _known_arguments(
    logger: "JournaledLogger",
    kind: Kind,
    identifier: str,
    given: Mapping[str, Any],
    taken: frozenset[str],
    *,
    strict: bool,
) -> dict[str, Any]:
    """The arguments that the kind takes; a value is not dropped because of another one."""
    for key in given.keys() - taken:
        message = f"log({identifier!r}, kind={kind.value!r}) takes no {key!r}; it takes {sorted(taken)}."
        if strict:
            raise ConfigurationError(message)
        logger._notices.tell_once(("argument", kind, key), f"{message} The value is logged without it.")
    return {key: value for key, value in given.items() if key in taken}


def _param(logger: "JournaledLogger", writer: JournalWriter, call: Call) -> None:
    logger.log_hyperparams({call.identifier: call.value})


def _inline(make: Callable[[Any], Any]) -> Callable[..., None]:
    def handle(logger: "JournaledLogger", writer: JournalWriter, call: Call) -> None:
        record = stamped(logger, call.kind, id=call.identifier, step=call.step, value=make(call.value))
        emit(logger, writer, record, Ready())

    return handle


def _config(value: Any) -> Any:
    made = nested(value)
    if not isinstance(made, dict):
        raise UnsuitableValueError(
            f"A configuration must be a mapping, Namespace or dataclass instance, not a {type(value).__name__}."
        )
    return made


def _artifact(logger: "JournaledLogger", writer: JournalWriter, call: Call) -> None:
    source = as_path(call.value)
    if source is None:
        accepted = "the path of a file or folder; for an object in memory use its own kind"
        raise unsuitable("artifact", call.identifier, f"a {type(call.value).__name__}", accepted)
    blobs = _kept(writer, source, "log_artifact")
    place = call.identifier
    if source.is_dir():
        place = "/".join(part for part in (place, source.resolve().name) if part)
    emit(logger, writer, stamped(logger, Kind.ARTIFACT, id=place, step=call.step, blobs=blobs), Ready())


def _checkpoint(logger: "JournaledLogger", writer: JournalWriter, call: Call) -> None:
    source = as_path(call.value)
    if source is None:
        accepted = "the path of a checkpoint; for a model in memory use kind='model'"
        raise unsuitable("checkpoint", call.identifier, f"a {type(call.value).__name__}", accepted)
    blobs = _kept(writer, source, "log_checkpoint")
    aliases = [str(alias) for alias in call.kwargs.get("aliases") or ["latest"]]
    metadata = {"original_filename": source.name, **plain_json(call.kwargs.get("metadata") or {})}
    record = stamped(
        logger,
        Kind.CHECKPOINT,
        id=call.identifier,
        step=call.step,
        blobs=blobs,
        meta={"aliases": aliases, "metadata": metadata},
    )
    emit(logger, writer, record, Ready())


def _kept(writer: JournalWriter, source: Path, call: str) -> Sequence[Blob]:
    if not source.exists():
        raise FileNotFoundError(f"{call}: there is no {source}; nothing was kept.")
    try:
        return keep(writer, source)
    except OSError as error:
        message = f"{call}: {source} could not be kept ({error}); nothing of it was."
        raise not_kept(message, error, writer.folder) from error


def keep(writer: JournalWriter, source: Path) -> list[Blob]:
    """Keep a file, or every file of a folder, beside the journal.

    Raises:
        OSError: If it cannot be read.
    """
    return list(writer.blobs.link_tree(source)) if source.is_dir() else [writer.blobs.link_file(source)]


def _model(logger: "JournaledLogger", writer: JournalWriter, call: Call) -> None:
    if call.kwargs.get("pickle") and as_path(call.value) is None and call.kind is not Kind.TORCH:
        blobs = logger._keep_pickled_model(writer, call.value)
        if blobs:  # the tracker's own form for it
            emit(
                logger, writer, stamped(logger, Kind.ARTIFACT, id=call.identifier, step=call.step, blobs=blobs), Ready()
            )
            return
    _STATE(logger, writer, call)


def _graph(logger: "JournaledLogger", writer: JournalWriter, call: Call) -> None:
    if not hasattr(call.value, "named_modules"):
        seen = f"a {type(call.value).__module__}.{type(call.value).__qualname__}"
        raise unsuitable("graph", call.identifier, seen, "a torch module")
    if call.kwargs.get("input_array") is not None and logger._trace_graph(call.value, call.kwargs["input_array"]):
        return
    record = stamped(logger, Kind.GRAPH, id=call.identifier, step=call.step)
    emit(logger, writer, record, Ready(Encoded(value=models.describe_graph(call.value))))


def _watch(logger: "JournaledLogger", writer: JournalWriter, call: Call) -> None:
    if not hasattr(call.value, "named_parameters"):
        raise unsuitable("watch", call.identifier, f"a {type(call.value).__name__}", "a torch module")
    known = {key: value for key, value in call.kwargs.items() if key in {"log", "log_freq", "log_graph"}}
    logger.watch(call.value, **known)


def _reserved(logger: "JournaledLogger", writer: JournalWriter, call: Call) -> None:
    message = f"kind={call.kind.value!r} comes with another release; {call.identifier!r} is not logged."
    raise UnsuitableValueError(message)


OF_ARRAYS: Mapping[Kind, Callable[..., Snapshot]] = {
    Kind.IMAGE: images.snapshot,
    Kind.AUDIO: audio.snapshot,
    Kind.VIDEO: video.snapshot,
    Kind.HISTOGRAM: histograms.snapshot,
    Kind.POINT_CLOUD: point_clouds.snapshot,
}
"""What takes a value of the kinds that are one array, looking at no element of a tensor before it is copied."""

_TAKEN_OF_ARRAYS = {kind: _arguments_of(take) for kind, take in OF_ARRAYS.items()}
_STATE = _from_snapshot(models.snapshot, names_kind=True)
HANDLERS: Mapping[Kind, Callable[["JournaledLogger", JournalWriter, Call], None]] = {
    Kind.PARAM: _param,
    Kind.TEXT: _inline(safe_str),
    Kind.DICT: _inline(plain_json),
    Kind.TABLE: _from_snapshot(tables.snapshot),
    Kind.FIGURE: _from_snapshot(figures.snapshot),
    **{kind: _from_snapshot(take, may_arrive=True) for kind, take in OF_ARRAYS.items()},
    Kind.ARTIFACT: _artifact,
    Kind.MODEL: _model,
    Kind.BEST_MODEL: _model,
    Kind.CHECKPOINT: _checkpoint,
    Kind.DATASET: _from_snapshot(datasets.snapshot),
    Kind.TORCH: _STATE,
    Kind.GRAPH: _graph,
    Kind.WATCH: _watch,
    Kind.CONFIG: _inline(_config),
    **dict.fromkeys(RESERVED, _reserved),
}
