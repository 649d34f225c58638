"""Watermarks in sampled text, with the random numbers of torch's CPU generator, so that any detector finds them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.generation.logits_process import Ids, LogitsProcessor, Scores
from refdiff.generation.options import check, integer, number
from refdiff.layers.softmax import softmax
from refdiff.refused import RefusedAttributes

TABLE_SIZE = 1_000_003
"""The size of the fixed table of the scheme "selfhash"."""


def permutation(n: int, seed: int, first: int | None = None) -> list[int]:
    """Return the first numbers of torch.randperm(n) with a generator of this seed: Fisher and Yates, from MT19937."""
    first = n if first is None else first
    bits = _twister(seed).random_raw(min(first, n - 1)).tolist()
    order = list(range(n))
    for i, raw in enumerate(bits):
        j = i + (raw & 0xFFFFFFFF) % (n - i)
        order[i], order[j] = order[j], order[i]
    return order[:first]


def _twister(seed: int) -> np.random.MT19937:
    bits = np.random.MT19937()
    bits._legacy_seeding(seed & 0xFFFFFFFF)
    return bits


@functools.cache
def _fixed_table(key: int) -> NDArray[np.int64]:
    return np.array(permutation(TABLE_SIZE, key))


class _Settings(RefusedAttributes):
    """Fields that are checked when they are set."""

    __post_init__ = LogitsProcessor.__post_init__

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dict, as generation_config.json has them."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}  # type: ignore[arg-type]


@dataclass
class WatermarkingConfig(_Settings):
    """The option `watermarking_config`: the share of the vocabulary with a bias, and its choice."""

    greenlist_ratio: float = field(default=0.25, metadata=number(0, 1, above=True, below=True))
    bias: float = 2.0
    hashing_key: int = 15485863
    seeding_scheme: str = field(
        default="lefthash", metadata=check(lambda v: v in ("lefthash", "selfhash"), '"lefthash" or "selfhash"')
    )
    context_width: int = field(default=1, metadata=integer(1))


class WatermarkLogitsProcessor(WatermarkingConfig, LogitsProcessor):
    """Add a bias to a share of the vocabulary, which the tokens before choose (Kirchenbauer et al. 2023, algorithm 2).

    With "lefthash" the last token chooses, with "selfhash" the last `context_width` and the next one (algorithm 3).
    """

    def __init__(self, vocab_size: int, device: Any = None, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.vocab_size, self.device = vocab_size, device

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        result = scores.copy()
        if input_ids.shape[1] < self.context_width:
            return result
        for row, ids in enumerate(input_ids):
            if self.seeding_scheme == "lefthash":
                green = self._green(ids)
            else:
                best = np.argsort(-scores[row], kind="stable")[:40]
                green = [int(token) for token in best if token in self._green(np.append(ids, token))]
            result[row, green] += self.bias
        return result

    def _green(self, ids: Ids) -> list[int]:
        """Return the tokens that get the bias after these ids."""
        if self.seeding_scheme == "selfhash":
            table = _fixed_table(self.hashing_key)
            a, b = table[ids[-self.context_width :] % TABLE_SIZE] + 1, table[ids[-1] % TABLE_SIZE] + 1
            seed = int((self.hashing_key * a * b).min())
        else:
            seed = self.hashing_key * int(ids[-1])
        return permutation(self.vocab_size, seed % (2**64 - 1), int(self.vocab_size * self.greenlist_ratio))


_MULTIPLIER = 6364136223846793005  # of the linear congruential generator that hashes n-grams


def _hash(start: NDArray[np.int64], data: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return start hashed with the numbers (…, n) along the last axis, modulo 2^64."""
    for i in range(data.shape[-1]):
        start = (start + data[..., i]) * np.int64(_MULTIPLIER) + np.int64(1)
    return start


@dataclass
class SynthIDTextWatermarkingConfig(_Settings):
    """The option `watermarking_config` for SynthID-Text: n-grams and the keys of coin flips."""

    ngram_len: int = field(metadata=integer(2))
    keys: list[int]
    context_history_size: int = 1024
    sampling_table_seed: int = 0
    sampling_table_size: int = 2**16
    skip_first_ngram_calls: bool = False
    debug_mode: bool = False


class SynthIDTextWatermarkLogitsProcessor(SynthIDTextWatermarkingConfig, LogitsProcessor):
    """Reweight tokens by a tournament of keyed coin flips (Dathathri et al. 2024, SynthID-Text), once per context."""

    def __init__(
        self, ngram_len: int, keys: list[int], sampling_table_size: int, sampling_table_seed: int,
        context_history_size: int, device: Any = None, *args: Any, **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(
            ngram_len, keys, context_history_size, sampling_table_seed, sampling_table_size, *args, **settings
        )
        self.device = device
        raw = _twister(self.sampling_table_seed).random_raw(self.sampling_table_size)
        self._table = (raw & np.uint64(1)).astype(np.int64)
        self._context: Any = None
        self._history: Any = None
        self._calls = 0

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        B, V = scores.shape
        scores = np.ones_like(scores) if self.debug_mode else scores
        if self._context is None:
            self._context = np.zeros((B, self.ngram_len - 1), np.int64)
            self._history = np.zeros((B, self.context_history_size), np.int64)
        else:
            self._context = np.concatenate([self._context, input_ids[:, -1:]], axis=1)[:, 1:]
        self._calls += 1
        if self.skip_first_ngram_calls and self._calls < self.ngram_len:
            return scores
        context = _hash(np.ones(B, np.int64), self._context)
        tokens = _hash(context[:, None], np.arange(V)[None, :, None])
        keys = _hash(tokens[:, :, None], np.array(self.keys, np.int64)[None, None, :, None])
        p = softmax(scores)
        for g in np.moveaxis(self._table[keys % self.sampling_table_size], 2, 0):
            p = p * (1 + g - (g * p).sum(axis=1, keepdims=True))
        with np.errstate(divide="ignore"):
            marked = np.maximum(np.log(p), np.finfo(p.dtype).min)
        repeated = (self._history == context[:, None]).any(axis=1, keepdims=True)
        self._history = np.concatenate([context[:, None], self._history], axis=1)[:, :-1]
        return np.where(repeated, scores, marked)


def watermark(config: Any, vocab_size: int) -> LogitsProcessor:
    """Return the processor of a configuration: one of these two, transformers' of the same name, or a dict."""
    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    try:
        if "ngram_len" in values:
            return SynthIDTextWatermarkLogitsProcessor(**SynthIDTextWatermarkingConfig(**values).to_dict())
        return WatermarkLogitsProcessor(vocab_size, **values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"watermarking_config: {error}") from None
