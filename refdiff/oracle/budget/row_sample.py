"""Large outputs: some queries are run in all orders, and E_r of the others is bounded by what their errors grow with.

To first order, a row of one map is off by what its weights are off by, each times the distance of its value from the
others, Σ_s p_s² (1 − p_s)² ‖v_s − v̄‖² σ_s², and by the rounding of the map's output. σ_s is the relative error of a
weight: its own rounding, and that of its score, which grows as ‖q‖ ‖k_s‖. Both maps and λ add up, and the norm makes
the sum larger where the maps cancel (`RowSizes.row_error`). This says how rows compare, not how large their errors are.
That the sampled rows say: with c the largest E_r over its estimate of any sampled row of any head, E_r of every other
row is c times its estimate.

The rule is kept, because

1. a sampled row has the E_r of all orders, as if all rows were run;
2. any other has at least as much as the worst sampled row of its estimate, so that a correct kernel is no nearer to the
   limit there; it may have up to c over the usual ratio more, which is 1.2 to 3.4 for values that differ; beyond 8
   (`Thresholds.sample_scatter`) all rows are run. A wrong row is wrong by more than that, or by little everywhere:
   then the sampled rows show it, whose bulk is judged by itself;
3. where the first order does not hold, nothing is estimated: queries whose scores are off by a tenth or more, or come
   near the end of the type's range, are all in the sample, and where they are more than half, all rows are run.

Sampled are further the first and the last queries, which see few keys and most keys; from every head the one whose
estimate is the largest part of its truth; and others at random, one of each stretch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.oracle.budget.row_sizes import RowSizes
from refdiff.oracle.budget.statistics import over, root_mean_square
from refdiff.oracle.inputs import is_layer
from refdiff.oracle.inputs.sequences import Inputs, select
from refdiff.oracle.rounding import FORMATS
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import attention_mask

Numpy = np.ndarray[Any, Any]
FIRST, LAST, WORST = 8, 4, 16


@dataclass(frozen=True)
class RowSample:
    """Which queries were run in all orders, (R,); and the largest ‖q‖ ‖k_s‖ of each row, (B, h, T)."""

    queries: Numpy
    reach: Numpy

    def extended(self, errors: Numpy) -> Numpy:
        """Bound the errors of scores of every row by those of the sampled ones, as `reach` has it.

        Shapes:
            (B, h, R) -> (B, h, T)
        """
        result = float(np.max(over(errors, self.reach[..., self.queries]), initial=0.0)) * self.reach
        result[..., self.queries] = errors
        return result


def is_large(spec: Spec, inputs: Inputs) -> bool:
    """Whether a sample of queries is worth it: a dense core with many scores, of more queries than a sample has."""
    if is_layer(inputs) or "k_pages" in inputs or "cu_seqlens_q" in inputs or spec.padded_queries != "computed":
        return False
    B, _, T, _ = inputs["q"].shape
    scores = B * spec.heads * T * inputs["k"].shape[2]
    return bool(scores >= THRESHOLDS.sample_scores and 4 * THRESHOLDS.sample_queries <= T)


def sampled_queries(
    spec: Spec, core: Inputs, recipe: Recipe, sizes: RowSizes, estimate: Numpy, expected: Numpy
) -> Numpy:
    """Return which queries are run in all orders, in ascending order; all of them where an estimate would not hold.

    Shapes:
        estimate (B, h, T), expected (B, h, T, e) -> (R,)
    """
    T = estimate.shape[-1]
    alone = np.any(~_first_order(spec, core, recipe, sizes, expected), axis=(0, 1))
    if 2 * np.sum(alone) > T:
        return np.arange(T)
    share = over(estimate, root_mean_square(expected)).reshape(-1, T)
    chosen = {*np.flatnonzero(alone), *range(FIRST), *range(T - LAST, T)}
    worst = np.argmax(np.where(alone, 0.0, share), axis=-1)
    order = np.argsort(-share[np.arange(len(worst)), worst], kind="stable")
    chosen |= {*list(dict.fromkeys(worst[order].tolist()))[:WORST]}
    left = THRESHOLDS.sample_queries - FIRST - LAST - WORST
    edges = np.linspace(FIRST, T - LAST, left + 1).astype(np.int64)
    chosen |= {*np.random.default_rng(T).integers(edges[:-1], edges[1:]).tolist()}
    return np.array(sorted(chosen))


def _first_order(spec: Spec, core: Inputs, recipe: Recipe, sizes: RowSizes, expected: Numpy) -> Numpy:
    """Whether errors add up in a row: scores nearly right, and nothing within a factor of 4 of the type's end."""
    tops = {site: FORMATS[getattr(recipe, site)].top / 4 for site in ("qk", "accumulate", "o", "storage", "norm")}
    with np.errstate(invalid="ignore"):
        small = sizes.score_error(spec, core, recipe) < THRESHOLDS.linear
        small &= (
            (sizes.reach < min(tops["qk"], tops["accumulate"]))
            & (sizes.values < tops["o"])
            & (sizes.heads**2 < tops["norm"])
        )
        small &= np.max(np.abs(expected), axis=-1) < tops["storage"]
    return np.asarray(small)


def only_queries(spec: Spec, inputs: Inputs, rows: Numpy) -> tuple[Spec, Inputs]:
    """Return the problem of some queries of a dense core, with all keys: what they see stands in its mask."""
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    part = {name: x for name, x in inputs.items() if name != "key_mask"}
    part["mask"] = attention_mask(spec, inputs)
    part.setdefault("q_positions", np.arange(S - T, S)[None])
    return spec.replace(causal="none", window=None), select(part, slice(None), rows, slice(None))


def scaled(estimate: Numpy, rows: Numpy, found: Numpy, counted: Numpy) -> Numpy | None:
    """Scale estimates by the largest ratio of what the sampled rows have; None where they do not follow it.

    Shapes:
        estimate (B, h, T), rows (R,), found and counted (B, h, R) -> (B, h, T), `found` at `rows`
    """
    of_rows = estimate[..., rows]
    ratios = (found / np.where(of_rows > 0, of_rows, 1.0))[counted & (of_rows > 0)]
    largest = float(np.max(ratios, initial=0.0))
    if ratios.size and largest > THRESHOLDS.sample_scatter * float(np.median(ratios)):
        return None
    result = largest * estimate
    result[..., rows] = found
    return result
