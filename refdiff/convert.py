"""The same function in another wiring: `convert` rearranges the weights, `prove` computes both and compares.

hf ↔ paper    the heads of q, k and v change places (pairs i, i + H/2 against 2i, 2i + 1), and the rows of each q and k
              head with them (RoPE in halves against interleaved); the columns of o_proj stay, being ordered by pairs in
              both. The weight w of unilm's norm goes into o_proj: W_O (w ⊙ y) = (W_O diag w) y; coming from hf it is 1.
              Where the model's ε differs from unilm's 1e-5, v_proj is scaled by s: RMSNorm(s c; ε) = RMSNorm(c; ε/s²).
none → v2     both queries of a pair become the Llama's one, and W_λ = 0: softmax − σ(0) softmax = softmax / 2, which
              W_O, doubled, makes whole again.
v2 → none     where W_λ = 0: λ is 1/2 everywhere, and W_O (A₁ − A₂/2) V = [W_O, −W_O/2] [A₁ V; A₂ V] is plain attention
              with twice the heads, or with as many where the two queries of each pair are equal.

The rest has no exact answer, and is refused. From a Llama to v1 (hf, paper) it is not λ that is in the way: λ_q1 = 0
and λ_q2 · λ_k2 = log(1 + λ_init) make it 0. (Zero weights for the second map would not: they make its scores equal,
which is uniform attention, not none.) It is the norm after attention, which divides each token's head by its own size,
and no weights undo that exactly. (Values scaled down until their squares vanish beside ε, and W_O scaled up as much,
come as near as rounding: RMSNorm(s c) → s c / √ε. Such weights leave float16 and cannot be trained on, so that is not a
conversion to give away.) For the same reason v1 becomes neither v2 nor a Llama.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import to_numpy
from refdiff.backends import ops_for
from refdiff.layers.diff_heads_paper import SUBLN_EPS
from refdiff.layers.rope_frequencies import rope_frequencies
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.config_checks import MODEL_TYPES
from refdiff.model.diffllama import Context, self_attention
from refdiff.model.weights import flatten

Params = dict[str, Any]
FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Proof:
    """How far two models' attention layers are apart on random inputs, computed in float64.

    Attributes:
        differences: for each layer, the largest difference, as a share of the layer's largest output: 0 where both
            give zeros alone, infinite where only one does, or where one gives NaN or infinity.
        changed: the names of weights outside of attention that are not the same.
    """

    differences: tuple[float, ...]
    changed: tuple[str, ...] = ()

    @property
    def worst(self) -> float:
        """The largest of the differences; NaN where one is."""
        return float(np.max(self.differences))

    @property
    def layer(self) -> int:
        """The layer that has it, counted from 0."""
        return int(np.argmax(self.differences))

    def __str__(self) -> str:
        others = f"not the same are {', '.join(self.changed)}" if self.changed else "the other weights are the same"
        return (
            f"{len(self.differences)} attention layers in both wirings, in float64, on random inputs: they differ by "
            f"at most {self.worst:.1e} of the largest output (layer {self.layer}); {others}"
        )


def convert(
    config: DiffLlamaConfig, params: Mapping[str, Any], wiring: str, *, eager: bool = False
) -> tuple[DiffLlamaConfig, Params]:
    """Rearrange a model's weights so that another wiring computes the same function.

    Args:
        config: what the weights belong to; its `wiring` is where they come from.
        params: the nested weight dict of any of the five classes, on any backend; it is not changed, and the result
            shares with it what needs no change. What does comes as NumPy arrays.
        wiring: "hf", "paper", "v2" or "none".
        eager: the weights, in the wiring "paper", were trained with unilm's `multihead_diffattn.py`, not a flash file.

    Returns:
        the config and the weights of the new model.

    Raises:
        ValueError: there is no exact answer; the message says why.
    """
    if wiring not in MODEL_TYPES:
        raise ValueError(f"wiring is {wiring!r}, but must be one of {', '.join(MODEL_TYPES)}")
    _refuse_eager(config, eager)
    step = config.wiring, wiring
    if config.wiring == wiring:
        return copy.deepcopy(config), dict(params)
    if step not in _STEPS:
        raise ValueError(
            f"there is no exact conversion from wiring {step[0]!r} to {step[1]!r}: the norm after attention divides "
            "each token's head by its own size, which no weights can do or undo"
            + ("; weights of 0 for the second map make it uniform attention, not none" if step[0] == "none" else "")
        )
    new = copy.deepcopy(config)
    new.wiring = wiring
    layers = layers_of(params)
    if step == ("v2", "none") and not _tied(layers, config):
        new.num_attention_heads = 2 * config.num_attention_heads
    change = _STEPS[step]
    converted = [{**layer, "self_attn": change(layer["self_attn"], config, new)} for layer in layers]
    return new, _with_layers(params, converted)


def prove(
    before: tuple[DiffLlamaConfig, Mapping[str, Any]], after: tuple[DiffLlamaConfig, Mapping[str, Any]], seed: int = 0
) -> Proof:
    """Compute every attention layer of two models on the same random inputs, in float64, and compare the outputs.

    All other weights are compared as they are.

    One layer at a time, so that a model of any size needs the memory of a layer. Some of the inputs are so small that
    the ε of the norm matters.
    """
    inputs = np.random.default_rng(seed).normal(size=(3, 9, before[0].hidden_size))
    inputs[2] *= 1e-3
    differences = []
    for layer, (one, other) in enumerate(zip(layers_of(before[1]), layers_of(after[1]), strict=True)):
        a = _attention(before[0], one["self_attn"], layer, inputs)
        b = _attention(after[0], other["self_attn"], layer, inputs)
        differences.append(_apart(a, b))
    return Proof(tuple(differences), _changed(before[1], after[1]))


def _apart(a: FloatArray, b: FloatArray) -> float:
    size, other = (float(np.abs(x).max()) for x in (a, b))
    if not (math.isfinite(size) and math.isfinite(other)) or (size == 0) != (other == 0):
        return math.inf
    return float(np.abs(a - b).max()) / size if size else 0.0


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the weights outside of attention that only one has, or that differ."""
    one, other = (
        {name: a for name, a in flatten(params).items() if ".self_attn." not in name} for params in (before, after)
    )
    return tuple(
        name
        for name in {**one, **other}
        if name not in one
        or name not in other
        or not (one[name] is other[name] or np.array_equal(to_numpy(one[name]), to_numpy(other[name]), equal_nan=True))
    )


