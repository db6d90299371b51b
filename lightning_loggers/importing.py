"""Imports by a thread of ours that the rest of the program cannot trip over.

A tracker's SDK is imported where it is used, in the delivery thread, while training goes on. Many libraries look for
another one in ``sys.modules`` and use it if it is there: scikit-learn does so for pandas and polars, which MLflow
imports. What they find may be a module whose first lines have run and whose last have not, and ``polars.Series`` raises
``AttributeError`` in the training loop. ``import polars`` would have waited; here such a look waits too.

A process that is forked meanwhile, such as a data loader's worker, has the import and not the thread that would end it:
its own ``import polars`` would wait for ever. So ``fork`` waits for the import, for some seconds at most.
"""

import contextlib
import importlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from typing_extensions import override

FORK_WAITS_S = 10.0
"""Longest wait of a fork for imports under way, seconds."""

_POLL_S = 0.002

_threads: set[int] = set()  # that import beside training
_arriving: set[ModuleType] = set()


@contextlib.contextmanager
def beside_training() -> Iterator[None]:
    """Have other threads that use a package which this thread is importing wait until it is whole, and forks as well.

    Guarantees:
        - A look waits as an import does: threads that wait for each other's imports are found out.
        - A fork waits :data:`FORK_WAITS_S` at most. A child that was forked in the middle of an import for all that
          never waits for it when it looks at the package; importing it, it would, as ever.
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    me = threading.get_ident()
    _threads.add(me)
    try:
        yield
    finally:
        _threads.discard(me)


class _Arriving(ModuleType):
    """A package whose import is under way: what it lacks yet is waited for, as an ``import`` statement waits.

    Python's own lock of the import is what is waited for, so threads that wait for each other's imports are found out.
    """

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            with contextlib.suppress(Exception):  # it failed, which its importer is told, or the wait would be for ever
                importlib.import_module(self.__name__)  # in the thread that imports it this returns at once
            if type(self) is not _Arriving:
                return getattr(self, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class _Finder(MetaPathFinder):
    """Finds what the other finders find, and for imports beside training makes it arrive."""

    @override
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if "." in fullname or threading.get_ident() not in _threads:
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)  # very old ones have none
            if find is not None and (spec := find(fullname, path, target)) is not None:
                _have_arrive(spec)
                return spec  # type: ignore[no-any-return]
        return None


def _have_arrive(spec: ModuleSpec) -> None:
    """Make the module arrive while its code runs; nothing of this is left on module or loader afterwards."""
    loader: Any = spec.loader
    # A class is the loader of all modules of its sort, those that are built into Python; they are there at once.
    if not hasattr(loader, "exec_module") or isinstance(loader, type):
        return

    def exec_module(module: Any) -> None:
        vars(loader).pop("exec_module", None)
        if type(module) is ModuleType:
            module.__class__ = _Arriving
            _arriving.add(module)
        try:
            loader.exec_module(module)
        finally:
            _has_arrived(module)

    with contextlib.suppress(AttributeError, TypeError):  # a loader that takes none is left as it is
        loader.exec_module = exec_module


def _has_arrived(module: ModuleType) -> None:
    if isinstance(module, _Arriving):
        object.__setattr__(module, "__class__", ModuleType)
    _arriving.discard(module)


# ---------------------------------------------------------------------- fork


def _imports_under_way() -> bool:
    """Whether a thread of ours holds the lock of an import.

    Python tells that nowhere: its own table of those locks is looked at. In a Python that keeps it otherwise a fork
    waits for nothing.
    """
    ours = _threads - {threading.get_ident()}
    if not ours:
        return False
    locks = getattr(getattr(importlib, "_bootstrap", None), "_module_locks", {})
    return any(getattr(reference(), "owner", None) in ours for reference in list(locks.values()))


def _before_fork() -> None:
    deadline = time.monotonic() + FORK_WAITS_S
    with contextlib.suppress(Exception):  # another Python's table
        while _imports_under_way() and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _after_fork_in_child() -> None:
    """Nobody here goes on with what was being imported."""
    _threads.clear()
    for module in list(_arriving):
        _has_arrived(module)


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
