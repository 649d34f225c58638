"""Run tests in a forked process into which a mistake was planted.

The parent has imported numpy, pytest and hypothesis, and nothing of refdiff: a child starts in a few milliseconds, and
imports refdiff and the tests anew, from a copy of the tree.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.abc
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED = (
    "numpy", "array_api_compat.numpy", "array_api_strict", "hypothesis", "hypothesis.strategies", "mpmath", "ml_dtypes",
    "hypothesis.internal.conjecture.engine", "_hypothesis_pytestplugin", "pytest", "_pytest.main", "safetensors.numpy",
)  # fmt: skip
OPTIONS = (
    *("-x", "-q", "--tb=no", "--no-header", "--assert=plain", "-p", "no:cacheprovider"),
    *("-p", "_hypothesis_pytestplugin", "-W", "ignore::pytest.PytestAssertRewriteWarning"),
    # these two go through all objects of the process when it ends, which takes longer than most files of tests
    *("-p", "no:unraisableexception", "-p", "no:threadexception"),
)
MEMORY = 16 << 30
WAITS = 120.0
"""Seconds after which a child that has not computed anything is taken to wait for what never comes."""


@dataclass(frozen=True)
class Job:
    """What to plant, and which files of tests are to notice it; or single tests, whose names may be out of date.

    limit: seconds of the processor's, so that a busy machine makes no mutant look as if it never ended.
    """

    plant: Callable[[], None]
    tests: tuple[str, ...]
    limit: float
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """`result` is "survived", "killed" or "timeout"; `by` the first test that failed, and `why` its message."""

    result: str
    by: str
    seconds: float
    why: str = ""


def prepare() -> None:
    """Import what every child needs, once; set before this what must be set before NumPy is imported."""
    for name in SHARED:
        importlib.import_module(name)
    gc.freeze()  # what the children share is not looked through in each, and so not copied


def run(jobs: Iterable[Job], root: Path, at_once: int = 1) -> Generator[tuple[int, Outcome]]:
    """Run each job in a child of its own, `at_once` together; give its number and outcome as it ends."""
    waiting, running = enumerate(jobs), dict[int, tuple[int, int, float, _Waiting]]()
    more, folder = True, tempfile.mkdtemp(prefix="planted-")
    try:
        while more or running:
            while more and len(running) < at_once:
                number, job = next(waiting, (None, None))
                if job is None or number is None:
                    more = False
                    break
                reader, writer = os.pipe()
                pid = os.fork()
                if pid == 0:
                    os.close(reader)
                    _child(job, root, folder, writer)
                os.close(writer)
                running[pid] = (number, reader, time.monotonic(), _Waiting())
            for pid, (number, reader, start, waiting_for) in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                late = not ended and waiting_for.too_long(pid)
                if late:
                    os.killpg(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                if ended or late:
                    del running[pid]
                    with os.fdopen(reader) as pipe:
                        said = pipe.read()
                    yield number, _outcome(said, None if late else status, time.monotonic() - start)
            time.sleep(0.005)
    finally:  # the caller may have ended early
        for pid in running:
            with contextlib.suppress(ProcessLookupError):  # it has not made its group yet
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        shutil.rmtree(folder, ignore_errors=True)


def tell(jobs: list[Job], labels: list[str], root: Path) -> bool:
    """Run jobs that each plant a mistake, print behind its label which test noticed it; say whether all were."""
    noticed = 0
    for number, outcome in run(jobs, root):
        killed = outcome.result == "killed"
        noticed += killed
        by = outcome.by.partition("::")[2] if killed else f"NOT NOTICED ({outcome.result})"
        print(f"{labels[number]} {by}", flush=True)
    print(f"{noticed} of {len(jobs)} noticed")
    return noticed == len(jobs)


class _Waiting:
    """Tells a child that waits for what never comes, and so takes no time of the processor's, from a slow one."""

    def __init__(self) -> None:
        self.used, self.since = -1, time.monotonic()

    def too_long(self, pid: int) -> bool:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            used = int(fields[11]) + int(fields[12])
        except (OSError, IndexError):  # it has just ended, or this is no Linux: it counts as one that never works
            used = self.used
        if used != self.used:
            self.used, self.since = used, time.monotonic()
        return time.monotonic() - self.since > WAITS


def _outcome(said: str, status: int | None, seconds: float) -> Outcome:
    if status is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return Outcome("timeout", "", seconds)
    if not os.WIFEXITED(status):
        return Outcome("killed", f"signal {os.WTERMSIG(status)}", seconds)
    code, by, why = json.loads(said) if said else (-1, "", "")
    if code == 5:
        raise RuntimeError("no test was collected")
    return Outcome("survived" if code == 0 else "killed", by or f"pytest ended with {code}", seconds, why)


class _First:
    """A pytest plugin that keeps the name of the first test, or file, that failed, and the end of what it says."""

    name = why = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.name:
            self.name, self.why = report.nodeid, str(report.longrepr)[-1000:]

    pytest_collectreport = pytest_runtest_logreport


def _child(job: Job, root: Path, folder: str, writer: int) -> None:
    """Run the tests and leave this process."""
    code, first = -1, _First()
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (int(job.limit) + 1, int(job.limit) + 5))
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.chdir(root)
        for name in [n for n in sys.modules if n.split(".")[0] in ("refdiff", "tests")]:
            del sys.modules[name]
        sys.path[0] = str(root)
        importlib.invalidate_caches()
        import pytest

        # pytest's own numbered folders are tidied by all processes at once, which now and then fails
        options = [*OPTIONS, f"--basetemp={folder}/{os.getpid()}", *job.options]
        job.plant()
        for file in job.tests:  # one after the other: most mutants end in the first
            code = int(pytest.main([*options, file], plugins=[first]))
            no_such_test = code == pytest.ExitCode.USAGE_ERROR and "::" in file and not first.name
            if code and not no_such_test:
                break
    except BaseException as error:  # SystemExit too
        first.name = first.name or f"pytest ended with {error!r}"
    finally:
        with contextlib.suppress(OSError):
            os.write(writer, json.dumps([code, first.name, first.why]).encode())
        os._exit(0)


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """An import hook that gives one module another source."""

    def __init__(self, module: str, path: Path, source: str) -> None:
        self.module, self.path, self.source = module, str(path), source

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != self.module:
            return None
        package = [str(Path(self.path).parent)] if self.path.endswith("__init__.py") else None
        return importlib.util.spec_from_file_location(name, self.path, loader=self, submodule_search_locations=package)

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_data(self, path: str) -> bytes:
        if path != self.path:
            raise OSError(path)  # no bytecode of this
        return self.source.encode()
