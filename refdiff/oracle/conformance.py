"""The whole suite against your function.

    REFDIFF_KERNEL=package.module:function pytest --pyargs refdiff.oracle.conformance

The function is `kernel(spec, inputs)`: a `Spec` and the dictionary of `refdiff.oracle.inputs`, NumPy arrays in the type
that the kernel stores (bfloat16 is ml_dtypes'); or `kernel(inputs)`, where it has the spec compiled in. It returns its
output, or a mapping with any of out, lse1, lse2 (of plain attention out, lse); arrays of any library. `kernel(spec,
inputs, dout=None)` is given the output's gradient too; where that is not None it returns the gradient of every input
of floats but `bias` beside, as dq, dk, dv, dlambda_q1, …; one that leaves some out fails. It
returns `NotImplemented` for inputs that it does not serve: such a test is skipped, and a run in which more than half
are declined fails. The first case that fails is told with the lines that make it again, and with what `diagnose`
answers of its output, or of its gradients. If it is too large for that, the first smaller one that fails is told too.
Where the kernel raises, its own last line is told; `python` with the lines of the case has the rest.

    REFDIFF_KERNEL     package.module:function
    REFDIFF_SPEC       hf_diffllama, ms_v1, ms_v1_naive, timm, phi4flash, motif, diff_v2, gda, motif3 or
                       attention, with 12 query heads (gda and motif3 20) of 16, in layer 2; or a JSON object with
                       fields of a Spec, to which "preset" may give the rest:
                       {"preset": "ms_v1", "query_heads": 8, "key_heads": 4, "head_dim": 64} (hf_diffllama).
                       "padded_queries": "any" for a kernel that leaves the rows of padding as they are
    REFDIFF_RECIPE     float32, tf32, bfloat16 or float16, also as fp32, bf16, fp16, or a JSON object with fields of a
                       Recipe, such as {"storage": "bf16", "lam": "float32"} (float32), or "accumulate": "fp16" for
                       products that are summed in 16 bits
    REFDIFF_PROFILES   one or more by commas: natural, discriminating, cancellation, tiny_values, extreme, degenerate,
                       layout, serving, lambda, modules, tiles (all of them). Plain attention has no
                       cancellation and lambda. Relations between two runs are tested beside, on cases of natural
    REFDIFF_SET        quick, or thorough: with up to 1,024 queries and 4,096 keys, which takes minutes (quick)
    REFDIFF_SIZES      your own sizes beside, batch, queries and keys: 2x512x512,8x1x4096 (none)
    REFDIFF_ALLOW_DECLINED   1: a kernel that declines more than half of the cases may pass (it does not)
    REFDIFF_ALLOW_MISSING_GRADIENTS   1: a kernel that takes dout may leave out gradients of λ, sinks, weights and
                       gates (it does not)
    REFDIFF_SEED       of the numbers, from 0 (0)
    REFDIFF_DASK       tcp://scheduler:8786: the workers of a dask scheduler run the kernel, a case at a time, with what
                       can be imported there (this process runs it)

Every case uses the spec you name. With a preset, three more cases of `modules` have heads of 64, 96 and 128, for a
kernel that takes the spec. Relations may change numbers of heads (`groups_as_copies`), and nothing else.
A correct kernel in NumPy takes 4 s for all on one core, 1 of them for `tiles`; with gradients 12 and 4.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import pytest

from refdiff import cluster
from refdiff.oracle.cases.fixed import OF_DIFFERENCES, PROFILES, Case, cases, checked_profile, small_spec
from refdiff.oracle.inputs.outputs import takes_inputs_alone
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.suite.outcome import (
    Outcome,
    against_itself,
    against_truth,
    check_kernel,
    in_words,
    kernel_of,
    report,
    report_title,
)
from refdiff.oracle.suite.relations import RELATIONS, same_gradients_twice, same_twice

Value = TypeVar("Value")
WIDTHS = (64, 96, 128)
"""Of heads, as most models have them; a table, a tile or a vector load may be made for one of them."""
_outcomes: list[tuple[Case, Outcome]] = []
"""Of each case, as far as the run has come."""


def spec_of(text: str) -> Spec:
    """A preset with small dimensions, or the fields of a spec in JSON, those of a preset for what is not there."""
    text = text.strip()
    return Spec.of(json.loads(text)) if text.startswith("{") else small_spec(text)


def recipe_of(text: str) -> Recipe:
    """A type's name, or the fields of a recipe in JSON."""
    text = text.strip()
    return Recipe.of(json.loads(text) if text.startswith("{") else text)


def chosen(environment: Mapping[str, str], *, other_widths: bool = True) -> list[Case]:
    """The cases that the variables ask for; of a preset, whose dimensions nobody chose, heads of other widths too."""
    text, dtype = _spec_text(environment), _recipe(environment).storage
    spec, seed = _spec(environment), _seed(environment)
    every = [p for p in PROFILES if not (spec.is_plain and p in OF_DIFFERENCES)]
    profiles = _read(environment, "REFDIFF_PROFILES", ",".join(every), _profiles)
    thorough = _read(environment, "REFDIFF_SET", "quick", _is_thorough)
    found = [c for p in profiles for c in cases(p, seed, spec=spec, dtype=dtype, thorough=thorough)]
    if other_widths and "modules" in profiles and not text.strip().startswith("{"):
        for d in WIDTHS:
            T = 256 if thorough else 64
            wide = cases("modules", seed, spec=spec.replace(head_dim=d), dtype=dtype, batch=1, queries=T)[0]
            found.append(replace(wide, name=f"{wide.name}-d{d}"))
    for B, T, S in _read(environment, "REFDIFF_SIZES", "", _sizes):
        own = cases("discriminating", seed, spec=spec, dtype=dtype, batch=B, queries=T, keys=S)[0]
        found.append(replace(own, name=f"{B}x{T}x{S}-{dtype}-{seed}"))
    return found


