"""Greedy decoding and beam search equal transformers', from values that it wrote: no torch needed."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refdiff

GOLDEN = Path(__file__).parents[1] / "golden"
CALLS = json.loads((GOLDEN / "generation.json").read_text(encoding="utf-8"))["calls"]


@cache
def model_of(name: str) -> Any:
    return refdiff.DiffLlamaForCausalLM.from_pretrained(GOLDEN / name, dtype="float64")


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call["checkpoint"])
def test_the_same_tokens(call: dict[str, Any]) -> None:
    model = model_of(call["checkpoint"])
    got = model.generate(call["input_ids"], attention_mask=call["attention_mask"], **call["options"])
    np.testing.assert_array_equal(got, call["sequences"])


def test_the_values_are_worth_comparing() -> None:
    """Texts of many lengths, ended and not, and options that change them."""
    lengths = {sum(token != 1 for token in row[6:]) for call in CALLS for row in call["sequences"]}
    assert lengths == set(range(1, 11))
    texts = {json.dumps([call["checkpoint"], call["sequences"]]) for call in CALLS}
    assert len(texts) > len(CALLS) * 0.8
