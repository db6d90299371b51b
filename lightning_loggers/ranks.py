"""Which process of a distributed job this is, and what rank 0 tells the others.

Nothing is imported here: only what the running program has loaded is asked, so the answer costs a dictionary lookup and
a reader of journals needs no torch.
"""

import os
import sys
import time
import weakref
from collections.abc import Callable
from datetime import timedelta
from typing import Any

_POLL_S = 0.01


def current_rank() -> int:
    """Tell the global rank of this process as of now.

    An initialised ``torch.distributed`` decides. Without one it is the rank that Lightning keeps in
    ``rank_zero_only.rank``, which strategies set before their processes can talk to each other. With neither it is
    what the launcher's environment variables say (``torchrun``, Open MPI, PMI, MVAPICH, SLURM), else 0.

    Guarantees:
        - Asked anew at every call: nothing is remembered from a time before the processes were launched, or of a
          process group that is gone.
        - No collective operation and no wait.

    Returns:
        The rank, 0 for the main process and for every program that is not distributed.

    Examples:
        >>> current_rank()
        0
    """
    groups = _groups or _look_for_groups()
    group = None if groups is None else groups.WORLD
    if group is not None:
        known_group, known_rank = _known
        return known_rank if known_group() is group else _rank_in(group)
    rank = getattr(_rank_zero_only or _look_for_lightning(), "rank", None)
    if rank:
        return int(rank)
    # What Lightning keeps is 0 as long as it knows no better, and of launchers' variables it does not look at those of
    # MPI: they count in that case, too.
    told = _by_variable if _variables_read else rank_by_variable()
    return 0 if told is None or (rank == 0 and told[0] in _READ_BY_LIGHTNING) else told[1]


# Where the answers are, once the modules are loaded: a log call may ask, and finding them takes longer than asking.
_groups: Any = None
_rank_zero_only: Any = None
_known: tuple[Callable[[], Any], int] = (lambda: None, 0)


def _look_for_groups() -> Any:
    """``torch.distributed.GroupMember``, whose ``WORLD`` is ``None`` as long as there is no process group."""
    global _groups  # noqa: PLW0603 - one process has one of it
    # Missing while the module is being imported, and in builds of torch without it.
    _groups = getattr(sys.modules.get("torch.distributed"), "GroupMember", None)
    return _groups


def _look_for_lightning() -> Any:
    global _rank_zero_only  # noqa: PLW0603 - as above
    module = sys.modules.get("lightning_utilities.core.rank_zero")
    _rank_zero_only = getattr(module, "rank_zero_only", None)
    return _rank_zero_only


def _rank_in(group: Any) -> int:
    """This process's rank, which is remembered for as long as the group is the same: asking takes a microsecond."""
    global _known  # noqa: PLW0603 - as above
    _known = weakref.ref(group), int(group.rank())
    return _known[1]


_READ_BY_LIGHTNING = ("RANK", "SLURM_PROCID")
_LAUNCHERS = (
    ("RANK", ("WORLD_SIZE",)),
    ("OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",)),
    ("PMIX_RANK", ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")),
    ("PMI_RANK", ("PMI_SIZE",)),
    ("MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",)),
    ("SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")),
)
"""Launchers' variables for the rank, and where each says of how many. SLURM sets its own in every shell, too."""

_by_variable: tuple[str, int] | None = None
_variables_read = False


def rank_by_variable() -> tuple[str, int] | None:
    """The environment variable by which this process is one of several, and its rank; ``None`` where none says so.

    The environment is read once: what it says is the launcher's word, and does not change.
    """
    global _by_variable, _variables_read
    if not _variables_read:
        _by_variable, _variables_read = _read_variables(), True
    return _by_variable


def _read_variables() -> tuple[str, int] | None:
    for variable, sizes in _LAUNCHERS:
        rank = _number(variable)
        size = next((size for name in sizes if (size := _number(name)) is not None), None)
        if rank is not None and size is not None and rank < size and size > 1:
            return variable, rank
    return None


