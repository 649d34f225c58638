"""Warpers by hand and by their definition, and draws by their statistics."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refdiff.generation import sampling
from refdiff.generation.sampling import Uniforms, draw, draw_without_replacement, prompt_streams

P = np.array([[0.5, 0.25, 0.15, 0.07, 0.03], [0.05, 0.05, 0.3, 0.3, 0.3]])
Z = np.log(P) + np.array([[3.0], [-1.0]])


def kept(scores: np.ndarray) -> list[list[int]]:
    return [np.flatnonzero(np.isfinite(row)).tolist() for row in scores]


def test_softmax_and_its_log() -> None:
    np.testing.assert_allclose(sampling.softmax(Z), P, rtol=1e-14)
    np.testing.assert_allclose(sampling.log_softmax(Z), np.log(P), rtol=1e-14)
    huge = np.array([[1000.0, -np.inf, 1000.0]])
    np.testing.assert_array_equal(sampling.softmax(huge), [[0.5, 0.0, 0.5]])
    np.testing.assert_allclose(sampling.log_softmax(huge), [[-np.log(2), -np.inf, -np.log(2)]])
    stacked = np.stack([Z[:, ::-1], Z + 1000.0])  # rows so far apart that one maximum for all would be none for most
    np.testing.assert_allclose(sampling.softmax(stacked), np.stack([P[:, ::-1], P]), rtol=1e-12)
    np.testing.assert_allclose(sampling.log_softmax(stacked), np.log(np.stack([P[:, ::-1], P])), rtol=1e-12)


def test_temperature() -> None:
    np.testing.assert_allclose(sampling.softmax(sampling.temperature(Z[:1], 0.5))[0], P[0] ** 2 / (P[0] ** 2).sum())


CASES: list[tuple[Callable[..., np.ndarray], float, int, list[list[int]]]] = [
    (sampling.top_k, 2, 1, [[0, 1], [2, 3, 4]]),  # equally likely tokens stay together
    (sampling.top_k, 1, 4, [[0, 1, 2, 3], [0, 1, 2, 3, 4]]),
    (sampling.top_k, 9, 1, [[0, 1, 2, 3, 4]] * 2),
    (sampling.top_p, 0.74, 1, [[0, 1], [2, 3, 4]]),
    (sampling.top_p, 0.76, 1, [[0, 1, 2], [2, 3, 4]]),
    (sampling.top_p, 0.0, 1, [[0], [2]]),
    (sampling.top_p, 0.0, 3, [[0, 1, 2], [2, 3, 4]]),
    (sampling.min_p, 0.29, 1, [[0, 1, 2], [2, 3, 4]]),
    (sampling.min_p, 1.0, 2, [[0, 1], [2, 3, 4]]),
    (sampling.epsilon_cutoff, 0.1, 1, [[0, 1, 2], [2, 3, 4]]),
    (sampling.epsilon_cutoff, 0.9, 2, [[0, 1], [2, 3, 4]]),
    (sampling.eta_cutoff, 0.04, 1, [[0, 1, 2, 3], [0, 1, 2, 3, 4]]),
    (sampling.eta_cutoff, 0.3, 1, [[0, 1], [2, 3, 4]]),  # √0.3 · exp(−1.26) = 0.156, √0.3 · exp(−1.38) = 0.137
]


@pytest.mark.parametrize(("warp", "value", "keep", "want"), CASES)
def test_by_hand(warp: Callable[..., np.ndarray], value: float, keep: int, want: list[list[int]]) -> None:
    got = warp(Z, value, keep=keep)
    assert kept(got) == want
    assert (got[np.isfinite(got)] == Z[np.isfinite(got)]).all()


HARSH = [
    (sampling.top_k, 1), (sampling.top_p, 0.0), (sampling.min_p, 1.0), (sampling.typical_p, 0.1),
    (sampling.epsilon_cutoff, 0.9), (sampling.eta_cutoff, 0.9),
]  # fmt: skip


@pytest.mark.parametrize(("warp", "value"), HARSH)
def test_one_token_stays_unless_more_are_to(warp: Callable[..., np.ndarray], value: float) -> None:
    assert [len(row) for row in kept(warp(Z[:1], value))] == [1]


def test_tokens_exactly_at_a_cutoff_stay() -> None:
    p = np.exp(sampling.log_softmax(Z))
    assert kept(sampling.epsilon_cutoff(Z, float(sampling.softmax(Z)[0, 1])))[0] == [0, 1]
    assert kept(sampling.eta_cutoff(Z, float(p[0, 4])))[0] == [0, 1, 2, 3, 4]


def test_top_p_keeps_no_more_than_it_needs() -> None:
    """Four tokens of exactly a quarter each: two of them are half."""
    assert kept(sampling.top_p(np.zeros((1, 4)), 0.5)) == [[0, 1]]
    assert kept(sampling.top_p(np.zeros((1, 4)), np.nextafter(0.5, 1.0))) == [[0, 1, 2]]


def test_typical_p_prefers_what_is_as_surprising_as_expected() -> None:
    """Entropy of the first row is 1.26 nats; its tokens' surprises are 0.69, 1.39, 1.90, 2.66, 3.51."""
    assert kept(sampling.typical_p(Z, 0.2)) == [[1], [2, 3, 4]]
    assert kept(sampling.typical_p(Z, 0.5))[0] == [0, 1]
    assert kept(sampling.typical_p(Z, 0.8))[0] == [0, 1, 2]
    assert kept(sampling.typical_p(Z, 0.2, keep=3))[0] == [0, 1, 2]
    exactly = np.exp(sampling.log_softmax(Z))[0, 1]
    assert kept(sampling.typical_p(Z, float(exactly)))[0] == [1]
    assert kept(sampling.typical_p(Z, float(np.nextafter(exactly, 1.0))))[0] == [0, 1]
    assert kept(sampling.typical_p(Z[:1], 1.0 + 1e-9)) == [[0, 1, 2, 3, 4]]  # more than all of them sum to


