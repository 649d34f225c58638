"""λ by layer as it is drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.model.outputs import ModelOutput
from refdiff.viz import AttentionMaps, plot_lambdas
from tests.layers.places import STRICT


def test_trained_and_begun(maps: AttentionMaps, outputs: Callable[[str], Any]) -> None:
    there = tuple(map(STRICT.put, outputs("hf").lambdas))
    on_a_device = (STRICT.put(maps.lambdas), there, ModelOutput(lambdas=there))
    for given in (maps, maps.lambdas, outputs("hf"), *on_a_device):
        axes = plot_lambdas(given)
        now, begun = axes.lines
        np.testing.assert_array_equal(now.get_xydata(), np.column_stack([np.arange(3), maps.lambdas]))  # type: ignore[arg-type]
        np.testing.assert_allclose(begun.get_ydata(), 0.8 - 0.6 * np.exp(-0.3 * np.arange(3)), rtol=1e-15)
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["λ", "λ_init, near which it began"]
    assert len(plot_lambdas(maps, starts=False).lines) == 1


def test_v2_has_a_band(maps_in: Callable[[str], AttentionMaps]) -> None:
    maps = maps_in("v2")
    axes = plot_lambdas(maps)
    (line,) = axes.lines
    assert maps.lambdas is not None
    flat = maps.lambdas.reshape(3, -1)
    np.testing.assert_allclose(line.get_ydata(), flat.mean(1), rtol=1e-14)
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for layer in range(3):
        heights = corners[corners[:, 0] == layer, 1]
        np.testing.assert_allclose([heights.min(), heights.max()], [flat[layer].min(), flat[layer].max()])


@pytest.mark.parametrize("given", [None, np.float64(0.3), np.zeros(0), ModelOutput()])
def test_without_lambda(given: Any) -> None:
    with pytest.raises(ValueError, match="got no λ"):
        plot_lambdas(given)
