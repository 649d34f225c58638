"""A whole model in another wiring: at once, or layer by layer when its weights are read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import Deferred, to_numpy
from refdiff.convert.attention import STEPS, tied
from refdiff.convert.checks import attention_of, layers_of
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.config_checks import MODEL_TYPES
from refdiff.model.weights import attention_shapes, flatten, nest

Params = dict[str, Any]


def convert(
    config: DiffLlamaConfig, params: Mapping[str, Any], wiring: str, *, eager: bool = False
) -> tuple[DiffLlamaConfig, Params]:
    """Rearrange a model's weights so that another wiring computes the same function.

    Computed in the type of the weights: where they are multiplied (see `refdiff.convert`), 16 bits are rounded again.

    Args:
        config: what the weights belong to; its `wiring` is where they come from.
        params: its parameters, as `model.params` has them, from any backend. They are not changed, and the result
            shares with it what needs no change. What does comes as NumPy arrays.
        wiring: "hf", "paper", "v2" or "none".
        eager: the weights, in the wiring "paper", were trained with unilm's `multihead_diffattn.py`, not a flash file.

    Returns:
        the config and the weights of the new model.

    Raises:
        ValueError: there is no exact answer; the message says why. Or the weights are not those of `config`.
    """
    new, change = _planned(config, params, wiring, eager)
    if change is None:
        return new, dict(params)
    layers = [
        {**layer, "self_attn": change(attention_of(config, params, i))} for i, layer in enumerate(layers_of(params))
    ]
    return new, _with_layers(params, layers)


def convert_later(
    config: DiffLlamaConfig, params: Mapping[str, Any], wiring: str, *, eager: bool = False
) -> tuple[DiffLlamaConfig, Params]:
    """`convert`, but nothing is computed before it is read: a layer's attention in float64, kept until the next one's.

    With weights of `load(…, deferred=True)`, a model of any size can be converted with the memory of a layer.

    Args:
        config: as for `convert`.
        params: as for `convert`; they may be `refdiff.arrays.Deferred`.
        wiring: as for `convert`.
        eager: as for `convert`.

    Returns:
        the config and the weights of the new model; those of attention are `refdiff.arrays.Deferred`.

    Raises:
        ValueError: as `convert`; what depends on the numbers of a layer, when that layer is read.
    """
    new, change = _planned(config, params, wiring, eager)
    if change is None:
        return new, dict(params)
    step, shapes = change, attention_shapes(new)
    for i in range(len(layers_of(params))):
        attention_of(config, params, i)

    @lru_cache(maxsize=1)
    def converted(i: int) -> dict[str, NDArray[Any]]:
        wide = {k: to_numpy(a).astype(np.float64) for k, a in flatten(attention_of(config, params, i)).items()}
        return flatten(step(nest(wide)))

    def deferred(i: int) -> Params:
        def read(name: str) -> NDArray[Any]:
            return converted(i)[name]

        return nest({k: Deferred(shape, np.dtype(np.float64), partial(read, k)) for k, shape in shapes.items()})

    return new, _with_layers(params, [{**layer, "self_attn": deferred(i)} for i, layer in enumerate(layers_of(params))])


def _planned(
    config: DiffLlamaConfig, params: Mapping[str, Any], wiring: str, eager: bool
) -> tuple[DiffLlamaConfig, Callable[[Params], Params] | None]:
    """The new model's config, and what makes its attention of the old one's; None where that is the same."""
    if wiring not in MODEL_TYPES:
        raise ValueError(f"wiring is {wiring!r}, but must be one of {', '.join(MODEL_TYPES)}")
    _refuse_eager(config, eager)
    new = copy.deepcopy(config)
    step = config.wiring, wiring
    if config.wiring == wiring:
        return new, None
    if step not in STEPS:
        raise ValueError(
            f"there is no exact conversion from wiring {step[0]!r} to {step[1]!r}: the norm after attention divides "
            "each token's head by its own size, which no weights can do or undo"
            + ("; weights of 0 for the second map make it uniform attention, not none" if step[0] == "none" else "")
        )
    new.wiring = wiring
    if step == ("v2", "none"):
        attentions = (attention_of(config, params, i) for i in range(len(layers_of(params))))
        if not all(tied(p, config) for p in attentions):
            new.num_attention_heads = 2 * config.num_attention_heads
    return new, lambda p: STEPS[step](p, config, new)


def _refuse_eager(config: DiffLlamaConfig, eager: bool) -> None:
    if not eager:
        return
    if config.wiring != "paper":
        raise ValueError(f'eager is for weights in the wiring "paper", but these are in {config.wiring!r}')
    H, K = config.num_attention_heads, config.num_key_value_heads
    if H != K:
        raise ValueError(
            f"unilm's multihead_diffattn.py repeats {K} key heads to {H} before it pairs them, so that both maps of a "
            "pair may read the same key. No wiring does that with the same number of keys; with the heads of k_proj "
            f"and of v_proj, whose are {2 * config.head_dim} wide, repeated in the weights, so that "
            f"num_key_value_heads is {H}, they can be converted"
        )


def _with_layers(params: Mapping[str, Any], layers: list[Params]) -> Params:
    for prefix in ("model", "transformer"):
        if prefix in params:
            return {**params, prefix: {**params[prefix], "layers": layers}}
    return {**params, "layers": layers}
