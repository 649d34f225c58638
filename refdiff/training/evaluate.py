"""The validation loss of a model, and which layer or gradient is the first that is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from refdiff.arrays import Array, namespace
from refdiff.model.heads import DiffLlamaForCausalLM
from refdiff.training.data import Corpus

_BACKWARD = ("mlp.down_proj", "mlp", "post_attention_layernorm", "self_attn.o_proj", "self_attn", "input_layernorm")
"""The order in which a layer's gradients are computed; each belongs to the first entry that its name begins with."""


class TrainingError(RuntimeError):
    """A loss, a gradient or a weight is not finite."""


def evaluate(
    model: DiffLlamaForCausalLM, corpus: Corpus, context: int, batch: int, most: int | None = None
) -> dict[str, float]:
    """Compute the mean loss over the validation part, or over about `most` of its rows, and its bits per byte.

    Bits per byte counts separators as predicted tokens, but not as bytes of text. Each row of `context` tokens starts
    without the tokens before it.

    Units:
        validation: nats per token; bits_per_byte: bits per byte of text

    Raises:
        TrainingError: the loss is not finite; the message has the layer.
    """
    tokens = corpus.tokens["validation"]
    length = min(context, len(tokens))
    rows = np.arange(corpus.rows("validation", length))
    if most is not None:
        rows = rows[:: -(-len(rows) // most)]
    total, count = 0.0, 0
    for start in range(0, len(rows), batch):
        ids, positions = corpus.batch("validation", rows[start : start + batch], length)
        loss = float(model(ids, position_ids=positions, labels=ids, use_cache=False).loss)  # type: ignore[arg-type]
        if not math.isfinite(loss):
            raise TrainingError(f"the validation loss is {loss}, {culprit(model, ids, positions)}")
        total, count = total + loss * ids[:, 1:].size, count + ids[:, 1:].size
    mean = total / count
    bytes_a_token = corpus.num_bytes["validation"] / (len(tokens) - 1)
    return {"validation": mean, "bits_per_byte": mean / math.log(2) / bytes_a_token}


def culprit(model: DiffLlamaForCausalLM, ids: np.ndarray[Any, Any], positions: np.ndarray[Any, Any]) -> str:
    """Return a clause that names the first layer whose result is not finite."""
    states = model(ids, position_ids=positions, use_cache=False, output_hidden_states=True).hidden_states
    for i, state in enumerate(states or ()):
        if not is_finite(state):
            if i == 0:
                return "and the embeddings are not finite"
            # the last state is normed; a norm with finite weights makes nothing infinite
            last = i == model.config.num_hidden_layers and not is_finite(model.base_params["norm"]["weight"])
            return f"and the result of {'the last norm' if last else f'layer {i - 1}'} is not finite"
    return "and only the output matrix's result is not finite"


def gradient_culprit(grads: Mapping[str, Array], layers: int) -> str:
    """Return a clause that names the first gradient of the backward pass that is not finite.

    It makes all gradients after it not finite, too.
    """

    def order(name: str) -> tuple[int, int]:
        below = name.removeprefix("model.")
        if below.startswith("layers."):
            _, layer, rest = below.split(".", 2)
            return layers - int(layer), next(i for i, part in enumerate(_BACKWARD) if rest.startswith(part))
        return (layers + 1, 0) if below.startswith("embed_tokens.") else (0, name == "model.norm.weight")

    for name in sorted(grads, key=order):
        if not is_finite(grads[name]):
            return f"and {name} is the first of them in the backward pass"
    xp = namespace(*grads.values())
    largest = max(grads, key=lambda name: float(xp.max(xp.abs(grads[name]))))
    return f"for the squares overflow, and {largest} has the largest"


def is_finite(x: Array) -> bool:
    """Return whether all numbers of an array are finite."""
    xp = namespace(x)
    return bool(xp.all(xp.isfinite(x)))
