"""What the loggers have in common that keep their files in folders as Lightning's do: ``<name>/version_<n>``."""

import contextlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_loggers.errors import ConfigurationError
from lightning_loggers.loggers.journaled import JournaledLogger
from lightning_loggers.ranks import current_rank
from lightning_loggers.records import Kind, Record, split_nonfinite
from lightning_loggers.values.params import flatten, nested

_NUMBERED = re.compile(r"version_(\d+)(?:_|$)", re.ASCII)
_MAX_INLINE = 2**16


class FolderLogger(JournaledLogger):
    """Base of the loggers that keep files where Lightning's keep them, the journal inside.

    Args:
        save_dir: Where runs are kept; ``~`` and ``$VARIABLES`` are expanded.
        name: A folder below it, or none.
        version: A folder below that, or its number (``version_<n>``); by default the next free number.
        sub_dir: A folder below that.
        journaled: As in :class:`~lightning_loggers.loggers.journaled.JournaledLogger`.

    Guarantees:
        - ``name``, ``version``, ``save_dir``, ``root_dir`` and ``log_dir`` are what Lightning's logger says.
        - Two processes that take the next free number at once get different ones.
        - Two loggers that are given the same folder share it: their files lie side by side, their journals are apart.

    Raises:
        ConfigurationError: For arguments that cannot work.
    """

    def __init__(
        self,
        *,
        save_dir: str | os.PathLike[str],
        name: str | None,
        version: int | str | None,
        sub_dir: str | os.PathLike[str] | None = None,
        **journaled: Any,
    ) -> None:
        spoken = os.fspath(save_dir)
        if "://" in spoken:
            raise ConfigurationError(
                f"save_dir={spoken!r}: runs are kept in a folder of the local file system or a mounted one, since a "
                "journal is written record by record. Give such a folder, and copy the run when it has ended."
            )
        super().__init__(name=name or "", save_dir=_expanded(spoken), **journaled)
        self._spoken_save_dir = spoken
        self._version, self._version_given = version, version is not None
        self._sub_dir = None if sub_dir is None else os.fspath(sub_dir)

    # ------------------------------------------------------------------ names and folders

    @property
    @override
    def save_dir(self) -> str:
        """Where all runs are kept, as it was given."""
        return self._spoken_save_dir

    @property
    @override
    def root_dir(self) -> str:
        """The experiment's folder."""
        return os.path.join(self.save_dir, self.name)

    @property
    @override
    def log_dir(self) -> str:
        """The run's folder."""
        return os.path.join(self.root_dir, self._version_folder, *([] if self._sub_dir is None else [self._sub_dir]))

    @property
    @override
    def _version_folder(self) -> str:
        version = self.version
        return version if isinstance(version, str) else f"version_{version}"

    @property
    @override
    def _experiment_dir(self) -> Path:
        return self._root / _expanded(self._name)

    @property
    @override
    def _home(self) -> Path:
        return self._experiment_dir / _expanded(os.path.join(self._version_folder, self._sub_dir or ""))

    @override
    def _new_version(self) -> int | str:
        folder = self._experiment_dir
        left = self._left_open()
        if left is not None:
            number = _NUMBERED.fullmatch(left)
            return int(number[1]) if number else left
        taken = [-1]
        with contextlib.suppress(OSError):
            taken += [
                int(found[1]) for place in folder.iterdir() if (found := _NUMBERED.match(place.name)) and place.is_dir()
            ]
        version = max(taken) + 1
        while current_rank() == 0:  # by making the folder: others look for a number at the same time
            try:
                (folder / f"version_{version}").mkdir(parents=True)
            except FileExistsError:
                version += 1
                continue
            except OSError:  # told when the journal is to be written
                break
            break
        return version

    # ------------------------------------------------------------------ hyperparameters

    def _record_params(self, params: Any, step: int | None = None, **meta: Any) -> None:
        """Record hyperparameters: flat as every tracker takes them, and nested for ``hparams.yaml``."""
        flat = flatten(params)
        if not flat and not any(meta.values()):
            return
        writer = self._start()
        if writer is None:
            return
        text, blobs = None, None
        with contextlib.suppress(Exception):  # a foreign object's own attributes; they are flat in the file then
            text = json.dumps(nested(params))
        if text is not None and len(text) > _MAX_INLINE:
            blobs = [writer.blobs.put_bytes(text.encode(), "hparams.json")]
        elif text is not None and text != json.dumps(flat):
            meta["nested"] = text
        writer.append(
            Record(
                time.time_ns(),
                Kind.PARAM.value,
                step=step,
                data=flat,  # type: ignore[arg-type, unused-ignore]
                nonfinite=split_nonfinite(flat),  # type: ignore[arg-type, unused-ignore]
                meta=meta or None,
                blobs=blobs,
            )
        )


def _expanded(path: str) -> str:
    return os.path.expanduser(os.path.expandvars(path))
