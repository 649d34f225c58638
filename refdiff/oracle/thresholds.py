"""Every threshold of the oracle, with the evidence for its value."""

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
    factor: in multiples of `CommonFactor.spread`. The largest estimate was 3.3 in 9,168 tensors of held-out orders
        (seeds 5000 to 5023; float32, bfloat16 fused and eager, float16; all profiles of numbers). It was 3.7 in 914
        tensors of torch, transformers and JAX (seeds 60 and 61 of tests.parity.false_alarms). Since then the spread
        also covers orders that were left out, and is larger: a float16 `degenerate` case of transformers went from 9.9
        to 4.8.
    noise: a row is uncertain if E_r is a larger share of it.
    share: the verdict is inconclusive if a larger share of the rows is uncertain.
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
    """The constants of acceptance, diagnosis and traces.

    Acceptance; u is the unit roundoff of the storage type, u₃₂ = 2⁻²⁴ that of float32:
        storage_floor: in u. E_r is at least 1/√12 u of the row, the standard deviation of one rounding.
        compute_floor: in u₃₂. Every recipe sums, norms and scales in float32, where one operation is wrong by up to
            u₃₂. Equal rows, such as those of constant values, share its sign, so that no mean over rows reduces it.
        storage_slope: in u. The roundings of some thousand stored numbers average to this.
        compute_slope: in u₃₂. After the sums of a row come four float32 operations: mean + ε, root, quotient, scale. In
            equal rows their errors have one sign. `lambda_init_error` is counted separately.
        element_rows, element_units: one number may differ by so many E_r of its row, plus so many u |y| for storing it.
        narrow_exp: error of a log-sum-exp, in nats. Kernels that store 16 bits may use coarser exponentials. On equal
            scores the error of torch's flash attention on a CPU is 2⁻¹⁴·², in bfloat16 and float16.
        sample_scores: outputs with at least so many scores are judged by a sample of queries (`row_sample`). All rows
            of smaller ones take about three seconds at most.
        sample_queries: how many queries the sample has.
        sample_scatter: the largest ratio of E_r to its estimate, over the median ratio. It was 1.2 to 3.4 over presets,
            profiles and recipes, and 4 to 8 in float32 where all values are equal.
        min_row_ratio: the least ratio of E_r to its estimate, over the median ratio. The smallest was 0.7 in `natural`.
            In `extreme` float32 one row had 0.24: there timm reached 4.4 E_r with 4 allowed, and 1.6 E_r since.
        linear_score_error: up to this error of a score, the error of its weight is linear in it: exp(0.1) is 1.105.
        sum_terms: in u ‖terms‖₂. The rounding errors of a long sum are a random walk with a standard deviation of about
            u/3 ‖terms‖₂.
        sum_members: in multiples of the largest error of a member. Of 1,512 sums of held-out orders (bfloat16 and
            float16, fused and eager; natural, cancellation, extreme) the largest error was 0.65 of what is allowed, and
            a typical one 0.1.
        sum_order: in multiples of `sum_error`. Of 192 sums of 320 to 4,096 terms of random sign, added one after
            another, the largest error was 4.5.

    Diagnosis; residuals are errors in multiples of E_r:
        quick_residual: a deviation with a larger quick residual does not get a budget of its own.
        case_separation: a case tells two deviations apart if their outputs differ by more in some row, in E_r.
        correct_residual: the right name leaves less. If one leaves more, fitted numbers are tried as well.
        better_ratio: an answer is better than another if it leaves so many times less error.
        explained: share of the squared error that a candidate must explain to be shown. Zeros explain half of any error
            that is unrelated to the truth. For outputs with two mistakes, the closest single was one of the two in 1 of
            6 cases below this share, and in 5 of 9 above it. Of 28 outputs with three mistakes that have names once one
            field of the spec is changed, every field was in a candidate that explains 67 % or more.
        large_explained: the same for large inputs: a candidate that explains less is not judged on the whole.
        first_field: share of the squared error that the best field of the spec must explain alone, for a second one to
            be fitted beside it. In 48 outputs with two wrong fields it explained 52 % or more.
        nearly_explained: a fitted number that explains this share is shown although the output does not pass with it.
        same_function: two float64 outputs closer than this share of the largest number are equal.
        max_change: in E_r. A deviation that changes a correct row by more is not in the kernel.
        place_separation: in E_r. Two places of the truth that are closer cannot be told apart.
        projection_ratio: an output points to another function if its projection is so many times that of any order.
        min_projection: the least such projection, as a share of the way. Nobody's rounding errors are known better.
        gradient_residual: root mean square over rows, in E_r. A gradient this near to a deviation's may be that.
        same_factor: factors, or fitted numbers of heads, that differ by a smaller share are taken for one.
        exact_unit: in types with a smaller unit roundoff, a fitted number that passes is not near by chance.

    Places of an error (`refdiff.oracle.diagnosis.places`):
        local_share: an error in a larger share of the rows, or columns, is everywhere.
        place_contrast: a place has so many times the error of the worst row elsewhere. An error that is everywhere
            leaves no such gap.
        max_places: an error in more separate stretches of rows without a pattern is everywhere: chance marks as many.
        filled_share: a box counts as marked if this share of it is. A row of garbage may be right by chance.
        min_block: the fewest rows, columns or steps of a period that form a block. Fewer may be chance.

    Systematic errors in a trace (`refdiff.oracle.divergence.systematic_error`), in unit roundoffs unless noted:
        min_numbers, min_rows: with fewer numbers, or fewer distinct rows, only single rows are judged.
        min_roundings: in the rounding error of numbers near 0. A smaller row may have been rounded to 0 as a whole.
        alike_distance: rows that differ by less are rounded alike.
        position_spreads: standard deviations that the rounding of all positions may add up to.
        drawn_spreads: standard deviations, estimated from 6 runs. Student's t exceeds it once in 5,000 times.
        elementary_error: in u₃₂. A processor's or GPU's exp may be wrong by a few, always in one direction.
        constant_error: error of a constant factor at a point that is not in the trace: its own rounding and a
            truncating cast.
        hidden_share: share of a constant. Nothing is reported where one-sided rounding errors could look like an error
            of this size in it; numbers that differ by few roundoffs seem not to depend on it.
        error_growth: largest growth of the relative error from one point to the next where the rounding is unknown.
    """

    limits: RowLimits = RowLimits()
    wrong_limits: RowLimits = RowLimits(row=4.5, noisy_row=5.75, bulk=2.0, element=4.5, slope=12.0, factor=12.0)
    """Looser limits for naming a mistake: in which order a wrong kernel rounds, and where, is unknown."""

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
    min_row_ratio: float = 2 / 3
    linear_score_error: float = 0.1
    sum_terms: float = 3.0
    sum_members: float = 3.0
    sum_order: float = 8.0

    quick_residual: float = 30.0
    case_separation: float = 5.0
    correct_residual: float = 1.0
    better_ratio: float = 2.0
    explained: float = 0.6
    large_explained: float = 0.5
    first_field: float = 0.25
    nearly_explained: float = 0.99
    same_function: float = 1e-9
    max_change: float = 10.0
    place_separation: float = 10.0
    projection_ratio: float = 3.0
    min_projection: float = 0.1
    gradient_residual: float = 6.0
    same_factor: float = 0.02
    exact_unit: float = 1e-5

    local_share: float = 0.5
    place_contrast: float = 2.0
    max_places: int = 12
    filled_share: float = 0.75
    min_block: int = 4

    min_numbers: int = 32
    min_rows: int = 8
    min_roundings: float = 8.0
    alike_distance: float = 1 / 8
    position_spreads: float = 4.0
    drawn_spreads: float = 8.0
    elementary_error: float = 16.0
    constant_error: float = 2.0
    hidden_share: float = 1 / 8
    error_growth: float = 16.0


THRESHOLDS = Thresholds()
