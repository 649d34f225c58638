"""Checkpoints with random weights in the dimensions of published models, to measure without a download."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refdiff.files import write_json
from refdiff.model.config import DiffLlamaConfig

_NAMES = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "tie_word_embeddings",
)  # fmt: skip


def _fields(*values: int, **others: Any) -> dict[str, Any]:
    return {**dict(zip(_NAMES, values, strict=True)), **others}


LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
          "original_max_position_embeddings": 8192}  # fmt: skip

HANDCUT = _fields(
    2048, 8192, 16, 32, 8, 64, 128256, 131072, 128000, 128001, True,
    rope_theta=500000.0, rope_scaling=LLAMA3, torch_dtype="float32",
)  # fmt: skip
"""The config.json of kajuma/DiffLlama-0.3B-handcut without fields that have their default: 1,235,818,496 parameters."""

ONE_B = _fields(
    2048, 5632, 22, 32, 4, 64, 102400, 4096, 1, 2, False,
    rope_theta=10000.0, rope_scaling=None, torch_dtype="bfloat16",
)  # fmt: skip
"""A guess at kajuma/DiffLlama-1B. Known are 1.39 B parameters, bfloat16, and the ids of bos and eos. The dimensions are
those of TinyLlama with a vocabulary of 102,400, which give that count."""

TINY = {**HANDCUT, **_fields(64, 128, 2, 8, 4, 8, 512, 131072, 1, 2, True)}
"""A model to try the benchmark with. Its rows measure Python calls more than arithmetic."""

LIKE = {"kajuma/DiffLlama-0.3B-handcut": HANDCUT, "kajuma/DiffLlama-1B": ONE_B, "tiny": TINY}

TRAINED = {
    "tiny": _fields(32, 88, 2, 4, 4, 8, 2048, 256, 0, 0, True),
    "3m": _fields(192, 512, 6, 6, 6, 32, 2048, 256, 0, 0, True),
    "30m": _fields(512, 1368, 9, 8, 8, 64, 2048, 256, 0, 0, True),
}
"""Models for the rows `train`."""


def write_random(config: DiffLlamaConfig, folder: str | Path) -> None:
    """Write a checkpoint of random weights, the same at each call."""
    from refdiff.model.heads import DiffLlamaForCausalLM  # here, so that rows of `memory` do not import it

    model = DiffLlamaForCausalLM.from_config(config, dtype=config.dtype or "float32")
    model.save_pretrained(folder, max_shard_size="10GB")


def write_like(name: str, folder: Path, dtype: str | None = None) -> None:
    """Write a checkpoint with the dimensions of `LIKE[name]`, in `dtype` (default: its own), and a tokenizer."""
    fields = LIKE[name] if dtype is None else {**LIKE[name], "torch_dtype": dtype}
    folder.mkdir(parents=True, exist_ok=True)
    write_random(DiffLlamaConfig(**fields), folder)
    write_tokenizer(fields, folder)


@contextmanager
def checkpoint(like: str | None, folder: str | None, dtype: str | None = None) -> Iterator[str | None]:
    """Yield the absolute path of a checkpoint: `folder`, or a temporary one with the dimensions of `like`."""
    with tempfile.TemporaryDirectory(prefix="refdiff-bench-") as temporary:
        if like is not None:
            folder = temporary
            write_like(like, Path(folder), dtype)
        yield None if folder is None else str(Path(folder).absolute())


def write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Write a byte-level tokenizer with exactly `vocab_size` ids: bos, eos, the bytes, and invented words."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    special = {fields["bos_token_id"]: "<|begin|>", fields["eos_token_id"]: "<|end|>"}
    symbols = iter(sorted(pre_tokenizers.ByteLevel.alphabet()))
    words = {special.get(i) or next(symbols, f"Ġ{i}"): i for i in range(fields["vocab_size"])}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special.values()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", fields["bos_token_id"])]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", names)
