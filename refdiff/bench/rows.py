"""The kinds of row, their spelling on the command line, the default rows, and the procedure for each kind.

A procedure is a generator that prepares, yields `READY`, and then measures once per step. All sides get the same
inputs, and the same work is timed. The fields of an answer:

    seconds, bytes               time and memory, one or both; bytes is None where the system does not tell it
    amount                       tokens, divided by the seconds to give the rate
    work                         operations or bytes that the result needs, compared with the ceiling
    passes                       forward passes after the first token, with prompt lookup
    tokens, text, loss           the result, to check that all sides computed the same

Operations that the result does not need, such as scores behind the causal mask, do not count as work.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, cast

import numpy as np

from refdiff.bench.inputs import Ids, forcing_bias, random_ids, repeated_pattern
from refdiff.bench.sides import READY, Measurement, Side
from refdiff.bench.sizes import TRAINED, write_random
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.weights.names import parameter_shapes

LOOKUP_PROMPT, NUM_LOOKUP_TOKENS = 256, 10
"""Number of prompt tokens in the rows `lookup`, and prompt_lookup_num_tokens for all sides."""


def cold(side: Side, row: BenchRow) -> Iterator[Measurement]:
    """Start the library on the command line and wait for the first token after a prompt of 16."""
    from refdiff.generation.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(side.folder)
    ids = tokenizer.encode("Once upon a time there was a king who had three sons, and the youngest of them")[:16]
    command = [sys.executable, *side.command(tokenizer.decode(ids, skip_special_tokens=True).strip())]
    time_first_output(command)  # brings its files into the page cache
    yield READY
    while True:
        seconds, text = time_first_output(command)
        yield {"seconds": seconds, "text": text}


def load(side: Side, row: BenchRow) -> Iterator[Measurement]:
    """Load the checkpoint."""
    yield READY
    while True:
        yield {"seconds": side.time_call(lambda: side.open(side.folder))[0]}


def prefill(side: Side, row: BenchRow) -> Iterator[Measurement]:
    """Process prompts up to the first new token."""
    side.open(side.folder)
    config = DiffLlamaConfig.from_pretrained(side.folder)
    ids = random_ids(row.batch, row.size, config.vocab_size)
    work = row.batch * operations(config, row.size, 1, last_token_only=side.last_token_only)
    generate_greedily(side, ids[:, :128], 1)
    yield READY
    while True:
        seconds, (tokens, *_) = side.time_call(lambda: generate_greedily(side, ids, 1))
        yield {"seconds": seconds, "amount": ids.size, "work": work, "tokens": tokens}


def decode(side: Side, row: BenchRow) -> Iterator[Measurement]:
    """Decode after a context, one token per sequence and step. Timing starts after the first token."""
    side.open(side.folder)
    s, config = side.settings, DiffLlamaConfig.from_pretrained(side.folder)
    ids = random_ids(row.batch, row.size, config.vocab_size)
    work = decode_bytes(config, row, s.steps, side.itemsize, cached=8 if s.dtype == "float64" else 4)
    generate_greedily(side, ids[:, :128], 2)
    yield READY
    while True:
        tokens, seconds, _ = generate_greedily(side, ids, 1 + s.steps)
        yield {"seconds": seconds, "amount": s.steps * row.batch, "work": work, "tokens": tokens}


def memory(side: Side, row: BenchRow) -> Iterator[Measurement]:
    """Load, process a prompt and decode; measure the peak memory of the process."""
    yield READY
    while True:
        _, decoded = islice(decode(side, row), 2)
        if (peak := side.peak()) is None:
            raise RuntimeError("this system does not report the peak memory of a process")
        yield {"bytes": peak, "tokens": decoded["tokens"]}


def look_up(side: Side, row: BenchRow) -> Iterator[Measurement]:
    """Generate a text similar to the prompt, with prompt lookup. Timing starts after the first token.

    A model with random weights repeats nothing by itself, so `sequence_bias` forces the text. The last token of the
    prompt occurs nowhere else in it, so prompt lookup proposes nothing for the first pass.
    """
    side.open(side.folder)
    vocab_size = DiffLlamaConfig.from_pretrained(side.folder).vocab_size

    def generate_text(new: int) -> Measurement:
        ids, text = repeated_pattern(LOOKUP_PROMPT, new + 1, vocab_size)
        bias = forcing_bias(ids[0], text)
        tokens, seconds, (first, *later) = generate_greedily(
            side, ids, len(text), prompt_lookup_num_tokens=NUM_LOOKUP_TOKENS, sequence_bias=bias
        )
        if first != 1:
            raise ValueError(f"lookup: got {first} tokens from the first pass, expected 1")
        if tokens != [text.tolist()]:
            raise ValueError("lookup: got another text than sequence_bias forces")
        return {"seconds": seconds, "amount": new, "passes": len(later), "tokens": tokens}

    generate_text(2 * NUM_LOOKUP_TOKENS)
    yield READY
    while True:
        yield generate_text(side.settings.lookup_tokens)


class Arrivals:
    """A streamer for either library that records the times of the prompt, each pass and the end, and token counts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, value: Any) -> None:
        self.end()
        self.counts.append(np.asarray(value).size)

    def end(self) -> None:
        self.times.append(self._clock())


