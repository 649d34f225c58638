"""List the hypotheses of how a kernel differs from its spec: named mistakes, numbers, wrong derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.inputs import is_layer
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.mistakes import Mistake, in_backward
from refdiff.oracle.mistakes.catalogue import Call, Kernel, in_attention
from refdiff.oracle.mistakes.in_tiles import TILE_SIZES, pad_tail, tail_padding
from refdiff.oracle.mistakes.kernel import compute, is_same_output
from refdiff.oracle.mistakes.listed import (
    RARE_DEVIATIONS,
    SINGLE_AXES,
    deviations,
    draw_probes,
    needs_two_maps,
    shrink_spec,
)
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import compute_lambda, lambda_init, transform_scores
from refdiff.oracle.truth.forward import out_factor

LIMITS = THRESHOLDS.fits
Edit = Callable[[Kernel, float], Kernel | None]
Edits = tuple[tuple["Hypothesis", float], ...]
"""Hypotheses, each with the coordinate of its number."""


@dataclass(frozen=True, eq=False)
class Hypothesis:
    """A way to differ from the spec.

    name, what: its name, and a sentence that describes it; of a number, with {} in place of its value.
    axis: the choice that it concerns. Two hypotheses of one axis are not combined.
    edit: returns the kernel with it, for a coordinate of the number; None if the kernel cannot have it.
    grid: coordinates of the number's values; None for a hypothesis without a number.
    value: returns the number for its coordinate.
    tensors: of a factor, the tensors that it multiplies: it follows from them by least squares.
    is_name: whether it is of the catalogue of mistakes. Others are tried only if no name fits.
    by_row: whether each row of the output depends on its own query alone, so that a sample of queries suffices.
    on_sample: whether the edit acts on the sampled queries (`Kernel.queries`), not on the whole inputs.
    in_pairs: whether it is tried as the second of two; every hypothesis may be the first.
    mistake: what it is in the catalogue of mistakes, if it is there.
    """

    name: str
    what: str
    axis: str
    edit: Edit
    grid: Numpy | None = None
    value: Callable[[float], Any] = math.exp
    tensors: tuple[str, ...] = ()
    is_name: bool = False
    by_row: bool = True
    on_sample: bool = False
    in_pairs: bool = True
    mistake: Mistake | None = None

    @property
    def has_number(self) -> bool:
        """Whether a number is fitted."""
        return self.grid is not None or bool(self.tensors)

    def describe(self, value: Any) -> str:
        """Return the sentence, with the value of its number."""
        return self.what.format(value) if self.has_number else self.what

    @property
    def is_whole(self) -> bool:
        """Whether its number is whole, such as a layer."""
        return self.grid is not None and isinstance(self.value(float(self.grid[0])), int)


def hypotheses(spec: Spec, inputs: Inputs, kind: str, recipe: Recipe, *, sampled: bool) -> Iterator[Hypothesis]:
    """Yield the hypotheses of a wrong output; of two that fit equally well, the first is preferred.

    Args:
        inputs: in float64.
        sampled: whether only a sample of queries is computed of large inputs.
    """
    rare = [d for d in RARE_DEVIATIONS if not (spec.is_plain and needs_two_maps(d))]
    for d in (*deviations(spec, kind), *rare):
        yield of_mistake(d, by_row=not sampled or d.wrong is None or acts_by_row(shrink_spec(spec), d))
    yield from _layers(spec, recipe.u)
    yield from _choices(spec, inputs, kind)
    yield from _numbers(spec, inputs)
    yield factor(("out",), 1.0 if is_layer(inputs) else out_factor(spec, inputs, ops_for()))


def wrong_derivatives(spec: Spec, kind: str, names: Sequence[str]) -> Iterator[Hypothesis]:
    """Yield the hypotheses of wrong gradients of a correct output, the names of which are given."""
    found = in_backward.GENERAL_BACKWARD_MISTAKES if spec.is_plain else in_backward.BACKWARD_MISTAKES
    found += () if spec.softcap is None else (in_backward.softcap_mistake(spec.softcap),)
    for d in (*(d for d in deviations(spec, kind) if d.wrong is None), *found):
        yield of_mistake(d if d.wrong is None else replace(d, axis=d.name))
    groups = [(name,) for name in names] + ([tuple(names)] if len(names) > 1 else [])
    yield from map(factor, groups)


def of_mistake(d: Mistake, *, by_row: bool = True) -> Hypothesis:
    """Return the hypothesis of a mistake of the catalogue."""
    pairs = d.axis not in SINGLE_AXES
    return Hypothesis(
        d.name, d.what, d.axis, lambda kernel, _: d.apply(kernel),
        is_name=True, by_row=by_row, in_pairs=pairs, mistake=d,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def acts_by_row(spec: Spec, mistake: Mistake) -> bool:
    """Whether the output of a few queries alone is that of the whole, on a small probe."""
    x = draw_probes(spec, "dense")[0]
    kernel = mistake.apply(Kernel(spec, x))
    if kernel is None:
        return True
    rows = np.unique([0, x["q"].shape[2] // 2, x["q"].shape[2] - 1])
    whole, part = (compute(kernel, ("out",), rows=r) for r in (None, rows))
    if whole is None or whole["out"].ndim != 4 or whole["out"].shape[2] != x["q"].shape[2]:
        return False
    return is_same_output(None if part is None else part["out"], whole["out"][:, :, rows])


# --- numbers ---


def _layers(spec: Spec, unit: float) -> Iterator[Hypothesis]:
    """Yield the layer whose λ_init the kernel uses, counted as in the spec, or from 0 if its λ_init is a constant.

    Deep layers, whose λ_init are equal up to the unit roundoff, are not told apart.
    """
    has = f"spec has {spec.lambda_init:.4g}" if spec.lambda_init is not None else f"spec's layer is {spec.layer}"
    constant = {"lambda_base": "depth", "lambda_init": None} if spec.lambda_base == "constant" else {}
    if spec.lambda_form == "exp" or spec.out_scale in ("1 - lambda_init", "lambda_init"):
        starts = [lambda_init(spec.replace(**constant, layer=n), ops_for()) for n in range(LIMITS.distinct_layers + 1)]
        grid = np.flatnonzero(np.subtract(starts[-1], starts) > unit).astype(np.float64)
        what = f"λ_init is that of layer {{}}, where the {has}."
        if len(grid) > 1:
            yield Hypothesis("layer", what, "layer", partial(_set_fields, {**constant, "layer": round}), grid, round)


def _choices(spec: Spec, inputs: Inputs, kind: str) -> Iterator[Hypothesis]:
    """Yield choices that no field of a spec is or that are too many for the catalogue: formulas and tiles."""
    if (c := spec.softcap) is not None:
        what = "(z / c) tanh(z / c) of a score z, where c tanh(z / c) is meant."
        edit = partial(_replace_softcap, lambda z: z / c * np.tanh(z / c))
        yield Hypothesis("softcap_z_over_c_times_tanh", what, "softcap", edit, is_name=True)
    sizes: dict[int, list[int]] = {}
    for n in TILE_SIZES if kind == "dense" else ():
        sizes.setdefault(tail_padding(spec, inputs, n), []).append(n)
    sizes.pop(0, None)
    for some in sizes.values():
        which = " or ".join(map(str, some))
        what = f"Keys are padded with zeros to a multiple of {which}, and not masked."
        pad = partial(_change_inputs, partial(pad_tail, tile=some[0]))
        yield Hypothesis(f"keys padded to tiles of {which}", what, "tile", pad)


def _numbers(spec: Spec, inputs: Inputs) -> Iterator[Hypothesis]:
    """Yield the numbers that the spec uses or may lack, λ, and the window."""
    unit = spec.scale or spec.head_dim**-0.5
    ranges = {"scale": ("Scores are multiplied by {:.4g}", unit / LIMITS.scale_range, unit * LIMITS.scale_range)}
    if spec.norm != "none":
        ranges["norm_eps"] = ("ε of the norm is {:.4g}", *LIMITS.epsilon_range)
    if spec.rope != "none":
        ranges["rope_theta"] = ("The base of RoPE is {:.4g}", *LIMITS.theta_range)
    ranges["softcap"] = ("Scores z are c tanh(z / c) with c = {:.4g}", *LIMITS.softcap_range)
    for name, (words, low, high) in ranges.items():
        now = unit if name == "scale" else getattr(spec, name)
        has = "none" if now is None else f"{now:.4g}"
        edit = partial(_set_fields, {name: math.exp})
        yield Hypothesis(name, f"{words}, where the spec has {has}.", name, edit, _log_grid(low, high))
    known = np.zeros(0) if spec.is_plain or is_layer(inputs) else np.unique(compute_lambda(spec, inputs, ops_for()))
    if known.size:
        now = f"{known[0]:.4g}" if len(known) == 1 else "one for each input, head or token"
        low, high = LIMITS.lambda_range
        grid = np.linspace(low, high, 2 * LIMITS.grid - 1)
        edit = partial(_set_lambda, lambda before, x: 0 * before + x)
        yield Hypothesis("λ", f"λ is {{:.4g}}, where the spec has {now}.", "lambda form", edit, grid, float)
    if not spec.is_plain and len(known) != 1:
        grid = _log_grid(*LIMITS.lambda_factors)
        edit = partial(_set_lambda, lambda before, x: math.exp(x) * before)
        yield Hypothesis("factor of λ", "λ is multiplied by {:.4g}.", "lambda factor", edit, grid)
    keys = inputs["k"].shape[2] if "k" in inputs else 0
    if keys > 1 and "cu_seqlens_q" not in inputs and spec.causal != "none":
        now = "all keys" if spec.window is None else f"{spec.window}"
        what = f"A query sees {{}} keys, itself among them, where the spec has {now}."
        edit, grid = partial(_set_fields, {"window": _round_exp}), _log_grid(1, keys, 2 * LIMITS.grid)
        yield Hypothesis("window", what, "window", edit, grid, _round_exp, in_pairs=False)


def factor(tensors: tuple[str, ...], own: Any = 1.0) -> Hypothesis:
    """Return the hypothesis of a factor of some tensors, beside the one that the spec has."""
    which, verb = ", ".join(tensors), "are" if len(tensors) > 1 else "is"
    has = f" beside the {np.ravel(own)[0]:.4g} of the spec" if np.size(own) == 1 and np.all(own != 1) else ""
    what = f"{which} {verb} multiplied by {{:.5g}}{has}."
    edit = finish(tensors, lambda x, value: value * x)
    return Hypothesis(f"factor of {which}", what, f"factor {which}", edit, None, float, tensors)


def _set_fields(fields: dict[str, Any], kernel: Kernel, x: float) -> Kernel | None:
    """Set fields of the spec, those that are functions to what they return for a coordinate."""
    changed = {name: value(x) if callable(value) else value for name, value in fields.items()}
    return replace(kernel, spec=kernel.spec.replace(**changed))


def _change_inputs(change: Callable[[Spec, Inputs], Kernel], kernel: Kernel, _: float) -> Kernel | None:
    made = change(kernel.spec, kernel.inputs)
    return replace(kernel, spec=made.spec, inputs=made.inputs)


def _set_lambda(change: Callable[[Any, float], Any], kernel: Kernel, x: float) -> Kernel | None:
    return in_attention("λ", "", "", lambda call: call(lambda_=change(call.lambda_, x))).apply(kernel)


def _replace_softcap(cap: Callable[[Numpy], Numpy], kernel: Kernel, _: float) -> Kernel | None:
    def attend(call: Call) -> Any:
        k1, k2, v = (np.repeat(x, call.q1.shape[1] // x.shape[1], axis=1) for x in (call.k1, call.k2, call.v))
        (q1, k1), (q2, k2) = (transform_scores(q, k, cap) for q, k in ((call.q1, k1), (call.q2, k2)))
        return call(q1=q1, k1=k1, q2=q2, k2=k2, v=v)

    kernel = replace(kernel, spec=kernel.spec.replace(softcap=None))
    return in_attention("softcap", "", "", attend).apply(kernel)


def finish(names: Sequence[str], change: Callable[[Numpy, float], Numpy]) -> Edit:
    """Return the edit that changes some tensors in the end, by a coordinate."""

    def edit(kernel: Kernel, x: float) -> Kernel:
        return replace(kernel, finish=(*kernel.finish, lambda name, y: change(y, x) if name in names else y))

    return edit


def _log_grid(low: float, high: float, n: int = LIMITS.grid) -> Numpy:
    return np.linspace(math.log(low), math.log(high), n)


def _round_exp(log: float) -> int:
    return max(1, round(math.exp(log)))
