"""The whole suite against your function.

    REFDIFF_KERNEL=package.module:function pytest --pyargs refdiff.oracle.conformance

The function is `kernel(spec, inputs)`: a `Spec` and the dictionary of `refdiff.oracle.inputs`, NumPy arrays in the type
that the kernel stores (bfloat16 is ml_dtypes'); or `kernel(inputs)`, where it has the spec compiled in. It returns its
output, or a mapping with any of out, lse1, lse2; arrays of any library. `kernel(spec, inputs, dout=None)` is given the
output's gradient too, and returns dq, dk, dv, … beside where that is not None. It returns `NotImplemented` for inputs
that it does not serve: such a test is skipped, and a run in which nothing was compared fails. The first case that fails
is told with the lines that make it again, and if its output is wrong and it is small, with what `diagnose` answers.

    REFDIFF_KERNEL     package.module:function
    REFDIFF_SPEC       hf_diffllama, ms_v1, ms_v1_naive, timm, phi4flash, motif, diff_v2 or gda, with 12 query heads
                       (gda 20) of 16, in layer 2; or a JSON object with fields of a Spec, to which "preset" may give
                       the rest: {"preset": "ms_v1", "query_heads": 8, "key_heads": 4, "head_dim": 64} (hf_diffllama)
    REFDIFF_RECIPE     float32, tf32, bfloat16 or float16, also as fp32, bf16, fp16, or a JSON object with fields of a
                       Recipe, such as {"storage": "bf16", "lam": "float32"} (float32)
    REFDIFF_PROFILES   one or more by commas: natural, discriminating, cancellation, tiny_values, extreme, degenerate,
                       layout, serving, tiles (all of them). Relations between two runs are tested beside, on cases of
                       natural
    REFDIFF_SEED       of the numbers, from 0 (0)
    REFDIFF_DASK       tcp://scheduler:8786: the workers of a dask scheduler run the kernel, a case at a time, with what
                       can be imported there (this process runs it)

Every case has the spec that you name; relations may change its numbers of heads (`groups_as_copies`), and nothing else.
A right kernel in NumPy took 4 s for all on one core, 1.5 of them for `tiles`; with gradients 7 and 3.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from refdiff import cluster
from refdiff.oracle.cases.fixed import PROFILES, Case, cases, small_spec
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.suite.outcome import Outcome, against_itself, against_truth, check_kernel, first_failure, in_words
from refdiff.oracle.suite.relations import RELATIONS

_compared: list[str] = []
_failed: list[str] = []


def spec_of(text: str) -> Spec:
    """A preset with small dimensions, or the fields of a spec in JSON, those of a preset for what is not there."""
    text = text.strip()
    return Spec.of(json.loads(text)) if text.startswith("{") else small_spec(text)


def recipe_of(text: str) -> Recipe:
    """A type's name, or the fields of a recipe in JSON."""
    text = text.strip()
    return Recipe.of(json.loads(text) if text.startswith("{") else text)


def chosen(environment: Mapping[str, str]) -> list[Case]:
    """The cases that the variables ask for."""
    spec, recipe = spec_of(_spec_text(environment)), _recipe(environment)
    profiles = [p.strip() for p in environment.get("REFDIFF_PROFILES", ",".join(PROFILES)).split(",") if p.strip()]
    seed = int(environment.get("REFDIFF_SEED", "0"))
    return [case for p in profiles for case in cases(p, seed, spec=spec, dtype=recipe.storage)]


def _spec_text(environment: Mapping[str, str]) -> str:
    return environment.get("REFDIFF_SPEC", "hf_diffllama")


def _recipe(environment: Mapping[str, str]) -> Recipe:
    return recipe_of(environment.get("REFDIFF_RECIPE", "float32"))


def pytest_generate_tests(metafunc: Any) -> None:
    """Give the tests their cases.

    Raises:
        CollectError: a variable is wrong; it is printed as a line, without where it was raised.
    """
    if "case" in metafunc.fixturenames:
        name = os.environ.get("REFDIFF_KERNEL", "")
        if not name:
            raise pytest.Collector.CollectError("set REFDIFF_KERNEL=package.module:function")
        if not os.environ.get("REFDIFF_DASK"):
            try:
                check_kernel(name)
            except ValueError as error:
                raise pytest.Collector.CollectError(str(error)) from None
        try:
            found = chosen(os.environ)
        except (TypeError, ValueError) as error:
            raise pytest.Collector.CollectError(
                f"REFDIFF_SPEC, REFDIFF_RECIPE, REFDIFF_PROFILES or REFDIFF_SEED: {error}"
            ) from None
        metafunc.parametrize("case", found, ids=str)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Outcome]]:
    """The outcome of a test by its node's name; with REFDIFF_DASK the tests after it are under way as well."""
    name = os.environ["REFDIFF_KERNEL"]
    pieces = {item.nodeid: _piece(name, item) for item in request.session.items if hasattr(item, "callspec")}
    address = os.environ.get("REFDIFF_DASK")
    if not address:
        yield lambda node: pieces[node]()
        return
    with cluster.connected(address) as client:
        coming = cluster.each(client, in_words, pieces.values())
        names, there = iter(pieces), {}

        def get(node: str) -> Outcome:
            while node not in there:
                there[next(names)] = next(coming)[1]
            return there.pop(node)

        yield get


def _piece(name: str, item: Any) -> Callable[[], Outcome]:
    given, recipe = item.callspec.params, _recipe(os.environ)
    if "case" in given:
        return partial(against_truth, name, recipe, given["case"])
    spec = spec_of(_spec_text(os.environ))
    natural = cases("natural", int(os.environ.get("REFDIFF_SEED", "0")), spec=spec, dtype=recipe.storage)
    return partial(against_itself, name, recipe, given["relation"], natural)


def _tell(outcome: Outcome, node: str) -> None:
    if outcome.compared:
        _compared.append(node)
    if outcome.status == "skip":
        pytest.skip(outcome.text)
    if outcome.status == "fail":
        pytest.fail(outcome.text, pytrace=False)


def test_against_the_truth(case: Case, outcomes: Callable[[str], Outcome], request: pytest.FixtureRequest) -> None:
    """Output, log-sum-exps and gradients, whichever the kernel gives, by the budget of the recipe."""
    outcome = outcomes(request.node.nodeid)
    if outcome.status == "fail" and not _failed:
        _failed.append(case.name)
        more = first_failure(case, _spec_text(os.environ), _recipe(os.environ), outcome.wrong)
        outcome = replace(outcome, text=f"{outcome.text}\n{more}")
    _tell(outcome, case.name)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.__name__)
def test_against_itself(relation: Any, outcomes: Callable[[str], Outcome], request: pytest.FixtureRequest) -> None:
    """What must hold between two runs."""
    _tell(outcomes(request.node.nodeid), relation.__name__)


def test_something_was_compared() -> None:
    """A run in which the kernel declined every case has shown nothing."""
    if not _compared:
        pytest.fail("no output was compared: every case was declined or inconclusive", pytrace=False)
