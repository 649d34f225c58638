"""Mistakes in the rotation of queries and keys, in λ_init and λ, and in norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.oracle.mistakes.catalogue import UNILM, Call, Mistake, normed


def _first_of_each_pair_rotated(call: Call) -> Any:
    rotated, n = call() + 0, call.cos.shape[-1]
    where = slice(1, 2 * n, 2) if call.interleaved else slice(n, 2 * n)
    rotated[..., where] = call.x[..., where]
    return rotated


def _half_of_head_rotated(call: Call) -> Any:
    n = call.cos.shape[-1] // 2
    return call(cos=call.cos[..., : 2 * n : 2], sin=call.sin[..., : 2 * n : 2]) if n else call()


def _frequencies_for_double_head_dim(call: Call) -> Any:
    frequencies, scale = call(head_dim=2 * call.head_dim)
    return frequencies[: call.head_dim // 2], scale


def _other_rope_theta(call: Call) -> Any:
    base = 500_000.0 if call.parameters.get("rope_theta") == 10_000.0 else 10_000.0
    return call(parameters={**call.parameters, "rope_theta": base})


ROPE_MISTAKES: tuple[Mistake, ...] = (
    Mistake("other_rope_pairing", "RoPE rotates neighbors 2i, 2i + 1 in place of i, i + d/2, or the reverse.", "rope",
            "rope kind", lambda call: call(interleaved=not call.interleaved and call.x.shape[-1] > 1), "F2"),
    Mistake("rope_angle_negated", "RoPE rotates by the opposite angle: earlier tokens act as later ones.", "rope",
            "rope kind", lambda call: call(sin=-call.sin)),
    Mistake("first_of_each_pair_rotated", "RoPE changes only the first dimension of each pair it should rotate.",
            "rope", "rope kind", _first_of_each_pair_rotated),
    Mistake("half_of_head_rotated", "A partial rotary factor of ½: only the first half of each head rotated, "
            "by the frequencies of heads of that size.", "rope", "rope dim", _half_of_head_rotated),
    Mistake("frequencies_for_double_head_dim",
            "RoPE's table for a head of 2d, not split into two: θ_i = base^(−i / d).", "rope_frequencies", "rope dim",
            _frequencies_for_double_head_dim, "B6"),
    Mistake("other_rope_theta", "RoPE's base is 10 000 whatever the config says, or 500 000 where it says 10 000.",
            "rope_frequencies", "rope base", _other_rope_theta),
    Mistake("rope_type_ignored", "RoPE's default frequencies for every rope_type.", "rope_frequencies", "rope base",
            lambda call: call(parameters={"rope_type": "default", "rope_theta": call.parameters["rope_theta"]})),
    Mistake("positions_from_one", "RoPE's positions counted from 1.", "rope_cos_sin", "rope offset",
            lambda call: call(positions=call.positions + 1)),
    Mistake("positions_without_cache_offset",
            "RoPE's positions start at 0 in every call: tokens in the cache are not counted.", "rope_cos_sin",
            "rope offset", lambda call: call(positions=call.positions - call.positions[:, :1]), "B18"),
    Mistake("no_attention_factor",
            "cos and sin not multiplied by the attention factor of yarn and longrope.", "rope_cos_sin", "rope scale",
            lambda call: call(scale=1.0)),
)  # fmt: skip


VLLM_MOTIF = "https://github.com/vllm-project/vllm/blob/4ed70f6b47938c58976ac3f55e33f9bdfc3a9f59/vllm/model_executor/models/motif.py"


def _lambda(call: Call, combine: Callable[[Array, Array], Array]) -> Any:
    """Return combine(λ_q1 · λ_k1, λ_q2 · λ_k2) + λ_init."""
    xp = namespace(call.lambda_q1)
    products = xp.sum(call.lambda_q1 * call.lambda_k1), xp.sum(call.lambda_q2 * call.lambda_k2)
    return combine(*products) + call.lambda_init


def _exp_in_bfloat16(x: Array) -> Array:
    """Return e^x rounded to bfloat16 by Veltkamp's splitting, which keeps the first 8 bits."""
    y = namespace(x).exp(x)
    by = y * (2.0**-7 / namespace(x).finfo(x.dtype).eps + 1)
    return by - (by - y)


