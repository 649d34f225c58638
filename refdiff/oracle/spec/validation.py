"""Check the fields of a `Spec`: each value, and the combinations that no kernel can compute."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from refdiff.layers import rope_frequencies
from refdiff.layers.rope_frequencies import LENGTH_DEPENDENT
from refdiff.messages import did_you_mean

if TYPE_CHECKING:
    from refdiff.oracle.spec import Spec

CHOICES: dict[str, tuple[str, ...]] = {
    "pairing": ("halves", "interleaved"),
    "keys": ("own", "shared"),
    "gqa": ("pair_then_group", "repeat_then_pair"),
    "group_order": ("blocks", "tiled"),
    "values": ("wide", "halves", "interleaved", "single"),
    "rope": ("none", "halves", "interleaved"),
    "rotary_at": ("first", "last"),
    "lambda_form": ("exp", "sigmoid", "given", "none"),
    "lambda_base": ("depth", "depth - 1", "constant"),
    "qk_norm": ("none", "rms", "layer"),
    "qk_norm_at": ("before_rope", "after_rope"),
    "norm": ("rms", "layer", "none"),
    "norm_over": ("head", "half_head", "all_heads"),
    "out_scale": ("1 - lambda_init", "1 - lambda", "lambda_init", "none"),
    "gate": ("none", "sigmoid", "silu", "linear"),
    "causal": ("bottom_right", "top_left", "none"),
    "masked_rows": ("zeros", "uniform", "nan"),
    "lse_base": ("e", "2"),
    "padded_queries": ("computed", "any"),
}
"""The values of the fields that are one of several words."""

DIMENSIONS = ("query_heads", "key_heads", "head_dim")
"""The fields that have no default."""

_INTEGERS: dict[str, tuple[str, int]] = {
    **dict.fromkeys((*DIMENSIONS, "ratio"), ("a whole number of 1 or more", 1)),
    "v_head_dim": ("a whole number of 1 or more, or None", 1),
    "layer": ("a whole number, counted from 0", 0),
    "window": ("a whole number of keys, 0 or more, or None", 0),
}
"""For each integer field, a description for messages and the least value."""
_REALS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "rope_theta": ("a number above 0", lambda x: 0 < x < math.inf),
    "partial_rotary_factor": ("a number above 0, at most 1", lambda x: 0 < x <= 1),
    "norm_eps": ("a number of 0 or more", lambda x: 0 <= x < math.inf),
    "qk_norm_eps": ("a number above 0", lambda x: 0 < x < math.inf),
    "lambda_init": ("a finite number, published ones from 0.2 to 0.8, or None", math.isfinite),
    "scale": ("a number above 0, or None", lambda x: 0 < x < math.inf),
    "softcap": ("a number above 0, or None", lambda x: 0 < x < math.inf),
}
_BOOLEANS = ("norm_weight", "norm_bias", "norm_per_head", "qk_norm_weight", "lambda_per_head", "sinks")
TYPED_FIELDS = (*_INTEGERS, *_REALS, *_BOOLEANS, "rope_parameters")
"""The fields that `convert_field` checks; those of `CHOICES` are checked in `check_spec`."""


class RopeParameters(dict[str, Any]):
    """RoPE parameters by name, hashable because a spec is a key of caches."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items())))


def convert_field(name: str, value: Any) -> Any:
    """Return the value of a typed field as a Python number or bool, or as `RopeParameters`.

    Raises:
        ValueError: the field cannot have this value.
    """
    if name == "rope_parameters":
        return _convert_rope_parameters(value)
    truth = isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
    if name in _BOOLEANS:
        if not truth:
            raise ValueError(f"{name}: got {value!r}, expected True or False")
        return bool(value)
    wanted = (_INTEGERS.get(name) or _REALS[name])[0]
    if value is None and wanted.endswith("None"):
        return None
    refused = ValueError(f"{name}: got {value!r}, expected {wanted}{_quotes_hint(value)}")
    if truth:
        raise refused
    if name in _INTEGERS:
        try:
            found: Any = operator.index(value)
        except TypeError:
            raise refused from None
        holds = found >= _INTEGERS[name][1]
    else:
        if not isinstance(value, numbers.Real):
            raise refused
        found = value if type(value).__module__ == "builtins" else float(value)
        holds = _REALS[name][1](found)
    if not holds:
        raise refused
    return found


def _convert_rope_parameters(value: Any) -> RopeParameters | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ValueError(
            f"rope_parameters: got {value!r}, expected a mapping, such as {{'rope_type': 'yarn', 'factor': 4.0, "
            "'original_max_position_embeddings': 4096}, or None"
        )
    made = {str(name): tuple(map(float, x)) if hasattr(x, "__iter__") and not isinstance(x, str) else x
            for name, x in value.items()}  # fmt: skip
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in made:
            raise ValueError(f"rope_parameters has {name}, which is a field of the spec itself: give it beside them")
    if made.get("rope_type") in LENGTH_DEPENDENT:
        raise ValueError(
            f"rope_parameters has rope_type {made['rope_type']!r}, whose frequencies depend on the length of a text: "
            "give those of yours, {'frequencies': [...], 'attention_factor': 1.0}"
        )
    return RopeParameters(made)


def _quotes_hint(value: Any) -> str:
    """The end of a message about a number in quotes; "" for anything else."""
    return "; leave the quotes out" if isinstance(value, str) and value.strip().replace(".", "").isdigit() else ""


