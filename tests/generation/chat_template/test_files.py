"""Chat templates in files of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from refdiff import CheckpointError, Tokenizer
from refdiff.generation import chat_template
from tests.generation.tokenizer.test_tokenizer import words
from tests.generation.trained_tokenizers import save


def test_a_file_wins_over_the_config(tmp_path: Path) -> None:
    save(tmp_path, words().backend.native, tokenizer_config={"chat_template": "old"})
    assert Tokenizer.from_pretrained(tmp_path).chat_template == "old"
    (tmp_path / "chat_template.jinja").write_text("new", encoding="utf-8")
    assert Tokenizer.from_pretrained(tmp_path).chat_template == "new"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("日本", encoding="utf-8")
    assert Tokenizer.from_pretrained(tmp_path).chat_template == {"default": "new", "rag": "日本"}


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(b"ab\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: not UTF-8 text \(byte 2\)"):
        chat_template.read_files(tmp_path)
    monkeypatch.setattr(chat_template, "MAX_CHARACTERS", 2)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: larger than 2 bytes"):
        chat_template.read_files(tmp_path)
