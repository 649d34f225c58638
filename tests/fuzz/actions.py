"""What is done with a folder that a case has broken; each raises what the library raises."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

# the parent imports what children need: jinja2, tokenizers and the commands; a child would do so again each time
import jinja2.sandbox  # noqa: F401
import tokenizers  # noqa: F401

import refdiff
import refdiff.cli.convert
import refdiff.cli.generate
import refdiff.cli.inspect
from refdiff.cli import main
from refdiff.oracle import golden
from refdiff.oracle.divergence import first_divergence
from refdiff.oracle.trace.trace_files import read_trace

CLASSES = (
    refdiff.DiffLlamaModel, refdiff.DiffLlamaForCausalLM, refdiff.DiffLlamaForSequenceClassification,
    refdiff.DiffLlamaForTokenClassification, refdiff.DiffLlamaForQuestionAnswering,
)  # fmt: skip
TEXT = "Once upon a time aaaab 日本 \x00 é" * 3


class StatusError(Exception):
    """The command line ended with a status that it does not have, or left a traceback."""


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
    read = refdiff.Tokenizer.from_pretrained(folder)
    read.decode(read.encode(TEXT)), read.decode([0, 1, 2, 3, 300])


def chat(folder: Path, rng: Random) -> None:
    """Fill the chat template."""
    read = refdiff.Tokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "hi"}]
    read.apply_chat_template(messages, add_generation_prompt=True, tokenize=rng.random() < 0.5)


def generate(folder: Path, rng: Random) -> None:
    """The command `generate`; its standard output is the model's text, whatever that is."""
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115, for the rest of the child
    _command(
        "generate",
        "-m",
        str(folder),
        "--quiet",
        *rng.choice(([], ["-n", "3"], ["--chat"], ["--temperature", "1"])),
        "Once",
    )


def inspect(folder: Path, rng: Random) -> None:
    """The command `inspect`."""
    _command("inspect", str(folder))


def inspect_json(folder: Path, rng: Random) -> None:
    """The command `inspect --json`."""
    _command("inspect", "--json", str(folder))


def convert(folder: Path, rng: Random) -> None:
    """The command `convert`."""
    _command("convert", str(folder), str(folder / "new"), "--to", rng.choice(("hf", "paper", "v2", "none")))


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
    """Read a trace, and compare it with itself by running it again."""
    for name in ("bare.safetensors", "run.safetensors"):
        read = read_trace(folder / name)
        repr(read), str(first_divergence(read, read))


def npz(folder: Path, rng: Random) -> None:
    """Read an npz."""
    repr(read_trace(folder / "run.npz"))


def prompts(folder: Path, rng: Random) -> None:
    """The command `generate --prompts-file`."""
    model = str(folder.parent / "model")
    _command(
        "generate", "-m", model, "--quiet", "--prompts-file", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")
    )


ACTIONS: dict[str, Callable[[Path, Random], None]] = {
    f.__name__: f
    for f in (
        load,
        forward,
        tokenizer,
        chat,
        generate,
        inspect,
        inspect_json,
        convert,
        again,
        verify,
        trace,
        npz,
        prompts,
    )
}


def _command(*arguments: str) -> None:
    status = main(list(arguments))
    sys.stdout.flush()
    if status not in (0, 1, 2):
        raise StatusError(f"exit status {status}")
