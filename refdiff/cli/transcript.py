"""The output of one call of generate so far: its text in complete characters, its tokens, its speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from refdiff.cli.terminal import waiting
from refdiff.generation.stream import PieceDecoder


class Transcript:
    """A streamer for `generate` that keeps text and times, and passes text on once it is final.

    `write` gets each piece; None keeps it. The text ends before the first of the `stops`; the beginning of one is held
    back until it is known whether it is one.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], write: Callable[[str], None] | None) -> None:
        self._tokenizer = tokenizer.backend
        self._decode: PieceDecoder | None = None
        self._stops = list(stops)
        self._write = write
        self._pending = ""  # decoded, but perhaps the beginning of a stop
        self._times: list[tuple[float, int]] = []  # and how many tokens there were then
        self._started = 0.0
        self.text = ""
        self.ids: list[int] = []
        self.prompt_tokens = 0
        self._progress = ("prompt", 0, 0)
        self._before_text: Callable[[], None] = lambda: None
        self.stopped = False
        self.finish_reason = ""

    def put(self, ids: Any) -> None:
        """Receive the prompt (1, T), then new tokens."""
        now = time.perf_counter()
        if self._decode is None:
            self._decode = PieceDecoder(self._tokenizer, ids[0], skip_special_tokens=True)
            self._started = now
            self.prompt_tokens = ids.size
            return
        new = [int(i) for i in ids.reshape(-1)]
        self.ids += new
        self._times.append((now, len(self.ids)))
        for token in new:
            self._feed(self._decode(token))

    def progress(self, stage: str, done: int, total: int) -> None:
        """Receive the progress of a long prompt or of a beam search."""
        self._progress = stage, done, total
        if stage == "text":  # of a beam search, which puts most tokens at its end
            self._times.append((time.perf_counter(), done))

    @contextmanager
    def progress_shown(self, *, quiet: bool = False, until_text: bool = True) -> Iterator[None]:
        """Show the progress on a terminal; with `until_text`, until text is written to the same terminal."""
        with waiting(self._doing, quiet=quiet) as done:
            if until_text:
                self._before_text = done
            yield

    def _doing(self) -> str:
        stage, done, total = self._progress
        if stage == "text":
            return f"generating: {done:,} of at most {total:,} tokens"
        if self.ids:
            return f"generating: {len(self.ids):,} tokens"
        return f"reading the prompt: {done:,} of {total or self.prompt_tokens:,} tokens"

    def end(self) -> None:
        """Do nothing: the command closes the transcript itself, with a reason."""

    def close(self, finish_reason: str) -> None:
        """Pass on the text that was held back."""
        self.finish_reason = finish_reason
        if self._decode is not None:
            self._feed(self._decode.end())
        self._emit(len(self._pending))

    @property
    def prompt_speed(self) -> float | None:
        """Prompt tokens per second, up to the first new token."""
        if not self._times:
            return None
        return self.prompt_tokens / max(self._times[0][0] - self._started, 1e-9)

    @property
    def speed(self) -> float | None:
        """New tokens per second, from the first of them on."""
        if not self._times:
            return None
        (began, first), (ended, _) = self._times[0], self._times[-1]
        return (len(self.ids) - first) / max(ended - began, 1e-9) if len(self.ids) > first else None

    def _feed(self, piece: str) -> None:
        if self.stopped or not piece:
            return
        self._pending += piece
        places = [at for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if places:
            self._pending = self._pending[: min(places)]
            self.stopped = True
        self._emit(len(self._pending) if self.stopped else len(self._pending) - self._maybe_stop())

    def _maybe_stop(self) -> int:
        """Return how many pending characters at the end could be the beginning of a stop text."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._pending)), 0, -1):
            if any(stop.startswith(self._pending[-length:]) for stop in self._stops if len(stop) > length):
                return length
        return 0

    def _emit(self, count: int) -> None:
        piece, self._pending = self._pending[:count], self._pending[count:]
        self.text += piece
        if piece and self._write is not None:
            self._before_text()
            self._write(piece)
