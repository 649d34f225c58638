"""The list that `refdiff trace --points` prints, 80 columns wide."""

from __future__ import annotations

import itertools
import textwrap

from refdiff.oracle.trace.known_points import OUT, POINTS, Point

WIDTH = 80
HEAD = (
    "Each point of a run, as its name, shape, and what it is. B batch, T queries, S keys, H query heads, K key/value "
    "heads, h heads of a map, d size of a head, e of its output, D of the model, F of its inner layer, V of the "
    "vocabulary."
)
FOOT = (
    f"Of the attention alone (--spec) the names are those after self_attn., and then {OUT.path} {OUT.shape}. "
    "The maps of a plain Llama have no number. probs1 and probs2 are recorded with --maps. In a file, names that begin "
    "with inputs. are what the run was called with, such as inputs.input_ids."
)


def lines() -> list[str]:
    """Head, points in order, those of a module together, and foot."""
    result = [*textwrap.wrap(HEAD, WIDTH), ""]
    for module, group in itertools.groupby(POINTS, _module):
        points = list(group)
        names = [_shown(point).removeprefix(module) for point in points]
        wide, shapes = max(map(len, names)), max(len(point.shape) for point in points)
        result += [module] if module else []
        indent = "  " if module else ""
        result += [
            f"{indent}{name:{wide}}  {point.shape:{shapes}}  {point.what}"
            for name, point in zip(names, points, strict=True)
        ]
    return [*result, "", *textwrap.wrap(FOOT, WIDTH)]


def _shown(point: Point) -> str:
    return point.path if point.path == "lm_head" else f"model.{point.path}"


def _module(point: Point) -> str:
    """What the names of a module in a layer begin with; nothing outside of layers."""
    head, dot, _ = _shown(point).removesuffix(".input").rpartition(".")
    return head + dot if "layers.N" in head else ""
