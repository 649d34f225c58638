"""Mistakes that every row would allow: ε, a bias, a factor, on scores that are not there too; no alarm without."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Divergence, Trace, first_divergence, trace
from refdiff.oracle.mistakes import Mistake
from refdiff.oracle.mistakes.catalogue import Call
from tests.oracle.divergence.runs import KINDS, LAYER, inputs, model, run

LAYER_2 = f"model.layers.{LAYER}."
MODULES = re.compile(r"(_proj|norm|act_fn|diff|layers\.\d|lm_head|embed_tokens|probs\d)$")


def made(layer: str, wrong: Callable[[Call], Any]) -> Mistake:
    return Mistake("made here", "", layer, "", wrong)


def epsilon(by: float) -> Mistake:
    return made("rms_norm", lambda call: call(eps=call.eps + by))


def bias(by: float) -> Mistake:
    """Of each column of down_proj another, `by` of its size."""

    def biased(call: Call) -> Any:
        y = call()
        if call.weight.shape != (26, 37):
            return y
        b = np.random.default_rng(0).normal(size=26)
        return y + (by * np.sqrt((y**2).mean()) * b).astype(y.dtype)

    return made("linear", biased)


def scores(by: float) -> Mistake:
    factor = np.float32(1 + by)
    return made("diff_attention", lambda call: call(q1=call.q1 * factor, q2=call.q2 * factor))


@functools.cache
def prepared(width: float, tokens: int) -> tuple[Any, dict[str, Any], Trace]:
    of = model("hf", "bfloat16", rms_norm_eps=1e-5, initializer_range=width)
    call = {"input_ids": np.random.default_rng(0).integers(1, 53, (2, tokens))}
    return of, call, trace(of, call)


def found_in(mistake: Mistake | None, width: float, tokens: int, modules: bool = False, **options: Any) -> Divergence:
    of, call, ref = prepared(width, tokens)
    mine = run(of, call, "bfloat16", mistake, maps=modules)
    return first_divergence({p: x for p, x in mine.items() if not modules or MODULES.search(p)}, ref, **options)


def test_an_epsilon_of_a_hundredth() -> None:
    """m is 0.15 to 1.6 here: 0.5 % of most rows."""
    found = found_in(epsilon(0.01), 0.12, 24)
    assert found.path == LAYER_2 + "input_layernorm"
    stage = next(s for s in found.stages if s.path == LAYER_2 + "post_attention_layernorm")
    assert re.match(r"equal up to an ε that is about 0\.0\d+ larger, where rounding explains 0\.00\d", stage.what)
    assert float(stage.what.split()[8]) == pytest.approx(0.01, abs=0.004)
    assert not found_in(None, 0.12, 24)


@pytest.mark.slow
@pytest.mark.parametrize(("by", "mode"), [(0.005, "local"), (0.01, "local"), (0.05, "free")])
def test_a_bias_of_columns(by: float, mode: str) -> None:
    """Its mean over the columns is nearly 0, and every row allows it."""
    found = found_in(bias(by), 0.12, 24, mode=mode)
    assert found.path == LAYER_2 + "mlp.down_proj"
    assert found.first.what.startswith("equal up to a bias: a constant for each column, about 0.0")
    assert not found_in(None, 0.12, 24, mode=mode)


@pytest.mark.parametrize("width", [0.06, pytest.param(0.12, marks=pytest.mark.slow)])
def test_scores_of_two_percent_more_where_only_the_maps_are_there(width: float) -> None:
    found = found_in(scores(0.02), width, 48, modules=True)
    assert found.path == LAYER_2 + "self_attn.probs1"
    assert re.match(r"equal up to the factor 1\.02\d* on the first scores, where rounding", found.first.what)
    assert not found_in(None, width, 48, modules=True)


def nowhere_wrong(ref: Trace, *some: dict[str, np.ndarray], **options: Any) -> None:
    for mine in some:
        for mode in ("local", "free"):
            found = first_divergence(mine, ref, mode=mode, **options)
            assert not found, str(found)


SEEDS = [pytest.param(n, marks=pytest.mark.nightly if n else pytest.mark.slow) for n in (*range(20), 23, 32, 46)]
"""Some of the first sixty, which all pass; 0, 7, 23, 32 and 46 alarmed where rounding was drawn otherwise."""


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
    ("mode", "point"),
    [
        ("local", "self_attn.groupnorm"),
        pytest.param("local", "mlp.down_proj", marks=pytest.mark.slow),
        pytest.param("free", "self_attn.v_proj", marks=pytest.mark.slow),
    ],
)
def test_one_percent_in_bfloat16(point: str, mode: str) -> None:
    mine, ref = clean()
    path = f"model.layers.0.{point}"
    assert not first_divergence(mine, ref, mode=mode)
    wrong = {**mine, path: (1.011 * mine[path].astype(np.float32)).astype(KINDS["bfloat16"])}
    found = first_divergence(wrong, ref, mode=mode)
    assert found.path == path
    assert found.first.what.startswith("equal up to the factor 1.01")
    assert found.first.ratio > 1
