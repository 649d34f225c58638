"""What tokens say, joined, is what the text says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models

from refdiff.generation.token_bytes import TokenBytes
from refdiff.generation.tokenizer import TokenizerBackend, backend_of
from tests.generation.trained_tokenizers import KINDS, TEXTS


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_join_to_the_text(kind: str) -> None:
    tokenizer = KINDS[kind]()
    token_bytes = TokenBytes(tokenizer)
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        joined = b"".join([token_bytes[i] for i in ids]).decode()
        decoded = tokenizer.decode(ids)
        assert joined in (decoded, " " + decoded)  # SentencePiece drops the space at the beginning of a text
        assert len(joined) > 20


def test_other_decoders() -> None:
    plain = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    assert [TokenBytes(plain)[i] for i in (0, 1)] == [b" a", b" b"]  # joined by spaces where there is no decoder
    pieces = Tokenizer(models.WordPiece({"a": 0, "##b": 1, "b": 2}, unk_token="a"))
    pieces.decoder = decoders.WordPiece()
    assert [TokenBytes(pieces)[i] for i in (1, 2)] == [b"b", b" b"]


def test_the_tokenizer_inside() -> None:
    """refdiff keeps it under `backend`; transformers under `backend_tokenizer`, beside a string `backend`."""
    inner = Tokenizer(models.BPE())
    for outer in (
        inner, SimpleNamespace(backend=inner), SimpleNamespace(backend="tokenizers", backend_tokenizer=inner),
        SimpleNamespace(backend=TokenizerBackend(inner)),
    ):  # fmt: skip
        assert backend_of(outer).native is inner  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="tokenizer: got int, expected a tokenizer of refdiff, of tokenizers, or"):
        backend_of(3)
