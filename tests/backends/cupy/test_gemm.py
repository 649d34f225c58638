"""Several products of one x are those that `linear` gives one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.cupy import CupyKernels
from refdiff.backends.cupy.tuning import Tuning
from tests.backends.vjp_cases import normal
from tests.cuda.emulation import BFLOAT16, EmulatedDevice


def projections(*dtypes: Any) -> list[dict[str, Any]]:
    """Weights of 13, 14, … outputs, the second with a bias."""
    made: list[dict[str, Any]] = [
        {"weight": normal(i, 13 + i, 11).astype(dtype)} for i, dtype in enumerate(dtypes, start=1)
    ]
    made[1]["bias"] = normal(9, 15).astype(dtypes[1])
    return made


@pytest.mark.parametrize("rows", [1, Tuning.few_rows, Tuning.few_rows + 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16], ids=["float32", "float16", "bfloat16"])
def test_several_products_are_those_one_by_one(rows: int, dtype: Any) -> None:
    x, kernels = normal(0, 1, rows, 11).astype(np.float32), CupyKernels(EmulatedDevice())
    together = kernels.linears(x, *projections(dtype, dtype, dtype))
    for y, p in zip(together, projections(dtype, dtype, dtype), strict=True):
        assert y.shape == (1, rows, len(p["weight"]))
        np.testing.assert_array_equal(y, kernels.linear(x, **p))
        rounded = x.astype(dtype if rows > Tuning.few_rows else np.float32).astype(np.float64)
        exact = layers.linear(rounded, **{name: array.astype(np.float64) for name, array in p.items()})
        np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)


def test_one_weight_that_does_not_fit_leaves_all_to_linear() -> None:
    device, x = EmulatedDevice(), normal(0, 2, 11).astype(np.float32)
    for weight in (np.ones((13, 12), np.float32), np.ones((13, 11))):
        given = [*projections(np.float32, np.float32), {"weight": weight}]
        assert CupyKernels(device).linears(x, *given) is NotImplemented
    assert device.launched == []
