"""text → the best label and its score, or several."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from refdiff.generation.sampling import softmax
from refdiff.messages import show_value
from refdiff.pipelines.base import TOKENIZER_OPTIONS, Pipeline, Process

_BEST = "best"  # the default of top_k: one answer instead of a list


class TextClassificationPipeline(Pipeline):
    """The class of a text, `{"label": …, "score": …}`, or with `top_k` a list of classes, best first.

    The input is a text or a pair `{"text": …, "text_pair": …}`. As in transformers, a call with one text and without
    `top_k` gives a list of one.
    """

    task: ClassVar[str] = "text-classification"
    architecture: ClassVar[str] = "DiffLlamaForSequenceClassification"

    @classmethod
    def option_names(cls) -> list[str]:
        """Return the names of all options: those of the pipeline, and of the tokenizer."""
        return [*super().option_names(), *TOKENIZER_OPTIONS]

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Classify one text, or a list or iterator of texts."""
        result = super().__call__(inputs, **options)
        return [result] if isinstance(inputs, str) and "top_k" not in options else result

    def process(
        self,
        item: Any,
        *,
        top_k: int | str | None = _BEST,
        function_to_apply: str | None = None,
        tokenizer_kwargs: dict[str, Any] | None = None,
        **tokenizer_options: Any,
    ) -> Process:
        """Classify one text.

        top_k: number of labels; None for all.
        function_to_apply: "sigmoid", "softmax" or "none" (default: by problem_type and the number of labels in
            config.json).
        tokenizer_kwargs: further options of the tokenizer; those in TOKENIZER_OPTIONS may stand by themselves.
        """
        if top_k != _BEST and top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k: got {top_k!r}, expected a number from 1, or None for all labels")
        inputs = item if isinstance(item, dict) else {"text": item}
        if not isinstance(inputs.get("text"), str):
            raise TypeError(
                f'inputs: got {show_value(item)}, expected a text, a pair {{"text": …, "text_pair": …}}, or a '
                "list of these"
            )
        encoded = self.tokenizer(**{**inputs, **tokenizer_options, **(tokenizer_kwargs or {})})
        ((logits, *_),) = yield [{name: encoded[name] for name in ("input_ids", "attention_mask")}]
        scores = _apply_function(self._choose_function(function_to_apply), logits)
        labels = self.model.config.id2label
        if top_k == _BEST:
            best = int(scores.argmax())
            return {"label": labels[best], "score": float(scores[best])}
        order = np.argsort(-scores, kind="stable")
        return [{"label": labels[int(i)], "score": float(scores[i])} for i in order[: top_k if top_k else None]]

    def _choose_function(self, name: str | None) -> str:
        if name is not None:
            return name.lower()
        config = self.model.config
        if config.problem_type == "regression":
            return "none"
        if config.problem_type == "multi_label_classification" or config.num_labels == 1:
            return "sigmoid"
        return "softmax"


def _apply_function(function: str, logits: NDArray[Any]) -> NDArray[Any]:
    if function not in ("none", "softmax", "sigmoid"):
        raise ValueError(f'function_to_apply: got {function!r}, expected "sigmoid", "softmax" or "none"')
    result: NDArray[Any] = logits
    if function == "softmax":
        result = softmax(logits)
    elif function == "sigmoid":
        result = 1 / (1 + np.exp(-logits))
    return result
