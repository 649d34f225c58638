"""The input dictionary of a kernel: arrays by name, each with its shape.

Axis letters are those of `refdiff.layers`: B batch, T queries, S keys, H query heads, K key heads, d head size, D model
size. Beside them h is output heads, V heads of v, w the width of v, e the width of an output head, N sequences, P pages
and p keys per page.

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
  optional:
    q_positions      (B, T) or (1, T)   for RoPE; without them the queries are
    k_positions      (B, S) or (1, S)   the last T of the S positions
    key_mask         (B, S)         boolean, False is padding
    mask             boolean, True is "may attend"; broadcastable to
                     (B, h, T, S), combined with causal and window
    bias             broadcastable to (B, h, T, S), added to the scores of both
                     maps; −∞ masks a key

Packed sequences: B is 1, and T and S count the tokens of all sequences, one after another.

    cu_seqlens_q     (N + 1,)       the start of each sequence, from 0; then T
    cu_seqlens_k     (N + 1,)       the same for keys (default: cu_seqlens_q)

Paged keys and values replace k and v, for the sequences of a batch or of `cu_seqlens_q`:

    k_pages          (P, K, p, d)
    v_pages          (P, V, p, w)
    block_table      (N, n)         the pages of each sequence in order; entries
                                    past its length may be anything
    lengths          (N,)           the number of keys of each sequence

The whole attention layer, from normed hidden states to `o_proj`, may be packed but not paged. These replace q, k, v,
lambda_logits and gate_logits:

    x                (B, T, D)
    x_past           (B, S - T, D)  optional: earlier tokens; x attends to their
                                    keys and values too
    q_proj.weight    (H d, D)
    k_proj.weight    (K d, D)
    v_proj.weight    (V w, D)
    o_proj.weight    (D, h e)       each of the four may have a .bias with one
                                    number per row
    lambda_proj.weight   (h, D)     lambda_form "sigmoid"
    gate_proj.weight   (h e, D)     where the spec has a gate

A file for `refdiff check` holds the inputs and the results:

    out              (B, h, T, e); of a layer (B, T, D)
    lse1, lse2       (B, h, T); lse for plain attention
    lambda_full      () or (B, h, T)

With dout, which has the shape of out, it may hold gradients. That of an input is named d and the input's name, such as
dq or dlambda_q1, and has the input's shape; integers, booleans and bias have none. dlambda_full is (h,) if each head
has one λ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
QK_WEIGHTS = ("q_norm_weight", "k_norm_weight")
INTEGERS = ("q_positions", "k_positions", "cu_seqlens_q", "cu_seqlens_k", "block_table", "lengths")
BOOLEANS = ("key_mask", "mask")
DATA = ("x", "q", "k", "v", "k_pages", "v_pages")
"""The data that attention computes from. Other inputs with gradients are parameters, or logits of λ and the gate."""

_PROJECTIONS = {"q": "Hd", "k": "Kd", "v": "Vw"}
AXES: dict[str, str] = {
    "q": "B H T d", "k": "B K S d", "v": "B V S w", "gate_logits": "B h T e", "lambda_logits": "B T h",
    "k_pages": "P K p d", "v_pages": "P V p w", "block_table": "N n", "lengths": "N",
    "x": "B T D", "x_past": "B R D", "o_proj.weight": "D he", "o_proj.bias": "D",
    **{f"{name}_proj.weight": f"{rows} D" for name, rows in {**_PROJECTIONS, "lambda": "h", "gate": "he"}.items()},
    **{f"{name}_proj.bias": rows for name, rows in _PROJECTIONS.items()},
    **dict.fromkeys((*VECTORS, *QK_WEIGHTS), "d"), "norm_weight": "e", "norm_bias": "e", "sinks": "H",
    "q_positions": "B T", "k_positions": "B S", "key_mask": "B S", "mask": "…", "bias": "…",
    "cu_seqlens_q": "M", "cu_seqlens_k": "M",
    "out": "B h T e", **dict.fromkeys(("lse", "lse1", "lse2", "lambda_full"), "B h T"),
}  # fmt: skip
"""The axis letters of every input and output; "…" is any shape that broadcasts. Of a layer, out is (B, T, D)."""


def axes_of(name: str, inputs: Mapping[str, Any] | None = None) -> str:
    """Return the axis letters of an input, of an output, or of a gradient, which are those of its input."""
    if name == "out" and inputs is not None and is_layer(inputs):
        return AXES["x"]
    return AXES.get(name) or AXES.get(name[1:] if name.startswith("d") else "", "")


def is_layer(inputs: Mapping[str, Any]) -> bool:
    """Whether these are inputs of the whole attention layer."""
    return "x" in inputs


def gradient_names(inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the gradients of a whole backward pass: one for each floating-point input except `bias`."""
    return tuple(f"d{name}" for name in inputs if name not in (*INTEGERS, *BOOLEANS, "bias"))


def kind_of(inputs: Mapping[str, Any]) -> str:
    """Return the kind of these inputs: "dense", "packed", "paged" or "layer"."""
    names = (("x", "layer"), ("k_pages", "paged"), ("cu_seqlens_q", "packed"))
    return next((kind for name, kind in names if name in inputs), "dense")


def shapes(spec: Any, inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return the axis letters of every required input, for inputs of the kind of `inputs`.

    Args:
        spec: a `Spec`, or an object with the same fields but without dimensions.
    """
    layer = is_layer(inputs)
    weights = [f"{name}_proj.weight" for name in "qkvo"]
    paged = ["q", "k_pages", "v_pages", "block_table", "lengths"]
    names = ["x", *weights] if layer else paged if "k_pages" in inputs else ["q", "k", "v"]
    names += {
        "exp": VECTORS,
        "given": ["lambda_full"],
        "sigmoid": ["lambda_proj.weight" if layer else "lambda_logits"],
        "none": [],
    }[spec.lambda_form]
    names += ["norm_weight"] * spec.norm_weight + ["norm_bias"] * spec.norm_bias + [*QK_WEIGHTS] * spec.qk_norm_weight
    names += ["gate_proj.weight" if layer else "gate_logits"] * (spec.gate != "none") + ["sinks"] * spec.sinks
    per_head = (*VECTORS,) * spec.lambda_per_head + ("norm_weight", "norm_bias") * spec.norm_per_head
    found = {name: f"h {AXES[name]}" if name in per_head else AXES[name] for name in names}
    return {**found, "lambda_full": "…"} if "lambda_full" in found else found


def options(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return the axis letters of every optional input, for inputs of the kind of `inputs`."""
    names = ["q_positions", "k_positions", "key_mask", "mask", "bias", "cu_seqlens_q"]
    names += ["x_past", *(f"{name}_proj.bias" for name in "qkvo")] * is_layer(inputs)
    names += ["cu_seqlens_k"] * ("k_pages" not in inputs)
    return {name: AXES[name] for name in names}
