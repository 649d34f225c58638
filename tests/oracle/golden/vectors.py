"""Small cases, and outputs for them: right ones, and some that have been tampered with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from refdiff.oracle import Case, Recipe, Spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.inputs.arrays import read_arrays

HF = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=8, layer=2)
V2 = Spec.preset("diff_v2", query_heads=4, key_heads=1, head_dim=8)
KINDS = {
    "whole": (HF, Structure(2, 5, 7, padding="left"), "discriminating", "float32"),
    "half": (HF, Structure(1, 6, 6), "discriminating", "bfloat16"),
    "packed": (HF, Structure(packed=((3, 3), (0, 2), (2, 5))), "discriminating", "float16"),
    "v2": (V2, Structure(1, 4, 9), "tiny_values", "bfloat16"),
    "unseen": (HF, Structure(1, 4, 2), "discriminating", "float32"),
    "shared": (HF, Structure(1, 48, 48), "extreme", "bfloat16"),
    "cancelled": (HF, Structure(1, 4, 6), "cancellation", "bfloat16"),
}


def case(kind: str) -> Case:
    """One of the kinds."""
    spec, structure, values, dtype = KINDS[kind]
    seed = list(KINDS).index(kind)
    return Case(kind, values, seed, dtype, spec, draw(spec, structure, values, seed, dtype))


class Read(NamedTuple):
    """A case as its files have it; `tensors` are those that are judged."""

    spec: Spec
    recipe: Recipe
    arrays: dict[str, np.ndarray]
    tensors: list[str]


def read_cases(folder: Path) -> dict[str, Read]:
    """Read the cases of a folder of test vectors, by name."""
    found: dict[str, Read] = {}
    for line in (folder / "index.txt").read_text().splitlines()[1:]:
        word, second, *more = line.split()
        if word == "case":
            arrays, metadata = read_arrays(folder / more[0])
            spec, recipe = Spec(**json.loads(metadata["spec"])), Recipe(**json.loads(metadata["recipe"]))
            found[second] = Read(spec, recipe, arrays, [])
        elif word != "input":
            list(found.values())[-1].tensors.append(word)
    return found


def right(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """For each case of a folder the right outputs, rounded as a program would store them."""
    found = {}
    for name, read in read_cases(folder).items():
        storage = read.recipe.storage
        dtype = ml_dtypes.bfloat16 if storage == "bfloat16" else np.dtype(storage)
        found[name] = {}
        for tensor in read.tensors:
            x = read.arrays[f"expected.{tensor}"]
            in_rows = x.ndim > read.arrays[f"budget.{tensor}"].ndim
            found[name][tensor] = x.astype(dtype if in_rows else np.float32).astype("<f4")
    return found


def write_raw(folder: Path, outputs: dict[str, dict[str, np.ndarray]]) -> None:
    """Write outputs as raw float32."""
    folder.mkdir()
    for name, arrays in outputs.items():
        for tensor, x in arrays.items():
            x.tofile(folder / f"{name}.{tensor}.f32")


def _put(at: tuple[Any, ...], change: Callable[[Any], Any]) -> Callable[[np.ndarray], np.ndarray]:
    def changed(x: np.ndarray) -> np.ndarray:
        y = x.copy()
        y[at] = change(y[at])
        return y

    return changed


MUTATIONS: dict[str, tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = {
    "all a little too large": ("whole", "out", lambda x: x * np.float32(1 + 1e-5)),
    "one number": ("half", "out", _put((0, 0, 3, 5), lambda x: x + 1.0)),
    "one row": ("whole", "out", _put((1, 1, 4), lambda x: x * 1.001)),
    "two rows exchanged": ("half", "out", _put((0, 0, [2, 3]), lambda x: x[::-1])),
    "not a number": ("packed", "out", _put((0, 1, 0, 0), lambda x: np.nan)),
    "infinite": ("whole", "dq", _put((0, 0, 0, 0), lambda x: -np.inf)),
    "a number where none is": ("unseen", "lse1", _put((0, 0, 0), lambda x: 0.0)),
    "another base": ("whole", "lse2", lambda x: x / np.log(np.float32(2))),
    "a sum": ("whole", "dlambda_q1", _put((3,), lambda x: x + 0.01)),
    "a factor that no row shows": ("shared", "out", lambda x: x * np.float32(1.01)),
    "streams exchanged": ("v2", "out", lambda x: -x),
}
