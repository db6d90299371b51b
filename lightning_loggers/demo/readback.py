"""Reading a run back through MLflow's own client."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_loggers.demo.tally import Point


@dataclass(frozen=True, slots=True)
class ReadRun:
    """A run as MLflow has it.

    Attributes:
        run_id: MLflow's id.
        experiment_id: MLflow's id of the experiment.
        name: Its name there.
        status: Its status there, such as ``FINISHED``.
        params: Hyperparameters.
        metrics: Metric to its points, step and value, in the order of the steps.
        artifacts: Paths of all files.
        siblings: How many runs the experiment has.
    """

    run_id: str
    experiment_id: str
    name: str
    status: str
    params: dict[str, str]
    metrics: dict[str, list[Point]]
    artifacts: list[str]
    siblings: int


def read_run(client: Any, run_id: str) -> ReadRun:
    """Read everything of a run.

    Args:
        client: An ``MlflowClient``.
        run_id: MLflow's id of the run.

    Raises:
        mlflow.exceptions.MlflowException: If MLflow does not answer or has no such run.
    """
    run = client.get_run(run_id)
    return ReadRun(
        run_id=run_id,
        experiment_id=run.info.experiment_id,
        name=run.info.run_name,
        status=run.info.status,
        params=dict(run.data.params),
        metrics={
            key: sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, key))
            for key in sorted(run.data.metrics)
        },
        artifacts=sorted(_files(client, run_id, None)),
        siblings=len(client.search_runs([run.info.experiment_id], max_results=1000)),
    )


def compare(
    logged: Mapping[str, Sequence[Point]], read: Mapping[str, Sequence[Point]]
) -> tuple[list[tuple[object, ...]], bool]:
    """Compare what was logged with what was read back, metric by metric.

    Args:
        logged: Metric to its points, step and value.
        read: The same, from the tracker.

    Returns:
        Rows for a table, and whether all points are equal.

    >>> compare({"loss": [(0, 0.5), (1, 0.25)]}, {"loss": [(0, 0.5)]})
    ([('loss', 2, 1, '0.5000', '0.5000', '0.5000', '0.5000')], False)
    """
    rows: list[tuple[object, ...]] = []
    for key in sorted(logged.keys() | read.keys()):
        points = read.get(key, ())
        values = [value for _, value in points]
        numbers = [values[0], values[-1], min(values), max(values)] if values else []
        texts = [f"{number:.4f}" for number in numbers] or ["", "", "", ""]
        rows.append((key, len(logged.get(key, ())), len(points), *texts))
    complete = all(sorted(logged.get(key, ())) == sorted(read.get(key, ())) for key in logged.keys() | read.keys())
    return rows, complete


def _files(client: Any, run_id: str, folder: str | None) -> list[str]:
    found: list[str] = []
    for item in client.list_artifacts(run_id, folder):
        found += _files(client, run_id, item.path) if item.is_dir else [item.path]
    return found
