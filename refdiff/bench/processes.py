"""A process for each side: `python -m refdiff.bench.processes SETTINGS` answers lines of JSON until its input ends.

A line in is `{"do": "decode", "size": 128, …}`; the line out is the answer, or `{"error": …, "kind": …}`. No process
outlives its parent.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import refdiff
from refdiff.bench.machine import UnavailableError
from refdiff.bench.side import Answer, Settings, Side

SIDES = {
    "refdiff": "refdiff_side.RefdiffSide",
    "stored": "refdiff_side.StoredSide",
    "transformers": "peers.TransformersSide",
    "numpy": "peers.NumpySide",
    "onnxruntime": "peers.OnnxRuntimeSide",
    "oracle": "refdiff_side.OracleSide",
    "ceilings": "ceilings.CeilingSide",
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
    tree = str(Path(refdiff.__file__).parents[1])
    path = os.pathsep.join(filter(None, [tree, kept.get("PYTHONPATH")]))
    return {**kept, **dict.fromkeys(_THREADS, str(threads)), **_QUIET, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}


class Child(ExitStack):
    """The process of one side, started when it is made; `close`, or the end of `with`, ends it.

    It has a session of its own, so that Ctrl-C reaches the parent alone, which then ends it.

    Raises:
        UnavailableError: a package that it needs is not installed.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        super().__init__()
        self.name = name
        command = ["-m", "refdiff.bench.processes", json.dumps({"side": name, **asdict(settings)})]
        self._errors: IO[bytes] = self.enter_context(tempfile.TemporaryFile())  # noqa: SIM115, this stack closes it
        try:
            self.process = _start([sys.executable, *command], settings.threads, subprocess.PIPE, self._errors)
            self.callback(_end, self.process)
            self.request("prepare")
        except BaseException:
            self.close()
            raise

    def request(self, do: str, **arguments: Any) -> Answer:
        """Have it do something, and return its answer.

        Raises:
            UnavailableError: it lacks a package.
            ChildError: it failed; the message says how.
        """
        line = b""
        if (sink := self.process.stdin) and (source := self.process.stdout) and self.process.poll() is None:
            with suppress(BrokenPipeError):
                sink.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
                sink.flush()
                line = source.readline()
        if not line:
            status = self.process.wait()
            how = f"killed by signal {-status} (out of memory?)" if status < 0 else f"ended with status {status}"
            raise ChildError(": ".join([f"{self.name}: its process was {how}", *_last_line(self._errors)]))
        found: Answer = json.loads(line)
        if "error" in found:
            if found["kind"] == UnavailableError.__name__:
                raise UnavailableError(found["error"])
            raise ChildError(f"{self.name}: {found['kind']}: {found['error']}")
        return found


def first_output(command: list[str], threads: int) -> tuple[float, str]:
    """Run a command; return the seconds from its start to its first output, and all that it printed.

    Raises:
        ChildError: it failed; the message has its last line.
    """
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = _start(command, threads, subprocess.DEVNULL, errors)
        try:
            first = process.stdout.read(1) if process.stdout else b""
            seconds = time.perf_counter() - started
            rest = process.stdout.read() if process.stdout else b""
            status = process.wait()
        finally:
            _end(process)
        if status or not first:
            (line,) = _last_line(errors) or ["no output"]
            raise ChildError(f"{Path(command[0]).name} ended with status {status}: {line}")
        return seconds, (first + rest).decode("utf-8", "replace")


def _start(command: list[str], threads: int, stdin: int, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    pipes: Any = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": errors}
    return subprocess.Popen(command, env=environment(threads), start_new_session=True, **pipes)  # noqa: S603, this very Python


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in filter(None, (process.stdin, process.stdout)):
        with suppress(BrokenPipeError):
            pipe.close()
    process.wait()


def _last_line(errors: IO[bytes]) -> list[str]:
    errors.seek(0)
    return errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]


def answer(side: Side, line: str) -> str:
    """Answer one line."""
    try:
        request = json.loads(line)
        result = getattr(side, request.pop("do"))(**request)
    except Exception as error:  # whatever it is, the parent must hear of it
        result = {"error": " ".join(str(error).split()), "kind": type(error).__name__}
    return json.dumps(result)


def main(arguments: list[str]) -> None:
    """Answer until the input ends; if it ends in the middle of some work, the parent is gone, and so is this."""
    given = json.loads(arguments[0])
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    module, _, name = SIDES[given.pop("side")].partition(".")  # only this side's module is imported
    side = getattr(importlib.import_module(f"refdiff.bench.{module}"), name)(Settings(**given))
    while True:
        answers.write(answer(side, lines.get()) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
