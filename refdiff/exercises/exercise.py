"""What an exercise is: a function to write, the truth, inputs on which mistakes show, and common mistakes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refdiff import layers, oracle

Floats = np.ndarray[Any, Any]
Function = Callable[..., Any]
Normal = Callable[..., Floats]


@dataclass(frozen=True)
class Case:
    """Arguments of one call; `what` says which they are. `spec` and `inputs` let the oracle name a mistake."""

    args: tuple[Any, ...]
    what: str = "on ordinary numbers"
    spec: oracle.Spec | None = None
    inputs: Mapping[str, Any] | None = None

    def heads(self, out: Floats) -> Floats:
        """Return an output as the oracle has it, (B, h, T, 2d), from heads laid side by side."""
        if self.spec is None or out.ndim == 4:
            return out
        return out.reshape(*out.shape[:2], self.spec.heads, -1).swapaxes(1, 2)


@dataclass(frozen=True)
class Exercise:
    """A function to write: `truth` computes it, each of `mistakes` is a wrong version by its name."""

    name: str
    signature: str
    truth: Function
    draw: Callable[[Normal], list[Case]]
    mistakes: Mapping[str, Function] = field(default_factory=dict)

    def cases(self) -> list[Case]:
        """Draw the inputs, the same ones each time."""
        rng = np.random.default_rng(29)

        def normal(*shape: int, scale: float = 1.0) -> Floats:
            """Numbers that float32 holds exactly, so that the oracle sees the same inputs as a learner's function."""
            return (scale * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)

        return self.draw(normal)


def drawn(*cases: tuple[str, Callable[[Normal], tuple[Any, ...]]]) -> Callable[[Normal], list[Case]]:
    """Return a `draw` of cases, each from what it is called and a function that draws its arguments."""
    return lambda normal: [Case(draw(normal), what) for what, draw in cases]


def visible(queries: int, keys: int) -> Any:
    """Return the causal mask (T, S)."""
    return layers.causal_mask(queries, keys, xp=np)