def generate_greedily(side: Side, ids: Ids, new: int, **options: Any) -> tuple[list[list[int]], float, list[int]]:
    """Generate `new` tokens; return them, the seconds from the first token to the end, and the token count per pass."""
    arrivals = Arrivals(side.clock)
    tokens = side.generate(ids, arrivals, max_new_tokens=new, do_sample=False, **options).tolist()
    _, first, *_, end = arrivals.times
    return tokens, end - first, arrivals.counts[1:]


def train(side: Side, row: BenchRow) -> Iterator[Measurement]:
    """Run training steps (forward, backward and AdamW) on the same ids."""
    s, config = side.settings, DiffLlamaConfig(**TRAINED[row.model])
    with tempfile.TemporaryDirectory(prefix="refdiff-bench-", ignore_cleanup_errors=True) as folder:
        write_random(config, folder)
        step = side.trainer(folder, random_ids(s.batch, s.context, config.vocab_size))
    amount = s.batch * s.context
    work = 3 * s.batch * operations(config, s.context, s.context)  # a product's backward pass is two products
    step()
    yield READY
    while True:
        seconds, loss = side.time_call(step)
        yield {"seconds": seconds, "amount": amount, "work": work, "loss": loss, "bytes": side.peak()}


def time_first_output(command: list[str]) -> tuple[float, str]:
    """Run a command; return the seconds from its start to its first output, and its whole output."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as messages:
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": messages}
        with subprocess.Popen(command, **pipes) as process:  # noqa: S603, this very Python
            output = cast("IO[bytes]", process.stdout)
            first, seconds = output.read(1), time.perf_counter() - started
            text = (first + output.read()).decode("utf-8", "replace")
        if process.returncode or not first:
            raise RuntimeError(f"its command {describe_end(process.returncode, messages)}")
    return seconds, text.strip()


def describe_end(status: int, messages: IO[bytes]) -> str:
    """Describe how a process ended, with the last line of its standard error."""
    if status >= 0:
        how = f"ended with status {status}"
    else:
        how = f"was killed by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    messages.seek(0)
    lines = messages.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"{how}: {last}" if last else how


def operations(config: DiffLlamaConfig, tokens: int, logits: int, *, last_token_only: bool = False) -> int:
    """Count multiplications and additions for one sequence of `tokens`, with logits for `logits` of them.

    Attention counts scores and values that the causal mask allows. last_token_only: the last layer computes only keys
    and values for all tokens but the last.
    """
    count = 2 * logits * config.vocab_size * config.hidden_size
    last, needed = f".layers.{config.num_hidden_layers - 1}.", ("k_proj.weight", "v_proj.weight")
    for name, size in matrix_sizes(config).items():
        once = last_token_only and last in name and not name.endswith(needed)
        count += 2 * size * (1 if once else tokens)
    visible = config.num_hidden_layers * tokens * (tokens + 1) // 2 - last_token_only * tokens * (tokens - 1) // 2
    return count + 2 * 2 * config.num_query_heads * config.head_dim * visible


def decode_bytes(config: DiffLlamaConfig, row: BenchRow, steps: int, itemsize: int, cached: int) -> int:
    """Count the bytes that `steps` decoding steps read: in each, all matrices and the cached keys and values.

    itemsize, cached: bytes per number of the matrices and of the cache.
    """
    matrices = sum(matrix_sizes(config).values()) + config.vocab_size * config.hidden_size
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    seen = sum(row.size + i for i in range(1, steps + 1))
    return steps * itemsize * matrices + cached * row.batch * token * seen


def matrix_sizes(config: DiffLlamaConfig) -> dict[str, int]:
    """Return the size of each matrix in the decoder layers, by name."""
    shapes = parameter_shapes(config, "DiffLlamaForCausalLM")
    return {name: math.prod(shape) for name, shape in shapes.items() if ".layers." in name and len(shape) > 1}


_MANY = "TOKENS[xN]"
_TRANSFORMERS = ("transformers",)


@dataclass(frozen=True)
class Kind:
    """A kind of row.

    form: what follows the name on the command line.
    title: the name in tables.
    measure: the procedure.
    unit: of the rate; with s or B, time or memory itself is shown.
    ceiling: the machine's limit for `work`, gemv (bytes per second) or sgemm (operations per second).
    peers: the possible sides beside refdiff.
    needs_model: whether it reads the checkpoint. Training creates its own.
    new_process: whether each repetition has a process of its own.
    warm_up: whether the first repetition, which reads the files from disk, does not count.
    memory: the title of a second row, of peak memory; empty for none.
    """

    form: str
    title: str
    measure: Callable[[Side, BenchRow], Iterator[Measurement]]
    unit: str = "tok/s"
    ceiling: str = ""
    peers: tuple[str, ...] = ("transformers", "stored")
    needs_model: bool = True
    new_process: bool = False
    warm_up: bool = False
    memory: str = ""


KINDS = {
    "cold": Kind("", "start to first token", cold, "s", peers=_TRANSFORMERS),
    "load": Kind("", "load", load, "s", new_process=True, warm_up=True),
    "prefill": Kind(_MANY, "prefill {size}{sequences}", prefill, ceiling="sgemm"),
    "decode": Kind(_MANY, "decode {size}{sequences}", decode, ceiling="gemv"),
    "lookup": Kind("", "prompt lookup", look_up),
    "memory": Kind(_MANY, "memory {size}{sequences}", memory, "B", new_process=True),
    "train": Kind("MODEL", "training step, {model}", train, ceiling="sgemm", peers=_TRANSFORMERS, needs_model=False,
                  memory="training memory, {model}"),
}  # fmt: skip
_NUMBER = "[1-9][0-9]{0,5}"
_FORMS = {
    "": "",
    _MANY: f":(?P<size>{_NUMBER})(x(?P<batch>{_NUMBER}))?",
    "MODEL": f":(?P<model>{'|'.join(TRAINED)})",
}


@dataclass(frozen=True)
class BenchRow:
    """A row to measure.

    size: number of tokens, 0 for kinds without.
    batch: number of sequences.
    model: name of the model to train.
    """

    name: str
    size: int = 0
    batch: int = 1
    model: str = ""

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def spelled(self) -> str:
        """The row as the command line spells it."""
        size = self.model or (str(self.size) if self.size else "")
        return self.name + (f":{size}" if size else "") + (f"x{self.batch}" if self.batch > 1 else "")

    def format_title(self, title: str) -> str:
        """Fill this row's values into a title of its kind."""
        return title.format(
            size=self.size,
            model=self.model,
            batch=self.batch,
            sequences=f", batch {self.batch}" if self.batch > 1 else "",
        )

    @property
    def title(self) -> str:
        """The row's name in tables."""
        return self.format_title(self.kind.title)


