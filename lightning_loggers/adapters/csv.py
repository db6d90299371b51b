"""CSV: ``metrics.csv`` in the run's own folder, one row a step."""

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

from typing_extensions import override

from lightning_loggers.adapters.base import Capabilities, Context
from lightning_loggers.adapters.csv_file import STEP, MetricsFile
from lightning_loggers.adapters.folder import FolderAdapter
from lightning_loggers.adapters.standard_files import STANDARD_FILES
from lightning_loggers.records import Kind, Record, RunStatus
from lightning_loggers.values.metrics import as_number

_UNSAFE_IN_NAME = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029]")


class CSVAdapter(FolderAdapter):
    """Keeps a run as files that anything reads.

    Guarantees:
        - ``metrics.csv`` can be read at any moment by :class:`csv.DictReader` and pandas, and holds every number as it
          was logged: Python's own shortest spelling, which reads back to the same value.
        - Values of one step that were logged one after another share a row; a key logged twice in a step begins
          another row of that step. Nothing is overwritten.
        - Each record is in the file exactly once, also after a crash: the place of the last row is saved with the
          cursor, and what a crash left behind it is cut off. (Feeding records again without that place doubles rows.)
        - A row costs its own bytes, however long the file is; a new key costs its name. The file is written again only
          when all names together have doubled in length.
    """

    name = "csv"
    max_key_length = 1000
    capabilities: ClassVar[Capabilities] = Capabilities(
        kinds={
            **STANDARD_FILES,
            Kind.METRIC: "metrics.csv: a row a step, a column a key; no times",
            Kind.PARAM: "hparams.yaml",
            Kind.ARTIFACT: "file below artifacts/",
            Kind.CHECKPOINT: "files below artifacts/<name>/, with metadata.yaml and aliases.txt",
        },
        integer_steps=False,
        local=True,
    )

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.metrics = MetricsFile(
            self.folder / "metrics.csv",
            context.remote.extra.setdefault("metrics", {}),
            run_dir=context.run_dir,
            notices=context.notices,
            save=context.save_remote,
        )

    @staticmethod
    @override
    def fit_key(key: str) -> str:
        r"""Names of columns: anything but nothing, line breaks and control characters, and ``step``, which is taken.

        >>> [CSVAdapter.fit_key(key) for key in ("loss/val, ü@k=5", "", "a\nb", "step")]
        ['loss/val, ü@k=5', '_', 'a_b', 'step_']
        """
        name = _UNSAFE_IN_NAME.sub("_", key) or "_"
        return f"{STEP}_" if name == STEP else name

    @override
    def open(self) -> None:
        super().open()
        # Names are saved before the file's place is: if they are known and the place is not, the place was lost, and
        # the file holds what is about to be delivered again.
        self.metrics.open(adopt=not self.context.keys.names)

    @override
    def send(self, records: Sequence[Record]) -> None:
        with self.files.batch():
            for record in records:
                if record.kind == Kind.PARAM:
                    self.send_hparams(record)
                elif record.kind in STANDARD_FILES:
                    self.send_standard(record)
                elif record.kind == Kind.ARTIFACT:
                    self.send_artifact(record)
                elif record.kind == Kind.CHECKPOINT:
                    self.send_checkpoint(record)
            # Last, since it is the only part that must not be done twice: a fault before it repeats the whole batch.
            self.metrics.append(self._rows(records))

    def _rows(self, records: Sequence[Record]) -> Iterator[tuple[str, dict[str, str]]]:
        fit = self.context.keys.fit
        for record in records:
            if record.kind != Kind.METRIC or not record.data:
                continue
            cells = {
                fit(key): _spelt(number)
                for key, value in record.data.items()
                if (number := as_number(value)) is not None
            }
            if cells:
                yield "" if record.step is None else _spelt(_whole(record.step)), cells

    @override
    def set_status(self, status: RunStatus) -> None:
        """Files have no status; the one of the run is in its journal and beside the cursors."""

    @override
    def close(self) -> None:
        self.metrics.close()


def _whole(step: int | float) -> int | float:
    """Steps that are whole numbers are spelt as such, so that readers take the column for integers."""
    return int(step) if isinstance(step, float) and step.is_integer() and abs(step) < 2**64 else step


def _spelt(number: int | float) -> str:
    return repr(int(number)) if isinstance(number, bool) else repr(number)
