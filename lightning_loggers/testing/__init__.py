"""For whoever adds a tracker, or tests with one: the conformance suite, and trackers that do as they are told.

Nothing here is imported by the rest of the package, and pytest only by :class:`AdapterConformance`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_loggers.adapters.memory import MemoryAdapter, MemoryRun
    from lightning_loggers.testing.conformance import AdapterConformance
    from lightning_loggers.testing.harness import Point, RunUnderTest
    from lightning_loggers.testing.scripted import Script, ScriptedAdapter, ScriptedError

__all__ = [
    "AdapterConformance",
    "MemoryAdapter",
    "MemoryRun",
    "Point",
    "RunUnderTest",
    "Script",
    "ScriptedAdapter",
    "ScriptedError",
]

_HOMES = {
    "AdapterConformance": "testing.conformance",
    "MemoryAdapter": "adapters.memory",
    "MemoryRun": "adapters.memory",
    "Point": "testing.harness",
    "RunUnderTest": "testing.harness",
    "Script": "testing.scripted",
    "ScriptedAdapter": "testing.scripted",
    "ScriptedError": "testing.scripted",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "AdapterConformance":
        import pytest

        pytest.register_assert_rewrite("lightning_loggers.testing.conformance")  # so that a failure shows its values
    value = getattr(importlib.import_module(f"lightning_loggers.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
