"""A process for each side of a row, which prepares, and then measures once for each request.

What goes between it and its parent is pickled: a side, a row and settings; then an answer, `{}`, when it is ready, and
one for each request, or an error. No process outlives its parent, nor, where there are process groups, does a command
that it runs.
"""

from __future__ import annotations

import importlib
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
from refdiff.bench.measurements import describe_end
from refdiff.bench.rows import Row
from refdiff.bench.side import Answer, Settings, Side

SIDES = {
    "refdiff": "refdiff_side.RefdiffSide",
    "stored": "refdiff_side.StoredSide",
    "transformers": "peers.TransformersSide",
    "numpy": "peers.NumpySide",
    "onnxruntime": "peers.OnnxRuntimeSide",
    "ceilings": "ceilings.Ceilings",
}
"""Name → module and class."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_TUNING = (
    "PYTHONDONTWRITEBYTECODE",  # or Python would compile a source tree at each start, and installed packages never
    "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "KMP_AFFINITY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY",
)  # fmt: skip
_QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


class ChildError(RuntimeError):
    """A side that failed, or whose process ended; the message is its own."""


def environment(threads: int) -> dict[str, str]:
    """Return the environment of a measured process: `threads` threads, no tuning of BLAS, bytecode kept."""
    kept = {name: value for name, value in os.environ.items() if name not in _TUNING}
    path = os.pathsep.join(filter(None, [str(Path(refdiff.__file__).parents[1]), kept.get("PYTHONPATH")]))
    return {**kept, **dict.fromkeys(_THREADS, str(threads)), **_QUIET, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}


@contextmanager
def child(name: str, row: Row, settings: Settings) -> Iterator[Callable[[], Answer]]:
    """Start the process of one side, ready to measure a row; give what has it measure once. It ends with the block.

    It has a session of its own, so that Ctrl-C reaches the parent alone, which then ends it.

    Raises:
        ImportError: a package that it needs is not installed.
        ChildError: it failed; the message says how.
    """
    with tempfile.TemporaryFile() as messages:
        process = subprocess.Popen(
            [sys.executable, "-c", "from refdiff.bench.processes import main; main()"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=messages, env=environment(settings.threads),
            start_new_session=True,
        )  # fmt: skip
        requests, answers = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)

        def ask(request: tuple[str, Row, Settings] | None = None) -> Answer:
            try:
                pickle.dump(request, requests)
                requests.flush()
                answer: Answer | Exception = pickle.load(answers)  # noqa: S301, its own child wrote it
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
                with suppress(ProcessLookupError, PermissionError):  # nothing is left, or on macOS nothing but zombies
                    os.killpg(process.pid, signal.SIGKILL)  # and the command that it runs
            else:
                process.kill()
            with suppress(BrokenPipeError):
                process.communicate()


def side_of(name: str, settings: Settings) -> Side:
    """Make a side, ready; only its module is imported."""
    module, _, kind = SIDES[name].partition(".")
    side: Side = getattr(importlib.import_module(f"refdiff.bench.{module}"), kind)(settings)
    side.prepare()
    return side


def main() -> None:
    """Answer until the input ends; if it ends in the middle of some work, the parent is gone, and so is this."""
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    asked = os.fdopen(os.dup(sys.stdin.fileno()), "rb")  # a thread that reads sys.stdin makes Python abort in the end
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer

    def listen() -> None:
        try:
            while True:
                requests.put(pickle.load(asked))  # noqa: S301, its parent wrote it
        finally:
            if hasattr(os, "killpg"):
                os.killpg(0, signal.SIGKILL)
            os._exit(0)

    def answer(found: Answer | Exception) -> None:
        pickle.dump(found, answers)
        answers.flush()

    threading.Thread(target=listen, daemon=True).start()
    name, row, settings = requests.get()
    try:
        for found in side_of(name, settings).measuring(row):
            answer(found)
            requests.get()
    except ImportError as error:
        answer(error)
    except Exception as error:  # whatever it is, the parent must hear of it
        answer(ChildError(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"))
