"""Whose array is this?"""

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import array_api_strict
import numpy as np
import pytest

from refdiff import arrays
from tests.layers.inputs import says
from tests.layers.places import STRICT

X = np.arange(6.0).reshape(2, 3)


def test_namespace() -> None:
    assert arrays.namespace(X) is np
    assert arrays.namespace(None, X, None, np.float32(1), 2.5, 3, True) is np
    assert arrays.namespace(STRICT.put(X), None) is array_api_strict


def test_namespace_of_two_libraries() -> None:
    message = "arrays: got array_api_strict._array_object.Array, numpy.ndarray, expected arrays of one library; "
    with says(TypeError, message + "convert them first"):
        arrays.namespace(X, None, STRICT.put(X))


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        ((), "none"),
        ((None,), "none"),
        ((set(), {}, [1.0], "x", ()), "builtins.dict, builtins.list, builtins.set, builtins.str, builtins.tuple"),
    ],
)
def test_namespace_of_no_array(given: tuple[Any, ...], kinds: str) -> None:
    with says(TypeError, f"arrays: got {kinds}, expected arrays of one library; convert them first"):
        arrays.namespace(*given)


def test_a_deferred_array_is_made_at_every_reading() -> None:
    made: list[np.ndarray] = []
    deferred = arrays.Deferred((2,), np.dtype(np.float64), lambda: made.append(np.ones(2)) or made[-1])
    assert made == []
    assert arrays.to_numpy(deferred) is made[0]
    assert arrays.to_numpy(deferred) is made[1]
    assert made[0] is not made[1]


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.bool])
def test_to_numpy_and_back(dtype: type) -> None:
    x = X.astype(dtype)
    there = arrays.from_numpy(x, array_api_strict, STRICT.device)
    assert STRICT.holds(there)
    back = arrays.to_numpy(there)
    assert type(back) is np.ndarray
    assert back.dtype == dtype
    assert np.array_equal(back, x)


@pytest.mark.parametrize("put", [lambda x: x, STRICT.put])
def test_floats(put: Callable[[Any], Any]) -> None:
    for given in (put(X.astype(np.float32)), [put(X[0]), put(X[1])], tuple((put(a), b, c) for a, b, c in X)):
        found = arrays.floats(given)
        assert found.dtype == np.float64
        assert np.array_equal(found, X)
    assert arrays.floats(put(np.float32(1.5))).shape == arrays.floats(2).shape == ()


def test_backend() -> None:
    assert arrays.backend("numpy") is np
    assert arrays.backend(array_api_strict) is array_api_strict


@pytest.mark.parametrize("name", ["torch", "Numpy", "", sys, None])
def test_backend_of_another_name(name: Any) -> None:
    message = f'backend: got {name!r}, expected "numpy", "cupy", or an array-API namespace module'
    with says(ValueError, message):
        arrays.backend(name)


def cupy_that(monkeypatch: pytest.MonkeyPatch, computes: Callable[[np.ndarray], Any]) -> None:
    """Put a stand-in for CuPy in place whose `sum` is `computes`."""
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(sum=computes, ones=np.ones))


FIX = 'on a machine with a CUDA device, pip install "cupy-cuda12x[ctk]>=13.3", or use backend "numpy"'
SIGNS = ImportError("\n=====\nFailed to import CuPy.\n\nOriginal error:\n=====\n")
NO_LIBRARY = OSError("libcuda.so.1: cannot open shared object file")


@pytest.mark.parametrize(
    ("error", "cause", "reason"),
    [
        (ImportError("No module named 'cupy'"), None, "ImportError: No module named 'cupy'"),
        (OSError("no CUDA-capable device\nwas found"), None, "OSError: no CUDA-capable device"),
        (SIGNS, None, "ImportError: Failed to import CuPy."),
        (SIGNS, NO_LIBRARY, f"OSError: {NO_LIBRARY}"),  # not lost between signs
    ],
)
def test_cupy_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, error: Exception, cause: Exception | None, reason: str
) -> None:
    def fails(x: np.ndarray) -> Any:
        raise error from cause

    cupy_that(monkeypatch, fails)
    with says(RuntimeError, f'backend "cupy" is not available ({reason}): {FIX}'):
        arrays.backend("cupy")
    cupy_that(monkeypatch, lambda x: x.sum() - 1)
    with says(RuntimeError, 'backend "cupy" computed 1 + 1 + 1 wrongly: use backend "numpy"'):
        arrays.backend("cupy")