def _number(variable: str) -> int | None:
    value = os.environ.get(variable, "")
    return int(value) if value.isascii() and value.isdigit() else None


def stand_alone() -> None:
    """Told that this process is a program of its own, whatever its environment says: ``mpirun`` may start several."""
    global _by_variable, _variables_read
    _by_variable, _variables_read = None, True


def _forget_variables() -> None:
    """After ``fork``: whoever launches by it may have set others."""
    global _variables_read  # noqa: PLW0603 - as above
    _variables_read = False


os.register_at_fork(after_in_child=_forget_variables)


def world_size() -> int | None:
    """How many processes the job has; ``None`` as long as they have not come together."""
    distributed = sys.modules.get("torch.distributed")
    is_initialized = getattr(distributed, "is_initialized", None)
    if distributed is None or is_initialized is None or not is_initialized():
        return None
    return int(distributed.get_world_size())


class JobBoard:
    """Small facts that rank 0 tells the other ranks of a job, such as the name of the run.

    It is the key-value store through which ``torch.distributed`` brought the processes together: it is there under
    every launcher, needs no shared file system and no environment variable, and reading it involves nobody else, so a
    rank that never asks holds nobody up.

    Guarantees:
        - No collective operation.
        - Nothing raises: where there is no store, or its host is gone, nothing is told.
    """

    _PREFIX = "lightning_loggers/"

    def __init__(self, store: Any) -> None:
        self._store = store

    def tell(self, key: str, fact: str) -> bool:
        """Tell the other ranks; returns whether that worked."""
        try:
            self._store.set(self._PREFIX + key, fact)
        except Exception:  # noqa: BLE001 - seam: a store that is gone must not raise into training
            return False
        return True

    def ask(self, key: str, timeout_s: float) -> str | None:
        """What rank 0 told, or ``None`` if it has not within ``timeout_s`` seconds."""
        deadline = time.monotonic() + timeout_s
        try:
            # Polled, since a waiting call would hold the store's connection against everybody else in this process.
            while not self._store.check([self._PREFIX + key]):
                if time.monotonic() >= deadline:
                    return None
                time.sleep(_POLL_S)
            return bytes(self._store.get(self._PREFIX + key)).decode()
        except Exception:  # noqa: BLE001 - seam: as above
            return None


def job_board() -> JobBoard | None:
    """The board of this process's job, or ``None`` if it is alone or its processes have not come together yet."""
    if (world_size() or 1) < 2:
        return None
    try:
        return JobBoard(sys.modules["torch.distributed"].distributed_c10d._get_default_store())
    except Exception:  # noqa: BLE001 - a backend or a version of torch without one
        return None


def job_store() -> Any | None:
    """The store behind :func:`job_board`, without the prefixes that torch puts before its keys; ``None`` likewise."""
    if (world_size() or 1) < 2:
        return None
    try:
        store = sys.modules["torch.distributed"].distributed_c10d._get_default_store()
        while hasattr(store, "underlying_store"):
            store = store.underlying_store
    except Exception:  # noqa: BLE001 - as above
        return None
    return store


def own_connection(store: Any, timeout_s: float) -> Any | None:
    """A connection of one's own to the server of a job's store.

    A connection answers one request after the other: a large one on the training's would hold training up.

    Args:
        store: What :func:`job_store` found. Keep it: in rank 0's process it may be the server itself.
        timeout_s: Longest wait for the server, seconds.

    Returns:
        The connection; ``None`` for a store that is no server, such as a file that all processes see.

    Raises:
        Exception: Whatever torch raises if the server does not answer.
    """
    if not hasattr(store, "host") or not hasattr(store, "port"):
        return None
    # World size, whether it is the server, how long to wait, whether for all processes to come.
    return type(store)(store.host, store.port, None, False, timedelta(seconds=timeout_s), False)
