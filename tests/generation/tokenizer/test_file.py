"""tokenizer.json: broken and hostile files end in one CheckpointError that names the file."""

from __future__ import annotations

import base64
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from refdiff import CheckpointError, Tokenizer
from refdiff.errors import MissingFileError
from refdiff.generation.stream import PieceDecoder
from refdiff.generation.token_bytes import TokenBytes
from refdiff.generation.tokenizer import file
from tests.fuzz.mutations import mutate
from tests.generation.trained_tokenizers import KINDS, save

MODEL = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}


def write(folder: Path, content: Any) -> Path:
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    data = text.encode() if isinstance(text, str) else text
    (folder / "tokenizer.json").write_bytes(data)
    return folder


def use(folder: Path) -> None:
    """Everything that a text can reach: loading, encoding, decoding."""
    tokenizer = Tokenizer.from_pretrained(folder)
    ids = tokenizer("a b 東京 🎉", truncation=True, max_length=50)["input_ids"]
    tokenizer.decode(ids)
    tokenizer.decode(list(range(min(len(tokenizer), 50))), skip_special_tokens=True)


BROKEN: dict[str, Any] = {
    "empty": b"",
    "truncated": b'{"version": "1.0", "model": {"type": "BPE"',
    "a list": [],
    "no model": {"version": "1.0"},
    "model of no kind": {"model": {"type": "Magic", "vocab": {}}},
    "negative id": {"model": {**MODEL, "vocab": {"a": -1}}},
    "huge id": {"model": {**MODEL, "vocab": {"a": 2**33}}},
    "merge of unknown": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
    "unigram without unk": {"model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]}},
    "bad regex": {"model": MODEL, "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "invert": False}},
    "bad charsmap": {"model": MODEL, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "charsmap no base64": {"model": MODEL, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "!"}},
    "added tokens object": {"model": MODEL, "added_tokens": {"a": 1}},
    "post processor unknown token": {
        "model": MODEL,
        "post_processor": {
            "type": "TemplateProcessing", "special_tokens": {},
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        },
    },
    "deep list": b"[" * 200_000,
    "deep normalizer": '{"model":null,"normalizer":' + '{"type":"Sequence","normalizers":[' * 300 + "]}" * 300 + "}",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "long integer": b'{"model": ' + b"9" * 5000 + b"}",
    "key twice": b'{"normalizer": null, "model": {}, "normalizer": null}',
}  # fmt: skip


@pytest.mark.parametrize("name", list(BROKEN))
def test_broken_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        use(write(tmp_path, BROKEN[name]))


def replace(pattern: Any, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def special(count: int) -> dict[str, Any]:
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [sequence] * count,
        "pair": [sequence] * count,
        "special_tokens": {},
    }


CHARSMAP = base64.b64encode((4).to_bytes(4, "little") + b"\0\0\0\0" + b"x" * 200_000 + b"\0").decode()
BOMBS: dict[str, dict[str, Any]] = {
    "doubling": {"normalizer": {"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 60}},
    "one long replacement": {"normalizer": replace({"Regex": "."}, "x" * 1_000_000)},
    "an empty pattern": {"normalizer": replace({"String": ""}, "x" * 1_000_000)},
    "prepend": {"normalizer": {"type": "Prepend", "prepend": "x" * 1_000_000}},
    "bytes of bytes": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}]
            * 40,
        }
    },
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}},
    "template": {"post_processor": special(20_000)},
    "decoder": {"decoder": {"type": "Sequence", "decoders": [replace({"String": "a"}, "aa")] * 60}},
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_files_that_would_blow_a_text_up(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: \w+: got steps that could make a text"):
        use(write(tmp_path, {"model": MODEL, **BOMBS[name]}))


def test_ordinary_steps_are_far_from_the_limit() -> None:
    for kind in KINDS.values():
        parsed = json.loads(kind().to_str())
        assert (
            max(file.growth_of(parsed[name]) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"))
            < 100
        )


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "MAX_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: larger than 100 bytes"):
        use(write(tmp_path, {"model": MODEL, "x": "y" * 100}))


def test_missing_file_says_what_would_help(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"tokenizer\.json: no such file; copy the tokenizer\.json"):
        use(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"only a vocab\.json: convert it once with transformers"):
        use(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"only a SentencePiece tokenizer\.model: convert it once"):
        use(tmp_path)


def normalized(count: int, **more: Any) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return [{"id": 2 + i, "content": f"{i:05}" + "a" * 40, **flags, **more} for i in range(count)]


GROWING = replace({"String": "a"}, "a" * 900)
CLAIMS = base64.b64encode(b"\xfc\xff\xff\xff" + b"\0" * 4).decode()
WORD_PIECE = {"type": "WordPiece", "vocab": {"a": 0, "##a": 1}, "unk_token": "a", "continuing_subword_prefix": "##"}
BPE = {"type": "BPE", "vocab": {"a": 0, "é": 1, "aé": 2}, "continuing_subword_prefix": "x"}
HUNGRY: dict[str, tuple[str | dict[str, Any], str]] = {
    "added tokens in a growing normalizer": (
        {"normalizer": GROWING, "added_tokens": normalized(500)},
        r"500 added tokens of 23,000 characters that may become 900 times longer",
    ),
    "a table that claims to be long": (
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": CLAIMS}},
        r"normalizer: precompiled_charsmap: got 8 bytes, expected a table of 4,294,967,292",
    ),
    "a table in a step without its type": (
        {"normalizer": {"type": "Sequence", "normalizers": [{"precompiled_charsmap": CLAIMS}]}},
        r"precompiled_charsmap: got .* bytes, expected a table of",
    ),
    "a long token for every unknown word": (
        {"model": {**MODEL, "unk_token": "u" * 101, "vocab": {"a": 0, "b": 1, "u" * 101: 2}}},
        r"unk_token: got more than 100 characters",
    ),
    "words that take cubic time": (
        {"model": {**WORD_PIECE, "max_input_chars_per_word": 10**15}},
        r"max_input_chars_per_word: got 1,000,000,000,000,000, expected at most 500",
    ),
    "merges that the library cuts within a letter": (
        {"model": {**BPE, "merges": [["a", "é"]], "dropout": None}},
        r"model: merges: got '\\xe9', expected it to begin with the continuing_subword_prefix 'x'",
    ),
    "a very long token": (
        {"model": {**MODEL, "vocab": {"a": 0, "b": 1, "\\\",'" * 5000: 2}}},
        r"got a token of 20,000 characters, expected at most 5,000",
    ),
    "a normalizer after the model, spelled in another way": (
        json.dumps({"added_tokens": normalized(500), "model": MODEL, "normalizer": GROWING}).replace(
            "norm", "n\\u006frm"
        ),
        r"500 added tokens",
    ),
}


@pytest.mark.parametrize("name", list(HUNGRY))
def test_files_that_ask_for_memory_on_loading_never_reach_the_library(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, message = HUNGRY[name]
    monkeypatch.setattr(file.TokenizerBackend, "from_json", lambda *_: pytest.fail("the library has read it"))
    with pytest.raises(CheckpointError, match=rf"tokenizer\.json: .*{message}"):
        use(write(tmp_path, {"model": MODEL, **content} if isinstance(content, dict) else content))


@pytest.mark.parametrize(("longest", "refused"), [(150, False), (200, False), (201, True), (1999, True)])
def test_unigram_tokens_are_bounded(longest: int, refused: bool, tmp_path: Path) -> None:
    vocab = [["<unk>", 0.0], *(["a" * n, -float(n)] for n in range(1, longest + 1))]
    write(tmp_path, {"model": {"vocab": vocab, "type": "Unigram", "unk_id": 0}})
    if refused:
        with pytest.raises(CheckpointError, match=rf"json: model: got a token of {longest:,} char.*Unigram.* most 200"):
            use(tmp_path)
        return
    use(tmp_path)
    start = time.thread_time()
    assert Tokenizer.from_pretrained(tmp_path).encode("a" * 5_000)
    assert time.thread_time() - start < 2


def test_the_text_of_a_token_is_bounded_after_the_decoder(tmp_path: Path) -> None:
    def content(letters: int, growth: int) -> dict[str, Any]:
        model = {**MODEL, "vocab": {"a": 0, "a" * letters: 1}}
        return {"model": model, "decoder": replace({"String": "a"}, "b" * growth)}

    for letters, growth in ((4905, 900), (1001, 100), (101, 1000)):
        with pytest.raises(
            CheckpointError,
            match=rf"json: got a token of {letters:,} characters that .* {growth} times longer in the decoder, exp",
        ):
            use(write(tmp_path, content(letters, growth)))
    for letters, growth in ((1000, 100), (100, 1000), (4905, 8)):
        tokenizer = Tokenizer.from_pretrained(write(tmp_path, content(letters, growth)))
        assert tokenizer.decode([1]) == "b" * letters * growth


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json"])
def test_added_tokens_are_bounded_before_and_after_the_decoder(place: str, tmp_path: Path) -> None:
    for letters, decoder, said in (
        (5_001, None, "got a token of 5,001 characters, expected at most 5,000"),
        (
            1_000,
            replace({"String": "a"}, "b" * 900),
            "got a token of 1,000 characters that may become 900 times longer",
        ),
    ):
        token = {"id": 2, "content": "a" * letters, "normalized": False, "special": True, "single_word": False}
        token |= {"lstrip": False, "rstrip": False}
        write(
            tmp_path, {"model": MODEL, "decoder": decoder, "added_tokens": [token] if place == "tokenizer.json" else []}
        )
        if place != "tokenizer.json":
            (tmp_path / place).write_text(json.dumps({"added_tokens_decoder": {"2": token}}), encoding="utf-8")
        with pytest.raises(CheckpointError, match=f"{place}: {said}"):
            use(tmp_path)


def test_added_tokens_of_the_settings_are_bounded_too(tmp_path: Path) -> None:
    write(tmp_path, {"model": MODEL, "normalizer": GROWING})
    settings = {"added_tokens_decoder": {str(token["id"]): token for token in normalized(500)}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: got 500 added tokens of 23,000 characters"):
        use(tmp_path)


def test_a_text_is_bounded_where_steps_lengthen_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, {"model": MODEL, "normalizer": GROWING}))
    assert tokenizer("a" * 11_000)["input_ids"]
    for texts in (["a" * 12_000], ["a" * 6_000] * 2):
        with pytest.raises(
            ValueError, match=r"text: got 12,000 characters, expected at most 11,111: the steps of .*json"
        ):
            tokenizer(texts)
    ordinary = Tokenizer.from_pretrained(write(tmp_path, {"model": MODEL, "normalizer": {"type": "NFKC"}}))
    assert ordinary("b" * 1_000_000)["input_ids"]


FUSE = {"type": "Fuse"}
PANICS = {"type": "Strip", "content": "a", "start": 0, "stop": 2**64 - 1}


def test_a_panic_of_a_decoder_is_a_checkpoint_error_everywhere(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(write(tmp_path, {"model": MODEL, "decoder": PANICS}))
    for call in (
        lambda: tokenizer.decode([0]),
        lambda: tokenizer.batch_decode([[0, 1]]),
        lambda: tokenizer.convert_tokens_to_string(["a"]),
        lambda: TokenBytes(tokenizer),
        lambda: PieceDecoder(tokenizer)(0),
    ):
        with pytest.raises(
            CheckpointError, match=r"tokenizer\.json: the tokenizers library failed: index out of bounds.*\d$"
        ):
            call()


def test_a_step_without_a_bound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "_KNOWN", file._KNOWN - {"NFC", "Fuse"})
    for section, step in (("normalizer", {"type": "NFC"}), ("decoder", {"type": "Sequence", "decoders": [FUSE]})):
        write(tmp_path, {"model": MODEL, section: step})
        with pytest.raises(
            CheckpointError, match=r"got a step of the type .*(NFC|Fuse)., expected one known to refdiff"
        ):
            use(tmp_path)


_SOURCES = [kind() for kind in KINDS.values()]


def fuzz(seed: int, folder: Path) -> bool:
    """Damage a tokenizer as tests/fuzz does, and say whether it is still of use."""
    with tempfile.TemporaryDirectory(dir=folder) as case:
        saved = save(Path(case), _SOURCES[seed % len(_SOURCES)], tokenizer_config={"eos_token": "</s>"})
        mutate(saved, folder, random.Random(seed))
        try:
            use(saved)
        except CheckpointError:
            return False
        return True


def test_damaged_files(tmp_path: Path) -> None:
    outcomes = [fuzz(seed, tmp_path) for seed in range(150)]
    assert 10 < sum(outcomes) < 140, "the wounds should neither all heal nor all kill"


@pytest.mark.parametrize(
    "seeds",
    [pytest.param((150, 2_300), marks=pytest.mark.slow), pytest.param((2_300, 10_300), marks=pytest.mark.nightly)],
)
def test_many_damaged_files(tmp_path: Path, seeds: tuple[int, int]) -> None:
    for seed in range(*seeds):
        fuzz(seed, tmp_path)