def test_of_equally_good_ones_the_first_stay() -> None:
    """So many of them that a sort which is not stable would mix them up."""
    scores = np.zeros((1, 90))
    scores[0, ::3] = 5.0  # thirty that are nearer to what is expected than the others
    assert kept(sampling.typical_p(scores, 0.01)) == [list(range(0, 90, 3))]
    assert kept(sampling.typical_p(scores, 0.01, keep=34)) == [sorted([*range(0, 90, 3), 1, 2, 4, 5])]
    weights = np.full(40, -np.inf)
    weights[30] = 0.0
    assert draw_without_replacement(weights, 4, Uniforms(np.random.SeedSequence(0))).tolist() == [30, 0, 1, 2]


WARPERS: list[tuple[Callable[..., np.ndarray], st.SearchStrategy[float]]] = [
    (sampling.top_k, st.integers(1, 9)),
    (sampling.top_p, st.floats(0, 1)),
    (sampling.min_p, st.floats(0, 1)),
    (sampling.typical_p, st.floats(0.01, 1)),
    (sampling.epsilon_cutoff, st.floats(1e-6, 0.99)),
    (sampling.eta_cutoff, st.floats(1e-6, 0.99)),
]


@pytest.mark.parametrize(("warp", "values"), WARPERS, ids=lambda v: getattr(v, "__name__", ""))
@given(data=st.data())
def test_every_warper(warp: Callable[..., np.ndarray], values: st.SearchStrategy[float], data: st.DataObject) -> None:
    """Scores stay or become −inf, `keep` of them stay, the row above does not matter, forbidden tokens stay so."""
    elements = st.floats(-30, 30) | st.just(-np.inf)
    scores = data.draw(arrays(np.float64, (2, 7), elements=elements))
    scores[:, 3] = 1.0
    scores.flags.writeable = False
    value, keep = data.draw(values), data.draw(st.integers(1, 9))
    got = warp(scores, value, keep=keep)
    stay = np.isfinite(got)
    assert (got[stay] == scores[stay]).all()
    assert np.isneginf(got[~stay]).all()
    assert (stay.sum(axis=1) >= np.minimum(keep, np.isfinite(scores).sum(axis=1))).all()
    np.testing.assert_array_equal(warp(scores[1:], value, keep=keep), got[1:])


@given(arrays(np.float64, (2, 8), elements=st.floats(-4, 4).map(lambda x: round(x, 1))), st.integers(1, 8))
def test_top_indices(scores: np.ndarray, k: int) -> None:
    """The same as a full, stable sort, ties included."""
    want = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(sampling.top_indices(scores, k), want)


# ---- draws


