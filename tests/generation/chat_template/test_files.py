"""Chat templates in files of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from refdiff import CheckpointError, Tokenizer
from refdiff.generation.chat_template import files
from tests.generation.tokenizer.test_tokenizer import words
from tests.generation.trained_tokenizers import save


def test_a_file_wins_over_the_config(tmp_path: Path) -> None:
    save(tmp_path, words().backend, tokenizer_config={"chat_template": "old"})
    assert Tokenizer.from_pretrained(tmp_path).chat_template == "old"
    (tmp_path / "chat_template.jinja").write_text("new", encoding="utf-8")
    assert Tokenizer.from_pretrained(tmp_path).chat_template == "new"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("日本", encoding="utf-8")
    assert Tokenizer.from_pretrained(tmp_path).chat_template == {"default": "new", "rag": "日本"}


def test_no_files(tmp_path: Path) -> None:
    assert files.template_files(tmp_path) is None
    assert files.templates_in(None, "f") is None


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(b"ab\xff")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: not UTF-8 text \(byte 2\)"):
        files.template_files(tmp_path)
    monkeypatch.setattr(files, "MAX_BYTES", 2)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: larger than 2 bytes"):
        files.template_files(tmp_path)

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "MAX_BYTES", 100)
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: cannot be read: Permission denied"):
        files.template_files(tmp_path)
