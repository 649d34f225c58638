"""Search the hypotheses, alone and in pairs, that reproduce the tensors of wrong kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from refdiff.oracle.diagnosis.evidence import NOTHING, Case, Edits, Judged, Score, is_better
from refdiff.oracle.diagnosis.hypotheses import Hypothesis
from refdiff.oracle.diagnosis.ranking import Finding
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.mistakes.catalogue import Kernel
from refdiff.oracle.mistakes.kernel import Tensors, compute, is_same_output
from refdiff.oracle.mistakes.listed import draw_probes, shrink_spec
from refdiff.oracle.thresholds import THRESHOLDS


@dataclass(frozen=True)
class Scored:
    """Hypotheses with the coordinates of their numbers, and how well they reproduce the tensors of all cases."""

    edits: Edits
    score: Score

    @property
    def cost(self) -> float:
        """How much is fitted: 1 for each number, and a half for a whole one or a set of lost tokens."""
        return sum(0.0 if h.is_name else 0.5 if h.is_whole or not h.has_number else 1.0 for h, _ in self.edits)

    @property
    def at_edge(self) -> bool:
        """Whether a number is at the end of its range: the range may be too short, or the number without a limit."""
        edges = ((h.grid, value) for h, value in self.edits if h.grid is not None and not h.is_whole)
        return any(not grid[0] + 1e-3 < value < grid[-1] - 1e-3 for grid, value in edges)


@dataclass(frozen=True)
class SearchResult:
    """The findings that fit, those that explain most, and whether pairs were tried.

    nearly_right: whether the truth fits too, by the limits of wrong kernels.
    """

    fitting: list[Finding]
    closest: list[Finding]
    tried_pairs: bool = False
    nearly_right: bool = False


class Search:
    """Search the hypotheses that reproduce the tensors of some cases."""

    def __init__(self, cases: Sequence[Case], every: Iterable[Hypothesis]) -> None:
        self.cases, self.every = list(cases), list(every)
        self.place = {h: n for n, h in enumerate(self.every)}
        rights = [c.right for c in self.cases if c.right is not None]
        self.rights = rights if len(rights) == len(self.cases) else None
        self.single: list[Scored] = []
        self.is_sampled = any(c.coarse is not None for c in self.cases)
        self.before = self.score((), coarse=True).score.residual
        self.nearly_right = self.rights is not None and all(r.fits for r in self.rights)

    def score(self, edits: Edits, *, coarse: bool = False) -> Scored:
        """Score hypotheses with given coordinates: the worst case counts."""
        return Scored(edits, self._worst((c.tensors(edits, rows), c, rows) for c, rows in self._rows(coarse)))

    def _rows(self, coarse: bool) -> list[tuple[Case, Numpy | None]]:
        return [(c, c.coarse if coarse else c.fine) for c in self.cases]

    def _worst(self, computed: Iterable[tuple[Tensors | None, Case, Numpy | None]]) -> Score:
        worst: Score | None = None
        for found, case, rows in computed:
            score = case.score(found, rows)
            if score is NOTHING:
                return NOTHING
            if worst is not None:
                each = {n: max(x, worst.each.get(n, 0.0)) for n, x in score.each.items()}
                score = Score(max(score.residual, worst.residual), min(score.share, worst.share), each)
            worst = score
        return worst or NOTHING

    def extend(self, first: Edits, some: Iterable[Hypothesis]) -> list[Scored]:
        """Score each hypothesis beside those in `first`; numbers at the best point of their grid."""
        axes, found = {h.axis for h, _ in first}, []
        base: list[Tensors | None] | None = None
        for h in some:
            if h.axis in axes or (first and not h.in_pairs):
                continue
            if h.tensors:
                if base is None:
                    base = [c.tensors(first, rows) for c, rows in self._rows(True)]
                found += self._fit_factor(first, h, base)
                continue
            every = 4 if first and self.is_sampled else 2 if first or self.is_sampled else 1
            grid = [0.0] if h.grid is None else h.grid[::every].tolist()
            scored = [self.score(self._ordered((*first, (h, value))), coarse=True) for value in grid]
            found.append(min(scored, key=lambda s: (s.score.residual, -s.score.share)))
        return found

    def _fit_factor(self, first: Edits, h: Hypothesis, base: list[Tensors | None]) -> list[Scored]:
        """Return the score of the least-squares factor of some tensors; nothing if there is none."""
        along = square = 0.0
        computed: list[tuple[Tensors | None, Case, Numpy | None]] = []
        for found, (case, rows) in zip(base, self._rows(True), strict=True):
            actual, _, errors = case.view(rows)
            if found is None or any(n not in found or found[n].shape != actual[n].shape for n in h.tensors):
                return []
            for name in h.tensors:
                y, g, size = actual[name], found[name], np.maximum(errors[name], 1e-150)[..., None]
                known = np.isfinite(y) & np.isfinite(g)
                y, g = (np.where(known, x, 0.0) / size for x in (y, g))
                along, square = along + float(np.sum(y * g)), square + float(np.sum(g * g))
        value = along / square if 0 < square < math.inf else 0.0
        if not THRESHOLDS.fits.zero_factor < abs(value) < 1 / THRESHOLDS.fits.zero_factor:
            return []
        for found, (case, rows) in zip(base, self._rows(True), strict=True):
            changed = {n: value * x if n in h.tensors else x for n, x in (found or {}).items()}
            computed.append((changed, case, rows))
        return [Scored(self._ordered((*first, (h, value))), self._worst(computed))]

    def _ordered(self, edits: Edits) -> Edits:
        return tuple(sorted(edits, key=lambda edit: self.place[edit[0]]))

    def polish(self, found: Scored) -> Scored:
        """Refine the numbers of a scored set in turn, on the coarse sample first."""
        for _ in range(1 if len(found.edits) == 1 else 2):
            for n, (h, value) in enumerate(found.edits):
                if h.grid is None:
                    continue

                def at(x: float, coarse: bool, n: int = n, h: Hypothesis = h, edits: Edits = found.edits) -> Scored:
                    return self.score((*edits[:n], (h, x), *edits[n + 1 :]), coarse=coarse)

                step = float(h.grid[1] - h.grid[0])
                if h.is_whole:
                    best = refine_whole(lambda x: at(x, True), h, value)
                else:
                    sampled = self.is_sampled
                    near = 4 * step if sampled and len(found.edits) > 1 else 2 * step
                    low, high = max(value - near, h.grid[0]), min(value + near, h.grid[-1])
                    x = minimize(lambda x: at(x, True).score.residual, low, high, 12 if sampled else 40)
                    if sampled:
                        low, high = max(x - step / 8, h.grid[0]), min(x + step / 8, h.grid[-1])
                        x = minimize(lambda x: at(x, False).score.residual, low, high, 14)
                    best = at(x, False)
                found = min(found, best, key=lambda s: s.score.residual)
        return found

    def confirm(self, found: Iterable[Scored]) -> list[Finding]:
        """Return the findings that fit by a budget of their own, better than the truth and than each other."""
        found = [s for s in found if not s.at_edge and s.score.residual < (1 - THRESHOLDS.same_function) * self.before]
        near = sorted(found, key=lambda s: (s.score.residual, s.cost))
        about = THRESHOLDS.better_ratio * max(near[0].score.residual, 0.5) if near else 0.0
        near.sort(
            key=lambda s: (s.cost, s.score.residual) if s.score.residual <= about else (math.inf, s.score.residual)
        )
        within = [s for s in near if s.score.residual <= THRESHOLDS.quick_residual]
        near = within or [s for s in near if s.score.residual <= 1e8][: THRESHOLDS.always_judged]
        judged: list[tuple[Scored, list[Judged], float]] = []
        for s in near[: THRESHOLDS.max_judged]:
            if judged and s.score.residual > THRESHOLDS.far_ratio * max(1.0, judged[0][0].score.residual):
                continue
            each = [c.judge(s.edits) for c in self.cases]
            fits = [j for j in each if j is not None and j.fits and j.residual <= THRESHOLDS.own_residual]
            if len(fits) == len(each):
                judged.append((s, fits, max(j.residual for j in fits)))
        if self.nearly_right and self.rights:
            judged = [j for j in judged if is_better(self.cases, j[1], self.rights)]
        elif self.rights:
            judged = [j for j in judged if not is_better(self.cases, self.rights, j[1])]
        judged = [
            b for b in judged if not any(a is not b and is_better(self.cases, a[1], b[1]) for a in judged)
        ] or judged
        least = min((residual for *_, residual in judged), default=0.0)
        judged = [j for j in judged if j[2] <= THRESHOLDS.better_ratio * least]
        fewest = min((s.cost for s, *_ in judged), default=0.0)
        return self._merge_equal([j for j in judged if j[0].cost == fewest])

    def _merge_equal(self, judged: list[tuple[Scored, list[Judged], float]]) -> list[Finding]:
        """Merge findings that compute the same tensors, here and on small probes."""
        start = self.cases[0].start
        probes: list[Inputs] = []
        if len(judged) > 1 and self.cases[0].dout is None:
            probes = draw_probes(shrink_spec(start.spec), kind_of(start.inputs))
            probes += [{**x, "key_mask": x["key_mask"][::-1]} for x in probes if "key_mask" in x]
            probes += [_fill_unused_slots(x) for x in probes if "k_pages" in x]
        kept: list[tuple[Finding, list[Numpy | None]]] = []
        for s, each, residual in sorted(judged, key=lambda j: [self.place[h] for h, _ in j[0].edits]):
            outs: list[Numpy | None] = [
                j.exact.get(name) for j, c in zip(each, self.cases, strict=True) for name in c.actual
            ]
            outs += [_output_of(s.edits, shrink_spec(start.spec), x) for x in probes]
            finding = self.finding(s, residual=residual, fits=True)
            for n, (other, known) in enumerate(kept):
                if all(is_same_output(a, b) for a, b in zip(outs, known, strict=True)):
                    names = dict.fromkeys((*other.also, finding.name))
                    names.pop(other.name, None)  # as of two grids of one number
                    kept[n] = (replace(other, also=tuple(names)), known)
                    break
            else:
                kept.append((finding, outs))
        return [finding for finding, _ in kept]

    def finding(self, s: Scored, *, residual: float | None = None, fits: bool = False) -> Finding:
        """Return the finding of a scored set, in words."""
        values = tuple(h.value(x) if h.has_number else None for h, x in s.edits)
        share = max(0.0, s.score.share)
        return Finding(
            tuple(h for h, _ in s.edits), values, s.score.residual if residual is None else residual, share, fits
        )

    def beam(self, found: Iterable[Scored]) -> list[Scored]:
        """Return the sets that explain most, at most two of an axis; none if they explain too little.

        Of gradients a set comes first that reproduces one of the wrong ones, as each kernel of several may have its own
        mistake.
        """
        wrong = {name for c in self.cases for name in c.wrong}

        def matches(s: Scored) -> int:
            if len(wrong) < 2:
                return 0
            return sum(s.score.each.get(name, math.inf) < THRESHOLDS.gradient_residual for name in wrong)

        kept: list[Scored] = []
        for s in sorted(found, key=lambda s: (-matches(s), -s.score.share)):
            of_axis = sum(k.edits[0][0].axis == s.edits[0][0].axis for k in kept)
            if of_axis < 2 and (s.score.share >= THRESHOLDS.beam_share or matches(s)):
                kept.append(s)
        return kept[: THRESHOLDS.beam]

    def cover(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield sentences on wrong gradients that single hypotheses reproduce, with the names of these gradients.

        The hypothesis that reproduces most of them comes first. A sum of many terms has few numbers and matches by
        chance: it needs a hypothesis that leaves the correct gradients as they are.
        """
        wrong = {name for c in self.cases for name in c.wrong}
        before = self.score(()).score.each
        left = set(wrong)
        matched: list[tuple[Scored, set[str], bool]] = []
        for s in self.single:
            each = s.score.each
            quick = {n for n in wrong if each.get(n, math.inf) < min(THRESHOLDS.gradient_residual, before[n] / 2)}
            if quick and not s.at_edge and (judged := [c.judge(s.edits) for c in self.cases]):
                fits = {
                    n for n in quick if all(j is not None and j.each[n] <= THRESHOLDS.correct_residual for j in judged)
                }
                contradicted = any(x > 2 * max(1.0, before[n]) for n, x in each.items() if n not in wrong)
                sums = set(self.cases[0].budget.sums)
                if contradicted or (fits <= sums and not set(each) <= sums and s.edits[0][0].is_name):
                    fits -= sums
                matched.append((s, fits, contradicted))
        place = {name: n for n, name in enumerate(self.cases[0].actual)}
        while left and (some := [(s, fits & left, off) for s, fits, off in matched if fits & left]):
            _, names, off = max(some, key=lambda m: (len(m[1]), not m[2], -min(place[n] for n in m[1]), -m[0].cost))
            which = [m[0] for m in some if m[1] == names and m[2] == off]
            least = min(s.cost for s in which)
            findings = [self.finding(s) for s in which if s.cost == least]
            listed = sorted(names, key=place.__getitem__)
            text = " or ".join(f"{f.name} ({f.what.rstrip('.')})" for f in findings[: THRESHOLDS.max_closest])
            yield f"{' and '.join(listed)} {'agrees' if len(names) == 1 else 'agree'} with {text}", tuple(listed)
            left -= names

    def run(self, max_deviations: int = 2, more: Callable[[], Iterable[Hypothesis]] = tuple) -> SearchResult:
        """Try names, then numbers and what `more` yields, then pairs."""
        single = self.single = self.extend((), (h for h in self.every if h.is_name))
        fitting = self.confirm(single)
        if not fitting or fitting[0].residual > THRESHOLDS.correct_residual:
            others = [*(h for h in self.every if not h.is_name), *more()]
            for h in others:
                self.place.setdefault(h, len(self.place))
            numbers = self.extend((), others)
            explaining = sorted((s for s in numbers if s.edits[0][0].grid is not None), key=lambda s: -s.score.share)
            single += numbers
            single += [self.polish(s) for s in explaining[: THRESHOLDS.polished // (2 if self.is_sampled else 1)]]
            fitting = self.confirm(single)
        beam = self.beam(single) if max_deviations > 1 and not fitting and not self.nearly_right else []
        # alone they change nothing
        near = [s for s in single if math.isclose(s.score.residual, self.before, rel_tol=THRESHOLDS.same_function)]
        idle = {s.edits[0][0] for s in near}
        several: list[Scored] = []
        for names in (True, False):  # numbers beside another hypothesis only if no name fits there
            some = [h for h in self.every if h.is_name == names and h not in idle]
            found = [s for first in beam if not fitting for s in self.extend(first.edits, some)]
            has_number = [s for s in found if any(h.grid is not None for h, _ in s.edits)]
            found += [self.polish(s) for s in sorted(has_number, key=lambda s: -s.score.share)[: THRESHOLDS.polished]]
            several += found
            fitting = fitting or self.confirm(_best_of_each(found))
        ranked = sorted((*single, *_best_of_each(several)), key=lambda s: (-s.score.share, len(s.edits)))
        closest = [self.finding(s) for s in ranked[: THRESHOLDS.max_judged]]
        return SearchResult(fitting, closest, bool(several), self.nearly_right)


def _best_of_each(found: Iterable[Scored]) -> list[Scored]:
    """Return the scored sets, of those with the same hypotheses the nearest."""
    best: dict[tuple[Hypothesis, ...], Scored] = {}
    for s in found:
        key = tuple(h for h, _ in s.edits)
        best[key] = min(s, best.get(key, s), key=lambda s: s.score.residual)
    return list(best.values())


def _output_of(edits: Edits, spec: object, inputs: Inputs) -> Numpy | None:
    kernel: Kernel | None = Kernel(spec, inputs)  # type: ignore[arg-type]
    try:
        for h, value in edits:
            kernel = None if kernel is None else h.edit(kernel, value)
    except (ValueError, IndexError):
        return None
    return (compute(kernel, ("out",)) or {}).get("out")


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


def refine_whole(score: Callable[[float], Scored], h: Hypothesis, value: float) -> Scored:
    """Return the best whole number by steps of halved size from a value of the grid."""
    grid = np.zeros(2) if h.grid is None else h.grid
    best, step = score(value), float(grid[1] - grid[0])
    x = value
    for _ in range(12):
        step /= 2
        for y in (x - step, x + step):
            if grid[0] <= y <= grid[-1] and h.value(y) != h.value(x):
                found = score(y)
                if found.score.residual < best.score.residual:
                    best, x = found, y
    return best
