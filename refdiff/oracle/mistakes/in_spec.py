"""Deviations that change fields of `Spec`: choices that are correct for one source and wrong for another."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from refdiff.oracle.mistakes.catalogue import misread
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.presets import YARN

Fields = Callable[[Spec], dict[str, Any] | None]


def _set(**fields: Any) -> Fields:
    """Set these fields, unless the spec has these values already."""
    return lambda spec: None if all(getattr(spec, f) == x for f, x in fields.items()) else fields


def _if(condition: Callable[[Spec], Any], **fields: Any) -> Fields:
    return lambda spec: fields if condition(spec) else None


def _from(name: str, before: Any, after: Any) -> Fields:
    """Set a field to `after` where it is `before`."""
    return lambda spec: {name: after} if getattr(spec, name) == before else None


def _swap(name: str, one: str, two: str, condition: Callable[[Spec], Any] = bool) -> Fields:
    return lambda s: {name: {one: two, two: one}.get(getattr(s, name), getattr(s, name))} if condition(s) else None


def _scale(factor: Callable[[Spec], float]) -> Fields:
    """Multiply the scale of the scores by a factor."""
    return lambda spec: {"scale": factor(spec) * scale_of(spec)}


def scale_of(spec: Spec) -> float:
    """Return the factor of Q Kᵀ."""
    return spec.scale or spec.head_dim**-0.5


def _theta(change: Callable[[float], float]) -> Fields:
    """Change the base of RoPE's default frequencies."""
    return lambda s: None if s.rope == "none" or s.rope_parameters else {"rope_theta": change(s.rope_theta)}


def _softcap(factor: Callable[[Spec], float]) -> Fields:
    return lambda spec: None if spec.softcap is None else {"softcap": factor(spec) * spec.softcap}


def _window(by: int) -> Fields:
    return lambda spec: None if spec.window is None else {"window": max(0, spec.window + by)}


def _layer(by: int) -> Fields:
    """Count the layers of λ_init from another number; layer −1 is that of "depth - 1" in layer 0."""
    return lambda s: (
        None if s.lambda_base == "constant"
        else {"layer": s.layer + by} if s.layer + by >= 0
        else {"lambda_base": "depth - 1"}
    )  # fmt: skip


