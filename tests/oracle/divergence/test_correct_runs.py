"""Correct runs diverge nowhere, of drawn and of trained weights, and a small error in them is seen."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.model.variants import VARIANTS
from refdiff.oracle import Trace, first_divergence, trace
from tests.model.models import VARIANT_NAMES
from tests.oracle.divergence.runs import KINDS, inputs, model, run

SLOW = pytest.mark.slow


@pytest.mark.parametrize("dtype", ["bfloat16", *(pytest.param(d, marks=SLOW) for d in ("float32", "float16"))])
@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_every_variant(variant: str, dtype: str) -> None:
    of = model(variant, dtype)
    ref = trace(of, inputs())
    if VARIANTS[variant].pairing is None:
        mine: Any = {path: x.astype(np.float32) for path, x in ref.items()} if dtype == "float32" else dict(ref)
    else:
        mine = run(of, inputs(), dtype)
    found = first_divergence(mine, ref)
    assert found.path is None, str(found)
    assert {s.status for s in found.stages} <= {"equal", "missing"}
    assert sum(s.status == "equal" for s in found.stages) > 50


@pytest.mark.parametrize("variant", ["hf", "paper", "v2"])
@pytest.mark.parametrize("seed", [14, 42, *(pytest.param(n, marks=pytest.mark.nightly) for n in (12, 29, 40, 41))])
def test_sharp_models(seed: int, variant: str) -> None:
    """Scores of which the largest is decided by what has been rounded before: a right run may see another key."""
    of = model(variant, "bfloat16", seed=seed, initializer_range=0.5)
    found = first_divergence(run(of, inputs(seed), "bfloat16"), trace(of, inputs(seed)))
    assert found.path is None, str(found)


@pytest.mark.parametrize("seed", [pytest.param(n, marks=pytest.mark.nightly if n else SLOW) for n in range(20)])
def test_few_and_equal_tokens(seed: int) -> None:
    """Of equal rows in a batch, padded; flat and sharp maps; with maps."""
    g = np.random.default_rng(seed)
    dtype = ("bfloat16", "float16", "bfloat16", "float32", "bfloat16")[seed % 5]
    width = float(g.choice([0.01, 0.02, 0.06, 0.12, 0.3]))
    of = model(("hf", "paper", "v2")[seed % 3], dtype, seed=seed, initializer_range=width, rms_norm_eps=1e-5)
    ids = g.integers(1, 53, (2, int(g.choice([5, 11, 24, 48]))))
    for call in ({"input_ids": 0 * ids + 7}, {"input_ids": ids[:1].repeat(2, 0)}, inputs(seed)):
        ref, mine = trace(of, call), run(of, call, dtype, maps=True)
        found = first_divergence(mine, ref, precision=dtype)
        assert not found, str(found)


def test_a_factor_near_one_in_bfloat16() -> None:
    of = model("hf", "bfloat16", rms_norm_eps=1e-5, initializer_range=0.3)
    call = {"input_ids": np.random.default_rng(0).integers(1, 53, (2, 24))}
    mine, ref, path = run(of, call, "bfloat16"), trace(of, call), "model.layers.0.self_attn.groupnorm"
    assert not first_divergence(mine, ref)
    wrong = {**mine, path: (1.011 * mine[path].astype(np.float32)).astype(KINDS["bfloat16"])}
    found = first_divergence(wrong, ref)
    assert found.path == path
    assert found.first.what.startswith("0.011 too large")


# Trained weights, whose products add up where those of drawn ones cancel


def bundled(dtype: str, kernels: str) -> Any:
    return refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype=dtype, kernels=kernels)


@functools.cache
def reference() -> tuple[np.ndarray, Trace]:
    text = "The fox said to the wolf, come with me into the wood"
    ids = refdiff.Tokenizer.from_pretrained("bundled")([text], return_tensors="np")["input_ids"]
    return ids, trace(bundled("float64", "reference"), ids)


def worst(mine: Any) -> float:
    """The largest share of what is allowed; nothing diverges."""
    found = first_divergence(mine, reference()[1])
    assert found.path is None, str(found)
    return max(s.ratio for s in found.stages)


def test_trained_weights() -> None:
    ids, _ = reference()
    assert 0.05 < worst(trace(bundled("float32", "fast"), ids)) < 0.8
    for dtype in ("bfloat16", "float16"):
        assert worst(run(bundled("float32", "reference"), {"input_ids": ids}, dtype)) < 0.8


@pytest.mark.parametrize("point", ["mlp.gate_proj", "mlp.down_proj"])
def test_a_mistake_of_a_hundred_roundoffs_is_seen(point: str) -> None:
    """A row off by 10⁻⁵: what is allowed for a sum of 192 or 464 terms is not half of that."""
    mine, path = dict(trace(bundled("float32", "fast"), reference()[0])), f"model.layers.3.{point}"
    mine[path] = mine[path].copy()
    mine[path][0, 4] *= np.float32(1 + 1e-5)
    found = first_divergence(mine, reference()[1])
    assert (found.path, found.first.row) == (path, (0, 4))