LAMBDA_MISTAKES: tuple[Mistake, ...] = (
    Mistake("layer_index_one_too_low", "λ_init = 0.8 − 0.6 exp(−0.3 (l − 1)) with l from 0: −0.01 in the first layer.",
            "lambda_init", "lambda_init layer", lambda call: 0.8 - (0.8 - call()) * 2.718281828459045**0.3, "F3",
            VLLM_MOTIF),
    Mistake("layer_index_from_one", "λ_init = 0.8 − 0.6 exp(−0.3 l) with l from 1.", "lambda_init", "lambda_init layer",
            lambda call: call(layer=call.layer + 1), "F3", VLLM_MOTIF),
    Mistake("lambda_init_is_1", "λ_init = 1 in every layer: attention is multiplied by 0.", "lambda_init",
            "lambda_init constant", lambda _: 1.0, "B10"),
    Mistake("lambda_init_is_08", "λ_init = 0.8 in every layer.", "lambda_init", "lambda_init constant", lambda _: 0.8,
            "B10"),
    Mistake("no_exponentials", "λ = λ_q1 · λ_k1 − λ_q2 · λ_k2 + λ_init, without exponentials.", "diff_lambda",
            "lambda form", lambda call: _lambda(call, lambda a, b: a - b), "B4"),
    Mistake("no_lambda_init", "λ_init not added to λ.", "diff_lambda", "lambda form",
            lambda call: call() - call.lambda_init),
    Mistake("lambda_init_only", "λ = λ_init, nothing learned.", "diff_lambda", "lambda form",
            lambda call: _lambda(call, lambda a, _: 0 * a), "B4"),
    Mistake("exponentials_added", "The exponentials of λ added, not subtracted.", "diff_lambda", "lambda form",
            lambda call: _lambda(call, lambda a, b: namespace(a).exp(a) + namespace(b).exp(b))),
    Mistake("exponential_of_difference", "λ = exp(λ_q1 · λ_k1 − λ_q2 · λ_k2) + λ_init.", "diff_lambda",
            "lambda form", lambda call: _lambda(call, lambda a, b: namespace(a).exp(a - b))),
    Mistake("mean_instead_of_dot_product", "The mean of λ_q λ_k in place of the sum.", "diff_lambda", "lambda form",
            lambda call: call(lambda_q1=call.lambda_q1 / call.lambda_q1.shape[0],
                              lambda_q2=call.lambda_q2 / call.lambda_q1.shape[0])),
    Mistake("lambda_vectors_crossed", "λ_q1 · λ_k2 and λ_q2 · λ_k1 in place of λ_q1 · λ_k1 and λ_q2 · λ_k2.",
            "diff_lambda", "lambda form", lambda call: call(lambda_k1=call.lambda_k2, lambda_k2=call.lambda_k1)),
    Mistake("exponentials_rounded_to_bfloat16", "Each exponential rounded to bfloat16 before the subtraction, which is "
            "correct for a bfloat16 model of Hugging Face.", "diff_lambda", "lambda rounding",
            lambda call: _lambda(call, lambda a, b: _exp_in_bfloat16(a) - _exp_in_bfloat16(b)), "F7"),
    Mistake("sigmoid_of_lambda", "σ(λ) in place of λ, as in v2.", "diff_lambda", "v1 or v2",
            lambda call: 1 / (1 + namespace(call.lambda_q1).exp(-call()))),
    Mistake("v2_no_sigmoid", "λ = x W_λ without the sigmoid.", "diff_lambda_v2", "v1 or v2",
            lambda call: call(ops=call.parts(activation=lambda z, name: z)), "B3"),
)  # fmt: skip


PAPER = ("diff_heads_paper",)


def _affine(y: Array, weight: Array | None, eps: float = 0.0) -> Array:
    """Return y ⊙ w, for use in place of a norm."""
    return y if weight is None else y * weight


