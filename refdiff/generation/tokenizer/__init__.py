"""text ↔ token ids: files are read into a vocabulary; the tokenizer adds calls, padding and chat; a library works."""

from refdiff.generation.tokenizer.backend import AddedToken, Backend, RustBackend, backend_of
from refdiff.generation.tokenizer.encoded import Encoded
from refdiff.generation.tokenizer.tokenizer import Tokenizer

__all__ = ["AddedToken", "Backend", "Encoded", "RustBackend", "Tokenizer", "backend_of"]
