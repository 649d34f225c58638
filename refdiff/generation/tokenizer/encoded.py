"""Check the arguments of a tokenizer call, and form its results: padded batches of ids, tidied text."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refdiff.errors import CheckpointError
from refdiff.generation.tokenizer.backend import Encoding, TokenizerBackend
from refdiff.messages import refuse_arguments
from refdiff.refused import RefusedAttributes, refuse_attribute

_LISTS = (list, tuple, np.ndarray)
# Methods that ask an encoding about a token, character or word; those named here answer with a range.
_SPANS = ("token_to_chars", "word_to_chars", "word_to_tokens")
_QUESTIONS = ("char_to_token", "char_to_word", "token_to_sequence", "token_to_word", *_SPANS)


class Span(NamedTuple):
    """A range of characters or tokens, without its end."""

    start: int
    end: int


class Encoded(RefusedAttributes, dict[str, Any]):
    """The result of a tokenizer call: a dict whose entries are attributes too. `model(**encoded)` works.

    `encodings` has what the library knows of each text: `tokens(i)`, `word_ids(i)` and `sequence_ids(i)` of text i, and
    `token_to_word`, `char_to_token`, `word_to_chars` … with transformers' arguments: `(position)` or `(i, position)`.
    """

    is_fast = True

    def __init__(self, entries: Any = (), encodings: list[Encoding] | None = None) -> None:
        super().__init__(entries)
        self.encodings = encodings

    def __getitem__(self, key: Any) -> Any:
        """Return an entry by its name, or an encoding by its number."""
        return self._encoding(key) if isinstance(key, int) else super().__getitem__(key)

    def tokens(self, batch_index: int = 0) -> list[str]:
        """Return the tokens of a text, as the vocabulary spells them."""
        return list(self._encoding(batch_index).tokens)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return the number of each token's word; None for special tokens."""
        return list(self._encoding(batch_index).word_ids)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """Return for each token the text of its pair, 0 or 1; None for special tokens."""
        return list(self._encoding(batch_index).sequence_ids)

    def to(self, device: Any, non_blocking: bool = False) -> Encoded:
        """Return this result: arrays of NumPy are on the CPU.

        Raises:
            ValueError: another device.
        """
        if device is not None and str(device) != "cpu":  # None is the device of a model on NumPy
            raise ValueError(f'device: got {str(device)!r}, expected "cpu"; move its arrays with their own library')
        return self

    def _encoding(self, index: int) -> Encoding:
        if self.encodings is None:
            raise ValueError("encodings: got none, expected the result of a tokenizer call; this one was put together")
        return self.encodings[index]

    def _ask(self, name: str, first: int = 0, second: int | None = None, sequence_index: int = 0, **named: int) -> Any:
        known = [f"{kind}{name.split('_')[0]}_index" for kind in ("batch_or_", "")]
        refuse_arguments(name, named.keys() - {*known}, [*known, "sequence_index"])
        first, second = named.get(known[0], first), named.get(known[1], second)
        batch_index, position = (0, first) if second is None else (first, second)
        encoding = self._encoding(batch_index)
        by_token = name.startswith("token_")
        if by_token and position < 0:
            position += len(encoding.ids)
        found = getattr(encoding, name)(*[position] if by_token else [position, sequence_index])
        return Span(*found) if name in _SPANS and found is not None else found

    def __reduce__(self) -> Any:
        return Encoded, (dict(self), self.encodings)

    def __getattr__(self, name: str) -> Any:
        if name in _QUESTIONS:
            return functools.partial(self._ask, name)
        return self[name] if name in self else refuse_attribute(self, name)


def pad(sequences: list[list[int]], length: int, value: int, side: str) -> list[list[int]]:
    """Pad each sequence with `value` to `length`, on its left or right; longer sequences stay as they are."""
    if side == "left":
        return [[value] * (length - len(ids)) + ids for ids in sequences]
    return [ids + [value] * (length - len(ids)) for ids in sequences]


def pad_prompts(prompts: list[list[int]]) -> Encoded:
    """Pad prompts on the left to one length, for `generate`: → `input_ids` and `attention_mask` as arrays (B, T).

    The padding is token 0. It needs no pad token, because the mask hides it from the model.
    """
    longest = max(map(len, prompts))
    masks = [[1] * len(ids) for ids in prompts]
    padded = {"input_ids": pad(prompts, longest, 0, "left"), "attention_mask": pad(masks, longest, 0, "left")}
    return batch(padded, single=False, return_tensors="np")


def batch(
    entries: dict[str, list[Any]], single: bool, return_tensors: str | None, encodings: list[Encoding] | None = None
) -> Encoded:
    """Return sequences as lists (without the outer list for a single text) or, for "np", as int64 arrays (B, T)."""
    if return_tensors is None:
        return Encoded(
            {name: values[0] if single and isinstance(values[0], list) else values for name, values in entries.items()},
            encodings,
        )
    lengths = sorted({len(ids) for values in entries.values() for ids in values if isinstance(ids, list)})
    if len(lengths) > 1:
        raise ValueError(
            f"text: got texts of {lengths[0]} to {lengths[-1]} tokens, expected as many in each for an array; pass "
            "padding=True, and truncation=True with max_length= to bound the length"
        )
    empty = np.zeros((0, 0), dtype=np.int64)
    arrays = {name: np.asarray(values, dtype=np.int64) if values else empty for name, values in entries.items()}
    return Encoded(arrays, encodings)


