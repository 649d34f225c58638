"""Grouped differential latent attention as in Motif-3, transcribed in the form that kernels decode with.

The oracle is given q, k and v of every head. This transcription never makes them: queries are multiplied into the
latent space, where one key and one value serve all heads; the difference is taken there, and values are made of it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Spec, truth
from refdiff.oracle.spec.presets import YARN
from tests.oracle.truth.by_digits import frequencies

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