def parse_rows(text: str) -> list[BenchRow]:
    """Read `prefill:512,decode:128x8,load`; raise `ValueError` for an unknown row."""
    return list(dict.fromkeys(_parse(part.strip()) for part in text.split(",")))


def _parse(part: str) -> BenchRow:
    name, colon, rest = part.partition(":")
    if name not in KINDS:
        raise ValueError(f"got {part!r}, expected {', '.join(KINDS)}, as in decode:128x8")
    form = KINDS[name].form
    if (match := re.fullmatch(_FORMS[form], colon + rest)) is None:
        spelled = f"{name}:{form}" if form else name
        example = {"": "", "MODEL": f"; MODEL is {' or '.join(TRAINED)}"}.get(form, f", as in {name}:128")
        raise ValueError(f"got {part!r}, expected {spelled}{example}")
    parts = match.groupdict()
    return BenchRow(name, int(parts.get("size") or 0), int(parts.get("batch") or 1), parts.get("model") or "")


ALL = parse_rows(
    "cold,load,prefill:128,prefill:512,prefill:2048,prefill:8192,decode:128,decode:2048,decode:8192,"
    "decode:128x2,decode:128x4,decode:128x8,decode:128x16,lookup,memory:128,memory:2048,memory:8192,"
    "memory:128x4,memory:128x16"
)
"""The rows measured without --rows."""

QUICK = parse_rows("cold,load,prefill:32,decode:32,decode:32x3,lookup,memory:32")
"""The rows measured with --quick."""
