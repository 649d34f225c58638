"""Which modules and inputs `oracle.torch.module` takes. tests/parity has kernels of it."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from refdiff import oracle
from refdiff.oracle import Spec, cases
from refdiff.oracle.inputs import VECTORS

torch = pytest.importorskip("torch")
SPEC = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=4)


def attention(*names: str) -> Any:
    """A module that is not called."""
    made = torch.nn.Module()
    for name in names:
        made.add_module(name, torch.nn.Linear(2, 2))
    for name in VECTORS:
        made.register_parameter(name, torch.nn.Parameter(torch.zeros(4)))
    return made


@pytest.mark.parametrize(
    ("fields", "names", "message"),
    [
        ({"sinks": True}, {}, "the module has no sinks, for sinks; give its own name with names={'sinks': ...}"),
        ({"norm_weight": True}, {}, "the spec has norm_weight, but the module has no groupnorm or subln or sub_norm"),
        ({"qk_norm": "rms", "qk_norm_weight": True}, {"q_norm": "k"}, "the module has no k.weight, for q_norm_w"),
        ({}, {"qkv": "to_qkv"}, "the module has no to_qkv, for qkv; give its own name with names={'qkv': ...}"),
        ({}, {"q": "qkv"}, "names has q, but may have q_proj, k_proj, v_proj, qkv, o_proj, lambda_proj, gate_proj, no"),
    ],
)
def test_modules_that_are_refused(fields: dict[str, Any], names: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        oracle.torch.module(attention("qkv", "proj"), SPEC.replace(**fields), names=names)


def test_inputs_that_are_declined() -> None:
    """No mask, no cache and no positions: pages, packed sequences, padding and earlier keys are declined."""
    kernel = oracle.torch.module(attention("qkv", "proj"), SPEC)
    declined = [case for p in ("layout", "serving") for case in cases(p, spec=SPEC)]
    declined += [cases("natural", spec=SPEC)[0], cases("discriminating", spec=SPEC)[3]]
    declined += cases("natural", spec=SPEC.replace(query_heads=8))
    declined += cases("natural", spec=SPEC, queries=5, keys=3)
    for case in declined:
        assert kernel(case.inputs, dout=case.dout) is NotImplemented, case
    assert kernel({**cases("natural", spec=SPEC)[1].inputs, "bias": np.zeros((1, 1, 17, 17))}) is NotImplemented
