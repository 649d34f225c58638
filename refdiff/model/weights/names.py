"""The names and shapes of a DiffLlama's parameters, and the nested dict that the model reads them from.

Names are Hugging Face's, and unilm's for what transformers lacks (`subln`, `lambda_proj`). In files of
the variant `paper` the last projection is `out_proj` (`stored_name`); both names are read (`with_prefix`).
Axis letters: D hidden_size, F intermediate_size, V vocab_size, d head_dim.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from refdiff.messages import list_problems
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.variants import VARIANTS

Shapes = dict[str, tuple[int, ...]]

_HEADS: dict[str, Callable[[DiffLlamaConfig], Shapes]] = {
    "DiffLlamaModel": lambda c: {},
    "DiffLlamaForCausalLM": lambda c: (
        {} if c.tie_word_embeddings else {"lm_head.weight": (c.vocab_size, c.hidden_size)}
    ),
    "DiffLlamaForSequenceClassification": lambda c: {"score.weight": (c.num_labels, c.hidden_size)},
    "DiffLlamaForTokenClassification": lambda c: {
        "score.weight": (c.num_labels, c.hidden_size), "score.bias": (c.num_labels,),
    },
    "DiffLlamaForQuestionAnswering": lambda c: {"qa_outputs.weight": (2, c.hidden_size), "qa_outputs.bias": (2,)},
}  # fmt: skip
"""By class, from a config to the shapes of the head's parameters."""

ARCHITECTURES = tuple(_HEADS)

HEAD_PARAMETERS = {"lm_head.weight", "score.weight", "score.bias", "qa_outputs.weight", "qa_outputs.bias"}
"""The parameters of every class's head; all others belong to the base model."""

_BACKBONE_PREFIXES = ("model.", "transformer.")
_LAYER = re.compile(r"\blayers\.(\d{1,9})\.")
_BACKBONE = re.compile(r"(embed_tokens|layers|norm)\.")


def architecture_of(config: DiffLlamaConfig) -> str:
    """Return the first of `ARCHITECTURES` that a config names, also as a Llama's, or else the language model."""
    ours = [f"Diff{name.removeprefix('Diff')}" for name in config.architectures or []]
    return next((name for name in ours if name in ARCHITECTURES), "DiffLlamaForCausalLM")


def stored_architecture(config: DiffLlamaConfig, architecture: str) -> str:
    """Return the name that config.json has for one of `ARCHITECTURES`: that of transformers' Llama where it is one."""
    return architecture.removeprefix("Diff") if config.variant == "plain" else architecture


def backbone_prefix(architecture: str) -> str:
    """Return the prefix of the base model's parameter names: `""`, `"model."` or `"transformer."`."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture: got {architecture!r}, expected one of {', '.join(ARCHITECTURES)}")
    if architecture == "DiffLlamaModel":
        return ""
    return "transformer." if architecture == "DiffLlamaForQuestionAnswering" else "model."


def layer_problems(config: DiffLlamaConfig, names: Iterable[str]) -> list[str]:
    """Return one line where the parameters of these names are of more or fewer layers than the config has."""
    layers = {match[1] for name in names if (match := _LAYER.search(name))}
    if len(layers) == config.num_hidden_layers:
        return []
    return [f"num_hidden_layers is {config.num_hidden_layers}, but there are tensors of {len(layers)} layers"]


def parameter_shapes(config: DiffLlamaConfig, architecture: str) -> Shapes:
    """Return the shape of every parameter of `architecture`, in the order of Hugging Face's `state_dict`.

    With `config.tie_word_embeddings` the output matrix is no parameter of its own: there is no `lm_head.weight`.

    Raises:
        ValueError: `architecture` is not one of `ARCHITECTURES`.
    """
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    prefix = backbone_prefix(architecture)
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (V, D)}
    for i in range(config.num_hidden_layers):
        layer = f"{prefix}layers.{i}."
        shapes.update({f"{layer}self_attn.{name}": shape for name, shape in attention_shapes(config).items()})
        shapes[f"{layer}mlp.gate_proj.weight"] = (F, D)
        shapes[f"{layer}mlp.up_proj.weight"] = (F, D)
        shapes[f"{layer}mlp.down_proj.weight"] = (D, F)
        if config.hidden_act == "prelu":
            shapes[f"{layer}mlp.act_fn.weight"] = (1,)
        shapes[f"{layer}input_layernorm.weight"] = (D,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (D,)
    shapes[f"{prefix}norm.weight"] = (D,)
    return {**shapes, **_HEADS[architecture](config)}


def check_parameters(arrays: Mapping[str, Any], config: DiffLlamaConfig, architecture: str) -> dict[str, Any]:
    """Return the arrays by name, in the order of `parameter_shapes`.

    Raises:
        ValueError: a parameter is missing, unknown or of another shape.
    """
    shapes = parameter_shapes(config, architecture)
    if architecture == "DiffLlamaForCausalLM" and "lm_head.weight" in arrays:
        # With tied embeddings there can be one all the same; see load().
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    problems = [f"{name} is missing" for name in shapes if name not in arrays]
    problems += [f"{name} is no parameter of it" for name in arrays if name not in shapes]
    problems += [
        f"{name} has shape {tuple(arrays[name].shape)}, expected {shape}"
        for name, shape in shapes.items()
        if name in arrays and tuple(arrays[name].shape) != shape
    ]
    if problems:
        which = f"these are not the parameters of a {architecture} with this config"
        raise ValueError(f"{which}: {list_problems(problems)}")
    return {name: arrays[name] for name in shapes}


def attention_shapes(config: DiffLlamaConfig) -> Shapes:
    """Return the shape of every parameter of one layer's attention: what stands after `self_attn.`."""
    D, d = config.hidden_size, config.head_dim
    query, key, out = (n * d for n in (config.num_query_heads, config.num_key_value_heads, config.num_attention_heads))
    shapes = {name: own.shape for name, own in VARIANTS[config.variant].parameters(config).items()}
    for name, rows, columns in (
        ("q_proj", query, D), ("k_proj", key, D), ("v_proj", key, D), ("o_proj", D, out),
    ):  # fmt: skip
        shapes[f"{name}.weight"] = (rows, columns)
        if config.attention_bias:
            shapes[f"{name}.bias"] = (rows,)
    return shapes


