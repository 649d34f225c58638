"""Equal bits: a kernel that computes each row alone keeps all four relations, and four others break one each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Recipe, Spec
from refdiff.oracle.conformance import Run
from refdiff.oracle.inputs.sequences import sequences
from refdiff.oracle.suite.bitwise import BITWISE, bitwise_cases
from refdiff.oracle.suite.outcome import judge_relation

SPEC = Spec.preset("attention", query_heads=2, key_heads=1, head_dim=8)
F32 = np.float32


def attend(spec: Spec, inputs: dict[str, Any], by_tiles: bool = False) -> Any:
    """Plain attention in float32: a row's sums go over the keys in order, or tile by tile."""
    if {"mask", "bias", "key_mask"} & inputs.keys():
        return NotImplemented
    B, H, T, _ = inputs["q"].shape
    out = np.zeros((B, H, T, spec.out_dim), F32)
    for part in sequences(inputs):
        q, k, v = (part.inputs[name] for name in "qkv")
        for b, h, t in np.ndindex(q.shape[:3]):
            seen = k.shape[2] - q.shape[2] + t + 1
            if seen > 0:
                group = h // spec.query_heads * spec.key_heads
                keys, values = (np.ascontiguousarray(x[b, group, :seen]) for x in (k, v))
                scores = (keys * q[b, h, t]).sum(-1) / F32(8**0.5)
                weights = np.exp(scores - scores.max())[:, None]
                step = 2 if by_tiles else seen
                total = sum((weights[i : i + step].sum(0) for i in range(0, seen, step)), F32(0))
                found = sum(((weights * values)[i : i + step].sum(0) for i in range(0, seen, step)), F32(0))
                out[part.index][b, h, t] = found / total
    return out


def _dense_batch(inputs: dict[str, Any]) -> bool:
    return "k" in inputs and inputs["q"].shape[0] > 1


WRONG: dict[str, Callable[[dict[str, Any]], bool]] = {
    "batch": _dense_batch,
    "chunk": lambda inputs: _dense_batch(inputs) and inputs["q"].shape[2] < inputs["k"].shape[2],
    "page": lambda inputs: "k_pages" in inputs,
    "packing": lambda inputs: "cu_seqlens_q" in inputs,
}
"""For each relation, where a kernel sums in another order."""


def depends_on_the_batch(spec: Spec, inputs: dict[str, Any]) -> Any:
    return attend(spec, inputs, by_tiles=WRONG["batch"](inputs))


def failing(kernel: Callable[..., Any]) -> dict[str, str]:
    """The relations that a kernel does not keep."""
    found = {}
    for name, relation in BITWISE.items():
        outcome = judge_relation(kernel, Recipe("float32"), relation, bitwise_cases(relation, SPEC, "float32", 1))
        assert outcome.status != "skip", outcome.text
        found |= {name: outcome.text} if outcome.status == "fail" else {}
    return found


def test_a_kernel_that_computes_each_row_alone() -> None:
    assert failing(attend) == {}


@pytest.mark.parametrize("relation", BITWISE)
def test_a_kernel_that_breaks_one(relation: str) -> None:
    other_order = WRONG[relation]
    wrong = failing(lambda spec, inputs: attend(spec, inputs, by_tiles=other_order(inputs)))
    assert wrong.keys() == {relation}
    assert str(BITWISE[relation].__doc__) in wrong[relation]
    assert "numbers differ, first at" in wrong[relation]


def test_what_does_not_apply_is_skipped() -> None:
    relation = BITWISE["chunk"]
    spec = SPEC.replace(causal="none")
    outcome = judge_relation(attend, Recipe("float32"), relation, bitwise_cases(relation, spec, "float32", 0))
    assert (outcome.status, outcome.text) == ("skip", "the relation needs a causal spec and two tokens")


def test_the_option() -> None:
    assert Run({"bitwise": "page, batch"}).relations[-2:] == [BITWISE["page"], BITWISE["batch"]]
    assert len(Run({}).relations) == len(Run({"bitwise": "page"}).relations) - 1
    with pytest.raises(ValueError, match=r"--refdiff-bitwise: got 'pages', expected one of batch, chunk"):
        _ = Run({"bitwise": "pages"}).relations
