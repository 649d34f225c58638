"""Every mistake of the catalogue is another function of the same shape, and a model can have it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.arrays import to_numpy
from refdiff.oracle.mistakes import CATALOGUE, Mistake
from tests.layers.vjps import draw

EACH = pytest.mark.parametrize("mistake", CATALOGUE, ids=str)


def calls(layer: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Some calls of a layer, with numbers in which its mistakes can be seen."""
    yarn = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    by_hand = {
        "lambda_init": [((n,), {}) for n in range(3)],
        "rope_frequencies": [((yarn, 16, 256), {})],
        "rope_cos_sin": [((np.arange(3, 8)[None], [1.0, 0.1], 1.2, np.float64), {})],
    }
    if layer in by_hand:
        return by_hand[layer]
    drawn = [draw(name, seed) for name in [layer.removesuffix("_vjp")] for seed in range(40)]
    if layer.endswith("_vjp"):
        function = getattr(layers, layer.removesuffix("_vjp"))
        drawn = [((np.ones(np.shape(function(*a, **o))), *a), o) for a, o in drawn]
    if layer == "diff_heads_paper":  # with the ε that is given to them, and with the default
        drawn += [(args[:6], options) for args, options in drawn]
    return drawn


def flat(result: Any) -> np.ndarray:
    parts = result if isinstance(result, tuple | list) else [result]
    return np.concatenate([np.ravel(to_numpy(np.asarray(p))) for p in parts if p is not None])


@EACH
def test_is_another_function_of_the_same_shape(mistake: Mistake) -> None:
    for layer in (mistake.layer, *mistake.also):
        right, apart = getattr(layers, layer), 0.0
        wrong = mistake.of(right, layer)
        for args, options in calls(layer):
            expected, actual = flat(right(*args, **options)), flat(wrong(*args, **options))
            assert actual.shape == expected.shape
            assert np.isfinite(actual).all()
            largest = 1e-9 + float(np.abs(expected).max(initial=0))
            apart = max(apart, float(np.abs(actual - expected).max(initial=0)) / largest)
        assert apart > 1e-4, layer
