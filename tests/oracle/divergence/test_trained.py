"""Trained weights, whose products add up where those of drawn ones cancel: right runs of them diverge nowhere."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest

import refdiff
from refdiff.backends import overlay
from refdiff.oracle import Trace, first_divergence, trace
from tests.oracle.divergence.runs import run

TEXT = "The fox said to the wolf, come with me into the wood"


def bundled(dtype: str, kernels: str) -> Any:
    return refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype=dtype, kernels=kernels)


@functools.cache
def reference() -> tuple[np.ndarray, Trace]:
    ids = refdiff.Tokenizer.from_pretrained("bundled")([TEXT], return_tensors="np")["input_ids"]
    return ids, trace(bundled("float64", "reference"), ids)


def worst(mine: Any, **options: Any) -> float:
    """The largest share of what is allowed; nothing diverges."""
    found = first_divergence(mine, reference()[1], **options)
    assert found.path is None, str(found)
    assert all(s.status == "equal" for s in found.stages if s.status != "missing")
    return max(s.ratio for s in found.stages)


def first_quickly(first: Any, *others: Any) -> list[Any]:
    """The first case, and the others where there is time."""
    cases = (case if isinstance(case, tuple) else (case,) for case in others)
    return [first, *(pytest.param(*case, marks=pytest.mark.slow) for case in cases)]


@pytest.mark.parametrize(
    ("kernels", "mode"),
    first_quickly(("fast", "local"), ("fast", "free"), ("reference", "local"), ("reference", "free")),
)
def test_a_run_in_float32(kernels: str, mode: str) -> None:
    assert 0.05 < worst(trace(bundled("float32", kernels), reference()[0]), mode=mode) < 0.8


@pytest.mark.parametrize(
    ("dtype", "mode"),
    first_quickly(("bfloat16", "local"), ("bfloat16", "free"), ("float16", "local"), ("float16", "free")),
)
def test_a_run_in_16_bits(dtype: str, mode: str) -> None:
    assert worst(run(bundled("float32", "reference"), {"input_ids": reference()[0]}, dtype), mode=mode) < 0.8


def one_by_one(terms: np.ndarray) -> np.ndarray:
    return np.cumsum(terms, axis=-1)[..., -1]


def largest_first(terms: np.ndarray) -> np.ndarray:
    order = np.argsort(-np.abs(terms).mean(0))
    return one_by_one(terms[..., order])


def in_blocks(terms: np.ndarray) -> np.ndarray:
    return one_by_one(np.cumsum(terms.reshape(len(terms), -1, 16), axis=-1)[..., -1])


@pytest.mark.parametrize(
    "added",
    first_quickly(one_by_one, largest_first, in_blocks),
    ids=lambda f: f.__name__,
)
def test_another_order_of_summation_is_no_mistake(added: Any) -> None:
    def linear(x: np.ndarray, weight: np.ndarray, bias: None = None) -> np.ndarray:
        rows = x.reshape(-1, x.shape[-1])
        return np.stack([added(row * weight) for row in rows]).reshape(*x.shape[:-1], len(weight))

    ids, _ = reference()
    of = copy.copy(bundled("float32", "reference"))
    of.ops = overlay(of.ops, lambda name, function: linear if name == "linear" else function)
    mine = trace(of, ids)
    assert mine["lm_head"].dtype == np.float32
    assert 0.05 < worst(mine) < 0.8


@pytest.mark.parametrize("point", first_quickly("mlp.gate_proj", "self_attn.k_proj", "mlp.down_proj"))
@pytest.mark.parametrize("by", first_quickly(1e-5, 1e-4))
def test_a_mistake_of_a_hundred_roundoffs_is_seen(point: str, by: float) -> None:
    """A row off by 10⁻⁵: what is allowed for a sum of 192 or 464 terms is not half of that."""
    mine = dict(trace(bundled("float32", "fast"), reference()[0]))
    path = f"model.layers.3.{point}"
    mine[path] = mine[path].copy()
    mine[path][0, 4] *= np.float32(1 + by)
    found = first_divergence(mine, reference()[1])
    assert found.path == path
    assert found.first.row == (0, 4)
