"""Ids, masks and positions from the user → checked arrays on the host.

They are small and decide what is computed, so they are checked on the host, once per call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.arrays import to_numpy
from refdiff.messages import show_value

IntArray = NDArray[np.int64]


def host(name: str, x: Any) -> NDArray[Any]:
    """Bring an array of any library, or nested lists, to the host.

    Raises:
        ValueError: lists of different lengths, which are no array.
        TypeError: neither an array nor lists.
    """
    if hasattr(x, "shape"):
        return to_numpy(x)
    if not isinstance(x, (list, tuple, int, float)):
        raise TypeError(f"{name}: got {type(x).__name__}, expected an array or nested lists of numbers")
    try:
        return np.asarray(x)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(
            f"{name}: got sequences of different lengths, expected one length; pad them, as "
            "tokenizer(texts, padding=True) does"
        ) from None


def integers(name: str, x: Any) -> IntArray:
    """Return `x` as host integers.

    Raises:
        TypeError: a text, or the dict that a tokenizer returns.
        ValueError: it holds anything else.
    """
    refuse_text(name, x)
    values = host(name, x)
    # an empty list has no dtype of its own
    if values.size and values.dtype.kind not in "iu":
        raise ValueError(f"{name}: got dtype {values.dtype}, expected integers")
    return values.astype(np.int64)


def numbers(name: str, x: Any) -> NDArray[Any]:
    """Return `x` as a host array of numbers.

    Raises:
        ValueError: it holds texts or objects, or lists of different lengths.
        TypeError: neither an array nor lists.
    """
    values = host(name, x)
    if values.dtype.kind in "OSU":
        raise ValueError(f"{name}: got dtype {values.dtype}, expected numbers")
    return values


def refuse_text(name: str, x: Any, call: str = "model") -> None:
    """Raise where `call` is given a text, or the dict that a tokenizer returns, in place of token ids.

    Raises:
        TypeError: says what to do.
    """
    first = x
    while isinstance(first, list | tuple) and first:
        first = first[0]
    if isinstance(first, str):
        raise TypeError(
            f'{name}: got a text, expected token ids; call tokenizer(text, return_tensors="np")["input_ids"]'
        )
    if isinstance(first, Mapping):
        got = type(first).__name__
        raise TypeError(f"{name}: got {got}, expected token ids; unpack it, as in {call}(**inputs)")


def token_ids(input_ids: Any) -> IntArray:
    """Check (B, T) token ids.

    Raises:
        ValueError: not integers, not two-dimensional, or no tokens.
    """
    ids = integers("input_ids", input_ids)
    if ids.ndim != 2:
        raise ValueError(
            f"input_ids: got shape {ids.shape}, expected (B, T): for one sequence write input_ids[None] or [ids]"
        )
    if 0 in ids.shape:
        raise ValueError(f"input_ids: got shape {ids.shape}, expected at least one sequence and one token")
    return ids


def check_known(ids: IntArray, vocab_size: int) -> None:
    """Raise where `ids` are outside the vocabulary; this runs on the host and waits for no device.

    Raises:
        IndexError: an id is negative or not below `vocab_size`.
    """
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise IndexError(
            f"input_ids: got token id {low if low < 0 else high}, expected 0 to {vocab_size - 1}; use the tokenizer of "
            "this checkpoint"
        )


def positions(position_ids: Any, batch: int, tokens: int, past: int) -> IntArray:
    """Check (B or 1, T) positions; without any, count from `past`.

    Raises:
        ValueError: not integers, another shape, or negative.
    """
    if position_ids is None:
        return np.arange(past, past + tokens)[None, :]
    ids = integers("position_ids", position_ids)
    if ids.shape not in ((batch, tokens), (1, tokens)):
        raise ValueError(f"position_ids: got shape {ids.shape}, expected ({batch}, {tokens}), as the tokens are")
    if (ids < 0).any():
        raise ValueError(f"position_ids: got {ids.min()}, expected 0 or more")
    return ids


def two_dimensional_mask(attention_mask: NDArray[Any], batch: int, total: int) -> NDArray[Any] | None:
    """Check a (B, S) mask of 1 and 0, or boolean; None if it hides nothing.

    Raises:
        ValueError: another shape, or other values than 0 and 1.
    """
    if attention_mask.shape != (batch, total):
        raise ValueError(
            f"attention_mask: got shape {attention_mask.shape}, expected ({batch}, {total}): one entry for every "
            "token, those in the cache included; or four-dimensional (B, 1 or H, T, S)"
        )
    seen = attention_mask == 1
    if attention_mask.dtype != np.bool_ and (other := attention_mask[~seen & (attention_mask != 0)]).size:
        raise ValueError(
            f"attention_mask: got {show_value(other[0].item())}, expected 0 (hidden) or 1 (visible) in two dimensions; "
            "a mask that is added to the scores has four, (B, 1 or H, T, S)"
        )
    return None if seen.all() else seen


def four_dimensional_mask(
    attention_mask: NDArray[Any], batch: int, heads: int, tokens: int, total: int
) -> tuple[NDArray[Any] | None, NDArray[Any] | None]:
    """Split a (B or 1, 1 or H, T, S) mask, boolean or additive, into a boolean mask and a bias.

    An additive mask hides a key with −∞ or the most negative number of its dtype, as transformers writes it.

    Raises:
        ValueError: another shape, or neither boolean nor floating-point.
    """
    shape = attention_mask.shape
    fits = shape[0] in (1, batch) and shape[1] in (1, heads) and shape[2] in (1, tokens) and shape[3] == total
    if not fits:
        raise ValueError(
            f"attention_mask: got shape {shape}, expected ({batch}, 1 or {heads}, {tokens}, {total}), "
            "with the tokens in the cache"
        )
    if attention_mask.dtype == np.bool_:
        return attention_mask, None
    if attention_mask.dtype.kind != "f":
        raise ValueError(
            f"attention_mask: got dtype {attention_mask.dtype} in four dimensions, expected boolean "
            "(True: may attend) or floating-point (added to the scores)"
        )
    visible = attention_mask > np.finfo(attention_mask.dtype).min
    added = np.where(visible, attention_mask, 0)
    return (None if visible.all() else visible), (added if added.any() else None)
