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
from refdiff.generation.chat_template import sandbox
from refdiff.model.weights import flatten
from tests.model.damage import CHAT, KINDS, SECRET, SOUND, TEMPLATE, TEXTS, TOKENIZER, Case, put
from tests.model.weights.files import pack, random_tensors, write

SAMPLE = 24  # cases of each kind in the default run
SECONDS = 2.0  # of one thread, for any one checkpoint: about a thousand times what it takes
TEMPLATE_SECONDS = 10.0  # for any one template: its budget lasts for one or two
MEGABYTES = 200  # of memory, for all cases of a kind

# What reading may do, of all that Python reports to an audit hook; which files it opens is looked at closer.
HARMLESS = {
    "open", "mmap.__new__", "os.listdir", "os.scandir", "pathlib.Path.glob", "builtins.id", "object.__getattr__",
    "sys._getframe",  # a warning looks for the line that called the package
}  # fmt: skip
# Jinja turns a template into Python, compiles and runs it, and makes code objects to show a template's lines in errors.
FOR_TEMPLATES = {"compile", "exec", "code.__new__"}
# Python looks for the source of code that does not compile, to quote it; there is no file of this name. A tokenizer
# with steps that refdiff cannot bound is tried in a child process with limits first.
EXPECTED = (("open", "<template>"), ("subprocess.Popen", sys.executable), ("open", "/proc/cpuinfo"))
PYTHON = ("<class ", "<function", "<built-in", "<bound method", "<method", "<module", "<slot", " object at 0x", "root:")
MESSAGES = [{"role": "user", "content": "Hello\n  there"}, {"role": "assistant", "content": "naïve 東京"}]


class Watch:
    """Records what happens while it is on; an audit hook can never be taken off."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on:
            self.events.append((event, arguments[0] if arguments else None))

    def strange(self, folder: Path, harmless: set[str]) -> list[tuple[str, Any]]:
        """What should not have happened: anything but opening files that lie in the folder."""
        inside = Path(os.path.realpath(folder))
        return [
            (event, what)
            for event, what in self.events
            if event not in harmless
            # a number is a file that was opened before, by its name
            or (event == "open" and not isinstance(what, int) and Path(os.path.realpath(what)).parent != inside)
            if (event, what) not in EXPECTED
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


@pytest.fixture(autouse=True)
def _templates_are_stopped_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred would not end; that two seconds are as long as it says, test_sandbox.py shows."""
    monkeypatch.setattr(sandbox, "SECONDS", sandbox.SECONDS / 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to fill again and again, beside a file that it may not read; what is imported late has been imported."""
    top = tmp_path_factory.mktemp("broken")
    write(top, {SECRET: pack(random_tensors(seed=99))})
    (checkpoint := top / "checkpoint").mkdir()
    refused = TEXTS | {TEMPLATE: b"{{ raise_exception('no') }}"}
    for files in (SOUND, SOUND | {"config.json": b"{"}, TEXTS | {TEMPLATE: CHAT.encode()}, refused):
        put(checkpoint, files, top)
        read(Case(files, None), checkpoint)
    return checkpoint


def read(case: Case, folder: Path) -> tuple[dict[str, Any] | str | None, str]:
    """The flat weights, or the chat of a tokenizer after a text went in and out; or None and the message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if TOKENIZER not in case.files:
                return flatten(refdiff.DiffLlamaForCausalLM.from_pretrained(folder).params), ""
            tokenizer = refdiff.Tokenizer.from_pretrained(folder)
            tokenizer.decode(tokenizer(["a b 東京 🎉", "b"], truncation=True, max_length=50)["input_ids"])
            tokenizer.decode(list(range(min(len(tokenizer), 50))), skip_special_tokens=True)
            if tokenizer.chat_template is None:
                return "", ""
            return str(tokenizer.apply_chat_template(MESSAGES, tokenize=False)), ""
        except CheckpointError as error:
            return None, str(error)
        except ValueError as error:
            assert TEMPLATE in case.files  # it refuses these messages
            return None, f"{folder}: {error}"


def check(case: Case, folder: Path, watch: Watch) -> None:
    put(folder, case.files, folder.parent)
    limit = TEMPLATE_SECONDS if TEMPLATE in case.files else SECONDS
    for _ in range(3):  # the system may have been busy; what is slow is slow each time
        watch.events.clear()
        started, watch.on = time.thread_time(), True
        try:
            found, message = read(case, folder)
        finally:
            watch.on = False
        if (seconds := time.thread_time() - started) < limit:
            break
    assert seconds < limit
    assert not watch.strange(folder, HARMLESS | (FOR_TEMPLATES if TEMPLATE in case.files else set()))
    if found is None:
        assert case.fails is not False, message
        assert message.startswith(str(folder)), message
        assert len(message) < 6000
        assert not any(word in message for word in PYTHON), message
        for name in case.names:
            assert name in message or repr(name)[1:40] in message, message
        return
    assert case.fails is not True
    if isinstance(found, str):
        assert not any(word in found for word in PYTHON), found
        return
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
    counts = {name: sum(1 for _ in kind()) for name, kind in KINDS.items()}
    assert sum(counts.values()) - counts["tokenizers"] - counts["templates"] > 10_000
