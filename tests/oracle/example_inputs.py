"""Random inputs for tests of the oracle: every name of the dictionary, sizes that differ."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.oracle import Spec
from refdiff.oracle.budget.statistics import RowBudget
from refdiff.oracle.inputs import shapes
from refdiff.oracle.spec.presets import PRESETS

DIMS: dict[str, dict[str, int]] = {
    name: {"query_heads": 12, "key_heads": 4, "head_dim": 6, "layer": 2} for name in PRESETS
} | {
    "gda": {"query_heads": 20, "key_heads": 4, "head_dim": 6, "layer": 2},
    "motif3": {"query_heads": 20, "key_heads": 2, "head_dim": 6, "window": 5},
    "diff_v2": {"query_heads": 12, "key_heads": 3, "head_dim": 6},
    "attention": {"query_heads": 12, "key_heads": 3, "head_dim": 6, "layer": 2},
    "timm": {"query_heads": 12, "key_heads": 12, "head_dim": 6, "layer": 2},
}


def small(name: str, **fields: Any) -> Spec:
    """A preset with grouped queries where its source has them, small."""
    return Spec.preset(name, **{**DIMS[name], **fields})


def draw(spec: Spec, seed: int = 0, layer: bool = False, dtype: Any = np.float64, **lengths: int) -> dict[str, Any]:
    """The names that inputs must have, of a core or of a layer, with random numbers."""
    rng = np.random.default_rng(seed)
    T = lengths.get("T", 5)
    n = {"B": 2, "T": T, "S": 7, "D": 11, "N": 3, "h": spec.heads, "e": spec.out_dim, "d": spec.head_dim} | lengths
    n |= {"H": spec.query_heads, "K": spec.key_heads, "V": spec.value_heads, "w": spec.value_dim}
    n |= {"Hd": n["H"] * n["d"], "Kd": n["K"] * n["d"], "Vw": n["V"] * n["w"], "he": n["h"] * n["e"]}
    names = shapes(spec, {"x": None} if layer else {})
    made = {}
    for name, letters in names.items():
        if name == "lambda_full":
            made[name] = np.asarray(rng.uniform(0.3, 0.9))
            continue
        x = rng.normal(size=[n[a] for a in letters.split()])
        made[name] = x * (0.4 if "lambda_" in name or "proj" in name else 1.0)
    if "norm_weight" in made:
        made["norm_weight"] += 1.5
    return {name: x.astype(dtype) for name, x in made.items()}


def cut_out(inputs: dict[str, Any], queries: slice, keys: slice) -> dict[str, Any]:
    """Dense inputs of some queries and some keys."""
    along = {"q": queries, "gate_logits": queries, "k": keys, "v": keys}
    part = {name: x[:, :, along[name]] if name in along else x for name, x in inputs.items()}
    return {name: x[:, queries] if name == "lambda_logits" else x for name, x in part.items()}


def row_budget(y: np.ndarray, e: float = 1e-3, storage: str = "float32", slope: float = 0.0) -> RowBudget:
    """The budget of a truth (…, e) in which every row may be off by `e`."""
    rows = np.full(y.shape[:-1], e)
    return RowBudget(y, rows, slope, storage, "b h t", np.zeros(rows.shape, bool))
