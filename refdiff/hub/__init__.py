"""repo id → files on disk, through huggingface_hub and its cache."""

from refdiff.hub.outline import outline
from refdiff.hub.snapshot import CONFIG, TOKENIZER, WEIGHTS, snapshot

__all__ = ["CONFIG", "TOKENIZER", "WEIGHTS", "outline", "snapshot"]
