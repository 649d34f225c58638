"""A factor that every row would allow; no alarm in right runs of few tokens, equal ones, padded ones."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Trace, first_divergence, trace
from tests.oracle.divergence.runs import KINDS, inputs, model, run

MODULES = re.compile(r"(_proj|norm|act_fn|diff|layers\.\d|lm_head|embed_tokens|probs\d)$")


@functools.cache
def prepared(width: float, tokens: int) -> tuple[Any, dict[str, Any], Trace]:
    of = model("hf", "bfloat16", rms_norm_eps=1e-5, initializer_range=width)
    call = {"input_ids": np.random.default_rng(0).integers(1, 53, (2, tokens))}
    return of, call, trace(of, call)


def nowhere_wrong(ref: Trace, *some: dict[str, np.ndarray], **options: Any) -> None:
    for mine in some:
        for mode in ("local", "free"):
            found = first_divergence(mine, ref, mode=mode, **options)
            assert not found, str(found)


SEEDS = [pytest.param(n, marks=pytest.mark.nightly if n else pytest.mark.slow) for n in (*range(20), 23, 32, 46)]
"""Some of the first sixty, with those that alarmed where rounding was drawn otherwise."""


@pytest.mark.parametrize("seed", SEEDS)
def test_right_runs(seed: int) -> None:
    """Of few tokens, of equal rows in a batch, padded; flat and sharp maps; all points, those of modules, with maps."""
    g = np.random.default_rng(seed)
    dtype = ("bfloat16", "float16", "bfloat16", "float32", "bfloat16")[seed % 5]
    width = float(g.choice([0.01, 0.02, 0.06, 0.12, 0.3]))
    of = model(("hf", "paper", "v2")[seed % 3], dtype, seed=seed, initializer_range=width, rms_norm_eps=1e-5)
    ids = g.integers(1, 53, (2, int(g.choice([5, 11, 24, 48]))))
    for kind in (
        np.zeros_like(ids) + 7,
        np.where(np.arange(ids.shape[1]) % 2, 7, 9)[None].repeat(2, 0),
        ids[:1].repeat(2, 0),
        ids,
        None,
    ):
        call = inputs(seed) if kind is None else {"input_ids": kind}
        ref, mine = trace(of, call), run(of, call, dtype, maps=True)
        with_maps = {path: x for path, x in mine.items() if MODULES.search(path)}
        plain = {path: x for path, x in with_maps.items() if "probs" not in path}
        nowhere_wrong(ref, plain, with_maps, precision=dtype)
    assert KINDS[dtype] == mine["lm_head"].dtype


@functools.cache
def clean() -> tuple[dict[str, np.ndarray], Trace]:
    of, call, ref = prepared(0.3, 24)
    return run(of, call, "bfloat16"), ref


@pytest.mark.parametrize(
    ("mode", "point", "factor"),
    [
        ("local", "self_attn.groupnorm", 1.011),
        pytest.param("local", "mlp.down_proj", 1.015, marks=pytest.mark.slow),
        pytest.param("free", "self_attn.v_proj", 1.011, marks=pytest.mark.slow),
    ],
)
def test_a_factor_near_one_in_bfloat16(point: str, mode: str, factor: float) -> None:
    mine, ref = clean()
    path = f"model.layers.0.{point}"
    assert not first_divergence(mine, ref, mode=mode)
    wrong = {**mine, path: (factor * mine[path].astype(np.float32)).astype(KINDS["bfloat16"])}
    found = first_divergence(wrong, ref, mode=mode)
    assert found.path == path
    assert found.first.what.startswith("equal up to the factor 1.01")
    assert found.first.ratio > 1
