"""What unilm's files computed, written by `make_unilm.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.model.weights.safetensors_file import open_safetensors

FILE = Path(__file__).with_name("unilm.safetensors")
THETA = 10_000.0
SAME = 1e-10
"""How far refdiff may be from unilm's files in float64, as a share of the row's largest number."""


@dataclass(frozen=True)
class Case:
    """One run: the arguments of the class, the input (B, T, D), the weights, and the output of every file."""

    options: dict[str, Any]
    x: np.ndarray
    weights: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    @property
    def key_heads(self) -> int:
        """unilm's `num_kv_heads`, which counts pairs in v1."""
        return self.options["num_kv_heads"] or self.options["num_heads"]


def case(name: str) -> Case:
    """Read the case of this name: v1, v2 or plain, with -mha, -gqa2 or -gqa3."""
    file = open_safetensors(FILE)
    about = json.loads(file.metadata["made_by"])
    by_kind: dict[str, dict[str, np.ndarray]] = {"in": {}, "weight": {}, "out": {}}
    for key in file.tensors:
        of, _, rest = key.partition("/")
        kind, _, rest = rest.partition("/")
        if of == name:
            by_kind[kind][rest] = file.view(key)
    return Case(about["cases"][name], by_kind["in"]["x"], by_kind["weight"], by_kind["out"])
