"""What every adapter must do: a class of tests that a tracker's own test class inherits.

A case says how to make options and how to read back, with the tracker's own reader, what arrived; the tests are the
same for all. Where a tracker differs it says so in its :class:`~lightning_loggers.adapters.base.Capabilities` or in the
attributes below, and the tests then expect exactly that difference: none is skipped.
"""

import errno
import functools
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lightning_loggers.adapters.base import Adapter, Capabilities, Context, Delivered, Fault, FaultKind
from lightning_loggers.adapters.registry import KNOWN, adapter_class, require_sdk
from lightning_loggers.errors import MissingDependencyError
from lightning_loggers.journal import read
from lightning_loggers.journal.layout import REJECTED_FILE
from lightning_loggers.records import Blob, Kind, Record, RunStatus, is_terminal
from lightning_loggers.testing.harness import Point, RunUnderTest, differences

ODD_KEYS = (
    *("loss", "val/loss", "", " ", " a", "a ", "a b", "a  b", "A_B", "a_b", "a@b", "a-b", "a.b", "a:b", "a=b", "a,b"),
    *(
        "/",
        "/a",
        "a/",
        "a//b",
        "a/b",
        "a",
        ".",
        "..",
        "../a",
        "a\\b",
        "a%b",
        "a%2Fb",
        "a#b",
        "a?b",
        "a|b",
        'a"b',
        "a'b",
    ),
    *("a\nb", "a\tb", "a\0b", "\x1b[2J", "é", "e\u0301", "損失", "🔥", "{}", "$a", "step", "time", "epoch", "_step"),
    *("_timestamp", "None", "nan", "1", "l" * 300, "l" * 299 + "m", "k" * 10_000, "k" * 9_999 + "l", "ü" * 10_000),
)
"""Keys that some tracker refuses, changes, cuts or takes for one another."""

VALUES = (0.0, -0.0, 1.0, -1.5, 1 / 3, 0.1 + 0.2, 5e-324, -1e-300, 1.7e308, 2**53 + 1, 2**63 - 1, -(2**63), True)

TEXTS = ("", " ", "plain", "ü 損失 🔥", "two\nlines\n", "x" * 10_000, "<b>html</b> & \\n {}", "a\tb")


