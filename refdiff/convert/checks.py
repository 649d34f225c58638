"""Whether weights are those of a config, and whether two configs can have the same function at all."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from refdiff.messages import show_value
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.config_checks import MODEL_TYPES
from refdiff.model.weights import attention_shapes, flatten

SAME_IN_BOTH = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim", "hidden_act",
    "max_position_embeddings", "rope_parameters", "rms_norm_eps", "tie_word_embeddings", "pad_token_id", "num_labels",
)  # fmt: skip
"""The fields that decide what a model computes, but for those that say how to read attention's weights (wiring, number
of heads, bias), which a conversion changes. `rms_norm_eps` is the ε of all norms, whatever attention's own is."""


def layers_of(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The decoder layers, which stand under `model`, under `transformer`, or on top."""
    base = params.get("model") or params.get("transformer") or params
    if "layers" not in base:
        raise ValueError(
            f"the weights have {', '.join(map(show_value, base)) or 'nothing'}, but need layers, on top or in model or "
            "transformer: give what model.params has"
        )
    layers: list[dict[str, Any]] = base["layers"]
    return layers


def attention_of(config: DiffLlamaConfig, params: Mapping[str, Any], layer: int) -> dict[str, Any]:
    """The weights of one layer's attention, all there and of the shapes that `config` makes them.

    Raises:
        ValueError: one is not; the message has all of them, both shapes, and the wiring that they fit.
    """
    p: dict[str, Any] = layers_of(params)[layer].get("self_attn", {})
    expected = attention_shapes(config)
    found = {name: tuple(int(n) for n in array.shape) for name, array in flatten(p).items()}
    if found == expected:
        return p
    problems = [f"{name} of shape {shape} is missing" for name, shape in expected.items() if name not in found]
    problems += [f"{name} of shape {shape} is too many" for name, shape in found.items() if name not in expected]
    problems += [
        f"{name} has shape {shape}, but should have {expected[name]}"
        for name, shape in found.items()
        if name in expected and shape != expected[name]
    ]
    sizes = ("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "attention_bias")
    fits = [wiring for wiring in MODEL_TYPES if attention_shapes(_in_wiring(config, wiring)) == found]
    raise ValueError(
        f"the weights are not those of the config, whose wiring is {config.wiring!r} and "
        f"{', '.join(f'{name} {getattr(config, name)}' for name in sizes)}: in layers.{layer}.self_attn, "
        f"{'; '.join(problems)}"
        + (f". They fit the wiring {' or '.join(map(repr, fits))}: is the config's right?" if fits else "")
    )


def _in_wiring(config: DiffLlamaConfig, wiring: str) -> DiffLlamaConfig:
    other = copy.copy(config)
    other.wiring = wiring
    return other


def refuse_another_function(before: DiffLlamaConfig, after: DiffLlamaConfig) -> None:
    """Compare the fields that decide what a model computes and that no weights make up for.

    Raises:
        ValueError: one differs; the message has both values.
    """
    for name in SAME_IN_BOTH:
        one, other = getattr(before, name), getattr(after, name)
        if one != other:
            raise ValueError(
                f"{name} is {show_value(one)} in the first config and {show_value(other)} in the second, so that the "
                "two models are not the same function, whatever their weights: give both the same"
            )


def refuse_another_depth(config: DiffLlamaConfig, params: Mapping[str, Any], which: str) -> None:
    """Raise `ValueError` where a model's weights have more or fewer layers than its config says."""
    count = len(layers_of(params))
    if count != config.num_hidden_layers:
        raise ValueError(
            f"the weights of the {which} model have {count} layers, but its config's num_hidden_layers is "
            f"{config.num_hidden_layers}: give the weights and the config of one model"
        )
