"""Tokens chosen by a model's kernels are those chosen on the host; what the host must see goes there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import refdiff
from tests.backends.cupy.test_model import SIZES, on_the_device
from tests.layers.inputs import says

IDS = np.random.default_rng(0).integers(3, 41, size=(3, 5))


def model(on_device: bool, dtype: str = "float32") -> tuple[Any, list[str]]:
    config = refdiff.DiffLlamaConfig(**{**SIZES, "num_hidden_layers": 1, "initializer_range": 0.6})
    made = refdiff.DiffLlamaForCausalLM.from_config(config, seed=3, dtype=dtype)
    return made, on_the_device(made).launched if on_device else []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eos_token_id": [1, 5, 9, 11]},
        {"do_sample": True, "seed": 5},
        {"do_sample": True, "seed": 6, "top_k": 7, "top_p": 0.8, "min_p": 0.02, "temperature": 1.5},
        {"do_sample": True, "seed": 6, "top_k": None, "eos_token_id": list(range(20))},
    ],
)
def test_text_is_that_of_the_host(options: dict[str, Any]) -> None:
    (here, _), (there, launched) = model(False), model(True)
    options = {"max_new_tokens": 6, **options}
    expected = here.generate(IDS, **options)
    np.testing.assert_array_equal(there.generate(IDS, **options), expected)
    assert launched.count("choose") == expected.shape[1] - IDS.shape[1]


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"do_sample": True, "seed": 5, "typical_p": 0.5},
        {"do_sample": True, "seed": 5, "epsilon_cutoff": 0.01},
        {"do_sample": True, "seed": 5, "eta_cutoff": 0.01},
        {"do_sample": True, "seed": 5, "num_return_sequences": 2},
        {"return_dict_in_generate": True, "output_scores": True},
        {"return_dict_in_generate": True, "output_logits": True},
    ],
)
def test_what_the_host_must_see_is_chosen_there(options: dict[str, Any]) -> None:
    there, launched = model(True)
    there.generate(IDS, max_new_tokens=2, **options)
    assert "choose" not in launched


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 5}])
def test_float64_has_no_kernel_and_is_chosen_by_on_the_host(options: dict[str, Any]) -> None:
    (here, _), (there, launched) = model(False, "float64"), model(True, "float64")
    np.testing.assert_array_equal(
        there.generate(IDS, max_new_tokens=6, **options), here.generate(IDS, max_new_tokens=6, **options)
    )
    assert "choose" not in launched


def test_a_step_brings_back_ids_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    there, _ = model(True)
    monkeypatch.setattr("refdiff.generation.decode.to_numpy", lambda _: pytest.fail("logits came to the host"))
    assert there.generate(IDS, max_new_tokens=3).shape == (3, 8)


@pytest.mark.parametrize("sample", [False, True])
def test_scores_that_no_token_can_be_chosen_by_are_said_as_on_the_host(sample: bool) -> None:
    for on_device in (False, True):
        broken, _ = model(on_device)
        broken.params["model"]["norm"]["weight"] = np.full(24, np.nan, np.float32)
        with says(ValueError, "row 0, step 0: a score is NaN: check the weights, or compute in float32"):
            broken.generate(IDS, max_new_tokens=2, do_sample=sample, seed=1 if sample else None)
