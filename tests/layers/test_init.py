"""The names of the layers, and that each gives the same values on every backend, stays there and writes to no input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from refdiff import arrays, layers
from tests.layers.places import NUMPY, READ_ONLY, STRICT, Place, leaves
from tests.layers.vjps import NAMES, draw
from tests.tolerances import CANCELLED, SINGLE, close


@dataclass(frozen=True)
class Case:
    """One call of a function, given with NumPy arrays in float64."""

    layer: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    def __str__(self) -> str:
        return f"{self.layer.__name__}, {self.name}"

    def check(self, place: Place) -> None:
        """Fail unless the layer gives the same values at `place` as on NumPy, stays there, and writes to no input."""
        place.reached.append(self.layer.__name__)
        expected, _ = self._call(NUMPY, np.float64)
        for dtype, tolerance in ((np.float64, CANCELLED), (np.float32, SINGLE)):
            results, inputs = self._call(place, dtype)
            for one, there in zip(results, expected, strict=True):
                assert place.holds(one), f"the result left {place.name}"
                wanted = dtype if there.dtype.kind == "f" else there.dtype
                here = arrays.to_numpy(one)
                assert here.dtype == wanted, f"{here.dtype} out for {np.dtype(dtype)} in"
                close(here.astype(there.dtype), there, tolerance, empty=there.size == 0)
            for before, after in inputs:
                assert np.array_equal(before, arrays.to_numpy(after), equal_nan=before.dtype.kind == "f"), "wrote to it"

    def check_mixed(self) -> None:
        """Fail unless one array of another library among the others is refused, and how to mend it said."""
        for i, stranger in enumerate(self.args):
            others = [x for j, x in enumerate(self.args) if j != i and isinstance(x, np.ndarray)]
            if isinstance(stranger, np.ndarray) and others:
                with pytest.raises(TypeError, match=r"^need arrays of one library, .*: convert them to one first$"):
                    self.layer(*(STRICT.put(x) if j == i else x for j, x in enumerate(self.args)), **self.options)

    def _call(self, place: Place, dtype: type) -> tuple[list[Any], list[tuple[np.ndarray, Any]]]:
        """Call the layer at `place`; return the arrays that it gives, and each input before and after."""
        given = {str(i): _cast(x, dtype) for i, x in enumerate(self.args)} | _cast(self.options, dtype)
        put = place.put(_cast(given, dtype))
        positional = [put[str(i)] for i in range(len(self.args))]
        result = self.layer(*positional, **{name: put[name] for name in self.options})
        pairs = zip(leaves(given), leaves(put), strict=True)
        found = [x for x in leaves(result) if x is not None]
        return found, [(before, after) for before, after in pairs if isinstance(before, np.ndarray)]


def _cast(x: Any, dtype: type) -> Any:
    """Copy the arrays in `x`, those of float64 rounded to `dtype`; a dtype given as an argument becomes `dtype`."""
    if isinstance(x, Mapping):
        return {name: _cast(value, dtype) for name, value in x.items()}
    if x is np.float64:
        return dtype
    return x.astype(dtype if x.dtype == np.float64 else x.dtype) if isinstance(x, np.ndarray) else x


def with_vjp(name: str, args: tuple[Any, ...], options: dict[str, Any], about: str) -> list[Case]:
    """A call of a layer, and one of its derivative."""
    layer, vjp = getattr(layers, name), getattr(layers, f"{name}_vjp")
    g = np.asarray(np.random.default_rng(0).normal(size=np.shape(layer(*args, **options))))
    return [Case(layer, args, options, about), Case(vjp, (g, *args), options, about)]


def causal_like(array: Any, queries: int, keys: int) -> Any:
    """A mask has no array among its arguments: take namespace and device from one."""
    return layers.causal_mask(queries, keys, xp=arrays.namespace(array), device=arrays.device(array))


FREQUENCIES = [1.0, 0.31, 0.11]
IDS = np.array([3, 0, 4], np.uint64)  # which the standard compares with no other type
Q, K, V, LAMBDA = np.zeros((0, 4, 5, 3)), np.zeros((0, 2, 7, 3)), np.zeros((0, 1, 7, 6)), np.asarray(0.3)
PROJECTIONS = [{"weight": np.ones(shape)} for shape in ((7, 5), (7, 5), (5, 7))]
CASES = [
    *(case for name in NAMES for seed in range(4) for case in with_vjp(name, *draw(name, seed), f"drawn from {seed}")),
    *with_vjp("embedding", (IDS, np.ones((5, 2))), {}, "unsigned ids"),
    *with_vjp("cross_entropy", (np.arange(15.0).reshape(3, 5) % 4, IDS), {"ignore_index": 0}, "unsigned targets"),
    Case(layers.rope_cos_sin, (np.array([[0, 131_071]]), FREQUENCIES, 1.3, np.float64), {}, "far away"),
    Case(layers.rope_cos_sin, (np.array([[3], [999]]), [2, 1, 0], 1.0, np.float64), {}, "whole numbers"),
    Case(causal_like, (np.zeros(1), 3, 5)),
    Case(layers.padding_mask, (np.array([[1, 1, 0], [0, 1, 1]]),)),
    Case(layers.padding_mask, (np.array([[True, True, False]]),), {}, "boolean"),
    Case(layers.packed_mask, (np.array([[0, 1, 2, 0, 1], [3, 4, 5, 9, 10]]),)),
    *(
        Case(getattr(layers, name), args, options, "empty")
        for name, args, options in (
            ("activation", (np.zeros((0, 3)), "silu"), {}),
            ("attention_weights", (Q, K), {}),
            ("cross_entropy", (np.zeros((0, 7)), np.zeros(0, np.int64)), {}),
            ("diff_attention", (Q, K, Q, K, np.zeros((0, 2, 7, 4)), LAMBDA), {}),
            ("diff_heads_hf", (Q, K, V, LAMBDA, 0.3, 1e-5), {}),
            ("diff_heads_paper", (Q, K, V, LAMBDA, np.ones(6), 0.3), {}),
            ("diff_heads_v2", (Q, K, K, np.zeros((0, 2, 5, 1))), {}),
            ("diff_lambda_v2", (np.zeros((2, 0, 7)), np.eye(3, 7)), {}),
            ("embedding", (np.zeros((2, 0), np.int64), np.ones((7, 5))), {}),
            ("linear", (np.zeros((0, 3, 5)), np.ones((7, 5)), np.ones(7)), {}),
            ("padding_mask", (np.zeros((0, 3), np.int64),), {}),
            ("plain_heads", (Q, K, K), {}),
            ("rms_norm", (np.zeros((2, 0, 7)), np.ones(7), 1e-5), {}),
            ("rope", (Q, np.ones((1, 1, 5, 1)), np.ones((1, 1, 5, 1))), {}),
            ("rope_cos_sin", (np.zeros((1, 0), np.int64), FREQUENCIES, 1.0, np.float64), {}),
            ("softmax", (np.zeros((0, 5, 7)), np.ones((5, 7), bool)), {}),
            ("swiglu", (np.zeros((0, 5)), *PROJECTIONS), {}),
        )
    ),
]
EACH_CASE = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.mark.no_arrays
def test_all_names_are_sorted_there_and_tried() -> None:
    assert layers.__all__ == sorted(layers.__all__)
    assert all(callable(getattr(layers, name)) for name in layers.__all__)
    numbers = {"lambda_init", "rope_frequencies"}  # in and out
    assert {case.layer.__name__ for case in CASES} - {"causal_like"} == set(layers.__all__) - numbers - {"causal_mask"}


@EACH_CASE
def test_any_backend(case: Case, xp: Place) -> None:
    case.check(xp)


@pytest.mark.no_arrays
@EACH_CASE
def test_arrays_of_two_libraries_are_refused(case: Case) -> None:
    case.check_mixed()


@pytest.mark.no_arrays
def test_a_case_fails_where_it_should() -> None:
    x, here = np.array([1.0, 2.0]), Place("numpy", NUMPY.xp)

    def writes(x: np.ndarray) -> np.ndarray:
        x *= 2
        return x

    with pytest.raises(ValueError, match="read-only"):
        Case(writes, (x,)).check(READ_ONLY)
    with pytest.raises(AssertionError, match="wrote to it"):
        Case(writes, (x,)).check(here)
    with pytest.raises((TypeError, RuntimeError, ValueError), match=r".+"):
        Case(lambda x: x + np.ones(2), (x,)).check(STRICT)
    with pytest.raises(AssertionError, match="out for float32 in"):
        Case(lambda x: x.astype(np.float64), (x,)).check(here)
