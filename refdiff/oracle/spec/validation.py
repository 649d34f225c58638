"""Check the fields of a `Spec`: each value, and the combinations that no kernel can compute, by tables."""

from __future__ import annotations

import json
import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from refdiff.files import finite_float, unique_keys
from refdiff.layers import rope_frequencies
from refdiff.layers.rope_frequencies import LENGTH_DEPENDENT
from refdiff.messages import did_you_mean, json_problem

if TYPE_CHECKING:
    from refdiff.oracle.spec import Spec

DIMENSIONS = ("query_heads", "key_heads", "head_dim")
"""The fields that have no default."""

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

_NUMBERS: dict[str, tuple[type, str, Callable[[Any], bool]]] = {
    **dict.fromkeys((*DIMENSIONS, "ratio"), (int, "a whole number of 1 or more", lambda n: n >= 1)),
    "v_head_dim": (int, "a whole number of 1 or more, or None", lambda n: n >= 1),
    "layer": (int, "a whole number, counted from 0", lambda n: n >= 0),
    "window": (int, "a whole number of keys, 0 or more, or None", lambda n: n >= 0),
    "rope_theta": (float, "a number above 0", lambda x: 0 < x < math.inf),
    "partial_rotary_factor": (float, "a number above 0, at most 1", lambda x: 0 < x <= 1),
    "norm_eps": (float, "a number of 0 or more", lambda x: 0 <= x < math.inf),
    "qk_norm_eps": (float, "a number above 0", lambda x: 0 < x < math.inf),
    "lambda_init": (float, "a finite number, published ones from 0.2 to 0.8, or None", math.isfinite),
    "scale": (float, "a number above 0, or None", lambda x: 0 < x < math.inf),
    "softcap": (float, "a number above 0, or None", lambda x: 0 < x < math.inf),
}
_FLAGS = ("norm_weight", "norm_bias", "norm_per_head", "qk_norm_weight", "lambda_per_head", "sinks")

PLAIN_FIELDS = {"pairing": "interleaved", "keys": "shared", "values": "single", "out_scale": "none", "ratio": 1}
"""The only values that these fields may have for plain attention: they mean GQA with shared heads of k and v."""


class RopeParameters(dict[str, Any]):
    """RoPE parameters by name, hashable because a spec is a key of caches."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items())))


def convert_field(name: str, value: Any) -> Any:
    """Return the value of a field as a word, a Python number, a bool or `RopeParameters`.

    Raises:
        ValueError: the field cannot have this value.
    """
    if name == "rope_parameters":
        return None if value is None else _convert_rope_parameters(value)
    is_bool = isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
    hint = ""
    if name in CHOICES:
        wanted = f"one of {', '.join(map(repr, CHOICES[name]))}"
        if isinstance(value, str) and value in CHOICES[name]:
            return value
    elif name in _FLAGS:
        wanted = "True or False"
        if is_bool:
            return bool(value)
    else:
        kind, wanted, holds = _NUMBERS[name]
        if value is None and wanted.endswith("None"):
            return None
        found = None if is_bool else _as_number(value, kind)
        if found is not None and holds(found):
            return found
        if isinstance(value, str) and value.strip().replace(".", "").isdigit():
            hint = "; leave the quotes out"
    raise ValueError(f"{name}: got {value!r}, expected {wanted}{hint}")


def _as_number(value: Any, kind: type) -> Any:
    """Return a number of any library as Python's; None if it is none of this kind."""
    if kind is int:
        return operator.index(value) if hasattr(value, "__index__") else None
    if not isinstance(value, numbers.Real):
        return None
    return value if type(value).__module__ == "builtins" else float(value)


def _convert_rope_parameters(value: Any) -> RopeParameters:
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
            "set rope='none', and give q and k as they are after RoPE"
        )
    return RopeParameters(made)


