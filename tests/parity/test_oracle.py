"""Real kernels, not of this project, pass the oracle: in each type, forward and backward, on every profile."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest

from refdiff.oracle import Recipe, budget
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.rounding import round_to
from refdiff.oracle.strategies import Structure, draw
from tests.parity.plain_kernels import PLAIN_KERNELS, PLAIN_SPECS, plain_spec
from tests.parity.real_kernels import DTYPES, KERNELS, NOT_SERVED

SEEDS = range(int(os.environ.get("REFDIFF_SEEDS", "1")))
PROFILES = ("natural", "cancellation", "tiny_values", "extreme", "degenerate")
LAYERS = 41


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("kernel", "dtype"), [x for x in itertools.product(KERNELS, DTYPES) if x not in NOT_SERVED])
def test_no_false_alarm(kernel: str, dtype: str, profile: str) -> None:
    preset, eager, function = KERNELS[kernel]
    turn = 7 * list(KERNELS).index(kernel) + 11 * PROFILES.index(profile) + 5 * list(DTYPES).index(dtype)
    recipe = Recipe.eager(dtype) if eager else Recipe(dtype)
    for seed in SEEDS:
        spec = small_spec(preset).replace(layer=(turn + 13 * seed) % LAYERS)
        structure = Structure(2, 24, 37) if preset == "ms_v1" else Structure(1, 33, 33)
        inputs = draw(spec, structure, profile, seed, dtype)
        shape = (structure.batch, spec.heads, structure.queries, spec.out_dim)
        dout = round_to(np.random.default_rng(seed).normal(size=shape), dtype)
        found = budget(spec, inputs, recipe, dout=dout)
        actual = function(spec, found.inputs, dout, dtype)
        assert {"out", "dq", "dk", "dv"} <= set(actual)
        verdict = found.judge(actual)
        assert verdict.status != "fail", f"seed {seed}: {verdict}"
        if profile in ("natural", "tiny_values"):
            assert verdict.tensors["out"].status == "pass", str(verdict)
        out = actual["out"]
        wrong = found.judge({"out": 2 * out if profile == "degenerate" else np.roll(out, 1, axis=2)})
        assert wrong.status == "fail" or profile == "cancellation", "and what is wrong is seen"


def test_where_all_tokens_are_alike() -> None:
    """Its gradient of the values is 4e-4 too small in all rows: rounded, as they are summed from the same terms."""
    spec = small_spec("hf_diffllama").replace(layer=4)
    inputs = draw(spec, Structure(1, 33, 33), "degenerate", 20_003, "float16")
    dout = round_to(np.random.default_rng([20_003, 977]).normal(size=(1, spec.heads, 33, spec.out_dim)), "float16")
    found = budget(spec, inputs, Recipe.eager("float16"), dout=dout)
    actual = KERNELS["transformers eager"][2](spec, found.inputs, dout, "float16")
    assert found.judge({"dv": actual["dv"]}).status == "pass"
    assert found.judge({"dv": 1.01 * actual["dv"]}).status == "fail"


def test_where_many_rows_are_of_one_key() -> None:
    """They are rounded alike: taken for rows of their own they were 6.2 spreads from a factor of 1."""
    spec = small_spec("hf_diffllama").replace(layer=39)
    allowed = budget(spec, draw(spec, Structure(1, 17, 17), "extreme", 20_000, "float16"), "float16")
    dout = np.zeros((1, spec.heads, 17, spec.out_dim))
    out = KERNELS["transformers sdpa"][2](spec, allowed.inputs, dout, "float16")["out"]
    assert allowed.judge({"out": out}).status != "fail"
    assert allowed.judge({"out": 1.004 * out}).status == "fail"


def test_where_all_values_are_alike() -> None:
    """1 − λ is rounded once for all rows: with errors drawn for each number it was 8.7 spreads from a factor of 1."""
    spec = small_spec("hf_diffllama").replace(query_heads=12, layer=4)
    dout = round_to(np.random.default_rng([33_002, 977]).normal(size=(2, spec.heads, 4, spec.out_dim)), "float16")
    inputs = draw(spec, Structure(2, 4, 4), "degenerate", 33_002, "float16")
    allowed = budget(spec, inputs, Recipe.eager("float16"), dout=dout)
    actual = KERNELS["transformers eager"][2](spec, allowed.inputs, dout, "float16")["dv"]
    assert allowed.judge({"dv": actual}).status != "fail"
    assert allowed.judge({"dv": 1.02 * actual}).status == "fail"


def test_where_a_scale_moves_no_rounding() -> None:
    """1 − λ_init is 0.2000091: all orders that store every result vouched for each other, and it was refused."""
    spec = small_spec("timm").replace(layer=37)
    allowed = budget(spec, draw(spec, Structure(1, 33, 33), "extreme", 0, "float16"), "float16")
    out = KERNELS["timm, fused"][2](spec, allowed.inputs, np.zeros((1, spec.heads, 33, spec.out_dim)), "float16")["out"]
    assert allowed.judge({"out": out}).status != "fail"
    assert allowed.judge({"out": 1.002 * out}).status == "fail"


@pytest.mark.parametrize("number", range(len(PLAIN_SPECS)), ids=list(PLAIN_SPECS))
@pytest.mark.parametrize("kernel", PLAIN_KERNELS)
def test_no_false_alarm_of_plain_attention(kernel: str, number: int) -> None:
    """In one type and profile each, which change from kernel to kernel; `false_alarms` has all of them."""
    _, eager, function = PLAIN_KERNELS[kernel]
    turn = number + list(PLAIN_KERNELS).index(kernel)
    dtype, profile = list(DTYPES)[turn % 3], ("natural", "tiles", "extreme")[turn // 3 % 3]
    spec = plain_spec(number)
    inputs = draw(spec, Structure(2, 24, 37), profile, 0, dtype)
    dout = round_to(np.random.default_rng(0).normal(size=(2, spec.heads, 24, spec.out_dim)), dtype)
    found = budget(spec, inputs, Recipe.eager(dtype) if eager else Recipe(dtype), dout=dout)
    actual = function(spec, found.inputs, dout, dtype)
    served = (spec.softcap is None and not spec.sinks) or "transformers" in kernel
    assert bool(actual) == served or dtype == "float16"
    if actual:
        assert {"out", "dq", "dk", "dv"} <= set(actual)
        assert found.judge(actual).status != "fail"
        assert found.judge({"out": np.roll(actual["out"], 1, axis=2)}).status == "fail"
