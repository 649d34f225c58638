"""What a file of this folder states of its attention variant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from refdiff.arrays import Array

Config = Any
"""A `DiffLlamaConfig`, whose file imports this one."""
Context = Any
"""A `Context` of `refdiff.model.diffllama`, whose file imports this one."""

Weights = dict[str, Any]
HeadsBack = Callable[[Array], tuple[Array, Array, Array, Array | None, Weights]]
"""From the gradient of the heads to those of q, k, v, of x where it has one beside them, and of the own parameters."""


@dataclass(frozen=True)
class Parameter:
    """The shape of a parameter, and the normal distribution from which its first values are drawn.

    deviation: the standard deviation; None is the config's `initializer_range`.
    """

    shape: tuple[int, ...]
    mean: float = 0.0
    deviation: float | None = None


@dataclass(frozen=True)
class Conversion:
    """An exact conversion of one layer's attention to another variant.

    weights: (weights, config, new config) -> the new weights, nested like the old ones.
    fields: (config, the weights of every layer) -> config fields that change beside `variant`.
    condition: where weights must be special, the words that say when, for help texts.
    """

    weights: Callable[[Weights, Config, Config], Weights]
    fields: Callable[[Config, list[Weights]], dict[str, Any]] = lambda config, layers: {}
    condition: str = ""


@dataclass(frozen=True)
class Variant:
    """An attention variant: what it computes after RoPE, and what its weights and files look like.

    Attributes:
        what: what it is, for help texts.
        model_type: its `model_type` in a config.json.
        preset: the preset of `refdiff.oracle.Spec` that describes it, or None.
        heads: (p, x, q, k, v, layer, ctx) -> (B, T, H d or less), from the rotated queries and all keys and values.
        heads_with_back: the same result and a `HeadsBack`; None for a variant that cannot be trained yet.
        values: (ops, value heads) -> the values that the cache keeps.
        values_vjp: (ops, gradient of these, keys) -> the gradient of the value heads, which have the shape of the keys.
        value_size: the size of a value head, in units of `head_dim`.
        interleaved: whether RoPE rotates neighbors in place of halves.
        pairing: which two heads are a pair: "halves" (i and i + H/2), "interleaved" (2i and 2i + 1), or None.
        even_key_heads: whether the number of key and value heads must be even.
        query_heads: query heads for each of `num_attention_heads`: 2 where each head has two queries.
        lambda_by_token: whether λ depends on the token.
        last_projection: what files call `o_proj`.
        parameters: config -> the parameters of attention beside its four projections.
        conversions: to other variants, by their names.
        conversions_from: from other variants, by their names, where their own files do not state them.
        refused: by the name of another variant, why there is no exact conversion to it.
        refused_from: the same for conversions from another variant.
    """

    what: str
    model_type: str
    preset: str | None
    heads: Callable[..., Array]
    heads_with_back: Callable[..., tuple[Array, HeadsBack]] | None = None
    values: Callable[[Any, Array], Array] = lambda ops, v: v
    values_vjp: Callable[[Any, Array, Array], Array] = lambda ops, dv, k: dv
    value_size: int = 1
    interleaved: bool = False
    pairing: str | None = None
    even_key_heads: bool = False
    query_heads: int = 1
    lambda_by_token: bool = False
    last_projection: str = "o_proj"
    parameters: Callable[[Config], dict[str, Parameter]] = lambda config: {}
    conversions: Mapping[str, Conversion] = field(default_factory=dict)
    conversions_from: Mapping[str, Conversion] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    refused_from: Mapping[str, str] = field(default_factory=dict)


LAMBDA_VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
"""The names of the four vectors from which DIFF V1 computes λ (Ye et al. 2024, eq. 2)."""


def lambda_vectors(config: Config) -> dict[str, Parameter]:
    """Return the four vectors of λ as parameters."""
    return dict.fromkeys(LAMBDA_VECTORS, Parameter((config.head_dim,), deviation=config.lambda_std_dev))


NORM = "the norm after attention divides each token's head by its own size, which no weights can do or undo"
UNIFORM = "weights of 0 for the second map make it uniform attention, not none"
"""Reasons against a conversion."""
