"""Every mutant of a problem: what a deviation, or a mistake in one place, makes of each tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from refdiff.oracle import truth
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.mistakes import CATALOGUE
from refdiff.oracle.mistakes.catalogue import Kernel
from refdiff.oracle.mistakes.kernel import deviated, ops_with, output
from refdiff.oracle.truth.backward import backward
from refdiff.oracle.verdict.judge import other_base
from tests.oracle.selftest.local_mistakes import KEYS, PLACES, with_a_wrong_place, with_other_keys
from tests.oracle.selftest.settings import Setting

Numpy = np.ndarray[Any, Any]
Arrays = dict[str, Numpy]
WAYS = ("forward", "backward", "lse")
ROWS = ("dq", "dk", "dv")
PER_SEQUENCE = ("q", "k", "v", "lambda_logits", "key_mask", "q_positions", "k_positions")
STEP = 1e-6
"""Of a row's root mean square."""
SAME = 1e-5
"""Two gradients no further apart than this, as a share of the row, are one, and so are those whose difference is near
the roundings of L: differences are no better."""


def way_of(name: str) -> str:
    """Which of the three a tensor belongs to."""
    return "forward" if name == "out" else "lse" if name.startswith("lse") else "backward"


@dataclass(frozen=True)
class Mutant:
    """A mistake: forward, backward or lse; its name and axis; the tensors that it changes, in float64."""

    way: str
    name: str
    axis: str
    wrong: Arrays


def mutants(setting: Setting, inputs: Inputs, right: Arrays, dout: Numpy, rng: np.random.Generator) -> Iterator[Mutant]:
    """Yield every mutant of a problem that changes something.

    Args:
        inputs: float64, as the kernel has them.
        right: the truth of all tensors.
    """
    found = _deviating(setting, inputs, right, dout, rng)
    if setting.main:
        local = _local(setting, inputs, right, dout, rng)
        found = chain(found, _backward_alone(setting, inputs, dout), local, _other_sums(setting, inputs))
    for mutant in found:
        changed = {
            name: y
            for name, y in mutant.wrong.items()
            if name in right and y.shape == right[name].shape and not np.array_equal(y, right[name], equal_nan=True)
        }
        if changed:
            yield Mutant(mutant.way, mutant.name, mutant.axis, changed)


def _deviating(
    setting: Setting, inputs: Inputs, right: Arrays, dout: Numpy, rng: np.random.Generator
) -> Iterator[Mutant]:
    """The deviations of the spec and of its inputs."""
    for n, deviation in enumerate(setting.deviations):
        problem = deviated(setting.spec, inputs, [deviation])
        if problem is None:
            continue
        out = output(problem)
        if out is not None:
            yield Mutant("forward", deviation.name, deviation.axis, {"out": out})
        if setting.main and (sums := _log_sums(problem)):
            yield Mutant("lse", deviation.name, deviation.axis, sums)
        if deviation.wrong is None:
            yield Mutant("backward", deviation.name, deviation.axis, _gradients(problem, dout))
        elif setting.kind == "dense":
            name = ROWS[(n + int(rng.integers(3))) % 3]
            wrong = with_a_row_of(problem, dout, name[1:], right[name], rng)
            if wrong is not None:
                yield Mutant("backward", deviation.name, deviation.axis, {name: wrong})


def _backward_alone(setting: Setting, inputs: Inputs, dout: Numpy) -> Iterator[Mutant]:
    """Mistakes of derivatives, the forward being right."""
    for mistake in CATALOGUE:
        if mistake.layer.endswith("_vjp"):
            wrong = _gradients(Kernel(setting.spec, inputs, (mistake,)), dout)
            yield Mutant("backward", mistake.name, mistake.axis, wrong)


def _local(setting: Setting, inputs: Inputs, right: Arrays, dout: Numpy, rng: np.random.Generator) -> Iterator[Mutant]:
    """Mistakes in one place."""
    for change in KEYS:
        problem = Kernel(*with_other_keys(change, rng, setting.spec, inputs))
        out = output(problem)
        if out is not None:
            yield Mutant("forward", change.__name__, "local", {"out": out})
        yield Mutant("backward", change.__name__, "local", _gradients(problem, dout))
        yield Mutant("lse", change.__name__, "local", _log_sums(problem))
    for place in PLACES:
        yield Mutant("forward", place, "local", {"out": with_a_wrong_place(place, rng, right["out"])})
        name = ROWS[int(rng.integers(3))]
        yield Mutant("backward", place, "local", {name: with_a_wrong_place(place, rng, right[name])})


def _other_sums(setting: Setting, inputs: Inputs) -> Iterator[Mutant]:
    """Log-sum-exps to the other base, and those of the other map."""
    names = setting.spec.lse_names
    exact = truth(setting.spec, inputs, want=names)
    sums = {name: np.asarray(getattr(exact, name)) for name in names}
    wrong = {name: other_base(setting.spec.lse_base, x)[1] for name, x in sums.items()}
    yield Mutant("lse", "to the other base", "lse base", wrong)
    if not setting.spec.is_plain:
        yield Mutant("lse", "maps swapped", "lse base", {"lse1": sums["lse2"], "lse2": sums["lse1"]})


def _gradients(problem: Kernel, dout: Numpy) -> Arrays:
    """The gradients of a wrong problem, by their names; none where a wrong layer cannot work on such inputs."""
    try:
        with np.errstate(all="ignore"):
            grads = backward(problem.spec, problem.inputs, dout, ops_with(problem.mistakes))
    except (ValueError, IndexError, TypeError):
        return {}
    return {f"d{name}": g for name, g in grads.items()}


def _log_sums(problem: Kernel) -> Arrays:
    try:
        with np.errstate(all="ignore"):
            names = problem.spec.lse_names
            found = truth(problem.spec, problem.inputs, want=names, ops=ops_with(problem.mistakes))
    except (ValueError, IndexError, TypeError):
        return {}
    return {name: np.asarray(getattr(found, name)) for name in names}


def with_a_row_of(problem: Kernel, dout: Numpy, name: str, right: Numpy, rng: np.random.Generator) -> Numpy | None:
    """Return the right gradient of an input, one row of it being what the problem's mistakes make it, by differences.

    The mistakes are in a forward that has no backward of its own. What is judged has less wrong than a kernel with
    that mistake would have.

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
    out = output(Kernel(problem.spec, inputs, problem.mistakes))
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
