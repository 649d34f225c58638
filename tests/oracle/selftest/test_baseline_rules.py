"""The rules of others, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle.rounding import round_to
from tests.oracle.selftest.baseline_rules import Given, accepts

Y = np.random.default_rng(0).normal(size=(1, 2, 5, 8))


def _given(storage: str, error: float = 0.0) -> Given:
    eager = Y.copy()
    eager[0, 0, 0, 0] += error
    return Given(Y, eager, storage)


def _accepts(rule: str, out: np.ndarray, given: Given) -> bool:
    return accepts(rule, {"out": out}, {"out": given})


def test_flash_allows_twice_the_largest_error_of_the_eager_run() -> None:
    given = _given("float32", 0.01)
    out = round_to(Y, "float32")
    assert _accepts("flash 2x", out + 0.0199, given), "anywhere, in every row"
    out[0, 1, 4, 7] += 0.0201
    assert not _accepts("flash 2x", out, given)


@pytest.mark.parametrize(("storage", "factor"), [("float32", 10), ("bfloat16", 1.1)])
def test_flex_allows_a_factor_of_the_mean_error(storage: str, factor: float) -> None:
    given = _given(storage, 0.8)  # 0.01 in the mean of 80 numbers
    assert _accepts("flex mean", Y + 0.0099 * factor, given)
    assert not _accepts("flex mean", Y + 0.0101 * factor, given)


@pytest.mark.parametrize(
    ("rule", "storage", "atol", "rtol"),
    [
        ("assert_close", "float32", 1e-5, 1.3e-6),
        ("assert_close", "bfloat16", 1e-5, 1.6e-2),
        ("assert_close", "float16", 1e-5, 1e-3),
        *(("allclose 1e-2", storage, 1e-2, 1e-2) for storage in ("float32", "bfloat16", "float16")),
        ("kernelbench", "float32", 1e-4, 1e-4),
        ("kernelbench", "bfloat16", 1e-2, 1e-2),
        ("kernelbench", "float16", 1e-2, 1e-2),
        ("gpucheck", "float32", 1e-4, 1e-4),
        ("gpucheck", "bfloat16", 5e-2, 5e-2),
        ("gpucheck", "float16", 1e-2, 1e-2),
        ("gpuemu", "float32", 1e-5, 0),
        ("gpuemu", "bfloat16", 1e-3, 0),
        ("gpuemu", "float16", 1e-3, 0),
    ],
)
def test_fixed_tolerances(rule: str, storage: str, atol: float, rtol: float) -> None:
    given = _given(storage)
    ref = given.reference
    assert _accepts(rule, ref - 0.999 * (atol + rtol * np.abs(ref)), given)
    out = ref.copy()
    out[0, 1, 3, 4] += 1.001 * (atol + rtol * np.abs(out[0, 1, 3, 4]))
    assert not _accepts(rule, out, given)


def test_flashinfer_bench_allows_what_is_small_in_either_way() -> None:
    ref = np.array([0.5, 20.0])
    given = Given(ref, ref, "float32")
    assert _accepts("flashinfer", ref + np.array((0.0099, 0.199)), given), "the first by 2 %, the second by 0.2"
    assert not _accepts("flashinfer", ref + np.array((0.0101, 0.0)), given)
    assert not _accepts("flashinfer", ref + np.array((0.0, 0.201)), given)


def test_llama_cpp_divides_by_the_square_of_the_result() -> None:
    given = Given(np.array([3.0, 4.0]), Y, "float32")
    assert _accepts("nmse 5e-4", np.array([3.0, 4.11]), given), "0.0121 / 25.9 = 4.7e-4"
    assert not _accepts("nmse 5e-4", np.array([3.0, 3.89]), given), "0.0121 / 24.1 = 5.02e-4"


def test_the_correlation_sees_no_scale_and_no_offset() -> None:
    given = _given("float32")
    assert _accepts("pcc 0.999", 7 * Y + 3, given)
    assert not _accepts("pcc 0.999", -Y, given)
    assert not _accepts("pcc 0.999", np.zeros_like(Y), given)
    noise = np.random.default_rng(1).normal(size=Y.shape)
    for size in (0.03, 0.06):
        out = Y + size * noise
        found = np.corrcoef(given.reference.ravel(), out.ravel())[0, 1]
        assert _accepts("pcc 0.999", out, given) == (found >= 0.999) == (size == 0.03)
    assert _accepts("pcc 0.999", np.ones_like(Y), given), "no correlation is defined, which comp_pcc accepts"
