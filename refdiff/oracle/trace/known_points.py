"""Every point of a run, in order: its path, its shape, what it is, and the points that it is computed from.

Paths are those of the modules in transformers, with the points between them. What the names begin with, as "model.", is
left out here. A run of the attention alone has the names after `self_attn.`, and ends with `out`; in a plain Llama the
maps have no number.

Other names for them, of transformers' modules, unilm, timm, vLLM and llama.cpp, are brought into the form `layers.N.…`
first, whatever stands before it, and then looked up here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

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
    if rest in _LAYER_NAMES:
        return _LAYER_NAMES[rest]
    if head in ("attn", "self_attn", "attention", "inner_attn", "self_attn.inner_cross_attn"):
        return f"self_attn.{_IN_ATTENTION.get(last, last)}"
    return rest


def _core(rest: str) -> str:
    """The name in a run of the attention alone."""
    last = rest.rpartition(".")[2]
    return _IN_ATTENTION.get(last, last)


class Point(NamedTuple):
    """A point: `of` names the points that it is computed from, in whichever wiring."""

    path: str
    shape: str
    what: str
    of: tuple[str, ...] = ()


_LAYER, _IN, _MLP = "layers.N", "layers.N.self_attn.", "layers.N.mlp."
_TURNED = ("rotary_emb.cos", "rotary_emb.sin")
_SCORES, _ROWS, _HEADS = "(B, h, T, S)", "(B, h, T)", "(B, h, T, e)"
_BEFORE = "layers.N-1"
"""What the layer is given: embed_tokens in layer 0."""


def _maps(number: str) -> tuple[Point, ...]:
    scores, probs = f"{_IN}scores{number}", f"{_IN}probs{number}"
    return (
        Point(scores, _SCORES, "times 1/√d, before the mask", (_IN + "q_rope", _IN + "k_rope")),
        Point(f"{_IN}lse{number}", _ROWS, "log Σ exp of the scores seen", (scores,)),
        Point(probs, _SCORES, "softmax, where asked for", (scores,)),
        Point(f"{_IN}attn{number}", _HEADS, "the map times V", (probs, _IN + "values")),
    )


POINTS = (
    Point("embed_tokens", "(B, T, D)", "the rows of the tokens"),
    *(Point(path, "(1 or B, 1, T, d/2)", "of each position's angles") for path in _TURNED),
    Point(_LAYER + ".input_layernorm", "(B, T, D)", "RMSNorm of what the layer is given", (_BEFORE,)),
    Point(_IN + "q_proj", "(B, T, H d)", "queries, not yet rotated", (_LAYER + ".input_layernorm",)),
    Point(_IN + "k_proj", "(B, T, K d)", "keys, not yet rotated", (_LAYER + ".input_layernorm",)),
    Point(_IN + "v_proj", "(B, T, K d)", "values", (_LAYER + ".input_layernorm",)),
    Point(_IN + "values", "(B, K/2, S, 2d)", "two value heads joined; DiffLlama's", (_IN + "v_proj",)),
    Point(_IN + "lambda_proj", "(B, T, h)", "v2: λ before the sigmoid", (_LAYER + ".input_layernorm",)),
    Point(_IN + "q_rope", "(B, H, T, d)", "queries, rotated", (_IN + "q_proj", *_TURNED)),
    Point(_IN + "k_rope", "(B, K, S, d)", "keys, rotated", (_IN + "k_proj", *_TURNED)),
    Point(_IN + "lambda_init", "()", "from the layer's number; not in v2"),
    Point(_IN + "lambda_full", "()", "λ, a number; in v2 (B, h, T, 1)", (_IN + "lambda_init", _IN + "lambda_proj")),
    *_maps("1"),
    *_maps("2"),
    Point(
        _IN + "diff",
        _HEADS,
        "attn1 − λ attn2, what groupnorm is given",
        (_IN + "attn1", _IN + "attn2", _IN + "lambda_full"),
    ),
    Point(_IN + "groupnorm", _HEADS, "RMSNorm by head; not in v2", (_IN + "diff",)),
    Point(
        _IN + "scaled",
        "(B, T, h e)",
        "times 1 − λ_init, what o_proj is given",
        (_IN + "groupnorm", _IN + "lambda_init"),
    ),
    Point(_IN + "o_proj", "(B, T, D)", "what attention adds", (_IN + "scaled",)),
    Point(_LAYER + ".post_attention_layernorm.input", "(B, T, D)", "the sum with attention", (_BEFORE, _IN + "o_proj")),
    Point(
        _LAYER + ".post_attention_layernorm",
        "(B, T, D)",
        "RMSNorm of it",
        (_LAYER + ".post_attention_layernorm.input",),
    ),
    Point(_MLP + "gate_proj", "(B, T, F)", "W_gate x", (_LAYER + ".post_attention_layernorm",)),
    Point(_MLP + "act_fn", "(B, T, F)", "act(W_gate x)", (_MLP + "gate_proj",)),
    Point(_MLP + "up_proj", "(B, T, F)", "W_up x", (_LAYER + ".post_attention_layernorm",)),
    Point(_MLP + "down_proj", "(B, T, D)", "W_down(act(W_gate x) ⊙ W_up x)", (_MLP + "act_fn", _MLP + "up_proj")),
    Point(
        _LAYER,
        "(B, T, D)",
        "what the layer gives to the next",
        (_LAYER + ".post_attention_layernorm.input", _MLP + "down_proj"),
    ),
    Point("norm", "(B, T, D)", "RMSNorm after the last layer", (_BEFORE,)),
    Point("lm_head", "(B, T, V)", "the logits", ("norm",)),
)

OUT = Point("out", _HEADS, "the attention alone: what it gives", (_IN + "o_proj",))
HEADS = ("lm_head", "score", "qa_outputs")
"""What stands on the decoder, by the class of the model."""

_OF_V2 = _IN + "lambda_proj"
"""Where it is not there, it is another wiring, whose λ comes from no token."""

_IN_LAYER = re.compile(r"layers\.(\d+)(\..+)?$")


class Flow:
    """Which points of one run are computed from which."""

    def __init__(self, among: Collection[str]) -> None:
        self._among = among
        self._base = min((p.partition("layers.")[0] for p in among if "layers." in p), key=len, default="")
        found = (m for p in among if (m := _IN_LAYER.match(p.removeprefix(self._base))))
        self._layers = max((int(m[1]) + 1 for m in found), default=0)
        self._of: dict[str, tuple[str, ...]] = {head: (self._own("norm", 0),) for head in HEADS}
        for layer in range(max(1, self._layers)):
            for point in (*POINTS, OUT):
                at = layer if point.path.startswith(_LAYER) else self._layers
                of = [self._own(path, at) for path in point.of]
                if _OF_V2 in point.of and self._own(_OF_V2, at) not in among:
                    of.remove(self._own(_OF_V2, at))
                self._of.setdefault(self._own(point.path, at), tuple(of))

    def _own(self, path: str, layer: int) -> str:
        """The path that a point of the table has in this run; a plain Llama's maps have no number."""
        if path == _BEFORE:
            return self._own(_LAYER, layer - 1) if layer else self._own("embed_tokens", 0)
        if path.startswith(_IN) and not self._layers:
            own = path.removeprefix(_IN)
        else:
            own = self._base + path.replace(_LAYER, f"layers.{layer}")
        plain = own.rstrip("12") if path.endswith(("1", "2")) else own
        return plain if plain in self._among else own

    def parents(self, path: str) -> tuple[str, ...]:
        """Return the points that one is computed from; a path that is no point has none.

        One that is not in this run stands for those that it is computed from itself.
        """
        stem, again = split_repeated(path)
        found: dict[str, None] = {}
        open_, seen = [(stem, of) for of in self._of.get(stem, ())], set()
        for child, of in open_:
            if of in self._among:
                found |= dict.fromkeys(self._repetitions(of, again, child))
            elif of not in seen:
                seen.add(of)
                open_ += [(child if child == OUT.path else of, before) for before in self._of.get(of, ())]
        return tuple(found)

    def ancestors(self, path: str, through: Collection[str]) -> set[str]:
        """The points of `through` that a path comes from with nothing but points of `through` between."""
        found: set[str] = set()
        open_ = [path]
        while open_:
            new = {p for p in self.parents(open_.pop()) if p in through} - found
            found |= new
            open_ += new
        return found

    def _repetitions(self, stem: str, again: str, child: str) -> list[str]:
        """Of sequences that are run one by one the same one; what is there once is everybody's."""
        if stem.startswith("rotary_emb.") and f"{stem}[1]" in self._among:  # of queries and of keys by turns
            n = 2 * int(again.strip("[]") or 0) + child.endswith("k_rope")
            again = f"[{n}]" if n else ""
        if child == OUT.path:
            return [p for p in self._among if split_repeated(p)[0] == stem]
        return [stem + again if stem + again in self._among else stem]
