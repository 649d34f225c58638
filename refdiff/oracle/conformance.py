"""Run the conformance suite on a kernel.

    REFDIFF_KERNEL=package.module:function pytest --pyargs refdiff.oracle.conformance

The function is `kernel(spec, inputs)`, or `kernel(inputs)` if the spec is compiled in. `spec` is a `Spec`, `inputs` the
dictionary of `refdiff.oracle.inputs`: NumPy arrays in the storage type (bfloat16 is ml_dtypes'). The kernel returns the
output, or a mapping with any of out, lse1, lse2 (plain attention: out, lse), as arrays of any library.

A kernel with a backward pass is `kernel(spec, inputs, dout=None)`. If `dout`, the gradient of the output, is not None,
it also returns the gradient of each floating-point input except `bias`: dq, dk, dv, dlambda_q1, …; a missing one fails.

The kernel returns `NotImplemented` for inputs that it does not support. Such a test is skipped; a run in which more
than half of the cases are declined fails. The report on the first failing case has the lines of Python that reproduce
it, and the diagnosis of its output or gradients. If that case is too large for a diagnosis, the first smaller failing
case is reported too. If the kernel raises, the report has the last line of its own code; run the lines of the case for
the full traceback. The environment variables, with their defaults in parentheses:

    REFDIFF_KERNEL     package.module:function
    REFDIFF_SPEC       hf_diffllama, ms_v1, ms_v1_naive, timm, phi4flash, motif, diff_v2, gda, motif3 or
                       attention, with 12 query heads (gda and motif3: 20) of size 16, in layer 2; or a JSON object
                       with fields of a Spec, where "preset" supplies the missing ones:
                       {"preset": "ms_v1", "query_heads": 8, "key_heads": 4, "head_dim": 64} (hf_diffllama).
                       "padded_queries": "any" for a kernel that writes anything, or nothing, at padding
    REFDIFF_RECIPE     float32, tf32, bfloat16 or float16, also as fp32, bf16, fp16, or a JSON object with fields of a
                       Recipe: {"storage": "bf16", "lam": "float32"}, or {"storage": "fp16", "accumulate": "fp16"}
                       for products that are accumulated in 16 bits (float32)
    REFDIFF_PROFILES   comma-separated: natural, discriminating, cancellation, tiny_values, extreme, degenerate,
                       layout, serving, lambda, modules, tiles (all of them). Plain attention has no cancellation
                       and lambda. The tests of relations between two runs use cases of natural, whatever is named here
    REFDIFF_SET        quick; or thorough, with up to 1,024 queries and 4,096 keys, which takes minutes (quick)
    REFDIFF_SIZES      additional cases, batch x queries x keys: 2x512x512,8x1x4096 (none)
    REFDIFF_ALLOW_DECLINED   1: pass a kernel that declines more than half of the cases (fail it)
    REFDIFF_ALLOW_MISSING_GRADIENTS   1: pass a kernel that takes dout and leaves out gradients of λ, sinks, weights and
                       gates (fail it)
    REFDIFF_SEED       seed of the inputs, 0 or more (0)

Every case uses the named spec. With a preset, and a kernel that takes the spec, `modules` has three more cases with
heads of 64, 96 and 128.
A correct NumPy kernel takes 4 s for all cases on one core, 1 s of them for `tiles`; with gradients 12 s and 4 s.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from refdiff.oracle.cases.fixed import DIFFERENTIAL_PROFILES, PROFILES, Case, cases, resolve_profile, small_spec
from refdiff.oracle.inputs.signature import takes_inputs_alone
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.suite.outcome import (
    Outcome,
    import_kernel,
    judge_case,
    judge_relation,
    report,
    report_title,
)
from refdiff.oracle.suite.relations import RELATIONS, same_gradients_twice, same_twice

HEAD_DIMS = (64, 96, 128)
"""The head sizes of most models: a tile or a vector load may be written for one of them."""
_outcomes: list[tuple[Case, Outcome]] = []
"""Each case that has run so far, with its outcome."""


def spec_of(text: str) -> Spec:
    """Return a preset with small dimensions by its name, or a spec from a JSON object of its fields."""
    text = text.strip()
    return Spec.of(json.loads(text)) if text.startswith("{") else small_spec(text)


def recipe_of(text: str) -> Recipe:
    """Return the usual recipe of a type by its name, or a recipe from a JSON object of its fields."""
    text = text.strip()
    return Recipe.of(json.loads(text) if text.startswith("{") else text)


def select_cases(environment: Mapping[str, str], *, all_head_dims: bool = True) -> list[Case]:
    """Return the cases that the variables select; for a preset in `modules` also cases of `HEAD_DIMS`."""
    spec, recipe, seed = (_read(environment, name) for name in ("SPEC", "RECIPE", "SEED"))
    profiles, thorough, dtype = _read(environment, "PROFILES"), _read(environment, "SET"), recipe.storage
    profiles = profiles or [p for p in PROFILES if not (spec.is_plain and p in DIFFERENTIAL_PROFILES)]
    found = [c for p in profiles for c in cases(p, seed, spec=spec, dtype=dtype, thorough=thorough)]
    if all_head_dims and "modules" in profiles and not _spec_text(environment).strip().startswith("{"):
        for d in HEAD_DIMS:
            T = 256 if thorough else 64
            wide = cases("modules", seed, spec=spec.replace(head_dim=d), dtype=dtype, batch=1, queries=T)[0]
            found.append(replace(wide, name=f"{wide.name}-d{d}"))
    for B, T, S in _read(environment, "SIZES"):
        own = cases("discriminating", seed, spec=spec, dtype=dtype, batch=B, queries=T, keys=S)[0]
        found.append(replace(own, name=f"{B}x{T}x{S}-{dtype}-{seed}"))
    return found


def _profiles(text: str) -> list[str]:
    return [resolve_profile(name.strip()) for name in text.split(",") if name.strip()]


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


DEFAULT_SPEC = "hf_diffllama"
VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "SPEC": (DEFAULT_SPEC, spec_of),
    "RECIPE": ("float32", recipe_of),
    "PROFILES": ("", _profiles),
    "SET": ("quick", _is_thorough),
    "SIZES": ("", _sizes),
    "SEED": ("0", _whole_number),
}
"""The variables that select cases: the default, and the function that parses the text."""


def _read(environment: Mapping[str, str], name: str) -> Any:
    """Parse a variable; an error names it."""
    default, reader = VARIABLES[name]
    try:
        return reader(environment.get(f"REFDIFF_{name}", default))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"REFDIFF_{name}: {error}") from None


def _spec_text(environment: Mapping[str, str]) -> str:
    return environment.get("REFDIFF_SPEC", DEFAULT_SPEC)


def pytest_generate_tests(metafunc: Any) -> None:
    """Parametrize the tests by the selected cases.

    Raises:
        CollectError: a variable is wrong; pytest prints it as one line, without a traceback.
    """
    if "case" in metafunc.fixturenames:
        name = os.environ.get("REFDIFF_KERNEL", "")
        if not name:
            raise pytest.Collector.CollectError("set REFDIFF_KERNEL=package.module:function")
        try:
            found = select_cases(os.environ, all_head_dims=not takes_inputs_alone(import_kernel(name)))
        except (KeyError, TypeError, ValueError) as error:
            raise pytest.Collector.CollectError(str(error)) from None
        metafunc.parametrize("case", found, ids=str)


def _report(outcome: Outcome) -> None:
    if outcome.status == "skip":
        pytest.skip(outcome.text)
    if outcome.status == "fail":
        pytest.fail(outcome.text, pytrace=False)


def test_against_the_truth(case: Case) -> None:
    """Test output, log-sum-exps and gradients, as far as the kernel returns them, against the float64 truth."""
    kernel, recipe = import_kernel(os.environ["REFDIFF_KERNEL"]), _read(os.environ, "RECIPE")
    allowed = bool(os.environ.get("REFDIFF_ALLOW_MISSING_GRADIENTS"))
    outcome = judge_case(kernel, recipe, case, allow_missing_gradients=allowed)
    title = report_title(case, outcome, _outcomes)
    _outcomes.append((case, outcome))
    if title:
        more = report(case, _spec_text(os.environ), recipe, outcome, title)
        outcome = replace(outcome, text=f"{outcome.text}\n{more}")
    _report(outcome)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda r: r.__name__)
def test_against_itself(relation: Any) -> None:
    """Test a relation that must hold between two runs of the kernel."""
    spec, recipe, seed = (_read(os.environ, name) for name in ("SPEC", "RECIPE", "SEED"))
    found = cases("natural", seed, spec=spec, dtype=recipe.storage)
    if relation in (same_twice, same_gradients_twice):  # a race needs more than one tile
        found = [*cases("tiles", seed, spec=spec, dtype=recipe.storage)[:1], *found]
    _report(judge_relation(import_kernel(os.environ["REFDIFF_KERNEL"]), recipe, relation, found))


def test_most_cases_were_compared(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> None:
    """Fail if no case was compared, if more than half were declined, or if gradients are missing."""
    every = [item for item in request.session.items if "case" in getattr(getattr(item, "callspec", None), "params", {})]
    compared = sum(outcome.compared for _, outcome in _outcomes)
    gradients = sum(outcome.gradients for _, outcome in _outcomes)
    inconclusive = Counter(tensor for _, outcome in _outcomes for tensor in outcome.inconclusive)
    declined = Counter(case.profile for case, outcome in _outcomes if outcome.declined)
    missing = dict.fromkeys(name for _, outcome in _outcomes for name in outcome.missing)
    text = f"compared {compared} of {len(every)}"
    text += f"; gradients in {gradients} of them" if gradients else "; no gradients: the kernel takes no dout"
    if inconclusive:
        text += f"; inconclusive: {', '.join(f'{name} in {n}' for name, n in inconclusive.most_common())}"
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
