"""Check the arguments of a tokenizer call, and form its results: padded batches of ids, tidied text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.errors import CheckpointError
from refdiff.generation.tokenizer.backend import Encoding, TokenizerBackend

_LISTS = (list, tuple, np.ndarray)


class Encoded(dict[str, Any]):
    """The result of a tokenizer call: a dict whose entries are attributes too. `model(**encoded)` works."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"Encoded has no entry {name!r}, only {', '.join(self)}") from None


def pad(sequences: list[list[int]], length: int, value: int, side: str) -> list[list[int]]:
    """Pad each sequence with `value` to `length`, on its left or right; longer sequences stay as they are."""
    if side not in ("left", "right"):
        raise ValueError(f'padding_side: got {side!r}, expected "left" or "right"')
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


def batch(entries: dict[str, list[list[int]]], single: bool, return_tensors: str | None) -> Encoded:
    """Return sequences as lists (without the outer list for a single text) or, for "np", as int64 arrays (B, T).

    Raises:
        ValueError: sequences of different lengths should form an array.
    """
    if return_tensors is None:
        return Encoded({name: values[0] if single else values for name, values in entries.items()})
    lengths = sorted({len(ids) for values in entries.values() for ids in values})
    if len(lengths) > 1:
        raise ValueError(
            f"text: got texts of {lengths[0]} to {lengths[-1]} tokens, expected as many in each for an array; pass "
            "padding=True, and truncation=True with max_length= to bound the length"
        )
    width = lengths[0] if lengths else 0
    return Encoded(
        {name: np.asarray(values, dtype=np.int64).reshape(len(values), width) for name, values in entries.items()}
    )


def to_lists(ids: Any) -> list[Any]:
    """Turn an id, an array or nested lists of ids into nested lists of Python ints; a single id into a list of one."""
    if isinstance(ids, int | np.integer):
        return [int(ids)]
    if hasattr(ids, "tolist"):
        nested = ids.tolist()
        return nested if isinstance(nested, list) else [nested]
    if not isinstance(ids, Iterable):
        raise ValueError(f"ids: got {type(ids).__name__}, expected token ids")
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


def check_texts(name: str, value: Any) -> list[str]:
    """Return a text, or a list of texts, as a list.

    Raises:
        TypeError: an element is no text.
        ValueError: a text has half of a character.
    """
    texts: list[str] = [value] if isinstance(value, str) else list(value) if isinstance(value, _LISTS) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name}: got {type(text).__name__}, expected a string or a list of strings")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name}: got half of a character (a lone surrogate) at position {error.start}, expected whole ones; "
                'read the file as UTF-8, or repair it with text.encode("utf-8", "replace").decode()'
            ) from None
    return texts


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
    _check_stride(stride, limit - reserved)


def check_pair_stride(strategy: str, stride: int, lengths: list[int], capacity: int) -> None:
    """Raise `ValueError` if truncation leaves at most `stride` tokens of a text in a pair with these lengths."""
    first, second = lengths
    if first + second <= capacity:
        return
    if strategy == "longest_first":
        kept = max(capacity // 2, capacity - min(lengths))
    else:
        kept = capacity - (first if strategy == "only_second" else second)
    if kept > 0:  # else the other text alone is too long; the library reports that
        _check_stride(stride, kept)


def _check_stride(stride: int, capacity: int) -> None:
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
