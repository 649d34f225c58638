"""Results in the order of the items, and what the death of a worker costs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from refdiff.cluster import connected, map_in_order

from ..conftest import wait_until

ITEMS = 8
"""As many as two workers of one thread each may have before them."""


def logging(log: Path, go: Path) -> Callable[[int], int]:
    """Make a function that notes item and process, once it is done; item 0 waits until there is a file."""

    def square(item: int) -> int:
        import os
        import time

        while item == 0 and not go.exists():
            time.sleep(0.01)
        with log.open("a") as file:
            file.write(f"{item} {os.getpid()}\n")
        return item**2

    return square


@pytest.mark.usefixtures("workers")
def test_finished_items_are_not_computed_again_when_their_worker_dies(scheduler: str, tmp_path: Path) -> None:
    """One worker has the first item; the other has done the rest, and dies before it is their turn."""
    log, go = tmp_path / "log", tmp_path / "go"
    log.touch()
    with ThreadPoolExecutor(1) as pool, connected(scheduler) as client:
        answers = pool.submit(lambda: list(map_in_order(client, logging(log, go), range(ITEMS))))
        try:
            wait_until(lambda: log.read_text().count("\n") == ITEMS - 1)
            wait_until(lambda: client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)) == 1)
            (pid,) = {int(line.split()[1]) for line in log.read_text().splitlines()}
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: len(client.scheduler_info()["workers"]) == 1)
        finally:
            go.touch()
        assert answers.result() == [(item, item**2) for item in range(ITEMS)]
    assert sorted(int(line.split()[0]) for line in log.read_text().splitlines()) == list(range(ITEMS))
