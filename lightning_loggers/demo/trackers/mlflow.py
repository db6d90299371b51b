"""MLflow, read back with its own client."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_loggers.demo.readback import EXPERIMENT, DemoTracker, ReadRun
from lightning_loggers.secrets import strip_uri


class _MLflow(DemoTracker):
    name = "mlflow"
    label = "MLflow"

    @override
    def make(self, save_dir: Path, tracking_uri: str | None, finalize_timeout_s: float) -> Any:
        from lightning_loggers.loggers.mlflow import MLFlowLogger

        return MLFlowLogger(
            EXPERIMENT,
            tracking_uri=tracking_uri or None,
            save_dir=str(save_dir),
            log_model=True,
            finalize_timeout_s=finalize_timeout_s,
        )

    @override
    def read(self, logger: Any) -> ReadRun:
        from mlflow import MlflowClient

        uri, run_id = logger.experiment.tracking_uri, logger.run_id
        client = MlflowClient(tracking_uri=uri)
        run = client.get_run(run_id)
        experiment_id = run.info.experiment_id
        return ReadRun(
            title=f"run {run.info.run_name}, {run.info.status}",
            params=dict(run.data.params),
            metrics={
                key: sorted((metric.step, metric.value) for metric in client.get_metric_history(run_id, key))
                for key in sorted(run.data.metrics)
            },
            files=sorted(_files(client, run_id, None)),
            see=_see(uri, f"#/experiments/{experiment_id}/runs/{run_id}"),
            runs=len(client.search_runs([experiment_id], max_results=1000)),
        )


def _see(uri: str, page: str) -> list[str]:
    public = strip_uri(uri)
    if uri.startswith(("http://", "https://")):
        return [f"See it: {public.rstrip('/')}/{page}"]
    mlflow = "mlflow" if shutil.which("mlflow") else shlex.quote(str(Path(sys.executable).with_name("mlflow")))
    return [
        f"See it:\n  {mlflow} ui --backend-store-uri {shlex.quote(public)}",
        f"and open http://127.0.0.1:5000/{page}",
    ]


def _files(client: Any, run_id: str, folder: str | None) -> list[str]:
    found: list[str] = []
    for item in client.list_artifacts(run_id, folder):
        found += _files(client, run_id, item.path) if item.is_dir else [item.path]
    return found


TRACKER = _MLflow()
