"""What importing the package costs and shows."""

import ast
import importlib
import importlib.metadata
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_loggers

HEAVY = ("torch", "lightning", "pytorch_lightning", "numpy", "mlflow", "comet_ml", "neptune", "wandb", "pandas")


def loaded_by(code: str, folder: Path) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after running ``code``."""
    asked = f"{code}\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, cwd=folder, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    """``import lightning_loggers`` loads neither torch, Lightning, numpy nor an SDK."""
    assert loaded_by("import lightning_loggers", tmp_path) == set()


def test_constructing_a_logger_imports_no_sdk(tmp_path: Path) -> None:
    """A logger that was constructed and asked for its name, version and folder has imported Lightning but no SDK."""
    code = (
        "from lightning_loggers import MLFlowLogger\n"
        "logger = MLFlowLogger(save_dir='runs')\n"
        "assert logger.name and logger.version and logger.log_dir and repr(logger.experiment)"
    )
    loaded = loaded_by(code, tmp_path)
    assert "lightning" in loaded
    assert loaded.isdisjoint({"mlflow", "comet_ml", "neptune", "wandb", "pandas"})


def test_delivering_a_journal_needs_no_torch(tmp_path: Path) -> None:
    """The delivery loop and the journal load without torch, Lightning or numpy, so `sync` needs no GPU stack."""
    assert loaded_by("import lightning_loggers.delivery.worker, lightning_loggers.journal", tmp_path) == set()


def test_all_is_sorted_and_equals_what_a_star_import_binds() -> None:
    """``__all__`` is sorted, has no name twice, and ``import *`` binds exactly it."""
    names = lightning_loggers.__all__
    assert names == sorted(set(names))
    bound: dict[str, object] = {}
    exec("from lightning_loggers import *", bound)
    bound.pop("__builtins__")
    assert sorted(bound) == names


def test_every_public_name_is_the_one_its_home_defines() -> None:
    """Each exported class or function is found in ``dir`` and is the object of the module that defines it."""
    for name in lightning_loggers.__all__:
        value = getattr(lightning_loggers, name)
        assert name in dir(lightning_loggers)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__.startswith("lightning_loggers.")
            assert getattr(importlib.import_module(value.__module__), name) is value
            assert value.__doc__


def test_dir_shows_every_name_before_it_is_loaded(tmp_path: Path) -> None:
    """Completion in a fresh interpreter offers all exported names, and asking for them loads nothing."""
    code = "import lightning_loggers\nassert set(lightning_loggers.__all__) <= set(dir(lightning_loggers))"
    assert loaded_by(code, tmp_path) == set()


def test_an_unknown_name_is_an_attribute_error_that_names_it() -> None:
    """A misspelt export says which name is missing."""
    with pytest.raises(AttributeError, match="MLflowLogger"):
        _ = lightning_loggers.MLflowLogger  # type: ignore[attr-defined]


def test_the_package_is_marked_as_typed_and_versioned() -> None:
    """``py.typed`` is shipped, and ``__version__`` is the distribution's version."""
    home = Path(lightning_loggers.__file__).parent
    assert (home / "py.typed").is_file()
    assert importlib.metadata.version("lightning-loggers") == lightning_loggers.__version__


def test_decoders_are_made_at_import() -> None:
    """Msgspec looks at a class when it first decodes it, and two threads that do so at once end the process."""
    late: list[str] = []
    for path in sorted(Path(lightning_loggers.__file__).parent.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            for call in ast.walk(function):
                if not isinstance(call, ast.Call):
                    continue
                name = ast.unparse(call.func)
                makes = name.endswith("json.Decoder")
                decodes = name.endswith("json.decode") and any(
                    keyword.arg == "type" and not ast.unparse(keyword.value).startswith("dict[str, ")
                    for keyword in call.keywords
                )
                if makes or decodes:
                    late.append(f"{path.name}:{call.lineno}: {ast.unparse(call)}")
    assert late == []
