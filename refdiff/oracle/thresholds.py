"""Every threshold of the oracle, with the evidence for its value: what decides a verdict, a name or what is reported.

Elsewhere are constants that decide none of these: number formats and their rounding errors, the values of test cases,
the length of texts, and how much memory or time the judge gives a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RowLimits:
    """The largest value that each statistic of a tensor judged by rows may have (`refdiff.oracle.budget.statistics`).

    row: of 27,000 correct runs (seeds 3000 to 3019 of the self-test) two reached 3.1 and 3.5, with torch and JAX. In a
        row that one rounding decides, all ten runs behind E_r may happen to have small errors.
    noisy_row: for a row that is smaller than E_r / `noise`; its errors have longer tails. Of 35,000 checks of correct
        kernels (seeds from 80000, 90000 and 100000 of tests.parity.false_alarms) the largest was 5.05, of transformers'
        eager attention.
    bulk, element, slope: in 3,110 checks of correct kernels (seeds from 41000 of tests.parity.false_alarms) the largest
        bulk was 1.10, the largest element 1.09, and the largest slope 0.25 of its limit. A number is judged by `row`
        too, and a slope by `factor`.
    factor: in multiples of `CommonFactor.spread`. The largest estimate was 3.3 in 9,168 tensors of held-out orders
        (seeds 5000 to 5023; float32, bfloat16 fused and eager, float16; all profiles of numbers). It was 3.7 in 914
        tensors of torch, transformers and JAX (seeds 60 and 61 of tests.parity.false_alarms). Since then the spread
        also covers orders that were left out, and is larger: a float16 `degenerate` case of transformers went from 9.9
        to 4.8.
    noise: a row is uncertain if E_r is a larger share of it. A row then passes with an error as large as itself.
    share: the verdict is inconclusive if a larger share of the rows is uncertain. Of 882 outputs (7 presets, 3 types, 6
        profiles) 840 have no such row and 19 are inconclusive: as many with half the share, and 13 with twice.
    """

    row: float = 4.0
    noisy_row: float = 5.25
    bulk: float = 1.3
    element: float = 3.0
    slope: float = 6.0
    factor: float = 6.0
    noise: float = 0.25
    share: float = 0.05


@dataclass(frozen=True)
class FitLimits:
    """The ranges and the effort of fitted numbers (`refdiff.oracle.diagnosis.hypotheses`).

    grid: values on the first grid of a number, whose neighbors differ by a factor of 1.24 for the scale of scores.
    scale_range: the scale of scores is at most so many times larger or smaller. Without a scale it is √d times larger,
        16 at d = 256.
    epsilon_range, theta_range: models have 1e-6 to 1e-5, and 1e4 to 1e7.
    softcap_range: models have 30 to 50; a wrong unit or scale makes it far smaller or larger.
    query_offsets: shifts of the queries' positions that are tried; those by 1 and −1 are deviations. Each is found in
        float32 and bfloat16. Shifts by 3 and −3 would be found too; no kernel is known that has them.
    rotary_shares: shares of a head that RoPE is tried to rotate. GPT-NeoX rotates 1/4, GLM 1/2, Phi-4-mini 3/4, and MLA
        64 of 192.
    lambda_range: models have λ from 0 to 1, and a missing sign or scale makes it at most twice as large, or negative.
    lambda_factors: the same for a factor of λ where inputs, heads or tokens have different ones.
    distinct_layers: the last layer that is tried for λ_init. Deeper ones have the same λ_init up to 4e-6.
    zero_factor: factors of heads that differ by less than `same_factor` of this are one: their output is nearly zero.
    """

    grid: int = 33
    scale_range: float = 30.0
    epsilon_range: tuple[float, float] = (1e-12, 1.0)
    theta_range: tuple[float, float] = (30.0, 1e8)
    softcap_range: tuple[float, float] = (0.05, 500.0)
    query_offsets: tuple[int, ...] = (2, -2)
    rotary_shares: tuple[float, ...] = (1 / 4, 1 / 3, 1 / 2, 3 / 4)
    lambda_range: tuple[float, float] = (-2.0, 3.0)
    lambda_factors: tuple[float, float] = (0.02, 50.0)
    distinct_layers: int = 40
    zero_factor: float = 1e-3


@dataclass(frozen=True)
class LostTokenLimits:
    """Which sets of lost keys or queries are tried (`refdiff.oracle.diagnosis.tokens`).

    rows: wrong rows that are recomputed, each with every set (1,783 sets of 96 keys). A set must explain every one.
    edges: starts and ends of ranges: 32 give 528 ranges. Lost keys of 16 queries and 1,024 keys take 0.5 s with them.
    tile: the simplest ranges start or end at multiples of it, the smallest tile of `TILE_SIZES`.
    singles, singles_tile: of so many tokens, every single token, prefix and suffix is tried. Of more, only the single
        tokens beside an edge of tiles of this size: with all of them, time would grow as the square.
    short, short_range: of so many tokens, every range of up to `short_range` is tried. At edges alone, keys 5 to 11 of
        48 were missed. More queries are combined in `short` blocks, with one backward pass each: 3.2 s in place of 12.7
        for 512 queries.
    tie: the simpler set is named up to this ratio of its error to the smallest. In 28 outputs and gradients of kernels
        that lose tokens, the right set left at most 0.8 E_r, and every other one that changes them 2.5 or more.
    alternatives: so many sets between which the sampled rows do not decide are compared in all rows.
    """

    rows: int = 8
    edges: int = 32
    tile: int = 8
    singles: int = 256
    singles_tile: int = 64
    short: int = 128
    short_range: int = 16
    tie: float = 1.5
    alternatives: int = 4


@dataclass(frozen=True)
class TraceLimits:
    """The limits of a point of a trace (`refdiff.oracle.divergence`).

    rows: as for an output, but for `bulk`: all rows of an eager run may have more roundings than the reference, so it
        is no stricter than `row`. `element` allows for one activation thousands of times the others, as trained models
        have: its sum is rounded at every step.
    floor: in unit roundoffs of a row, about one rounding.
    few_numbers: the square of the floor of a row of n numbers is 1 + few_numbers / n times as large: the mean square
        error of few numbers varies more.
    least_unit: the least unit roundoff: the expected values are float64, and a difference of 0 has errors of its terms.
    tf32_error: in unit roundoffs, what all numbers may have alike in tf32, which truncates both factors of a product: 1
        on average for each, and 1 for the result. In other types it is 1, for a constant such as 1/√d.
    local_runs, free_runs: how many runs with rounding. If two keys have nearly the same score, accumulated errors
        decide which is the larger; in one correct run of sharp maps in bfloat16 none of the first 16 showed it.
    jump_share: in "free" mode a row whose errors may reach this share of it is not judged: it may attend to another
        key.

    Points without a model to run, and what is said of a point (`first_divergence`, `explain`):
        error_growth: largest growth of the relative error from one point to the next where the rounding is unknown.
        recorded_units: in unit roundoffs, the error of a first point, and of one that is added in another order: one
            rounding in each run.
        precision_share: a run has the coarsest type of this share of its points: norms, λ and log-sum-exps may be
            float32 in a run of 16 bits.
        min_widened: fewer float32 numbers that 16 bits can hold may be constants, such as 1 or 0.5.
        known_factor: a factor on scores is named if it is this near: two names, √2 and log₂ e, differ by 2 %.
    """

    rows: RowLimits = RowLimits(bulk=4.0, element=6.0)
    floor: float = 0.4
    few_numbers: float = 4.0
    least_unit: float = 2.0**-50
    tf32_error: float = 3.0
    local_runs: int = 8
    free_runs: int = 32
    jump_share: float = 0.5

    error_growth: float = 16.0
    recorded_units: float = 2.0
    precision_share: float = 1 / 4
    min_widened: int = 32
    known_factor: float = 0.01


@dataclass(frozen=True)
class Thresholds:
    """The constants of acceptance and diagnosis, and those of fits, lost tokens and traces.

    Acceptance; u is the unit roundoff of the storage type, u₃₂ = 2⁻²⁴ that of float32:
        storage_floor: in u. E_r is at least 1/√12 u of the row, the standard deviation of one rounding.
        compute_floor: in u₃₂. Every recipe sums, norms and scales in float32, where one operation is wrong by up to
            u₃₂. Equal rows, such as those of constant values, share its sign, so that no mean over rows reduces it.
        storage_slope: in u. The roundings of some thousand stored numbers average to this.
        compute_slope: in u₃₂. After the sums of a row come four float32 operations: mean + ε, root, quotient, scale. In
            equal rows their errors have one sign. `lambda_init_error` is counted separately.
        flushed_share: a row counts for the factor only if numbers that become 0 are at most this share of its largest:
            they change the row's factor by no more, and count as one order.
        element_rows, element_units: one number may differ by so many E_r of its row, plus so many u |y| for storing it.
        order_scatter, narrow_order_scatter: standard deviations over orders that are added to an error that one number
            decides, since all orders may be near the truth by chance. More so with sums in 16 bits: with one deviation,
            a held-out bfloat16 order had 4.03 E_r.
        parallel_share: a wrong row is reported without the scale of its tensor if a smaller share of the squared error
            is parallel to the truth. It was 0.90 or more in 70 outputs times a factor, and less than 0.5 in 510 of 613
            with another mistake.
        slope_share: a scale is that of the wrong rows if the others have less than this share of its slope. They had
            0.90 or more of it in 18 outputs times a factor, and less than 0.5 in 513 of 548 outputs in which some heads
            were scaled.
        lse_scores: in multiples of the largest error of a row's score in all orders. In about 50,000 rows of held-out
            orders the largest was 0.99.
        lse_units: in u₃₂ of 1 + |lse|: the float32 roundings of maximum, exponentials, sum and logarithm.
        narrow_exp: error of a log-sum-exp, in nats. Kernels that store 16 bits may use coarser exponentials. On equal
            scores the error of torch's flash attention on a CPU is 2⁻¹⁴·², in bfloat16 and float16.
        lse_convention: a wrong log-sum-exp has another convention, such as base 2, if it is within so many allowances
            of that. Only 22 of 5,400 pairs of conventions lay so near each other, in bfloat16 and `extreme`: there
            the largest score is nearly all of it.
        sample_scores: outputs with at least so many scores are judged by a sample of queries (`row_sample`). All rows
            of smaller ones take about three seconds at most.
        sample_queries, sample_share: how many queries the sample has, and at most which share of all. In 96 outputs of
            192 queries a row outside of the sample got at least 0.50 of the E_r that all orders give it, and in the
            median up to 5.4 times.
        sample_first, sample_last, sample_worst: how many of them are the first queries, which see few keys; the last;
            and, for so many heads, those with the largest estimate relative to the truth. The others are random.
        sample_scatter: the largest ratio of E_r to its estimate, over the median ratio. It was 1.2 to 3.4 over presets,
            profiles and recipes, and 4 to 8 in float32 where all values are equal.
        min_row_ratio: the least ratio of E_r to its estimate, over the median ratio. The smallest was 0.7 in `natural`.
            In `extreme` float32 one row had 0.24: there timm reached 4.4 E_r with 4 allowed, and 1.6 E_r since.
        linear_score_error: up to this error of a score, the error of its weight is linear in it: exp(0.1) is 1.105.
        overflow_margin: a query whose numbers may come this near to the type's largest is in the sample: a larger
            margin only adds queries. In 12 outputs of 320 queries (natural, cancellation, extreme; float16, bfloat16)
            margins up to 16 add none.
        sum_terms: in u ‖terms‖₂. The rounding errors of a long sum are a random walk with a standard deviation of about
            u/3 ‖terms‖₂.
        sum_ulps: in units in the last place of the sum, whose rounding to its type is half of one.
        sum_members: in multiples of the largest error of a member. Of 1,512 sums of held-out orders (bfloat16 and
            float16, fused and eager; natural, cancellation, extreme) the largest error was 0.65 of what is allowed, and
            a typical one 0.1.
        sum_order: in multiples of `sum_error`. Of 192 sums of 320 to 4,096 terms of random sign, added one after
            another, the largest error was 4.5.

    Suite:
        declined_share: a run fails if a larger share of its cases was declined: the rest says little of the kernel. Of
            63 cases a kernel of dense keys without masks declines 41 %, which half the share would refuse, and one that
            also needs as many keys as queries 75 %, which twice the share would accept.
        diagnosed_numbers: the largest size of all inputs for which a failed case is diagnosed, which takes about 10 s
            at most on one core.

    Diagnosis; residuals are errors in multiples of E_r:
        quick_residual: a deviation with a larger quick residual does not get a budget of its own.
        hopeless: in multiples of `wrong_limits.row`. Two orders suffice to reject a deviation if the error of a row is
            larger in their E_r. In 3,888 rows of held-out orders the largest error was 3.3 of these E_r; the limit is
            13.5.
        max_judged, always_judged: the most candidates of one search that get a budget of their own, and how many of the
            nearest, and of those that explain most, get one at any distance: a wrong kernel may have much larger
            rounding errors than a correct one. In 107 outputs with one deviation 91 of the 92 names that fitted were
            the nearest, and one the second.
        correct_residual: the right name leaves less. If one of an output leaves more, fitted numbers are tried as well.
            One of a gradient that leaves more, in E_r of kernels with that mistake, is refused. In 7,077 gradients (6
            presets, 3 types, 4 profiles) the right name left at most 0.91. Of 35,427 names of functions that lie 1 E_r
            or more away, 56 left less, each within 1.9 E_r. In E_r of the truth, a limit of 1/12 of the error accepted
            1,021 of them.
        better_ratio: an answer is better than another if it leaves so many times less error.
        explained: share of the squared error that a candidate must explain to be shown. Zeros explain half of any error
            that is unrelated to the truth. For outputs with two mistakes, the closest single was one of the two in 1 of
            6 cases below this share, and in 5 of 9 above it. Of 28 outputs with three mistakes that have names once one
            field of the spec is changed, every field was in a candidate that explains 67 % or more.
        max_closest: candidates that are reported although they do not fit: the first of them is the lead. In 40 outputs
            with two mistakes and such a list, the first was one of the two in 38, one of 3 in 39, one of 6 in all.
        same_function: two float64 outputs closer than this share of the largest number are equal.
        listed_groups, listed_window: the deviations of a spec are listed at so few groups of heads and so short a
            window. From 3 groups and 8 keys on, larger specs have the same ones (`gda`, `motif3`; `hf_diffllama`,
            `diff_v2`).
        place_separation: in E_r. Two places of the truth that are closer cannot be told apart.
        projection_ratio: an output points to another function if its projection is so many times that of any order.
        min_projection: the least such projection, as a share of the way. Nobody's rounding errors are known better.
        gradient_residual: root mean square over rows, in E_r of the truth. A mistake is judged if some gradient is this
            near to its own: in 3,163 kernels with one mistake the nearest was within 1.4. So is a gradient that is this
            near to the truth times a number, to a part of a sum, or to that of other row sums.
        max_parts: of more sequences or heads no partial sums are tried: each part takes two backward passes.
        chance: the largest probability that one of several partial sums fits by chance.
        same_factor: factors, or fitted numbers of heads, that differ by a smaller share are taken for one.

        sampled_cost, sampled_rows: of a dense case with at least so many scores times dimensions, so many queries are
            compared: the worst, the first, the last, and others spread evenly. What fits them is compared with all.
        beam, beam_share: so many of the hypotheses that explain most are combined with every other one, if they explain
            this share. Of 29 pairs, 24 were named with 6; noise explained at most 1 %.
        polished: the most numbers that are refined, those that explain most.
        own_residual: a finding leaves at most this much of its own budget: the right ones of 315 left at most 0.79.
        far_ratio: once a finding fits, those that leave so many times more by the quick score are not judged.
        rounding_size: coarser recipes are tried only if the errors of most wrong rows are below this share of the rows.
        rounding_share, alike_rows: an error looks like rounding if it is at least this share of a coarser recipe's E_r
            in the median row, and if the errors of neighboring rows have no larger correlation.

    Places of an error (`refdiff.oracle.diagnosis.places`, `region_format`):
        local_share: an error in a larger share of the rows, or columns, is everywhere.
        place_contrast: a place has so many times the error of the worst row elsewhere. An error that is everywhere
            leaves no such gap.
        max_places: an error in more separate stretches of rows without a pattern is everywhere: chance marks as many.
        max_boxes: the most boxes of rows, or runs of indices, that describe a place: more are no shape that a reader
            recognizes. Of 432 outputs with 1 to 8 random places 151 are described with 1, 219 with 3, and 416 with 6,
            whose longest line has 264 characters in place of 195.
        max_listed: so many indices without a pattern are listed one by one: a line of text holds them. Of these outputs
            194 are described with 2, 219 with 4, and 326 with 8; the longest line does not change.
        filled_share: a box counts as marked if this share of it is. A row of garbage may be right by chance.
        min_block: the fewest rows, columns or steps of a period that form a block. Fewer may be chance.
        max_reordered: the most rows of a place of which a permutation is looked for: a tile of a tensor core has 16.
    """

    limits: RowLimits = RowLimits()
    wrong_limits: RowLimits = RowLimits(row=4.5, noisy_row=5.75, bulk=2.0, element=4.5, slope=12.0, factor=12.0)
    """Looser limits for naming a mistake: in which order a wrong kernel rounds, and where, is unknown."""

    fits: FitLimits = FitLimits()
    lost_tokens: LostTokenLimits = LostTokenLimits()
    trace: TraceLimits = TraceLimits()

    storage_floor: float = 0.29
    compute_floor: float = 1.0
    storage_slope: float = 0.02
    compute_slope: float = 4.0
    flushed_share: float = 1e-3
    element_rows: float = 6.0
    element_units: float = 2.0
    order_scatter: int = 1
    narrow_order_scatter: int = 2
    parallel_share: float = 0.5
    slope_share: float = 0.5
    lse_scores: float = 1.5
    lse_units: float = 8.0
    narrow_exp: float = 2.0**-13
    lse_convention: float = 4.0
    sample_scores: int = 2**20
    sample_queries: int = 48
    sample_share: float = 1 / 4
    sample_first: int = 8
    sample_last: int = 4
    sample_worst: int = 16
    sample_scatter: float = 8.0
    min_row_ratio: float = 2 / 3
    linear_score_error: float = 0.1
    overflow_margin: float = 4.0
    sum_terms: float = 3.0
    sum_ulps: float = 2.0
    sum_members: float = 3.0
    sum_order: float = 8.0

    declined_share: float = 0.5
    diagnosed_numbers: int = 2**16

    quick_residual: float = 30.0
    hopeless: float = 3.0
    max_judged: int = 8
    always_judged: int = 3
    sampled_cost: int = 4_000_000
    sampled_rows: int = 48
    beam: int = 6
    beam_share: float = 0.3
    polished: int = 5
    own_residual: float = 1.5
    far_ratio: float = 4.0
    rounding_size: float = 0.5
    rounding_share: float = 0.1
    alike_rows: float = 0.3
    correct_residual: float = 1.0
    better_ratio: float = 2.0
    explained: float = 0.6
    max_closest: int = 3
    same_function: float = 1e-9
    listed_groups: int = 3
    listed_window: int = 24
    place_separation: float = 10.0
    projection_ratio: float = 3.0
    min_projection: float = 0.1
    gradient_residual: float = 6.0
    max_parts: int = 16
    chance: float = 0.05
    same_factor: float = 0.02

    local_share: float = 0.5
    place_contrast: float = 2.0
    max_places: int = 12
    max_boxes: int = 3
    max_listed: int = 4
    filled_share: float = 0.75
    min_block: int = 4
    max_reordered: int = 16


THRESHOLDS = Thresholds()
