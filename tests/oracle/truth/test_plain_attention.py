"""Plain attention, forward and backward, against the formula written out, one head at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Spec, truth
from refdiff.oracle.truth.attention_operands import head_indices, value_heads
from tests.oracle.example_inputs import draw, small

CHANGED: list[dict[str, Any]] = [
    {},
    {"key_heads": 12},
    {"key_heads": 1},
    {"head_dim": 5, "v_head_dim": 3},
    {"v_head_dim": 9, "window": 3},
    {"softcap": 0.7, "scale": 0.3},
    {"window": 2, "causal": "none"},
    {"causal": "top_left"},
    {"group_order": "tiled"},
    {"sinks": True, "window": 4},
    {"sinks": True, "key_heads": 12, "softcap": 2.0, "v_head_dim": 4},
]


def by_heads(spec: Spec, inputs: dict[str, Any]) -> dict[str, Any]:
    """o = Σ_s p_s v_s, p_s = e^{z_s} / Σ e^z, over the keys that are seen.

    A sink is a z without a key: its p has no v.
    """
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    (B, H, T, d), (K, S) = q.shape, k.shape[1:3]
    scale, cap = spec.scale or 1 / math.sqrt(d), spec.softcap
    apart = np.arange(T)[:, None] + (0 if spec.causal == "top_left" else S - T) - np.arange(S)
    seen = (apart >= 0) | (spec.causal == "none")
    seen &= np.abs(apart) < (S + T if spec.window is None else spec.window)
    found = {"out": np.zeros((B, H, T, v.shape[3])), "lse": np.zeros((B, H, T))}
    for b, h in np.ndindex(B, H):
        j = h % K if spec.group_order == "tiled" else h // (H // K)
        raw = scale * q[b, h] @ k[b, j].T
        z = raw if cap is None else cap * np.tanh(raw / cap)
        weights, sink = np.exp(z) * seen, np.exp(inputs["sinks"][h]) if spec.sinks else 0.0
        total = weights.sum(axis=-1) + sink
        found["out"][b, h] = weights / np.where(total > 0, total, 1.0)[:, None] @ v[b, j]
        with np.errstate(divide="ignore"):
            found["lse"][b, h] = np.log(total)
    return found


@pytest.mark.parametrize("changes", CHANGED, ids=str)
def test_plain_attention_is_the_formula(changes: dict[str, Any]) -> None:
    spec = small("attention", **changes)
    inputs = draw(spec)
    found = truth(spec, inputs)
    assert found.lambda_full is None
    assert found.lse1 is None
    for name, y in by_heads(spec, inputs).items():
        assert np.allclose(getattr(found, name), y, rtol=0, atol=1e-12), name


@pytest.mark.parametrize("name", ["hf_diffllama", "ms_v1", "diff_v2", "gda"])
def test_sinks_of_both_maps_are_those_of_their_query_heads(name: str) -> None:
    """The difference of two plain attentions, each with the sinks of its own heads."""
    spec = small(name, sinks=True, rope="none", norm="none", norm_weight=False, out_scale="none", lambda_form="given")
    inputs, w = draw(spec), head_indices(spec)
    v = np.concatenate([inputs["v"][:, part] for part in value_heads(spec)], axis=-1)[:, w.v]
    plain = small("attention", query_heads=spec.heads, key_heads=spec.heads, v_head_dim=v.shape[-1], sinks=True)
    maps = [
        by_heads(plain, {"q": inputs["q"][:, a], "k": inputs["k"][:, b], "v": v, "sinks": inputs["sinks"][a]})
        for a, b in ((w.q1, w.k1), (w.q2, w.k2))
    ]
    found = truth(spec, inputs)
    expected = maps[0]["out"] - inputs["lambda_full"] * maps[1]["out"]
    assert np.allclose(found.out, expected, rtol=0, atol=1e-12)
    assert np.allclose(found.lse1, maps[0]["lse"], rtol=0, atol=1e-12)
    assert np.allclose(found.lse2, maps[1]["lse"], rtol=0, atol=1e-12)


def test_with_sinks_a_query_that_sees_no_key_gives_zeros() -> None:
    spec = small("attention", sinks=True)
    inputs = draw(spec, T=5, S=3)
    found = truth(spec, inputs, dout=np.ones((2, 12, 5, 6)))
    assert not np.any(found.out[:, :, :2])
    assert np.array_equal(found.lse[:, :, :2], np.broadcast_to(inputs["sinks"][:, None], (2, 12, 2)))
    with pytest.raises(ValueError, match="masked_rows is 'nan', but with sinks"):
        spec.replace(masked_rows="nan")
