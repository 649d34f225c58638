"""The rules of others, by hand: what each accepts, and what is a little more."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle.rounding import round_to
from tests.oracle.selftest.baseline_rules import Given, accepts

Y = np.random.default_rng(0).normal(size=(1, 2, 5, 8))


def _accepts(rule: str, out: np.ndarray, right: np.ndarray, storage: str = "float32", eager_error: float = 0.0) -> bool:
    eager = right.copy()
    eager.flat[0] += eager_error
    return accepts(rule, {"out": out}, {"out": Given(right, eager, storage)})


def test_flash_allows_twice_the_largest_error_of_the_eager_run() -> None:
    out = round_to(Y, "float32")
    assert _accepts("flash 2x", out + 0.0199, Y, eager_error=0.01), "anywhere, in every row"
    out[0, 1, 4, 7] += 0.0201
    assert not _accepts("flash 2x", out, Y, eager_error=0.01)


@pytest.mark.parametrize(("storage", "factor"), [("float32", 10), ("bfloat16", 1.1)])
def test_flex_allows_a_factor_of_the_mean_error(storage: str, factor: float) -> None:
    for error, accepted in ((0.0099, True), (0.0101, False)):  # eager: 0.01 in the mean of 80 numbers
        assert _accepts("flex mean", Y + error * factor, Y, storage, 0.8) == accepted


@pytest.mark.parametrize(
    ("rule", "tolerances"),
    [
        ("assert_close", [(1e-5, 1.3e-6), (1e-5, 1.6e-2), (1e-5, 1e-3)]),
        ("allclose 1e-2", 3 * [(1e-2, 1e-2)]),
        ("kernelbench", [(1e-4, 1e-4), (1e-2, 1e-2), (1e-2, 1e-2)]),
        ("gpucheck", [(1e-4, 1e-4), (5e-2, 5e-2), (1e-2, 1e-2)]),
        ("gpuemu", [(1e-5, 0), (1e-3, 0), (1e-3, 0)]),
    ],
)
def test_fixed_tolerances(rule: str, tolerances: list[tuple[float, float]]) -> None:
    for storage, (atol, rtol) in zip(("float32", "bfloat16", "float16"), tolerances, strict=True):
        ref = round_to(Y, storage)
        assert _accepts(rule, ref - 0.999 * (atol + rtol * np.abs(ref)), Y, storage)
        out = ref.copy()
        out[0, 1, 3, 4] += 1.001 * (atol + rtol * np.abs(out[0, 1, 3, 4]))
        assert not _accepts(rule, out, Y, storage)


@pytest.mark.parametrize(
    ("rule", "right", "error", "accepted"),
    [
        ("flashinfer", (0.5, 20.0), (0.0099, 0.199), True),  # the first by 2 %, the second by 0.2
        ("flashinfer", (0.5, 20.0), (0.0101, 0.0), False),
        ("flashinfer", (0.5, 20.0), (0.0, 0.201), False),
        ("nmse 5e-4", (3.0, 4.0), (0.0, 0.11), True),  # it divides by the square of the result: 0.0121 / 25.9
        ("nmse 5e-4", (3.0, 4.0), (0.0, -0.11), False),  # 0.0121 / 24.1 = 5.02e-4
    ],
)
def test_small_in_another_way(rule: str, right: tuple[float, ...], error: tuple[float, ...], accepted: bool) -> None:
    assert _accepts(rule, np.add(right, error), np.array(right)) == accepted


def test_the_correlation_sees_no_scale_and_no_offset() -> None:
    noise = np.random.default_rng(1).normal(size=Y.shape)
    for out, accepted in ((7 * Y + 3, True), (-Y, False), (np.zeros_like(Y), False), (Y + 0.03 * noise, True),
                          (Y + 0.06 * noise, False), (np.ones_like(Y), True)):  # fmt: skip
        assert _accepts("pcc 0.999", out, Y) == accepted  # of ones it is undefined, which comp_pcc accepts
