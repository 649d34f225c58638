"""The losses and poolings of the heads against transformers in float64."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compare import compare, compare_outputs
from tests.parity.conftest import RECIPES, Checkpoint
from tests.parity.float64_transformers import float64_peer
from tests.parity.test_cache_and_masks import SPANS, padded, sees_something
from tests.parity.test_model import everything

pytestmark = pytest.mark.filterwarnings("ignore:the text is longer than")


def of(*architectures: str) -> pytest.MarkDecorator:
    """The checkpoints of these classes."""
    chosen = [recipe for recipe in RECIPES if recipe.architecture in architectures]
    assert len(chosen) >= 7
    return pytest.mark.parametrize("checkpoint", chosen, ids=str, indirect=True)


def same(checkpoint: Checkpoint, ours: Any, ids: np.ndarray, seen: np.ndarray | None = None, **options: Any) -> None:
    """Everything, with a loss."""
    want = everything(checkpoint.fresh_truth(), ids, **options)
    compared = compare_outputs(everything(ours, ids, **options), want, seen, pooled=checkpoint.pooled)
    assert "loss" in compared
    assert abs(want.loss) > 0.01


@of("DiffLlamaForCausalLM")
@pytest.mark.parametrize("ignored", [0.0, 0.5], ids=["all labels", "half of them -100"])
def test_causal_lm(checkpoint: Checkpoint, ours: Any, ignored: float) -> None:
    ids = checkpoint.ids(3, 10)
    labels = np.where(checkpoint.rng("labels").random(ids.shape) < ignored, -100, ids)
    labels[:, 0] = -100  # which is never a target: nothing comes before it
    same(checkpoint, ours, ids, labels=labels)


@of("DiffLlamaForCausalLM")
@pytest.mark.parametrize("side", SPANS)
def test_causal_lm_padded(checkpoint: Checkpoint, ours: Any, side: str) -> None:
    """Neither padding nor the first token of a row is a target, as collators leave it."""
    ids, mask = padded(checkpoint, side)
    first = mask * (np.cumsum(mask, axis=1) == 1)
    labels = np.where(mask - first == 1, ids, -100)
    same(checkpoint, ours, ids, sees_something(mask), attention_mask=mask, labels=labels)


@of("DiffLlamaForCausalLM")
@pytest.mark.parametrize("side", SPANS)
def test_causal_lm_padded_with_every_token_a_target(checkpoint: Checkpoint, ours: Any, side: str) -> None:
    """Then rows that see nothing predict the first tokens: as with transformers' default attention."""
    ids, mask = padded(checkpoint, side)
    options = {"attention_mask": mask, "labels": np.where(mask == 1, ids, -100)}
    compare_outputs(ours(ids, **options), checkpoint.fresh_sdpa()(ids, **options))


@of("DiffLlamaForTokenClassification")
@pytest.mark.parametrize("side", SPANS)
def test_token_classification(checkpoint: Checkpoint, ours: Any, side: str) -> None:
    ids, mask = padded(checkpoint, side)
    classes = checkpoint.recipe.config["num_labels"]
    labels = checkpoint.rng("labels").integers(0, classes, ids.shape)
    labels = np.where((mask == 1) & (checkpoint.rng("ignored").random(ids.shape) < 0.7), labels, -100)
    want = everything(checkpoint.fresh_truth(), ids, attention_mask=mask, labels=labels)
    got = everything(ours, ids, attention_mask=mask, labels=labels)
    if classes == 1:
        # one class is certain, whatever the logits
        assert float(got.loss) == float(want.loss) == 0
        want.loss = None
    compared = compare_outputs(got, want, sees_something(mask))
    assert ("loss" in compared) == (classes > 1)


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
    spans = {"start_positions": np.array(starts), "end_positions": np.array(ends)}
    same(checkpoint, ours, checkpoint.ids(3, 12), **spans)
    ids, mask = padded(checkpoint, "right")
    same(checkpoint, ours, ids, sees_something(mask), attention_mask=mask, **spans)


@of("DiffLlamaForQuestionAnswering")
def test_question_answering_with_one_position(checkpoint: Checkpoint, ours: Any) -> None:
    options = {"start_positions": np.array([1, 2, 3])}
    assert "loss" not in vars(checkpoint.fresh_truth()(checkpoint.ids(), **options))
    assert ours(checkpoint.ids(), **options).loss is None


def sequence_labels(checkpoint: Checkpoint, rows: int) -> np.ndarray:
    """Labels of the kind that config.problem_type, or num_labels, asks for."""
    config, rng = checkpoint.recipe.config, checkpoint.rng("labels")
    kind, classes = config["problem_type"], config["num_labels"]
    if kind == "multi_label_classification":
        return rng.integers(0, 2, (rows, classes)).astype(np.float64)
    if kind == "regression" or classes == 1:
        return rng.normal(size=(rows, classes) if classes > 1 else rows)
    return rng.integers(0, classes, rows)


@of("DiffLlamaForSequenceClassification")
@pytest.mark.parametrize("side", SPANS)
def test_sequence_classification(checkpoint: Checkpoint, ours: Any, side: str) -> None:
    """Pooled at the last token that is not padding, whichever side is padded."""
    ids, mask = padded(checkpoint, side)
    same(checkpoint, ours, ids, sees_something(mask), attention_mask=mask, labels=sequence_labels(checkpoint, 3))


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
    ids, peer = checkpoint.ids(3, 6), checkpoint.fresh_truth()
    rng, shape = checkpoint.rng("labels"), (3, config["num_labels"])
    for labels in (rng.integers(0, shape[1], 3), rng.integers(0, 2, shape).astype(np.float64)):
        peer.model.config.problem_type = None  # transformers remembers its first guess
        compare(ours(ids, labels=labels).loss, peer(ids, labels=labels).loss, "loss")
    peer.model.config.problem_type = None


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
