"""Imports in a thread of ours, while the training thread looks at what is being imported, imports it, or forks."""

import contextlib
import importlib.util
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lightning_loggers.importing import beside_training

LIMIT_S = 60.0
"""A deadline against hanging for ever, not a bound on how fast anything is."""

SLOW = """
import importing_gate
first = 1
importing_gate.begun.set()
importing_gate.go_on.wait(60)
{rest}
last = 2
"""


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Holds up the import in the middle."""
    gate = SimpleNamespace(begun=threading.Event(), go_on=threading.Event())
    monkeypatch.setitem(sys.modules, "importing_gate", gate)  # type: ignore[arg-type]
    yield gate
    gate.go_on.set()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: SimpleNamespace) -> Iterator[Path]:
    """A package whose import waits in the middle; what it does then is written by the test."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "slowly_imported" / "__init__.py"
    path.parent.mkdir()
    path.write_text(SLOW.format(rest=""))
    yield path
    sys.modules.pop("slowly_imported", None)


def importing(gate: SimpleNamespace) -> tuple[threading.Thread, ModuleType]:
    """A thread that is in the middle of importing it, and what of it is in ``sys.modules``."""

    def work() -> None:
        with beside_training(), contextlib.suppress(ImportError):
            __import__("slowly_imported")

    thread = threading.Thread(target=work)
    thread.start()
    assert gate.begun.wait(LIMIT_S)
    return thread, sys.modules["slowly_imported"]


def looked(look: Callable[[], Any], gate: SimpleNamespace) -> Any:
    """What a look comes to that begins in the middle of the import and must not come back before that goes on."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(look())
        except Exception as error:  # noqa: BLE001 - raised below
            answers.put(error)

    thread = threading.Thread(target=work)
    thread.start()
    with pytest.raises(queue.Empty):
        answers.get(timeout=0.3)
    gate.go_on.set()
    answer = answers.get(timeout=LIMIT_S)
    thread.join(LIMIT_S)
    if isinstance(answer, Exception):
        raise answer
    return answer


def test_a_library_that_looks_into_sys_modules_waits_for_the_import(package: Path, gate: SimpleNamespace) -> None:
    """As scikit-learn does: ``sys.modules["polars"].Series`` while the delivery thread imports polars."""
    thread, found = importing(gate)
    assert found.first == 1  # what is there is not waited for
    assert looked(lambda: found.last, gate) == 2
    thread.join(LIMIT_S)
    assert not hasattr(found, "missing")
    assert type(found) is ModuleType
    assert found.__spec__ is not None
    assert "exec_module" not in vars(found.__spec__.loader)


def test_it_asks_itself_without_waiting(package: Path, gate: SimpleNamespace) -> None:
    """A package that asks during its import whether it has an attribute is answered at once."""
    package.write_text(SLOW.format(rest="import sys; had = hasattr(sys.modules[__name__], 'last')"))
    gate.go_on.set()
    thread, found = importing(gate)
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert found.had is False


def test_an_import_that_fails_fails_in_its_own_thread(package: Path, gate: SimpleNamespace) -> None:
    """Whoever looked hears that the attribute is missing, not what the import died of."""
    package.write_text(SLOW.format(rest="raise ImportError('half of it is missing')"))
    thread, found = importing(gate)
    with pytest.raises(AttributeError, match="no attribute 'last'"):
        looked(lambda: found.last, gate)
    thread.join(LIMIT_S)


def test_a_library_that_defines_its_own_lazy_attributes_keeps_them(package: Path, gate: SimpleNamespace) -> None:
    """``__getattr__`` of the module, which is how many packages import their parts lazily."""
    package.write_text(SLOW.format(rest="def __getattr__(name):\n    return name.upper()"))
    thread, found = importing(gate)
    assert looked(lambda: found.lazy, gate) == "LAZY"
    thread.join(LIMIT_S)


def test_threads_that_wait_for_each_other_end(package: Path, gate: SimpleNamespace) -> None:
    """The training thread imports a package that looks at ours, which needs that package in turn."""
    other = package.parent.parent / "looking" / "__init__.py"
    other.parent.mkdir()
    other.write_text("import sys\nseen = hasattr(sys.modules['slowly_imported'], 'last')\n")
    package.write_text(SLOW.format(rest="import looking"))
    thread, found = importing(gate)
    looked(lambda: __import__("looking"), gate)
    thread.join(LIMIT_S)
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


FORK = """
import os, signal, sys, threading
from types import SimpleNamespace
from lightning_loggers import importing

gate = sys.modules["importing_gate"] = SimpleNamespace(begun=threading.Event(), go_on=threading.Event())
importing.FORK_WAITS_S = float(sys.argv[2])
sys.path.insert(0, sys.argv[1])

def work():
    with importing.beside_training():
        __import__(sys.argv[3])

threading.Thread(target=work, daemon=True).start()
assert gate.begun.wait(60)
if sys.argv[4] == "goes on":
    threading.Timer(0.3, gate.go_on.set).start()
child = os.fork()
if not child:
    signal.alarm(30)  # a child that hangs is killed
    if sys.argv[4] == "goes on":
        __import__(sys.argv[3])
    module = sys.modules["slowly_imported"]
    os._exit(40 + getattr(module, "last", 0))
gate.go_on.set()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def forked(folder: Path, waits_s: float, name: str, how: str) -> str:
    """What a child comes to that is forked in the middle of an import."""
    command = [sys.executable, "-c", FORK, str(folder), str(waits_s), name, how]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT_S).stdout.strip()


def test_fork_waits_for_an_import(package: Path) -> None:
    """A data loader's worker that imports what the delivery thread was importing has it whole, and does not hang."""
    assert forked(package.parent.parent, LIMIT_S, "slowly_imported", "goes on") == "42"


def test_fork_waits_for_the_import_of_a_part(package: Path) -> None:
    """The same for a module within a package."""
    package.with_name("part.py").write_text(package.read_text())
    package.write_text("last = 2\n")
    assert forked(package.parent.parent, LIMIT_S, "slowly_imported.part", "goes on") == "42"


def test_fork_in_the_middle_of_an_import_that_takes_too_long(package: Path) -> None:
    """A child that looks at the half of a package finds the half, and waits for nobody."""
    assert forked(package.parent.parent, 0.2, "slowly_imported", "stays") == "40"


BUILT_IN = """
import sys
from lightning_loggers.importing import beside_training
names = [name for name in sys.builtin_module_names if name not in sys.modules]
with beside_training():
    __import__(names[0])
for name in names:
    __import__(name)
print(len(names) > 1)
"""


def test_a_module_that_is_built_into_python() -> None:
    """All such modules have one loader, a class: it stays as it is, for the whole process."""
    command = [sys.executable, "-c", BUILT_IN]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stdout == "True\n", done.stderr[-2000:]


def test_modules_that_share_a_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put on the loader for one module does no harm to another, and is gone when both are there."""

    class Shared:
        def create_module(self, spec: object) -> None:
            return None

        def exec_module(self, module: Any) -> None:
            module.last = 2

    loader = Shared()

    class Finder:
        def find_spec(self, name: str, path: object, target: object = None) -> Any:
            return importlib.util.spec_from_loader(name, loader) if name.startswith("shares_a_loader") else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    with beside_training():
        specs = [importlib.util.find_spec(f"shares_a_loader_{number}") for number in (1, 2)]
        for spec in specs:
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            assert module.last == 2
            assert type(module) is ModuleType
    assert not vars(loader)
