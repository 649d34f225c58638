"""The points of a run in order: path, shape and description.

A point is the output of a module in transformers, under the module's path without a prefix such as "model.", or a value
between modules. A run of the attention alone has the names after `self_attn.`, and ends with `out`. In a plain Llama
the maps have no number.

Names of transformers' modules, unilm, timm, vLLM and llama.cpp are translated to the form `layers.N.…`, whatever their
prefix, and then looked up here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from refdiff.messages import did_you_mean

_LAYER_WORDS = re.compile(r"(?:^|.*\.)(?:layers|h|blocks|blk)\.(\d+)(?:\.(.*))?$")
_GGML = re.compile(r"(.+)-(\d+)$")
_REPEATED = re.compile(r"(.*?)(\[\d+\])?$")

_ATTENTION_NAMES = {
    "out_proj": "o_proj",  # unilm
    "proj": "o_proj",  # timm
    "subln": "groupnorm",  # unilm
    "sub_norm": "groupnorm",  # timm
    "sub_ln": "groupnorm",
}
_LAYER_NAMES = {
    "self_attn_layer_norm": "input_layernorm",  # unilm
    "final_layer_norm": "post_attention_layernorm",
    "norm1": "input_layernorm",  # timm
    "norm2": "post_attention_layernorm",
}
_GGML_NAMES = {
    "attn_norm": "input_layernorm",
    "Qcur": "self_attn.q_rope",
    "Kcur": "self_attn.k_rope",
    "Vcur": "self_attn.v_proj",
    "kq": "self_attn.kq",
    "kq_soft_max": "self_attn.probs",
    "kq_soft_max_ext": "self_attn.probs",
    "kqv": "self_attn.attn",
    "attn_sub_norm": "self_attn.groupnorm",
    "kqv_out": "self_attn.scaled",
    "attn_out": "self_attn.o_proj",
    "ffn_inp": "post_attention_layernorm.input",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_out": "mlp.down_proj",
    "l_out": "",
}
_MODEL_NAMES = {
    "inp_embd": "embed_tokens",
    "wte": "embed_tokens",
    "tok_embeddings": "embed_tokens",
    "result_norm": "norm",
    "result_output": "lm_head",
    "output": "lm_head",
}


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
    last, layer = stem.rpartition(".")[2], None
    if (m := _GGML.match(stem)) and m[1] in _GGML_NAMES:
        layer, rest = m[2], _GGML_NAMES[m[1]]
        last = rest.rpartition(".")[2]
    elif m := _LAYER_WORDS.match(stem):
        layer, rest = m[1], _layer_name(m[2] or "")
    if base is None:
        return _ATTENTION_NAMES.get(last, last) + repeated
    if layer is not None:
        return f"{base}layers.{layer}.{rest}".removesuffix(".") + repeated
    if "rotary_emb" in stem:
        return f"{base}rotary_emb.{last}"
    last = _MODEL_NAMES.get(last, last)
    return "lm_head" if last == "lm_head" else f"{base}{last}{repeated}"


def _layer_name(rest: str) -> str:
    head, _, last = rest.rpartition(".")
    if rest in _LAYER_NAMES:
        return _LAYER_NAMES[rest]
    if head in ("attn", "self_attn", "attention", "inner_attn", "self_attn.inner_cross_attn"):
        return f"self_attn.{_ATTENTION_NAMES.get(last, last)}"
    return rest


class Point(NamedTuple):
    """A point of a run."""

    path: str
    shape: str
    what: str


_IN, _MLP = "layers.N.self_attn.", "layers.N.mlp."
_SUM = "layers.N.post_attention_layernorm"
_SCORES, _ROWS, _HEADS, _HIDDEN = "(B, h, T, S)", "(B, h, T)", "(B, h, T, e)", "(B, T, D)"


def _maps(number: str) -> tuple[Point, ...]:
    return (
        Point(f"{_IN}scores{number}", _SCORES, "q·k times 1/√d, before the mask"),
        Point(f"{_IN}lse{number}", _ROWS, "log Σ exp of the unmasked scores"),
        Point(f"{_IN}probs{number}", _SCORES, "softmax of the scores, if requested"),
        Point(f"{_IN}attn{number}", _HEADS, "the map times V"),
    )


POINTS = (
    Point("embed_tokens", _HIDDEN, "the embeddings of the tokens"),
    Point("rotary_emb.cos", "(1 or B, 1, T, d/2)", "of the angles of each position"),
    Point("rotary_emb.sin", "(1 or B, 1, T, d/2)", "of the angles of each position"),
    Point("layers.N.input_layernorm", _HIDDEN, "RMSNorm of the layer's input"),
    Point(_IN + "q_proj", "(B, T, H d)", "queries, not yet rotated"),
    Point(_IN + "k_proj", "(B, T, K d)", "keys, not yet rotated"),
    Point(_IN + "v_proj", "(B, T, K d)", "values"),
    Point(_IN + "values", "(B, K/2, S, 2d)", "two value heads joined; DiffLlama's"),
    Point(_IN + "lambda_proj", "(B, T, h)", "v2: λ before the sigmoid"),
    Point(_IN + "q_rope", "(B, H, T, d)", "queries, rotated"),
    Point(_IN + "k_rope", "(B, K, S, d)", "keys, rotated"),
    Point(_IN + "lambda_init", "()", "from the layer's number; not in v2"),
    Point(_IN + "lambda_full", "()", "λ, a number; in v2 (B, h, T, 1)"),
    *_maps("1"),
    *_maps("2"),
    Point(_IN + "diff", _HEADS, "attn1 − λ attn2, the input of groupnorm"),
    Point(_IN + "groupnorm", _HEADS, "RMSNorm by head; not in v2"),
    Point(_IN + "scaled", "(B, T, h e)", "groupnorm times 1 − λ_init, the input of o_proj"),
    Point(_IN + "o_proj", _HIDDEN, "the output of attention"),
    Point(_SUM + ".input", _HIDDEN, "the layer's input plus attention"),
    Point(_SUM, _HIDDEN, "RMSNorm of that sum"),
    Point(_MLP + "gate_proj", "(B, T, F)", "W_gate x"),
    Point(_MLP + "act_fn", "(B, T, F)", "act(W_gate x)"),
    Point(_MLP + "up_proj", "(B, T, F)", "W_up x"),
    Point(_MLP + "down_proj", _HIDDEN, "W_down(act(W_gate x) ⊙ W_up x)"),
    Point("layers.N", _HIDDEN, "the output of the layer"),
    Point("norm", _HIDDEN, "RMSNorm after the last layer"),
    Point("lm_head", "(B, T, V)", "the logits"),
)
OUT = Point("out", _HEADS, "the output of the attention alone")
