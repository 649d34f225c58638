"""Gradients → the next weights, by AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from refdiff.arrays import Array, namespace

Each = Callable[[Callable[[Any], None], Iterable[Any]], None]
"""A function that calls another one for every item, in any order, perhaps several at once."""


def one_by_one(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    """Call `work` for each item in turn."""
    for item in items:
        work(item)


class AdamW:
    """Adam with decoupled weight decay; matrices decay, vectors (norms, biases, λ) do not.

    Equation:
        m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,
        p ← p − η w p − η m̂ / (√v̂ + ε) with m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ)
        (Loshchilov and Hutter 2019, algorithm 2, with η for their α η_t, and η w for their η_t λ, as in torch)

    Used as:
        `AdamW(flatten(model.params)).step(flatten(grads), learning_rate)`; the arrays of the parameters are written to

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        params: Mapping[str, Array],
        *,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        if not (0 <= betas[0] < 1 and 0 <= betas[1] < 1 and eps > 0 and weight_decay >= 0):
            raise ValueError(
                f"AdamW: betas, eps, weight_decay: got {betas}, {eps}, {weight_decay}, expected 0 to below 1, above 0, "
                "and 0 or more"
            )
        self.params = dict(params)
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.steps = 0
        self._means = {name: namespace(p).zeros_like(p) for name, p in self.params.items()}
        self._squares = {name: namespace(p).zeros_like(p) for name, p in self.params.items()}

    def step(self, grads: Mapping[str, Array], learning_rate: float, *, each: Each = one_by_one) -> None:
        """Update every parameter; `grads` has their gradients by the same names, and `each` may run several at once."""
        self.steps += 1
        (b1, b2), eta = self.betas, learning_rate
        size = eta / (1 - b1**self.steps)
        root = math.sqrt(1 - b2**self.steps)

        def move(name: str) -> None:
            p, g, m, v = self.params[name], grads[name], self._means[name], self._squares[name]
            if p.ndim >= 2:
                p *= 1 - eta * self.weight_decay
            m += (1 - b1) * (g - m)
            v *= b2
            v += (1 - b2) * (g * g)
            p -= size * (m / (namespace(v).sqrt(v) / root + self.eps))

        each(move, self.params)

    def state(self) -> dict[str, Array]:
        """Return the arrays that the next step needs beside the parameters, by name."""
        return {f"mean.{n}": a for n, a in self._means.items()} | {f"square.{n}": a for n, a in self._squares.items()}

    def restore(self, state: Mapping[str, Array], steps: int) -> None:
        """Restore what `state` returned after `steps` steps.

        Raises:
            KeyError: an array is missing.
        """
        self.steps = steps
        for part, arrays in (("mean", self._means), ("square", self._squares)):
            for name, a in arrays.items():
                a[...] = state[f"{part}.{name}"]