def check_field_names(given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise ValueError if a field is not among `known`, or a dimension is missing."""
    known = list(known)
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known, ", ", f": there are preset, {', '.join(known)}")
            raise ValueError(f"{name!r} is no field of a Spec{hint}")
    if missing := [name for name in DIMENSIONS if name not in given]:
        raise ValueError(f"the spec lacks {', '.join(missing)}: whole numbers of 1 or more")


def check_spec(spec: Spec) -> None:
    """Raise ValueError if no kernel can compute `spec`."""
    if spec.is_plain:
        for name, only in {**PLAIN_FIELDS, "gqa": "pair_then_group"}.items():
            if (value := getattr(spec, name)) != only:
                raise ValueError(
                    f"{name} is {value!r}, but of plain attention (lambda_form='none') it must be {only!r}"
                )
    for is_wrong, message in _RULES:
        if is_wrong(spec):
            pairs = spec.ratio == 1
            raise ValueError(message.format(
                s=spec, multiple=spec.ratio + 1, groups=spec.query_heads // (spec.ratio + 1),
                unit="pairs" if pairs else "groups",
                shared="shared keys" if spec.keys == "shared" else "pairs of keys",
                counted="both maps are counted" if pairs else f"{spec.ratio} signal heads and a noise head",
            ))  # fmt: skip
    if spec.rope_parameters and spec.rope != "none":
        rope_frequencies({"rope_theta": spec.rope_theta, **spec.rope_parameters}, spec.rotary_dim, 1)


_RULES: tuple[tuple[Callable[[Spec], bool], str], ...] = (
    (lambda s: s.is_plain and s.query_heads % s.key_heads != 0,
     "query_heads is {s.query_heads} and key_heads {s.key_heads}, but each key head serves the same number of query "
     "heads: query_heads must be a multiple of key_heads"),
    (lambda s: not s.is_plain and s.query_heads % (s.ratio + 1) != 0,
     "query_heads: got {s.query_heads}, expected a multiple of {multiple} ({counted})"),
    (lambda s: not s.is_plain and s.keys == "own" and s.key_heads % 2 == 1,
     "key_heads is {s.key_heads}, but each map of a pair has a key head of its own: it must be even (with "
     "keys='shared' it may be odd)"),
    (lambda s: not s.is_plain and s.query_heads // (s.ratio + 1) % s.key_groups != 0,
     "{s.query_heads} query heads are {groups} {unit}, which {s.key_groups} {shared} cannot share evenly: pairs would "
     "straddle groups"),
    (lambda s: s.keys == "shared" and s.values != "single",
     "values are {s.values!r}, but shared keys have one value head of width d each: 'single'"),
    (lambda s: s.keys == "shared" and s.pairing == "halves",
     "keys are shared, and pairing is 'halves': the two queries of a pair would read different keys, as in "
     "https://huggingface.co/blog/microsoft/diff-attn-v2; use pairing='interleaved'"),
    (lambda s: s.ratio > 1 and (s.gqa, s.group_order) != ("pair_then_group", "blocks"),
     "ratio is {s.ratio}: gqa must be 'pair_then_group' and group_order 'blocks'"),
    (lambda s: s.gqa == "repeat_then_pair" and (s.keys, s.group_order) != ("own", "blocks"),
     "gqa is 'repeat_then_pair': keys must be 'own' and group_order 'blocks'"),
    (lambda s: (s.lambda_base == "constant") != (s.lambda_init is not None),
     "lambda_base is {s.lambda_base!r} and lambda_init {s.lambda_init!r}: the number belongs to "
     "lambda_base='constant', and to no other"),
    (lambda s: s.rope != "none" and s.head_dim % 2 == 1 and s.partial_rotary_factor == 1,
     "head_dim is {s.head_dim}, but RoPE rotates dimensions in pairs: it must be even"),
    (lambda s: s.rope != "none" and s.rotary_dim < 2,
     "partial_rotary_factor is {s.partial_rotary_factor!r}, which rotates no pair of the {s.head_dim} dimensions of a "
     "head: set rope='none', or a larger factor"),
    (lambda s: s.norm_weight and s.norm == "none",
     "norm_weight is True, but there is no norm: set norm_weight=False, or norm='rms'"),
    (lambda s: s.norm_bias and s.norm == "none",
     "norm_bias is True, but there is no norm: set norm_bias=False, or norm='layer'"),
    (lambda s: s.qk_norm_weight and s.qk_norm == "none",
     "qk_norm_weight is True, but there is no norm of q and k: set qk_norm='rms'"),
    (lambda s: s.sinks and s.masked_rows != "zeros",
     "masked_rows is {s.masked_rows!r}, but with sinks it must be 'zeros': a query that sees no key gives all its "
     "weight to the sink"),
    (lambda s: s.norm_over == "half_head" and s.out_dim % 2 == 1,
     "norm_over is 'half_head', but a head is {s.out_dim} wide, which is odd"),
)  # fmt: skip
"""The combinations of fields that no kernel can compute, and what is said of each."""


def parse_fields(words: Sequence[str]) -> dict[str, Any]:
    """Parse words FIELD=VALUE: the value is none, true, false, JSON, or else text.

    Raises:
        ValueError: a word has another form; the message begins with the word or its field.
    """
    fields: dict[str, Any] = {}
    for word in words:
        field, equals, text = word.strip().partition("=")
        if not equals or not field:
            raise ValueError(f"{word}: must be FIELD=VALUE, such as window=128")
        is_text = field in CHOICES or field == "preset"
        try:
            fields[field] = text if is_text else _value(text)
        except ValueError as error:
            raise ValueError(f"{field}: {json_problem(error)}") from error
    return fields


def _value(text: str) -> Any:
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return json.loads(text, parse_float=finite_float, object_pairs_hook=unique_keys)
    except (json.JSONDecodeError, RecursionError):
        return text
