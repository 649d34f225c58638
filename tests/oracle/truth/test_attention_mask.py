"""Who sees whom, against a loop over every query and key."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.layers import causal_mask
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_mask import attention_mask, is_plain_causal
from tests.oracle.example_inputs import small


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


@pytest.mark.parametrize(("T", "S"), [(1, 1), (3, 3), (2, 5)])
def test_the_triangle_is_the_layers(T: int, S: int) -> None:
    spec = small("hf_diffllama")
    assert is_plain_causal(spec, problem(T, S))
    assert np.array_equal(attention_mask(spec, problem(T, S))[0, 0], causal_mask(T, S, xp=np))


def test_what_is_not_the_layers_triangle() -> None:
    assert not is_plain_causal(small("hf_diffllama"), problem(3, 2))
    assert is_plain_causal(small("hf_diffllama", window=2), problem(3, 3)), "a window is a mask beside the triangle"
    assert not is_plain_causal(small("hf_diffllama", causal="top_left"), problem(3, 3))


def test_padding_and_masks_are_taken_away() -> None:
    inputs = {**problem(2, 3), "key_mask": np.array([[True, False, True]])}
    assert attention_mask(small("timm"), inputs)[0, 0].tolist() == [[True, False, True]] * 2
    inputs["mask"] = np.array([[True, True, False], [True, True, True]])
    assert attention_mask(small("timm"), inputs)[0, 0].tolist() == [[True, False, False], [True, False, True]]
