"""One case after the other, each in a forked child with limits; what it may not do is a finding."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import signal
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
from tests.fuzz.mutations import mutate

CPU_SECONDS, SECONDS = 20, 120
MEMORY, MAPPED = 600 * 10**6, 8 * 10**9
"""Bytes that a case may touch beyond what the parent holds, and that it may map, sparse files among them."""
OUTPUT = 200_000
"""Characters that a command may print."""
_ALLOWED_OUTSIDE = (
    "/usr/",
    "/etc/ld",
    "/lib",
    "/sys/",
    "/proc/",
    "/dev/null",
    "/dev/urandom",
    sys.prefix,
    sys.base_prefix,
)


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
    folder = work / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base.folder, folder)
    changes = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        with contextlib.suppress(OSError, IndexError):  # what an earlier change has left no file for
            changes.append(mutate(folder, base.folder.parent / "outside", rng))
    action = rng.choice(base.actions)
    kind, said = in_a_child(lambda: ACTIONS[action](folder, rng), folder)
    return Result(seed, number, f"{name}, {action}: {'; '.join(changes)}", kind, said)


def in_a_child(action: Callable[[], Any], folder: Path) -> tuple[str, str]:
    """Run in a forked child; return "result", "refused" or "bad", and what it said."""
    reading, writing = os.pipe()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    output = folder.parent / "output"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from Python 3.12 on of forks beside threads
        child = os.fork()
    if child == 0:
        _child(action, folder, output, writing)
    os.close(writing)
    told, status = b"", None
    deadline = time.monotonic() + SECONDS
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while time.monotonic() < deadline and select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
            if not (piece := pipe.read(65536)):
                break
            told += piece
        else:
            os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    if not told:
        return "bad", f"died: status {os.waitstatus_to_exitcode(status)} (hang, CPU time, crash)"
    kind, said = json.loads(told)
    if usage.ru_maxrss * 1024 - before > MEMORY:
        return "bad", f"took {usage.ru_maxrss * 1024 - before:,} bytes: {said}"
    printed = output.read_bytes().decode("utf-8", "backslashreplace")
    if problem := problem_of(printed):
        return "bad", f"printed {problem}"
    return kind, said


def _child(action: Callable[[], Any], folder: Path, output: Path, writing: int) -> None:
    told: list[str]
    try:
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8") for n in (1, 2))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (MAPPED, MAPPED))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        opened = _watch(folder)
        warnings.simplefilter("ignore")
        told = _outcome(action, folder)
        sys.stdout.flush()
        sys.stderr.flush()
        if opened:
            told = ["bad", f"opened {opened[0]}"]
    except BaseException as error:
        told = ["bad", f"{type(error).__name__} in the fuzzer: {error}"]
    os.write(writing, json.dumps(told).encode())
    os._exit(0)


def _outcome(action: Callable[[], Any], folder: Path) -> list[str]:
    try:
        action()
    except ValueError as error:
        text = str(error)
        if isinstance(error, UnicodeError):
            return ["bad", f"{type(error).__name__}: {ascii(text)[:300]}"]
        if problem := problem_of(text, MAX_MESSAGE):
            return ["bad", f"{type(error).__name__} with {problem}: {ascii(text)[:300]}"]
        if type(error).__name__ == "CheckpointError" and not any(
            str(p) in text for p in (folder, folder.parent / "model")
        ):
            return ["bad", f"an error that names no file: {text[:300]}"]
        return ["refused", f"{type(error).__name__}: {text[:200]}"]
    except OSError as error:
        return ["refused" if error.filename else "bad", f"{type(error).__name__}: {ascii(str(error))[:300]}"]
    except SystemExit as error:
        return ["refused" if error.code == 2 else "bad", f"exit {error.code}"]
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
    if "Traceback (most recent call last)" in text or " object at 0x" in text:
        return f"what is for programmers: {text[-300:]}"
    return "what it may not read" if "SECRET" in text else None


def _watch(folder: Path) -> list[str]:
    """Collect what is opened outside of the folder, by its real path."""
    opened: list[str] = []
    allowed = (*_ALLOWED_OUTSIDE, str(folder.parent / "model"), str(Path(__file__).parents[2]))
    inside = os.path.realpath(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            real = os.path.realpath(os.fsdecode(arguments[0]))
            if real in ("/dev/zero", "/dev/full") and (folder / "in.jsonl").is_symlink():
                return  # named by the user; its one line without end is refused
            if real != inside and not real.startswith((f"{inside}/", *allowed)):
                opened.append(ascii(real))

    sys.addaudithook(hook)
    return opened


def run_many(bases: dict[str, Base], work: Path, seed: int, first: int, count: int) -> Iterator[Result]:
    """Run cases (seed, first) to (seed, first + count − 1)."""
    for number in range(first, first + count):
        yield run(bases, work, seed, number)
