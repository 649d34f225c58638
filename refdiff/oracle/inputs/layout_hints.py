"""An array in another layout than it must have: which one it is, by its shape, and what puts it right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

Layout = tuple[tuple[int, ...], ...]

_LAYOUTS = {
    4: ("0 2 1 3", "0 2 13", "2 1 3", "1 2 3", "2 13", "02 1 3", "01 2 3", "02 13", "2 0 1 3", "2 0 13"),
    3: ("0 2 1", "1 2", "2 1", "02 1", "01 2", "1 0 2", "2 0 1"),
    2: ("1 0", "1"),
}
"""By the number of axes that are right: which of them stand where, those that are one axis of the array together."""

_AXES = {
    "out": "B h T e",
    "q": "B H T d",
    "k": "B K S d",
    "v": "B V S w",
    "k_pages": "P K p d",
    "v_pages": "P V p w",
    "lse": "B h T",
    "lse1": "B h T",
    "lse2": "B h T",
    "lambda_full": "B h T",
    "lambda_logits": "B T h",
    "gate_logits": "B h T e",
    "x": "B T D",
    "x_past": "B R D",
}
_HEADS = "hHKV"


def axes_of_output(name: str, ndim: int) -> tuple[str, ...]:
    """The letters of an output's axes as in `refdiff.oracle.inputs`; of a gradient those of its input."""
    if name == "out" and ndim == 3:
        return ("B", "T", "D")
    axes = tuple(_AXES.get(name, _AXES.get(name[1:], "") if name.startswith("d") else "").split())
    return axes if len(axes) == ndim else tuple("ABCDEF"[:ndim])


def other_layout(shape: Sequence[int], axes: Sequence[str], lengths: Mapping[str, int]) -> str:
    """Say which layout has this shape and what puts it right, as the end of a message; "" where none has.

    Where several have it, as with as many heads as tokens, each is named; one by which a batch would be found that is
    not known, such as (B H, T, d), where no other has it.

    Args:
        axes: the letters of the axes that are right, in order.
        lengths: of those that are known. A batch of 1, or one that is not among them, may be left out of the shape.
    """
    found: dict[tuple[str, ...], tuple[str, str]] = {}
    for layout in sorted(_layouts(len(axes)), key=lambda some: _finds_batch(some, axes, lengths)):
        if found and _finds_batch(layout, axes, lengths):
            break
        known = _fit(shape, layout, axes, lengths)
        if known is not None:
            order = tuple(a for a in (axes[i] for group in layout for i in group) if known[a] != 1)
            found.setdefault(order, (_name(layout, axes), _steps(layout, axes, known)))
    if len(found) < 2:
        return "".join(f": {name}; {steps} puts {_it(name)} right" for name, steps in found.values())
    return ": " + ", or ".join(f"if {name}, {steps} puts {_it(name)} right" for name, steps in found.values())


def _layouts(count: int) -> Iterator[Layout]:
    for text in _LAYOUTS.get(count, ()):
        yield tuple(tuple(map(int, group)) for group in text.split())


def _finds_batch(layout: Layout, axes: Sequence[str], lengths: Mapping[str, int]) -> bool:
    return axes[0] not in lengths and any(0 in group and len(group) > 1 for group in layout)


def _fit(
    shape: Sequence[int], layout: Layout, axes: Sequence[str], lengths: Mapping[str, int]
) -> dict[str, int] | None:
    """The length of every axis, if the shape is one of this layout.

    Two that are unknown must stand in their own order, or any shape would fit.
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


def _name(layout: Layout, axes: Sequence[str]) -> str:
    if layout == ((0,), (2,), (1,), (3,))[: len(axes)] and axes[1] in _HEADS:
        return "heads and tokens are swapped"
    if layout == ((1,), (0,)):
        return "it is transposed"
    lies = ", ".join(" ".join(axes[i] for i in group) for group in layout)
    side = ", the heads side by side in each token" if layout[-1] == (1, 3) else ""
    return f"it lies as ({lies}{',' if len(layout) == 1 else ''}){side}"


def _it(name: str) -> str:
    return "it" if name.startswith("it ") else "them"


def _steps(layout: Layout, axes: Sequence[str], known: Mapping[str, int]) -> str:
    order = [i for group in layout for i in group]
    back = tuple(order.index(i) for i in sorted(order))
    apart = f".reshape{tuple(known[axes[i]] for i in order)}" if len(order) > len(layout) else ""
    turned = f".transpose{back}" if back != tuple(range(len(order))) else ""
    return f"{apart}{turned}{'[None]' if len(order) < len(axes) else ''}"
