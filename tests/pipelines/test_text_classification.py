"""Labels of a text, on logits given by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.model.outputs import ModelOutput
from refdiff.pipelines.text_classification import TextClassificationPipeline
from tests.pipelines.models import words


class DiffLlamaForSequenceClassification:
    """Gives the same logits whatever it reads, and remembers what that was."""

    def __init__(self, logits: list[float], problem_type: str | None = None) -> None:
        self.logits = np.array([logits])
        self.read: list[int] = []
        labels = {i: f"L{i}" for i in range(len(logits))}
        self.config = SimpleNamespace(id2label=labels, num_labels=len(logits), problem_type=problem_type)

    def __call__(self, input_ids: Any, attention_mask: Any, use_cache: bool) -> Any:
        self.read = input_ids[0].tolist()
        return ModelOutput(logits=self.logits)


def pipe(logits: list[float], problem_type: str | None = None, **options: Any) -> TextClassificationPipeline:
    return TextClassificationPipeline(DiffLlamaForSequenceClassification(logits, problem_type), words(), **options)


LOG3 = float(np.log(3))


@pytest.mark.parametrize(
    ("logits", "problem_type", "function", "score"),
    [
        ([0, LOG3], None, None, 0.75),
        ([-9, LOG3], "multi_label_classification", None, 0.75),
        ([0, LOG3], "regression", None, LOG3),
        ([LOG3], None, None, 0.75),
        ([LOG3], None, "none", LOG3),
        ([0, 0, LOG3], None, "SIGMOID", 0.75),
    ],
)
def test_functions(logits: list[float], problem_type: str | None, function: str | None, score: float) -> None:
    options = {} if function is None else {"function_to_apply": function}
    (result,) = pipe(logits, problem_type)("a", **options)
    assert result == {"label": f"L{len(logits) - 1}", "score": pytest.approx(score)}


def test_nesting() -> None:
    labels = [{"label": "L1", "score": pytest.approx(0.75)}, {"label": "L0", "score": pytest.approx(0.25)}]
    classify = pipe([0, LOG3])
    assert classify("a") == labels[:1]
    assert classify(["a", "b"]) == [labels[0], labels[0]]
    assert classify({"text": "a"}) == labels[0]
    assert classify("a", top_k=None) == labels
    assert classify("a", top_k=1) == labels[:1]
    assert classify(["a"], top_k=2) == [labels]
    # As in transformers: given when the pipeline is made, top_k leaves the outer list of a single text.
    assert pipe([0, LOG3], top_k=None)("a") == [labels]


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (5, {}, TypeError, "inputs: got 5, expected a text, a pair"),
        ([["a", "b"]], {}, TypeError, "text_pair"),
        ("a", {"top_k": 0}, ValueError, "top_k: got 0"),
        ("a", {"function_to_apply": "relu"}, ValueError, "function_to_apply: got 'relu'"),
    ],
)
def test_wrong_calls(inputs: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pipe([0, 1])(inputs, **options)
