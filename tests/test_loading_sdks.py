"""An SDK is imported before training begins, or by another process: beside training it takes several times as long."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from warm_python import WarmPython

FITTED = """
import sys, time
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning_loggers import {logger}

SDK = sys.argv[2]
seen = {{}}

class Look(Callback):
    def on_train_start(self, trainer, module):
        seen["begins"] = SDK in sys.modules
        self.before = set(sys.modules)

    def on_train_end(self, trainer, module):
        logger.wait_for_run(60)
        ends = time.monotonic() + 60
        while logger.stats.pending and time.monotonic() < ends:
            time.sleep(0.01)
        seen["ends"] = SDK in sys.modules
        print("beside training:", sorted(set(sys.modules) - self.before))

class Model(BoringModel):
    def training_step(self, batch, index):
        self.log("loss_", 1.0)
        return super().training_step(batch, index)

logger = {made}
{more}
trainer = Trainer(
    logger=logger, max_epochs=1, limit_train_batches=3, limit_val_batches=1, log_every_n_steps=1, accelerator="cpu",
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[Look()],
)
trainer.fit(Model())
print(seen["begins"], seen["ends"], logger.stats.pending, flush=True)
"""


@pytest.fixture(scope="module")
def python() -> Iterator[WarmPython]:
    """Runs programs in processes of their own, which have imported Lightning and no SDK."""
    with WarmPython(WANDB_SILENT="true", COMET_LOGGING_CONSOLE="critical") as python:
        yield python


@pytest.mark.parametrize(
    ("logger", "sdk", "made"),
    [
        ("WandbLogger", "wandb.sdk.launch", "WandbLogger(save_dir=sys.argv[1], offline=True)"),
        ("CometLogger", "comet_ml", "CometLogger(offline_directory=sys.argv[1], online=False)"),
        ("MLFlowLogger", "mlflow.store.tracking.sqlalchemy_store", "MLFlowLogger(save_dir=sys.argv[1], tracking_uri="
         "'sqlite:///' + sys.argv[1] + '/mlflow.db', delivery='thread')"),
    ],
)  # fmt: skip
def test_what_a_thread_needs_is_there_when_training_begins(
    tmp_path: Path, python: WarmPython, logger: str, sdk: str, made: str
) -> None:
    """The Trainer's own call at the start of a fit imports it, with nothing beside that could be slowed down."""
    done = python.run(FITTED.format(logger=logger, made=made, more=""), tmp_path, sdk, folder=tmp_path).ok()
    assert done.stdout.splitlines()[-1] == "True True 0", done.stdout
    if logger != "MLFlowLogger":  # a database file's dialects and migrations come with the first connection
        assert done.stdout.splitlines()[-2] == "beside training: []"


def test_what_a_process_imports_is_never_here(tmp_path: Path, python: WarmPython, mlflow_sqlite: str) -> None:
    """A training with the default ``MLFlowLogger`` does without the SDK from beginning to end."""
    made = f"MLFlowLogger(save_dir=sys.argv[1], tracking_uri={mlflow_sqlite!r})"
    done = python.run(FITTED.format(logger="MLFlowLogger", made=made, more=""), tmp_path, "mlflow", folder=tmp_path)
    assert done.ok().stdout.splitlines()[-1] == "False False 0", done.stdout


def test_an_sdk_that_cannot_be_imported_stops_no_training(tmp_path: Path, python: WarmPython) -> None:
    """What is wrong with it is told by delivery, as ever; the records wait on disk."""
    broken = (
        "import lightning_loggers.adapters.wandb as adapter\n"
        "def load(cls, options):\n    raise SystemError('broken')\n"
        "adapter.WandbAdapter.load = classmethod(load)"
    )
    made = "WandbLogger(save_dir=sys.argv[1], offline=True)"
    program = FITTED.format(logger="WandbLogger", made=made, more=broken)
    done = python.run(program, tmp_path, "wandb.sdk.launch", folder=tmp_path).ok()
    assert done.stdout.splitlines()[-1].endswith(" 0"), done.stdout
