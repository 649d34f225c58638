"""One seed in one recipe and profile: every mutant and every correct kernel, judged by our rule and by those of others.

A mutant is a correct kernel with a mistake: the result of an order that no budget is made of, plus what the mistake
changes in float64, rounded to the storage type. So it has the roundings of a kernel, and its mistake.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from refdiff.oracle import Budget, Recipe, budget, truth
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
from tests.oracle.selftest.noise import AT_RANDOM, LARGE, ORDERS, TIMES, Noise, noise
from tests.oracle.selftest.settings import Setting, settings
from tests.oracle.selftest.table import OURS, Table

Numpy = np.ndarray[Any, Any]
Arrays = dict[str, Numpy]


def one_case(seed: int, recipe: Recipe, profile: str, name: str, problems: tuple[Setting, ...] | None = None) -> Table:
    """Judge all mutants and correct kernels of a seed, or of its `problems`, under the recipe's name in the table."""
    table = Table()
    for setting in settings(seed) if problems is None else problems:
        case = Trial(setting, seed, recipe, profile)
        for order, found in zip(ORDERS, case.runs, strict=True):
            judge_correct(table, (name, profile), f"{order.name}, {setting.kind}, seed {seed}", found, case)
        rng = np.random.default_rng([seed, 31])
        bases = case.runs
        for n, mutant in enumerate(mutants(setting, case.budget.inputs, case.right, case.dout, rng)):
            _judge_mutant(table, (name, profile), seed, mutant, bases[n % len(bases)], case)
    return table


@dataclass(frozen=True)
class Trial:
    """A problem with its numbers, its truth and what correct kernels make of it."""

    setting: Setting
    seed: int
    recipe: Recipe
    profile: str

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
        """Legal kernels of which no budget is made."""
        return [run(self.setting, self.budget.inputs, self.recipe, order, self.dout) for order in ORDERS]

    @cached_property
    def noise(self) -> dict[str, tuple[Noise, Noise]]:
        """Of each tensor: of valid orders with errors at random beside them, and of the orders alone."""
        drawn = [run(self.setting, self.budget.inputs, self.recipe, order, self.dout) for order in AT_RANDOM]
        return {name: (self._noise(name, [*self.runs, *drawn]), self._noise(name, self.runs)) for name in self.right}

    def _noise(self, name: str, runs: list[Arrays]) -> Noise:
        by_rows = name in self.budget.tensors
        return noise(self.right[name], [found[name] for found in runs], self.storage(name), by_rows)

    @cached_property
    def given(self) -> dict[str, Given]:
        """What the rules of others see."""
        recipe = Recipe.of(self.recipe, qk=self.recipe.storage)
        eager = run(self.setting, self.budget.inputs, recipe, MEMBERS[0], self.dout)
        return {name: Given(y, eager[name], self.storage(name)) for name, y in self.right.items()}

    def made(self, mutant: Mutant, base: Arrays) -> Arrays:
        """What a correct kernel with this result gives, once it has the mistake."""
        with np.errstate(all="ignore"):
            return {
                name: round_to(base[name] + (y - self.right[name]), self.storage(name))
                for name, y in mutant.wrong.items()
            }

    def times(self, some: Arrays, others: Arrays, *, of_orders_alone: bool = False) -> float:
        """How many times the noise they are apart, in the tensor in which it is most."""
        return max(self.noise[name][of_orders_alone].times(y, others[name]) for name, y in some.items())

    def storage(self, name: str) -> str:
        """The type of a tensor."""
        return "float32" if way_of(name) == "lse" else self.recipe.storage


def run(setting: Setting, inputs: Arrays, recipe: Recipe, order: Order, dout: Numpy) -> Arrays:
    """What a correct kernel computes of a problem in one order: log-sum-exps of the main one alone."""
    found = evaluate(setting.spec, inputs, recipe, order, dout)
    return found | log_sums(setting, inputs, recipe, order) if setting.main else found


def log_sums(setting: Setting, inputs: Arrays, recipe: Recipe, order: Order) -> Arrays:
    """Both log-sum-exps of a dense problem as a kernel has them, in float32.

    Shapes:
        lse1, lse2 (B, h, T); of plain attention lse
    """
    how = Arithmetic(recipe, order)
    s = attention_operands(setting.spec, inputs, rounded_ops(recipe, order))
    base = math.log(2) if setting.spec.lse_base == "2" else 1.0
    found = {}
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        maps = scores_of_maps(how, (s.q1, s.k1, s.q2, s.k2), s.mask, s.bias, s.causal)
        for name, z in zip(setting.spec.lse_names, maps, strict=False):
            largest = row_max(z)
            total = how.round_float32(np.sum(how.exp(z, largest), axis=-1, keepdims=True))
            lse = how.round_float32(largest + np.log(total))[..., 0].astype(np.float64)
            found[name] = round_to(np.broadcast_to(lse / base, s.q1.shape[:3]).copy(), "float32")
    return found


def judge_correct(
    table: Table, key: tuple[str, str], what: str, found: Arrays, case: Trial, *, real: bool = False
) -> None:
    """Judge a correct kernel, in each of the ways that it has."""
    for way in WAYS:
        part = {name: x for name, x in found.items() if way_of(name) == way}
        if not part:
            continue
        verdict = case.budget.judge(part)
        count = table.counts[(*key, way, OURS)]
        count.correct(refused=verdict.status == "fail", inconclusive=verdict.status == "inconclusive", real=real)
        if verdict.status == "fail":
            table.refusals.append(f"{' '.join(key)} {way} {what}\n{verdict}")
        for rule in BASELINE_RULES:
            table.counts[(*key, way, rule)].correct(refused=not accepts(rule, part, case.given), real=real)


def _judge_mutant(table: Table, key: tuple[str, str], seed: int, mutant: Mutant, base: Arrays, case: Trial) -> None:
    made = case.made(mutant, base)
    times, plain_times = (case.times(mutant.wrong, case.right, of_orders_alone=alone) for alone in (False, True))
    moved = {"identifiable": times > TIMES, "plain": plain_times > TIMES, "large": times > LARGE}
    status = case.budget.judge(made).status
    verdicts = {OURS: status == "fail"} | {rule: not accepts(rule, made, case.given) for rule in BASELINE_RULES}
    for rule, killed in verdicts.items():
        table.counts[(*key, mutant.way, rule)].mutant(killed, **moved)
    table.by_name[mutant.way, mutant.axis, mutant.name].mutant(verdicts[OURS], **moved)
    if moved["identifiable"]:
        table.seeds[mutant.way, mutant.axis, mutant.name].add(seed)
        if status == "inconclusive":
            table.counts[(*key, mutant.way, OURS)].held_back += 1
        if status == "pass":
            table.survivors[key[0], mutant.way, mutant.name] += 1
