"""Run functions on the workers of a dask scheduler by `dask.distributed`, with errors of one line."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from distributed import Client

TIMEOUT = 10.0
"""Seconds to wait for a scheduler to answer, and for it to have a worker."""

_TASKS_PER_THREAD = 4  # submitted ahead for each thread of the workers, so that none waits for this process

T = TypeVar("T")


class WorkersDiedError(RuntimeError):
    """Every worker that was given a task died while computing it."""


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """Yield a client of the scheduler at an address such as tcp://scheduler:8786; its tasks end with the block.

    Raises:
        ImportError: distributed is not installed.
        RuntimeError: the address is invalid, nothing answers there, there is no worker, or a worker has another
            version of refdiff.
    """
    try:
        from distributed import Client
        from distributed.comm import get_address_host_port
    except ImportError as error:
        raise ImportError(f"--dask needs dask.distributed ({error}): pip install distributed") from error
    try:
        get_address_host_port(address, strict=True)
    except ValueError as error:
        raise RuntimeError(f"--dask {address}: {error}; give tcp://HOST:PORT, as `dask scheduler` shows it") from error
    for logger in ("distributed", "distributed.client"):  # they also log the errors that are raised here
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=TIMEOUT, set_as_default=False)
    except OSError as error:
        raise RuntimeError(
            f"--dask {address}: no dask scheduler answered within {TIMEOUT:g} s; is `dask scheduler` running there?"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=TIMEOUT)
        except TimeoutError as error:
            raise RuntimeError(
                f"--dask {address}: the scheduler has no worker after {TIMEOUT:g} s; start some with `dask worker "
                f"{address}`"
            ) from error
        _check_versions(client)
        yield client


def _check_versions(client: Client) -> None:
    found = client.get_versions(packages=["refdiff"])
    here = found["client"]["packages"]["refdiff"]
    for address, worker in found["workers"].items():
        version = worker["packages"].get("refdiff")
        if version != here:
            raise RuntimeError(
                f"worker {address}: got refdiff {version or 'not installed'}, expected {here or 'not installed'} as "
                "here; install the same version there"
            )


def map_in_order(client: Client, function: Callable[[T], Any], items: Iterable[T]) -> Iterator[tuple[T, Any]]:
    """Call a function on each item on the workers; yield (item, result) in the order of the items.

    A few items are read ahead, and results are fetched as soon as they are there. If a worker dies, distributed gives
    its unfinished tasks to another. If more workers die with a task than distributed's `allowed-failures`, its result
    is a `WorkersDiedError`.

    Raises:
        RuntimeError: the scheduler has gone.
        Exception: what the function raised.
    """
    from distributed import Future, as_completed
    from distributed.comm import CommClosedError

    waiting: deque[tuple[str, T]] = deque()
    done = as_completed(loop=client.loop)
    arrived: dict[str, Any] = {}

    def fetch(future: Future) -> tuple[str, Any]:
        return future.key, future if future.status == "error" else _result(future)  # an error is raised at its turn

    def take_first() -> tuple[T, Any]:
        key, item = waiting.popleft()
        while key not in arrived:
            arrived.update(map(fetch, done.next_batch()))
        result = arrived.pop(key)
        return item, _result(result) if isinstance(result, Future) else result

    try:
        for item in items:
            done.add(future := client.submit(function, item, pure=False))
            waiting.append((future.key, item))
            del future  # while a future is referenced, the workers keep its result, and compute a lost one again
            if len(waiting) >= _TASKS_PER_THREAD * max(sum(client.nthreads().values()), 1):
                yield take_first()
        while waiting:
            yield take_first()
    except (CancelledError, CommClosedError) as error:
        raise RuntimeError(f"the scheduler at {client.scheduler.address} has gone") from error


def _result(future: Any) -> Any:
    """Return the result of a future, or a `WorkersDiedError`."""
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        died = f"{error.allowed_failures + 1} workers died while computing this, the last one at"
        return WorkersDiedError(f"{died} {error.last_worker.address}; its log may say why")
