"""Mistakes in the norm and the scale after attention, and in norms everywhere."""

from __future__ import annotations

from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.oracle.mistakes.catalogue import HF_FIRST, MOTIF, UNILM, Call, Mistake

PAPER = ("diff_heads_paper",)
DAT = "https://huggingface.co/spaces/hudsongouge/DAT-Byte-Demo/blob/main/inference/optimized_diffattn.py"


def _rms(x: Array, eps: float, axis: Any = -1) -> Array:
    xp = namespace(x)
    return x / xp.sqrt(xp.mean(x * x, axis=axis, keepdims=True) + eps)


def _weighed(y: Array, weight: Array | None, eps: float = 0.0) -> Array:
    """y ⊙ w: what is left of a norm that norms nothing."""
    return y if weight is None else y * weight


def _epsilon_outside_the_root(call: Call) -> Any:
    x, xp = call.x, namespace(call.x)
    return _weighed(x / (xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True)) + call.eps), call.weight)


def _norm_over_half_of_a_head(call: Call) -> Any:
    def halves(x: Array, weight: Array | None, eps: float) -> Array:
        xp = namespace(x)
        split = xp.reshape(x, (*x.shape[:-1], 2, x.shape[-1] // 2))
        return _weighed(xp.reshape(_rms(split, eps), x.shape), weight)

    return call(ops=call.parts(rms_norm=halves))


NORM_MISTAKES: tuple[Mistake, ...] = (
    Mistake("layer_norm", "The mean taken away first.", "rms_norm", "norm kind",
            lambda call: call(x=call.x - namespace(call.x).mean(call.x, axis=-1, keepdims=True)), "B9", DAT),
    Mistake("norm_by_the_sum_of_squares", "x / |x|, √D too small.", "rms_norm", "norm kind",
            lambda call: call() / call.x.shape[-1] ** 0.5),
    Mistake("epsilon_outside_the_root", "x / (√mean x² + ε).", "rms_norm", "eps", _epsilon_outside_the_root),
    Mistake("epsilon_left_out", "ε = 0.", "rms_norm", "eps", lambda call: call(eps=1e-30)),
    Mistake("weight_left_out", "The learned weight not used.", "rms_norm", "affine", lambda call: call(weight=None),
            "F4", f"{UNILM}/pull/1644"),
    Mistake("weight_counted_from_one", "1 + w, as in Gemma, where w is meant.", "rms_norm", "affine",
            lambda call: call(weight=None if call.weight is None else 1 + call.weight)),
    Mistake("weight_of_the_sub_norm_left_out", "The norm after attention without its weight, as in DiffLlama.",
            "diff_heads_paper", "affine", lambda call: call(weight=namespace(call.q).ones_like(call.weight)), "F4",
            f"{UNILM}/pull/1646"),
    Mistake("another_default_epsilon", "10⁻⁶, the default of unilm's class, where its attention gives 10⁻⁵.",
            "diff_heads_paper", "eps", lambda call: call() if "eps" in call.given else call(eps=1e-6), "F4",
            f"{UNILM}/blob/master/Diff-Transformer/rms_norm.py"),
    Mistake("norm_over_all_heads", "One norm for the heads of a token together.", "diff_heads_hf", "norm extent",
            lambda call: call(ops=call.parts(rms_norm=lambda x, weight, eps: _weighed(_rms(x, eps, (1, 3)), weight))),
            "B7", HF_FIRST, PAPER),
    Mistake("norm_over_half_of_a_head", "A norm for each d of a head's 2d.", "diff_heads_hf", "norm extent",
            _norm_over_half_of_a_head, also=PAPER),
    Mistake("norm_after_attention_left_out", "No norm after attention.", "diff_heads_hf", "norm kind",
            lambda call: call(ops=call.parts(rms_norm=_weighed)), "B8", MOTIF, PAPER),
    Mistake("norm_of_queries_and_keys", "The sub-norm on Q and K, not on what attention gives.", "diff_heads_hf",
            "norm kind",
            lambda call: call(q=_rms(call.q, 1e-5), k=_rms(call.k, 1e-5), ops=call.parts(rms_norm=_weighed)), "B8",
            MOTIF, PAPER),
    Mistake("scale_left_out", "Not multiplied by 1 − λ_init.", "diff_heads_hf", "post scale",
            lambda call: call(lambda_init=0.0), "B10", MOTIF, PAPER),
    Mistake("scaled_by_lambda_init", "Multiplied by λ_init.", "diff_heads_hf", "post scale",
            lambda call: call(lambda_init=1 - call.lambda_init), also=PAPER),
    Mistake("scaled_by_one_minus_lambda", "Multiplied by 1 − λ, where 1 − λ_init is meant.", "diff_heads_hf",
            "post scale", lambda call: call() if call.lambda_.ndim else call(lambda_init=call.lambda_), also=PAPER),
)  # fmt: skip
