"""Plain attention, forward and backward, against the formula written out, one head at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Spec, budget, cases, truth
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


@pytest.mark.parametrize(("profile", "number"), [("degenerate", 3), ("layout", 0), ("layout", 4)])
@pytest.mark.parametrize(
    "spec",
    [
        small("attention", sinks=True, softcap=2.0, lse_base="2"),
        small("ms_v1", sinks=True, qk_norm="rms"),
    ],
    ids=["attention", "ms_v1"],
)
def test_with_sinks_the_log_sum_exp_of_no_keys_at_all_is_the_sink(spec: Spec, profile: str, number: int) -> None:
    """Dense without keys, and packed and paged with a sequence that has none: as where a mask hides every key."""
    case = cases(profile, spec=spec)[number]
    found, heads = truth(spec, case.inputs, dout=case.dout), head_indices(spec)
    sinks = case.inputs["sinks"] / np.float64(np.log(2) if spec.lse_base == "2" else 1)
    rows = np.concatenate([np.full(q, k == 0) for q, k in case.structure.sequences or ((3, 0),)])
    for name, of_map in zip(spec.lse_names, (heads.q1, heads.q2), strict=False):
        lse = np.moveaxis(getattr(found, name), 1, -1).reshape(-1, spec.heads)
        assert np.array_equal(np.all(np.isclose(lse, sinks[of_map], rtol=0, atol=1e-12), axis=-1), rows)
    allowed = budget(spec, case.inputs, "float32")
    assert allowed.judge({name: getattr(found, name) for name in spec.lse_names}).status == "pass"
    verdict = allowed.judge({name: np.where(rows.any(), -np.inf, getattr(found, name)) for name in spec.lse_names})
    assert verdict.status == "fail"


@pytest.mark.parametrize("profile", ["degenerate", "layout"])
def test_log_sum_exps_with_sinks_are_numbers(profile: str) -> None:
    for case in cases(profile, spec=small("ms_v1", sinks=True)):
        found = truth(case.spec, case.inputs)
        assert np.isfinite(found.lse1).all(), case
        assert np.isfinite(found.lse2).all(), case
