"""Check inputs against a spec: names, dtypes and shapes, with a hint at the layout that a wrong shape has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from refdiff.layers.softmax import broadcasts_to
from refdiff.messages import did_you_mean
from refdiff.oracle.inputs import BOOLEANS, INTEGERS, VECTORS, is_layer, options, shapes
from refdiff.oracle.inputs.arrays import any_array, is_float
from refdiff.oracle.spec import Spec

Layout = tuple[tuple[int, ...], ...]

_LAYOUTS = {
    4: ("0 2 1 3", "0 2 13", "2 1 3", "1 2 3", "2 13", "2 0 1 3", "2 0 13", "02 1 3", "01 2 3", "02 13"),
    3: ("0 2 1", "1 2", "2 1", "1 0 2", "2 0 1", "02 1", "01 2"),
    2: ("1 0", "1"),
}
"""By number of expected axes, other layouts: for each axis of the array, the expected axes in it. Axes that are absent,
such as a batch, have length 1. "0 2 13" is (B, T, H d) for (B, H, T, d). Those that fit whatever the batch are last."""


def layout_hint(shape: Sequence[int], axes: Sequence[str], lengths: Mapping[str, int]) -> str:
    """Return the end of a message that names the first layout with this shape and its conversion; "" if none fits.

    Args:
        axes: the letters of the expected axes, in order.
        lengths: the known lengths by letter. A batch of 1 or of unknown size may be missing from the shape.
    """
    for text in _LAYOUTS.get(len(axes), ()):
        layout = tuple(tuple(map(int, group)) for group in text.split())
        if (known := _match_layout(shape, layout, axes, lengths)) is not None:
            order = ", ".join(" ".join(axes[i] for i in group) for group in layout)
            return f": if it is ({order}), {_conversion(layout, axes, known)} puts it right"
    return ""


def _match_layout(
    shape: Sequence[int], layout: Layout, axes: Sequence[str], lengths: Mapping[str, int]
) -> dict[str, int] | None:
    """Return the length of every axis if the shape fits this layout, else None.

    Axes of unknown length must be in the expected order, or any shape would fit.
    """
    free = [i for group in layout for i in group if axes[i] not in lengths]
    if len(shape) != len(layout) or free != sorted(free):
        return None
    known = {a: lengths.get(a, 1) for a in axes}
    for n, group in zip(shape, layout, strict=True):
        unknown = [axes[i] for i in group if axes[i] not in lengths]
        rest = math.prod(lengths[axes[i]] for i in group if axes[i] in lengths)
        if len(unknown) > 1 or (n != rest if not unknown else rest == 0 or n % rest):
            return None
        if unknown:
            known[unknown[0]] = n // rest
    left_out = set(range(len(axes))) - {i for group in layout for i in group}
    return None if any(known[axes[i]] != 1 for i in left_out) else known


def _conversion(layout: Layout, axes: Sequence[str], known: Mapping[str, int]) -> str:
    order = [i for group in layout for i in group]
    back = tuple(order.index(i) for i in sorted(order))
    reshape = f".reshape{tuple(known[axes[i]] for i in order)}" if len(order) > len(layout) else ""
    transpose = f".transpose{back}" if back != tuple(range(len(order))) else ""
    return f"{reshape}{transpose}{'[None]' if len(order) < len(axes) else ''}"


Numpy = np.ndarray[Any, Any]
LAMBDA_INPUTS = (*VECTORS, "lambda_logits", "lambda_proj.weight", "lambda_full")
"""λ's inputs. One that the spec does not take is no misspelling of another, so messages suggest none."""


