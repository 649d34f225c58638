"""text → hidden states."""

from __future__ import annotations

from typing import Any, ClassVar

from refdiff.pipelines.base import Pipeline, Process


class FeatureExtractionPipeline(Pipeline):
    """The last hidden states of a text: nested lists [1][tokens][hidden_size], or with `return_tensors` an array.

    A model with a head gives its logits instead, as in transformers. A batch's padding, which transformers returns too,
    is left out.
    """

    task: ClassVar[str] = "feature-extraction"
    architecture: ClassVar[str] = "DiffLlamaModel"
    other_architectures: ClassVar[tuple[str, ...]] = (
        "DiffLlamaForCausalLM", "DiffLlamaForSequenceClassification", "DiffLlamaForTokenClassification",
        "DiffLlamaForQuestionAnswering",
    )  # fmt: skip

    def process(
        self,
        item: Any,
        *,
        return_tensors: bool = False,
        truncation: Any = None,
        tokenize_kwargs: dict[str, Any] | None = None,
    ) -> Process:
        """Return the features of one text. `tokenize_kwargs` are options of the tokenizer."""
        tokenizer_options = dict(tokenize_kwargs or {})
        if truncation is not None:
            if "truncation" in tokenizer_options:
                raise ValueError("truncation: got it as an option and in tokenize_kwargs, expected one of them")
            tokenizer_options["truncation"] = truncation
        if not isinstance(item, str):
            raise TypeError(f"inputs: got {type(item).__name__}, expected a text or a list of texts")
        ((features, *_),) = yield [dict(self.tokenizer(item, **tokenizer_options))]
        features = features[None]
        return features if return_tensors else features.tolist()
