"""ConsoleLogger: on real terminals, pipes and files, read as they come out."""

import fcntl
import inspect
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger as TheirCSVLogger
from warm_python import WarmPython

from lightning_loggers import ConsoleLogger, InMemoryLogger, LoggerCollection
from lightning_loggers.adapters.console import MAX_SHOWN_CHARS
from lightning_loggers.errors import ConfigurationError
from lightning_loggers.journal import read

CLOCK = r"\d\d:\d\d:\d\d"
LOG = """
import sys
from lightning_loggers import ConsoleLogger
logger = ConsoleLogger("digits", version="one", {arguments})
logger.log_hyperparams({{"lr": 0.001}})
for step in range(5):
    logger.log_metrics({{"loss": 1 / (step + 1), "n": step}}, step)
logger.log_text("note", "one\\ntwo")
{ending}
logger.finalize("success")
"""

SYNC = "import sys; sys.argv = ['', 'sync', '{}']; from lightning_loggers.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmPython]:
    """Runs programs in processes of their own, whose temporary files go with the tests' own."""
    with WarmPython(TMPDIR=str(tmp_path_factory.mktemp("tmp"))) as python:
        yield python


def program(arguments: str = "", ending: str = "") -> str:
    """A program that logs."""
    return LOG.format(arguments=arguments, ending=ending)


class Terminal:
    """A program whose standard output is a terminal, and what that terminal shows."""

    def __init__(self, python: WarmPython, code: str, *, tear_down: bool = False) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
        self._errors = os.memfd_create("stderr")
        self.program = python.start(
            code,
            stdout=slave,
            stderr=self._errors,
            tear_down=tear_down,
            TERM="xterm-256color",
            COLUMNS="100",
            LINES="40",
        )
        os.close(slave)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.program.close()
        os.close(self._master)
        os.close(self._errors)

    @property
    def errors(self) -> str:
        """What the program wrote to standard error."""
        return os.pread(self._errors, 2**20, 0).decode()

    def read(self, until: str | None = None, timeout_s: float = 120) -> str:
        """What is shown until the program ends, or until some text."""
        shown = b""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            ready, _, _ = select.select([self._master], [], [], 0.1)
            if ready:
                try:
                    shown += os.read(self._master, 65_536)
                except OSError:  # the last process has closed the terminal
                    break
                if until is not None and until.encode() in shown:
                    return shown.decode(errors="replace")
            elif self.program.poll() is not None:
                break
        else:
            pytest.fail(f"not within {timeout_s:g} s; so far: {shown.decode()[-2000:]}")
        assert until is None, shown.decode()
        assert self.program.wait() == 0, self.errors
        return shown.decode()


def lines_on_terminal(python: WarmPython, code: str) -> list[str]:
    """The lines that a program shows on a terminal."""
    with Terminal(python, code) as terminal:
        return terminal.read().replace("\r\n", "\n").splitlines()


def in_pipe(python: WarmPython, code: str) -> str:
    """What a program writes into a pipe."""
    ours, theirs = os.pipe()
    with open(ours, encoding="utf-8") as pipe:
        errors = os.memfd_create("stderr")
        running = python.start(code, stdout=theirs, stderr=errors)
        os.close(theirs)
        shown = pipe.read()
        assert running.wait() == 0, os.pread(errors, 2**20, 0).decode()
        running.close()
        os.close(errors)
        return shown


EXPECTED = [
    rf"{CLOCK}  params",
    r"          \| lr = 0\.001",
    rf"{CLOCK}  step 0  loss=1  n=0",
    rf"{CLOCK}  step 1  loss=0\.5  n=1",
    rf"{CLOCK}  step 2  loss=0\.333333  n=2",
    rf"{CLOCK}  step 3  loss=0\.25  n=3",
    rf"{CLOCK}  step 4  loss=0\.2  n=4",
    rf"{CLOCK}  text note",
    r"          \| one",
    r"          \| two",
    rf"{CLOCK}  run digits/one finished",
]


