"""A tokenizer of eight words and tiny models for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import refdiff
from tests.generation.tokenizer.test_tokenizer import words
from tests.generation.trained_tokenizers import save

__all__ = ["folder_of", "model_of", "words"]


def model_of(architecture: str, **config: Any) -> Any:
    """A random model of `architecture` over the eight words."""
    settings = refdiff.DiffLlamaConfig(
        vocab_size=8, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=0, eos_token_id=1, pad_token_id=2, initializer_range=0.5, **config,
    )  # fmt: skip
    return getattr(refdiff, architecture).from_config(settings, seed=1)


def folder_of(folder: Path, architecture: str, **config: Any) -> Path:
    """The same as a checkpoint on disk, with its tokenizer."""
    tokenizer = words()
    save(folder, tokenizer.backend.native, tokenizer_config=tokenizer.config)
    model_of(architecture, **config).save_pretrained(folder)
    return folder
