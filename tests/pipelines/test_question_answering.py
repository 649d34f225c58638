"""Question answering, held to values that transformers 4.57.6 gave (tests/golden/make_question_answering.py)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend

from refdiff import Tokenizer
from refdiff.model.outputs import ModelOutput
from refdiff.pipelines.question_answering import QuestionAnsweringPipeline
from tests.golden.make_question_answering import FILE, logits

GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))


class DiffLlamaForQuestionAnswering:
    """The formula of the golden values in place of a model."""

    def __call__(self, input_ids: Any, use_cache: bool) -> Any:
        start, end = logits(input_ids)
        return ModelOutput(start_logits=start, end_logits=end)


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
        ((), {}, TypeError, "question, context: got neither, expected both"),
        (("a",), {}, TypeError, 'inputs: got .a., expected {"question"'),
        ((), {"question": "a", "context": ["b"]}, TypeError, "got str and list, expected texts, or lists of texts"),
        ((), {"question": ["a"], "context": ["b", "c"]}, ValueError, "got 2 contexts for 1 questions, expected one"),
        ((), {"question": "a", "context": "b", "max_seq_len": 9, "doc_stride": 10}, ValueError, "doc_stride: got 10"),
        ((), {"question": Q, "context": C, "max_seq_len": 30, "doc_stride": 18}, ValueError, "raise max_seq_len$"),
        ((), {"question": "", "context": "b"}, ValueError, "question: got ''"),
        ((), {"question": "a", "context": "b", "top_k": 0}, ValueError, "top_k: got 0"),
    ],
)
def test_wrong_questions(args: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ANSWER(*args, **options)
