"""What the adapters have in common whose tracker is the run's own folder."""

import contextlib
import errno
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_loggers.adapters.base import Adapter, Context, Fault, FaultKind
from lightning_loggers.adapters.image_details import details_files
from lightning_loggers.adapters.standard_files import StandardFile, StandardFiles, inline_value
from lightning_loggers.journal.blobs import UnsafeBlobError, safe_name, safe_path
from lightning_loggers.journal.layout import run_folder
from lightning_loggers.notices import Notices
from lightning_loggers.records import Blob, Kind, Record

_NEVER_FITS = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTEMPTY}


class FolderAdapter(Adapter):
    """Base of the adapters whose tracker is the run's own folder.

    Guarantees:
        - Nothing is written outside the folder, whatever a journal says, and no symbolic link below it is followed.
        - A file that was there before is never deleted or overwritten: it is taken up, or renamed and told of.
        - Every file is there as a whole or not at all; sending a record again writes the same file again.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.folder = run_folder(context.run_dir, self.name)
        self.files = StandardFiles(context)

    @override
    def open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        remote = self.context.remote
        remote.id, remote.opening = self.context.run.uid, False

    @override
    def classify(self, error: Exception) -> Fault:
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, _MissingFileError | ValueError):
            return Fault(FaultKind.REJECTED, text)
        if isinstance(error, OSError):
            if error.errno == errno.ELOOP:
                reason = f"{error.filename} is a symbolic link, which is not written through: replace it by a file"
                return Fault(FaultKind.AUTHENTICATION, reason)
            return Fault(FaultKind.REJECTED if error.errno in _NEVER_FITS else FaultKind.TRANSIENT, text)
        return Fault(FaultKind.BUG, text)

    # ------------------------------------------------------------------ files

    def place(self, path: str) -> Path:
        """A path in the folder, its parents made.

        Args:
            path: Relative, of safe parts (:func:`~lightning_loggers.journal.blobs.safe_path`).

        Raises:
            UnsafeBlobError: If it lies behind a symbolic link.
            OSError: If a parent cannot be made.
        """
        *parents, name = path.split("/")
        folder = self.folder
        for parent in parents:
            folder /= parent
            if folder.is_symlink():
                raise UnsafeBlobError(f"{folder} is a symbolic link; nothing is written behind it")
            folder.mkdir(exist_ok=True)
        return folder / name

    def located(self, record: Record) -> Iterator[tuple[Path, str]]:
        """The files of a record and their places inside it.

        Raises:
            Exception: What :meth:`classify` knows as a file that will never come.
        """
        for blob in record.blobs or []:
            try:
                source = self.context.blobs.locate(blob)
            except FileNotFoundError as error:
                raise _MissingFileError(str(error)) from None
            self._tell_if_changed(blob)
            folder = safe_path(blob.path).rpartition("/")[0]
            yield source, f"{folder}/{blob.name}" if folder else blob.name

    def _tell_if_changed(self, blob: Blob | None) -> None:
        if blob is not None and self.context.blobs.changed(blob):
            self.context.notices.tell_once(
                ("changed", blob.name),
                f"{blob.name} was written to again after it was logged; it is kept as it is now. Save to a new "
                "file, or log it when it is final.",
            )

    def send_artifact(self, record: Record) -> None:
        """Keep a record's files below ``artifacts/``, by hard links where that is possible."""
        top = "/".join(part for part in ("artifacts", safe_path(record.id or "")) if part)
        for source, name in self.located(record):
            self._link(source, self.place(f"{top}/{name}"))

    def send_checkpoint(self, record: Record) -> None:
        """Keep a checkpoint as an artifact, with what is known of it beside it."""
        import yaml

        self.send_artifact(record)
        meta = record.meta or {}
        top = f"artifacts/{safe_path(record.id or '') or 'checkpoint'}"
        metadata = yaml.safe_dump(meta.get("metadata", {}), default_flow_style=False, allow_unicode=True)
        write_whole(self.place(f"{top}/metadata.yaml"), metadata.encode())
        write_whole(self.place(f"{top}/aliases.txt"), str(meta.get("aliases", [])).encode())

    def send_standard(self, record: Record) -> None:
        """Keep whatever a record holds as standard files below ``media/``."""
        files = self.files_of(record)
        self.put([*files, *details_files(record, files, self.files.place)])

    def files_of(self, record: Record) -> list[StandardFile]:
        """The standard files of a record.

        Raises:
            Exception: What :meth:`classify` knows as a file that will never come.
        """
        try:
            return self.files.of(record)
        except FileNotFoundError as error:
            raise _MissingFileError(str(error)) from None

    def put(self, files: Iterable[StandardFile]) -> None:
        """Put standard files into their places: by hard links, where they are files."""
        for file in files:
            target = self.place(file.place)
            if os.path.lexists(target):
                if not target.is_symlink() and target.is_file() and _same(target, file):
                    continue  # it was sent before
                set_aside(target, self.context.notices)
            if file.source is None:
                write_whole(target, file.content)
            else:
                self._tell_if_changed(file.blob)
                self._link(file.source, target)

    @staticmethod
    def _link(source: Path, target: Path) -> None:
        partial = partial_of(target)
        partial.unlink(missing_ok=True)
        try:
            os.link(source, partial)
        except OSError:
            shutil.copy2(source, partial)
        partial.replace(target)
        partial.unlink(missing_ok=True)  # renaming one link of a file to another one of it does nothing

    def text_of(self, record: Record) -> str:
        """A text record's text, or a dict record's JSON."""
        try:
            value = inline_value(record, self.context)
        except FileNotFoundError as error:
            raise _MissingFileError(str(error)) from None
        return json.dumps(value, indent=2) if record.kind == Kind.DICT else str(value)

    def send_hparams(self, record: Record) -> None:
        """Keep hyperparameters in ``hparams.yaml``, nested as the user gave them, beside those that are there."""
        import yaml

        path = self.place("hparams.yaml")
        known: Any = {}
        with contextlib.suppress(FileNotFoundError):
            try:
                known = yaml.safe_load(_read(path).decode()) or {}
            except (yaml.YAMLError, UnicodeDecodeError):
                known = None
        if not isinstance(known, dict):  # Lightning's own may hold tags of Python objects, which are not loaded
            set_aside(path, self.context.notices)
            known = {}
        merged = _merged(known, self._nested(record))
        if merged != known:
            text = yaml.safe_dump(merged, default_flow_style=False, allow_unicode=True, sort_keys=False, width=2**31)
            write_whole(path, text.encode(errors="backslashreplace"))

    def _nested(self, record: Record) -> dict[str, Any]:
        nested = (record.meta or {}).get("nested")
        if nested is None and record.blobs:
            nested = "".join(path.read_text(encoding="utf-8") for path, _ in self.located(record))
        known = json.loads(nested) if isinstance(nested, str) else None
        return known if isinstance(known, dict) else dict(record.data or {})


