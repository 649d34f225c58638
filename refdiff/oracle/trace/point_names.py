"""The names of a run's points, which `points.txt` lists in order, with shape and description.

A point is the output of a module in transformers, or a value between modules. Names of transformers' modules, unilm,
timm and vLLM are translated to these, whatever their prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from refdiff.messages import did_you_mean

_LAYER_WORDS = re.compile(r"(?:^|.*\.)(?:layers|h|blocks)\.(\d+)(?:\.(.*))?$")
_REPEATED = re.compile(r"(.*?)(\[\d+\])?$")

_LAYER_NAMES = {
    "out_proj": "o_proj",  # unilm
    "subln": "groupnorm",
    "self_attn_layer_norm": "input_layernorm",
    "final_layer_norm": "post_attention_layernorm",
    "proj": "o_proj",  # timm
    "sub_norm": "groupnorm",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
}
_MODEL_NAMES = {"wte": "embed_tokens", "tok_embeddings": "embed_tokens", "output": "lm_head"}
_ATTENTION = ("attn", "attention", "inner_attn", "self_attn.inner_cross_attn")


def canonical_names(names: Iterable[str], points: Iterable[str], aliases: Mapping[str, str]) -> dict[str, str]:
    """Return the path of each name: a point of `points`, a name that `separate_maps` splits, or no point at all.

    Args:
        aliases: names → paths, beside the tables above.
    """
    known = set(points)
    base = path_prefix(known) if any("layers." in path for path in known) else None
    own = {name: aliases.get(name, name) for name in names}
    return {name: path if path in known else _translate(path, base) for name, path in own.items()}


def path_prefix(points: Iterable[str]) -> str:
    """Return what all paths begin with, such as "model."; "" without layers."""
    return min((path.partition("layers.")[0] for path in points if "layers." in path), key=len, default="")


def near_point(name: str, points: Iterable[str]) -> str:
    """Return a hint for a name that is no point: ", did you mean 'attn1'?", or "".

    The last part of the name is compared with those of the points of the same module, or of all points without one.
    """
    head, _, last = name.rpartition(".")
    some = [path for path in points if path.rpartition(".")[0] == head or not head]
    by_last = {path.rpartition(".")[2]: path for path in reversed(some)}
    return did_you_mean(last, by_last, ", ", show=lambda near: repr(by_last[near]))


def split_repeated(path: str) -> tuple[str, str]:
    """Split a path that a run visits repeatedly, such as "attn1[2]", into its path and its number in brackets."""
    match = _REPEATED.fullmatch(path)
    return (match[1], match[2] or "") if match else (path, "")


def _translate(name: str, base: str | None) -> str:
    """Return the path of a name; `base` is the prefix of the paths, None in a run of the attention alone."""
    stem, repeated = split_repeated(name)
    last = stem.rpartition(".")[2]
    if base is None:
        return _LAYER_NAMES.get(last, last) + repeated
    if found := _LAYER_WORDS.match(stem):
        head, dot, last = (found[2] or "").rpartition(".")
        head = "self_attn" if head in _ATTENTION else head
        return f"{base}layers.{found[1]}.{head}{dot}{_LAYER_NAMES.get(last, last)}".removesuffix(".") + repeated
    if "rotary_emb" in stem:
        return f"{base}rotary_emb.{last}"
    last = _MODEL_NAMES.get(last, last)
    return "lm_head" if last == "lm_head" else f"{base}{last}{repeated}"
