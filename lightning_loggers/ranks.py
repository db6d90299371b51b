"""Which process of a distributed job this is, and what rank 0 tells the others.

Nothing is imported here: only what the running program has loaded is asked, so the answer costs a dictionary lookup and
a reader of journals needs no torch.
"""

import sys
import time
from typing import Any

_POLL_S = 0.01


def current_rank() -> int:
    """Tell the global rank of this process as of now.

    An initialised ``torch.distributed`` decides. Without one it is the rank that Lightning keeps in
    ``rank_zero_only.rank``, which strategies set before their processes can talk to each other. With neither it is 0.

    Guarantees:
        - Asked anew at every call: nothing is remembered from a time before the processes were launched.
        - No collective operation and no wait.

    Returns:
        The rank, 0 for the main process and for every program that is not distributed.

    Examples:
        >>> current_rank()
        0
    """
    distributed = sys.modules.get("torch.distributed")
    # "is_initialized" is missing while the module is being imported and in builds of torch without it.
    is_initialized = getattr(distributed, "is_initialized", None)
    if distributed is not None and is_initialized is not None and is_initialized():
        return int(distributed.get_rank())
    return launched_rank()


def launched_rank() -> int:
    """The rank that Lightning keeps, which strategies set before their processes can talk to each other; else 0."""
    rank_zero = sys.modules.get("lightning_utilities.core.rank_zero")
    rank = getattr(getattr(rank_zero, "rank_zero_only", None), "rank", None)
    return 0 if rank is None else int(rank)


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
