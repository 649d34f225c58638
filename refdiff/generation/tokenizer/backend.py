"""`TokenizerBackend`: the Rust library `tokenizers` behind the interface that all other files use."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refdiff.browser import require
from refdiff.errors import CheckpointError
from refdiff.messages import NATIVE_CALLS

_LOAD_AGAIN = "; download it again, or write it again with `tokenizer.save_pretrained`"

SECTIONS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")

Encoding = Any
"""One tokenized text: `tokenizers.Encoding`."""


@dataclass(frozen=True)
class AddedToken:
    """A token beside the vocabulary, found in a text before the model splits it; fields as in tokenizer.json."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


@dataclass(frozen=True)
class Truncation:
    """Truncation to `max_length` tokens; the rest comes in pieces that overlap by `stride` tokens."""

    max_length: int
    stride: int = 0
    strategy: str = "longest_first"
    direction: str = "right"


class TokenizerBackend:
    """A loaded tokenizer.json; `native` is the `tokenizers.Tokenizer`, whose errors become `CheckpointError`.

    It neither truncates nor pads by itself: `settings` has the `padding` and `truncation` of the file, unused.
    """

    def __init__(self, native: Any, source: str | Path = "tokenizer.json") -> None:
        self.native, self.source = native, str(source)
        self._lock = threading.Lock()  # truncation is a state of the library's tokenizer
        with rust_errors(self.source):
            self.settings: dict[str, dict[str, Any]] = {
                "padding": native.padding or {},
                "truncation": native.truncation or {},
            }
            native.no_padding()
            native.no_truncation()

    @classmethod
    def from_json(cls, text: str, source: str | Path) -> TokenizerBackend:
        """Load the text of a tokenizer.json."""
        with rust_errors(source, "cannot use this file", _LOAD_AGAIN):
            return cls(_library().Tokenizer.from_str(text), source)

    def encode(
        self,
        texts: Sequence[Any],
        *,
        add_special_tokens: bool = True,
        truncation: Truncation | None = None,
        is_pretokenized: bool = False,
        split_special_tokens: bool = False,
    ) -> list[Encoding]:
        """Tokenize texts, or pairs of texts; with `is_pretokenized` each text is a list of words.

        With `split_special_tokens`, special tokens in a text are tokenized like any other text.
        """
        with self._lock, rust_errors(self.source):
            self.native.encode_special_tokens = split_special_tokens
            if truncation is not None:
                self.native.enable_truncation(**vars(truncation))
            try:
                return list(
                    self.native.encode_batch(
                        list(texts), is_pretokenized=is_pretokenized, add_special_tokens=add_special_tokens
                    )
                )
            finally:
                self.native.no_truncation()

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Turn ids into text."""
        return str(self._call("decode", list(ids), skip_special_tokens=skip_special_tokens))

    def decode_tokens(self, tokens: Sequence[str]) -> str:
        """Turn tokens, as the vocabulary spells them, into text."""
        with rust_errors(self.source):
            decoder = self.native.decoder
            return " ".join(tokens) if decoder is None else str(decoder.decode(list(tokens)))

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, added ones included."""
        found: int | None = self._call("token_to_id", token)
        return found

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id, as the vocabulary spells it."""
        found: str | None = self._call("id_to_token", token_id)
        return found

    def vocab(self) -> dict[str, int]:
        """Return token → id, added tokens included."""
        return dict(self._call("get_vocab", with_added_tokens=True))

    def vocab_size(self, *, with_added_tokens: bool) -> int:
        """Return the number of tokens."""
        return int(self._call("get_vocab_size", with_added_tokens=with_added_tokens))

    def added_tokens(self) -> dict[int, AddedToken]:
        """Return id → added token."""
        names = AddedToken.__dataclass_fields__
        added = self._call("get_added_tokens_decoder")
        return {i: AddedToken(**{name: getattr(token, name) for name in names}) for i, token in added.items()}

    def add_tokens(self, tokens: Sequence[AddedToken]) -> int:
        """Add tokens; those that the vocabulary has keep their ids. Return how many are new as added tokens."""
        with rust_errors(self.source):
            return int(self.native.add_tokens([_library().AddedToken(**vars(token)) for token in tokens]))

    def num_special_tokens(self, *, pair: bool) -> int:
        """Return how many special tokens are added to a text or a pair."""
        return int(self._call("num_special_tokens_to_add", pair))

    def section(self, name: str) -> dict[str, Any] | None:
        """Return one of `SECTIONS` of tokenizer.json."""
        with rust_errors(self.source):
            step = getattr(self.native, name)
            return None if step is None else json.loads(step.__getstate__())

    def model(self, field: str) -> Any:
        """Return the model's `type`, `unk_token`, `continuing_subword_prefix` …; None for what it does not have."""
        with rust_errors(self.source):
            return type(self.native.model).__name__ if field == "type" else getattr(self.native.model, field, None)

    def to_json(self) -> str:
        """Return the text of tokenizer.json."""
        with self._lock, rust_errors(self.source):  # another thread may have truncation on, which the text would keep
            return str(self.native.to_str(pretty=True))

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        with rust_errors(self.source):
            return getattr(self.native, name)(*args, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


@contextmanager
def rust_errors(source: str | Path, problem: str = "failed", fix: str = "") -> Iterator[None]:
    """Turn whatever the Rust library raises inside the block, panics included, into one error about `source`."""
    try:
        with NATIVE_CALLS.get()():
            yield
    except (CheckpointError, ImportError, MemoryError):
        raise
    except BaseException as error:
        # pyo3's PanicException derives from BaseException alone and cannot be imported; its name is all there is.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        first_line = (str(error).splitlines() or [type(error).__name__])[0][:500]
        raise CheckpointError(f"{source}: the tokenizers library {problem}: {first_line}{fix}") from None


def backend_of(tokenizer: Any, source: str | Path = "tokenizer.json") -> TokenizerBackend:
    """Return the backend of a tokenizer of refdiff, transformers or `tokenizers`, or a backend itself.

    Raises:
        TypeError: `tokenizer` is none of these.
    """
    for inner in (getattr(tokenizer, "backend", None), getattr(tokenizer, "backend_tokenizer", None), tokenizer):
        if isinstance(inner, TokenizerBackend):
            return inner
        if hasattr(inner, "encode_batch") and hasattr(inner, "id_to_token"):
            return TokenizerBackend(inner, source)
    raise TypeError(
        f"tokenizer: got {type(tokenizer).__name__}, expected a tokenizer of refdiff, of tokenizers, or a fast one of "
        "transformers"
    )


def _library() -> Any:
    return require("tokenizers", "a tokenizer")