def _attention(config: DiffLlamaConfig, p: Params, layer: int, x: FloatArray) -> FloatArray:
    ops = ops_for()
    T = x.shape[1]
    frequencies = ops.rope_frequencies(config.rope_parameters, config.head_dim, config.max_position_embeddings, T)
    cos, sin = ops.rope_cos_sin(np.arange(T)[None], *frequencies, np.float64)
    p = _map(lambda a: to_numpy(a).astype(np.float64), p)
    with np.errstate(all="ignore"):  # what is not finite shows in the result
        result: FloatArray = self_attention(p, x, layer, Context(config, ops, cos, sin))
    return result


def _refuse_eager(config: DiffLlamaConfig, eager: bool) -> None:
    if not eager:
        return
    if config.wiring != "paper":
        raise ValueError(f'eager is for weights in the wiring "paper", but these are in {config.wiring!r}')
    H, K = config.num_attention_heads, config.num_key_value_heads
    if H != K:
        raise ValueError(
            f"unilm's multihead_diffattn.py repeats {K} key heads to {H} before it pairs them, so that both maps of a "
            "pair may read the same key. No wiring does that with the same number of keys; with the heads of k_proj "
            f"and of v_proj, whose are {2 * config.head_dim} wide, repeated in the weights, so that "
            f"num_key_value_heads is {H}, they can be converted"
        )


def _hf_to_paper(p: Params, old: DiffLlamaConfig, new: DiffLlamaConfig) -> Params:
    paired = _move_heads(p, old, inverse=False)
    paired["v_proj"] = _scaled(paired["v_proj"], _size_for_epsilon(SUBLN_EPS, old.rms_norm_eps))
    dtype = to_numpy(p["o_proj"]["weight"]).dtype
    return {**paired, "subln": {"weight": np.ones(2 * old.head_dim, dtype=dtype)}}


