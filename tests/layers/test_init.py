"""The names of the layers, and that the tests of the layers try each on every backend."""

import numpy as np
import pytest

from refdiff import layers
from tests.layers.places import NUMPY, READ_ONLY, STRICT, Case, Place, every_case

NAMES = sorted(layers.__all__)
FORWARD = [name for name in NAMES if not name.endswith("_vjp")]  # a derivative stands under its function


@pytest.mark.no_arrays
def test_all_names_are_sorted_and_there() -> None:
    assert layers.__all__ == NAMES
    assert all(callable(getattr(layers, name)) for name in NAMES)


@pytest.mark.no_arrays
@pytest.mark.parametrize("name", FORWARD)
def test_every_layer_with_arrays_is_tried_on_every_backend(name: str) -> None:
    tried = {case.layer.__name__ for case in every_case()}
    plain = {"lambda_init", "rope_frequencies"}  # numbers in, numbers out
    through = {"causal_mask": "causal_like"}  # has no array among its arguments
    assert (through.get(name, name) in tried) != (name in plain)


EACH_CASE = pytest.mark.parametrize("case", every_case(), ids=lambda case: f"{case.layer.__name__}, {case}")


@EACH_CASE
def test_any_backend(case: Case, xp: Place) -> None:
    case.check(xp)


@pytest.mark.no_arrays
@EACH_CASE
def test_arrays_of_two_libraries_are_refused(case: Case) -> None:
    case.check_mixed()


@pytest.mark.no_arrays
def test_cases_of_one_layer_have_names_of_their_own() -> None:
    keys = [(case.layer, case.name) for case in every_case()]
    assert len(set(keys)) == len(keys) > 50


@pytest.mark.no_arrays
def test_a_case_fails_where_it_should() -> None:
    x, here = np.array([1.0, 2.0]), Place("numpy", NUMPY.xp)

    def writes(x: np.ndarray) -> np.ndarray:
        x *= 2
        return x

    with pytest.raises(ValueError, match="read-only"):
        Case("", writes, (x,)).check(READ_ONLY)
    with pytest.raises(AssertionError, match="wrote to it"):
        Case("", writes, (x,)).check(here)
    with pytest.raises((TypeError, RuntimeError, ValueError), match=r".+"):
        Case("", lambda x: x + np.ones(2), (x,)).check(STRICT)
    with pytest.raises(AssertionError, match="out for float32 in"):
        Case("", lambda x: x.astype(np.float64), (x,)).check(here)
