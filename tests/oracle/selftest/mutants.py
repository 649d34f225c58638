"""Every mutant of a problem: what a deviation, or a mistake in one place, makes of each tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from refdiff.oracle import Spec, truth
from refdiff.oracle.inputs.sequences import Inputs
from refdiff.oracle.mistakes import CATALOGUE
from refdiff.oracle.mistakes.catalogue import Kernel
from refdiff.oracle.mistakes.kernel import deviated, ops_with, output
from refdiff.oracle.truth.attention_operands import attention_mask
from refdiff.oracle.truth.backward import backward
from refdiff.oracle.verdict.judge import other_base
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


# Mistakes in one place: a lost key, a swapped row, a wrong number. Everything else of the result is right

Random = np.random.Generator


def last_row_loses_the_first_key(rng: Random, see: Numpy) -> None:
    """The last query of one head does not see key 0."""
    see[:, rng.integers(see.shape[1]), -1, 0] = False


def one_row_loses_its_own_key(rng: Random, see: Numpy) -> None:
    """One query does not see its own token."""
    _, h, T, S = see.shape
    t = int(rng.integers(1, T))
    see[:, rng.integers(h), t, t + S - T] = False


def eight_rows_lose_eight_keys(rng: Random, see: Numpy) -> None:
    """One head misses a tile of eight keys in eight rows."""
    head, s = int(rng.integers(see.shape[1])), int(rng.integers(see.shape[3] - 16))
    see[:, head, -8:, s : s + 8] = False


def every_32nd_row_sees_a_future_key(rng: Random, see: Numpy) -> None:
    """Every 32nd row sees one key more: the causal mask is off by one at the edge of a tile."""
    T, S = see.shape[2:]
    rows = np.arange(31 - T % 2, T - 1, 32)
    see[:, :, rows, rows + S - T + 1] = True


KEYS: tuple[Callable[[Random, Numpy], None], ...] = (
    last_row_loses_the_first_key,
    one_row_loses_its_own_key,
    eight_rows_lose_eight_keys,
    every_32nd_row_sees_a_future_key,
)
"""Each changes which keys queries see: (B, h, T, S)."""


def with_other_keys(
    change: Callable[[Random, Numpy], None], rng: Random, spec: Spec, inputs: Inputs
) -> tuple[Spec, Inputs]:
    """Return the problem in which some queries see other keys."""
    B, T, S = inputs["q"].shape[0], inputs["q"].shape[2], inputs["k"].shape[2]
    see = np.broadcast_to(attention_mask(spec, inputs), (B, spec.heads, T, S)).copy()
    change(rng, see)
    return spec.replace(causal="none", window=None), {**inputs, "mask": see}


def _row(rng: Random, x: Numpy) -> tuple[int, ...]:
    return tuple(int(rng.integers(n)) for n in x.shape[:-1])


def _two_rows(rng: Random, x: Numpy) -> tuple[Any, Any]:
    (b, h, _), t = _row(rng, x), int(rng.integers(x.shape[2] - 1))
    return (b, h, slice(t, t + 2)), x[b, h, t : t + 2][::-1]


def _row_of_next_head(rng: Random, x: Numpy) -> tuple[Any, Any]:
    b, h, t = _row(rng, x)
    return (b, h, t), x[b, (h + 1) % x.shape[1], t]


def _number(by: float, rng: Random, x: Numpy) -> tuple[Any, Any]:
    """One that is no smaller than usual in its row."""
    row = _row(rng, x)
    size = np.abs(x[row])
    at = (*row, int(rng.choice(np.flatnonzero(size >= np.median(size)))))
    return at, by * x[at]


PLACES: dict[str, Callable[[Random, Numpy], tuple[Any, Any]]] = {
    "two_rows_swapped": _two_rows,
    "a_row_of_another_head": _row_of_next_head,
    "a_row_not_written": lambda rng, x: (_row(rng, x), 0.0),
    "a_row_too_large_by_a_tenth": lambda rng, x: (at := _row(rng, x), 1.1 * x[at]),
    "last_numbers_of_a_row_not_written": lambda rng, x: ((*_row(rng, x), slice(-2, None)), 0.0),
    "element_times_1_5": partial(_number, 1.5),
    "element_times_1_01": partial(_number, 1.01),
    "element_times_1_004": partial(_number, 1.004),
    "element_times_minus_1": partial(_number, -1.0),
    "one_nan": partial(_number, np.nan),
}
"""By name: a place in a tensor, of which the last axis is a row, and the wrong numbers that stand there."""


def with_a_wrong_place(name: str, rng: Random, x: Numpy) -> Numpy:
    """Return the tensor with one of `PLACES` wrong."""
    wrong = x.copy()
    at, value = PLACES[name](rng, x)
    wrong[at] = value
    return wrong
