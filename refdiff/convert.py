"""Conversion between attention variants: `convert` rearranges the weights, `prove` compares the two models.

hf ↔ paper    Reorder the heads of q, k and v (pairs i, i + H/2 against 2i, 2i + 1), and the rows within each q and k
              head (RoPE in halves against interleaved). The columns of o_proj stay: both order them by pairs. The
              weight w of unilm's norm goes into o_proj: W_O (w ⊙ y) = (W_O diag w) y; converted from hf it is 1. If the
              model's ε differs from unilm's 1e-5, v_proj is scaled by s: RMSNorm(s c; ε) = RMSNorm(c; ε/s²).
plain → v2    Both queries of a pair are the Llama's query, and W_λ = 0. Then softmax − σ(0) softmax = softmax / 2, and
              W_O is doubled.
v2 → plain    If W_λ = 0, λ is 1/2 everywhere, and W_O (A₁ − A₂/2) V = [W_O, −W_O/2] [A₁ V; A₂ V] is plain attention
              with twice the heads, or with as many heads if the two queries of each pair are equal.

"Exact" means in float64. Weights in 16 bits are rounded again where they are multiplied; `prove` reports by how much.
In memory all variants call the last projection o_proj; in files of paper it is out_proj, as in unilm's module.

All other pairs have no exact conversion and are refused. Between v1 (hf, paper) and a Llama or v2, λ is no obstacle:
λ_q1 = 0 and λ_q2 · λ_k2 = log(1 + λ_init) make it 0. The obstacle is the norm after attention: it divides each token's
head by its own size, which no weights undo exactly. Values scaled down until their squares vanish beside ε, and W_O
scaled up as much, agree up to rounding error (RMSNorm(s c) → s c / √ε), but overflow float16 and cannot be trained.
Zero weights for the second map do not help either: they make its scores equal, which is uniform attention.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Deferred, to_numpy
from refdiff.backends import ops_for
from refdiff.messages import show_value
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.diffllama import Context, attention
from refdiff.model.variants import VARIANTS, conversions, current_name, refusal
from refdiff.model.weights import attention_shapes, flatten, nest
from refdiff.model.weights.precision import UNIT, round_to

__all__ = ["Proof", "convert", "convert_later", "prove"]

Params = dict[str, Any]
Model = tuple[DiffLlamaConfig, Mapping[str, Any]]
FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]

SAME_IN_BOTH = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "hidden_act",
    "max_position_embeddings", "rope_parameters", "rms_norm_eps", "tie_word_embeddings", "pad_token_id", "num_labels",
)  # fmt: skip
"""The config fields that decide what a model computes. A conversion may change the others: those for the layout of
attention's weights (variant, number of heads, bias). `rms_norm_eps` is the ε of all norms outside of attention."""

TOKENS = 9
EXACT = 1e-10
"""The largest error that some hundred roundings in float64 explain, as a share of a layer's largest output."""
ROUNDINGS = 8
"""The largest accepted difference, in units of what one rounding of every weight changes. Rounding changes each weight
by at most as much, but with other signs, which seldom double the difference. Mistakes are as large as the output."""


def convert(
    config: DiffLlamaConfig, params: Mapping[str, Any], variant: str, *, eager: bool = False
) -> tuple[DiffLlamaConfig, Params]:
    """Rearrange a model's weights so that another attention variant computes the same function.

    The result has the dtype of the weights: multiplied weights (see `refdiff.convert`) are rounded again in 16 bits.

    Args:
        config: the config of the weights; its `variant` is the variant to convert from.
        params: the weights as in `model.params`, of any backend. They are not changed. The result shares arrays that
            stay the same; all others are NumPy arrays.
        variant: the variant to convert to, by the name that it has in `DiffLlamaConfig.variant`.
        eager: the weights, in the variant "paper", were trained with unilm's `multihead_diffattn.py`.

    Returns:
        the config and the weights of the new model.

    Raises:
        ValueError: there is no exact conversion; the message has the reason. Or the weights are not those of `config`.
    """
    new, change = _plan(config, params, variant, eager)
    if change is None:
        return new, dict(params)
    layers = [
        {**layer, "self_attn": change(_attention_of(config, params, i))} for i, layer in enumerate(_layers_of(params))
    ]
    return new, _replace_layers(params, layers)


