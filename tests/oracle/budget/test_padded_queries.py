"""Rows of queries that are padding: computed like all others, or anything, as the spec says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff import oracle
from refdiff.oracle import Case, cases
from refdiff.oracle.cases.fixed import small_spec
from tests.oracle.user_kernels import dense_with_gradients


def _padded(inputs: dict[str, Any]) -> Any:
    return ~inputs["key_mask"][:, -inputs["q"].shape[2] :]


def unpads(spec: Any, inputs: dict[str, Any], dout: Any = None) -> Any:
    """Packs what is no padding, and leaves NaN where the rest would stand."""
    found = dense_with_gradients(spec, inputs, dout)
    if found is NotImplemented or "key_mask" not in inputs:
        return found
    tensors = {"out": found} if dout is None else {name: found[name] for name in ("out", "dq", "dk", "dv", "lse1")}
    for name in ("out", "dq", "lse1"):
        if name in tensors:
            tensors[name] = np.array(tensors[name])
            np.moveaxis(tensors[name], 1, 2)[_padded(inputs)] = np.nan
    return tensors


def _cases(padded_queries: str, dtype: str = "bfloat16") -> list[Case]:
    spec = small_spec("hf_diffllama").replace(padded_queries=padded_queries)
    return [c for c in cases("layout", spec=spec, dtype=dtype) if "key_mask" in c.inputs and _padded(c.inputs).any()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padded_queries_are_judged_if_the_spec_computes_them(dtype: str) -> None:
    for computed, case in zip(_cases("computed", dtype), _cases("any", dtype), strict=True):
        kernel = unpads(case.spec, case.inputs, case.dout)
        assert not np.any(np.moveaxis(case.dout, 1, 2)[_padded(case.inputs)])
        assert oracle.check(kernel, case.spec, case.inputs, recipe=dtype, dout=case.dout), case.name
        wrong = oracle.check(unpads(computed.spec, computed.inputs, case.dout), computed.spec, computed.inputs,
                             recipe=dtype, dout=case.dout)  # fmt: skip
        assert [name for name, t in wrong.tensors.items() if t.status == "fail"] == ["out", "dq", "lse1"]


def test_the_other_rows_are_judged() -> None:
    for case in _cases("any"):
        out = unpads(case.spec, case.inputs)["out"].astype(np.float64)
        b, t = np.argwhere(~_padded(case.inputs))[-1]
        out[b, :, t] *= 1.1
        assert oracle.check(out, case.spec, case.inputs, recipe="bfloat16").status == "fail"


def test_a_nonzero_dout_for_unspecified_padding_is_refused() -> None:
    case = _cases("any")[0]
    with pytest.raises(ValueError, match="dout is not 0 for some padded queries, and padded_queries is 'any'"):
        oracle.truth(case.spec, case.inputs, dout=np.ones(case.dout.shape))
    computed = case.spec.replace(padded_queries="computed")
    assert np.isnan(oracle.truth(computed, case.inputs, dout=np.full(case.dout.shape, np.nan)).grads["v"]).any()
