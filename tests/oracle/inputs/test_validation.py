"""Inputs and outputs that do not fit say what they should be, and what is said to put an array right does so."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from refdiff.oracle.inputs.outputs import read_output
from refdiff.oracle.inputs.signature import adapt_kernel, takes_dout
from refdiff.oracle.inputs.validation import as_float64, check_inputs, layout_hint, nonfinite_warnings
from tests.layers.inputs import says as raises
from tests.oracle.example_inputs import draw, small

HF, MS, V2 = small("hf_diffllama"), small("ms_v1"), small("diff_v2")


def paged() -> dict[str, Any]:
    inputs = draw(HF, T=1)
    del inputs["k"], inputs["v"]
    pages = {"k_pages": np.zeros((5, 4, 3, 6)), "v_pages": np.zeros((5, 4, 3, 6))}
    return {**inputs, **pages, "block_table": np.array([[3, 1], [4, 9]]), "lengths": np.array([5, 3])}


def packed() -> dict[str, Any]:
    return {**draw(HF, B=1, T=6, S=6), "cu_seqlens_q": np.array([0, 2, 6])}


def test_lengths_by_letter() -> None:
    n = check_inputs(HF, draw(HF))
    assert {a: n[a] for a in "BTSHKdVwhe"} == dict(zip("BTSHKdVwhe", (2, 5, 7, 12, 4, 6, 4, 6, 6, 12), strict=True))
    assert check_inputs(HF, paged())["P"] == 5  # a page that is not used may be anything, as the 9 is


DENSE, LAYER, PACKED, PAGED = draw(HF), draw(HF, layer=True), packed(), paged()


@pytest.mark.parametrize(
    ("spec", "inputs", "changes", "says"),
    [
        (HF, DENSE, {"q": None}, "the inputs lack q .B, H, T, d."),
        (HF, DENSE, {"norm_weigth": np.zeros(12)}, "'norm_weigth' is no input of this spec"),
        (MS, draw(MS), {"norm_wieght": np.zeros(12)}, "did you mean 'norm_weight'"),
        (HF, DENSE, {"q": np.zeros((2, 6, 5, 6))}, "query_heads counts those of both maps"),
        (HF, DENSE, {"q": np.zeros((2, 5, 72))}, "if it is .B, T, H d., .reshape.2, 5, 12, 6."),
        (MS, draw(MS), {"v": np.zeros((2, 7, 2, 12))}, "v: got shape .*if it is .B, S, V, w., .transpose"),
        (V2, draw(V2), {"lambda_logits": np.zeros((2, 6, 5))}, "if it is .B, h, T., .transpose.0, 2, 1. puts"),
        (HF, DENSE, {"q": np.zeros((2, 12, 5, 12))}, "head_dim is the width of one map's heads"),
        (HF.replace(query_heads=6, key_heads=2), LAYER, {}, "72 is 2 times as much.*head_dim is the width of one"),
        (HF, DENSE, {"v": np.zeros((2, 4, 8, 6))}, "v: got shape .2, 4, 8, 6., expected .*S = 7"),
        (HF, DENSE, {"key_mask": np.ones((2, 7))}, "key_mask: got dtype float64, expected boolean"),
        (HF, DENSE, {"q": np.zeros((2, 12, 5, 6), np.int64)}, "q: got dtype int64, expected float64"),
        (HF, DENSE, {"mask": np.zeros((5, 7))}, "mask: got dtype float64, .*; one that is added .* 'bias'$"),
        (HF, DENSE, {"mask": np.ones((3, 5, 7), np.bool_)}, "which does not broadcast"),
        (HF, DENSE, {"cu_seqlens_k": np.array([0, 7])}, "cu_seqlens_k without cu_seqlens_q"),
        (HF, DENSE, {"cu_seqlens_q": np.array([0, 5])}, "cu_seqlens_q is given, so B must be 1: it is 2"),
        (HF.replace(lambda_form="given"), DENSE, {"lambda_q1": None, "lambda_k1": None, "lambda_q2": None,
                                                  "lambda_k2": None, "lambda_full": np.zeros(5)}, "got shape .5,."),
        (HF, PACKED, {"cu_seqlens_q": np.array([0, 4, 2, 6])}, "got .0, 4, 2, 6., expected numbers that go up"),
        (HF, PACKED, {"cu_seqlens_k": np.array([0, 2, 5])}, "cu_seqlens_k: got .* expected numbers that go up from 0"),
        (HF, PACKED, {"mask": np.ones((6, 6), np.bool_)}, "mask: packed and paged sequences have causal and window"),
        (HF, PAGED, {"lengths": np.array([5, 7])}, r"lengths\[1\] is 7, but the table has room for 6 keys"),
        (HF, PAGED, {"lengths": np.array([5, 4])}, r"block_table\[1\] uses the pages \[4, 9\], but there are 5"),
        (HF, PAGED, {"key_mask": np.ones((2, 6), np.bool_)}, "key_mask: paged keys have lengths instead"),
        (HF, PAGED, {"cu_seqlens_k": np.array([0, 5])}, "'cu_seqlens_k' is no input of this spec"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(spec: Any, inputs: dict[str, Any], changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_inputs(spec, {name: x for name, x in {**inputs, **changes}.items() if x is not None})


def test_not_an_array() -> None:
    with pytest.raises(TypeError, match="q: got str, expected an array"):
        check_inputs(HF, {**draw(HF), "q": "no"})


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_numbers_are_those_of_the_storage_dtype(dtype: Any) -> None:
    inputs = draw(HF, dtype=dtype)
    exact = as_float64(HF, {**inputs, "key_mask": np.ones((2, 7), np.bool_)})
    assert all(x.dtype == (np.bool_ if name == "key_mask" else np.float64) for name, x in exact.items())
    assert np.array_equal(exact["q"].astype(dtype), inputs["q"])


def test_inputs_that_are_no_numbers_are_named() -> None:
    inputs = draw(HF)
    assert nonfinite_warnings({**inputs, "bias": np.full((5, 7), -np.inf)}) == ()
    inputs["k"][1, 2, 3, 4:] = np.nan
    inputs["lambda_q1"][0] = np.inf
    (said,) = nonfinite_warnings(inputs)
    assert "k has 2 of 336, the first at (1, 2, 3, 4); lambda_q1 has 1 of 6, the first at (0,)" in said


N = {"B": 2, "h": 3, "T": 5, "e": 8}
OTHERS = {
    "B T h e": "bhte->bthe",
    "B T he": "bhte->bthe",
    "BT h e": "bhte->bthe",
    "Bh T e": "bhte->bhte",
    "BT he": "bhte->bthe",
    "T B h e": "bhte->tbhe",
    "T B he": "bhte->tbhe",
    "T h e": "bhte->bthe",
    "h T e": "bhte->bhte",
    "T he": "bhte->bthe",
}


def _length(axis: str, n: dict[str, int]) -> int:
    return int(np.prod([n[a] for a in axis]))


@pytest.mark.parametrize("layout", OTHERS)
def test_the_advice_gives_back_the_very_numbers(layout: str) -> None:
    n = N | {"B": 2 if "B" in layout else 1}
    right = np.arange(_length("BhTe", n)).reshape(n["B"], 3, 5, 8)
    x = np.einsum(OTHERS[layout], right).reshape([_length(axis, n) for axis in layout.split()])
    said = layout_hint(x.shape, "BhTe", n)
    (steps,) = re.findall(r"\), (\S.*) puts", said)
    assert np.array_equal(eval(f"x{steps}", {"x": x}), right), said


# What a kernel hands back, and what it may not hand back

X = np.asarray([[1.5, -2.0]], np.float32)


@pytest.mark.parametrize("dtype", [np.complex64, np.bool_, np.uint16, np.int64, ml_dtypes.int4], ids=str)
def test_other_types_are_refused_with_what_is_expected(dtype: Any) -> None:
    name = np.dtype(dtype).name
    with pytest.raises(ValueError, match=rf"^lse1: got dtype {name}, expected float64, .* \.view\(ml_dtypes.bfloat16"):
        read_output(X.astype(dtype), "lse1")


@pytest.mark.parametrize(
    ("x", "says"),
    [
        ((X, X), 'out is a tuple of 2 arrays: give a mapping, {"out": …, "dq": …}'),
        ([X, None], 'out is a list of 1 array: give a mapping, {"out": …, "dq": …}'),
        ((None, X), 'out is a tuple of 1 array: give a mapping, {"out": …, "dq": …}'),
        ([X], 'out is a list of 1 array: give the array alone, or a mapping, {"out": …, "dq": …}'),
    ],
)
def test_several_arrays_are_a_mapping(x: Any, says: str) -> None:
    with raises(TypeError, says):
        read_output(x)
    if isinstance(x, list) and len(x) == 1:
        with raises(TypeError, "lse1 is a list of 1 array: give the array alone"):
            read_output(x, "lse1")


WAYS: list[tuple[Any, Any]] = [
    (lambda spec, inputs: (spec, inputs), ("spec", "inputs")),
    (lambda inputs: inputs, "inputs"),
    (lambda spec, inputs, dout=None: (spec, inputs, dout), ("spec", "inputs", "dout")),
    (lambda inputs, *, dout: (inputs, dout), ("inputs", "dout")),
    (lambda spec, inputs=None: (spec, inputs), ("spec", "inputs")),
    (lambda *args: args, ("spec", "inputs")),
    (max, "spec"),  # it does not tell what it takes
]
"""Kernels, and what they get."""


@pytest.mark.parametrize(
    ("kernel", "expected"), [*WAYS, (partial(lambda spec, inputs: (spec, inputs), "own"), ("own", "inputs"))]
)
def test_ways_to_call_a_kernel(kernel: Any, expected: Any) -> None:
    assert adapt_kernel(kernel)("spec", "inputs", "dout") == expected
    assert takes_dout(kernel) == ("dout" in expected)


def test_other_arguments() -> None:
    def by_name(q, k, v, lam):
        pass

    def nothing():
        pass

    with raises(
        TypeError,
        "by_name(q, k, v, lam) must take (spec, inputs) or (inputs), and may also take dout=None for gradients; wrap "
        "a kernel of named arrays: lambda inputs: kernel(**inputs)",
    ):
        adapt_kernel(by_name)
    with raises(TypeError, "nothing() must take (spec, inputs) or (inputs), and may also take dout=None for gradients"):
        adapt_kernel(nothing)
