"""The parent's end: processes that are asked and answer, and that never outlive the one who asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import refdiff
from refdiff.bench.side import Settings, UnavailableError

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_TUNING = (
    "PYTHONDONTWRITEBYTECODE",  # or Python would compile a source tree at each start, and installed packages never
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "GOMP_SPINCOUNT",
    "OMP_WAIT_POLICY",
)
_QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


class ChildError(RuntimeError):
    """A side that failed, or whose process ended; the message is its own."""


def environment(threads: int) -> dict[str, str]:
    """Make the environment of a process that is measured: so many threads, no one's tuning of BLAS, bytecode kept."""
    kept = {name: value for name, value in os.environ.items() if name not in _TUNING}
    tree = str(Path(refdiff.__file__).parents[1])
    path = os.pathsep.join(filter(None, [tree, kept.get("PYTHONPATH")]))
    return {**kept, **dict.fromkeys(_THREADS, str(threads)), **_QUIET, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}


class Child:
    """The process of one side, started when it is made; `with` ends it.

    It has a session of its own, so that Ctrl-C reaches the parent alone, which then ends it.

    Raises:
        UnavailableError: a package that it needs is not installed.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        with ExitStack() as undo:  # Ctrl-C may come at any line
            self._said = undo.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(  # noqa: S603, this very Python
                [sys.executable, "-m", "refdiff.bench.child", json.dumps({"side": name, **asdict(settings)})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                env=environment(settings.threads),
                start_new_session=True,
            )
            undo.callback(self.close)
            self.ask("prepare")
            undo.pop_all()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something, and return its answer.

        Raises:
            UnavailableError: it lacks a package.
            ChildError: it failed; the message says how.
        """
        source, sink = self._process.stdout, self._process.stdin
        if source is None or sink is None or self._process.poll() is not None:
            raise ChildError(self._last_words())
        try:
            sink.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            sink.flush()
        except BrokenPipeError:
            raise ChildError(self._last_words()) from None
        line = source.readline()
        if not line:
            raise ChildError(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            if answer["kind"] == UnavailableError.__name__:
                raise UnavailableError(answer["error"])
            raise ChildError(f"{self.name}: {answer['kind']}: {answer['error']}")
        return answer

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        self._process.wait()
        self._said.close()

    def _last_words(self) -> str:
        status = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        how = f"killed by signal {-status} (out of memory?)" if status < 0 else f"ended with status {status}"
        return f"{self.name}: its process was {how}" + (f": {lines[-1]}" if lines else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def first_output(command: list[str], threads: int) -> tuple[float, str]:
    """Run a command, and return the seconds from its start to its first output, and all that it printed.

    Raises:
        ChildError: it failed; the message has its last line.
    """
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603, the caller's own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment(threads),
            start_new_session=True,
        )
        try:
            first = process.stdout.read(1) if process.stdout else b""
            seconds = time.perf_counter() - started
            rest = process.stdout.read() if process.stdout else b""
            status = process.wait()
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
        if status or not first:
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").strip().splitlines() or ["no output"]
            raise ChildError(f"{Path(command[0]).name} ended with status {status}: {lines[-1]}")
        return seconds, (first + rest).decode("utf-8", "replace")
