"""Lists of token ids ↔ padded batches of them, and the tidying of their text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


class Encoded(dict[str, Any]):
    """What the tokenizer returns: a dict whose entries are attributes too, so that `model(**encoded)` works."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"Encoded has no entry {name!r}, only {', '.join(self)}") from None


def pad_rows(rows: list[list[int]], length: int, value: int, side: str) -> list[list[int]]:
    """Fill each row with `value` up to `length`, on its left or right; longer rows stay as they are."""
    if side not in ("left", "right"):
        raise ValueError(f'padding_side is {side!r}, but must be "left" or "right"')
    if side == "left":
        return [[value] * (length - len(row)) + row for row in rows]
    return [row + [value] * (length - len(row)) for row in rows]


def batch(rows: dict[str, list[list[int]]], single: bool, return_tensors: str | None) -> Encoded:
    """Hand out rows as lists (the row itself for a single text) or, for "np", as int64 arrays (B, T).

    Raises `ValueError` when rows of different lengths should form an array.
    """
    if return_tensors is None:
        return Encoded({name: values[0] if single else values for name, values in rows.items()})
    lengths = sorted({len(row) for values in rows.values() for row in values})
    if len(lengths) > 1:
        raise ValueError(
            f"the texts have from {lengths[0]} to {lengths[-1]} tokens, so they form no array; pass padding=True, and "
            "truncation=True with max_length= to bound the length"
        )
    width = lengths[0] if lengths else 0
    return Encoded(
        {name: np.asarray(values, dtype=np.int64).reshape(len(values), width) for name, values in rows.items()}
    )


def to_lists(ids: Any) -> list[Any]:
    """Turn an id, an array or nested lists of ids into nested lists of Python ints; a single id into a list of one."""
    if isinstance(ids, int | np.integer):
        return [int(ids)]
    if hasattr(ids, "tolist"):
        nested = ids.tolist()
        return nested if isinstance(nested, list) else [nested]
    if not isinstance(ids, Iterable):
        raise ValueError(f"token ids are expected, but got {type(ids).__name__}")
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
