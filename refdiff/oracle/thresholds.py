"""Every threshold of the oracle, with the evidence for its value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How far each statistic of a tensor may go (`refdiff.oracle.budget.statistics`).

    row: where one rounding decides a row, all ten runs that E_r is taken from may be lucky. In 27,000 correct runs
        (seeds 3000 to 3019 of the self-test) two of torch and jax reached 3.1 and 3.5.
    noisy_row: of a row that E_r is more than `noise` of, where errors have longer tails. Of 35,000 checks of correct
        kernels (seeds from 80000, 90000 and 100000 of tests.parity.false_alarms) transformers' eager reached 5.05.
    factor: in spreads (`refdiff.oracle.budget.statistics`). Of 9,168 tensors of held-out orders (seeds 5000 to 5023,
        float32, bfloat16 fused and eager, float16; all profiles of numbers) the largest estimate was 3.3 spreads; of
        914 of torch, transformers and jax (seeds 60 and 61 of tests.parity.false_alarms) it was 3.7. That was before
        a spread covered orders left out, which makes it larger: in float16 `degenerate` one of transformers was at 9.9
        of the old spreads, and is at 4.8.
    noise, share: rows that correct kernels may miss by a quarter are uncertain, and 5 % of them are too many.
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
class Thresholds:
    """What is accepted, and from where on something counts as the same, as near or as explained.

    Acceptance, in unit roundoffs u (2⁻²⁴ of float32):
        storage_floor: 1/√12, the rounding of a result that is stored: the least E_r of a row.
        compute_floor: of float32, in which every recipe sums, norms and scales. One operation is off by up to u; rows
            that are alike, such as those of constant values, share its sign, and no mean over rows makes it smaller.
        storage_slope: what the mean of many roundings leaves of one: a tensor has some thousand numbers.
        compute_slope: four float32 operations come after the sums of a row: mean + ε, root, quotient, scale. Where all
            rows are alike each is off by up to u in one direction. `lambda_init_error` is counted apart.
        element_rows, element_units: of E_r and of u |y|: a number is one of a row, and rounded where it is stored.
        narrow_exp: a kernel that stores 16 bits may sum coarser exponentials. torch's flash attention on a CPU is off
            by 2⁻¹⁴·² in the log-sum-exp of equal scores, bfloat16 and float16 alike.
        sample_scores, sample_queries: from so many scores on, so many queries are run in all orders (`row_sample`). All
            rows of fewer take no more than about three seconds.
        sample_scatter: of E_r over its estimate, the largest may be so many times the usual one. It is 1.2 to 3.4 over
            presets, profiles and recipes, and 4 to 8 in float32 where all values are alike.
        lucky_row: of what E_r over its estimate usually is: no row has less. The least was 0.7 of it in `natural`. In
            `extreme` float32 one row had 0.24: there timm was off by 4.4 E_r, allowed 4, and is by 1.6 now.
        linear: a score's error up to which the error of its weight grows as that of the score: exp(0.1) is 1.105.
        sum_terms, sum_members: a sum of many terms is a random walk with a standard deviation of about u/3 ‖terms‖. Of
            1,512 sums of held-out orders (bfloat16 and float16, fused and eager; natural, cancellation, extreme)
            the largest error was 0.65 of the allowance, the usual one 0.1.
        sum_order: of what sums of so many float32 terms are usually off by. Of 192 sums of 320 to 4,096 terms of random
            sign, one after another, the largest error was 4.5 of it.

    Diagnosis, in budgets of a row unless said otherwise:
        near: a quick residual beyond it is not worth a budget of its own.
        apart: two deviations that differ by it in a row are told apart by a case.
        doubtful: a correct name leaves less.
        as_good: an answer that leaves so many times less than another is the better one.
        explained: of the squared error. Zeros explain half of any error that has nothing to do with the truth; of the
            closest singles to outputs of two mistakes 1 in 6 was one of the two below this share, and 5 in 9 above it.
        large_explained: of the squared error: of large inputs what is far off and explains less does not fit.
        nearly_explained: of the squared error: a number that explains as much is shown though it does not pass.
        same_function: of the largest number: two outputs no further apart are one function's, in float64.
        unseen: a deviation that changes a correct row by more is not in the kernel.
        misplaced: two places of the truth that are nearer are not told apart.
        points_away: how many times further than any valid order an output points away from a kernel it is not of.
        points_least: of the way to the other kernel: nobody's roundings are known better.
        near_gradient: root mean square over rows: a gradient this near to a deviation's may be that.
        same_factor: of a factor: two no further apart may be one.
        exact: unit roundoff below which a number that passes is no other one that is near by chance.

    Places of an error (`refdiff.oracle.diagnosis.places`):
        local: what is wrong in more than this share of the rows, and of the columns, is wrong everywhere.
        stands_out: a place is so many times further off than the worst of the rest; an error that is everywhere leaves
            no such gap.
        scattered: more stretches of rows without a pattern are no places: an error that is everywhere shows in as many
            by chance.
        filled: a box of which this share is marked counts as marked: a row of garbage may be right by chance.
        block: the fewest rows, columns or steps of a period that count as a block; fewer may be chance.

    Errors that point one way in a trace (`refdiff.oracle.divergence.systematic_error`), in unit roundoffs unless said
    otherwise:
        fewest_numbers, fewest_rows: of fewer numbers, or rows that are not alike, only the rows are judged.
        rounded_to_zero: in roundings near 0: of smaller rows a whole one may have become 0.
        rounded_alike: rows that are nearer are rounded alike.
        own_spreads: in standard deviations: what roundings of the positions may add up to.
        drawn_spreads: in standard deviations that a few runs show: a Student's t of 6 runs is above it once in 5,000.
        elementary: of float32: functions of a processor or GPU may be off by a few, all of them upwards.
        constants: what a factor on a point that is not in the trace may be: its constant, and a cast that cuts off.
        hidden_share: of a number a: nothing is said where roundings that all went one way could be taken for so much of
            it. Numbers that differ by a few roundings look as if they did not depend on a.
        jump: times: how much the relative error may grow from point to point where nobody knows the rounding.
    """

    limits: Limits = Limits()
    wrong_limits: Limits = Limits(row=4.5, noisy_row=5.75, bulk=2.0, element=4.5, slope=12.0, factor=12.0)
    """Wider than for a correct kernel: nobody knows in which order and where a wrong one rounds."""

    storage_floor: float = 0.29
    compute_floor: float = 1.0
    storage_slope: float = 0.02
    compute_slope: float = 4.0
    element_rows: float = 6.0
    element_units: float = 2.0
    narrow_exp: float = 2.0**-13
    sample_scores: int = 2**20
    sample_queries: int = 48
    sample_scatter: float = 8.0
    lucky_row: float = 2 / 3
    linear: float = 0.1
    sum_terms: float = 3.0
    sum_members: float = 3.0
    sum_order: float = 8.0

    near: float = 30.0
    apart: float = 5.0
    doubtful: float = 1.0
    as_good: float = 2.0
    explained: float = 0.6
    large_explained: float = 0.5
    nearly_explained: float = 0.99
    same_function: float = 1e-9
    unseen: float = 10.0
    misplaced: float = 10.0
    points_away: float = 3.0
    points_least: float = 0.1
    near_gradient: float = 6.0
    same_factor: float = 0.02
    exact: float = 1e-5

    local: float = 0.5
    stands_out: float = 2.0
    scattered: int = 12
    filled: float = 0.75
    block: int = 4

    fewest_numbers: int = 32
    fewest_rows: int = 8
    rounded_to_zero: float = 8.0
    rounded_alike: float = 1 / 8
    own_spreads: float = 4.0
    drawn_spreads: float = 8.0
    elementary: float = 16.0
    constants: float = 2.0
    hidden_share: float = 1 / 8
    jump: float = 16.0


THRESHOLDS = Thresholds()
