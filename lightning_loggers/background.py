"""Threads that work in the background for as long as the process lives, begun when there is first something to do."""

import contextlib
import os
import threading
from collections.abc import Callable


def interrupt_nobody() -> None:
    """Have this thread, and what it starts, wait for a free processor instead of taking one from a training thread.

    Linux lets a thread that wakes run at once in place of one that has computed for long: which is training, and what
    wakes then waits for the interpreter that training holds. As ``SCHED_BATCH``
    (https://man7.org/linux/man-pages/man7/sched.7.html) it waits for its turn, and gets no less of it. Left as it is
    where the user has chosen another way, and on other systems.
    """
    with contextlib.suppress(AttributeError, OSError):
        if os.sched_getscheduler(0) == os.SCHED_OTHER:  # 0 is the calling thread
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def kept_running(thread: threading.Thread | None, work: Callable[[], object], name: str) -> threading.Thread | None:
    """A daemon thread: the one there is if it lives, else a new one.

    Args:
        thread: The one there was, if any.
        work: What a new one does.
        name: What that is called, behind the package's name.

    Returns:
        The thread, or ``None`` if the interpreter is shutting down and takes no more.
    """
    if thread is not None and thread.is_alive():
        return thread

    def run() -> None:
        interrupt_nobody()
        work()

    thread = threading.Thread(target=run, name=f"lightning-loggers-{name}", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
