"""Load tokenizer.json into a backend, after checks that bound the memory and time that the file can cost.

A file of kilobytes can cost gigabytes: by steps that each lengthen a text, by added tokens, which go through these
steps on loading, or by a table that claims to be long. A file with steps that are unknown here is refused, because they
have no known bound.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from refdiff.errors import CheckpointError, MissingFileError
from refdiff.files import parse_json, read_text, unique_keys
from refdiff.generation.tokenizer.backend import SECTIONS, AddedToken, TokenizerBackend
from refdiff.messages import show_value

MAX_BYTES = 500_000_000
MAX_GROWTH = 1_000  # of a text, by the steps of one section; published files have at most 36
MAX_ADDED = 5_000_000  # characters of all normalized added tokens, after the normalizer
MAX_TOKEN = 5_000  # characters
MAX_UNIGRAM_TOKEN = 200  # characters; at each character of a text Unigram tries every token that begins there
MAX_PIECE = 100_000  # characters of one token's text, after the decoder
MAX_TEXT = 10_000_000  # characters after all steps, where they may lengthen a text more than 100 times

# How many times longer a step may make a text, where no field of the step changes that; 1 for all others in _KNOWN.
_GROWTH = {
    "NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3, "BertNormalizer": 12, "ByteLevel": 4, "Metaspace": 2,
}  # fmt: skip
_KNOWN = {
    *_GROWTH, "Sequence", "Strip", "StripAccents", "Nmt", "Precompiled", "Replace", "Prepend", "BertPreTokenizer",
    "CharDelimiterSplit", "Digits", "FixedLength", "Punctuation", "Split", "UnicodeScripts", "Whitespace",
    "WhitespaceSplit", "BertProcessing", "RobertaProcessing", "TemplateProcessing", "BPEDecoder", "ByteFallback", "CTC",
    "Fuse", "WordPiece",
}  # fmt: skip
_CHILDREN = ("normalizers", "pretokenizers", "processors", "decoders")


def load_backend(folder: Path) -> TokenizerBackend:
    """Load `folder`/tokenizer.json."""
    path = folder / "tokenizer.json"
    if not os.path.lexists(path):
        raise MissingFileError(f"{path}: no such file{_other_formats(folder)}")
    text = read_text(path, max_bytes=MAX_BYTES, folder=folder)
    # Rust and Python may each keep a different one of two equal keys; the checks would look at the wrong one.
    parsed = parse_json(text, path, unique_keys)
    added = parsed.get("added_tokens")
    added = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    tokens = [*check_model(parsed.get("model"), path), *(token.get("content") for token in added)]
    normalized = [token.get("content") for token in added if token.get("normalized") is not False]
    check_sections({name: parsed.get(name) for name in SECTIONS}, path)
    check_lengths(tokens, normalized, parsed.get, path)
    backend = TokenizerBackend.from_json(text, path)
    # as read by the library, perhaps otherwise
    check_sections({name: backend.section(name) for name in SECTIONS}, path)
    check_lengths(tokens, normalized, backend.section, path)
    return backend


def check_model(model: Any, path: Path) -> list[Any]:
    """Check a model for what harms the library, and return its tokens.

    Raises:
        CheckpointError: a token or a word may cost too much time or memory. Or the second part of a merge lacks the
            continuing_subword_prefix: the library cuts the prefix off unchecked, and ends the process if that splits a
            letter.
    """
    if not isinstance(model, dict):
        return []  # the library says what is wrong
    vocab = model.get("vocab")
    if isinstance(vocab, list):  # of a Unigram model, whose time for a letter grows with the square of this length
        tokens = [entry[0] for entry in vocab if isinstance(entry, list) and entry]
        if (longest := max(map(_length, tokens), default=0)) > MAX_UNIGRAM_TOKEN:
            raise CheckpointError(
                f"{path}: model: got a token of {longest:,} characters in a Unigram model, expected at most "
                f"{MAX_UNIGRAM_TOKEN}"
            )
    else:
        tokens = list(vocab) if isinstance(vocab, dict) else []
    for field in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if _length(model.get(field)) > 100:
            raise CheckpointError(f"{path}: {field}: got more than 100 characters, expected at most 100")
    word = model.get("max_input_chars_per_word")
    if isinstance(word, int) and word > 500:  # WordPiece: cubic time in a word's length
        raise CheckpointError(f"{path}: max_input_chars_per_word: got {word:,}, expected at most 500; 100 is usual")
    prefix: Any = model.get("continuing_subword_prefix")
    for merge in (model.get("merges") or ()) if isinstance(prefix, str) else ():
        parts = merge.split(" ") if isinstance(merge, str) else merge
        for part in parts[1:] if isinstance(parts, list) else ():
            if isinstance(part, str) and not part.startswith(prefix):
                raise CheckpointError(
                    f"{path}: model: merges: got {show_value(part)}, expected it to begin with the "
                    f"continuing_subword_prefix {show_value(prefix)}"
                )
    return tokens


def check_sections(sections: dict[str, Any], path: Path) -> None:
    """Raise `CheckpointError` for steps that have no bound here, or that make a text more than `MAX_GROWTH` longer."""
    for name, section in sections.items():
        kinds = {step["type"] for step in _steps(section) if isinstance(step.get("type"), str)}
        if unknown := sorted(kinds - _KNOWN):  # perhaps of a later version of the library
            raise CheckpointError(
                f"{path}: got a step of the type {show_value(unknown[0])}, expected one known to refdiff"
            )
        try:
            growth = growth_of(section)
        except ValueError as error:
            raise CheckpointError(f"{path}: {name}: {error}") from None
        if growth > MAX_GROWTH:
            raise CheckpointError(
                f"{path}: {name}: got steps that could make a text {growth:.3g} times longer, expected at most "
                f"{MAX_GROWTH:,} times"
            )


def check_lengths(
    contents: Iterable[Any], normalized: Iterable[Any], section: Callable[[str], Any], path: Path | str
) -> None:
    """Raise `CheckpointError` for tokens that are too long, or may become so in the sections of a tokenizer.

    `normalized` are added tokens, each of which is normalized on loading: they may grow too long together.
    """
    longest, growth = max(map(_length, contents), default=0), growth_of(section("decoder"))
    if longest > MAX_TOKEN:
        raise CheckpointError(f"{path}: got a token of {longest:,} characters, expected at most {MAX_TOKEN:,}")
    if longest * growth > MAX_PIECE:
        raise CheckpointError(
            f"{path}: got a token of {longest:,} characters that may become {growth:g} times longer in the decoder, "
            f"expected at most {MAX_PIECE:,} characters then"
        )
    lengths = [1 + _length(content) for content in normalized]
    growth = growth_of(section("normalizer")) if lengths else 1.0
    if sum(lengths) * growth > MAX_ADDED:
        raise CheckpointError(
            f"{path}: got {len(lengths):,} added tokens of {sum(lengths):,} characters that may become {growth:.3g} "
            f"times longer in the normalizer, expected at most {MAX_ADDED:,} characters then"
        )


def check_tokens(tokens: Collection[AddedToken], backend: TokenizerBackend, source: str) -> None:
    """Raise `CheckpointError` where tokens to add may grow too long; see `check_lengths`."""
    normalized = [token.content for token in tokens if token.normalized]
    check_lengths([token.content for token in tokens], normalized, backend.section, source)


def max_text(backend: TokenizerBackend) -> int | None:
    """Return how many characters a text may have, or None for steps that make it at most 100 times longer."""
    growth = 1.0
    for name in SECTIONS[:3]:
        growth *= growth_of(backend.section(name))
    return int(MAX_TEXT / growth) if growth > 100 else None


def growth_of(section: Any) -> float:
    """Return how many times longer a text may become in a section of tokenizer.json; a chain of steps multiplies."""
    return math.prod(map(_step_growth, _steps(section)), start=1.0)


def _steps(section: Any) -> Iterator[dict[str, Any]]:
    """Yield all steps of a section, nested ones too; none if the section has the wrong type."""
    open_steps = [section]
    while open_steps:
        step = open_steps.pop()
        if isinstance(step, dict):
            yield step
            open_steps += [child for key in _CHILDREN if isinstance(step.get(key), list) for child in step[key]]


def _step_growth(step: dict[str, Any]) -> float:
    """Return how many times longer a step may make a text, by its fields: some steps are accepted without a type."""
    kind = step.get("type")
    growth = float(_GROWTH.get(kind, 1)) if isinstance(kind, str) else 1.0
    if "content" in step:
        pattern = step.get("pattern")
        literal = _length(pattern.get("String")) if isinstance(pattern, dict) else 0
        content = _length(step.get("content"))
        # A regular expression, and an empty string, may match between every two characters.
        growth *= max(1.0, content / literal) if literal else 1.0 + content
    if isinstance(step.get("precompiled_charsmap"), str):
        growth *= _charsmap_growth(step["precompiled_charsmap"])
    if isinstance(special := step.get("special_tokens"), dict):
        added = [
            max(len(token.get("ids") or ""), sum(map(_length, token.get("tokens") or "")) // 10)
            for token in special.values()
            if isinstance(token, dict) and isinstance(token.get("ids"), list) and isinstance(token.get("tokens"), list)
        ]
        pieces = max((len(step[key]) for key in ("single", "pair") if isinstance(step.get(key), list)), default=1)
        growth *= max(pieces, 1) * max([1, *added])
    return growth * (1.0 + _length(step.get("prepend")))


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str) else 0


def _charsmap_growth(charsmap: str) -> float:
    # SentencePiece's layout: the trie's size in 4 bytes, the trie, then the replacements with a zero byte after each.
    try:
        blob = base64.b64decode(charsmap, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("precompiled_charsmap: got other text, expected base64") from None
    size = int.from_bytes(blob[:4], "little")
    if len(blob) < 4 + size:
        raise ValueError(f"precompiled_charsmap: got {len(blob):,} bytes, expected a table of {size:,}")
    return float(max((len(text) for text in blob[4 + size :].split(b"\0")), default=1) or 1)


def _other_formats(folder: Path) -> str:
    convert = (
        "convert it once with transformers, `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)`, "
        "which writes tokenizer.json"
    )
    for name, kind in (("tokenizer.model", "a SentencePiece tokenizer.model"), ("vocab.json", "a vocab.json")):
        if (folder / name).is_file():
            return f"; the folder has only {kind}: {convert}"
    return f"; copy the tokenizer.json that belongs to the model here; where there is only a tokenizer.model, {convert}"
