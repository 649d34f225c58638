"""The places on which every test of every layer runs; see everywhere.py."""

from collections.abc import Iterator

import pytest

from tests.layers.everywhere import check, computing
from tests.layers.places import NUMPY, Place, places


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test on NumPy, read-only NumPy, array-api-strict on its second device, and CuPy if it answers."""
    without_arrays = metafunc.definition.get_closest_marker("no_arrays")
    metafunc.parametrize("xp", [NUMPY] if without_arrays else places(), indirect=True, scope="module", ids=str)


@pytest.fixture(scope="module", autouse=True)
def xp(request: pytest.FixtureRequest) -> Iterator[Place]:
    """The place of a test; of those in tests/parity it is torch."""
    with computing(request.param, request.module):
        yield request.param


@pytest.fixture(autouse=True)
def _is_computed_there(request: pytest.FixtureRequest, xp: Place) -> Iterator[None]:
    yield from check(request, xp)
