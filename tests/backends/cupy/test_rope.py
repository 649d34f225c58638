"""RoPE with the cache in one step is the two layers one after the other: the same keys, values and queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends.cupy import CupyKernels, device
from refdiff.model.cache import KVCache, _grown
from tests.backends.vjp_cases import normal
from tests.cuda.emulation import BFLOAT16, EmulatedDevice

B, H, K, Kv, d, e, n = 2, 6, 4, 3, 10, 14, 3


def step(seed: int, T: int, dtype: Any, batch: int = 1) -> tuple[Any, ...]:
    """Queries and keys as the projections lie, values as pairs of heads do, cos and sin."""
    q, k = (normal(seed + i, B, T, heads, d).astype(dtype).swapaxes(1, 2) for i, heads in enumerate((H, K)))
    angles = np.random.default_rng(seed).uniform(-7, 7, size=(batch, 1, T, n)).astype(np.float32)
    return q, k, normal(seed + 2, B, Kv, T, e).astype(dtype), np.cos(angles), np.sin(angles)


def one_by_one(cache: KVCache, q: Any, k: Any, v: Any, cos: Any, sin: Any, interleaved: bool) -> tuple[Any, Any, Any]:
    """What the layers do, in float32, and rounded once."""
    q, k = (
        layers.rope(x.astype(np.float32), cos, sin, interleaved=interleaved).astype(x.dtype) for x in (q, k)
    )  # fmt: skip
    return q, *cache.append(0, k, v)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("interleaved", [False, True])
def test_it_is_its_layers(dtype: Any, interleaved: bool) -> None:
    emulated = EmulatedDevice(order=2)
    ours, theirs = KVCache(1), KVCache(1)
    for seed, (T, batch) in enumerate(((5, 1), (1, B), (3, 1))):
        arguments = step(seed, T, dtype, batch)
        got = CupyKernels(emulated).rope_append(ours, 0, *arguments, interleaved=interleaved)
        for one, exact in zip(got, one_by_one(theirs, *arguments, interleaved), strict=True):
            assert one.dtype == dtype
            assert one.shape == exact.shape
            np.testing.assert_allclose(one.astype(np.float32), exact.astype(np.float32), rtol=2e-6, atol=2e-6)
        assert len(ours) == len(theirs)
    assert emulated.launched == ["rope_append"] * 3


def test_the_position_comes_from_the_counter_on_the_device() -> None:
    """The cache's own start, here 0, is not looked at; room before and after the tokens stays as it was."""
    cache, length = KVCache(1, static=11), np.array([4], np.int64)
    q, k, v, cos, sin = step(0, 2, np.float32)
    kernels = CupyKernels(EmulatedDevice())
    keys, values, _ = cache.allocate(0, k, v)
    keys[...], values[...] = 7, 8
    with kernels.runtime.counted_by(length):
        turned, _, _ = kernels.rope_append(cache, 0, q, k, v, cos, sin)
    np.testing.assert_allclose(turned, layers.rope(q, cos, sin), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(keys[:, :, 4:6], layers.rope(k, cos, sin), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(values[:, :, 4:6], v)
    for buffer, before in ((keys, 7), (values, 8)):
        assert (np.delete(buffer, [4, 5], axis=2) == before).all()


MISTAKES = [
    ("slot * s.keys.row", "t * s.keys.row"),
    ("slot * s.values.row", "t * s.values.row"),
    ("kv * s.keys.head", "0 * s.keys.head"),
    ("h - s.H - s.K", "0"),
    ("b * s.angles_batch", "0"),
    ("i < s.e", "i < s.d"),
]


@pytest.mark.parametrize(("right", "wrong"), MISTAKES)
def test_a_planted_mistake_is_caught(right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert right in (device.SOURCES / "rope.cu").read_text(), "the source has changed: plant it anew"

    def grown(like: Any, size: int, old: Any, used: int) -> Any:
        new = _grown(like, size, old, used)
        new[:, :, used:, :] = np.nan  # memory that is not written may hold the right numbers of the test before
        return new

    monkeypatch.setattr("refdiff.model.cache._grown", grown)
    kernels = CupyKernels(EmulatedDevice(change=lambda text: text.replace(right, wrong)))
    ours, theirs = KVCache(1), KVCache(1)
    with pytest.raises(AssertionError), np.errstate(all="ignore"):
        for seed in (0, 1):
            arguments = step(seed, 2, np.float32, B)
            got = kernels.rope_append(ours, 0, *arguments)
            for one, exact in zip(got, one_by_one(theirs, *arguments, False), strict=True):
                np.testing.assert_allclose(one, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", ["double", "types", "widths", "tokens", "angles"])
def test_unsupported_arguments_leave_the_cache_unchanged(change: str) -> None:
    q, k, v, cos, sin = step(0, 2, np.float32)
    given = {
        "double": (q.astype(np.float64), k.astype(np.float64), v.astype(np.float64), cos, sin),
        "types": (q, k, v.astype(np.float16), cos, sin),
        "widths": (q, k[..., :-1], v, cos, sin),
        "tokens": (q, k, v[:, :, :1], cos, sin),
        "angles": (q, k, v, cos[:, :, :1], sin[:, :, :1]),
    }[change]
    cache, emulated = KVCache(1), EmulatedDevice()
    assert CupyKernels(emulated).rope_append(cache, 0, *given) is NotImplemented
    assert len(cache) == 0
    assert emulated.launched == []
