"""tokenizer_config.json, special_tokens_map.json → named special tokens, in every spelling transformers has written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.errors import CheckpointError
from refdiff.files import read_json
from refdiff.messages import json_type

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

# transformers writes 10^30 for "no limit" and takes anything above 10^20 as that.
NO_LIMIT = 10**20
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Read the tokenizer's settings, as transformers merges them; an absent file counts as an empty one.

    special_tokens_map.json is the older place for special tokens: it is read, and wins, unless tokenizer_config.json
    has an `added_tokens_decoder`, which replaced it.

    Raises `CheckpointError` for a file that is not a JSON object.
    """
    config: dict[str, Any] = {}
    if (path := folder / "tokenizer_config.json").is_file():
        config = read_json(path)
    if "added_tokens_decoder" not in config and (path := folder / "special_tokens_map.json").is_file():
        config |= read_json(path)
    return config


def named_tokens(config: dict[str, Any], source: str) -> dict[str, AddedToken]:
    """Collect `bos_token`, `eos_token` … and the model's own `…_token` fields: name → token.

    Raises `CheckpointError` for a field that is neither a string nor a token object.
    """
    found = {name: _token(config[name], f"{source}: {name}") for name in NAMES if config.get(name) is not None}
    for name, value in config.items():
        own = name.endswith("_token") and name not in found and isinstance(value, str | dict)
        if own and name not in NAMES:
            found[name] = _token(value, f"{source}: {name}")
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        found |= {name: _token(value, f"{source}: extra_special_tokens[{name!r}]") for name, value in extra.items()}
    return found


def add_missing(backend: Tokenizer, config: dict[str, Any], source: str) -> list[AddedToken]:
    """Add to `backend` the tokens that only the settings know, in transformers' order; return the unnamed special ones.

    Raises `CheckpointError` for a token that is neither a string nor a token object, or a token id that is no number.
    """
    extra = list(_extra_tokens(config, source))
    known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    decoder = _added_tokens_decoder(config, source)
    missing = [token for _, token in sorted(decoder.items()) if repr(token) not in known]
    contents = {token.content for token in backend.get_added_tokens_decoder().values()}
    contents |= {token.content for token in missing}
    for token in [*named_tokens(config, source).values(), *extra]:
        if token.content not in contents:
            contents.add(token.content)
            missing.append(token)
    if missing:
        backend.add_tokens(missing)
    return extra


def side_in(config: dict[str, Any], name: str, default: str, source: str) -> str:
    """Read `padding_side` or `truncation_side`: "left" or "right".

    Raises `CheckpointError` for anything else.
    """
    side = config.get(name, default)
    if str(side).lower() not in ("left", "right"):
        raise CheckpointError(f'{source}: {name} is {side!r}, but must be "left" or "right"')
    return str(side).lower()


def max_length_in(config: dict[str, Any], source: str) -> int:
    """Read `model_max_length`, the most tokens the model takes; 10^30 when the file sets no limit.

    Raises `CheckpointError` for anything but a number that is not negative.
    """
    value = config.get("model_max_length", config.get("max_len"))
    if value is None:
        return 10**30
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise CheckpointError(f"{source}: model_max_length is {value!r}, but must be a number of tokens")
    return int(min(value, 10**30))


def vocab_size_in(folder: Path) -> int | None:
    """Read how many ids the model of the same folder has, when there is a config.json that says so."""
    path = folder / "config.json"
    size = read_json(path).get("vocab_size") if path.is_file() else None
    return size if isinstance(size, int) and not isinstance(size, bool) and size > 0 else None


def _extra_tokens(config: dict[str, Any], source: str) -> Iterable[AddedToken]:
    value = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    if isinstance(value, dict):  # the named form, which named_tokens reads
        return []
    if not isinstance(value, list):
        raise CheckpointError(f"{source}: extra_special_tokens is {json_type(value)}, but must be a list of tokens")
    return [_token(item, f"{source}: extra_special_tokens[{index}]") for index, item in enumerate(value)]


def _added_tokens_decoder(config: dict[str, Any], source: str) -> dict[int, AddedToken]:
    value = config.get("added_tokens_decoder", {})
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: added_tokens_decoder is {json_type(value)}, but must be an object id → token")
    try:
        ids = {key: int(key) for key in value}
    except ValueError as error:
        raise CheckpointError(f"{source}: added_tokens_decoder has a key that is not a token id: {error}") from None
    return {ids[key]: _token(token, f"{source}: added_tokens_decoder[{key!r}]", False) for key, token in value.items()}


def _token(value: Any, where: str, special: bool = True) -> AddedToken:
    from tokenizers import AddedToken

    if isinstance(value, str):
        return AddedToken(value, special=special)
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise CheckpointError(f'{where} is {json_type(value)}, but must be a string or an object with "content"')
    flags = {name: value[name] for name in _FLAGS if name in value}
    if wrong := [name for name, flag in flags.items() if not isinstance(flag, bool)]:
        raise CheckpointError(f"{where}: {wrong[0]} is {json_type(flags[wrong[0]])}, but must be true or false")
    # A token under a special name is special whatever its own flag says, as in transformers.
    return AddedToken(value["content"], **{**flags, "special": special or flags.get("special", False)})
