"""The conformance suite over every adapter of the registry, and over adapters that fail on purpose."""

import copy
import csv
import ctypes
import json
import math
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from comet_reading import CometCase
from mlflow import MlflowClient
from neptune_reading import NeptuneCase
from wandb_reading import WandbCase

from lightning_loggers.adapters.base import Adapter, Context, Fault, FaultKind
from lightning_loggers.adapters.console import MAX_SHOWN_CHARS
from lightning_loggers.adapters.memory import MemoryAdapter, MemoryRun, memory_of
from lightning_loggers.adapters.registry import adapter_names
from lightning_loggers.records import Kind, Record, RunStatus
from lightning_loggers.testing import AdapterConformance, Point, RunUnderTest, Script
from lightning_loggers.testing.scripted import transient

LARGEST = 1.7976931348623157e308  # what MLflow's SQL stores hold for an infinity


class TestMLflow(AdapterConformance):
    """MLflow on SQLite, read back through its client."""

    tracker = "mlflow"
    no_step = 0
    statuses = {  # noqa: RUF012
        RunStatus.RUNNING: "RUNNING",
        RunStatus.FINISHED: "FINISHED",
        RunStatus.FAILED: "FAILED",
        RunStatus.INTERRUPTED: "KILLED",
        RunStatus.PREEMPTED: "RUNNING",
    }

    @pytest.fixture
    def options(self, mlflow_sqlite: str, tmp_path: Path) -> dict[str, Any]:
        """A fresh SQLite store, with artifacts beside it."""
        self.client = MlflowClient(mlflow_sqlite)
        return {"tracking_uri": mlflow_sqlite, "artifact_location": (tmp_path / "artifacts").as_uri()}

    def points(self, run: RunUnderTest) -> list[Point]:
        """Every point of every metric's history."""
        names = self.client.get_run(run.remote.id).data.metrics
        histories = (self.client.get_metric_history(run.remote.id, name) for name in names)
        return [Point(m.key, m.value, m.step, m.timestamp / 1000) for history in histories for m in history]

    def params(self, run: RunUnderTest) -> dict[str, str]:
        """Params; the whole value from its artifact where one names it."""
        params: dict[str, str] = self.client.get_run(run.remote.id).data.params
        mark = re.compile(r"\.\.\. \[whole in (.*)\]$")
        wholes = {name: found[1] for name, value in params.items() if (found := mark.search(value))}
        return {**params, **{name: self._artifact(run, path).read_text() for name, path in wholes.items()}}

    def texts(self, run: RunUnderTest) -> list[str]:
        """Every text artifact."""
        return [self._artifact(run, path).read_bytes().decode() for path in self._tree(run, "media", ".txt")]

    def dicts(self, run: RunUnderTest) -> list[Any]:
        """Every JSON artifact."""
        return [json.loads(self._artifact(run, path).read_bytes()) for path in self._tree(run, "media", ".json")]

    def files(self, run: RunUnderTest) -> list[bytes]:
        """Everything but what MLflow's own format of checkpoints adds."""
        ours = ("media", "metadata.yaml", "aliases.txt", "lightning_loggers")
        paths = (path for path in self._tree(run, "") if not any(part in ours for part in path.split("/")))
        return [self._artifact(run, path).read_bytes() for path in paths]

    def status(self, run: RunUnderTest) -> str:
        """The run's status."""
        return str(self.client.get_run(run.remote.id).info.status)

    def shown_value(self, value: float) -> float:
        """Infinities are the largest float there is."""
        return math.copysign(LARGEST, value) if math.isinf(value) else float(value)

    def _tree(self, run: RunUnderTest, folder: str, suffix: str = "") -> Iterator[str]:
        for item in self.client.list_artifacts(run.remote.id, folder or None):
            if item.is_dir:
                yield from self._tree(run, item.path, suffix)
            elif item.path.endswith(suffix):
                yield item.path

    def _artifact(self, run: RunUnderTest, path: str) -> Path:
        return Path(self.client.download_artifacts(run.remote.id, path))


