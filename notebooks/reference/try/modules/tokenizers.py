"""What chapter 01 needs of the package tokenizers, which no browser has: the tokenizer of refdiff in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refdiff.generation.tokenizer.file import load_backend


class Tokenizer:
    """A loaded tokenizer.json."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    @classmethod
    def from_file(cls, path: str) -> Tokenizer:
        """Load a tokenizer.json."""
        return cls(load_backend(Path(path).parent))

    def encode(self, text: str) -> Any:
        """Tokenize a text; the result has `ids`."""
        return self._backend.encode([text])[0]

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        """Turn ids into text."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(f"tokenizers.{name} is compiled code, which no browser has: use Python outside of one")
