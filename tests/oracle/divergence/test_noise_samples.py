"""Which runs with rounding there are, and which numbers are rounded alike in them."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle.divergence.noise_samples import MEMBERS, STRONG, alike, draws_of

U = 2.0**-8


def test_equal_numbers_are_rounded_alike() -> None:
    """A text of one token: its rows have one rounding, which their mean keeps."""
    g = np.random.default_rng(0)
    x = np.repeat(g.normal(size=(1, 300)), 40, 0)
    normal = g.standard_normal(x.shape)
    noise = alike(x * (1 + 2.0**-50 * normal), normal)  # as other places compute it
    assert np.mean(noise == noise[:1]) > 0.9
    assert noise[0].std() == pytest.approx(1, rel=0.15)
    assert abs(np.corrcoef(noise[0], x[0])[0, 1]) < 0.2


def test_others_are_rounded_each_for_itself() -> None:
    g = np.random.default_rng(0)
    x, normal = g.normal(size=(40, 300)), g.standard_normal((40, 300))
    x[1] = x[0] * (1 + U / 50)
    assert np.array_equal(alike(x, normal), normal)
    assert alike(np.array(2.0), np.array(0.5)) == 0.5
    assert alike(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0, 3)


def test_which_there_are() -> None:
    """Each that rounds equal numbers alike has a twin that does not."""
    usual = draws_of(local=True)
    assert [d.pilot for d in usual] == [True] + [False] * 2 * MEMBERS
    assert {(d.seed, d.alike) for d in usual[1:]} == {(n, kind) for n in range(MEMBERS) for kind in (False, True)}
    free = draws_of(local=False)
    assert free[STRONG:] == usual
    assert len({d.seed for d in free}) == MEMBERS + STRONG + 1
