"""Arrays of the libraries themselves go to NumPy bit for bit: torch, JAX, MLX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import torch

from refdiff.oracle.inputs.arrays import any_array
from tests.layers.inputs import says
from tests.oracle.arrays import DTYPES, LAYOUTS, VIEWS, numbers, same_bits


def to_torch(x: np.ndarray) -> torch.Tensor:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(x.copy())


def to_mlx(x: np.ndarray) -> Any:
    if x.dtype == ml_dtypes.bfloat16:
        return mx.array(x.view(np.uint16)).view(mx.bfloat16)
    return mx.array(x)


PUT: dict[str, Callable[[np.ndarray], Any]] = {"torch": to_torch, "jax": jnp.asarray, "mlx": to_mlx}
# MLX makes float32 of NumPy's float64
TYPES = [(library, dtype) for library in PUT for dtype in DTYPES if (library, dtype) != ("mlx", "float64")]
ZERO_STRIDE: dict[str, Callable[[Any], Any]] = {
    "torch": lambda x: x.expand(3, 2, 5, 7),
    "jax": lambda x: jnp.broadcast_to(x, (3, 2, 5, 7)),
    "mlx": lambda x: mx.broadcast_to(x, (3, 2, 5, 7)),
}


@pytest.fixture(autouse=True)
def _float64_in_jax() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize(("library", "dtype"), TYPES)
def test_bit_for_bit(library: str, dtype: str, layout: str) -> None:
    x = numbers(dtype)
    there = PUT[library](x)
    views = {**LAYOUTS, "zero stride": ZERO_STRIDE[library]}
    read = any_array(views[layout](there))
    expected = np.asarray(VIEWS[layout](x))
    assert type(read) is np.ndarray
    assert same_bits(read, expected)
    assert layout == "empty" or not read.flags.writeable
    assert same_bits(any_array(there), x)


def test_an_error_of_a_kernel_that_jax_runs_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(x: Any) -> None:
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: dot")

    monkeypatch.setattr(jax, "device_get", fail)
    with pytest.raises(TypeError, match=r"out: .* the function that computes it failed, as JAX .* UNIMPLEMENTED: dot"):
        any_array(jnp.ones(3), "out")


def test_a_view_of_torch_copies_nothing_and_outlives_its_tensor() -> None:
    x = numbers("bfloat16")
    tensor = to_torch(x)
    read = any_array(tensor)
    assert read.ctypes.data == tensor.data_ptr()
    del tensor
    for _ in range(50):
        to_torch(x + x)
    assert same_bits(read, x)


def test_the_negative_and_the_conjugate_bit_of_torch() -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    assert z.conj().is_conj()
    assert any_array(z.conj()).tolist() == [1 - 2j, 3 + 4j]
    assert z.conj().imag.is_neg()
    assert any_array(z.conj().imag).tolist() == [-2, 4]
    assert any_array(torch._neg_view(torch.ones(2, requires_grad=True))).tolist() == [-1, -1]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_numbers_of_torch(dtype: torch.dtype) -> None:
    x = torch.ones(2, 3).to(dtype)
    known = "float16, bfloat16, float32 or float64"
    why = f"got {dtype}, expected {known}; pass x.float(), times its scale if it has one"
    with says(TypeError, f"q: torch.Tensor cannot be read: {why}"):
        any_array(x, "q")
    assert np.array_equal(any_array(x.float()), np.ones((2, 3)))
