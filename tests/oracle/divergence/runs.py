"""Runs with a mistake in one layer, in float32 and in bfloat16: the seam of the trace, laid over twice.

Inside of the mistake a recorder sees what it makes of its arguments, outside of it another sees what it gives back.
Every value that either sees is rounded, and the run goes on with that, as a program in that type would.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

import refdiff
from refdiff.backends import Ops, ops_for, overlay
from refdiff.model.weights import flatten, nest
from refdiff.oracle.mistakes import Mistake
from refdiff.oracle.trace.points import Points
from tests.model.models import small_config

LAYER = 2
INSIDE = re.compile(r"(scores|lse|probs|attn)[12]$")
KINDS = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float16": np.dtype(np.float16)}


def model(variant: str, dtype: str = "float32", *, seed: int = 0, whisper: bool = False, **fields: Any) -> Any:
    """Four layers in which mistakes show: ε counts, rotations have a scale; `whisper`: one layer has small values."""
    yarn = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
    sizes = {"num_hidden_layers": 4, "max_position_embeddings": 256, "rms_norm_eps": 0.3, "rope_parameters": yarn}
    config = small_config(variant=variant, **sizes | fields)
    drawn = refdiff.DiffLlamaForCausalLM.from_config(config, seed, dtype="float64", kernels="reference")
    g = np.random.default_rng(seed + 100)
    flat = flatten(drawn.params)
    for name, x in flat.items():
        if name.endswith(("norm.weight", "subln.weight")):
            flat[name] = g.normal(1.0, 0.3, size=x.shape)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            flat[name] = 1.6 * x
        if whisper and name.endswith(f"layers.{LAYER}.self_attn.v_proj.weight"):
            flat[name] = 2e-3 * x
        flat[name] = flat[name].astype(KINDS[dtype]).astype(np.float32)
    return refdiff.DiffLlamaForCausalLM(drawn.config, nest(flat), kernels="reference")


def inputs(seed: int = 0) -> dict[str, Any]:
    """Two rows of eleven tokens, padded on the left, that do not start at position 0."""
    g = np.random.default_rng(seed)
    mask = np.ones((2, 11), dtype=np.int64)
    mask[1, :2] = 0
    return {
        "input_ids": g.integers(1, 53, (2, 11)),
        "attention_mask": mask,
        "position_ids": np.arange(5, 16)[None].repeat(2, 0),
    }


def run(
    of: Any, call: dict[str, Any], dtype: str, mistake: Mistake | None = None, *, maps: bool = False
) -> dict[str, np.ndarray]:
    """The points of a run of `of` in `dtype`, with the mistake in layer `LAYER` where it belongs to one."""
    kind = KINDS[dtype]
    inner: dict[str, list[np.ndarray]] = {}
    points: dict[str, np.ndarray] = {}

    def rounded(into: Callable[[str, np.ndarray], None]) -> Callable[..., np.ndarray]:
        def visit(path: str, value: Any, **_: Any) -> np.ndarray:
            stored = np.asarray(value).astype(kind)
            into(path, stored)
            return stored.astype(np.float32)

        return visit

    weights = flatten(of.params)
    where = Where(weights)

    def keep(path: str, x: np.ndarray) -> None:
        inner.setdefault(where.at + path.partition("[")[0], []).append(x)

    within = Points({}, rounded(keep), maps=maps, whole=False)
    ops, seen = ops_for(), within.wrap(ops_for())
    ops = overlay(ops, lambda name, f: seen.diff_attention if name == "diff_attention" else f)
    if mistake is not None:
        ops = overlay(ops, where.only_there(mistake))
    outer = Points(weights, rounded(lambda path, x: points.__setitem__(path, x)), maps=maps, whole=True)
    changed = copy.copy(of)
    changed.ops = where.over(outer.wrap(ops))
    changed(**call, use_cache=False)
    for path in [path for path in points if INSIDE.search(path)]:
        del points[path]
        found = inner.get(path, [])
        if len(found) == 1:  # a mistake that calls the layer several times leaves nothing to look at
            points[path] = found[0]
    return points


class Where:
    """Knows the layer that a run is in, by the weights that it uses."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self._names = {id(x): name for name, x in weights.items()}
        self.layer: int | None = None

    @property
    def at(self) -> str:
        """What paths in the attention of this layer begin with."""
        return f"model.layers.{self.layer}.self_attn."

    def over(self, ops: Ops) -> Ops:
        """Look at the weights of every call."""

        def wrap(name: str, function: Any) -> Any:
            def looked_at(*args: Any, **kwargs: Any) -> Any:
                for x in (*args, *kwargs.values(), kwargs.get("gate_proj", {}).get("weight")):
                    found = self._names.get(id(x))
                    if found is not None:
                        match = re.search(r"layers\.(\d+)\.", found)
                        self.layer = int(match[1]) if match else None
                return function(*args, **kwargs)

            return looked_at

        return overlay(ops, wrap)

    def only_there(self, mistake: Mistake) -> Callable[[str, Any], Any]:
        """The mistake in layer `LAYER`; one outside of all layers everywhere."""

        def wrap(name: str, right: Any) -> Any:
            if name != mistake.layer:
                return right
            wrong = mistake.of(right)

            def maybe(*args: Any, **kwargs: Any) -> Any:
                return (wrong if self.layer in (LAYER, None) else right)(*args, **kwargs)

            return maybe

        return wrap