def check_inputs(spec: Spec, inputs: Mapping[str, Any]) -> dict[str, int]:
    """Check names, shapes and dtypes against `spec`; return the length of each axis by its letter.

    Raises:
        ValueError: a name is missing or unknown, a shape or dtype does not fit, or a table points outside the pages.
        TypeError: an input is not an array.
    """
    _check_names(spec, inputs)
    known = axis_lengths(spec)
    for name, letters in {**shapes(spec, inputs), **options(inputs)}.items():
        if name in inputs:
            _check_dtype(name, inputs[name])
            if letters != "…":
                _check_shape(name, tuple(inputs[name].shape), letters, known, spec)
    if "x" in inputs:
        known["S"] = known["T"] + known.get("R", 0)
    _check_tables(inputs, known)
    full = {"B": known["B"], "h": spec.heads, "T": known["T"], "S": known.get("S", 0)}
    for name in ("mask", "bias"):
        if name in inputs:
            if "cu_seqlens_q" in inputs or "k_pages" in inputs:
                raise ValueError(f"{name}: packed and paged sequences have causal and window alone")
            if not broadcasts_to(inputs[name], shape := tuple(full[axis] for axis in "BhTS")):
                raise ValueError(
                    f"{name} has shape {tuple(inputs[name].shape)}, which does not broadcast to (B, h, T, S) = {shape}"
                )
    if spec.lambda_form == "given" and tuple(inputs["lambda_full"].shape) not in (
        allowed := ((), (spec.heads,), (full["B"], spec.heads, full["T"]))
    ):
        raise ValueError(
            f"lambda_full: got shape {tuple(inputs['lambda_full'].shape)}, expected (), (h,) or (B, h, T): "
            f"one of {allowed}"
        )
    return known


def as_float64(spec: Spec, inputs: Mapping[str, Any]) -> dict[str, Numpy]:
    """Return the inputs as NumPy arrays; floating-point numbers become float64, which holds them exactly.

    Raises:
        ValueError, TypeError: as `check_inputs`.
    """
    arrays = {name: any_array(x, name) for name, x in inputs.items()}
    check_inputs(spec, arrays)
    kinds: dict[str, Any] = dict.fromkeys(INTEGERS, np.int64) | dict.fromkeys(BOOLEANS, np.bool_)
    return {name: x.astype(kinds.get(name, np.float64), copy=False) for name, x in arrays.items()}


def nonfinite_warnings(inputs: Mapping[str, Numpy]) -> tuple[str, ...]:
    """Return a warning if inputs hold NaN or infinities, with the place of the first; −∞ in a bias is a mask."""
    places = []
    for name, x in inputs.items():
        odd = np.isnan(x) | (np.isinf(x) & (x > 0 if name == "bias" else True))
        if np.any(odd):
            at = tuple(int(i) for i in np.argwhere(odd)[0])
            places.append(f"{name} has {int(np.sum(odd))} of {x.size}, the first at {at}")
    if not places:
        return ()
    return (
        f"NaN or infinities in the inputs: {'; '.join(places)}. Where the truth is not finite because of them, "
        "only that is compared",
    )


def axis_lengths(spec: Spec) -> dict[str, int]:
    """Return the length of each axis that the spec determines, by its letter."""
    H, K, d, V, w = spec.query_heads, spec.key_heads, spec.head_dim, spec.value_heads, spec.value_dim
    h, e = spec.heads, spec.out_dim
    return {"H": H, "K": K, "d": d, "V": V, "w": w, "h": h, "e": e, "Hd": H * d, "Kd": K * d, "Vw": V * w, "he": h * e}


def _check_names(spec: Spec, inputs: Mapping[str, Any]) -> None:
    must, may = shapes(spec, inputs), options(inputs)
    for name in inputs:
        if name not in must and name not in may:
            hint = "" if name in LAMBDA_INPUTS else did_you_mean(name, [*must, *may], ", ")
            raise ValueError(
                f"{name!r} is no input of this spec{hint}: it takes {', '.join(must)}, and may have {', '.join(may)}"
            )
    if missing := [name for name in must if name not in inputs]:
        letters = ", ".join(f"{name} ({must[name].replace(' ', ', ')})" for name in missing)
        hint = '; plain attention is the preset "attention"' if {*inputs} == {"q", "k", "v"} else ""
        raise ValueError(f"the inputs lack {letters}{hint}")


def _check_dtype(name: str, x: Any) -> None:
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(f"{name}: got {type(x).__name__}, expected an array")
    dtype = np.dtype(x.dtype)
    if name in INTEGERS:
        good, kind = dtype.kind in "iu", "whole numbers"
    elif name in BOOLEANS:
        good, kind = dtype.kind == "b", 'boolean (True means "may see")'
    else:
        good, kind = is_float(dtype), "float64, float32, float16, bfloat16 or another float"
    if not good:
        additive = name == "mask" and is_float(dtype)
        hint = "; one that is added to the scores, 0 or −∞, goes under 'bias'" if additive else ""
        raise ValueError(f"{name}: got dtype {dtype}, expected {kind}{hint}")


