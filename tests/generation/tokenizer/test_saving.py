"""What save_pretrained writes, by hand; that transformers loads it to the same is tested in tests/parity."""

from __future__ import annotations

from pathlib import Path

import pytest

from refdiff import Tokenizer
from refdiff.generation.tokenizer import AddedToken
from tests.generation.tokenizer.test_tokenizer import words

FILES = {"tokenizer.json", "tokenizer_config.json"}


def test_settings_changed_after_loading_are_saved(tmp_path: Path) -> None:
    tokenizer = words(padding_side="right", chat_template="old", legacy=False)
    tokenizer.pad_token = "d"
    tokenizer.unk_token = None
    tokenizer.padding_side = "left"
    tokenizer.model_max_length = 5
    tokenizer.chat_template = "{{ messages[0].content }}\r\né"
    written = tokenizer.save_pretrained(tmp_path / "new" / "folder")
    assert {Path(path) for path in written} == set((tmp_path / "new" / "folder").iterdir())
    loaded = Tokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert loaded.special_tokens_map == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "d"}
    assert loaded(["a b", "c"], padding=True)["input_ids"] == [[0, 4, 5], [7, 0, 6]]
    assert loaded.model_max_length == 5
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.config["legacy"] is False
    assert {path.name for path in loaded.source.parent.iterdir()} == FILES | {"chat_template.jinja"}


@pytest.mark.parametrize("template", ["a", {"default": "a", "rag": "b"}, None])
def test_templates_in_the_settings(template: str | dict[str, str] | None, tmp_path: Path) -> None:
    tokenizer = words(chat_template="old")
    tokenizer.save_pretrained(tmp_path)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path, save_jinja_files=False)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert Tokenizer.from_pretrained(tmp_path).chat_template == template


def test_settings_of_an_older_save_do_not_come_back(tmp_path: Path) -> None:
    first = words()
    first.chat_template = {"default": "a", "rag": "b"}
    first.save_pretrained(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "a"}', encoding="utf-8")
    (tmp_path / "config.json").write_text('{"vocab_size": 8}', encoding="utf-8")
    second = words()
    second.chat_template = {"rag": "c"}
    second.save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert loaded.chat_template == {"rag": "c"}
    assert loaded.pad_token == "<pad>"
    second.chat_template = None
    second.save_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).chat_template is None
    assert (tmp_path / "config.json").is_file()


def test_a_failing_disk_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words().save_pretrained(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    other = words()
    other.backend.add_tokens([AddedToken("more")])
    with pytest.raises(OSError, match="No space"):
        other.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == FILES


@pytest.mark.parametrize("name", ["", "../out", "a\\b", "\0"])
def test_template_names_that_are_no_file_names(tmp_path: Path, name: str) -> None:
    tokenizer = words()
    tokenizer.chat_template = {"default": "x", name: "y"}
    with pytest.raises(ValueError, match="rename it"):
        tokenizer.save_pretrained(tmp_path / "to")
    assert list((tmp_path / "to").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"to"}
