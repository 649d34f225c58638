"""List the deviations of a spec, each function once, and those that given inputs cannot show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes import CATALOGUE
from refdiff.oracle.mistakes.catalogue import Kernel, Mistake
from refdiff.oracle.mistakes.in_inputs import (
    INPUT_DEVIATIONS,
    RARE_INPUT_DEVIATIONS,
    TABLE_AXIS,
)
from refdiff.oracle.mistakes.in_spec import SPEC_DEVIATIONS
from refdiff.oracle.mistakes.in_tiles import ONLINE_AXIS, TILE_DEVIATIONS
from refdiff.oracle.mistakes.kernel import is_same_output, output, output_with
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS

KINDS = ("dense", "packed", "paged", "layer")
EVERY: tuple[Mistake, ...] = (
    *SPEC_DEVIATIONS,
    *(m for m in CATALOGUE if not m.layer.endswith("_vjp")),
    *INPUT_DEVIATIONS,
)
"""All deviations that any spec can have. Where two are one function, the first gives the name."""
RARE_DEVIATIONS: tuple[Mistake, ...] = (
    *TILE_DEVIATIONS,
    *RARE_INPUT_DEVIATIONS,
    *(replace(d, axis="padding") for d in INPUT_DEVIATIONS if d.name == "mask_ignored"),
)
"""Deviations that only `diagnose` tries: typical inputs show none of them, all inputs do, or there are too many."""
SINGLE_AXES = (ONLINE_AXIS, TABLE_AXIS, "padding", "positions", "bias")
"""The axes of deviations that are not tried in pairs: there are many of them, or they are rare."""
TWO_MAP_AXES = frozenset({
    "pair", "maps", "lambda form", "order", "clamp", "lambda_init", "output scale", "v1 or v2", "maximum",
})  # fmt: skip
"""The axes of deviations that need two maps. Plain attention, with λ = 0, has none of them."""


@lru_cache(maxsize=64)
def deviations(spec: Spec | str, kind: str = "dense") -> tuple[Mistake, ...]:
    """Return the deviations that compute another function than `spec` on some inputs of this kind.

    Deviations that compute the same function are one entry, and the names of the others are in its `aliases`.

    Args:
        spec: a spec, or the name of a preset, which has small dimensions then, as in `cases`.
        kind: "dense", "packed", "paged" or "layer".

    Raises:
        ValueError: another kind.
    """
    spec = shrink_spec(resolve_spec(spec))
    shown = draw_probes(spec, kind)
    right = [output(Kernel(spec, x)) for x in shown]
    kept: list[tuple[Mistake, list[Numpy | None]]] = []
    for deviation in EVERY:
        if spec.is_plain and needs_two_maps(deviation):
            continue
        found = [output_with(spec, x, [deviation]) for x in shown]
        wrong = [None if is_same_output(f, y) else f for f, y in zip(found, right, strict=True)]
        if all(f is None for f in wrong):
            continue
        for n, (other, results) in enumerate(kept):
            if _agree(wrong, results):
                merged = [a if b is None else b for a, b in zip(results, wrong, strict=True)]
                kept[n] = (replace(other, aliases=(*other.aliases, deviation.name)), merged)
                break
        else:
            kept.append((deviation, wrong))
    return tuple(deviation for deviation, _ in kept)


def shrink_spec(spec: Spec) -> Spec:
    """Return the spec with a short window and, if signals share noises, few groups: its deviations stay the same."""
    window = None if spec.window is None else min(spec.window, THRESHOLDS.listed_window)
    if spec.ratio == 1:
        return spec.replace(window=window)
    groups = min(spec.key_groups, THRESHOLDS.listed_groups)
    heads = {"query_heads": spec.query_heads // spec.key_groups * groups,
             "key_heads": spec.key_heads // spec.key_groups * groups}  # fmt: skip
    return spec.replace(window=window, **heads)


def needs_two_maps(deviation: Mistake) -> bool:
    """Whether plain attention cannot have a deviation."""
    return deviation.axis in TWO_MAP_AXES


def _agree(a: list[Numpy | None], b: list[Numpy | None]) -> bool:
    """Whether two deviations agree on all probes that both change, and there is such a probe."""
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return bool(both) and all(is_same_output(x, y) for x, y in both)


def draw_probes(spec: Spec, kind: str) -> list[Inputs]:
    """Draw small float64 inputs on which every deviation of the spec shows."""
    w, D = spec.window or 0, 2 * spec.head_dim + 1
    shapes: dict[str, tuple[Structure, ...]] = {
        "dense": (
            Structure(queries=5, keys=w + 8, padding="left"),
            Structure(queries=w + 6, keys=w + 6),
            Structure(queries=6, keys=4),  # the first two rows see nothing
        ),
        "packed": (Structure(packed=((3, 3), (4, w + 6), (5, 5 + w))), Structure(packed=((6, 4), (2, w + 4)))),
        "paged": (Structure(pages=((1, w + 9), (1, 3), (1, w + 6))), Structure(pages=((3, w + 7), (1, w + 5)))),
        "layer": (
            Structure(queries=5, keys=w + 8, hidden=D),
            Structure(queries=w + 5, keys=w + 5, hidden=D),
        ),
    }
    if kind not in shapes:
        raise ValueError(f"kind: got {kind!r}, expected one of {', '.join(map(repr, KINDS))}")
    if kind == "dense" and spec.ratio > 1:
        shapes["dense"] += (Structure(queries=spec.query_heads, keys=spec.query_heads),)
    values = ["tiny_values" if n == 1 and kind != "packed" else "discriminating" for n in range(len(shapes[kind]))]
    drawn = (draw(spec, shape, values[n], n + 1) for n, shape in enumerate(shapes[kind]))
    return [as_float64(spec, x) for x in drawn]


def blind_spots(spec: Spec | str, inputs: Mapping[str, Any], recipe: Recipe | str | None = None) -> tuple[Mistake, ...]:
    """Return the deviations that a test on these inputs cannot detect.

    All deviations of `enlarge_spec(spec)` are tried, so that dimensions count too: inputs with as many query heads as
    key heads, or with one token, are blind to the mistakes that they hide.

    Args:
        spec: as in `truth`.
        recipe: what the kernel rounds; None for the deviations that are hidden even without rounding.

    Raises:
        ValueError: inputs that do not fit `spec`.
    """
    spec = resolve_spec(spec, inputs)
    exact = as_float64(spec, inputs)
    allowed = None if recipe is None else budget(spec, inputs, recipe)
    if allowed is not None:
        exact = {**exact, **as_float64(spec, allowed.inputs)}
    right = output(Kernel(spec, exact))
    blind = []
    for deviation in deviations(enlarge_spec(spec), kind_of(exact)):
        wrong = output_with(spec, exact, [deviation])
        if wrong is None or right is None or not _is_seen(wrong, right, allowed):
            blind.append(deviation)
    return tuple(blind)


def _is_seen(wrong: Numpy, right: Numpy, allowed: Budget | None) -> bool:
    if allowed is None or wrong.shape != right.shape:
        return not is_same_output(wrong, right)
    return allowed.judge({"out": wrong}).status == "fail"


def enlarge_spec(spec: Spec) -> Spec:
    """Return the spec with dimensions that show every choice: three query heads per key head, depth, wide heads."""
    groups = max(2, spec.key_groups)
    key_heads = groups if spec.keys == "shared" else 2 * groups
    return spec.replace(
        query_heads=3 * groups * (1 if spec.is_plain else spec.ratio + 1),
        key_heads=key_heads,
        head_dim=max(spec.head_dim + spec.head_dim % 2, 8),
        layer=max(spec.layer, 1),
    )
