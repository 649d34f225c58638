"""Token ids for all sides: random ids, and a prompt whose continuation repeats it, for prompt lookup."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

PATTERN = 16
"""Number of tokens in the pattern that the rows `lookup` repeat."""


def random_ids(batch: int, tokens: int, vocab_size: int) -> Ids:
    """Return random token ids, seeded by their shape: every side gets the same."""
    return np.random.default_rng(batch * 1_000_003 + tokens).integers(0, vocab_size, (batch, tokens))


def repeated_pattern(size: int, new: int, vocab_size: int) -> tuple[Ids, Ids]:
    """Return a prompt (1, size), a repeated pattern and a token not in it, and the repeated pattern again, (new,)."""
    different = min(PATTERN, vocab_size - 1, size - 1)
    *pattern, other = np.random.default_rng(size).choice(vocab_size, different + 1, replace=False)
    return np.append(np.resize(pattern, size - 1), other)[None], np.resize(pattern, new)


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
