"""``lightning-loggers demo`` as a user runs it, its results read back with MLflow's own client."""

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import free_port
from mlflow import MlflowClient
from mlflow.entities import Run

_COMMAND = [sys.executable, "-c", "import sys; from lightning_loggers.cli import main; sys.exit(main())", "demo"]
_STEPS = 45  # an epoch of 1,437 images in batches of 32
_POINTS = {
    "epoch": _STEPS + 1,
    "train/accuracy": _STEPS,
    "train/loss": _STEPS,
    "val/accuracy": 1,
    "val/loss": 1,
}


def environment() -> dict[str, str]:
    """This process's, as a person's at a terminal; one thread, since torch's threads crawl on a busy machine."""
    kept = {key: value for key, value in os.environ.items() if key not in {"CI", "NO_COLOR", "MLFLOW_TRACKING_URI"}}
    return {**kept, "OMP_NUM_THREADS": "1"}


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in a folder, its output in pipes."""
    return subprocess.run(
        [*_COMMAND, *arguments], cwd=folder, env=environment(), check=False, capture_output=True, text=True, timeout=120
    )


def demo_at_a_terminal(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run it as for a person: with a terminal for standard output and error."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([*_COMMAND, *arguments], cwd=folder, env=environment(), stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = bytearray()
    with open(ours, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(65536):
                shown += piece
        except OSError:  # how Linux says that the other end is closed
            pass
    return process.wait(timeout=60), shown.decode()


def check_run(client: MlflowClient, run: Run) -> None:
    """Everything that the demo logs is at MLflow."""
    assert run.info.status == "FINISHED"
    histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    assert {key: len(history) for key, history in histories.items()} == _POINTS
    assert sorted(point.step for point in histories["train/loss"]) == list(range(_STEPS))
    assert run.data.metrics["val/accuracy"] > 0.8
    assert run.data.params["epochs"] == "1"
    assert run.data.params["learning_rate"] == "0.002"
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"best-00", "confusion_matrix.png", "media"} <= files
    assert "best-00/best-00.ckpt" in {item.path for item in client.list_artifacts(run.info.run_id, "best-00")}
    (matrix,) = client.list_artifacts(run.info.run_id, "media/confusion_matrix")
    counts = json.loads(Path(client.download_artifacts(run.info.run_id, matrix.path)).read_text())["counts"]
    assert [sum(row) for row in counts] == [
        36,
        36,
        35,
        37,
        36,
        37,
        36,
        36,
        35,
        36,
    ]  # the 360 images kept for validation


def test_two_runs_stand_beside_each_other_and_only_a_person_sees_a_bar(tmp_path: Path) -> None:
    """Two runs into one folder are two complete runs of one experiment; the bar is drawn at a terminal only."""
    piped = demo(tmp_path, "--epochs", "1", "--save-dir", "out", "--seed", "3")
    assert piped.returncode == 0, piped.stderr
    assert piped.stderr == ""
    assert "\x1b" not in piped.stdout
    assert "138 of 138 points read back, equal in step and value." in piped.stdout
    uri = f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}"
    assert f"ui --backend-store-uri {shlex.quote(uri)}\n" in piped.stdout

    status, shown = demo_at_a_terminal(tmp_path, "--epochs", "1", "--save-dir", "out")
    assert status == 0, shown
    assert "Training" in shown
    assert "has 2 runs" in shown

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("digits-demo")
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    assert [run.data.params["seed"] for run in runs] == ["3", "0"]
    for run in runs:
        check_run(client, run)
        assert run.info.run_id in piped.stdout + shown
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_demo_on_a_server(tmp_path: Path, mlflow_server: str) -> None:
    """With --tracking-uri the run is complete at the server, and its page there is named."""
    result = demo(tmp_path, "--epochs", "1", "--tracking-uri", mlflow_server)
    assert result.returncode == 0, result.stderr
    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("digits-demo")
    (run,) = client.search_runs([experiment.experiment_id])
    check_run(client, run)
    assert f"{mlflow_server}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}\n" in result.stdout


def test_demo_with_nothing_listening_ends_and_says_how_to_go_on(tmp_path: Path) -> None:
    """An unreachable server does not stop the demo: it names the folder and the command, and no secret."""
    uri = f"http://ann:pw-of-ann@127.0.0.1:{free_port()}"
    result = demo(tmp_path, "--epochs", "1", "--tracking-uri", uri, "--save-dir", "out")
    assert result.returncode == 1, result.stderr
    (run,) = (tmp_path / "out" / "digits-demo").iterdir()
    assert f"lightning-loggers sync {run}" in result.stderr
    assert "Trained 1 epoch, 45 steps" in result.stdout
    assert "Traceback" not in result.stderr
    assert "pw-of-ann" not in result.stdout + result.stderr
    assert (run / "journal" / "rank0.jsonl").read_text().count('"kind":"metric"') == _STEPS + 1


@pytest.mark.parametrize(
    ("logger", "label"),
    [
        ("comet", "Comet's offline archive"),
        ("neptune", "Neptune's offline folder"),
        ("wandb", "W&B's offline folder"),
        ("tensorboard", "TensorBoard's event files"),
        ("csv", "metrics.csv"),
    ],
)
def test_demo_with_other_trackers(tmp_path: Path, logger: str, label: str) -> None:
    """With every tracker all points and parameters are read back from what it keeps, and nothing lies elsewhere."""
    result = demo(tmp_path, "--epochs", "1", "--logger", logger, "--save-dir", "out")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == "" or logger == "neptune"  # which says how it keeps two points of one step
    assert f"Read back from {label}: " in result.stdout
    assert "138 of 138 points read back, equal in step and value" in result.stdout
    assert "epochs=1, learning_rate=0.002" in result.stdout
    assert "confusion_matrix.png" in result.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--epoch", "1"), "No such option: --epoch"),
        (("--epochs", "0"), "Invalid value for '--epochs'"),
        (("--seed", "-1"), "Invalid value for '--seed'"),
        (("--save-dir", "file/deeper"), "--save-dir file/deeper cannot be used"),
        (("--save-dir", "file"), "--save-dir file cannot be used: it is a file."),
        (("--tracking-uri", "ftp://host/x"), "tracking_uri='ftp://host/x': MLflow has no store for 'ftp'"),
        (("--tracking-uri", "localhost:5000"), "or the 'http://host:port' of a server"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    """What cannot work ends with exit code 2 and the cause, before anything is made."""
    (tmp_path / "file").write_text("")
    result = demo(tmp_path, *arguments)
    assert result.returncode == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize(("module", "requirement"), [("mlflow", "mlflow"), ("sklearn", "scikit-learn")])
def test_missing_library_is_named_with_its_install_command(tmp_path: Path, module: str, requirement: str) -> None:
    """Without a library that it needs, the demo names it and the command that installs it."""
    hidden = f"import sys; sys.modules[{module!r}] = None; from lightning_loggers.cli import main; sys.exit(main())"
    result = subprocess.run(
        [sys.executable, "-c", hidden, "demo"],
        cwd=tmp_path,
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert f"needs `{requirement}` (not installed)" in result.stderr
    assert "pip install 'lightning-loggers[demo]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