def assert_lines(lines: list[str]) -> None:
    """The lines are those of the program, in order."""
    assert len(lines) == len(EXPECTED), lines
    for line, pattern in zip(lines, EXPECTED, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


# ---------------------------------------------------------------------- lines


def test_lines_on_a_terminal(python: WarmPython) -> None:
    """On a terminal every log call is a readable line, in order, with its step, and the run's end is the last."""
    assert_lines(lines_on_terminal(python, program()))


def test_a_line_is_shown_while_the_run_goes_on(python: WarmPython) -> None:
    """A line appears on the terminal while the program that logged it is still busy."""
    with Terminal(python, program(ending="import threading\nthreading.Event().wait()")) as terminal:
        assert "step 4  loss=0.2" in terminal.read(until="step 4  loss=0.2")
        assert terminal.program.poll() is None


def test_nothing_in_a_pipe_unless_asked(python: WarmPython) -> None:
    """In a pipe nothing is shown by default; with ``style="lines"`` the same lines as on a terminal are."""
    assert in_pipe(python, program()) == ""
    assert_lines(in_pipe(python, program('style="lines"')).splitlines())


def test_standard_error_can_be_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """With ``stream="stderr"`` the lines go there and nothing to standard output."""
    logger = ConsoleLogger(style="lines", stream="stderr")
    logger.log_metrics({"loss": 0.25}, 3)
    logger.finalize("failed")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(rf"^{CLOCK}  step 3  loss=0\.25$", shown.err, re.MULTILINE)
    assert re.search(rf"^{CLOCK}  run lightning_logs/\S+ failed$", shown.err, re.MULTILINE)


def test_nothing_that_is_logged_steers_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences and line breaks in keys, names, texts and hyperparameters are shown, not obeyed."""
    logger = ConsoleLogger("a\x1b[2Jb", style="lines")
    evil = "x\x1b[2J\x1b]0;title\x07\r\n\x9b2Jy\u202e"
    logger.log_metrics({evil: 1.0}, 0)
    logger.log_hyperparams({evil: evil})
    logger.log_text(evil, evil)
    logger.log_dict(evil, {evil: evil})
    logger.log_metrics({"loss": evil}, 1)
    logger.finalize("success")
    shown = capsys.readouterr().out
    assert "x\\x1b[2J" in shown
    assert [char for char in shown if not char.isprintable() and char != "\n"] == []
    assert all(re.match(rf"{CLOCK}  |          \| ", line) for line in shown.splitlines())


def test_long_values_are_cut_where_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """A long text is shown up to a limit, with its length; the journal has all of it."""
    logger = ConsoleLogger(style="lines")
    logger.log_text("essay", "w" * 100_000)
    logger.finalize("success")
    shown = capsys.readouterr().out
    assert f"| {'w' * MAX_SHOWN_CHARS} … [100,000 characters, whole in the journal]\n" in shown
    assert next(iter(read(str(logger.log_dir)))).value == "w" * 100_000


def test_many_metrics_are_several_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A call with hundreds of metrics is broken into lines of bearable length, each with time and step."""
    logger = ConsoleLogger(style="lines")
    logger.log_metrics({f"layer{number}/norm": number / 2 for number in range(300)}, 7)
    logger.finalize("success")
    *lines, _ = capsys.readouterr().out.splitlines()
    assert all(re.match(rf"{CLOCK}  step 7  layer", line) and len(line) <= 160 for line in lines)
    assert re.findall(r"(layer\d+/norm)=", "".join(lines)) == [f"layer{number}/norm" for number in range(300)]


def test_what_an_encoding_lacks_is_escaped(python: WarmPython) -> None:
    """A terminal that knows only ASCII gets escapes instead of an error."""
    ending = 'logger.log_metrics({"größe🔥": 1.0}, 9)'
    done = python.run(program('style="lines"', ending), encoding="ascii").ok()
    assert "gr\\xf6\\xdfe\\U0001f525=1\n" in done.stdout


# ---------------------------------------------------------------------- the table


def test_the_table_is_kept_up_to_date(python: WarmPython) -> None:
    """On a terminal the table has one row a metric with its last, smallest and largest value; the rest is lines."""
    shown = "\n".join(lines_on_terminal(python, program('style="table"')))
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.rpartition("metric")[2])
    rows = {
        cells[1]: cells[2:7] for cells in (re.split(r"\s*│\s*", line) for line in last.splitlines()) if len(cells) > 6
    }
    assert rows == {"loss": ["0.2", "4", "0.2", "1", "5"], "n": ["4", "4", "0", "4", "5"]}
    assert re.search(r"\| two", shown)
    assert shown.rstrip().endswith("run digits/one finished")


