"""Kernels as a user would have them: a right one, wrong ones, one with a backward pass; in NumPy, in float32."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from refdiff.oracle import Recipe, Spec, truth
from refdiff.oracle.inputs import is_layer
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes import CATALOGUE
from refdiff.oracle.mistakes.kernel import ops_with
from refdiff.oracle.rounding.ensemble import evaluate, quantise
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from refdiff.oracle.truth.backward import backward


def _dtype(inputs: dict[str, Any]) -> Any:
    return inputs["x" if is_layer(inputs) else "q"].dtype


def right(spec: Spec, inputs: dict[str, Any]) -> Any:
    """Rounded as its inputs are, in an order that no budget is made of."""
    recipe = Recipe.of(str(_dtype(inputs)))
    return evaluate(spec, quantise(inputs, recipe), recipe, HELD_OUT[0])["out"].astype(_dtype(inputs))


def dense_with_gradients(spec: Spec, inputs: dict[str, Any], dout: Any = None) -> Any:
    if dout is None:
        return right(spec, inputs)
    if "k" not in inputs or "cu_seqlens_q" in inputs:
        return NotImplemented
    recipe = Recipe.of(str(_dtype(inputs)))
    found = evaluate(spec, quantise(inputs, recipe), recipe, HELD_OUT[1], np.asarray(dout, dtype=np.float64))
    sums = truth(spec, inputs, want=spec.lse_names)
    stored = {name: x.astype(_dtype(inputs)) if x.ndim == 4 else x for name, x in found.items()}
    return {**stored, **{name: getattr(sums, name) for name in spec.lse_names}}


def decodes_without_gradients(spec: Spec, inputs: dict[str, Any], dout: Any = None) -> Any:
    """Has a backward for dense inputs, and none for pages."""
    if "k_pages" in inputs:
        return right(spec, inputs) if dout is None else NotImplemented
    return dense_with_gradients(spec, inputs, dout)


def decodes_wrongly(spec: Spec, inputs: dict[str, Any], dout: Any = None) -> Any:
    """The same, with the first page of all sequences in the place of their own."""
    found = {**inputs, "block_table": inputs["block_table"] * 0} if "k_pages" in inputs else inputs
    return decodes_without_gradients(spec, found, dout)


def epsilon_compiled_in(spec: Spec, inputs: dict[str, Any]) -> Any:
    """Right where the spec has 10⁻⁵, which is what many a CUDA kernel has, whatever it is told."""
    return right(spec.replace(norm_eps=1e-5), inputs)


def wrong_rope(spec: Spec, inputs: dict[str, Any]) -> Any:
    return right(spec.replace(rope="interleaved"), inputs)


def sees_the_future(spec: Spec, inputs: dict[str, Any]) -> Any:
    """Wrong by less than bfloat16 shows: the last value is added to all rows, very small."""
    out = right(spec, inputs)
    if "v" in inputs and out.size and "cu_seqlens_q" not in inputs and inputs["v"].size:
        out = out + np.asarray(1e-4 * inputs["v"][:, :1, -1:, :1], dtype=out.dtype)
    return out


def changes_its_input(spec: Spec, inputs: dict[str, Any]) -> Any:
    out = right(spec, inputs)
    inputs["q"] *= 2
    return out


def two_of_them(spec: Spec, inputs: dict[str, Any]) -> Any:
    out = right(spec, inputs)
    return out, out[..., 0]


def by_name(q: Any, k: Any, v: Any, **parameters: Any) -> Any:
    return q


@functools.cache
def calls() -> list[int]:
    return [0]


def another_each_time(spec: Spec, inputs: dict[str, Any]) -> Any:
    calls()[0] += 1
    return right(spec, inputs) * np.asarray(1 + 1e-7 * (calls()[0] % 2), dtype=_dtype(inputs))


def declines(spec: Spec, inputs: dict[str, Any]) -> Any:
    return NotImplemented


def returns_nothing(spec: Spec, inputs: dict[str, Any]) -> Any:
    right(spec, inputs)


def raises(spec: Spec, inputs: dict[str, Any]) -> Any:
    return _meets(inputs)


def _meets(inputs: dict[str, Any]) -> Any:
    return np.linalg.inv(np.zeros((2, 2)))


def in_float64(spec: Spec, inputs: dict[str, Any]) -> Any:
    return right(spec, inputs).astype(np.float64)


def not_stored(spec: Spec, inputs: dict[str, Any]) -> Any:
    """In float32 whatever its inputs are, as a kernel that forgets its last cast."""
    return truth(spec, quantise(inputs, Recipe.of(str(_dtype(inputs))))).out.astype(np.float32)


def stored_and_widened(spec: Spec, inputs: dict[str, Any]) -> Any:
    """Rounded to the type of its inputs, and handed over in float32, which NumPy knows."""
    return right(spec, inputs).astype(np.float32)


def unmasked_in_the_backward(spec: Spec, inputs: dict[str, Any], dout: Any = None) -> Any:
    """A backward pass that recomputes the maps from saved sums and forgets the mask."""
    found = dense_with_gradients(spec, inputs, dout)
    if dout is None or found is NotImplemented:
        return found
    (wrong,) = (m for m in CATALOGUE if m.name == "lse_used_without_mask")
    exact = as_float64(spec, inputs)
    grads = backward(spec, exact, np.asarray(dout, dtype=np.float64), ops_with((wrong,)))
    return {**found, **{f"d{n}": g.astype(_dtype(inputs)) for n, g in grads.items() if n in ("q", "k", "v")}}
