"""The losses, each against its definition written out."""

import math

import numpy as np
import pytest

from refdiff.backends import Backend, backend_for, ops_for, overlay
from refdiff.model import losses

OPS = ops_for()
Z = np.random.default_rng(0).normal(size=(2, 5, 7))


def nll(logits, target):
    return math.log(sum(math.exp(z) for z in logits)) - logits[target]


def test_causal_lm_predicts_the_next_token_and_ignores_minus_100():
    labels = np.array([[3, 1, -100, 6, 0], [2, 2, 2, -100, -100]])
    terms = [nll(Z[b, t], labels[b, t + 1]) for b in range(2) for t in range(4) if labels[b, t + 1] != -100]
    assert len(terms) == 5
    np.testing.assert_allclose(losses.causal_lm_loss(OPS, Z, labels), sum(terms) / 5, rtol=1e-14)


@pytest.mark.parametrize("problem", [None, "single_label_classification"])
def test_one_class_each(problem):
    z, labels = Z[:, 0], np.array([4, 0])
    expected = (nll(z[0], 4) + nll(z[1], 0)) / 2
    for shape in ((2,), (2, 1)):
        loss = losses.sequence_loss(OPS, z, labels.reshape(shape), problem)
        np.testing.assert_allclose(loss, expected, rtol=1e-14)


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_several_classes_each(problem):
    z = np.array([[0.5, -800.0, 3.0], [900.0, 0.0, -1.0]])
    labels = np.array([[1.0, 0.0, 0.25], [1.0, 1.0, 0.0]])
    # −y log σ(z) − (1 − y) log(1 − σ(z)); at −800 and 900 the label is met, and that term is 0
    terms = [
        [math.log1p(math.exp(-0.5)), 0.0, 0.25 * math.log1p(math.exp(-3)) + 0.75 * math.log1p(math.exp(3))],
        [0.0, math.log(2), math.log1p(math.exp(-1))],
    ]
    np.testing.assert_allclose(losses.sequence_loss(OPS, z, labels, problem), np.mean(terms), rtol=1e-14)


def test_regression_of_one_value_takes_a_flat_list():
    z, labels = np.array([[1.0], [3.0]]), np.array([0.5, 5.0])
    for problem in (None, "regression"):
        for shape in ((2,), (2, 1)):
            assert losses.sequence_loss(OPS, z, labels.reshape(shape), problem) == (0.25 + 4.0) / 2


def test_regression_of_several_values():
    assert losses.sequence_loss(OPS, np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]]), "regression") == 2.5


def test_label_shape_errors_name_both_shapes():
    with pytest.raises(ValueError, match=r"labels: got shape \(2, 3\), expected \(2, 7\) for regression"):
        losses.sequence_loss(OPS, Z[:, 0], np.zeros((2, 3)), "regression")


def test_classes_are_integers():
    with pytest.raises(ValueError, match="labels: got dtype float64, expected integers"):
        losses.sequence_loss(OPS, Z[:, 0], np.zeros(len(Z)), "single_label_classification")


def test_answer_loss_ignores_positions_outside_the_text():
    start, end = Z[:, :, 0], Z[:, :, 1]
    expected = ((nll(start[0], 2) + nll(start[1], 0)) / 2 + nll(end[0], 4)) / 2
    for shape in ((2,), (2, 1)):
        starts, ends = np.array([2, -3]).reshape(shape), np.array([4, 99]).reshape(shape)
        np.testing.assert_allclose(losses.answer_loss(OPS, start, end, starts, ends), expected, rtol=1e-14)


