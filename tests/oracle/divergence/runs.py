"""Runs with a mistake, in float32 and in bfloat16: the seam of the trace, laid over twice.

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
from refdiff.backends import ops_for, overlay
from refdiff.model.weights import flatten, nest
from refdiff.oracle.mistakes import Mistake, wrap
from refdiff.oracle.trace.points import Points
from tests.model.models import small_config

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
        if whisper and name.endswith("layers.0.self_attn.v_proj.weight"):
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
    """The points of a run of `of` in `dtype`, with the mistake in all of its layers."""
    kind = KINDS[dtype]
    inner: dict[str, list[np.ndarray]] = {}
    points: dict[str, np.ndarray] = {}

    def rounded(into: Callable[[str, np.ndarray], None]) -> Callable[..., np.ndarray]:
        def visit(path: str, value: Any, **_: Any) -> np.ndarray:
            stored = np.asarray(value).astype(kind)
            into(path, stored)
            return stored.astype(np.float32)

        return visit

    def keep(path: str, x: np.ndarray) -> None:
        inner.setdefault(path.partition("[")[0], []).append(x)

    within = Points({}, rounded(keep), maps=maps, whole=False)
    ops, seen = ops_for(), within.wrap(ops_for())
    ops = overlay(ops, lambda name, f: seen.diff_attention if name == "diff_attention" else f)
    if mistake is not None:
        ops = overlay(ops, wrap(mistake))
    outer = Points(flatten(of.params), rounded(points.__setitem__), maps=maps, whole=True)
    changed = copy.copy(of)
    changed.ops = outer.wrap(ops)
    changed(**call, use_cache=False)
    for path in [path for path in points if INSIDE.search(path)]:
        del points[path]
        found = inner.get(path.rpartition(".")[2], [])
        if len(found) == of.config.num_hidden_layers:  # a mistake that calls the layer several times shows nothing
            points[path] = found[int(path.split(".")[2])]
    return points
