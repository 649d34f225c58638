"""1 − λ_init may be rounded to 16 bits, as JAX and MLX round a number that multiplies a 16-bit array."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.backends import ops_for
from refdiff.oracle import Recipe, Spec, budget
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import HELD_OUT
from refdiff.oracle.truth.attention_operands import lambda_init
from tests.oracle.example_inputs import draw


@pytest.mark.parametrize(
    ("storage", "layer"),
    [
        ("bfloat16", 0),
        pytest.param("bfloat16", 3, marks=pytest.mark.slow),
        ("float16", 4),
        pytest.param("float16", 6, marks=pytest.mark.slow),
    ],
)
def test_a_rounded_factor_passes_where_the_norms_result_is_stored(storage: str, layer: int) -> None:
    spec = Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=16, layer=layer, lambda_form="given")
    x = draw(spec, layer, B=1, T=64, S=64)
    dout = round_to(np.random.default_rng(layer).normal(size=(1, spec.heads, 64, spec.out_dim)), storage)
    factor = float(round_to(np.asarray(1 - lambda_init(spec, ops_for())), storage))
    kernel = spec.replace(lambda_base="constant", lambda_init=1 - factor)
    found = evaluate(kernel, x, Recipe(storage), HELD_OUT[0], dout)

    verdict = budget(spec, x, storage, dout=dout).judge(found)
    assert verdict.status == "pass"
    assert any(f"1 - λ_init is rounded to {storage} in out" in note for note in verdict.notes)

    in_registers = Recipe(storage, o="float32", p="float32")
    assert budget(spec, x, in_registers, dout=dout).judge(found).status == "fail"
    farther_off = {name: y * (2 - factor / (1 - lambda_init(spec, ops_for()))) ** -2 for name, y in found.items()}
    assert budget(spec, x, storage, dout=dout).judge(farther_off).status == "fail"
