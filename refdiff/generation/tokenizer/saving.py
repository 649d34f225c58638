"""A tokenizer → the files of a checkpoint, each whole or as before, in the form that transformers writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refdiff.files import write_atomically, write_json
from refdiff.generation.chat_template import write_templates

# Where transformers keeps what belongs to its loading, or what is written here in a newer form.
_DROPPED = (
    "add_bos_token", "add_eos_token", "additional_special_tokens", "auto_map", "chat_template", "extra_special_tokens",
    "files_loaded", "init_inputs", "max_len", "name_or_path", "special_tokens_map_file", "tokenizer_file",
)  # fmt: skip


def settings_to_write(
    config: dict[str, Any], special: dict[str, str], extra: list[str], added: dict[int, Any], **fields: Any
) -> dict[str, Any]:
    """Compose tokenizer_config.json: `config` with the special tokens by name, `extra` ones, and `added` by id.

    `added_tokens_decoder` keeps their flags, and makes a special_tokens_map.json that an older save left count no more.
    """
    tokens = {
        name
        for name, value in config.items()
        if name.endswith("_token") and (value is None or isinstance(value, str | dict))
    }
    kept = {name: value for name, value in config.items() if name not in tokens and name not in _DROPPED}
    by_field = {name: token for name, token in special.items() if name.endswith("_token")}
    by_object = {name: token for name, token in special.items() if name not in by_field}
    if by_object or extra:
        kept["extra_special_tokens"] = by_object or extra
    return {
        **kept,
        **by_field,
        **fields,
        "added_tokens_decoder": {str(token_id): _flags(token) for token_id, token in added.items()},
        # tokenizer.json is read as it is under this name, whichever class the tokenizer had before.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def write_files(folder: Path, tokenizer: str, settings: dict[str, Any], templates: str | dict[str, str] | None) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat templates, each in one step.

    Raises `ValueError` for a template's name that is no file name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_templates(folder, templates)
    write_atomically(folder / "tokenizer.json", tokenizer.encode("utf-8"))
    write_json(folder / "tokenizer_config.json", settings)


def _flags(token: Any) -> dict[str, Any]:
    names = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return {name: getattr(token, name) for name in names}
