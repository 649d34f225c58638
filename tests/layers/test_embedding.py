"""e = E[ids]."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import embedding
from tests.layers.inputs import SEEDS
from tests.layers.places import Case
from tests.tolerances import EXACT, close

RNG = np.random.default_rng(2)
V, D = 7, 5
CASES = [
    Case("batch", embedding, (RNG.integers(0, V, (2, 3)), RNG.normal(size=(V, D))), tolerance=EXACT, tolerance32=1e-7),
    Case("one id", embedding, (np.array(6), RNG.normal(size=(V, D))), tolerance=EXACT, tolerance32=1e-7),
    Case("empty", embedding, (np.zeros((2, 0), np.int64), RNG.normal(size=(V, D)))),
]


def test_by_hand() -> None:
    table = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    close(embedding(np.array([[2, 0, 2]]), table), np.array([[[5.0, 6.0], [1.0, 2.0], [5.0, 6.0]]]), EXACT)


@given(SEEDS, st.lists(st.integers(1, 3), max_size=3))
def test_is_the_product_with_one_hot_rows(rng: np.random.Generator, shape: list[int]) -> None:
    ids, table = rng.integers(0, V, shape), rng.normal(size=(V, D))
    close(embedding(ids, table), np.eye(V)[ids] @ table, EXACT)


@given(SEEDS)
def test_renumbering_the_tokens_changes_nothing(rng: np.random.Generator) -> None:
    ids, table, order = rng.integers(0, V, (2, 3)), rng.normal(size=(V, D)), rng.permutation(V)
    close(embedding(np.argsort(order)[ids], table[order]), embedding(ids, table), EXACT)
