"""The error of each row of an output to first order, by which the ensemble of a sample of queries extends to all rows.

The error of a row of one map has two parts. The errors of the weights give a variance of
Σ_s p_s² (1 − p_s)² ‖v_s − v̄‖² σ_s², where σ_s is the relative error of a weight: its own rounding error, and that of
its score, which grows as ‖q‖ ‖k_s‖. The other part is the rounding of the map's output. The errors of both maps and of
λ add up, and the norm magnifies the sum where the maps cancel.

The estimates are right up to a common factor c: the largest ratio of E_r to its estimate over all sampled rows of all
heads. Every other row gets E_r = c times its estimate. The acceptance rule stays valid:

1. A sampled row has the E_r of all orders, as if all rows were run, and at least `least_errors`.
2. Every other row has at least the ratio of the worst sampled row, so correct kernels are no nearer to the limit. E_r
   may be too large by c over the median ratio, which is 1.2 to 3.4 for values that differ. If that exceeds 8
   (`Thresholds.sample_scatter`), all rows are run. The error of a wrong row is larger still. A small error everywhere
   shows in the sampled rows, which the bulk statistic judges alone.
3. Queries for which the first order does not hold are all in the sample: those with score errors of a tenth or more,
   or scores near the end of the type's range. If they are more than half, all rows are run.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from refdiff.backends import ops_for
from refdiff.layers.diff_attention import attention_weights, split_maps
from refdiff.oracle.inputs import VECTORS, kind_of
from refdiff.oracle.inputs.sequences import Inputs, Numpy, select, sequences
from refdiff.oracle.rounding import U32, root_mean_square, safe_ratio
from refdiff.oracle.rounding.evaluation_order import RMS_ROUNDING, lambda_error, lambda_init_error, sum_error
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import (
    AttentionOperands,
    attention_mask,
    compute_lambda,
    head_indices,
    lambda_init,
    prepare_qk,
    query_factor,
    truth_ops,
    use_explicit_mask,
)
from refdiff.oracle.truth.forward import forward, out_shape, project

ROUNDINGS = 2.0
"""How many rounding errors of one size add up in a number: those of q and k, or of a map and of the difference."""


@dataclass(frozen=True)
class RowEstimate:
    """The output, and for each row, (B, h, T), the estimate of its error.

    errors: up to a common factor.
    first_order: where the estimate holds: score errors are small, and nothing is near overflow.
    score_errors: (2, B, h, T), the typical error of a score of each map; ∞ where scores may overflow.
    """

    out: Numpy
    errors: Numpy
    first_order: Numpy
    score_errors: Numpy

    @property
    def known(self) -> Numpy:
        """The estimates where they hold, else 0."""
        return np.where(self.first_order & np.isfinite(self.errors), self.errors, 0.0)

    def sample(self) -> Numpy:
        """Return the queries to run in all orders, ascending, (R,): all if the first order fails for more than half.

        They are those for which it fails, the first, which see few keys, the last, which see most, random others,
        spread evenly, and for each head, or the worst heads, the query with the largest estimate relative to the truth.
        """
        T = self.errors.shape[-1]
        nonlinear = np.any(~self.first_order, axis=(0, 1))
        if 2 * np.sum(nonlinear) > T:
            return np.arange(T)
        share = safe_ratio(self.errors, root_mean_square(self.out)).reshape(-1, T)
        first, last, most = THRESHOLDS.sample_first, THRESHOLDS.sample_last, THRESHOLDS.sample_worst
        chosen = {*np.flatnonzero(nonlinear), *range(first), *range(T - last, T)}
        worst = np.argmax(np.where(nonlinear, 0.0, share), axis=-1)
        order = np.argsort(-share[np.arange(len(worst)), worst], kind="stable")
        chosen |= {*list(dict.fromkeys(worst[order].tolist()))[:most]}
        left = THRESHOLDS.sample_queries - first - last - most
        edges = np.linspace(first, T - last, left + 1).astype(np.int64)
        chosen |= {*np.random.default_rng(T).integers(edges[:-1], edges[1:]).tolist()}
        return np.array(sorted(chosen))

    def extend(self, queries: Numpy, rows: Numpy, counted: Numpy) -> Numpy | None:
        """Return E_r of all rows, (B, h, T), from that of a sample; None if its ratios to the estimates scatter.

        Shapes:
            queries (R,), rows and counted, the sampled rows that may be counted, (B, h, R)
        """
        sampled = self.errors[..., queries]
        ratios = (rows / np.where(sampled > 0, sampled, 1.0))[counted & (sampled > 0)]
        largest = float(np.max(ratios, initial=0.0))
        if ratios.size and largest > THRESHOLDS.sample_scatter * float(np.median(ratios)):
            return None
        return fill_sample(largest * self.errors, queries, rows)


def fill_sample(others: Numpy, queries: Numpy, sampled: Numpy) -> Numpy:
    """Put the values of the sampled queries, (…, R), into those of all, (…, T)."""
    others[..., queries] = sampled
    return others


def estimate_rows(spec: Spec, inputs: Inputs, recipe: Recipe) -> RowEstimate:
    """Estimate the rows of all sequences, those of a layer before its output projection; 0 where there is no key."""
    core = project(spec, inputs, ops_for())
    B, h, T, e = out_shape(spec, core)
    found = RowEstimate(
        np.zeros((B, h, T, e)), np.zeros((B, h, T)), np.ones((B, h, T), dtype=np.bool_), np.zeros((2, B, h, T))
    )
    with np.errstate(over="ignore", invalid="ignore"):
        for part in sequences(core):
            if not part.is_empty:
                one = _estimate_sequence(spec, part.inputs, recipe)
                found.out[part.index], found.errors[part.index] = one.out, one.errors
                found.first_order[part.index] = one.first_order
                found.score_errors[:, *part.index] = one.score_errors
    return found


def least_errors(rows: Numpy, known: Numpy) -> Numpy:
    """Return a lower limit for E_r of each row, (B, h, T), from the median ratio of E_r to its estimate.

    In a row that one rounding decides, all orders may happen to have small errors.
    """
    counted = known > 0
    usual = float(np.median(rows[counted] / known[counted])) if counted.any() else 0.0
    return THRESHOLDS.min_row_ratio * usual * known


def is_large(spec: Spec, inputs: Inputs) -> bool:
    """Whether a sample of queries saves time: for a dense core with many scores and many more queries than a sample.

    All queries must be judged.
    """
    if kind_of(inputs) != "dense" or spec.padded_queries != "computed":
        return False
    B, _, T, _ = inputs["q"].shape
    scores = B * spec.heads * T * inputs["k"].shape[2]
    return bool(scores >= THRESHOLDS.sample_scores and THRESHOLDS.sample_queries <= THRESHOLDS.sample_share * T)


def select_queries(spec: Spec, inputs: Inputs, rows: Numpy) -> tuple[Spec, Inputs]:
    """Return spec and inputs for some queries of a dense core with all keys; an explicit mask says what they see."""
    alone, every = use_explicit_mask(spec, inputs)
    return alone, select(every, slice(None), rows, slice(None))


def _estimate_sequence(spec: Spec, inputs: Inputs, recipe: Recipe) -> RowEstimate:
    """Compute the output of dense core inputs, and estimate the error of each row.

    Equation:
        Var = Σ_maps λ² (u_p² weights² + u_z² scores² + 2 u_o² outputs²) + σ_λ² outputs₂², with λ = 1 for the first
        map. The norm multiplies it by ‖y‖² / ‖o₁ − λ o₂‖²; the rounding of the norm's result and of the output is added
    """
    u = {site: recipe.type_at(site).u for site in ("p", "o", "storage", "accumulate")}
    sum_variance = sum_error(inputs["k"].shape[2], recipe.accumulate) ** 2
    weight_variance = RMS_ROUNDING**2 * (u["p"] ** 2 + ROUNDINGS * U32**2 + recipe.operand_u**2) + sum_variance
    output_variance = RMS_ROUNDING**2 * (ROUNDINGS * u["o"] ** 2 + (4 * u["accumulate"]) ** 2 + recipe.operand_u**2)
    tiles: list[tuple[Numpy, ...]] = []
    out = forward(spec, inputs, truth_ops(), partial(_attend, tiles))
    weights, scores, outputs, heads, lambdas = (
        np.concatenate(x, axis=-1) for x in zip(*tiles, strict=True)
    )  # the first three are (2, B, h, T), for each map, the others (B, h, T)
    score_unit = _score_unit(spec, inputs, recipe)
    first, second = weight_variance * weights**2 + (score_unit * scores) ** 2 + output_variance * outputs**2
    of_lambda = broadcast_lambda(typical_lambda_error(spec, inputs, recipe), lambdas.shape) * outputs[1]
    before = first + lambdas**2 * second + of_lambda**2
    size = root_mean_square(out)
    grown = np.divide(size**2, heads**2, out=np.zeros_like(size), where=heads > 0)
    errors = np.sqrt(before * grown + (output_variance + u["storage"] ** 2 / 4) * size**2)
    tops = {s: recipe.type_at(s).top / THRESHOLDS.overflow_margin for s in (*u, "qk", "norm")}
    reach, top = _reach(spec, inputs), min(tops["qk"], tops["accumulate"])
    capped = 0.0 if spec.softcap is None else (U32 + recipe.tanh_error + recipe.operand_u) * spec.softcap
    score_errors = np.where(reach < THRESHOLDS.overflow_margin * top, score_unit * reach + capped, np.inf)
    small = np.all(score_errors < THRESHOLDS.linear_score_error, axis=0) & (heads**2 < tops["norm"])
    small &= np.all(reach < top, axis=0) & (np.max(np.abs(out), axis=-1) < tops["storage"])
    small &= float(np.max(np.abs(inputs["v"]), initial=0.0)) < tops["o"]
    return RowEstimate(out, np.asarray(errors), np.asarray(small), score_errors)


def _reach(spec: Spec, core: Inputs) -> Numpy:
    """Return the largest ‖q‖ ‖k_s‖ of each row of both maps, (2, B, h, T)."""
    q, k = prepare_qk(spec, core, truth_ops())
    w, seen = head_indices(spec), np.any(attention_mask(spec, core), axis=(1, 2))[:, None]
    lengths = query_factor(spec) * np.linalg.norm(q, axis=-1)
    longest = np.max(np.where(seen, np.linalg.norm(k, axis=-1), 0.0), axis=-1)[..., None]
    return np.stack([lengths[:, w.q1] * longest[:, w.k1], lengths[:, w.q2] * longest[:, w.k2]])


def _score_unit(spec: Spec, core: Inputs, recipe: Recipe) -> Numpy:
    """Return the typical error of a score as a share of ‖q‖ ‖k‖, (1 or B, 1, T).

    A score is the sum of d products of ‖q‖ ‖k‖ / d, over √d. The error of a float32 angle is its position times u,
    except for low frequencies, which are most of them.
    """
    T, S = core["q"].shape[2], core["k"].shape[2]
    position = np.abs(core.get("q_positions", np.arange(S - T, S)[None]))[:, None]
    storage = recipe.type_at("rope").u
    rope = 0.0 if spec.rope == "none" else storage**2 + (U32 * position / 8) ** 2
    rope = rope if spec.qk_norm == "none" else rope + storage**2
    operands = ROUNDINGS**2 * (rope + recipe.operand_u**2 + recipe.scaled_u**2)
    sums = (sum_error(spec.head_dim, recipe.accumulate) / RMS_ROUNDING) ** 2 + 2 * (ROUNDINGS * U32) ** 2
    stored = ROUNDINGS * recipe.type_at("qk").u ** 2 + recipe.tanh_error**2
    return np.asarray(RMS_ROUNDING * np.sqrt(operands + sums + stored + 0 * position) / spec.head_dim)


def typical_lambda_error(spec: Spec, core: Inputs, recipe: Recipe) -> Numpy:
    """Return the typical error of λ of core inputs, in the shape of `compute_lambda`."""
    value, ops = compute_lambda(spec, core, ops_for()), ops_for()
    if spec.lambda_form != "exp":
        return lambda_error(value, recipe.type_at("lam").u)
    terms = [core[q] * core[k] for q, k in (VECTORS[:2], VECTORS[2:])]
    if spec.lambda_per_head:
        terms = [x[None, :, None, None] for x in terms]
    start = lambda_init(spec, ops)
    return np.hypot(lambda_error(value, recipe.type_at("lam").u, terms, start), lambda_init_error(start))


def _attend(tiles: list[tuple[Numpy, ...]], s: AttentionOperands) -> Numpy:
    """Compute the heads of a tile, and append the sizes from which the errors of its rows are estimated to `tiles`.

    These are, for both maps, (2, B, h, T): the norms of the map's error for relative errors σ_s = 1 of weights and for
    σ_s = ‖q‖ ‖k_s‖, and of its output. Then (B, h, T): the norm of the difference and |λ|.
    """
    B, H, T, _ = s.q1.shape
    masks, biases = split_maps(s.mask, H), split_maps(s.bias, H)
    from_mean = np.sum((s.v - np.mean(s.v, axis=2, keepdims=True)) ** 2, axis=-1)
    maps, found = [], []
    for q, k, mask, bias in zip((s.q1, s.q2), (s.k1, s.k2), masks, biases, strict=True):
        p = np.asarray(attention_weights(q, k, mask, bias, causal=s.causal))
        query_norms, key_squares = np.sqrt(np.sum(q**2, axis=-1)), np.sum(k**2, axis=-1)
        moments = p - p * p
        moments *= moments
        sums = np.sqrt(moments @ np.stack([from_mean, from_mean * key_squares], axis=-1))
        maps.append(p)
        found.append((sums[..., 0], sums[..., 1] * query_norms))
    weights, scores = (np.stack(x) for x in zip(*found, strict=True))
    heads: Numpy = (maps[0] - s.lambda_full * maps[1]) @ s.v
    second = maps[1] @ s.v
    outputs = np.linalg.norm(np.stack([heads + s.lambda_full * second, second]), axis=-1)
    lambdas = np.abs(broadcast_lambda(s.lambda_full, (B, H, T)))
    tiles.append((weights, scores, outputs, np.linalg.norm(heads, axis=-1), lambdas))
    return heads


def broadcast_lambda(x: Numpy, shape: tuple[int, ...]) -> Numpy:
    """Broadcast λ, () or (1 or B, h, 1 or T, 1), to (B, h, T)."""
    return np.broadcast_to(x if x.ndim == 0 else x[..., 0], shape)
