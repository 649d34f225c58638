"""Text is the same on a device: array-api-strict's second, which converts nothing unasked, or CuPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refdiff
from tests.backends.cupy.test_model import IDS, MASK, SIZES
from tests.layers.places import Place


@pytest.mark.parametrize("wiring", ["hf", "v2"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention_mask": MASK},
        {"do_sample": True, "seed": 4, "top_k": 5, "top_p": 0.9},
        {"do_sample": True, "seed": 1, "num_return_sequences": 2},
        {"num_beams": 3},
        {"prompt_lookup_num_tokens": 3},
        {"penalty_alpha": 0.5, "top_k": 4},
        {"repetition_penalty": 1.3},
    ],
    ids=lambda options: "-".join(options) or "greedy",
)
def test_text_is_the_same_on_a_device(away: Place, options: dict[str, Any], wiring: str) -> None:
    config = refdiff.DiffLlamaConfig(**SIZES, wiring=wiring)
    there = refdiff.DiffLlamaForCausalLM.from_config(config, seed=3, **away.choice)
    here = refdiff.DiffLlamaForCausalLM.from_config(config, seed=3, kernels="reference")
    ids = IDS[:1] if {"prompt_lookup_num_tokens", "penalty_alpha"} & set(options) else IDS
    ours, theirs = (model.generate(ids, max_new_tokens=6, eos_token_id=None, **options) for model in (there, here))
    np.testing.assert_array_equal(ours, theirs)