def _read(environment: Mapping[str, str], name: str, default: str, reader: Callable[[str], Value]) -> Value:
    """What a variable says; an error names it."""
    try:
        return reader(environment.get(name, default))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name}: {error}") from None


def _profiles(text: str) -> list[str]:
    return [checked_profile(name.strip()) for name in text.split(",") if name.strip()]


def _is_thorough(text: str) -> bool:
    if text not in ("quick", "thorough"):
        raise ValueError(f"got {text!r}, expected quick or thorough")
    return text == "thorough"


def _sizes(text: str) -> list[tuple[int, int, int]]:
    found = []
    for size in filter(None, map(str.strip, text.split(","))):
        numbers = size.split("x")
        if len(numbers) != 3 or not all(map(str.isdecimal, numbers)):
            raise ValueError(f"got {size!r}, expected BxTxS such as 2x512x512")
        B, T, S = map(int, numbers)
        found.append((B, T, S))
    return found


def _whole_number(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"got {text!r}, expected a whole number from 0")
    return int(text)


def _seed(environment: Mapping[str, str]) -> int:
    return _read(environment, "REFDIFF_SEED", "0", _whole_number)


def _spec_text(environment: Mapping[str, str]) -> str:
    return environment.get("REFDIFF_SPEC", "hf_diffllama")


def _spec(environment: Mapping[str, str]) -> Spec:
    return _read(environment, "REFDIFF_SPEC", "hf_diffllama", spec_of)


def _recipe(environment: Mapping[str, str]) -> Recipe:
    return _read(environment, "REFDIFF_RECIPE", "float32", recipe_of)


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
            alone = not os.environ.get("REFDIFF_DASK") and takes_inputs_alone(kernel_of(name))
            found = chosen(os.environ, other_widths=not alone)
        except (KeyError, TypeError, ValueError) as error:
            raise pytest.Collector.CollectError(str(error)) from None
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
        some = bool(os.environ.get("REFDIFF_ALLOW_MISSING_GRADIENTS"))
        return partial(against_truth, name, recipe, given["case"], some_gradients=some)
    spec, seed = _spec(os.environ), _seed(os.environ)
    found = cases("natural", seed, spec=spec, dtype=recipe.storage)
    if given["relation"] in (same_twice, same_gradients_twice):  # more tiles than one may race
        found = [*cases("tiles", seed, spec=spec, dtype=recipe.storage)[:1], *found]
    return partial(against_itself, name, recipe, given["relation"], found)


def _tell(outcome: Outcome) -> None:
    if outcome.status == "skip":
        pytest.skip(outcome.text)
    if outcome.status == "fail":
        pytest.fail(outcome.text, pytrace=False)


def test_against_the_truth(case: Case, outcomes: Callable[[str], Outcome], request: pytest.FixtureRequest) -> None:
    """Output, log-sum-exps and gradients, whichever the kernel gives, by the budget of the recipe."""
    outcome = outcomes(request.node.nodeid)
    title = report_title(case, outcome, _outcomes)
    _outcomes.append((case, outcome))
    if title:
        more = report(case, _spec_text(os.environ), _recipe(os.environ), outcome, title)
        outcome = replace(outcome, text=f"{outcome.text}\n{more}")
    _tell(outcome)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.__name__)
def test_against_itself(relation: Any, outcomes: Callable[[str], Outcome], request: pytest.FixtureRequest) -> None:
    """What must hold between two runs."""
    _tell(outcomes(request.node.nodeid))


def test_most_cases_were_compared(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in which the kernel declined every case has shown nothing, and one in which it declined most, little."""
    every = [item for item in request.session.items if "case" in getattr(getattr(item, "callspec", None), "params", {})]
    compared = sum(outcome.compared for _, outcome in _outcomes)
    gradients = sum(outcome.gradients for _, outcome in _outcomes)
    inconclusive = [f"{tensor} of {case.name}" for case, outcome in _outcomes for tensor in outcome.inconclusive]
    declined = Counter(case.profile for case, outcome in _outcomes if outcome.declined)
    missing = dict.fromkeys(name for _, outcome in _outcomes for name in outcome.missing)
    text = f"compared {compared} of {len(every)}"
    text += f"; gradients in {gradients} of them" if gradients else "; no gradients, which take dout=None"
    text += f"; inconclusive: {', '.join(inconclusive)}" if inconclusive else ""
    text += f"; gradients not given: {', '.join(missing)}" if missing else ""
    if declined:
        text += f"; declined {declined.total()}: {', '.join(f'{p} {n}' for p, n in declined.most_common())}"
    with capsys.disabled():
        sys.stdout.write(f"\n{text}\n")
    if not compared:
        pytest.fail("no output was compared: every case was declined or inconclusive", pytrace=False)
    if missing and not os.environ.get("REFDIFF_ALLOW_MISSING_GRADIENTS"):
        pytest.fail(f"gradients not given: {', '.join(missing)}. If the kernel is not meant to give them, set "
                    "REFDIFF_ALLOW_MISSING_GRADIENTS=1", pytrace=False)  # fmt: skip
    if 2 * declined.total() > len(every) and not os.environ.get("REFDIFF_ALLOW_DECLINED"):
        pytest.fail(f"declined {declined.total()} of {len(every)}, more than half. If that is all it is meant to "
                    "serve, set REFDIFF_ALLOW_DECLINED=1, or name the profiles that it serves in REFDIFF_PROFILES",
                    pytrace=False)  # fmt: skip
