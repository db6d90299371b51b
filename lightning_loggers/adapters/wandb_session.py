"""One session of a W&B run, from ``wandb.init`` (or the user's own run) to its end: what was handed over, what arrived.

The SDK acknowledges nothing. Every row has a number, one more than the last one's, so W&B is asked for the number of
its last row (offline: the SDK's file is read).
"""

import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_loggers.adapters.base import Context, FaultKind
from lightning_loggers.adapters.wandb_artifacts import UPLOAD_PATIENCE_S, Artifacts
from lightning_loggers.adapters.wandb_batches import sent_together
from lightning_loggers.adapters.wandb_file import MARK, RunFile, earlier_rows, remember_end
from lightning_loggers.adapters.wandb_records import AXIS, Rows, merged, nested_params
from lightning_loggers.adapters.wandb_sdk import (
    FINISH_TIMEOUT_S,
    LockedOutError,
    UnreachableError,
    are_sent,
    fault_of,
    media_files,
    service_api,
    stop_status_checker,
)
from lightning_loggers.records import Record

PATIENCE_S = 25.0
PAUSES_S = (0.1, 1.0)
"""The first and the longest pause between two questions whether rows have arrived."""

_UNANSWERED = 2
_FILE_PAUSES_S = (0.05, 0.2)
"""Likewise, whether they have been written: the SDK does so every half second, and each look is felt by training."""

_lent: set[Path] = set()
_ROWS_QUERY = """
query LightningLoggersRows($project: String, $entity: String, $name: String!) {
    model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { historyTail config } }
}
"""


def bucket_of(api: Any, parent: str | None, run_id: str | None) -> dict[str, Any] | None:
    """A run as W&B has it, ``None`` if it has none of that id: by the query with which the SDK resumes runs."""
    entity, _, project = str(parent).partition("/")
    found = api.execute_graphql(_ROWS_QUERY, {"entity": entity, "project": project, "name": run_id})
    bucket = (found.get("model") or {}).get("bucket")
    return bucket if isinstance(bucket, dict) else None


