"""Gradients of every input: against central differences, for all presets and layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Spec, truth
from refdiff.oracle.inputs import BOOLEANS, INTEGERS
from refdiff.oracle.spec.presets import PRESETS
from tests.oracle.example_inputs import draw, small
from tests.oracle.truth.by_digits import CHOICES

Inputs = dict[str, Any]


def by_differences(spec: Spec, inputs: Inputs, dout: np.ndarray, direction: Inputs, step: float = 1e-5) -> float:
    """d⟨dout, out⟩ along a direction, of fourth order."""

    def at(by: float) -> float:
        moved = {name: x + by * direction[name] if name in direction else x for name, x in inputs.items()}
        return float(np.sum(dout * truth(spec, moved, want=("out",)).out))

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


def check_gradients(spec: Spec, inputs: Inputs, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    out = truth(spec, inputs, want=("out",)).out
    dout = rng.normal(size=out.shape)
    grads = truth(spec, inputs, dout=dout, want=()).grads
    floats = [n for n in inputs if n not in INTEGERS + BOOLEANS and n != "bias"]
    assert set(grads) == {*floats, *(() if spec.is_plain else ("lambda_full",))}
    for name in floats:
        assert grads[name].shape == inputs[name].shape
        d = rng.normal(size=inputs[name].shape)
        expected = by_differences(spec, inputs, dout, {name: d})
        assert np.sum(grads[name] * d) == pytest.approx(expected, rel=2e-7, abs=1e-8), name


@pytest.mark.parametrize("layer", [False, True], ids=["core", "layer"])
@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str, layer: bool) -> None:
    spec = small(name)
    check_gradients(spec, draw(spec, layer=layer))


@pytest.mark.parametrize(("name", "changes"), CHOICES, ids=str)
def test_every_other_choice(name: str, changes: dict[str, Any]) -> None:
    spec = small(name, **changes)
    check_gradients(spec, draw(spec, seed=1))


def test_a_layer_with_a_gate() -> None:
    spec = small("diff_v2", gate="sigmoid", qk_norm="rms", qk_norm_weight=True)
    check_gradients(spec, draw(spec, seed=2, layer=True))


@pytest.mark.parametrize("shape", [(), (6,), (2, 6, 5)])
def test_given_lambda_of_every_shape(shape: tuple[int, ...]) -> None:
    spec = small("hf_diffllama", lambda_form="given", out_scale="1 - lambda")
    inputs = draw(spec)
    inputs["lambda_full"] = np.random.default_rng(5).uniform(0.2, 0.9, size=shape)
    check_gradients(spec, inputs)


@pytest.mark.parametrize("masked_rows", ["zeros", "uniform"])
def test_masked_rows(masked_rows: str) -> None:
    spec = small("ms_v1", masked_rows=masked_rows)
    inputs = draw(spec, T=5, S=3)  # the first two queries come before every key
    inputs["key_mask"] = np.array([[True, True, True], [False, True, True]])
    check_gradients(spec, inputs)
    with pytest.raises(ValueError, match="masked_rows='nan'"):
        truth(spec.replace(masked_rows="nan"), inputs, dout=np.ones((2, 6, 5, 12)))


def test_masks_bias_and_positions() -> None:
    spec = small("hf_diffllama")
    rng, inputs = np.random.default_rng(3), draw(spec)
    inputs |= {"mask": rng.random((2, 6, 5, 7)) < 0.8, "bias": rng.normal(size=(6, 5, 7))}
    inputs |= {"q_positions": rng.integers(0, 50, (2, 5)), "k_positions": rng.integers(0, 50, (1, 7))}
    check_gradients(spec, inputs)


LAID_OUT = [small("hf_diffllama"), small("diff_v2"), small("attention", sinks=True, v_head_dim=4)]


@pytest.mark.parametrize("spec", LAID_OUT, ids=lambda spec: spec.lambda_form)
def test_packed(spec: Spec) -> None:
    inputs = draw(spec, B=1, T=6, S=9)
    inputs |= {"cu_seqlens_q": np.array([0, 2, 2, 5, 6]), "cu_seqlens_k": np.array([0, 3, 4, 4, 9])}
    check_gradients(spec, inputs)
    layer = draw(spec, layer=True, B=1, T=6)
    check_gradients(spec, layer | {"cu_seqlens_q": np.array([0, 2, 2, 6])})


@pytest.mark.parametrize("spec", LAID_OUT, ids=lambda spec: spec.lambda_form)
def test_paged(spec: Spec) -> None:
    rng, inputs = np.random.default_rng(4), draw(spec, T=1)
    del inputs["k"], inputs["v"]
    inputs["k_pages"] = rng.normal(size=(5, spec.key_heads, 3, spec.head_dim))
    inputs["v_pages"] = rng.normal(size=(5, spec.value_heads, 3, spec.value_dim))
    inputs |= {"block_table": np.array([[3, 1], [4, 3]]), "lengths": np.array([5, 4])}  # page 3 is shared
    check_gradients(spec, inputs)


def test_earlier_tokens_of_a_layer() -> None:
    spec = small("hf_diffllama")
    inputs = draw(spec, layer=True, T=2)
    inputs |= {"x_past": np.random.default_rng(1).normal(size=(2, 4, 11))}
    inputs |= {"q_proj.bias": np.ones(72), "v_proj.bias": np.ones(24), "o_proj.bias": np.ones(11)}
    check_gradients(spec, inputs)


def test_dout_of_another_shape() -> None:
    spec = small("hf_diffllama")
    with pytest.raises(ValueError, match=r"dout has shape \(2, 5, 6, 12\), but the output has \(2, 6, 5, 12\)"):
        truth(spec, draw(spec), dout=np.ones((2, 5, 6, 12)))
