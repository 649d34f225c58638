"""Stopping criteria: the length, an end-of-sequence token, a stop string, the time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.generation.token_bytes import TokenBytes


class Stopping:
    """The criteria of one call: which sequences of (B, T) ids are finished."""

    def __init__(
        self,
        max_length: int,
        eos: Sequence[int] | None = None,
        stop_strings: Sequence[str] | None = None,
        tokenizer: Any = None,
        max_time: float | None = None,
    ) -> None:
        self.max_length = max_length
        self._eos = np.array(eos or [], dtype=np.int64)
        self._stop_strings = [s.encode() for s in stop_strings or []]
        self._token_bytes = TokenBytes(tokenizer) if self._stop_strings else None
        self._deadline = None if max_time is None else time.monotonic() + max_time

    def __call__(self, ids: NDArray[np.int64], padding: NDArray[np.int64] | None = None) -> NDArray[np.bool_]:
        """Return which sequences of (B, T) are finished, (B,); the first `padding` (B,) ids of each are no text."""
        timeout = self._deadline is not None and time.monotonic() > self._deadline
        if timeout or ids.shape[1] >= self.max_length:
            return np.ones(ids.shape[0], dtype=bool)
        done: NDArray[np.bool_] = np.isin(ids[:, -1], self._eos)
        if self._token_bytes is not None:
            starts = np.zeros(len(ids), dtype=np.int64) if padding is None else padding
            texts = [sequence[start:].tolist() for sequence, start in zip(ids, starts, strict=True)]
            done |= np.array([self._ends_in_stop_string(text, self._token_bytes) for text in texts], dtype=bool)
        return done

    def _ends_in_stop_string(self, sequence: list[int], token_bytes: TokenBytes) -> bool:
        """Return whether a stop string ends within the last token, which may have more text after it."""
        last = token_bytes[sequence[-1]]
        longest = max(len(s) for s in self._stop_strings)
        before = b""
        for token in reversed(sequence[:-1]):
            if len(before) >= longest:
                break
            before = token_bytes[token] + before
        text = before + last
        return any(text.find(s, max(0, len(before) - len(s) + 1)) >= 0 for s in self._stop_strings)
