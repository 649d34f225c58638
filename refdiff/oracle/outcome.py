"""A piece of the conformance suite: a kernel, by its name, on a case → pass, fail or skip, wherever it is called."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from refdiff.oracle.check import check
from refdiff.oracle.metamorphic import DeclinedError
from refdiff.oracle.recipe import Recipe
from refdiff.oracle.strategies.fixed import Case


@dataclass(frozen=True)
class Outcome:
    """What a test says, and whether the kernel computed something that was judged."""

    status: Literal["pass", "fail", "skip"]
    text: str = ""
    compared: bool = False


def kernel_of(name: str) -> Any:
    """Import `package.module:function`, from the folder that this process was started in too.

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


def against_truth(name: str, recipe: Recipe, case: Case) -> Outcome:
    """Output, log-sum-exps and gradients, whichever the kernel gives, by the budget of the recipe."""
    kernel = kernel_of(name)
    more: dict[str, Any] = {"dout": case.dout} if "dout" in inspect.signature(kernel).parameters else {}
    given = {name: np.array(x) for name, x in case.inputs.items()}
    actual = kernel(case.spec, given, **more)
    if actual is NotImplemented:
        return Outcome("skip", "the kernel returned NotImplemented")
    for name, x in case.inputs.items():
        if given[name].tobytes() != x.tobytes():
            return Outcome("fail", f"the kernel has changed its input {name}")
    verdict = check(actual, case.spec, case.inputs, recipe=recipe, **more)
    if verdict.status == "inconclusive":
        return Outcome("skip", str(verdict))
    return Outcome("pass" if verdict else "fail", str(verdict), compared=True)


def against_itself(name: str, recipe: Recipe, relation: Callable[..., str], cases: Sequence[Case]) -> Outcome:
    """What must hold between two runs, on the first case that the kernel does not decline."""
    kernel, skipped = kernel_of(name), ""
    for case in cases:
        try:
            wrong = relation(kernel, case.spec, case.inputs, recipe)
        except DeclinedError as reason:
            skipped = str(reason)
            continue
        return Outcome("fail", f"{relation.__doc__} {case.name}: {wrong}") if wrong else Outcome("pass")
    return Outcome("skip", skipped)


def in_words(piece: Callable[[], Outcome]) -> Outcome:
    """Call a piece on another machine, from which an error comes back as words: what it is first, then where."""
    try:
        return piece()
    except Exception as error:
        what = "".join(traceback.format_exception_only(error))
        return Outcome("fail", f"{what}{traceback.format_exc()}")
