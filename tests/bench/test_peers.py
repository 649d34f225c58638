"""The other libraries: the same work as refdiff's, and a sentence where one is missing."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from refdiff.bench.device import UnavailableError
from refdiff.bench.measure import difference
from refdiff.bench.peers import NumpySide, OnnxRuntimeSide, TransformersSide
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


@pytest.mark.parametrize(
    ("side", "needed"),
    [(OnnxRuntimeSide, ("onnx", "onnxruntime")), (TransformersSide, ("torch", "transformers"))],
)
def test_what_is_missing_is_said_in_one_sentence(
    side: Any, needed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for missing in needed:
        for name in needed:
            monkeypatch.setitem(sys.modules, name, None if name == missing else sys)
        with pytest.raises(UnavailableError, match=rf"^--against (\w+) needs \1 and {needed[0]} \(pip install"):
            side(Settings()).answer("prepare")


@pytest.mark.parametrize("side", [NumpySide, OnnxRuntimeSide])
def test_a_side_of_products_has_no_model(side: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"{side.__name__}: got request 'prefill', expected one of prepare, peak, product"
    ):
        side(Settings()).answer("prefill", size=1, batch=1)
