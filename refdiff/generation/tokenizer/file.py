"""tokenizer.json → the Rust tokenizer: read with limits, every way of failing turned into one named error."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refdiff.errors import CheckpointError

if TYPE_CHECKING:
    import tokenizers

MAX_BYTES = 500_000_000
MAX_GROWTH = 100_000

# The most that one step may lengthen a text, in characters, for steps where the file has no say in it.
_FIXED_GROWTH = {
    "NFC": 3,
    "NFD": 4,
    "NFKC": 18,
    "NFKD": 18,
    "Lowercase": 3,
    "BertNormalizer": 12,
    "ByteLevel": 4,
    "Metaspace": 2,
}
_CHILDREN = ("normalizers", "pretokenizers", "processors", "decoders")


def load_backend(folder: Path) -> tokenizers.Tokenizer:
    """Read `folder`/tokenizer.json into a `tokenizers.Tokenizer` that neither truncates nor pads by itself.

    Raises `CheckpointError`, naming the file, when it is missing, too large, not JSON, not a tokenizer, or holds steps
    that could lengthen a text without bound.
    """
    import tokenizers

    path = folder / "tokenizer.json"
    text = _read(path)
    try:
        with rust_errors(path):
            backend = tokenizers.Tokenizer.from_str(text)
    except CheckpointError:
        _parse(path, text)  # says where it is no JSON; of a good file, a second reading would take half as long again
        raise
    _check_growth(path, backend)
    return backend


@contextmanager
def rust_errors(path: Path | str) -> Iterator[None]:
    """Turn whatever the Rust library raises inside the block, panics included, into one error about `path`."""
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except BaseException as error:
        # pyo3's PanicException derives from BaseException alone and is not importable, so it goes by its name.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: the tokenizers library cannot use this file: {first_line}; "
            "download it again, or write it again with `tokenizer.save_pretrained`"
        ) from None


def _read(path: Path) -> str:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file{_other_formats(path.parent)}")
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CheckpointError(f"{path}: {size:,} bytes, but at most {MAX_BYTES:,} are read of a tokenizer.json")
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path}: not a JSON text (byte {error.start} is not UTF-8); download the file again"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None


def _other_formats(folder: Path) -> str:
    convert = (
        "convert it once with transformers, `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`, "
        "which writes tokenizer.json"
    )
    if (folder / "tokenizer.model").is_file():
        return f"; the folder has only a SentencePiece tokenizer.model: {convert}"
    if (folder / "vocab.json").is_file():
        return f"; the folder has only a vocab.json: {convert}"
    return f"; copy the tokenizer.json that belongs to the model here; where there is only a tokenizer.model, {convert}"


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        hint = "; this is a git-lfs pointer, run `git lfs pull`" if text.startswith("version https://git-lfs") else ""
        raise CheckpointError(
            f"{path}: not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}{hint}"
        ) from None
    except RecursionError:
        raise CheckpointError(f"{path}: nested too deeply for a tokenizer.json") from None
    except ValueError as error:  # a key given twice, or an integer of thousands of digits
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: the top level is {type(value).__name__}, but must be an object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Rust and Python may each keep a different one of two equal keys; the check below would look at the wrong one.
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _check_growth(path: Path, backend: tokenizers.Tokenizer) -> None:
    """Look at the steps as the Rust library has understood them, before any text goes through them."""
    for section in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        step = getattr(backend, section)
        growth = 1.0 if step is None else growth_of(json.loads(step.__getstate__()))
        if growth > MAX_GROWTH:
            raise CheckpointError(
                f"{path}: the steps of its {section!r} could make a text {growth:.3g} times longer; "
                f"up to {MAX_GROWTH:,} times is read"
            )


def growth_of(section: Any) -> float:
    """Bound how many times longer a text can get in a section of tokenizer.json; a chain of steps multiplies."""
    growth, open_steps = 1.0, [section]
    while open_steps:
        step = open_steps.pop()
        if isinstance(step, dict) and step.get("type") == "Sequence":
            open_steps += [child for key in _CHILDREN if isinstance(step.get(key), list) for child in step[key]]
        elif isinstance(step, dict):
            growth *= _step_growth(step)
    return growth


def _step_growth(step: dict[str, Any]) -> float:
    kind = step.get("type")
    if kind == "Replace":
        return _replace_growth(step)
    if kind == "Prepend":
        return 1.0 + _length(step.get("prepend"))
    if kind == "Precompiled":
        return _charsmap_growth(step.get("precompiled_charsmap"))
    if kind == "TemplateProcessing":
        return _template_growth(step)
    return float(_FIXED_GROWTH.get(kind, 1)) if isinstance(kind, str) else 1.0


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else 0


def _replace_growth(step: dict[str, Any]) -> float:
    pattern = step.get("pattern")
    literal = _length(pattern.get("String")) if isinstance(pattern, dict) else 0
    content = _length(step.get("content"))
    # A regular expression, and an empty string, may match between every two characters.
    return max(1.0, content / literal) if literal else 1.0 + content


def _charsmap_growth(charsmap: Any) -> float:
    # SentencePiece's layout: the trie's size in 4 bytes, the trie, then the replacements with a zero byte after each.
    try:
        blob = base64.b64decode(charsmap or "", validate=True)
    except (binascii.Error, TypeError, ValueError):
        return 1.0
    replacements = blob[4 + int.from_bytes(blob[:4], "little") :]
    return float(max((len(text) for text in replacements.split(b"\0")), default=1) or 1)


def _template_growth(step: dict[str, Any]) -> float:
    special = step.get("special_tokens")
    ids = [
        len(token["ids"])
        for token in (special.values() if isinstance(special, dict) else [])
        if isinstance(token, dict) and isinstance(token.get("ids"), list)
    ]
    pieces = max((len(step[key]) for key in ("single", "pair") if isinstance(step.get(key), list)), default=1)
    return float(max(pieces, 1) * max([1, *ids]))
