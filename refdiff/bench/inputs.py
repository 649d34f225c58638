"""Token ids that every side reads: random ones, and texts that repeat their prompt, for prompt lookup."""

from __future__ import annotations

import itertools
import re

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

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


def random_ids(batch: int, tokens: int, vocab_size: int) -> Ids:
    """Draw token ids, the same on every side."""
    return np.random.default_rng(batch * 1_000_003 + tokens).integers(0, vocab_size, (batch, tokens))


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
    bias = {}
    for place in places:
        for length in range(1, place + 1):
            before = said[place - length : place]
            if len({said[p] for p in places if said[p - length : p] == before}) == 1:
                break
        bias[*before, said[place]] = 1e4  # more than logits are apart
    return bias
