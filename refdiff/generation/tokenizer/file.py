"""Load tokenizer.json into a backend, after checks that bound the memory and time that the file can cost.

A file of kilobytes can cost gigabytes: by steps that each lengthen a text, by added tokens, which go through these
steps on loading, or by a table that claims to be long. The checks read the file without its vocabulary. A file with
steps that are unknown here is refused, because they have no known bound.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from refdiff.browser import IN_BROWSER
from refdiff.errors import CheckpointError
from refdiff.files import parse_json, read_text, unique_keys
from refdiff.generation.tokenizer.backend import SECTIONS, AddedToken, RustBackend, TokenizerBackend
from refdiff.messages import json_problem, show_value

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
    """Load `folder`/tokenizer.json.

    Raises:
        CheckpointError: the file is missing, too large, not JSON, not a tokenizer, or may lengthen a text beyond the
            bounds; the message names it.
    """
    path = folder / "tokenizer.json"
    if not os.path.lexists(path):
        raise CheckpointError(f"{path}: no such file{_other_formats(folder)}")
    text = read_text(path, max_bytes=MAX_BYTES, folder=folder)
    sections, model = read_sections(text, path)
    check_model(model, path)
    check_steps([sections.get(name) for name in SECTIONS], path)
    growth = [check_growth(sections.get(name), name, path) for name in SECTIONS]
    tokens = sections.get("added_tokens")
    added = [token for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else []
    check_lengths([token.get("content") for token in added], 1.0, path)
    check_added([token.get("content") for token in added if token.get("normalized") is not False], growth[0], path)
    try:
        backend = _from_json(text, path)
    except CheckpointError:
        parse_json(text, path, unique_keys)  # raises if the file is not JSON, and says where
        raise
    check_unigram(model, backend, path)
    understood = {name: backend.section(name) for name in SECTIONS}  # as the library reads them, which may differ
    check_steps(understood.values(), path)
    growth = [check_growth(section, name, path) for name, section in understood.items()]
    if growth[-1] * 2 * MAX_TOKEN > MAX_PIECE:  # no decoder in use; the vocabulary takes half a second
        check_lengths(backend.vocab(), growth[-1], path)
    for field in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if _length(backend.model(field)) > 100:
            raise CheckpointError(f"{path}: {field}: got more than 100 characters, expected at most 100")
    if (longest := backend.model("max_input_chars_per_word") or 0) > 500:  # WordPiece: cubic time in a word's length
        raise CheckpointError(f"{path}: max_input_chars_per_word: got {longest:,}, expected at most 500; 100 is usual")
    return backend


def _from_json(text: str, path: Path) -> TokenizerBackend:
    if IN_BROWSER:
        from refdiff.generation.tokenizer.byte_level import ByteLevelBackend

        return ByteLevelBackend.from_json(text, path)
    return RustBackend.from_json(text, path)


def read_sections(text: str, path: Path) -> tuple[dict[str, Any], str]:
    """Return all of tokenizer.json but its model, parsed, and the text of the model.

    In Python, parsing the vocabulary takes half as long as the library takes for the whole file. So the model is not
    parsed if it comes last, as the library writes it.

    Raises:
        CheckpointError: a text that is not JSON.
    """
    # Rust and Python may each keep a different one of two equal keys; the checks would look at the wrong one.
    decoder = json.JSONDecoder(object_pairs_hook=unique_keys)
    sections: dict[str, Any] = {}
    separator = re.compile(r"\s*[{,]\s*(?=\")").match(text)
    try:
        while separator:
            key, end = decoder.raw_decode(text, separator.end())
            colon = re.compile(r"\s*:\s*").match(text, end)
            if colon is None or key in sections:
                break
            if key == "model" and text.startswith("{", colon.end()) and not _may_have_section(text, colon.end()):
                return sections, text[colon.end() :]
            sections[key], end = decoder.raw_decode(text, colon.end())
            separator = re.compile(r"\s*,\s*(?=\")").match(text, end)
    except (ValueError, RecursionError):
        pass  # the whole text is parsed below, which reports the problem
    value = parse_json(text, path, unique_keys)
    return value, json.dumps(value.get("model"))


def check_model(model: str, path: Path) -> None:
    """Check the text of a model for tokens and merges that harm the library.

    Raises:
        CheckpointError: a token has thousands of characters, and a text could repeat it. Or the second part of a merge
            lacks the continuing_subword_prefix: the library cuts the prefix off unchecked, and ends the process if
            that splits a letter.
    """
    if _has_long_string(model, MAX_TOKEN):
        raise CheckpointError(f"{path}: model: got a token of more than {MAX_TOKEN:,} characters, expected fewer")
    if _has_text(model, '"continuing_subword_prefix"') and '"merges"' in model:
        try:
            value, _ = json.JSONDecoder(object_pairs_hook=unique_keys).raw_decode(model)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: model: {json_problem(error)}") from None
        _check_merges(value, path)


def check_unigram(model: str, backend: TokenizerBackend, path: Path) -> None:
    """Raise `CheckpointError` for a Unigram model with a token of more than `MAX_UNIGRAM_TOKEN` characters.

    Its time for each character of a text grows with the square of that length; SentencePiece makes tokens of at most 16
    unless told otherwise.
    """
    # The vocabulary takes half a second, so it is asked for only where the text of the model may have such a token.
    if backend.model("type") == "Unigram" and _has_long_string(model, MAX_UNIGRAM_TOKEN // 2):
        longest = max(map(len, backend.vocab()))
        if longest > MAX_UNIGRAM_TOKEN:
            raise CheckpointError(
                f"{path}: model: got a token of {longest:,} characters in a Unigram model, expected at most "
                f"{MAX_UNIGRAM_TOKEN}"
            )


def check_steps(sections: Iterable[Any], path: Path) -> None:
    """Raise `CheckpointError` for a step that has no bound here, such as one of a later version of the library."""
    kinds = (step.get("type") for section in sections for step in _steps(section))
    if unknown := sorted({kind for kind in kinds if isinstance(kind, str)} - _KNOWN):
        raise CheckpointError(f"{path}: got a step of the type {show_value(unknown[0])}, expected one known to refdiff")


def check_growth(section: Any, name: str, path: Path) -> float:
    """Return how many times longer the steps of a section may make a text.

    Raises:
        CheckpointError: more than `MAX_GROWTH` times, or a table of replacements that is not whole.
    """
    try:
        growth = growth_of(section)
    except ValueError as error:
        raise CheckpointError(f"{path}: {name}: {error}") from None
    if growth > MAX_GROWTH:
        raise CheckpointError(
            f"{path}: {name}: got steps that could make a text {growth:.3g} times longer, expected at most "
            f"{MAX_GROWTH:,} times"
        )
    return growth


def check_added(contents: Iterable[Any], growth: float, path: Path | str) -> None:
    """Raise `CheckpointError` where added tokens (each is normalized on loading) may grow too long together."""
    lengths = [1 + _length(content) for content in contents]
    if sum(lengths) * growth > MAX_ADDED:
        raise CheckpointError(
            f"{path}: got {len(lengths):,} added tokens of {sum(lengths):,} characters that may become {growth:.3g} "
            f"times longer in the normalizer, expected at most {MAX_ADDED:,} characters then"
        )


def check_lengths(contents: Iterable[Any], growth: float, path: Path | str) -> None:
    """Raise `CheckpointError` for a token that is too long, or may become so in a decoder with this growth."""
    longest = max(map(_length, contents), default=0)
    if longest > MAX_TOKEN:
        raise CheckpointError(f"{path}: got a token of {longest:,} characters, expected at most {MAX_TOKEN:,}")
    if longest * growth > MAX_PIECE:
        raise CheckpointError(
            f"{path}: got a token of {longest:,} characters that may become {growth:g} times longer in the decoder, "
            f"expected at most {MAX_PIECE:,} characters then"
        )


def check_tokens(tokens: Collection[AddedToken], backend: TokenizerBackend, source: str) -> None:
    """Raise `CheckpointError` where tokens to add may grow too long; see `check_lengths` and `check_added`."""
    check_lengths([token.content for token in tokens], growth_of(backend.section("decoder")), source)
    normalized = [token.content for token in tokens if token.normalized]
    check_added(normalized, growth_of(backend.section("normalizer")) if normalized else 1.0, source)


def max_text(backend: TokenizerBackend) -> int | None:
    """Return how many characters a text may have, or None for steps that make it at most 100 times longer."""
    growth = 1.0
    for name in SECTIONS[:3]:
        growth *= growth_of(backend.section(name))
    return int(MAX_TEXT / growth) if growth > 100 else None


def growth_of(section: Any) -> float:
    """Return how many times longer a text may become in a section of tokenizer.json; a chain of steps multiplies."""
    return math.prod(map(_step_growth, _steps(section)), start=1.0)


def _may_have_section(text: str, begin: int) -> bool:
    """Whether a section may follow on an object from `begin` on. Searching for the names takes ten times as long."""
    # A section would come after a "}", which is rare in a vocabulary: a few thousand are looked at faster than parsed.
    section = re.compile(rf'\s*,\s*"(?:(?:added_tokens|model|{"|".join(SECTIONS)})"|[^"]*\\)')  # or a key with escapes
    for _ in range(10_000):
        begin = text.find("}", begin) + 1
        if not begin:
            return False
        if section.match(text, begin):
            break
    return True


def _has_long_string(text: str, size: int) -> bool:
    """Whether JSON may have a string of more than `size` characters; every string of 2 `size` or more is found."""
    # Inside a JSON string every quotation mark follows a backslash; outside, one without a backslash is never far.
    end_of_string = re.compile(r'[^\\]"')
    return any(not end_of_string.search(text, begin, begin + size) for begin in range(0, len(text) - size, size))


def _has_text(model: str, key: str) -> bool:
    """Whether JSON has a string that is not empty under this key; `re.search` for both takes five times as long."""
    value = re.compile(r'\s*:\s*"[^"]')
    begin = model.find(key)
    while begin >= 0:
        begin += len(key)
        if value.match(model, begin):
            return True
        begin = model.find(key, begin)
    return False


def _check_merges(model: Any, path: Path) -> None:
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        return
    prefix = str(model.get("continuing_subword_prefix") or "")
    for merge in model["merges"]:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        for part in parts[1:] if isinstance(parts, list) else ():
            if isinstance(part, str) and not part.startswith(prefix):
                raise CheckpointError(
                    f"{path}: model: merges: got {show_value(part)}, expected it to begin with the "
                    f"continuing_subword_prefix {show_value(prefix)}"
                )


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
