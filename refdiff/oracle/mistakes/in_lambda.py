"""Mistakes in λ_init and λ."""

from __future__ import annotations

from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.oracle.mistakes.catalogue import MOTIF, Mistake, mistake, with_parts

LAMBDA_MISTAKES: list[Mistake] = []
VLLM_MOTIF = "https://github.com/vllm-project/vllm/blob/4ed70f6b47938c58976ac3f55e33f9bdfc3a9f59/vllm/model_executor/models/motif.py"
VLLM_LAMBDA = "https://github.com/vllm-project/vllm/pull/44963"
JAYKEF = "https://github.com/Jaykef/ai-algorithms/issues/1"


@mistake(LAMBDA_MISTAKES, "lambda_init", "linit base", "F3", VLLM_MOTIF)
def layers_one_too_low(right: Any, layer: int) -> Any:
    """exp(−0.3 (l − 1)) with l from 0: λ_init is −0.01 in the first layer."""
    return 0.8 - (0.8 - right(layer)) * 2.718281828459045**0.3


@mistake(LAMBDA_MISTAKES, "lambda_init", "linit base", "F3", VLLM_MOTIF)
def layers_from_one(right: Any, layer: int) -> Any:
    """exp(−0.3 l) with l from 1."""
    return right(layer + 1)


@mistake(LAMBDA_MISTAKES, "lambda_init", "linit const", "B10", MOTIF)
def lambda_init_is_1(right: Any, layer: int) -> Any:
    """1 in every layer: attention is multiplied by 0."""
    return 1.0


@mistake(LAMBDA_MISTAKES, "lambda_init", "linit const", "B10", MOTIF)
def lambda_init_is_08(right: Any, layer: int) -> Any:
    """0.8 in every layer."""
    return 0.8


@mistake(LAMBDA_MISTAKES, "diff_lambda", "lam form", "B4", JAYKEF)
def no_exponentials(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, start: float) -> Any:
    """λ_q1 · λ_k1 − λ_q2 · λ_k2 + λ_init."""
    xp = namespace(q1)
    return xp.sum(q1 * k1) - xp.sum(q2 * k2) + start


@mistake(LAMBDA_MISTAKES, "diff_lambda", "lam form")
def no_start(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, start: float) -> Any:
    """λ_init not added."""
    return right(q1, k1, q2, k2, start) - start


@mistake(LAMBDA_MISTAKES, "diff_lambda", "lam form", "B4", JAYKEF)
def start_alone(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, start: float) -> Any:
    """λ = λ_init, nothing learned."""
    return 0 * namespace(q1).sum(q1 * k1) + start


@mistake(LAMBDA_MISTAKES, "diff_lambda", "lam form")
def exponentials_added(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, start: float) -> Any:
    """A plus between the exponentials."""
    xp = namespace(q1)
    return xp.exp(xp.sum(q1 * k1)) + xp.exp(xp.sum(q2 * k2)) + start


@mistake(LAMBDA_MISTAKES, "diff_lambda", "lam form")
def one_exponential_of_the_difference(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, start: float) -> Any:
    """exp(λ_q1 · λ_k1 − λ_q2 · λ_k2) + λ_init."""
    xp = namespace(q1)
    return xp.exp(xp.sum(q1 * k1) - xp.sum(q2 * k2)) + start


@mistake(LAMBDA_MISTAKES, "diff_lambda", "lam form")
def mean_for_the_dot_product(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, start: float) -> Any:
    """The mean of λ_q λ_k where their sum is meant."""
    return right(q1 / q1.shape[0], k1, q2 / q1.shape[0], k2, start)


@mistake(LAMBDA_MISTAKES, "diff_lambda", "lam form")
def lambda_vectors_crossed(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, start: float) -> Any:
    """λ_q1 · λ_k2 and λ_q2 · λ_k1."""
    return right(q1, k2, q2, k1, start)


@mistake(LAMBDA_MISTAKES, "diff_lambda", "lam rounding", "F7", VLLM_LAMBDA)
def exponentials_rounded_to_bfloat16(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, start: float) -> Any:
    """Each exponential rounded to eight bits before the subtraction, as it is right for a bfloat16 model of HF's."""
    xp = namespace(q1)

    def rounded(x: Array) -> Array:  # what is left of x after 2^m + 1 times it has pushed out all but its first bits
        by = x * (2.0**-7 / xp.finfo(x.dtype).eps + 1)
        return by - (by - x)

    return rounded(xp.exp(xp.sum(q1 * k1))) - rounded(xp.exp(xp.sum(q2 * k2))) + start


@mistake(LAMBDA_MISTAKES, "diff_lambda", "V2-vs-V1")
def squashed_as_in_v2(right: Any, q1: Array, k1: Array, q2: Array, k2: Array, start: float) -> Any:
    """σ(λ)."""
    return 1 / (1 + namespace(q1).exp(-right(q1, k1, q2, k2, start)))


@mistake(LAMBDA_MISTAKES, "diff_lambda_v2", "V2-vs-V1", "B3", "https://github.com/microsoft/unilm/pull/1736")
def v2_without_the_sigmoid(right: Any, x: Array, weight: Array, **options: Any) -> Any:
    """λ = x W_λ as it is, of any size and sign."""
    return right(x, weight, **with_parts(options, activation=lambda z, name: z))