_TABLE: tuple[tuple[str, str, str, str, Fields], ...] = (
    # Heads
    ("interleaved_pairs", "Heads 2i, 2i + 1 paired in place of i, i + H/2.", "pair", "F1",
        _if(lambda s: s.ratio == 1, pairing="interleaved")),
    ("half_split_pairs", "Heads i, i + H/2 paired in place of 2i, 2i + 1.", "pair", "F1",
        _if(lambda s: s.ratio == 1, pairing="halves")),
    ("other_signal_noise_order", "All signals first in place of group by group, or the reverse.", "ratio", "F9",
        _swap("pairing", "halves", "interleaved", lambda s: s.ratio > 1)),
    ("keys_repeated_before_pairing", "Each key head repeated for its queries, then paired: both maps read one key.",
        "gqa", "F5", _from("gqa", "pair_then_group", "repeat_then_pair")),
    ("keys_paired_then_grouped", "Key heads paired, then repeated, where the spec repeats first.", "gqa", "F5",
        _from("gqa", "repeat_then_pair", "pair_then_group")),
    ("keys_tiled", "Head i on key head i mod k of each map, in place of i // n.", "gqa", "",
        _if(lambda s: not s.is_plain, group_order="tiled")),
    ("key_heads_tiled", "Query head h on key head h mod K, where h // (H/K) is meant.", "gqa", "",
        _if(lambda s: s.is_plain, group_order="tiled")),
    ("key_heads_in_blocks", "Query head h on key head h // (H/K), where h mod K is meant.", "gqa", "",
        _set(group_order="blocks")),
    ("interleaved_value_heads", "Value heads 2j, 2j + 1 joined in place of j, j + K/2.", "value layout", "F6",
        _from("values", "halves", "interleaved")),
    ("values_half_split", "Values j, j + K/2 joined in place of 2j, 2j + 1.", "value layout", "F6",
        _if(lambda s: s.values in ("wide", "interleaved"), values="halves")),
    # RoPE
    ("no_rope", "q and k not rotated.", "rope kind", "", _set(rope="none")),
    ("other_rope_pairing", "RoPE rotates neighbors 2i, 2i + 1 in place of i, i + d/2, or the reverse.", "rope kind",
        "F2", _swap("rope", "halves", "interleaved")),
    ("whole_head_rotated", "All of a head rotated, where a part of it is.", "rope dim", "F10",
        _set(partial_rotary_factor=1.0)),
    ("other_end_rotated", "The first dimensions of a head rotated in place of the last, or the reverse.", "rope dim",
        "F10", _swap("rotary_at", "first", "last", lambda s: s.partial_rotary_factor < 1)),
    ("frequencies_for_double_head_dim", "RoPE's table for a head of 2d, not split into two: θ^(−i / d).", "rope dim",
        "B6", _theta(lambda theta: theta**0.5)),
    ("other_rope_theta", "RoPE's base is 10 000 whatever the config says, or 500 000 where it says 10 000.",
        "rope base", "", _theta(lambda theta: 500_000.0 if theta == 10_000 else 10_000.0)),
    ("default_frequencies", "Default frequencies θ^(−2i / r), where the spec has others.", "rope base", "F11",
        _set(rope_parameters=None)),
    ("yarn_factor_on_cos_and_sin", "cos and sin times 0.1 log(factor) + 1, where they are not scaled.", "rope scale",
        "F11", lambda s: {"rope_parameters": {n: x for n, x in (s.rope_parameters or {}).items()
                                              if n != "attention_factor"} or None}),
    ("yarn_frequencies", "Motif-3's yarn frequencies, where the spec has default ones.", "rope base", "F11",
        _if(lambda s: s.rope != "none" and s.rotary_at == "last" and not s.rope_parameters, rope_parameters=YARN)),
    # The norm of queries and keys
    ("no_qk_norm", "q and k without their norm.", "qk norm", "F12", _set(qk_norm="none", qk_norm_weight=False)),
    ("no_qk_norm_weights", "The norm of q and k without its weights.", "qk norm", "F12", _set(qk_norm_weight=False)),
    ("qk_layer_norm", "LayerNorm of q and k, where it is RMSNorm.", "qk norm", "F12", _from("qk_norm", "rms", "layer")),
    ("qk_rms_norm", "RMSNorm of q and k, where it is LayerNorm.", "qk norm", "F12", _from("qk_norm", "layer", "rms")),
    ("other_qk_norm_order", "The norm of q and k after RoPE in place of before, or the reverse.", "qk norm", "F12",
        _swap("qk_norm_at", "before_rope", "after_rope", lambda s: s.qk_norm != "none")),
    ("extra_qk_norm", "q and k divided by their root mean square before the scores, as in models with a QK norm.",
        "qk norm", "F12", _if(lambda s: s.qk_norm == "none", qk_norm="rms", qk_norm_at="after_rope")),
    # λ and the gate
    ("lambda_of_head_0", "λ of output head 0 in every head.", "lambda form", "", _set(lambda_per_head=False)),
    ("layer_index_one_too_low", "λ_init = 0.8 − 0.6 exp(−0.3 (l − 1)) with l from 0: −0.01 in the first layer.",
        "lambda_init", "F3", _layer(-1)),
    ("layer_index_from_one", "λ_init = 0.8 − 0.6 exp(−0.3 l) with l from 1.", "lambda_init", "F3", _layer(1)),
    ("lambda_init_is_1", "λ_init = 1 in every layer: attention is multiplied by 0.", "lambda_init", "B10",
        _set(lambda_base="constant", lambda_init=1.0)),
    ("lambda_init_is_08", "λ_init = 0.8 in every layer.", "lambda_init", "B10",
        _set(lambda_base="constant", lambda_init=0.8)),
    ("no_gate", "Heads not multiplied by the gate.", "gate", "F13", _set(gate="none")),
    *((f"{name}_gate", f"{words} in place of the gate's activation.", "gate", "F13",
        _if(lambda s: s.gate != "none", gate=name))
      for name, words in (("sigmoid", "σ(g)"), ("silu", "g σ(g)"), ("linear", "g"))),
    # Scores
    ("scores_not_scaled", "Q Kᵀ, not divided by √d.", "scale", "B14", _scale(lambda s: s.head_dim**0.5)),
    ("scores_scaled_by_sqrt_2d", "Q Kᵀ / √2d: the width of two heads together.", "scale", "B14",
        _scale(lambda _: 0.5**0.5)),
    ("scores_scaled_by_sqrt_d", "Q Kᵀ / √d, where the spec has another scale.", "scale", "B14", _set(scale=None)),
    ("scores_scaled_by_sqrt_v_dim", "Q Kᵀ / √w: scaled for the width of v, not for that of q and k.", "scale", "",
        lambda s: None if s.v_head_dim in (None, s.head_dim) else {"scale": s.value_dim**-0.5}),
    ("exp2_for_exp", "2^z in place of e^z: scores not multiplied by log₂ e.", "lse base", "",
        _scale(lambda _: math.log(2))),
    ("no_softcap", "Scores without the softcap.", "softcap", "", _set(softcap=None)),
    ("softcap_before_scale", "Scores capped before they are scaled: the scale times c tanh(Q Kᵀ / c).", "softcap", "",
        _softcap(scale_of)),
    ("softcap_after_log2e", "Scores multiplied by log₂ e before the softcap, and not after it.", "softcap", "",
        _softcap(lambda _: math.log(2))),
    ("no_sinks", "Softmax without the sink in the denominator.", "sinks", "", _set(sinks=False)),
    # The norm and scale after attention
    ("layer_norm", "LayerNorm in place of RMSNorm: the mean is subtracted first.", "norm kind", "B9",
        _from("norm", "rms", "layer")),
    ("rms_norm_for_layer_norm", "RMSNorm after attention, where it is LayerNorm.", "norm kind", "B9",
        _from("norm", "layer", "rms")),
    ("no_norm_weight", "The norm after attention without its weight, as in DiffLlama.", "norm weight", "F4",
        _set(norm_weight=False)),
    ("no_norm_bias", "The norm after attention without its bias.", "norm weight", "", _set(norm_bias=False)),
    ("norm_of_head_0", "Weight and bias of head 0 for every head.", "norm weight", "",
        _if(lambda s: s.norm_per_head and (s.norm_weight or s.norm_bias), norm_per_head=False)),
    ("no_epsilon", "ε = 0 in the norm.", "eps", "", _set(norm_eps=1e-30)),
    ("epsilon_1e-6", "ε of the norm after attention is 10⁻⁶.", "eps", "F4", _set(norm_eps=1e-6)),
    ("epsilon_1e-5", "ε of the norm after attention is 10⁻⁵.", "eps", "F4", _set(norm_eps=1e-5)),
    ("norm_over_all_heads", "One norm over all heads of a token.", "norm extent", "B7", _set(norm_over="all_heads")),
    ("norm_of_each_head", "One norm for each head, where the spec norms more or fewer dimensions together.",
        "norm extent", "", _set(norm_over="head")),
    ("no_norm_after_attention", "No norm after attention.", "norm kind", "B8",
        _set(norm="none", norm_weight=False, norm_bias=False)),
    ("extra_norm", "A norm of each head after attention, as in v1, where the spec has none.", "norm kind", "B3",
        _if(lambda s: s.norm == "none" and not s.is_plain, norm="rms")),
    ("no_output_scale", "The output not multiplied by 1 − λ_init.", "output scale", "B10", _set(out_scale="none")),
    ("out_scaled_as_in_v1", "The output multiplied by 1 − λ_init, where the spec has no factor.", "output scale", "B3",
        _from("out_scale", "none", "1 - lambda_init")),
    # Masks
    ("causal_mask_top_left", "Query t sees keys up to t, also with a cache, where it should see keys up to t + S − T.",
        "mask align", "B18", _from("causal", "bottom_right", "top_left")),
    ("mask_aligned_to_last_key", "The last query sees all keys, where query t sees keys up to t.", "mask align", "B18",
        _from("causal", "top_left", "bottom_right")),
    ("no_causal_mask", "No causal mask: every query sees all keys.", "mask", "", _set(causal="none")),
    ("extra_causal_mask", "A causal mask, where the spec has none.", "mask align", "",
        _from("causal", "none", "top_left")),
    ("window_one_too_short", "A window that is one key too short.", "window", "B19", _window(-1)),
    ("window_one_too_long", "A window that is one key too long.", "window", "B19", _window(1)),
    ("no_window", "No window: earlier keys stay visible.", "window", "B19", _set(window=None)),
    ("extra_window", "A window of 4 keys, where none is meant.", "window", "B19",
        _if(lambda s: s.window is None and s.causal != "none", window=4)),
    ("finite_mask_value", "Weights 1/S for a query that sees no key, as from a mask of large negative numbers.", "mask",
        "", _set(masked_rows="uniform")),
    ("masked_rows_nan", "NaN for a query that sees no key.", "mask", "", _set(masked_rows="nan")),
    ("masked_rows_zero", "0 for a query that sees no key.", "mask", "", _set(masked_rows="zeros")),
)  # fmt: skip
SPEC_DEVIATIONS = tuple(misread(name, what, axis, row, fields=fields) for name, what, axis, row, fields in _TABLE)
"""Where two of them compute the same function, the first gives the name."""
