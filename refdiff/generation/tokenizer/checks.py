"""What a call of the tokenizer must satisfy, said before the library is asked."""

from __future__ import annotations

from typing import Any

import numpy as np

_LISTS = (list, tuple, np.ndarray)


def check_texts(name: str, value: Any) -> list[str]:
    """Take a text or a list of them; → the list.

    Raises `TypeError` for what is no text, `ValueError` for a text with half of a character.
    """
    texts: list[str] = [value] if isinstance(value, str) else list(value) if isinstance(value, _LISTS) else [value]
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a string or a list of strings, but has {type(text).__name__}")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{name} has half of a character (a lone surrogate) at position {error.start}; read the file as UTF-8, "
                'or repair it with text.encode("utf-8", "replace").decode()'
            ) from None
    return texts


def check_truncation(strategy: Any, limit: int, stride: int, reserved: int) -> None:
    """Raise `ValueError` for an unknown strategy, a limit below the `reserved` special tokens, or an endless stride."""
    if strategy not in ("longest_first", "only_first", "only_second"):
        raise ValueError(
            f"truncation is {strategy!r}, but must be True, False, 'longest_first', 'only_first' or 'only_second'"
        )
    if not isinstance(limit, int | np.integer) or isinstance(limit, bool) or limit < reserved:
        raise ValueError(f"max_length is {limit!r}, but must be a number from {reserved}, the special tokens added, up")
    if not 0 <= stride < max(limit - reserved, 1):
        raise ValueError(f"stride is {stride}, but must be from 0 to {limit - reserved - 1}, below the room for text")
