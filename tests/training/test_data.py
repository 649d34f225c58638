"""Text to packed batches: every token predicted once, nothing seen of other documents, the same order again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.training import documents
from refdiff.training.data import Corpus, row_order
from tests.model.models import small_model
from tests.training.conftest import tale


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(tale(), encoding="utf-8")
    return path


def make(path: Path, vocab_size: int = 280, **options: float) -> Corpus:
    return Corpus.from_text(path, path.parent / "corpus", vocab_size=vocab_size, **options)


def test_tokens_say_the_text_and_validation_is_its_end(path: Path) -> None:
    corpus = make(path, validation=0.2)
    tokenizer = refdiff.Tokenizer.from_pretrained(corpus.folder)
    parts = [tokenizer.decode(corpus.tokens[part]).split("<|endoftext|>") for part in ("train", "validation")]
    assert [part[0] for part in parts] == [part[-1] for part in parts] == ["", ""]
    whole = path.read_text(encoding="utf-8")
    found = "".join(t for part in parts for t in part).replace("\n", "")
    assert found == whole.replace("<|endoftext|>", "").replace("\n", "")
    assert 0.1 < corpus.num_bytes["validation"] / len(whole) < 0.21
    assert corpus.num_bytes["train"] == sum(len(t) for t in parts[0])
    assert corpus.vocab_size == 280


@pytest.mark.skipif(sys.platform == "win32", reason="other permissions there")
def test_a_corpus_has_the_permissions_of_any_new_folder(path: Path) -> None:
    other = path.parent / "other"
    other.mkdir()
    assert make(path).folder.stat().st_mode == other.stat().st_mode


def test_the_tokenizer_has_not_seen_the_validation_part(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(tale() + "zzzzzz zzzzzz\n" * 12, encoding="utf-8")
    corpus = Corpus.from_text(path, tmp_path / "corpus", vocab_size=280, validation=0.008)
    assert len(corpus.tokens["validation"]) > 60  # of one letter each


def test_every_token_but_the_first_is_predicted_once(path: Path) -> None:
    corpus = make(path)
    tokens, length = corpus.tokens["train"], 7
    rows = corpus.rows("train", length)
    ids, _ = corpus.batch("train", np.arange(rows), length)
    np.testing.assert_array_equal(ids[:, 1:].reshape(-1), tokens[1 : rows * 6 + 1])
    np.testing.assert_array_equal(ids[1:, 0], ids[:-1, -1])
    assert len(tokens) - (rows * 6 + 1) < 6


def test_documents_begin_at_position_0(path: Path) -> None:
    corpus = make(path)
    ids, positions = corpus.batch("train", np.arange(corpus.rows("train", 50)), 50)
    for row, places in zip(ids, positions, strict=True):
        count = -1
        for token, place in zip(row, places, strict=True):
            count = 0 if token == corpus.separator else count + 1
            assert place == count
    assert (positions[:, 1:] == 0).any()


def test_gradients_see_nothing_of_the_document_before(path: Path) -> None:
    corpus = make(path)
    ids, positions = corpus.batch("train", np.arange(1), 200)
    start = np.flatnonzero(positions[0] == 0)[1]
    model = small_model(vocab_size=280, num_hidden_layers=1, max_position_embeddings=200)
    labels = np.where(np.arange(200) > start, ids, -100)
    loss, grads = model.loss_and_grad(ids, position_ids=positions, labels=labels)
    other = ids.copy()
    other[0, 1:start] = 5
    again, _ = model.loss_and_grad(other, position_ids=positions, labels=labels)
    assert loss == again
    assert np.isfinite(grads["lm_head"]["weight"]).all()


def test_the_order_is_a_shuffle_each_epoch_and_the_same_in_whatever_steps() -> None:
    whole = row_order(10, 3, 0, 30)
    for epoch in range(3):
        assert sorted(whole[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert not np.array_equal(whole[:10], whole[10:20])
    found = [row_order(10, 3, i, 4) for i in range(0, 28, 4)]
    np.testing.assert_array_equal(np.concatenate(found), whole[:28])
    assert not np.array_equal(row_order(10, 4, 0, 10), whole[:10])


def test_long_documents_have_the_tokens_of_the_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(path)
    monkeypatch.setattr(documents, "PIECE", 100)
    cut = Corpus.from_text(path, path.parent / "other", vocab_size=280)
    np.testing.assert_array_equal(cut.tokens["train"], whole.tokens["train"])


def test_the_tokenizer_learns_from_a_part_of_a_long_text(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of this one never repeat, and the table that its training makes of them is 100 times their size."""
    given: list[int] = []
    plain = documents.pieces

    def counted(*args: Any) -> Iterator[tuple[str, bool]]:
        for piece, ends in plain(*args):
            given.append(len(piece.encode()))
            yield piece, ends

    monkeypatch.setattr(documents, "pieces", counted)  # of what is encoded, data.py has its own name
    drawn = Random(0)
    path.write_text("".join(f"{drawn.random():.15f}\n" for _ in range(20_000)), encoding="utf-8")
    monkeypatch.setattr("refdiff.training.data.TOKENIZER_BYTES", 2**17)
    corpus = make(path, 300)
    assert 100_000 < sum(given) <= 2**17 < path.stat().st_size / 2
    assert corpus.num_bytes["train"] > 300_000  # all of it is encoded


def test_a_vocabulary_larger_than_the_text_allows(path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab_size: got 5000, expected at most \d{3}: the text has no more tokens"):
        make(path, 5000)
    assert [p.name for p in path.parent.iterdir()] == ["text.txt"]
    with pytest.raises(ValueError, match="vocab_size: got 256, expected 257 or more"):
        make(path, 256)


@pytest.mark.parametrize("content", ["", "\n", "one line of text and no more"])
def test_no_text_to_learn_from(tmp_path: Path, content: str) -> None:
    path = tmp_path / "text.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"no text to learn from|expected at most"):
        make(path)


def test_too_few_tokens_for_one_sequence(path: Path) -> None:
    corpus = make(path)
    with pytest.raises(ValueError, match=r"length: got 10000, expected at most \d+, the tokens of the validation"):
        corpus.rows("validation", 10_000)


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit for the size of files")
@pytest.mark.parametrize("most", [2_000, 9_000])
def test_a_full_disk_leaves_nothing_and_is_said(path: Path, most: int, outside: dict[str, str]) -> None:
    """A file may have 2,000 bytes, which is less than the tokenizer's, or 9,000, which is less than the tokens'."""
    program = (
        "import resource, sys; from pathlib import Path; from refdiff.training.data import Corpus; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most})); "
        "Corpus.from_text(Path(sys.argv[1]), Path(sys.argv[2]), vocab_size=258)"
    )
    path.write_text(tale(300), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(path.parent / "corpus")],
        env={**outside, "PYTHONPATH": str(Path(refdiff.__file__).parents[1])}, capture_output=True, check=False,
    )  # fmt: skip
    said = done.stderr.decode().splitlines()[-1]
    assert "cannot write the tokens and their tokenizer: File too large; free some space, then start again" in said
    assert said.endswith("corpus'")
    assert [p.name for p in path.parent.iterdir()] == ["text.txt"]
