"""What no kernel can compute: combinations of a `Spec` that are refused, with the reason."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refdiff.oracle.spec import Spec

CHOICES: dict[str, tuple[str, ...]] = {
    "pairing": ("halves", "interleaved"),
    "keys": ("own", "shared"),
    "gqa": ("pair_then_group", "repeat_then_pair"),
    "group_order": ("blocks", "tiled"),
    "values": ("wide", "halves", "interleaved", "single"),
    "rope": ("none", "halves", "interleaved"),
    "lambda_form": ("exp", "sigmoid", "given"),
    "lambda_base": ("depth", "depth - 1", "constant"),
    "norm": ("rms", "none"),
    "norm_over": ("head", "half_head", "all_heads"),
    "out_scale": ("1 - lambda_init", "1 - lambda", "lambda_init", "none"),
    "causal": ("bottom_right", "top_left", "none"),
    "masked_rows": ("zeros", "uniform", "nan"),
    "lse_base": ("e", "2"),
}
"""The fields that are one of several words."""


def check_spec(spec: Spec) -> None:
    """Raise ValueError where `spec` is not one of the possible ones."""
    _check_fields(spec)
    _check_heads(spec)
    if spec.rope != "none" and spec.head_dim % 2:
        raise ValueError(f"head_dim is {spec.head_dim}, but RoPE turns dimensions in pairs: it must be even")
    if spec.norm_weight and spec.norm == "none":
        raise ValueError("norm_weight is True, but there is no norm: set norm_weight=False, or norm='rms'")
    if spec.norm_over == "half_head" and spec.out_dim % 2:
        raise ValueError(f"norm_over is 'half_head', but a head is {spec.out_dim} wide, which has no halves")


def _check_fields(spec: Spec) -> None:
    for name, words in CHOICES.items():
        if (value := getattr(spec, name)) not in words:
            raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, words))}")
    for name in ("query_heads", "key_heads", "head_dim", "ratio"):
        if not isinstance(value := getattr(spec, name), int) or value < 1:
            raise ValueError(f"{name} is {value!r}, but must be a whole number of 1 or more")
    if not isinstance(spec.layer, int) or spec.layer < 0:
        raise ValueError(f"layer is {spec.layer!r}, but layers count from 0")
    for name in ("scale", "softcap"):
        value = getattr(spec, name)
        if value is not None and not (0 < value < math.inf):
            raise ValueError(f"{name} is {value!r}, but must be above 0, or None")
    if spec.window is not None and (not isinstance(spec.window, int) or spec.window < 0):
        raise ValueError(f"window is {spec.window!r}, but must be a whole number of keys, 0 or more, or None")
    if not 0 <= spec.norm_eps < math.inf:
        raise ValueError(f"norm_eps is {spec.norm_eps!r}, but must be 0 or more")
    if not 0 < spec.rope_theta < math.inf:
        raise ValueError(f"rope_theta is {spec.rope_theta!r}, but must be above 0")
    if (spec.lambda_base == "constant") != (spec.lambda_init is not None):
        raise ValueError(
            f"lambda_base is {spec.lambda_base!r} and lambda_init {spec.lambda_init!r}: the number belongs to "
            "lambda_base='constant', and to no other"
        )


def _check_heads(spec: Spec) -> None:
    H, K, r = spec.query_heads, spec.key_heads, spec.ratio
    if H % (r + 1):
        raise ValueError(
            f"query_heads is {H}, but {r} signal heads and a noise head are {r + 1}: it must be a multiple of {r + 1} "
            "(it counts the heads of both maps)"
        )
    if spec.keys == "own" and K % 2:
        raise ValueError(
            f"key_heads is {K}, but each map of a pair has a key head of its own: it must be even (row B22 of the "
            "catalogue; with keys='shared' it may be odd)"
        )
    noise = H // (r + 1)
    if noise % spec.key_groups:
        what = "shared keys" if spec.keys == "shared" else "pairs of keys"
        raise ValueError(
            f"{H} query heads are {noise} {'pairs' if r == 1 else 'groups'}, which {spec.key_groups} {what} cannot "
            "share evenly: pairs would straddle groups (row B2 of the catalogue)"
        )
    if spec.keys == "shared" and spec.values != "single":
        raise ValueError(f"values are {spec.values!r}, but shared keys have one value head of width d each: 'single'")
    if spec.keys == "shared" and spec.pairing == "halves":
        raise ValueError(
            "keys are shared, and pairing is 'halves': the two queries of a pair would read different keys (row B1 of "
            "the catalogue); use pairing='interleaved'"
        )
    if r > 1 and (spec.gqa, spec.group_order) != ("pair_then_group", "blocks"):
        raise ValueError(f"ratio is {r}: gqa must be 'pair_then_group' and group_order 'blocks'")
    if spec.gqa == "repeat_then_pair" and (spec.keys, spec.group_order) != ("own", "blocks"):
        raise ValueError("gqa is 'repeat_then_pair': keys must be 'own' and group_order 'blocks'")
