"""A side with a model: what is measured of it, out of steps that each library does in its own way."""

from __future__ import annotations

import itertools
import re
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refdiff.bench.side import ProductSide, Settings

Ids = NDArray[np.int64]

LOOKED_UP = 10
"""prompt_lookup_num_tokens of both sides."""

PATTERN = 16
"""Tokens that the text of prompt lookup says over and over."""

PROGRAM = '''
def sift_down(heap, start, end):
    """Let the number at start sink until none below it is larger."""
    root = start
    while 2 * root + 1 < end:
        child = 2 * root + 1
        if child + 1 < end and heap[child] < heap[child + 1]:
            child += 1
        if heap[root] >= heap[child]:
            return
        heap[root], heap[child] = heap[child], heap[root]
        root = child


def heap_sort(heap):
    """Sort a list in place: build a heap, then take the largest number out of it again and again."""
    for start in reversed(range(len(heap) // 2)):
        sift_down(heap, start, len(heap))
    for end in reversed(range(1, len(heap))):
        heap[0], heap[end] = heap[end], heap[0]
        sift_down(heap, 0, end)
    return heap


def largest(numbers, count):
    """The largest numbers, the largest first."""
    return heap_sort(list(numbers))[-count:][::-1]
'''
RENAMED = {"sift_down": "sink", "start": "first", "end": "stop", "root": "parent"}
"""The edit of prompt lookup: this program with these names changed."""

FORCED = 1e4
"""What is added to the logit of the token that continues the text: more than logits are apart."""


class Arrivals:
    """A streamer of either library: when the tokens of each pass through the model came, and how many they were."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.times: list[float] = []
        self.counts: list[int] = []

    def put(self, value: Any) -> None:
        """Note the prompt, then what each pass gave."""
        self.times.append(self._clock())
        self.counts.append(np.asarray(value).size)

    def end(self) -> None:
        """Do nothing."""


class ModelSide(ProductSide):
    """A library with a causal language model and a cache, which `start` begins and `step` continues.

    itemsize: the bytes of a number in the matrices as they lie in memory. sparing: whether a prompt's last layer is
    computed only as far as the next token needs it, see `work.Work`.
    """

    requests = (*ProductSide.requests, "open", "prefill", "decode", "lookup", "memory", "train")
    vocab_size: int
    itemsize: int
    sparing: ClassVar[bool] = False

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._in_cache: tuple[int, int] | None = None
        self._first: Ids = np.empty(0, np.int64)
        self._train_step: Callable[[], float] | None = None

    @abstractmethod
    def load(self, folder: str) -> None:
        """Open the checkpoint, and set `vocab_size` and `itemsize`."""

    @abstractmethod
    def start(self, ids: Ids, new: int) -> Ids:
        """Read (B, T) into a new cache, and give the most likely next token of each row (B,), the first of `new`."""

    @abstractmethod
    def step(self, tokens: Ids) -> Ids:
        """Read one more token of each row (B,), and give the next ones."""

    @abstractmethod
    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`."""

    @abstractmethod
    def by_lookup(self, ids: Ids, new: int, bias: dict[tuple[int, ...], float], streamer: Arrivals) -> Ids:
        """Continue (1, T) by `new` tokens, guessing them from the prompt; gives the new ones.

        bias: `sequence_bias`, sequences of tokens of which the last is to follow the others.
        """

    @abstractmethod
    def trainer(self, folder: str, ids: Ids) -> Callable[[], float]:
        """Make a function that does one training step on ids (B, T) and gives the loss before it."""

    def open(self) -> dict[str, Any]:
        """Open the checkpoint.

        Raises:
            ValueError: there is none among the settings.
        """
        folder = self.settings.folder
        if folder is None:
            raise ValueError("there is no checkpoint to open")
        seconds, _ = self.timed(lambda: self.load(folder))
        return {"seconds": seconds}

    def prefill(self, size: int, batch: int) -> dict[str, Any]:
        """Read prompts of `size` tokens."""
        self._in_cache = None
        ids = random_ids(batch, size, self.vocab_size)
        seconds, tokens = self.timed(lambda: self.start(ids, 1))
        return {"seconds": seconds, "sparing": self.sparing, "tokens": tokens.tolist()}

    def decode(self, size: int, batch: int, steps: int, capacity: int | None = None) -> dict[str, Any]:
        """Decode `steps` tokens a row after a context of `size`, which is read once and kept, not timed.

        capacity: how many there will be at most, in this call or a later one on the same context.
        """
        if self._in_cache == (size, batch):
            self.rewind(size)
        else:
            self._in_cache = None
            self._first = self.start(random_ids(batch, size, self.vocab_size), 1 + (capacity or steps))
            self._in_cache = size, batch

        def decoded() -> Ids:
            made = [self._first]
            for _ in range(steps):
                made.append(self.step(made[-1]))
            return np.stack(made, axis=1)

        seconds, tokens = self.timed(decoded)
        return {"seconds": seconds, "itemsize": self.itemsize, "tokens": tokens.tolist()}

    def lookup(self, size: int, steps: int, edit: bool = False) -> dict[str, Any]:
        """Continue a prompt of `size` tokens by `steps` after the first, timed from there: it, again or as an edit.

        Random weights repeat nothing of themselves: a bias makes each token follow what it is to follow. The prompt
        ends in a token that is nowhere else in it, so that nothing is guessed before the first new one.

        Raises:
            ValueError: the text is another, or more than one token came with the prompt.
        """
        self._in_cache = None
        ids, text = (edited if edit else repetition)(size, steps + 1, self.vocab_size)
        arrivals = Arrivals(self.clock)
        self.sync()
        made = self.by_lookup(ids, len(text), forcing(ids[0], text), arrivals)
        self.sync()
        seconds = self.clock() - arrivals.times[1]
        if not np.array_equal(made[0], text) or arrivals.counts[1] != 1:
            raise ValueError(
                f"lookup: {arrivals.counts[1]} tokens came first and not one, or the text is not what the bias forces"
            )
        return {"seconds": seconds, "passes": len(arrivals.times) - 2, "tokens": made.tolist()}

    def memory(self, size: int, batch: int, steps: int) -> dict[str, Any]:
        """Open, read and decode, and return the most memory that this took; a request to a new process."""
        self.open()
        tokens = self.decode(size, batch, steps)["tokens"]
        return {**self.peak(), "tokens": tokens}

    def train(self, folder: str, batch: int, context: int, vocab_size: int) -> dict[str, Any]:
        """Make one more training step of the model in `folder`, always on the same ids."""
        if self._train_step is None:
            self._train_step = self.trainer(folder, random_ids(batch, context, vocab_size))
        seconds, loss = self.timed(self._train_step)
        return {"seconds": seconds, "loss": loss}


