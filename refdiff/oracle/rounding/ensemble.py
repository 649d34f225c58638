"""What correct kernels are off by: the recipe, evaluated in several orders, against the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from refdiff.backends import Ops, ops_for
from refdiff.backends.numpy.thread_pool import Workers
from refdiff.oracle.inputs import BOOLEANS, INTEGERS
from refdiff.oracle.inputs.arrays import any_array
from refdiff.oracle.inputs.sequences import Inputs, sequences
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.evaluation_order import DRAWS, MEMBERS, Arithmetic, Order, lambda_init_error
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.rounding.rounded_layers import rounded_ops, scores_of_maps
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth import truth
from refdiff.oracle.truth.attention_operands import attention_operands, lambda_init, query_factor, scores
from refdiff.oracle.truth.forward import project

Numpy = np.ndarray[Any, Any]
Run = TypeVar("Run")
MIN_PARALLEL_SCORES, MAX_PARALLEL_SCORES = 200_000, 8_000_000
"""Scores from which threads are worth their start, and up to which there is memory for several computations."""
QUANTISED = ("q", "k", "v", "k_pages", "v_pages", "x", "x_past", "bias", "gate_logits")
"""Inputs that a kernel multiplies in its storage type; λ's and the norm's parameters are taken as they come."""


def quantise(inputs: Mapping[str, Any], recipe: Recipe) -> Inputs:
    """Round what enters matrix products to the storage type, once, before anything else; float64 of those bits."""
    found: Inputs = {}
    for name, x in inputs.items():
        array = any_array(x, name)
        if array.dtype.kind in "iub" or name in (*INTEGERS, *BOOLEANS):
            found[name] = array
        else:
            exact = array.astype(np.float64)
            once = name in QUANTISED or "_proj." in name
            found[name] = round_to(exact, recipe.storage) if once else exact
    return found


def perturb_lambda_init(spec: Spec, order: Order, ops: Ops | None = None) -> Spec:
    """The spec with the λ_init of a kernel that computes it in float32, where the order has it so.

    The scale of the output, 1 − λ_init, is then off by the same in every number: no sum over a tensor averages it out.
    """
    if not order.scalars or (spec.lambda_form != "exp" and "lambda_init" not in spec.out_scale):
        return spec
    start = lambda_init(spec, ops or ops_for())
    return spec.replace(lambda_base="constant", lambda_init=start + order.scalars * lambda_init_error(start))


def evaluate(spec: Spec, inputs: Inputs, recipe: Recipe, order: Order, dout: Numpy | None = None) -> dict[str, Numpy]:
    """Compute output and gradients as a kernel of this recipe does in this order.

    Shapes:
        out as the spec's output; each gradient, under d and its input's name, as its input; values of the storage type
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        ops = rounded_ops(recipe, order, query_factor=query_factor(spec))
        result = truth(perturb_lambda_init(spec, order), inputs, dout=dout, want=("out",), ops=ops)
        found = {"out": result.out, **{f"d{name}": g for name, g in result.grads.items()}}
        return {name: round_to(np.asarray(x), recipe.storage) for name, x in found.items() if x is not None}


def run_members(spec: Spec, inputs: Inputs, recipe: Recipe, members: int, dout: Numpy | None) -> list[dict[str, Numpy]]:
    """Evaluate the first so many members, and the draws at random.

    Raises:
        ValueError: there are not so many, or fewer than two are asked for.
    """
    if not 2 <= members <= len(MEMBERS):
        raise ValueError(f"members is {members}, but there are 2 to {len(MEMBERS)}")
    orders = (*DRAWS, *MEMBERS[:members])
    return run_orders(lambda order: evaluate(spec, inputs, recipe, order, dout), orders, inputs)


def rounding_groups(runs: int) -> list[int]:
    """A label for each run of `run_members`: −1 for all orders that round and store every result, else its own."""
    orders = (*DRAWS, *MEMBERS)[:runs]
    return [-1 if order.stored and not order.noise else n for n, order in enumerate(orders)]


def run_orders(work: Callable[[Order], Run], orders: Sequence[Order], inputs: Inputs) -> list[Run]:
    """Return `work(order)` of every order: one after another, or of larger inputs one on each core."""
    if not MIN_PARALLEL_SCORES <= _count_scores(inputs) <= MAX_PARALLEL_SCORES:
        return [work(order) for order in orders]
    found: dict[int, Run] = {}

    def put(n: int) -> None:
        found[n] = work(orders[n])

    workers = Workers()
    with workers.running():
        workers.map(put, range(len(orders)))
    return [found[n] for n in range(len(orders))]


def _count_scores(inputs: Inputs) -> int:
    """How many scores a core has, all heads and sequences together; 0 where keys come by pages, or from a layer."""
    if "q" not in inputs or "k" not in inputs:
        return 0
    B, H, T, _ = inputs["q"].shape
    return int(B * H * T * inputs["k"].shape[2])


def score_errors(spec: Spec, inputs: Inputs, recipe: Recipe, members: int) -> tuple[Numpy, Numpy]:
    """For each row of both maps, the largest error of any of its scores in any member.

    Shapes:
        twice (B, h, T)
    """
    core = project(spec, inputs, ops_for())
    B, _, T, _ = core["q"].shape
    found = np.zeros((2, B, spec.heads, T))
    for part in sequences(core):
        if part.is_empty:
            continue
        exact = attention_operands(spec, part.inputs, ops_for())
        true = [scores(exact, number) for number in (1, 2)]
        for order in (*DRAWS, *MEMBERS[:members]):
            s = attention_operands(spec, part.inputs, rounded_ops(recipe, order))
            arith = Arithmetic(recipe, order, query_factor(spec))
            maps = scores_of_maps(arith, (s.q1, s.k1, s.q2, s.k2), s.mask, s.bias, s.causal)
            for number, z in enumerate(maps):
                seen = np.isfinite(true[number])
                with np.errstate(invalid="ignore", over="ignore"):
                    off = np.where(seen, np.abs(z - np.where(seen, true[number], 0.0)), 0.0)
                off = np.where(np.isnan(off), np.inf, off)
                largest = found[number][part.index]
                np.maximum(largest, np.max(off, axis=-1, initial=0.0), out=largest)
    return found[0], found[1]
