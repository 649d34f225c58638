"""Hidden states of a text."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.pipelines.feature_extraction import FeatureExtractionPipeline
from tests.pipelines.models import model_of, words


def test_it_is_the_models_last_hidden_state() -> None:
    model, tokenizer = model_of("DiffLlamaModel"), words()
    expected = model([[0, 4, 5]]).last_hidden_state
    pipe = FeatureExtractionPipeline(model, tokenizer)
    np.testing.assert_array_equal(pipe("a b", return_tensors=True), expected)
    assert pipe("a b") == expected.tolist()
    without = pipe("a b", tokenize_kwargs={"add_special_tokens": False}, return_tensors=True)
    np.testing.assert_array_equal(without, model([[4, 5]]).last_hidden_state)


def test_truncation() -> None:
    pipe = FeatureExtractionPipeline(model_of("DiffLlamaModel"), words(model_max_length=2))
    assert len(pipe("a b c d", truncation=True)[0]) == 2
    assert len(pipe("a b c d")[0]) == 5
    with pytest.raises(ValueError, match="truncation: got it as an option and in"):
        pipe("a", truncation=True, tokenize_kwargs={"truncation": True})
