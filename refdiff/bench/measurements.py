"""How each kind of row is measured. A generator prepares and warms up until it gives `READY`, then measures each time.

All sides have the same inputs, and the clock runs over the same work. An answer has `seconds` or `bytes`, or both, and
then `bytes` is None where the system does not say them; `amount`, the tokens (or operations, or bytes) that are divided
by the seconds to give a rate; `work`, the operations or bytes that the side needs for it, which a ceiling is compared
with; and `tokens`, `loss`, `sample` or `text`, by which the sides are seen to have done the same. What a side does
beside its work (scores that causality hides) is not part of `work`.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from refdiff.bench.inputs import Ids, edited, forcing, random_ids, repetition
from refdiff.bench.side import Answer, Side
from refdiff.bench.sizes import TRAINED, write_random
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.weights.names import parameter_shapes

if TYPE_CHECKING:
    from refdiff.bench.rows import Row

CACHES = 2**30
"""Bytes of weights that a product or a ceiling goes through: so much more than caches hold that they do not help."""

WEIGHT = 2048, 8192
"""Outputs and inputs of the weights of `product`."""

FEW = 16
"""Up to so many tokens, what a product costs is reading its weight."""

LOOKUP_PROMPT, LOOKED_UP = 256, 10
"""Tokens of the prompt of `lookup` and `edit`, and prompt_lookup_num_tokens of every side."""

JUDGED = {"check": ("halves", "pass"), "diagnose": ("interleaved", "unique")}
"""How the kernel pairs its heads that the oracle checks or diagnoses, and the status that it must give."""

READY: Answer = {}


def cold(side: Side, row: Row) -> Iterator[Answer]:
    """Run the command that a user would, with a prompt of 16 tokens, until it shows the next one."""
    from refdiff.generation.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_pretrained(side.folder)
    ids = tokenizer.encode("Once upon a time there was a king who had three sons, and the youngest of them")[:16]
    command = [sys.executable, *side.command(tokenizer.decode(ids, skip_special_tokens=True).strip())]
    first_output(command)  # finds files not yet read
    yield READY
    while True:
        seconds, text = first_output(command)
        yield {"seconds": seconds, "text": text}


def load(side: Side, row: Row) -> Iterator[Answer]:
    """Open the checkpoint."""
    yield READY
    while True:
        yield {"seconds": side.timed(lambda: side.open(side.folder))[0]}


def prefill(side: Side, row: Row) -> Iterator[Answer]:
    """Read prompts, to the next token."""
    side.open(side.folder)
    config = DiffLlamaConfig.from_pretrained(side.folder)
    ids = random_ids(row.batch, row.size, config.vocab_size)
    work = row.batch * operations(config, row.size, 1, sparing=side.sparing)
    generated(side, ids[:, :128], 1)
    yield READY
    while True:
        seconds, (tokens, *_) = side.timed(lambda: generated(side, ids, 1))
        yield {"seconds": seconds, "amount": ids.size, "work": work, "tokens": tokens}


def decode(side: Side, row: Row) -> Iterator[Answer]:
    """Decode after a context, one token of each sequence at a time; the tokens after the first are timed."""
    side.open(side.folder)
    s, config = side.settings, DiffLlamaConfig.from_pretrained(side.folder)
    ids = random_ids(row.batch, row.size, config.vocab_size)
    work = decoded_bytes(config, row, s.steps, side.itemsize, cached=8 if s.dtype == "float64" else 4)
    generated(side, ids[:, :128], 2)
    yield READY
    while True:
        tokens, seconds, _ = generated(side, ids, 1 + s.steps)
        yield {"seconds": seconds, "amount": s.steps * row.batch, "work": work, "tokens": tokens}


def memory(side: Side, row: Row) -> Iterator[Answer]:
    """Open, read and decode."""
    yield READY
    while True:
        _, decoded = islice(decode(side, row), 2)
        if (held := side.peak()) is None:
            raise RuntimeError("this system does not say how much memory a process has held")
        yield {"bytes": held, "tokens": decoded["tokens"]}


def look_up(side: Side, row: Row) -> Iterator[Answer]:
    """Continue a prompt with a text made from it; the tokens after the first are timed.

    Random weights repeat nothing by themselves: a bias makes each token follow what it is to follow. The prompt ends in
    a token that is nowhere else in it, so that nothing is guessed before the first new one.
    """
    side.open(side.folder)
    vocab_size = DiffLlamaConfig.from_pretrained(side.folder).vocab_size
    make = edited if row.name == "edit" else repetition

    def looked_up(new: int) -> Answer:
        ids, text = make(LOOKUP_PROMPT, new + 1, vocab_size)
        bias = forcing(ids[0], text)
        tokens, seconds, (first, *later) = generated(
            side, ids, len(text), prompt_lookup_num_tokens=LOOKED_UP, sequence_bias=bias
        )
        if tokens != [text.tolist()] or first != 1:
            raise ValueError(f"lookup: {first} tokens came first and not one, or the text is not what the bias forces")
        return {"seconds": seconds, "amount": new, "passes": len(later), "tokens": tokens}

    looked_up(2 * LOOKED_UP)
    yield READY
    while True:
        yield looked_up(side.settings.looked_up)


class Arrivals:
    """A streamer of either library: when the prompt, the tokens of each pass and the end came; how many tokens."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, value: Any) -> None:
        self.end()
        self.counts.append(np.asarray(value).size)

    def end(self) -> None:
        self.times.append(self._clock())


