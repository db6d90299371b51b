"""Memory for the copies that log calls make, all of whose pages are there.

The kernel gives memory page by page, when a page is first written to. For an image of 512 x 512 that takes ten times as
long as copying it, as soon as the images before it are still being encoded and their memory is not free again. So the
thread that encodes makes memory ready for the next ones, and what it has encoded is used again.
"""

import contextlib
import os
from typing import Any

import numpy as np

READY_BYTES = 32 * 2**20
"""What is kept ready altogether; nothing before the first value of at least ``SMALLEST_BYTES`` is logged."""

SMALLEST_BYTES = 2**16
"""The memory of a smaller value is had, and used again, without the kernel."""

_MOST_SIZES = 256
"""Of values; their memory comes in some thirty sizes only."""

Memory = tuple[memoryview, int]
"""Its bytes and its address."""


class Buffers:
    """Memory by size, shared fairly among the sizes that are asked for.

    Attributes:
        ready_for: The memory that is ready for values of so many bytes, as :meth:`take` was asked for them: a log call
            that finds a size here takes the last of the list, and need not ask for it.

    Guarantees:
        - :meth:`take` waits for nothing and never fails for want of ready memory: then it returns new one.
        - :data:`READY_BYTES` are held at most, beside what is in use.
        - May be used by several threads and by signal handlers.
    """

    def __init__(self) -> None:
        self._ready: dict[int, list[Memory]] = {}
        self.ready_for: dict[int, list[Memory]] = {}
        self._missed = False

    def take(self, size_bytes: int) -> Memory:
        """Memory of ``size_bytes`` or up to a quarter more; what is in it is left from before.

        It comes back when no array is left that :func:`array_over` has made over it, or is simply let go of.
        """
        step = 1 << max(size_bytes.bit_length() - 3, 0)
        rounded = (size_bytes + step - 1) // step * step
        ready = self._ready.setdefault(rounded, [])
        if size_bytes not in self.ready_for:
            if len(self.ready_for) >= _MOST_SIZES:
                self.ready_for.clear()
            self.ready_for[size_bytes] = ready
        try:
            return ready.pop()
        except IndexError:
            self._missed = True
            return _allocated(rounded)

    def make_ready(self) -> None:
        """Make ready what was missed; called by the thread that encodes."""
        if not self._missed:
            return
        self._missed = False
        for size_bytes, ready in list(self._ready.items()):
            share = self._share(size_bytes)
            del ready[share:]
            while len(ready) < share:
                memory = _allocated(size_bytes)
                np.frombuffer(memory[0], np.uint8).fill(0)  # writes to every page, and gives up the interpreter
                ready.append(memory)

    @property
    def ready_bytes(self) -> int:
        """What is ready now, bytes."""
        return sum(size_bytes * len(ready) for size_bytes, ready in list(self._ready.items()))

    def clear(self) -> None:
        """Let go of all of it."""
        self._ready, self.ready_for = {}, {}

    def give_back(self, memory: Memory) -> None:
        """Have it taken again."""
        size_bytes = len(memory[0])
        ready = self._ready.get(size_bytes)
        if ready is not None and len(ready) < self._share(size_bytes):
            ready.append(memory)

    def _share(self, size_bytes: int) -> int:
        return READY_BYTES // max(len(self._ready), 1) // size_bytes


def _allocated(size_bytes: int) -> Memory:
    content = memoryview(bytearray(size_bytes))
    return content, np.frombuffer(content, np.uint8).ctypes.data


BUFFERS = Buffers()
os.register_at_fork(after_in_child=BUFFERS.clear)  # there, writing to a page means to copy it first


class _Lease:
    """What every array over some memory refers to: the memory is free when this goes."""

    def __init__(self, memory: Memory, array: dict[str, Any]) -> None:
        self.__array_interface__ = {"version": 3, "data": (memory[1], False), **array}
        self._memory = memory

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # while the interpreter ends
            BUFFERS.give_back(self._memory)


def array_over(
    memory: Memory, shape: tuple[int, ...], dtype: "np.dtype[Any]", strides: tuple[int, ...] | None
) -> "np.ndarray[Any, Any]":
    """An array over the beginning of some memory, all of which has to fit into it."""
    return np.asarray(_Lease(memory, {"shape": shape, "typestr": dtype.str, "strides": strides}))
