"""Labels of tokens and their grouping, on scores given by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from refdiff import Tokenizer
from refdiff.model.outputs import ModelOutput
from refdiff.pipelines.token_classification import TokenClassificationPipeline
from tests.pipelines.models import words

LABELS = ["O", "B-X", "I-X", "B-Y", "Z"]


class DiffLlamaForTokenClassification:
    """Gives each token id the probabilities of `table[id]`."""

    def __init__(self, table: dict[int, list[float]]) -> None:
        self.table = table
        self.config = SimpleNamespace(id2label=dict(enumerate(LABELS)))

    def __call__(self, input_ids: Any, use_cache: bool) -> Any:
        rows = [self.table.get(i, [1, 0, 0, 0, 0]) for i in input_ids[0].tolist()]
        return ModelOutput(logits=np.log(np.array([rows], dtype=np.float64) + 1e-12))


def one(label: str, score: float = 1.0) -> list[float]:
    rest = (1 - score) / (len(LABELS) - 1)
    return [score if name == label else rest for name in LABELS]


def pipe(table: dict[int, list[float]], tokenizer: Tokenizer | None = None) -> TokenClassificationPipeline:
    return TokenClassificationPipeline(DiffLlamaForTokenClassification(table), tokenizer or words())


def test_raw_labels() -> None:
    tag = pipe({4: one("B-X", 0.6), 6: one("Z", 0.8)})
    assert tag("a b  c") == [
        {"entity": "B-X", "score": pytest.approx(0.6), "index": 1, "word": "a", "start": 0, "end": 1},
        {"entity": "Z", "score": pytest.approx(0.8), "index": 3, "word": "c", "start": 5, "end": 6},
    ]
    assert [found["entity"] for found in tag("a b c", ignore_labels=["Z"])] == ["B-X", "O"]
    assert tag(["a", "b"]) == [tag("a"), []]
    assert tag("") == []


def groups(tag: TokenClassificationPipeline, text: str, **options: Any) -> list[tuple[str, str, int, int]]:
    found = tag(text, **{"aggregation_strategy": "simple", **options})
    return [(group["entity_group"], group["word"], group["start"], group["end"]) for group in found]


def test_simple_groups() -> None:
    tag = pipe({4: one("B-X"), 5: one("I-X"), 6: one("B-Y"), 7: one("Z")})
    assert groups(tag, "a b b c d d") == [("X", "a b b", 0, 5), ("Y", "c", 6, 7), ("Z", "d d", 8, 11)]
    assert groups(tag, "a a b") == [("X", "a", 0, 1), ("X", "a b", 2, 5)], "B begins a new one"
    assert groups(tag, "b d a") == [("X", "b", 0, 1), ("Z", "d", 2, 3), ("X", "a", 4, 5)]
    (group,) = pipe({4: one("B-X", 0.9), 5: one("I-X", 0.5)})("a b", aggregation_strategy="simple")
    assert group["score"] == pytest.approx(0.7)


def pieces() -> Tokenizer:
    """Letters as tokens, so that words have several."""
    backend = Backend(models.WordLevel({"a": 4, "b": 5, "c": 6, "?": 0}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("", "isolated")]
    )
    return Tokenizer(backend, {"unk_token": "?"})


@pytest.mark.parametrize(
    ("strategy", "label", "score"),
    [("first", "X", 0.5), ("max", "Y", 0.9), ("average", "Y", (0.9 + 0.125) / 2)],
)
def test_words_agree(strategy: str, label: str, score: float) -> None:
    tag = pipe({4: one("B-X", 0.5), 5: one("B-Y", 0.9)}, pieces())
    found = tag("ab", aggregation_strategy=strategy)
    assert [(group["entity_group"], group["start"], group["end"]) for group in found] == [(label, 0, 2)]
    assert found[0]["score"] == pytest.approx(score)
    assert [group["entity_group"] for group in tag("a b", aggregation_strategy=strategy)] == ["X", "Y"]


def test_unknown_tokens_show_the_text_and_begin_words() -> None:
    tag = pipe({0: one("Z"), 4: one("B-X")}, pieces())
    assert groups(tag, "a猫") == [("X", "a", 0, 1), ("Z", "猫", 1, 2)]
    assert groups(tag, "a猫", aggregation_strategy="first") == [("X", "a", 0, 1), ("Z", "猫", 1, 2)]


def test_tokenizers_that_mark_the_middle_of_words() -> None:
    vocab = {"[UNK]": 0, "a": 4, "##b": 5}
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]", continuing_subword_prefix="##"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tag = pipe({4: one("B-X", 0.9), 5: one("Z", 0.8)}, Tokenizer(backend))
    assert [group[0] for group in groups(tag, "ab a", aggregation_strategy="first")] == ["X", "X"]
    assert [group[0] for group in groups(tag, "ab a")] == ["X", "Z", "X"]


def test_long_texts_are_tagged_in_chunks() -> None:
    tag = pipe({4: one("B-X"), 5: one("I-X"), 6: one("Z")}, words(model_max_length=4))
    text = "a b c a b c"
    assert groups(tag, text) == [("X", "a b", 0, 3), ("Z", "c", 4, 5)], "cut at model_max_length"
    expected = [("X", "a b", 0, 3), ("Z", "c", 4, 5), ("X", "a b", 6, 9), ("Z", "c", 10, 11)]
    for stride in (0, 1, 2):
        assert groups(tag, text, stride=stride) == expected


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (5, {}, TypeError, "inputs: got int, expected a text"),
        ("a", {"aggregation_strategy": "mean"}, ValueError, "aggregation_strategy: got 'mean'"),
        ("a", {"stride": 2}, ValueError, "stride: got 2 with aggregation_strategy 'none'"),
        ("a b", {"stride": 9, "aggregation_strategy": "simple"}, ValueError, "stride: got 9"),
    ],
)
def test_wrong_calls(inputs: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pipe({}, words(model_max_length=4))(inputs, **options)
