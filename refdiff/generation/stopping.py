"""Stopping criteria, under transformers' names: from (B, T) ids to which of the sequences are finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.generation.token_bytes import TokenBytes
from refdiff.model.inputs import host
from refdiff.refused import RefusedAttributes

Ids = NDArray[np.int64]
Flags = NDArray[np.bool_]


class StoppingCriteria(RefusedAttributes):
    """Says which sequences are finished; a subclass is for `generate(stopping_criteria=[…])`."""

    def __call__(self, input_ids: Ids, scores: Any, **kwargs: Any) -> Any:
        """Return which sequences of (B, T) ids are finished, (B,), or one answer for all.

        scores: those of each step so far, with `output_scores`; else None.
        """
        raise TypeError(f"{type(self).__name__}: got no __call__, expected one of (input_ids, scores)")


class MaxLengthCriteria(StoppingCriteria):
    """Prompt and text together have `max_length` tokens."""

    def __init__(self, max_length: int, max_position_embeddings: int | None = None) -> None:
        self.max_length, self.max_position_embeddings = max_length, max_position_embeddings

    def __call__(self, input_ids: Ids, scores: Any, **kwargs: Any) -> Flags:
        return np.full(len(input_ids), input_ids.shape[1] >= self.max_length, dtype=bool)


class MaxTimeCriteria(StoppingCriteria):
    """`max_time` seconds have passed since `initial_timestamp`, or since this object was made."""

    def __init__(self, max_time: float, initial_timestamp: float | None = None) -> None:
        self.max_time = max_time
        self.initial_timestamp = time.time() if initial_timestamp is None else initial_timestamp
        self._deadline = time.monotonic() + self.initial_timestamp - time.time() + max_time

    def __call__(self, input_ids: Ids, scores: Any, **kwargs: Any) -> Flags:
        return np.full(len(input_ids), time.monotonic() > self._deadline)


class EosTokenCriteria(StoppingCriteria):
    """The last token, or one of the last `new_token_length`, is an end token."""

    def __init__(self, eos_token_id: Any) -> None:
        self.eos_token_id = host("eos_token_id", eos_token_id).reshape(-1)

    def __call__(self, input_ids: Ids, scores: Any, new_token_length: int = 1, **kwargs: Any) -> Flags:
        ends: Flags = np.isin(input_ids[:, -new_token_length:], self.eos_token_id)
        return np.asarray(ends.any(axis=1))


class StopStringCriteria(StoppingCriteria):
    """A stop string ends within the last token, which may have more text after it.

    padding: the number of ids at the start of each prompt that are no text, (B,); the sequences
    are B, or n a prompt.
    """

    def __init__(self, tokenizer: Any, stop_strings: str | Sequence[str], padding: Ids | None = None) -> None:
        self.stop_strings = (stop_strings,) if isinstance(stop_strings, str) else tuple(stop_strings)
        self._strings = [s.encode() for s in self.stop_strings]
        self._token_bytes = TokenBytes(tokenizer)
        self._padding = np.zeros(1, np.int64) if padding is None else padding

    def __call__(self, input_ids: Ids, scores: Any, **kwargs: Any) -> Flags:
        starts = np.repeat(self._padding, len(input_ids) // len(self._padding))
        texts = [sequence[start:].tolist() for sequence, start in zip(input_ids, starts, strict=True)]
        return np.array([self._ends_in_stop_string(text) for text in texts], dtype=bool)

    def _ends_in_stop_string(self, sequence: list[int]) -> bool:
        last = self._token_bytes[sequence[-1]]
        longest = max(len(s) for s in self._strings)
        before = b""
        for token in reversed(sequence[:-1]):
            if len(before) >= longest:
                break
            before = self._token_bytes[token] + before
        text = before + last
        return any(text.find(s, max(0, len(before) - len(s) + 1)) >= 0 for s in self._strings)


class StoppingCriteriaList(list[Any]):
    """Criteria of which one is enough."""

    def __call__(self, input_ids: Ids, scores: Any, **kwargs: Any) -> Flags:
        """Return which sequences are finished by any of the criteria, (B,)."""
        done = np.zeros(len(input_ids), dtype=bool)
        for criterion in self:
            done |= host("stopping_criteria", criterion(input_ids, scores, **kwargs)).astype(bool)
        return done

    @property
    def max_length(self) -> int | None:
        """The length of the first `MaxLengthCriteria`, or None."""
        return next((one.max_length for one in self if isinstance(one, MaxLengthCriteria)), None)
