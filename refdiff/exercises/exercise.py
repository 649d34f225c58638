"""An exercise: a function to write, the correct function, inputs that reveal mistakes, and common mistakes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refdiff import layers, oracle

Floats = np.ndarray[Any, Any]
Function = Callable[..., Any]
Normal = Callable[..., Floats]


@dataclass(frozen=True)
class ExerciseCase:
    """The arguments of one call. `what` describes them; from `spec` and `inputs` the oracle can name a mistake."""

    args: tuple[Any, ...]
    what: str = "on ordinary numbers"
    spec: oracle.Spec | None = None
    inputs: Mapping[str, Any] | None = None

    def heads(self, out: Floats) -> Floats:
        """Return an output (B, T, h · 2d) in the oracle's layout, (B, h, T, 2d); others as they are."""
        if self.spec is None or out.ndim == 4:
            return out
        return out.reshape(*out.shape[:2], self.spec.heads, -1).swapaxes(1, 2)


@dataclass(frozen=True)
class Exercise:
    """A function to write: `truth` is a correct one, `mistakes` maps the name of each common mistake to a wrong one."""

    name: str
    signature: str
    truth: Function
    draw: Callable[[Normal], list[ExerciseCase]]
    mistakes: Mapping[str, Function] = field(default_factory=dict)

    @property
    def arguments(self) -> list[str]:
        """The names of the function's arguments, as the signature has them."""
        inside = self.signature.partition(") -> ")[0].partition("(")[2]
        without_shapes = re.sub(r"[\[(][^()\[\]]*[\])]?", "", inside)
        return [part.split()[0] for part in without_shapes.split(",")]

    def cases(self) -> list[ExerciseCase]:
        """Draw the inputs, which are the same at each call."""
        rng = np.random.default_rng(29)

        def normal(*shape: int, scale: float = 1.0) -> Floats:
            """Draw numbers that are exact in float32, the type of the oracle's inputs."""
            return (scale * rng.standard_normal(shape)).astype(np.float32).astype(np.float64)

        return self.draw(normal)


def sampler(*cases: tuple[str, Callable[[Normal], tuple[Any, ...]]]) -> Callable[[Normal], list[ExerciseCase]]:
    """Return a function that draws cases, given the description of each and a function that draws its arguments."""
    return lambda normal: [ExerciseCase(draw(normal), what) for what, draw in cases]


def causal_mask(queries: int, keys: int) -> Any:
    """Return the causal mask (T, S)."""
    return layers.causal_mask(queries, keys, xp=np)
