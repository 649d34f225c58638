"""Losses and gradients of whole models against transformers' in float64: all four heads, every parameter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.backends import overlay
from refdiff.model import weights
from tests.parity.conftest import Checkpoint, of
from tests.parity.float64_transformers import float64_by_default, to_torch
from tests.parity.test_cache_and_masks import padded

pytestmark = pytest.mark.filterwarnings("ignore:the text is longer than")

TOLERANCE = 1e-9  # of the largest entry of each gradient
NOTHING = 1e-14  # a gradient of nothing but roundings, as that of a bias that shifts all logits alike
HEADS = ("CausalLM", "SequenceClassification", "TokenClassification", "QuestionAnswering")
of_every_head = of(*(f"DiffLlamaFor{name}" for name in HEADS))


def theirs(checkpoint: Checkpoint, ids: np.ndarray, options: dict[str, Any]) -> tuple[float, dict[str, np.ndarray]]:
    """The loss and gradients that autograd gives in transformers; where there is padding, with its default attention.

    Its eager one averages over everything in rows that see nothing.
    """
    model = (checkpoint.fresh_sdpa() if "attention_mask" in options else checkpoint.fresh_truth()).model
    model.zero_grad()
    with float64_by_default():
        loss = model(to_torch(ids), use_cache=False, **{name: to_torch(value) for name, value in options.items()}).loss
        loss.backward()
    found = {
        name: np.zeros(p.shape) if p.grad is None else p.grad.numpy().copy() for name, p in model.named_parameters()
    }
    return loss.item(), found


def worst(checkpoint: Checkpoint, ids: np.ndarray, kernels: str, **options: Any) -> tuple[float, str]:
    """The largest difference of any parameter's gradient, and whose it is."""
    loss, gradients = (checkpoint.fast if kernels == "fast" else checkpoint.reference).loss_and_grad(ids, **options)
    expected_loss, expected = theirs(checkpoint, ids, options)
    assert abs(loss - expected_loss) <= 1e-10 * abs(expected_loss)
    flat = weights.flatten(gradients)
    assert set(flat) == set(expected)
    assert any(np.abs(g).max() > 1e-6 for g in expected.values())
    errors = []
    for name, gradient in expected.items():
        assert flat[name].shape == gradient.shape
        difference = np.abs(flat[name] - gradient).max()
        errors.append((difference / max(np.abs(gradient).max(), NOTHING / TOLERANCE), name))
    return max(errors)


def targets(checkpoint: Checkpoint, ids: np.ndarray) -> dict[str, Any]:
    rng, (rows, length) = checkpoint.rng("labels"), ids.shape
    labels = checkpoint.recipe.config.get("num_labels", 2)
    match checkpoint.architecture:
        case "DiffLlamaForCausalLM":
            return {"labels": np.where(rng.random(ids.shape) < 0.3, -100, ids)}
        case "DiffLlamaForTokenClassification":
            return {"labels": np.where(rng.random(ids.shape) < 0.3, -100, rng.integers(0, labels, ids.shape))}
        case "DiffLlamaForQuestionAnswering":
            return {"start_positions": rng.integers(0, length, rows), "end_positions": rng.integers(0, length, rows)}
    problem = checkpoint.recipe.config["problem_type"] or ("regression" if labels == 1 else None)
    if problem == "regression":
        return {"labels": rng.normal(size=(rows, labels))}
    if problem == "multi_label_classification":
        return {"labels": rng.integers(0, 2, (rows, labels)).astype(np.float64)}
    return {"labels": rng.integers(0, labels, rows)}


def can_be_learned(checkpoint: Checkpoint) -> bool:
    """One class is certain, and has a loss and gradients of 0."""
    single = checkpoint.recipe.config.get("num_labels") == 1
    return not (single and checkpoint.architecture == "DiffLlamaForTokenClassification")


@of_every_head
@pytest.mark.parametrize("kernels", ["fast", "reference"])
def test_every_gradient(checkpoint: Checkpoint, kernels: str) -> None:
    if can_be_learned(checkpoint):
        ids = checkpoint.ids(3, 10)
        error, name = worst(checkpoint, ids, kernels, **targets(checkpoint, ids))
        assert error <= TOLERANCE, name


@of_every_head
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded(checkpoint: Checkpoint, side: str) -> None:
    if not can_be_learned(checkpoint):
        return
    ids, mask = padded(checkpoint, side)
    options = targets(checkpoint, ids)
    if "labels" in options and options["labels"].shape == ids.shape:
        first = mask * (np.cumsum(mask, axis=1) == 1)
        options["labels"] = np.where(mask - first == 1, ids % checkpoint.recipe.config.get("num_labels", 10**9), -100)
    error, name = worst(checkpoint, ids, "fast", attention_mask=mask, **options)
    assert error <= TOLERANCE, name


@of("DiffLlamaForCausalLM")
def test_packed(checkpoint: Checkpoint) -> None:
    ids = checkpoint.ids(2, 12)
    positions = np.array([[*range(5), *range(7)], [*range(3), *range(4), *range(5)]])
    labels = np.where(positions == 0, -100, ids)
    error, name = worst(checkpoint, ids, "fast", position_ids=positions, labels=labels)
    assert error <= TOLERANCE, name


@of("DiffLlamaForCausalLM")
def test_a_thousandth_is_seen(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = checkpoint.ids(3, 10)
    model = checkpoint.load("fast")
    plain = model.ops.rms_norm_vjp

    def wrong(*args: Any, **options: Any) -> Any:
        dx, dweight = plain(*args, **options)
        return 1.001 * dx, dweight

    model.ops = overlay(model.ops, lambda name, f: wrong if name == "rms_norm_vjp" else f)
    monkeypatch.setitem(checkpoint.__dict__, "fast", model)
    assert worst(checkpoint, ids, "fast", **targets(checkpoint, ids))[0] > TOLERANCE
