"""Types: exhaustive for sixteen bits, by hand for rounding."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from refdiff.model.config_checks import DTYPES
from refdiff.model.weights import precision
from refdiff.model.weights.precision import UNIT, encode, round_to, to_compute

EVERY_16_BITS = np.arange(1 << 16, dtype=np.uint16)


@pytest.fixture(params=[1 << 18, 7])
def _tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "TILE", request.param)


@pytest.mark.parametrize("dtype", UNIT)
def test_the_unit_is_half_the_distance_from_1_to_the_next_number(dtype: str) -> None:
    assert UNIT[dtype] == float(ml_dtypes.finfo(dtype).eps) / 2


def test_every_bfloat16() -> None:
    ours = to_compute(EVERY_16_BITS, "bfloat16", "bfloat16")
    assert ours.dtype == np.float32
    assert_array_equal(ours, EVERY_16_BITS.view(ml_dtypes.bfloat16).astype(np.float32))
    numbers = np.isfinite(ours)
    assert_array_equal(encode(ours, "bfloat16")[numbers], EVERY_16_BITS[numbers])


def test_every_float16() -> None:
    ours = to_compute(EVERY_16_BITS.view(np.float16), "float16", "float16")
    assert ours.dtype == np.float32
    with np.errstate(invalid="ignore"):
        assert_array_equal(ours, EVERY_16_BITS.view(np.float16).astype(np.float32))
    numbers = np.isfinite(ours)
    assert_array_equal(encode(ours, "float16")[numbers].view(np.uint16), EVERY_16_BITS[numbers])


@pytest.mark.parametrize(("dtype", "step"), [("bfloat16", 2.0**-7), ("float16", 2.0**-10)])
def test_ties_go_to_even(dtype: str, step: float) -> None:
    values = np.array([1 + step / 2, 1 + 1.5 * step, 1 + step / 2 + 2.0**-20, -1 - step / 2], np.float32)
    assert_array_equal(round_to(values, dtype), [1, 1 + 2 * step, 1 + step, -1])


def test_range() -> None:
    values = np.array([65504, 65520, -1e30, 3.4e38, np.nan, np.inf], np.float32)
    assert_array_equal(round_to(values, "float16"), np.array([65504, np.inf, -np.inf, np.inf, np.nan, np.inf]))
    assert_array_equal(round_to(values, "bfloat16")[3:], np.array([np.inf, np.nan, np.inf], np.float32))
    assert_array_equal(round_to(np.array([1e300]), "float32"), np.array([np.inf], np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_of_a_number(dtype: str) -> None:
    assert precision.NBYTES[dtype] == encode(np.ones(1), dtype).nbytes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_wanted_type_is_not_copied(dtype: str) -> None:
    values = np.ones((3, 2), dtype)
    assert to_compute(values, dtype, dtype) is values
    assert encode(values, dtype) is values


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_data_off_its_boundary_is_copied_once(dtype: str) -> None:
    values = np.arange(6.0).astype(dtype)
    unaligned = np.frombuffer(b"\0" + values.tobytes(), dtype, offset=1)
    assert not unaligned.flags.aligned
    result = to_compute(unaligned, dtype, dtype)
    assert result.flags.aligned
    assert_array_equal(result, values)


@pytest.mark.usefixtures("_tile")
def test_progress_covers_every_byte() -> None:
    spans: list[tuple[int, int]] = []
    to_compute(np.zeros((4, 5), np.uint16), "bfloat16", "bfloat16", lambda first, last: spans.append((first, last)))
    assert spans[0][0] == 0
    assert spans[-1][1] == 40
    assert [last for _, last in spans[:-1]] == [first for first, _ in spans[1:]]
