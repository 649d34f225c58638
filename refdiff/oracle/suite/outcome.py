"""The tests of the conformance suite: a kernel and a case → pass, fail or skip."""

from __future__ import annotations

import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refdiff.oracle.cases.fixed import Case
from refdiff.oracle.inputs import DATA, gradient_names
from refdiff.oracle.inputs.outputs import NO_RETURN, KernelError, read_output
from refdiff.oracle.inputs.signature import adapt_kernel, drop_nones, takes_dout
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.suite.relations import DeclinedError
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.verdict.check import check, dtype_warnings


@dataclass(frozen=True)
class Outcome:
    """The outcome of one test.

    compared: whether an output was judged. declined: whether the kernel returned `NotImplemented`. gradients: whether
    it was called for gradients; missing: the gradients that it left out. inconclusive: the tensors whose verdict is
    inconclusive, such as dk.
    """

    status: Literal["pass", "fail", "skip"]
    text: str = ""
    compared: bool = False
    declined: bool = False
    gradients: bool = False
    missing: tuple[str, ...] = ()
    inconclusive: tuple[str, ...] = ()
    wrong: Any = field(default=None, compare=False, repr=False)
    """The outputs that were judged, by name, if the verdict is a fail; else None."""


def import_kernel(name: str) -> Any:
    """Import `package.module:function`, also from the current folder, and check its signature.

    Raises:
        ValueError: `name` has another form, names nothing that can be called, or cannot be imported; or the function's
            parameters are not those of a kernel.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        if ":" not in name:
            raise ValueError("expected package.module:function")
        found = pkgutil.resolve_name(name)
        adapt_kernel(found)
    except Exception as error:
        raise ValueError(f"got {name!r}, which cannot be imported: {type(error).__name__}: {error}") from error
    return found


def wrap_errors(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return the kernel with each exception turned into a `KernelError`.

    Its message has two lines of the traceback: the last one in the author's own files, and the innermost.
    """

    def call(*args: Any) -> Any:
        try:
            found = adapt_kernel(kernel)(*args)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)[2:]
            own = [frame for frame in frames if not _is_installed(frame.filename)][-1:]
            lines = [f"  {f.filename}:{f.lineno}, in {f.name}: {f.line}" for f in (*own, *frames[-1:])]
            lines = ["the kernel raised", *dict.fromkeys(lines)]
            what = "".join(traceback.format_exception_only(error)).strip()
            raise KernelError("\n".join([*lines, *what.splitlines()[:DIAGNOSIS_LINES]])) from error
        if found is None:
            raise KernelError(NO_RETURN)
        return found

    return call


def _is_installed(file: str) -> bool:
    """Whether a file belongs to Python or an installed package, not to the kernel's author."""
    packages = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return bool(packages) or file.startswith("<") or Path(file).is_relative_to(sysconfig.get_path("stdlib"))


def judge_case(
    kernel: Callable[..., Any], recipe: Recipe, case: Case, *, allow_missing_gradients: bool = False
) -> Outcome:
    """Run a kernel on a case and judge its output, log-sum-exps and gradients, as far as it returns them.

    A kernel that declines paged keys with dout is called again without it: decoding may have no backward pass.

    Args:
        allow_missing_gradients: whether a kernel that takes dout may leave out gradients other than those of `DATA`.
    """
    dout = case.dout if takes_dout(kernel) else None
    originals = dict(case.inputs) if dout is None else {**case.inputs, "dout": dout}
    copies = {name: np.array(x) for name, x in originals.items()}
    try:
        actual = wrap_errors(kernel)(case.spec, {name: copies[name] for name in case.inputs}, copies.get("dout"))
        if actual is NotImplemented and dout is not None and "k_pages" in case.inputs:
            dout = None
            actual = wrap_errors(kernel)(case.spec, {name: copies[name] for name in case.inputs}, None)
    except KernelError as error:
        return Outcome("fail", str(error))
    if actual is NotImplemented:
        return Outcome("skip", "the kernel returned NotImplemented", declined=True)
    for name, x in originals.items():
        if copies[name].tobytes() != x.tobytes():
            return Outcome("fail", f"the kernel has changed its input {name}")
    return judge_outputs(actual, case, recipe, dout, allow_missing_gradients=allow_missing_gradients)