def _epsilon_outside_sqrt(call: Call) -> Any:
    x, xp = call.x, namespace(call.x)
    return _affine(x / (xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True)) + call.eps), call.weight)


def _norm_over_half_head(call: Call) -> Any:
    def halves(x: Array, weight: Array | None, eps: float) -> Array:
        xp = namespace(x)
        split = xp.reshape(x, (*x.shape[:-1], 2, x.shape[-1] // 2))
        return _affine(xp.reshape(normed(split, eps), x.shape), weight)

    return call(ops=call.parts(rms_norm=halves))


NORM_MISTAKES: tuple[Mistake, ...] = (
    Mistake("layer_norm", "LayerNorm in place of RMSNorm: the mean is subtracted first.", "rms_norm", "norm kind",
            lambda call: call(x=call.x - namespace(call.x).mean(call.x, axis=-1, keepdims=True)), "B9"),
    Mistake("norm_by_sum_of_squares", "x / √(Σ x² + ε): a factor of √D too small.", "rms_norm", "norm kind",
            lambda call: call(eps=call.eps / call.x.shape[-1]) / call.x.shape[-1] ** 0.5),
    Mistake("epsilon_outside_sqrt", "x / (√mean x² + ε).", "rms_norm", "eps", _epsilon_outside_sqrt),
    Mistake("no_epsilon", "ε = 0 in the norm.", "rms_norm", "eps", lambda call: call(eps=1e-30)),
    Mistake("no_norm_weight", "The norm without its learned weight.", "rms_norm", "norm weight",
            lambda call: call(weight=None), "F4", f"{UNILM}/pull/1644"),
    Mistake("one_plus_norm_weight", "The norm's weight is 1 + w, as in Gemma, where w is meant.", "rms_norm",
            "norm weight", lambda call: call(weight=None if call.weight is None else 1 + call.weight)),
    Mistake("no_sub_norm_weight", "The norm after attention without its weight, as in DiffLlama.",
            "diff_heads_paper", "norm weight", lambda call: call(weight=namespace(call.q).ones_like(call.weight)),
            "F4"),
    Mistake("default_epsilon", "ε = 10⁻⁶, the default of unilm's RMSNorm, where its attention passes 10⁻⁵.",
            "diff_heads_paper", "eps", lambda call: call() if "eps" in call.given else call(eps=1e-6), "F4",
            f"{UNILM}/blob/master/Diff-Transformer/rms_norm.py"),
    Mistake("norm_over_all_heads", "One norm over all heads of a token.", "diff_heads_hf", "norm extent",
            lambda call: call(ops=call.parts(rms_norm=lambda x, weight, eps: _affine(normed(x, eps, (1, 3)), weight))),
            "B7", also=PAPER),
    Mistake("norm_over_half_head", "One norm for each half (d) of a head (2d).", "diff_heads_hf", "norm extent",
            _norm_over_half_head, also=PAPER),
    Mistake("no_norm_after_attention", "No norm after attention.", "diff_heads_hf", "norm kind",
            lambda call: call(ops=call.parts(rms_norm=_affine)), "B8", also=PAPER),
    Mistake("norm_on_q_and_k", "The norm applied to Q and K, not to the output of attention.", "diff_heads_hf",
            "norm kind",
            lambda call: call(q=normed(call.q, 1e-5), k=normed(call.k, 1e-5), ops=call.parts(rms_norm=_affine)), "B8",
            also=PAPER),
    Mistake("no_output_scale", "The output not multiplied by 1 − λ_init.", "diff_heads_hf", "output scale",
            lambda call: call(lambda_init=0.0), "B10", also=PAPER),
    Mistake("scaled_by_lambda_init", "The output multiplied by λ_init, where 1 − λ_init is meant.", "diff_heads_hf",
            "output scale", lambda call: call(lambda_init=1 - call.lambda_init), also=PAPER),
    Mistake("scaled_by_one_minus_lambda", "The output multiplied by 1 − λ, where 1 − λ_init is meant.", "diff_heads_hf",
            "output scale", lambda call: call() if call.lambda_.ndim else call(lambda_init=call.lambda_), also=PAPER),
)  # fmt: skip
