"""Maps of small random models, one for each variant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.viz import AttentionMaps, maps_of
from tests.model.models import ids, small_model

TOKENS = 7


@pytest.fixture(scope="session")
def outputs() -> Callable[[str], Any]:
    """`outputs(variant)`: what a model of 3 layers and 8 heads gives for two rows of 7 tokens, maps included."""
    made: dict[str, Any] = {}

    def of(variant: str) -> Any:
        if variant not in made:
            model = small_model(variant=variant)
            made[variant] = model(ids(1, 2, TOKENS), output_attentions=True, use_cache=False)
        return made[variant]

    return of


@pytest.fixture
def maps_in(outputs: Callable[[str], Any]) -> Callable[[str], AttentionMaps]:
    """`maps_in(variant)`: the maps of the second row."""
    return lambda variant: maps_of(outputs(variant), [f"t{i}" for i in range(TOKENS)], variant=variant, row=1)


@pytest.fixture
def maps(maps_in: Callable[[str], AttentionMaps]) -> AttentionMaps:
    return maps_in("hf")


def lambda_by_query(maps: AttentionMaps) -> np.ndarray[Any, Any]:
    """λ as (L, 1 or P, 1 or T, 1), to multiply A₂ with."""
    assert maps.lambdas is not None
    return maps.lambdas[:, None, None, None] if maps.lambdas.ndim == 1 else maps.lambdas[..., None]


def render(figure: Any) -> None:
    """Draw a figure as a file of it would be drawn; a figure without a window draws nothing by itself."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