def judge_outputs(
    actual: Any, case: Case, recipe: Recipe, dout: Any, *, allow_missing_gradients: bool = False
) -> Outcome:
    """Judge what a kernel returned for a case against the truth, within the budget of the recipe."""
    if problem := _find_incomplete(actual, case, dout, recipe):
        return Outcome("fail", problem)
    try:
        verdict = check(actual, case.spec, case.inputs, recipe=recipe, dout=dout)
    except (TypeError, ValueError) as error:
        return Outcome("fail", f"what the kernel returned cannot be judged: {error}")
    out = verdict.tensors.get("out")
    decided = out is None or out.status != "inconclusive"  # an inconclusive gradient does not skip the case
    if verdict.status == "inconclusive" and not (decided and any(t.status == "pass" for t in verdict.tensors.values())):
        return Outcome("skip", str(verdict))
    wrong = None
    if verdict.status == "fail":
        wrong = actual if isinstance(actual, Mapping) else {"out": drop_nones(actual)}
        wrong = {name: read_output(x, name) for name, x in wrong.items() if name in verdict.tensors}
    inconclusive = tuple(name for name, tensor in verdict.tensors.items() if tensor.status == "inconclusive")
    missing = () if dout is None else tuple(name for name in gradient_names(case.inputs) if name not in actual)
    refused = verdict.status == "fail" or (missing and not allow_missing_gradients)
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


def _find_incomplete(actual: Any, case: Case, dout: Any, recipe: Recipe) -> str:
    """Say which gradients of `DATA` are missing, or which outputs have another type than the recipe stores; or ""."""
    found = actual if isinstance(actual, Mapping) else {"out": drop_nones(actual)}
    required = [f"d{n}" for n in DATA if n in case.inputs]
    if dout is not None and (missing := [n for n in required if n not in found]):
        return f"the kernel takes dout and does not give {', '.join(missing)}: return NotImplemented where it has none"
    return "; ".join(dtype_warnings({n: x for n, x in found.items() if n == "out" or n in required}, recipe))


def judge_relation(
    kernel: Callable[..., Any], recipe: Recipe, relation: Callable[..., str], cases: Sequence[Case]
) -> Outcome:
    """Test a relation between two runs on the first case that the kernel does not decline."""
    call, skipped = wrap_errors(kernel), ""
    for case in cases:
        try:
            wrong = relation(call, case.spec, case.inputs, recipe)
        except DeclinedError as reason:
            skipped = str(reason)
            continue
        except KernelError as error:
            return Outcome("fail", f"{case.name}: {error}")
        return Outcome("fail", f"{relation.__doc__} {case.name}: {wrong}") if wrong else Outcome("pass")
    return Outcome("skip", skipped)


DIAGNOSIS_LINES = 12
"""Lines of a diagnosis that are shown, its answer and the nearest candidate; also the most lines of an exception."""


def report(case: Case, spec: str, recipe: Recipe, found: Outcome | None = None) -> str:
    """Return the lines of Python that reproduce a case, and the diagnosis of its outputs (single deviations only).

    Args:
        case: from `cases`, called with one spec.
        spec: the value of `--refdiff-spec`.
        found: the outcome, with the outputs to be diagnosed; None for no diagnosis.
    """
    replaced = case.name.endswith(f"-d{case.spec.head_dim}")
    lines = (
        "The first case that fails; to have it in Python:",
        "  from refdiff import oracle",
        "  from refdiff.oracle.inputs.resolve import resolve_spec",
        f"  spec = resolve_spec({spec!r})" + (f".replace(head_dim={case.spec.head_dim})" if replaced else ""),
        f"  case = {case.source}",
    )
    if found is None or found.wrong is None:
        return "\n".join(lines)
    return "\n".join([*lines, _diagnosis(case, recipe, found.wrong)])


def _diagnosis(case: Case, recipe: Recipe, out: Any) -> str:
    from refdiff.oracle.diagnosis import diagnose

    if sum(x.size for x in case.inputs.values()) > THRESHOLDS.diagnosed_numbers:
        with_dout = ", dout=case.dout" if any(name.startswith("d") for name in out) else ""
        call = f"oracle.diagnose(kernel, spec, case.inputs, recipe={recipe.name!r}{with_dout})"
        return f"diagnosis: not run (inputs too large); {call}"
    try:
        dout = case.dout if isinstance(out, Mapping) and any(name.startswith("d") for name in out) else None
        found = diagnose(out, case.spec, case.inputs, recipe=recipe, dout=dout, max_deviations=1)
    except Exception as error:  # the verdict stands without a diagnosis
        return f"diagnosis: none ({type(error).__name__}: {error})"
    head = "diagnosis, one deviation at a time (oracle.diagnose tries pairs too):"
    return "\n".join([head, *str(found).splitlines()[:DIAGNOSIS_LINES]])