def convert_later(
    config: DiffLlamaConfig, params: Mapping[str, Any], variant: str, *, eager: bool = False
) -> tuple[DiffLlamaConfig, Params]:
    """Convert as `convert` does, but compute the attention of a layer, in float64, when it is read.

    With weights of `load(…, deferred=True)`, a model of any size can be converted with the memory of a layer. The
    weights of attention in the result are `refdiff.arrays.Deferred`.

    Raises:
        ValueError: as `convert`; problems of a layer's numbers are raised when that layer is read.
    """
    new, change = _plan(config, params, variant, eager)
    if change is None:
        return new, dict(params)
    step, shapes = change, attention_shapes(new)
    for i in range(len(_layers_of(params))):
        _attention_of(config, params, i)

    @lru_cache(maxsize=1)
    def converted(i: int) -> dict[str, NDArray[Any]]:
        wide = {k: to_numpy(a).astype(np.float64) for k, a in flatten(_attention_of(config, params, i)).items()}
        return flatten(step(nest(wide)))

    def deferred(i: int) -> Params:
        def read(name: str) -> NDArray[Any]:
            return converted(i)[name]

        return nest({k: Deferred(shape, np.dtype(np.float64), partial(read, k)) for k, shape in shapes.items()})

    return new, _replace_layers(
        params, [{**layer, "self_attn": deferred(i)} for i, layer in enumerate(_layers_of(params))]
    )


def _plan(
    config: DiffLlamaConfig, params: Mapping[str, Any], variant: str, eager: bool
) -> tuple[DiffLlamaConfig, Callable[[Params], Params] | None]:
    """Return the new model's config, and the function that converts a layer's attention; None if it stays the same."""
    variant = current_name(variant)
    if variant not in VARIANTS:
        raise ValueError(f"variant: got {variant!r}, expected one of {', '.join(VARIANTS)}")
    _refuse_eager(config, eager)
    new = copy.deepcopy(config)
    if config.variant == variant:
        return new, None
    known = conversions(config.variant)
    if variant not in known:
        reason = refusal(config.variant, variant) or _UNKNOWN
        others = f"; it converts to {', '.join(known)}" if known else ""
        raise ValueError(f"cannot convert variant {config.variant!r} to {variant!r} exactly: {reason}{others}")
    new.variant, conversion = variant, known[variant]
    layers = [_attention_of(config, params, i) for i in range(len(_layers_of(params)))]
    vars(new).update(conversion.fields(config, layers))
    return new, lambda p: conversion.weights(p, config, new)


def _refuse_eager(config: DiffLlamaConfig, eager: bool) -> None:
    if not eager:
        return
    if config.variant != "paper":
        raise ValueError(f'eager: got weights in the variant {config.variant!r}, expected "paper"')
    H, K = config.num_attention_heads, config.num_key_value_heads
    if H != K:
        raise ValueError(
            f"unilm's multihead_diffattn.py repeats {K} key heads to {H} before it pairs them, so that both maps of a "
            f"pair may read the same key. No variant does that with {K} key heads. Repeat the heads of k_proj and "
            f"those of v_proj, which are {2 * config.head_dim} wide, in the weights: with num_key_value_heads {H} they "
            "can be converted"
        )


def _replace_layers(params: Mapping[str, Any], layers: list[Params]) -> Params:
    for prefix in ("model", "transformer"):
        if prefix in params:
            return {**params, prefix: {**params[prefix], "layers": layers}}
    return {**params, "layers": layers}


