"""What is said after the first case that fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.oracle import diagnosis
from refdiff.oracle.cases.fixed import PROFILES, Case, cases, small_spec
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.suite.outcome import LINES, first_failure, is_small
from tests.oracle.user_kernels import wrong_rope

SPEC = small_spec("hf_diffllama")
RECIPE = Recipe.of("float32")


@pytest.mark.parametrize(
    "spec", ["hf_diffllama", ' {"preset": "ms_v1", "query_heads": 4, "key_heads": 2, "head_dim": 8}']
)
def test_the_lines_make_the_very_case(spec: str) -> None:
    from refdiff.oracle.conformance import spec_of

    for profile in PROFILES:
        for case in cases(profile, 3, spec=spec_of(spec), dtype="float16")[:3]:
            program = first_failure(case, spec, Recipe.of("float16")).splitlines()
            names: dict[str, Any] = {}
            exec("\n".join(line.strip() for line in program[1:]), names)
            again: Case = names["case"]
            assert (again.name, again.spec) == (case.name, case.spec)
            assert all(np.array_equal(x, again.inputs[name], equal_nan=True) for name, x in case.inputs.items())


def test_the_mistake_has_its_name() -> None:
    case = cases("discriminating", spec=SPEC)[1]
    lines = first_failure(case, "hf_diffllama", RECIPE, wrong_rope(SPEC, case.inputs)).splitlines()
    assert lines[5:7] == [
        "diagnosis, one deviation at a time (oracle.diagnose tries pairs too):",
        "unique: the_other_pairs_turn",
    ]
    assert 7 < len(lines) <= 6 + LINES


def test_the_verdict_stands_where_a_diagnosis_breaks_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise IndexError("index 2 is out of bounds")

    monkeypatch.setattr(diagnosis, "diagnose", broken)
    case = cases("discriminating", spec=SPEC)[1]
    said = first_failure(case, "hf_diffllama", RECIPE, np.zeros(1))
    assert said.endswith("\ndiagnosis: none (IndexError: index 2 is out of bounds)")


def test_what_is_small() -> None:
    assert all(is_small(case) for case in cases("tiles", spec=SPEC)[:12])
    assert not any(
        is_small(case) for case in cases("natural", spec=SPEC.replace(query_heads=48, key_heads=16, head_dim=64))
    )
