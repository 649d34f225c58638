"""text → the attention maps of every head pair of every layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff import layers
from refdiff.arrays import to_numpy
from refdiff.generation.token_bytes import TokenBytes
from refdiff.layers.diff_heads_paper import group_by_map
from refdiff.model.outputs import ModelOutput
from refdiff.model.variants import VARIANTS

Floats = NDArray[np.floating[Any]]

MAPS = {"first": "A₁", "second": "A₂", "difference": "A₁ − λ A₂"}
"""The three maps of a pair → their labels in figures."""
MAX_BYTES = 2 * 10**9
"""Largest size of the maps of one text."""

_SIGNS = {" ": "·", "\n": "↵", "\t": "⇥"}


@dataclass(frozen=True)
class AttentionMaps:
    """The attention maps of all head pairs for one text.

    L layers, P pairs, T queries, S keys. The queries are the last T of the keys. Arrays of any library are converted to
    NumPy.

    Attributes:
        tokens: labels of the S keys.
        first: A₁, (L, P, T, S).
        second: A₂, (L, P, T, S); None in a Llama, whose heads form no pairs.
        difference: A₁ − λ A₂ as the model computed it, (L, P, T, S); in a Llama, the attention A.
        lambdas: λ by layer (L,), or in v2 by layer, pair and query (L, P, T); None in a Llama.
        starts: λ_init by layer (L,); None in v2 and in a Llama, which have none.

    Raises:
        ValueError: the shapes of the maps and the number of tokens do not agree.
    """

    tokens: tuple[str, ...]
    first: Floats
    second: Floats | None
    difference: Floats
    lambdas: Floats | None
    starts: Floats | None

    def __post_init__(self) -> None:
        for name in ("first", "second", "difference", "lambdas", "starts"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, to_numpy(getattr(self, name)))
        shape = self.first.shape
        for name in ("second", "difference"):
            other = getattr(self, name)
            if other is not None and other.shape != shape:
                raise ValueError(f"{name}: got shape {other.shape}, expected {shape}, the shape of first")
        if len(shape) != 4 or shape[2] > shape[3] or len(self.tokens) != shape[3]:
            raise ValueError(
                f"first, tokens: got shape {shape} and {len(self.tokens)} tokens, expected (layers, pairs, queries, "
                "keys) with at most as many queries as keys, and a token for each key"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the maps: all of `MAPS`, or in a Llama only "difference"."""
        return tuple(MAPS) if self.second is not None else ("difference",)

    @property
    def queries(self) -> tuple[str, ...]:
        """Labels of the T queries."""
        return self.tokens[len(self.tokens) - self.first.shape[2] :]

    def map(self, name: str, layer: int | None = None, pair: int | None = None) -> Floats:
        """Return the map `name`, (T, S), of a layer and pair. None is the mean over all layers or pairs.

        Raises:
            ValueError: the model has no map of this name.
            IndexError: there is no such layer or pair.
        """
        if name not in self.names:
            raise ValueError(f"name: got {name!r}, expected {' or '.join(self.names)}")
        chosen: Floats = self._select(getattr(self, name), layer, pair).mean(axis=(0, 1))
        return chosen

    def lambda_(self, layer: int | None = None, pair: int | None = None) -> Floats | None:
        """Return λ of a layer and pair, (), or in v2 of each query, (T,). None in a Llama.

        If `layer` or `pair` is None, this is the mean over all.
        """
        if self.lambdas is None:
            return None
        if self.lambdas.ndim == 1:
            return np.asarray(self._select(self.lambdas[:, None].repeat(self.first.shape[1], 1), layer, pair).mean())
        chosen: Floats = self._select(self.lambdas, layer, pair).mean(axis=(0, 1))
        return chosen

    def title(self, layer: int | None = None, pair: int | None = None) -> str:
        """Return a title with layer, pair and λ."""
        title = "mean over layers" if layer is None else f"layer {layer}"
        kind = "pair" if self.second is not None else "head"
        title += f", mean over {kind}s" if pair is None else f", {kind} {pair}"
        lambda_ = self.lambda_(layer, pair)
        if lambda_ is None:
            return title
        return f"{title}, {'mean ' if lambda_.ndim or layer is None else ''}λ = {float(lambda_.mean()):.3f}"

    def most_cancelling(self) -> tuple[int | None, int | None]:
        """Return the layer and pair whose maps cancel most; (None, None) in a Llama.

        Rows of the difference sum to 1 − λ, so this is the layer with the mean λ nearest 1. Of its pairs, it is the one
        with the largest overlap Σ min(A₁, λ A₂).
        """
        if self.second is None or self.lambdas is None:
            return None, None
        means = self.lambdas.reshape(len(self.lambdas), -1).mean(axis=1)
        layer = int(np.abs(means - 1).argmin())
        overlap = np.minimum(self.first[layer], means[layer] * self.second[layer]).sum(axis=(-1, -2))
        return layer, int(overlap.argmax())

    def _select(self, x: Floats, layer: int | None, pair: int | None) -> Floats:
        L, P = self.first.shape[:2]
        for name, index, count in (("layer", layer, L), ("pair", pair, P)):
            if index is not None and not 0 <= index < count:
                raise IndexError(f"{name}: got {index}, expected 0 to {count - 1}, or None for the mean")
        layer_range = slice(None) if layer is None else slice(layer, layer + 1)
        return x[layer_range, slice(None) if pair is None else slice(pair, pair + 1)]


