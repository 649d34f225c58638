"""The softmax of a block, held to the layer's."""

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.numpy_attention_scores import largest, scores_of


def maps(scale):
    g = np.random.default_rng(0)
    mask = g.random((2, 1, 7, 11)) < 0.5
    mask[0, 0, 3] = False
    return [(scale * g.normal(size=(2, 6, 7, 5)), g.normal(size=(2, 3, 11, 5)), m, None) for m in (None, mask)]


@pytest.mark.parametrize("scale", [1.0, 90.0], ids=["small", "large"])
def test_a_block_is_a_part_of_the_layer(scale):
    """Whatever is taken away from scores; a row that sees nothing is zero, and its sum is 1."""
    two, at = maps(scale), (slice(0, 2), slice(1, 3), slice(2, 6), slice(3, 7), slice(11))
    room = np.empty((2, 2 * 4 * 4 * 11))
    found, sums = scores_of(two, at, room, largest(two), causal=True)
    for p, total, (q, k, mask, _) in zip(found, sums, two, strict=True):
        expected = layers.attention_weights(q, k, mask)[:, 2:6, 3:7].reshape(-1, 11)
        np.testing.assert_allclose(p / total, expected, rtol=1e-11, atol=1e-15)
        assert np.shares_memory(p, room)
    assert sums[1][0] == 1
    assert not found[1][0].any()


def test_no_score_is_above_the_bound():
    two = maps(3.0)
    scores = [np.abs(q @ np.repeat(k, 2, axis=1).swapaxes(2, 3)).max() for q, k, *_ in two]
    assert max(scores) < largest(two) < 5 * max(scores)
