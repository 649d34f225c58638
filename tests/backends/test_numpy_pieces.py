"""Blocks of tokens, and products with them in pieces: where they lie, what is summed up, and how exactly."""

from typing import Any

import numpy as np
import pytest

from refdiff.backends import numpy_product_kernels as products
from refdiff.backends.numpy_pieces import NEAR, UNPACKED, Blocks, multiply_rows, rows_of
from refdiff.backends.numpy_vjp_kernels import NumpyVjpKernels
from refdiff.backends.workers import Workers
from tests.backends.vjp_cases import normal

FAST = NumpyVjpKernels(Workers(3))


def one_by_one(work: Any, items: Any) -> None:
    for item in items:
        work(item)


@pytest.mark.parametrize(("tokens", "columns"), [(1, 16), (64, 64), (65, 80), (200, 208), (2 * 512 + 7, 2 * 512 + 16)])
def test_blocks_hold_every_token_once_and_zeros_beside_the_last(tokens: int, columns: int) -> None:
    flat = normal(0, tokens, 2048).astype(np.float32)
    blocks = Blocks(flat, np.empty, one_by_one)
    assert blocks.tokens == columns
    found = np.full((2048, columns), np.nan, np.float32)
    for at, near in blocks.near():
        assert near.size <= NEAR
        found[:, at] = near.swapaxes(0, 1).reshape(2048, -1)
    np.testing.assert_array_equal(found[:, :tokens].T, flat)
    assert not found[:, tokens:].any()


@pytest.mark.parametrize("outputs", [1, 27, 28, 61])
@pytest.mark.parametrize("terms", [100, 256, 999, 1000])
def test_rows_and_terms_that_are_left_over_are_multiplied_too(outputs: int, terms: int) -> None:
    weight, blocks = normal(0, outputs, 1000), normal(1, 3, 1000, 16)
    out = np.empty((outputs, 3 * 16))
    multiply_rows(weight, 28, blocks, out, terms)
    np.testing.assert_allclose(out, weight @ blocks.swapaxes(0, 1).reshape(1000, -1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("tokens", "terms"), [(2, 8192), (16, 512), (64, 512), (64, 256), (64, 60_000)])
def test_a_piece_is_small_enough_that_blas_does_not_pack_it(tokens: int, terms: int) -> None:
    rows = rows_of(tokens, terms)
    assert rows % 4 == 0
    assert rows * tokens * terms <= UNPACKED or rows == 4
    assert (rows + 4) * tokens * terms > UNPACKED or rows == 32


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(("outputs", "terms"), [(2049, 512), (2100, 700), (2048, 2048), (2051, 40_000)])
def test_many_tokens_are_multiplied_as_exactly_as_the_layer_does(
    outputs: int, terms: int, order: Any, monkeypatch: Any
) -> None:
    """Laid in blocks once for all weights, whether the last block is whole, narrow or the only one."""
    laid = []

    def blocks(flat: Any, *given: Any) -> Blocks:
        laid.append(len(flat))
        return Blocks(flat, *given)

    monkeypatch.setattr(products, "Blocks", blocks)
    monkeypatch.setattr(NumpyVjpKernels, "unpacked", 24)
    weight = normal(1, outputs, terms).astype(np.float32)
    for rows in (25, 48, 64, 65, 200):
        x = np.asarray(normal(rows, 1, rows, terms).astype(np.float32), order=order)
        exact = x.astype(np.float64) @ weight.T.astype(np.float64)
        with FAST.running():
            results = FAST.linears(x, {"weight": weight}, {"weight": weight[:40]})
        of_layer = np.square(x @ weight.T - exact).mean()
        for result in results:
            assert np.square(result - exact[..., : result.shape[-1]]).mean() <= 2 * of_layer
    assert laid == [25, 48, 64, 65, 200]
