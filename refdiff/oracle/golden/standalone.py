"""Test a kernel of attention by the test vectors beside this file, with NumPy and pytest alone.

Call your kernel in `attend`, and run pytest on this file. refdiff's guide to test vectors has the rule that is tested.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).parent
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "BOOL": "?"}


def attend(inputs: dict[str, Any], dtype: str, spec: dict[str, Any]) -> Any:
    """Return the output of your kernel, or a dictionary with out and any of lse, lse1, lse2, dq, dk, ….

    inputs: NumPy arrays by name, with dout if gradients are expected; those in bfloat16 come as float32.
    dtype: what the kernel stores, such as "bfloat16". spec: what it computes, the fields of refdiff's `Spec`.
    """
    return NotImplemented  # in place of this line: your kernel. What it does not serve is skipped


def read_index() -> dict[str, list[list[str]]]:
    """Return the words of the line of each judged tensor, by case."""
    cases: dict[str, list[list[str]]] = {}
    tensors: list[list[str]] = []
    for line in (FOLDER / "index.txt").read_text(encoding="utf-8").splitlines()[1:]:
        words = line.split()
        if words[0] == "case":
            tensors = cases[words[1]] = []
        elif words[0] != "input":
            tensors.append(words)
    return cases


INDEX = read_index()


def run_case(case: str) -> tuple[dict[str, Any], Any]:
    """Return the arrays of a case, and what the kernel computes from its inputs."""
    data = (FOLDER / f"case_{case}.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    recipe, spec = (json.loads(header["__metadata__"][name]) for name in ("recipe", "spec"))
    arrays = {}
    for name, tensor in header.items():
        if name != "__metadata__":
            begin, end = (start + offset for offset in tensor["data_offsets"])
            x = np.frombuffer(data[begin:end], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
            arrays[name] = (x.astype("<u4") << 16).view("<f4") if tensor["dtype"] == "BF16" else x
    inputs = {name.removeprefix("inputs."): x for name, x in arrays.items() if name.startswith("inputs.")}
    found = attend(inputs, recipe["storage"], spec)
    return arrays, found if isinstance(found, dict) or found is NotImplemented else {"out": found}


@np.errstate(all="ignore")
def find_error(y: Any, words: list[str], arrays: dict[str, Any]) -> str:
    """Return what is wrong with a tensor, or nothing; the words are those of its line in the index."""
    name, (n, width), (row, bulk, slope) = words[0], map(int, words[1:3]), map(float, words[5:8])
    if y.shape != (shape := arrays[f"expected.{name}"].shape):
        return f"got shape {y.shape}, expected {shape}"
    y, right = (x.astype(np.float64).reshape(n, width) for x in (y, arrays[f"expected.{name}"]))
    budget = arrays[f"budget.{name}"].astype(np.float64).ravel()
    finite, judged = np.isfinite(y) & np.isfinite(right), np.isfinite(budget)
    if not np.all((finite | (y == right) | (np.isnan(y) & np.isnan(right)))[judged]):
        return "NaN or infinity in other places than in the truth"
    judged &= finite.any(axis=-1)
    e, right, budget = np.where(finite, y - right, 0.0)[judged], np.where(finite, right, 0.0)[judged], budget[judged]
    off = np.sqrt(np.mean(e**2, axis=-1))
    if np.any(wrong := off > row * budget):
        r = int(np.argmax(wrong))
        where, most = np.flatnonzero(judged)[r], row * budget[r]
        return f"row {where} is off by {off[r]:.3g}, allowed {most:.3g}; {wrong.sum()} are wrong"
    if not judged.any():
        return ""
    ratio = np.nan_to_num(off / budget)
    clear = (np.sum(right**2, axis=-1) >= budget**2 * width) & (budget > 0)
    weights = clear / np.where(clear, budget, 1.0) ** 2
    squares = np.sum(weights @ right**2)
    found = {
        "bulk": (np.sqrt(np.mean(ratio**2)), bulk + (row - bulk) / np.sqrt(len(ratio))),
        "slope": (np.abs(np.sum(weights @ (e * right))) / squares if squares else 0.0, slope),
    }
    return "; ".join(f"{of} is {x:.3g}, allowed {most:.3g}" for of, (x, most) in found.items() if x > most)


@pytest.mark.parametrize("case", INDEX)
def test_vectors(case: str) -> None:
    """Test what the kernel computes of one case."""
    arrays, found = run_case(case)
    if found is NotImplemented:
        pytest.skip("the kernel does not serve it")
    given = [words for words in INDEX[case] if words[0] in found]
    errors = {words[0]: find_error(np.asarray(found[words[0]]), words, arrays) for words in given}
    if wrong := [f"{name}: {error}" for name, error in errors.items() if error]:
        pytest.fail("\n".join(wrong), pytrace=False)
    if not any(words[8] == "1" for words in given):
        pytest.skip("inconclusive: rounding errors may hide any mistake")
