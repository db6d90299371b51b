"""``docs/adding-a-tracker.md``: its code, taken from the page and installed as a package of its own, is a tracker."""

import os
import re
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-tracker.md"
BLOCK = re.compile(r"^`([\w./]+)`:\n\n```(?:python|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like ``site-packages`` with the page's package, installed as pip installs a wheel."""
    site = tmp_path_factory.mktemp("site")
    for name, code in BLOCK.findall(PAGE.read_text()):
        path = site / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    project = tomllib.loads((site / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {place}" for name, place in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return site


def python(site: Path, folder: Path, *arguments: str) -> str:
    """Run an interpreter that has the package installed; its output."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    environment.pop("PYTEST_ADDOPTS", None)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_all_its_files() -> None:
    """Every file that the page shows is found by the expression that takes it from the page."""
    names = [name for name, _ in BLOCK.findall(PAGE.read_text())]
    assert names == [
        "sqlite_tracker/adapter.py",
        "sqlite_tracker/logger.py",
        "sqlite_tracker/__init__.py",
        "pyproject.toml",
        "test_sqlite_tracker.py",
        "train.py",
    ]
    assert PAGE.read_text().count("```") == 2 * len(names)


def test_the_tracker_of_the_page_passes_the_conformance_suite(site: Path, tmp_path: Path) -> None:
    """The page's own test file, run by pytest where the package is installed, passes with every test of the suite."""
    tests = site / "test_sqlite_tracker.py"
    out = python(site, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tests),
                 f"--rootdir={tmp_path}", f"--basetemp={tmp_path / 'tests'}")  # fmt: skip
    found = re.search(r"(\d+) passed", out)
    assert found is not None
    assert int(found[1]) >= 40
    assert not re.search(r"skipped|deselected|xfailed|warning", out)


def test_the_logger_of_the_page_logs(site: Path, tmp_path: Path) -> None:
    """The page's program delivers its run; what it prints and what the database holds is what it logged."""
    out = python(site, tmp_path, str(site / "train.py"))
    assert "101 delivered, 0 pending" in out
    rows = (
        sqlite3.connect(tmp_path / "runs.db").execute("SELECT name, value, step FROM metrics ORDER BY step").fetchall()
    )
    assert rows == [("loss", 1 / (step + 1), step) for step in range(100)]
    assert sqlite3.connect(tmp_path / "runs.db").execute("SELECT status FROM runs").fetchall() == [("finished",)]


def test_sync_delivers_to_the_tracker_of_the_page(site: Path, tmp_path: Path) -> None:
    """A journal written offline is delivered by the command line of another process, through the entry point."""
    program = (site / "train.py").read_text().replace('"runs.db"', '"runs.db", delivery="offline"')
    (tmp_path / "offline.py").write_text(program)
    assert "101 pending" in python(site, tmp_path, "offline.py")
    assert not (tmp_path / "runs.db").exists()
    python(site, tmp_path, "-m", "lightning_loggers", "sync", "sqlite_logs")
    ((count,),) = sqlite3.connect(tmp_path / "runs.db").execute("SELECT count(*) FROM metrics").fetchall()
    assert count == 100


def test_without_the_package_its_runs_are_refused_with_what_is_there(site: Path, tmp_path: Path) -> None:
    """An adapter that is not installed is named in the error, with those that are."""
    code = "from lightning_loggers.adapters.registry import adapter_class, adapter_names; print(adapter_names())"
    assert "'sqlite'" in python(site, tmp_path, "-c", code)
    assert "'sqlite'" not in python(tmp_path, tmp_path, "-c", code)
