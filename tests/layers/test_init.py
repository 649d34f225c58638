"""The names of the layers, and of each: float32 stays float32, and arrays of two libraries are refused.

What else holds on every backend, every test of every layer shows: see everywhere.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.layers.activation import NAMES as ACTIVATIONS
from tests.layers.places import STRICT, leaves
from tests.layers.vjps import NAMES, draw, label, own_weight
from tests.tolerances import FLOAT32, SLOPE32, close

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""The name of a layer, and what it is given."""


def with_vjp(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> list[Call]:
    """A call of a layer, and one of its derivative."""
    g = np.asarray(np.random.default_rng(0).normal(size=np.shape(getattr(layers, name)(*args, **options))))
    return [(name, args, options), (f"{name}_vjp", (g, *args), options)]


def drawn(name: str, seed: int) -> Call:
    """A call of a layer, with an activation that does not depend on how many there are."""
    acts = ("silu", "relu", "gelu_10", "hardswish")
    return name, *draw(name, seed, **({"act": acts[seed]} if name in ("activation", "swiglu") else {}))


FREQUENCIES = [1.0, 0.31, 0.11]
IDS = np.array([3, 0, 4], np.uint64)  # which the standard compares with no other type
Q, K, V, LAMBDA = np.zeros((0, 4, 5, 3)), np.zeros((0, 2, 7, 3)), np.zeros((0, 1, 7, 6)), np.asarray(0.3)
CALLS: list[Call] = [
    *(call for name in NAMES for seed in range(4) for call in with_vjp(*drawn(name, seed))),
    *(
        call
        for act in ACTIVATIONS
        for call in with_vjp("activation", (np.linspace(-9, 9, 35), act, *own_weight(act)), {})
    ),
    with_vjp("embedding", (IDS, np.ones((5, 2))), {})[1],
    with_vjp("cross_entropy", (np.arange(15.0).reshape(3, 5) % 4, IDS), {"ignore_index": 0})[1],
    ("causal_mask", (3, 5), {"xp": np}),
    ("packed_mask", (np.array([[0, 1, 2, 0, 1], [3, 4, 5, 9, 10]]),), {}),
    ("padding_mask", (np.array([[1, 1, 0], [0, 1, 1]]),), {}),
    ("padding_mask", (np.array([[True, True, False]]),), {}),
    ("rope_cos_sin", (np.array([[0, 131_071]]), FREQUENCIES, 1.3, np.float64), {}),
    ("rope_cos_sin", (np.array([[3], [999]]), [2, 1, 0], 1.0, np.float64), {}),
    # of nothing
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
    ("swiglu", (np.zeros((0, 5)), *({"weight": np.ones(shape)} for shape in ((7, 5), (7, 5), (5, 7)))), {}),
]
ITSELF = {name: getattr(layers, name) for name in layers.__all__}
"""The layers, which no test computes elsewhere under these names."""
EACH_CALL = pytest.mark.parametrize(("name", "args", "options"), CALLS, ids=[label(*call) for call in CALLS])


def cast(x: Any, dtype: type, to: type) -> Any:
    """The arrays in `x` of one dtype in another, and a dtype that is an argument."""
    if isinstance(x, Mapping):
        return {name: cast(value, dtype, to) for name, value in x.items()}
    if x is dtype:
        return to
    return x.astype(to) if isinstance(x, np.ndarray) and x.dtype == dtype else x


@pytest.mark.no_arrays
def test_all_names_are_sorted_there_and_tried() -> None:
    assert layers.__all__ == sorted(layers.__all__)
    assert all(callable(getattr(layers, name)) for name in layers.__all__)
    numbers = {"lambda_init", "rope_frequencies"}  # in and out
    assert {name for name, _, _ in CALLS} == set(layers.__all__) - numbers


@EACH_CALL
def test_float32_gives_float32(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    single = [cast(x, np.float64, np.float32) for x in (*args, options)]
    double = [cast(x, np.float32, np.float64) for x in single]
    found, expected = (leaves(getattr(layers, name)(*of[:-1], **of[-1])) for of in (single, double))
    for one, there in zip(found, expected, strict=True):
        if there is not None:
            assert one.dtype == (np.float32 if there.dtype.kind == "f" else there.dtype)
            close(one.astype(there.dtype), there, SLOPE32 if name.endswith("_vjp") else FLOAT32, empty=there.size == 0)


@pytest.mark.no_arrays
@EACH_CALL
def test_arrays_of_two_libraries_are_refused(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    arrays = [i for i, x in enumerate(args) if isinstance(x, np.ndarray)]
    for i in arrays if len(arrays) > 1 else []:
        with pytest.raises(TypeError, match=r"^arrays: got .*, expected arrays of one library; convert them first$"):
            ITSELF[name](*(STRICT.put(x) if j == i else x for j, x in enumerate(args)), **options)
