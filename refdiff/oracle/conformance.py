"""The whole suite against your function.

    REFDIFF_KERNEL=package.module:function pytest --pyargs refdiff.oracle.conformance

The function is `kernel(spec, inputs)`: a `Spec` and the dictionary of `refdiff.oracle.inputs`, NumPy arrays in the type
that the kernel stores (bfloat16 is ml_dtypes'). It returns its output, or a mapping with any of out, lse1, lse2; arrays
of any library. `kernel(spec, inputs, dout=None)` is given the output's gradient too, and returns dq, dk, dv, … beside
where that is not None. It returns `NotImplemented` for inputs that it does not serve: such a test is skipped, and a
run in which nothing was compared fails.

    REFDIFF_KERNEL     package.module:function
    REFDIFF_SPEC       a preset (hf_diffllama), or a JSON object with the fields of a Spec
    REFDIFF_RECIPE     float32, tf32, bfloat16 or float16, or a JSON object with the fields of a Recipe (float32)
    REFDIFF_PROFILES   of the cases, by commas (all)
    REFDIFF_SEED       of their numbers (0)
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.oracle.check import check
from refdiff.oracle.metamorphic import RELATIONS, DeclinedError
from refdiff.oracle.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.strategies.fixed import PROFILES, Case, cases, small_spec

_compared: list[str] = []


def kernel_of(name: str) -> Any:
    """Import `package.module:function`, from the folder that pytest was started in too.

    Raises:
        ValueError: it is written in another way, or names nothing that can be called.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"REFDIFF_KERNEL is {name!r}, but must be package.module:function")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found = getattr(importlib.import_module(module), function, None)
    if not callable(found):
        raise ValueError(f"REFDIFF_KERNEL is {name!r}, but {module} has no function {function!r}")
    return found


def spec_of(text: str) -> Spec:
    """A preset with small dimensions, or the fields of a spec in JSON."""
    return Spec(**json.loads(text)) if text.startswith("{") else small_spec(text)


def recipe_of(text: str) -> Recipe:
    """A type's name, or the fields of a recipe in JSON."""
    return Recipe(**json.loads(text)) if text.startswith("{") else Recipe.of(text)


def chosen(environment: Mapping[str, str]) -> list[Case]:
    """The cases that the variables ask for."""
    spec, recipe = spec_of(environment.get("REFDIFF_SPEC", "hf_diffllama")), _recipe(environment)
    profiles = [p for p in environment.get("REFDIFF_PROFILES", ",".join(PROFILES)).split(",") if p]
    seed = int(environment.get("REFDIFF_SEED", "0"))
    return [case for p in profiles for case in cases(p, seed, spec=spec, dtype=recipe.storage)]


def _recipe(environment: Mapping[str, str]) -> Recipe:
    return recipe_of(environment.get("REFDIFF_RECIPE", "float32"))


def pytest_generate_tests(metafunc: Any) -> None:
    """Give the tests their cases."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", chosen(os.environ), ids=str)


@pytest.fixture(scope="module")
def kernel() -> Any:
    """The function under test."""
    name = os.environ.get("REFDIFF_KERNEL", "")
    if not name:
        pytest.fail("set REFDIFF_KERNEL=package.module:function", pytrace=False)
    return kernel_of(name)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """What it rounds."""
    return _recipe(os.environ)


def test_against_the_truth(kernel: Any, case: Case, recipe: Recipe) -> None:
    """Output, log-sum-exps and gradients, whichever the kernel gives, by the budget of the recipe."""
    more: dict[str, Any] = {"dout": case.dout} if "dout" in inspect.signature(kernel).parameters else {}
    given = {name: np.array(x) for name, x in case.inputs.items()}
    actual = kernel(case.spec, given, **more)
    if actual is NotImplemented:
        pytest.skip("the kernel returned NotImplemented")
    for name, x in case.inputs.items():
        if given[name].tobytes() != x.tobytes():
            pytest.fail(f"the kernel has changed its input {name}", pytrace=False)
    verdict = check(actual, case.spec, case.inputs, recipe=recipe, **more)
    if verdict.status == "inconclusive":
        pytest.skip(str(verdict))
    _compared.append(case.name)
    if not verdict:
        pytest.fail(str(verdict), pytrace=False)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.__name__)
def test_against_itself(kernel: Any, recipe: Recipe, relation: Any) -> None:
    """What must hold between two runs."""
    spec = spec_of(os.environ.get("REFDIFF_SPEC", "hf_diffllama"))
    seed = int(os.environ.get("REFDIFF_SEED", "0"))
    for case in cases("natural", seed, spec=spec, dtype=recipe.storage):
        try:
            wrong = relation(kernel, spec, case.inputs, recipe)
        except DeclinedError as reason:
            skipped = str(reason)
            continue
        if wrong:
            pytest.fail(f"{relation.__doc__} {case.name}: {wrong}", pytrace=False)
        return
    pytest.skip(skipped)


def test_something_was_compared() -> None:
    """A run in which the kernel declined every case has shown nothing."""
    if not _compared:
        pytest.fail("no output was compared: every case was declined or inconclusive", pytrace=False)
