"""Imports by a thread of ours that the rest of the program cannot trip over.

A tracker's SDK is imported where it is used, in the delivery thread, while training goes on. Many libraries look for
another one in ``sys.modules`` and use it if it is there: scikit-learn does so for pandas and polars, which MLflow
imports. What they find may be a module whose first lines have run and whose last have not, and ``polars.Series`` raises
``AttributeError`` in the training loop. ``import polars`` would have waited; here such a look waits too.
"""

import contextlib
import importlib
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from typing_extensions import override

_this_thread = threading.local()


@contextlib.contextmanager
def beside_training() -> Iterator[None]:
    """Have other threads that use a package which this thread is importing wait until it is whole."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    _this_thread.imports_beside = True
    try:
        yield
    finally:
        _this_thread.imports_beside = False


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
        if "." in fullname or not getattr(_this_thread, "imports_beside", False):
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
    if not hasattr(loader, "exec_module"):
        return

    def exec_module(module: Any) -> None:
        del loader.exec_module
        if type(module) is ModuleType:
            module.__class__ = _Arriving
        try:
            loader.exec_module(module)
        finally:
            if isinstance(module, _Arriving):
                object.__setattr__(module, "__class__", ModuleType)

    with contextlib.suppress(AttributeError, TypeError):  # a loader that takes none is left as it is
        loader.exec_module = exec_module
