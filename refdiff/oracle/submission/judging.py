"""Run a submitted kernel on hidden inputs, end its process, then compute the expected outputs and judge.

Each case has three sets of numbers of the same shapes, which the kernel gets in the same memory: the second has other
numbers in every array, the third in one array alone. After all cases the kernel is called with the first sets again, in
another order; the bits must be the same.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from refdiff.messages import printable
from refdiff.oracle.cases.fixed import PROFILES, Case, cases
from refdiff.oracle.inputs.arrays import is_float
from refdiff.oracle.inputs.outputs import KernelError
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.submission.process import KernelProcess, ProcessError, ProcessLimits
from refdiff.oracle.suite.outcome import Outcome, judge_outputs
from refdiff.oracle.thresholds import THRESHOLDS

SHOWN = 3
"""How many failed cases the text has in full; JSON has all."""
WITHOUT = {
    "Landlock": "a kernel can read refdiff's files and write yours",
    "seccomp": "it can start processes, and change limits of the judge and times of files",
    "network namespace": "only seccomp keeps it from opening connections",
}
"""The means of confinement, and what a kernel can do without each."""


Numpy = np.ndarray[Any, Any]
Size = tuple[int, int, int]
DERIVED = tuple(name for name, x in vars(Spec).items() if isinstance(x, property))
"""What a spec computes from its fields; kernels are told of it too."""
SMALL_SIZES, LARGE_SIZES = 3, 1
"""How many random sizes are added: a kernel could be written for the published sizes of the profiles."""


@dataclass
class Run:
    """The calls of a case: three sets of numbers, and what the kernel returned for each.

    changed: the array in which the third set differs from the first. forward_only: the kernel was called without dout.
    """

    name: str
    sets: tuple[Case, Case, Case]
    changed: str
    problem: str = ""
    declined: bool = False
    forward_only: bool = False
    outputs: tuple[dict[str, Numpy], ...] = ()


@dataclass(frozen=True)
class JudgeReport:
    """The verdict on a kernel; true if and only if the status is "pass".

    seed: the seed of all inputs; it reproduces the run. cases: outcomes by name, in the order of the calls. reasons:
    why the run as a whole fails. gradients: whether the kernel takes dout. unjudged: the number of cases without an
    outcome because the run ended early. confinement: what Linux confined the kernel by. asked: the function, profiles
    and sizes. runs: the calls, which a receipt records.
    """

    kernel: str
    spec: Spec
    recipe: Recipe
    seed: int
    cases: Mapping[str, Outcome]
    reasons: tuple[str, ...] = ()
    gradients: bool = False
    unjudged: int = 0
    confinement: tuple[str, ...] = tuple(WITHOUT)
    asked: Mapping[str, Any] = field(default_factory=dict, repr=False)
    runs: Sequence[Run] = field(default=(), repr=False, compare=False)

    @property
    def compared(self) -> int:
        """The number of cases in which an output was compared."""
        return sum(o.compared for o in self.cases.values())

    @property
    def status(self) -> str:
        """ "pass" or "fail"."""
        return "fail" if self.reasons or self._named("fail") else "pass"

    def __bool__(self) -> bool:
        return self.status == "pass"

    def _named(self, status: str) -> list[str]:
        return [name for name, outcome in self.cases.items() if outcome.status == status]

    def __str__(self) -> str:
        failed = self._named("fail")
        total = len(self.cases) + self.unjudged
        counts = f"{self.compared} of {total} cases compared"
        gradients = "gradients too" if self.gradients else "no gradients: the kernel takes no dout"
        layer = "" if self.spec.is_plain else f"layer {self.spec.layer}, "
        lines = [f"{self.status}: {counts}, {len(failed)} failed; {layer}seed {self.seed}"]
        lines += [gradients, *self.reasons]
        for name in failed[:SHOWN]:
            text = self.cases[name].text
            lines += [f"{name}:", text] if "\n" in text else [f"{name}: {text}"]
        lines.append(f"confined by {', '.join(self.confinement) or 'nothing'}")
        lines += [f"without {name}, {risk}" for name, risk in WITHOUT.items() if name not in self.confinement]
        inconclusive = [name for name, o in self.cases.items() if o.status == "skip" and not o.declined]
        inconclusive += [name for name, o in self.cases.items() for _ in o.inconclusive]
        declined = [name for name, o in self.cases.items() if o.declined]
        for what, names in (("also failed", failed[SHOWN:]), ("declined", declined), ("inconclusive", inconclusive)):
            kinds = Counter("sizes" if name[0].isdigit() else name.partition("-")[0] for name in names)
            if names:
                lines.append(f"{what} {len(names)}: {', '.join(f'{kind} {n}' for kind, n in kinds.most_common())}")
        return "\n".join(printable(line) for text in lines for line in text.splitlines())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as values of JSON."""
        return {
            "status": self.status,
            "kernel": self.kernel,
            "spec": self.spec.to_dict(),
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "gradients": self.gradients,
            "compared": self.compared,
            "failed": len(self._named("fail")),
            "unjudged": self.unjudged,
            "confinement": list(self.confinement),
            "reasons": list(self.reasons),
            "cases": {
                name: {
                    "status": "declined" if o.declined else "inconclusive" if o.status == "skip" else o.status,
                    "inconclusive": list(o.inconclusive),
                    "text": o.text,
                }
                for name, o in self.cases.items()
            },
        }


