"""What products promise beyond their layer's numbers, which test_kernels.py tests."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.numpy import NumpyKernels, gemm
from tests.backends.tuned import tune
from tests.backends.vjp_cases import normal

FAST = NumpyKernels(3)


@pytest.mark.parametrize("unpacked", [pytest.param(0, marks=pytest.mark.slow), 24])
def test_products_with_few_tokens_are_the_same_for_either_blocking(unpacked: int) -> None:
    kernels = tune(NumpyKernels(3), unpacked_tokens=unpacked)
    for outputs, terms in ((1031, 2048), (300, 5003), (7, 70_000)):
        weight = normal(1, outputs, terms)
        for rows in (2, 3, 4, 5, 7, 8, 15, 24, 25):
            x = normal(rows, rows, terms)
            for given in (x, np.asfortranarray(x)):
                for w in (weight, np.asfortranarray(weight)):
                    np.testing.assert_allclose(kernels.linear(given, w), x @ weight.T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stored", [None, np.float16, np.uint16])
@pytest.mark.parametrize("rows", [1, 2, 8, 25, 130])
def test_several_products_at_once_are_those_one_by_one(rows: int, stored: Any) -> None:
    x = normal(0, 2, rows, 1024).astype(np.float32)[:1]
    projections: list[dict[str, Any]] = []
    for seed, outputs in enumerate((1031, 300, 7)):  # what threads share, and what is too small for it
        weight = normal(seed, outputs, 1024, scale=0.02).astype(np.float32)
        if stored is not None:
            weight = (weight.view(np.uint32) >> 16).astype(np.uint16) if stored is np.uint16 else weight.astype(stored)
        projections.append({"weight": weight})
    projections[1]["bias"] = normal(9, 300).astype(np.float32)
    alone = [FAST.linear(x, **p) for p in projections]
    with FAST.inference_scope():
        together = FAST.linears(x, *projections)
    for one, other in zip(alone, together, strict=True):
        assert other.shape == one.shape
        np.testing.assert_allclose(other, one, rtol=2e-5, atol=2e-5)
    assert np.abs(alone[0]).max() > 0.1
    assert FAST.linears(x, projections[0], {"weight": normal(0, 7, 1023)}) is NotImplemented


@pytest.mark.parametrize("rows", [1, 2, 8, 9, 10, 17, 24, 25])
@pytest.mark.parametrize("kind", ["float32", "float16", "words", "transposed", "one transposed", "small"])
def test_gate_and_up_of_few_tokens_are_computed_once(rows: int, kind: str, monkeypatch: Any) -> None:
    kernels, inner = tune(NumpyKernels(3), unpacked_tokens=24), 40 if kind == "small" else 1100
    x, down = (normal(i, *shape).astype(np.float32) for i, shape in ((0, (1, rows, 1024)), (3, (7, inner))))
    gate, up = (normal(i, inner, 1024, scale=0.05).astype(np.float32) for i in (1, 2))
    if kind == "float16":
        gate, up = gate.astype(np.float16), up.astype(np.float16)
    elif kind == "words":
        gate, up = ((w.view(np.uint32) >> 16).astype(np.uint16).view(ml_dtypes.bfloat16) for w in (gate, up))
    elif "transposed" in kind:
        gate, up = np.asfortranarray(gate), up if kind == "one transposed" else np.asfortranarray(up)
    products, whole = [], gemm.multiply_whole
    monkeypatch.setattr(gemm, "multiply_whole", lambda flat, w: (products.append(w), whole(flat, w))[1])
    with kernels.inference_scope():
        found = kernels.swiglu(x, {"weight": gate}, {"weight": up}, {"weight": down})
    given = [{"weight": w.astype(np.float64)} for w in (gate, up, down)]
    np.testing.assert_allclose(found, layers.swiglu(x.astype(np.float64), *given), rtol=0, atol=2e-3)
    if kind == "transposed":
        assert [sum(w is one for w in products) for one in (gate, up)] == [int(rows > 1)] * 2
