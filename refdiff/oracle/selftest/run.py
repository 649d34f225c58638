"""Cases, mutants and legal kernels, one after another, into a table.

A mutant is a legal kernel with a deviation: the result of an order that no budget is made of, plus what the deviation
changes in float64, rounded to the storage type. So it has the roundings of a kernel, and its mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from refdiff.oracle.backward import backward
from refdiff.oracle.budget import Budget, budget
from refdiff.oracle.deviations import deviated, deviations
from refdiff.oracle.deviations.deviation import laid_over, output
from refdiff.oracle.ensemble import evaluate
from refdiff.oracle.mistakes import CATALOGUE
from refdiff.oracle.order import HELD_OUT, MEMBERS
from refdiff.oracle.recipe import Recipe
from refdiff.oracle.rounding import round_to
from refdiff.oracle.selftest.local_mistakes import LOCAL, OF_GRADIENTS
from refdiff.oracle.selftest.rivals import RIVALS, Given
from refdiff.oracle.selftest.table import OURS, Table
from refdiff.oracle.sequences import Inputs
from refdiff.oracle.spec import Spec
from refdiff.oracle.statistics import over, root_mean_square
from refdiff.oracle.strategies.fixed import small_spec
from refdiff.oracle.strategies.structure import Structure
from refdiff.oracle.strategies.values import draw

Numpy = np.ndarray[Any, Any]
RECIPES = ("float32", "tf32", "bfloat16", "float16")
PROFILES = ("natural", "cancel", "whisper", "extreme")
SPECS = ("hf_diffllama", "ms_v1")
STRUCTURES = (Structure(1, 40, 40), Structure(1, 36, 50))
VISIBLE = 5.0


def selftest(
    seeds: Sequence[int] = range(2),
    *,
    recipes: Sequence[str] = RECIPES,
    profiles: Sequence[str] = PROFILES,
    done: Callable[[str], None] | None = None,
) -> Table:
    """Judge mutants and legal kernels by our rule and by those of others.

    Args:
        seeds: of the numbers; budgets were calibrated on seeds from 1000.
        done: called with the name of each case that is done.
    """
    table = Table()
    for seed in seeds:
        for name in recipes:
            for profile in profiles:
                table.add(one_case(seed, Recipe.of(name), profile, name))
                if done is not None:
                    done(f"{name} {profile} {seed}")
    return table


def one_case(seed: int, recipe: Recipe, profile: str, name: str) -> Table:
    """Judge all mutants and legal kernels of one case."""
    spec = small_spec(SPECS[seed % len(SPECS)])
    structure = STRUCTURES[seed // 2 % len(STRUCTURES)]
    inputs = draw(spec, structure, profile, seed, recipe.storage)
    shape = (inputs["q"].shape[0], spec.heads, inputs["q"].shape[2], spec.out_dim)
    dout = round_to(np.random.default_rng([seed, 977]).normal(size=shape), recipe.storage)
    found = budget(spec, inputs, recipe, dout=dout)
    runs = {order.name: evaluate(spec, found.inputs, recipe, order, dout) for order in HELD_OUT}
    table = Table()
    given = Given(
        found.expected["out"],
        evaluate(spec, found.inputs, Recipe.of(recipe, qk=recipe.storage), MEMBERS[0])["out"],
        recipe.storage,
    )
    rng = np.random.default_rng([seed, 31])
    for kernel, run in runs.items():
        for way in ("forward", "backward"):
            part = {n: x for n, x in run.items() if (n == "out") == (way == "forward")}
            _legal(table, (name, profile, way), f"{kernel}, seed {seed}", part, found, given)
    bases = list(runs.values())
    for n, (way, mutant, wrong) in enumerate(mutants(spec, found, dout, rng)):
        _mutant(table, (name, profile, way), mutant, wrong, bases[n % len(bases)], found, given)
    return table


def mutants(
    spec: Spec, found: Budget, dout: Numpy, rng: np.random.Generator
) -> Iterator[tuple[str, str, dict[str, Numpy]]]:
    """Yield (direction, name, wrong results in float64) of every mutant of a case."""
    inputs, right = found.inputs, found.expected
    for deviation in deviations(spec):
        problem = deviated(spec, inputs, [deviation])
        if problem is None:
            continue
        out = output(problem)
        if out is not None and out.shape == right["out"].shape:
            yield "forward", deviation.name, {"out": out}
        if deviation.mistake is None:
            yield "backward", deviation.name, _gradients(problem.spec, problem.inputs, dout, (), right)
    for mistake in CATALOGUE:
        if mistake.layer.endswith("_vjp"):
            yield "backward", mistake.name, _gradients(spec, inputs, dout, (mistake,), right)
    for local in LOCAL:
        yield "forward", local.__name__, {"out": local(rng, spec, inputs, right["out"])}
    for local in OF_GRADIENTS:
        name = str(rng.choice(["dq", "dk", "dv"]))
        yield "backward", f"{local.__name__} of {name}", {name: local(rng, spec, inputs, right[name])}


def _gradients(
    spec: Spec, inputs: Inputs, dout: Numpy, mistakes: tuple[Any, ...], right: dict[str, Numpy]
) -> dict[str, Numpy]:
    """The gradients that a mistake leaves with the shapes that they should have."""
    try:
        with np.errstate(all="ignore"):
            grads = backward(spec, inputs, dout, laid_over(mistakes))
    except (ValueError, IndexError, TypeError):
        return {}
    named = {f"d{n}": g for n, g in grads.items()}
    return {n: g for n, g in named.items() if n in right and g.shape == right[n].shape}


def _legal(
    table: Table, key: tuple[str, str, str], what: str, part: dict[str, Numpy], found: Budget, given: Given
) -> None:
    verdict = found.judge(part)
    count = table.counts[(*key, OURS)]
    count.legal += 1
    count.refused += verdict.status == "fail"
    count.undecided += verdict.status == "inconclusive"
    if verdict.status == "fail":
        table.refusals.append(f"{' '.join(key)} {what}\n{verdict}")
    if "out" in part:
        for rule, accepts in RIVALS.items():
            count = table.counts[(*key, rule)]
            count.legal += 1
            count.refused += not accepts(np.asarray(part["out"], dtype=np.float64), given)


def _mutant(
    table: Table,
    key: tuple[str, str, str],
    name: str,
    wrong: dict[str, Numpy],
    base: dict[str, Numpy],
    found: Budget,
    given: Given,
) -> None:
    """Judge one mutant, unless it changes nothing."""
    right = found.expected
    with np.errstate(all="ignore"):
        wrong = {n: y for n, y in wrong.items() if not np.array_equal(y, right[n], equal_nan=True)}
        made = {n: round_to(base[n] + (y - right[n]), found.recipe.storage) for n, y in wrong.items()}
        visible = any(_visible(y, n, found) for n, y in wrong.items())
    if not wrong:
        return
    verdicts = {OURS: found.judge(made).status == "fail"}
    if "out" in made:
        verdicts |= {rule: not accepts(made["out"], given) for rule, accepts in RIVALS.items()}
    for rule, killed in verdicts.items():
        count = table.counts[(*key, rule)]
        count.mutants += 1
        count.visible += visible
        count.killed += killed
        count.killed_visible += killed and visible
    if visible and not verdicts[OURS]:
        table.survivors[(key[0], key[2], name)] += 1


def _visible(wrong: Numpy, name: str, found: Budget) -> bool:
    """Whether a mistake, without any rounding, is at least five budgets in some row, number or sum."""
    error = np.abs(wrong - found.expected[name])
    if not np.all(np.isfinite(error)):
        return True
    if name in found.sums:
        return bool(np.any(error > VISIBLE * found.sums[name][1]))
    b = found.tensors[name]
    allowed = 6 * b.rows[..., None] + 2 * b.u * np.abs(b.expected)
    return bool(np.any(over(root_mean_square(error), b.rows) > VISIBLE) or np.any(over(error, allowed) > VISIBLE))
