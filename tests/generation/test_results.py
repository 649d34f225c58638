"""What comes back with `return_dict_in_generate`, whichever way was decoded: kinds, shapes, and what each number is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.generation.generate import generate
from refdiff.generation.results import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

from .fakes import FakeModel

PROMPT = [[5, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize("asked", [{}, {"output_scores": True}, {"output_logits": True}])
@pytest.mark.parametrize("beams", [1, 3])
def test_only_what_was_asked_for_is_there(asked: dict[str, bool], beams: int) -> None:
    out = generate(FakeModel(), PROMPT, num_beams=beams, max_new_tokens=3, return_dict_in_generate=True, **asked)
    assert isinstance(out, GenerateBeamDecoderOnlyOutput if beams > 1 else GenerateDecoderOnlyOutput)
    assert (out.scores is not None) == ("output_scores" in asked)
    assert (out.logits is not None) == ("output_logits" in asked)
    if isinstance(out, GenerateBeamDecoderOnlyOutput):
        assert (out.sequences_scores is not None) == ("output_scores" in asked)


@pytest.mark.parametrize("pad", [0, None])
@pytest.mark.parametrize(
    "options",
    [{}, {"do_sample": True, "num_return_sequences": 2}, {"penalty_alpha": 0.6, "top_k": 4}, {"num_beams": 3}],
)
def test_lengths_are_those_of_each_text_alone(options: dict[str, Any], pad: int | None) -> None:
    asked = {"eos_token_id": [2, 7, 11], "max_new_tokens": 9, "return_dict_in_generate": True, **options}
    model = FakeModel(3)
    model.config.pad_token_id = pad
    prompts, n = [[5, 6, 7], [8, 9, 10], [3, 3, 4], [12, 5, 6]], options.get("num_return_sequences", 1)
    out = generate(model, prompts, seed=1, **asked)
    alone = [generate(model, [prompt], seed=1, **asked) for prompt in prompts]
    assert out.lengths is not None
    assert out.lengths.tolist() == [length for one in alone for length in one.lengths]
    assert len(set(out.lengths.tolist())) > 1
    for row, (length, one) in enumerate(zip(out.lengths, np.repeat(np.array(alone, dtype=object), n), strict=True)):
        np.testing.assert_array_equal(out.sequences[row, :length], one.sequences[row % n, :length])
