"""Every case of every layer once more, on torch's CPU tensors through array-api-compat."""

import array_api_compat.torch
import pytest
import torch

from refdiff import arrays
from tests.layers.places import Case, Place, every_case

TORCH = Place("torch", array_api_compat.torch, torch.device("cpu"))


@pytest.mark.parametrize("case", every_case(), ids=lambda case: f"{case.layer.__name__}, {case}")
def test_any_backend(case: Case) -> None:
    case.check(TORCH)


def test_arrays() -> None:
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    assert arrays.namespace(x) is array_api_compat.torch
    assert arrays.device(x) == torch.device("cpu")
    assert arrays.to_numpy(x).tolist() == [[1.0, 2.0]]
    assert arrays.backend(array_api_compat.torch) is array_api_compat.torch
    assert arrays.from_numpy(arrays.to_numpy(x), array_api_compat.torch, torch.device("cpu")).dtype == torch.float32
