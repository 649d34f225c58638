"""The suite, run as its users run it: on right functions and on wrong ones."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from refdiff.oracle import Recipe, Spec, conformance
from refdiff.oracle.cases.fixed import PROFILES
from refdiff.oracle.conformance import Run
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.spec.presets import PRESETS

RIGHT = ("right", "dense_with_gradients", "epsilon_compiled_in")
ROOT = Path(__file__).parents[2]
KERNELS = "tests.oracle.user_kernels:"


def _run(kernel: str, outside: dict[str, str], *options: str) -> tuple[int, str]:
    plugin = ["-p", "refdiff.pytest_plugin", "-p", "no:cacheprovider", "-o", "addopts=-p no:refdiff", "-rs"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, "--refdiff-kernel", kernel, *options],
        cwd=ROOT,
        env={**outside, "PYTHONPATH": str(ROOT)},
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
    options = ("--refdiff-recipe", recipe, "--refdiff-profiles", profiles)
    status, text = _run(KERNELS + function, outside, *options)
    assert says in text, text
    assert text.count("The first case that fails; to have it in Python:") == (function == "wrong_rope")
    assert status == (0 if function in RIGHT else 1), text


@pytest.mark.slow
def test_equal_bits_are_reported_relation_by_relation(outside: dict[str, str]) -> None:
    """The kernel is within the budgets, and a part of its sums depends on the batch."""
    chosen = ("--refdiff-bitwise", "batch,page", "-k", "bits", "-v")
    given = ("--refdiff-spec", "attention,query_heads=2,key_heads=1,head_dim=8", *chosen)
    status, text = _run("tests.oracle.suite.test_bitwise:depends_on_the_batch", outside, *given)
    assert status == 1
    assert "test_against_itself[same_bits_in_a_batch] FAILED" in text, text
    assert "test_against_itself[same_bits_in_pages] PASSED" in text, text
    assert "same_bits_in_chunks" not in text


@pytest.mark.parametrize(
    ("allowed", "status"), [((), 1), pytest.param(("--refdiff-allow-declined",), 0, marks=pytest.mark.slow)]
)
def test_a_kernel_that_declines_most_is_no_pass(allowed: tuple[str, ...], status: int, outside: dict[str, str]) -> None:
    kernel = "tests.oracle.suite.wrong_kernels:declines_most"
    found, text = _run(kernel, outside, *allowed, "--refdiff-profiles", "discriminating,natural")
    said = "compared 1 of 6; no gradients: the kernel takes no dout; declined 5: discriminating 4, natural 1\n"
    assert said in text, text
    assert ("more than half. If that is all it is meant to serve" in text) == (status == 1)
    assert found == status, text


def test_options() -> None:
    assert {c.profile for c in Run({}).cases()} == set(PROFILES)
    fields = json.dumps(resolve_spec("ms_v1").to_dict())
    some = Run({"spec": fields, "recipe": "bf16,o=fp32", "profiles": "tiny_values"}).cases()
    assert {(c.profile, c.dtype, c.spec) for c in some} == {("tiny_values", "bfloat16", resolve_spec("ms_v1"))}
    own = resolve_spec(' {"preset": "ms_v1", "query_heads": 8, "key_heads": 4, "head_dim": 64}')
    assert own == Spec.preset("ms_v1", query_heads=8, key_heads=4, head_dim=64)
    assert {c.profile for c in Run({"profiles": "tiny_values, tiles,"}).cases()} == {"tiny_values", "tiles"}
    changed = resolve_spec("ms_v1,query_heads=4, key_heads=2,head_dim=8,window=3,causal=none,softcap=none")
    assert (changed.pairing, changed.window, changed.causal, changed.layer) == ("interleaved", 3, "none", 2)
    assert Recipe.of('{"storage": "fp16", "o": "fp32"}') == Recipe.of("fp16,o=fp32") == Recipe("float16", o="float32")


def test_the_docstring_lists_all_presets_and_profiles() -> None:
    said = " ".join(str(conformance.__doc__).split())
    *names, last = PRESETS
    assert f"{', '.join(names)} or {last}, with 12 query heads" in said
    assert f"comma-separated: {', '.join(PROFILES)} (all of them)" in said


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("kernel", None, "give --refdiff-kernel package.module:function"),
        ("kernel", KERNELS + "by_name", "must take (spec, inputs) or (inputs), and may also take dout"),
        ("spec", "hf", "no preset is called 'hf'; the preset of that variant is 'hf_diffllama'; there are"),
        ("spec", "hf_diffllama,heads=3", "'heads'"),
        ("spec", "hf_diffllama,window", "--refdiff-spec: window: must be FIELD=VALUE"),
        ("recipe", "bf16,lamb=float32", "'lamb' is no field of a Recipe, did you mean 'lam'"),
        ("seed", "one", "--refdiff-seed: got 'one', expected a whole number from 0"),
        ("sizes", "2x8x8,2xax8", "--refdiff-sizes: got '2xax8', expected BxTxS such as 2x512x512"),
        (
            "profiles",
            "natural,tile",
            "--refdiff-profiles: no profile is called 'tile'; did you mean 'tiles'? there are",
        ),
    ],
)
def test_invalid_options_are_reported(option: str, value: str | None, says: str) -> None:
    options = SimpleNamespace(**{"refdiff_kernel": KERNELS + "right", f"refdiff_{option}": value})
    with pytest.raises(pytest.Collector.CollectError) as refused:
        conformance.pytest_generate_tests(
            SimpleNamespace(fixturenames=["case"], config=SimpleNamespace(option=options))
        )
    assert says in str(refused.value)


OWN = """
import numpy as np
import pytest
from refdiff import oracle

