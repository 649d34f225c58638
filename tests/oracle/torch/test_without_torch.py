"""What `oracle.torch` says without torch: which modules and inputs it takes. tests/parity has torch itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff import oracle
from refdiff.oracle import Spec, cases
from refdiff.oracle.inputs import VECTORS

SPEC = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=4)


class Attention:
    """What `module` asks of a torch module before it calls it."""

    def __init__(self, *names: str) -> None:
        self._modules = dict.fromkeys(names, SimpleNamespace(_modules={}, _parameters={}, _buffers={}))
        self._parameters = dict.fromkeys(VECTORS, "a parameter")
        self._buffers: dict[str, Any] = {}

    def named_children(self) -> Iterator[tuple[str, Any]]:
        yield from self._modules.items()

    def parameters(self) -> Iterator[Any]:
        yield SimpleNamespace(device="cpu")

    def forward(self, x: Any) -> Any:
        raise AssertionError("it is not called")


@pytest.mark.parametrize("names", [("q_proj", "k_proj"), ("to_q", "to_k", "to_v"), ()])
def test_projections_that_are_not_found(names: tuple[str, ...]) -> None:
    has = ", ".join(names) or "no submodule"
    with pytest.raises(ValueError, match=f"the module has {has}, expected q_proj, k_proj and v_proj, or qkv"):
        oracle.torch.module(Attention(*names), SPEC)


@pytest.mark.parametrize(
    ("fields", "names", "message"),
    [
        ({"sinks": True}, {}, "the module has no sinks, for sinks; give its own name with names={'sinks': ...}"),
        ({"norm_weight": True}, {}, "the spec has norm_weight, but the module has no groupnorm or subln or sub_norm"),
        ({"qk_norm": "rms", "qk_norm_weight": True}, {"q_norm": "proj"}, "the module has no proj.weight, for q_norm_w"),
        ({}, {"qkv": "to_qkv"}, "the module has no to_qkv, for qkv; give its own name with names={'qkv': ...}"),
        (
            {},
            {"q": "qkv"},
            "names has q, but may have q_proj, k_proj, v_proj, qkv, o_proj, lambda_proj, gate_proj, nor",
        ),
    ],
)
def test_a_module_that_lacks_parameters_of_the_spec_is_refused(
    fields: dict[str, Any], names: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        oracle.torch.module(Attention("qkv", "proj"), SPEC.replace(**fields), names=names)


def test_inputs_that_a_module_cannot_take() -> None:
    """No mask, no cache and no positions: pages, packed sequences, padding and earlier keys are declined."""
    kernel = oracle.torch.module(Attention("qkv", "proj"), SPEC)
    named = oracle.torch.module(Attention("a", "b", "c"), SPEC, names={"q_proj": "a", "k_proj": "b", "v_proj": "c"})
    declined = [case for p in ("layout", "serving") for case in cases(p, spec=SPEC)]
    declined += [cases("natural", spec=SPEC)[0], cases("discriminating", spec=SPEC)[3]]
    declined += cases("natural", spec=SPEC.replace(query_heads=8))
    declined += cases("natural", spec=SPEC, queries=5, keys=3)
    for case in declined:
        assert kernel(case.inputs) is NotImplemented, case
        assert named(case.inputs, dout=case.dout) is NotImplemented, case
    assert kernel({**cases("natural", spec=SPEC)[1].inputs, "bias": np.zeros((1, 1, 17, 17))}) is NotImplemented
