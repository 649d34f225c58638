"""What fits each other, and what does not: the layer then answers, or says why not."""

from typing import Any

import numpy as np
import pytest

from refdiff.backends.attention_inputs import by_map, covers, fits, mask_heads
from refdiff.backends.numpy.attention_scores import two_maps


def heads(*shape: int, dtype: Any = np.float32) -> Any:
    return np.ones(shape, dtype)


Q, K, V = heads(2, 6, 3, 8), heads(2, 2, 5, 8), heads(2, 2, 5, 16)


@pytest.mark.parametrize(
    ("q", "k", "v", "expected"),
    [
        (Q, K, V, True),
        (heads(2, 5, 3, 8), K, V, False),  # not so many times the key heads
        (Q, heads(2, 2, 5, 4), V, False),  # of another width
        (Q, K, heads(2, 2, 4, 16), False),  # not one for each key
        (Q, K, heads(2, 2, 5, 0), False),
        (heads(1, 6, 3, 8), K, V, False),
        (Q[0], K[0], V[0], False),
    ],
)
def test_queries_keys_and_values_fit(q: Any, k: Any, v: Any, expected: bool) -> None:
    assert fits(q, k, q, k, v) is expected


def test_a_mask_covers_what_it_broadcasts_to_and_no_more() -> None:
    assert covers(np.ones((3, 5)), (2, 6, 3, 5))
    assert covers(np.ones((2, 1, 1, 5)), (2, 6, 3, 5))
    assert not covers(np.ones((4, 5)), (2, 6, 3, 5))
    assert not covers(np.ones((1, 2, 6, 3, 5)), (2, 6, 3, 5))


def test_each_map_has_its_part_of_a_mask_for_both() -> None:
    both = np.arange(12).reshape(1, 12, 1, 1)
    assert mask_heads(both, 6) == 12
    assert mask_heads(both[:, :1], 6) == 6
    for found, expected in zip(by_map(both, 6), (both[:, :6], both[:, 6:]), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert by_map(None, 6) == (None, None)


def test_two_maps_are_of_one_dtype() -> None:
    maps, v, lambdas = two_maps(Q, K, Q, K, V, np.float32(0.5), causal=True) or ([], None, None)
    assert [(q is Q, k is K) for q, k, *_ in maps] == [(True, True)] * 2
    assert v is V
    assert lambdas is not None
    assert lambdas.shape == (2, 6, 3, 1)
    assert two_maps(Q, K, Q, K, V, np.float64(0.5), causal=True) is None
    assert two_maps(Q, K, Q, K, V, np.float32(0.5), None, np.zeros((3, 5)), causal=True) is None
    assert two_maps(Q, K, Q, K, V, 0.5, causal=True) is None
    for bias, served in ((np.float32([0, 0, 0, 0, -1e38]), True), (np.float32([0, 0, 0, 0, -np.inf]), False)):
        found = two_maps(Q, K, Q, K, V, np.float32(0.5), None, bias, causal=True)
        assert (found is not None) is served
