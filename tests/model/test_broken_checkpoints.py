"""Ten thousand broken checkpoints: each gives its right weights or one CheckpointError, and touches nothing else."""

from __future__ import annotations

import gc
import itertools
import os
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import refdiff
from refdiff import CheckpointError
from refdiff.model.weights import flatten
from tests.model.damage import KINDS, SECRET, SOUND, Case, put
from tests.model.weights.files import pack, random_tensors, write

SAMPLE = 24  # cases of each kind in the default run
SECONDS = 2.0  # of one thread, for any one checkpoint: about a thousand times what it takes
MEGABYTES = 200  # of memory, for all cases of a kind

# What reading may do, of all that Python reports to an audit hook; which files it opens is looked at closer.
HARMLESS = {
    "open", "mmap.__new__", "os.listdir", "os.scandir", "pathlib.Path.glob", "builtins.id", "object.__getattr__",
    "sys._getframe",  # a warning looks for the line that called the package
}  # fmt: skip
PYTHON = ("<class ", "<function", "<built-in", "<bound method", "<method", "<module", "<slot", " object at 0x", "root:")


class Watch:
    """Records what happens while it is on; an audit hook can never be taken off."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on:
            self.events.append((event, arguments[0] if arguments else None))

    def strange(self, folder: Path) -> list[tuple[str, Any]]:
        """What should not have happened: anything but opening files that lie in the folder."""
        inside = Path(os.path.realpath(folder))
        return [
            (event, what)
            for event, what in self.events
            if event not in HARMLESS
            # a number is a file that was opened before, by its name
            or (event == "open" and not isinstance(what, int) and Path(os.path.realpath(what)).parent != inside)
        ]


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


@pytest.fixture(scope="module", autouse=True)
def _without_the_garbage_of_others() -> Iterator[None]:
    """What the tests before left is not walked again by collections while one checkpoint's time is taken."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to fill again and again, beside a file that it may not read; what is imported late has been imported."""
    top = tmp_path_factory.mktemp("broken")
    write(top, {SECRET: pack(random_tensors(seed=99))})
    (checkpoint := top / "checkpoint").mkdir()
    for files in (SOUND, SOUND | {"config.json": b"{"}):
        put(checkpoint, files, top)
        read(checkpoint)
    return checkpoint


def read(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The flat weights; or None and the message of the error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return flatten(refdiff.DiffLlamaForCausalLM.from_pretrained(folder).params), ""
        except CheckpointError as error:
            return None, str(error)


def check(case: Case, folder: Path, watch: Watch) -> None:
    put(folder, case.files, folder.parent)
    for _ in range(3):  # the system may have been busy; what is slow is slow each time
        watch.events.clear()
        started, watch.on = time.thread_time(), True
        try:
            found, message = read(folder)
        finally:
            watch.on = False
        if (seconds := time.thread_time() - started) < SECONDS:
            break
    assert seconds < SECONDS
    assert not watch.strange(folder)
    if found is None:
        assert case.fails is not False, message
        assert message.startswith(str(folder)), message
        assert len(message) < 6000
        assert not any(word in message for word in PYTHON), message
        for name in case.names:
            assert name in message or repr(name)[1:40] in message, message
        return
    assert case.fails is not True
    for name, values in found.items():
        assert name == "lm_head.weight" if name not in case.tensors else values.tobytes() == case.tensors[name].data


def check_all(cases: Iterator[Case], folder: Path, watch: Watch) -> None:
    for number, case in enumerate(cases):
        try:
            check(case, folder, watch)
        except BaseException as error:
            error.add_note(f"case {number}: { ({k: v for k, v in case.files.items() if SOUND.get(k) != v})!r:.3000}")
            raise


@pytest.mark.parametrize("kind", KINDS)
def test_some_of_each_kind(kind: str, folder: Path, watch: Watch) -> None:
    count = sum(1 for _ in KINDS[kind]())
    check_all(itertools.islice(KINDS[kind](), 0, None, max(1, count // SAMPLE)), folder, watch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.nightly) if k == "header_bits" else k for k in KINDS]
)
def test_every_one(kind: str, folder: Path, watch: Watch) -> None:
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_all(KINDS[kind](), folder, watch)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024 * MEGABYTES


@pytest.mark.slow
def test_there_are_more_than_ten_thousand() -> None:
    assert sum(sum(1 for _ in kind()) for kind in KINDS.values()) > 10_000
