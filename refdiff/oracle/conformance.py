"""Run the conformance suite on a kernel.

    pytest --refdiff-kernel package.module:function --refdiff-spec hf_diffllama --refdiff-recipe bfloat16

The function is `kernel(spec, inputs)`, or `kernel(inputs)` if the spec is compiled in. `spec` is a `Spec`, `inputs` the
dictionary of `refdiff.oracle.inputs`: NumPy arrays in the storage type (bfloat16 is ml_dtypes'). The kernel returns the
output, or a mapping with any of out, lse1, lse2 (plain attention: out, lse), as arrays of any library.

A kernel with a backward pass is `kernel(spec, inputs, dout=None)`. If `dout`, the gradient of the output, is not None,
it also returns the gradient of each floating-point input except `bias`: dq, dk, dv, dlambda_q1, …; a missing one fails.

The kernel returns `NotImplemented` for inputs that it does not support. Such a test is skipped; a run in which more
than half of the cases are declined fails. The report on the first failing case has the lines of Python that reproduce
it, and the diagnosis of its output or gradients. If the kernel raises, the report has the last line of its own code;
run the lines of the case for the full traceback. `pytest --help` lists the options:

    --refdiff-spec      hf_diffllama, ms_v1, ms_v1_naive, timm, phi4flash, motif, diff_v2, gda, motif3 or attention,
                        with 12 query heads (gda and motif3: 20) of size 16, in layer 2, and the fields that differ:
                        ms_v1,query_heads=8,key_heads=4,head_dim=64; or a JSON object with fields of a Spec.
                        padded_queries=any for a kernel that writes anything, or nothing, at padding
    --refdiff-recipe    float32, tf32, bfloat16 or float16, also as fp32, bf16, fp16, and fields of a `Recipe`:
                        bf16,lam=float32, or fp16,accumulate=fp16 for products that are accumulated in 16 bits; or a
                        JSON object
    --refdiff-profiles  comma-separated: natural, discriminating, cancellation, tiny_values, extreme, degenerate,
                        layout, serving, lambda, modules, tiles (all of them). Plain attention has no cancellation
                        and lambda. The tests of relations between two runs use cases of natural, whatever is named here
    --refdiff-bitwise   comma-separated: batch, chunk, page, packing (none of them). A row must have the same bits
                        alone and in a batch, in one prefill and in chunks, paged and dense, packed and alone

Every case uses the named spec. With a preset by its name alone, and a kernel that takes the spec, `modules` has three
more cases with heads of 64, 96 and 128.
A correct NumPy kernel takes 4 s for all cases on one core, 1 s of them for `tiles`; with gradients 12 s and 4 s.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from refdiff.oracle.cases.fixed import DIFFERENTIAL_PROFILES, PROFILES, Case, cases, check_profile
from refdiff.oracle.inputs.arrays import write_arrays
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.inputs.signature import takes_inputs_alone
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.suite.bitwise import BITWISE, bitwise_cases
from refdiff.oracle.suite.outcome import Outcome, import_kernel, judge_case, judge_relation, report
from refdiff.oracle.suite.relations import RELATIONS, same_twice

_T = TypeVar("_T")
pytestmark = pytest.mark.refdiff
HEAD_DIMS = (64, 96, 128)
"""The head sizes of most models: a tile or a vector load may be written for one of them."""
_outcomes: list[tuple[Case, Outcome]] = []
"""Each case that has run so far, with its outcome."""


@dataclass(frozen=True)
class Run:
    """The options of a run, by name without `refdiff_`; one that is not given is None.

    Each property raises a ValueError that names its option.
    """

    options: Mapping[str, Any]

    @classmethod
    def of(cls, config: pytest.Config) -> Run:
        """Return the options of the command line."""
        given = vars(config.option).items()
        return cls({name.removeprefix("refdiff_"): x for name, x in given if name.startswith("refdiff_")})

    @property
    def kernel(self) -> Any:
        """The function that is judged."""
        return self._read("kernel", "", import_kernel)

    @property
    def spec(self) -> Spec:
        """What the kernel computes."""
        return self._read("spec", "hf_diffllama", resolve_spec)

    @property
    def recipe(self) -> Recipe:
        """Where the kernel rounds."""
        return self._read("recipe", "float32", Recipe.of)

    @property
    def seed(self) -> int:
        """The seed of all inputs."""
        return self._read("seed", "0", _whole_number)

    def cases(self, *, all_head_dims: bool = True) -> list[Case]:
        """Return the selected cases; in `modules` also cases of `HEAD_DIMS`, if the spec is a preset's name."""
        spec, dtype, seed = self.spec, self.recipe.storage, self.seed
        profiles = self._read("profiles", "", _profiles)
        profiles = profiles or [p for p in PROFILES if not (spec.is_plain and p in DIFFERENTIAL_PROFILES)]
        found = [c for p in profiles for c in cases(p, seed, spec=spec, dtype=dtype)]
        if all_head_dims and "modules" in profiles and self.spec_text.isidentifier():
            for d in HEAD_DIMS:
                wide = cases("modules", seed, spec=spec.replace(head_dim=d), dtype=dtype, batch=1, queries=64)[0]
                found.append(replace(wide, name=f"{wide.name}-d{d}"))
        for B, T, S in self._read("sizes", "", _sizes):
            own = cases("discriminating", seed, spec=spec, dtype=dtype, batch=B, queries=T, keys=S)[0]
            found.append(replace(own, name=f"{B}x{T}x{S}-{dtype}-{seed}"))
        return found

    @property
    def relations(self) -> list[Callable[..., str]]:
        """The relations between two runs: all that every kernel keeps, and the selected ones of equal bits."""
        return [*RELATIONS, *self._read("bitwise", "", _bitwise)]

    @property
    def spec_text(self) -> str:
        """The spec as it was given."""
        return (self.options.get("spec") or "hf_diffllama").strip()

    def _read(self, name: str, default: str, reader: Callable[[str], _T]) -> _T:
        given = self.options.get(name)
        try:
            return reader(default if given is None else given)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"--refdiff-{name}: {error}") from None


