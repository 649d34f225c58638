"""Models to measure where no checkpoint is at hand: random weights in the dimensions of those that are published."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from refdiff.errors import CheckpointError
from refdiff.files import write_json
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.heads import DiffLlamaForCausalLM
from refdiff.model.weights.folder import headers
from refdiff.model.weights.names import count_parameters, parameter_shapes
from refdiff.model.weights.precision import NBYTES, STORED

HANDCUT: dict[str, Any] = {
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "vocab_size": 128256,
}
"""kajuma/DiffLlama-0.3B-handcut as its config.json says it, without defaults: 1,235,818,496 parameters."""

ONE_B: dict[str, Any] = {
    **HANDCUT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "intermediate_size": 5632,
    "max_position_embeddings": 4096,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 102400,
}
"""kajuma/DiffLlama-1B as far as it is known: 1.39 B parameters, bfloat16, the ids of bos and eos. The dimensions are
assumed: those of TinyLlama with a vocabulary of 102,400 give that count."""

TINY: dict[str, Any] = {
    **HANDCUT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 8,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "vocab_size": 512,
}
"""For trying the benchmark itself: measures calls of Python more than arithmetic."""

LIKE = {"kajuma/DiffLlama-0.3B-handcut": HANDCUT, "kajuma/DiffLlama-1B": ONE_B, "tiny": TINY}

CLASS = "DiffLlamaForCausalLM"

TRAINED = {"tiny": (32, 2, 4, 88), "3m": (192, 6, 6, 512), "30m": (512, 9, 8, 1368)}
"""Models whose training is measured: name → hidden size, layers, heads, size of the feed-forward network."""


def trained_config(name: str) -> DiffLlamaConfig:
    """Return the config of one of `TRAINED`: 2048 tokens, tied embeddings, as many key heads as query heads."""
    width, layers, heads, inner = TRAINED[name]
    return DiffLlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=width // heads,
        intermediate_size=inner,
        vocab_size=2048,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def write_like(name: str, folder: Path, dtype: str | None = None) -> None:
    """Write a checkpoint with the dimensions of `LIKE[name]` and a tokenizer, where the folder does not hold them yet.

    `dtype` is what it is stored in; None is what `LIKE[name]` says.

    Raises:
        ValueError: the folder holds another model, the same in another dtype or not whole, or something else.
        OSError: the disk has too little room.
    """
    fields = LIKE[name] if dtype is None else {**LIKE[name], "torch_dtype": dtype}
    config = DiffLlamaConfig(**fields)
    if (folder / "config.json").exists():
        _check_found(name, folder, config)
    else:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise ValueError(f"{folder} is not an empty folder and holds no config.json: name a new one for {name}")
        folder.mkdir(parents=True, exist_ok=True)
        need = count_parameters(parameter_shapes(config, CLASS).values()) * NBYTES[fields["torch_dtype"]]
        if (free := shutil.disk_usage(folder).free) < need * 1.02:
            raise OSError(f"{name} takes {need / 1e9:.2f} GB, but there is room for {free / 1e9:.2f} GB where it goes")
        model = DiffLlamaForCausalLM.from_config(config, dtype=fields["torch_dtype"])
        model.save_pretrained(folder, max_shard_size="10GB")
    if not (folder / "tokenizer_config.json").exists():  # the last file to be written
        write_tokenizer(fields, folder)


def _check_found(name: str, folder: Path, config: DiffLlamaConfig) -> None:
    """Refuse a checkpoint that is not what would be written: by its config, and by the headers of its weights."""
    found = DiffLlamaConfig.from_pretrained(folder)
    try:
        tensors = [entry for file in headers(folder).values() for entry in file.items()]
    except CheckpointError as error:
        raise ValueError(f"{folder} should hold {name}, but it is not whole: {error}. Remove it") from None
    stored = {tensor: (shape, STORED.get(kind, kind)) for tensor, (kind, shape, _) in tensors}
    wanted = {tensor: (shape, config.dtype) for tensor, shape in parameter_shapes(config, CLASS).items()}
    same_config = (found.rope_parameters, found.dtype) == (config.rope_parameters, config.dtype)
    if stored != wanted or not same_config:
        raise ValueError(
            f"{folder} holds another model than {name} in {config.dtype}: name a new folder, or measure it with -m"
        )


def write_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Write a byte-level tokenizer with exactly `vocab_size` ids: bos, eos, the bytes, and a made-up word for each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    special = {fields["bos_token_id"]: "<|begin|>", fields["eos_token_id"]: "<|end|>"}
    symbols = iter(sorted(pre_tokenizers.ByteLevel.alphabet()))
    words = {special.get(i) or next(symbols, f"Ġ{i}"): i for i in range(fields["vocab_size"])}
    made = Tokenizer(models.BPE(vocab=words, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True) for text in special.values()])
    made.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", fields["bos_token_id"])]
    )
    made.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", names)
