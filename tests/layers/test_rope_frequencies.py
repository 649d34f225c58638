"""rope_type and length to (inverse frequencies, scale)."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refdiff.layers import rope_frequencies
from refdiff.layers.rope_frequencies import LENGTH_DEPENDENT, ROPE_TYPES
from tests.layers.by_loops import DIGITS
from tests.layers.inputs import says
from tests.tolerances import EXACT, FLOAT64, close

pytestmark = pytest.mark.no_arrays  # numbers in, numbers out

BASE: dict[str, Any] = {"rope_theta": 10_000.0}
TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
COMPLETE: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 3.0},
    "yarn": {"factor": 3.0, "original_max_position_embeddings": 64},
    "longrope": {
        "short_factor": [1.0, 1.1, 1.3, 1.7],
        "long_factor": [2.0, 3.0, 5.0, 7.0],
        "original_max_position_embeddings": 64,
    },
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "proportional": {},
}


def frequencies(kind: str, head_dim: int = 8, longest: int = 128, length: int = 0, **fields: Any) -> np.ndarray:
    """The inverse frequencies of a complete set of parameters with these changes."""
    parameters = {"rope_type": kind, **BASE, **COMPLETE[kind], **fields}
    return np.array(rope_frequencies(parameters, head_dim, longest, length)[0])


def scale(kind: str, longest: int = 128, length: int = 0, head_dim: int = 8, **fields: Any) -> float:
    """What cos and sin are multiplied by."""
    return rope_frequencies({"rope_type": kind, **BASE, **COMPLETE[kind], **fields}, head_dim, longest, length)[1]


BY_HAND: list[tuple[str, dict[str, Any], list[float]]] = [
    ("default", {"head_dim": 4}, [1.0, 0.01]),
    ("default", {"head_dim": 2, "rope_theta": 5.0}, [1.0]),
    ("default", {"rope_theta": 16.0}, [1.0, 0.5, 0.25, 0.125]),
    ("linear", {"head_dim": 4, "factor": 4.0}, [0.25, 0.0025]),
    ("linear", {"factor": 4.0, "partial_rotary_factor": 0.5}, [0.25, 0.0025]),
    ("dynamic", {"head_dim": 4, "longest": 8, "length": 8, "factor": 1e30}, [1.0, 0.01]),
    # at 16 of 8 positions the base becomes 10⁴ (2 · 16 / 8 − 1)^(4 / 2) = 9 · 10⁴; factor 5: 5 · 12 / 8 − 4 = 3.5
    ("dynamic", {"head_dim": 4, "longest": 8, "length": 16, "factor": 2.0}, [1.0, 1 / 300]),
    ("dynamic", {"longest": 8, "length": 16, "factor": 2.0, "partial_rotary_factor": 0.5}, [1.0, 1 / 300]),
    ("dynamic", {"head_dim": 4, "longest": 8, "length": 12, "factor": 5.0}, [1.0, 1 / 350]),
    ("proportional", {}, [1.0, 0.1, 0.01, 0.001]),
    ("proportional", {"partial_rotary_factor": 0.5}, [1.0, 0.1, 0.0, 0.0]),
    ("proportional", {"partial_rotary_factor": 0.5, "factor": 4.0}, [0.25, 0.025, 0.0, 0.0]),
    ("proportional", {"partial_rotary_factor": 0.0}, [0.0] * 4),
    # 0.7 · 8 / 2 = 2.8 pairs are two; 0.3 · 10 / 2 = 1.5 are one
    ("proportional", {"partial_rotary_factor": 0.7}, [1.0, 0.1, 0.0, 0.0]),
    ("proportional", {"head_dim": 10, "partial_rotary_factor": 0.3}, [1.0, 0.0, 0.0, 0.0, 0.0]),
]


@pytest.mark.parametrize(("kind", "fields", "expected"), BY_HAND, ids=str)
def test_by_hand(kind: str, fields: dict[str, Any], expected: list[float]) -> None:
    close(frequencies(kind, **fields), np.array(expected), FLOAT64)


@pytest.mark.parametrize("kind", TYPES)
def test_which_types_depend_on_the_length(kind: str) -> None:
    same = np.array_equal(frequencies(kind, longest=64, length=64), frequencies(kind, longest=64, length=65))
    assert same == (kind not in LENGTH_DEPENDENT)


def test_the_default_type_ignores_partial_rotary_factor() -> None:
    close(np.array(rope_frequencies({**BASE, "partial_rotary_factor": 0.5}, 4, 128)[0]), np.array([1, 0.01]), FLOAT64)


@pytest.mark.parametrize("kind", ["yarn", "longrope", "llama3"])
def test_partial_rotary_has_the_frequencies_of_a_head_of_its_size(kind: str) -> None:
    close(frequencies(kind, 16, partial_rotary_factor=0.5), frequencies(kind), EXACT)


def test_yarn_where_the_ramp_has_no_width() -> None:
    # both edges are at index 0: the first pair keeps its frequency, the others are divided by the factor 3
    close(frequencies("yarn", beta_fast=100, beta_slow=12), 10_000 ** (-np.arange(4) / 4) / [1, 3, 3, 3], FLOAT64)


def test_yarn_in_the_middle_of_a_ramp_of_no_width() -> None:
    # both edges are at index 1.9995, and the ramp is 0.001 wide: pair 2 is half way between f and f / 3
    turns = 64 / (2 * math.pi * 10_000 ** (1.9995 / 4))
    found = frequencies("yarn", beta_fast=turns, beta_slow=turns, truncate=False, original_max_position_embeddings=64)
    close(found, 10_000 ** (-np.arange(4) / 4) * [1, 1, 2 / 3, 1 / 3], 1e-9)


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind != "longrope"])
def test_all_of_a_large_head_is_rotated_unless_a_part_is_given(kind: str) -> None:
    assert np.count_nonzero(frequencies(kind, 4000)) == frequencies(kind, 4000).size == 2000


def test_yarn_factor_null_means_from_the_lengths() -> None:
    parameters = {"factor": None, "original_max_position_embeddings": 64}
    close(frequencies("yarn", longest=320, **parameters), frequencies("yarn", factor=5.0), FLOAT64)
    assert scale("yarn", longest=320, **parameters) == scale("yarn", factor=5.0)


def test_yarn_scale() -> None:
    usual = 0.1 * math.log(3) + 1
    assert scale("yarn") == pytest.approx(usual, rel=1e-15)
    assert scale("yarn", factor=math.e**2) == pytest.approx(1.2, rel=1e-15)
    assert scale("yarn", factor=1.5) == pytest.approx(0.1 * math.log(1.5) + 1, rel=1e-15)
    assert scale("yarn", factor=1.0) == scale("yarn", factor=0.5) == 1
    assert scale("yarn", attention_factor=1.7, mscale=2.0, mscale_all_dim=3.0) == 1.7
    # one of the two is not enough, and zero is as good as none
    for one in ({"mscale": 2.0}, {"mscale_all_dim": 2.0}, {"mscale": 2.0, "mscale_all_dim": 0}, {"mscale": None}):
        assert scale("yarn", **one) == pytest.approx(usual, rel=1e-15)
    both = scale("yarn", factor=math.e**5, mscale=2.0, mscale_all_dim=3.0)
    assert both == pytest.approx((0.1 * 2 * 5 + 1) / (0.1 * 3 * 5 + 1), rel=1e-15)
    assert scale("yarn", factor=0.7, mscale=2.0, mscale_all_dim=3.0) == 1
    whole = scale("yarn", attention_factor=2)
    assert whole == 2
    assert isinstance(whole, float)


def test_longrope_scale() -> None:
    # √(1 + log 8 / log 2) = 2
    assert scale("longrope", factor=8.0, original_max_position_embeddings=2) == pytest.approx(2, rel=1e-15)
    # without a factor it is the longest length by the original one
    for absent in ({}, {"factor": None}):
        assert scale("longrope", longest=16, original_max_position_embeddings=2, **absent) == pytest.approx(2)
    assert scale("longrope", longest=64) == scale("longrope", longest=3) == scale("longrope", factor=0.2) == 1
    assert scale("longrope", factor=8.0, attention_factor=1.25) == 1.25
    assert isinstance(scale("longrope", attention_factor=1), float)


THETAS, SIZES, FACTORS = st.floats(100, 1e7), st.integers(1, 40).map(lambda pairs: 2 * pairs), st.floats(0.5, 40)
ORIGINALS, LONGEST, LENGTHS = st.integers(2, 100_000), st.integers(2, 300), st.integers(1, 1000)


def powers(theta: float, d: int) -> list[Any]:
    """θ_i = base^(−2i / d) in 40 digits."""
    return [DIGITS.mpf(theta) ** (-DIGITS.mpf(i) / d) for i in range(0, d, 2)]


def same(kind: str, expected: list[Any], size: Any = 1, **fields: Any) -> None:
    """Fail unless each frequency, and the scale, is the one computed in 40 digits."""
    exact = np.array([float(x) for x in expected])
    close(frequencies(kind, **fields) / exact, np.ones(len(exact)), 1e-12)
    close(scale(kind, **fields), float(size), FLOAT64)


@pytest.mark.parametrize("kind", ["default", "linear", "proportional"])
@given(theta=THETAS, d=SIZES, factor=FACTORS)
def test_precision(kind: str, theta: float, d: int, factor: float) -> None:
    f = DIGITS.mpf(1 if kind == "default" else factor)
    same(kind, [p / f for p in powers(theta, d)], rope_theta=theta, head_dim=d, factor=factor)


@given(theta=THETAS, d=SIZES.filter(lambda d: d > 2), factor=FACTORS, longest=LONGEST, length=LENGTHS)
def test_precision_of_dynamic(theta: float, d: int, factor: float, longest: int, length: int) -> None:
    f = DIGITS.mpf(factor)
    ratio = f * max(length, longest) / longest - (f - 1)
    raised = DIGITS.mpf(theta) * ratio ** (DIGITS.mpf(d) / (d - 2))
    same("dynamic", powers(raised, d), rope_theta=theta, head_dim=d, factor=factor, longest=longest, length=length)


@given(
    theta=THETAS, d=SIZES, factor=FACTORS, original=ORIGINALS, low=st.floats(0.1, 3), width=st.floats(1, 8)
)  # fmt: skip
def test_precision_of_llama3(theta: float, d: int, factor: float, original: int, low: float, width: float) -> None:
    """As a formula in the wavelength: the published code computes it this way."""
    f, high = DIGITS.mpf(factor), low + width
    adapted = []
    for p in powers(theta, d):
        wavelength = 2 * DIGITS.pi / p
        smooth = min(max((original / wavelength - low) / (DIGITS.mpf(high) - low), 0), 1)
        adapted.append((1 - smooth) * p / f + smooth * p)
    same("llama3", adapted, rope_theta=theta, head_dim=d, factor=factor, low_freq_factor=low, high_freq_factor=high,
         original_max_position_embeddings=original)  # fmt: skip


@given(
    theta=THETAS, d=SIZES, factor=FACTORS | st.none(), longest=LONGEST, original=ORIGINALS, truncate=st.booleans(),
    fast=st.floats(4, 64) | st.none(), slow=st.floats(0.1, 2) | st.none(), mscale=st.floats(0.1, 4),
    mscale_all_dim=st.floats(0.1, 4),
)  # fmt: skip
@example(
    theta=100.0, d=16, factor=3.0, longest=128, original=20_000, truncate=True, fast=200.0, slow=0.3, mscale=1.0,
    mscale_all_dim=1.0,
)  # fmt: skip  # the ramp ends past the last dimension
def test_precision_of_yarn(
    theta: float, d: int, factor: float | None, longest: int, original: int, truncate: bool, fast: float | None,
    slow: float | None, mscale: float, mscale_all_dim: float,
) -> None:  # fmt: skip
    """The ramp in terms of how often a pair turns within the original length."""
    fields = {"rope_theta": theta, "head_dim": d, "factor": factor, "longest": longest, "truncate": truncate,
              "beta_fast": fast, "beta_slow": slow, "original_max_position_embeddings": original}  # fmt: skip
    f = DIGITS.mpf(longest) / original if factor is None else DIGITS.mpf(factor)
    turns = DIGITS.mpf(fast or 32), DIGITS.mpf(slow or 1)
    edges = [d * DIGITS.log(original / (r * 2 * DIGITS.pi)) / (2 * DIGITS.log(theta)) for r in turns]
    if truncate:
        edges = [DIGITS.floor(edges[0]), DIGITS.ceil(edges[1])]
    low, high = max(edges[0], 0), min(edges[1], d - 1)
    width = high - low or 0.001
    ramp = [min(max((i - low) / width, 0), 1) for i in range(d // 2)]
    expected = [p / f * r + p * (1 - r) for p, r in zip(powers(theta, d), ramp, strict=True)]
    usual, one, all_ = (0.1 * DIGITS.mpf(m) * DIGITS.log(f) + 1 if f > 1 else 1 for m in (1, mscale, mscale_all_dim))
    same("yarn", expected, usual, **fields)
    same("yarn", expected, one / all_, mscale=mscale, mscale_all_dim=mscale_all_dim, **fields)


@given(
    theta=THETAS, d=SIZES, factor=FACTORS | st.none(), longest=LONGEST, length=LENGTHS, original=st.integers(2, 500),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_precision_of_longrope(
    theta: float, d: int, factor: float | None, longest: int, length: int, original: int, seed: int
) -> None:
    """Its factors as they are, the short ones up to the original length itself."""
    short, long = np.random.default_rng(seed).uniform(1, 60, (2, d // 2)).tolist()
    f = DIGITS.mpf(longest) / original if factor is None else DIGITS.mpf(factor)
    size = DIGITS.sqrt(1 + DIGITS.log(f) / DIGITS.log(original)) if f > 1 else 1
    for at in (length, original, original + 1):
        divided = [p / g for p, g in zip(powers(theta, d), short if at <= original else long, strict=True)]
        same("longrope", divided, size, rope_theta=theta, head_dim=d, factor=factor, longest=longest, length=at,
             short_factor=short, long_factor=long, original_max_position_embeddings=original)  # fmt: skip


def test_an_unknown_type() -> None:
    assert tuple(ROPE_TYPES) == TYPES
    for kind in ("mrope", ["yarn"]):
        with says(ValueError, f"rope_frequencies: rope_type: got {kind!r}, expected one of {', '.join(TYPES)}"):
            rope_frequencies({"rope_type": kind, **BASE}, 8, 128)


@pytest.mark.parametrize(
    ("kind", "head_dim", "changes"),
    [
        ("linear", 8, {"factor": 0.0}),
        ("dynamic", 2, {}),
        ("yarn", 8, {"rope_theta": 1.0}),
        ("longrope", 8, {"original_max_position_embeddings": 1, "factor": 2.0}),
        ("llama3", 8, {"factor": 0.0}),
    ],
)
def test_parameters_that_cannot_be(kind: str, head_dim: int, changes: dict[str, float]) -> None:
    parameters = {"rope_type": kind, **BASE, **COMPLETE[kind], **changes}
    message = (
        f"rope_frequencies: rope_type {kind!r} divides by zero with head_dim {head_dim}, max_position_embeddings 128 "
        f"and {parameters}"
    )
    with says(ValueError, message):
        rope_frequencies(parameters, head_dim, 128)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, "rope_theta") for kind in TYPES]
    + [("linear", "factor"), ("dynamic", "factor"), ("llama3", "factor"), ("yarn", "factor")]
    + [(kind, "original_max_position_embeddings") for kind in ("yarn", "longrope", "llama3")]
    + [("longrope", "short_factor"), ("llama3", "low_freq_factor"), ("llama3", "high_freq_factor")],
)
def test_a_parameter_that_is_missing(kind: str, name: str) -> None:
    parameters = {"rope_type": kind, **BASE, **COMPLETE[kind]}
    del parameters[name]
    with says(ValueError, f"rope_frequencies: rope_type {kind!r} needs the parameter {name!r}"):
        rope_frequencies(parameters, 8, 128)


@pytest.mark.parametrize(("name", "length"), [("short_factor", 64), ("long_factor", 65)])
@pytest.mark.parametrize("count", [3, 5])
def test_a_list_of_another_length(name: str, length: int, count: int) -> None:
    with says(ValueError, f"rope_frequencies: {name}: got {count} numbers, expected 4 for 8 dimensions"):
        frequencies("longrope", length=length, **{name: [1.0] * count})


def test_longrope_of_an_odd_number_of_dimensions() -> None:
    odd = {"partial_rotary_factor": 0.5, "short_factor": [1.0, 2.0, 4.0, 8.0]}
    close(frequencies("longrope", 14, **odd), 10_000 ** (-np.arange(0, 7, 2) / 7) / [1, 2, 4, 8], FLOAT64)
    with says(ValueError, "rope_frequencies: short_factor: got 3 numbers, expected 4 for 7 dimensions"):
        frequencies("longrope", 14, **odd | {"short_factor": [1.0] * 3})


def test_yarn_of_an_odd_number_of_dimensions() -> None:
    with says(
        ValueError,
        "rope_frequencies: got 7 rotated dimensions, expected an even number with yarn; change head_dim or "
        "partial_rotary_factor",
    ):
        frequencies("yarn", 14, partial_rotary_factor=0.5)
