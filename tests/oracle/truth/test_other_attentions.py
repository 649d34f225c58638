"""Choices beyond the presets, each transcribed from its public formula: number by number, in float64, to 1e-12."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Spec, truth
from tests.oracle.example_inputs import draw, small

Numpy = np.ndarray[Any, Any]
Row = list[float]
SAME = 1e-12


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def attend(query: Row, keys: list[Row], values: list[Row], scale: float) -> Row:
    """softmax(scale · query Kᵀ) V of one query."""
    weights = [math.exp(scale * dot(query, key)) for key in keys]
    return [math.fsum(w * v[c] for w, v in zip(weights, values, strict=True)) / math.fsum(weights)
            for c in range(len(values[0]))]  # fmt: skip


def differences(
    inputs: dict[str, Numpy], prepare: Callable[[Row, int, str], Row], lambdas: Sequence[float], scale: float
) -> Numpy:
    """The heads before the norm of DiffLlama: heads i and i + h are a pair, of keys and values j and j + K/2.

    Args:
        prepare: what is done to a row of q or k at a position; its third argument says which of the two it is.
    """
    q, k, v = inputs["q"].tolist(), inputs["k"].tolist(), inputs["v"].tolist()
    h, pairs, T, S = len(q[0]) // 2, len(k[0]) // 2, len(q[0][0]), len(k[0][0])
    out = np.empty((len(q), h, T, 2 * len(v[0][0][0])))
    for b in range(len(q)):
        for i in range(h):
            j = i * pairs // h
            values = [v[b][j][s] + v[b][j + pairs][s] for s in range(S)]
            for t in range(T):
                seen = t + S - T + 1
                first, second = (
                    attend(prepare(q[b][row][t], t + S - T, "q"),
                           [prepare(k[b][key][s], s, "k") for s in range(seen)], values[:seen], scale)
                    for row, key in ((i, j), (i + h, j + pairs))
                )  # fmt: skip
                out[b, i, t] = [x - lambdas[i] * y for x, y in zip(first, second, strict=True)]
    return out


def of_layer(inputs: dict[str, Numpy], layer: int) -> tuple[float, float]:
    """λ and λ_init of Ye et al. 2024."""
    start = 0.8 - 0.6 * math.exp(-0.3 * layer)
    one, two = (math.exp(dot(inputs[f"lambda_q{n}"].tolist(), inputs[f"lambda_k{n}"].tolist())) for n in "12")
    return one - two + start, start


def rms_rows(heads: Numpy, eps: float, by: float) -> Numpy:
    """by · x / √(mean x² + ε) of each head."""
    out = np.empty_like(heads)
    for at in np.ndindex(heads.shape[:3]):
        row = heads[at].tolist()
        root = math.sqrt(dot(row, row) / len(row) + eps)
        out[at] = [by * x / root for x in row]
    return out


def normed_row(row: Row, weight: Sequence[float] | None, eps: float, mean_away: bool) -> Row:
    """(x − mean) / √(variance + ε) · w of LayerNorm (Ba et al. 2016), or x / √(mean x² + ε) · w of RMSNorm."""
    mean = math.fsum(row) / len(row) if mean_away else 0.0
    root = math.sqrt(math.fsum((x - mean) ** 2 for x in row) / len(row) + eps)
    return [(x - mean) / root * w for x, w in zip(row, weight or [1.0] * len(row), strict=True)]


def turn(row: Row, position: int, pairs: list[tuple[int, int]], frequencies: list[float], by: float = 1.0) -> Row:
    out = list(row)
    for (a, b), f in zip(pairs, frequencies, strict=True):
        c, s = by * math.cos(position * f), by * math.sin(position * f)
        out[a], out[b] = row[a] * c - row[b] * s, row[b] * c + row[a] * s
    return out


def yarn(r: int, base: float, factor: float, original: int) -> list[float]:
    """Peng et al. 2023, section 3.2, with the borders of the ramp in whole dimensions, as everybody has them."""
    low, high = (r * math.log(original / (n * 2 * math.pi)) / (2 * math.log(base)) for n in (32, 1))
    first, last = max(math.floor(low), 0), min(math.ceil(high), r - 1)
    found = []
    for i in range(r // 2):
        kept = 1 - min(max((i - first) / (last - first), 0.0), 1.0)
        plain = 1.0 / base ** (2 * i / r)
        found.append(kept * plain + (1 - kept) * plain / factor)
    return found


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
ROTATIONS: list[tuple[dict[str, Any], list[tuple[int, int]], list[float], float]] = [
    ({"partial_rotary_factor": 0.5}, [(0, 2), (1, 3)], [1.0, 1e-2], 1.0),
    ({"partial_rotary_factor": 0.5, "rotary_at": "last"}, [(4, 6), (5, 7)], [1.0, 1e-2], 1.0),
    ({"partial_rotary_factor": 0.3, "rope": "interleaved"}, [(0, 1)], [1.0], 1.0),
    ({"rope": "interleaved", "partial_rotary_factor": 0.75, "rotary_at": "last", "rope_theta": 300.0},
     [(2, 3), (4, 5), (6, 7)], [300.0 ** (-i / 3) for i in range(3)], 1.0),
    ({"rope_parameters": {"frequencies": [0.9, 0.3, 0.2, 0.0]}}, [(i, i + 4) for i in range(4)], [0.9, 0.3, 0.2, 0.0],
     1.0),
    ({"rope_parameters": {"frequencies": [0.5], "attention_factor": 1.3}, "partial_rotary_factor": 0.25}, [(0, 1)],
     [0.5], 1.3),
    ({"rope_parameters": YARN}, [(i, i + 4) for i in range(4)], yarn(8, 1e4, 8.0, 64), 0.1 * math.log(8) + 1),
    ({"rope_parameters": {**YARN, "attention_factor": 1.0}, "partial_rotary_factor": 0.5, "rotary_at": "last"},
     [(4, 6), (5, 7)], yarn(4, 1e4, 8.0, 64), 1.0),
]  # fmt: skip
"""Fields; which dimensions of 8 turn together; how fast; and what cos and sin are multiplied by."""


@pytest.mark.parametrize(("fields", "pairs", "frequencies", "by"), ROTATIONS, ids=lambda x: str(x)[:70])
def test_rotations(fields: dict[str, Any], pairs: list[tuple[int, int]], frequencies: list[float], by: float) -> None:
    spec = small("hf_diffllama", query_heads=4, key_heads=2, head_dim=8, **fields)
    inputs = draw(spec, 3, T=4, S=7)
    lambda_, start = of_layer(inputs, spec.layer)
    heads = differences(
        inputs, lambda row, at, _: turn(row, at, pairs, frequencies, by), [lambda_] * spec.heads, 8**-0.5
    )
    expected = rms_rows(heads, spec.norm_eps, 1 - start)
    assert np.allclose(truth(spec, inputs, want=("out",)).out, expected, rtol=0, atol=SAME)
    assert spec.rotary_dim == 2 * len(pairs)


def test_a_spec_with_frequencies_is_a_key_and_an_object_of_json() -> None:
    spec = Spec(query_heads=4, key_heads=2, head_dim=8, rope_parameters={"frequencies": [1, 0.5, 0.25, 0.1]})
    assert spec == Spec(**spec.to_dict())
    assert len({spec, Spec(**spec.to_dict()), spec.replace(rope_parameters=None)}) == 2


HALVES = [(0, 3), (1, 4), (2, 5)]
PLAIN = [1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)]
QK_NORMS = [
    {"qk_norm": "rms"},
    {"qk_norm": "layer", "qk_norm_eps": 1e-3},
    {"qk_norm": "rms", "qk_norm_weight": True, "qk_norm_eps": 0.1},
    {"qk_norm": "layer", "qk_norm_weight": True, "qk_norm_at": "after_rope"},
    {"qk_norm": "rms", "qk_norm_weight": True, "rope": "none"},
]


@pytest.mark.parametrize("fields", QK_NORMS, ids=str)
def test_norm_of_queries_and_keys(fields: dict[str, Any]) -> None:
    """As in Qwen3: each head of q and k is normed, with one weight for all heads of q and one for those of k."""
    spec = small("hf_diffllama", query_heads=4, key_heads=2, **fields)
    inputs = draw(spec, 4, T=4, S=6)

    def prepare(row: Row, at: int, name: str) -> Row:
        weight = inputs[f"{name}_norm_weight"].tolist() if spec.qk_norm_weight else None
        if spec.qk_norm_at == "after_rope":
            row = turn(row, at, HALVES, PLAIN)
        row = normed_row(row, weight, spec.qk_norm_eps, spec.qk_norm == "layer")
        return row if "none" in fields.values() or spec.qk_norm_at == "after_rope" else turn(row, at, HALVES, PLAIN)

    lambda_, start = of_layer(inputs, spec.layer)
    heads = differences(inputs, prepare, [lambda_] * spec.heads, 6**-0.5)
    expected = rms_rows(heads, spec.norm_eps, 1 - start)
    assert np.allclose(truth(spec, inputs, want=("out",)).out, expected, rtol=0, atol=SAME)


NORMS: list[dict[str, Any]] = [
    {"norm": "layer"},
    {"norm": "layer", "norm_weight": True, "norm_bias": True},
    {"norm": "layer", "norm_weight": True, "norm_bias": True, "norm_per_head": True},
    {"norm": "layer", "norm_over": "all_heads", "norm_weight": True, "norm_bias": True, "norm_per_head": True},
    {"norm": "rms", "norm_over": "all_heads", "norm_weight": True, "norm_per_head": True},
    {"norm": "rms", "norm_weight": True, "norm_bias": True},
    {"norm": "layer", "norm_over": "half_head", "norm_eps": 0.2},
]


@pytest.mark.parametrize("fields", NORMS, ids=str)
def test_norms_after_the_difference(fields: dict[str, Any]) -> None:
    """GroupNorm (Wu and He 2018): the numbers of a token in groups of a head, or in one; weights by channel."""
    spec = small("hf_diffllama", query_heads=4, key_heads=2, **fields)
    inputs = draw(spec, 5, T=4, S=6)
    lambda_, start = of_layer(inputs, spec.layer)
    heads = differences(inputs, lambda row, at, _: turn(row, at, HALVES, PLAIN), [lambda_] * spec.heads, 6**-0.5)
    B, h, T, e = heads.shape
    groups = {"all_heads": 1, "half_head": 2 * h}.get(spec.norm_over, h)
    expected = np.empty_like(heads)
    for b, t in np.ndindex(B, T):
        channels = [x for i in range(h) for x in heads[b, i, t].tolist()]
        size = len(channels) // groups
        parts = [channels[g * size : (g + 1) * size] for g in range(groups)]
        channels = [x for part in parts for x in normed_row(part, None, spec.norm_eps, spec.norm == "layer")]
        for c, x in enumerate(channels):
            at = (c // e, c % e) if spec.norm_per_head else (c % e,)
            weight = inputs["norm_weight"][at] if spec.norm_weight else 1.0
            bias = inputs["norm_bias"][at] if spec.norm_bias else 0.0
            expected[b, c // e, t, c % e] = (1 - start) * (x * weight + bias)
    assert np.allclose(truth(spec, inputs, want=("out",)).out, expected, rtol=0, atol=SAME)


def test_group_norm_is_that_of_torch() -> None:
    """`nn.GroupNorm(h, h e)` of each token."""
    torch = pytest.importorskip("torch")
    spec = small("hf_diffllama", norm="layer", norm_weight=True, norm_bias=True, norm_per_head=True, out_scale="none")
    inputs = draw(spec, 6)
    found = truth(spec, inputs, want=("out", "diff"))
    B, h, T, e = found.diff.shape
    module = torch.nn.GroupNorm(h, h * e, eps=spec.norm_eps, dtype=torch.float64)
    module.weight.data, module.bias.data = (torch.tensor(inputs[n].ravel()) for n in ("norm_weight", "norm_bias"))
    rows = torch.tensor(np.moveaxis(found.diff, 1, 2).reshape(B * T, h * e))
    expected = np.moveaxis(module(rows).detach().numpy().reshape(B, T, h, e), 2, 1)
    assert np.allclose(found.out, expected, rtol=0, atol=SAME)


def test_lambda_vectors_of_each_head() -> None:
    spec = small("hf_diffllama", query_heads=8, key_heads=4, lambda_per_head=True)
    inputs = draw(spec, 7, T=4, S=6)
    assert inputs["lambda_q1"].shape == (4, 6)
    of_heads = [of_layer({n: x[i] for n, x in inputs.items() if "lambda" in n}, spec.layer) for i in range(4)]
    heads = differences(
        inputs, lambda row, at, _: turn(row, at, HALVES, PLAIN), [lambda_ for lambda_, _ in of_heads], 6**-0.5
    )
    found = truth(spec, inputs)
    expected = rms_rows(heads, spec.norm_eps, 1 - of_heads[0][1])
    assert np.allclose(found.out, expected, rtol=0, atol=SAME)
    for i, (lambda_, _) in enumerate(of_heads):
        assert np.allclose(found.lambda_full[:, i], lambda_, rtol=0, atol=SAME)


GATES: dict[str, Callable[[float], float]] = {
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "linear": lambda x: x,
}


@pytest.mark.parametrize("layer", [False, True], ids=["core", "layer"])
@pytest.mark.parametrize("gate", GATES)
def test_gate_of_each_number(gate: str, layer: bool) -> None:
    """out · f(g) after norm and scale; in a layer g = x W_gateᵀ, before o_proj."""
    spec = small("ms_v1", gate=gate)
    inputs = draw(spec, 8, layer=layer, D=72)
    plain = {n: x for n, x in inputs.items() if not n.startswith("gate_")}
    if not layer:
        without = truth(spec.replace(gate="none"), plain, want=("out",)).out
        expected = [x * GATES[gate](g) for x, g in zip(without.flat, inputs["gate_logits"].flat, strict=True)]
        assert np.allclose(truth(spec, inputs, want=("out",)).out.ravel(), expected, rtol=0, atol=SAME)
        return
    whole = np.eye(spec.heads * spec.out_dim)
    heads = truth(spec.replace(gate="none"), {**plain, "o_proj.weight": whole}, want=("out",)).out
    logits = inputs["x"] @ inputs["gate_proj.weight"].T
    gated = heads * np.vectorize(GATES[gate])(logits)
    expected = gated @ inputs["o_proj.weight"].T
    assert np.allclose(truth(spec, inputs, want=("out",)).out, expected, rtol=0, atol=SAME)