def _check_shape(name: str, shape: tuple[int, ...], letters: str, known: dict[str, int], spec: Spec) -> None:
    axes = letters.split()
    wanted = ", ".join(f"{a} = {known[a]}" if a in known else a for a in axes)
    if len(shape) != len(axes):
        raise ValueError(f"{name}: got shape {shape}, expected ({wanted}){layout_hint(shape, axes, known)}")
    for axis, n in zip(axes, shape, strict=True):
        if axis in known and known[axis] != n and not (n == 1 and name.endswith("positions") and axis == "B"):
            raise ValueError(
                f"{name}: got shape {shape}, expected ({wanted}){_length_hint(axis, shape, axes, known, spec)}"
            )
        known.setdefault(axis, n)


def _length_hint(axis: str, shape: tuple[int, ...], axes: list[str], known: dict[str, int], spec: Spec) -> str:
    """Return the likely cause of a wrong length, as the end of a message."""
    n = shape[axes.index(axis)]
    if found := layout_hint(shape, axes, known):
        return found
    if axis in known and axis in ("Hd", "Kd", "Vw", "he") and n in (2 * known[axis], 4 * known[axis]):
        return (
            f": {n} is {n // known[axis]} times as much. query_heads and key_heads count the heads of both maps, and "
            "head_dim is the width of one"
        )
    if axis == "H" and n == spec.heads:
        return ": it has as many heads as the output; query_heads counts those of both maps"
    if axis == "d" and n == 2 * spec.head_dim:
        return ": head_dim is the width of one map's heads, half of an output head"
    return ""


def _check_tables(inputs: Mapping[str, Any], known: dict[str, int]) -> None:
    sequences = known["B"]
    if "cu_seqlens_k" in inputs and "cu_seqlens_q" not in inputs:
        raise ValueError("cu_seqlens_k without cu_seqlens_q: both are needed, or cu_seqlens_q alone")
    if "cu_seqlens_q" in inputs:
        if is_layer(inputs) and ("x_past" in inputs or "cu_seqlens_k" in inputs):
            raise ValueError("a packed layer has cu_seqlens_q alone: no x_past, no cu_seqlens_k")
        if known["B"] != 1:
            raise ValueError(f"cu_seqlens_q is given, so B must be 1: it is {known['B']}")
        _check_starts("cu_seqlens_q", inputs["cu_seqlens_q"], known["T"])
        if "k_pages" not in inputs:
            name = "cu_seqlens_k" if "cu_seqlens_k" in inputs else "cu_seqlens_q"
            _check_starts(name, inputs[name], known["S"])
        sequences = len(inputs["cu_seqlens_q"]) - 1
    if "k_pages" in inputs:
        if "key_mask" in inputs:
            raise ValueError("key_mask: paged keys have lengths instead")
        _check_pages(inputs, known, sequences)


def _check_starts(name: str, starts: Any, total: int) -> None:
    numbers = [int(n) for n in starts]
    if not numbers or numbers[0] != 0 or numbers[-1] != total or sorted(numbers) != numbers:
        raise ValueError(f"{name}: got {numbers}, expected numbers that go up from 0 to {total}, the number of tokens")


def _check_pages(inputs: Mapping[str, Any], known: dict[str, int], sequences: int) -> None:
    if known["N"] != sequences:
        raise ValueError(f"block_table and lengths have {known['N']} rows, but there are {sequences} sequences")
    for n, (pages, length) in enumerate(zip(inputs["block_table"], inputs["lengths"], strict=True)):
        if not 0 <= length <= known["n"] * known["p"]:
            raise ValueError(f"lengths[{n}] is {length}, but the table has room for {known['n'] * known['p']} keys")
        used = [int(page) for page in pages[: -(-int(length) // known["p"])]]
        if any(not 0 <= page < known["P"] for page in used):
            raise ValueError(f"block_table[{n}] uses the pages {used}, but there are {known['P']}, from 0")
