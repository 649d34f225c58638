"""Every spelling of the rotary settings in a config.json → one checked dict, as transformers 5.24 resolves them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from refdiff.messages import json_type, show_name, show_typed, show_value

DEFAULT_THETA = 10000.0

# Fields of each type: those that must be there, then those that may be. All types take rope_theta and the two below.
_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (
        ("short_factor", "long_factor", "original_max_position_embeddings"),
        ("attention_factor", "factor"),
    ),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"), ()),
    "proportional": ((), ("factor",)),
}
_ALWAYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_NULL_MEANS_ABSENT = {
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
}
_MAY_BE_ZERO = {"mscale", "mscale_all_dim", "beta_fast", "beta_slow", "partial_rotary_factor"}


def resolve(
    rope_parameters: Any, legacy: Mapping[str, Any], max_position_embeddings: int, top_level_original: Any
) -> dict[str, Any]:
    """Merge the spellings of the rotary settings into one dict that has `rope_type` and `rope_theta`.

    `legacy` holds what stood beside it at the top level: `rope_scaling`, `rope_theta`, `partial_rotary_factor`. As in
    transformers 5.24 (`RotaryEmbeddingConfigMixin`): a `rope_scaling` that is not empty replaces `rope_parameters`; a
    field inside the dict wins over the same one at the top level; `type` stands in for an absent `rope_type`; and for
    yarn, longrope and llama3 a top-level `original_max_position_embeddings` wins over the one inside, with
    `max_position_embeddings` last.

    Raises:
        ValueError: a setting is not an object.
    """
    for name, value in (("rope_scaling", legacy.get("rope_scaling")), ("rope_parameters", rope_parameters)):
        if value is not None and not isinstance(value, Mapping):
            raise ValueError(f"{name}: got {json_type(value)}, expected an object such as {{'rope_type': 'default'}}")
    result = dict(legacy.get("rope_scaling") or rope_parameters or {})
    if result.get("partial_rotary_factor", 1) is None:
        del result["partial_rotary_factor"]
    result.setdefault("rope_theta", legacy.get("rope_theta", DEFAULT_THETA))
    if legacy.get("partial_rotary_factor") is not None:
        result.setdefault("partial_rotary_factor", legacy["partial_rotary_factor"])
    result.setdefault("rope_type", result.get("type", "default"))
    if result["rope_type"] in ("llama3", "yarn", "longrope"):
        if top_level_original is not None:
            result["original_max_position_embeddings"] = top_level_original
        result.setdefault("original_max_position_embeddings", max_position_embeddings)
    return result


def check(rope: dict[str, Any], head_dim: int, max_position_embeddings: int) -> list[str]:
    """Check resolved settings against `head_dim`; return remarks about values that are odd but computable.

    Raises:
        ValueError: a field is out of its range; the message has its name, its value, the range and the fix.
    """
    rope_type = rope["rope_type"]
    if not isinstance(rope_type, str) or rope_type not in _FIELDS:
        raise ValueError(
            f"rope_parameters.rope_type: got {show_value(rope_type)}, expected one of {', '.join(_FIELDS)}"
        )
    required, optional = _FIELDS[rope_type]
    missing = [name for name in required if name not in rope]
    if missing:
        raise ValueError(f"rope_parameters: got no {', '.join(missing)}, expected each with rope_type '{rope_type}'")
    _check_number(rope, "rope_theta")
    for name in ("partial_rotary_factor", *required, *optional):
        if name in rope:
            _check_field(rope, name, rope_type, head_dim)
    _check_rotary_size(rope, head_dim)
    _check_relations(rope, head_dim)

    remarks = []
    factor = rope.get("factor") if "factor" in (*required, *optional) else None
    if factor is not None and factor < 1:
        effect = "rotates backwards" if factor < 0 else "shortens the context"
        remarks.append(f"rope_parameters.factor is {factor}, below 1, which {effect}")
    if rope_type == "llama3":
        if rope["high_freq_factor"] < rope["low_freq_factor"]:
            remarks.append("rope_parameters.high_freq_factor is below low_freq_factor")
        if rope["original_max_position_embeddings"] >= max_position_embeddings:
            remarks.append(
                f"rope_parameters.original_max_position_embeddings is {rope['original_max_position_embeddings']}, "
                f"not below max_position_embeddings {max_position_embeddings}"
            )
    if rope_type == "yarn" and (rope.get("beta_fast") or 32) < (rope.get("beta_slow") or 1):
        remarks.append("rope_parameters.beta_fast is below beta_slow")
    unused = sorted(show_name(str(name)) for name in rope if name not in (*_ALWAYS, *required, *optional))
    if rope_type == "default" and rope.get("partial_rotary_factor") not in (None, 1):
        unused.append("partial_rotary_factor")
    if unused:
        remarks.append(f"rope_type '{rope_type}' does not use rope_parameters.{{{', '.join(unused)}}}"[:500])
    return remarks


def use_config_names(message: str, given: Any, legacy: Mapping[str, Any]) -> str:
    """Name the settings in a message of `check` as the config does; the arguments are those of `resolve`."""
    inside = legacy.get("rope_scaling") or given or {}
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in legacy and name not in inside:
            message = message.replace(f"rope_parameters.{name}", name)
    if "type" in inside and "rope_type" not in inside:
        message = message.replace("rope_type", "type")
    return message.replace("rope_parameters", "rope_scaling") if legacy.get("rope_scaling") else message


def _check_field(rope: dict[str, Any], name: str, rope_type: str, head_dim: int) -> None:
    value = rope[name]
    if value is None and (name in _NULL_MEANS_ABSENT or (name == "factor" and rope_type in ("yarn", "longrope"))):
        return
    if name in ("short_factor", "long_factor"):
        if not isinstance(value, list | tuple):
            raise ValueError(f"rope_parameters.{name}: got {json_type(value)}, expected a list of numbers")
        if len(value) != (expected := max(head_dim // 2, 1)):
            raise ValueError(
                f"rope_parameters.{name}: got {len(value)} numbers, expected {expected}: half of head_dim {head_dim}"
            )
        for index, item in enumerate(value):
            _require_number(item, f"rope_parameters.{name}[{index}]", may_be_zero=False)
    elif name == "truncate":
        if not isinstance(value, bool):
            raise ValueError(f"rope_parameters.truncate: got {show_value(value)}, expected true or false")
    elif name == "factor" and rope_type == "linear" and _is_negative(value):  # transformers warns, and divides by it
        _require_number(-value, "rope_parameters.factor (its size)", may_be_zero=False)
    elif name == "original_max_position_embeddings":
        _check_number(rope, name)
        if value != int(value):
            raise ValueError(f"rope_parameters.{name}: got {show_value(value)}, expected a whole number")
    else:
        _check_number(rope, name)


def _is_negative(value: Any) -> bool:
    return isinstance(value, int | float) and value < 0


def _check_number(rope: dict[str, Any], name: str) -> None:
    _require_number(rope[name], f"rope_parameters.{name}", may_be_zero=name in _MAY_BE_ZERO)


def _require_number(value: Any, name: str, *, may_be_zero: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: got {show_typed(value)}, expected a number")
    # NaN fails this too. The limits leave room for the powers and products of the formulas.
    if not (1e-30 <= value <= 1e30 or (may_be_zero and value == 0)):
        raise ValueError(f"{name}: got {show_value(value)}, expected {'0, or ' if may_be_zero else ''}1e-30 to 1e30")


def _check_rotary_size(rope: dict[str, Any], head_dim: int) -> None:
    partial = rope.get("partial_rotary_factor")
    if partial is None:
        return
    if partial > 1:
        raise ValueError(f"rope_parameters.partial_rotary_factor: got {partial}, expected 0 to 1")
    # transformers' DiffLlama multiplies all of head_dim by cos and sin, so it fails on a shorter rotary part.
    if rope["rope_type"] not in ("default", "proportional") and int(head_dim * partial) != head_dim:
        raise ValueError(
            f"rope_parameters.partial_rotary_factor: got {partial}, expected 1 with rope_type '{rope['rope_type']}', "
            "which rotates the whole head; remove the field, or use rope_type 'proportional'"
        )


def _check_relations(rope: dict[str, Any], head_dim: int) -> None:
    rope_type = rope["rope_type"]
    log_of_1 = rope_type == "longrope" and rope["original_max_position_embeddings"] < 2
    if log_of_1 and rope.get("attention_factor") is None:
        raise ValueError(
            "rope_parameters.original_max_position_embeddings: got 1, expected 2 or more: longrope takes its log"
        )
    if rope_type == "llama3" and rope["high_freq_factor"] == rope["low_freq_factor"]:
        raise ValueError(
            f"rope_parameters: got {rope['low_freq_factor']} for high_freq_factor and low_freq_factor, "
            "expected two values"
        )
    if rope_type == "dynamic" and head_dim == 2:
        raise ValueError(
            "head_dim: got 2, expected 4 or more: rope_type 'dynamic' divides by head_dim - 2; use rope_type 'linear'"
        )
    if rope_type in ("yarn", "proportional") and head_dim == 1:
        raise ValueError(f"head_dim: got 1, expected 2 or more: rope_type '{rope_type}' rotates pairs of values")
    if rope_type == "yarn" and math.log(rope["rope_theta"]) == 0:
        raise ValueError("rope_parameters.rope_theta: got 1, expected another value: yarn divides by its logarithm")
