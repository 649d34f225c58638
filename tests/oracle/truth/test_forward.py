"""From inputs to the output: what must hold whatever the numbers, which keys are seen, which heads are a pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.oracle import Spec
from refdiff.oracle.truth.attention_operands import attention_mask, head_indices
from refdiff.oracle.truth.forward import forward
from tests.oracle.example_inputs import draw, small


@pytest.mark.parametrize(
    "spec", [small("hf_diffllama"), small("diff_v2", gate="silu")], ids=lambda spec: spec.lambda_form
)
def test_a_layer_is_its_projections_around_the_core(spec: Spec) -> None:
    inputs = draw(spec, layer=True)
    core = {name: x for name, x in inputs.items() if name != "x" and "_proj" not in name}
    for name in ("q", "k", "v", "gate"):
        if f"{name}_proj.weight" in inputs:
            width = {"v": spec.value_dim, "gate": spec.out_dim}.get(name, spec.head_dim)
            rows = inputs["x"] @ inputs[f"{name}_proj.weight"].T
            core["gate_logits" if name == "gate" else name] = np.swapaxes(rows.reshape(2, 5, -1, width), 1, 2)
    if "lambda_proj.weight" in inputs:
        core["lambda_logits"] = inputs["x"] @ inputs["lambda_proj.weight"].T
    heads = np.swapaxes(forward(spec, core), 1, 2).reshape(2, 5, -1)
    assert np.allclose(forward(spec, inputs), heads @ inputs["o_proj.weight"].T, rtol=1e-12, atol=1e-13)


def test_by_hand() -> None:
    w = head_indices(small("hf_diffllama", query_heads=8, key_heads=4))
    assert [x.tolist() for x in (w.q1, w.q2, w.k1, w.k2, w.v)] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [0, 0, 1, 1], [2, 2, 3, 3], [0, 0, 1, 1],
    ]  # fmt: skip
    w = head_indices(small("ms_v1", query_heads=8, key_heads=4))
    assert [w.q1.tolist(), w.q2.tolist()] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert [w.k1.tolist(), w.k2.tolist(), w.v.tolist()] == [[0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 1, 1]]


def problem(T: int, S: int) -> dict[str, np.ndarray]:
    return {"q": np.zeros((1, 1, T, 2)), "k": np.zeros((1, 1, S, 2))}


def by_loop(spec: Spec, T: int, S: int) -> np.ndarray:
    see = np.zeros((T, S), np.bool_)
    for t in range(T):
        here = t if spec.causal == "top_left" else t + S - T
        for s in range(S):
            causal = spec.causal == "none" or s <= here
            window = spec.window is None or (here - spec.window < s < here + spec.window)
            see[t, s] = causal and window
    return see


@given(
    st.integers(0, 6), st.integers(0, 6), st.sampled_from(["bottom_right", "top_left", "none"]),
    st.one_of(st.none(), st.integers(0, 8)),
)  # fmt: skip
def test_against_a_loop(T: int, S: int, causal: str, window: int | None) -> None:
    spec = small("hf_diffllama", causal=causal, window=window)
    assert np.array_equal(attention_mask(spec, problem(T, S))[0, 0], by_loop(spec, T, S))
