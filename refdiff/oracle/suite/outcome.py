"""A piece of the conformance suite: a kernel, by its name, on a case → pass, fail or skip, wherever it is called."""

from __future__ import annotations

import importlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refdiff.messages import did_you_mean
from refdiff.oracle.cases.fixed import Case
from refdiff.oracle.inputs import DATA, gradient_names
from refdiff.oracle.inputs.outputs import NO_RETURN, adapt_kernel, drop_nones, dtype_warnings, read_output, takes_dout
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.suite.relations import DeclinedError, UnreadableError
from refdiff.oracle.verdict.check import check


@dataclass(frozen=True)
class Outcome:
    """What a test says, whether the kernel computed something that was judged, and whether it declined to.

    gradients: whether it gave some; missing: which it left out. inconclusive: what was judged and found inconclusive,
    such as dk.
    """

    status: Literal["pass", "fail", "skip"]
    text: str = ""
    compared: bool = False
    declined: bool = False
    gradients: bool = False
    missing: tuple[str, ...] = ()
    inconclusive: tuple[str, ...] = ()
    wrong: Any = field(default=None, compare=False, repr=False)
    """What was judged of a kernel's answer, where it failed."""


def kernel_of(name: str) -> Any:
    """Import `package.module:function`, from the folder that this process was started in too.

    Raises:
        ValueError: it is written in another way, or names nothing that can be called.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"REFDIFF_KERNEL: got {name!r}, expected package.module:function")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    there = importlib.import_module(module)
    found = getattr(there, function, None)
    if not callable(found):
        hint = did_you_mean(function, [n for n, x in vars(there).items() if callable(x)], ", ")
        raise ValueError(f"REFDIFF_KERNEL: got {name!r}, but {module} has no function {function!r}{hint}")
    return found


def check_kernel(name: str) -> None:
    """Import a kernel and look at what it takes, before anything is computed.

    Raises:
        ValueError: as `kernel_of`; it cannot be imported, or takes something else than a kernel (`outputs.called`).
    """
    try:
        adapt_kernel(kernel_of(name))
    except ValueError:
        raise
    except TypeError as error:
        raise ValueError(f"REFDIFF_KERNEL: got {name!r}: {error}") from error
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"REFDIFF_KERNEL: got {name!r}, which cannot be imported: {what}") from error


class KernelError(Exception):
    """A kernel raised: what, and in which line of its own; or it returned nothing."""


def told(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel whose errors are a `KernelError`, with the last line of its author's files and the innermost."""

    def call(*args: Any) -> Any:
        try:
            found = adapt_kernel(kernel)(*args)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[2:]
            own = [frame for frame in frames if not _is_installed(frame.filename)][-1:]
            lines = [f"  {f.filename}:{f.lineno}, in {f.name}: {f.line}" for f in (*own, *frames[-1:])]
            lines = ["the kernel raised", *dict.fromkeys(lines)]
            what = "".join(traceback.format_exception_only(error)).strip()
            raise KernelError("\n".join([*lines, *what.splitlines()[:LINES]])) from error
        if found is None:
            raise KernelError(NO_RETURN)
        return found

    return call


def _is_installed(file: str) -> bool:
    """Whether a file is Python's or of a package, and so none of a kernel's author."""
    packages = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return bool(packages) or file.startswith("<") or Path(file).is_relative_to(sysconfig.get_path("stdlib"))


def against_truth(name: str, recipe: Recipe, case: Case, *, some_gradients: bool = False) -> Outcome:
    """Judge output, log-sum-exps and gradients, whichever the kernel gives, by the budget of the recipe.

    A kernel that declines pages with dout is called without: decoding may have no backward.

    Args:
        some_gradients: whether a kernel that takes dout may leave out gradients other than those of `DATA`.
    """
    kernel = kernel_of(name)
    dout = case.dout if takes_dout(kernel) else None
    whole = dict(case.inputs) if dout is None else {**case.inputs, "dout": dout}
    given = {name: np.array(x) for name, x in whole.items()}
    try:
        actual = told(kernel)(case.spec, {name: given[name] for name in case.inputs}, given.get("dout"))
        if actual is NotImplemented and dout is not None and "k_pages" in case.inputs:
            dout = None
            actual = told(kernel)(case.spec, {name: given[name] for name in case.inputs}, None)
    except KernelError as error:
        return Outcome("fail", str(error))
    if actual is NotImplemented:
        return Outcome("skip", "the kernel returned NotImplemented", declined=True)
    for name, x in whole.items():
        if given[name].tobytes() != x.tobytes():
            return Outcome("fail", f"the kernel has changed its input {name}")
    return judge_outputs(actual, case, recipe, dout, some_gradients=some_gradients)


