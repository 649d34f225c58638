"""Positions to cos and sin; queries and keys rotated in halves or interleaved pairs."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import rope, rope_cos_sin, rope_frequencies
from tests.layers import by_loops
from tests.layers.by_loops import exact, rounded
from tests.layers.inputs import SEEDS
from tests.tolerances import EXACT, FLOAT64, close

RNG = np.random.default_rng(11)
B, H, T, d = 2, 3, 5, 14
FREQUENCIES = [1.0, 0.31, 0.11, 0.029, 0.017, 0.003, 0.0007]
POSITIONS = RNG.integers(0, 1000, (B, T))
COS, SIN = rope_cos_sin(POSITIONS, FREQUENCIES, 1.3, np.float64)


def turned(x: np.ndarray, positions: list[list[int]] | np.ndarray, scale: float = 1.0, **options: bool) -> np.ndarray:
    """Rotate by position, with the frequencies of this file."""
    return rope(x, *rope_cos_sin(np.asarray(positions), FREQUENCIES, scale, x.dtype), **options)


def test_table_by_hand() -> None:
    cos, sin = rope_cos_sin(np.array([[0, 1, 2], [3, 4, 6]]), [math.pi / 2, math.pi / 6], 2.0, np.float64)
    assert cos.shape == sin.shape == (2, 1, 3, 2)
    three = math.sqrt(3)
    expected = [[[2.0, 2.0], [0.0, three], [-2.0, 1.0]], [[0.0, 0.0], [2.0, -1.0], [-2.0, -2.0]]]
    close(cos[:, 0], np.array(expected), 1e-15)
    expected = [[[0.0, 0.0], [2.0, 1.0], [0.0, three]], [[-2.0, 2.0], [0.0, three], [0.0, 0.0]]]
    close(sin[:, 0], np.array(expected), 1e-15)


def test_rotation_by_hand() -> None:
    # a quarter turn of the first pair, an eighth of one (times √2) of the second: (a, b) becomes (a − b, a + b)
    cos, sin = np.array([[[[0.0, 1.0]]]]), np.array([[[[1.0, 1.0]]]])
    # as many heads as numbers that are rotated, which the shapes must not confuse
    x = np.tile([1.0, 20.0, 300.0, 4000.0, 7.0], (1, 4, 1, 1))
    close(rope(x, cos, sin)[0, 3, 0], np.array([-300.0, 20.0 - 4000.0, 1.0, 4000.0 + 20.0, 7.0]), EXACT)
    expected = np.array([-20.0, 1.0, 300.0 - 4000.0, 4000.0 + 300.0, 7.0])
    close(rope(x, cos, sin, interleaved=True)[0, 3, 0], expected, EXACT)


def test_one_dimension_is_paired_with_itself_by_hand() -> None:
    cos, sin, x = np.array([[0.5, -1.0], [0.25, 3.0], [8.0, 10.0]]).reshape(3, 1, 1, 2, 1)
    y = rope(x, cos, sin)
    close(y[0, 0, :, 0], math.sqrt(2) * np.array([2.0, -40.0]), EXACT)


@given(SEEDS, st.booleans(), st.floats(0.1, 3))
def test_norms_are_kept_up_to_the_scale(rng: np.random.Generator, interleaved: bool, scale: float) -> None:
    x = rng.normal(size=(B, H, T, d))
    y = turned(x, rng.integers(0, 10_000, (B, T)), scale, interleaved=interleaved)
    close(np.linalg.norm(y, axis=-1), scale * np.linalg.norm(x, axis=-1), FLOAT64)


@given(SEEDS, st.booleans(), st.integers(0, 10_000))
def test_scores_depend_on_differences_of_positions_only(rng: np.random.Generator, inter: bool, shift: int) -> None:
    q, k = rng.normal(size=(2, B, H, T, d))
    at_q, at_k = rng.integers(0, 100, (2, B, T))

    def scores(moved: int) -> np.ndarray:
        queries, keys = turned(q, at_q + moved, interleaved=inter), turned(k, at_k + moved, interleaved=inter)
        return np.einsum("bhtd,bhsd->bhts", queries, keys)

    close(scores(shift), scores(0), 1e-11)  # an angle of 10 000 radians is off by 1e-12
    forward = np.einsum("bhtd,bhtd->bht", turned(q, at_q, interleaved=inter), turned(k, at_k, interleaved=inter))
    close(np.einsum("bhtd,bhtd->bht", turned(q, at_q - at_k, interleaved=inter), k), forward, FLOAT64)


@given(SEEDS)
def test_interleaved_is_halves_after_a_permutation(rng: np.random.Generator) -> None:
    x, positions = rng.normal(size=(B, H, T, d)), rng.integers(0, 100, (B, T))
    to_halves = np.concatenate([np.arange(0, d, 2), np.arange(1, d, 2)])
    interleaved = turned(x, positions, interleaved=True)
    close(interleaved[..., to_halves], turned(x[..., to_halves], positions), EXACT)


@given(SEEDS, st.integers(0, 7), st.booleans())
def test_dimensions_past_the_table_are_kept(rng: np.random.Generator, n: int, interleaved: bool) -> None:
    x = rng.normal(size=(B, H, T, d))
    y = rope(x, COS[..., :n], SIN[..., :n], interleaved=interleaved)
    close(y[..., 2 * n :], x[..., 2 * n :], EXACT, empty=n == 7)
    alone = rope(x[..., : 2 * n], COS[..., :n], SIN[..., :n], interleaved=interleaved)
    close(y[..., : 2 * n], alone, EXACT, empty=n == 0)


def test_angles_are_not_rounded_to_float32() -> None:
    cos, sin = rope_cos_sin(np.array([[131_071]]), [0.7], 1.0, np.float32)
    assert cos.dtype == sin.dtype == np.float32
    angle = 131_071 * 0.7
    close(cos[0, 0, 0].astype(float), np.array([math.cos(angle)]), 1e-6)
    close(sin[0, 0, 0].astype(float), np.array([math.sin(angle)]), 1e-6)
    # nor are positions: float32 would make 2²⁴ of this one
    cos, _ = rope_cos_sin(np.array([[2**24 + 1]]), [1.0], 1.0, np.float64)
    close(cos[0, 0, 0], np.array([math.cos(2**24 + 1)]), FLOAT64)


@given(SEEDS)
def test_precision(rng: np.random.Generator) -> None:
    frequencies, scale = rope_frequencies({"rope_theta": 10_000.0}, 6, 100)
    x, positions = rng.normal(size=(2, 3, 2, 7)), rng.integers(0, 30, (2, 2))
    cos, sin = rope_cos_sin(positions, frequencies, 1.1 * scale, np.float64)
    for interleaved, pairs in ((False, [(0, 3), (1, 4), (2, 5)]), (True, [(0, 1), (2, 3), (4, 5)])):
        expected = by_loops.rope(exact(x), positions, frequencies, 1.1, pairs)
        close(rope(x, cos, sin, interleaved=interleaved), rounded(expected), FLOAT64)
