"""The package tokenizers in a browser, where the compiled one cannot be installed: byte-level BPE (GPT-2's, Llama 3's).

`byte_level.js` beside this file splits a text into words and merges their bytes. This file adds offsets, added tokens,
truncation and decoding, under the package's names, as far as refdiff and chapter 01 use them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from refdiff.errors import CheckpointError
from refdiff.generation.token_bytes import letters_of_bytes

_FIX = "only the package tokenizers does that, which no browser has: use Python outside of one"
_LETTERS = letters_of_bytes()

Words = Callable[[str], Sequence[tuple[str, Sequence[int]]]]
"""Splits a text without added tokens into words, whose concatenation is the text, each with its ids."""
_Token = tuple[int, str, tuple[int, int], int | None, int | None, int, int, int]
"""A token of an encoding: its entry in each of the lists of `Encoding`, in their order."""


@dataclass(frozen=True)
class AddedToken:
    """A token beside the vocabulary."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


@dataclass
class Encoding:
    """One tokenized text."""

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]
    sequence_ids: list[int | None]
    special_tokens_mask: list[int]
    type_ids: list[int]
    attention_mask: list[int]
    overflowing: list[Encoding] = field(default_factory=list)

    @classmethod
    def from_tokens(cls, tokens: list[_Token]) -> Encoding:
        """Return the encoding of these tokens."""
        return cls(*map(list, zip(*tokens, strict=True))) if tokens else cls(*([] for _ in range(8)))

    def pad(self, length: int, *, direction: str, pad_id: int, pad_token: str) -> None:
        """Pad this encoding, and those that overflow, to `length`."""
        for encoding in self.overflowing:
            encoding.pad(length, direction=direction, pad_id=pad_id, pad_token=pad_token)
        padding = self.from_tokens([(pad_id, pad_token, (0, 0), None, None, 1, 0, 0)] * (length - len(self.ids)))
        first, second = (padding, self) if direction == "left" else (self, padding)
        joined = {n: getattr(first, n) + getattr(second, n) for n in vars(self) if n != "overflowing"}
        vars(self).update(joined)


class Tokenizer:
    """A byte-level tokenizer.json; `words` splits a text into words and tokenizes them."""

    def __init__(self, parsed: dict[str, Any], words: Words) -> None:
        _check(parsed)
        self.padding, self.truncation = parsed.get("padding"), parsed.get("truncation")
        self.encode_special_tokens = False
        self._file, self._words = {**parsed, "padding": None, "truncation": None}, words
        self._vocab: dict[str, int] = parsed["model"]["vocab"]
        self._tokens = {i: token for token, i in self._vocab.items()}
        self._added: dict[int, AddedToken] = {}
        for token in parsed["added_tokens"]:
            self._add(token["id"], AddedToken(**{name: x for name, x in token.items() if name != "id"}))
        self.model = type("BPE", (), parsed["model"])()
        for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            setattr(self, name, None if parsed.get(name) is None else _Section(parsed[name]))

    @classmethod
    def from_str(cls, text: str) -> Tokenizer:
        """Load the text of a tokenizer.json; JavaScript tokenizes words."""
        return cls(json.loads(text), javascript_words(text))

    @classmethod
    def from_file(cls, path: str) -> Tokenizer:
        """Load a tokenizer.json."""
        return cls.from_str(Path(path).read_text(encoding="utf-8"))

    def enable_truncation(self, max_length: int, stride: int, strategy: str, direction: str) -> None:
        """Cut texts to `max_length` tokens from now on."""
        self.truncation = {"max_length": max_length, "stride": stride, "direction": direction}

    def no_truncation(self) -> None:
        """Leave texts whole from now on."""
        self.truncation = None

    def no_padding(self) -> None:
        """Leave texts as long as they are, which this class does anyway."""
        self.padding = None

    def encode(self, text: str) -> Encoding:
        """Tokenize a text."""
        return self.encode_batch([text])[0]

    def encode_batch(
        self, texts: Sequence[Any], is_pretokenized: bool = False, add_special_tokens: bool = True
    ) -> list[Encoding]:
        """Tokenize texts."""
        if is_pretokenized:
            raise CheckpointError(f"is_split_into_words: got True, expected False; {_FIX}")
        special = self._special_ids("single") if add_special_tokens else []
        prefix: list[_Token] = [(i, self._tokens[i], (0, 0), None, None, 1, 0, 1) for i in special]
        found: list[Encoding] = []
        for text in texts:
            if not isinstance(text, str):
                raise CheckpointError(f"text_pair: got a second text, expected none; {_FIX}")
            parts = [self._encode(text)]
            if self.truncation is not None:
                parts = _truncate(parts[0], self.truncation, self.truncation["max_length"] - len(prefix))
            first, *rest = (Encoding.from_tokens(prefix + part) for part in parts)
            first.overflowing = list(rest)
            found.append(first)
        return found

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Turn ids into text."""
        special = {i for i, token in self._added.items() if token.special} if skip_special_tokens else set()
        return _decode([self._tokens[i] for i in ids if i in self._tokens and i not in special])

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, added ones included."""
        added = (i for i, known in self._added.items() if known.content == token)
        return next(added, self._vocab.get(token))

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id."""
        return self._tokens.get(token_id)

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """Return token → id."""
        added = {token.content: i for i, token in self._added.items()} if with_added_tokens else {}
        return {**self._vocab, **added}

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        """Return the number of tokens."""
        return len(self.get_vocab(with_added_tokens))

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Return id → added token."""
        return dict(sorted(self._added.items()))

    def add_tokens(self, tokens: Sequence[AddedToken]) -> int:
        """Add tokens; return how many are new as added tokens."""
        before = set(self._added.values())
        for token in tokens:
            known = self.token_to_id(token.content)
            self._add(max([len(self._vocab) - 1, *self._added]) + 1 if known is None else known, token)
        return len(set(tokens) - before)

    def num_special_tokens_to_add(self, is_pair: bool) -> int:
        """Return how many special tokens are added to a text or a pair."""
        return len(self._special_ids("pair" if is_pair else "single"))

    def to_str(self, pretty: bool = False) -> str:
        """Return the text of tokenizer.json."""
        added = [{"id": i, **asdict(token)} for i, token in self.get_added_tokens_decoder().items()]
        return json.dumps({**self._file, "added_tokens": added}, indent=2 if pretty else None, ensure_ascii=False)

    def _add(self, token_id: int, token: AddedToken) -> None:
        if token.single_word or token.lstrip or token.rstrip:
            raise CheckpointError(
                f"added_tokens: got {token.content!r} with single_word, lstrip or rstrip, expected none of them; {_FIX}"
            )
        self._added[token_id] = token
        self._tokens[token_id] = token.content

    def _special_ids(self, template: str) -> list[int]:
        step = self._file.get("post_processor") or {}
        names = [part["SpecialToken"]["id"] for part in step.get(template, []) if "SpecialToken" in part]
        return [i for name in names for i in step["special_tokens"][name]["ids"]]

    def _parts(self, text: str) -> Iterator[tuple[str, Sequence[int]]]:
        """Cut a text into added tokens and words, each with its ids."""
        added = {t.content: i for i, t in self._added.items() if not (t.special and self.encode_special_tokens)}
        longest_first = sorted(map(re.escape, filter(None, added)), key=len, reverse=True)
        for part in re.split(f"({'|'.join(longest_first) or '(?!)'})", text):
            if part in added:
                yield part, [added[part]]
            elif part:
                yield from self._words(part)

    def _encode(self, text: str) -> list[_Token]:
        tokens: list[_Token] = []
        start = 0
        for number, (part, ids) in enumerate(self._parts(text)):
            # the index of each byte's character
            at = [start + i for i, character in enumerate(part) for _ in character.encode()]
            used = 0
            for token_id in ids:
                token = self._tokens[token_id]
                size = len(at) if token_id in self._added else len(token)
                tokens.append((token_id, token, (at[used], at[used + size - 1] + 1), number, 0, 0, 0, 1))
                used += size
            start += len(part)
        return tokens


