"""Programs in processes of their own that need not import Lightning first, which takes seconds: forks of one that has.

With ``WarmPython() as python``, ``python.run(code)`` is what ``subprocess.run([sys.executable, "-c", code])`` is.
The programs end as any other: exit hooks run, threads are waited for, an exception is shown and exits with 1.
"""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

_SERVER = r"""
import atexit, json, os, socket, sys, tempfile, threading, traceback
import lightning.pytorch, lightning.pytorch.demos.boring_classes
import lightning_loggers.loggers.console, lightning_loggers.loggers.memory
listener = socket.socket(fileno=int(sys.argv[1]))
while True:
    size, fds, _, _ = socket.recv_fds(listener, 65536, 4)
    if not size:
        os._exit(0)
    if os.fork():                                   # waits for programs to come
        for fd in fds:
            os.close(fd)
        os.wait()
        continue
    if os.fork():                                   # ends at once, so that nobody is a zombie
        os._exit(0)
    program = os.fork()
    if program:                                     # waits for the program
        for fd in fds[:3]:
            os.close(fd)
        os.write(fds[3], b"%d\n" % program)
        _, status = os.waitpid(program, 0)
        os.write(fds[3], b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    break
order = json.loads(size)
listener.close()
for number, fd in enumerate(fds[:3]):
    os.dup2(fd, number)
for fd in fds:
    os.close(fd)
os.environ.update(order["environment"])
tempfile.tempdir = None                             # found anew
os.chdir(order["folder"])
encoding = order["encoding"]
sys.stdin = open(0, closefd=False)
sys.stdout = sys.__stdout__ = open(1, "w", encoding=encoding, closefd=False, buffering=1 if os.isatty(1) else -1)
sys.stderr = sys.__stderr__ = open(2, "w", encoding=encoding, errors="backslashreplace", closefd=False, buffering=1)
sys.argv = ["-c", *order["arguments"]]
code = 0
try:
    exec(compile(order["code"], "<program>", "exec"), {"__name__": "__main__"})
except BaseException as error:
    if order["tear_down"]:
        raise
    code = error.code if isinstance(error, SystemExit) else 1
    if not isinstance(error, SystemExit):
        traceback.print_exc()
if not order["tear_down"]:                          # what the interpreter does at its end, but for freeing every module
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)
"""


@dataclass
class Program:
    """A program that runs.

    Attributes:
        pid: Its process.
        returncode: As of ``subprocess.Popen``; ``None`` while it runs.
    """

    pid: int
    returncode: int | None
    _status: int
    _said: bytes = field(default=b"", repr=False)

    def poll(self) -> int | None:
        """Its return code, if it has ended."""
        while self.returncode is None and select.select([self._status], [], [], 0)[0]:
            data = os.read(self._status, 64)
            self._said += data
            if self._said.endswith(b"\n"):
                self.returncode = int(self._said)
            elif not data:
                self.returncode = -signal.SIGKILL  # its keeper was killed with it
        return self.returncode

    def wait(self, timeout_s: float = 120.0) -> int:
        """Wait for its end."""
        deadline = time.monotonic() + timeout_s
        while self.poll() is None:
            assert time.monotonic() < deadline, f"the program did not end within {timeout_s:g} s"
            select.select([self._status], [], [], 0.1)
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """SIGKILL."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill it if it runs, and let go of it."""
        self.kill()
        self.wait()
        os.close(self._status)


class WarmPython:
    """An interpreter that has imported Lightning and is forked for every program.

    Args:
        **environment: Environment variables of all programs.
    """

    def __init__(self, **environment: str) -> None:
        self._environment = environment

    def __enter__(self) -> "WarmPython":
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = ours
        self._server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _SERVER, str(theirs.fileno())], pass_fds=[theirs.fileno()]
        )
        theirs.close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._server.wait(60)

    def start(
        self, code: str, *arguments: object, stdout: int, stderr: int, encoding: str = "utf-8",
        folder: Path | None = None, tear_down: bool = False, **environment: str,
    ) -> Program:  # fmt: skip
        """Start a program; standard input is empty.

        Args:
            code: The program.
            *arguments: For ``sys.argv``.
            stdout: Its standard output.
            stderr: Its standard error.
            encoding: Of both.
            folder: Its working directory.
            tear_down: Whether the interpreter tears itself down at the end, as it does in life; that takes seconds.
            **environment: Environment variables.
        """
        order: dict[str, Any] = {
            "code": code,
            "arguments": [str(argument) for argument in arguments],
            "environment": {**self._environment, **environment},
            "encoding": encoding,
            "tear_down": tear_down,
            "folder": str(folder or os.getcwd()),
        }
        status, theirs = os.pipe()
        null = os.open(os.devnull, os.O_RDONLY)
        socket.send_fds(self._socket, [json.dumps(order).encode()], [null, stdout, stderr, theirs])
        os.close(null)
        os.close(theirs)
        pid = b""
        while not pid.endswith(b"\n"):
            assert select.select([status], [], [], 120)[0], "no program was started"
            pid += os.read(status, 1)
        return Program(int(pid), None, status)

    def run(self, code: str, *arguments: object, stdout: int | None = None, **options: Any) -> "Done":
        """Run a program to its end.

        Args:
            code: The program.
            *arguments: For ``sys.argv``.
            stdout: A descriptor to write to instead of what is returned.
            **options: As for :meth:`start`.
        """
        out, err = (os.memfd_create(name) for name in ("stdout", "stderr"))
        try:
            program = self.start(code, *arguments, stdout=stdout if stdout is not None else out, stderr=err, **options)
            try:
                program.wait()
            finally:
                program.close()
            return Done(program.returncode or 0, _content(out), _content(err))
        finally:
            os.close(out)
            os.close(err)


@dataclass(frozen=True)
class Done:
    """A program that has ended.

    Attributes:
        returncode: As of ``subprocess.run``.
        stdout: What it wrote there.
        stderr: Likewise.
    """

    returncode: int
    stdout: str
    stderr: str

    def ok(self) -> "Done":
        """Itself, if it ended well."""
        assert self.returncode == 0, self.stderr
        return self


def _content(descriptor: int) -> str:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()