SPEC = oracle.Spec.preset("attention", query_heads=4, key_heads=2, head_dim=8)


@pytest.mark.parametrize("mine", [SPEC, SPEC.replace(softcap=3.0)])
def test_mine(attention_oracle, mine):
    case = attention_oracle.cases(spec=SPEC)[1]
    computed = oracle.truth(mine, case.inputs).out.astype(np.float32)
    assert bool(attention_oracle.check(computed, case.inputs, spec=SPEC, recipe="float32")) == (mine is SPEC)
    attention_oracle.assert_close(computed, case.inputs, spec=SPEC, recipe="float32")


def test_a_failure_is_caught(attention_oracle):
    case = attention_oracle.cases(spec=SPEC)[1]
    with pytest.raises(AssertionError, match="^fail, judged as float32; diagnosis: "):
        attention_oracle.assert_close(case.inputs["q"] * 0, case.inputs, spec=SPEC, recipe="float32")


def test_other():
    pass


def test_of_the_command_line(attention_oracle):
    case = attention_oracle.cases("natural")[0]
    attention_oracle.assert_close(oracle.truth(case.spec, case.inputs).out.astype(np.float32), case.inputs)
"""


def test_the_fixture(outside: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(OWN, encoding="utf-8")
    (tmp_path / "pytest.ini").touch()
    command = [sys.executable, "-m", "pytest", "-p", "refdiff.pytest_plugin", "-m", "refdiff", "-q"]
    environment = {**outside, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "-p no:refdiff"}
    given = ("--refdiff-spec", "attention,window=3", "--refdiff-recipe", "float32")
    text = subprocess.run([*command, *given], cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert "1 failed, 3 passed, 1 deselected" in text, text
    assert "-- refdiff --" in text
    assert "AssertionError: fail, judged as float32; diagnosis: unique: softcap = 3" in text
    assert "raise AssertionError" not in text
    without = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert "spec: got None, expected a Spec or a preset's name, here or as --refdiff-spec" in without


def test_the_action_installs(outside: dict[str, str], tmp_path: Path) -> None:
    """The first step in a shell, from a copy, without dependencies; what it installs has the plugin."""
    if any(not find_spec(name) for name in ("pip", "setuptools")) or int(version("setuptools").split(".")[0]) < 77:
        pytest.skip("pip and setuptools 77 or later are not installed")
    copy = tmp_path / "refdiff"
    for name in ("refdiff", ".github/actions"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.cfg", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    action = copy / ".github" / "actions" / "check-kernel"
    (command,) = re.findall(r"run: (python -m pip .*)\n", (action / "action.yml").read_text(encoding="utf-8"))
    given = {
        "INSTALL": f"--no-deps --no-build-isolation --target {tmp_path / 'site'}",
        "GITHUB_ACTION_PATH": str(action),
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**outside, **given, "PATH": path, "PYTHONPATH": ""}
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], **options)
    assert done.returncode == 0, done.stdout + done.stderr
    (entry,) = (tmp_path / "site").glob("refdiff-*.dist-info/entry_points.txt")
    assert "[pytest11]\nrefdiff = refdiff.pytest_plugin\n" in entry.read_text(encoding="utf-8")
    environment["PYTHONPATH"] = str(tmp_path / "site")
    where = subprocess.run([sys.executable, "-c", "import refdiff; print(refdiff.__file__)"], **options)
    assert where.stdout.startswith(str(tmp_path / "site")), where.stderr


def test_the_steps_of_the_action(outside: dict[str, str], tmp_path: Path) -> None:
    """A kernel that fails: the table in the job's summary, and a file that repeats the failing case."""
    action = (ROOT / ".github" / "actions" / "check-kernel" / "action.yml").read_text(encoding="utf-8")
    (installed,) = re.findall(r'install -q "\$GITHUB_ACTION_PATH/(.*?)\[oracle\]"', action)
    assert (ROOT / ".github" / "actions" / "check-kernel" / installed).resolve() == ROOT.resolve()
    (command,) = re.findall(r"run: >-\n(.*?)\n +env:", action, re.S)
    summary = tmp_path / "summary.md"
    given = {"KERNEL": KERNELS + "wrong_rope", "SPEC": "hf_diffllama,window=5", "RECIPE": "float32"}
    given |= {
        "OPTIONS": "--refdiff-profiles natural",
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_STEP_SUMMARY": str(summary),
    }
    plugin = "-p refdiff.pytest_plugin -p no:cacheprovider -o addopts=-p\\ no:refdiff"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**outside, **given, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": plugin, "PATH": path}
    shell = ["bash", "-euo", "pipefail", "-c", " ".join(command.split())]
    done = subprocess.run(shell, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    written = summary.read_text(encoding="utf-8")
    assert "| natural | 0 | 2 | 0 |" in written, written
    assert "unique: other_rope_pairing" in written
    (again,) = re.findall(r"^saved: refdiff (check --diagnose refdiff-failed/case.safetensors)$", written, re.M)
    (kept,) = re.findall(r"path: \$\{\{ runner.temp \}\}/(.*)\n", action)
    downloaded = Path(shutil.copytree(tmp_path / kept, tmp_path / "elsewhere" / kept))  # all that the artifact has
    judge = [sys.executable, "-m", "refdiff", *again.split()]
    options: dict[str, Any] = {"cwd": downloaded.parent, "env": environment, "capture_output": True, "text": True}
    judged = subprocess.run(judge, **options)
    assert (judged.returncode, "unique: other_rope_pairing" in judged.stdout) == (1, True), (
        judged.stdout + judged.stderr
    )
    asked = subprocess.run([*judge[:4], "--print-spec", judge[-1]], **options)
    assert json.loads(asked.stdout)["window"] == 5
    broken = {**environment, "KERNEL": "nowhere:attend", "GITHUB_STEP_SUMMARY": str(tmp_path / "broken.md")}
    assert subprocess.run(shell, **{**options, "cwd": ROOT, "env": broken}).returncode != 0
    written = (tmp_path / "broken.md").read_text(encoding="utf-8")
    assert "| none: the error below | 0 | 0 | 0 |\n\n```text\n" in written, written
    assert "cannot be imported: ModuleNotFoundError: No module named 'nowhere'" in written
