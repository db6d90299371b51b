"""Files kept beside a journal: hard links to the user's files, and content made by a log call."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from lightning_loggers.journal import keeper
from lightning_loggers.records import Blob

_ID = re.compile(r"[0-9a-z]{1,64}(?:-[0-9a-z]{1,64})?", re.ASCII)
_CONTENT_ID = re.compile(r"[0-9a-f]{40}", re.ASCII)
_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*]')
_MAX_NAME_BYTES = 200
_MAX_SUFFIX = 20


class UnsafeBlobError(ValueError):
    """A record names a file outside its journal's blob folder; it is not opened."""


def safe_name(name: str) -> str:
    """A file name that is one path component on every file system.

    >>> safe_name("../../etc/passwd"), safe_name("epoch=3-step=40.ckpt"), safe_name("")
    ('passwd', 'epoch=3-step=40.ckpt', 'file')
    """
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    cleaned = _UNSAFE.sub("_", last.encode(errors="replace").decode())
    if cleaned in {"", ".", ".."}:
        return "file"
    encoded = cleaned.encode()
    if len(encoded) <= _MAX_NAME_BYTES:
        return cleaned
    stem, dot, suffix = cleaned.rpartition(".")
    end = (dot + suffix).encode() if stem and len(suffix) < _MAX_SUFFIX else b""
    return encoded[: _MAX_NAME_BYTES - len(end)].decode(errors="ignore") + end.decode()


def safe_path(path: str) -> str:
    """A relative path whose parts are all :func:`safe_name`.

    >>> safe_path("shards/../../rank 0.pt")
    'shards/file/file/rank 0.pt'
    """
    return "/".join(safe_name(part) for part in path.split("/") if part)


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
            with _partial(target) as partial:
                partial.write_bytes(content)
            keeper.sync_soon(target)
        return Blob(id=blob_id, name=name, size_bytes=len(content))

    def link_file(self, source: Path, *, path: str = "") -> Blob:
        """Keep a file of the user by a hard link, or by a copy where a link cannot be made.

        A symbolic link is kept as the file that it leads to, under the link's own name.

        Args:
            source: The file.
            path: Its place inside a folder artifact.

        Raises:
            OSError: If the file cannot be read or the folder not be written.
        """
        name = safe_name(source.name)
        source = source.resolve(strict=True)
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{source} is no regular file")
        blob_id = f"link-{secrets.token_hex(8)}"
        target = self.folder / blob_id / name
        target.parent.mkdir(parents=True, exist_ok=True)
        mtime_ns = status.st_mtime_ns
        try:
            os.link(source, target)
        except OSError:  # another file system, one without hard links, too many of them, or another user's file
            mtime_ns = 0  # nobody changes a copy in place
            with _partial(target) as partial:
                shutil.copyfile(source, partial)
                with contextlib.suppress(OSError):
                    shutil.copystat(source, partial)
            status = target.stat()
        return Blob(id=blob_id, name=name, size_bytes=status.st_size, mtime_ns=mtime_ns, path=safe_path(path))

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
        if blob.path != safe_path(blob.path):
            raise UnsafeBlobError(f"artifact path {blob.path!r} leaves its folder")
        parent = self.folder / blob.id
        target = parent / blob.name
        if parent.is_symlink() or self.folder.is_symlink() or target.is_symlink():
            raise UnsafeBlobError(f"{target} is, or lies behind, a symbolic link")
        if not target.is_file():
            raise FileNotFoundError(f"blob {target} is missing")
        if _CONTENT_ID.fullmatch(blob.id) and target.stat().st_size != blob.size_bytes:
            raise FileNotFoundError(f"blob {target} is not whole: {target.stat().st_size} of {blob.size_bytes} bytes")
        return target

    def changed(self, blob: Blob) -> bool:
        """Whether a linked file was changed in place after it was logged."""
        status = self.locate(blob).stat()
        return bool(blob.mtime_ns) and (status.st_size, status.st_mtime_ns) != (blob.size_bytes, blob.mtime_ns)


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A name to write to that becomes ``target`` when all went well, and leaves nothing behind when not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        yield partial
        partial.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
            target.parent.rmdir()
        raise
