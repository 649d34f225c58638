"""question and context → the span of the context that answers the question.

transformers 5 has no such pipeline. The results are those of transformers 4.57.6.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refdiff.errors import CheckpointError
from refdiff.generation.sampling import softmax
from refdiff.messages import show_value
from refdiff.pipelines.base import Pipeline, Process

Answer = dict[str, Any]


class QuestionAnsweringPipeline(Pipeline):
    """The answer in a context: `{"score": …, "start": …, "end": …, "answer": …}`, start and end in characters.

    Call it with `question=…, context=…`, each a text or a list of texts. One context can serve all questions. Or call
    it with a dict, or a list of dicts, that have both. `top_k` above 1 gives a list of answers, best first.
    """

    task: ClassVar[str] = "question-answering"
    architecture: ClassVar[str] = "DiffLlamaForQuestionAnswering"

    def __call__(self, inputs: Any = None, *, question: Any = None, context: Any = None, **options: Any) -> Any:
        """Answer one question or several."""
        if (question is None) != (context is None) or (inputs is None) == (question is None):
            arguments = {"inputs": inputs, "question": question, "context": context}
            given = " and ".join(name for name, value in arguments.items() if value is not None)
            raise TypeError(
                f"question, context: got {given or 'neither'}, expected both, or one dict or list of dicts with both"
            )
        if inputs is None:
            inputs = _pair_examples(question, context)
        # transformers unpacks a list of one example.
        return super().__call__(inputs[0] if isinstance(inputs, list) and len(inputs) == 1 else inputs, **options)

    def process(
        self,
        item: Any,
        *,
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Process:
        """Answer one question.

        doc_stride: tokens that consecutive chunks share (default: 128, at most half of max_seq_len).
        max_answer_len: largest number of tokens in an answer.
        max_seq_len: largest number of tokens in a chunk with the question; a longer context is split into chunks
            (default: 384, at most the tokenizer's model_max_length).
        handle_impossible_answer: whether the empty answer is a candidate.
        align_to_words: extend answers to whole words.
        """
        for name, value in (("top_k", top_k), ("max_answer_len", max_answer_len)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected 1 or more")
        question, text = _example(item)
        length = min(self.tokenizer.model_max_length, 384) if max_seq_len is None else max_seq_len
        stride = min(length // 2, 128) if doc_stride is None else doc_stride
        question_first = self.tokenizer.padding_side == "right"
        try:
            (first_chunk,) = self.tokenizer.encodings(
                question if question_first else text,
                text if question_first else question,
                truncation="only_second" if question_first else "only_first",
                max_length=length,
                stride=stride,
            )
        except CheckpointError:
            raise
        except ValueError as error:  # use the names of this pipeline's options
            names = {"stride:": "doc_stride:", "max_length": "max_seq_len"}
            raise ValueError(re.sub("|".join(names), lambda name: names[name[0]], str(error))) from None
        answers: list[Answer] = []
        null_score = np.inf
        chunks = [first_chunk, *first_chunk.overflowing]
        outputs = yield [{"input_ids": chunk.ids} for chunk in chunks]
        for chunk, (start_logits, end_logits, *_) in zip(chunks, outputs, strict=True):
            allowed = self._answer_mask(chunk, question_first)
            start, end = _probabilities(start_logits, allowed), _probabilities(end_logits, allowed)
            null_score = min(null_score, float(start[0] * end[0]))
            start[0] = end[0] = 0
            # Extension to whole words makes some candidates equal, so more are needed.
            count = top_k * 2 + 10 if align_to_words else top_k
            for s, e, score in _best_spans(start, end, count, max_answer_len, allowed):
                span = _character_span(chunk, s, e, 1 if question_first else 0, align_to_words)
                _add_answer(answers, text, span, score)
        if handle_impossible_answer:
            answers.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
        answers = sorted(answers, key=lambda answer: answer["score"], reverse=True)[:top_k]
        return answers[0] if len(answers) == 1 else answers

    def _answer_mask(self, encoding: Any, question_first: bool) -> NDArray[np.bool_]:
        """Return which tokens may begin or end an answer. That of cls stands for no answer."""
        ids = encoding.ids
        # With the context first, transformers allows every token, also those of the question.
        allowed = [sequence == 1 or not question_first for sequence in encoding.sequence_ids]
        cls = self.tokenizer.cls_token_id
        return np.array([ok or token_id == cls for ok, token_id in zip(allowed, ids, strict=True)])


def _pair_examples(questions: Any, contexts: Any) -> list[dict[str, Any]]:
    if isinstance(questions, str) and isinstance(contexts, str):
        questions, contexts = [questions], [contexts]
    elif isinstance(questions, list) and isinstance(contexts, str):
        contexts = [contexts] * len(questions)
    if not isinstance(questions, list) or not isinstance(contexts, list):
        raise TypeError(
            f"question, context: got {type(questions).__name__} and {type(contexts).__name__}, expected texts, or "
            "lists of texts"
        )
    if len(questions) != len(contexts):
        raise ValueError(
            f"context: got {len(contexts)} contexts for {len(questions)} questions, expected one context or as many"
        )
    return [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]


def _example(item: Any) -> tuple[str, str]:
    if not isinstance(item, dict) or not {"question", "context"} <= item.keys():
        raise TypeError(f'inputs: got {show_value(item)}, expected {{"question": …, "context": …}}')
    question, context = item["question"], item["context"]
    for name, text in (("question", question), ("context", context)):
        if not isinstance(text, str) or not text:
            raise ValueError(f"{name}: got {text!r}, expected a text that is not empty")
    return question, context


def _probabilities(logits: NDArray[Any], allowed: NDArray[np.bool_]) -> NDArray[Any]:
    result: NDArray[Any] = softmax(np.where(allowed, logits, logits.dtype.type(-10000)))
    return result


def _best_spans(
    start: NDArray[Any], end: NDArray[Any], count: int, max_length: int, allowed: NDArray[np.bool_]
) -> list[tuple[int, int, float]]:
    """Return (s, e, score) for the `count` pairs s ≤ e < s + max_length of the highest score start[s] · end[e].

    Pairs with s or e outside `allowed` are then dropped. transformers fills the list with impossible pairs of score 0;
    here it stays shorter.
    """
    scores = np.tril(np.triu(np.outer(start, end)), max_length - 1)
    best = np.argsort(-scores, axis=None, kind="stable")[:count]
    pairs = zip(*np.unravel_index(best, scores.shape), strict=True)
    return [(int(s), int(e), float(scores[s, e])) for s, e in pairs if s <= e and allowed[s] and allowed[e]]


def _character_span(encoding: Any, start: int, end: int, sequence: int, align_to_words: bool) -> tuple[int, int]:
    if align_to_words:
        words = [encoding.token_to_word(token) for token in (start, end)]
        spans = [None if word is None else encoding.word_to_chars(word, sequence) for word in words]
        if spans[0] is not None and spans[1] is not None:
            return spans[0][0], spans[1][1]
    return encoding.offsets[start][0], encoding.offsets[end][1]


def _add_answer(answers: list[Answer], text: str, span: tuple[int, int], score: float) -> None:
    """Append an answer, or add its score to an equal one."""
    answer_text = text[span[0] : span[1]]
    for answer in answers:
        if answer["answer"].lower() == answer_text.lower():
            answer["score"] += score
            return
    answers.append({"score": score, "start": span[0], "end": span[1], "answer": answer_text})
