"""What an input cannot show, with and without rounding."""

from __future__ import annotations

import pytest

from refdiff.oracle import Spec, blind_spots, budget, cases, deviations
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.strategies import Structure, draw
from tests.oracle.deviations.effects import effect
from tests.oracle.example_inputs import small


def hidden(spec: Spec, structure: Structure, values: str = "natural", recipe: str | None = None) -> set[str]:
    return {d.name for d in blind_spots(spec, draw(spec, structure, values, 0), recipe)}


def test_one_token_hides_much() -> None:
    found = hidden(small("hf_diffllama"), Structure(1, 1, 1))
    assert len(found) >= 22
    assert "norm_after_attention_left_out" not in found


def test_rounding_hides_epsilon_and_small_values_show_it() -> None:
    spec = small_spec("hf_diffllama")
    assert "epsilon_of_1e-6" not in hidden(spec, Structure(2, 7, 9))
    assert "epsilon_of_1e-6" in hidden(spec, Structure(2, 7, 9), "natural", "bfloat16")
    assert "epsilon_of_1e-6" not in hidden(spec, Structure(2, 7, 9), "tiny_values", "bfloat16")


LEGAL = {"exponentials_rounded_to_bfloat16"}  # in bfloat16 what the recipe says; in float16 under five budgets


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "name", ["hf_diffllama", "ms_v1", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("gda", "diff_v2"))]
)
def test_everything_is_seen_by_some_case(name: str, dtype: str) -> None:
    """Five budgets of a row or more, in one case at least of the lists of its dtype."""
    spec = small_spec(name)
    seen: dict[str, float] = {d.name: 0.0 for d in deviations(spec)}
    for profile, numbers in (("discriminating", (0, 1, 2)), ("tiny_values", (0,)), ("layout", (3,))):
        for n in numbers:
            case = cases(profile, spec=spec, dtype=dtype)[n]
            known = budget(spec, case.inputs, dtype, members=3)
            for d in deviations(spec):
                if seen[d.name] < 5:
                    seen[d.name] = max(seen[d.name], effect(spec, case.inputs, d, known))
    assert {n for n, x in seen.items() if x < 5} <= (set() if dtype == "float32" else LEGAL), seen
