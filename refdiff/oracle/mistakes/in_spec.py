"""Deviations that change fields of `Spec`: choices that are correct for one source and wrong for another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from refdiff.oracle.mistakes.catalogue import Mistake, misread
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.presets import PRESETS, YARN

Fields = Callable[[Spec], dict[str, Any] | None]


def _set(**fields: Any) -> Fields:
    """Set these fields, unless the spec has these values already."""
    return lambda spec: None if all(getattr(spec, f) == x for f, x in fields.items()) else fields


def _set_if(condition: Callable[[Spec], bool], **fields: Any) -> Fields:
    return lambda spec: fields if condition(spec) else None


def _swap(name: str, one: str, two: str) -> Fields:
    return lambda spec: {name: {one: two, two: one}[getattr(spec, name)]}


def _change_window(by: int) -> Fields:
    return lambda spec: None if spec.window is None else {"window": max(0, spec.window + by)}


def _set_gate(name: str) -> Fields:
    return _set_if(lambda s: s.gate not in ("none", name), gate=name)


def _change_yarn(change: Callable[[Mapping[str, Any]], dict[str, Any]], spec: Spec) -> dict[str, Any] | None:
    """Change the parameters of RoPE if they are those of yarn."""
    given = spec.rope_parameters or {}
    return {"rope_parameters": change(given)} if given.get("rope_type") == "yarn" else None


def _dev(name: str, what: str, axis: str, row: str, fields: Fields) -> Mistake:
    return misread(name, what, axis, row, fields=fields)


SPEC_DEVIATIONS: tuple[Mistake, ...] = (
    _dev("other_head_pairing", "Heads i, i + H/2 paired in place of 2i, 2i + 1, or the reverse.", "pair", "F1",
        lambda s: None if s.ratio > 1 else _swap("pairing", "halves", "interleaved")(s)),
    _dev("other_signal_noise_order", "All signals first in place of group by group, or the reverse.",
        "ratio", "F9", lambda s: _swap("pairing", "halves", "interleaved")(s) if s.ratio > 1 else None),
    _dev("keys_repeated_then_paired", "Each key head repeated for its queries, then paired.", "gqa", "F5",
        _set_if(lambda s: s.gqa == "pair_then_group", gqa="repeat_then_pair")),
    _dev("keys_paired_then_grouped", "Key heads paired, then repeated, where the spec repeats first.", "gqa", "F5",
        _set_if(lambda s: s.gqa == "repeat_then_pair", gqa="pair_then_group")),
    _dev("groups_tiled", "Output head i on key pair i mod (K/2), where i // n is meant.", "gqa", "",
        _set_if(lambda s: s.group_order == "blocks" and not s.is_plain, group_order="tiled")),
    _dev("groups_in_blocks", "Output head i on key pair i // n, where i mod (K/2) is meant.", "gqa", "",
        _set_if(lambda s: s.group_order == "tiled" and not s.is_plain, group_order="blocks")),
    _dev("key_heads_tiled", "Query head h on key head h mod K, where h // (H/K) is meant.", "gqa", "",
        _set_if(lambda s: s.group_order == "blocks" and s.is_plain, group_order="tiled")),
    _dev("key_heads_in_blocks", "Query head h on key head h // (H/K), where h mod K is meant.", "gqa", "",
        _set_if(lambda s: s.group_order == "tiled" and s.is_plain, group_order="blocks")),
    _dev("values_interleaved", "Values 2j, 2j + 1 joined in place of j, j + K/2.", "value layout", "F6",
        _set_if(lambda s: s.values == "halves", values="interleaved")),
    _dev("values_half_split", "Values j, j + K/2 joined in place of 2j, 2j + 1.", "value layout", "F6",
        _set_if(lambda s: s.values in ("wide", "interleaved"), values="halves")),
    _dev("no_rope", "q and k not rotated.", "rope kind", "", _set(rope="none")),
    _dev("extra_half_split_rope", "RoPE of halves, where q and k need no rotation.", "rope kind", "",
        _set_if(lambda s: s.rope == "none" and s.head_dim % 2 == 0, rope="halves")),
    _dev("extra_interleaved_rope", "RoPE of neighbors, where q and k need no rotation.", "rope kind", "",
        _set_if(lambda s: s.rope == "none" and s.head_dim % 2 == 0, rope="interleaved")),
    _dev("whole_head_rotated", "All of a head rotated, where a part of it is.", "rope dim", "F10",
        _set(partial_rotary_factor=1.0)),
    _dev("other_end_rotated", "The first dimensions of a head rotated in place of the last, or the reverse.",
        "rope dim", "F10", lambda s: _swap("rotary_at", "first", "last")(s) if s.partial_rotary_factor < 1 else None),
    _dev("frequencies_for_whole_head_dim", "Frequencies θ^(−2i / d), where r dimensions rotate by θ^(−2i / r).",
        "rope dim", "F10",
        lambda s: None if s.partial_rotary_factor == 1 or s.rope_parameters
        else {"rope_theta": s.rope_theta ** (s.rotary_dim / s.head_dim)}),
    _dev("default_frequencies", "Default frequencies θ^(−2i / r), where the spec has others.", "rope base", "F11",
        _set(rope_parameters=None)),
    _dev("linear_scaling_for_yarn", "All frequencies of RoPE divided by the factor, where yarn keeps the fast ones.",
        "rope base", "F11", partial(_change_yarn, lambda p: {"rope_type": "linear", "factor": p["factor"]})),
    _dev("yarn_factor_on_cos_and_sin", "cos and sin times 0.1 log(factor) + 1, where they are not scaled.",
        "rope scale", "F11", partial(_change_yarn, lambda p: {n: x for n, x in p.items() if n != "attention_factor"})),
    _dev("yarn_frequencies", "Motif-3's yarn frequencies, where the spec has default ones.", "rope base", "F11",
        _set_if(lambda s: s.rope != "none" and s.rotary_at == "last" and not s.rope_parameters, rope_parameters=YARN)),
    _dev("no_qk_norm", "q and k without their norm.", "qk norm", "F12",
        _set(qk_norm="none", qk_norm_weight=False)),
    _dev("no_qk_norm_weights", "The norm of q and k without its weights.", "qk norm", "F12",
        _set(qk_norm_weight=False)),
    _dev("qk_layer_norm", "LayerNorm of q and k, where it is RMSNorm.", "qk norm", "F12",
        _set_if(lambda s: s.qk_norm == "rms", qk_norm="layer")),
    _dev("qk_rms_norm", "RMSNorm of q and k, where it is LayerNorm.", "qk norm", "F12",
        _set_if(lambda s: s.qk_norm == "layer", qk_norm="rms")),
    _dev("qk_norm_after_rope", "The norm of q and k after RoPE, where it comes before.", "qk norm", "F12",
        _set_if(lambda s: s.qk_norm != "none" and s.qk_norm_at == "before_rope", qk_norm_at="after_rope")),
    _dev("qk_norm_before_rope", "The norm of q and k before RoPE, where it comes after.", "qk norm", "F12",
        _set_if(lambda s: s.qk_norm != "none" and s.qk_norm_at == "after_rope", qk_norm_at="before_rope")),
    _dev("lambda_of_head_0", "λ of output head 0 in every head.", "lambda form", "", _set(lambda_per_head=False)),
    _dev("no_gate", "Heads not multiplied by the gate.", "gate", "F13", _set(gate="none")),
    _dev("sigmoid_gate", "σ(g) in place of the gate's activation.", "gate", "F13", _set_gate("sigmoid")),
    _dev("silu_gate", "g σ(g) in place of the gate's activation.", "gate", "F13", _set_gate("silu")),
    _dev("linear_gate", "The gate's logits without an activation.", "gate", "F13", _set_gate("linear")),
    _dev("scores_scaled_by_sqrt_d", "Q Kᵀ / √d, where the spec has another scale.", "scale", "B14",
        _set(scale=None)),
    _dev("exp2_without_log2e", "2^z in place of e^z: scores not multiplied by log₂ e.", "lse base", "",
        lambda s: {"scale": math.log(2) * (s.scale or s.head_dim**-0.5)}),
    _dev("no_softcap", "Scores without the softcap.", "softcap", "", _set(softcap=None)),
    _dev("no_sinks", "Softmax without the sink in the denominator.", "sinks", "", _set(sinks=False)),
    _dev("softcap_before_scale", "Scores capped before they are scaled: the scale times c tanh(Q Kᵀ / c).",
        "softcap", "", lambda s: None if s.softcap is None else {"softcap": s.softcap * (s.scale or s.head_dim**-0.5)}),
    _dev("scores_scaled_by_sqrt_v_dim", "Q Kᵀ / √w: scaled for the width of v, not for that of q and k.",
        "scale", "", lambda s: None if s.v_head_dim in (None, s.head_dim) else {"scale": s.value_dim**-0.5}),
    _dev("no_output_norm_weight", "The norm after attention without its weight.", "norm weight", "F4",
        _set(norm_weight=False)),
    _dev("epsilon_1e-6", "ε of the norm after attention is 10⁻⁶.", "eps", "F4", _set(norm_eps=1e-6)),
    _dev("epsilon_1e-5", "ε of the norm after attention is 10⁻⁵.", "eps", "F4", _set(norm_eps=1e-5)),
    _dev("one_norm_for_all_heads", "One norm for all heads of a token.", "norm extent", "B7",
        _set(norm_over="all_heads")),
    _dev("norm_of_each_half_head", "A norm for each half of a head.", "norm extent", "", _set(norm_over="half_head")),
    _dev("norm_of_each_head", "One norm for each head, where the spec norms more or fewer dimensions together.",
        "norm extent", "", _set(norm_over="head")),
    _dev("layer_norm_for_rms_norm", "LayerNorm after attention, where it is RMSNorm.", "norm kind", "B9",
        _set_if(lambda s: s.norm == "rms", norm="layer")),
    _dev("rms_norm_for_layer_norm", "RMSNorm after attention, where it is LayerNorm.", "norm kind", "B9",
        _set_if(lambda s: s.norm == "layer", norm="rms")),
    _dev("no_norm_bias", "The norm after attention without its bias.", "norm weight", "",
        _set(norm_bias=False)),
    _dev("norm_of_head_0", "Weight and bias of head 0 for every head.", "norm weight", "",
        lambda s: {"norm_per_head": False} if s.norm_per_head and (s.norm_weight or s.norm_bias) else None),
    _dev("no_norm", "No norm after attention.", "norm kind", "B8",
        _set(norm="none", norm_weight=False, norm_bias=False)),
    _dev("extra_norm", "A norm after attention, as in v1, where the spec has none.", "norm kind", "B3",
        _set_if(lambda s: s.norm == "none" and not s.is_plain, norm="rms")),
    _dev("out_not_scaled", "The output not multiplied by 1 − λ_init.", "output scale", "B10", _set(out_scale="none")),
    _dev("out_scaled_by_lambda_init", "The output multiplied by λ_init, where 1 − λ_init is meant.", "output scale", "",
        _set_if(lambda s: s.lambda_form != "sigmoid", out_scale="lambda_init")),
    _dev("out_scaled_by_one_minus_lambda", "The output multiplied by 1 − λ, where 1 − λ_init is meant.", "output scale",
        "", _set(out_scale="1 - lambda")),
    _dev("out_scaled_as_in_v1", "The output multiplied by 1 − λ_init, where the spec has no factor.", "output scale",
        "B3", _set_if(lambda s: s.out_scale == "none", out_scale="1 - lambda_init")),
    _dev("mask_aligned_to_first_key", "Query t sees keys up to t, whatever is in the cache.", "mask align", "B18",
        _set_if(lambda s: s.causal == "bottom_right", causal="top_left")),
    _dev("mask_aligned_to_last_key", "The last query sees all keys, where query t sees keys up to t.", "mask align",
        "B18", _set_if(lambda s: s.causal == "top_left", causal="bottom_right")),
    _dev("not_causal", "No causal mask: every query sees all keys.", "mask", "", _set(causal="none")),
    _dev("extra_causal_mask", "A causal mask, where the spec has none.", "mask align", "",
        _set_if(lambda s: s.causal == "none", causal="top_left")),
    _dev("window_one_too_short", "A window that is one key too short.", "window", "B19", _change_window(-1)),
    _dev("window_one_too_long", "A window that is one key too long.", "window", "B19", _change_window(1)),
    _dev("no_window", "No window: earlier keys stay visible.", "window", "B19", _set(window=None)),
    _dev("masked_rows_uniform", "Weights 1/S for a query that sees no key.", "mask", "",
        _set(masked_rows="uniform")),
    _dev("masked_rows_nan", "NaN for a query that sees no key.", "mask", "", _set(masked_rows="nan")),
    _dev("masked_rows_zero", "0 for a query that sees no key.", "mask", "", _set(masked_rows="zeros")),
)  # fmt: skip
"""Where two of them compute the same function, the first gives the name."""


def _read_as(preset: str, spec: Spec) -> dict[str, Any] | None:
    there = {**_DEFAULTS, **PRESETS[preset]}
    changes = {f: there[f] for f in WIRING if there[f] != getattr(spec, f)}
    return changes if len(changes) > 1 and there.get("keys") == spec.keys else None


WIRING = ("pairing", "gqa", "values", "rope", "lambda_base")
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Spec) if field.name in (*WIRING, "keys")}
PRESET_DEVIATIONS: tuple[Mistake, ...] = tuple(
    _dev(f"read_as_{name}", f"Weights of this spec read as if they were of {name}: heads, values and RoPE of it.",
        "source", "F1", partial(_read_as, name))
    for name, fields in PRESETS.items()
    if fields.get("keys") != "shared"
)  # fmt: skip
"""The variant of another source: what happens to a checkpoint that is loaded into the code of that source."""
