"""text → what every head pair of every layer looked at: the arrays that are drawn."""

from __future__ import annotations

import unicodedata
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
from refdiff.model.variants import PAIRING

Floats = NDArray[np.floating[Any]]

MAPS = {"first": "A₁", "second": "A₂", "difference": "A₁ − λ A₂"}
"""The three maps of a pair, and how they are written."""
MOST_BYTES = 2 * 10**9
"""What the maps of one text may take in memory."""

_SIGNS = {" ": "·", "\n": "↵", "\t": "⇥"}
_UNSEEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs")


@dataclass(frozen=True)
class AttentionMaps:
    """What every pair of heads looked at in one text.

    L layers, P pairs, T queries, S keys; the queries are the last T of the keys. Arrays of any library are taken, and
    brought to the host.

    Attributes:
        tokens: what the S keys are called.
        first: A₁, (L, P, T, S).
        second: A₂, the same; None in a Llama, whose heads are no pairs.
        difference: A₁ − λ A₂ as the model computed it; in a Llama, A.
        lambdas: λ by layer (L,), or in v2 by layer, pair and query (L, P, T); None in a Llama.
        starts: λ_init by layer (L,), or None where there is none.
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
                raise ValueError(f"{name} has shape {other.shape}, but first has {shape}: they must be alike")
        if len(shape) != 4 or shape[2] > shape[3] or len(self.tokens) != shape[3]:
            raise ValueError(
                f"maps of shape {shape} and {len(self.tokens)} tokens: maps must be (layers, pairs, queries, keys), "
                f"with no more queries than keys and a token for each key"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Which of `MAPS` there are."""
        return tuple(MAPS) if self.second is not None else ("difference",)

    @property
    def queries(self) -> tuple[str, ...]:
        """What the T queries are called."""
        return self.tokens[len(self.tokens) - self.first.shape[2] :]

    def map(self, name: str, layer: int | None = None, pair: int | None = None) -> Floats:
        """Return one map (T, S); None is the mean over all layers, or all pairs.

        Raises:
            ValueError: there is no such map.
            IndexError: there is no such layer or pair.
        """
        if name not in self.names:
            raise ValueError(f"no map {name!r}; there is {', '.join(self.names)}")
        chosen: Floats = self._of(getattr(self, name), layer, pair).mean(axis=(0, 1))
        return chosen

    def lambda_(self, layer: int | None = None, pair: int | None = None) -> Floats | None:
        """Return λ of one map, () or in v2 (T,), the mean where layer or pair is None; None in a Llama."""
        if self.lambdas is None:
            return None
        if self.lambdas.ndim == 1:
            return np.asarray(self._of(self.lambdas[:, None].repeat(self.first.shape[1], 1), layer, pair).mean())
        chosen: Floats = self._of(self.lambdas, layer, pair).mean(axis=(0, 1))
        return chosen

    def title(self, layer: int | None = None, pair: int | None = None) -> str:
        """Say which map this is, with its λ."""
        where = "mean over layers" if layer is None else f"layer {layer}"
        which = "pair" if self.second is not None else "head"
        where += f", mean over {which}s" if pair is None else f", {which} {pair}"
        lambda_ = self.lambda_(layer, pair)
        if lambda_ is None:
            return where
        return f"{where}, {'mean ' if lambda_.ndim or layer is None else ''}λ = {float(lambda_.mean()):.3f}"

    def most_cancelling(self) -> tuple[int | None, int | None]:
        """Find the layer and pair in which the difference removes most; (None, None) in a Llama.

        Rows of the difference sum to 1 − λ, so the layer is the one whose mean λ is nearest 1. In it, the pair is the
        one whose maps have most in common, Σ min(A₁, λ A₂).
        """
        if self.second is None or self.lambdas is None:
            return None, None
        means = self.lambdas.reshape(len(self.lambdas), -1).mean(axis=1)
        layer = int(np.abs(means - 1).argmin())
        common = np.minimum(self.first[layer], means[layer] * self.second[layer]).sum(axis=(-1, -2))
        return layer, int(common.argmax())

    def _of(self, x: Floats, layer: int | None, pair: int | None) -> Floats:
        L, P = self.first.shape[:2]
        for name, index, count in (("layer", layer, L), ("pair", pair, P)):
            if index is not None and not 0 <= index < count:
                raise IndexError(f"{name}: got {index}, expected 0 to {count - 1}, or None for the mean")
        rows = slice(None) if layer is None else slice(layer, layer + 1)
        return x[rows, slice(None) if pair is None else slice(pair, pair + 1)]


