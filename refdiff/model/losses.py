"""Logits and labels → the losses that transformers computes."""

from __future__ import annotations

from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.backends import Ops


def causal_lm_loss(ops: Ops, logits: Array, labels: Array) -> Array:
    """Average −log p of each next token; labels of −100 do not count.

    Shapes:
        logits (B, T, V), labels (B, T) -> ()
    """
    return ops.cross_entropy(logits[:, :-1, :], labels[:, 1:])


def token_loss(ops: Ops, logits: Array, labels: Array) -> Array:
    """Average −log p of each token's label; labels of −100 do not count.

    Shapes:
        logits (B, T, C), labels (B, T) -> ()
    """
    return ops.cross_entropy(logits, labels)


def sequence_loss(ops: Ops, logits: Array, labels: Array, problem_type: str | None) -> Array:
    """Compare pooled logits with labels: squared error, cross entropy, or cross entropy of independent labels.

    Without a `problem_type`, one label means regression, integer labels mean one class each, others several.

    Shapes:
        logits (B, C); labels (B,) integers, or (B, C), or (B,) for regression with C = 1 -> ()

    Raises:
        ValueError: labels of another shape, an unknown `problem_type`.
    """
    xp = namespace(logits, labels)
    if problem_type is None:
        whole = xp.isdtype(labels.dtype, "integral")
        kinds = ("regression", "single_label_classification", "multi_label_classification")
        problem_type = kinds[0] if logits.shape[1] == 1 else kinds[1] if whole else kinds[2]
    if problem_type == "single_label_classification":
        return ops.cross_entropy(logits, xp.reshape(labels, (-1,)))
    if labels.ndim == 1 and logits.shape[1] == 1:
        labels = labels[:, None]
    if tuple(labels.shape) != tuple(logits.shape):
        raise ValueError(f"labels have shape {tuple(labels.shape)}, but {problem_type} needs {tuple(logits.shape)}")
    target = xp.astype(labels, logits.dtype)
    if problem_type == "regression":
        return xp.mean((logits - target) ** 2)
    if problem_type == "multi_label_classification":
        # −y log σ(z) − (1 − y) log(1 − σ(z)), arranged so that nothing overflows
        return xp.mean(xp.clip(logits, 0.0, None) - logits * target + xp.log1p(xp.exp(-xp.abs(logits))))
    raise ValueError(
        f"problem_type is {problem_type!r}, but must be regression, single_label_classification or "
        "multi_label_classification"
    )


def answer_loss(ops: Ops, start_logits: Array, end_logits: Array, starts: Any, ends: Any) -> Array:
    """Average the cross entropies of an answer's start and end; positions outside the text do not count.

    Shapes:
        start_logits and end_logits (B, T), starts and ends (B,) or (B, 1) -> ()
    """
    xp = namespace(start_logits, starts)
    outside = start_logits.shape[1]

    def half(logits: Array, at: Array) -> Array:
        at = xp.clip(xp.reshape(at, (-1,)), 0, outside)
        return ops.cross_entropy(logits, at, ignore_index=outside)

    return (half(start_logits, starts) + half(end_logits, ends)) / 2
