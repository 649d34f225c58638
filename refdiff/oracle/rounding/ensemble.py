"""The rounding errors of correct kernels: outputs and gradients of a recipe, computed in several valid orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from refdiff.backends import Ops, ops_for
from refdiff.backends.numpy.thread_pool import Workers
from refdiff.oracle.inputs import BOOLEANS, INTEGERS
from refdiff.oracle.inputs.arrays import any_array
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.evaluation_order import DRAWS, MEMBERS, Order, lambda_init_error
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.rounding.rounded_layers import rounded_ops
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth import truth
from refdiff.oracle.truth.attention_operands import lambda_init, query_factor

Run = TypeVar("Run")
MIN_PARALLEL_SCORES, MAX_PARALLEL_SCORES = 200_000, 8_000_000
"""With fewer scores threads do not pay, and with more there may be no memory for one computation per core."""
QUANTISED = ("q", "k", "v", "k_pages", "v_pages", "x", "x_past", "bias", "gate_logits")
"""Inputs that are rounded to the storage type. Parameters of λ and of norms keep their own type."""


def quantise(inputs: Mapping[str, Any], recipe: Recipe) -> Inputs:
    """Return the inputs in float64, with those that enter matrix products rounded once to the storage type.

    Beside a q that has this type, the others are what the kernel reads: a float32 bias is added to float32 scores, and
    a cache of 8 bits times float32 scales has numbers that 16 bits cannot hold. They are rounded to float32 only.
    """
    arrays = {name: any_array(x, name) for name, x in inputs.items()}
    storage = "float32" if "q" in arrays and arrays["q"].dtype.name == recipe.storage else recipe.storage
    found: Inputs = {}
    for name, array in arrays.items():
        if array.dtype.kind in "iub" or name in (*INTEGERS, *BOOLEANS):
            found[name] = array
        else:
            exact = array.astype(np.float64)
            once = name in QUANTISED or "_proj." in name
            found[name] = round_to(exact, storage) if once else exact
    return found


def perturb_lambda_init(spec: Spec, order: Order, ops: Ops | None = None) -> Spec:
    """Return the spec with an error in λ_init, as of a kernel that computes it in float32; unchanged for most orders.

    1 − λ_init then has the same error in every number of the output, which no mean over a tensor reduces.
    """
    if not order.scalars or (spec.lambda_form != "exp" and "lambda_init" not in spec.out_scale):
        return spec
    start = lambda_init(spec, ops or ops_for())
    return spec.replace(lambda_base="constant", lambda_init=start + order.scalars * lambda_init_error(start))


def evaluate(spec: Spec, inputs: Inputs, recipe: Recipe, order: Order, dout: Numpy | None = None) -> dict[str, Numpy]:
    """Compute output and gradients like a kernel of this recipe in this order, rounded to the storage type.

    Shapes:
        "out" as the spec's output; a gradient, named d and its input's name, as its input
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        ops = rounded_ops(recipe, order, query_factor=query_factor(spec))
        result = truth(perturb_lambda_init(spec, order), inputs, dout=dout, want=("out",), ops=ops)
        found = {"out": result.out, **{f"d{name}": g for name, g in result.grads.items()}}
        return {name: round_to(np.asarray(x), recipe.storage) for name, x in found.items() if x is not None}


def run_members(spec: Spec, inputs: Inputs, recipe: Recipe, dout: Numpy | None) -> list[dict[str, Numpy]]:
    """Evaluate all of `DRAWS` and `MEMBERS`."""
    return run_orders(lambda order: evaluate(spec, inputs, recipe, order, dout), (*DRAWS, *MEMBERS), inputs)


def run_orders(work: Callable[[Order], Run], orders: Sequence[Order], inputs: Inputs) -> list[Run]:
    """Return `work(order)` for every order: one after another, or for larger inputs in threads."""
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
    """Return the number of scores of core inputs with dense or packed keys; 0 for paged keys and layers."""
    if "q" not in inputs or "k" not in inputs:
        return 0
    B, H, T, _ = inputs["q"].shape
    return int(B * H * T * inputs["k"].shape[2])


def scatter_allowance(recipe: Recipe) -> int:
    """Return how many standard deviations over orders are added to an error that one number decides."""
    return THRESHOLDS.order_scatter if recipe.accumulate == "float32" else THRESHOLDS.narrow_order_scatter