def _profiles(text: str) -> list[str]:
    return [check_profile(name.strip()) for name in text.split(",") if name.strip()]


def _bitwise(text: str) -> list[Callable[..., str]]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in BITWISE]:
        raise ValueError(f"got {unknown[0]!r}, expected one of {', '.join(BITWISE)}")
    return [BITWISE[name] for name in names]


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


def pytest_generate_tests(metafunc: Any) -> None:
    """Parametrize the tests by the selected cases.

    Raises:
        CollectError: an option is wrong; pytest prints it as one line, without a traceback.
    """
    run = Run.of(metafunc.config)
    try:
        if "case" in metafunc.fixturenames:
            if not run.options.get("kernel"):
                raise ValueError("give --refdiff-kernel package.module:function")
            found = run.cases(all_head_dims=not takes_inputs_alone(run.kernel))
            metafunc.parametrize("case", found, ids=str)
        if "relation" in metafunc.fixturenames:
            metafunc.parametrize("relation", run.relations, ids=lambda relation: relation.__name__)
    except ValueError as error:
        raise pytest.Collector.CollectError(str(error)) from None


def save(folder: Path, case: Case, recipe: Recipe, outputs: Mapping[str, Any]) -> str:
    """Write a case and what the kernel computed; return the command that judges it again."""
    folder.mkdir(parents=True, exist_ok=True)
    dout = {"dout": case.dout} if any(name.startswith("d") for name in outputs) else {}
    described = {"spec": json.dumps(case.spec.to_dict()), "recipe": json.dumps(recipe.to_dict())}
    write_arrays(folder / "case.safetensors", {**case.inputs, **dout, **outputs}, described)
    shown = folder.name if folder.is_absolute() else folder  # an artifact is unpacked somewhere else
    return f"saved: refdiff check --diagnose {shown}/case.safetensors"


def _report(outcome: Outcome) -> None:
    if outcome.status == "skip":
        pytest.skip(outcome.text)
    if outcome.status == "fail":
        pytest.fail(outcome.text, pytrace=False)


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Run:
    """The options of this run."""
    return Run.of(request.config)


def test_against_the_truth(case: Case, run: Run) -> None:
    """Test output, log-sum-exps and gradients, as far as the kernel returns them, against the float64 truth."""
    allowed = bool(run.options.get("allow_missing_gradients"))
    outcome = judge_case(run.kernel, run.recipe, case, allow_missing_gradients=allowed)
    is_first = outcome.status == "fail" and not any(earlier.status == "fail" for _, earlier in _outcomes)
    _outcomes.append((case, outcome))
    if is_first:
        more = report(case, run.spec_text, run.recipe, outcome)
        if (folder := run.options.get("save")) and outcome.wrong is not None:
            more += "\n" + save(Path(folder), case, run.recipe, outcome.wrong)
        outcome = replace(outcome, text=f"{outcome.text}\n{more}")
    _report(outcome)


def test_against_itself(relation: Any, run: Run) -> None:
    """Test a relation that must hold between two runs of the kernel."""
    found = cases("natural", run.seed, spec=run.spec, dtype=run.recipe.storage)
    if relation in BITWISE.values():
        found = bitwise_cases(relation, run.spec, run.recipe.storage, run.seed)
    if relation is same_twice:  # a race needs more than one tile
        found = [*cases("tiles", run.seed, spec=run.spec, dtype=run.recipe.storage)[:1], *found]
    _report(judge_relation(run.kernel, run.recipe, relation, found))


def test_most_cases_were_compared(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], run: Run) -> None:
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
    if missing and not run.options.get("allow_missing_gradients"):
        pytest.fail(f"gradients not given: {', '.join(missing)}. If the kernel is not meant to give them, add "
                    "--refdiff-allow-missing-gradients", pytrace=False)  # fmt: skip
    if 2 * declined.total() > len(every) and not run.options.get("allow_declined"):
        pytest.fail(f"declined {declined.total()} of {len(every)}, more than half. If that is all it is meant to "
                    "serve, add --refdiff-allow-declined, or name the profiles that it serves in --refdiff-profiles",
                    pytrace=False)  # fmt: skip
