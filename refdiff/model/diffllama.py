"""ids to hidden states: one decoder layer, and the loop over it.

Parameters are the nested weight dict of the checkpoint, `p` below being the part that belongs to the function; `ops`
is the namespace of layer functions (`refdiff.backends`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from refdiff.arrays import Array
from refdiff.backends import Ops
from refdiff.model.cache import KVCache
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.wirings import WIRINGS, Heads, split_heads


@dataclass
class Context:
    """What is the same for every layer of one call.

    cos, sin (B or 1, 1, T, n): the rotations of the positions. mask, boolean, and bias broadcast to (B, H, T, S) or
    are None. causal: whether later keys are hidden beside what the mask hides. read: how many of the last tokens the
    result is wanted of; None is all.
    """

    config: DiffLlamaConfig
    ops: Ops
    cos: Array
    sin: Array
    mask: Array | None = None
    bias: Array | None = None
    causal: bool = True
    cache: KVCache | None = None
    read: int | None = None

    def of_rows(self, rows: slice) -> Context:
        """Be the context of some rows of the batch."""
        cos, sin, mask, bias = (
            a if a is None or a.shape[0] == 1 else a[rows] for a in (self.cos, self.sin, self.mask, self.bias)
        )
        return replace(self, cos=cos, sin=sin, mask=mask, bias=bias)

    def of_last(self, n: int) -> Context:
        """Be the context of the last n queries."""
        cos, sin, mask, bias = (
            None if a is None else a[..., -n:, :] for a in (self.cos, self.sin, self.mask, self.bias)
        )
        return replace(self, cos=cos, sin=sin, mask=mask, bias=bias)


@dataclass
class Maps:
    """What one layer looked at.

    weights (B, H, T, S): the softmax rows of every query head. difference (B, H/2, T, S): A₁ − λ A₂ of every pair.
    lambda_ (), in v2 (B, H/2, T, 1). Without pairs (wiring "none") the difference is the weights, and λ is 0.
    """

    weights: Array
    difference: Array
    lambda_: Array


def diffllama(
    p: dict[str, Any], hidden: Array, context: Context, *, maps: list[Maps] | None = None,
    hidden_states: list[Array] | None = None,
) -> Array:  # fmt: skip
    """Run all decoder layers and the last norm.

    Equation:
        X^0 = embeddings; X^{l+1} = decoder_layer(X^l)  (Ye et al. 2024, section 2); result LN(X^L), as in Llama

    Shapes:
        hidden (B, T, D) embeddings -> (B, T, D), or (B, context.read, D). `hidden_states` receives the input of every
        layer and the result, `maps` what each layer looked at.
    """
    for layer, weights in enumerate(p["layers"]):
        if hidden_states is not None:
            hidden_states.append(hidden)
        # of a token that nothing reads, the last layer's keys and values are all that the others need
        read = context.read if layer + 1 == len(p["layers"]) else None
        hidden = decoder_layer(weights, hidden, layer, context, maps, read)
    hidden = context.ops.rms_norm(hidden, **p["norm"], eps=context.config.rms_norm_eps)
    if hidden_states is not None:
        hidden_states.append(hidden)
    return hidden


def decoder_layer(
    p: dict[str, Any], x: Array, layer: int, context: Context, maps: list[Maps] | None = None, read: int | None = None
) -> Array:
    """Run one layer: attention and feed-forward network, each after a norm and beside a residual path.

    Equation:
        Y = MultiHead(LN(X)) + X;  X' = SwiGLU(LN(Y)) + Y  (Ye et al. 2024, eq. 4 and 5)

    Shapes:
        x (B, T, D) -> (B, T, D), or (B, read, D): of the last tokens
    """
    ops, config = context.ops, context.config
    add: Callable[[Array, Array], Array] = getattr(ops, "residual_add", operator.add)
    normed = ops.rms_norm(x, **p["input_layernorm"], eps=config.rms_norm_eps)
    attended = self_attention(p["self_attn"], normed, layer, context, maps, read)
    x = add(x if read is None else x[:, -read:, :], attended)
    normed = ops.rms_norm(x, **p["post_attention_layernorm"], eps=config.rms_norm_eps)
    return add(x, ops.swiglu(normed, **p["mlp"], act=config.hidden_act))


def self_attention(
    p: dict[str, Any], x: Array, layer: int, context: Context, maps: list[Maps] | None = None, read: int | None = None
) -> Array:
    """Run multi-head attention, in the wiring of the config, from normed hidden states to the output projection.

    Equation:
        MultiHead(X) = Concat(head_1, …, head_h) W_O  (Ye et al. 2024, eq. 3)

    Shapes:
        x (B, T, D) -> (B, T, D), or (B, read, D): of the last tokens
    """
    ops, config, wiring = context.ops, context.config, WIRINGS[context.config.wiring]
    asking, asked = (x, context) if read in (None, x.shape[1]) else (x[:, -read:, :], context.of_last(read))
    q, k, v = _projected(ops, p, asking, x)
    q, k = split_heads(q, config.head_dim), split_heads(k, config.head_dim)
    v = wiring.values(ops, v, config.head_dim)
    q, k, v = _rotated(q, k, v, layer, asked, context)
    see = {"mask": asked.mask, "bias": asked.bias, "causal": context.causal}
    heads = Heads(q, k, v, wiring.lambda_(ops, p, asking, layer), see)
    if maps is not None:
        maps.append(Maps(*wiring.maps(ops, heads)))
    return ops.linear(wiring.attend(ops, heads, p, layer, config.rms_norm_eps), **p["o_proj"])


def _projected(ops: Ops, p: dict[str, Any], asking: Array, x: Array) -> list[Array]:
    """Project what asks to queries, and all tokens to keys and values."""
    fused = getattr(ops, "linears", None)
    if fused is not None and asking is x:
        done: Any = fused(x, p["q_proj"], p["k_proj"], p["v_proj"])
        if done is not NotImplemented:
            return done  # type: ignore[no-any-return]
    return [ops.linear(asking, **p["q_proj"]), ops.linear(x, **p["k_proj"]), ops.linear(x, **p["v_proj"])]


def _rotated(
    q: Array, k: Array, v: Array, layer: int, asked: Context, context: Context
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Turn queries and keys by their positions; with a cache, give all keys and values so far."""
    ops, cache, interleaved = context.ops, context.cache, WIRINGS[context.config.wiring].interleaved
    fused = getattr(ops, "rope_append", None)
    if fused is not None and cache is not None and asked is context:
        done: Any = fused(cache, layer, q, k, v, context.cos, context.sin, interleaved=interleaved)
        if done is not NotImplemented:
            return done  # type: ignore[no-any-return]
    q, k = (ops.rope(y, c.cos, c.sin, interleaved=interleaved) for y, c in ((q, asked), (k, context)))
    return q, *((k, v) if cache is None else cache.append(layer, k, v))
