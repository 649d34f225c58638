"""Token ids for all sides: random ids, and prompts with continuations that repeat them, for prompt lookup."""

from __future__ import annotations

import itertools
import re

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

PATTERN = 16
"""Number of tokens in the pattern that the rows `lookup` repeat."""

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
RENAMES = {"sift_down": "sink", "start": "first", "end": "stop", "root": "parent"}
"""The names that the rows `edit` change in this program."""


def random_ids(batch: int, tokens: int, vocab_size: int) -> Ids:
    """Return random token ids, seeded by their shape: every side gets the same."""
    return np.random.default_rng(batch * 1_000_003 + tokens).integers(0, vocab_size, (batch, tokens))


def repeated_pattern(size: int, new: int, vocab_size: int) -> tuple[Ids, Ids]:
    """Return a prompt (1, size), a repeated pattern and a token not in it, and the repeated pattern again, (new,)."""
    different = min(PATTERN, vocab_size - 1, size - 1)
    *pattern, other = np.random.default_rng(size).choice(vocab_size, different + 1, replace=False)
    return np.append(np.resize(pattern, size - 1), other)[None], np.resize(pattern, new)


def edited_program(size: int, new: int, vocab_size: int) -> tuple[Ids, Ids]:
    """Return a program as prompt (1, size), followed by a token not in it, and the program with names changed, (new,).

    A token is a name with the space before it, other white space, or a punctuation character.
    """
    changed = re.sub(r"\w+", lambda name: RENAMES.get(name[0], name[0]), PROGRAM)
    before, after = (re.findall(r" ?\w+|\s+|[^\w\s]", text) for text in (PROGRAM, changed))
    words = dict.fromkeys((*before, *after))
    *tokens, other = np.random.default_rng(size).choice(vocab_size, min(len(words) + 1, vocab_size), replace=False)
    known = dict(zip(words, itertools.cycle(tokens), strict=False))
    prompt, continuation = (np.array([known[word] for word in text]) for text in (before, after))
    return np.append(np.resize(prompt, size - 1), other)[None], np.resize(continuation, new)


def forcing_bias(prompt: Ids, text: Ids) -> dict[tuple[int, ...], float]:
    """Return the `sequence_bias` that makes a model generate `text` after the prompt.

    Each sequence has the shortest context that determines its last token.
    """
    tokens = [int(token) for token in (*prompt, *text)]
    positions = range(len(prompt), len(tokens))
    bias = {}
    for position in positions:
        for length in range(1, position + 1):
            before = tokens[position - length : position]
            if len({tokens[p] for p in positions if tokens[p - length : p] == before}) == 1:
                break
        bias[*before, tokens[position]] = 1e4  # above any difference between logits
    return bias
