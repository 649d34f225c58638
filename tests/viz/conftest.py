"""Maps of small random models, one for each wiring."""

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
    """`outputs(wiring)`: what a model of 3 layers and 8 heads gives for two rows of 7 tokens, maps included."""
    made: dict[str, Any] = {}

    def of(wiring: str) -> Any:
        if wiring not in made:
            model = small_model(wiring=wiring)
            made[wiring] = model(ids(1, 2, TOKENS), output_attentions=True, use_cache=False)
        return made[wiring]

    return of


@pytest.fixture
def maps_in(outputs: Callable[[str], Any]) -> Callable[[str], AttentionMaps]:
    """`maps_in(wiring)`: the maps of the second row."""
    return lambda wiring: maps_of(outputs(wiring), [f"t{i}" for i in range(TOKENS)], wiring=wiring, row=1)


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
