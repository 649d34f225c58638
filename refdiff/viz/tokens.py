"""ids → one line of visible text for each token, for axes and pages."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Any

from refdiff.generation.token_bytes import TokenBytes

_SIGNS = {" ": "·", "\n": "↵", "\t": "⇥"}
_UNSEEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs")


def token_labels(tokenizer: Any, ids: Iterable[int]) -> list[str]:
    r"""Spell each token so that all of it is seen: a space as ·, a line break as ↵, half of a character as \xe3\x81.

    Takes a tokenizer of refdiff, of transformers or of `tokenizers`; an id that it has no token for becomes [id].
    """
    token_bytes = TokenBytes(tokenizer)
    labels = []
    for token in map(int, ids):
        text = token_bytes[token].decode("utf-8", errors="backslashreplace")
        labels.append(visible(text) if text else f"[{token}]")
    return labels


def visible(text: str) -> str:
    r"""Put a sign in place of what leaves no ink or turns others around: · for a space, and \x1b, \u202e, …"""
    return "".join(map(_sign, text))


def _sign(character: str) -> str:
    if character in _SIGNS:
        return _SIGNS[character]
    unseen = unicodedata.category(character) in _UNSEEN
    return character.encode("unicode_escape").decode("ascii") if unseen else character
