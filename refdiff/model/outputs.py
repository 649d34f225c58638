"""The results of a call of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from refdiff.arrays import Array
from refdiff.messages import summary
from refdiff.model.cache import KVCache
from refdiff.refused import RefusedAttributes


class Output(RefusedAttributes, Mapping[str, Any]):
    """A dataclass of results; as in transformers, a mapping of those that are not None, which also takes positions.

    `unlisted` are results that transformers lacks: they have a name, but no position, and do not count in `len`.
    """

    unlisted: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        return summary(self, {name: value for name, value in vars(self).items() if value is not None})

    def to_tuple(self) -> tuple[Any, ...]:
        """Return the results that are not None, in the order of the attributes."""
        return tuple(self.values())

    def __iter__(self) -> Iterator[str]:
        return (name for name, value in vars(self).items() if value is not None and name not in self.unlisted)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        value = vars(self).get("cache" if key == "past_key_values" else key)
        if value is None:
            raise KeyError(key)
        return value

    @property
    def past_key_values(self) -> Any:
        """The older name of `cache`, as in transformers."""
        return self.get("cache")


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
        cache: keys and values so far, with `use_cache`; not of token classification and question answering.
        hidden_states: with `output_hidden_states`, the input of every layer and the normed result, each (B, T, D), or
            None where its index is not selected.
        attentions: with `output_attentions`, the softmax rows of every head, one (B, H, T, S) a layer.
        differential_attentions: likewise A₁ − λ A₂ of every head pair, one (B, H/2, T, S) a layer; in a Llama, A.
        lambdas: likewise λ, one () a layer; in v2 (B, H/2, T, 1); in a Llama, 0.
    """

    unlisted: ClassVar[tuple[str, ...]] = ("differential_attentions", "lambdas")

    loss: Array | None = None
    logits: Array | None = None
    start_logits: Array | None = None
    end_logits: Array | None = None
    last_hidden_state: Array | None = None
    cache: KVCache | None = None
    hidden_states: tuple[Array | None, ...] | None = None
    attentions: tuple[Array, ...] | None = None
    differential_attentions: tuple[Array, ...] | None = None
    lambdas: tuple[Array, ...] | None = None
