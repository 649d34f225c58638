"""Logits and labels → the losses that transformers computes; each derivative `f_vjp` stands under its f.

A derivative takes the gradient g () of the loss first, and gives that of the logits.
"""

from __future__ import annotations

from typing import Any

from refdiff.arrays import Array, device, namespace
from refdiff.backends import Backend, Ops


def causal_lm_loss(
    ops: Ops, logits: Array, labels: Array, *, shifted: bool = False, num_items: Any = None, ignore_index: int = -100
) -> Array:
    """Average −log p of each next token; labels of `ignore_index` do not count.

    With `shifted`, the labels are the targets themselves. With `num_items`, the sum is divided by that number.

    Shapes:
        logits (B, T, V), labels (B, T) -> ()
    """
    targets = checked_labels(logits, labels, ignore_index) if shifted else _next(logits, labels, ignore_index)
    return _per_item(ops.cross_entropy(logits, targets, ignore_index=ignore_index), targets != ignore_index, num_items)


def _per_item(mean: Array, counted: Array, num_items: Any) -> Array:
    """Return a mean over what is counted as the sum divided by `num_items`; 0 where nothing is."""
    if num_items is None:
        return mean
    xp = namespace(mean)
    count = int(xp.sum(xp.astype(counted, xp.int64)))
    return mean * (count / float(num_items)) if count else xp.zeros_like(mean)


def causal_lm_loss_vjp(ops: Ops, g: Array, logits: Array, labels: Array) -> Array:
    """Pull a gradient back through `causal_lm_loss`; -> (B, T, V)."""
    dlogits: Array = ops.cross_entropy_vjp(g, logits, _next(logits, labels))[0]
    return dlogits


def causal_lm_loss_and_grad(backend: Backend, ops: Ops, g: Array, logits: Array, labels: Array) -> tuple[Array, Array]:
    """Compute the loss and its gradient, in one pass where the backend can; -> (), (B, T, V)."""
    both = backend.select("cross_entropy_and_vjp", ops)
    pair: Any = NotImplemented if both is None else both(g, logits, _next(logits, labels))
    if pair is not NotImplemented:
        loss, dlogits = pair
        return loss, dlogits
    return causal_lm_loss(ops, logits, labels), causal_lm_loss_vjp(ops, g, logits, labels)


def _next(logits: Array, labels: Array, ignore_index: int = -100) -> Array:
    """Return the target of each token: the label after it, and `ignore_index` (none) for the last."""
    labels = checked_labels(logits, labels, ignore_index)
    xp = namespace(labels)
    nothing = xp.full((labels.shape[0], 1), ignore_index, dtype=labels.dtype, device=device(labels))
    return xp.concat([labels[:, 1:], nothing], axis=1)


def checked_labels(logits: Array, labels: Array, ignore_index: int = -100) -> Array:
    """Return the labels, one class or `ignore_index` for each row of logits.

    Shapes:
        logits (..., C), labels (...) integers -> (...)

    Raises:
        ValueError: labels of another shape, or that are no integers.
        IndexError: a label is neither in 0 to C − 1 nor `ignore_index`.
    """
    xp, C, shape = namespace(labels), logits.shape[-1], tuple(logits.shape[:-1])
    if tuple(labels.shape) != shape:
        raise ValueError(f"labels: got shape {tuple(labels.shape)}, expected {shape}, one for each row of the logits")
    if not xp.isdtype(labels.dtype, "integral"):
        raise ValueError(f"labels: got dtype {labels.dtype}, expected integers")
    if 0 not in shape:
        classes = xp.where(labels == ignore_index, 0, labels)
        low, high = int(xp.min(classes)), int(xp.max(classes))
        if low < 0 or high >= C:
            got = low if low < 0 else high
            raise IndexError(f"labels: got {got}, expected 0 to {C - 1}, or {ignore_index} to leave one out")
    return labels


