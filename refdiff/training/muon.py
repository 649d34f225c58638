"""Gradients → the next weights, by Muon for the matrices of the layers and AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping

from refdiff.arrays import Array, namespace
from refdiff.training.adamw import AdamW, Each, one_by_one

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of the iteration: the steepest at 0 of those that keep singular values near 1 (Jordan 2024)."""


def newton_schulz(matrix: Array, *, iterations: int = 5, eps: float = 1e-7) -> Array:
    """Bring all singular values of a matrix near 1, to between about 0.7 and 1.2.

    Equation:
        X₀ = M / |M|, X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X  (Jordan 2024, "Muon"); of a tall matrix the transpose

    Shapes:
        matrix (m, n) -> (m, n)
    """
    a, b, c = COEFFICIENTS
    xp = namespace(matrix)
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / xp.maximum(xp.sqrt(xp.sum(x * x)), eps)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x


class Muon:
    """Momentum with orthogonalized steps for the matrices of the layers, AdamW for all other parameters.

    Equation:
        B ← μ B + (1 − μ) g,  p ← p − η w p − η 0.2 √max(m, n) NS((1 − μ) g + μ B)
        (Jordan 2024, with Nesterov's momentum; the size of Liu et al. 2025, "Muon is scalable for LLM training", whose
        root mean square is about that of an AdamW step, so that both take one learning rate η)

    Used as:
        `Muon(flatten(model.params)).step(flatten(grads), learning_rate)`; the arrays of the parameters are written to

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        params: Mapping[str, Array],
        *,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"Muon: momentum: got {momentum}, expected 0 to below 1")
        self.momentum, self.weight_decay = momentum, weight_decay
        self.params = {name: p for name, p in params.items() if _hidden_matrix(name, p)}
        others = {name: p for name, p in params.items() if name not in self.params}
        self._adamw = AdamW(others, betas=betas, eps=eps, weight_decay=weight_decay)
        self._momenta = {name: namespace(p).zeros_like(p) for name, p in self.params.items()}

    @property
    def steps(self) -> int:
        """The number of steps made so far."""
        return self._adamw.steps

    def step(self, grads: Mapping[str, Array], learning_rate: float, *, each: Each = one_by_one) -> None:
        """Update every parameter; `grads` has their gradients by the same names, and `each` may run several at once."""
        self._adamw.step(grads, learning_rate, each=each)
        mu = self.momentum

        def move(name: str) -> None:
            p, g, b = self.params[name], grads[name], self._momenta[name]
            b += (1 - mu) * (g - b)
            p *= 1 - learning_rate * self.weight_decay
            p -= learning_rate * 0.2 * math.sqrt(max(p.shape)) * newton_schulz(g + mu * (b - g))

        each(move, self.params)

    def state(self) -> dict[str, Array]:
        """Return the arrays that the next step needs beside the parameters, by name."""
        return self._adamw.state() | {f"momentum.{name}": a for name, a in self._momenta.items()}

    def restore(self, state: Mapping[str, Array], steps: int) -> None:
        """Restore what `state` returned after `steps` steps.

        Raises:
            KeyError: an array is missing.
        """
        self._adamw.restore(state, steps)
        for name, a in self._momenta.items():
            a[...] = state[f"momentum.{name}"]


def _hidden_matrix(name: str, p: Array) -> bool:
    """Return whether a parameter is a matrix of a layer; embeddings and heads are lookup tables."""
    return p.ndim == 2 and "layers." in name