def attention_maps(model: Any, text: str | Sequence[int], tokenizer: Any = None) -> AttentionMaps:
    """Run a model on a text, or on ids, and return what its heads looked at.

    Without `tokenizer` it is the one in the folder that the model was loaded from.

    Raises:
        ValueError: there is no tokenizer, no token, or the maps would not fit into memory.
    """
    if tokenizer is None:
        if model.source is None:
            raise ValueError("the model was not loaded from a folder, so pass its tokenizer=")
        from refdiff.generation.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_pretrained(model.source)
    ids = tokenizer.encode(text) if isinstance(text, str) else [int(token) for token in text]
    if not ids:
        raise ValueError("the text has no tokens, so there is nothing to look at: give one that is not empty")
    check_size(model, len(ids))
    out = model([ids], output_attentions=True, use_cache=False)
    return maps_of(out, token_labels(tokenizer, ids), wiring=model.config.wiring)


def check_size(model: Any, tokens: int) -> None:
    """Refuse a text whose maps would not fit.

    Raises:
        ValueError: says how many tokens would.
    """
    config = model.config
    itemsize = np.dtype(np.float64 if model.dtype == "float64" else np.float32).itemsize
    square = config.num_hidden_layers * config.num_query_heads * 2 * itemsize  # both maps, and the difference twice
    if square * tokens**2 > MOST_BYTES:
        raise ValueError(
            f"the text has {tokens} tokens, and the maps of all layers would take {square * tokens**2 / 1e9:.1f} GB: "
            f"give a text of at most {int((MOST_BYTES / square) ** 0.5)} tokens"
        )


def maps_of(out: ModelOutput, tokens: Sequence[str], *, wiring: str = "hf", row: int = 0) -> AttentionMaps:
    """Take the maps of one row of a batch out of a model's output; `wiring` is `model.config.wiring`.

    Raises:
        ValueError: the model was called without output_attentions.
    """
    if out.attentions is None or out.differential_attentions is None or out.lambdas is None:
        raise ValueError("the output has no attention maps: call the model with output_attentions=True")
    weights = [np.asarray(to_numpy(a))[row : row + 1] for a in out.attentions]
    difference = np.concatenate([to_numpy(d)[row : row + 1] for d in out.differential_attentions])
    if PAIRING[wiring] is None:
        return AttentionMaps(tuple(tokens), difference, None, difference, None, None)
    if PAIRING[wiring] == "interleaved":
        weights = [np.asarray(group_by_map(w)) for w in weights]
    both = np.concatenate(weights)
    half = both.shape[1] // 2
    if wiring == "v2":
        lambdas, starts = np.concatenate([to_numpy(x)[row : row + 1, :, :, 0] for x in out.lambdas]), None
    else:
        lambdas = np.array([float(to_numpy(x)) for x in out.lambdas])
        starts = np.array([layers.lambda_init(layer) for layer in range(len(lambdas))])
    return AttentionMaps(tuple(tokens), both[:, :half], both[:, half:], difference, lambdas, starts)


def as_maps(given: AttentionMaps | ModelOutput, tokens: Sequence[str] | None, wiring: str) -> AttentionMaps:
    """Return the maps that are drawn: those given, or those of an output's first row; `tokens` names the keys.

    Raises:
        TypeError: it is neither.
        ValueError: the output has no maps, or there are not as many tokens as keys.
    """
    if isinstance(given, AttentionMaps):
        return given if tokens is None else replace(given, tokens=tuple(tokens))
    if not isinstance(given, ModelOutput):
        raise TypeError(
            f"need AttentionMaps or a model's output, got {type(given).__name__}: attention_maps(model, text) and "
            "maps_of(output, tokens) make maps"
        )
    if tokens is None and given.attentions:
        tokens = [str(key) for key in range(given.attentions[0].shape[-1])]
    return maps_of(given, tokens or (), wiring=wiring)


def token_labels(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    r"""Spell each token so that all of it is seen: a space as ·, a line break as ↵, half of a character as \xe3\x81.

    Takes a tokenizer of refdiff, of transformers or of `tokenizers`; an id that it has no token for becomes [id].
    """
    token_bytes = TokenBytes(tokenizer)
    labels = []
    for token in map(int, ids):
        text = token_bytes[token].decode("utf-8", errors="backslashreplace")
        labels.append(visible(text) if text else f"[{token}]")
    return labels


def visible(text: str) -> str:
    r"""Put a sign in place of what leaves no ink or turns others around: · for a space, and \x1b, \u202e, …"""
    return "".join(map(_sign, text))


def _sign(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    unseen = unicodedata.category(character) in _UNSEEN
    return character.encode("unicode_escape").decode("ascii") if unseen else character
