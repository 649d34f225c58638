"""The cache: append gives all, reorder and crop give what they say, and nothing else changes it."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.arrays import to_numpy
from refdiff.model.cache import KVCache


def pieces(seed: int, lengths: list[int], layers: int = 2, batch: int = 3):
    g = np.random.default_rng(seed)
    return [
        [(g.normal(size=(batch, 2, n, 5)), g.normal(size=(batch, 1, n, 7))) for _ in range(layers)] for n in lengths
    ]


@pytest.mark.parametrize("static", [None, 13])
@given(lengths=st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_append_returns_everything_so_far(static, lengths):
    cache, steps = KVCache(2, static=static), pieces(1, lengths)
    for n in range(len(steps)):
        for layer in range(2):
            k, v = cache.append(layer, *steps[n][layer])
            np.testing.assert_array_equal(k, np.concatenate([s[layer][0] for s in steps[: n + 1]], axis=2))
            np.testing.assert_array_equal(v, np.concatenate([s[layer][1] for s in steps[: n + 1]], axis=2))
        assert len(cache) == sum(lengths[: n + 1])
    assert cache.batch_size == 3
    assert cache.num_layers == 2


def test_length_counts_what_went_through_all_layers():
    cache, ((first, second), (third, fourth)) = KVCache(2), pieces(2, [3, 2])
    cache.append(0, *first)
    assert len(cache) == 0  # interrupted before the second layer: these tokens never happened
    cache.append(0, *third)
    k, _ = cache.append(1, *fourth)
    assert len(cache) == 2
    np.testing.assert_array_equal(k, fourth[0])
    k, _ = cache.append(0, *first)
    np.testing.assert_array_equal(k, np.concatenate([third[0], first[0]], axis=2))
    assert second is not None


def test_reorder_selects_sequences_and_may_change_the_batch_size():
    cache, ((a, b),) = KVCache(2), pieces(3, [4])
    cache.append(0, *a)
    cache.append(1, *b)
    cache.reorder(np.array([2, 0, 2, 2]))
    assert cache.batch_size == 4
    new = np.zeros((4, 2, 1, 5)), np.zeros((4, 1, 1, 7))
    k, v = cache.append(1, *new)
    np.testing.assert_array_equal(k[:, :, :4], b[0][[2, 0, 2, 2]])
    np.testing.assert_array_equal(v[:, :, :4], b[1][[2, 0, 2, 2]])


@pytest.mark.parametrize("length", [0, 3, 5])
def test_crop_forgets_the_end(length):
    cache, (long, short) = KVCache(2), pieces(4, [5, 2])
    for layer in range(2):
        cache.append(layer, *long[layer])
    cache.crop(length)
    assert len(cache) == length
    k, _ = cache.append(0, *short[0])
    np.testing.assert_array_equal(k, np.concatenate([long[0][0][:, :, :length], short[0][0]], axis=2))


def filled(**sizes):
    """Five tokens of two rows in two layers."""
    cache = KVCache(2, **sizes)
    for layer in range(2):
        cache.append(layer, *one(5))
    return cache


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        *(
            (lambda rows=rows: filled().reorder(rows), IndexError, "reorder: got indices .*, expected 0 to 1")
            for rows in ([2], [-1], [0, 5])
        ),
        *(
            (lambda n=n: filled().crop(n), ValueError, f"crop: got length {n}, expected an integer from -5 to 5")
            for n in (-6, 6, 2.0)
        ),
        (lambda: filled().reorder([0.5, 1]), ValueError, "indices: got dtype float64, expected integers"),
        (lambda: filled().append(0, *(x[:1] for x in one(2))), ValueError, "expected a batch of 2 as in the cache"),
        *(
            (lambda other=other: filled().append(0, *map(other, one(2))), ValueError, message)
            for other, message in (
                (lambda x: x.repeat(2, axis=1), r"k: got shape \(2, 2, 2, 3\) .* expected \(2, 1, T, 3\)"),
                (lambda x: x.repeat(2, axis=3), r"k: got shape \(2, 1, 2, 6\)"),
                (lambda x: x.astype(np.float32), "of float32, expected .* of float64 as in the cache"),
            )
        ),
        (lambda: filled().append(0, one(2)[0], one(2)[0]), ValueError, r"v: got shape \(2, 1, 2, 3\)"),
        (lambda: KVCache(0), ValueError, "expected integers of 1 or more"),
        (lambda: KVCache("3"), ValueError, "got '3', None, None, expected integers of 1 or more"),
        *((lambda n=n: KVCache(2, **{n: 0}), ValueError, "integers of 1 or more") for n in ("static", "max_tokens")),
        (lambda: KVCache(1).commit(0, 1), ValueError, "got layer 0, which has no buffers yet"),
        (lambda: filled(static=9).reserve(10), ValueError, "reserve: got 10 tokens, expected at most static=9"),
    ],
)
def test_invalid_arguments_of_a_cache_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def one(tokens: int):
    return np.zeros((2, 1, tokens, 3)), np.zeros((2, 1, tokens, 4))


@pytest.mark.parametrize(("first", "room"), [(1, 9), (71, 79), (72, 81), (2048, 2304), (2056, 2312), (9000, 9256)])
def test_the_first_token_after_a_prompt_is_not_copied_with_it(first, room):
    cache = KVCache(1)
    before = cache.append(0, *one(first))[0].base
    after = cache.append(0, *one(1))[0].base
    assert after is before
    assert after.shape[2] == room


@pytest.mark.parametrize(
    ("most", "rooms"), [(10, {10}), (12, {11, 12}), (40, {11, 16, 24, 36, 40}), (None, {11, 16, 24, 36, 54})]
)
def test_capacity_does_not_grow_past_max_tokens(most, rooms):
    cache, pieces_of = KVCache(1, max_tokens=most), (3, *(1,) * (min(most or 40, 40) - 3))
    assert {cache.append(0, *one(tokens))[0].base.shape[2] for tokens in pieces_of} == rooms
    assert cache.append(0, *one(30))[0].shape[2] == len(cache), "more than was said has room too"


def test_capacity_reserved_before_the_first_token():
    cache = KVCache(2, max_tokens=70)
    cache.reserve(50)
    k, v = cache.append(0, *one(3))
    assert k.base.shape[2] == v.base.shape[2] == 50
    cache.append(1, *one(47))
    cache.reserve(60)
    assert [x.shape[2] for x in cache.buffers] == [60] * 4


@pytest.mark.parametrize("grow", [lambda cache: cache.reserve(60), lambda cache: cache.append(0, *one(30))])
def test_growing_the_capacity_copies_the_contents(grow):
    cache, first = KVCache(1), [np.random.default_rng(3).normal(size=x.shape) for x in one(5)]
    cache.append(0, *first)
    before = cache.buffers
    for x in before:
        x[:, :, 5:] = np.nan
    grow(cache)
    for x, old, was in zip(cache.buffers, before, first, strict=True):
        assert x is not old
        assert x.shape[2] > old.shape[2]
        np.testing.assert_array_equal(x[:, :, :5], was)


def test_a_device_fills_the_capacity_to_the_last_token():
    cache = KVCache(2)
    with pytest.raises(ValueError, match="advance: got 1 tokens in all, more than the capacity"):
        cache.advance(1)
    for layer in range(2):
        cache.append(layer, *one(3))
    cache.reserve(20)
    cache.advance(2)
    assert len(cache) == 5
    cache.advance(15)
    assert len(cache) == 20
    with pytest.raises(ValueError, match="advance: got 21 tokens in all, more than the capacity"):
        cache.advance(1)
    assert cache.append(1, *one(1))[0].shape[2] == 21


def test_reorder_moves_used_tokens_and_allocates_nothing():
    cache, size = KVCache(1, static=20_000), 20_000 * 8
    cache.append(0, *(np.random.default_rng(0).normal(size=(4, 2, 10, d)) for d in (3, 4)))
    before = cache.buffers
    kept = [x[:, :, :10].copy() for x in before]
    tracemalloc.start()
    try:
        cache.reorder([0, 3, 2, 1])
        assert tracemalloc.get_traced_memory()[1] < size, "of 4 * 2 * (3 + 4) * 160,000 bytes"
    finally:
        tracemalloc.stop()
    for x, old, was in zip(cache.buffers, before, kept, strict=True):
        assert np.shares_memory(x, old)
        assert x is not old, "whoever has kept the buffers sees that they are others"
        np.testing.assert_array_equal(x[:, :, :10], was[[0, 3, 2, 1]])
    cache.reorder([1, 1, 0])
    assert cache.buffers[0].shape == (3, 2, 20_000, 3)
    np.testing.assert_array_equal(cache.buffers[0][:, :, :10], kept[0][[3, 3, 0]])


def test_on_a_device(away):
    cache, ((a,), (b,)) = KVCache(1), pieces(7, [3, 2], layers=1)
    for k, v in (a, b):
        keys, values = cache.append(0, away.put(k), away.put(v))
    cache.reorder([1, 0])
    np.testing.assert_array_equal(to_numpy(keys), np.concatenate([a[0], b[0]], axis=2))
    assert away.holds(values)


def test_more_than_the_memory_is_refused_before_the_system_grants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    k, v = np.ones((2, 3, 1, 4), np.float32), np.ones((2, 3, 1, 5), np.float32)
    monkeypatch.setattr("refdiff.model.cache.physical_memory", lambda: 20 * 2 * 2 * 3 * (4 + 5) * 4)  # 20 tokens
    cache = KVCache(2)
    for _ in range(20):
        for layer in range(2):
            cache.append(layer, k, v)
    with pytest.raises(MemoryError, match=r"the keys and values of 2 sequences of 2\d tokens take .* bytes, but thi"):
        for _ in range(20):
            for layer in range(2):
                cache.append(layer, k, v)
    assert len(cache) >= 20
    cache.reorder([1, 0])
    with pytest.raises(MemoryError, match=r"the keys and values of 5 sequences of 2\d tokens take .* bytes, but thi"):
        cache.reorder([0, 1, 0, 1, 0])
