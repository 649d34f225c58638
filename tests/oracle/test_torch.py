"""What `oracle.torch` says without torch: which modules and inputs it takes. tests/parity has torch itself."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff import oracle
from refdiff.oracle import Divergence, Spec, cases
from refdiff.oracle.divergence.first_divergence import Stage
from refdiff.oracle.torch import ModelReport

SPEC = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=4)


class Attention:
    """What `module` asks of a torch module before it calls it."""

    def __init__(self, *names: str) -> None:
        self._modules = dict.fromkeys(names)

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


def test_a_report() -> None:
    stages = (Stage("lm_head", "equal"),)
    right = ModelReport(Divergence(None, "local", "float32", stages, ()))
    assert right
    assert str(right).startswith("pass\n")
    wrong = ModelReport(Divergence("model.layers.2.self_attn.diff", "local", "float32", stages, ()), 2)
    assert not wrong
    assert str(wrong).startswith("fail: layer 2, point diff\n")
    assert str(ModelReport(Divergence("lm_head", "local", "float32", stages, ()))).startswith("fail: point lm_head\n")
