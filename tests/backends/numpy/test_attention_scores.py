"""The softmax of a block, tested against the layer's."""

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.numpy.attention_scores import block_softmax, score_bounds
from refdiff.backends.numpy.tuning import Tuning


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
    found, sums = block_softmax(Tuning(), two, at, room, score_bounds(two), causal=True)
    for p, total, (q, k, mask, _) in zip(found, sums, two, strict=True):
        expected = layers.attention_weights(q, k, mask)[:, 2:6, 3:7].reshape(-1, 11)
        np.testing.assert_allclose(p / total, expected, rtol=1e-11, atol=1e-15)
        assert np.shares_memory(p, room)
    assert sums[1][0] == 1
    assert not found[1][0].any()


def test_rows_of_the_batch_do_not_see_each_other():
    """To the last bit: from one of them the largest score is taken away, from the other nothing."""
    at = (slice(0, 2), slice(0, 3), slice(0, 6), slice(0, 7), slice(11))

    def rows(two):
        found, _ = block_softmax(Tuning(), two, at, np.empty((2, 2 * 6 * 7 * 11)), score_bounds(two), causal=True)
        return [p.reshape(2, -1) for p in found]

    small, large = maps(1.0), maps(90.0)
    mixed = [(np.stack([q[0], r[1]]), k, m, None) for (q, k, m, _), (r, *_) in zip(small, large, strict=True)]
    for mine, calm, steep in zip(rows(mixed), rows(small), rows(large), strict=True):
        np.testing.assert_array_equal(mine[0], calm[0])
        np.testing.assert_array_equal(mine[1], steep[1])


def test_no_score_is_above_the_bound():
    two = maps(3.0)
    scores = [np.abs(q @ np.repeat(k, 2, axis=1).swapaxes(2, 3)).max(axis=(1, 2, 3)) for q, k, *_ in two]
    for most, bound in zip(np.max(scores, axis=0), score_bounds(two), strict=True):
        assert most < bound < 5 * most
