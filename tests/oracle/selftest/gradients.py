"""The gradient of a wrong forward that has no backward of its own: one row of it, by differences."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.oracle.deviations.deviation import Problem, output

Numpy = np.ndarray[Any, Any]
PER_SEQUENCE = ("q", "k", "v", "lambda_logits", "key_mask", "q_positions", "k_positions")
STEP = 1e-6
"""Of a row's root mean square."""
SAME = 1e-5
"""Two gradients no further apart than this, as a share of the row, are one, and so are those whose difference is near
the roundings of L: differences are no better."""


def with_a_row_of(problem: Problem, dout: Numpy, name: str, right: Numpy, rng: np.random.Generator) -> Numpy | None:
    """Return the right gradient of an input, one row of it being what the problem's mistakes make it.

    So what is judged has less wrong than a kernel with that mistake would have.

    Equation:
        ∂L/∂x_i = (L(x + s e_i) − L(x − s e_i)) / 2s, L = ⟨dout, out⟩, all i of the row as one batch

    Args:
        problem: dense, of one sequence.
        name: of the input, "q", "k" or "v".
        right: its right gradient.

    Returns:
        None where the mistakes change nothing, or cannot work on such inputs.
    """
    x = problem.inputs[name]
    at = tuple(int(rng.integers(n)) for n in x.shape[:-1])
    n, i = x.shape[-1], np.arange(x.shape[-1])
    step = STEP * (float(np.sqrt(np.mean(x[at] ** 2))) or 1.0)
    inputs = {key: np.repeat(y, 2 * n, axis=0) if key in PER_SEQUENCE else y for key, y in problem.inputs.items()}
    moved = inputs[name]
    row: tuple[Any, ...] = (slice(None), *at[1:])
    moved[row][i, i] += step
    moved[row][n + i, i] -= step
    out = output(Problem(problem.spec, inputs, problem.mistakes))
    if out is None or out.shape[1:] != dout.shape[1:]:
        return None
    apart = moved[row][i, i] - moved[row][n + i, i]
    with np.errstate(invalid="ignore"):
        gradient = np.sum(dout * (out[:n] - out[n:]), axis=(1, 2, 3)) / apart
        rounding = 2.0**-52 * np.sqrt(np.sum((dout * out[0]) ** 2)) / np.min(apart)
    size = float(np.sqrt(np.mean(right[at] ** 2)))
    if np.allclose(gradient, right[at], rtol=0, atol=SAME * size + 100 * rounding):
        return None
    wrong = right.copy()
    wrong[at] = gradient
    return wrong
