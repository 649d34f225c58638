"""Streamers: turn token ids into text while they are generated, in whole characters.

`generate(streamer=…)` calls `put(ids)` with the prompt (B, T), then with new ids, then `end()`, as transformers does.
New ids come as (B,), one for each sequence, or as (B, t) from guesses and from beam search, which has them at its end.
Joined, they are what `generate` returns.
"""

from __future__ import annotations

import functools
import queue
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.generation.token_bytes import TokenBytes
from refdiff.generation.tokenizer.backend import backend_of
from refdiff.refused import RefusedAttributes


def split_sequences(value: Any) -> list[NDArray[np.int64]]:
    """Return the new ids of each sequence, B arrays (t,), from any of the shapes that `put` receives."""
    array = np.asarray(value, dtype=np.int64)
    return list(array[:, None] if array.ndim == 1 else array)


class PieceDecoder:
    """Turns one sequence's ids into pieces of text, each as soon as its characters are whole.

    A piece is what its ids add to the text of those before: some decoders drop a space at the start of a text.

    tokenizer: one of refdiff, transformers or tokenizers. before: ids of the text before, with which a character that
    begins in `before` is decoded whole.
    """

    def __init__(
        self, tokenizer: Any, before: NDArray[np.int64] | None = None, skip_special_tokens: bool = False
    ) -> None:
        backend = backend_of(tokenizer)
        self._decode = functools.partial(backend.decode, skip_special_tokens=skip_special_tokens)
        self._ids: list[int] = []
        self._known, self._shown = 0, ""  # how many of the ids are passed on, and what of their text
        for token in [] if before is None else _context(before.tolist(), TokenBytes(backend)):
            self(token)
        self._shown += self._new_text().rstrip("\ufffd")

    def __call__(self, token: int) -> str:
        """Take the next id; return the text that it makes certain, often none."""
        self._ids.append(token)
        piece = self._new_text()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._ids = self._ids[self._known :]
        self._known, self._shown = len(self._ids), self._decode(self._ids)
        return piece

    def end(self, incomplete: bool = False) -> str:
        """Return the text that still waits; with U+FFFD for an incomplete last character, as decoding gives, or not."""
        text = self._new_text()
        return text if incomplete else text.rstrip("\ufffd")

    def _new_text(self) -> str:
        text = self._decode(self._ids)
        # A byte token that belongs to no character changes the text of byte tokens before it: leave those out.
        return text[len(self._shown) :] if text.startswith(self._shown) else self._decode(self._ids[self._known :])


def _context(before: list[int], token_bytes: TokenBytes) -> list[int]:
    """Return the last ids, from the start of a character on: a byte decoder fails in the middle of one."""
    start = max(0, len(before) - _CONTEXT)
    while start > 0 and token_bytes[before[start]][:1] in _CONTINUATIONS:
        start -= 1
    return before[start:]


_CONTEXT = 8  # ids of the prompt, enough to know whether a space comes before the next word
_CONTINUATIONS = tuple(bytes([byte]) for byte in range(0x80, 0xC0))  # bytes within a UTF-8 character


class BatchTextStreamer(RefusedAttributes):
    """Decodes the sequences of a batch, and passes on each piece of text of complete characters.

    tokenizer: one of refdiff, transformers or tokenizers. write(i, text) is called with every
    piece of sequence i; `texts` has the text of each sequence so far. In the end it is what
    decoding all ids gives, but for spaces that `clean_up_tokenization_spaces` would delete.

    Raises:
        ValueError: `put` with another number of sequences than before.
    """

    def __init__(
        self,
        tokenizer: Any,
        write: Callable[[int, str], object] | None = None,
        skip_prompt: bool = False,
        skip_special_tokens: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self._write = write
        self.skip_prompt = skip_prompt
        self._skip_special_tokens = skip_special_tokens
        self._streams: list[PieceDecoder] | None = None
        self.texts: list[str] = []

    def put(self, value: Any) -> None:
        """Receive the prompt, then new ids."""
        sequences = split_sequences(value)
        if self._streams is None:
            prompts = sequences if self.skip_prompt else [None] * len(sequences)
            self._streams = [PieceDecoder(self.tokenizer, before, self._skip_special_tokens) for before in prompts]
            self.texts = [""] * len(sequences)
            if self.skip_prompt:
                return
        if len(sequences) != len(self._streams):
            raise ValueError(f"put: got ids of {len(sequences)} sequences, expected {len(self._streams)} as before")
        for i, (ids, decoder) in enumerate(zip(sequences, self._streams, strict=True)):
            self._pass_on(i, "".join([decoder(int(token)) for token in ids]))

    def _pass_on(self, index: int, text: str) -> None:
        if text:
            self.texts[index] += text
            if self._write is not None:
                self._write(index, text)

    def end(self) -> None:
        """Pass on the rest; `texts` stays until the next call of `generate`."""
        for index, decoder in enumerate(self._streams or []):
            self._pass_on(index, decoder.end(incomplete=True))
        self._streams = None


class TextStreamer(BatchTextStreamer):
    """Prints the text of one prompt while it is generated; `text` is the text so far.

    write: called with every piece of text in place of printing. A subclass may have its own
        `on_finalized_text`.

    Raises:
        ValueError: more than one sequence.
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        skip_special_tokens: bool = False,
        write: Callable[[str], object] | None = None,
        clean_up_tokenization_spaces: Any = None,
    ) -> None:
        super().__init__(tokenizer, lambda i, text: self.on_finalized_text(text), skip_prompt, skip_special_tokens)
        self._write_text = write

    @property
    def text(self) -> str:
        """The text so far."""
        return self.texts[0] if self.texts else ""

    def put(self, value: Any) -> None:
        """Receive the prompt, then new ids."""
        if (count := len(split_sequences(value))) != 1:
            raise ValueError(f"TextStreamer: got {count} sequences, expected one prompt; use BatchTextStreamer")
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a new piece of text, or pass it to `write`; the last one may be empty."""
        if self._write_text is None:
            print(text, end="\n" if stream_end else "", flush=True, file=sys.stdout)
        elif text:
            self._write_text(text)

    def end(self) -> None:
        """Pass on the rest, and print the final newline."""
        rest = "".join(decoder.end(incomplete=True) for decoder in self._streams or [])
        self._streams = None
        if rest:
            self.texts[0] += rest
        self.on_finalized_text(rest, stream_end=True)


class TextIteratorStreamer(TextStreamer):
    """An iterator over the pieces of text, for `generate` running in another thread.

    timeout: seconds to wait for the next piece, None for any time.

    Raises:
        queue.Empty: no piece came within `timeout`.
    """

    def __init__(
        self,
        tokenizer: Any,
        skip_prompt: bool = False,
        timeout: float | None = None,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: Any = None,
    ) -> None:
        self.stop_signal = None
        self.text_queue: queue.Queue[str | None] = queue.Queue()
        self.timeout = timeout
        super().__init__(tokenizer, skip_prompt, skip_special_tokens, write=self.text_queue.put)

    def end(self) -> None:
        """End the iteration."""
        super().end()
        self.text_queue.put(self.stop_signal)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self.text_queue.get(timeout=self.timeout)
        if piece == self.stop_signal:
            raise StopIteration
        return piece
