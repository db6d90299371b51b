"""Imports in a thread of ours, while the training thread looks at what is being imported."""

import contextlib
import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from lightning_loggers.importing import beside_training

SLOW = """
import time, threading
first = 1
time.sleep(0.5)
{rest}
last = 2
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that takes half a second to import; what it does then is written by the test."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "slowly_imported" / "__init__.py"
    path.parent.mkdir()
    path.write_text(SLOW.format(rest=""))
    yield path
    sys.modules.pop("slowly_imported", None)


def importing(name: str = "slowly_imported") -> tuple[threading.Thread, ModuleType]:
    """A thread that imports it, and what of it is in ``sys.modules`` while it does."""

    def work() -> None:
        with beside_training(), contextlib.suppress(ImportError):
            __import__(name)

    thread = threading.Thread(target=work)
    thread.start()
    while (found := sys.modules.get(name)) is None or not hasattr(found, "__spec__") or "first" not in vars(found):
        time.sleep(0.01)
    return thread, found


def test_a_library_that_looks_into_sys_modules_waits_for_the_import(package: Path) -> None:
    """As scikit-learn does: ``sys.modules["polars"].Series`` while the delivery thread imports polars."""
    thread, found = importing()
    assert found.first == 1  # what is there is not waited for
    assert found.last == 2
    assert not hasattr(found, "missing")
    thread.join()
    assert type(found) is ModuleType
    assert found.__spec__ is not None
    assert "exec_module" not in vars(found.__spec__.loader)


def test_it_asks_itself_without_waiting(package: Path) -> None:
    """A package that asks during its import whether it has an attribute is answered at once."""
    package.write_text(SLOW.format(rest="import sys; had = hasattr(sys.modules[__name__], 'last')"))
    thread, found = importing()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert found.had is False


def test_an_import_that_fails_fails_in_its_own_thread(package: Path) -> None:
    """Whoever looked hears that the attribute is missing, not what the import died of."""
    package.write_text(SLOW.format(rest="raise ImportError('half of it is missing')"))
    thread, found = importing()
    with pytest.raises(AttributeError, match="no attribute 'last'"):
        _ = found.last
    thread.join()


def test_a_library_that_defines_its_own_lazy_attributes_keeps_them(package: Path) -> None:
    """``__getattr__`` of the module, which is how many packages import their parts lazily."""
    package.write_text(SLOW.format(rest="def __getattr__(name):\n    return name.upper()"))
    thread, found = importing()
    assert found.lazy == "LAZY"
    thread.join()


def test_threads_that_wait_for_each_other_end(package: Path) -> None:
    """The training thread imports a package that looks at ours, which needs that package in turn."""
    other = package.parent.parent / "looking" / "__init__.py"
    other.parent.mkdir()
    other.write_text("import sys\nseen = hasattr(sys.modules['slowly_imported'], 'last')\n")
    package.write_text(SLOW.format(rest="import looking"))
    thread, found = importing()
    __import__("looking")
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert found.last == 2
    del sys.modules["looking"]


def test_other_threads_import_as_ever(package: Path) -> None:
    """What the training thread imports is found by Python's own finders, and nothing of it is changed."""
    with beside_training():
        pass
    spec = importlib.util.find_spec("slowly_imported")
    assert spec is not None
    assert "exec_module" not in vars(spec.loader)
