"""The pieces of the conformance suite, what is said after the first that fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Case, Recipe, cases, conformance, diagnosis
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.suite.outcome import (
    DIAGNOSIS_LINES,
    Outcome,
    import_kernel,
    judge_case,
    judge_relation,
    report,
)
from refdiff.oracle.suite.relations import same_twice
from tests.layers.inputs import says as raises
from tests.oracle import user_kernels

USER = "tests.oracle.user_kernels"
RECIPE = Recipe.of("float32")
CASES = cases("natural", 3, spec=small_spec("hf_diffllama"))
PAGED = cases("serving", 3, spec=small_spec("hf_diffllama"))[0]


@pytest.mark.parametrize(
    ("kernel", "status"), [("decodes_without_gradients", "pass"), ("decodes_wrongly", "fail"), ("declines", "skip")]
)
def test_decoding_from_pages_needs_no_backward(kernel: str, status: str) -> None:
    """A kernel that declines pages with dout is called without: its output is judged alone."""
    found = judge_case(getattr(user_kernels, kernel), RECIPE, PAGED)
    assert (found.status, found.declined, found.gradients) == (status, status == "skip", False)
    dense = judge_case(getattr(user_kernels, kernel), RECIPE, CASES[0])
    assert dense.gradients == (status != "skip")


@pytest.mark.parametrize(
    ("function", "status", "compared", "says"),
    [
        ("right", "pass", True, "pass"),
        ("wrong_rope", "fail", True, "fail"),
        ("declines", "skip", False, "NotImplemented"),
        ("changes_its_input", "fail", False, "the kernel has changed its input q"),
        ("returns_nothing", "fail", False, "the kernel returned None; is `return` missing?"),
        ("two_of_them", "fail", False, "cannot be judged: out is a tuple of 2 arrays: give a mapping, {"),
    ],
)
def test_against_the_truth(function: str, status: str, compared: bool, says: str) -> None:
    found = judge_case(getattr(user_kernels, function), RECIPE, CASES[0])
    assert (found.status, found.compared) == (status, compared)
    assert says in found.text


@pytest.mark.parametrize("judge", [lambda kernel: judge_case(kernel, RECIPE, CASES[0]),
                                   lambda kernel: judge_relation(kernel, RECIPE, same_twice, CASES)])  # fmt: skip
def test_a_kernel_that_raises_shows_its_own_last_line(judge: Callable[[Any], Outcome]) -> None:
    found = judge(user_kernels.raises)
    assert found.status == "fail"
    first, own, inner, *error = found.text.splitlines()
    assert first.endswith("the kernel raised")
    assert re.fullmatch(r"  .*user_kernels\.py:\d+, in _meets: return np\.linalg\.inv\(np\.zeros\(\(2, 2\)\)\)", own)
    assert "numpy" in inner
    assert error == ["numpy.linalg.LinAlgError: Singular matrix"]


@pytest.mark.parametrize(
    ("function", "dtype", "says"),
    [
        ("in_float64", "float32", "out came in float64, and the recipe 'float32' stores float32: cast it"),
        ("not_stored", "bfloat16", "out came in float32, and the recipe 'bfloat16' stores bfloat16: cast it"),
        ("stored_and_widened", "bfloat16", ""),
    ],
)
def test_the_type_of_an_output_is_that_of_the_recipe(function: str, dtype: str, says: str) -> None:
    case = cases("natural", 3, spec=small_spec("hf_diffllama"), dtype=dtype)[0]
    found = judge_case(getattr(user_kernels, function), Recipe.of(dtype), case)
    assert found.text.startswith(says)
    assert found.status == ("fail" if says else "pass"), found.text


def test_wrong_gradients_are_diagnosed_as_outputs_are() -> None:
    case = cases("discriminating", 3, spec=small_spec("hf_diffllama"))[1]
    found = judge_case(user_kernels.unmasked_in_the_backward, RECIPE, case)
    assert found.status == "fail"
    lines = report(case, "hf_diffllama", RECIPE, found).splitlines()
    assert "unique: lse_used_without_mask" in lines, lines
    assert 7 < len(lines) <= 6 + DIAGNOSIS_LINES


SPEC = small_spec("hf_diffllama")


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param("hf_diffllama", marks=pytest.mark.slow),
        ' {"preset": "ms_v1", "query_heads": 4, "key_heads": 2, "head_dim": 8}',
    ],
)
def test_the_reported_code_reproduces_the_case(spec: str) -> None:
    found = conformance.Run({"spec": spec, "recipe": "float16", "seed": "3", "sizes": "2x5x9, 1x7x7"}).cases()
    assert {case.spec.head_dim for case in found} == ({8} if "{" in spec else {16, 64, 96, 128})
    for case in found:
        program = report(case, spec, Recipe.of("float16")).splitlines()
        names: dict[str, Any] = {}
        exec("\n".join(line.strip() for line in program[1:]), names)
        again: Case = names["case"]
        assert again.spec == case.spec
        assert again.inputs.keys() == case.inputs.keys()
        assert all(np.array_equal(x, again.inputs[name], equal_nan=True) for name, x in case.inputs.items()), case.name


def _failed(out: Any) -> Outcome:
    return Outcome("fail", wrong={"out": out})


def test_a_large_case_is_not_diagnosed() -> None:
    large = cases("modules", spec=SPEC.replace(head_dim=64), queries=129)[0]
    assert "diagnosis: not run (inputs too large)" in report(large, "hf_diffllama", RECIPE, _failed(np.zeros(1)))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (f"{USER}:zzz", f"AttributeError: module '{USER}' has no attribute 'zzz'"),
        ("no.such_module:f", "ModuleNotFoundError: No module named 'no'"),
        ("nothing", "ValueError: expected package.module:function"),
    ],
)
def test_an_invalid_kernel_is_reported_before_anything_is_computed(name: str, says: str) -> None:
    with raises(ValueError, f"got {name!r}, which cannot be imported: {says}"):
        import_kernel(name)


def test_the_verdict_is_reported_if_the_diagnosis_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise IndexError("index 2 is out of bounds")

    monkeypatch.setattr(diagnosis, "diagnose", broken)
    case = cases("discriminating", spec=SPEC)[1]
    said = report(case, "hf_diffllama", RECIPE, _failed(np.zeros(1)))
    assert said.endswith("\ndiagnosis: none (IndexError: index 2 is out of bounds)")
