"""Threads that work in the background for as long as the process lives, begun when there is first something to do."""

import threading
from collections.abc import Callable


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
    thread = threading.Thread(target=work, name=f"lightning-loggers-{name}", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread
