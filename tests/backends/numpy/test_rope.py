"""RoPE; that the kernels equal their layers, test_kernels.py tests of every one that a layer has."""

from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.numpy import NumpyKernels
from refdiff.backends.numpy.tuning import Tuning
from refdiff.model.cache import KVCache

KERNELS = NumpyKernels(2)


def streams(B: int, T: int, dtype: Any = np.float32, *, rows: int = 1) -> list[np.ndarray]:
    g = np.random.default_rng(B + T)
    shapes = (B, 6, T, 8), (B, 2, T, 8), (B, 1, T, 16), (rows, 1, T, 4), (rows, 1, T, 4)
    return [g.normal(size=shape).astype(dtype) for shape in shapes]


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


def test_what_does_not_fit_is_left_to_the_layers_and_the_cache_is_as_before() -> None:
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
