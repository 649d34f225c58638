"""What is done with a folder that a case has broken; each raises what the library raises."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import struct
import sys
import termios
import threading
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import refdiff
from refdiff.cli import main
from refdiff.cli.process import silence_panics
from refdiff.oracle import first_divergence, golden, read_trace
from tests.model.models import VARIANT_NAMES

CLASSES = (
    refdiff.DiffLlamaModel, refdiff.DiffLlamaForCausalLM, refdiff.DiffLlamaForSequenceClassification,
    refdiff.DiffLlamaForTokenClassification, refdiff.DiffLlamaForQuestionAnswering,
)  # fmt: skip
TEXT = "Once upon a time aaaab 日本 \x00 é" * 3


class CommandError(Exception):
    """A command ended with a status that it does not have, or with something else than one error that names a file."""


@contextlib.contextmanager
def on_terminal() -> Iterator[list[bytes]]:
    """Put standard output on a terminal 40 columns wide; yield what it gets."""
    ours, theirs = os.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    got: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # Linux's way to say that the other side is closed
            while piece := os.read(ours, 65536):
                got.append(piece)

    thread, file = threading.Thread(target=read), os.dup(1)
    thread.start()
    os.dup2(theirs, 1)
    os.close(theirs)
    try:
        yield got
    finally:
        sys.stdout.flush()
        os.dup2(file, 1)
        thread.join()
        os.close(ours)


def load(folder: Path, rng: Random) -> None:
    """Load any class in any type, and look at its numbers."""
    kind, dtype = rng.choice(CLASSES), rng.choice(("auto", "float32", "float64", "bfloat16"))
    weights, kernels = rng.choice((("expanded", "reference"), ("stored", "fast")))
    model = kind.from_pretrained(folder, dtype=dtype, kernels=kernels, weights=weights)
    repr(model), model.num_parameters()


def forward(folder: Path, rng: Random) -> None:
    """Run a loaded model on three tokens."""
    refdiff.DiffLlamaForCausalLM.from_pretrained(folder, kernels="reference")([[1, 0, 2]], output_attentions=True)


def tokenizer(folder: Path, rng: Random) -> None:
    """Encode and decode."""
    with silence_panics():  # to a Python program the Rust library prints what it likes
        read = refdiff.Tokenizer.from_pretrained(folder)
        read.decode(read.encode(TEXT)), read.decode([0, 1, 2, 3])


def chat(folder: Path, rng: Random) -> None:
    """Fill the chat template."""
    messages = [{"role": "user", "content": "hi"}]
    with silence_panics():
        read = refdiff.Tokenizer.from_pretrained(folder)
        read.apply_chat_template(messages, add_generation_prompt=True, tokenize=rng.random() < 0.5)


def generate(folder: Path, rng: Random) -> None:
    """The command `generate` on a terminal, which must not get what it obeys; of 641 tokens a context of 64 has 640."""
    options = rng.choice(([], ["-n", "3"], ["-n", "641"], ["--chat"], ["--temperature", "1"], ["--num-beams", "3"]))
    with on_terminal() as got:
        _command(folder, "generate", "-m", str(folder), "--quiet", *options, "Once")
    text = b"".join(got).decode()
    bidirectional = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    hostile = (
        c for c in text if unicodedata.category(c) in ("Cc", "Cs") or unicodedata.bidirectional(c) in bidirectional
    )
    if bad := [c for c in hostile if c not in "\n\t"]:
        raise CommandError(f"control characters {bad[:5]!a} in the text")
    sys.stdout.write("".join(c for c in text if c.isprintable()))  # letters that are no control characters may be any


def inspect(folder: Path, rng: Random) -> None:
    """The command `inspect`."""
    _command(folder, "inspect", str(folder), reports=True)


def inspect_json(folder: Path, rng: Random) -> None:
    """The command `inspect --json`."""
    _command(folder, "inspect", "--json", str(folder), reports=True)


def convert(folder: Path, rng: Random) -> None:
    """The command `convert`."""
    _command(folder, "convert", str(folder), str(folder / "new"), "--to", rng.choice(VARIANT_NAMES))


def again(folder: Path, rng: Random) -> None:
    """Save over what was loaded."""
    refdiff.DiffLlamaForCausalLM.from_pretrained(folder, kernels="reference").save_pretrained(
        folder, rng.choice(("5GB", 5000))
    )
    refdiff.DiffLlamaForCausalLM.from_pretrained(folder, kernels="reference")


def verify(folder: Path, rng: Random) -> None:
    """Judge outputs by golden vectors."""
    str(golden.verify(folder, folder / "outputs"))


def trace(folder: Path, rng: Random) -> None:
    """Read traces, and compare one with itself by running it again."""
    file = folder / "run.safetensors"
    repr(read_trace(folder / "bare.safetensors")), repr(read_trace(file))
    str(first_divergence(file, file))


def npz(folder: Path, rng: Random) -> None:
    """Read an npz."""
    repr(read_trace(folder / "run.npz"))


def prompts(folder: Path, rng: Random) -> None:
    """The command `generate --prompts-file`."""
    model, out = str(folder.parent / "model"), str(folder / "out.jsonl")
    new = not os.path.lexists(out)
    command = ("generate", "-m", model, "-q", "-n", "2", "--prompts-file", str(folder / "in.jsonl"), "-o", out)
    _command(folder, *command, rows=True)
    if new and os.path.lexists(out):
        check_lines(Path(out))


def check_lines(path: Path) -> None:
    """Raise `CommandError` for a line that is not JSON by RFC 8259, or has no prompt or no text."""
    for line in path.read_bytes().removesuffix(b"\n").split(b"\n") if path.stat().st_size else ():
        try:
            row = json.loads(line, parse_constant=_refuse)
            row["text"].encode(), row["prompt"].encode()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CommandError(f"a line of {path.name} that is not as it should be: {error}: {line[:200]!a}") from error


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


EVERY = (
    load, forward, tokenizer, chat, generate, inspect, inspect_json, convert, again, verify, trace, npz, prompts,
)  # fmt: skip
ACTIONS: dict[str, Callable[[Path, Random], None]] = {f.__name__: f for f in EVERY}


def _command(folder: Path, *arguments: str, reports: bool = False, rows: bool = False) -> None:
    """Run a command; a status that is not 0 goes with one error, which names something in the folder.

    One that reports says in its report what is wrong, with status 1 and no error; with rows each may have an error.
    """
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = main(list(arguments))
    sys.stdout.flush()
    sys.stderr.write(said.getvalue())
    errors = [line for line in said.getvalue().splitlines() if ": error: " in line]
    wanted = 0 if status == 0 or (reports and status == 1) else max(len(errors), 1) if rows else 1
    if status not in (0, 1, 2) or len(errors) != wanted:
        raise CommandError(f"exit status {status} with {len(errors)} errors: {said.getvalue()[-300:]}")
    if nameless := [error for error in errors if str(folder) not in error]:
        raise CommandError(f"an error that names no file: {nameless[0]}")
