"""text ↔ token ids: a library tokenizes; `Tokenizer` adds Hugging Face's call, padding and chat templates."""

from refdiff.generation.tokenizer.backend import AddedToken, RustBackend, TokenizerBackend, backend_of
from refdiff.generation.tokenizer.encoded import Encoded
from refdiff.generation.tokenizer.tokenizer import Tokenizer

__all__ = ["AddedToken", "Encoded", "RustBackend", "Tokenizer", "TokenizerBackend", "backend_of"]
