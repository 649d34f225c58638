"""The terms of gradients that are sums; their norms give the size of the rounding errors."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from refdiff import layers
from refdiff.backends import Ops, ops_for, overlay
from refdiff.oracle.inputs import QK_WEIGHTS, VECTORS
from refdiff.oracle.inputs.sequences import Inputs, Numpy, sequences
from refdiff.oracle.rounding import U32
from refdiff.oracle.rounding.evaluation_order import sum_error
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import (
    AttentionOperands,
    lambda_init,
    log_sum_exp,
    scores,
    sum_over_tokens,
)
from refdiff.oracle.truth.backward import sum_over_heads


class TermRecorder:
    """Records the terms of sums in the backward pass: Σ g ⊙ A₂ V for λ, Σ g ⊙ x̂ for the norm's weight, and others.

    lambda_squares: ‖terms‖² of λ, of each sequence and token; lambda_terms: the number of terms of all λ together.
    sums: by the name of the input, ‖terms‖² of any other gradient, and the number of terms of each of its elements.
    token_sums: those of `sums` that are added over tokens outside the layers.
    """

    def __init__(self, spec: Spec, inputs: Inputs) -> None:
        self._spec = spec
        # in the order of the backward pass
        self._biases = (name for of in "oqkv" if (name := f"{of}_proj.bias") in inputs)
        self.lambda_squares: list[Numpy] = []
        self.lambda_terms = 0
        self.sums: dict[str, tuple[Numpy, int]] = {}
        self.token_sums: set[str] = set()

    def ops(self) -> Ops:
        """Return the layers that record their terms."""
        total = self._record(sum_over_tokens, self._note_sum)
        return Ops(**vars(overlay(ops_for(), self._wrap)), sum_over_tokens=total)

    def _wrap(self, name: str, layer: Callable[..., Any]) -> Callable[..., Any]:
        if name == "diff_attention_vjp":
            return self._record(layer, self._note_attention)
        if name == "linear_vjp":
            return self._record(layer, self._note_projection)
        return self._record(layer, self._note_norm) if name == "rms_norm_vjp" else layer

    def _record(self, layer: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
        @functools.wraps(layer)
        def call(*args: Any, **options: Any) -> Any:
            note(*args, **options)
            return layer(*args, **options)

        return call

    def _note_attention(self, g: Numpy, *args: Any, **options: Any) -> None:
        q1, k1, q2, k2, v, lambda_, *masks = args
        second = layers.diff_attention(q1, k1, q2, k2, v, 0 * lambda_, *masks, **options) - layers.diff_attention(
            q1, k1, q2, k2, v, 0 * lambda_ + 1, *masks, **options
        )
        self.lambda_squares.append(np.sum((g * second) ** 2, axis=-1))
        self.lambda_terms += g.size
        if self._spec.sinks:
            mask, bias = masks
            s = AttentionOperands(q1, k1, q2, k2, v, lambda_, bias, mask, mask, **options)
            self._add("sinks", sum_over_heads(self._spec, _sink_squares(g, s)), g.shape[0] * g.shape[2])

    def _note_sum(self, terms: Numpy, name: str, per_head: bool) -> None:
        squares = sum_over_tokens(terms**2, name, per_head)
        self._add(name, squares, terms.size // squares.size)
        self.token_sums.add(name)

    def _note_norm(self, g: Numpy, x: Numpy, weight: Numpy | None, eps: float) -> None:
        if weight is not None:
            terms = (g * layers.rms_norm(x, None, eps)).reshape(-1, x.shape[-1])
            self._add("norm_weight", np.sum(terms**2, axis=0), len(terms))

    def _note_projection(self, g: Numpy, x: Numpy, weight: Numpy, bias: Numpy | None = None) -> None:
        if bias is not None:
            terms = g.reshape(math.prod(g.shape[:-1]), g.shape[-1])
            self._add(next(self._biases), np.sum(terms**2, axis=0), len(terms))

    def _add(self, name: str, squares: Numpy, count: int) -> None:
        before, counted = self.sums.get(name, (0.0, 0))
        self.sums[name] = before + squares, counted + count


def _sink_squares(g: Numpy, s: AttentionOperands) -> Numpy:
    """Return ‖terms‖² of each row's part of the gradients of sinks, for both maps: (2, B, h, T).

    Equation:
        a row adds −p δ, with the sink's weight p, δ = Σ_j p_j a_j, which may cancel, and a_j = ⟨∂L/∂o, v_j⟩. If the
        sink is the largest score, automatic differentiation through z − max z also adds −Σ_j p_j (a_j − δ). That is 0
        exactly, but its terms are rounded
    """
    found = []
    values = np.repeat(s.v, g.shape[1] // s.v.shape[1], axis=1).swapaxes(2, 3)
    for number, by in ((1, 1.0), (2, -s.lambda_full)):
        z = scores(s, number)
        p = np.exp(z - log_sum_exp(z)[..., None])
        terms = p * ((by * g) @ values)
        factors_are_rounded = 2**2
        squares = factors_are_rounded * np.sum(terms**2, axis=-1) + np.sum(terms, axis=-1) ** 2
        found.append(squares * np.where(z[..., -1] >= np.max(z, axis=-1), 1.0, p[..., -1] ** 2))
    return np.stack(found)


def term_norms(spec: Spec, core: Inputs, recorder: TermRecorder, grads: dict[str, Numpy]) -> dict[str, Numpy]:
    """Return ‖terms‖₂ of each gradient that is a sum, by the names of the inputs.

    Shapes:
        each broadcastable to its gradient
    """
    B, _, T, _ = core["q"].shape
    squares = np.zeros((B, spec.heads, T))
    parts = (part for part in sequences(core) if not part.is_empty)
    for part, square in zip(parts, recorder.lambda_squares, strict=True):
        squares[part.index] = square
    found = {name: np.sqrt(terms) for name, (terms, _) in recorder.sums.items()}
    if not spec.is_plain:
        found |= _lambda_norms(spec, core, np.sqrt(squares), grads["lambda_full"].ndim)
    for name in set(QK_WEIGHTS) & set(grads):
        # not recorded: terms of random sign have about the norm of their sum
        found[name] = np.asarray(math.sqrt(float(np.mean(grads[name] ** 2))))
    return found


def order_errors(recorder: TermRecorder, grads: dict[str, Numpy], recipe: Recipe) -> dict[str, float]:
    """Return the errors of sums that kernels may add in any order, as shares of ‖terms‖₂, by the names of inputs."""
    of_lambda = recorder.lambda_terms // max(1, grads["lambda_full"].size) if "lambda_full" in grads else 0
    counts = dict.fromkeys(("lambda_full", "lambda_logits", *VECTORS), of_lambda)
    counts |= {name: count for name, (_, count) in recorder.sums.items()}
    types = dict.fromkeys(recorder.token_sums, recipe.accumulate)
    return {n: THRESHOLDS.sum_order * sum_error(k, types.get(n, "float32")) for n, k in counts.items() if k}


def _lambda_norms(spec: Spec, core: Inputs, token_norms: Numpy, ndim: int) -> dict[str, Numpy]:
    """Return the norms for λ, from those of each token, and for the inputs that λ is computed from.

    Args:
        ndim: the number of axes of the gradient of λ.
    """
    lambda_norm = {
        3: token_norms,
        1: np.sqrt(np.sum(token_norms**2, axis=(0, 2))),
        0: np.sqrt(np.sum(token_norms**2)),
    }[ndim]
    found = {"lambda_full": np.asarray(lambda_norm)}
    if spec.lambda_form == "exp":
        ops = ops_for()
        vectors = [np.atleast_2d(core[name]) for name in VECTORS]
        for n, own in enumerate(zip(*vectors, strict=True)):
            parts_of = ops.diff_lambda_vjp(np.asarray(1.0), *own, lambda_init(spec, ops))
            for name, x in zip(VECTORS, parts_of, strict=True):
                found.setdefault(name, np.empty(core[name].shape))
                np.atleast_2d(found[name])[n] = np.abs(x) * np.ravel(lambda_norm)[n]
    if spec.lambda_form == "sigmoid":
        sigma = _sigmoid(core["lambda_logits"])
        found["lambda_logits"] = np.moveaxis(token_norms, 1, 2) * sigma * (1 - sigma)
    return found


def _sigmoid(logits: Numpy) -> Numpy:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-logits)))


def lambda_errors(inputs: Inputs, grads: dict[str, Numpy], recipe: Recipe) -> dict[str, Numpy]:
    """Return what λ's own errors add to the gradients of its logits or vectors, by the names of the inputs."""
    found: dict[str, Numpy] = {}
    if "lambda_logits" in grads:
        found["lambda_logits"] = sigmoid_error(inputs["lambda_logits"], grads["lambda_full"], recipe)
    for q, k in (VECTORS[:2], VECTORS[2:]):
        found |= {name: exponential_error(inputs[q], inputs[k], grads[name]) for name in (q, k) if name in grads}
    return found


