"""``lightning-loggers sync``."""

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from lightning_loggers.cli import console, tables

if TYPE_CHECKING:
    from lightning_loggers.delivery.sync import Outcome, Sync

_POLLS_BETWEEN_UPDATES = 3


def sync(
    paths: Annotated[list[Path], typer.Argument(help="Runs' folders, or any folders above runs.", metavar="PATH")],
    *,
    to: Annotated[str | None, typer.Option(help="Deliver to this address instead of the journals' own.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Keep watching, new runs included, until stopped.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be delivered; touch nothing.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="With --follow: seconds between looks.")] = 2.0,
    give_up_after: Annotated[
        float, typer.Option(min=0.0, help="Seconds that a tracker may fail without progress before it is left alone.")
    ] = 60.0,
) -> None:
    """Deliver every run below each PATH that has something undelivered.

    It may be stopped at any moment, or killed, and be started again: nothing is lost. Runs of dead processes are closed
    at the tracker. Exit code: 0 if nothing is pending at the end, 1 if something is (or would be, with --dry-run) or
    a journal cannot be read, 130 after Ctrl+C, 143 after SIGTERM.
    """
    from lightning_loggers.delivery.sync import Sync

    engine = Sync(paths, to=to, follow=follow, every_s=every, give_up_after_s=give_up_after, tell=console.say)
    console.keep_secret(engine.secrets)
    if dry_run:
        raise typer.Exit(_show_plan(engine))
    caught: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if caught:
            os._exit(128 + number)  # asked twice: every file is whole at every moment
        caught.append(number)
        engine.stopping.set()

    with _handling(stop), _bar(follow=follow) as update:
        outcomes = engine.run(update)
    if caught:
        console.say("Stopped; what is not delivered yet is kept in the journals.")
        sys.stdout.flush()
        if engine.is_busy():
            os._exit(128 + caught[0])  # a request that may take half a minute is not waited for
        raise typer.Exit(128 + caught[0])
    raise typer.Exit(_show_outcomes(engine, outcomes, paths, to))


def _show_plan(engine: "Sync") -> int:
    planned = engine.plan()
    console.keep_secret(engine.secrets)
    if planned:
        tables.show_table(
            ("run", "folder", "to", "records", "oldest", "end", "writer", "delivery"),
            [
                (
                    f"{item.name}/{item.version}",
                    item.run_dir,
                    f"{item.tracker}: {item.destination}",
                    item.pending,
                    tables.age(item.oldest_pending_s),
                    _end(item.status) if item.tracker_needs_status else "",
                    "alive" if item.writer_alive else "gone",
                    "by another process" if item.being_delivered else "",
                )
                for item in planned
            ],
        )
    else:
        console.show(f"Nothing is pending in {_runs(engine.found)}.")
    return int(bool(planned or engine.problems))


def _end(status: str | None) -> str:
    return "closed as failed" if status == "died" else f"shown as {status}"


def _show_outcomes(engine: "Sync", outcomes: "list[Outcome]", paths: list[Path], to: str | None) -> int:
    delivered = sum(outcome.delivered for outcome in outcomes)
    pending = [outcome for outcome in outcomes if outcome.pending]
    console.show(
        f"{delivered:,} records delivered, {len(pending)} of {_runs(engine.found)} pending."
        if outcomes or engine.problems
        else f"Nothing is pending in {_runs(engine.found)}."
    )
    for outcome in outcomes:
        if outcome.reason:
            console.say(f"{outcome.label} ({outcome.run_dir}): {outcome.reason}")
        if outcome.rejected:
            console.say(
                f"{outcome.label} ({outcome.run_dir}): {outcome.rejected} records were refused by the tracker; they "
                f"are kept, with the reasons, in {outcome.run_dir / 'journal' / 'rejected.jsonl'}"
            )
    if pending:
        command = shlex.join(["lightning-loggers", "sync", *map(str, paths), *(["--to", to] if to else [])])
        console.say(f"Deliver the rest later: {command}")
    return int(bool(pending or engine.problems))


def _runs(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


@contextlib.contextmanager
def _handling(stop: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _bar(*, follow: bool) -> Iterator[Callable[["Sync"], None]]:
    """A progress bar where somebody watches; ``--follow`` has no end that a bar could show."""
    from lightning_loggers.progress import is_interactive

    def remember(engine: "Sync") -> None:
        console.keep_secret(engine.secrets)

    if follow or not is_interactive():
        yield remember
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Delivering"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    polls = total = 0
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("deliver", total=None)

        def update(engine: "Sync") -> None:
            nonlocal polls, total
            remember(engine)
            if polls % _POLLS_BETWEEN_UPDATES == 0:
                left = engine.remaining_bytes()
                total = max(total, left)
                bar.update(task, total=max(total, 1), completed=total - left)
            polls += 1

        yield update