def test_the_table_is_quiet_in_a_pipe(python: WarmPython) -> None:
    """A table needs a terminal: in a pipe nothing is shown."""
    assert in_pipe(python, program('style="table"')) == ""


def test_a_killed_run_leaves_the_cursor_visible(python: WarmPython) -> None:
    """If the program is killed with its table on the terminal, the terminal's cursor is not left hidden."""
    with Terminal(python, program('style="table"', ending="import threading\nthreading.Event().wait()")) as terminal:
        shown = terminal.read(until="loss")
        terminal.program.kill()
        assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


# ---------------------------------------------------------------------- beside a progress bar

FIT = """
import time, torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import {bar}
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning_loggers import ConsoleLogger

logger = ConsoleLogger()

class Model(BoringModel):
    def training_step(self, batch, index):
        deadline = time.monotonic() + 60
        while index and logger.stats.delivered < index and time.monotonic() < deadline:  # while the bar is there
            logger._host.hasten(0)
            time.sleep(0.01)
        self.log("my_loss", float(index))
        return super().training_step(batch, index)

Trainer(logger=logger, max_epochs=1, limit_train_batches=12, limit_val_batches=0, log_every_n_steps=1,
        callbacks=[{bar}(refresh_rate=1)], enable_model_summary=False, enable_checkpointing=False, accelerator="cpu",
).fit(Model())
"""


@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_lines_beside_the_trainers_progress_bar(python: WarmPython, bar: str) -> None:
    """With Lightning's own progress bars on the same terminal every line begins on a line of its own, and is whole."""
    shown = "\n".join(lines_on_terminal(python, FIT.format(bar=bar)))
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    found = re.findall(rf"(?:^|[\r\n]) *{CLOCK}  epoch 0  step (\d+)  my_loss=(\d+)  epoch=0\s*(?=[\r\n])", plain)
    assert found == [(str(step), str(step)) for step in range(12)]
    assert re.search(r"run lightning_logs/\S+ finished", plain)


# ---------------------------------------------------------------------- what goes wrong


def test_nobody_reads_any_more(python: WarmPython, tmp_path: Path) -> None:
    """If the reader of a pipe goes away, training goes on, it is told once, and the journal is whole."""
    ending = "for step in range(5, 3000): logger.log_metrics({'loss': 1.0}, step)\nprint(logger.stats, file=sys.stderr)"
    code = program(f'save_dir={str(tmp_path)!r}, style="lines"', ending)
    ours, theirs = os.pipe()
    os.close(ours)
    said = python.run(code, stdout=theirs).ok().stderr
    os.close(theirs)
    assert said.count("Nobody reads stdout any more") == 1
    assert len(list(read(tmp_path / "digits" / "one"))) == 3003


