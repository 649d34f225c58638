"""Several products of one x are those that `linear` gives one by one, and x is rounded once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends import ops_for
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


@pytest.mark.parametrize("rows", [1, Tuning.few_rows, Tuning.few_rows + 1])
def test_swiglu_of_few_rows_is_two_launches_and_of_many_rounds_x_once(rows: int) -> None:
    device, x = EmulatedDevice(), normal(0, rows, 11).astype(np.float32)
    gate, up = ({"weight": normal(i, 13, 11).astype(np.float16), "bias": normal(i, 13)} for i in (1, 2))
    down = {"weight": normal(3, 5, 13).astype(np.float16)}
    y = ops_for(CupyKernels(device)).swiglu(x, gate, up, down)
    if rows <= Tuning.few_rows:
        assert device.launched == ["gated_linear", "linear"]
    else:
        assert device.launched == ["gated"]
        assert device.multiplied[0][0] is device.multiplied[1][0]
    exact = layers.swiglu(x, *({name: a.astype(np.float32) for name, a in p.items()} for p in (gate, up, down)))
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-4 if rows <= Tuning.few_rows else 0.3)
    other = {"weight": up["weight"].astype(BFLOAT16)}
    ops_for(CupyKernels(device)).swiglu(x[:1], gate, other, down)
    assert device.launched[-4:] == ["linear", "linear", "gated", "linear"], "weights of two types"


def test_one_weight_that_does_not_fit_leaves_all_to_linear() -> None:
    device, x = EmulatedDevice(), normal(0, 2, 11).astype(np.float32)
    for weight in (np.ones((13, 12), np.float32), np.ones((13, 11))):
        given = [*projections(np.float32, np.float32), {"weight": weight}]
        assert CupyKernels(device).linears(x, *given) is NotImplemented
    assert device.launched == []