def mark_of(bucket: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a run has under our key."""
    found = (json.loads((bucket or {}).get("config") or "{}").get(MARK) or {}).get("value")
    return dict(found) if isinstance(found, Mapping) else {}


def lend(run_dir: Path) -> None:
    """Note that from here on somebody else in this process may log rows to a run."""
    _lent.add(run_dir.absolute())


class Session:
    """The SDK's run while we log to it.

    Args:
        context: The run's.
        run: The SDK's run.
        mark: What W&B had under our key before; ``None`` if it had no such run.
        ours: Whether we began it, and are to end it.
        api: What asks W&B, if there is one already.
        shared: Whether somebody else may log rows to it: then numbers do not tell after a crash whose rows arrived.
    """

    def __init__(
        self, context: Context, run: Any, mark: Mapping[str, Any] | None, *, ours: bool, api: Any, shared: bool
    ) -> None:
        self.run = run
        self.ours = ours
        self._context = context
        self._folder = context.run_dir.absolute()
        self._patience_s = PATIENCE_S + 2 * (run.settings.x_file_stream_transmit_interval or 15.0)
        self._file: RunFile | None = None  # what the SDK has written; None online
        self._api: Any = None  # asks W&B; None offline
        self._base = 0  # rows of earlier offline folders
        self._names_told = -1
        extra, uid = context.remote.extra, context.run.uid
        if run.offline:
            self._base, foreign = earlier_rows(run.settings, extra, uid)
            start, shared = self._base, shared or foreign
            self._file = RunFile(Path(run.settings.sync_file))
            extra["base"] = start
        else:
            self._api = api or service_api(run.settings)
            start = max(int(run.starting_step or 0), 0 if ours else int(run.step))
            context.remote.parent = f"{run.entity}/{run.project}"
            context.remote.url = run.url
        if ours:
            extra["file"] = os.path.relpath(run.settings.sync_file, run.settings.wandb_dir)
        if "rows" not in extra:  # the first host of this run, or one that lost its notes
            known = dict(mark) if ours and mark and mark.get("run_uid") == uid else {"first_row": start}
            extra["first_row"] = extra["rows"] = int(known.get("first_row") or 0)
            extra["foreign"] = bool(known.get("foreign"))
        extra["foreign"] = bool(extra.get("foreign")) or shared or not ours
        self._next = start  # number of the next row, over all sessions of the run
        # Numbers of the rows after the cursor that W&B, or the SDK, has.
        self._handed: deque[int] = deque() if extra["foreign"] else deque(range(extra["rows"], start))
        self.artifacts = Artifacts(context, run, self._file)
        self._rows = Rows(context, self.artifacts)

    def introduce(self) -> None:
        """Note at W&B what the run needs to be continued, and how it is to be shown."""
        remote, run = self._context.remote, self.run
        if self.ours:
            stop_status_checker(run)
        if not run.offline:
            self._context.notices.tell_once(("url", remote.id), f"W&B run: {run.url}", level=logging.INFO)
        remote.id = str(run.id)  # a sweep's agent has its own
        self._context.save_remote()
        self._mark(first_row=remote.extra.get("first_row", 0), foreign=remote.extra["foreign"])
        if (self._context.options.get("init") or {}).get("sync_tensorboard"):
            run.define_metric("*", step_metric="global_step")
        else:
            run.define_metric(AXIS)
            run.define_metric("*", step_metric=AXIS, step_sync=True)
        if remote.extra.get("params"):
            self._update_config(remote.extra["params"])  # a host died before W&B was seen to have them

    # ------------------------------------------------------------------ the configuration

    def send_params(self, records: Sequence[Record]) -> None:
        """Update the configuration. It is kept in our own state until W&B was seen to have it."""
        extra = self._context.remote.extra
        nested = nested_params(self._context, self.artifacts, records)
        for top, value in nested.items():
            present = self.run.config.get(top)
            if isinstance(value, dict) and isinstance(present, Mapping):
                nested[top] = merged(present, value)
        extra["params"] = {**extra.get("params", {}), **nested}
        extra["params_no"] = int(extra.get("params_no", 0)) + 1
        self._update_config(nested)

    def _update_config(self, nested: dict[str, Any]) -> None:
        self.run.config.update(nested, allow_val_change=True)
        self._mark(params_no=self._context.remote.extra.get("params_no", 0))

    def tell_names(self) -> None:
        """Keep with the run which of its names stand for which keys."""
        keys = self._context.keys
        changed = keys.changed
        if changed and self._names_told != keys.revision:
            self._mark(names={name: key for key, name in changed.items()})
            self._names_told = keys.revision

    def _mark(self, **facts: Any) -> None:
        """Note facts under our key of the configuration; what is as by default is left out."""
        present, uid = self.run.config.get(MARK), self._context.run.uid
        old = dict(present) if isinstance(present, Mapping) and present.get("run_uid") == uid else {}
        new = {**old, "run_uid": uid, **{key: value for key, value in facts.items() if value or key in old}}
        if new != old:
            self.run.config.update({MARK: new}, allow_val_change=True)

    # ------------------------------------------------------------------ rows

    def hand_rows(self, records: Sequence[Record]) -> None:
        """Give the SDK the rows of these records that it was not given before.

        Args:
            records: Those that become rows, from the cursor on.
        """
        new = records[len(self._handed) :]
        if not new:
            return
        # The question makes the SDK's threads take turns with training some forty times.
        before = self._next if self._alone else self._count()
        if before > self._next:
            self.lose_count()
            self._next = before
        begin = len(self._handed)
        try:
            with sent_together(self.run) as log:
                for record in new:
                    self._rows.log(log, record)
                    self._handed.append(self._next)
                    self._next += 1
        except Exception as error:
            if fault_of(error).kind in {FaultKind.REJECTED, FaultKind.BUG}:
                self.lose_count()  # delivery goes on with parts of this record, or without it
            raise
        after = self._next if self._alone else self._count()
        if after > self._next:
            # Somebody logs at the same time: our rows are all there when the last of theirs is. The SDK holds a row
            # that was logged with a step until the next one: it is not to wait for whenever that comes.
            self.lose_count()
            self.run.log({}, commit=True)
            for index in range(begin, len(self._handed)):
                self._handed[index] = after - 1
            self._next = self._count()

    def acknowledge_rows(self, number: int) -> None:
        """Note that the first so many rows are delivered."""
        self._context.remote.extra["rows"] = self._handed[number - 1] + 1
        for _ in range(number):
            self._handed.popleft()

    def lose_count(self) -> None:
        """From here on not every row of the run is one record of ours. On disk before anything else happens."""
        extra = self._context.remote.extra
        if not extra.get("foreign"):
            extra["foreign"] = True
            self._context.save_remote()
            self._mark(foreign=True)

    @property
    def _alone(self) -> bool:
        """Whether nobody else has been able to log a row until now."""
        return self.ours and not self._context.remote.extra.get("foreign") and self._folder not in _lent

    def _count(self) -> int:
        """The number of the next row as the SDK has it; its own count begins anew in a resumed or offline run."""
        return max(self._base + int(self.run.step), self._next if self._file is None else 0)

    # ------------------------------------------------------------------ acknowledgement

    def wait_for_rows(self, number: int) -> None:
        """Wait until W&B has the first so many rows after the cursor.

        Raises:
            UnreachableError: If it does not answer, or answers and gets none for longer than the SDK needs.
            LockedOutError: If it has no such run any more.
        """
        target = self._handed[number - 1] + 1
        if self._file is not None:
            self.wait_for_file(target)
            return
        began, (pause, longest), unanswered, reached = time.monotonic(), PAUSES_S, 0, -1
        while True:
            time.sleep(pause)
            pause = min(pause * 3, longest)
            try:
                now, unanswered = self._progress(), 0
            except Exception as error:
                unanswered += 1  # the SDK may get through in the meantime
                if unanswered >= _UNANSWERED or fault_of(error).kind is not FaultKind.TRANSIENT:
                    raise
                continue
            if now >= target:
                return
            if now > reached:
                reached, began = now, time.monotonic()
                self._context.acknowledged()
            if time.monotonic() - began > self._patience_s:
                raise StalledError(f"W&B answers, but of {target} rows it has {max(now, 0)}")

    def wait_for_file(self, target: int = 0) -> None:
        """Wait until the SDK has written what it was given; online there is no need.

        Raises:
            StalledError: If it does not.
        """
        if self._file is None:
            return
        extra = self._context.remote.extra

        def written() -> bool:
            assert self._file is not None
            rows = self._progress()
            return rows >= target and not extra.get("params") and self._file.artifacts >= self.artifacts.due

        if not _wait_until(written, PATIENCE_S, *_FILE_PAUSES_S):
            raise StalledError(f"the SDK does not write to {self._file.path} (is the disk full?)")

    def wait_for_uploads(self) -> None:
        """Wait until the SDK has sent the files beside rows, such as images and tables.

        Raises:
            UnreachableError: If that takes more than a minute.
        """
        if self._file is not None:
            return
        number = media_files(self.run)
        if not _wait_until(lambda: are_sent(self.run, number), UPLOAD_PATIENCE_S):
            raise UnreachableError("media files are still being sent")

    def _progress(self) -> int:
        """Rows that are there. Notes on the way that parameters are, too."""
        remote = self._context.remote
        if self._file is not None:
            self._file.advance()
            seen, rows = self._file.params_no, self._base + self._file.rows
        else:
            bucket = bucket_of(self._api, remote.parent, remote.id)
            if bucket is None:
                raise LockedOutError(
                    f"W&B has no run {remote.id} in {remote.parent}: was it deleted? Log to another one with id=..."
                )
            tail = json.loads(bucket.get("historyTail") or "[]")
            rows = int(json.loads(tail[-1]).get("_step", -1)) + 1 if tail else 0
            mark = mark_of(bucket)
            seen = int(mark.get("params_no") or 0) if mark.get("run_uid") == self._context.run.uid else 0
        if remote.extra.get("params") and seen >= int(remote.extra.get("params_no", 0)):
            remote.extra["params"] = {}
        return rows

    # ------------------------------------------------------------------ the end

    def finish(self, exit_code: int) -> None:
        """End the session; what the SDK still has in hand is sent, within ten seconds.

        Raises:
            UnreachableError: If that takes longer.
        """
        try:
            self.run.finish(exit_code=exit_code)
        except TimeoutError as error:
            raise UnreachableError(f"the run did not end within {FINISH_TIMEOUT_S:g} s") from error
        if self._file is not None:
            # The SDK writes the end a moment after it says so.
            file = self._file
            if not _wait_until(lambda: self._progress() >= 0 and file.ended, FINISH_TIMEOUT_S, 0.01, 0.01):
                raise UnreachableError(f"the SDK does not write the end of the run to {file.path}")
            remember_end(file)
        elif self._context.remote.extra.get("params"):
            with contextlib.suppress(Exception):  # asked again by whoever continues the run
                self._progress()


class StalledError(UnreachableError):
    """The SDK has stopped sending, as it does for good after some answers: only a new session will send the rest."""


def _wait_until(
    condition: Callable[[], bool], timeout_s: float, pause_s: float = 0.05, longest_s: float = 0.05
) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, longest_s)
    return True