def judge_outputs(actual: Any, case: Case, recipe: Recipe, dout: Any, *, some_gradients: bool = False) -> Outcome:
    """Judge what a kernel has returned for a case, by the budget of the recipe."""
    if lacking := _incomplete(actual, case, dout, recipe):
        return Outcome("fail", lacking)
    try:
        verdict = check(actual, case.spec, case.inputs, recipe=recipe, dout=dout)
    except (TypeError, ValueError) as error:
        return Outcome("fail", f"what the kernel returned cannot be judged: {error}")
    of_out = verdict.tensors.get("out")
    decided = of_out is None or of_out.status != "inconclusive"  # a gradient may be, of a case whose output is not
    if verdict.status == "inconclusive" and not (decided and any(t.status == "pass" for t in verdict.tensors.values())):
        return Outcome("skip", str(verdict))
    wrong = None
    if verdict.status == "fail":
        wrong = actual if isinstance(actual, Mapping) else {"out": drop_nones(actual)}
        wrong = {name: read_output(x, name) for name, x in wrong.items() if name in verdict.tensors}
    inconclusive = tuple(name for name, tensor in verdict.tensors.items() if tensor.status == "inconclusive")
    missing = () if dout is None else tuple(name for name in gradient_names(case.inputs) if name not in actual)
    refused = verdict.status == "fail" or (missing and not some_gradients)
    text = f"{verdict}\ngradients not given: {', '.join(missing)}" if missing else str(verdict)
    return Outcome(
        "fail" if refused else "pass",
        text,
        compared=True,
        gradients=dout is not None,
        missing=missing,
        inconclusive=inconclusive,
        wrong=wrong,
    )


def _incomplete(actual: Any, case: Case, dout: Any, recipe: Recipe) -> str:
    """What a kernel's answer lacks, whatever its numbers: gradients of `DATA`, or the type of the inputs."""
    found = actual if isinstance(actual, Mapping) else {"out": drop_nones(actual)}
    wanted = [f"d{n}" for n in DATA if n in case.inputs]
    if dout is not None and (missing := [n for n in wanted if n not in found]):
        return f"the kernel takes dout and does not give {', '.join(missing)}: return NotImplemented where it has none"
    return "; ".join(dtype_warnings({n: x for n, x in found.items() if n == "out" or n in wanted}, recipe))


def against_itself(name: str, recipe: Recipe, relation: Callable[..., str], cases: Sequence[Case]) -> Outcome:
    """What must hold between two runs, on the first case that the kernel does not decline."""
    kernel, skipped = told(kernel_of(name)), ""
    for case in cases:
        try:
            wrong = relation(kernel, case.spec, case.inputs, recipe)
        except DeclinedError as reason:
            skipped = str(reason)
            continue
        except (UnreadableError, KernelError) as error:
            return Outcome("fail", f"{case.name}: {error}")
        return Outcome("fail", f"{relation.__doc__} {case.name}: {wrong}") if wrong else Outcome("pass")
    return Outcome("skip", skipped)


def in_words(piece: Callable[[], Outcome]) -> Outcome:
    """Call a piece on another machine, from which an error comes back as words: what it is first, then where."""
    try:
        return piece()
    except Exception as error:
        what = "".join(traceback.format_exception_only(error))
        return Outcome("fail", f"{what}{traceback.format_exc()}")


SMALL = 2**16
"""So many numbers the inputs may have for a diagnosis, which then takes some 10 s at most on one core."""

LINES = 12
"""Of a diagnosis, 80 columns wide: its answer and the nearest candidate."""


def is_small(case: Case) -> bool:
    """Whether a diagnosis of this case takes seconds."""
    return sum(x.size for x in case.inputs.values()) <= SMALL


def is_diagnosable(case: Case, found: Outcome) -> bool:
    """Whether a diagnosis of what a kernel gave for a case takes seconds."""
    return found.wrong is not None and is_small(case)


def report_title(case: Case, found: Outcome, before: Iterable[tuple[Case, Outcome]]) -> str:
    """Return what a failed case is called in its report, or "" where it has none.

    The first case that fails has a report, and the first with a diagnosis.
    """
    failed = [(other, outcome) for other, outcome in before if outcome.status == "fail"]
    if found.status == "fail" and not failed:
        return "The first case that fails"
    is_first = is_diagnosable(case, found) and not any(is_diagnosable(*one) for one in failed)
    return "The first failing case that is small enough for a diagnosis" if is_first else ""


def report(
    case: Case, spec: str, recipe: Recipe, found: Outcome | None = None, title: str = "The first case that fails"
) -> str:
    """Return the lines of Python that make the case again, and what `diagnose` answers, with one deviation at a time.

    Args:
        case: of `cases`, with one spec.
        spec: what `REFDIFF_SPEC` holds.
        found: the outcome, where what the kernel gave is to be diagnosed.
    """
    other = case.name.endswith(f"-d{case.spec.head_dim}")
    lines = (
        f"{title}; to have it in Python:",
        "  from refdiff import oracle",
        "  from refdiff.oracle.conformance import spec_of",
        f"  spec = spec_of({spec!r})" + (f".replace(head_dim={case.spec.head_dim})" if other else ""),
        f"  case = {case.source}",
    )
    if found is None or found.wrong is None:
        return "\n".join(lines)
    return "\n".join([*lines, _diagnosis(case, recipe, found.wrong)])


def _diagnosis(case: Case, recipe: Recipe, out: Any) -> str:
    from refdiff.oracle.diagnosis import diagnose

    if not is_small(case):
        with_dout = ", dout=case.dout" if any(name.startswith("d") for name in out) else ""
        call = f"oracle.diagnose(kernel, spec, case.inputs, recipe={recipe.name!r}{with_dout})"
        return f"diagnosis: not run (inputs too large); {call}"
    try:
        dout = case.dout if isinstance(out, Mapping) and any(name.startswith("d") for name in out) else None
        found = diagnose(out, case.spec, case.inputs, recipe=recipe, dout=dout, max_deviations=1)
    except Exception as error:  # the verdict stands, whether it has a name or not
        return f"diagnosis: none ({type(error).__name__}: {error})"
    head = "diagnosis, one deviation at a time (oracle.diagnose tries pairs too):"
    return "\n".join([head, *str(found).splitlines()[:LINES]])
