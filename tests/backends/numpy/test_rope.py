"""RoPE; that the kernels equal their layers, test_kernels.py tests of every one that a layer has."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff import layers
from refdiff.backends.numpy import NumpyKernels
from refdiff.backends.numpy.tuning import Tuning
from refdiff.model.cache import KVCache
from tests.tolerances import FLOAT64, close

KERNELS = NumpyKernels(2)


def streams(B: int, T: int, dtype: Any = np.float32, *, rows: int = 1) -> list[np.ndarray]:
    g = np.random.default_rng(B + T)
    shapes = (B, 6, T, 8), (B, 2, T, 8), (B, 1, T, 16), (rows, 1, T, 4), (rows, 1, T, 4)
    return [g.normal(size=shape).astype(dtype) for shape in shapes]


LAYOUTS = {"heads": (0, 1, 2, 3), "tokens": (0, 2, 1, 3), "features": (1, 3, 0, 2)}
"""The axes (B, H, T, d) in the order of memory."""


@given(
    B=st.integers(1, 3), H=st.integers(1, 4), T=st.integers(1, 6), pairs=st.integers(1, 5), unrotated=st.integers(0, 3),
    of_each=st.booleans(), interleaved=st.booleans(), layout=st.sampled_from(sorted(LAYOUTS)),
)  # fmt: skip
def test_heads_in_any_layout_are_rotated_as_the_layer_does_it(
    B: int, H: int, T: int, pairs: int, unrotated: int, of_each: bool, interleaved: bool, layout: str
) -> None:
    """Forward and back, each sequence at positions of its own or all at the same, and some dimensions stay."""
    random, axes = np.random.default_rng(B + T), LAYOUTS[layout]
    g, x = random.normal(size=(2, B, H, T, 2 * pairs + unrotated))
    g, x = (np.ascontiguousarray(a.transpose(axes)).transpose(np.argsort(axes)) for a in (g, x))
    angles = random.uniform(-7, 7, size=(B if of_each else 1, 1, T, pairs))
    turn = np.cos(angles), np.sin(angles)
    found = KERNELS.rope(x, *turn, interleaved=interleaved), KERNELS.rope_vjp(g, x, *turn, interleaved=interleaved)[0]
    close(found[0], layers.rope(x, *turn, interleaved=interleaved), FLOAT64)
    close(found[1], layers.rope_vjp(g, x, *turn, interleaved=interleaved)[0], FLOAT64)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(("B", "T", "rows"), [(1, 1, 1), (3, 1, 3), (2, 5, 1)])
def test_few_tokens_are_rotated_and_appended_as_the_layers_and_the_cache_do_it(
    B: int, T: int, rows: int, interleaved: bool, dtype: Any
) -> None:
    """To the last bit, one token after others too."""
    fused, plain = KVCache(2), KVCache(2)
    for step in range(3):
        q, k, v, cos, sin = streams(B, T + step, dtype, rows=rows)
        if step:  # as a projection leaves them: by tokens, or feature-major
            q, k, v = (x.swapaxes(1, 2).copy().swapaxes(1, 2) for x in (q, k, v))
        if step == 2:
            q, k = (x.transpose(1, 3, 0, 2).copy().transpose(2, 0, 3, 1) for x in (q, k))
        for layer in (0, 1):
            found = KERNELS.rope_append(fused, layer, q, k, v, cos, sin, interleaved=interleaved)
            turned, keys = (layers.rope(x, cos, sin, interleaved=interleaved) for x in (q, k))
            for one, other in zip(found, (turned, *plain.append(layer, keys, v)), strict=True):
                np.testing.assert_array_equal(one, other)
                assert one.dtype == dtype
        assert len(fused) == len(plain)


def test_unsupported_arguments_are_left_to_the_layers_with_the_cache_unchanged() -> None:
    q, k, v, cos, sin = streams(2, 3)
    many = Tuning.small_elements // (2 * 8 * 8) + 1
    for arguments in (
        streams(2, many),
        (q.astype(np.float64), k, v, cos, sin),
        (q, k[:, :, :2], v, cos, sin),
        (q, k[..., :6], v, cos, sin),
        (q, k, v, cos[..., :3], sin[..., :3]),  # dimensions that are kept as they are
        (q, k, v, *(np.concatenate([x] * 3) for x in (cos, sin))),
        (q, k[:, :0], v, cos, sin),
        (q[0], k, v, cos, sin),
    ):
        cache = KVCache(1)
        assert KERNELS.rope_append(cache, 0, *arguments) is NotImplemented
        assert len(cache) == 0
        assert not cache.buffers
