"""Prompts answered by the workers of a dask scheduler, each of which loads the model once. Needs dask.distributed."""

from __future__ import annotations

import argparse
import asyncio
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distributed import WorkerPlugin, get_worker

from refdiff import cluster
from refdiff.cli.loading import named_folder
from refdiff.cli.prompts_file.batches import Answering, Result, Task
from refdiff.cli.terminal import one_line
from refdiff.errors import CheckpointError


class ModelOnWorker(WorkerPlugin):
    """One model for all tasks of a worker: loaded when the worker hears of it, or joins, and used by one at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._answering: Answering | None = None

    async def setup(self, worker: Any) -> None:
        """Load the model, in a thread: a worker that does not answer meanwhile would be taken for dead.

        Raises:
            RuntimeError: it cannot be loaded; names the worker.
        """
        self._lock = threading.Lock()
        # as many threads as the worker was given: its neighbors on the machine have the other cores
        self._args.threads = self._args.threads or worker.state.nthreads
        try:
            self._answering = await asyncio.to_thread(Answering, self._args)
        except Exception as error:
            place = "; each worker opens the model itself" if isinstance(error, CheckpointError) else ""
            raise RuntimeError(f"worker {worker.address}: {one_line(error)}{place}") from error

    def answer(self, batch: list[Task]) -> list[Result]:
        """Answer a batch; others wait, because one uses all of the worker's threads."""
        with self._lock:
            if self._answering is None:
                raise RuntimeError("this worker has released its model: the run that it belonged to is over")
            return self._answering(batch)

    def teardown(self, worker: Any) -> None:
        """Release the model."""
        self._answering = None


def answer(work: tuple[str, list[Task]]) -> list[Result]:
    """Answer a batch on the worker that runs this, with the plugin of that name."""
    name, batch = work
    results: list[Result] = get_worker().plugins[name].answer(batch)
    return results


@contextmanager
def answering(
    client: Any, args: argparse.Namespace
) -> Iterator[Callable[[Iterable[list[Task]]], Iterator[tuple[list[Task], list[Result]]]]]:
    """Yield a function that answers batches on a cluster, in their order; the workers release the model at the end.

    Raises:
        RuntimeError: a worker cannot load the model; names the worker.
    """
    name = f"refdiff-{uuid.uuid4().hex}"
    folder = named_folder(args.model)
    model = args.model if folder is None else str(folder.absolute())  # a worker stands elsewhere
    there = argparse.Namespace(**{**vars(args), "model": model, "quiet": True})
    client.register_plugin(ModelOnWorker(there), name=name)

    def answers(batches: Iterable[list[Task]]) -> Iterator[tuple[list[Task], list[Result]]]:
        work = ((name, batch) for batch in batches)
        for (_, batch), results in cluster.map_in_order(client, answer, work):
            died = isinstance(results, cluster.WorkersDiedError)
            yield batch, [f"{task.prompt.where}: {results}" for task in batch] if died else results

    try:
        yield answers
    finally:
        with suppress(Exception):  # the scheduler may have gone, and this is only for the workers' sake
            client.unregister_worker_plugin(name)
