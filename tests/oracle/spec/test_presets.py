"""Presets are what their sources compute: unilm's own files, and the layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Spec, truth
from tests.golden import unilm

FILES = {
    "ms_v1": ("multihead_flashdiff_1", "multihead_flashdiff_2"),
    "ms_v1_naive": ("multihead_diffattn",),
    "diff_v2": ("multihead_flashdiffv2",),
}


def layer_inputs(case: unilm.Case, spec: Spec) -> dict[str, Any]:
    """unilm's input and weights under the names of the oracle's dictionary."""
    names = {"out_proj.weight": "o_proj.weight", "subln.weight": "norm_weight"}
    return {"x": case.x, **{names.get(name, name): w for name, w in case.weights.items()}}


@pytest.mark.parametrize("size", ["mha", "gqa2", "gqa3"])
@pytest.mark.parametrize("name", FILES)
def test_equals_the_files_of_unilm(name: str, size: str) -> None:
    case = unilm.case(f"{'v2' if name == 'diff_v2' else 'v1'}-{size}")
    heads, key_heads = case.options["num_heads"], case.key_heads
    q = case.weights["q_proj.weight"].shape[0]
    key = key_heads if name == "diff_v2" else 2 * key_heads
    spec = Spec.preset(
        name,
        query_heads=2 * heads,
        key_heads=key,
        head_dim=q // (2 * heads),
        layer=case.options.get("depth", 0),
        rope_theta=unilm.THETA,
    )
    out = truth(spec, layer_inputs(case, spec), want=("out",)).out
    for file in FILES[name]:
        expected = case.outputs[file]
        assert np.abs(out - expected).max() <= unilm.SAME * np.abs(expected).max()


def test_timm_has_no_grouped_queries() -> None:
    with pytest.raises(
        ValueError, match=r"query_heads is 8 and key_heads 4, but timm has no grouped queries: .*'ms_v1'"
    ):
        Spec.preset("timm", query_heads=8, key_heads=4, head_dim=6)
    grouped = Spec.preset("ms_v1", query_heads=8, key_heads=8, head_dim=6, rope="none", causal="none")
    assert grouped == Spec.preset("timm", query_heads=8, key_heads=8, head_dim=6)


def test_equals_the_equation_of_timm() -> None:
    """Written out from `DiffAttention.forward` as the preset's text has it: thirds of qkv, neighbors a pair, v wide."""
    B, N, h, d = 2, 7, 4, 6
    dim, rng = 2 * h * d, np.random.default_rng(0)
    spec = Spec.preset("timm", query_heads=2 * h, key_heads=2 * h, head_dim=d, layer=3)
    x, qkv, bias, proj = (rng.normal(size=s) for s in ((B, N, dim), (3 * dim, dim), (3 * dim,), (dim, dim)))
    qkv, weight, vectors = qkv / 4, rng.normal(size=2 * d), rng.normal(size=(4, d)) / 3
    q, k, v = np.split(x @ qkv.T + bias, 3, axis=2)
    q, k = (y.reshape(B, N, h, 2, d).transpose(0, 2, 3, 1, 4) for y in (q, k))
    weights = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(d))
    weights /= weights.sum(axis=-1, keepdims=True)
    start = 0.8 - 0.6 * np.exp(-0.3 * 3)
    lambda_ = np.exp(vectors[0] @ vectors[1]) - np.exp(vectors[2] @ vectors[3]) + start
    heads = (weights[:, :, 0] - lambda_ * weights[:, :, 1]) @ v.reshape(B, N, h, 2 * d).transpose(0, 2, 1, 3)
    normed = heads / np.sqrt((heads**2).mean(axis=-1, keepdims=True) + 1e-5) * weight * (1 - start)
    expected = normed.transpose(0, 2, 1, 3).reshape(B, N, dim) @ proj.T
    inputs = {"x": x, "norm_weight": weight, "o_proj.weight": proj}
    inputs |= {f"{n}_proj.weight": w for n, w in zip("qkv", np.split(qkv, 3), strict=True)}
    inputs |= {f"{n}_proj.bias": b for n, b in zip("qkv", np.split(bias, 3), strict=True)}
    inputs |= dict(zip(("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"), vectors, strict=True))
    out = truth(spec, inputs, want=("out",)).out
    assert np.abs(out - expected).max() <= 1e-13 * np.abs(expected).max()
