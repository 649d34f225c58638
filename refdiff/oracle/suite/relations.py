"""Relations between two runs of one kernel, where the truth cannot judge: equal bits, and strides that do not matter.

A kernel is `kernel(spec, inputs, dout)` and returns its output, or a mapping from names to arrays, or `NotImplemented`
for inputs that it does not support.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refdiff.oracle.budget.budget import budget
from refdiff.oracle.cases.structure import relaid, strided_view
from refdiff.oracle.inputs.outputs import KernelError, read_output, to_float64
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.inputs.signature import drop_nones
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.forward import out_shape
from refdiff.oracle.verdict.verdict import FAIL

Kernel = Callable[..., Any]
LAYOUTS = ("tokens before heads", "padded width", "width first")


class DeclinedError(Exception):
    """The kernel does not support these inputs, or the relation does not apply to this spec."""


def outputs(kernel: Kernel, spec: Spec, inputs: Inputs, dout: Numpy | None) -> dict[str, Numpy]:
    """Call a kernel, without `dout` if it declines that, and return its output and gradients in float64.

    Raises:
        DeclinedError: the kernel returned `NotImplemented`.
        KernelError: the kernel returned something that is no output.
    """
    found = kernel(spec, inputs, dout)
    if found is NotImplemented and dout is not None:
        found = kernel(spec, inputs, None)
    if found is NotImplemented:
        raise DeclinedError("the kernel returned NotImplemented")
    found = found if isinstance(found, Mapping) else {"out": drop_nones(found)}
    try:
        return {name: to_float64(read_output(x, name)) for name, x in found.items() if name[0] == "d" or name == "out"}
    except (TypeError, ValueError) as error:
        raise KernelError(f"what the kernel returned cannot be compared: {error}") from error


def run(kernel: Kernel, spec: Spec, inputs: Inputs) -> Numpy:
    """Call a kernel without `dout` on copies of its inputs, and return its output in float64.

    Raises:
        DeclinedError: the kernel returned `NotImplemented`, or a mapping without `out`.
        KernelError: the kernel returned something that is no output.
    """
    found = outputs(kernel, spec, {name: np.array(x) for name, x in inputs.items()}, None)
    require("out" in found, "'out', which the kernel did not return")
    return found["out"]


def same_twice(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """The same inputs give the same bits, of every gradient too."""
    dout = _draw_dout(spec, inputs)
    calls = [({name: np.array(x) for name, x in inputs.items()}, dout.copy()) for _ in range(2)]
    first, second = (outputs(kernel, spec, *call) for call in calls)
    differ = (compare_bits(x, second[name], f"{name}, run again") for name, x in first.items() if name in second)
    return next(filter(None, differ), "")


def strides_do_not_matter(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """Inputs and a gradient of the output with other strides give outputs and gradients as right as contiguous ones."""
    dout = _draw_dout(spec, inputs)
    ones = np.ones_like(dout)
    strided = {f"with {name}": (relaid(inputs, name), strided_view(dout, name)) for name in LAYOUTS}
    broadcast = {"dout with strides of 0, as of out.sum()": (inputs, np.broadcast_to(ones[:1, :1, :1, :1], ones.shape))}
    for contiguous, calls in ((dout, strided), (ones, broadcast)):
        allowed = budget(spec, inputs, recipe, dout=contiguous)
        for what, call in calls.items():
            verdict = allowed.judge(outputs(kernel, spec, *call))
            if verdict.status == FAIL:  # what is wrong with any strides fails in other tests
                right = allowed.judge(outputs(kernel, spec, inputs, contiguous)).tensors
                if any(t.status == FAIL and right[name].status != FAIL for name, t in verdict.tensors.items()):
                    return f"{what}: {verdict}"
    return ""


def past_unmoved(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """Keys and values of the last token do not change a bit of earlier rows."""
    S = inputs["k"].shape[2]
    require(spec.causal == "bottom_right" and S > 1 and inputs["q"].shape[2] > 1, "a causal spec and two tokens")
    changed = {**inputs, "k": inputs["k"].copy(), "v": inputs["v"].copy()}
    changed["k"][:, :, -1] *= -2
    changed["v"][:, :, -1] *= -2
    first, second = run(kernel, spec, inputs), run(kernel, spec, changed)
    return compare_bits(first[:, :, :-1], second[:, :, :-1], "with another last token, earlier rows")


RELATIONS: tuple[Callable[[Kernel, Spec, Inputs, Recipe], str], ...] = (
    same_twice,
    strides_do_not_matter,
    past_unmoved,
)
"""Each returns "" if it holds, else the difference; its docstring is the first part of a failed test's message."""


def _draw_dout(spec: Spec, inputs: Inputs) -> Numpy:
    return np.random.default_rng(977).normal(size=out_shape(spec, inputs)).astype(inputs["q"].dtype)


def require(holds: bool, what: str) -> None:
    """Raise a `DeclinedError` unless the relation applies."""
    if not holds:
        raise DeclinedError(f"the relation needs {what}")


def compare_bits(first: Numpy, second: Numpy, what: str) -> str:
    """Return where two outputs differ, or "" if their numbers are equal."""
    if np.array_equal(first, second, equal_nan=True):
        return ""
    different = np.argwhere((first != second) & ~(np.isnan(first) & np.isnan(second)))
    at = tuple(int(i) for i in different[0])
    return f"{what}: {len(different)} numbers differ, first at {at}: {first[at]:.9g} and {second[at]:.9g}"
