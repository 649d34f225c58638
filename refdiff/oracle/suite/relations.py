"""Relations between two runs of one kernel, where the truth cannot judge: equal bits, and strides that do not matter.

A kernel is `kernel(spec, inputs, dout=None)` and returns its output, or a mapping with `out`, or `NotImplemented` for
inputs that it does not support.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.cases.structure import relaid, strided_view
from refdiff.oracle.inputs.outputs import KernelError, read_output, require_out
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.forward import out_shape
from refdiff.oracle.verdict.verdict import FAIL, Verdict

Kernel = Callable[..., Any]
Call = tuple[Inputs, Numpy | None]
"""Inputs, and dout if gradients are compared."""


class DeclinedError(Exception):
    """The kernel does not support these inputs, or the relation does not apply to this spec."""


def run(kernel: Kernel, spec: Spec, inputs: Inputs, *, copy: bool = True) -> Numpy:
    """Call a kernel on copies of its inputs, or on themselves, and return its output in float64.

    Raises:
        DeclinedError: the kernel returned `NotImplemented`, or a mapping without `out`.
        KernelError: the kernel returned something that is no output.
    """
    found = kernel(spec, {name: np.array(x) for name, x in inputs.items()} if copy else inputs)
    if found is NotImplemented:
        raise DeclinedError("the kernel returned NotImplemented")
    if isinstance(found, Mapping) and "out" not in found:
        raise DeclinedError(f"the kernel returned {', '.join(map(str, found)) or 'nothing'}, but no 'out' to compare")
    try:
        return require_out(found, "the relation").astype(np.float64)
    except (TypeError, ValueError) as error:
        raise KernelError(f"what the kernel returned cannot be compared: {error}") from error


def same_twice(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """The same inputs give the same bits."""
    return compare_bits(run(kernel, spec, inputs), run(kernel, spec, inputs), "run again")


def same_gradients_twice(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """The same inputs give the same bits of every gradient."""
    dout = _draw_dout(spec, inputs)
    first, second = (kernel(spec, {name: np.array(x) for name, x in inputs.items()}, dout.copy()) for _ in range(2))
    names = [name for name in first if name.startswith("d")] if isinstance(first, Mapping) else []
    require(bool(names), "gradients")
    for name in names:
        one, two = (read_output(found[name], name).astype(np.float64) for found in (first, second))
        if wrong := compare_bits(one, two, f"{name} again"):
            return wrong
    return ""


def strides_do_not_matter(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """Inputs with other strides, such as tokens before heads, give an output as right as that of contiguous ones."""
    layouts = "tokens before heads", "padded width", "width first"
    return _first_worse(kernel, spec, (inputs, None), {name: (relaid(inputs, name), None) for name in layouts}, recipe)


def dout_strides_do_not_matter(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """A gradient of the output with other strides gives gradients as right as those of a contiguous one."""
    dout = _draw_dout(spec, inputs)
    ones = np.ones_like(dout)
    strided = {f"dout with {name}": strided_view(dout, name) for name in ("tokens before heads", "width first")}
    broadcast = {"dout with strides of 0, as of out.sum()": np.lib.stride_tricks.as_strided(ones, ones.shape, (0,) * 4)}
    for contiguous, views in ((dout, strided), (ones, broadcast)):
        calls = {what: (inputs, view) for what, view in views.items()}
        if wrong := _first_worse(kernel, spec, (inputs, contiguous), calls, recipe):
            return wrong
    return ""


def _first_worse(kernel: Kernel, spec: Spec, contiguous: Call, strided: Mapping[str, Call], recipe: Recipe) -> str:
    """Return the first verdict on strided arrays that is a fail where that on contiguous ones is none, or ""."""
    inputs, dout = contiguous
    allowed = budget(spec, inputs, recipe, dout=dout)
    for what, call in strided.items():
        verdict = _judge(kernel, spec, call, allowed)
        # what is wrong with any strides fails in other tests
        if verdict.status == FAIL and _judge(kernel, spec, contiguous, allowed).status != FAIL:
            return f"{what}: {verdict}"
    return ""


def _judge(kernel: Kernel, spec: Spec, call: Call, allowed: Budget) -> Verdict:
    """Judge the output of a call, or its gradients if it has dout."""
    inputs, dout = call
    if dout is None:
        return allowed.judge({"out": run(kernel, spec, inputs, copy=False)})
    found = kernel(spec, {name: np.array(x) for name, x in inputs.items()}, dout)
    grads = {name: x for name, x in found.items() if name.startswith("d")} if isinstance(found, Mapping) else {}
    require(bool(grads), "gradients")
    try:
        return allowed.judge(grads)
    except (TypeError, ValueError) as error:
        raise KernelError(f"what the kernel returned cannot be compared: {error}") from error


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
    same_gradients_twice,
    strides_do_not_matter,
    dout_strides_do_not_matter,
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
