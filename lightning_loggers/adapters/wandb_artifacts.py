"""Artifacts of one W&B run: handed to the SDK once, and waited for."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from lightning_loggers.adapters.base import Context
from lightning_loggers.adapters.standard_files import StandardFiles, inline_value
from lightning_loggers.adapters.wandb_file import RunFile
from lightning_loggers.adapters.wandb_sdk import LockedOutError, RefusedError, UnreachableError, locked_out
from lightning_loggers.records import Kind, Record

UPLOAD_PATIENCE_S = 60.0
_DATASET_FACTS = ("name", "digest", "source", "context", "profile")

_Key = tuple[int, str]


class Artifacts:
    """The artifacts of a session of a run.

    Args:
        context: The run's.
        run: The SDK's run.
        file: What the SDK writes, if it is offline.
    """

    def __init__(self, context: Context, run: Any, file: RunFile | None) -> None:
        self._context = context
        self._run = run
        self._file = file
        self._handed: dict[_Key, Any] = {}
        self.files = StandardFiles(context)
        """Names the files of kinds that W&B has no form of its own for."""
        self.due = 0
        """How many the SDK's file is to hold."""

    def hand(self, record: Record) -> None:
        """Hand the files of an artifact or checkpoint to the SDK, if it has not got them."""
        import wandb

        if _key(record) in self._handed:
            return
        options, blobs, meta = self._context.options, record.blobs or [], record.meta or {}
        model = record.kind == Kind.CHECKPOINT
        if model:
            name = artifact_name(options.get("checkpoint_name") or f"model-{self._run.id}")
        else:
            name = artifact_name(f"run-{self._run.id}-{record.id or blobs[0].name}")
        artifact = wandb.Artifact(name, type="model" if model else "file", metadata=meta.get("metadata") or None)
        for blob in blobs:
            path = self._context.blobs.locate(blob)
            if self._context.blobs.changed(blob):
                self._context.notices.tell_once(
                    ("changed", blob.name),
                    f"{blob.name} was written to again after it was logged; it is delivered as it is now. Save to a "
                    "new file, or log it when it is final.",
                )
            place = blob.path or blob.name
            if model:
                place = f"model.ckpt/{blob.path}" if blob.path else "model.ckpt"
            artifact.add_file(str(path), name=place, policy=options.get("add_file_policy") or "mutable")
        self._log(_key(record), artifact, meta.get("aliases") or None)

    def hand_standard(self, record: Record) -> str:
        """Hand the standard files of a record to the SDK as an artifact, which is waited for with the record.

        Returns:
            The artifact's name: the same for all records of that kind and identifier, whose versions they are.
        """
        import wandb

        files = self.files.of(record)
        name = artifact_name(f"run-{self._run.id}-media-{record.kind}-{record.id or record.kind}")
        if _key(record) in self._handed:
            return name
        best = record.kind == Kind.BEST_MODEL
        artifact = wandb.Artifact(name, type=str(Kind.MODEL if best else record.kind), metadata=self._facts(record))
        for file in files:
            if file.source is not None:
                artifact.add_file(str(file.source), name=file.place)
            else:
                with artifact.new_file(file.place, mode="wb") as content:
                    content.write(file.content)
        self._log(_key(record), artifact, ["latest", "best"] if best else None)
        return name

    def _facts(self, record: Record) -> dict[str, Any]:
        """What is shown of an artifact besides its files."""
        facts: dict[str, Any] = {"identifier": record.id, "step": record.step}
        if record.kind == Kind.DATASET:
            described = dict(inline_value(record, self._context) or {})
            facts |= {name: described[name] for name in _DATASET_FACTS if described.get(name) is not None}
        return facts

    def keep_text(self, label: str, text: str, suffix: str) -> str:
        """Keep a text whole, and wait until W&B has it.

        Returns:
            The artifact's name.
        """
        key = (0, label)
        if key not in self._handed:
            self._log(key, self._of_text(label, text, suffix), None)
        artifact = self._handed[key]
        self._wait(artifact)
        del self._handed[key]
        return str(artifact.name)

    def wait(self, records: Sequence[Record]) -> None:
        """Wait until W&B has what was handed to the SDK for these records.

        Raises:
            UnreachableError: If that takes more than a minute.
            RefusedError: If W&B does not take it.
            LockedOutError: If it does not take it from this user.
        """
        for record in records:
            if _key(record) in self._handed:
                self._wait(self._handed[_key(record)])

    def forget(self, records: Sequence[Record]) -> None:
        """These records are delivered."""
        for record in records:
            self._handed.pop(_key(record), None)

    def _of_text(self, label: str, text: str, suffix: str) -> Any:
        artifact = self._new(label, "text")
        with artifact.new_file(f"value.{suffix}", encoding="utf-8") as file:
            file.write(text)
        return artifact

    def _new(self, label: str, kind: str) -> Any:
        import wandb

        return wandb.Artifact(artifact_name(f"run-{self._run.id}-{label}"), type=kind)

    def _log(self, key: _Key, artifact: Any, aliases: list[str] | None) -> None:
        self._handed[key] = self._run.log_artifact(artifact, aliases=aliases)
        if self._file is not None:
            self.due = max(self.due, self._file.artifacts) + 1

    def _wait(self, artifact: Any) -> None:
        if self._file is not None:
            return  # waited for with the file that it is noted in
        from wandb.errors import Error

        try:
            artifact.wait(timeout=UPLOAD_PATIENCE_S)
        except ValueError as error:
            if type(error).__name__ == "ValidationError":
                return  # of what the SDK asks afterwards, for its own use: the artifact is there
            kind = LockedOutError if locked_out(str(error)) else RefusedError
            raise kind(f"the artifact {artifact.name}: {error}") from error
        except Error as error:
            raise UnreachableError(f"the artifact {artifact.name} is still being sent") from error


def artifact_name(name: str) -> str:
    """A name that W&B takes for an artifact; two different ones stay different.

    >>> artifact_name("run-ab12-model.ckpt"), artifact_name("run-ab12-plots/a b.png")
    ('run-ab12-model.ckpt', 'run-ab12-plots-a-b.png-f5ab14d4')
    """
    fitted = re.sub(r"[^A-Za-z0-9_.\-]", "-", name)
    if fitted == name and len(name) <= 128:
        return name
    return f"{fitted[:119]}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def _key(record: Record) -> _Key:
    return record.time_ns, str(record.id)
