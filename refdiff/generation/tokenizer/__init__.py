"""text ↔ token ids: a library tokenizes; `Tokenizer` adds Hugging Face's call, padding and chat templates."""

from refdiff.generation.tokenizer.backend import AddedToken, TokenizerBackend, backend_of
from refdiff.generation.tokenizer.encoded import Encoded
from refdiff.generation.tokenizer.tokenizer import Tokenizer

__all__ = ["AddedToken", "Encoded", "Tokenizer", "TokenizerBackend", "backend_of"]