def sigmoid_error(logits: Numpy, dlambda: Numpy, recipe: Recipe) -> Numpy:
    """Bound the error of the gradient of λ's logits that comes from rounding λ in the forward pass.

    Equation:
        ∂L/∂z = g λ (1 − λ); an error δ of λ changes it by g (1 − 2λ) δ. |δ| is at most λ times the unit roundoff of the
        type that stores λ, plus 2⁻²³ λ for the sum 1 + exp(−z) and the quotient in float32. Near λ = 1 this exceeds the
        rounding of the gradient itself: torch and JAX compute 1 − λ from the stored λ.

    Shapes:
        logits (B, T, h), dlambda (B, h, T) -> (B, T, h)
    """
    sigma = _sigmoid(logits)
    unit = recipe.type_at("lam").u + 2 * U32
    return np.asarray(np.abs(np.moveaxis(dlambda, 1, 2) * (1 - 2 * sigma)) * sigma * unit)


def exponential_error(q: Numpy, k: Numpy, gradient: Numpy) -> Numpy:
    """Bound the error of the gradient of λ's vectors that comes from the sum in their exponential.

    Equation:
        ∂L/∂q = g exp(⟨q, k⟩) k; an error δ of ⟨q, k⟩ changes it by |∂L/∂q| δ, with δ the error of a float32 sum

    Shapes:
        q, k, gradient (d,) or (h, d)
    """
    off = sum_error(q.shape[-1]) * np.sqrt(np.sum((q * k) ** 2, axis=-1, keepdims=True))
    return np.asarray(THRESHOLDS.sum_members * off * np.abs(gradient))
