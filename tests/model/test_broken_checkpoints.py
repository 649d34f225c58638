"""Ten thousand broken checkpoints: each gives its right weights or one CheckpointError, and touches nothing else."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

import refdiff
from refdiff import CheckpointError
from refdiff.generation.chat_template import sandbox
from refdiff.model.weights import flatten
from tests.model.broken.cases import SECRET, SOUND, Case, put
from tests.model.broken.kinds import KINDS, TEXT_KINDS
from tests.model.broken.texts import TextCase, sound_texts, template_refusals
from tests.model.weights.files import pack, random_tensors, write

T = TypeVar("T")

SAMPLE = 24  # cases of each kind in the default run
SECONDS = 2.0  # of one thread, for any one checkpoint: about a thousand times what it takes
MEGABYTES = 200  # of memory, for all of them
TEXT_MEGABYTES = 400  # one tokenizer.json has 20 MB, and parsed it has 150

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
    "sys._getframe",  # a warning looks for the line that called the package
}
# Jinja turns a template into Python, compiles and runs it, and makes code objects to show a template's lines in errors.
FOR_TEMPLATES = {"compile", "exec", "code.__new__"}
TEMPLATE_SECONDS = 10.0  # of one thread, for any one template: its budget lasts for one or two
PYTHON = ("<class ", "<function", "<built-in", "<bound method", "<method", "<module", "<slot", " object at 0x", "root:")
CHAT = [{"role": "user", "content": "Hello\n  there"}, {"role": "assistant", "content": "naïve 東京"}]


class Watch:
    """Records what happens while it is on; an audit hook can never be taken off."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on:
            self.events.append((event, arguments[0] if arguments else None))

    def strange(self, folder: Path, harmless: set[str] = HARMLESS) -> list[tuple[str, Any]]:
        """What should not have happened: anything but opening files that lie in the folder."""
        inside = Path(os.path.realpath(folder))
        return [
            (event, what)
            for event, what in self.events
            if event not in harmless
            # a number is a file that was opened before, by its name
            or (event == "open" and not isinstance(what, int) and Path(os.path.realpath(what)).parent != inside)
            if what != "/proc/cpuinfo"  # which kernels the processor has
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
    checkpoint = write(top / "checkpoint", SOUND)
    refdiff.DiffLlamaForCausalLM.from_pretrained(checkpoint)
    (checkpoint / "config.json").write_bytes(b"{")
    with pytest.raises(CheckpointError):
        refdiff.DiffLlamaForCausalLM.from_pretrained(checkpoint)
    for case in itertools.chain(sound_texts(), template_refusals()):
        put(checkpoint, case.files, top)
        with contextlib.suppress(ValueError):
            converse(checkpoint)
    return checkpoint


def load(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The flat weights, or None and the message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return flatten(refdiff.DiffLlamaForCausalLM.from_pretrained(folder).params), ""
        except CheckpointError as error:
            return None, str(error)


def watched(work: Callable[[], T], watch: Watch) -> tuple[T, float]:
    """What the work gives, and the seconds that this thread was on a processor."""
    started = time.thread_time()
    watch.on = True
    try:
        return work(), time.thread_time() - started
    finally:
        watch.on = False


def check(case: Case, folder: Path, watch: Watch) -> None:
    put(folder, case.files, folder.parent)
    watch.events.clear()
    (params, message), seconds = watched(lambda: load(folder), watch)
    for _ in range(2):  # the system may have been busy; what is slow is slow each time
        seconds = seconds if seconds < SECONDS else watched(lambda: load(folder), watch)[1]
    assert seconds < SECONDS
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


def converse(folder: Path) -> str:
    """All that a text can reach: loading, encoding, decoding, and the chat template if there is one."""
    tokenizer = refdiff.Tokenizer.from_pretrained(folder)
    tokenizer.decode(tokenizer(["a b 東京 🎉", "b"], truncation=True, max_length=50)["input_ids"])
    tokenizer.decode(list(range(min(len(tokenizer), 50))), skip_special_tokens=True)
    if tokenizer.chat_template is None:
        return ""
    return str(tokenizer.apply_chat_template(CHAT, tokenize=False))


def check_text(case: TextCase, folder: Path, watch: Watch) -> None:
    put(folder, case.files, folder.parent)
    watch.events.clear()
    text, error = "", None
    started = time.thread_time()
    watch.on = True
    try:
        text = converse(folder)
    except ValueError as raised:
        error = raised
    finally:
        watch.on = False
    has_template = "chat_template.jinja" in case.files
    # Python looks for the source of code that does not compile, to quote it; there is no file of this name.
    # A tokenizer with steps that refdiff cannot bound is tried in a child process with limits first.
    expected = ("open", "<template>"), ("subprocess.Popen", sys.executable)
    watch.events = [event for event in watch.events if event not in expected]
    assert time.thread_time() - started < (TEMPLATE_SECONDS if has_template else SECONDS)
    assert not watch.strange(folder, HARMLESS | FOR_TEMPLATES if has_template else HARMLESS)
    assert not (case.private and any(word in f"{text}{error}" for word in PYTHON)), (text, error)
    assert case.refuses == (error is not None and not isinstance(error, CheckpointError)), error
    if error is None:
        assert case.fails is not True, text
        assert case.prints in (None, text)
    elif not case.refuses:
        assert case.fails is not False, error
        assert str(error).startswith(str(folder)), error
        assert case.file in str(error), error
        assert len(str(error)) < 6000


def check_all(cases: Iterator[Case | TextCase], folder: Path, watch: Watch) -> None:
    for number, case in enumerate(cases):
        try:
            if isinstance(case, Case):
                check(case, folder, watch)
            else:
                check_text(case, folder, watch)
        except BaseException as error:
            error.add_note(f"case {number}: { ({k: v for k, v in case.files.items() if SOUND.get(k) != v})!r:.3000}")
            raise


ALL: dict[str, Callable[[], Iterator[Case] | Iterator[TextCase]]] = {**KINDS, **TEXT_KINDS}


@pytest.mark.parametrize("kind", ALL)
def test_some_of_each_kind(kind: str, folder: Path, watch: Watch) -> None:
    count = sum(1 for _ in ALL[kind]())
    check_all(itertools.islice(ALL[kind](), 0, None, max(1, count // SAMPLE)), folder, watch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.nightly) if k == "bits_of_the_header" else k for k in ALL]
)
def test_every_one(kind: str, folder: Path, watch: Watch) -> None:
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_all(ALL[kind](), folder, watch)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024 * (
        MEGABYTES if kind in KINDS else TEXT_MEGABYTES
    )


def test_there_are_more_than_ten_thousand() -> None:
    assert sum(1 for kind in KINDS.values() for _ in kind()) > 10_000
    assert sum(1 for kind in TEXT_KINDS.values() for _ in kind()) > 4_000
