"""The stand-in of "Try it" for the package tokenizers: the same results. Here the package does what JavaScript does."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

import numpy as np
import pytest
import tokenizers

import refdiff
from refdiff import bundled
from refdiff.errors import CheckpointError
from refdiff.generation.stream import PieceDecoder
from refdiff.generation.tokenizer import AddedToken, TokenizerBackend
from refdiff.generation.tokenizer.backend import Truncation
from tests.generation.trained_tokenizers import ODD_TEXTS, TEXTS, byte_level, unigram
from tests.test_notebooks import FOLDER


def _of_the_page() -> Any:
    spec = spec_from_file_location("tokenizers_of_the_page", FOLDER / "reference" / "try" / "modules" / "tokenizers.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


page = _of_the_page()
TEXT = (bundled.FOLDER / "tokenizer.json").read_text(encoding="utf-8")


def rust_words(native: Any) -> Any:
    """The library's own words and merges, in the place of JavaScript's."""

    def words(text: str) -> list[tuple[str, list[int]]]:
        found = native.pre_tokenizer.pre_tokenize_str(text)
        return [(text[a:b], [token.id for token in native.model.tokenize(word)]) for word, (a, b) in found]

    return words


def both(kind: str) -> tuple[TokenizerBackend, TokenizerBackend]:
    text = TEXT if kind == "bundled" else byte_level().to_str()
    mine = page.Tokenizer(json.loads(text), rust_words(tokenizers.Tokenizer.from_str(text)))
    return TokenizerBackend(mine), TokenizerBackend(tokenizers.Tokenizer.from_str(text))


def samples() -> list[str]:
    rng = np.random.default_rng(3)
    pool = [
        *"ab XYZ 019 \t\n\r ''sd.,!?-“éßñ\xa0\u3000", *"昔々、あるところに😀👩‍👧🇯🇵", "<|endoftext|>",
        "<s>", "</s>", " don't",
    ]  # fmt: skip
    return [*TEXTS, *ODD_TEXTS, *("".join(rng.choice(pool, rng.integers(0, 30))) for _ in range(60))]


FIELDS = (
    "ids", "tokens", "offsets", "word_ids", "sequence_ids", "type_ids", "attention_mask", "special_tokens_mask"
)  # fmt: skip


def same(mine: Any, theirs: Any) -> None:
    for name in FIELDS:
        assert getattr(mine, name) == getattr(theirs, name), name
    assert len(mine.overflowing) == len(theirs.overflowing)
    for one, other in zip(mine.overflowing, theirs.overflowing, strict=True):
        same(one, other)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("kind", ["bundled", "trained"])
def test_it_encodes_as_the_library_does(kind: str, special: bool) -> None:
    mine, theirs = both(kind)
    texts = samples()
    for one, other in zip(
        mine.encode(texts, add_special_tokens=special), theirs.encode(texts, add_special_tokens=special), strict=True
    ):
        same(one, other)
    split = {"split_special_tokens": True}
    for one, other in zip(mine.encode(texts, **split), theirs.encode(texts, **split), strict=True):
        same(one, other)


@pytest.mark.parametrize("direction", ["left", "right"])
@pytest.mark.parametrize(("size", "stride"), [(1, 0), (5, 0), (5, 2), (9, 7), (400, 3)])
def test_it_truncates_as_the_library_does(size: int, stride: int, direction: str) -> None:
    mine, theirs = both("bundled")
    how = Truncation(size, stride, "longest_first", direction)
    for one, other in zip(mine.encode(TEXTS, truncation=how), theirs.encode(TEXTS, truncation=how), strict=True):
        same(one, other)
        for encoding in (one, other):
            encoding.pad(7, direction=direction, pad_id=0, pad_token="<|endoftext|>")
        same(one, other)


@pytest.mark.parametrize("kind", ["bundled", "trained"])
def test_it_decodes_as_the_library_does(kind: str) -> None:
    mine, theirs = both(kind)
    rng = np.random.default_rng(4)
    size = mine.vocab_size(with_added_tokens=True)
    rows = [[int(i) for i in rng.integers(0, size + 3, 12)] for _ in range(40)]
    rows += [encoding.ids for encoding in theirs.encode(samples())]
    for row in rows:
        for skip in (True, False):
            assert mine.decode(row, skip_special_tokens=skip) == theirs.decode(row, skip_special_tokens=skip)
            known = [i for i in row if i < size]
            streams = [PieceDecoder(backend, skip_special_tokens=skip) for backend in (mine, theirs)]
            assert [streams[0](i) for i in known] == [streams[1](i) for i in known]
    tokens = ["Ġking", "no such letter: 猫", "<s>"]
    assert mine.decode_tokens(tokens) == theirs.decode_tokens(tokens)


@pytest.mark.parametrize("kind", ["bundled", "trained"])
def test_it_knows_what_the_library_knows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = both(kind)
    for _ in range(2):
        assert mine.vocab() == theirs.vocab()
        assert mine.added_tokens() == theirs.added_tokens()
        for added in (True, False):
            assert mine.vocab_size(with_added_tokens=added) == theirs.vocab_size(with_added_tokens=added)
            assert mine.num_special_tokens(pair=added) == theirs.num_special_tokens(pair=added)
        for token in ("Ġthe", "a", "<s>", "<tool>", "no such token"):
            assert mine.token_to_id(token) == theirs.token_to_id(token)
        for i in (0, 5, mine.vocab_size(with_added_tokens=True) - 1, 10**6):
            assert mine.id_to_token(i) == theirs.id_to_token(i)
        for name in ("type", "unk_token", "max_input_chars_per_word"):
            assert mine.model(name) == theirs.model(name)
        for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            assert mine.section(name) == theirs.section(name)
        assert json.loads(mine.to_json()) == json.loads(theirs.to_json())
        new = [AddedToken("<tool>", special=True, normalized=False), AddedToken("king of", normalized=False)]
        with monkeypatch.context() as inside:
            inside.setitem(sys.modules, "tokenizers", page)
            mine.add_tokens([*new, AddedToken("a", normalized=False)])
        theirs.add_tokens([*new, AddedToken("a", normalized=False)])
    text = "A king of kings<tool>, a tool"
    same(mine.encode([text])[0], theirs.encode([text])[0])


@pytest.mark.parametrize(
    "changed",
    [
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"post_processor": {"type": "ByteLevel"}},
    ],
)
def test_another_kind_of_tokenizer_is_refused(changed: dict[str, Any]) -> None:
    parsed = {**json.loads(TEXT), **changed}
    with pytest.raises(CheckpointError, match=r"got another .* byte-level BPE .* no browser has: use Python outside"):
        page.Tokenizer(parsed, lambda text: [])
    with pytest.raises(CheckpointError, match="expected a byte-level BPE"):
        page.Tokenizer(json.loads(unigram().to_str()), lambda text: [])


def test_features_of_the_package_tokenizers_alone_are_refused() -> None:
    mine, _ = both("bundled")
    with pytest.raises(
        CheckpointError, match="text_pair: got a second text, expected none; only the package tokenizers"
    ):
        mine.encode([("a", "b")])
    with pytest.raises(CheckpointError, match=r"got '<x>' with single_word, lstrip or rstrip, .*; only the package"):
        mine.add_tokens([AddedToken("<x>", lstrip=True)])


def test_refdiff_uses_it_as_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "javascript_words", lambda text: rust_words(tokenizers.Tokenizer.from_str(text)))
    path = bundled.FOLDER / "tokenizer.json"
    text = "The king <|endoftext|>昔"
    ids = tokenizers.Tokenizer.from_file(str(path)).encode(text).ids
    assert page.Tokenizer.from_file(str(path)).encode(text).ids == ids
    monkeypatch.setitem(sys.modules, "tokenizers", page)
    tokenizer = refdiff.Tokenizer.from_pretrained("bundled")
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == page.Tokenizer.from_file(str(path)).decode(ids, skip_special_tokens=False)
    assert isinstance(tokenizer.backend.native, page.Tokenizer)
    with pytest.raises(ImportError, match=r"tokenizers\.trainers is compiled code, which no browser has"):
        page.trainers  # noqa: B018