@dataclass(frozen=True)
class Proof:
    """The difference of two models' attention layers on random inputs, computed in float64.

    Attributes:
        differences: for each layer, the largest difference, as a share of the layer's largest output: 0 if both results
            are all zeros, infinite if only one is, or if one has NaN or infinity.
        changed: the names of weights outside of attention that differ.
        rounded: for each layer, the same measure if every weight of the first model changes by the largest rounding
            error of the stored type, up or down at random; 0 where nothing is rounded.
    """

    differences: tuple[float, ...]
    changed: tuple[str, ...] = ()
    rounded: tuple[float, ...] = ()

    @property
    def worst(self) -> float:
        """The largest of the differences; NaN where one is."""
        return float(np.max(self.differences))

    @property
    def layer(self) -> int:
        """The layer with the largest difference, counted from 0."""
        return int(np.argmax(self.differences))

    @property
    def unexplained(self) -> int | None:
        """The first layer whose difference exceeds rounding error, counted from 0, or None.

        The limit is `EXACT`, and `ROUNDINGS` times what one rounding of every weight changes.
        """
        rounded = self.rounded or (0.0,) * len(self.differences)
        return next(
            (
                i
                for i, (difference, one) in enumerate(zip(self.differences, rounded, strict=True))
                if not difference <= EXACT + ROUNDINGS * one
            ),
            None,
        )

    def __str__(self) -> str:
        count = len(self.differences)
        return (
            f"{count} attention layer{'s' * (count != 1)} compared in float64 on random inputs\n"
            f"  largest difference: {self.worst:.1e} of the largest output (layer {self.layer})\n"
            f"  other weights: {', '.join(self.changed) + ' changed' if self.changed else 'unchanged'}"
        )


def prove(before: Model, after: Model, seed: int = 0, *, dtype: str | None = None) -> Proof:
    """Compute every attention layer of two models on the same random inputs, in float64, and compare the outputs.

    All other weights must be equal, and so must the fields of the configs that decide what is computed from them. The
    positions go from 0 to the last of `max_position_embeddings`, and some inputs are so small that the ε of the norm
    matters.

    Beside the weights, which may be `refdiff.arrays.Deferred`, this needs the memory of a few copies of one layer's
    attention in float64.

    Args:
        before: the config and the weights of one model.
        after: those of the other.
        seed: the seed of the inputs.
        dtype: the type to which all weights of the second model are rounded. Those outside of attention are compared
            after rounding, and `Proof.rounded` has the effect of rounding on attention.

    Raises:
        ValueError: the configs describe different functions, or weights are not those of their config.
    """
    _refuse_another_function(before[0], after[0])
    for (config, params), which in ((before, "first"), (after, "second")):
        if len(_layers_of(params)) != config.num_hidden_layers:
            raise ValueError(
                f"{which} model: got weights of {len(_layers_of(params))} layers, expected the num_hidden_layers of "
                f"its config, {config.num_hidden_layers}; pass weights and config of one model"
            )
    g = np.random.default_rng(seed)
    inputs = g.normal(size=(3, TOKENS, before[0].hidden_size))
    inputs[2] *= 1e-3
    differences, rounded = [], []
    for layer in range(before[0].num_hidden_layers):
        one = _to_float64(_attention_of(*before, layer))
        a = _attention(before[0], one, layer, inputs)
        differences.append(
            _relative_difference(a, _attention(after[0], _to_float64(_attention_of(*after, layer)), layer, inputs))
        )
        if dtype is not None:
            moved = {name: w * (1 + UNIT[dtype] * g.choice([-1.0, 1.0], size=w.shape)) for name, w in one.items()}
            rounded.append(_relative_difference(a, _attention(before[0], moved, layer, inputs)))
    return Proof(tuple(differences), tuple(_changed(before[1], after[1], dtype)), tuple(rounded))


def _to_float64(p: Mapping[str, Any]) -> dict[str, FloatArray]:
    """Return all weights by name, in float64."""
    return {name: to_numpy(array).astype(np.float64, copy=False) for name, array in flatten(p).items()}


def _relative_difference(a: FloatArray, b: FloatArray) -> float:
    size, other = (float(np.abs(x).max()) for x in (a, b))
    if not (math.isfinite(size) and math.isfinite(other)) or (size == 0) != (other == 0):
        return math.inf
    return float(np.abs(a - b).max()) / size if size else 0.0


def _changed(before: Mapping[str, Any], after: Mapping[str, Any], dtype: str | None) -> Iterator[str]:
    """Yield the names of the weights outside of attention that differ, or that only one model has."""
    one, other = (
        {name: a for name, a in flatten(params).items() if ".self_attn." not in name} for params in (before, after)
    )
    for name in {**one, **other}:
        if name not in one or name not in other or not _same(one[name], other[name], dtype):
            yield name


