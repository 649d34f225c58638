"""Calls as code for transformers writes them: positions, options and the order of results, against transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.compare import TOLERANCE, compare
from tests.parity.conftest import Checkpoint, of
from tests.parity.float64_transformers import to_numpy, to_torch

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
        assert len(got) == want.get_seq_length(), what


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
