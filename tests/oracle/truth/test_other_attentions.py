"""Choices beyond the presets, each transcribed from its public formula in float64, to 1e-12."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Spec, truth
from tests.oracle.example_inputs import draw, small

Numpy = np.ndarray[Any, Any]
Inputs = dict[str, Numpy]
SAME = 1e-12


def attention_map(q: Numpy, k: Numpy, scale: float) -> Numpy:
    """softmax(scale · Q Kᵀ) of the last T of S queries: (B, T, d), (B, S, d) to (B, T, S)."""
    T, S = q.shape[1], k.shape[1]
    weights = np.exp(scale * q @ k.swapaxes(-1, -2)) * np.tri(T, S, S - T)
    return weights / weights.sum(axis=-1, keepdims=True)


def differences(
    inputs: Inputs, prepare: Callable[[Numpy, int, str], Numpy], lambdas: Sequence[float], scale: float
) -> Numpy:
    """The heads before the norm of DiffLlama: heads i and i + h are a pair, of keys and values j and j + K/2.

    Args:
        prepare: what is done to the rows of q or k at a position; its third argument says which of the two it is.
    """
    v, S = inputs["v"], inputs["k"].shape[2]
    q, k = (
        np.stack([prepare(x[:, :, n], n + S - x.shape[2], name) for n in range(x.shape[2])], axis=2)
        for name, x in (("q", inputs["q"]), ("k", inputs["k"]))
    )
    h, pairs = q.shape[1] // 2, k.shape[1] // 2
    out = []
    for i in range(h):
        j = i * pairs // h
        first, second = attention_map(q[:, i], k[:, j], scale), attention_map(q[:, i + h], k[:, j + pairs], scale)
        out.append((first - lambdas[i] * second) @ np.concatenate([v[:, j], v[:, j + pairs]], axis=-1))
    return np.stack(out, axis=1)


def of_layer(inputs: Inputs, layer: int) -> tuple[float, float]:
    """λ and λ_init of Ye et al. 2024."""
    start = 0.8 - 0.6 * math.exp(-0.3 * layer)
    one, two = (math.exp(inputs[f"lambda_q{n}"] @ inputs[f"lambda_k{n}"]) for n in "12")
    return one - two + start, start


def normed(rows: Numpy, eps: float, mean_away: bool = False) -> Numpy:
    """(x − mean) / √(variance + ε) of LayerNorm (Ba et al. 2016), or x / √(mean x² + ε) of RMSNorm."""
    rows = rows - mean_away * rows.mean(axis=-1, keepdims=True)
    return rows / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + eps)


def turn(rows: Numpy, position: int, pairs: list[tuple[int, int]], frequencies: list[float], by: float = 1.0) -> Numpy:
    out = rows.copy()
    for (a, b), f in zip(pairs, frequencies, strict=True):
        c, s = by * math.cos(position * f), by * math.sin(position * f)
        out[..., a], out[..., b] = rows[..., a] * c - rows[..., b] * s, rows[..., b] * c + rows[..., a] * s
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


def check(spec: Spec, inputs: Inputs, prepare: Callable[[Numpy, int, str], Numpy]) -> None:
    """The output of DiffLlama with queries and keys prepared in another way."""
    lambda_, start = of_layer(inputs, spec.layer)
    heads = differences(inputs, prepare, [lambda_] * spec.heads, spec.head_dim**-0.5)
    expected = (1 - start) * normed(heads, spec.norm_eps)
    assert np.allclose(truth(spec, inputs, want=("out",)).out, expected, rtol=0, atol=SAME)


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
    check(spec, draw(spec, 3, T=4, S=7), lambda rows, at, _: turn(rows, at, pairs, frequencies, by))


def usual_turn(rows: Numpy, at: int, _: str = "") -> Numpy:
    """RoPE of 6 dimensions, in halves."""
    return turn(rows, at, [(0, 3), (1, 4), (2, 5)], [1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)])


QK_NORMS = [
    {"qk_norm": "rms"},
    {"qk_norm": "layer", "qk_norm_eps": 1e-3},
    {"qk_norm": "rms", "qk_norm_weight": True, "qk_norm_eps": 0.1},
    {"qk_norm": "layer", "qk_norm_weight": True, "qk_norm_at": "after_rope"},
    {"qk_norm": "rms", "qk_norm_weight": True, "rope": "none"},
]


@pytest.mark.parametrize("fields", QK_NORMS, ids=str)
def test_norm_on_q_and_k(fields: dict[str, Any]) -> None:
    """As in Qwen3: each head of q and k is normed, with one weight for all heads of q and one for those of k."""
    spec = small("hf_diffllama", query_heads=4, key_heads=2, **fields)
    inputs = draw(spec, 4, T=4, S=6)

    def prepare(rows: Numpy, at: int, name: str) -> Numpy:
        if spec.qk_norm_at == "after_rope":
            rows = usual_turn(rows, at)
        rows = normed(rows, spec.qk_norm_eps, spec.qk_norm == "layer") * inputs.get(f"{name}_norm_weight", 1.0)
        return rows if spec.rope == "none" or spec.qk_norm_at == "after_rope" else usual_turn(rows, at)

    check(spec, inputs, prepare)


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
    heads = differences(inputs, usual_turn, [lambda_] * spec.heads, 6**-0.5)
    B, h, T, e = heads.shape
    groups = {"all_heads": 1, "half_head": 2 * h}.get(spec.norm_over, h)
    channels = np.moveaxis(heads, 1, 2).reshape(B, T, groups, h * e // groups)
    tokens = normed(channels, spec.norm_eps, spec.norm == "layer").reshape(B, T, h, e)
    expected = (1 - start) * (tokens * inputs.get("norm_weight", 1.0) + inputs.get("norm_bias", 0.0))
    assert np.allclose(truth(spec, inputs, want=("out",)).out, np.moveaxis(expected, 2, 1), rtol=0, atol=SAME)


def test_lambda_vectors_of_each_head() -> None:
    spec = small("hf_diffllama", query_heads=8, key_heads=4, lambda_per_head=True)
    inputs = draw(spec, 7, T=4, S=6)
    assert inputs["lambda_q1"].shape == (4, 6)
    of_heads = [of_layer({n: x[i] for n, x in inputs.items() if "lambda" in n}, spec.layer) for i in range(4)]
    lambdas = [lambda_ for lambda_, _ in of_heads]
    heads = differences(inputs, usual_turn, lambdas, 6**-0.5)
    found = truth(spec, inputs)
    expected = (1 - of_heads[0][1]) * normed(heads, spec.norm_eps)
    assert np.allclose(found.out, expected, rtol=0, atol=SAME)
    assert np.allclose(np.moveaxis(found.lambda_full, 1, -1), lambdas, rtol=0, atol=SAME)


GATES: dict[str, Callable[[Numpy], Numpy]] = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "linear": lambda x: x,
}


@pytest.mark.parametrize("layer", [False, True], ids=["core", "layer"])
@pytest.mark.parametrize("gate", GATES)
def test_gate_of_each_number(gate: str, layer: bool) -> None:
    """out · f(g) after norm and scale; in a layer g = x W_gateᵀ, before o_proj."""
    spec = small("ms_v1", gate=gate)
    inputs = draw(spec, 8, layer=layer, D=72)
    plain = {n: x for n, x in inputs.items() if not n.startswith("gate_")}
    if layer:
        plain["o_proj.weight"] = np.eye(spec.heads * spec.out_dim)
    without = truth(spec.replace(gate="none"), plain, want=("out",)).out
    logits = inputs["x"] @ inputs["gate_proj.weight"].T if layer else inputs["gate_logits"]
    expected = without * GATES[gate](logits)
    expected = expected @ inputs["o_proj.weight"].T if layer else expected
    assert np.allclose(truth(spec, inputs, want=("out",)).out, expected, rtol=0, atol=SAME)