def _paper_to_hf(p: Params, old: DiffLlamaConfig, new: DiffLlamaConfig) -> Params:
    paired = _move_heads(p, old, inverse=True)
    paired["v_proj"] = _scaled(paired["v_proj"], _size_for_epsilon(old.rms_norm_eps, SUBLN_EPS))
    folded = to_numpy(p["o_proj"]["weight"]) * np.tile(to_numpy(p["subln"]["weight"]), old.num_attention_heads // 2)
    paired["o_proj"] = {**p["o_proj"], "weight": folded}
    del paired["subln"]
    return paired


def _none_to_v2(p: Params, old: DiffLlamaConfig, new: DiffLlamaConfig) -> Params:
    H, K, turned = old.num_attention_heads, old.num_key_value_heads, _interleaved(old)
    weight = to_numpy(p["o_proj"]["weight"])
    return {
        **p,
        "q_proj": _rows(p["q_proj"], np.repeat(np.arange(H), 2), turned),
        "k_proj": _rows(p["k_proj"], np.arange(K), turned),
        "o_proj": {**p["o_proj"], "weight": 2 * weight},
        "lambda_proj": {"weight": np.zeros((H, old.hidden_size), dtype=weight.dtype)},
    }


def _v2_to_none(p: Params, old: DiffLlamaConfig, new: DiffLlamaConfig) -> Params:
    if np.any(to_numpy(p["lambda_proj"]["weight"])):
        raise ValueError(
            "there is no exact conversion from wiring 'v2' to 'none' where λ depends on the token: lambda_proj.weight "
            "is not 0, and a Llama's output projection is the same for every token"
        )
    h, K, halves = old.num_attention_heads, old.num_key_value_heads, np.argsort(_interleaved(old))
    tied = new.num_attention_heads == h
    columns = to_numpy(p["o_proj"]["weight"]).reshape(-1, h, 1, old.head_dim)
    share = [0.5] if tied else [1.0, -0.5]  # of the heads that a pair becomes
    weight = (columns * np.asarray(share, dtype=columns.dtype)[:, None]).reshape(old.hidden_size, -1)
    return {
        **{name: value for name, value in p.items() if name != "lambda_proj"},
        "q_proj": _rows(p["q_proj"], np.arange(0, 2 * h, 2 if tied else 1), halves),
        "k_proj": _rows(p["k_proj"], np.arange(K), halves),
        "o_proj": {**p["o_proj"], "weight": weight},
    }


_STEPS: dict[tuple[str, str], Callable[[Params, DiffLlamaConfig, DiffLlamaConfig], Params]] = {
    ("hf", "paper"): _hf_to_paper,
    ("paper", "hf"): _paper_to_hf,
    ("none", "v2"): _none_to_v2,
    ("v2", "none"): _v2_to_none,
}


def _move_heads(p: Params, config: DiffLlamaConfig, *, inverse: bool) -> Params:
    """Put heads i and i + n/2 of q, k and v at 2i and 2i + 1, and RoPE's halves at odds and evens; or back."""
    turned, straight = _interleaved(config), np.arange(config.head_dim)
    moved = dict(p)
    for name, heads, dims in (
        ("q_proj", config.num_attention_heads, turned),
        ("k_proj", config.num_key_value_heads, turned),
        ("v_proj", config.num_key_value_heads, straight),
    ):
        order = np.arange(heads).reshape(2, heads // 2).T.reshape(-1)
        moved[name] = _rows(p[name], np.argsort(order), np.argsort(dims)) if inverse else _rows(p[name], order, dims)
    return moved


def _interleaved(config: DiffLlamaConfig) -> IntArray:
    """Where each dimension of an interleaved head stands in one of halves; dimensions that do not turn stay."""
    frequencies, _ = rope_frequencies(config.rope_parameters, config.head_dim, config.max_position_embeddings)
    n = len(frequencies)
    return np.concatenate([np.arange(2 * n).reshape(2, n).T.reshape(-1), np.arange(2 * n, config.head_dim)])


def _rows(linear: Params, heads: IntArray, dims: IntArray) -> Params:
    """Take the rows of the given heads, and in each head the rows of the given dimensions, of weight and bias."""
    rows = (heads[:, None] * len(dims) + dims).reshape(-1)
    return {name: to_numpy(array)[rows] for name, array in linear.items()}


def _scaled(linear: Params, size: float) -> Params:
    return linear if size == 1 else {name: array * array.dtype.type(size) for name, array in linear.items()}


def _size_for_epsilon(target: float, source: float) -> float:
    """The factor that makes a norm with ε = target of scaled values what a norm with ε = source was of the values."""
    if target == source:
        return 1.0
    if min(target, source) == 0:
        raise ValueError(
            f"there is no exact conversion between a norm with ε = {source} and one with ε = {target}: any two others "
            "differ by the size of the values, but 0 by an infinite one. Is rms_norm_eps right?"
        )
    return math.sqrt(target / source)


def _tied(layers: list[Params], config: DiffLlamaConfig) -> bool:
    """Say whether the two queries of every pair are one and the same."""
    pairs = (
        to_numpy(array).reshape(config.num_attention_heads, 2, config.head_dim, -1)
        for layer in layers
        for array in layer["self_attn"]["q_proj"].values()
    )
    return all(np.array_equal(pair[:, 0], pair[:, 1]) for pair in pairs)


def layers_of(params: Mapping[str, Any]) -> list[Params]:
    """The decoder layers, which stand under `model`, under `transformer`, or on top."""
    base = params.get("model") or params.get("transformer") or params
    layers: list[Params] = base["layers"]
    return layers


def _with_layers(params: Mapping[str, Any], layers: list[Params]) -> Params:
    for prefix in ("model", "transformer"):
        if prefix in params:
            return {**params, prefix: {**params[prefix], "layers": layers}}
    return {**params, "layers": layers}


def _map(function: Callable[[Any], Any], nested: Any) -> Any:
    return (
        {key: _map(function, value) for key, value in nested.items()} if isinstance(nested, dict) else function(nested)
    )
