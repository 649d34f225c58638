"""text → hidden states."""

from __future__ import annotations

from typing import Any, ClassVar

from refdiff.arrays import to_numpy
from refdiff.pipelines.base import Pipeline


class FeatureExtractionPipeline(Pipeline):
    """The last hidden states of a text: nested lists [1][tokens][hidden_size], or with `return_tensors` an array.

    A model with a head gives its logits instead, as in transformers.
    """

    task: ClassVar[str] = "feature-extraction"
    architecture: ClassVar[str] = "DiffLlamaModel"
    other_architectures: ClassVar[tuple[str, ...]] = (
        "DiffLlamaForCausalLM", "DiffLlamaForSequenceClassification", "DiffLlamaForTokenClassification",
        "DiffLlamaForQuestionAnswering",
    )  # fmt: skip

    def run(
        self,
        item: Any,
        *,
        return_tensors: bool = False,
        truncation: Any = None,
        tokenize_kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Return the features of one text. `tokenize_kwargs` are options of the tokenizer."""
        tokenizer_options = dict(tokenize_kwargs or {})
        if truncation is not None:
            if "truncation" in tokenizer_options:
                raise ValueError("truncation: got it as an option and in tokenize_kwargs, expected one of them")
            tokenizer_options["truncation"] = truncation
        encoded = self.tokenizer(item, return_tensors="np", **tokenizer_options)
        features = to_numpy(self.model(**encoded, use_cache=False)[0])
        return features if return_tensors else features.tolist()
