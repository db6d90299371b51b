"""Which process of a distributed job this is.

Nothing is imported here: only what the running program has loaded is asked, so the answer costs a dictionary lookup and
a reader of journals needs no torch.
"""

import sys


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
    rank_zero = sys.modules.get("lightning_utilities.core.rank_zero")
    rank = getattr(getattr(rank_zero, "rank_zero_only", None), "rank", None)
    return 0 if rank is None else int(rank)
