"""repo id → files on disk, through huggingface_hub and its cache."""

from refdiff.hub.download import (
    ARGUMENTS,
    CONFIG,
    OTHER_TOKENIZERS,
    TOKENIZER,
    WEIGHTS,
    HubOptions,
    last_checkpoint,
    snapshot,
)
from refdiff.hub.remote import outline

__all__ = [
    "ARGUMENTS",
    "CONFIG",
    "OTHER_TOKENIZERS",
    "TOKENIZER",
    "WEIGHTS",
    "HubOptions",
    "last_checkpoint",
    "outline",
    "snapshot",
]
