"""Question answering, held to values that transformers 4.57.6 gave (tests/golden/make_question_answering.py)."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from refdiff import Tokenizer
from refdiff.pipelines.question_answering import QuestionAnsweringPipeline, _spans
from tests.golden.make_question_answering import FILE, logits
from tests.pipelines.models import words

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))


class DiffLlamaForQuestionAnswering:
    """The formula of the golden values in place of a model."""

    def __call__(self, input_ids: Any, use_cache: bool) -> Any:
        start, end = logits(input_ids)
        return SimpleNamespace(start_logits=start, end_logits=end)


def pipe(case: dict[str, Any], **options: Any) -> QuestionAnsweringPipeline:
    backend = Backend.from_str(GOLDEN["files"][case["tokenizer"]])
    tokenizer = Tokenizer(backend, {"padding_side": case["padding_side"]})
    return QuestionAnsweringPipeline(DiffLlamaForQuestionAnswering(), tokenizer, **options)


@pytest.mark.parametrize("index", range(len(GOLDEN["cases"])))
def test_golden(index: int) -> None:
    case = GOLDEN["cases"][index]
    answer = pipe(case)(question=case["question"], context=case["context"], **case["options"])
    expected = case["answer"]
    assert type(answer) is type(expected)
    for found, wanted in zip(*(x if isinstance(x, list) else [x] for x in (answer, expected)), strict=True):
        assert list(found) == list(wanted)
        assert found == {**wanted, "score": pytest.approx(wanted["score"], rel=1e-4, abs=1e-9)}


ANSWER = pipe(GOLDEN["cases"][0])
Q, C = GOLDEN["cases"][0]["question"], GOLDEN["cases"][0]["context"]


def test_ways_to_ask() -> None:
    one = ANSWER(question=Q, context=C)
    example = {"question": Q, "context": C}
    assert ANSWER(example) == ANSWER([example]) == one
    assert ANSWER(question=[Q, Q], context=C) == ANSWER([example, example]) == [one, one]
    assert ANSWER(question=[Q, "Why?"], context=[C, C])[0] == one
    assert list(ANSWER(iter([example]))) == [one]
    assert pipe(GOLDEN["cases"][0], top_k=3)(example) == ANSWER(example, top_k=3)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((), {}, TypeError, "question= and context="),
        ((), {"question": "a"}, TypeError, "question= and context="),
        (({},), {"question": "a", "context": "b"}, TypeError, "question= and context="),
        (("a",), {}, TypeError, "a question is given as"),
        (({"question": "a"},), {}, TypeError, "a question is given as"),
        ((), {"question": "a", "context": ["b"]}, TypeError, "expected texts, or lists of texts"),
        ((), {"question": ["a"], "context": ["b", "c"]}, ValueError, "1 questions and 2 contexts"),
        ((), {"question": "", "context": "b"}, ValueError, "question: got ''"),
        ((), {"question": "a", "context": "b", "top_k": 0}, ValueError, "top_k: got 0"),
        ((), {"question": "a", "context": "b", "max_answer_len": 0}, ValueError, "max_answer_len: got 0"),
        ((), {"question": "a", "context": "b", "max_seq_len": 9, "doc_stride": 10}, ValueError, "doc_stride: got 10"),
        ((), {"question": "a", "context": "b", "topk": 2}, TypeError, "did you mean 'top_k'"),
    ],
)
def test_wrong_questions(args: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ANSWER(*args, **options)


def test_spans_by_hand() -> None:
    start, end = np.array([0.0, 0.6, 0.4]), np.array([0.1, 0.2, 0.7])
    everything = np.ones(3, dtype=bool)
    spans = [(s, e) for s, e, _ in _spans(start, end, 3, 15, everything)]
    assert spans == [(1, 2), (2, 2), (1, 1)]
    assert [(s, e) for s, e, _ in _spans(start, end, 2, 1, everything)] == [(2, 2), (1, 1)]
    assert [s for s, _, _ in _spans(start, end, 3, 15, np.array([True, False, True]))] == [2]


def test_the_class_token_may_answer() -> None:
    tokenizer = words(cls_token="a")
    (encoding,) = tokenizer.encodings("a b", "c d")
    allowed = QuestionAnsweringPipeline(DiffLlamaForQuestionAnswering(), tokenizer)._allowed(encoding, True)
    assert allowed.tolist() == [False, True, False, False, True, True]
