"""A process for each side of a row. It prepares, and then measures once per request.

Both processes send pickles. The parent first sends the name of the side, the row and settings, then requests. The child
answers `{}` when it is ready, then one answer per request; or an exception. The child ends with its parent, and so does
a command that it runs, on systems with process groups.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import refdiff
from refdiff.bench.rows import BenchRow, describe_end
from refdiff.bench.sides import BenchSettings, Measurement, make_side

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_TUNING = (
    "PYTHONDONTWRITEBYTECODE",  # with it, Python would compile a source tree at every start
    "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "KMP_AFFINITY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY",
)  # fmt: skip
_QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


class ChildError(RuntimeError):
    """A side failed or its process ended. The message comes from the side."""


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a measured process: `threads` threads, no tuning of BLAS, bytecode caches."""
    kept = {name: value for name, value in os.environ.items() if name not in _TUNING}
    path = os.pathsep.join(filter(None, [str(Path(refdiff.__file__).parents[1]), kept.get("PYTHONPATH")]))
    return {**kept, **dict.fromkeys(_THREADS, str(threads)), **_QUIET, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}


@contextmanager
def child(name: str, row: BenchRow, settings: BenchSettings) -> Iterator[Callable[[], Measurement]]:
    """Start the process of one side, wait until it is ready, and yield a function that measures once.

    The process ends with the block. It has its own session: Ctrl-C reaches only the parent, which then ends it.

    Raises:
        ImportError: a package of the side is not installed.
        ChildError: the side failed or its process ended.
    """
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            [sys.executable, "-c", "from refdiff.bench.processes import main; main()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, env=environment(settings.threads),
            start_new_session=True,
        )  # fmt: skip
        requests, answers = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)

        def ask(request: tuple[str, BenchRow, BenchSettings] | None = None) -> Measurement:
            try:
                pickle.dump(request, requests)
                requests.flush()
                answer: Measurement | Exception = pickle.load(answers)  # noqa: S301, written by its own child
            except (BrokenPipeError, EOFError, pickle.UnpicklingError):
                raise ChildError(f"{name}: its process {describe_end(process.wait(), messages)}") from None
            if isinstance(answer, Exception):
                raise answer
            return answer

        try:
            ask((name, row, settings))
            yield ask
        finally:
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError, PermissionError):  # no process is left, or on macOS only zombies
                    os.killpg(process.pid, signal.SIGKILL)  # the child and the command that it runs
            else:
                process.kill()
            with suppress(BrokenPipeError):
                process.communicate()


def main() -> None:
    """Answer requests. A thread reads them, and ends the process when they end, even during a measurement."""
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    pipe = os.fdopen(os.dup(sys.stdin.fileno()), "rb")  # a thread that reads sys.stdin would make Python abort at exit
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # output of libraries must not mix with answers

    def listen() -> None:
        try:
            while True:
                requests.put(pickle.load(pipe))  # noqa: S301, written by its parent
        finally:
            if hasattr(os, "killpg"):
                os.killpg(0, signal.SIGKILL)
            os._exit(0)

    def send(answer: Measurement | Exception) -> None:
        pickle.dump(answer, answers)
        answers.flush()

    threading.Thread(target=listen, daemon=True).start()
    name, row, settings = requests.get()
    try:
        for answer in make_side(name, settings).measure(row):
            send(answer)
            requests.get()
    except ImportError as error:
        send(error)
    except Exception as error:  # report every failure to the parent
        send(ChildError(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"))
