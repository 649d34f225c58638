"""A seed in one recipe and profile: every mutant and every correct kernel, judged by our rule and by those of others.

A mutant is a correct kernel with a mistake: the result of an order that no budget is made of, plus what the mistake
changes in float64, rounded to the storage type. So it has the roundings of a kernel, and its mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from refdiff.oracle import Budget, Recipe, budget, truth
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.values import draw
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.ensemble import evaluate
from refdiff.oracle.rounding.evaluation_order import MEMBERS, Arithmetic, Order
from refdiff.oracle.rounding.rounded_attention import row_max, scores_of_maps
from refdiff.oracle.rounding.rounded_layers import rounded_ops
from refdiff.oracle.truth.attention_operands import attention_operands
from refdiff.oracle.truth.forward import out_shape
from tests.oracle.selftest.baseline_rules import BASELINE_RULES, Given, accepts
from tests.oracle.selftest.mutants import WAYS, Mutant, mutants, way_of
from tests.oracle.selftest.noise import AT_RANDOM, ORDERS, Noise, noise
from tests.oracle.selftest.settings import Setting, settings

Numpy = np.ndarray[Any, Any]
Arrays = dict[str, Numpy]
OURS = "rows"
REAL = {
    "hf_diffllama": (Structure(1, 40, 40), Structure(2, 33, 33)),
    "ms_v1": (Structure(2, 24, 37), Structure(1, 36, 50)),
    "timm": (Structure(1, 40, 40), Structure(2, 33, 33)),
}
"""What real kernels are run on, by preset; the modules of transformers and timm have as many keys as queries."""


@dataclass(frozen=True)
class Run:
    """A judged run.

    kind: "mutant", or of correct kernels "own" or "real"; name: of the mutant or the kernel; axis: of the mutant.
    refused_by: the rules that refuse it.
    off: how many times the noise of correct kernels it is off by: of a mutant two numbers, by errors at random too and
    by the orders alone; of a real kernel one for each of its tensors.
    verdict: in words, of a correct kernel that is refused by ours.
    """

    seed: int
    recipe: str
    profile: str
    way: str
    kind: str
    name: str
    status: str
    refused_by: frozenset[str]
    axis: str = ""
    off: tuple[float, ...] = ()
    verdict: str = ""


def runs_of_mutants(seed: int, recipe: str, profile: str, problems: tuple[Setting, ...]) -> Iterator[Run]:
    """Judge all mutants of the problems, and correct kernels of this project."""
    for setting in problems:
        trial = Trial(setting, seed, recipe, profile)
        for order, found in zip(ORDERS, trial.runs, strict=True):
            yield from trial.judge_correct("own", f"{order.name}, {setting.kind}", found)
        for mutant, base in trial.mutants():
            off = trial.times(mutant.wrong, trial.right), trial.times(mutant.wrong, trial.right, orders_alone=True)
            yield trial.judge("mutant", mutant.name, mutant.way, trial.made(mutant, base), axis=mutant.axis, off=off)


def runs_of_real_kernels(
    seed: int, dtype: str, profile: str, kernels: Mapping[str, tuple[str, bool, Callable[..., Arrays]]]
) -> Iterator[Run]:
    """Judge correct kernels of others.

    Args:
        kernels: by name (preset, eager, function): whether every operation's result is stored, so that the recipe is
            `Recipe.eager`, and function(spec, inputs, dout, dtype) -> out, dq, dk, dv and, where there are any, lse1
            and lse2, as float64 of the storage type's values; or nothing where it does not serve that type.
    """
    trials: dict[tuple[str, bool], Trial] = {}
    for name, (preset, eager, function) in kernels.items():
        setting = Setting(small_spec(preset), REAL[preset][seed % 2], "dense", (), main=True)
        trial = trials.setdefault((preset, eager), Trial(setting, seed, dtype, profile, eager))
        yield from trial.judge_correct("real", name, function(setting.spec, trial.budget.inputs, trial.dout, dtype))


@dataclass(frozen=True)
class Trial:
    """A problem with its numbers, its truth and what correct kernels make of it."""

    setting: Setting
    seed: int
    recipe_name: str
    profile: str
    eager: bool = False

    @cached_property
    def recipe(self) -> Recipe:
        """How the kernels under test round."""
        return (Recipe.eager if self.eager else Recipe.of)(self.recipe_name)

    @cached_property
    def inputs(self) -> Arrays:
        """The numbers."""
        return draw(self.setting.spec, self.setting.structure, self.profile, self.seed, self.recipe.storage)

    @cached_property
    def dout(self) -> Numpy:
        """The gradient of the output, in the storage type."""
        x = np.random.default_rng([self.seed, 977]).normal(size=out_shape(self.setting.spec, self.inputs))
        return round_to(x, self.recipe.storage)

    @cached_property
    def budget(self) -> Budget:
        """What is under test."""
        return budget(self.setting.spec, self.inputs, self.recipe, dout=self.dout)

    @cached_property
    def right(self) -> Arrays:
        """The truth of all tensors."""
        found = self.budget.expected
        if self.setting.main:
            names = self.setting.spec.lse_names
            sums = truth(self.setting.spec, self.budget.inputs, want=names)
            found |= {name: np.asarray(getattr(sums, name)) for name in names}
        return found

    @cached_property
    def runs(self) -> list[Arrays]:
        """Correct kernels of which no budget is made."""
        return [self.run(order) for order in ORDERS]

    @cached_property
    def noise(self) -> dict[str, tuple[Noise, Noise]]:
        """Of each tensor: of valid orders with errors at random beside them, and of the orders alone."""
        drawn = [self.run(order) for order in AT_RANDOM]
        return {name: (self._noise(name, [*self.runs, *drawn]), self._noise(name, self.runs)) for name in self.right}

    def _noise(self, name: str, runs: list[Arrays]) -> Noise:
        by_rows = name in self.budget.tensors
        return noise(self.right[name], [found[name] for found in runs], self.storage(name), by_rows)

    @cached_property
    def given(self) -> dict[str, Given]:
        """What the rules of others see."""
        eager = self.run(MEMBERS[0], Recipe.of(self.recipe, qk=self.recipe.storage))
        return {name: Given(y, eager[name], self.storage(name)) for name, y in self.right.items()}

    def run(self, order: Order, recipe: Recipe | None = None) -> Arrays:
        """What a correct kernel computes in one order: log-sum-exps of the main problem alone."""
        recipe = recipe or self.recipe
        found = evaluate(self.setting.spec, self.budget.inputs, recipe, order, self.dout)
        return found | self.log_sums(recipe, order) if self.setting.main else found

    def log_sums(self, recipe: Recipe, order: Order) -> Arrays:
        """The log-sum-exps of a dense problem as a kernel has them, in float32.

        Shapes:
            lse1, lse2 (B, h, T); of plain attention lse
        """
        spec, how = self.setting.spec, Arithmetic(recipe, order)
        s = attention_operands(spec, self.budget.inputs, rounded_ops(recipe, order))
        base = math.log(2) if spec.lse_base == "2" else 1.0
        found = {}
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            maps = scores_of_maps(how, (s.q1, s.k1, s.q2, s.k2), s.mask, s.bias, s.causal)
            for name, z in zip(spec.lse_names, maps, strict=False):
                largest = row_max(z)
                total = how.round_float32(np.sum(how.exp(z, largest), axis=-1, keepdims=True))
                lse = how.round_float32(largest + np.log(total))[..., 0].astype(np.float64)
                found[name] = round_to(np.broadcast_to(lse / base, s.q1.shape[:3]).copy(), "float32")
        return found

    def mutants(self) -> Iterator[tuple[Mutant, Arrays]]:
        """Yield all mutants, each with the correct kernel that it is made of."""
        rng = np.random.default_rng([self.seed, 31])
        found = mutants(self.setting, self.budget.inputs, self.right, self.dout, rng)
        return ((mutant, self.runs[n % len(self.runs)]) for n, mutant in enumerate(found))

    def made(self, mutant: Mutant, base: Arrays) -> Arrays:
        """What a correct kernel with this result gives, once it has the mistake."""
        with np.errstate(all="ignore"):
            return {
                name: round_to(base[name] + (y - self.right[name]), self.storage(name))
                for name, y in mutant.wrong.items()
            }

    def times(self, some: Arrays, others: Arrays, *, orders_alone: bool = False) -> float:
        """How many times the noise they are apart, in the tensor in which it is most."""
        return max(self.noise[name][orders_alone].times(y, others[name]) for name, y in some.items())

    def storage(self, name: str) -> str:
        """The type of a tensor."""
        return "float32" if way_of(name) == "lse" else self.recipe.storage

    def judge(self, kind: str, name: str, way: str, found: Arrays, **told: Any) -> Run:
        """Judge tensors by all rules."""
        verdict = self.budget.judge(found)
        refused_by = {rule for rule in BASELINE_RULES if not accepts(rule, found, self.given)}
        if verdict.status == "fail":
            refused_by.add(OURS)
            told |= {} if kind == "mutant" else {"verdict": str(verdict)}
        place = (self.seed, self.recipe_name, self.profile, way)
        return Run(*place, kind, name, verdict.status, frozenset(refused_by), **told)

    def judge_correct(self, kind: str, name: str, found: Arrays) -> Iterator[Run]:
        """Judge a correct kernel, in each of the ways that it has."""
        for way in WAYS:
            part = {name: x for name, x in found.items() if way_of(name) == way}
            if part:
                off = [round(self.times({n: x}, self.right), 3) for n, x in part.items()] if kind == "real" else []
                yield self.judge(kind, name, way, part, off=tuple(off))


def runs_of_case(case: tuple[int, str, str], *, plain: bool, real: bool) -> list[Run]:
    """Judge everything of a seed, a recipe and a profile."""
    seed, recipe, profile = case
    runs = list(runs_of_mutants(seed, recipe, profile, settings(seed, plain=plain)))
    if real and recipe != "tf32":
        from tests.parity.real_kernels import KERNELS  # needs torch, transformers, timm, JAX and MLX

        runs += runs_of_real_kernels(seed, recipe, profile, KERNELS)
    return runs
