"""The truth against arithmetic of fifty digits, layouts against what they stand for, and tiles against the whole."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import pytest

from refdiff.backends import ops_for
from refdiff.oracle import Spec, truth
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw as draw_values
from refdiff.oracle.spec.presets import PRESETS
from refdiff.oracle.truth import forward
from refdiff.oracle.truth.attention_operands import head_indices, value_heads
from tests.oracle.example_inputs import cut_out, draw, small

Digits = mpmath.mp.clone()
Digits.dps = 50


def turned(spec: Spec, x: np.ndarray, position: int) -> list[Any]:
    """RoPE of one head's row, with fifty digits."""
    row = [Digits.mpf(float(a)) for a in x]
    if spec.rope == "none":
        return row
    d, out = spec.rotary_dim, list(row)
    first = spec.head_dim - d if spec.rotary_at == "last" else 0
    for i in range(d // 2):
        angle = position * Digits.power(Digits.mpf(spec.rope_theta), Digits.mpf(-2 * i) / d)
        a, b = (first + n for n in ((2 * i, 2 * i + 1) if spec.rope == "interleaved" else (i, i + d // 2)))
        c, s = Digits.cos(angle), Digits.sin(angle)
        out[a], out[b] = row[a] * c - row[b] * s, row[b] * c + row[a] * s
    return out


def row_by_digits(
    spec: Spec, inputs: dict[str, np.ndarray], b: int, i: int, t: int
) -> tuple[list[Any], list[Any], Any]:
    """Output row, both log-sum-exps and λ of batch b, head i, query t of a causal core."""
    w, S, T = head_indices(spec), inputs["k"].shape[2], inputs["q"].shape[2]
    keys = range(t + S - T + 1) if spec.causal == "bottom_right" else range(S)
    start = spec.layer - (spec.lambda_base == "depth - 1")
    init = Digits.mpf("0.8") - Digits.mpf("0.6") * Digits.exp(-Digits.mpf("0.3") * start)
    if spec.lambda_form == "sigmoid":
        lam = 1 / (1 + Digits.exp(-Digits.mpf(float(inputs["lambda_logits"][b, t, i]))))
    elif spec.is_plain:
        lam = Digits.mpf(0)
    else:
        q1, k1, q2, k2 = (
            [Digits.mpf(float(a)) for a in inputs[n]] for n in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
        )
        lam = Digits.exp(Digits.fdot(q1, k1)) - Digits.exp(Digits.fdot(q2, k2)) + init
    weights, sums = [], []
    for q, k in ((w.q1[i], w.k1[i]), (w.q2[i], w.k2[i])):
        query = turned(spec, inputs["q"][b, q, t], t + S - T)
        z = [Digits.fdot(query, turned(spec, inputs["k"][b, k, s], s)) / Digits.sqrt(spec.head_dim) for s in keys]
        top = max(z)
        total = Digits.fsum(Digits.exp(x - top) for x in z)
        weights.append([Digits.exp(x - top) / total for x in z])
        sums.append(top + Digits.log(total))
    values = np.concatenate([inputs["v"][b, part[w.v[i]]] for part in value_heads(spec)], axis=-1)
    p = [a - lam * c for a, c in zip(*weights, strict=True)]
    out = [Digits.fdot(p, [Digits.mpf(float(values[s, j])) for s in keys]) for j in range(spec.out_dim)]
    if spec.norm == "rms":
        r = Digits.sqrt(Digits.fsum(x * x for x in out) / len(out) + Digits.mpf(spec.norm_eps))
        weight = inputs.get("norm_weight", np.ones(len(out)))
        out = [(1 - init) * x / r * Digits.mpf(float(g)) for x, g in zip(out, weight, strict=True)]
    if spec.gate == "sigmoid":
        gates = inputs["gate_logits"][b, i, t]
        out = [x / (1 + Digits.exp(-Digits.mpf(float(g)))) for x, g in zip(out, gates, strict=True)]
    return out, sums, lam


@pytest.mark.parametrize("values", ["discriminating", "cancellation", "tiny_values", "extreme"])
@pytest.mark.parametrize("name", PRESETS)
def test_agrees_with_fifty_digits(name: str, values: str) -> None:
    """Where maps cancel, an error of 1e-16 in a weight is larger in the normed row: by how much, is what is allowed."""
    spec = small_spec(name).replace(head_dim=6)
    inputs = draw_values(spec, Structure(2, 5, 7), values, 3, "bfloat16")
    found = truth(spec, inputs, want=("out", *spec.lse_names, "diff", *(() if spec.is_plain else ("lambda_full",))))
    exact = {name: x.astype(np.float64) for name, x in inputs.items()}
    rng = np.random.default_rng(1)
    for b, i, t in ((0, 0, 0), (1, spec.heads - 1, 4), *(tuple(rng.integers(0, (2, spec.heads, 5))) for _ in range(2))):
        out, sums, lam = row_by_digits(spec, exact, b, i, t)
        size = float(np.sqrt(np.mean(exact["v"] ** 2)))
        left = float(np.sqrt(np.mean(found.diff[b, i, t] ** 2) + spec.norm_eps)) if spec.norm == "rms" else size
        scale = max(1.0, max(abs(float(s)) for s in sums))
        condition = max(1.0, size / left) * scale
        largest = max(abs(float(x)) for x in out)
        assert np.abs(found.out[b, i, t] - np.asarray([float(x) for x in out])).max() <= 2e-14 * condition * largest
        for name, expected in zip(spec.lse_names, sums, strict=False):
            assert abs(float(getattr(found, name)[b, i, t]) - float(expected)) <= 1e-14 * scale
        if spec.is_plain:
            continue
        of_row = found.lambda_full if found.lambda_full.ndim == 0 else found.lambda_full[b, i, t]
        assert abs(float(of_row) - float(lam)) <= 1e-15 * 4


@pytest.mark.parametrize("name", PRESETS)
def test_packed_is_each_sequence_by_itself(name: str) -> None:
    spec = small(name)
    inputs = draw(spec, B=1, T=6, S=9)
    starts = {"cu_seqlens_q": np.array([0, 2, 2, 5, 6]), "cu_seqlens_k": np.array([0, 3, 4, 4, 9])}
    whole = truth(spec, {**inputs, **starts})
    for n in range(4):
        q, k = (slice(starts[x][n], starts[x][n + 1]) for x in ("cu_seqlens_q", "cu_seqlens_k"))
        alone = truth(spec, cut_out(inputs, q, k))
        assert np.array_equal(whole.out[:, :, q], alone.out)
        assert all(np.array_equal(getattr(whole, x)[:, :, q], getattr(alone, x)) for x in spec.lse_names)
    assert np.isneginf(getattr(whole, spec.lse_names[-1])[:, :, 2:5]).all()  # three queries, no key
    assert not whole.out[:, :, 2:5].any()


@pytest.mark.parametrize("name", PRESETS)
def test_pages_are_the_keys_in_order_and_what_is_nobodys_does_not_leak(name: str) -> None:
    spec = small(name)
    inputs = draw_values(spec, Structure(pages=((3, 7), (3, 4), (3, 9)), page=4), "discriminating", 0)
    assert np.isnan(inputs["k_pages"]).any()
    assert np.isnan(inputs["v_pages"]).any()
    whole = truth(spec, inputs, dout=np.ones((3, spec.heads, 3, spec.out_dim)))
    assert np.isfinite(whole.out).all()
    assert all(np.isfinite(g).all() for g in whole.grads.values())
    for n, length in enumerate(inputs["lengths"]):
        pages = inputs["block_table"][n, : -(-length // 4)]
        kept = [x for x in inputs if x not in ("k_pages", "v_pages", "block_table", "lengths")]
        part = {x: inputs[x][n : n + 1] if inputs[x].ndim > 2 else inputs[x] for x in kept}
        for x in ("k", "v"):
            part[x] = np.concatenate([inputs[f"{x}_pages"][p] for p in pages], axis=1)[None, :, :length]
        assert np.array_equal(truth(spec, part).out[0], whole.out[n])


def test_padding_is_not_seen_whatever_it_holds() -> None:
    spec = small("hf_diffllama")
    inputs = draw(spec)
    mask = np.array([[False, False, True, True, True, True, True], [True] * 7])
    seen = truth(spec, {**inputs, "key_mask": mask}, dout=np.ones((2, 6, 5, 12)))
    for value in (7.0, np.nan, np.inf):
        for n in ("k", "v"):
            inputs[n][0, :, :2] = value
        again = truth(spec, {**inputs, "key_mask": mask}, dout=np.ones((2, 6, 5, 12)))
        assert np.array_equal(seen.out, again.out)
        assert np.array_equal(seen.lse1, again.lse1)
        assert all(np.array_equal(g, again.grads[n]) for n, g in seen.grads.items())


def test_inputs_are_read_exactly_and_not_modified() -> None:
    spec = small("hf_diffllama")
    inputs = {name: x.astype(ml_dtypes.bfloat16) for name, x in draw(spec).items()}
    before = {name: x.copy() for name, x in inputs.items()}
    wide = {name: x.astype(np.float64) for name, x in inputs.items()}
    dout = np.ones((2, 6, 5, 12))
    a, b = truth(spec, inputs, dout=dout), truth(spec, wide, dout=dout)
    assert np.array_equal(a.out, b.out)
    assert all(np.array_equal(inputs[name], x) for name, x in before.items())
    for x in wide.values():
        x.setflags(write=False)
    truth(spec, wide, dout=dout)


STRUCTURES = {
    "square": Structure(batch=2, queries=19, keys=19),
    "decode": Structure(batch=2, queries=7, keys=23, padding="left"),
    "window": Structure(batch=1, queries=13, keys=13, bias=True, window=5),
    "packed": Structure(packed=((7, 7), (11, 13))),
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("preset", ["hf_diffllama", "timm", "diff_v2"])
def test_tiles_give_what_the_whole_gives(preset: str, structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Spec.preset(preset, query_heads=8, key_heads=8 if preset == "timm" else 4, head_dim=8, layer=3)
    inputs = draw_values(spec, STRUCTURES[structure], "natural", 1, "float32")
    want = ("out", "lse1", "lse2")
    whole = truth(spec, inputs, want=want, ops=ops_for())
    monkeypatch.setattr(forward, "TILE_SCORES", 300)
    found = truth(spec, inputs, want=want)
    for name in want:
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-12, atol=1e-13)
