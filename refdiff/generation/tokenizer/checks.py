"""What a call of the tokenizer must satisfy, said before the library is asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff.errors import CheckpointError

if TYPE_CHECKING:
    import tokenizers

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


def check_multiple(multiple: Any, max_length: int | None, cut: bool) -> None:
    """Raise `ValueError` for a `pad_to_multiple_of` below 1, or one that a `max_length` to cut to does not keep."""
    if isinstance(multiple, bool) or not isinstance(multiple, int | np.integer) or multiple < 1:
        raise ValueError(f"pad_to_multiple_of is {multiple!r}, but must be a whole number from 1")
    if cut and max_length is not None and max_length % multiple:
        raise ValueError(
            f"max_length {max_length} is no multiple of pad_to_multiple_of {multiple}, so texts cut to it would be "
            f"padded beyond it; pass max_length={max_length - max_length % multiple or multiple}"
        )


def check_ids(
    encodings: list[tokenizers.Encoding], backend: tokenizers.Tokenizer, limit: int | None, source: Path
) -> None:
    """Raise `CheckpointError` for an id beyond the `limit` that config.json sets; None sets no limit."""
    if limit is None:
        return
    for encoding in encodings:
        if encoding.ids and max(encoding.ids) >= limit:
            wrong = next(i for i in encoding.ids if i >= limit)
            raise CheckpointError(
                f"{source}: the text has token {backend.id_to_token(wrong)!r}, id {wrong}, but "
                f"config.json has vocab_size {limit}: these two files do not belong together"
            )