class TestMemory(AdapterConformance):
    """The memory adapter: nothing is changed in any way."""

    tracker = "memory"
    statuses = {status: status.value for status in RunStatus}  # noqa: RUF012
    time_resolution_s = 1e-6

    def make_run(self, folder: Path, options: dict[str, Any]) -> RunUnderTest:
        """Hold the memory: nobody else does once delivery has closed."""
        run = super().make_run(folder, options)
        self.memory: MemoryRun = memory_of(run.run_dir)
        return run

    def points(self, run: RunUnderTest) -> list[Point]:
        """All points."""
        return [
            Point(name, value, step, time_ns / 1e9)
            for name in self.memory.names
            for time_ns, step, value, _ in self.memory.points(name)
        ]

    def params(self, run: RunUnderTest) -> dict[str, str]:
        """All hyperparameters."""
        return {name: str(value) for name, value in self.memory.hyperparams.items()}

    def texts(self, run: RunUnderTest) -> list[str]:
        """All texts."""
        return [record.value for record in self.memory.records if record.kind == Kind.TEXT]

    def dicts(self, run: RunUnderTest) -> list[Any]:
        """All dictionaries."""
        return [record.value for record in self.memory.records if record.kind == Kind.DICT]

    def files(self, run: RunUnderTest) -> list[bytes]:
        """All files."""
        return [path.read_bytes() for paths in self.memory.files.values() for path in paths]

    def status(self, run: RunUnderTest) -> str | None:
        """The last status."""
        return self.memory.status


class TestScripted(TestMemory):
    """The same memory behind a tracker that loses answers and connections all the time."""

    def make_run(self, folder: Path, options: dict[str, Any]) -> RunUnderTest:
        """A third of the calls fail, half of them after they have done their work."""
        dice = random.Random(4)
        faults = [
            dice.choice([transient("no route"), transient("answer lost", after=True), *[None] * 4])
            for _ in range(2_000)
        ]
        self.script = Script(open=faults, send=faults[1:], status=faults[2:])
        run = _PatientRun(folder, self.tracker, options, self.make_adapter)
        self.memory = memory_of(run.run_dir)
        return run

    def make_adapter(self, context: Context) -> Adapter:
        """One that plays the script."""
        return self.script.adapter(context)

    def test_calls_in_the_wrong_order_raise_nothing(self, run: RunUnderTest) -> None:
        """As for the others, at a moment without faults."""
        self.script = Script()
        super().test_calls_in_the_wrong_order_raise_nothing(run)


class _PatientRun(RunUnderTest):
    """Goes on after faults."""

    def deliver(self, timeout_s: float = 120.0, *, faults: int = 10_000) -> Any:
        """Deliver, whatever fails on the way."""
        return super().deliver(timeout_s, faults=faults)


class TestCSV(AdapterConformance):
    """CSV files, read back with the standard library."""

    tracker = "csv"
    once_after_crash = True

    def points(self, run: RunUnderTest) -> list[Point]:
        """Every field of ``metrics.csv`` that is not empty."""
        try:
            with (run.run_dir / "metrics.csv").open(newline="") as file:
                rows = list(csv.DictReader(file))
        except FileNotFoundError:
            return []
        return [
            Point(name, float(text), _step(row["step"]), None)
            for row in rows
            for name, text in row.items()
            if name != "step" and text
        ]

    def params(self, run: RunUnderTest) -> dict[str, str]:
        """What ``hparams.yaml`` holds."""
        loaded = yaml.safe_load((run.run_dir / "hparams.yaml").read_text())
        return {str(name): str(value) for name, value in loaded.items()}

    def texts(self, run: RunUnderTest) -> list[str]:
        """Text files."""
        return [path.read_bytes().decode() for path in run.run_dir.glob("media/**/*.txt")]

    def dicts(self, run: RunUnderTest) -> list[Any]:
        """JSON files."""
        return [json.loads(path.read_bytes()) for path in run.run_dir.glob("media/**/*.json")]

    def files(self, run: RunUnderTest) -> list[bytes]:
        """Files of artifacts, without what is noted beside checkpoints."""
        noted = {"metadata.yaml", "aliases.txt"}
        paths = (path for path in run.run_dir.glob("artifacts/**/*") if path.is_file() and path.name not in noted)
        return [path.read_bytes() for path in paths]


