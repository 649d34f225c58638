"""text ↔ token ids: file and config are read into a vocabulary; the tokenizer adds calls, padding and chat."""

from refdiff.generation.tokenizer.encoded import Encoded
from refdiff.generation.tokenizer.tokenizer import Tokenizer

__all__ = ["Encoded", "Tokenizer"]