def to_lists(ids: Any) -> list[Any]:
    """Turn an id, an array or nested lists of ids into nested lists of Python ints; a single id into a list of one."""
    if isinstance(ids, int | np.integer):
        return [int(ids)]
    if hasattr(ids, "tolist"):
        nested = ids.tolist()
        return nested if isinstance(nested, list) else [nested]
    if not isinstance(ids, Iterable):
        raise ValueError(f"token_ids: got {type(ids).__name__}, expected token ids")
    return [_plain_id(item) for item in ids]


def _plain_id(item: Any) -> Any:
    if isinstance(item, np.integer):
        return int(item)
    return to_lists(item) if isinstance(item, list | tuple) or hasattr(item, "tolist") else item


def clean_up_spaces(text: str) -> str:
    """Take out the spaces before English punctuation and contractions, as `clean_up_tokenization_spaces` asks for."""
    for mark in (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(mark, mark.strip())
    return text


def is_batch(text: Any, is_split_into_words: bool) -> bool:
    """Tell a list of texts from one text, which may be a list of words."""
    return isinstance(text, _LISTS) and (not is_split_into_words or (len(text) > 0 and isinstance(text[0], _LISTS)))


def check_inputs(text: Any, text_pair: Any, is_split_into_words: bool) -> tuple[list[Any], bool]:
    """Return the texts, or pairs as tuples, of a tokenizer call, and whether there are pairs."""
    batched = is_batch(text, is_split_into_words)
    depth = batched + is_split_into_words
    if is_split_into_words and isinstance(text, str):
        raise TypeError("text: got str with is_split_into_words=True, expected a list of words")
    texts = check_texts("text", text, depth + batched)
    if text_pair is not None and (batched or len(text_pair)):
        pairs = check_texts("text_pair", text_pair, depth)
        if batched and (isinstance(pairs, str) or len(texts) != len(pairs)):
            count = 1 if isinstance(pairs, str) else len(pairs)
            raise ValueError(f"text, text_pair: got {len(texts)} and {count} texts, expected as many")
        return list(zip(texts, pairs, strict=True)) if batched else [(texts, pairs)], True
    if not batched:
        return [texts], False
    inner = [item[0] if is_split_into_words and item else item for item in texts]
    is_pair = [isinstance(item, list | tuple) and len(item) > 0 for item in inner]
    if wrong := [item for item, pair in zip(texts, is_pair, strict=True) if pair and len(item) != 2]:
        raise TypeError(f"text: got {len(wrong[0])} texts in one entry, expected a string or a pair of strings")
    return [tuple(item) if pair else item for item, pair in zip(texts, is_pair, strict=True)], any(is_pair)


def check_texts(name: str, value: Any, depth: int) -> Any:
    """Return a text, or lists of texts in lists up to `depth`, with lists for arrays."""
    if isinstance(value, _LISTS) and depth:
        parts = (check_texts(name, part, depth - 1) for part in value)
        return tuple(parts) if isinstance(value, tuple) else list(parts)
    if not isinstance(value, str):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a string or a list of strings")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name}: got half of a character (a lone surrogate) at position {error.start}, expected whole ones; "
                'read the file as UTF-8, or repair it with text.encode("utf-8", "replace").decode()'
            ) from None
    return value


def count_characters(value: Any) -> int:
    """Return the number of characters of a text, or of all texts in nested lists."""
    return len(value) if isinstance(value, str) else sum(map(count_characters, value))


def check_truncation(strategy: Any, limit: int, stride: int, reserved: int, *, has_pair: bool) -> None:
    """Raise `ValueError` for an unknown strategy, a limit below the `reserved` special tokens, or an endless stride."""
    if strategy not in ("longest_first", "only_first", "only_second"):
        raise ValueError(
            f"truncation: got {strategy!r}, expected True, False, 'longest_first', 'only_first' or 'only_second'"
        )
    if strategy == "only_second" and not has_pair:
        raise ValueError("truncation: got 'only_second' without text_pair, expected 'only_first' for single texts")
    if not isinstance(limit, int | np.integer) or isinstance(limit, bool) or limit < reserved:
        raise ValueError(f"max_length: got {limit!r}, expected an integer from {reserved}, the special tokens added")
    capacity = limit - reserved
    if not 0 <= stride < max(capacity, 1):
        raise ValueError(
            f"stride: got {stride}, expected 0 to {capacity - 1}, below the {capacity} tokens of the text that one "
            "piece holds; lower it or raise max_length"
        )


def check_multiple(multiple: Any, max_length: int | None, cut: bool) -> None:
    """Raise `ValueError` for a `pad_to_multiple_of` below 1, or cuts to a `max_length` that is no multiple of it."""
    if isinstance(multiple, bool) or not isinstance(multiple, int | np.integer) or multiple < 1:
        raise ValueError(f"pad_to_multiple_of: got {multiple!r}, expected a whole number from 1")
    if cut and max_length is not None and max_length % multiple:
        raise ValueError(
            f"max_length: got {max_length}, expected a multiple of pad_to_multiple_of, {multiple}, where texts are "
            f"cut; pass max_length={max_length - max_length % multiple or multiple}"
        )


def check_ids(encodings: list[Encoding], backend: TokenizerBackend, limit: int | None, source: Path) -> None:
    """Raise `CheckpointError` for an id of `limit`, the vocab_size of config.json, or more; None is no limit."""
    if limit is None:
        return
    for encoding in encodings:
        if encoding.ids and max(encoding.ids) >= limit:
            wrong = next(i for i in encoding.ids if i >= limit)
            raise CheckpointError(
                f"{source}: got token {backend.id_to_token(wrong)!r}, id {wrong}, expected ids below {limit}, the "
                "vocab_size of config.json; these two files do not belong together"
            )
