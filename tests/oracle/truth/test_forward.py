"""From inputs to the output: what must hold whatever the numbers, which keys are seen, which heads are a pair."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refdiff.backends import ops_for
from refdiff.oracle import Spec
from refdiff.oracle.truth.attention_operands import attention_mask, head_indices
from refdiff.oracle.truth.forward import (
    forward,
    project,
    project_output,
)
from tests.oracle.example_inputs import draw, small

OPS = ops_for()


def test_out_scale_multiplies_normed_heads() -> None:
    spec = small("ms_v1")
    inputs = draw(spec)
    start = 0.8 - 0.6 * np.exp(-0.6)
    one, two = (np.exp(inputs[f"lambda_q{n}"] @ inputs[f"lambda_k{n}"]) for n in "12")
    factors = {"1 - lambda_init": 1 - start, "lambda_init": start, "none": 1.0, "1 - lambda": 1 - (one - two + start)}
    plain = forward(spec.replace(out_scale="none"), inputs)
    for word, factor in factors.items():
        assert np.allclose(forward(spec.replace(out_scale=word), inputs), factor * plain, rtol=1e-13)


def test_a_layer_is_its_projections_around_the_core() -> None:
    spec = small("hf_diffllama")
    inputs = draw(spec, layer=True)
    core = project(spec, inputs, OPS)
    q = inputs["x"] @ inputs["q_proj.weight"].T
    assert np.array_equal(core["q"][:, 3], q[..., 18:24])
    out = forward(spec, core)
    by_hand = np.concatenate([out[:, i] for i in range(6)], axis=-1) @ inputs["o_proj.weight"].T
    assert np.allclose(project_output(out, inputs, OPS), by_hand, rtol=1e-13)
    assert np.allclose(forward(spec, inputs), by_hand, rtol=1e-13)


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
