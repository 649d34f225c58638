"""The input dictionary: what a kernel is given, by name, with the shape of each array.

Axis letters as in `refdiff.layers` (B batch, T queries, S keys, H query heads, K key heads, d head size, D model size),
and h output heads, V heads of v, w the width of v, e the width of an output head, N sequences, P pages, p keys a page.

The attention core, from q, k and v to the heads after norm and scale:

    q                (B, H, T, d)   before RoPE where the spec has one
    k                (B, K, S, d)
    v                (B, V, S, w)   V and w by `spec.values`
    lambda_q1, lambda_k1,
    lambda_q2, lambda_k2   (d,)     lambda_form "exp"; (h, d) by lambda_per_head
    lambda_logits    (B, T, h)      lambda_form "sigmoid"
    lambda_full      (), (h,) or (B, h, T)         lambda_form "given"
    norm_weight, norm_bias   (e,)   where the spec has one; (h, e) with
                                    norm_per_head
    q_norm_weight, k_norm_weight   (d,)   qk_norm_weight
    gate_logits      (B, h, T, e)   where the spec has a gate
    sinks            (H,)           where the spec has sinks
  and if you like
    q_positions      (B, T) or (1, T)   for RoPE; else the queries are the last
    k_positions      (B, S) or (1, S)   T of S
    key_mask         (B, S)         boolean, False is padding
    mask             boolean "may see", broadcastable to (B, h, T, S), beside
                     causal and window
    bias             broadcastable to (B, h, T, S), added to the scores of both
                     maps, as a mask of 0 and −∞ is

Packed sequences: B is 1, T and S are those of all sequences one after another.

    cu_seqlens_q     (N + 1,)       where each starts, from 0; the last is T
    cu_seqlens_k     (N + 1,)       of keys; left out, it is cu_seqlens_q

Paged keys and values, in place of k and v, for the sequences of a batch or of `cu_seqlens_q`:

    k_pages          (P, K, p, d)
    v_pages          (P, V, p, w)
    block_table      (N, n)         the pages of each sequence in order; entries
                                    past its length may be anything
    lengths          (N,)           how many keys each sequence has

The whole attention layer, from normed hidden states to `o_proj`, has these in place of q, k, v, lambda_logits and
gate_logits, and may be packed, but not paged:

    x                (B, T, D)
    x_past           (B, S - T, D)  if you like: earlier tokens, whose keys and
                                    values are seen beside those of x
    q_proj.weight    (H d, D)
    k_proj.weight    (K d, D)
    v_proj.weight    (V w, D)
    o_proj.weight    (D, h e)       each of the four may have a .bias of as many
                                    numbers as rows
    lambda_proj.weight   (h, D)     lambda_form "sigmoid"
    gate_proj.weight   (h e, D)     where the spec has a gate

The result, which a file for `refdiff check` holds beside them: out (B, h, T, e), of a layer (B, T, D); lse1, lse2
(B, h, T), of plain attention lse; lambda_full () or (B, h, T). With dout, of the shape of out: the gradient of each
input of floats but bias under d and its name, such as dq or dlambda_q1, of that input's shape, and dlambda_full, which
is (h,) where each head has one λ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refdiff.oracle.spec import Spec

VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
QK_WEIGHTS = ("q_norm_weight", "k_norm_weight")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
INTEGERS = ("q_positions", "k_positions", "cu_seqlens_q", "cu_seqlens_k", "block_table", "lengths")
BOOLEANS = ("key_mask", "mask")
DATA = ("x", "q", "k", "v", "k_pages", "v_pages")
"""What attention computes from; every other input with a gradient is a parameter, or a projection of the queries."""


def is_layer(inputs: Mapping[str, Any]) -> bool:
    """Whether these are inputs of the whole attention layer."""
    return "x" in inputs


def gradient_names(inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the gradients that a whole backward pass gives: one for each input of floats but `bias`."""
    return tuple(f"d{name}" for name in inputs if name not in (*INTEGERS, *BOOLEANS, "bias"))


def kind_of(inputs: Mapping[str, Any]) -> str:
    """Which sort of inputs these are: "dense", "packed", "paged" or "layer"."""
    names = (("x", "layer"), ("k_pages", "paged"), ("cu_seqlens_q", "packed"))
    return next((kind for name, kind in names if name in inputs), "dense")


def shapes(spec: Spec, inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return the axis letters of every name that such inputs may have, for a layer, a paged or a dense core."""
    names: dict[str, str] = {}
    if is_layer(inputs):
        names |= {"x": "B T D", "q_proj.weight": "Hd D", "k_proj.weight": "Kd D", "v_proj.weight": "Vw D"}
        names |= {"o_proj.weight": "D he"}
    elif "k_pages" in inputs:
        names |= {"q": "B H T d", "k_pages": "P K p d", "v_pages": "P V p w", "block_table": "N n", "lengths": "N"}
    else:
        names |= {"q": "B H T d", "k": "B K S d", "v": "B V S w"}
    if spec.lambda_form == "exp":
        names |= dict.fromkeys(VECTORS, "h d" if spec.lambda_per_head else "d")
    elif spec.lambda_form == "given":
        names["lambda_full"] = "…"
    elif spec.lambda_form == "sigmoid":
        names |= {"lambda_proj.weight": "h D"} if is_layer(inputs) else {"lambda_logits": "B T h"}
    for name, has in (("norm_weight", spec.norm_weight), ("norm_bias", spec.norm_bias)):
        if has:
            names[name] = "h e" if spec.norm_per_head else "e"
    if spec.qk_norm_weight:
        names |= dict.fromkeys(QK_WEIGHTS, "d")
    if spec.gate != "none":
        names |= {"gate_proj.weight": "he D"} if is_layer(inputs) else {"gate_logits": "B h T e"}
    if spec.sinks:
        names["sinks"] = "H"
    return names


def options(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return the axis letters of every name that such inputs may have beside those that they must have."""
    names = {"q_positions": "B T", "k_positions": "B S", "key_mask": "B S", "mask": "…", "bias": "…"}
    names |= {"cu_seqlens_q": "M"}
    if is_layer(inputs):
        names |= {"x_past": "B R D", "q_proj.bias": "Hd", "k_proj.bias": "Kd", "v_proj.bias": "Vw", "o_proj.bias": "D"}
    if "k_pages" not in inputs:
        names["cu_seqlens_k"] = "M"
    return names
