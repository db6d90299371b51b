"""What a test reads back: every point of a run, through MLflow's own client."""

from collections import Counter
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run


def only_run(uri: str, experiment: str) -> Run:
    """The single run of an experiment; fails if there are none or several."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None, f"no experiment {experiment!r}"
    runs = client.search_runs([found.experiment_id])
    assert len(runs) == 1, f"{len(runs)} runs in {experiment!r}"
    return runs[0]


def points(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    """(step, value) of every point of a metric, in MLflow's order."""
    return [(point.step, point.value) for point in MlflowClient(uri).get_metric_history(run_id, key)]


def assert_exactly_once(uri: str, run_id: str, key: str, expected: list[tuple[int, float]]) -> None:
    """Every expected point is there, and none twice."""
    got = Counter(points(uri, run_id, key))
    want: Counter[Any] = Counter(expected)
    missing, extra = want - got, got - want
    assert not missing, f"{sum(missing.values())} points are missing, such as {list(missing)[:5]}"
    assert not extra, f"{sum(extra.values())} points too many, such as {list(extra)[:5]}"
