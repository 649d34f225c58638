"""The type that a run computes in."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.oracle.divergence.first_divergence import precision_of
from tests.layers.inputs import says

KINDS = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def drawn(kind: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=64).astype(KINDS[kind])


@given(st.sampled_from(sorted(KINDS)), st.integers(0, 99), st.sampled_from([None, np.float32, np.float64]))
def test_of_stored_and_of_widened_arrays(kind: str, seed: int, wide: type | None) -> None:
    x = drawn(kind, seed)
    if wide is not None and np.dtype(wide).itemsize >= x.dtype.itemsize:
        x = x.astype(wide)
    assert precision_of({"a": x}) == kind


def test_the_coarsest_of_a_quarter() -> None:
    low, high = drawn("bfloat16", 0), drawn("float32", 1)
    assert precision_of({"a": low, "b": high, "c": high, "d": high}) == "bfloat16"
    assert precision_of({"a": low, "b": high, "c": high, "d": high, "e": high}) == "float32"


def test_copies_and_integers_do_not_count() -> None:
    points = {"embed_tokens": drawn("bfloat16", 0), "ids": np.arange(64), "x": drawn("float32", 0)}
    assert precision_of(points) == "float32"
    with says(ValueError, "the trace has no array of floating-point numbers that is a point of the run"):
        precision_of({"ids": np.arange(64)})


def test_few_numbers_are_of_their_own_type() -> None:
    assert precision_of({"lambda_full": np.array(0.5, np.float32)}) == "float32"


def test_large_numbers_of_float64() -> None:
    assert precision_of({"a": np.full(64, 1e300)}) == "float64"
    assert precision_of({"a": np.append(drawn("float32", 2), np.inf)}) == "float32"