def judge_file(
    path: str | os.PathLike[str],
    spec: Spec | str,
    *,
    recipe: Recipe | str,
    function: str = "kernel",
    gradients: bool = False,
    profiles: Iterable[str] = tuple(PROFILES),
    sizes: Iterable[Size] = (),
    seed: int | None = None,
    limits: ProcessLimits | None = None,
    doing: Callable[[str], None] = lambda what: None,
) -> JudgeReport:
    """Judge a function of a Python file or a shared library, which runs in a process without refdiff.

    Args:
        path: the file. It defines `kernel(spec, inputs)` or `kernel(inputs)`, optionally with `dout=None`, as for the
            conformance suite; `spec` has the fields of a `Spec`. Or a library (.so or .dylib), as for `oracle.from_c`.
        spec: a spec, or a preset's name, which gets small dimensions as in `oracle.cases`.
        function: the function's name in the file.
        gradients: whether the function of a library computes gradients.
        profiles: the profiles of `oracle.cases`.
        sizes: (batch, queries, keys) of additional cases.
        seed: seed of all inputs; None draws one, which the report has.
        limits: time, memory and processes; None is `ProcessLimits()`.
        doing: called with a line of text at each step.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        ValueError: a profile is unknown; or the file has no such function, or raises an exception when it is loaded.
        OSError: the system is Windows, which has no such limits.
    """
    path, spec = Path(path), resolve_spec(spec)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: got a folder, expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if os.name != "posix":
        raise OSError("a kernel is judged on Linux or macOS only: this system has no limits for a process")
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.of(recipe)
    seed = secrets.randbelow(2**31) if seed is None else seed
    asked: dict[str, Any] = {"function": function, "profiles": list(profiles), "sizes": [list(size) for size in sizes]}
    rng = np.random.default_rng([seed, 5])
    runs = draw_runs(spec, recipe.storage, seed, rng, asked["profiles"], asked["sizes"])
    doing("running the kernel")
    largest = max(sum(x.nbytes for x in _arrays(numbers).values()) for run in runs for numbers in run.sets)
    process = KernelProcess.start(path, function, largest, limits or ProcessLimits(), gradients=gradients)
    gradients, confinement, reasons = _call_all(process, runs, rng)
    found = judge_runs(runs, recipe, gradients, doing)  # only now, when the kernel and all its processes have ended
    reasons = (*reasons, *coverage_reasons(found))
    left = len(runs) - len(found)
    return JudgeReport(str(path), spec, recipe, seed, found, reasons, gradients, left, confinement, asked, runs)


