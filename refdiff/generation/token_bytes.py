"""The text of each token in bytes: a character may begin in one token and end in another."""

from __future__ import annotations

import re
from typing import Any

from refdiff.generation.tokenizer.backend import backend_of

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """`token_bytes[id]`: the UTF-8 bytes that a token adds to a text.

    Byte-level vocabularies (GPT-2) spell each byte as a letter, byte-fallback ones (SentencePiece) as <0xNN>. Any other
    token is decoded after some text, which replaces marks such as ▁ and ## by what they stand for.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._backend = backend_of(tokenizer)
        kinds = _kinds(self._backend.section("decoder"))
        self._letters = letters_of_bytes() if "ByteLevel" in kinds else None
        self._byte_tokens = "ByteFallback" in kinds
        self._context = self._backend.encode(["a"], add_special_tokens=False)[0].ids
        self._context_text = self._decode([])
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token: int) -> bytes:
        if token not in self._known:
            self._known[token] = self._look_up(token)
        return self._known[token]

    def _decode(self, ids: list[int]) -> str:
        return self._backend.decode(self._context + ids)

    def _look_up(self, token: int) -> bytes:
        spelled = self._backend.id_to_token(token)
        if spelled is None:  # the model's vocabulary may be larger than the tokenizer's
            return b""
        if self._letters is not None and all(letter in self._letters for letter in spelled):
            return bytes(self._letters[letter] for letter in spelled)
        if self._byte_tokens and (byte := _BYTE_TOKEN.fullmatch(spelled)):
            return bytes.fromhex(byte[1])
        text = self._decode([token])
        return (text[len(self._context_text) :] if text.startswith(self._context_text) else spelled).encode()


def _kinds(decoder: Any) -> set[str]:
    """Return the types of a decoder and of all decoders in it."""
    if isinstance(decoder, list):
        return {kind for part in decoder for kind in _kinds(part)}
    if not isinstance(decoder, dict):
        return set()
    return {str(decoder.get("type"))} | {kind for part in decoder.values() for kind in _kinds(part)}


def letters_of_bytes() -> dict[str, int]:
    """Return GPT-2's spelling: printable Latin-1 bytes stand for themselves, others for the letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