def test_a_full_disk_under_the_output_loses_nothing(python: WarmPython, tmp_path: Path) -> None:
    """Lines that a full disk refuses stay pending; training and its end are not held up longer than asked."""
    code = program(f'save_dir={str(tmp_path)!r}, style="lines", finalize_timeout_s=0.5')
    with open("/dev/full", "w") as full:
        done = python.run(code, stdout=full.fileno()).ok()
    assert done.stderr.count("No space left on device") == 1
    assert "lightning-loggers sync" in done.stderr
    shown = in_pipe(python, SYNC.format(tmp_path))
    for pattern in EXPECTED:
        assert re.search(f"^{pattern}$", shown, re.MULTILINE), (pattern, shown)


def test_a_stopped_terminal_holds_up_nothing(python: WarmPython) -> None:
    """A terminal that takes nothing any more (Ctrl+S) stops neither logging nor the end of the program."""
    ending = "for step in range(5, 3000): logger.log_metrics({'loss': 1.0}, step)"
    code = program("finalize_timeout_s=1.0", ending)
    with Terminal(python, code, tear_down=True) as terminal:  # nobody reads it: its buffer of 4 KB fills up
        assert terminal.program.wait() == 0, terminal.errors
        assert "had not taken all records within 1 s" in terminal.errors


def test_pending_lines_keep_their_temporary_folder(python: WarmPython, tmp_path: Path) -> None:
    """A temporary journal whose records were not delivered is left where the warning says it is."""
    with open("/dev/full", "w") as full:
        code = program('style="lines", finalize_timeout_s=0.2')
        done = python.run(code, stdout=full.fileno(), TMPDIR=str(tmp_path)).ok()
    (folder,) = re.findall(r"lightning-loggers sync (\S+)$", done.stderr.strip(), re.MULTILINE)[-1:]
    assert len(list(read(folder))) == 8
    python.run(program('style="lines"'), TMPDIR=str(tmp_path)).ok()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_trainer_left_a_whole_journal(python: WarmPython, tmp_path: Path) -> None:
    """What a killed program had logged is in its journal, and ``sync`` shows what the terminal did not."""
    code = program(f'save_dir={str(tmp_path)!r}, delivery="offline"', "import os; os.kill(os.getpid(), 9)")
    assert python.run(code).returncode == -signal.SIGKILL
    with Terminal(python, SYNC.format(tmp_path)) as terminal:
        shown = terminal.read()
    for pattern in EXPECTED[:-1]:
        assert re.search(rf"{pattern}\r?$", shown, re.MULTILINE), (pattern, shown)
    assert "run digits/one failed" in shown


def test_several_loggers_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Two consoles and a memory each get every value; one that was closed twice goes on with the next call."""
    first, second, memory = ConsoleLogger("a", style="lines"), ConsoleLogger("b"), InMemoryLogger()
    both = LoggerCollection([first, second, memory])
    for step in range(20):
        both.log_metrics({"loss": float(step)}, step)
    both.finalize("success")
    first.close()
    first.close()
    assert re.findall(r"loss=(\d+)", capsys.readouterr().out) == [str(step) for step in range(20)]
    assert memory.most_recent("loss") == 19.0
    assert not both.failures


@pytest.mark.parametrize("wrong", [{"style": "tables"}, {"stream": "log"}, {"delivery": "process"}])
def test_arguments_that_cannot_work_are_refused(wrong: dict[str, str]) -> None:
    """An unknown style or stream, and delivery in another process, raise in the constructor, quoting the value."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong.values()))):
        ConsoleLogger(**wrong)  # type: ignore[arg-type]


def test_constructor_has_the_common_parameters() -> None:
    """Names and defaults that Lightning's own file logger has are the same; the rest is keyword-only."""
    ours, theirs = (inspect.signature(kind).parameters for kind in (ConsoleLogger, TheirCSVLogger))
    for name in ("name", "version", "prefix"):
        assert ours[name].default == theirs[name].default
    positional = [name for name, parameter in ours.items() if parameter.kind is not parameter.KEYWORD_ONLY]
    assert positional == ["name", "save_dir"]
    assert {"delivery", "finalize_timeout_s", "agg_key_funcs", "agg_default_func"} <= ours.keys()
