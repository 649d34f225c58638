"""Search the hypotheses, alone and in pairs, that reproduce the tensors of a wrong kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from refdiff.oracle.diagnosis.evidence import Case, Judged, Sample
from refdiff.oracle.diagnosis.hypotheses import Edits, Hypothesis
from refdiff.oracle.diagnosis.ranking import Finding
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.mistakes.catalogue import Kernel
from refdiff.oracle.mistakes.kernel import Tensors, is_same_output, output
from refdiff.oracle.mistakes.listed import draw_probes, shrink_spec
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS


class Search:
    """Search the hypotheses that reproduce the tensors of a case.

    single, several: what was scored, alone and in pairs.
    nearly_right: whether the truth fits too, by the limits of wrong kernels.
    """

    def __init__(self, case: Case, every: Iterable[Hypothesis]) -> None:
        self.case, self.every = case, list(every)
        self.place = {h: n for n, h in enumerate(self.every)}
        self.before = case.score((), case.coarse)
        self.nearly_right = case.right is not None and case.right.fits
        self.single: list[Finding] = []
        self.several: list[Finding] = []

    def run(self, max_deviations: int = 2, more: Callable[[], Iterable[Hypothesis]] = tuple) -> list[Finding]:
        """Return the findings that fit: names, else numbers and what `more` yields, else pairs."""
        self.single = self.extend((), (h for h in self.every if h.is_name))
        fitting = self.confirm(self.single)
        if not fitting or fitting[0].residual > THRESHOLDS.correct_residual:
            others = [*(h for h in self.every if not h.is_name), *more()]
            self.place |= {h: len(self.place) + n for n, h in enumerate(others) if h not in self.place}
            self.single += self._polished([self.approach(f) for f in self.extend((), others)])
            fitting = self.confirm(self.single)
        beam = self.beam() if max_deviations > 1 and not fitting and not self.nearly_right else []
        # alone they change nothing
        same, before = THRESHOLDS.same_function, self.before.residual
        idle = {f.hypotheses[0] for f in self.single if math.isclose(f.residual, before, rel_tol=same)}
        for names in (True, False):  # numbers beside another hypothesis only if no name fits there
            some = [h for h in self.every if h.is_name == names and h not in idle]
            found = self._polished([f for first in beam if not fitting for f in self.extend(first.edits, some)])
            self.several += found
            fitting = fitting or self.confirm(_best_of_each(found))
        return fitting

    @property
    def closest(self) -> list[Finding]:
        """What explains most of the error."""
        return sorted(
            (*self.single, *_best_of_each(self.several)), key=lambda f: (-f.explains, len(f.edits))
        )[: THRESHOLDS.max_judged]  # fmt: skip

    def extend(self, first: Edits, some: Iterable[Hypothesis]) -> list[Finding]:
        """Score each hypothesis beside those in `first`; numbers at the best point of their grid."""
        axes, found = {h.axis for h, _ in first}, []
        base: Tensors | None = None
        for h in some:
            if h.axis in axes or (first and not h.in_pairs):
                continue
            if h.tensors:
                base = base or self.case.tensors(first, self.case.coarse)
                found += self._fit_factor(first, h, base)
                continue
            every = (2 if first else 1) * (2 if self.case.is_sampled else 1)
            grid = [0.0] if h.grid is None else h.grid[::every].tolist()
            scored = [self.case.score(self._ordered((*first, (h, value))), self.case.coarse) for value in grid]
            found.append(min(scored, key=lambda f: (f.residual, -f.explains)))
        return found

    def _fit_factor(self, first: Edits, h: Hypothesis, base: Tensors | None) -> list[Finding]:
        """Return the finding of the least-squares factor of some tensors; nothing if there is none."""
        along, square, sample = 0.0, 0.0, self.case.coarse
        if base is None or any(n not in base or base[n].shape != sample.actual[n].shape for n in h.tensors):
            return []
        for name in h.tensors:
            y, g, size = sample.actual[name], base[name], np.maximum(sample.errors[name], 1e-150)[..., None]
            known = np.isfinite(y) & np.isfinite(g)
            y, g = (np.where(known, x, 0.0) / size for x in (y, g))
            along, square = along + float(np.sum(y * g)), square + float(np.sum(g * g))
        value = along / square if 0 < square < math.inf else 0.0
        if not THRESHOLDS.fits.zero_factor < abs(value) < 1 / THRESHOLDS.fits.zero_factor:
            return []
        changed = {n: value * x if n in h.tensors else x for n, x in base.items()}
        return [self.case.compare(self._ordered((*first, (h, value))), changed, sample)]

    def _ordered(self, edits: Edits) -> Edits:
        return tuple(sorted(edits, key=lambda edit: self.place[edit[0]]))

    def approach(self, found: Finding) -> Finding:
        """Refine the numbers on the coarse sample: a number near the truth is between two points of the grid."""
        if all(h.grid is None for h in found.hypotheses):
            return found
        return self._refine(found, self.case.coarse, 4 if len(found.edits) > 1 else 2, 12)

    def _polished(self, found: list[Finding]) -> list[Finding]:
        """Refine the numbers of those findings that explain most."""
        numbers = [f for f in found if any(h.grid is not None for h in f.hypotheses)]
        numbers.sort(key=lambda f: -f.explains)
        some = numbers[: THRESHOLDS.polished // (2 if self.case.is_sampled else 1)]
        near = [f if len(f.edits) == 1 else self.approach(f) for f in some]
        return [
            *(f for f in found if f not in some),
            *(self._refine(f, self.case.fine, THRESHOLDS.fits.fine_reach, 30) for f in near),
        ]

    def _refine(self, found: Finding, sample: Sample, reach: float, steps: int) -> Finding:
        """Refine the numbers in turn, each within `reach` steps of its grid; a whole one everywhere."""
        found = self.case.score(found.edits, sample)
        for n, (h, _) in enumerate(found.edits):
            if h.grid is None:
                continue
            (_, value), edits = found.edits[n], found.edits

            def at(x: float, n: int = n, h: Hypothesis = h, edits: Edits = edits) -> Finding:
                return self.case.score((*edits[:n], (h, x), *edits[n + 1 :]), sample)

            if h.is_whole:
                best = refine_whole(at, h, value)
            else:
                step = reach * float(h.grid[1] - h.grid[0])
                low, high = max(value - step, h.grid[0]), min(value + step, h.grid[-1])
                best = at(minimize(lambda x: at(x).residual, low, high, steps))
            found = min(found, best, key=lambda f: f.residual)
        return found

    def confirm(self, found: Iterable[Finding]) -> list[Finding]:
        """Return the findings that fit by a budget of their own, better than the truth and than each other."""
        least = (1 - THRESHOLDS.same_function) * self.before.residual
        near = [f for f in found if f.residual < least and not f.at_edge and self._is_telling(f)]
        near.sort(key=lambda f: (f.residual, f.cost))
        about = THRESHOLDS.better_ratio * max(near[0].residual, 0.5) if near else 0.0
        near.sort(key=lambda f: (f.cost, f.residual) if f.residual <= about else (math.inf, f.residual))
        within = [f for f in near if f.residual <= THRESHOLDS.quick_residual]
        near = within or [f for f in near if f.residual <= 1e8][: THRESHOLDS.always_judged]
        judged: list[tuple[Finding, Judged]] = []
        for f in near[: THRESHOLDS.max_judged]:
            if judged and f.residual > THRESHOLDS.far_ratio * max(1.0, judged[0][0].residual):
                continue
            own = self.case.judge(f.edits)
            if own is not None and own.fits and own.residual <= THRESHOLDS.own_residual:
                judged.append((f, own))
        better, right = self.case.is_better, self.case.right
        if self.nearly_right and right:
            judged = [j for j in judged if better(j[1], right)]
        elif right:
            judged = [j for j in judged if not better(right, j[1])]
        judged = [b for b in judged if not any(a is not b and better(a[1], b[1]) for a in judged)] or judged
        least = min((own.residual for _, own in judged), default=0.0)
        judged = [j for j in judged if j[1].residual <= THRESHOLDS.better_ratio * least]
        fewest = min((f.cost for f, _ in judged), default=0.0)
        return self._merge_equal([j for j in judged if j[0].cost == fewest])

    def _is_telling(self, found: Finding) -> bool:
        """Whether a fitted number explains most of the error: beside noise some number always helps a little."""
        return found.explains >= THRESHOLDS.explained or all(h.grid is None or h.is_whole for h in found.hypotheses)

    def _merge_equal(self, judged: list[tuple[Finding, Judged]]) -> list[Finding]:
        """Merge findings that compute the same tensors, here and on small probes."""
        spec, probes = shrink_spec(self.case.start.spec), list[Inputs]()
        if len(judged) > 1 and self.case.dout is None:
            probes = draw_probes(spec, self.case.kind)
            probes += [{**x, "key_mask": x["key_mask"][::-1]} for x in probes if "key_mask" in x]
            probes += [_fill_unused_slots(x) for x in probes if "k_pages" in x]
        kept: list[tuple[Finding, list[Numpy | None]]] = []
        for f, own in sorted(judged, key=lambda j: [self.place[h] for h in j[0].hypotheses]):
            outs: list[Numpy | None] = [own.exact.get(name) for name in self.case.actual]
            outs += [_output_of(f.edits, spec, x) for x in probes]
            f = replace(f, residual=own.residual, fits=True)
            for n, (other, known) in enumerate(kept):
                if all(is_same_output(a, b) for a, b in zip(outs, known, strict=True)):
                    names = dict.fromkeys((*other.also, f.name))
                    names.pop(other.name, None)  # as of two grids of one number
                    kept[n] = (replace(other, also=tuple(names)), known)
                    break
            else:
                kept.append((f, outs))
        return [f for f, _ in kept]

    def beam(self) -> list[Finding]:
        """Return the findings that explain most, at most two of an axis; none if they explain too little.

        Of gradients a finding comes first that reproduces one of the wrong ones, as each kernel of several may have its
        own mistake.
        """
        wrong = self.case.wrong

        def matches(f: Finding) -> int:
            if len(wrong) < 2:
                return 0
            return sum(f.each.get(name, math.inf) < THRESHOLDS.gradient_residual for name in wrong)

        kept: list[Finding] = []
        for f in sorted(self.single, key=lambda f: (-matches(f), -f.explains)):
            of_axis = sum(k.hypotheses[0].axis == f.hypotheses[0].axis for k in kept)
            if of_axis < 2 and (f.explains >= THRESHOLDS.beam_share or matches(f)):
                kept.append(f)
        return kept[: THRESHOLDS.beam]

    def cover(self) -> dict[str, list[str]]:
        """Return the wrong gradients that a single hypothesis reproduces, by what it says, for each on its own.

        Sums of many terms have few numbers, and match by chance: they are left out.
        """
        agree: dict[str, list[str]] = {}
        for name in (n for n in self.case.wrong if n not in self.case.budget.sums):
            alone = Search(Case(self.case.budget, {name: self.case.actual[name]}, self.case.dout), self.every)
            alone.place = self.place
            found = alone.confirm(replace(f, residual=f.each.get(name, math.inf)) for f in self.single)
            if found:
                agree.setdefault(" or ".join(f"{f.name} ({f.what.rstrip('.')})" for f in found), []).append(name)
        return agree


def _best_of_each(found: Iterable[Finding]) -> list[Finding]:
    """Return the findings, of those with the same hypotheses the nearest."""
    best: dict[tuple[Hypothesis, ...], Finding] = {}
    for f in found:
        best[f.hypotheses] = min(f, best.get(f.hypotheses, f), key=lambda f: f.residual)
    return list(best.values())


def _output_of(edits: Edits, spec: Spec, inputs: Inputs) -> Numpy | None:
    kernel: Kernel | None = Kernel(spec, inputs)
    try:
        for h, value in edits:
            kernel = None if kernel is None else h.edit(kernel, value)
    except (ValueError, IndexError):
        return None
    return output(kernel)


def _fill_unused_slots(inputs: Inputs) -> Inputs:
    """Return paged inputs with numbers in place of NaN: all reads beyond a length give the same NaN."""
    random, made = np.random.default_rng(0), dict(inputs)
    for name in ("k_pages", "v_pages"):
        made[name] = np.where(np.isnan(made[name]), random.normal(size=made[name].shape), made[name])
    return made


def minimize(f: Callable[[float], float], low: float, high: float, steps: int) -> float:
    """Return the minimum of f by golden-section search."""
    g = (math.sqrt(5) - 1) / 2
    c, d = high - g * (high - low), low + g * (high - low)
    at_c, at_d = f(c), f(d)
    for _ in range(steps):
        if at_c < at_d:
            high, d, at_d = d, c, at_c
            c = high - g * (high - low)
            at_c = f(c)
        else:
            low, c, at_c = c, d, at_d
            d = low + g * (high - low)
            at_d = f(d)
    return c if at_c < at_d else d


def refine_whole(score: Callable[[float], Finding], h: Hypothesis, value: float) -> Finding:
    """Return the best whole number by steps of halved size from a value of the grid."""
    grid = np.zeros(2) if h.grid is None else h.grid
    best, step, x = score(value), 4 * float(grid[1] - grid[0]), value
    for _ in range(14):
        step /= 2
        for y in (x - step, x + step):
            if grid[0] <= y <= grid[-1] and h.value(y) != h.value(x):
                found = score(y)
                if found.residual < best.residual:
                    best, x = found, y
    return best
