"""Calls as code for transformers writes them: positions, options and the order of results, against transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import refdiff
from tests.compare import TOLERANCE, compare
from tests.parity.conftest import Checkpoint, of
from tests.parity.float64_transformers import float64_peer, to_numpy, to_torch

pytestmark = pytest.mark.filterwarnings("ignore:the text is longer than")


def targets(checkpoint: Checkpoint, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Labels of the kind that the class takes, some of which do not count."""
    rng, (B, T) = checkpoint.rng("targets"), ids.shape
    labels = np.where(rng.random(ids.shape) < 0.2, -100, ids)
    classes = checkpoint.recipe.config.get("num_labels", 2)
    kinds = {
        "DiffLlamaForCausalLM": {"labels": labels},
        "DiffLlamaForTokenClassification": {"labels": np.where(labels == -100, -100, ids % classes)},
        "DiffLlamaForSequenceClassification": {"labels": rng.random((B, classes))},
        "DiffLlamaForQuestionAnswering": {"start_positions": np.arange(B), "end_positions": np.arange(B) + T - 2},
    }
    if checkpoint.recipe.config.get("problem_type") == "single_label_classification":
        kinds["DiffLlamaForSequenceClassification"] = {"labels": np.arange(B) % classes}
    return kinds.get(checkpoint.architecture, {})


def call_torch(checkpoint: Checkpoint, *args: Any, **options: Any) -> Any:
    """The result of transformers as it is, for `len`, `to_tuple` and indices."""
    with torch.no_grad():
        arguments = {name: to_torch(value) for name, value in options.items()}
        return checkpoint.fresh_truth().model(*map(to_torch, args), **arguments)


def compare_items(got: Any, want: Any, what: str) -> None:
    """Compare two results, or parts of them: tuples item by item, None where transformers has it, a cache by length."""
    if isinstance(want, tuple):
        assert isinstance(got, tuple), what
        assert len(got) == len(want), what
        for index, (one, other) in enumerate(zip(got, want, strict=True)):
            compare_items(one, other, f"{what}[{index}]")
    elif want is None:
        assert got is None, what
    elif isinstance(want, torch.Tensor):
        compare(got, to_numpy(want), what)
    else:
        assert len(got) == got.get_seq_length() == want.get_seq_length(), what


@pytest.mark.parametrize("selected", [None, True, 0, 1, -1, [0], [-1, 0], [1, 99], [], [99]], ids=str)
def test_results_have_the_order_of_transformers(checkpoint: Checkpoint, ours: Any, selected: Any) -> None:
    """By name, by index, as a tuple; `output_hidden_states` selects as it does there."""
    ids = checkpoint.ids(1 if checkpoint.pooled else 2, 5)
    options = {"output_hidden_states": selected, "output_attentions": selected is True, **targets(checkpoint, ids)}
    want, got = call_torch(checkpoint, ids, use_cache=True, **options), ours(ids, use_cache=True, **options)
    assert list(got) == list(got.keys()) == list(want.keys())
    assert len(got) == len(want)
    compare_items(got.to_tuple(), want.to_tuple(), "out")
    compare_items(got[1:], want[1:], "out[1:]")
    compare_items(got[-1], want[-1], "out[-1]")
    compare_items(ours(ids, use_cache=True, return_dict=False, **options), want.to_tuple(), "return_dict=False")


def test_arguments_have_the_positions_of_transformers(checkpoint: Checkpoint, ours: Any) -> None:
    ids, positions = checkpoint.ids(1 if checkpoint.pooled else 2, 5), np.arange(5)[None] + 2
    args = (ids, np.ones_like(ids), positions, None, None, *targets(checkpoint, ids).values())
    want = call_torch(checkpoint, *args, use_cache=True)
    for call in (ours, ours.forward):
        got = call(*args, use_cache=True)
        compare_items(got.to_tuple(), want.to_tuple(), "out")
    if "cache" not in got:
        return
    assert got.past_key_values is got["past_key_values"] is got.get("past_key_values") is got.cache
    assert "past_key_values" in got
    more = call_torch(checkpoint, ids[:, :1], cache=want.cache)
    compare(ours(ids[:, :1], past_key_values=got.cache)[0], to_numpy(more[0]), "the next token")


@of("DiffLlamaForCausalLM", "DiffLlamaForQuestionAnswering")
@pytest.mark.parametrize("seed", range(4))
def test_options_of_the_loss(checkpoint: Checkpoint, ours: Any, seed: int) -> None:
    ids, rng = checkpoint.ids(2, 7), np.random.default_rng(seed)
    options: dict[str, Any] = {"num_items_in_batch": [np.int64(5), 3, None][seed % 3]}
    given = targets(checkpoint, ids)
    if checkpoint.architecture == "DiffLlamaForCausalLM":
        options["ignore_index"] = int(ids[0, 3]) if seed % 2 else -100
        given["labels"] = np.where(given["labels"] == -100, options["ignore_index"], given["labels"])
        if seed >= 2:
            options["shift_labels"] = rng.permutation(given["labels"].reshape(-1)).reshape(ids.shape)
    options = {name: value for name, value in options.items() if value is not None}
    want = call_torch(checkpoint, ids, **given, **options).loss
    assert abs(float(ours(ids, **given, **options).loss) - float(want)) <= TOLERANCE * abs(float(want))


@of("DiffLlamaForCausalLM")
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("normalize", [False, True])
def test_transition_scores(checkpoint: Checkpoint, ours: Any, beams: int, normalize: bool) -> None:
    """From one result, by both libraries; some sequences end early."""
    options = {"max_new_tokens": 6, "num_beams": beams, "eos_token_id": [2, 7, 9]}
    options["pad_token_id"] = checkpoint.recipe.config["pad_token_id"] or 0
    out = ours.generate(checkpoint.ids(3, 4), return_dict_in_generate=True, output_scores=True, **options)
    given = (out.sequences, out.scores, out.get("beam_indices"), normalize)
    got = ours.compute_transition_scores(*given)
    model = transformers.DiffLlamaForCausalLM.from_pretrained(checkpoint.folder)
    scores = tuple(torch.from_numpy(np.array(step)) for step in out.scores)
    want = model.compute_transition_scores(to_torch(given[0]), scores, to_torch(given[2]), normalize)
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factor", [-2.0, -0.5, 0.5])
def test_linear_factors_below_1_warn_and_compute(factor: float, tmp_path: Any) -> None:
    config = transformers.DiffLlamaConfig(
        vocab_size=41, hidden_size=24, intermediate_size=29, num_hidden_layers=1, num_attention_heads=4,
        initializer_range=0.3, rope_parameters={"rope_type": "linear", "factor": factor, "rope_theta": 100.0},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.DiffLlamaForCausalLM(config).double().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=rf"rope_parameters.factor is {factor}, below 1"):
        model = refdiff.DiffLlamaForCausalLM.from_pretrained(tmp_path)
    ids = np.arange(9)[None]
    compare(model(ids).logits, float64_peer(tmp_path, "DiffLlamaForCausalLM")(ids).logits, "logits")