def sequence_loss(ops: Ops, logits: Array, labels: Array, problem_type: str | None) -> Array:
    """Compare pooled logits with labels: squared error, cross entropy, or cross entropy of independent labels.

    Without a `problem_type`, one label means regression, integer labels mean one class each, others several.

    Shapes:
        logits (B, C); labels (B,) integers, or (B, C), or (B,) for regression with C = 1 -> ()

    Raises:
        ValueError: labels of another shape, an unknown `problem_type`.
    """
    problem_type, target = _problem(logits, labels, problem_type)
    xp = namespace(logits, target)
    if problem_type == "single_label_classification":
        return ops.cross_entropy(logits, target)
    if problem_type == "regression":
        return xp.mean((logits - target) ** 2)
    # −y log σ(z) − (1 − y) log(1 − σ(z)), arranged so that nothing overflows
    return xp.mean(xp.clip(logits, 0.0, None) - logits * target + xp.log1p(xp.exp(-xp.abs(logits))))


def sequence_loss_vjp(ops: Ops, g: Array, logits: Array, labels: Array, problem_type: str | None) -> Array:
    """Pull a gradient back through `sequence_loss`: over n numbers 2 (z − y) / n, or (σ(z) − y) / n; -> (B, C)."""
    problem_type, target = _problem(logits, labels, problem_type)
    if problem_type == "single_label_classification":
        dlogits: Array = ops.cross_entropy_vjp(g, logits, target)[0]
        return dlogits
    if problem_type == "regression":
        return (logits - target) * (2 * g / logits.size)
    return (ops.activation(logits, "sigmoid") - target) * (g / logits.size)


def _problem(logits: Array, labels: Array, problem_type: str | None) -> tuple[str, Array]:
    """Return the problem type of a sequence classification, and its labels in the shape and dtype that it needs."""
    xp = namespace(logits, labels)
    if problem_type is None:
        whole = xp.isdtype(labels.dtype, "integral")
        kinds = ("regression", "single_label_classification", "multi_label_classification")
        problem_type = kinds[0] if logits.shape[1] == 1 else kinds[1] if whole else kinds[2]
    if problem_type == "single_label_classification":
        flat = xp.reshape(labels, (-1,)) if labels.size == logits.shape[0] else labels
        return problem_type, checked_labels(logits, flat)
    if labels.ndim == 1 and logits.shape[1] == 1:
        labels = labels[:, None]
    if tuple(labels.shape) != tuple(logits.shape):
        raise ValueError(f"labels: got shape {tuple(labels.shape)}, expected {tuple(logits.shape)} for {problem_type}")
    if problem_type not in ("regression", "multi_label_classification"):
        raise ValueError(
            f"problem_type: got {problem_type!r}, expected regression, single_label_classification or "
            "multi_label_classification"
        )
    return problem_type, xp.astype(labels, logits.dtype)


def answer_loss(
    ops: Ops, start_logits: Array, end_logits: Array, starts: Any, ends: Any, num_items: Any = None
) -> Array:
    """Average the cross entropies of an answer's start and end; positions outside the text do not count.

    With `num_items`, the sum of each is divided by that number, in place of the mean.

    Shapes:
        start_logits and end_logits (B, T), starts and ends (B,) or (B, 1) -> ()
    """
    outside = start_logits.shape[1]
    halves = [
        _per_item(ops.cross_entropy(logits, at, ignore_index=outside), at != outside, num_items)
        for logits, at in (
            (start_logits, _clip_positions(starts, outside)), (end_logits, _clip_positions(ends, outside)),
        )
    ]  # fmt: skip
    return (halves[0] + halves[1]) / 2


def answer_loss_vjp(
    ops: Ops, g: Array, start_logits: Array, end_logits: Array, starts: Any, ends: Any
) -> tuple[Array, Array]:
    """Pull a gradient back through `answer_loss`; -> (B, T) twice."""
    outside = start_logits.shape[1]
    dstart, _ = ops.cross_entropy_vjp(g / 2, start_logits, _clip_positions(starts, outside), ignore_index=outside)
    dend, _ = ops.cross_entropy_vjp(g / 2, end_logits, _clip_positions(ends, outside), ignore_index=outside)
    return dstart, dend


def _clip_positions(at: Array, outside: int) -> Array:
    """Clip positions outside the text to the one just behind it, which does not count."""
    xp = namespace(at)
    return xp.clip(xp.reshape(at, (-1,)), 0, outside)
