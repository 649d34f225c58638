"""e = E[ids]."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import embedding
from tests.layers.inputs import SEEDS
from tests.tolerances import EXACT, close

V, D = 7, 5


@given(SEEDS, st.lists(st.integers(1, 3), max_size=3))
def test_is_the_product_with_one_hot_rows(rng: np.random.Generator, shape: list[int]) -> None:
    ids, table = rng.integers(0, V, shape), rng.normal(size=(V, D))
    close(embedding(ids, table), np.eye(V)[ids] @ table, EXACT)
