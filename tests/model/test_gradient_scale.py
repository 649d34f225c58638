"""Does 1 − λ_init give the gradients of a Transformer, as appendix G of Ye et al. 2024 says? Measured on whole models.

`layers/test_gradient_flow.py` holds eq. 7 and 9 and measures one head. Here are whole multi-head layers, and models of
4, 12 and 28 layers, beside a Llama of the same weights (λ and the norm of heads apart), at initialization. The scale is
taken away by a weight 1 / (1 − λ_init) in the norm of heads. What came out, in the gradients of the plain one:

- One layer, given its input and the gradient from above, in place 27 against place 0: with the scale those of W_Q and
  W_K are halved, without it doubled. With one head of smaller weights they stayed as they were with it: there both maps
  are nearly uniform, here they differ, and what differs does not cancel. Those of W_V and W_O are the same at every
  depth without the scale, and fall as 1 − λ_init with it.
- Whole models: all of a layer's attention together has 0.84 to 1.19 times a Llama's gradient at every depth without the
  scale: the norm alone restores it. With the scale it falls with depth, to about a half. W_Q and W_K have several times
  a Llama's in deep layers either way: what the scale takes from them, the smaller residual stream gives back.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.layers import lambda_init
from refdiff.model import diffllama_vjp, weights

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj")
KINDS = ("1 − λ_init", "no scale")
TOKENS, VOCAB, SEEDS = 64, 101, range(3)
Norms = np.ndarray
"""Of one layer's gradients, by name; behind them that of all four together."""


def models(layers: int, seed: int) -> dict[str, Any]:
    """A differential model at initialization, the same without the scale, and a Llama of their weights."""
    fields: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "max_position_embeddings": TOKENS,
        "initializer_range": 0.08,  # so that a map changes sizes as one of 0.02 does at D = 1024
    }  # fmt: skip
    config = refdiff.DiffLlamaConfig(wiring="paper", **fields)
    scaled = refdiff.DiffLlamaForCausalLM.from_config(config, seed, dtype="float64", kernels="reference")
    flat = weights.flatten(scaled.params)
    bare = {name: a / (1 - lambda_init(layer_of(name))) if "subln" in name else a for name, a in flat.items()}
    plain = {name: a for name, a in flat.items() if "subln" not in name and "lambda" not in name}

    def model(config: refdiff.DiffLlamaConfig, p: dict[str, Any]) -> Any:
        return refdiff.DiffLlamaForCausalLM(config, weights.nest(p), dtype="float64", kernels="reference")

    llama = model(refdiff.DiffLlamaConfig(wiring="none", **fields), plain)
    return {"1 − λ_init": scaled, "no scale": model(config, bare), "plain": llama}


def layer_of(name: str) -> int:
    return int(name.partition("layers.")[2].partition(".")[0])


def norms(attention: dict[str, Any]) -> Norms:
    by_name = [float(np.linalg.norm(attention[name]["weight"])) for name in NAMES]
    return np.array([*by_name, float(np.linalg.norm(by_name))])


def of_layer(model: Any, layer: int, seed: int) -> Norms:
    """Of one decoder layer as if it were number `layer`, by a random input and a random gradient from above."""
    rng = np.random.default_rng(seed)
    _, context = model._embed(np.zeros((2, TOKENS), np.int64), None, None, None, None, False)
    x, g = rng.normal(size=(2, 2, TOKENS, 64))
    p = model.base_params["layers"][layer]
    _, back = diffllama_vjp.decoder_layer(p, x, layer, context)
    return norms(back(g)[1]["self_attn"])


def of_model(model: Any, seed: int) -> Norms:
    """Of every layer, by the loss of next tokens: (layers, 5)."""
    ids = np.random.default_rng(seed).integers(0, VOCAB, size=(2, TOKENS))
    _, grads = model.loss_and_grad(ids, labels=ids)
    return np.array([norms(layer["self_attn"]) for layer in grads["model"]["layers"]])


def beside_plain(found: Iterable[dict[str, Norms]]) -> dict[str, Norms]:
    """How many times the plain one's: the geometric mean over draws, for each kind."""
    logs = [{kind: np.log(one[kind] / one["plain"]) for kind in KINDS} for one in found]
    return {kind: np.exp(np.mean([one[kind] for one in logs], axis=0)) for kind in KINDS}


@functools.cache
def drawn(layers: int) -> list[dict[str, Any]]:
    return [models(layers, seed) for seed in SEEDS]


def test_one_layer_of_many_heads() -> None:
    table = {
        layer: beside_plain(
            {kind: of_layer(model, layer, seed) for kind, model in one.items()} for seed, one in enumerate(drawn(28))
        )
        for layer in (0, 27)
    }
    (q, k, v, o, _), (bare_q, bare_k, bare_v, bare_o, _) = (table[27][kind] / table[0][kind] for kind in KINDS)
    left = (1 - lambda_init(27)) / (1 - lambda_init(0))
    for halved, doubled in ((q, bare_q), (k, bare_k)):
        assert 0.35 < halved < 0.7
        assert 1.4 < doubled < 2.6
    for fallen, same in ((v, bare_v), (o, bare_o)):
        assert abs(fallen / left - 1) < 0.2
        assert abs(same - 1) < 0.2


@pytest.mark.parametrize("layers", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (12, 28))])
def test_whole_models(layers: int) -> None:
    found = beside_plain(
        {kind: of_model(model, seed) for kind, model in one.items()} for seed, one in enumerate(drawn(layers))
    )
    scaled, bare = (found[kind] for kind in KINDS)
    assert np.all((bare[:, -1] > 0.8) & (bare[:, -1] < 1.25))
    assert np.all(scaled[layers // 2 :, -1] < 0.8)
    assert np.all(scaled[-1, 2:] < 0.8)
    assert np.all(np.minimum(scaled, bare)[layers // 2 :, :2] > 1.2)