class _Section:
    """A section of tokenizer.json, such as the decoder."""

    def __init__(self, step: dict[str, Any]) -> None:
        self._step = step

    def __getstate__(self) -> bytes:
        return json.dumps(self._step).encode()

    def decode(self, tokens: Sequence[str]) -> str:
        return _decode(tokens)


def javascript_words(text: str) -> Words:
    """Return the function that splits and tokenizes by a tokenizer.json; it runs byte_level.js in JavaScript.

    Results come as JSON, not by `to_py`. If an array occurs several times, as do the ids of a repeated word, `to_py` of
    Pyodide 0.27 counts one reference and frees it while it is in use (pyodide/pyodide#5598).
    """
    from pyodide.code import run_js

    source = Path(__file__).with_name("byte_level.js").read_text(encoding="utf-8").replace("export class", "class")
    make = """(text) => {
        const tokenizer = new Tokenizer(JSON.parse(text));
        return (part) => JSON.stringify(tokenizer.words(part));
    }"""
    words = run_js(f"(() => {{ {source}\nreturn {make}; }})()")(text)
    return lambda part: [(word, ids) for word, ids in json.loads(words(part))]


def _check(parsed: dict[str, Any]) -> None:
    """Raise `CheckpointError` unless this is GPT-2's byte-level BPE; special tokens may come before a text."""
    model, steps = parsed.get("model") or {}, parsed.get("pre_tokenizer") or {}
    after = parsed.get("post_processor") or {"type": "TemplateProcessing", "single": []}
    plain = (
        model.get("type") == "BPE"
        and isinstance(model.get("vocab"), dict)
        and not any(
            model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
        )
        and parsed.get("normalizer") is None
        and (steps.get("type"), steps.get("add_prefix_space"), steps.get("use_regex")) == ("ByteLevel", False, True)
        and (parsed.get("decoder") or {}).get("type") == "ByteLevel"
        and after.get("type") == "TemplateProcessing"
        and ["Sequence" in part for part in after["single"]] in ([], [True], [False, True])
    )
    if not plain:
        raise CheckpointError(
            f"tokenizer.json: got another tokenizer, expected a byte-level BPE with GPT-2's steps; {_FIX}"
        )


def _truncate(whole: list[_Token], truncation: dict[str, Any], most: int) -> list[list[_Token]]:
    """Cut into pieces of `most` tokens that overlap by `stride`; the first is the result, the others overflow."""
    if len(whole) <= most:
        return [whole]
    if most == 0:
        return [[], whole]
    step = most - truncation["stride"]
    starts = range(0, len(whole) - truncation["stride"], step)
    if truncation["direction"] == "right":
        return [whole[start : start + most] for start in starts]
    return [whole[max(len(whole) - start - most, 0) : len(whole) - start] for start in starts]


def _decode(tokens: Sequence[str]) -> str:
    return b"".join(map(_bytes, tokens)).decode("utf-8", "replace")


def _bytes(token: str) -> bytes:
    if all(letter in _LETTERS for letter in token):
        return bytes(_LETTERS[letter] for letter in token)
    return token.encode()


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(f"tokenizers.{name} is compiled code, which no browser has: use Python outside of one")
