"""e = E[ids]."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import embedding
from tests.layers.inputs import SEEDS
from tests.tolerances import EXACT, close

V, D = 7, 5


def test_by_hand() -> None:
    table = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    close(embedding(np.array([[2, 0, 2]]), table), np.array([[[5.0, 6.0], [1.0, 2.0], [5.0, 6.0]]]), EXACT)


@given(SEEDS, st.lists(st.integers(1, 3), max_size=3))
def test_is_the_product_with_one_hot_rows(rng: np.random.Generator, shape: list[int]) -> None:
    ids, table = rng.integers(0, V, shape), rng.normal(size=(V, D))
    close(embedding(ids, table), np.eye(V)[ids] @ table, EXACT)
