"""Poolings, and losses of unusual targets, against transformers in float64; test_gradients.py has the usual ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compare import compare, compare_outputs
from tests.parity.conftest import Checkpoint, of
from tests.parity.float64_transformers import float64_peer
from tests.parity.test_cache_and_masks import SPANS, padded, sees_something
from tests.parity.test_model import everything

pytestmark = pytest.mark.filterwarnings("ignore:the text is longer than")


@of("DiffLlamaForCausalLM")
@pytest.mark.parametrize("side", SPANS)
def test_causal_lm_padded_with_every_token_a_target(checkpoint: Checkpoint, ours: Any, side: str) -> None:
    """Then rows that see nothing predict the first tokens: as with transformers' default attention."""
    ids, mask = padded(checkpoint, side)
    options = {"attention_mask": mask, "labels": np.where(mask == 1, ids, -100)}
    compare_outputs(ours(ids, **options), checkpoint.fresh_sdpa()(ids, **options))


@of("DiffLlamaForQuestionAnswering")
@pytest.mark.parametrize(
    ("starts", "ends"),
    [
        ([0, 3, 11], [2, 3, 5]),
        ([12, 1, 40], [-1, 7, 12]),
        ([[4], [0], [2]], [[5], [1], [9]]),
    ],
    ids=["inside", "some outside", "as a column"],
)
def test_question_answering(checkpoint: Checkpoint, ours: Any, starts: list[Any], ends: list[Any]) -> None:
    ids, mask = padded(checkpoint, "right")
    options = {"attention_mask": mask, "start_positions": np.array(starts), "end_positions": np.array(ends)}
    want = everything(checkpoint.fresh_truth(), ids, **options)
    assert "loss" in compare_outputs(everything(ours, ids, **options), want, sees_something(mask))
    assert abs(want.loss) > 0.01


@of("DiffLlamaForSequenceClassification")
def test_sequence_classification_pools_by_ids_not_by_the_mask(checkpoint: Checkpoint, ours: Any) -> None:
    """Padding tokens at the end and in the middle, no mask; a row of nothing but padding is pooled at its start."""
    ids, pad = checkpoint.ids(4, 9), checkpoint.recipe.config["pad_token_id"]
    ids[0, 6:] = ids[1, 3:5] = ids[2, :] = pad
    want, got = everything(checkpoint.fresh_truth(), ids), everything(ours, ids)
    compare_outputs(got, want, pooled=True)
    head = checkpoint.truth.model.score.weight.detach().numpy()
    for row, last in enumerate([5, 8, 0, 8]):
        compare(got.logits[row], want.hidden_states[-1][row, last] @ head.T, f"row {row}")


@of("DiffLlamaForSequenceClassification")
def test_the_kind_of_problem_is_guessed_from_the_labels(checkpoint: Checkpoint, ours: Any) -> None:
    """Without problem_type: integers are one class each, floats several; with one class always regression."""
    config = checkpoint.recipe.config
    if config["problem_type"] is not None or config["num_labels"] == 1:
        return
    ids = checkpoint.ids(3, 6)
    rng, shape = checkpoint.rng("labels"), (3, config["num_labels"])
    for labels in (rng.integers(0, shape[1], 3), rng.integers(0, 2, shape).astype(np.float64)):
        compare(ours(ids, labels=labels).loss, checkpoint.fresh_truth()(ids, labels=labels).loss, "loss")


@of("DiffLlamaForSequenceClassification")
def test_sequence_classification_without_a_padding_token(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """One row is pooled at its end; two rows are refused, as in transformers."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint.folder, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    pad, config["pad_token_id"] = config["pad_token_id"], None
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    peer = float64_peer(folder, checkpoint.architecture)
    model = checkpoint.load(folder=folder)
    ids = np.concatenate([checkpoint.ids(1, 6), [[pad, pad]]], axis=1)
    compare_outputs(everything(model, ids), everything(peer, ids), pooled=True)
    for each in (peer, model):
        with pytest.raises(ValueError, match=r"pad(ding)?[ _]token"):
            each(np.repeat(ids, 2, axis=0))


@of("DiffLlamaForCausalLM", "DiffLlamaForTokenClassification", "DiffLlamaForQuestionAnswering")
def test_no_target_at_all(checkpoint: Checkpoint, ours: Any) -> None:
    """Not a number, as in transformers: the mean of nothing."""
    ids = checkpoint.ids(2, 5)
    options = {"labels": np.full((2, 5), -100)}
    if checkpoint.architecture == "DiffLlamaForQuestionAnswering":
        options = {"start_positions": np.array([5, 9]), "end_positions": np.array([7, 5])}
    assert np.isnan(checkpoint.fresh_truth()(ids, **options).loss)
    assert np.isnan(ours(ids, **options).loss)
