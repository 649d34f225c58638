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
from tests.model.broken.cases import SECRET, SOUND, Case, put
from tests.model.broken.kinds import KINDS
from tests.model.weights.files import pack, random_tensors, write

SAMPLE = 36  # cases of each kind in the default run
SECONDS = 2.0  # of processor time, for any one checkpoint
MEGABYTES = 200  # of memory, for all of them

# What loading may do, of all that Python reports to an audit hook; which files it opens is looked at closer. The model
# asks refdiff's own functions for their attributes, to find fast twins.
HARMLESS = {
    "open",
    "mmap.__new__",
    "os.listdir",
    "os.scandir",
    "pathlib.Path.glob",
    "builtins.id",
    "object.__getattr__",
}


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to fill again and again, beside a file that it may not read; what is imported late has been imported."""
    top = tmp_path_factory.mktemp("broken")
    write(top, {SECRET: pack(random_tensors(seed=99))})
    checkpoint = write(top / "checkpoint", SOUND)
    refdiff.DiffLlamaForCausalLM.from_pretrained(checkpoint)
    (checkpoint / "config.json").write_bytes(b"{")
    with pytest.raises(CheckpointError):
        refdiff.DiffLlamaForCausalLM.from_pretrained(checkpoint)
    return checkpoint


def load(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The flat weights, or None and the message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return flatten(refdiff.DiffLlamaForCausalLM.from_pretrained(folder).params), ""
        except CheckpointError as error:
            return None, str(error)


def check(case: Case, folder: Path, watch: Watch) -> None:
    put(folder, case.files, folder.parent)
    watch.events.clear()
    started = time.process_time()
    watch.on = True
    try:
        params, message = load(folder)
    finally:
        watch.on = False
    assert time.process_time() - started < SECONDS
    assert not watch.strange(folder)
    if params is None:
        assert case.fails is not False, message
        assert message.startswith(str(folder)), message
        assert len(message) < 6000
        for name in case.names:
            assert name in message or repr(name)[1:40] in message, message
    else:
        assert case.fails is not True
        for name, values in params.items():
            if name in case.tensors:
                assert values.tobytes() == case.tensors[name].data, name
            else:
                assert name == "lm_head.weight"


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
@pytest.mark.parametrize("kind", KINDS)
def test_every_one(kind: str, folder: Path, watch: Watch) -> None:
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_all(KINDS[kind](), folder, watch)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


def test_there_are_more_than_ten_thousand() -> None:
    assert sum(1 for kind in KINDS.values() for _ in kind()) > 10_000
