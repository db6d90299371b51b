"""How long to wait before the next attempt."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter, as an immutable policy.

    The wait before attempt ``n`` is drawn evenly between half of and the whole of ``initial_s * factor ** n``, at most
    ``maximum_s``: many jobs that lost one server do not come back to it in step (M. Brooker, "Exponential Backoff And
    Jitter", AWS Architecture Blog, 2015).

    Attributes:
        initial_s: Wait after the first failure, seconds.
        factor: Growth per failure.
        maximum_s: Longest wait, seconds.
    """

    initial_s: float = 0.5
    factor: float = 2.0
    maximum_s: float = 30.0

    def wait_s(self, failures: int, *, retry_after_s: float | None = None) -> float:
        """Seconds to wait after the given number of failures in a row.

        Args:
            failures: 1 after the first failure.
            retry_after_s: What the tracker asked for; waited in full, up to an hour.

        >>> policy = Backoff()
        >>> 0.25 <= policy.wait_s(1) <= 0.5, policy.wait_s(50) <= 30, policy.wait_s(1, retry_after_s=7) >= 7
        (True, True, True)
        """
        longest = min(self.initial_s * self.factor ** min(max(failures - 1, 0), 60), self.maximum_s)
        wait = longest * random.uniform(0.5, 1.0)
        if retry_after_s is not None:
            wait = max(wait, min(retry_after_s, 3600.0))
        return wait