def repetition(size: int, new: int, vocab_size: int) -> tuple[Ids, Ids]:
    """Draw a prompt (1, size) of a few tokens over and over, then one of another kind; and its continuation (new,)."""
    different = min(PATTERN, vocab_size - 1, size - 1)
    *pattern, other = np.random.default_rng(size).choice(vocab_size, different + 1, replace=False)
    return np.append(np.resize(pattern, size - 1), other)[None], np.resize(pattern, new)


def edited(size: int, new: int, vocab_size: int) -> tuple[Ids, Ids]:
    """Give a prompt (1, size), the words of a program and then one that is not among them; and an edit of it, (new,).

    Words are what a tokenizer would take for one: a name with the space before it, other space, a sign.
    """
    changed = re.sub(r"\w+", lambda name: RENAMED.get(name[0], name[0]), PROGRAM)
    before, after = (re.findall(r" ?\w+|\s+|[^\w\s]", text) for text in (PROGRAM, changed))
    words = dict.fromkeys((*before, *after))
    *tokens, other = np.random.default_rng(size).choice(vocab_size, min(len(words) + 1, vocab_size), replace=False)
    known = dict(zip(words, itertools.cycle(tokens), strict=False))
    prompt, text = (np.array([known[word] for word in said]) for said in (before, after))
    return np.append(np.resize(prompt, size - 1), other)[None], np.resize(text, new)


def forcing(prompt: Ids, text: Ids) -> dict[tuple[int, ...], float]:
    """Make the `sequence_bias` under which `text` follows the prompt: before each token as few as settle it."""
    said = [int(token) for token in (*prompt, *text)]
    places = range(len(prompt), len(said))
    bias: dict[tuple[int, ...], float] = {}
    for place in places:
        for length in range(1, place + 1):
            before = said[place - length : place]
            if len({said[p] for p in places if said[p - length : p] == before}) == 1:
                break
        bias[*before, said[place]] = FORCED
    return bias


def random_ids(batch: int, tokens: int, vocab_size: int) -> Ids:
    """Draw token ids, the same on every side."""
    return np.random.default_rng(batch * 1_000_003 + tokens).integers(0, vocab_size, (batch, tokens))
