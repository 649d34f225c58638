"""Greedy decoding and sampling on models that can be followed by hand."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refdiff.generation import generate
from tests.generation.fakes import Bigrams, FakeModel, letters

# a → b → c → d → end (0), or from e only to itself
CHAIN = np.full((6, 6), 0.01)
for a, b in ((1, 2), (2, 3), (3, 4), (4, 0), (0, 5), (5, 5)):
    CHAIN[a, b] = 1.0
CHAIN /= CHAIN.sum(axis=1, keepdims=True)


def chain(**config: Any) -> Bigrams:
    return Bigrams(CHAIN, **{"eos_token_id": 0, "pad_token_id": 5} | config)


def test_without_eos_and_padding_tokens_stopped_sequences_continue() -> None:
    model = chain(eos_token_id=None, pad_token_id=None)
    options: dict[str, Any] = {"stop_strings": ["d"], "tokenizer": letters(), "max_new_tokens": 9}
    got = generate(model, [[1], [2]], **options)
    assert got.tolist() == [[1, 2, 3], [2, 3, 4]]  # "d" is token 3; the second row went on while the first did
    padded = generate(model, [[1], [2]], pad_token_id=5, **options)
    assert padded.tolist() == [[1, 2, 3], [2, 3, 5]]


def test_seeds() -> None:
    model = FakeModel(scale=0.5)
    options: dict[str, Any] = {"do_sample": True, "max_new_tokens": 12, "eos_token_id": None}
    beams = [generate(model, [[5, 6]], seed=seed, num_beams=2, **options).tolist() for seed in (1, 1, 2)]
    assert beams[0] == beams[1] != beams[2]
    first = generate(model, [[5, 6]], seed=1, **options)
    np.testing.assert_array_equal(generate(model, [[5, 6]], seed=1, **options), first)
    assert (generate(model, [[5, 6]], seed=2, **options) != first).any()
    assert (generate(model, [[5, 6]], **options) != generate(model, [[5, 6]], **options)).any()
    one, again = (generate(model, [[5, 6]], generator=np.random.default_rng(3), **options) for _ in range(2))
    np.testing.assert_array_equal(one, again)


def test_a_sampled_text_is_the_same_everywhere() -> None:
    """Written down: a change of these tokens breaks the promise that a seed gives the same text in every version."""
    got = generate(FakeModel(scale=0.5), [[5, 6]], seed=1, do_sample=True, max_new_tokens=8, eos_token_id=None)
    assert got[0].tolist() == [5, 6, 4, 2, 20, 14, 11, 11, 3, 3]


@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 3}], ids=str
)
def test_nan_names_row_and_step(options: dict[str, Any]) -> None:
    model, prompts = FakeModel(), [[5, 6], [7, 8]][: 1 if "prompt_lookup_num_tokens" in options else 2]
    model.W[3] = np.nan
    with pytest.raises(ValueError, match="scores of sequence 0, step 0: got NaN"):
        generate(model, prompts, **options)
    model.source = "a/folder"
    with pytest.raises(ValueError, match=r"^a/folder: scores of sequence 0, step 0: got NaN"):
        generate(model, prompts, **options)


def test_max_time_ends_a_text_that_has_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel()
    ticks = itertools.count()
    monkeypatch.setattr(
        "refdiff.generation.stopping.time", SimpleNamespace(monotonic=lambda: next(ticks), time=lambda: 0.0)
    )
    got = generate(model, [[5, 6]], eos_token_id=None, max_new_tokens=50, max_time=3.5)
    assert got.shape[1] == 2 + 4
