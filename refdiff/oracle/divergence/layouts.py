"""Somebody's array of a point → the axes that it has here: other orders, heads side by side, both maps in one."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_HEADS = re.compile(r"(.*?)(scores|lse|probs|attn|kq)(\[\d+\])?$")
_MERGED = {"q_proj": "q_rope", "k_proj": "k_rope", "v_proj": "k_rope", "scaled": "diff"}


@dataclass(frozen=True)
class Axes:
    """The axes of a point: their letters and lengths, those that are one axis of the array in brackets.

    letters "BT(Hd)" and sizes (2, 5, 8, 6) is an array (2, 5, 48).
    """

    letters: str
    sizes: tuple[int, ...]

    @property
    def names(self) -> str:
        """The letters without brackets."""
        return self.letters.replace("(", "").replace(")", "")


def axes_of(path: str, reference: Mapping[str, NDArray[Any]]) -> Axes:
    """Return the axes of a point of `reference`."""
    shape = reference[path].shape
    head, _, name = path.partition("[")[0].rpartition(".")
    if name in _MERGED and f"{head}.{_MERGED[name]}".lstrip(".") in reference and len(shape) == 3:
        width = reference[f"{head}.{_MERGED[name]}".lstrip(".")].shape[-1]
        if width and shape[2] % width == 0:
            return Axes("BT(He)", (*shape[:2], shape[2] // width, width))
    if name == "values" and len(shape) == 4:
        return Axes("BHS(pd)", (*shape[:3], 2, shape[3] // 2))
    letters = {
        "scores": "BHTS", "probs": "BHTS", "lse": "BHT", "attn": "BHTe", "diff": "BHTe", "groupnorm": "BHTe",
        "q_rope": "BHTd", "k_rope": "BKTd", "cos": "B1Tn", "sin": "B1Tn", "lambda_full": "BHT1",
    }.get(name.rstrip("12"), "BTDEF")  # fmt: skip
    if len(shape) > len(letters):
        letters = "ABCDEFGHIJ"
    return Axes(letters[: len(shape)], shape)


def arranged(array: NDArray[Any], path: str, reference: Mapping[str, NDArray[Any]]) -> tuple[Floats | None, str]:
    """Bring an array into the axes of its point: float64 and how it lay, or None where its shape can be none of it.

    Where several arrangements have its shape, the plain one is taken, or else the one nearest to the reference.
    """
    axes = axes_of(path, reference)
    wide = array.astype(np.float64)
    shape = reference[path].shape
    if path.rpartition(".")[2] in ("cos", "sin"):
        wide = _once(wide, shape[-1])
        one = [n for n in shape[1:] if n != 1]
        if shape[0] > 1 and [n for n in wide.shape if n != 1] == one:  # the same for all sequences
            wide = np.broadcast_to(wide.reshape(1, *shape[1:]), shape)
        if shape[0] == 1 and wide.ndim and len(wide) > 1 and [n for n in wide.shape[1:] if n != 1] == one:
            if not np.array_equal(wide[1:], wide[:-1], equal_nan=True):
                return None, "has other angles for each sequence: record the reference with this run's position_ids"
            wide = wide[:1]
    if wide.shape == shape:
        return wide, ""
    found = [(a, lay) for a, lay in arrangements(wide, axes) if a.shape == shape]
    if not found:
        return None, f"has shape {array.shape}, expected {shape} or another order of its axes"
    target = reference[path].astype(np.float64)
    return min(found, key=lambda item: _distance(item[0], target))


def arrangements(array: Floats, axes: Axes) -> Iterator[tuple[Floats, str]]:
    """Read the numbers of `array` as the axes in every order that its shape allows, and put them in the right one."""
    squeezed = [n for n in array.shape if n != 1]
    names, long = axes.names, [i for i, n in enumerate(axes.sizes) if n != 1]
    final = _merged(axes)
    for order in itertools.permutations(long):
        if _is_merge([axes.sizes[i] for i in order], squeezed):
            read = array.reshape([axes.sizes[i] for i in order])
            back = sorted(range(len(order)), key=order.__getitem__)
            yield read.transpose(back).reshape(final), "".join(names[i] for i in order)


def _merged(axes: Axes) -> tuple[int, ...]:
    """The shape of the array, from the lengths of its axes."""
    sizes, groups = iter(axes.sizes), re.findall(r"\(\w+\)|\w", axes.letters)
    return tuple(math.prod(next(sizes) for _ in group.strip("()")) for group in groups)


def _is_merge(fine: list[int], coarse: list[int]) -> bool:
    """Whether neighbors among `fine` multiply to `coarse`."""
    position = 0
    for n in coarse:
        product = 1
        while product < n and position < len(fine):
            product *= fine[position]
            position += 1
        if product != n:
            return False
    return position == len(fine)


def _once(x: Floats, n: int) -> Floats:
    """cos and sin of each angle once, where they stand there for both of the dimensions that turn."""
    if x.shape[-1:] == (2 * n,):
        if np.array_equal(x[..., :n], x[..., n:], equal_nan=True):
            return x[..., :n]
        if np.array_equal(x[..., 0::2], x[..., 1::2], equal_nan=True):
            return x[..., 0::2]
    return x


def _distance(x: Floats, y: Floats) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(np.where(np.isfinite(x), x, 0) - np.where(np.isfinite(y), y, 0))
    return float(difference.sum())


def maps_apart(
    points: Mapping[str, NDArray[Any]], reference: Mapping[str, NDArray[Any]], interleaved: bool
) -> dict[str, NDArray[Any]]:
    """Replace what has the heads of both maps (`scores`, `probs`, `attn`, `lse`) by one array for each map.

    `kq`, the scores of llama.cpp, are not yet divided by √d there. `attn11`, `attn12`, … are vLLM's halves of attn1.
    """
    found = dict(points)
    for path, array in points.items():
        match = _HEADS.match(path)
        if match is None or path in reference:
            continue
        at, name, again = match[1], match[2].replace("kq", "scores"), match[3] or ""
        whole = f"{at}{name}{again}"
        if match[2] == "kq" and f"{at}q_rope" in reference:
            array = array.astype(np.float64) / math.sqrt(reference[f"{at}q_rope"].shape[-1])
        if whole in reference:
            found.pop(path)
            found[whole] = array
        elif f"{at}{name}1{again}" in reference:
            found.pop(path)
            found |= _halves(array, f"{at}{name}", again, reference, interleaved)
    for path in [p for p in found if p.endswith("attn11")]:
        at = path.removesuffix("attn11")
        for i in "12":
            parts = [found.pop(f"{at}attn{i}{j}", None) for j in "12"]
            if all(part is not None for part in parts):
                found[f"{at}attn{i}"] = np.concatenate(parts, axis=-1)  # type: ignore[arg-type]
    return found


def _halves(
    array: NDArray[Any], name: str, again: str, reference: Mapping[str, NDArray[Any]], interleaved: bool
) -> dict[str, NDArray[Any]]:
    first = reference[f"{name}1{again}"]
    axes = axes_of(f"{name}1{again}", reference)
    both = Axes(axes.letters, (axes.sizes[0], 2 * axes.sizes[1], *axes.sizes[2:]))
    shape = (first.shape[0], 2 * first.shape[1], *first.shape[2:])
    pairs = [(array.astype(np.float64), "")] if array.shape == shape else list(arrangements(array.astype(float), both))
    split = [
        (a[:, 0::2], a[:, 1::2]) if interleaved else (a[:, : shape[1] // 2], a[:, shape[1] // 2 :]) for a, _ in pairs
    ]
    if not split:
        return {}
    one, two = min(split, key=lambda halves: _distance(halves[0], first.astype(np.float64)))
    return {f"{name}1{again}": one, f"{name}2{again}": two}