def _same(one: Any, other: Any, dtype: str | None) -> bool:
    """Return whether two weights are equal, the first one rounded to `dtype`; compares some rows at a time."""
    if one is other and dtype is None:
        return True
    if one.shape != other.shape:
        return False
    a, b = to_numpy(one), to_numpy(other)
    rows = max(1, (1 << 20) // max(1, a[:1].size))
    for i in range(0, len(a), rows):
        x, y = a[i : i + rows], b[i : i + rows]
        if not np.array_equal(x if dtype is None else round_to(x, dtype), y, equal_nan=True):
            return False
    return True


def _attention(config: DiffLlamaConfig, p: Mapping[str, FloatArray], layer: int, x: FloatArray) -> FloatArray:
    ops = ops_for()
    positions = _positions(config.max_position_embeddings, x.shape[1])
    frequencies = ops.rope_frequencies(
        config.rope_parameters, config.head_dim, config.max_position_embeddings, int(positions[-1]) + 1
    )
    cos, sin = ops.rope_cos_sin(positions[None], *frequencies, np.float64)
    with np.errstate(all="ignore"):  # the caller sees results that are not finite
        result: FloatArray = attention(nest(p), x, layer, Context(config, ops, cos, sin))
    return result


def _positions(limit: int, count: int) -> IntArray:
    """Return `count` positions from 0 to the last one below `limit`, in growing steps."""
    n = np.arange(count)
    positions = np.maximum(n, (max(limit, count) ** (n / (count - 1)) - 1).astype(np.int64))
    positions[-1] = max(limit, count) - 1
    return positions


_UNKNOWN = "no exact conversion is known; train a new model in that variant, or add it to refdiff/model/variants"


def _layers_of(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the decoder layers, which are in `model`, in `transformer`, or at the top level."""
    base = params.get("model") or params.get("transformer") or params
    if "layers" not in base:
        raise ValueError(
            f"params: got {', '.join(map(show_value, base)) or 'nothing'}, expected layers at the top level, in model "
            "or in transformer; pass model.params"
        )
    layers: list[dict[str, Any]] = base["layers"]
    return layers


def _attention_of(config: DiffLlamaConfig, params: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """Return the weights of one layer's attention, after checking their names and shapes.

    Raises:
        ValueError: the message has all that are missing, unknown or of a wrong shape, and the variant that they fit.
    """
    p: dict[str, Any] = _layers_of(params)[layer].get("self_attn", {})
    expected = attention_shapes(config)
    shapes = {name: tuple(int(n) for n in array.shape) for name, array in flatten(p).items()}
    if shapes == expected:
        return p
    problems = [f"{name} of shape {shape} is missing" for name, shape in expected.items() if name not in shapes]
    problems += [f"{name} of shape {shape} is too many" for name, shape in shapes.items() if name not in expected]
    problems += [
        f"{name} has shape {shape}, but should have {expected[name]}"
        for name, shape in shapes.items()
        if name in expected and shape != expected[name]
    ]
    sizes = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "attention_bias")
    fits = [variant for variant in VARIANTS if attention_shapes(_replace_variant(config, variant)) == shapes]
    raise ValueError(
        f"the weights are not those of the config, whose variant is {config.variant!r} and "
        f"{', '.join(f'{name} {getattr(config, name)}' for name in sizes)}: in layers.{layer}.self_attn, "
        f"{'; '.join(problems)}"
        + (f". They fit the variant {' or '.join(map(repr, fits))}: is the config's right?" if fits else "")
    )


def _replace_variant(config: DiffLlamaConfig, variant: str) -> DiffLlamaConfig:
    other = copy.copy(config)
    other.variant = variant
    return other


def _refuse_another_function(before: DiffLlamaConfig, after: DiffLlamaConfig) -> None:
    """Compare the fields that decide what a model computes, whatever its weights.

    Raises:
        ValueError: one differs; the message has both values.
    """
    for name in SAME_IN_BOTH:
        one, other = getattr(before, name), getattr(after, name)
        if one != other:
            raise ValueError(
                f"{name} is {show_value(one)} in the first config and {show_value(other)} in the second, so that the "
                "two models are not the same function, whatever their weights: give both the same"
            )