class _MissingFileError(Exception):
    """A record's file is not there, and will not come."""


def _same(target: Path, file: StandardFile) -> bool:
    """Whether a file is what is about to be put in its place."""
    if file.source is not None and target.samefile(file.source):
        return True
    size = len(file.content) if file.source is None else file.source.stat().st_size
    return target.stat().st_size == size and _read(target) == file.read()


def set_aside(path: Path, notices: Notices) -> Path:
    """Rename a file that is in the way and not ours to change; nobody's file is deleted or overwritten.

    Raises:
        OSError: If it cannot be renamed.
    """
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.stem}.before-{number}{path.suffix}")):
        number += 1
    path.rename(aside)
    notices.tell_once(
        ("set aside", str(path)), f"{path} is no file that could be continued: it was renamed to {aside.name}."
    )
    return aside


def write_whole(path: Path, content: bytes) -> None:
    """Put a file in its place, whole and on disk, or leave what is there.

    Raises:
        OSError: If the disk refuses.
    """
    partial = partial_of(path)
    try:
        with created(partial) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """Where a file is written before it is put in its place."""
    return path.with_name(f".{safe_name(path.name)[:180]}.part")


def created(path: Path) -> io.BufferedWriter:
    """A new file to write to, in place of what an earlier attempt left there."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    return open(fd, "wb")


def _read(path: Path) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
        return file.read()


def _merged(known: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings within are joined; of all else the newer value counts."""
    merged = dict(known)
    for key, value in new.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
