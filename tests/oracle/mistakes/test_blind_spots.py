"""What an input cannot show, with and without rounding."""

from __future__ import annotations

import pytest

from refdiff.oracle import Spec, blind_spots, cases
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from tests.oracle.example_inputs import small


def hidden(spec: Spec, structure: Structure, values: str = "natural", recipe: str | None = None) -> set[str]:
    return {d.name for d in blind_spots(spec, draw(spec, structure, values, 0), recipe)}


def test_one_token_hides_much() -> None:
    found = hidden(small("hf_diffllama"), Structure(1, 1, 1))
    assert len(found) >= 22
    assert "no_norm_after_attention" not in found


def test_rounding_hides_epsilon_and_small_values_show_it() -> None:
    spec = small_spec("hf_diffllama")
    assert "epsilon_1e-6" not in hidden(spec, Structure(2, 7, 9))
    assert "epsilon_1e-6" in hidden(spec, Structure(2, 7, 9), "natural", "bfloat16")
    assert "epsilon_1e-6" not in hidden(spec, Structure(2, 7, 9), "tiny_values", "bfloat16")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.nightly)])
@pytest.mark.parametrize(
    "name", ["hf_diffllama", "ms_v1", *(pytest.param(n, marks=pytest.mark.nightly) for n in ("gda", "diff_v2"))]
)
def test_everything_is_seen_by_some_case(name: str, dtype: str) -> None:
    """In one case at least of the lists of its dtype."""
    spec = small_spec(name)
    some = [cases(profile, spec=spec, dtype=dtype)[n]
            for profile, numbers in (("discriminating", (0, 1, 2)), ("tiny_values", (0,)), ("layout", (3,)))
            for n in numbers]  # fmt: skip
    hidden = ({d.name for d in blind_spots(spec, case.inputs, dtype)} for case in some)
    assert not set.intersection(*hidden)