def with_prefix(name: str, prefix: str) -> str:
    """Return a stored name as the class whose base model stands under `prefix` spells it.

    `model.norm.weight`, `transformer.norm.weight` and `norm.weight` are one parameter, written by different
    classes, and are equal here. transformers adds and removes a class's own prefix only. From question answering
    (`transformer.`) to `model.` it finds none of the names, and draws the whole model at random with a warning.
    unilm's attention calls `o_proj` `out_proj`.
    """
    name = name.replace(".self_attn.out_proj.", ".self_attn.o_proj.")
    for known in _BACKBONE_PREFIXES:
        rest = name.removeprefix(known)
        if rest != name and _BACKBONE.match(rest):
            return prefix + rest
    return prefix + name if _BACKBONE.match(name) else name


def stored_name(name: str, variant: str) -> str:
    """Return the name of a parameter in a file: in the variant `paper` the last projection is unilm's `out_proj`.

    The names after `self_attn.` are then those of unilm's module: `multihead_flashdiff_1.py` in `paper`, and in `v2`
    `multihead_flashdiffv2.py`, which has `o_proj`.
    """
    return name.replace(".self_attn.o_proj.", f".self_attn.{VARIANTS[variant].last_projection}.")


def count_parameters(shapes: Iterable[tuple[int, ...]]) -> int:
    """Return how many numbers arrays of these shapes have together."""
    return sum(math.prod(shape) for shape in shapes)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Turn `{"layers.0.norm.weight": a}` into `{"layers": [{"norm": {"weight": a}}]}`.

    A level whose keys are exactly 0 … n-1 becomes a list.

    Raises:
        ValueError: one name is the beginning of another, such as `a` and `a.b`.
    """
    root: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        level = root
        for part in path:
            level = level.setdefault(part, {})
            if not isinstance(level, dict):
                raise ValueError(f"{name!r} goes below a name that already holds a value")
        if last in level:
            raise ValueError(f"{name!r} is already there, as a value or as the beginning of another name")
        level[last] = value
    return {key: _make_lists(value) for key, value in root.items()}


def _make_lists(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    level = {key: _make_lists(child) for key, child in value.items()}
    if level and set(level) == {str(i) for i in range(len(level))}:
        return [level[str(i)] for i in range(len(level))]
    return level


def flatten(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Turn nested dicts and lists back into `{"dotted.name": value}`: the inverse of `nest`."""
    return dict(_leaves(nested, ()))


def _leaves(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    # no recursive function inside flatten: its reference cycle keeps the arrays alive until garbage collection
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _leaves(child, (*path, key))
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from _leaves(child, (*path, str(i)))
    else:
        yield ".".join(path), value
