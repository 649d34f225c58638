"""Mistakes in the norm and the scale after attention, and in norms everywhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from refdiff.arrays import Array, namespace
from refdiff.oracle.mistakes.catalogue import HF_FIRST, MOTIF, UNILM, Mistake, mistake, with_parts

NORM_MISTAKES: list[Mistake] = []
PAPER = ("diff_heads_paper",)
DAT = "https://huggingface.co/spaces/hudsongouge/DAT-Byte-Demo/blob/main/inference/optimized_diffattn.py"


def _rms(x: Array, eps: float, axis: Any = -1) -> Array:
    xp = namespace(x)
    return x / xp.sqrt(xp.mean(x * x, axis=axis, keepdims=True) + eps)


def _weighed(y: Array, weight: Array | None) -> Array:
    return y if weight is None else y * weight


@mistake(NORM_MISTAKES, "rms_norm", "norm kind", "B9", DAT)
def layer_norm(right: Any, x: Array, weight: Array | None, eps: float) -> Any:
    """The mean taken away first."""
    return right(x - namespace(x).mean(x, axis=-1, keepdims=True), weight, eps)


@mistake(NORM_MISTAKES, "rms_norm", "norm kind")
def norm_by_the_sum_of_squares(right: Any, x: Array, weight: Array | None, eps: float) -> Any:
    """x / |x|, √D too small."""
    return right(x, weight, eps) / x.shape[-1] ** 0.5


@mistake(NORM_MISTAKES, "rms_norm", "eps")
def epsilon_outside_the_root(right: Any, x: Array, weight: Array | None, eps: float) -> Any:
    """x / (√mean x² + ε)."""
    xp = namespace(x)
    return _weighed(x / (xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True)) + eps), weight)


@mistake(NORM_MISTAKES, "rms_norm", "eps")
def epsilon_left_out(right: Any, x: Array, weight: Array | None, eps: float) -> Any:
    """ε = 0."""
    return right(x, weight, 1e-30)


@mistake(NORM_MISTAKES, "rms_norm", "affine", "F4", f"{UNILM}/pull/1644")
def weight_left_out(right: Any, x: Array, weight: Array | None, eps: float) -> Any:
    """The learned weight not used."""
    return right(x, None, eps)


@mistake(NORM_MISTAKES, "rms_norm", "affine")
def weight_counted_from_one(right: Any, x: Array, weight: Array | None, eps: float) -> Any:
    """1 + w, as in Gemma, where w is meant."""
    return right(x, None if weight is None else 1 + weight, eps)


@mistake(NORM_MISTAKES, "diff_heads_paper", "affine", "F4", f"{UNILM}/pull/1646")
def weight_of_the_sub_norm_left_out(
    right: Any, q: Array, k: Array, v: Array, lambda_: Array, weight: Array, *rest: Any, **options: Any
) -> Any:
    """The norm after attention without its weight, as in DiffLlama."""
    return right(q, k, v, lambda_, namespace(q).ones_like(weight), *rest, **options)


@mistake(NORM_MISTAKES, "diff_heads_paper", "eps", "F4", f"{UNILM}/blob/master/Diff-Transformer/rms_norm.py")
def another_default_epsilon(
    right: Any, q: Array, k: Array, v: Array, lambda_: Array, weight: Array, lambda_init: float, eps: float = 1e-6,
    *see: Any, **options: Any,
) -> Any:  # fmt: skip
    """10⁻⁶, the default of unilm's class, where its attention gives 10⁻⁵."""
    return right(q, k, v, lambda_, weight, lambda_init, eps, *see, **options)


@mistake(NORM_MISTAKES, "diff_heads_hf", "norm extent", "B7", HF_FIRST, PAPER)
def norm_over_all_heads(right: Any, *args: Any, **options: Any) -> Any:
    """One norm for the heads of a token together."""
    return right(*args, **with_parts(options, rms_norm=lambda x, weight, eps: _weighed(_rms(x, eps, (1, 3)), weight)))


@mistake(NORM_MISTAKES, "diff_heads_hf", "norm extent", also=PAPER)
def norm_over_half_of_a_head(right: Any, *args: Any, **options: Any) -> Any:
    """A norm for each d of a head's 2d."""

    def halves(x: Array, weight: Array | None, eps: float) -> Array:
        xp = namespace(x)
        split = xp.reshape(x, (*x.shape[:-1], 2, x.shape[-1] // 2))
        return _weighed(xp.reshape(_rms(split, eps), x.shape), weight)

    return right(*args, **with_parts(options, rms_norm=halves))


@mistake(NORM_MISTAKES, "diff_heads_hf", "norm kind", "B8", MOTIF, PAPER)
def norm_after_attention_left_out(right: Any, *args: Any, **options: Any) -> Any:
    """No norm after attention."""
    return right(*args, **with_parts(options, rms_norm=lambda x, weight, eps: _weighed(x, weight)))


@mistake(NORM_MISTAKES, "diff_heads_hf", "norm kind", "B8", MOTIF, PAPER)
def norm_of_queries_and_keys(right: Any, q: Array, k: Array, *rest: Any, **options: Any) -> Any:
    """The sub-norm on Q and K, not on what attention gives."""
    without = with_parts(options, rms_norm=lambda x, weight, eps: _weighed(x, weight))
    return right(_rms(q, 1e-5), _rms(k, 1e-5), *rest, **without)


@mistake(NORM_MISTAKES, "diff_heads_hf", "post scale", "B10", MOTIF, PAPER)
def scale_left_out(right: Any, *args: Any, **options: Any) -> Any:
    """Not multiplied by 1 − λ_init."""
    return right(*_with_scale(args, lambda start: 0.0), **options)


@mistake(NORM_MISTAKES, "diff_heads_hf", "post scale", also=PAPER)
def scaled_by_lambda_init(right: Any, *args: Any, **options: Any) -> Any:
    """Multiplied by λ_init."""
    return right(*_with_scale(args, lambda start: 1 - start), **options)


@mistake(NORM_MISTAKES, "diff_heads_hf", "post scale", also=PAPER)
def scaled_by_one_minus_lambda(right: Any, *args: Any, **options: Any) -> Any:
    """Multiplied by 1 − λ, where 1 − λ_init is meant."""
    lambda_ = args[3]
    return right(*args, **options) if lambda_.ndim else right(*_with_scale(args, lambda start: lambda_), **options)


def _with_scale(args: tuple[Any, ...], change: Callable[[Any], Any]) -> tuple[Any, ...]:
    """Change λ_init, the fifth argument of `diff_heads_hf` and the sixth of `diff_heads_paper`, after the weight."""
    at = 5 if args[4] is None or getattr(args[4], "ndim", 0) > 0 else 4
    return (*args[:at], change(args[at]), *args[at + 1 :])
