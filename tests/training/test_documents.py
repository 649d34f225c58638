"""Documents out of a file: separators, pieces of long ones, what is no text."""

from __future__ import annotations

from pathlib import Path

import pytest

from refdiff.training import documents
from refdiff.training.documents import pieces, split_at


def write(folder: Path, text: str) -> Path:
    path = folder / "text.txt"
    path.write_bytes(text.encode())
    return path


def test_a_line_with_the_separator_ends_a_document(tmp_path: Path) -> None:
    path = write(tmp_path, "a\nb\n<|endoftext|>\nc <|endoftext|> d\n\n<|endoftext|>\n \n<|endoftext|>\nlast")
    assert list(pieces(path)) == [("a\nb", True), ("c <|endoftext|> d\n", True), ("last", True)]


def test_long_documents_are_cut_before_white_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "PIECE", 8)
    text = "one two  \n three four-five-six-seven 日本語日本語\nend\n<|endoftext|>\nnext\n"
    path = write(tmp_path, text)
    found = list(pieces(path))
    assert [ends for _, ends in found].count(True) == 2
    assert found[-1] == ("next", True)
    assert "".join(piece for piece, _ in found[:-1]) == text.split("\n<|endoftext|>")[0]
    assert max(len(piece) for piece, _ in found) < 40  # a line of 34, and what was held
    assert found[0] == ("one two", False)


def test_memory_is_bounded_by_the_chunk_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(documents, "PIECE", 2**14)
    monkeypatch.setattr(documents, "_LINE", 2**14)
    path = write(tmp_path, "some words in a line and " * 200_000)  # 5 MB in one line
    tracemalloc.start()
    total = sum(len(piece) for piece, _ in pieces(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 200_000 * 25
    assert peak < 500_000


@pytest.mark.parametrize("broken", [b"fine\n\xff\xfe\n", b"cut \xe3\x81"])
def test_a_text_that_is_not_utf8_is_refused(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=r"text\.txt: not UTF-8 text near byte \d"):
        list(pieces(path))


def test_the_last_part_begins_with_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, "0123456789\n" * 10)
    assert split_at(path, 0.25) == 88
    assert split_at(path, 0.0) == 110
    assert split_at(write(tmp_path, ""), 0.1) == 0


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("One two. Three four. Five six. Seven eight.", "One two. Three four. Five six.", " Seven eight."),
        (
            "one\ntwo three four five six seven\n",
            "one\ntwo three four",
            " five six seven\n",
        ),  # the break at the end is none
        ("今日は。雨が降る。傘を持つ。靴を履く。", "今日は。雨が降る。傘を持つ。", "靴を履く。"),
        ("1.5 and 2.5 and 3.5 and 4.5", "1.5 and 2.5 and", " 3.5 and 4.5"),
        ("ééééééé", "éééé", "ééé"),
    ],
)
def test_where_no_line_breaks_it_begins_with_a_sentence_a_word_or_a_letter(
    tmp_path: Path, text: str, first: str, last: str
) -> None:
    path = write(tmp_path, text)
    cut = split_at(path, 0.5)
    assert (path.read_bytes()[:cut].decode(), path.read_bytes()[cut:].decode()) == (first, last)


def test_a_mark_of_utf8_is_no_text(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeff<|endoftext|>\none \ufeff two\n")
    assert list(pieces(path)) == [("one \ufeff two", True)]
