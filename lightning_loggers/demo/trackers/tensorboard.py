"""TensorBoard, read back with its own event accumulator."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_loggers.demo.readback import EXPERIMENT, DemoTracker, ReadRun, files_below


class _TensorBoard(DemoTracker):
    name = "tensorboard"
    label = "TensorBoard's event files"
    float32 = True

    @override
    def make(self, save_dir: Path, tracking_uri: str | None, finalize_timeout_s: float) -> Any:
        from lightning_loggers.loggers.tensorboard import TensorBoardLogger

        return TensorBoardLogger(
            save_dir, name=EXPERIMENT, default_hp_metric=False, finalize_timeout_s=finalize_timeout_s
        )

    @override
    def read(self, logger: Any) -> ReadRun:
        import yaml
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        folder = Path(logger.log_dir)
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        program = "tensorboard"
        if not shutil.which(program):
            program = shlex.quote(str(Path(sys.executable).with_name(program)))
        params = yaml.safe_load((folder / "hparams.yaml").read_text())
        return ReadRun(
            title=f"{folder.name}",
            params={key: str(value) for key, value in params.items()},
            metrics={
                tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
            },
            files=files_below(folder),
            see=[f"See it: {program} --logdir {shlex.quote(str(folder.parent))}"],
            runs=len(list(folder.parent.glob("version_*"))),
        )


TRACKER = _TensorBoard()
