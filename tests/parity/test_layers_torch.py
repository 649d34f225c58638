"""Every test of every layer once more, on torch's CPU tensors through array-api-compat: tests/layers/everywhere.py."""

from collections.abc import Iterator

import array_api_compat.torch
import pytest
import torch

from refdiff import arrays
from tests.layers.everywhere import check, computing, needs_no_place
from tests.layers.places import Place, files_of_tests

TORCH = Place("torch", array_api_compat.torch, torch.device("cpu"))

# test_rms_norm.py's test_by_hand as test_rms_norm__by_hand, with the marks that it has there
for file in files_of_tests():
    for name, test in vars(file).items():
        if name.startswith("test_") and not needs_no_place(file, test):
            globals()[f"{file.__name__.rpartition('.')[2]}_{name.removeprefix('test')}"] = test


@pytest.fixture(scope="module", autouse=True)
def xp() -> Iterator[Place]:
    with computing(TORCH, *files_of_tests()):
        yield TORCH


@pytest.fixture(autouse=True)
def _is_computed_there(request: pytest.FixtureRequest, xp: Place) -> Iterator[None]:
    yield from check(request, xp)


@pytest.mark.no_arrays
def test_arrays() -> None:
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    assert arrays.namespace(x) is array_api_compat.torch
    assert arrays.device(x) == torch.device("cpu")
    assert arrays.to_numpy(x).tolist() == [[1.0, 2.0]]
    assert arrays.backend(array_api_compat.torch) is array_api_compat.torch
    assert arrays.from_numpy(arrays.to_numpy(x), array_api_compat.torch, torch.device("cpu")).dtype == torch.float32
