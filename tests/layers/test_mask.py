"""Positions to which key each query may see."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import causal_mask, packed_mask, padding_mask
from tests.layers.inputs import SEEDS
from tests.tolerances import EXACT, close

POSITIONS = np.array([[0, 1, 2, 0, 1], [3, 4, 5, 9, 10]])


def test_causal_by_hand() -> None:
    drawn = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], bool)  # the drawing in mask.py
    close(causal_mask(2, 5, xp=np), drawn, EXACT)
    close(causal_mask(3, 3, xp=np), np.array([[1, 0, 0], [1, 1, 0], [1, 1, 1]], bool), EXACT)
    close(causal_mask(1, 4, xp=np), np.ones((1, 4), bool), EXACT)


def test_packed_by_hand() -> None:
    a, b = np.ones((3, 3), bool), np.ones((2, 2), bool)
    block = np.block([[a, np.zeros((3, 2), bool)], [np.zeros((2, 3), bool), b]])
    close(packed_mask(POSITIONS), np.stack([block, block])[:, None], EXACT)
    # a position that repeats, or goes down by one, begins a new sequence too
    close(packed_mask(np.array([[4, 4, 3]])), np.eye(3, dtype=bool)[None, None], EXACT)
    # one that comes back to an earlier number does not join what stood there
    apart = np.array([[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]], bool)
    close(packed_mask(np.array([[0, 1, 7, 0, 1]])), apart[None, None], EXACT)


def test_packed_without_tokens() -> None:
    assert packed_mask(np.zeros((2, 0), np.int64)).shape == (2, 1, 0, 0)


@given(st.integers(0, 7), st.integers(0, 7))
def test_queries_are_the_last_of_the_keys(queries: int, more: int) -> None:
    keys = queries + more
    mask = causal_mask(queries, keys, xp=np)
    close(mask, causal_mask(keys, keys, xp=np)[more:], EXACT, empty=queries == 0)
    for t, s in np.ndindex(queries, keys):
        assert mask[t, s] == (s <= t + more)


@given(SEEDS)
def test_padding_is_anything_but_zero(rng: np.random.Generator) -> None:
    attention_mask = rng.integers(0, 3, (3, 7))
    for dtype in (np.int64, np.float32, np.uint8):
        close(padding_mask(attention_mask.astype(dtype)), (attention_mask != 0)[:, None, None, :], EXACT)


@given(st.lists(st.lists(st.integers(1, 4), min_size=3, max_size=3), min_size=1, max_size=3), st.integers(0, 9))
def test_packed_sequences_see_only_themselves(lengths: list[list[int]], start: int) -> None:
    width = max(map(sum, lengths))
    positions = np.zeros((len(lengths), width), np.int64)
    number = np.zeros((len(lengths), width), np.int64)
    for row, parts in enumerate(lengths):
        parts = [*parts, *[1] * (width - sum(parts))]
        positions[row] = [start + p for part in parts for p in range(part)]
        number[row] = [i for i, part in enumerate(parts) for _ in range(part)]
    close(packed_mask(positions), (number[:, :, None] == number[:, None, :])[:, None], EXACT)
