"""repo id → files on disk, through huggingface_hub and its cache."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from refdiff.errors import CheckpointError

CONFIG = ("config.json", "generation_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)


def snapshot(
    path_or_repo: str | os.PathLike[str],
    *,
    files: Sequence[str] = CONFIG,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return the folder of a checkpoint; a hub repo id is downloaded first, limited to `files`."""
    path = Path(path_or_repo)
    if path.is_dir():
        return path
    raise CheckpointError(f"{path_or_repo}: no such folder")