def attention_maps(model: Any, text: str | Sequence[int], tokenizer: Any = None) -> AttentionMaps:
    """Run a model on a text, or on token ids, and return its attention maps.

    The default tokenizer is that in the folder that the model was loaded from.

    Raises:
        ValueError: a tokenizer is missing, the text is empty, or the maps would exceed 2 GB.
    """
    if tokenizer is None:
        if model.source is None:
            raise ValueError("tokenizer: got None, expected one for a model that was not loaded from a folder")
        from refdiff.generation.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_pretrained(model.source)
    ids = tokenizer.encode(text) if isinstance(text, str) else [int(token) for token in text]
    if not ids:
        raise ValueError("the text has no tokens: give one that is not empty")
    check_size(model, len(ids))
    out = model([ids], output_attentions=True, use_cache=False)
    return maps_of(out, token_labels(tokenizer, ids), variant=model.config.variant)


def check_size(model: Any, tokens: int) -> None:
    """Raise `ValueError` if the maps of a text with so many tokens would exceed `MAX_BYTES`."""
    config = model.config
    itemsize = np.dtype(np.float64 if model.dtype == "float64" else np.float32).itemsize
    # A₁ and A₂ count once per head, and the difference of a pair, which has two heads, twice
    bytes_per_score = config.num_hidden_layers * config.num_query_heads * 2 * itemsize
    if bytes_per_score * tokens**2 > MAX_BYTES:
        raise ValueError(
            f"the maps of {tokens} tokens would take {bytes_per_score * tokens**2 / 1e9:.1f} GB: give a text of at "
            f"most {int((MAX_BYTES / bytes_per_score) ** 0.5)} tokens"
        )


def maps_of(out: ModelOutput, tokens: Sequence[str], *, variant: str = "hf", row: int = 0) -> AttentionMaps:
    """Return the maps of one sequence (`row`) of a model's output.

    `tokens` are labels of the keys, `variant` is `model.config.variant`.

    Raises:
        ValueError: the model was called without output_attentions.
    """
    if out.attentions is None or out.differential_attentions is None or out.lambdas is None:
        raise ValueError("out: got no attention maps; call the model with output_attentions=True")
    weights = [np.asarray(to_numpy(a))[row : row + 1] for a in out.attentions]
    difference = np.concatenate([to_numpy(d)[row : row + 1] for d in out.differential_attentions])
    pairing = VARIANTS[variant].pairing
    if pairing is None:
        return AttentionMaps(tuple(tokens), difference, None, difference, None, None)
    if pairing == "interleaved":
        weights = [np.asarray(group_by_map(w)) for w in weights]
    both = np.concatenate(weights)
    half = both.shape[1] // 2
    if out.lambdas[0].ndim:  # one for each pair and token, as in v2
        lambdas, starts = np.concatenate([to_numpy(x)[row : row + 1, :, :, 0] for x in out.lambdas]), None
    else:
        lambdas = np.array([float(to_numpy(x)) for x in out.lambdas])
        starts = np.array([layers.lambda_init(layer) for layer in range(len(lambdas))])
    return AttentionMaps(tuple(tokens), both[:, :half], both[:, half:], difference, lambdas, starts)


def as_maps(source: AttentionMaps | ModelOutput, tokens: Sequence[str] | None, variant: str) -> AttentionMaps:
    """Return the maps, or those of the first sequence of a model's output; `tokens` replaces the labels.

    Raises:
        TypeError: `source` is neither maps nor an output.
        ValueError: the output has no maps, or the numbers of tokens and keys differ.
    """
    if isinstance(source, AttentionMaps):
        return source if tokens is None else replace(source, tokens=tuple(tokens))
    if not isinstance(source, ModelOutput):
        raise TypeError(
            f"maps: got {type(source).__name__}, expected AttentionMaps or a model's output; create maps with "
            "attention_maps(model, text) or maps_of(output, tokens)"
        )
    if tokens is None and source.attentions:
        tokens = [str(key) for key in range(source.attentions[0].shape[-1])]
    return maps_of(source, tokens or (), variant=variant)


def token_labels(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    r"""Return labels in which all of a token is visible: a space as ·, a line break as ↵, bytes as \xe3\x81.

    The tokenizer is one of refdiff, transformers or `tokenizers`. An id without a token becomes [id].
    """
    token_bytes = TokenBytes(tokenizer)
    labels = []
    for token in map(int, ids):
        text = token_bytes[token].decode("utf-8", errors="backslashreplace")
        labels.append(escape_invisible(text) if text else f"[{token}]")
    return labels


def escape_invisible(text: str) -> str:
    r"""Replace white space and control characters, also those for text direction, by signs: ·, ↵, \x1b, \u202e, …"""
    return "".join(
        _SIGNS.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode("ascii")) for c in text
    )