class TestTensorBoard(TestCSV):
    """TensorBoard's event files, read back with its own reader."""

    tracker = "tensorboard"
    no_step = 0
    time_resolution_s = 1e-6

    def reader(self, run: RunUnderTest) -> Any:
        """Everything, nothing sampled."""
        from tensorboard.backend.event_processing import event_accumulator as accumulator

        kinds = (accumulator.SCALARS, accumulator.TENSORS)
        reader = accumulator.EventAccumulator(str(run.run_dir), dict.fromkeys(kinds, 0), purge_orphaned_data=False)
        return reader.Reload()

    def points(self, run: RunUnderTest) -> list[Point]:
        """Every scalar."""
        reader = self.reader(run)
        return [
            Point(tag, event.value, event.step, event.wall_time)
            for tag in reader.Tags()["scalars"]
            for event in reader.Scalars(tag)
        ]

    def params(self, run: RunUnderTest) -> dict[str, str]:
        """What the hyperparameters tab shows."""
        from tensorboard.plugins.hparams import metadata

        content = self.reader(run).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        shown = metadata.parse_session_start_info_plugin_data(content).hparams
        return {name: str(getattr(value, value.WhichOneof("kind"))) for name, value in shown.items()}

    def texts(self, run: RunUnderTest) -> list[str]:
        """Texts, without dictionaries."""
        return [text for tag, text in self._all_texts(run) if not tag.startswith("table/")]

    def dicts(self, run: RunUnderTest) -> list[Any]:
        """Texts that are JSON."""
        return [json.loads(text) for tag, text in self._all_texts(run) if tag.startswith("table/")]

    def shown_value(self, value: float) -> float:
        """32-bit floats."""
        return ctypes.c_float(value).value

    def shown_param(self, value: Any) -> str:
        """The tab has doubles, booleans and texts."""
        plain = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return str(float(value)) if plain else str(value)

    def _all_texts(self, run: RunUnderTest) -> Iterator[tuple[str, str]]:
        reader = self.reader(run)
        for tag in reader.Tags()["tensors"]:
            for event in reader.Tensors(tag):
                yield tag, event.tensor_proto.string_val[0].decode()


class TestWandb(WandbCase):
    """Weights & Biases, offline."""


class TestComet(CometCase):
    """Comet's offline archives, sent by Comet's own uploader."""


class TestNeptune(NeptuneCase):
    """Neptune, offline."""


