"""The files of a checkpoint: their names, and the folder here that has them."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from refdiff import bundled
from refdiff.errors import CheckpointError, MissingFileError
from refdiff.files import check_name, expand_home, follow, kind_of_file, read_json
from refdiff.messages import show_value

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

CONFIG_FILES = ("config.json", "generation_config.json")
WEIGHT_FILES = (SINGLE, INDEX, "model-*.safetensors")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)
OTHER_TOKENIZER_FILES = ("tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")
"""The tokenizer in older formats, for other programs; refdiff does not read them."""

TEMPLATES = "additional_chat_templates"
MAX_FILES = 1_000


def local_folder(path_or_repo: str | os.PathLike[str]) -> Path | None:
    """Return the folder if there is one, None for a string that can only be a repo id, or raise `CheckpointError`.

    The string `"bundled"` is the package's own model. For the folder of a training run, its last checkpoint is
    returned.
    """
    if not isinstance(path_or_repo, str | os.PathLike):
        raise TypeError(f"path_or_repo: got {path_or_repo!r}, expected a folder or the id of a hub repo")
    if path_or_repo == bundled.NAME:
        return bundled.FOLDER
    text = os.fspath(path_or_repo)
    if re.match(r"(?:https?|hf)://", text):
        raise CheckpointError(f"{text[:200]}: is a web address; give the repo id in it, such as user/name")
    if text.lower().endswith(".gguf"):
        raise CheckpointError(
            f"{text[:200]}: GGUF is not read; give the folder or the hub repo that has the model as safetensors"
        )
    if "\0" in text or not text:
        raise CheckpointError(f"{ascii(text)[:200]}: neither a folder nor a repo id")
    path = expand_home(text)
    try:
        if path.is_dir():
            path = last_checkpoint(path)
            for pattern in (*CONFIG_FILES, *WEIGHT_FILES, *TOKENIZER_FILES, TEMPLATES, f"{TEMPLATES}/*"):
                for count, file in enumerate(path.glob(pattern), 1):
                    follow(path, file)
                    if count > MAX_FILES:
                        raise CheckpointError(f"{path}: has more than {MAX_FILES:,} files {pattern}, expected fewer")
            return path
        mode = path.stat().st_mode if path.exists() else 0
    except OSError as error:
        raise CheckpointError(f"{text[:200]}: cannot be read: {error.strerror}") from None
    if stat.S_ISREG(mode):
        raise CheckpointError(f"{path}: is a file; give the folder that it is in")
    if mode:
        raise CheckpointError(f"{path}: neither a folder nor a regular file, but {kind_of_file(mode)}; name another")
    is_path = isinstance(path_or_repo, os.PathLike) or text.startswith((".", "/", "~")) or text.endswith("/")
    if is_path or text.count("/") > 1 or ":" in text or "\\" in text:
        raise MissingFileError(f"{path}: no such folder")
    return None


def last_checkpoint(folder: Path) -> Path:
    """Return the last checkpoint of a training run's folder, and any other folder as it is.

    Raises:
        CheckpointError: it is a link that leads out of the folder.
    """
    if (folder / "config.json").exists():
        return folder
    steps = checkpoints(folder)
    if not steps:
        return folder
    _, last = steps[-1]
    follow(folder, last)
    return last


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """List (step, folder) of all checkpoints in the folder of a training run, the last one last.

    Their names are step-000001 and so on. A folder named step-1 is not one of them, so `training` does not delete it.
    """
    matches = ((re.fullmatch(r"step-(\d{6,})", path.name), path) for path in run.glob("step-*"))
    return sorted((int(match[1]), path) for match, path in matches if match)


def read_weight_map(index: Path) -> dict[str, str]:
    """Read the index of a checkpoint of several files: tensor name → name of the file in the same folder.

    Raises:
        CheckpointError: it is not JSON, or not a map of names to safetensors files; the message names the index.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map: got {show_value(weight_map)}, expected tensor → file name")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: weight_map: got {show_value(name)} for {show_value(tensor)}, expected the name of a "
                "safetensors file"
            )
        check_name(index.parent, name)
    return weight_map
