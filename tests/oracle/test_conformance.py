"""The suite, run as its users run it: on right functions and on wrong ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from refdiff.oracle import Recipe, Spec, conformance
from refdiff.oracle.cases.fixed import PROFILES
from refdiff.oracle.conformance import recipe_of, select_cases, spec_of
from refdiff.oracle.spec.presets import PRESETS

RIGHT = ("right", "dense_with_gradients", "epsilon_compiled_in")
ROOT = Path(__file__).parents[2]
KERNELS = "tests.oracle.user_kernels:"


def _run(function: str, outside: dict[str, str], **variables: str) -> tuple[int, str]:
    given = {"REFDIFF_KERNEL": KERNELS + function, **variables}
    environment = {**outside, "PYTHONPATH": str(ROOT), **given}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "--pyargs", "refdiff.oracle.conformance", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "recipe", "profiles", "says"),
    [
        ("dense_with_gradients", "float32", "natural,layout", " skipped"),
        ("wrong_rope", "float32", "discriminating", "tries pairs too):\nunique: other_rope_pairing"),
        ("dense_with_gradients", "float32", "degenerate", "; inconclusive: dq in 4, dk in 2\n"),
        ("right", "bfloat16", "natural,degenerate,serving,tiles", " passed"),
        ("epsilon_compiled_in", "float32", ",".join(PROFILES), " passed"),
        ("sees_the_future", "bfloat16", "natural", "Keys and values of the last token do not change"),
        ("declines", "float32", "natural", "no output was compared"),
    ],
)
def test_correct_functions_pass_and_wrong_ones_fail(
    function: str, recipe: str, profiles: str, says: str, outside: dict[str, str]
) -> None:
    status, text = _run(function, outside, REFDIFF_RECIPE=recipe, REFDIFF_PROFILES=profiles)
    assert says in text, text
    assert text.count("The first case that fails; to have it in Python:") == (function == "wrong_rope")
    assert status == (0 if function in RIGHT else 1), text


@pytest.mark.parametrize(("allowed", "status"), [("", 1), pytest.param("1", 0, marks=pytest.mark.slow)])
def test_a_kernel_that_declines_most_is_no_pass(allowed: str, status: int, outside: dict[str, str]) -> None:
    kernel = "tests.oracle.suite.wrong_kernels:declines_most"
    found, text = _run("right", outside, REFDIFF_KERNEL=kernel, REFDIFF_ALLOW_DECLINED=allowed,
                       REFDIFF_PROFILES="discriminating,natural")  # fmt: skip
    said = "compared 1 of 6; no gradients: the kernel takes no dout; declined 5: discriminating 4, natural 1\n"
    assert said in text, text
    assert ("more than half. If that is all it is meant to serve" in text) == (status == 1)
    assert found == status, text


def test_variables() -> None:
    assert {c.profile for c in select_cases({})} == set(PROFILES)
    fields = spec_of("ms_v1").to_dict()
    recipe = '{"storage": "bf16", "o": "fp32"}'
    variables = {"REFDIFF_SPEC": json.dumps(fields), "REFDIFF_RECIPE": recipe, "REFDIFF_PROFILES": "tiny_values"}
    some = select_cases(variables)
    assert {(c.profile, c.dtype, c.spec) for c in some} == {("tiny_values", "bfloat16", spec_of("ms_v1"))}
    own = spec_of(' {"preset": "ms_v1", "query_heads": 8, "key_heads": 4, "head_dim": 64}')
    assert own == Spec.preset("ms_v1", query_heads=8, key_heads=4, head_dim=64)
    assert {c.profile for c in select_cases({"REFDIFF_PROFILES": "whisper, tiles,"})} == {"tiny_values", "tiles"}
    assert recipe_of("tf32") == Recipe.of("tf32")
    changed = spec_of('{"preset": "ms_v1", "query_heads": 4, "key_heads": 2, "head_dim": 8, "window": 3}')
    assert (changed.pairing, changed.window) == ("interleaved", 3)
    assert recipe_of('{"storage": "fp16", "o": "fp32"}') == Recipe("float16", o="float32")


def test_the_docstring_lists_all_presets_and_profiles() -> None:
    said = " ".join(str(conformance.__doc__).split())
    *names, last = PRESETS
    assert f"{', '.join(names)} or {last}, with 12 query heads" in said
    assert f"comma-separated: {', '.join(PROFILES)} (all of them)" in said


def test_an_invalid_kernel_is_reported_once(outside: dict[str, str]) -> None:
    status, text = _run("nope", outside)
    assert status not in (0, 1)
    assert text.count("but tests.oracle.user_kernels has no function 'nope'") == 1, text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("KERNEL", "", "set REFDIFF_KERNEL=package.module:function"),
        ("KERNEL", KERNELS + "by_name", "must take (spec, inputs) or (inputs), and may also take dout"),
        ("SPEC", "hf", "no preset is called 'hf'; the preset of that variant is 'hf_diffllama'; there are"),
        ("SPEC", '{"heads": 3}', "'heads'"),
        ("SEED", "one", "REFDIFF_SEED: got 'one', expected a whole number from 0"),
        ("SIZES", "2x8x8,2xax8", "REFDIFF_SIZES: got '2xax8', expected BxTxS such as 2x512x512"),
        ("PROFILES", "natural,tile", "REFDIFF_PROFILES: no profile is called 'tile'; did you mean 'tiles'? there are"),
    ],
)
def test_invalid_environment_variables_are_reported(
    variable: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFDIFF_KERNEL", KERNELS + "right")
    monkeypatch.setenv(f"REFDIFF_{variable}", value)
    with pytest.raises(pytest.Collector.CollectError) as refused:
        conformance.pytest_generate_tests(SimpleNamespace(fixturenames=["case"]))
    assert says in str(refused.value)
