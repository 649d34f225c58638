"""The truth against arithmetic of fifty digits, layouts against what they stand for, and tiles against the whole."""

from __future__ import annotations

import math
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.backends import ops_for
from refdiff.oracle import Spec, budget, cases, truth
from refdiff.oracle.cases.fixed import PROFILES, small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw as draw_values
from refdiff.oracle.spec.presets import PRESETS, YARN
from refdiff.oracle.truth.attention_operands import attention_mask, head_indices, value_heads
from refdiff.oracle.truth.forward import forward
from tests.oracle.example_inputs import cut_out, draw, small
from tests.oracle.truth.by_digits import CHOICES, attention, frequencies

VALUES = ["discriminating", "cancellation", "tiny_values", "extreme"]


def errors(spec: Spec, inputs: dict[str, np.ndarray], b: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """How far the truth is off by fifty digits in sequence b, and these digits, by tensor."""
    found = truth(spec, inputs, want=("out", *spec.lse_names, "diff", *(() if spec.is_plain else ("lambda_full",))))
    exact = attention(spec, {name: x.astype(np.float64) for name, x in inputs.items()}, b)
    off = {}
    for name, y in exact.items():
        if (x := getattr(found, name)) is not None:
            off[name] = np.abs((x if x.ndim == 0 else x[b]) - y).astype(np.float64)
    return off, {name: y.astype(np.float64) for name, y in exact.items()}


@pytest.mark.parametrize(("name", "fields"), CHOICES, ids=str)
def test_every_other_choice_agrees_with_fifty_digits(name: str, fields: dict[str, Any]) -> None:
    spec = small(name, **fields)
    off, _ = errors(spec, draw(spec, 1, T=3, S=5), 1)
    assert max(x.max() for x in off.values()) < 1e-14, off


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_agree_with_fifty_digits(name: str, values: str) -> None:
    """Where maps cancel, an error of 1e-16 in a weight is larger in the normed row: by how much, is what is allowed."""
    spec = small_spec(name).replace(head_dim=6)
    inputs = draw_values(spec, Structure(2, 5, 7), values, 3, "bfloat16")
    off, exact = errors(spec, inputs, 1)
    sums = np.maximum(1.0, np.max([np.abs(exact[n]) for n in spec.lse_names], axis=0))
    size = float(np.sqrt(np.mean(inputs["v"].astype(np.float64) ** 2)))
    left = np.sqrt(np.mean(exact["diff"] ** 2, axis=-1) + spec.norm_eps) if spec.norm == "rms" else size
    largest = np.maximum(1.0, size / left) * sums * np.abs(exact["out"]).max(axis=-1)
    assert np.all(off["out"].max(axis=-1) <= 2e-14 * largest)
    assert all(np.all(off[n] <= 1e-14 * sums) for n in spec.lse_names)
    assert spec.is_plain or off["lambda_full"].max() <= 4e-15


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
    monkeypatch.setattr(sys.modules["refdiff.oracle.truth.forward"], "TILE_SCORES", 300)
    found = truth(spec, inputs, want=want)
    for name in want:
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-12, atol=1e-13)


# Sinks where queries see no key: zeros, and log-sum-exps that are the sink


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
    rows = np.concatenate([np.full(q, k == 0) for q, k in PROFILES[profile][1][number].sequences or ((3, 0),)])
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


# From inputs to the output: what must hold whatever the numbers, which keys are seen, which heads are a pair


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
    w = head_indices(small("attention", query_heads=4, key_heads=2, group_order="tiled"))
    assert [w.q1.tolist(), w.k1.tolist(), w.v.tolist()] == [[0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 0, 1]]
    w = head_indices(small("gda", query_heads=6, key_heads=4, ratio=2))  # two signals and the noise of each group
    assert [w.q1.tolist(), w.q2.tolist()] == [[0, 1, 3, 4], [2, 2, 5, 5]]
    assert [w.k1.tolist(), w.k2.tolist(), w.v.tolist()] == [[0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 1, 1]]
    joined = {values: value_heads(small("hf_diffllama", values=values)) for values in ("halves", "interleaved")}
    assert [x.tolist() for x in joined["halves"]] == [[0, 1], [2, 3]]
    assert [x.tolist() for x in joined["interleaved"]] == [[0, 2], [1, 3]]


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


# Grouped differential latent attention as in Motif-3, transcribed in the form that kernels decode with

Numpy = np.ndarray[Any, Any]
GROUPS, SIGNALS, NOPE, ROPE, WIDTH, RANK, T = 2, 4, 8, 4, 5, 7, 9
DIMS = {"query_heads": GROUPS * (SIGNALS + 1), "key_heads": GROUPS, "head_dim": NOPE + ROPE, "v_head_dim": WIDTH}
SCALE = (0.1 * math.log(64) + 1) ** 2 / math.sqrt(NOPE + ROPE)