def _hidden_sizes(rng: np.random.Generator) -> list[Size]:
    """Draw sizes that no kernel can know, mostly small: half with as many keys as queries, half with more keys."""
    queries = [*rng.integers(1, 41, SMALL_SIZES), *rng.integers(150, 250, LARGE_SIZES)]
    more = rng.permutation([0 if n % 2 else int(rng.integers(1, 60)) for n in range(len(queries))])
    return [(int(rng.integers(1, 4)) if T <= 40 else 1, int(T), int(T + n)) for T, n in zip(queries, more, strict=True)]


def draw_runs(
    spec: Spec, dtype: str, seed: int, rng: np.random.Generator, profiles: Iterable[str], sizes: Iterable[Iterable[int]]
) -> list[Run]:
    """Return the cases in the order of their first calls: of the profiles, of `sizes`, and of sizes that are drawn."""
    drawn = [(case.name, case, other) for p in profiles for case, other in _pairs(p, seed, spec, dtype)]
    for n, (B, T, S) in enumerate([*sizes, *_hidden_sizes(rng)]):
        ((case, other),) = _pairs("discriminating", seed + 2 + 2 * n, spec, dtype, (B, T, S))
        drawn.append((f"{B}x{T}x{S}-{n}", case, other))
    made = []
    start = int(rng.integers(2**16))
    for n, (name, case, other) in enumerate(drawn):
        names = [x for x, numbers in case.inputs.items() if is_float(numbers.dtype)]
        changed = names[(start + n) % len(names)]
        third = replace(case, inputs={**case.inputs, changed: other.inputs[changed]})
        made.append(Run(name, (case, other, third), changed))
    return [made[i] for i in rng.permutation(len(made))]


def _pairs(profile: str, seed: int, spec: Spec, dtype: str, size: Size | None = None) -> list[tuple[Case, Case]]:
    """Return each case of a profile with the numbers of two seeds."""
    B, T, S = size or (None, None, None)
    given = [cases(profile, seed + i, spec=spec, dtype=dtype, batch=B, queries=T, keys=S) for i in (0, 1)]
    return list(zip(*given, strict=True))


def _call_all(
    started: contextlib.AbstractContextManager[KernelProcess], runs: list[Run], rng: np.random.Generator
) -> tuple[bool, tuple[str, ...], tuple[str, ...]]:
    """Call the kernel on all cases; return whether it takes dout, its confinement, and why the calls ended early."""
    gradients = False
    confinement: tuple[str, ...] = ()
    try:
        with started as process:
            gradients, confinement = process.gradients, process.confinement
            for run in runs:
                with _problem_of(run):
                    _first_calls(process, run)
            for run in (runs[i] for i in rng.permutation(len(runs))):
                with _problem_of(run, "called again"):
                    if run.outputs and not _is_bitwise_equal(run.outputs[0], _call(process, run, run.sets[0])):
                        run.problem = run.problem or "the same inputs gave other bits when the kernel was called again"
        return gradients, confinement, ()
    except KernelError as error:
        return gradients, confinement, (str(error),)


@contextlib.contextmanager
def _problem_of(run: Run, when: str = "") -> Iterator[None]:
    """Take a failed call for the problem of a case; where the process has ended, name the case."""
    try:
        yield
    except ProcessError as error:
        raise ProcessError(f"ended at {run.name}{when and f', {when}'}: {error}") from None
    except KernelError as error:
        run.problem = f"{when and f'{when}: '}{error}"


