"""Files kept beside a journal: hard links to the user's files, and content made by a log call."""

import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from lightning_loggers.records import Blob

_ID = re.compile(r"[0-9a-z]{1,64}(?:-[0-9a-z]{1,64})?", re.ASCII)
_MAX_NAME_BYTES = 200


class UnsafeBlobError(ValueError):
    """A record names a file outside its journal's blob folder; it is not opened."""


def safe_name(name: str) -> str:
    """A file name that is one path component on every file system.

    >>> safe_name("../../etc/passwd"), safe_name("epoch=3-step=40.ckpt"), safe_name("")
    ('passwd', 'epoch=3-step=40.ckpt', 'file')
    """
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    cleaned = re.sub(r'[\x00-\x1f<>:"|?*]', "_", last)
    if cleaned in {"", ".", ".."}:
        return "file"
    while len(cleaned.encode()) > _MAX_NAME_BYTES:
        stem, dot, suffix = cleaned.rpartition(".")
        cleaned = stem[:-1] + dot + suffix if dot and len(suffix) < 20 and stem else cleaned[:-1]
    return cleaned


class BlobStore:
    """The blob folder of one journal.

    Guarantees:
        - A blob is whole before its name is returned, so a record never names half a file.
        - The same bytes under the same name are stored once.
        - A file of the user is hard-linked (no byte is copied on one file system) and outlives its own deletion.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put_bytes(self, content: bytes, name: str) -> Blob:
        """Keep ``content`` under its SHA-256.

        Raises:
            OSError: If the folder cannot be written.
        """
        name = safe_name(name)
        blob_id = hashlib.sha256(content).hexdigest()[:40]
        target = self.folder / blob_id / name
        if not (target.is_file() and target.stat().st_size == len(content)):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{secrets.token_hex(8)}.part")
            partial.write_bytes(content)
            partial.replace(target)
        return Blob(id=blob_id, name=name, size_bytes=len(content))

    def link_file(self, source: Path, *, path: str = "") -> Blob:
        """Keep a file of the user by a hard link, or by a copy where a link cannot be made.

        Args:
            source: The file.
            path: Its place inside a folder artifact.

        Raises:
            OSError: If the file cannot be read or the folder not be written.
        """
        source = source.resolve(strict=True)
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{source} is no regular file")
        blob_id = f"link-{secrets.token_hex(8)}"
        name = safe_name(source.name)
        target = self.folder / blob_id / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:
            partial = target.with_name(f".{secrets.token_hex(8)}.part")
            shutil.copy2(source, partial)
            partial.replace(target)
        return Blob(id=blob_id, name=name, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns, path=path)

    def link_tree(self, source: Path) -> Iterator[Blob]:
        """Keep every regular file below a folder of the user.

        Raises:
            OSError: As :meth:`link_file`.
        """
        for path in sorted(source.rglob("*")):
            if path.is_file():
                yield self.link_file(path, path=path.relative_to(source).as_posix())

    def locate(self, blob: Blob) -> Path:
        """The file of a blob, checked to lie inside the blob folder.

        Raises:
            UnsafeBlobError: If the id or name would leave the folder, or leads over a symbolic link.
            FileNotFoundError: If it is not there (pruned, or the journal was copied without its blobs).
        """
        if not _ID.fullmatch(blob.id) or safe_name(blob.name) != blob.name:
            raise UnsafeBlobError(f"blob {blob.id!r}/{blob.name!r} is no name inside {self.folder}")
        if blob.path and (blob.path.startswith("/") or ".." in blob.path.split("/") or "\\" in blob.path):
            raise UnsafeBlobError(f"artifact path {blob.path!r} leaves its folder")
        parent = self.folder / blob.id
        target = parent / blob.name
        if parent.is_symlink() or self.folder.is_symlink() or target.is_symlink():
            raise UnsafeBlobError(f"{target} is, or lies behind, a symbolic link")
        if not target.is_file():
            raise FileNotFoundError(f"blob {target} is missing")
        return target

    def changed(self, blob: Blob) -> bool:
        """Whether a linked file was changed in place after it was logged."""
        status = self.locate(blob).stat()
        return bool(blob.mtime_ns) and (status.st_size, status.st_mtime_ns) != (blob.size_bytes, blob.mtime_ns)
