"""README.md does what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

_ROOT = Path(__file__).parent.parent
_README = (_ROOT / "README.md").read_text(encoding="utf-8")


def block_after(marker: str) -> str:
    """The only fenced block behind an HTML comment."""
    (found,) = re.findall(rf"<!-- {marker} -->\n```\w+\n(.*?)\n```", _README, re.DOTALL)
    return str(found)


def test_example_runs_as_it_stands(tmp_path: Path) -> None:
    """The example, pasted into a file in an empty folder, trains, and its run is complete in MLflow."""
    (tmp_path / "example.py").write_text(block_after("example"))
    result = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"step \d+: \d\d\.\d% of the validation images recognised", result.stdout)) == 3
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(3 * 45))


@pytest.mark.parametrize("name", ["try", "test"])
def test_commands_are_one_line_and_pinned(name: str) -> None:
    """The two commands can be pasted, and install the versions that are tested."""
    command = block_after(f"command: {name}")
    assert "\n" not in command
    assert "pip install -c constraints.txt" in command


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!https?:)([^)]+)\)", _README))))
def test_links_lead_somewhere(link: str) -> None:
    """Every relative link names a file that exists, and a heading in it."""
    path, _, anchor = link.partition("#")
    text = (_ROOT / path).read_text(encoding="utf-8")
    headings = [
        re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    ]
    assert not anchor or anchor in headings
