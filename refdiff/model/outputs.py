"""The results of a call of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from refdiff.arrays import Array
from refdiff.messages import summary
from refdiff.model.cache import KVCache


class Output:
    """A dataclass of results; as in transformers, `in`, `len` and iteration are of the names of those not None."""

    def __repr__(self) -> str:
        return summary(self, dict(self.items()))

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the results that are not None, in the order of the attributes."""
        return tuple(value for _, value in self.items())

    def keys(self) -> list[str]:
        """Return the names of the results that are not None."""
        return [name for name, _ in self.items()]

    def items(self) -> list[tuple[str, Any]]:
        """Return the names and values of the results that are not None."""
        return [(name, value) for name, value in vars(self).items() if value is not None]

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __getitem__(self, key: str | int | slice) -> Any:
        return dict(self.items())[key] if isinstance(key, str) else self.to_tuple()[key]


@dataclass(repr=False)
class ModelOutput(Output):
    """The results of one call, named as Hugging Face names them; those that were not requested are None.

    Arrays are of the model's backend and compute dtype. B batch, T tokens, S tokens with those in the cache,
    H heads, D model size, V vocabulary, C labels.

    Attributes:
        loss: a scalar array, with `labels`.
        logits: (B, T or `logits_to_keep`, V), (B, C) for sequence and (B, T, C) for token classification.
        start_logits, end_logits: (B, T), question answering.
        last_hidden_state: (B, T, D), the base model.
        cache: keys and values so far, with `use_cache`.
        hidden_states: with `output_hidden_states`, the input of every layer and the normed result, each (B, T, D).
        attentions: with `output_attentions`, the softmax rows of every head, one (B, H, T, S) a layer.
        differential_attentions: likewise A₁ − λ A₂ of every head pair, one (B, H/2, T, S) a layer; in a Llama, A.
        lambdas: likewise λ, one () a layer; in v2 (B, H/2, T, 1); in a Llama, 0.
    """

    loss: Array | None = None
    logits: Array | None = None
    start_logits: Array | None = None
    end_logits: Array | None = None
    last_hidden_state: Array | None = None
    cache: KVCache | None = None
    hidden_states: tuple[Array, ...] | None = None
    attentions: tuple[Array, ...] | None = None
    differential_attentions: tuple[Array, ...] | None = None
    lambdas: tuple[Array, ...] | None = None
