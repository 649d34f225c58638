"""The places on which every layer runs."""

import pytest

from tests.layers.places import Place, places


@pytest.fixture(params=places(), ids=lambda place: place.name)
def xp(request: pytest.FixtureRequest) -> Place:
    """Each place in turn: NumPy, read-only NumPy, array-api-strict on its second device, and CuPy if it answers."""
    place: Place = request.param
    return place