def weights(seed: int) -> dict[str, Numpy]:
    """What the model's projections give for each token, and the two halves of the matrix that makes k and v of it."""
    rng = np.random.default_rng(seed)
    H = GROUPS * (SIGNALS + 1)
    shapes = {
        "queries": (T, H, NOPE + ROPE), "latent": (T, RANK), "shared": (T, ROPE), "up_k": (GROUPS, NOPE, RANK),
        "up_v": (GROUPS, WIDTH, RANK), "lambdas": (T, GROUPS * SIGNALS), "gates": (T, GROUPS * SIGNALS, WIDTH),
    }  # fmt: skip
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def latent_queries(x: dict[str, Numpy]) -> Numpy:
    """(H, T, RANK): ⟨query, W_UK c⟩ is ⟨W_UKᵀ query, c⟩."""
    return np.einsum("thn,hnr->htr", x["queries"][..., :NOPE], np.repeat(x["up_k"], SIGNALS + 1, axis=0))


def turn(x: Numpy, speeds: Numpy) -> Numpy:
    """RoPE of rows (…, T, ROPE) from position 0 on, in halves, as a product of complex numbers."""
    z = (x[..., : ROPE // 2] + 1j * x[..., ROPE // 2 :]) * np.exp(1j * np.arange(x.shape[-2])[:, None] * speeds)
    return np.concatenate([z.real, z.imag], axis=-1)


def sigmoid(x: Numpy) -> Numpy:
    return 1 / (1 + np.exp(-x))


def by_latents(x: dict[str, Numpy], window: int, speeds: Numpy, scale: float) -> Numpy:
    """σ(gate) ⊙ W_UV (Σ p c of a signal − σ(λ) Σ p c of the noise of its group), c being the latents: (h, T, w)."""
    keys, queries = turn(x["shared"], speeds), turn(np.moveaxis(x["queries"][..., NOPE:], 1, 0), speeds)
    weights = (
        np.exp(scale * (latent_queries(x) @ x["latent"].T + queries @ keys.T)) * np.tri(T) * np.tri(T, k=window - 1).T
    )
    of_heads = weights / weights.sum(axis=-1, keepdims=True) @ x["latent"]
    groups = of_heads.reshape(GROUPS, SIGNALS + 1, T, RANK)
    lambdas = sigmoid(x["lambdas"]).T.reshape(GROUPS, SIGNALS, T, 1)
    differences = groups[:, :SIGNALS] - lambdas * groups[:, SIGNALS:]
    values = np.einsum("gntr,gwr->gntw", differences, x["up_v"]).reshape(GROUPS * SIGNALS, T, WIDTH)
    return values * np.moveaxis(sigmoid(x["gates"]), 0, 1)


def of_the_oracle(x: dict[str, Numpy]) -> dict[str, Numpy]:
    """The dictionary: k of each group is its part of the latents beside what all groups share."""
    k = [np.concatenate([x["latent"] @ up.T, x["shared"]], axis=1) for up in x["up_k"]]
    v = [x["latent"] @ up.T for up in x["up_v"]]
    return {
        "q": np.moveaxis(x["queries"], 0, 1)[None], "k": np.asarray(k)[None], "v": np.asarray(v)[None],
        "lambda_logits": x["lambdas"][None], "gate_logits": np.moveaxis(x["gates"], 0, 1)[None],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "window", "scale"),
    [
        ({"window": 4}, 4, (NOPE + ROPE) ** -0.5),
        ({"window": None, "rope_parameters": YARN, "scale": SCALE}, T, SCALE),  # one of the layers without
    ],
    ids=["window", "full"],
)
def test_equals_the_form_in_latent_space(fields: dict[str, Any], window: int, scale: float) -> None:
    x, spec = weights(3), Spec.preset("motif3", **DIMS, **fields)
    speeds = np.asarray(frequencies(spec)[0], dtype=np.float64)
    found = truth(spec, of_the_oracle(x), want=("out",)).out
    assert np.allclose(found[0], by_latents(x, window, speeds, scale), rtol=0, atol=1e-12)


def test_dimensions_of_the_model() -> None:
    """80 and 16 heads of 192, of which the last 64 turn, values of 128, and a window of 128 keys beside the own."""
    spec = Spec.preset("motif3", query_heads=80, key_heads=16, head_dim=192, v_head_dim=128)
    assert (spec.heads, spec.rotary_dim, spec.rotary_at, spec.out_dim, spec.window) == (64, 64, "last", 128, 129)
