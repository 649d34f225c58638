"""Bring an array of another implementation into the axes of its point: transposed, heads merged, maps in one array."""

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
    """The axes of a point: their letters and lengths; letters in brackets are merged into one axis of the array.

    With letters "BT(Hd)" and sizes (2, 5, 8, 6) the array has the shape (2, 5, 48).
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
    letters = {
        "scores": "BHTS", "probs": "BHTS", "lse": "BHT", "attn": "BHTe", "diff": "BHTe", "groupnorm": "BHTe",
        "q_rope": "BHTd", "k_rope": "BKTd", "values": "BHSe", "cos": "B1Tn", "sin": "B1Tn", "lambda_full": "BHT1",
    }.get(name.rstrip("12"), "BTDEF")  # fmt: skip
    if len(shape) > len(letters):
        letters = "ABCDEFGHIJ"
    return Axes(letters[: len(shape)], shape)


def arrange(array: NDArray[Any], path: str, reference: Mapping[str, NDArray[Any]]) -> tuple[Floats | None, str]:
    """Bring an array into the axes of its point: return it in float64, and the order of its axes unless it is usual.

    If several orders fit its shape, the one nearest to the reference is taken. If none fits: None and the reason.
    """
    axes = axes_of(path, reference)
    wide = array.astype(np.float64)
    shape = reference[path].shape
    if path.rpartition(".")[2] in ("cos", "sin"):
        wide = _angles(wide, shape)
    if wide.shape == shape:
        return wide, ""
    found = [(a, order) for a, order in arrangements(wide, axes) if a.shape == shape]
    if not found:
        return None, f"has shape {array.shape}, expected {shape} or another order of its axes"
    target = reference[path].astype(np.float64)
    return min(found, key=lambda item: _distance(item[0], target))


def arrangements(array: Floats, axes: Axes) -> Iterator[tuple[Floats, str]]:
    """Yield the array in the axes of a point, with their original order, for every order that its shape allows."""
    squeezed = [n for n in array.shape if n != 1]
    names, long = axes.names, [i for i, n in enumerate(axes.sizes) if n != 1]
    final = _merged(axes)
    for order in itertools.permutations(long):
        if _is_merge([axes.sizes[i] for i in order], squeezed):
            read = array.reshape([axes.sizes[i] for i in order])
            back = sorted(range(len(order)), key=order.__getitem__)
            yield read.transpose(back).reshape(final), "".join(names[i] for i in order)


def _merged(axes: Axes) -> tuple[int, ...]:
    """Return the shape of the array with merged axes."""
    sizes, groups = iter(axes.sizes), re.findall(r"\(\w+\)|\w", axes.letters)
    return tuple(math.prod(next(sizes) for _ in group.strip("()")) for group in groups)


def _is_merge(fine: list[int], coarse: list[int]) -> bool:
    """Whether merging adjacent axes turns the shape `fine` into `coarse`."""
    position = 0
    for n in coarse:
        product = 1
        while product < n and position < len(fine):
            product *= fine[position]
            position += 1
        if product != n:
            return False
    return position == len(fine)


def _angles(x: Floats, shape: tuple[int, ...]) -> Floats:
    """Return cos or sin of each angle once: of rotated pairs and of sequences with the same positions."""
    n = shape[-1]
    if x.shape[-1:] == (2 * n,):
        for half, other in ((x[..., :n], x[..., n:]), (x[..., 0::2], x[..., 1::2])):
            if np.array_equal(half, other, equal_nan=True):
                x = half
                break
    if x.ndim == 2 and shape[0] > 1 and x.shape == (shape[2], n):
        return np.broadcast_to(x, shape)
    same = shape[0] == 1 and x.ndim > 2 and np.array_equal(x, np.broadcast_to(x[:1], x.shape), equal_nan=True)
    return x[:1] if same else x


def _distance(x: Floats, y: Floats) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(np.where(np.isfinite(x), x, 0) - np.where(np.isfinite(y), y, 0))
    return float(difference.sum())


def separate_maps(
    points: Mapping[str, NDArray[Any]], reference: Mapping[str, NDArray[Any]], interleaved: bool
) -> dict[str, NDArray[Any]]:
    """Split arrays that have the heads of both maps (`scores`, `probs`, `attn`, `lse`) into one for each map.

    `kq`, llama.cpp's scores, are divided by √d.
    """
    found = dict(points)
    for path, array in points.items():
        match = _HEADS.match(path)
        if match is None or path in reference:
            continue
        at, name, repetition = match[1], match[2].replace("kq", "scores"), match[3] or ""
        whole = f"{at}{name}{repetition}"
        if match[2] == "kq" and f"{at}q_rope" in reference:
            array = array.astype(np.float64) / math.sqrt(reference[f"{at}q_rope"].shape[-1])
        if whole in reference:
            found.pop(path)
            found[whole] = array
        elif f"{at}{name}1{repetition}" in reference:
            found.pop(path)
            found |= _split_maps(array, f"{at}{name}", repetition, reference, interleaved)
    return found


def _split_maps(
    array: NDArray[Any], name: str, repetition: str, reference: Mapping[str, NDArray[Any]], interleaved: bool
) -> dict[str, NDArray[Any]]:
    first = reference[f"{name}1{repetition}"]
    axes = axes_of(f"{name}1{repetition}", reference)
    both = Axes(axes.letters, (axes.sizes[0], 2 * axes.sizes[1], *axes.sizes[2:]))
    shape = (first.shape[0], 2 * first.shape[1], *first.shape[2:])
    pairs = [(array.astype(np.float64), "")] if array.shape == shape else list(arrangements(array.astype(float), both))
    split = [
        (a[:, 0::2], a[:, 1::2]) if interleaved else (a[:, : shape[1] // 2], a[:, shape[1] // 2 :]) for a, _ in pairs
    ]
    if not split:
        return {}
    one, two = min(split, key=lambda halves: _distance(halves[0], first.astype(np.float64)))
    return {f"{name}1{repetition}": one, f"{name}2{repetition}": two}
