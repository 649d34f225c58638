"""Two recordings that are not of the same run are said to be so first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Trace, first_divergence, trace
from tests.model.models import ids, small_model

TOKENS = ids(0, 2, 7)
REF = trace(small_model(), TOKENS)


def of(tokens: Any = TOKENS, **fields: Any) -> Trace:
    return trace(small_model(**fields), tokens)


def changed(at: int) -> np.ndarray:
    tokens = TOKENS.copy()
    tokens[1, at] += 1
    return tokens


def test_other_tokens() -> None:
    found = first_divergence(of(changed(4)), REF)
    assert found.apart == ("the two runs have different tokens from position 4",)
    assert str(found).splitlines()[0] == found.apart[0]
    assert found.to_dict()["apart"] == list(found.apart)
    assert found.path == "model.embed_tokens"


def test_tokens_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"of different shapes, \(2, 5\) and \(2, 7\); record the same text in both"):
        first_divergence(of(TOKENS[:, :5]), REF)


def test_tokens_without_a_batch_axis() -> None:
    ref = trace(small_model(), TOKENS[:1])
    for tokens, apart in ((TOKENS[0], ()), (changed(0)[1], ("the two runs have different tokens from position 0",))):
        assert first_divergence({**ref, "inputs.input_ids": tokens}, ref).apart == apart


def test_other_arguments() -> None:
    masks = [np.ones((2, 7), int) for _ in range(2)]
    masks[0][1, 0] = 0
    mine, ref = (trace(small_model(), TOKENS, attention_mask=mask) for mask in masks)
    assert first_divergence(mine, ref).apart == ("the two runs have different attention_mask",)


def test_empty_traces() -> None:
    with pytest.raises(ValueError, match="the trace under test is empty: it has no array of any point"):
        first_divergence({}, REF)