LABELS = np.array([[3, 1, -100, 6, 0], [2, 2, 2, -100, -100]])
SOFT = np.random.default_rng(1).random((2, 7))
SLOPES = {
    "causal_lm": (losses.causal_lm_loss, losses.causal_lm_loss_vjp, (Z,), (LABELS,)),
    "one class": (losses.sequence_loss, losses.sequence_loss_vjp, (Z[:, 0],), (np.array([4, 0]), None)),
    "one class, a column": (losses.sequence_loss, losses.sequence_loss_vjp, (Z[:, 0],), (np.array([[4], [0]]), None)),
    "several classes": (losses.sequence_loss, losses.sequence_loss_vjp, (Z[:, 0],), (SOFT, None)),
    "one value": (losses.sequence_loss, losses.sequence_loss_vjp, (Z[:, 0, :1],), (SOFT[:, 0], None)),
    "values": (losses.sequence_loss, losses.sequence_loss_vjp, (Z[:, 0],), (SOFT, "regression")),
    "answer": (
        losses.answer_loss, losses.answer_loss_vjp, (Z[:, :, 0], Z[:, :, 1]), (np.array([99, 2]), np.array([4, 99]))
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SLOPES)
def test_slopes(name):
    """Every entry of the gradient, times g, against central differences of the loss."""
    loss, vjp, logits, rest = SLOPES[name]
    g, h = np.asarray(1.7), 1e-5
    grads = vjp(OPS, g, *logits, *rest)
    for i, grad in enumerate(grads if isinstance(grads, tuple) else (grads,)):
        assert grad.shape == logits[i].shape
        for at in np.ndindex(grad.shape):
            step = np.zeros(grad.shape)
            step[at] = h
            up, down = (loss(OPS, *(z + sign * step if j == i else z for j, z in enumerate(logits)), *rest)
                        for sign in (1, -1))  # fmt: skip
            assert abs(g * (up - down) / (2 * h) - grad[at]) < 1e-9


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [2, 700])
def test_the_fused_loss_and_gradient_equal_the_separate_ones(rows, dtype):
    """Of as many tokens as fill several blocks, feature-major as a product gives them or not."""
    z = np.random.default_rng(2).normal(size=(2, rows, 7)).astype(dtype)
    labels = np.tile(LABELS, (1, -(-rows // 5)))[:, :rows]
    labels[0, -1] = 1
    for logits in (z, np.ascontiguousarray(z.transpose(2, 0, 1)).transpose(1, 2, 0)):
        for backend in (Backend(), backend_for(np, threads=2)):
            ops, g = backend.ops, np.asarray(1.7, dtype)
            loss, dlogits = losses.causal_lm_loss_and_grad(backend, ops, g, logits, labels)
            np.testing.assert_array_equal(loss, losses.causal_lm_loss(ops, logits, labels))
            np.testing.assert_array_equal(dlogits, losses.causal_lm_loss_vjp(ops, g, logits, labels))
    assert backend.select("cross_entropy_and_vjp", ops) is not None
    assert backend.select("cross_entropy_and_vjp", overlay(ops, lambda name, layer: layer)) is None


def test_the_fused_loss_and_gradient_are_the_backends():
    backend = Backend()
    backend.cross_entropy_and_vjp = lambda g, logits, targets: ("loss", "gradient")
    assert losses.causal_lm_loss_and_grad(backend, backend.ops, np.asarray(1.0), Z, LABELS) == ("loss", "gradient")


def test_a_single_label_is_checked_too():
    with pytest.raises(IndexError, match=r"^labels: got 7, expected 0 to 6, or -100 to leave one out$"):
        losses.sequence_loss(OPS, Z[:1, 0], np.array([7]), None)


def test_an_unknown_problem_type_is_told_the_known_ones():
    with pytest.raises(ValueError, match=r"^problem_type: got 'ranking', expected regression, single_label_classif"):
        losses.sequence_loss(OPS, Z[:, 0], SOFT, "ranking")


def test_labels_that_the_fused_loss_declines_are_refused_by_the_layers():
    backend = backend_for(np, threads=2)
    with pytest.raises(IndexError, match="-97"):
        losses.causal_lm_loss_and_grad(backend, backend.ops, np.asarray(1.0), Z, LABELS + 3)


def test_labels_are_on_the_device_of_the_model_or_refused(away):
    z, labels, ops = away.put(Z), away.put(LABELS), backend_for(away.xp).ops
    expected = losses.causal_lm_loss(OPS, Z, LABELS)
    np.testing.assert_allclose(float(losses.causal_lm_loss(ops, z, labels)), expected, rtol=1e-13)
    for problem in (None, "regression", "multi_label_classification"):
        for call in (losses.sequence_loss, lambda ops, *given: losses.sequence_loss_vjp(ops, z[0, 0, 0], *given)):
            with pytest.raises(TypeError):
                call(ops, z[:, 0, :], SOFT, problem)
