"""Threads beside training: they do not take its processor the moment they wake."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import wait_until

from lightning_loggers import CSVLogger
from lightning_loggers.background import interrupt_nobody, kept_running

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="of Linux")


def in_a_thread(work: Callable[[], int]) -> int:
    """What a function returns in a thread of its own, whose way of being scheduled ends with it."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_that_is_kept_running_waits_for_a_processor() -> None:
    """It alone; and what it starts, as the SDK's threads and services."""
    found: list[int] = []

    def work() -> None:
        found.append(os.sched_getscheduler(0))
        found.append(in_a_thread(lambda: os.sched_getscheduler(0)))

    thread = kept_running(None, work, "test")
    assert thread is not None
    thread.join()
    assert found == [os.SCHED_BATCH] * 2
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_so_does_the_thread_that_delivers(tmp_path: Path) -> None:
    """From its first step."""
    logger = CSVLogger(tmp_path)
    logger.log_metrics({"a": 1.0}, 0)

    def policies() -> list[int]:
        threads = {thread.name: thread.native_id for thread in threading.enumerate()}
        wanted = ("lightning-loggers-delivery", "lightning-loggers-journal")
        return [os.sched_getscheduler(threads[name] or 0) for name in wanted if name in threads]

    wait_until(lambda: policies() == [os.SCHED_BATCH] * 2, 30, "delivery and the journal's keeper")
    logger.finalize("success")
    assert logger.stats.pending == 0


def test_what_the_user_has_chosen_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is to run only when nobody else does, say; and a system that knows no such thing."""

    def idle() -> int:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        interrupt_nobody()
        return os.sched_getscheduler(0)

    assert in_a_thread(idle) == os.SCHED_IDLE
    asked = os.sched_getscheduler
    monkeypatch.delattr(os, "sched_getscheduler")
    interrupt_nobody()
    assert asked(0) == os.SCHED_OTHER
