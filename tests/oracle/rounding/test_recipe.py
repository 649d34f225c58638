"""What a recipe may say; every sixteen-bit number, every midpoint between two, and any other number by fractions."""

from __future__ import annotations

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.oracle import Recipe
from refdiff.oracle.rounding import FORMATS, round_to, rounds_to_finite, truncate_to


@pytest.mark.parametrize(
    ("name", "u"), [("float32", 2.0**-24), ("tf32", 2.0**-24), ("bfloat16", 2.0**-8), ("float16", 2.0**-11)]
)
def test_names_of_recipes(name: str, u: float) -> None:
    recipe = Recipe.of(name)
    assert recipe.u == u
    assert (recipe.matmul == "tf32") == (name == "tf32")
    assert Recipe(**recipe.to_dict()) == recipe
    assert Recipe.of(recipe) is recipe
    assert Recipe.of(recipe, tanh="approx").tanh == "approx"
    assert Recipe.of(recipe, tanh="approx").tanh_error == 2.0**-11
    assert Recipe("float32", matmul="bfloat16").name == "float32 matmul=bfloat16"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"storage": "float64"}, "storage: got 'float64', expected one of float32, bfloat16, float16"),
        ({"storage": "bf16", "p": "fp16"}, r"p: got 'float16', expected one of bfloat16, float32 \(the storage"),
        ({"storage": "tf32"}, "storage: got 'tf32'.*storage='float32', matmul='tf32'"),
        ({"storage": "bf16", "accumulate": "fp16"}, "accumulate: got 'float16', expected one of bfloat16, float32"),
    ],
)
def test_refuses_what_no_kernel_does(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**fields)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tf23", "; did you mean 'tf32'"),
        ("float64", ". float64 is what the truth is computed in"),
        ("int8", "float16$"),
    ],
)
def test_a_typo_in_a_name(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"no recipe is called '{name}': there are float32, tf32, .*{hint}"):
        Recipe.of(name)


def test_fields_as_json_has_them() -> None:
    assert Recipe.of({"storage": "bf16", "tanh": "approx"}) == Recipe("bfloat16", tanh="approx")
    with pytest.raises(ValueError, match=r"'matmull' is no field of a Recipe, did you mean 'matmul'\? there are"):
        Recipe.of({"matmull": "tf32"})


# Every sixteen-bit number, every midpoint between two, and their neighbors; any other number as fractions round

PATTERNS = np.arange(1 << 16, dtype=np.uint16)
SIXTEEN = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def _values(name: str) -> np.ndarray:
    """Every finite number of the type, in order, as float64."""
    with np.errstate(invalid="ignore"):  # signalling NaN among them
        values = PATTERNS.view(SIXTEEN[name]).astype(np.float64)
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize("name", SIXTEEN)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_number_of_the_type_stays(name: str, dtype: type) -> None:
    with np.errstate(invalid="ignore"):
        values = PATTERNS.view(SIXTEEN[name]).astype(dtype)
    rounded = round_to(values, name)
    assert rounded.dtype == dtype
    same = values.view(f"u{values.itemsize}") == rounded.view(f"u{values.itemsize}")
    assert (same | (np.isnan(values) & np.isnan(rounded))).all(), "bits, so the sign of zero too"


@pytest.mark.parametrize("name", SIXTEEN)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_between_two_neighbours_the_nearer_wins_and_a_tie_goes_to_the_even(name: str, dtype: type) -> None:
    values = _values(name)
    below, above = values[:-1], values[1:]
    middle = (below + above) / 2  # exact in float64, and in float32 down to its own subnormals
    bits = below.astype(SIXTEEN[name]).view(np.uint16)
    even = np.where((bits & 1) == 0, below, above)
    kept = middle.astype(dtype).astype(np.float64) == middle
    assert kept.mean() > 0.98
    middle, below, above, even = (a[kept].astype(dtype) for a in (middle, below, above, even))
    np.testing.assert_array_equal(round_to(middle, name), even)
    np.testing.assert_array_equal(round_to(np.nextafter(middle, dtype(np.inf)), name), above)
    np.testing.assert_array_equal(round_to(np.nextafter(middle, dtype(-np.inf)), name), below)


@given(st.integers(-(2**40), 2**40), st.integers(-160, 60), st.sampled_from(["tf32", "bfloat16", "float16"]))
def test_rounds_as_fractions_do(numerator: int, exponent: int, name: str) -> None:
    x, form = numerator * 2.0**exponent, FORMATS[name]
    exact = Fraction(numerator) * Fraction(2) ** exponent
    size = max(abs(x), 2.0**form.smallest)
    q = Fraction(2) ** (int(np.frexp(size)[1]) - form.bits)
    want = float(round(exact / q) * q)  # Python rounds fractions to even
    got = round_to(np.asarray([x]), name)[0]
    assert got == (want if abs(want) <= form.top else np.copysign(np.inf, x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_truncation_to_tf32_drops_the_last_bits_of_float32(dtype: type) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=4000) * 2.0 ** rng.integers(-120, 120, 4000)).astype(np.float32)
    cut = (x.view(np.uint32) & np.uint32(0xFFFF_E000)).view(np.float32)
    np.testing.assert_array_equal(truncate_to(x.astype(dtype), "tf32"), cut.astype(dtype))
    edges = np.asarray([np.inf, -np.inf, np.nan, 0.0, np.finfo(np.float32).max], dtype=dtype)
    np.testing.assert_array_equal(truncate_to(edges, "tf32"), [*edges[:4], FORMATS["tf32"].top])


@pytest.mark.parametrize("name", FORMATS)
def test_what_rounds_to_a_finite_number_is_known_without_rounding(name: str) -> None:
    top = FORMATS[name].top
    tie = top + 2.0 ** (FORMATS[name].largest - FORMATS[name].bits)  # ∞ in float64
    x = np.array([0.0, 1e-320, top, np.nextafter(tie, 0), tie, np.inf, np.nan])
    for numbers in (x, -x):
        assert rounds_to_finite(numbers, name).tolist() == np.isfinite(round_to(numbers, name)).tolist()
    assert rounds_to_finite(x, name).tolist() == [True] * 4 + [False] * 3


def test_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="no number type is called 'fp7'"):
        round_to(np.ones(2), "fp7")
    with pytest.raises(ValueError, match="dtype int64"):
        round_to(np.ones(2, dtype=int), "float16")
