"""Parity without torch: what transformers gave for small checkpoints, written by tests/golden/make.py."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import refdiff
from refdiff.model.config_checks import ACTIVATIONS
from tests.compare import TOLERANCE, compare, compare_outputs, relative

pytestmark = pytest.mark.filterwarnings("ignore:the text is longer than")

FOLDER = Path(__file__).parent / "golden"
GOLDEN: dict[str, Any] = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
CASES: dict[str, Any] = GOLDEN["cases"]
LANGUAGE_MODELS = [name for name, case in CASES.items() if case["architecture"] == "DiffLlamaForCausalLM"]
CACHED = [name for name, case in CASES.items() if case["architecture"] in ("DiffLlamaForCausalLM", "DiffLlamaModel")]
CALLS = [
    (name, call)
    for name, case in CASES.items()
    for call in (
        "prompt",
        "padded left",
        "padded right",
        *{"DiffLlamaForCausalLM": ("packed",), "DiffLlamaModel": ("4-D mask", "4-D bias", "embedded")}.get(
            case["architecture"], ()
        ),
    )
]


def load(name: str, **options: Any) -> Any:
    return getattr(refdiff, CASES[name]["architecture"]).from_pretrained(FOLDER / name, **options)


def expected(name: str, call: str) -> tuple[dict[str, np.ndarray], SimpleNamespace]:
    """The arguments of the call, and the outputs of transformers."""
    arrays = load_file(FOLDER / name / "expected.safetensors")
    inputs = {key.split("/")[2]: a for key, a in arrays.items() if key.startswith(f"{call}/in/")}
    outputs: dict[str, Any] = {}
    for key in sorted(key for key in arrays if key.startswith(f"{call}/out/")):
        field, *index = key.split("/")[2:]
        outputs[field] = (*outputs.get(field, ()), arrays[key]) if index else arrays[key]
    assert inputs
    assert outputs
    return inputs, SimpleNamespace(**outputs)


def pooled(name: str) -> bool:
    return CASES[name]["architecture"] == "DiffLlamaForSequenceClassification"


def test_the_cases_cover_what_they_should() -> None:
    ropes = set()
    for name in CASES:
        config = json.loads((FOLDER / name / "config.json").read_text(encoding="utf-8"))
        rope = config.get("rope_parameters") or config["rope_scaling"] or {"rope_type": "default"}
        ropes.add(rope.get("rope_type", rope.get("type")))
    assert ropes == {"default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional"}
    assert {case["architecture"] for case in CASES.values()} == {
        f"DiffLlama{head}"
        for head in (
            "Model",
            "ForCausalLM",
            "ForSequenceClassification",
            "ForTokenClassification",
            "ForQuestionAnswering",
        )
    }
    assert {key for name in LANGUAGE_MODELS for key in CASES[name]["generate"]} == {"greedy", "beams"}


def test_activations_are_those_of_transformers() -> None:
    assert list(ACTIVATIONS) == GOLDEN["activations"], "transformers has other names, and loads what refdiff saves"


@pytest.mark.parametrize("kernels", ["fast", "reference"])
@pytest.mark.parametrize(("name", "call"), CALLS, ids=lambda value: value)
def test_outputs(name: str, call: str, kernels: str) -> None:
    """Logits, hidden states, attention rows and losses, within 10⁻¹⁰ of the largest entry of each row."""
    inputs, want = expected(name, call)
    maps = {"output_hidden_states": hasattr(want, "hidden_states"), "output_attentions": hasattr(want, "attentions")}
    cache = {"use_cache": False} if call == "packed" else {}
    got = load(name, dtype="float64", kernels=kernels)(**inputs, **maps, **cache)
    compared = compare_outputs(got, want, pooled=pooled(name))
    assert compared == [field for field in ORDER if hasattr(want, field)]
    assert ("loss" in compared) == bool({"labels", "start_positions"} & set(inputs))


ORDER = ("last_hidden_state", "logits", "start_logits", "end_logits", "loss", "hidden_states", "attentions")


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_in_the_stored_dtype(name: str) -> None:
    """With dtype="auto", mostly float32, rounding is all that differs."""
    inputs, want = expected(name, "prompt")
    got = load(name)(**inputs, output_hidden_states=True)
    difference = relative(np.asarray(got.hidden_states[-1]), want.hidden_states[-1])
    assert difference < (TOLERANCE if name == "lm-proportional-float64" else 2e-5)


@pytest.mark.parametrize("kernels", ["fast", "reference"])
@pytest.mark.parametrize("name", CACHED)
def test_cached(name: str, kernels: str) -> None:
    """A prefill in two chunks, then one token at a time."""
    inputs, want = expected(name, "cached")
    ids, model, cache, ends = inputs["input_ids"], load(name, dtype="float64", kernels=kernels), None, GOLDEN["cached"]
    field = "logits" if name in LANGUAGE_MODELS else "last_hidden_state"
    parts = []
    for start, end in itertools.pairwise(ends):
        out = model(ids[:, start:end], cache=cache, use_cache=True)
        cache = out.cache
        parts.append(np.asarray(getattr(out, field)))
    compare(np.concatenate(parts, axis=1), getattr(want, field), field)
    assert len(parts) == 5


@pytest.mark.parametrize("call", ["greedy", "beams"])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_generated_tokens(name: str, call: str) -> None:
    """Greedy and beam search over a padded batch, one row ending before the other where it does in transformers."""
    arrays = load_file(FOLDER / name / "expected.safetensors")
    tokens = load(name, dtype="float64").generate(
        arrays[f"{call}/in/input_ids"],
        attention_mask=arrays[f"{call}/in/attention_mask"],
        **CASES[name]["generate"][call],
    )
    np.testing.assert_array_equal(tokens, arrays[f"{call}/tokens"])