def _first_calls(process: KernelProcess, run: Run) -> None:
    """Call the kernel with each set of numbers; the first output must survive the other calls."""
    outputs: list[dict[str, Numpy]] = []
    for numbers in run.sets:
        if (found := _call(process, run, numbers)) is None:
            run.declined = not outputs
            run.problem = "the kernel declined inputs of a shape that it had served" if outputs else ""
            return
        outputs.append(found)
    if not _is_bitwise_equal(outputs[0], process.again(_max_output_bytes(run.sets[0]))):
        run.problem = "what the kernel returned has changed with a later call: return a new array each time"
    run.outputs = tuple(outputs)


def _call(process: KernelProcess, run: Run, numbers: Case) -> dict[str, Numpy] | None:
    """Call the kernel; if it declines paged keys with dout, without: decoding may have no backward pass."""
    spec = {**numbers.spec.to_dict(), **{name: getattr(numbers.spec, name) for name in DERIVED}}
    first, largest = numbers is run.sets[0], _max_output_bytes(numbers)
    arrays = _arrays(numbers)
    inputs = {name: x for name, x in arrays.items() if name != "dout"}
    gradients = process.gradients and not run.forward_only
    found = process.call(spec, arrays if gradients else inputs, largest, first=first)
    if found is None and gradients and first and "k_pages" in inputs:
        found = process.call(spec, inputs, largest, first=True)
        run.forward_only = found is not None
    return found


def _arrays(numbers: Case) -> dict[str, Numpy]:
    """Return a set of numbers and dout."""
    return {**{name: np.asarray(x) for name, x in numbers.inputs.items()}, "dout": numbers.dout}


def _max_output_bytes(case: Case) -> int:
    """Bound the bytes of all outputs of a case: out, two log-sum-exps, λ, and a gradient of each input, in float64."""
    return 8 * (4 * case.dout.size + sum(x.size for x in case.inputs.values())) + 4096


def _is_bitwise_equal(first: Mapping[str, Numpy], second: Mapping[str, Numpy] | None) -> bool:
    return (
        second is not None
        and first.keys() == second.keys()
        and all(
            (x.dtype, x.shape, x.tobytes()) == (second[n].dtype, second[n].shape, second[n].tobytes())
            for n, x in first.items()
        )
    )


def judge_runs(
    runs: Iterable[Run], recipe: Recipe, gradients: bool, doing: Callable[[str], None]
) -> dict[str, Outcome]:
    """Return the outcome of each case that was called; `doing` is called with a line of text before each."""
    found: dict[str, Outcome] = {}
    for run in runs:
        if run.declined or run.problem or run.outputs:
            doing(f"judging {run.name}")
            found[run.name] = _judge(run, recipe, gradients)
    return found


def _judge(run: Run, recipe: Recipe, gradients: bool) -> Outcome:
    """Return the outcome of a case: a problem of the calls, or the worst outcome of its sets of numbers."""
    if run.declined:
        return Outcome("skip", "the kernel returned NotImplemented", declined=True)
    if run.problem:
        return Outcome("fail", run.problem)
    found = [
        judge_outputs(outputs, numbers, recipe, numbers.dout if gradients and not run.forward_only else None)
        for outputs, numbers in zip(run.outputs, run.sets, strict=True)
    ]
    where = ("", "with other numbers in the same memory: ", f"with other numbers in {run.changed} alone: ")
    for outcome, text in zip(found, where, strict=True):
        if outcome.status == "fail":
            return replace(outcome, text=f"{text}{outcome.text}")
    return next((outcome for outcome in found if outcome.status == "pass"), found[0])


def coverage_reasons(found: Mapping[str, Outcome]) -> list[str]:
    """Say why the run fails if most cases were declined, or no output was compared."""
    declined = sum(o.declined for o in found.values())
    if declined > THRESHOLDS.declined_share * len(found):
        return [
            f"the kernel declined {declined} of {len(found)} cases: select cases that it serves by --profile (most in "
            "modules have as many keys as queries), or add some by --size"
        ]
    if found and not any(o.compared or o.status == "fail" for o in found.values()):
        return ["no output was compared: every case was declined or inconclusive"]
    return []
