"""tokenizer.json: broken and hostile files end in one CheckpointError that names the file."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path
from typing import Any

import pytest

from refdiff import CheckpointError, Tokenizer
from refdiff.generation.tokenizer import file
from tests.generation.trained_tokenizers import KINDS, TEXTS, save

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
    "not json": b"hello",
    "truncated": b'{"version": "1.0", "model": {"type": "BPE"',
    "a list": [],
    "null": b"null",
    "no model": {"version": "1.0"},
    "model of no kind": {"model": {"type": "Magic", "vocab": {}}},
    "model null": {"model": None},
    "vocab of strings": {"model": {**MODEL, "vocab": {"a": "0"}}},
    "negative id": {"model": {**MODEL, "vocab": {"a": -1}}},
    "huge id": {"model": {**MODEL, "vocab": {"a": 2**33}}},
    "merge of unknown": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
    "merge of three": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b c"]}},
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
    "deep object": b'{"model":' * 100_000,
    "deep normalizer": '{"model":null,"normalizer":' + '{"type":"Sequence","normalizers":[' * 300 + "]}" * 300 + "}",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "utf-16": '{"model": {}}'.encode("utf-16"),
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
    "nested": {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Sequence", "normalizers": [replace({"String": "a"}, "a" * 99)] * 3}] * 2,
        }
    },
    "prepend": {"normalizer": {"type": "Prepend", "prepend": "x" * 1_000_000}},
    "bytes of bytes": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}]
            * 40,
        }
    },
    "charsmap": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}},
    "template": {"post_processor": special(200_000)},
    "template of templates": {"post_processor": {"type": "Sequence", "processors": [special(2)] * 40}},
    "decoder": {"decoder": {"type": "Sequence", "decoders": [replace({"String": "a"}, "aa")] * 60}},
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_files_that_would_blow_a_text_up(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: the steps of its '\w+' could make a text"):
        use(write(tmp_path, {"model": MODEL, **BOMBS[name]}))


def test_ordinary_steps_are_far_from_the_limit() -> None:
    for kind in KINDS.values():
        parsed = json.loads(kind().to_str())
        assert (
            max(file.growth_of(parsed[name]) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"))
            < 100
        )


def test_steps_of_the_wrong_type_are_left_to_the_library() -> None:
    for step in (None, 3, [], {"type": 5}, {"type": "Sequence"}, replace(None, "x"), {"type": "Precompiled"}):
        assert file.growth_of(step) >= 1


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "MAX_BYTES", 100)
    with pytest.raises(CheckpointError, match="at most 100 are read"):
        use(write(tmp_path, {"model": MODEL, "x": "y" * 100}))


def test_missing_file_says_what_would_help(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: no such file; copy the tokenizer\.json"):
        use(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"only a vocab\.json: convert it once with transformers"):
        use(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"only a SentencePiece tokenizer\.model: convert it once"):
        use(tmp_path)


def test_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"model": MODEL})

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be read: Permission denied"):
        use(tmp_path)


def test_a_folder_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(CheckpointError, match="no such file"):
        use(tmp_path)


def test_other_exceptions_pass_through() -> None:
    with pytest.raises(KeyboardInterrupt), file.rust_errors("f"):
        raise KeyboardInterrupt
    with pytest.raises(MemoryError), file.rust_errors("f"):
        raise MemoryError


def damaged(rng: random.Random, text: bytes) -> bytes:
    """One random wound: cut, flip, repeat, drop, or another value in place of one of the JSON's."""
    start = rng.randrange(len(text))
    stop = min(len(text), start + rng.choice([1, 1, 2, 10, 200]))
    wound = rng.randrange(6)
    if wound == 0:
        return text[:start]
    if wound == 1:
        return text[:start] + bytes([text[start] ^ (1 << rng.randrange(8))]) + text[start + 1 :]
    if wound == 2:
        return text[:stop] + text[start:stop] * rng.choice([1, 50]) + text[stop:]
    if wound == 3:
        return text[:start] + text[stop:]
    parsed = json.loads(text)
    _wound(rng, parsed)
    return json.dumps(parsed).encode()


def _wound(rng: random.Random, value: Any) -> None:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    if not keys:
        return
    key = rng.choice(list(keys))
    if isinstance(value[key], dict | list) and rng.random() < 0.8:
        _wound(rng, value[key])
    else:
        value[key] = rng.choice([None, True, -1, 2**31, 2**63, 0.5, "", "x" * 99, [], {}, [[]], {"type": "Sequence"}])


def fuzz(seed: int, folder: Path) -> bool:
    rng = random.Random(seed)
    backend = _SOURCES[seed % len(_SOURCES)]
    write(folder, damaged(rng, backend))
    try:
        use(folder)
    except CheckpointError:
        return False
    return True


_SOURCES = [kind().to_str().encode() for kind in KINDS.values()]


def test_damaged_files(tmp_path: Path) -> None:
    outcomes = [fuzz(seed, tmp_path) for seed in range(300)]
    assert 20 < sum(outcomes) < 280, "the wounds should neither all heal nor all kill"


@pytest.mark.slow
def test_many_damaged_files(tmp_path: Path) -> None:
    for seed in range(300, 10_300):
        fuzz(seed, tmp_path)


def test_the_undamaged_file_works(tmp_path: Path) -> None:
    for name, kind in KINDS.items():
        folder = save(tmp_path / name, kind())
        use(folder)
        assert Tokenizer.from_pretrained(folder)(TEXTS[0])["input_ids"]


def test_a_good_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's reading of 17 MB of vocabulary took half as long again as that of the library itself."""
    read: list[int] = []
    loads = json.loads
    monkeypatch.setattr(file.json, "loads", lambda text, **options: read.append(len(text)) or loads(text, **options))
    write(tmp_path, KINDS["byte_level"]().to_str())
    file.load_backend(tmp_path)
    assert read
    assert max(read) < (tmp_path / "tokenizer.json").stat().st_size / 5
