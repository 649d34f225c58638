"""Read tokenizer_config.json and special_tokens_map.json in every form that transformers has written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from refdiff.errors import CheckpointError
from refdiff.files import read_optional_json
from refdiff.generation.tokenizer.backend import AddedToken, TokenizerBackend
from refdiff.generation.tokenizer.file import check_tokens
from refdiff.messages import json_type, show_value

# transformers writes int(1e30) for "no limit" and takes anything above 10^20 as that.
NO_LIMIT = 10**20
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SETTINGS = (
    *NAMES, "padding_side", "truncation_side", "model_max_length", "clean_up_tokenization_spaces",
    "split_special_tokens", "extra_special_tokens", "additional_special_tokens", "chat_template",
)  # fmt: skip
"""The fields that `Tokenizer.from_pretrained` takes as arguments."""
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
# Fields that only transformers' loading needs, or that are saved in a newer form here.
_DROPPED = (
    "add_bos_token", "add_eos_token", "additional_special_tokens", "auto_map", "chat_template", "extra_special_tokens",
    "files_loaded", "init_inputs", "max_len", "name_or_path", "special_tokens_map_file", "tokenizer_file",
)  # fmt: skip


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Read the tokenizer's settings, as transformers merges them; an absent file counts as an empty one.

    special_tokens_map.json is the older place for special tokens: it is read, and wins, unless tokenizer_config.json
    has an `added_tokens_decoder`, which replaced it.
    """
    config = read_optional_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= read_optional_json(folder / "special_tokens_map.json")
    return config


def named_tokens(config: dict[str, Any], source: str) -> dict[str, AddedToken]:
    """Collect `bos_token`, `eos_token` … and the model's own `…_token` fields: name → token."""
    found = {name: _token(config[name], f"{source}: {name}") for name in NAMES if config.get(name) is not None}
    for name, value in config.items():
        if name.endswith("_token") and name not in NAMES and isinstance(value, str | dict):
            found[name] = _token(value, f"{source}: {name}")
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        found |= {name: _token(value, f"{source}: extra_special_tokens[{name!r}]") for name, value in extra.items()}
    return found


def add_missing(backend: TokenizerBackend, config: dict[str, Any], source: str) -> list[AddedToken]:
    """Add to `backend` the tokens that only the settings know, in transformers' order; return unnamed special ones."""
    extra = list(_extra_tokens(config, source))
    known = set(backend.added_tokens().values())
    decoder = _added_tokens_decoder(config, source)
    missing = [token for _, token in sorted(decoder.items()) if token not in known]
    contents = {token.content for token in [*known, *missing]}
    for token in [*named_tokens(config, source).values(), *extra]:
        if token.content not in contents:
            contents.add(token.content)
            missing.append(token)
    if missing:
        check_tokens(missing, backend, source)
        backend.add_tokens(missing)
    return extra


def read_side(config: dict[str, Any], name: str, default: str, source: str) -> str:
    """Read `padding_side` or `truncation_side`: "left" or "right"."""
    side = config.get(name, default)
    if str(side).lower() not in ("left", "right"):
        raise CheckpointError(f'{source}: {name}: got {side!r}, expected "left" or "right"')
    return str(side).lower()


def read_max_length(config: dict[str, Any], source: str) -> int:
    """Read `model_max_length`, the most tokens the model takes; int(1e30) when the file sets no limit."""
    value = config.get("model_max_length", config.get("max_len"))
    if value is None:
        return int(1e30)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise CheckpointError(f"{source}: model_max_length: got {value!r}, expected a number of tokens")
    return int(min(value, 1e30))


def read_vocab_size(folder: Path) -> int | None:
    """Read how many ids the model of the same folder has, when there is a config.json that says so."""
    size = read_optional_json(folder / "config.json").get("vocab_size")
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


def settings_to_write(
    config: dict[str, Any], special: dict[str, str], extra: list[str], added: dict[int, AddedToken], **fields: Any
) -> dict[str, Any]:
    """Compose tokenizer_config.json: `config` with the special tokens by name, `extra` ones, and `added` by id.

    `added_tokens_decoder` keeps their flags. Where it exists, a special_tokens_map.json of an older save is ignored.
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
        "added_tokens_decoder": {str(token_id): vars(token) for token_id, token in added.items()},
        # tokenizer.json is read as it is under this name, whichever class the tokenizer had before.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _extra_tokens(config: dict[str, Any], source: str) -> Iterable[AddedToken]:
    value = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(value, dict):  # the named form, which named_tokens reads
        return []
    if not isinstance(value, list):
        raise CheckpointError(f"{source}: extra_special_tokens: got {json_type(value)}, expected a list of tokens")
    return [_token(item, f"{source}: extra_special_tokens[{index}]") for index, item in enumerate(value)]


def _added_tokens_decoder(config: dict[str, Any], source: str) -> dict[int, AddedToken]:
    value = config.get("added_tokens_decoder", {})
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: added_tokens_decoder: got {json_type(value)}, expected an object id → token")
    try:
        ids = {key: int(key) for key in value}
    except ValueError:
        raise CheckpointError(
            f"{source}: added_tokens_decoder: got the keys {show_value(list(value))}, expected token ids"
        ) from None
    return {ids[key]: _token(token, f"{source}: added_tokens_decoder[{key!r}]", False) for key, token in value.items()}


def to_token(value: Any, where: str, special: bool) -> AddedToken:
    """Return a string, a token of `tokenizers` or transformers, or an `AddedToken` as an `AddedToken`."""
    if not isinstance(value, str) and not all(hasattr(value, flag) for flag in ("content", *_FLAGS)):
        raise TypeError(f"{where}: got {type(value).__name__}, expected a string or an AddedToken")
    if isinstance(value, str):
        return _token(value, where, special)
    fields = {name: getattr(value, name) for name in ("content", *_FLAGS)}
    if special and not value.special:  # `normalized` was the default of an ordinary token
        fields["normalized"] = False
    return _token(fields, where, special)


def _token(value: Any, where: str, special: bool = True) -> AddedToken:
    if not isinstance(value, str | dict) and hasattr(value, "content"):  # given to from_pretrained, not of a file
        return to_token(value, where, special)
    content = value.get("content") if isinstance(value, dict) else value
    if isinstance(content, str) and any("\ud800" <= character <= "\udfff" for character in content):
        raise CheckpointError(f"{where}: got {show_value(content)}, expected text; half a surrogate pair is none")
    if isinstance(value, str):
        return AddedToken(value, normalized=not special, special=special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise CheckpointError(f'{where}: got {json_type(value)}, expected a string or an object with "content"')
    flags = {name: value[name] for name in _FLAGS if name in value}
    if wrong := [name for name, flag in flags.items() if not isinstance(flag, bool)]:
        raise CheckpointError(f"{where}: {wrong[0]}: got {json_type(flags[wrong[0]])}, expected true or false")
    # A token under a special name is special whatever its own flag says, as in transformers.
    flags["special"] = special or flags.get("special", False)
    return AddedToken(value["content"], **{"normalized": not flags["special"], **flags})