def test_uniforms_are_the_same_everywhere() -> None:
    """The numbers that numpy.random.Generator.random makes of the same bits, written down."""
    stream = Uniforms(np.random.SeedSequence(42))
    got = [stream.next() for _ in range(3)]
    assert got == np.random.Generator(np.random.PCG64(np.random.SeedSequence(42))).random(3).tolist()
    assert got == [0.7739560485559633, 0.4388784397520523, 0.8585979199113825]


def test_streams_depend_on_seed_prompt_and_how_often_it_came() -> None:
    a, b = np.array([1, 2]), np.array([1, 2, 0])
    first = {
        "a": prompt_streams(0, [a])[0].next(),
        "other seed": prompt_streams(1, [a])[0].next(),
        "other prompt": prompt_streams(0, [b])[0].next(),
        "second a": prompt_streams(0, [a, a])[1].next(),
    }
    assert len(set(first.values())) == 4
    mixed = [stream.next() for stream in prompt_streams(0, [b, a, b, a])]
    assert mixed[:2] == [first["other prompt"], first["a"]]
    assert mixed[3] == first["second a"]


def test_a_seed_gives_what_it_gave() -> None:
    """Texts are quoted with their seed, so the streams of a seed must stay what they are from version to version."""
    prompt = np.array([1, 2], dtype=np.int32)
    got = [stream.next() for stream in prompt_streams(5, [prompt] * 3)]
    key = int.from_bytes(hashlib.blake2b(bytes([1, *[0] * 7, 2, *[0] * 7]), digest_size=16).digest(), "little")
    seeds = [np.random.SeedSequence(5, spawn_key=(key, nth)) for nth in range(3)]
    assert got == [np.random.Generator(np.random.PCG64(seed)).random() for seed in seeds]
    assert got == [0.9323582202636805, 0.1493631197883648, 0.7335558012420551]


@pytest.mark.parametrize(
    ("u", "want"), [(0.0, 1), (0.2499, 1), (0.25, 3), (0.7499, 3), (0.75, 4), (np.nextafter(1.0, 0.0), 4)]
)
def test_draw_inverts_the_cumulative_distribution(u: float, want: int) -> None:
    assert draw(np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0]), u) == want
    assert draw(np.array([0.0, 1.0, 0.0, 2.0, 1.0, 0.0]), u) == want


@given(arrays(np.float64, 9, elements=st.floats(0, 1e-3) | st.just(0.0)), st.floats(0, 1, exclude_max=True))
def test_a_token_of_probability_zero_is_never_drawn(p: np.ndarray, u: float) -> None:
    p[4] = 1e-5
    assert p[draw(p, u)] > 0


def test_draw_when_rounding_reaches_the_sum() -> None:
    """u · Σp rounds up to Σp for subnormal sums; the last possible token is drawn, not one past the end."""
    assert draw(np.array([0.0, 5e-324, 0.0]), 0.9999999) == 1


def test_draw_sums_in_float64() -> None:
    """In float32 the four small ones would not move the sum, and never be drawn."""
    p = np.array([1.0, *[2.0**-25] * 4], dtype=np.float32)
    assert draw(p, (1 + 2.5 * 2.0**-25) / (1 + 4 * 2.0**-25)) == 3


@pytest.mark.parametrize("places", [(0, 1, 2), (3, 1500, 2051)])
def test_without_replacement_follows_the_probabilities(places: tuple[int, ...]) -> None:
    """P(i, then j) = p_i · p_j / (1 − p_i)."""
    p = np.zeros(places[-1] + 1)
    p[[*places]] = 0.5, 0.3, 0.2
    stream = Uniforms(np.random.SeedSequence(1))
    n = 20_000
    with np.errstate(divide="ignore"):
        logs = np.log(p)
    counts = Counter(tuple(draw_without_replacement(logs, 2, stream).tolist()) for _ in range(n))
    assert set(counts) == set(itertools.permutations(places, 2))
    for (i, j), count in counts.items():
        want = n * p[i] * p[j] / (1 - p[i])
        assert abs(count - want) < 5 * np.sqrt(want)


def test_without_replacement_falls_back_on_the_best_of_the_impossible() -> None:
    weights = np.array([-np.inf, 0.0, -1e9, -2e9, -np.inf])
    got = draw_without_replacement(weights, 4, Uniforms(np.random.SeedSequence(0)))
    assert got.tolist() == [1, 2, 3, 0]
