"""``lightning-loggers status``."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from lightning_loggers.cli import console, tables
from lightning_loggers.errors import ConfigurationError


def status(
    path: Annotated[Path, typer.Argument(help="A run's folder, or any folder above runs.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
) -> None:
    """Show every run below PATH: what is recorded, delivered, pending; nothing on disk is changed.

    With --json a list of objects with the keys run_dir, problem, name, version, uid, tracker, destination,
    writer_alive, being_delivered, recorded, delivered, pending, rejected, damaged, oldest_pending (ISO 8601),
    oldest_pending_s, status (running, finished, failed, interrupted, preempted, died), tracker_status,
    tracker_needs_status, remote_id, url. One object for each place that a run was delivered to.
    """
    from lightning_loggers.delivery.overview import overviews
    from lightning_loggers.delivery.stragglers import paces

    if not path.exists():
        raise ConfigurationError(f"{path} does not exist; give a run's folder or any folder above runs.")
    found = list(overviews(path))
    if as_json:
        console.show(json.dumps([dataclasses.asdict(item) for item in found], indent=1))
        return
    if not found:
        console.show(f"There is no run below {path}.")
        return
    readable = [item for item in found if item.problem is None]
    if readable:
        tables.show_table(
            ("run", "status", "recorded", "delivered", "pending", "rejected", "damaged", "oldest pending", "writer",
             "delivery", "destination", "tracker's run id"),
            [
                (
                    f"{item.name}/{item.version}",
                    _status(item.status, item.tracker_status, needs=item.tracker_needs_status),
                    item.recorded,
                    item.delivered,
                    item.pending,
                    item.rejected,
                    item.damaged,
                    tables.age(item.oldest_pending_s),
                    "alive" if item.writer_alive else "gone",
                    "under way" if item.being_delivered else "",
                    f"{item.tracker}: {item.destination}",
                    item.remote_id or "",
                )
                for item in readable
            ],
        )  # fmt: skip
    for item in readable:
        ranks = paces(Path(item.run_dir))
        if len(ranks) > 1:
            slow, quick = ranks[0], ranks[-1]
            console.show(
                f"{item.name}/{item.version}: rank {slow.rank} takes {slow.median_s:.3g} s a step and is at step "
                f"{slow.last_step:g}, rank {quick.rank} {quick.median_s:.3g} s and at step {quick.last_step:g}."
            )
    for item in found:
        if item.problem is not None:
            console.show(f"{item.run_dir} cannot be read: {item.problem}")
    if any(item.pending or item.tracker_needs_status for item in readable):
        console.show(f"Deliver what is pending: lightning-loggers sync {path}")


def _status(own: str | None, shown: str | None, *, needs: bool) -> str:
    """The run's status; where the tracker shows another, that too."""
    if shown is None or shown == own or (own == "died" and shown == "failed"):
        return own or ""
    return f"{own} (tracker: {shown})" if needs else str(own)
