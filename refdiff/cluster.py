"""Work on the workers of a dask scheduler: `dask.distributed` does all of it, this says what goes wrong in a line."""

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

_AHEAD = 4  # pieces of work that each thread of the workers may have before it, so that none waits for this process

T = TypeVar("T")
R = TypeVar("R")


class WorkersDiedError(RuntimeError):
    """Every worker that a piece of work was given to died while it computed it."""


@contextmanager
def connected(address: str) -> Iterator[Client]:
    """A client of the scheduler at an address such as tcp://scheduler:8786; its tasks end with it.

    Raises:
        ImportError: distributed is not installed.
        RuntimeError: nothing answers there, it has no worker, or a worker has another version of refdiff.
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
    for logger in ("distributed", "distributed.client"):  # they log what is raised here too
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
                f"worker {address} has refdiff {version or 'not installed'}, and this is {here or 'not installed'}: "
                "install the same version there"
            )


def in_order(client: Client, function: Callable[[T], Any], items: Iterable[T]) -> Iterator[tuple[T, Any]]:
    """Call a function of each item on the workers; yields items with results in their order, a few items read ahead.

    Results are fetched as they come, whether or not it is their turn. What a worker had not finished when it died is
    given to another by distributed; after the deaths that its `allowed-failures` counts, the result is a
    `WorkersDiedError`.

    Raises:
        RuntimeError: the scheduler has gone.
        Exception: what the function raised.
    """
    from distributed import Future, as_completed
    from distributed.comm import CommClosedError

    waiting: deque[tuple[str, T]] = deque()
    done = as_completed(loop=client.loop)
    came: dict[str, Any] = {}

    def fetched(future: Future) -> tuple[str, Any]:
        return future.key, future if future.status == "error" else _result(future)  # an error waits for its turn

    def first() -> tuple[T, Any]:
        key, item = waiting.popleft()
        while key not in came:
            came.update(map(fetched, done.next_batch()))
        result = came.pop(key)
        return item, _result(result) if isinstance(result, Future) else result

    try:
        for item in items:
            done.add(future := client.submit(function, item, pure=False))
            waiting.append((future.key, item))
            del future  # a worker keeps what somebody here still asks for, and would compute it again
            if len(waiting) >= _AHEAD * max(sum(client.nthreads().values()), 1):
                yield first()
        while waiting:
            yield first()
    except (CancelledError, CommClosedError) as error:
        raise RuntimeError(f"the scheduler at {client.scheduler.address} has gone") from error


def each(client: Client, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Call a function of each item as `in_order` does, for those who need every result.

    Raises:
        WorkersDiedError: all workers that it was given to died.
        RuntimeError: the scheduler has gone.
    """
    for item, result in in_order(client, function, items):
        if isinstance(result, WorkersDiedError):
            raise result
        yield item, result


def _result(future: Any) -> Any:
    """Fetch what it gave, or say that its workers died."""
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        died = f"{error.allowed_failures + 1} workers died while they computed it, the last was at"
        return WorkersDiedError(f"{died} {error.last_worker.address}; its log may say why")