class TestConsole(AdapterConformance):
    """The console's lines, read as a person reads them."""

    tracker = "console"
    time_resolution_s = 1.001  # a line shows whole seconds
    statuses = {  # noqa: RUF012
        status: status.value for status in RunStatus if status is not RunStatus.RUNNING
    }

    @pytest.fixture
    def options(self, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
        """Lines, into what pytest captures."""
        self.capsys = capsys
        self.output = ""
        return {"style": "lines"}

    def lines(self) -> list[str]:
        """Everything that was shown."""
        self.output += self.capsys.readouterr().out
        return self.output.splitlines()

    def points(self, run: RunUnderTest) -> list[Point]:
        """The ``key=value`` of every line, with the step and the time at its beginning."""
        line_of_metrics = re.compile(r"(\d\d:\d\d:\d\d)(?:  step (\S+))?((?:  .*?=[^\s=]+)+)")
        points = []
        for line in self.lines():
            if (found := line_of_metrics.fullmatch(line)) is None:
                continue
            for item in found[3][2:].split("  "):
                key, _, value = item.rpartition("=")
                points.append(Point(key, float(value), _step(found[2]), _today(found[1])))
        return points

    def params(self, run: RunUnderTest) -> dict[str, str]:
        """The ``name = value`` of every line below ``params``."""
        items = [line.partition(" = ") for heading, lines in self._blocks() if heading == "params" for line in lines]
        return {name: value for name, _, value in items}

    def texts(self, run: RunUnderTest) -> list[str]:
        """The lines below every ``text``."""
        return ["\n".join(lines) for heading, lines in self._blocks() if re.match(r"(step \d+  )?text ", heading)]

    def dicts(self, run: RunUnderTest) -> list[Any]:
        """The JSON below every ``dict``."""
        blocks = [lines for heading, lines in self._blocks() if re.match(r"(step \d+  )?dict ", heading)]
        return [json.loads(line) for lines in blocks for line in lines]

    def files(self, run: RunUnderTest) -> list[bytes]:
        """Names and sizes."""
        pattern = re.compile(r"\d\d:\d\d:\d\d  (?:artifact|checkpoint) .*: .* \(([\d,]+) B\)")
        return [found[1].encode() for line in self.lines() if (found := pattern.fullmatch(line))]

    def status(self, run: RunUnderTest) -> str | None:
        """What the last line says of the run."""
        found = re.search(r"run conformance/run (\w+)$", self.lines()[-1])
        return found[1] if found else None

    def shown_value(self, value: float) -> float:
        """Six digits, integers whole."""
        return float(f"{value:.6g}") if isinstance(value, float) else float(int(value))

    def shown_param(self, value: Any) -> str:
        """On one line, and cut where it says so."""
        return self._cut(str(value)).replace("\n", "\\n")

    def shown_text(self, text: str) -> str:
        """Control characters as escapes, a last line's end as none, and cut where it says so."""
        return "\n".join(self._cut(text).replace("\t", "\\t").splitlines())

    def shown_file(self, content: bytes) -> bytes:
        """Its size."""
        return f"{len(content):,}".encode()

    def _blocks(self) -> Iterator[tuple[str, list[str]]]:
        heading: str | None = None
        below: list[str] = []
        for line in [*self.lines(), "00:00:00  end"]:
            if line.startswith("          | "):
                below.append(line.removeprefix("          | "))
            elif re.match(r"\d\d:\d\d:\d\d  ", line):
                if heading is not None:
                    yield heading, below
                heading, below = line[10:], []

    @staticmethod
    def _cut(text: str) -> str:
        if len(text) <= MAX_SHOWN_CHARS:
            return text
        return f"{text[:MAX_SHOWN_CHARS]} … [{len(text):,} characters, whole in the journal]"


def _step(text: str | None) -> int | float | None:
    return None if not text else float(text) if "." in text else int(text)


def _today(clock: str) -> float:
    """The last moment at which a local clock showed this."""
    now = time.time()
    for day in (now, now - 86_400):
        date = time.strftime("%Y-%m-%d", time.localtime(day))
        moment = time.mktime(time.strptime(f"{date} {clock}", "%Y-%m-%d %H:%M:%S"))
        if moment <= now:
            return moment + 0.5
    raise AssertionError(clock)


def all_cases(kind: type[AdapterConformance] = AdapterConformance) -> Mapping[str, type[AdapterConformance]]:
    """Every case by the adapter that it is for."""
    found: dict[str, type[AdapterConformance]] = {}
    for case in kind.__subclasses__():
        found |= all_cases(case)
        if hasattr(case, "tracker"):
            found[case.tracker] = case
    return found


@pytest.mark.parametrize("name", adapter_names())
def test_every_adapter_has_a_case(name: str) -> None:
    """An adapter in the registry without a case in this file fails here."""
    assert name in all_cases(), f"add a subclass of AdapterConformance for {name!r}"


# ---------------------------------------------------------------------- the suite itself


class Changes(MemoryAdapter):
    """An adapter that changes what it is given."""

    def changed(self, record: Record) -> Record | None:
        """What is kept instead."""
        return record

    def send(self, records: Sequence[Record]) -> None:
        """Keep something else."""
        super().send([new for record in records if (new := self.changed(copy.deepcopy(record))) is not None])


class LosesTheLast(MemoryAdapter):
    """Of every batch."""

    def send(self, records: Sequence[Record]) -> None:
        """Lose one."""
        super().send(records[:-1])


class StampsAnew(Changes):
    """With the time of delivery."""

    def changed(self, record: Record) -> Record:
        """Now."""
        record.time_ns = time.time_ns()
        return record


class TakesZeroForNone(Changes):
    """A falsy step is no step."""

    def changed(self, record: Record) -> Record:
        """The well-known mistake."""
        record.step = record.step or None
        return record


class FloorsSteps(Changes):
    """Without saying so."""

    def changed(self, record: Record) -> Record:
        """Integers only."""
        record.step = None if record.step is None else math.floor(record.step)
        return record


class DropsNonFinite(Changes):
    """As some SDKs do."""

    def changed(self, record: Record) -> Record:
        """Finite values only."""
        if record.kind == Kind.METRIC:
            record.data = {key: value for key, value in (record.data or {}).items() if math.isfinite(value)}
        return record


class StoresFloat32(Changes):
    """Without saying so."""

    def changed(self, record: Record) -> Record:
        """Seven digits."""
        if record.kind == Kind.METRIC:
            record.data = {key: ctypes.c_float(value).value for key, value in (record.data or {}).items()}
        return record


class MergesKeys(Changes):
    """Cuts keys instead of fitting them."""

    def changed(self, record: Record) -> Record:
        """At 250 characters."""
        record.data = {key[:250]: value for key, value in record.data.items()} if record.data else record.data
        return record


class CutsValues(Changes):
    """Of texts and hyperparameters."""

    def changed(self, record: Record) -> Record:
        """At 250 characters."""
        if isinstance(record.value, str):
            record.value = record.value[:250]
        if record.kind == Kind.PARAM:
            record.data = {key: str(value)[:250] for key, value in (record.data or {}).items()}
        return record


class LosesFiles(Changes):
    """Records without their files."""

    def changed(self, record: Record) -> Record:
        """No file."""
        record.blobs = None
        return record


class Doubles(Changes):
    """What is sent again is shown again."""

    def send(self, records: Sequence[Record]) -> None:
        """A time of its own for each."""
        self.count = getattr(type(self), "sent", 0)
        super().send(records)
        type(self).sent = self.count + 1  # type: ignore[attr-defined]

    def changed(self, record: Record) -> Record:
        """A microsecond later each time."""
        record.time_ns += self.count
        return record


class RefusesTheUnknown(MemoryAdapter):
    """A batch with a kind that it does not know."""

    def send(self, records: Sequence[Record]) -> None:
        """Only what is in the enumeration."""
        for record in records:
            Kind(record.kind)
        super().send(records)


class RefusesBatches(MemoryAdapter):
    """Gives up a whole batch because of one file."""

    def send(self, records: Sequence[Record]) -> None:
        """All or nothing, and nothing is reported."""
        try:
            super().send(records)
        except (OSError, ValueError):
            return


class ForgetsStatuses(MemoryAdapter):
    """Shows every run as running."""

    def set_status(self, status: RunStatus) -> None:
        """Not told."""


class ClosesOnce(MemoryAdapter):
    """A second time raises."""

    def close(self) -> None:
        """As a file descriptor."""
        assert self.run is not None
        super().close()


class CannotClassify(MemoryAdapter):
    """An error without arguments."""

    def classify(self, error: Exception) -> Fault:
        """Expects a number."""
        return Fault(FaultKind.TRANSIENT if error.args[0] else FaultKind.BUG, str(error))


class BlamesTheRecord(MemoryAdapter):
    """For a lost connection."""

    def classify(self, error: Exception) -> Fault:
        """Everything is the record's fault."""
        return Fault(FaultKind.REJECTED, repr(error))


@pytest.mark.parametrize(("broken", "test"), [
    (LosesTheLast, "test_values_keys_steps_and_times_are_read_back"),
    (StampsAnew, "test_values_keys_steps_and_times_are_read_back"),
    (TakesZeroForNone, "test_values_keys_steps_and_times_are_read_back"),
    (TakesZeroForNone, "test_every_step_is_read_back"),
    (FloorsSteps, "test_every_step_is_read_back"),
    (DropsNonFinite, "test_nan_and_infinities_are_read_back"),
    (StoresFloat32, "test_every_number_is_read_back"),
    (MergesKeys, "test_two_keys_are_never_one_series"),
    (MergesKeys, "test_names_are_the_same_for_the_next_host"),
    (LosesTheLast, "test_thousands_of_keys"),
    (LosesTheLast, "test_a_long_run_arrives"),
    (LosesTheLast, "test_a_step_that_is_logged_twice"),
    (CutsValues, "test_hyperparameters_are_read_back_whole"),
    (CutsValues, "test_texts_and_dictionaries_are_read_back"),
    (LosesFiles, "test_files_are_read_back"),
    (Doubles, "test_replay_after_a_crash"),
    (Doubles, "test_replay_from_the_beginning"),
    (LosesTheLast, "test_hosts_take_turns"),
    (ForgetsStatuses, "test_every_status_is_shown"),
    (RefusesTheUnknown, "test_unknown_kinds_do_not_fail_a_batch"),
    (RefusesBatches, "test_a_file_that_cannot_be_had_costs_only_itself"),
    (ClosesOnce, "test_calls_in_the_wrong_order_raise_nothing"),
    (CannotClassify, "test_classify_never_raises"),
    (BlamesTheRecord, "test_what_may_pass_is_transient"),
])  # fmt: skip
def test_the_suite_fails_an_adapter_that_breaks_its_promise(
    broken: type[MemoryAdapter], test: str, tmp_path: Path
) -> None:
    """Each test of the suite fails for an adapter with the fault that it is there to find."""
    case = TestMemory()
    case.make_adapter = broken  # type: ignore[method-assign, assignment]
    run = case.make_run(tmp_path, {})
    others: dict[str, Any] = {
        "test_files_are_read_back": {"tmp_path": tmp_path},
        "test_every_status_is_shown": {"status": RunStatus.FAILED},
        "test_unknown_kinds_do_not_fail_a_batch": {"tmp_path": tmp_path},
        "test_a_file_that_cannot_be_had_costs_only_itself": {"identifier": "0" * 40},
        "test_classify_never_raises": {"error": Exception()},
        "test_what_may_pass_is_transient": {"error": ConnectionResetError("reset")},
    }
    with pytest.raises((AssertionError, IndexError)):
        getattr(case, test)(run=run, **others.get(test, {}))
    run.close()


def test_the_suite_has_every_test_sabotaged_above_but_those_of_the_registry() -> None:
    """Every test of the suite that is about records has its broken adapter above."""
    marks = test_the_suite_fails_an_adapter_that_breaks_its_promise.pytestmark  # type: ignore[attr-defined]
    sabotaged = {test for _, test in marks[0].args[1]}
    of_the_registry = {
        "test_names_that_are_fine_are_kept",
        "test_loading_it_imports_nothing_heavy",
        "test_a_missing_sdk_is_told_with_its_cure",
        "test_it_says_what_it_does",
    }
    assert {name for name in dir(AdapterConformance) if name.startswith("test_")} == sabotaged | of_the_registry