def generated(side: Side, ids: Ids, new: int, **options: Any) -> tuple[list[list[int]], float, list[int]]:
    """Have a side generate so many tokens greedily; return them, the seconds after the first, and counts by pass."""
    arrivals = Arrivals(side.clock)
    tokens = side.generate(ids, arrivals, max_new_tokens=new, do_sample=False, **options).tolist()
    _, first, *_, end = arrivals.times
    return tokens, end - first, arrivals.counts[1:]


def product(side: Side, row: Row) -> Iterator[Answer]:
    """Multiply tokens with weights that no cache holds."""
    outputs, inputs = WEIGHT
    work = 4 * outputs * inputs if row.size <= FEW else 2 * outputs * inputs * row.size
    count = max(CACHES // (4 * outputs * inputs), 1)
    first = np.random.default_rng(0).standard_normal(WEIGHT, np.float32)
    x = np.random.default_rng(1).standard_normal((row.size, inputs), np.float32)
    # all of them different, so that no library keeps equal ones once; the last is the first drawn
    multiply = side.hold([np.roll(first, i, axis=0) for i in reversed(range(count))], x)
    multiply()
    yield READY
    while True:
        seconds, result = side.repeated(multiply, side.settings.least)
        sample = np.asarray(result, np.float64).reshape(row.size, outputs)[-1, :: max(outputs // 8, 1)]
        yield {"seconds": seconds / count, "amount": work / 1e9, "work": work, "sample": sample.tolist()}


def train(side: Side, row: Row) -> Iterator[Answer]:
    """Make training steps (forward, backward and AdamW), always on the same ids."""
    s, config = side.settings, DiffLlamaConfig(**TRAINED[row.model])
    with tempfile.TemporaryDirectory(prefix="refdiff-bench-", ignore_cleanup_errors=True) as folder:
        write_random(config, folder)
        step = side.trainer(folder, random_ids(s.batch, s.context, config.vocab_size))
    amount = s.batch * s.context
    work = 3 * s.batch * operations(config, s.context, s.context)  # gradients of both factors cost as much as a product
    step()
    yield READY
    while True:
        seconds, loss = side.timed(step)
        yield {"seconds": seconds, "amount": amount, "work": work, "loss": loss, "bytes": side.peak()}


def judge(side: Side, row: Row) -> Iterator[Answer]:
    """Have the oracle judge a kernel, in seconds of the processor, whatever runs beside it.

    Four heads share a pair of key heads.
    """
    from refdiff import oracle

    pairing, status = JUDGED[row.name]
    pairs = {"query_heads": 2 * row.batch, "key_heads": 2 * max(1, row.batch // 4)}
    spec = oracle.Spec.preset("hf_diffllama", head_dim=64, layer=5, **pairs)
    (case,) = oracle.cases("natural", spec=spec, dtype="bfloat16", batch=1, queries=row.size, keys=row.size)
    truth = oracle.truth(spec.replace(pairing=pairing), case.inputs, want=("out",)).out
    output = np.asarray(truth, dtype=np.float32)
    yield READY
    while True:
        started = time.process_time()
        found: Any = getattr(oracle, row.name)(output, spec, case.inputs, recipe="bfloat16")
        seconds = time.process_time() - started
        if found.status != status:
            raise ValueError(f"the oracle: got {found.status}, expected {status}\n{found}")
        yield {"seconds": seconds, "bytes": side.peak()}


def first_output(command: list[str]) -> tuple[float, str]:
    """Run a command; return the seconds from its start to its first output, and all that it printed."""
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
    """Say how a process ended, and the last line of its standard error."""
    if status >= 0:
        how = f"ended with status {status}"
    else:
        how = f"was killed by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    messages.seek(0)
    lines = messages.read().decode("utf-8", "replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"{how}: {last}" if last else how


def operations(config: DiffLlamaConfig, tokens: int, logits: int, *, sparing: bool = False) -> int:
    """Count the operations of a sequence, to the logits of so many of its tokens.

    Of attention, what causality shows counts: scores, values. sparing: of the last layer, all tokens but the last need
    keys and values only.
    """
    count = 2 * logits * config.vocab_size * config.hidden_size
    last, needed = f".layers.{config.num_hidden_layers - 1}.", ("k_proj.weight", "v_proj.weight")
    for name, size in layer_matrices(config).items():
        once = sparing and last in name and not name.endswith(needed)
        count += 2 * size * (1 if once else tokens)
    visible = config.num_hidden_layers * tokens * (tokens + 1) // 2 - sparing * tokens * (tokens - 1) // 2
    return count + 2 * 2 * config.num_query_heads * config.head_dim * visible


def decoded_bytes(config: DiffLlamaConfig, row: Row, steps: int, itemsize: int, cached: int) -> int:
    """Count the bytes that so many steps read: the matrices each time, and each sequence's keys and values so far.

    itemsize, cached: bytes of a number of either.
    """
    matrices = sum(layer_matrices(config).values()) + config.vocab_size * config.hidden_size
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    seen = sum(row.size + i for i in range(1, steps + 1))
    return steps * itemsize * matrices + cached * row.batch * token * seen


def layer_matrices(config: DiffLlamaConfig) -> dict[str, int]:
    """Return how many numbers each matrix of the layers has, by name."""
    shapes = parameter_shapes(config, "DiffLlamaForCausalLM")
    return {name: math.prod(shape) for name, shape in shapes.items() if ".layers." in name and len(shape) > 1}
