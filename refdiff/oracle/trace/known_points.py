"""The points of a run in order: path, shape, description, and the points that each is computed from.

A point is the output of a module in transformers, under the module's path without a prefix such as "model.", or a value
between modules. A run of the attention alone has the names after `self_attn.`, and ends with `out`. In a plain Llama
the maps have no number.

Names of transformers' modules, unilm, timm, vLLM and llama.cpp are translated to the form `layers.N.…`, whatever their
prefix, and then looked up here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
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
    """A point; `parents` are the points that it is computed from in any of the attention variants."""

    path: str
    shape: str
    what: str
    parents: tuple[str, ...] = ()


_LAYER, _IN, _MLP = "layers.N", "layers.N.self_attn.", "layers.N.mlp."
_LAYER_INPUT = "layers.N-1"
"""The input of a layer; in layer 0 it is embed_tokens."""
_NORMED, _NORMED_SUM = _LAYER + ".input_layernorm", _LAYER + ".post_attention_layernorm"
_SUM = _NORMED_SUM + ".input"
_ANGLES = ("rotary_emb.cos", "rotary_emb.sin")
_SCORES, _ROWS, _HEADS, _HIDDEN = "(B, h, T, S)", "(B, h, T)", "(B, h, T, e)", "(B, T, D)"


def _inside(*names: str) -> tuple[str, ...]:
    return tuple(_IN + name for name in names)


def _maps(number: str) -> tuple[Point, ...]:
    scores, lse, probs, attn = _inside(*(name + number for name in ("scores", "lse", "probs", "attn")))
    return (
        Point(scores, _SCORES, "q·k times 1/√d, before the mask", _inside("q_rope", "k_rope")),
        Point(lse, _ROWS, "log Σ exp of the unmasked scores", (scores,)),
        Point(probs, _SCORES, "softmax of the scores, if requested", (scores,)),
        Point(attn, _HEADS, "the map times V", (probs, _IN + "values")),
    )


POINTS = (
    Point("embed_tokens", _HIDDEN, "the embeddings of the tokens"),
    *(Point(path, "(1 or B, 1, T, d/2)", "of the angles of each position") for path in _ANGLES),
    Point(_NORMED, _HIDDEN, "RMSNorm of the layer's input", (_LAYER_INPUT,)),
    Point(_IN + "q_proj", "(B, T, H d)", "queries, not yet rotated", (_NORMED,)),
    Point(_IN + "k_proj", "(B, T, K d)", "keys, not yet rotated", (_NORMED,)),
    Point(_IN + "v_proj", "(B, T, K d)", "values", (_NORMED,)),
    Point(_IN + "values", "(B, K/2, S, 2d)", "two value heads joined; DiffLlama's", _inside("v_proj")),
    Point(_IN + "lambda_proj", "(B, T, h)", "v2: λ before the sigmoid", (_NORMED,)),
    Point(_IN + "q_rope", "(B, H, T, d)", "queries, rotated", (_IN + "q_proj", *_ANGLES)),
    Point(_IN + "k_rope", "(B, K, S, d)", "keys, rotated", (_IN + "k_proj", *_ANGLES)),
    Point(_IN + "lambda_init", "()", "from the layer's number; not in v2"),
    Point(_IN + "lambda_full", "()", "λ, a number; in v2 (B, h, T, 1)", _inside("lambda_init", "lambda_proj")),
    *_maps("1"),
    *_maps("2"),
    Point(_IN + "diff", _HEADS, "attn1 − λ attn2, the input of groupnorm", _inside("attn1", "attn2", "lambda_full")),
    Point(_IN + "groupnorm", _HEADS, "RMSNorm by head; not in v2", _inside("diff")),
    Point(
        _IN + "scaled", "(B, T, h e)", "groupnorm times 1 − λ_init, the input of o_proj",
        _inside("groupnorm", "lambda_init"),
    ),
    Point(_IN + "o_proj", _HIDDEN, "the output of attention", _inside("scaled")),
    Point(_SUM, _HIDDEN, "the layer's input plus attention", (_LAYER_INPUT, _IN + "o_proj")),
    Point(_NORMED_SUM, _HIDDEN, "RMSNorm of that sum", (_SUM,)),
    Point(_MLP + "gate_proj", "(B, T, F)", "W_gate x", (_NORMED_SUM,)),
    Point(_MLP + "act_fn", "(B, T, F)", "act(W_gate x)", (_MLP + "gate_proj",)),
    Point(_MLP + "up_proj", "(B, T, F)", "W_up x", (_NORMED_SUM,)),
    Point(_MLP + "down_proj", _HIDDEN, "W_down(act(W_gate x) ⊙ W_up x)", (_MLP + "act_fn", _MLP + "up_proj")),
    Point(_LAYER, _HIDDEN, "the output of the layer", (_SUM, _MLP + "down_proj")),
    Point("norm", _HIDDEN, "RMSNorm after the last layer", (_LAYER_INPUT,)),
    Point("lm_head", "(B, T, V)", "the logits", ("norm",)),
)  # fmt: skip

OUT = Point("out", _HEADS, "the output of the attention alone", (_IN + "o_proj",))
HEADS = ("lm_head", "score", "qa_outputs")
"""The heads on the decoder, by the class of the model."""

_V2_LAMBDA = _IN + "lambda_proj"
"""Without this point the run is of another variant, whose λ does not depend on tokens."""

_IN_LAYER = re.compile(r"layers\.(\d{1,9})(\..+)?$")


class Flow:
    """The graph of a run: which points are computed from which."""

    def __init__(self, points: Collection[str]) -> None:
        self._points = points
        self._base = path_prefix(points)
        in_layers = (m for p in points if (m := _IN_LAYER.match(p.removeprefix(self._base))))
        self._layers = sorted({int(m[1]) for m in in_layers})  # not a range: a file may name any number
        self._parents: dict[str, tuple[str, ...]] = {head: (self._run_path("norm", 0),) for head in HEADS}
        for layer in range(max(1, len(self._layers))):
            for point in (*POINTS, OUT):
                at = layer if point.path.startswith(_LAYER) else len(self._layers)
                parents = [self._run_path(path, at) for path in point.parents]
                if _V2_LAMBDA in point.parents and self._run_path(_V2_LAMBDA, at) not in points:
                    parents.remove(self._run_path(_V2_LAMBDA, at))
                self._parents.setdefault(self._run_path(point.path, at), tuple(parents))

    def _run_path(self, path: str, layer: int) -> str:
        """Return the path of a point in the n-th layer of this run; a plain Llama's maps have no number."""
        if path == _LAYER_INPUT:
            return self._run_path(_LAYER, layer - 1) if layer else self._run_path("embed_tokens", 0)
        if path.startswith(_IN) and not self._layers:
            own = path.removeprefix(_IN)
        else:
            number = self._layers[layer] if layer < len(self._layers) else layer
            own = self._base + path.replace(_LAYER, f"layers.{number}")
        plain = own.rstrip("12") if path.endswith(("1", "2")) else own
        return plain if plain in self._points else own

    def parents(self, path: str) -> tuple[str, ...]:
        """Return the points of this run that a point is computed from; a path that is no point has none.

        A parent that is not in this run is replaced by its own parents.
        """
        stem, repetition = split_repeated(path)
        found: dict[str, None] = {}
        queue, seen = [(stem, parent) for parent in self._parents.get(stem, ())], set()
        for child, parent in queue:
            if parent in self._points:
                found |= dict.fromkeys(self._repetitions(parent, repetition, child))
            elif parent not in seen:
                seen.add(parent)
                grandparents = self._parents.get(parent, ())
                queue += [(child if child == OUT.path else parent, path) for path in grandparents]
        return tuple(found)

    def ancestors(self, path: str, through: Collection[str]) -> set[str]:
        """Return the ancestors of a point that are in `through`, reached only through points in `through`."""
        found: set[str] = set()
        queue = [path]
        while queue:
            new = {p for p in self.parents(queue.pop()) if p in through} - found
            found |= new
            queue += new
        return found

    def _repetitions(self, stem: str, repetition: str, child: str) -> list[str]:
        """Return the visits of a parent that belong to one visit of its child, if sequences are run one by one."""
        if child == OUT.path:
            return [p for p in self._points if split_repeated(p)[0] == stem]
        return [stem + repetition if stem + repetition in self._points else stem]
