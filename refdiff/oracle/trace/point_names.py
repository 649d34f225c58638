"""What others call the points of a run: transformers' modules, unilm, timm, vLLM, llama.cpp.

A name is brought into the form `layers.N.…` first, whatever stands before it, and then looked up here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from refdiff.messages import did_you_mean

_LAYER_WORDS = re.compile(r"(?:^|.*\.)(?:layers|h|blocks|blk)\.(\d+)(?:\.(.*))?$")
_GGML = re.compile(r"(.+)-(\d+)$")
_REPEATED = re.compile(r"(.*?)(\[\d+\])?$")

_IN_ATTENTION = {
    "out_proj": "o_proj",  # unilm
    "proj": "o_proj",  # timm
    "subln": "groupnorm",  # unilm
    "sub_norm": "groupnorm",  # timm
    "sub_ln": "groupnorm",
    "query_rope": "q_rope",
    "key_rope": "k_rope",
    "lambda": "lambda_full",
    "lambda_": "lambda_full",
    "attn_weights": "probs",
    "attn_weights1": "probs1",
    "attn_weights2": "probs2",
}
_IN_LAYER = {
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
_WHOLE = {
    "inp_embd": "embed_tokens",
    "wte": "embed_tokens",
    "tok_embeddings": "embed_tokens",
    "result_norm": "norm",
    "result_output": "lm_head",
    "output": "lm_head",
}


def canonical_names(names: Iterable[str], points: Iterable[str], aliases: str | Mapping[str, str]) -> dict[str, str]:
    """Return for each name the path of its point among `points`, or in a form that `layout` knows; others are left out.

    Args:
        aliases: "auto" for the tables above, "none" for exact names only, or your own table, name → path, beside them.
    """
    known = set(points)
    bases = {path.partition("layers.")[0] for path in known if "layers." in path}
    base = min(bases, key=len) if bases else ""
    found: dict[str, str] = {}
    for name in names:
        own = aliases.get(name, name) if isinstance(aliases, Mapping) else name
        path = own if own in known or aliases == "none" else _translated(own, base, bool(bases))
        if path is not None:
            found[name] = path
    return found


def near_point(name: str, points: Iterable[str]) -> str:
    """What is likely to be meant by a name that is no point: ", did you mean 'attn1'?", or "".

    Of a name in a module that there is, the last part is compared with the points of that module; of one without a
    module, `atn1`, with the last parts of all, and the first point of the nearest is named.
    """
    known, (head, _, last) = list(points), name.rpartition(".")
    beside = [path for path in known if path.rpartition(".")[0] == head]
    if not beside and (hint := did_you_mean(name, known, ", ")):
        return hint
    by_last = {path.rpartition(".")[2]: path for path in reversed(beside if head and beside else known)}
    return did_you_mean(last, by_last, ", ", show=lambda near: repr(by_last[near]))


def split_repeated(path: str) -> tuple[str, str]:
    """A path, and the number in brackets of one that a run comes to several times."""
    match = _REPEATED.fullmatch(path)
    return (match[1], match[2] or "") if match else (path, "")


def _translated(name: str, base: str, has_layers: bool) -> str | None:
    stem, repeated = split_repeated(name)
    if (m := _GGML.match(stem)) and m[1] in _GGML_NAMES:
        rest = _GGML_NAMES[m[1]]
        return f"{base}layers.{m[2]}" + (f".{rest}" if rest else "") + repeated if has_layers else _core(rest)
    if m := _LAYER_WORDS.match(stem):
        if not has_layers:
            return _core(m[2] or "")
        rest = _in_layer(m[2] or "")
        return f"{base}layers.{m[1]}" + (f".{rest}" if rest else "") + repeated
    last = stem.rpartition(".")[2]
    if not has_layers:
        return _core(stem) + repeated
    if "rotary_emb" in stem:
        return f"{base}rotary_emb.{last}"
    last = _WHOLE.get(last, last)
    return "lm_head" if last == "lm_head" else f"{base}{last}{repeated}"


def _in_layer(rest: str) -> str:
    head, _, last = rest.rpartition(".")
    if rest in _IN_LAYER:
        return _IN_LAYER[rest]
    if head in ("attn", "self_attn", "attention", "inner_attn", "self_attn.inner_cross_attn"):
        return f"self_attn.{_IN_ATTENTION.get(last, last)}"
    return rest


def _core(rest: str) -> str:
    """The name in a run of the attention alone."""
    last = rest.rpartition(".")[2]
    return _IN_ATTENTION.get(last, last)
