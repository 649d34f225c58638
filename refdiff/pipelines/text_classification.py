"""text → label and score."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refdiff.generation.sampling import softmax
from refdiff.messages import show_value
from refdiff.pipelines.base import Pipeline, host

_BEST = "best"  # top_k was not given: one answer, not a list of one


class TextClassificationPipeline(Pipeline):
    """The class of a text: `{"label": …, "score": …}`; with `top_k` a list of them, best first.

    A pair is given as `{"text": …, "text_pair": …}`. One plain text without `top_k` gives a list of one, as in
    transformers.
    """

    task: ClassVar[str] = "text-classification"
    architecture: ClassVar[str] = "DiffLlamaForSequenceClassification"
    known: ClassVar[tuple[str, ...]] = ("top_k", "function_to_apply", "truncation", "max_length")

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Classify one text, a list or an iterator of them."""
        result = super().__call__(inputs, **options)
        return [result] if isinstance(inputs, str) and "top_k" not in options else result

    def run(
        self,
        item: Any,
        *,
        top_k: int | str | None = _BEST,
        function_to_apply: str | None = None,
        truncation: Any = None,
        max_length: int | None = None,
    ) -> Any:
        """Classify one text.

        top_k: how many labels, None for all. function_to_apply: "sigmoid", "softmax" or "none"; without it what
        config.json's problem_type and number of labels ask for.
        """
        if top_k != _BEST and top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k: got {top_k!r}, expected a number from 1, or None for all labels")
        inputs = item if isinstance(item, dict) else {"text": item}
        if not isinstance(inputs.get("text"), str):
            raise TypeError(
                f'inputs: got {show_value(item)}, expected a text, a pair {{"text": …, "text_pair": …}}, or a '
                "list of these"
            )
        encoded = self.tokenizer(**inputs, return_tensors="np", truncation=truncation, max_length=max_length)
        logits = host(self.model(**encoded, use_cache=False).logits)[0]
        scores = _applied(self._function(function_to_apply), logits)
        labels = self.model.config.id2label
        if top_k == _BEST:
            best = int(scores.argmax())
            return {"label": labels[best], "score": float(scores[best])}
        order = np.argsort(-scores, kind="stable")
        return [{"label": labels[int(i)], "score": float(scores[i])} for i in order[: top_k if top_k else None]]

    def _function(self, wanted: str | None) -> str:
        if wanted is not None:
            return wanted.lower()
        config = self.model.config
        if config.problem_type == "regression":
            return "none"
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return "sigmoid"
        return "softmax"


def _applied(function: str, logits: NDArray[Any]) -> NDArray[Any]:
    if function == "none":
        return logits
    if function == "softmax":
        return softmax(logits)
    if function == "sigmoid":
        result: NDArray[Any] = 1 / (1 + np.exp(-logits))
        return result
    raise ValueError(f'function_to_apply: got {function!r}, expected "sigmoid", "softmax" or "none"')
