"""Every threshold of the oracle, with its evidence beside it: what decides a verdict, a name or what is reported.

E_r is the error of correct kernels in a row, u the unit roundoff of the storage type, u₃₂ = 2⁻²⁴ that of float32.
Elsewhere are constants that decide none of these: number formats and their rounding errors, the values of test cases,
the length of texts, and how much memory or time the judge gives a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RowLimits:
    """The largest value of each statistic of a tensor judged by rows (`refdiff.oracle.budget.statistics`)."""

    row: float = 4.0  # of 27,000 correct runs two reached 3.1 and 3.5, with torch and JAX
    noisy_row: float = 5.25  # for rows under E_r / `noise`; the largest of 35,000 checks was 5.05, of transformers
    bulk: float = 1.3  # the largest of 3,110 checks of correct kernels was 1.10
    slope: float = 4.0  # times that of orders; the largest of 3,296 checks was 0.45 of its limit
    noise: float = 0.25  # of a row: with a larger E_r it passes with an error as large as itself
    share: float = 0.05  # of rows that may be uncertain: 19 of 882 outputs have more; 13 with twice the share


@dataclass(frozen=True)
class FitLimits:
    """The ranges and the effort of fitted numbers (`refdiff.oracle.diagnosis.hypotheses`)."""

    grid: int = 33  # values, whose neighbors differ by a factor of 1.24 for the scale of scores
    scale_range: float = 30.0  # without a scale scores are √d times larger, 16 at d = 256
    epsilon_range: tuple[float, float] = (1e-12, 1.0)  # models have 1e-6 to 1e-5
    theta_range: tuple[float, float] = (30.0, 1e8)  # models have 1e4 to 1e7
    softcap_range: tuple[float, float] = (0.05, 500.0)  # models have 30 to 50; a wrong unit makes it far smaller
    lambda_range: tuple[float, float] = (-2.0, 3.0)  # models have 0 to 1; a missing sign or scale, twice that
    lambda_factors: tuple[float, float] = (0.02, 50.0)  # the same for a factor of λ
    fine_reach: float = 1 / 8  # of the grid's step: a golden section on the coarse sample ends within 1/80 of it
    distinct_layers: int = 40  # deeper ones have the same λ_init up to 4e-6
    zero_factor: float = 1e-3  # heads whose factors differ by less than `same_factor` of this are nearly zero


@dataclass(frozen=True)
class LostTokenLimits:
    """Which sets of lost keys are tried (`refdiff.oracle.diagnosis.tokens`)."""

    rows: int = 8  # wrong rows that are recomputed, each with every set
    edges: int = 96  # starts and ends at most: 4,655 ranges of 96 keys, and 2,079 of 1,024
    singles: int = 1024  # keys that are tried alone, at most: time would grow as the square
    tie: float = 1.5  # in 28 cases the right set left at most 0.8 E_r, every other one 2.5 or more
    alternatives: int = 4  # sets between which the sampled rows do not decide, which all rows compare


@dataclass(frozen=True)
class TraceLimits:
    """The limits of a point of a trace, and of what is said of it (`refdiff.oracle.divergence`)."""

    rows: RowLimits = RowLimits(bulk=4.0, slope=6.0)  # eager runs round more; one activation may be a thousandfold
    floor: float = 0.4  # u of a row: about one rounding
    few_numbers: float = 4.0  # floor² grows by few_numbers / n: the mean square of few numbers varies more
    least_unit: float = 2.0**-50  # expected values are float64: a difference of 0 has errors of its terms
    tf32_error: float = 3.0  # u that all numbers may share: both factors are truncated, and the result
    runs: int = 8  # with rounding
    precision_share: float = 1 / 4  # of points in the coarsest type: norms, λ and log-sum-exps may be float32
    min_widened: int = 32  # fewer float32 numbers that 16 bits hold may be constants, such as 1


@dataclass(frozen=True)
class Thresholds:
    """The constants of acceptance and diagnosis, and those of fits, lost tokens and traces."""

    limits: RowLimits = RowLimits()
    wrong_limits: RowLimits = RowLimits(row=4.5, noisy_row=5.75, bulk=2.0, slope=8.0)
    """Looser limits for naming a mistake: in which order a wrong kernel rounds, and where, is unknown."""
    fits: FitLimits = FitLimits()
    lost_tokens: LostTokenLimits = LostTokenLimits()
    trace: TraceLimits = TraceLimits()

    # acceptance
    storage_floor: float = 0.29  # u: 1/√12, the standard deviation of one rounding
    compute_floor: float = 1.0  # u₃₂: one float32 operation, whose sign equal rows share
    storage_slope: float = 0.02  # u: the roundings of some thousand stored numbers average to this
    compute_slope: float = 4.0  # u₃₂: mean + ε, root, quotient and scale come after the sums of a row
    order_scatter: int = 1  # standard deviations over orders added to an error that one number decides
    narrow_order_scatter: int = 2  # with one, sums in 16 bits had 4.03 E_r in a held-out bfloat16 order
    lse_scores: float = 3.5  # typical errors of a score; the largest of 284,000 rows was 2.8
    lse_units: float = 8.0  # u₃₂ (1 + |lse|), beside u of stored scores and cut factors
    lambda_errors: float = 6.0  # typical errors of λ, whose steps may each be off by 1.7 of theirs
    lambda_units: float = 8.0  # u₃₂ of λ: exponentials
    narrow_exp: float = 2.0**-13  # nats: torch's flash attention on a CPU has 2⁻¹⁴·² in 16 bits
    lse_convention: float = 4.0  # allowances: 22 of 5,400 pairs of conventions are nearer, in bfloat16 `extreme`
    sample_scores: int = 2**20  # all rows of smaller outputs take about three seconds
    sample_queries: int = 48  # in 96 outputs other rows got 0.50 to 5.4 times the E_r that all orders give
    sample_share: float = 1 / 4  # of the queries, at most
    sample_first: int = 8  # they see few keys
    sample_last: int = 4  # they see most keys
    sample_worst: int = 16  # heads whose query with the largest estimate is in the sample
    sample_scatter: float = 8.0  # largest ratio to the estimate over the median: 1.2 to 3.4, 8 where values are equal
    min_row_ratio: float = 2 / 3  # 0.7 in `natural`; 0.24 in one `extreme` row, where timm reached 4.4 E_r
    linear_score_error: float = 0.1  # exp(0.1) is 1.105
    overflow_margin: float = 4.0  # a larger one only adds queries to the sample
    sum_ulps: float = 2.0  # rounding a sum to its type is half of one
    sum_members: float = 3.0  # errors of an order: 1,512 sums of held-out orders had at most 0.65 of the allowance
    sum_order: float = 8.0  # `sum_error`: 192 sums of 320 to 4,096 terms, one after another, had at most 4.5

    # suite
    declined_share: float = 0.5  # a kernel of dense keys without masks declines 41 % of 63 cases
    diagnosed_numbers: int = 2**16  # in all inputs of a failed case: about 10 s on one core

    # diagnosis; residuals are errors in E_r
    quick_residual: float = 30.0  # a hypothesis with more gets no budget of its own
    hopeless: float = 3.0  # `wrong_limits.row` by two orders: 3,888 held-out rows reached 3.3 E_r, the limit is 13.5
    max_judged: int = 8  # candidates with a budget: of 92 names that fitted 91 were the nearest, one the second
    always_judged: int = 3  # of the nearest, at any distance: a wrong kernel may round far more
    sampled_cost: int = 4_000_000  # scores times dimensions from which a dense case is compared in a few queries
    sampled_rows: int = 48  # these queries; what fits them is compared with all
    beam: int = 6  # hypotheses combined with every other one: of 29 pairs, 24 were named
    beam_share: float = 0.3  # of the error that they must explain; noise explained at most 1 %
    polished: int = 5  # numbers that are refined
    own_residual: float = 1.5  # of its own budget: the right ones of 315 left at most 0.79
    far_ratio: float = 4.0  # once a finding fits, those with so many times its quick score are not judged
    rounding_size: float = 0.5  # of the rows: coarser recipes are tried below this error
    rounding_share: float = 0.1  # of a coarser recipe's E_r in the median row
    alike_rows: float = 0.3  # correlation of neighboring rows' errors that rounding does not exceed
    correct_residual: float = 1.0  # the right name of 7,077 gradients left at most 0.91
    better_ratio: float = 2.0  # an answer is better that leaves so many times less error
    explained: float = 0.6  # zeros explain half; of 28 triples every field was in one that explains 67 %
    max_closest: int = 3  # of 40 pairs the first was one of the two in 38, one of 3 in 39
    same_function: float = 1e-9  # of the largest number
    listed_groups: int = 3  # of heads: larger specs have the same deviations (`gda`, `motif3`, `diff_v2`)
    listed_window: int = 24  # from 8 keys on they are the same
    projection_ratio: float = 3.0  # of any order's projection
    min_projection: float = 0.1  # of the way: nobody's rounding errors are known better
    gradient_residual: float = 6.0  # in 3,163 kernels with one mistake the nearest gradient was within 1.4
    max_heads: int = 16  # whose order is sought
    same_factor: float = 0.02  # factors that differ by a smaller share are one

    # places of an error (`refdiff.oracle.diagnosis.places`, `refdiff.oracle.verdict.region_format`)
    local_share: float = 0.5  # of rows or columns: an error in more is everywhere, in the verdict too
    place_contrast: float = 2.0  # times the worst row elsewhere: an error everywhere leaves no such gap
    max_places: int = 12  # chance marks as many stretches of rows
    max_runs: int = 3  # of indices, which a line of text holds
    max_listed: int = 4  # indices without a pattern, which a line of text holds
    filled_share: float = 0.75  # of a box: a row of garbage may be right by chance
    min_block: int = 4  # rows, columns or steps: fewer may be chance


THRESHOLDS = Thresholds()
