"""One case after the other, each in a forked child with limits; what it may not do is a finding."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import os
import re
import resource
import select
import shutil
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from refdiff.messages import MAX_MESSAGE
from tests.fuzz.actions import ACTIONS
from tests.fuzz.bases import Base
from tests.fuzz.mutations import LARGEST_CHANGED, PIPES_ALLOWED, mutate

CPU_SECONDS, SECONDS = 20, 120
MEMORY, MAPPED = 600 * 10**6, 8 * 10**9
"""Bytes that a case may touch beyond what the parent holds, and that it may map, sparse files among them."""
OUTPUT = 200_000
"""Characters that a command may print, and to standard output four for each byte of JSON, which inspect shows."""
SECRET = b"SECRET"
"""What the file outside of every folder says: nothing may open it, print it or copy it."""
_FOR_PROGRAMMERS = re.compile(r"Traceback \(most recent|object at 0x|panicked at|encountered in")
_TRUE_OF_WEIGHTS = re.compile("(?:overflow|invalid value) encountered in matmul|invalid value encountered in divide")
"""NumPy's warnings where a changed byte has made a weight huge or NaN, and where an RMSNorm without eps meets zeros."""
_SYSTEM = (
    "/usr/", "/etc/ld", "/lib", "/sys/", "/proc/self/", "/dev/null", "/dev/urandom", sys.base_prefix,
    f"{sys.prefix}/lib", f"{sys.prefix}/bin", f"{sys.prefix}/pyvenv.cfg", *filter(None, sys.path),
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What one case did: "result", "refused", or "bad", with what it said."""

    seed: int
    number: int
    what: str
    kind: str
    said: str


def run(bases: dict[str, Base], work: Path, seed: int, number: int) -> Result:
    """Run case (seed, number) in `work`, beside which the bases lie."""
    rng = Random(f"{seed}:{number}")
    name = rng.choice(sorted(bases))
    base = bases[name]
    folder, outside = work / "case", base.folder.parent / "outside"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base.folder, folder)
    changes = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        # what an earlier change has left no file for, or has nested too deeply to be written once more
        with contextlib.suppress(OSError, IndexError, RecursionError):
            changes.append(mutate(folder, outside, rng))
    action = rng.choice(base.actions)
    with watched(outside) as touched:
        kind, said = in_a_child(lambda: ACTIONS[action](folder, rng), folder)
    if touched:
        kind, said = "bad", f"touched what is outside of the folder: {touched[0]}"
    elif copy := next(copies(folder), None):
        kind, said = "bad", f"copied what is outside of the folder to {copy}"
    return Result(seed, number, f"{name}, {action}: {'; '.join(changes)}", kind, said)


def in_a_child(action: Callable[[], Any], folder: Path) -> tuple[str, str]:
    """Run in a forked child; return "result", "refused" or "bad", and what it said."""
    reading, writing = os.pipe()
    outputs = [folder.parent / name for name in ("stdout", "stderr")]
    stored = sum(path.stat().st_size for path in folder.glob("*.json") if path.is_file() and not path.is_symlink())
    limits = OUTPUT + 4 * min(stored, LARGEST_CHANGED), OUTPUT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            _child(action, folder, outputs, writing)
        finally:
            os._exit(1)  # whatever happens: this process must not go on as the one that it was forked from
    os.close(writing)
    told = b""
    deadline = time.monotonic() + SECONDS
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while time.monotonic() < deadline and select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
            if not (piece := pipe.read(65536)):
                break
            told += piece
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # with what it has started; it is a group of its own
    _, status, usage = os.wait4(child, 0)
    if not told:
        return "bad", f"died: status {os.waitstatus_to_exitcode(status)} (hang, CPU time, crash)"
    kind, said, before = json.loads(told)
    if usage.ru_maxrss * 1024 - before > MEMORY:
        return "bad", f"took {usage.ru_maxrss * 1024 - before:,} bytes: {said}"
    for output, limit in zip(outputs, limits, strict=True):
        if problem := problem_of(output.read_bytes().decode("utf-8", "backslashreplace"), limit):
            return "bad", f"printed {problem}"
    return kind, said


def _child(action: Callable[[], Any], folder: Path, outputs: list[Path], writing: int) -> None:
    told: list[str]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # of a new process: what it holds now
    try:
        faulthandler.disable()  # pytest's prints a traceback of every crash, also of one that a test expects
        os.setsid()  # without a terminal, and with its own process group
        for number, path in enumerate(outputs, 1):
            with path.open("wb") as file:
                os.dup2(file.fileno(), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8") for n in (1, 2))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MAPPED, MAPPED))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        opened = _watch(folder)
        warnings.simplefilter("always")
        warnings.showwarning = _print_warning  # pytest would keep warnings to itself
        told = _outcome(action, folder)
        sys.stdout.flush()
        sys.stderr.flush()
        if opened:
            told = ["bad", f"opened {opened[0]}"]
    except BaseException as error:
        told = ["bad", f"{type(error).__name__} in the fuzzer: {error}"]
    os.write(writing, json.dumps([*told, before]).encode())
    os._exit(0)


def _print_warning(message: Warning | str, category: type[Warning], name: str, number: int, *_: object) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, name, number))


def _outcome(action: Callable[[], Any], folder: Path) -> list[str]:
    try:
        action()
    except ValueError as error:
        text = str(error)
        if isinstance(error, UnicodeError | json.JSONDecodeError):
            return ["bad", f"{type(error).__name__}: {ascii(text)[:300]}"]
        if problem := problem_of(text, MAX_MESSAGE):
            return ["bad", f"{type(error).__name__} with {problem}: {ascii(text)[:300]}"]
        if not any(str(place) in text for place in (folder, folder.parent / "model")):
            return ["bad", f"{type(error).__name__} that names no file: {text[:300]}"]
        return ["refused", f"{type(error).__name__}: {text[:200]}"]
    except BaseException as error:
        place = error.__traceback__
        while place is not None and place.tb_next is not None:
            place = place.tb_next
        at = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
        return ["bad", f"{type(error).__name__}: {ascii(str(error))[:300]} at {at}"]
    return ["result", ""]


def problem_of(text: str, limit: int = OUTPUT) -> str | None:
    """What is wrong with a message or an output, if anything is."""
    if len(text) > limit:
        return f"{len(text):,} characters"
    if bad := [c for c in text if not c.isprintable() and c not in "\n\t"]:
        return f"unprintable characters {''.join(bad[:5])!a}"
    text = _TRUE_OF_WEIGHTS.sub("", text)
    if found := _FOR_PROGRAMMERS.search(text):
        return f"what is for programmers: {text[max(found.start() - 100, 0) : found.start() + 200]}"
    return "what it may not read" if SECRET.decode() in text else None


def _watch(folder: Path) -> list[str]:
    """Collect what Python opens outside of the folder, by its real path; `watched` sees what libraries open."""
    opened: list[str] = []
    inside, source = os.path.realpath(folder), Path(__file__).parents[2]
    allowed = (f"{inside}/", *_SYSTEM, f"/proc/{os.getpid()}/", f"{source}/", f"{folder.parent}/model/")
    known = {inside, f"{folder.parent}/model"}
    asked = [folder / name for name in PIPES_ALLOWED]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            path = Path(os.fsdecode(arguments[0]))
            real = os.path.realpath(path)
            if real not in known and path not in asked and not real.startswith(allowed):
                opened.append(ascii(real))

    sys.addaudithook(hook)
    return opened


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Collect what any process does to files of a folder: their names, and the system's numbers for what was done."""
    touched: list[str] = []
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "inotify_init1"):  # not Linux
        yield touched
        return
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if libc.inotify_add_watch(descriptor, os.fsencode(folder), _ANY_EVENT) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch", str(folder))
        yield touched
        with contextlib.suppress(BlockingIOError):
            events = os.read(descriptor, 65536)
            while events:
                _, mask, _, length = struct.unpack_from("iIII", events)
                touched.append(f"{events[16 : 16 + length].rstrip(bytes(1))!r} ({mask:#x})")
                events = events[16 + length :]
    finally:
        os.close(descriptor)


