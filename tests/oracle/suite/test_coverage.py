"""Wrong kernels that the suite's cases or relations show: they passed when cases were few and small."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Case, Recipe, Spec, cases, conformance, diagnosis
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.values import round_to_storage
from refdiff.oracle.conformance import Run
from refdiff.oracle.inputs.signature import adapt_kernel
from refdiff.oracle.suite import relations
from refdiff.oracle.suite.outcome import (
    DIAGNOSIS_LINES,
    Outcome,
    import_kernel,
    judge_case,
    judge_relation,
    report,
)
from refdiff.oracle.suite.relations import (
    RELATIONS,
    same_twice,
    strides_do_not_matter,
)
from tests.layers.inputs import says as raises
from tests.oracle import user_kernels
from tests.oracle.example_inputs import draw, small
from tests.oracle.suite import wrong_kernels
from tests.oracle.user_kernels import (
    another_each_time,
    dense_with_gradients,
    right,
    sees_the_future,
)


def _cases(profile: str, dtype: str) -> list[Case]:
    return Run({"profiles": profile, "recipe": dtype}).cases()


@pytest.mark.parametrize(
    ("kernel", "profile"),
    [
        ("long_prompts", "modules"),
        ("full_blocks", "modules"),
        ("batches_of_four", "modules"),
        ("heads_of_96", "modules"),
        ("wide_heads_from_32_queries_on", "modules"),
        ("square_weights_transposed", "modules"),
        ("last_row_of_a_tile_of_its_own", "modules"),
        ("keys_of_256", "tiles"),
        ("more_than_257_keys", "tiles"),
        ("tables_of_512", "tiles"),
        ("decoding_from_300_keys_on", "tiles"),
        ("last_row_of_a_tile_of_its_own", "tiles"),
        ("last_causal_tile_rounded_down", "tiles"),
        ("gradients_without_the_last_causal_tile", "tiles"),
        ("full_last_page_short_of_a_key", "serving"),
        ("left_padded_queries", "layout"),
        ("padded_sequence", "layout"),
        ("masked_sequence", "layout"),
        ("biased_sequence", "layout"),
        ("lambda_at_least_0", "lambda"),
        ("lambda_at_most_3", "lambda"),
        ("gradients_of_nothing", "natural"),
        ("gradients_left_out", "natural"),
        ("lambda_gradients_left_out", "natural"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_wrong_kernel_fails(kernel: str, profile: str, dtype: str) -> None:
    """Only cases in which it differs from the right one are judged: the right one passes all, as another test says."""
    differs = getattr(wrong_kernels, kernel)
    found = []
    for case in _cases(profile, dtype):
        if "gradients" in kernel or _shows(differs, case):
            found.append(judge_case(differs, Recipe.of(dtype), case).status)
        if "fail" in found:
            break
    assert "fail" in found


@pytest.mark.parametrize("preset", ["hf_diffllama", pytest.param("ms_v1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mistake", ["with_the_wrong_sign", "without_their_exponentials", "of_the_first_map"])
def test_a_mistake_that_is_small_beside_the_terms_of_a_sum_fails(mistake: str, preset: str) -> None:
    found = Run({"spec": preset, "profiles": "natural", "recipe": "bfloat16"}).cases()
    kernel = getattr(wrong_kernels, f"lambda_gradients_{mistake}")
    assert "fail" in {judge_case(kernel, Recipe("bfloat16"), case).status for case in found}
    right = {judge_case(user_kernels.dense_with_gradients, Recipe("bfloat16"), c).status for c in found}
    assert right == {"pass"}


def _shows(kernel: object, case: Case) -> bool:
    """Whether a kernel is another function than the right one on a case, by two runs of it."""
    right, wrong = (f(case.spec, {n: x.copy() for n, x in case.inputs.items()}) for f in (wrong_kernels.right, kernel))
    return right.tobytes() != wrong.tobytes()


def test_kernels_that_race_fail() -> None:
    recipe = Recipe("float32")
    tiles, natural = _cases("tiles", "float32")[:1], _cases("natural", "float32")[:1]
    assert judge_relation(wrong_kernels.races_from_64_keys_on, recipe, same_twice, natural).status == "pass"
    raced = judge_relation(wrong_kernels.races_from_64_keys_on, recipe, same_twice, tiles)
    assert raced.status == "fail"
    assert f" {tiles[0].name}: out, run again: " in raced.text
    raced = judge_relation(wrong_kernels.gradients_that_race, recipe, same_twice, natural)
    assert f" {natural[0].name}: dq, run again: " in raced.text
    assert judge_relation(wrong_kernels.strided, recipe, strides_do_not_matter, natural).status == "fail"
    assert judge_relation(wrong_kernels.right, recipe, strides_do_not_matter, natural).status == "pass"


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_gradients_of_a_dout_that_is_not_contiguous(dtype: str) -> None:
    def outcome(kernel: Callable[..., Any]) -> Outcome:
        return judge_relation(kernel, Recipe.of(dtype), strides_do_not_matter, _cases("natural", dtype))

    wrong = outcome(wrong_kernels.gradients_of_contiguous_dout)
    assert wrong.status == "fail"
    assert "with tokens before heads: fail" in wrong.text
    assert outcome(user_kernels.dense_with_gradients).status == "pass"
    assert outcome(user_kernels.unmasked_in_the_backward).status == "pass", "wrong with any strides"


def test_a_kernel_may_be_allowed_to_leave_gradients_of_parameters_out() -> None:
    case, kernel = _cases("natural", "float32")[0], wrong_kernels.lambda_gradients_left_out
    left_out = "gradients not given: dlambda_q1, dlambda_k1, dlambda_q2, dlambda_k2"
    refused = judge_case(kernel, Recipe("float32"), case)
    assert (refused.status, refused.text.splitlines()[-1]) == ("fail", left_out)
    recipe = Recipe("float32")
    allowed = judge_case(kernel, recipe, case, allow_missing_gradients=True)
    assert (allowed.status, allowed.text.splitlines()[-1]) == ("pass", left_out)
    assert judge_case(wrong_kernels.gradients_left_out, recipe, case, allow_missing_gradients=True).status == "fail"


def test_sizes_of_your_own() -> None:
    found = Run({"profiles": "natural", "sizes": "2x5x9, 1x70x70"}).cases()[2:]
    assert [(c.name, c.inputs["q"].shape[2], c.inputs["k"].shape[2]) for c in found] == [
        ("2x5x9-float32-0", 5, 9),
        ("1x70x70-float32-0", 70, 70),
    ]


# Each relation holds for right kernels of all variants, and each is broken by a wrong kernel


def _inputs(spec: Spec, dtype: str = "float32", **lengths: int) -> dict[str, Any]:
    return {n: round_to_storage(x, dtype) for n, x in draw(spec, **{"T": 6, "S": 9, **lengths}).items()}


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.__name__)
@pytest.mark.parametrize("preset", ["hf_diffllama", "ms_v1", "diff_v2", "phi4flash", "attention"])
def test_holds_for_a_correct_kernel(preset: str, relation: Callable[..., str]) -> None:
    spec = small(preset, sinks=True, v_head_dim=4) if preset == "attention" else small(preset)
    for kernel in (dense_with_gradients, right):
        assert relation(adapt_kernel(kernel), spec, _inputs(spec), Recipe("float32")) == ""


WRONG: dict[str, Callable[..., Any]] = {
    "same_twice": another_each_time,
    "past_unmoved": sees_the_future,
}
"""For each relation, a kernel that breaks it."""

ELSEWHERE = {"strides_do_not_matter"}
"""Broken by the kernels of test_coverage.py."""


def test_each_relation_has_a_kernel_that_breaks_it() -> None:
    assert {*WRONG, *ELSEWHERE} == {relation.__name__ for relation in RELATIONS}


@pytest.mark.parametrize("relation", WRONG)
def test_is_broken_by_a_wrong_kernel(relation: str) -> None:
    spec = small("ms_v1")
    wrong = getattr(relations, relation)(adapt_kernel(WRONG[relation]), spec, _inputs(spec), Recipe("float32"))
    assert "differ" in wrong


# The pieces of the conformance suite, what is said after the first that fails

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