class AdapterConformance:
    """Base of a tracker's case. Name the subclass ``Test...`` so that pytest collects it.

    Attributes:
        tracker: The adapter's name in the registry.
        time_resolution_s: How exactly the tracker keeps times, seconds.
        no_step: What a missing step is shown as.
        once_after_crash: Whether nothing is shown twice although a host died between sending and saving its place,
            without general deduplication: so for a file that is cut back to the place that was saved.
        keeps_repeats: Whether two values of one key at one step are both shown; if not, the later one is.
        statuses: What the tracker shows for a status. A status that is not in it is shown by nothing.
        many_keys: How many keys to log at once.

    Example::

        class TestMyTracker(AdapterConformance):
            tracker = "mytracker"

            @pytest.fixture
            def options(self, tmp_path):
                return {"path": str(tmp_path / "tracker.db")}

            def points(self, run):
                return [Point(*row) for row in my_reader(run.options["path"], run.remote.id)]
    """

    tracker: ClassVar[str]
    time_resolution_s: ClassVar[float] = 0.001
    no_step: ClassVar[int | None] = None
    once_after_crash: ClassVar[bool] = False
    keeps_repeats: ClassVar[bool] = True
    statuses: ClassVar[Mapping[RunStatus, str]] = {}
    many_keys: ClassVar[int] = 3_000

    # ------------------------------------------------------------------ what a case says

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        """The tracker's options: a fresh place for each test."""
        return {}

    def points(self, run: RunUnderTest) -> list[Point]:
        """Read back every point of the run, under the tracker's names, with the tracker's own reader."""
        raise NotImplementedError

    def params(self, run: RunUnderTest) -> dict[str, str]:
        """Read back the hyperparameters; those that the tracker keeps elsewhere because they are long, whole."""
        raise NotImplementedError

    def texts(self, run: RunUnderTest) -> list[str]:
        """Read back the texts."""
        raise NotImplementedError

    def dicts(self, run: RunUnderTest) -> list[Any]:
        """Read back the dictionaries."""
        raise NotImplementedError

    def files(self, run: RunUnderTest) -> list[bytes]:
        """Read back the contents of artifacts and checkpoints."""
        raise NotImplementedError

    def status(self, run: RunUnderTest) -> str | None:
        """Read back the run's status; ``None`` if the tracker shows none."""
        return None

    def shown_value(self, value: float) -> float:
        """What the tracker shows for a value."""
        return float(value)

    def shown_step(self, step: int | float | None) -> int | float | None:
        """What the tracker shows for a step."""
        if step is None:
            return self.no_step
        return math.floor(step) if self.capabilities.integer_steps else step

    def shown_param(self, value: Any) -> str:
        """What the tracker shows for a hyperparameter."""
        return str(value)

    def shown_text(self, text: str) -> str:
        """What the tracker shows for a text."""
        return text

    def shown_file(self, content: bytes) -> bytes:
        """What the tracker shows of a file."""
        return content

    # ------------------------------------------------------------------ machinery

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        """What the adapter claims."""
        return adapter_class(self.tracker).capabilities

    @pytest.fixture
    def run(self, tmp_path: Path, options: dict[str, Any]) -> Iterator[RunUnderTest]:
        """A run to log to."""
        run = self.make_run(tmp_path / "runs", options)
        yield run
        run.close()

    def make_run(self, folder: Path, options: dict[str, Any]) -> RunUnderTest:
        """Make a run; for a case that needs to do something before."""
        return RunUnderTest(folder, self.tracker, options, self.make_adapter)

    def make_adapter(self, context: Context) -> Adapter:
        """Make the adapter; for a case that needs another one than the registry's."""
        return adapter_class(self.tracker)(context)

    def expected(self, run: RunUnderTest) -> list[Point]:
        """What the tracker should show of what was logged."""
        points = [
            Point(key, self.shown_value(value), self.shown_step(step), time_s)
            for key, value, step, time_s in run.logged
        ]
        if self.keeps_repeats:
            return points
        return list({(point.key, point.step): point for point in points}.values())

    def shown(self, run: RunUnderTest) -> list[Point]:
        """What the tracker shows, under the keys that were logged."""
        keys = run.keys
        return [point._replace(key=keys.get(point.key, point.key)) for point in self.points(run)]

    def check(self, run: RunUnderTest, *, sent_again: bool = False) -> None:
        """Compare what the tracker shows with what was logged.

        Args:
            run: The run.
            sent_again: Whether records were sent twice: without deduplication they may then be shown twice.
        """
        expected, shown = self.expected(run), self.shown(run)
        if sent_again and not self.capabilities.deduplicates:
            expected, shown = _once(expected), _once(shown)
        problems = differences(expected, shown, self.time_resolution_s if self.capabilities.keeps_time else None)
        assert not problems, f"{len(problems)} differences, such as:\n" + "\n".join(problems[:10])

    def takes(self, *kinds: Kind) -> bool:
        """Whether the adapter stores all these kinds."""
        return all(kind in self.capabilities.kinds for kind in kinds)

    # ------------------------------------------------------------------ what is logged arrives

    def test_values_keys_steps_and_times_are_read_back(self, run: RunUnderTest) -> None:
        """Every point of several series arrives with its value, key, step and the time of its log call."""
        for step in range(50):
            run.log_metrics({"loss": 1 / (step + 1), "val/accuracy": step / 50}, step)
            if step % 10 == 0:
                run.log_metrics({"lr": 0.1 * step}, step)
        state = run.deliver()
        assert (state.delivered, state.rejected, run.pending) == (55, 0, 0)
        self.check(run)

    def test_every_number_is_read_back(self, run: RunUnderTest) -> None:
        """Zeros, subnormals, huge numbers, 64-bit integers and booleans arrive as the case says they are shown."""
        for step, value in enumerate(VALUES):
            run.log_metrics({"value": value}, step)
        assert run.deliver().rejected == 0
        self.check(run)

    def test_nan_and_infinities_are_read_back(self, run: RunUnderTest) -> None:
        """NaN and infinities arrive, beside finite values of the same call and at the ends of a series."""
        for step, value in enumerate([math.nan, 1.0, math.inf, -math.inf, math.nan]):
            run.log_metrics({"odd": value, "plain": float(step)}, step)
        assert run.deliver().rejected == 0
        self.check(run)

    def test_every_step_is_read_back(self, run: RunUnderTest) -> None:
        """Step 0, none, negative, large, falling and fractional ones arrive; what is changed is told once."""
        for number, step in enumerate([7, 0, None, -3, 2**40, 5, 2.5, None, 2**53 + 1]):
            run.log_metrics({f"metric{number}": number, "same": number}, step)
        if self.keeps_repeats:
            run.log_metrics({"again": 1.0}, 2.5)
        assert run.deliver().rejected == 0
        self.check(run)
        told = [message for message in run.notices.messages if "2.5" in message]
        assert len(told) == (1 if self.shown_step(2.5) != 2.5 else 0)

    def test_a_step_that_is_logged_twice(self, run: RunUnderTest) -> None:
        """Two values of one key at one step are both shown, or the later one, as the case says."""
        run.log_metrics({"loss": 1.0, "other": 5.0}, 3)
        run.log_metrics({"loss": 2.0}, 3)
        run.log_metrics({"loss": 3.0}, 4)
        assert run.deliver().rejected == 0
        self.check(run)

    def test_two_keys_are_never_one_series(self, run: RunUnderTest) -> None:
        """Empty, long, odd and nearly equal keys are a series each, whatever the tracker takes for a name."""
        for step in range(2):
            run.log_metrics({key: number + step / 2 for number, key in enumerate(ODD_KEYS)}, step)
        for number, key in enumerate(ODD_KEYS):
            run.log_metrics({key: -float(number)}, 2)
        assert run.deliver().rejected == 0
        self.check(run)

    def test_names_are_the_same_for_the_next_host(self, run: RunUnderTest) -> None:
        """A key keeps its name when another process goes on, in whatever order it meets the keys."""
        run.log_metrics(dict.fromkeys(ODD_KEYS, 0.0), 0)
        run.deliver()
        for key in reversed(ODD_KEYS):
            run.log_metrics({key: 1.0}, 1)
        run.deliver()
        self.check(run)

    def test_names_that_are_fine_are_kept(self) -> None:
        """Fitting a key never raises, and a name that it made is fitted to itself."""
        fit = adapter_class(self.tracker).fit_key
        for key in (*ODD_KEYS, "\ud800", "\x7f", "\u202e", " /. "):
            assert fit(fit(key)) == fit(key), key

    def test_thousands_of_keys(self, run: RunUnderTest) -> None:
        """One log call with thousands of keys arrives whole."""
        run.log_metrics({f"layer{number}/norm": number / 2 for number in range(self.many_keys)}, 1)
        run.log_metrics({"loss": 1.0}, 2)
        assert run.deliver().rejected == 0
        self.check(run)

    def test_a_long_run_arrives(self, run: RunUnderTest) -> None:
        """Thousands of log calls arrive, across many batches."""
        for step in range(3_000):
            run.log_metrics({"loss": float(step)}, step)
        assert run.deliver().rejected == 0
        self.check(run)

    def test_hyperparameters_are_read_back_whole(self, run: RunUnderTest) -> None:
        """Numbers, texts, long values, odd names and hundreds of them arrive, each under its own name."""
        params: dict[str, Any] = {"lr": 1e-3, "layers": 3, "flag": True, "none": None, "empty": "", "text": "ü\n🔥"}
        params |= {"nan": math.nan, "inf": math.inf, "long": "v" * 10_000, "a@b": 1, "a_b": 2, "": 3, "n" * 10_000: 4}
        params |= {f"many/{number}": number for number in range(300)}
        run.log_params(params)
        run.log_params({"later": "added"})
        assert run.deliver().rejected == 0
        expected = {key: self.shown_param(value) for key, value in {**params, "later": "added"}.items()}
        if not self.takes(Kind.PARAM):
            expected = {}
        keys = run.keys
        shown = {keys.get(name, name): value for name, value in self.params(run).items()}
        assert shown.keys() == expected.keys()
        assert [key[:60] for key in expected if shown[key] != expected[key]] == []

    def test_texts_and_dictionaries_are_read_back(self, run: RunUnderTest) -> None:
        """Texts and dictionaries arrive, also several under one name and step, and one longer than a journal's line."""
        for step, text in enumerate(TEXTS):
            run.log_text("notes/sample", text, step)
        run.log_text("notes/sample", "again", 0)
        run.log_text("no step", "without")
        run.log_text("long", "y" * 5_000_000)
        values = [{"a": [1, 2.5, None]}, {"ü": {"nested": "deep"}}, {}]
        for value in values:
            run.log_dict("table", value, 1)
        assert run.deliver().rejected == 0
        texts = [*TEXTS, "again", "without", "y" * 5_000_000] if self.takes(Kind.TEXT) else []
        assert sorted(self.texts(run)) == sorted(map(self.shown_text, texts))
        shown = [json.dumps(value, sort_keys=True) for value in self.dicts(run)]
        assert sorted(shown) == sorted(json.dumps(value) for value in values if self.takes(Kind.DICT))

    def test_files_are_read_back(self, run: RunUnderTest, tmp_path: Path) -> None:
        """Artifacts and checkpoints arrive with their content, of odd names too."""
        contents = []
        for number, name in enumerate(["a.bin", "ü b #1.txt", "empty", "epoch=1-step=2.ckpt"]):
            content = bytes(range(256)) * number
            (tmp_path / name).write_bytes(content)
            if name.endswith(".ckpt"):
                meta = {"aliases": ["latest"], "metadata": {"score": 0.5}}
                run.log_file(tmp_path / name, "epoch=1-step=2", Kind.CHECKPOINT, meta=meta)
                contents += [content] if self.takes(Kind.CHECKPOINT) else []
            else:
                run.log_file(tmp_path / name, f"folder{number}")
                contents += [content] if self.takes(Kind.ARTIFACT) else []
            (tmp_path / name).unlink()
        run.log_metrics({"loss": 1.0}, 0)
        assert run.deliver().rejected == 0
        self.check(run)
        assert sorted(self.files(run)) == sorted(map(self.shown_file, contents))

    # ------------------------------------------------------------------ sent again, and gone on with

    def test_replay_after_a_crash(self, run: RunUnderTest) -> None:
        """What was sent, but not noted as sent when the host died, is sent again: nothing is lost, or shown twice."""
        for step in range(20):
            run.log_metrics({"loss": float(step), "other@x": math.nan}, step)
        run.log_params({"lr": 0.1})
        run.deliver()
        kept = run.remember()
        for step in range(20, 60):
            run.log_metrics({"loss": float(step), "new": 0.5}, step)
        run.deliver()
        run.forget(kept)
        run.deliver()
        assert run.state.rejected == 0
        self.check(run, sent_again=not self.once_after_crash)
        run.log_metrics({"loss": -1.0}, 60)
        run.deliver()
        self.check(run, sent_again=not self.once_after_crash)

    def test_replay_from_the_beginning(self, run: RunUnderTest) -> None:
        """With the saved state damaged everything is sent again, to the same run: as after a crash."""
        for step in range(30):
            run.log_metrics({"loss": float(step)}, step)
        run.log_params({"lr": 0.1})
        run.deliver()
        self.check(run)
        run.damage_state()
        run.log_metrics({"loss": 30.0}, 30)
        assert run.deliver().rejected == 0
        self.check(run, sent_again=True)

    def test_hosts_take_turns(self, run: RunUnderTest) -> None:
        """A run that is delivered by one process after another is one run, each point shown once."""
        for step in range(5):
            run.log_metrics({"loss": float(step), f"key{step}": 1.0}, step)
            run.log_text("note", f"text {step}", step)
            run.deliver()
        self.check(run)
        if self.takes(Kind.TEXT):
            assert sorted(self.texts(run)) == [f"text {step}" for step in range(5)]

    @pytest.mark.parametrize("status", list(RunStatus))
    def test_every_status_is_shown(self, run: RunUnderTest, status: RunStatus) -> None:
        """The run's status is shown in the tracker's words, and a run goes on after its end."""
        run.log_metrics({"loss": 1.0}, 0)
        run.log_status(status)
        run.deliver()
        assert self.status(run) == self.statuses.get(status)
        run.log_metrics({"loss": 2.0}, 1)
        run.deliver()
        if is_terminal(status):
            assert self.status(run) == self.statuses.get(RunStatus.RUNNING)
        run.log_status(RunStatus.FINISHED)
        run.deliver()
        assert self.status(run) == self.statuses.get(RunStatus.FINISHED)
        self.check(run)

    # ------------------------------------------------------------------ what is wrong costs nothing else

    def test_unknown_kinds_do_not_fail_a_batch(self, run: RunUnderTest, tmp_path: Path) -> None:
        """Records of kinds that the adapter does not know leave the records beside them alone, and are not refused."""
        (tmp_path / "file").write_bytes(b"content")
        blob = run.writer.blobs.link_file(tmp_path / "file")
        unknown = ["hologram", *(kind.value for kind in Kind if kind not in {*self.capabilities.kinds, Kind.STATUS})]
        for step, kind in enumerate(unknown):
            run.log_metrics({"loss": float(step)}, step)
            run.log(Record(0, kind, step, id=f"id {step}", value={"a": 1}))
            run.log(Record(0, kind, id="x", data={"b": 1.0}, blobs=[blob], meta={"c": None}, phase="train"))
        state = run.deliver()
        assert (state.rejected, run.pending) == (0, 0)
        self.check(run)

    @pytest.mark.parametrize("identifier", ["0" * 40, "../../outside", "link-0/../x"])
    def test_a_file_that_cannot_be_had_costs_only_itself(self, run: RunUnderTest, identifier: str) -> None:
        """A record whose file is missing, or not its own to name, is set aside; what is around it arrives."""
        for step in range(6):
            run.log_metrics({"loss": float(step)}, step)
            if step == 3:
                run.log(Record(0, Kind.ARTIFACT.value, id="gone", blobs=[Blob(identifier, "gone.txt", 3)]))
        state = run.deliver()
        assert run.pending == 0
        assert state.rejected <= 1
        assert state.rejected == len(_lines(run.folder / REJECTED_FILE))
        self.check(run, sent_again=True)

    def test_calls_in_the_wrong_order_raise_nothing(self, run: RunUnderTest) -> None:
        """Sending before opening or after closing, and opening or closing twice, are outcomes; the run is right."""
        run.log_metrics({"loss": 1.0}, 0)
        context = run.context()
        records = list(read(run.run_dir))
        adapter = self.make_adapter(context)
        adapter.close()
        for outcome in (adapter.write(records), adapter.update_status(RunStatus.RUNNING)):
            assert isinstance(outcome, Delivered | Fault)
        assert isinstance(adapter.open_run(), Delivered)
        assert isinstance(adapter.open_run(), Delivered)
        assert isinstance(adapter.write(records), Delivered)
        assert isinstance(adapter.update_status(RunStatus.FINISHED), Delivered)
        adapter.close()
        adapter.close()
        assert isinstance(adapter.write(records), Delivered | Fault)
        assert isinstance(adapter.update_status(RunStatus.FINISHED), Delivered | Fault)
        adapter.close()
        run.adopt(context)
        assert run.deliver().rejected == 0
        self.check(run, sent_again=True)

    @pytest.mark.parametrize("error", [
        Exception(), ValueError("x" * 100_000), KeyError(1), RuntimeError("ü\ud800"), TypeError(None),
        ImportError("no"), MemoryError(), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        json.JSONDecodeError("bad", "", 0),
        FileNotFoundError(errno.ENOENT, "gone"), PermissionError(errno.EACCES, "closed"), RecursionError(),
        ExceptionGroup("several", [ValueError("one")]), subprocess.TimeoutExpired("command", 3),
    ], ids=lambda error: type(error).__name__)  # fmt: skip
    def test_classify_never_raises(self, run: RunUnderTest, error: Exception) -> None:
        """Whatever an SDK raises is classified, alone and as its own cause."""
        run.log_metrics({"loss": 1.0}, 0)
        adapter = self.make_adapter(run.context())
        for _ in range(2):
            fault = adapter.classify(error)
            assert isinstance(fault.kind, FaultKind)
            assert fault.reason
            error.__context__ = ValueError("cause")
            error.__context__.__context__ = error

    @pytest.mark.parametrize("error", [
        ConnectionResetError(errno.ECONNRESET, "reset"), ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
        TimeoutError("no answer"), OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "I/O error"),
    ], ids=str)  # fmt: skip
    def test_what_may_pass_is_transient(self, run: RunUnderTest, error: Exception) -> None:
        """A lost connection and a full disk are tried again, never held against a record."""
        run.log_metrics({"loss": 1.0}, 0)
        assert self.make_adapter(run.context()).classify(error).kind is FaultKind.TRANSIENT

    # ------------------------------------------------------------------ what it costs to have it

    def test_loading_it_imports_nothing_heavy(self, tmp_path: Path) -> None:
        """The adapter's module loads without its SDK, torch or Lightning, so that ``sync`` starts in a moment."""
        known = KNOWN.get(self.tracker)
        heavy = {"torch", "lightning", "pytorch_lightning", *([known.module] if known and known.module else [])}
        code = (
            "import sys\n"
            "from lightning_loggers.adapters.registry import adapter_class\n"
            f"assert adapter_class({self.tracker!r}).name == {self.tracker!r}\n"
            f"assert not {heavy!r} & set(sys.modules), {heavy!r} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr

    def test_a_missing_sdk_is_told_with_its_cure(self) -> None:
        """Without the SDK the check of a logger's constructor raises, naming the logger, the SDK and the command."""
        known = KNOWN.get(self.tracker)
        if known is None or known.module is None:
            require_sdk(self.tracker, "SomeLogger")  # nothing to miss
            return
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, known.module, None)
            with pytest.raises(MissingDependencyError, match=r"SomeLogger.*pip install 'lightning-loggers") as caught:
                require_sdk(self.tracker, "SomeLogger")
        assert str(known.requirement) in str(caught.value)

    def test_it_says_what_it_does(self) -> None:
        """The adapter's name is the registry's, and it says in words how it stores metrics and every other kind."""
        kind = adapter_class(self.tracker)
        assert kind.name == self.tracker
        assert kind.name.isalnum()
        assert kind.name == kind.name.lower()
        assert Kind.METRIC in kind.capabilities.kinds
        assert all(isinstance(what, Kind) and words for what, words in kind.capabilities.kinds.items())
        assert kind.max_key_length >= 20


def _once(points: list[Point]) -> list[Point]:
    return list({(key, repr(value), step): Point(key, value, step, at) for key, value, step, at in points}.values())


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
