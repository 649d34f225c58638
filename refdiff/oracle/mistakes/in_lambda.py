"""Mistakes in λ_init and λ."""

from __future__ import annotations

from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.oracle.mistakes.catalogue import MOTIF, Call, Mistake

VLLM_MOTIF = "https://github.com/vllm-project/vllm/blob/4ed70f6b47938c58976ac3f55e33f9bdfc3a9f59/vllm/model_executor/models/motif.py"
VLLM_LAMBDA = "https://github.com/vllm-project/vllm/pull/44963"
JAYKEF = "https://github.com/Jaykef/ai-algorithms/issues/1"


def _products(call: Call) -> tuple[Array, Array]:
    """λ_q1 · λ_k1 and λ_q2 · λ_k2."""
    xp = namespace(call.lambda_q1)
    return xp.sum(call.lambda_q1 * call.lambda_k1), xp.sum(call.lambda_q2 * call.lambda_k2)


def _no_exponentials(call: Call) -> Any:
    first, second = _products(call)
    return first - second + call.lambda_init


def _exponentials_added(call: Call) -> Any:
    first, second = map(namespace(call.lambda_q1).exp, _products(call))
    return first + second + call.lambda_init


def _one_exponential_of_the_difference(call: Call) -> Any:
    first, second = _products(call)
    return namespace(call.lambda_q1).exp(first - second) + call.lambda_init


def _mean_for_the_dot_product(call: Call) -> Any:
    d = call.lambda_q1.shape[0]
    return call(lambda_q1=call.lambda_q1 / d, lambda_q2=call.lambda_q2 / d)


def _exponentials_rounded_to_bfloat16(call: Call) -> Any:
    xp = namespace(call.lambda_q1)

    def rounded(x: Array) -> Array:  # what is left of x after 2^m + 1 times it has pushed out all but its first bits
        by = x * (2.0**-7 / xp.finfo(x.dtype).eps + 1)
        return by - (by - x)

    first, second = (rounded(xp.exp(x)) for x in _products(call))
    return first - second + call.lambda_init


LAMBDA_MISTAKES: tuple[Mistake, ...] = (
    Mistake("layers_one_too_low", "exp(−0.3 (l − 1)) with l from 0: λ_init is −0.01 in the first layer.", "lambda_init",
            "linit base", lambda call: 0.8 - (0.8 - call()) * 2.718281828459045**0.3, "F3", VLLM_MOTIF),
    Mistake("layers_from_one", "exp(−0.3 l) with l from 1.", "lambda_init", "linit base",
            lambda call: call(layer=call.layer + 1), "F3", VLLM_MOTIF),
    Mistake("lambda_init_is_1", "1 in every layer: attention is multiplied by 0.", "lambda_init", "linit const",
            lambda _: 1.0, "B10", MOTIF),
    Mistake("lambda_init_is_08", "0.8 in every layer.", "lambda_init", "linit const", lambda _: 0.8, "B10", MOTIF),
    Mistake("no_exponentials", "λ_q1 · λ_k1 − λ_q2 · λ_k2 + λ_init.", "diff_lambda", "lam form", _no_exponentials, "B4",
            JAYKEF),
    Mistake("no_start", "λ_init not added.", "diff_lambda", "lam form", lambda call: call() - call.lambda_init),
    Mistake("start_alone", "λ = λ_init, nothing learned.", "diff_lambda", "lam form",
            lambda call: 0 * _products(call)[0] + call.lambda_init, "B4", JAYKEF),
    Mistake("exponentials_added", "A plus between the exponentials.", "diff_lambda", "lam form", _exponentials_added),
    Mistake("one_exponential_of_the_difference", "exp(λ_q1 · λ_k1 − λ_q2 · λ_k2) + λ_init.", "diff_lambda", "lam form",
            _one_exponential_of_the_difference),
    Mistake("mean_for_the_dot_product", "The mean of λ_q λ_k where their sum is meant.", "diff_lambda", "lam form",
            _mean_for_the_dot_product),
    Mistake("lambda_vectors_crossed", "λ_q1 · λ_k2 and λ_q2 · λ_k1.", "diff_lambda", "lam form",
            lambda call: call(lambda_k1=call.lambda_k2, lambda_k2=call.lambda_k1)),
    Mistake("exponentials_rounded_to_bfloat16", "Each exponential rounded to eight bits before the subtraction, as it "
            "is right for a bfloat16 model of HF's.", "diff_lambda", "lam rounding", _exponentials_rounded_to_bfloat16,
            "F7", VLLM_LAMBDA),
    Mistake("squashed_as_in_v2", "σ(λ).", "diff_lambda", "V2-vs-V1",
            lambda call: 1 / (1 + namespace(call.lambda_q1).exp(-call()))),
    Mistake("v2_without_the_sigmoid", "λ = x W_λ as it is, of any size and sign.", "diff_lambda_v2", "V2-vs-V1",
            lambda call: call(ops=call.parts(activation=lambda z, name: z)), "B3",
            "https://github.com/microsoft/unilm/pull/1736"),
)  # fmt: skip