def check_field_names(given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise ValueError if a field is not among `known`, or a dimension is missing."""
    known = list(known)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known, ", ", ":")
            raise ValueError(f"{name!r} is no field of a Spec{hint} there are preset, {', '.join(known)}")
    if missing := [name for name in DIMENSIONS if name not in given]:
        raise ValueError(f"the spec lacks {', '.join(missing)}: whole numbers of 1 or more")


def check_spec(spec: Spec) -> None:
    """Raise ValueError if no kernel can compute `spec`."""
    _check_fields(spec)
    if spec.is_plain:
        _check_plain(spec)
    else:
        _check_heads(spec)
    if spec.rope != "none":
        _check_rope(spec)
    if spec.norm_weight and spec.norm == "none":
        raise ValueError("norm_weight is True, but there is no norm: set norm_weight=False, or norm='rms'")
    if spec.norm_bias and spec.norm == "none":
        raise ValueError("norm_bias is True, but there is no norm: set norm_bias=False, or norm='layer'")
    if spec.qk_norm_weight and spec.qk_norm == "none":
        raise ValueError("qk_norm_weight is True, but there is no norm of q and k: set qk_norm='rms'")
    if spec.sinks and spec.masked_rows != "zeros":
        raise ValueError(
            f"masked_rows is {spec.masked_rows!r}, but with sinks it must be 'zeros': a query that sees no key gives "
            "all its weight to the sink"
        )
    if spec.norm_over == "half_head" and spec.out_dim % 2:
        raise ValueError(f"norm_over is 'half_head', but a head is {spec.out_dim} wide, which is odd")


def _check_rope(spec: Spec) -> None:
    d, r = spec.head_dim, spec.rotary_dim
    if d % 2 and spec.partial_rotary_factor == 1:
        raise ValueError(f"head_dim is {d}, but RoPE rotates dimensions in pairs: it must be even")
    if r < 2:
        raise ValueError(
            f"partial_rotary_factor is {spec.partial_rotary_factor!r}, which rotates no pair of the {d} dimensions of "
            "a head: set rope='none', or a larger factor"
        )
    given = spec.rope_parameters or {}
    if "frequencies" in given:
        if len(given["frequencies"]) != r // 2 or (more := set(given) - {"frequencies", "attention_factor"}):
            also = f", and beside them {', '.join(sorted(more))}" if len(given["frequencies"]) == r // 2 else ""
            raise ValueError(
                f"rope_parameters has {len(given['frequencies'])} frequencies{also}, but must have {r // 2}, one for "
                f"each pair of the {r} rotated dimensions, and may have attention_factor"
            )
    elif given:
        rope_frequencies({"rope_theta": spec.rope_theta, **given}, r, 1)


def _check_fields(spec: Spec) -> None:
    for name, words in CHOICES.items():
        if (value := getattr(spec, name)) not in words:
            raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, words))}")
    if (spec.lambda_base == "constant") != (spec.lambda_init is not None):
        raise ValueError(
            f"lambda_base is {spec.lambda_base!r} and lambda_init {spec.lambda_init!r}: the number belongs to "
            "lambda_base='constant', and to no other"
        )


PLAIN_FIELDS = {"pairing": "interleaved", "keys": "shared", "values": "single", "out_scale": "none", "ratio": 1}
"""The only values that these fields may have for plain attention: they mean GQA with shared heads of k and v."""


def _check_plain(spec: Spec) -> None:
    for name, only in {**PLAIN_FIELDS, "gqa": "pair_then_group"}.items():
        if (value := getattr(spec, name)) != only:
            raise ValueError(f"{name} is {value!r}, but of plain attention (lambda_form='none') it must be {only!r}")
    if spec.query_heads % spec.key_heads:
        raise ValueError(
            f"query_heads is {spec.query_heads} and key_heads {spec.key_heads}, but each key head serves the same "
            "number of query heads: query_heads must be a multiple of key_heads"
        )


def _check_heads(spec: Spec) -> None:
    H, K, r = spec.query_heads, spec.key_heads, spec.ratio
    if H % (r + 1):
        raise ValueError(
            f"query_heads: got {H}, expected a multiple of {r + 1} "
            + ("(both maps are counted)" if r == 1 else f"({r} signal heads and a noise head)")
        )
    if spec.keys == "own" and K % 2:
        raise ValueError(
            f"key_heads is {K}, but each map of a pair has a key head of its own: it must be even (with "
            "keys='shared' it may be odd)"
        )
    noise = H // (r + 1)
    if noise % spec.key_groups:
        what = "shared keys" if spec.keys == "shared" else "pairs of keys"
        raise ValueError(
            f"{H} query heads are {noise} {'pairs' if r == 1 else 'groups'}, which {spec.key_groups} {what} cannot "
            "share evenly: pairs would straddle groups"
        )
    if spec.keys == "shared" and spec.values != "single":
        raise ValueError(f"values are {spec.values!r}, but shared keys have one value head of width d each: 'single'")
    if spec.keys == "shared" and spec.pairing == "halves":
        raise ValueError(
            "keys are shared, and pairing is 'halves': the two queries of a pair would read different keys, as "
            "in https://huggingface.co/blog/microsoft/diff-attn-v2; use pairing='interleaved'"
        )
    if r > 1 and (spec.gqa, spec.group_order) != ("pair_then_group", "blocks"):
        raise ValueError(f"ratio is {r}: gqa must be 'pair_then_group' and group_order 'blocks'")
    if spec.gqa == "repeat_then_pair" and (spec.keys, spec.group_order) != ("own", "blocks"):
        raise ValueError("gqa is 'repeat_then_pair': keys must be 'own' and group_order 'blocks'")
