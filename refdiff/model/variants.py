"""What an attention variant is called, stored as and made of, beside its functions in diffllama.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from refdiff.model.config import DiffLlamaConfig

Shapes = dict[str, tuple[int, ...]]

LAMBDA_VECTORS = ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2")
"""Last part of the name of the four vectors that v1 makes λ of."""


@dataclass(frozen=True)
class Variant:
    """What an attention variant is called and stored as, and which heads and parameters it has.

    model_type: its `model_type` in a config.json.
    pairing: which two heads are a pair: "halves" (i and i + H/2), "interleaved" (2i and 2i + 1), or None.
    even_key_heads: whether the number of key and value heads must be even.
    own_shapes: from a config to the shapes of attention's parameters beside its four projections.
    query_heads: query heads per `num_attention_heads`.
    last_projection: what files call `o_proj`.
    """

    model_type: str
    pairing: str | None
    even_key_heads: bool
    own_shapes: Callable[[DiffLlamaConfig], Shapes]
    query_heads: int = 1
    last_projection: str = "o_proj"


def _vectors(config: DiffLlamaConfig) -> Shapes:
    return dict.fromkeys(LAMBDA_VECTORS, (config.head_dim,))


def _vectors_and_norm(config: DiffLlamaConfig) -> Shapes:
    return {**_vectors(config), "subln.weight": (2 * config.head_dim,)}


def _lambda_projection(config: DiffLlamaConfig) -> Shapes:
    return {"lambda_proj.weight": (config.num_attention_heads, config.hidden_size)}


VARIANTS = {
    "hf": Variant("diffllama", "halves", even_key_heads=True, own_shapes=_vectors),
    "paper": Variant(
        "diff_transformer", "interleaved", even_key_heads=True, own_shapes=_vectors_and_norm, last_projection="out_proj"
    ),
    "v2": Variant(
        "diff_transformer_v2", "interleaved", even_key_heads=False, own_shapes=_lambda_projection, query_heads=2
    ),
    "none": Variant("llama", None, even_key_heads=False, own_shapes=lambda config: {}),
}
"""By `config.wiring`. transformers refuses the model types of `paper` and `v2`."""
