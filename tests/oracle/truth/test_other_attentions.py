"""Choices beyond the presets, each transcribed from its public formula: number by number, in float64, to 1e-12."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from refdiff.oracle.spec import Spec
from refdiff.oracle.truth import truth
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