_ANY_EVENT = 0xFFF
"""IN_ALL_EVENTS of <sys/inotify.h>."""


def copies(folder: Path) -> Iterator[Path]:
    """Files that have what may not be read."""
    for path in folder.rglob("*"):
        ours = path.is_file() and not path.is_symlink() and path.stat().st_size < LARGEST_CHANGED
        if ours and SECRET in path.read_bytes():
            yield path


def warm_up(bases: dict[str, Base], work: Path) -> None:
    """Import what the actions import: a child that was forked before would do so again for each case."""
    for base in bases.values():
        for name in base.actions:
            shutil.rmtree(work / "case", ignore_errors=True)
            shutil.copytree(base.folder, work / "case")

            def imported(action: Callable[[Path, Random], None] = ACTIONS[name]) -> None:
                known = set(sys.modules)
                with contextlib.suppress(Exception):
                    action(work / "case", Random(0))
                (work / "imported").write_text("\n".join(sys.modules.keys() - known))

            in_a_child(imported, work / "case")
            for module in (work / "imported").read_text().splitlines():
                with contextlib.suppress(ImportError):  # a name that stands for another module
                    importlib.import_module(module)
    gc.collect()
    gc.freeze()  # nothing that is there now is looked at, and copied for it, in a child


def run_many(bases: dict[str, Base], work: Path, seed: int, first: int, count: int) -> Iterator[Result]:
    """Run cases (seed, first) to (seed, first + count − 1)."""
    for number in range(first, first + count):
        yield run(bases, work, seed, number)
