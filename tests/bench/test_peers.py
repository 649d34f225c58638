"""The other libraries: the same work as refdiff's, and a sentence where one is missing."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from refdiff.bench.device import UnavailableError
from refdiff.bench.peers import NumpySide, OnnxRuntimeSide, TransformersSide
from refdiff.bench.refdiff_side import RefdiffSide
from refdiff.bench.side import Settings


def test_it_multiplies_by_every_weight_and_gives_the_last_product(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, multiplied, real = np.random.default_rng(0), [], np.matmul
    weights = [rng.standard_normal((5, 7), np.float32) for _ in range(3)]

    def matmul(a: Any, b: Any, **options: Any) -> Any:
        multiplied.append(b)
        return real(a, b, **options)

    monkeypatch.setattr(np, "matmul", matmul)
    for tokens in (1, 4):
        x = rng.standard_normal((tokens, 7), np.float32)
        np.testing.assert_array_equal(NumpySide(Settings()).hold(weights, x)(), x @ weights[-1].T)
        assert [b.base is weight for b, weight in zip(multiplied[-3:], weights, strict=True)] == [True] * 3


@pytest.mark.parametrize("size", [1, 2, 16])
@pytest.mark.parametrize("side", [NumpySide, RefdiffSide])
def test_products(side: Any, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refdiff.bench.side.CACHES", 0)
    answer = side(Settings(threads=2, least=0)).product(size, (24, 31))
    weight = np.random.default_rng(0).standard_normal((24, 31), np.float32)
    x = np.random.default_rng(1).standard_normal((size, 31), np.float32)
    np.testing.assert_allclose(answer["sample"], (x.astype(np.float64) @ weight.T)[-1, ::3], rtol=1e-4, atol=1e-5)
    assert answer["seconds"] > 0


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
            side(Settings()).prepare()
