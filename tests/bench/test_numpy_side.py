"""NumPy's own product as it is measured: the same numbers as refdiff's, for any number of tokens."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.bench.numpy_side import NumpySide
from refdiff.bench.pairs import difference
from refdiff.bench.refdiff_side import RefdiffSide
from refdiff.bench.side import Settings


def test_it_multiplies_by_every_weight_and_gives_the_last_product(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, multiplied, real = np.random.default_rng(0), [], np.matmul
    weights = [rng.standard_normal((5, 7), np.float32) for _ in range(3)]

    def matmul(a, b, **options):
        multiplied.append(b)
        return real(a, b, **options)

    monkeypatch.setattr(np, "matmul", matmul)
    multiply = NumpySide(Settings()).hold(weights)
    for tokens in (1, 4, 1):
        x = rng.standard_normal((tokens, 7), np.float32)
        np.testing.assert_array_equal(multiply(x), x @ weights[-1].T)
        assert [b.base is weight for b, weight in zip(multiplied[-3:], weights, strict=True)] == [True] * 3


@pytest.mark.parametrize("size", [1, 2, 16])
def test_it_and_refdiff_are_given_the_same_work(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refdiff.bench.side.CACHES", 0)
    ours, theirs = (
        side(Settings()).answer("product", size=size, outputs=24, inputs=40, least=0.0)
        for side in (RefdiffSide, NumpySide)
    )
    assert difference(ours, theirs) is None
    assert theirs["seconds"] > 0
    assert any(theirs["sample"])


def test_it_has_no_model() -> None:
    with pytest.raises(ValueError, match="NumpySide is asked for 'prefill', but does prepare, peak, product"):
        NumpySide(Settings()).answer("prefill", size=1, batch=1)
